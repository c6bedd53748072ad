//! Tests of the listing on recorded machines.

use super::*;
use crate::tree::Tree;
use serde_json::{Value, json};

fn listing(tree: &Tree) -> (Value, String) {
    let listing = Listing::read(tree.root(), &tree.path("etc/daxtier/devices"));
    (serde_json::to_value(&listing).unwrap(), listing.to_text())
}

#[test]
fn a_cxl_device_has_the_documented_keys() {
    let tree = Tree::recorded("cxl-devdax");
    let (json, text) = listing(&tree);
    let device = &json["devices"][0];
    for (key, value) in [
        ("chardev", json!("dax0.0")),
        ("path", json!("/dev/dax0.0")),
        ("size", json!(512 << 20)),
        ("align", json!(2 << 20)),
        ("target_node", json!(2)),
        ("numa_node", Value::Null),
        ("mode", json!("devdax")),
        ("state", json!("node-missing")),
        ("usable", json!(false)),
        ("released", json!(false)),
        ("tier", json!("slow")),
        ("origin", json!("cxl")),
        ("region", json!("region0")),
        ("region_id", json!(0)),
        ("available_size", json!(0)),
        ("read_latency_ns", Value::Null),
        ("claims", json!([])),
    ] {
        assert_eq!(device[key], value, "{key}");
    }
    assert_eq!(device["memdevs"], json!([{"memdev": "mem0", "serial": 1, "numa_node": null}]));
    let mapping = &device["mappings"][0];
    assert_eq!(mapping["start"], json!(0x5_9000_0000u64));
    assert_eq!(mapping["size"], json!(512 << 20));
    assert!(text.contains("/dev/dax0.0: its device node does not exist"), "{text}");
    assert!(text.contains("to use it: in a container"), "{text}");
}

#[test]
fn a_released_device_says_so_and_a_damaged_list_is_reported() {
    let tree = Tree::recorded("cxl-devdax");
    tree.write("etc/daxtier/devices", "cxl serial=0x1 dpa=0x0 size=0x20000000 extents=all\n");
    assert_eq!(listing(&tree).0["devices"][0]["released"], json!(true));
    tree.write("etc/daxtier/devices", "cxl everything\n");
    let (json, text) = listing(&tree);
    assert_eq!(json["devices"][0]["released"], json!(false));
    assert!(json["released_error"].as_str().unwrap().contains("devices:1"), "{json}");
    assert!(text.contains("is no released device"), "{text}");
}

#[test]
fn nodes_have_their_distances_and_speed_and_a_tier() {
    let (json, text) = listing(&Tree::recorded("two-nodes"));
    assert_eq!(json["devices"], json!([]));
    let (near, far) = (&json["nodes"][0], &json["nodes"][1]);
    assert_eq!(
        (&near["tier"], &near["cpus"], &near["kernel_tier"]),
        (&json!("fast"), &json!("0-1"), &json!(4))
    );
    assert_eq!((&far["tier"], &far["cpus"], &far["kernel_tier"]), (&json!("slow"), &json!(""), &json!(67)));
    assert_eq!((&far["read_latency_ns"], &far["initiators"]), (&json!(30), &json!([0])));
    assert_eq!(far["distances"], json!([{"node": 0, "distance": 20}, {"node": 1, "distance": 10}]));
    assert!(text.contains("No dax devices") && text.contains("20 GiB/s"), "{text}");
}

#[test]
fn memory_with_more_bandwidth_than_dram_is_fast() {
    let tree = Tree::recorded("two-nodes");
    tree.write("sys/devices/system/node/node1/access0/initiators/read_bandwidth", "409600");
    assert_eq!(listing(&tree).0["nodes"][1]["tier"], json!("fast"));
}

/// What a recorded device is: its name, MiB, alignment in KiB, origin, region, target node, node, tier, state and a part of the
/// command that mends it.
type Expected = (
    &'static str,
    u64,
    u64,
    &'static str,
    &'static str,
    Option<u32>,
    Option<u32>,
    &'static str,
    &'static str,
    Option<&'static str>,
);

