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

#[test]
fn every_recorded_machine_is_listed_in_both_forms() {
    for (recorded, devices) in [
        ("cxl-devdax", 1),
        ("cxl-discontiguous", 2),
        ("cxl-no-driver", 1),
        ("cxl-size-zero", 2),
        ("cxl-system-ram", 1),
        ("cxl-two", 2),
        ("hmem", 1),
        ("hmem-node", 1),
        ("no-numa", 0),
        ("nvdimm", 1),
        ("one-node", 0),
        ("pmem", 1),
        ("two-nodes", 0),
    ] {
        let (json, text) = listing(&Tree::recorded(recorded));
        let entries = json["devices"].as_array().unwrap();
        assert_eq!(entries.len(), devices, "{recorded}");
        for entry in entries {
            assert!(entry["usable"] == json!(true) || entry["mend"].is_string(), "{recorded}: {entry}");
        }
        assert!(text.lines().all(|line| line.len() < 400), "{recorded}: {text}");
    }
}

#[test]
fn numbers_are_written_as_the_kernel_does() {
    assert_eq!(id_list(&[0, 1, 2, 3, 8]), "0-3,8");
    assert_eq!(id_list(&[5]), "5");
    assert_eq!(id_list(&[]), "");
}
