//! Tests of discovery on recorded machines.

use super::*;
use crate::topology::tree::Tree;

/// The recorded device, with a node that this process can open in place of its own.
fn with_node(tree: &Tree) {
    let dir = std::fs::canonicalize(tree.path("sys/bus/dax/devices/dax0.0")).unwrap();
    std::fs::write(dir.join("dev"), "1:5\n").unwrap();
    tree.link("dev/dax0.0", "/dev/zero");
}

fn only(tree: &Tree) -> DaxInfo {
    let mut found = discover(tree.root());
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

#[test]
fn a_machine_without_dax_has_no_devices() {
    assert_eq!(discover(Tree::recorded("one-node").root()), []);
    assert_eq!(discover(Tree::empty().root()), []);
}

#[test]
fn a_cxl_device_is_described_in_full() {
    let tree = Tree::recorded("cxl-devdax");
    with_node(&tree);
    let info = only(&tree);
    assert_eq!(info.name, "dax0.0");
    assert_eq!(info.path, Path::new("/dev/dax0.0"));
    assert_eq!((info.len_bytes, info.align_bytes), (512 << 20, 2 << 20));
    assert_eq!((info.target_node, info.numa_node), (Some(2), None), "numa_node was -1");
    assert_eq!(info.resource, Some(0x5_9000_0000));
    assert_eq!(info.mode(), Some("devdax"));
    assert_eq!((info.region.id, info.region.len_bytes), (Some(0), 512 << 20));
    assert_eq!(
        info.region.path, "platform/ACPI0017:00/root0/decoder0.0/region0/dax_region0",
        "as daxctl prints it"
    );
    let Origin::Cxl { region, memdevs } = &info.origin else { panic!("{:?}", info.origin) };
    assert_eq!(region, "region0");
    let memdev = &memdevs[0];
    assert_eq!((&memdev.name[..], memdev.serial, memdev.dpa_start), ("mem0", Some(1), Some(0)));
    assert_eq!(info.state, DaxState::Free);
    assert_eq!(info.mend(), None);
}

#[test]
fn each_memory_device_is_told_apart() {
    let found = discover(Tree::recorded("cxl-two").root());
    let serials: Vec<_> = found
        .iter()
        .map(|info| match &info.origin {
            Origin::Cxl { memdevs, .. } => (info.name.as_str(), memdevs[0].serial),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(serials, [("dax0.0", Some(1)), ("dax1.0", Some(2))]);
}

#[test]
fn the_pieces_of_a_discontiguous_device_are_listed_in_order() {
    let found = discover(Tree::recorded("cxl-discontiguous").root());
    let pieces: Vec<_> = found[0].mappings.iter().map(|piece| (piece.page_offset, piece.start)).collect();
    assert_eq!(pieces, [(0, Some(0x5_9000_0000)), (0x8000, Some(0x5_a000_0000))]);
    assert_eq!(found[1].mappings.len(), 1);
}

#[test]
fn persistent_and_soft_reserved_memory_are_recognised() {
    for (tree, region) in [("pmem", "region0"), ("nvdimm", "region0")] {
        match only(&Tree::recorded(tree)).origin {
            Origin::Pmem { region: seen, uuid: Some(_) } => assert_eq!(seen, region),
            other => panic!("{tree}: {other:?}"),
        }
    }
    for tree in ["hmem", "hmem-node"] {
        assert_eq!(only(&Tree::recorded(tree)).origin, Origin::Hmem { device: "hmem.0".into() });
    }
}

#[test]
fn system_ram_says_which_node_it_is_and_how_fast() {
    let info = only(&Tree::recorded("cxl-system-ram"));
    assert_eq!(info.state, DaxState::SystemRam { node: Some(2) });
    assert!(!info.state.is_usable());
    let mend = info.mend().unwrap();
    assert!(mend.contains("node:2") && mend.contains("daxctl reconfigure-device"), "{mend}");
    assert_eq!(info.performance.unwrap().read_latency_ns, Some(202));
}

#[test]
fn a_device_without_driver_memory_or_node_says_so() {
    let info = only(&Tree::recorded("cxl-no-driver"));
    assert_eq!(info.state, DaxState::NoDriver);
    assert!(info.mend().unwrap().contains("echo dax0.0"), "{:?}", info.mend());

    let found = discover(Tree::recorded("cxl-size-zero").root());
    assert_eq!(found[1].state, DaxState::NoMemory);
    assert!(found[1].mend().unwrap().contains("create-device --region=0"), "{:?}", found[1].mend());

    let info = only(&Tree::recorded("cxl-devdax"));
    assert_eq!(info.state, DaxState::NodeMissing);
    assert!(info.mend().unwrap().contains("mknod -m 600 /dev/dax0.0 c 252 0"), "{:?}", info.mend());
}

#[test]
fn granules_too_large_for_blocks_are_told_with_the_command_that_changes_them() {
    let tree = Tree::recorded("hmem-giant-pages");
    with_node(&tree);
    let info = only(&tree);
    assert_eq!((&info.state, info.align_bytes), (&DaxState::Free, 1 << 30), "its folios can be used");
    assert!(info.heap_obstacle().unwrap().contains("granules of 1 GiB"), "{:?}", info.heap_obstacle());
    let mend = info.mend().unwrap();
    assert!(mend.contains("echo 2097152 | sudo tee /sys/bus/dax/devices/dax0.0/align"), "{mend}");

    let tree = Tree::recorded("pmem");
    with_node(&tree);
    assert_eq!((only(&tree).heap_obstacle(), only(&tree).mend()), (None, None));
    let dir = std::fs::canonicalize(tree.path("sys/bus/dax/devices/dax0.0")).unwrap();
    std::fs::write(dir.join("align"), "1073741824\n").unwrap();
    assert!(only(&tree).mend().unwrap().contains("ndctl create-namespace"), "{:?}", only(&tree).mend());
}

#[test]
fn a_node_that_is_something_else_is_not_taken_for_the_device() {
    let tree = Tree::recorded("cxl-devdax");
    tree.link("dev/dax0.0", "/dev/null");
    assert_eq!(only(&tree).state, DaxState::NotItsNode { found: "character device 1:3".into() });
    tree.remove("dev/dax0.0");
    tree.write("dev/dax0.0", "");
    assert_eq!(only(&tree).state, DaxState::NotItsNode { found: "a regular file".into() });
}

#[test]
fn damaged_attributes_make_a_device_unusable_not_the_listing() {
    for (attribute, text, seen) in
        [("size", "lots", "size"), ("align", "", "align"), ("align", "0", "align"), ("size", "-1", "size")]
    {
        let tree = Tree::recorded("cxl-devdax");
        with_node(&tree);
        let dir = std::fs::canonicalize(tree.path("sys/bus/dax/devices/dax0.0")).unwrap();
        std::fs::write(dir.join(attribute), text).unwrap();
        assert_eq!(only(&tree).state, DaxState::Unreadable { attribute: seen }, "{attribute} = {text}");
    }
}

#[test]
fn only_names_of_dax_devices_are_taken() {
    assert_eq!(parse_name("dax12.3"), Some((12, 3)));
    for name in
        ["dax", "dax0", "dax0.", "dax.0", "dax0.0.0", "dax+0.0", "pmem0", "dax0.99999999999", "../dax0.0"]
    {
        assert_eq!(parse_name(name), None, "{name}");
    }
    let tree = Tree::recorded("cxl-devdax");
    tree.write("sys/bus/dax/devices/garbage", "");
    tree.link("sys/bus/dax/devices/dax10.0", "nowhere");
    assert_eq!(only(&tree).name, "dax0.0");
}