const TO_DEVDAX: Option<&str> = Some("sudo daxctl reconfigure-device --mode=devdax --force dax0.0");
const TO_HUGE: Option<&str> = Some("echo 2097152 | sudo tee /sys/bus/dax/devices/dax0.0/align");
const MACHINES: &[(&str, &[Expected])] = &[
    ("cxl-devdax", &[("dax0.0", 512, 2048, "cxl", "region0", Some(2), None, "slow", "free", None)]),
    (
        "cxl-discontiguous",
        &[
            ("dax0.0", 256, 2048, "cxl", "region0", Some(2), None, "slow", "free", None),
            ("dax0.1", 128, 2048, "cxl", "region0", Some(2), None, "slow", "free", None),
        ],
    ),
    (
        "cxl-no-driver",
        &[(
            "dax0.0",
            512,
            2048,
            "cxl",
            "region0",
            Some(2),
            None,
            "slow",
            "no-driver",
            Some("echo dax0.0 | sudo tee /sys/bus/dax/drivers/device_dax/new_id"),
        )],
    ),
    (
        "cxl-size-zero",
        &[
            ("dax0.0", 256, 2048, "cxl", "region0", Some(2), None, "slow", "free", None),
            (
                "dax0.1",
                0,
                2048,
                "cxl",
                "region0",
                Some(2),
                None,
                "slow",
                "no-memory",
                Some("sudo daxctl create-device --region=0  # 256 MiB are free there"),
            ),
        ],
    ),
    (
        "cxl-small-pages",
        &[
            ("dax0.0", 192, 2048, "cxl", "region0", Some(2), None, "slow", "free", None),
            ("dax0.1", 256, 4, "cxl", "region0", Some(2), None, "slow", "free", None),
        ],
    ),
    (
        "cxl-system-ram",
        &[("dax0.0", 512, 2048, "cxl", "region0", Some(2), None, "slow", "system-ram", TO_DEVDAX)],
    ),
    (
        "cxl-system-ram-7",
        &[("dax0.0", 512, 2048, "cxl", "region0", Some(2), None, "slow", "system-ram", TO_DEVDAX)],
    ),
    (
        "cxl-two",
        &[
            ("dax0.0", 512, 2048, "cxl", "region0", Some(1), None, "slow", "free", None),
            ("dax1.0", 512, 2048, "cxl", "region1", Some(2), None, "slow", "free", None),
        ],
    ),
    ("hmem", &[("dax0.0", 512, 2048, "hmem", "hmem.0", Some(0), Some(0), "slow", "free", None)]),
    (
        "hmem-giant-pages",
        &[("dax0.0", 1024, 1 << 20, "hmem", "hmem.0", Some(1), Some(0), "slow", "free", TO_HUGE)],
    ),
    ("hmem-node", &[("dax0.0", 1024, 2048, "hmem", "hmem.0", Some(1), Some(0), "slow", "free", None)]),
    (
        "hmem-system-ram",
        &[("dax0.0", 1024, 2048, "hmem", "hmem.0", Some(1), Some(0), "slow", "system-ram", TO_DEVDAX)],
    ),
    ("no-numa", &[]),
    ("nvdimm", &[("dax0.0", 502, 2048, "pmem", "region0", Some(0), Some(0), "slow", "free", None)]),
    ("one-node", &[]),
    ("pmem", &[("dax0.0", 502, 2048, "pmem", "region0", Some(0), Some(0), "slow", "free", None)]),
    ("pmem-small-pages", &[("dax0.0", 502, 4, "pmem", "region0", Some(0), Some(0), "slow", "free", None)]),
    ("two-nodes", &[]),
];

