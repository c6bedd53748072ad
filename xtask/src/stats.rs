//! The statistics of a tiered process, as `daxtier run --stats=FILE` and `daxtier stat PID --json` write them.

use crate::json::Json;
use std::path::Path;

/// One tier of the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tier {
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) capacity_bytes: u64,
    pub(crate) used_bytes: u64,
    pub(crate) peak_bytes: u64,
}

/// Reads the tiers out of a document.
///
/// # Errors
/// What is missing or malformed.
pub(crate) fn parse(text: &str) -> Result<Vec<Tier>, String> {
    let json = Json::parse(text)?;
    let tiers = json.get("tiers").and_then(Json::items).ok_or("the statistics have no list \"tiers\"")?;
    tiers.iter().map(tier).collect()
}

/// Reads the tiers out of a file.
///
/// # Errors
/// As for [`parse`], or what kept the file from being read.
pub(crate) fn read(file: &Path) -> Result<Vec<Tier>, String> {
    let text = std::fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
    parse(&text).map_err(|e| format!("{}: {e}", file.display()))
}

fn tier(json: &Json) -> Result<Tier, String> {
    let text = |name: &str| {
        json.get(name).and_then(Json::text).map(str::to_owned).ok_or(format!("a tier has no text {name:?}"))
    };
    let count =
        |name: &str| json.get(name).and_then(Json::count).ok_or(format!("a tier has no count {name:?}"));
    Ok(Tier {
        name: text("name")?,
        kind: text("kind")?,
        capacity_bytes: count("capacity_bytes")?,
        used_bytes: count("used_bytes")?,
        peak_bytes: count("peak_bytes")?,
    })
}

/// Prints a number of bytes in whole MiB or in GiB with one decimal.
pub(crate) fn human(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    if mib >= 1024.0 { format!("{:.1} GiB", mib / 1024.0) } else { format!("{mib:.0} MiB") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiers_are_read_by_their_documented_keys() {
        let text = r#"{"pid": 1, "tiers": [{"name": "fast", "kind": "dram", "capacity_bytes": 10,
            "used_bytes": 5, "peak_bytes": 9, "more": [1]}]}"#;
        let tiers = parse(text).unwrap();
        assert_eq!((tiers[0].name.as_str(), tiers[0].peak_bytes), ("fast", 9));
        assert!(parse(&text.replace("peak_bytes", "peak")).unwrap_err().contains("peak_bytes"));
        assert!(parse("{}").unwrap_err().contains("tiers"));
    }

    #[test]
    fn sizes_read_well() {
        assert_eq!(human(128 << 20), "128 MiB");
        assert_eq!(human(3 << 29), "1.5 GiB");
    }
}
