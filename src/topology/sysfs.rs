//! Reading sysfs attributes: one value a file, lists of numbers, `meminfo` lines.
//!
//! Everything here takes a path under a root, so that recorded trees can be read in place of the machine's own. A
//! file that is missing or that cannot be understood is `None`: old kernels lack files, and none of it is vital.

use std::path::Path;

/// The largest number in a list that is believed; a longer list is damage, not a machine.
const MAX_ID: u32 = 65535;

/// Reads one attribute without its surrounding white space. `None` when it cannot be read.
pub(crate) fn read_text(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// Reads an attribute that is a decimal or `0x` number.
pub(crate) fn read_u64(path: &Path) -> Option<u64> {
    parse_u64(&read_text(path)?)
}

/// Reads an attribute such as `0-3,8` as the numbers in it, ascending. An empty file is an empty list.
pub(crate) fn read_id_list(path: &Path) -> Option<Vec<u32>> {
    parse_id_list(&read_text(path)?)
}

/// Returns the memory of NUMA node `id`, where the kernel tells it.
pub(crate) fn node_memory_bytes(root: &Path, id: u32) -> Option<u64> {
    node_meminfo(root, id, "MemTotal")
}

/// Returns the free memory of NUMA node `id`, where the kernel tells it.
pub(crate) fn node_free_bytes(root: &Path, id: u32) -> Option<u64> {
    node_meminfo(root, id, "MemFree")
}

fn node_meminfo(root: &Path, id: u32, key: &str) -> Option<u64> {
    let text = read_text(&root.join(format!("sys/devices/system/node/node{id}/meminfo")))?;
    meminfo_bytes(&text, key)
}

/// Finds `Node 0 MemTotal:  123 kB` or `MemTotal:  123 kB` in the text of a meminfo file.
pub(crate) fn meminfo_bytes(text: &str, key: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| {
        let (head, rest) = line.split_once(':')?;
        (head.split_whitespace().next_back() == Some(key)).then_some(rest)
    })?;
    let number = rest.split_whitespace().next()?;
    number.parse::<u64>().ok()?.checked_mul(1024)
}

pub(crate) fn parse_u64(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

pub(crate) fn parse_id_list(text: &str) -> Option<Vec<u32>> {
    let mut ids = Vec::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse::<u32>().ok()?, last.parse::<u32>().ok()?);
        if first > last || last > MAX_ID {
            return None;
        }
        ids.extend(first..=last);
    }
    ids.sort_unstable();
    ids.dedup();
    Some(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_ids_are_expanded() {
        assert_eq!(parse_id_list("0-3,8\n"), Some(vec![0, 1, 2, 3, 8]));
        assert_eq!(parse_id_list("5"), Some(vec![5]));
        assert_eq!(parse_id_list("\n"), Some(vec![]));
        for text in ["3-1", "a", "1-", "-1", "0-4294967295", "0-99999", "1 2"] {
            assert_eq!(parse_id_list(text), None, "{text}");
        }
    }

    #[test]
    fn meminfo_is_read_by_its_key() {
        let text = "Node 1 MemTotal:       524288 kB\nNode 1 MemFree:        1024 kB\nNode 1 Bad: x kB\n";
        assert_eq!(meminfo_bytes(text, "MemTotal"), Some(512 << 20));
        assert_eq!(meminfo_bytes(text, "MemFree"), Some(1 << 20));
        for key in ["Total", "Bad", "Node"] {
            assert_eq!(meminfo_bytes(text, key), None, "{key}");
        }
        assert_eq!(meminfo_bytes("MemAvailable: 18446744073709551615 kB", "MemAvailable"), None);
    }
}