/// Catches an attribute that is read wrong on one kind of machine, a state or an origin that is taken for another, and a
/// device that can't be used without the command that mends it.
#[test]
fn every_recorded_machine_is_listed_as_what_it_is() {
    for &(recorded, expected) in MACHINES {
        let tree = Tree::recorded(recorded);
        // A node of each device that this process can open, in place of its own.
        for (name, ..) in expected {
            let dir = std::fs::canonicalize(tree.path("sys/bus/dax/devices").join(name)).unwrap();
            std::fs::write(dir.join("dev"), "1:5\n").unwrap();
            tree.link(&format!("dev/{name}"), "/dev/zero");
        }
        let (json, text) = listing(&tree);
        let entries = json["devices"].as_array().unwrap();
        assert_eq!(entries.len(), expected.len(), "{recorded}");
        for (entry, &(name, mib, align_kib, origin, region, target_node, node, tier, state, mend)) in
            entries.iter().zip(expected)
        {
            let machine = format!("{recorded}, {name}: {entry}");
            for (key, value) in [
                ("chardev", json!(name)),
                ("size", json!(mib << 20)),
                ("align", json!(align_kib << 10)),
                ("origin", json!(origin)),
                ("region", json!(region)),
                ("target_node", json!(target_node)),
                ("numa_node", json!(node)),
                ("tier", json!(tier)),
                ("state", json!(state)),
                ("usable", json!(mend.is_none())),
            ] {
                assert_eq!(entry[key], value, "{key} of {machine}");
            }
            let has_create = origin != "pmem";
            assert_eq!(entry["available_size"].is_u64(), has_create, "{machine}");
            let pieces = entry["mappings"].as_array().unwrap().iter();
            assert_eq!(
                pieces.map(|piece| piece["size"].as_u64().unwrap()).sum::<u64>(),
                mib << 20,
                "{machine}"
            );
            match mend {
                None => assert_eq!(entry["mend"], Value::Null, "{machine}"),
                Some(command) => {
                    assert!(entry["mend"].as_str().unwrap().contains(command), "{machine}");
                    assert!(text.contains(command), "{recorded}: {text}");
                }
            }
        }
        assert!(text.lines().all(|line| line.len() < 400), "{recorded}: {text}");
    }
}

/// Catches a key that has daxctl's name and another meaning. What daxctl printed stands in the recorded trees.
#[test]
fn what_daxctl_lists_is_listed_under_the_same_names() {
    let mut nr_compared = 0;
    for (recorded, _) in MACHINES {
        let text = Tree::text_of(recorded);
        let Some(theirs) = text.lines().find_map(|line| line.strip_prefix("# daxctl list -D -M: ")) else {
            continue;
        };
        let (ours, _) = listing(&Tree::recorded(recorded));
        let theirs: Vec<Value> = serde_json::from_str(theirs).unwrap();
        for theirs in theirs {
            let same = |ours: &&Value| ours["chardev"] == theirs["chardev"];
            let ours = ours["devices"].as_array().unwrap().iter().find(same).unwrap();
            for key in ["size", "align", "target_node"] {
                assert_eq!(ours[key], theirs[key], "{key} on {recorded}");
            }
            let by_place = |device: &Value| {
                let mut pieces = device["mappings"].as_array().unwrap().clone();
                pieces.sort_by_key(|piece| piece["page_offset"].as_u64());
                pieces
            };
            assert_eq!(by_place(ours), by_place(&theirs), "{recorded}");
            // A device that no driver has has no mode: that it would be devdax is all that daxctl means.
            if theirs["state"] == json!("disabled") {
                assert_eq!(
                    (&ours["mode"], &ours["state"]),
                    (&Value::Null, &json!("no-driver")),
                    "{recorded}"
                );
            } else {
                assert_eq!(ours["mode"], theirs["mode"], "{recorded}");
            }
            nr_compared += 1;
        }
    }
    assert!(nr_compared > 10, "{nr_compared} devices were compared");
}

#[test]
fn numbers_are_written_as_the_kernel_does() {
    assert_eq!(id_list(&[0, 1, 2, 3, 8]), "0-3,8");
    assert_eq!(id_list(&[5]), "5");
    assert_eq!(id_list(&[]), "");
}
