//! `daxtier list`: the machine's dax devices, NUMA nodes, CPU packages and caches.
//!
//! For people, tables; each device that cannot be used is followed by the reason and the command that mends it. With
//! `--json`, [`Listing`] as it stands: its fields are the documented, stable keys. Where a key means the same as in
//! `daxctl list` it has the same name (`chardev`, `size`, `target_node`, `align`, `mode`, `mappings`); `state` says more than
//! daxctl's, which only knows `disabled` (here `no-driver`, without a mode). Sizes and
//! addresses are plain numbers of bytes; what is not known is `null`.

use clap::Args as ClapArgs;
use comfy_table::{Table, presets};
use daxtier::device::{self, DaxInfo, DaxState, Origin, RELEASED_PATH, Release, ReleaseError, list_releases};
use daxtier::topology::{Node, Performance, Topology};
use daxtier::units::Bytes;
use serde::Serialize;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Lists devices, tiers and NUMA nodes, and why a device cannot be used.
#[derive(ClapArgs, Debug)]
pub(crate) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Read sysfs, procfs and device nodes below DIR instead of / (for a tree recorded on another machine)
    #[arg(long, value_name = "DIR", default_value = "/", hide_default_value = true)]
    root: PathBuf,
}

/// The whole listing.
#[derive(Debug, Serialize)]
struct Listing {
    /// The dax devices, in the order of their numbers.
    devices: Vec<DeviceEntry>,
    /// The online NUMA nodes.
    nodes: Vec<NodeEntry>,
    /// CPU packages; empty when built without hwloc.
    packages: Vec<PackageEntry>,
    /// Data and unified caches; empty when built without hwloc.
    caches: Vec<CacheEntry>,
    /// What is wrong with the list of released devices, if anything.
    released_error: Option<String>,
}

/// A dax device.
#[derive(Debug, Serialize)]
struct DeviceEntry {
    /// The kernel's name, such as `dax0.0`.
    chardev: String,
    /// The device node.
    path: String,
    /// Length in bytes.
    size: u64,
    /// The mapping granule in bytes.
    align: u64,
    /// The node that the memory is, or would be as system RAM.
    target_node: Option<u32>,
    /// The node that the device hangs on.
    numa_node: Option<u32>,
    /// `devdax` or `system-ram`; `null` without a driver.
    mode: Option<&'static str>,
    /// One word: `free`, `claimed`, `system-ram`, `no-driver`, `other-driver`, `no-memory`, `unreadable`,
    /// `node-missing`, `not-its-node`, `not-permitted` or `read-only`.
    state: &'static str,
    /// Whether a pool can be opened on it now.
    usable: bool,
    /// Why not, in a sentence.
    reason: Option<String>,
    /// The command or step that makes it usable.
    mend: Option<String>,
    /// Whether the administrator released it for programs that name no device.
    released: bool,
    /// `fast` or `slow`: what kind of tier it would serve as, judged by its speed, or by its kind.
    tier: &'static str,
    /// `cxl`, `pmem`, `hmem` or `unknown`.
    origin: &'static str,
    /// The region's number in `daxctl`, for `daxctl create-device --region=N`.
    region_id: Option<u32>,
    /// The region's name (`region0`) or the platform device (`hmem.0`).
    region: Option<String>,
    /// Bytes of the region that no device has.
    available_size: Option<u64>,
    /// The CXL memory devices behind it.
    memdevs: Vec<MemdevEntry>,
    /// The pieces of physical memory; addresses only for root.
    mappings: Vec<MappingEntry>,
    /// The parts that processes hold.
    claims: Vec<ClaimEntry>,
    /// Latency and bandwidth, where known.
    #[serde(flatten)]
    performance: PerformanceEntry,
}

/// A CXL memory device under a region.
#[derive(Debug, Serialize)]
struct MemdevEntry {
    /// Its name, such as `mem0`.
    memdev: String,
    /// Its serial number.
    serial: Option<u64>,
    /// The node that it hangs on.
    numa_node: Option<u32>,
}

/// A piece of a device.
#[derive(Debug, Serialize)]
struct MappingEntry {
    /// Where it begins in the device, in pages.
    page_offset: u64,
    /// First physical address.
    start: Option<u64>,
    /// Last physical address.
    end: Option<u64>,
    /// Length in bytes.
    size: Option<u64>,
}

/// A part that a process holds.
#[derive(Debug, Serialize)]
struct ClaimEntry {
    /// The process; `null` when it may not be looked at.
    pid: Option<u32>,
    /// First byte.
    start: u64,
    /// Byte after the last.
    end: u64,
}

/// Figures of the firmware's HMAT table, or of the CXL devices.
#[derive(Debug, Default, Serialize)]
struct PerformanceEntry {
    /// Read latency in nanoseconds.
    read_latency_ns: Option<u64>,
    /// Write latency in nanoseconds.
    write_latency_ns: Option<u64>,
    /// Read bandwidth in MiB/s.
    read_bandwidth_mib_s: Option<u64>,
    /// Write bandwidth in MiB/s.
    write_bandwidth_mib_s: Option<u64>,
}

/// A NUMA node.
#[derive(Debug, Serialize)]
struct NodeEntry {
    /// The node's number.
    node: u32,
    /// Its CPUs, such as `0-3,8`; empty for a node of memory alone.
    cpus: String,
    /// Its memory in bytes.
    memory_bytes: u64,
    /// What of it is free.
    free_bytes: Option<u64>,
    /// `fast` or `slow`; `null` for a node without memory.
    tier: Option<&'static str>,
    /// The number of the kernel's memory tier.
    kernel_tier: Option<u32>,
    /// Distances to other nodes.
    distances: Vec<DistanceEntry>,
    /// The nodes that the figures below hold for.
    initiators: Vec<u32>,
    /// Latency and bandwidth, where known.
    #[serde(flatten)]
    performance: PerformanceEntry,
}

/// The distance to a node.
#[derive(Debug, Serialize)]
struct DistanceEntry {
    /// The other node.
    node: u32,
    /// 10 is the node itself.
    distance: u32,
}

/// A CPU package.
#[derive(Debug, Serialize)]
struct PackageEntry {
    /// The system's number for it.
    package: u32,
    /// How many cores it has.
    cores: usize,
    /// Its logical CPUs, such as `0-7`.
    cpus: String,
}

/// Caches of one size and level.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct CacheEntry {
    /// 1 is nearest to the core.
    level: u32,
    /// Size of one in bytes.
    size: u64,
    /// How many there are.
    count: usize,
    /// How many logical CPUs share one.
    shared_by: usize,
}

/// Prints the listing.
pub(crate) fn run(args: Args) -> ExitCode {
    let listing = Listing::read(&args.root, Path::new(RELEASED_PATH));
    let text = if args.json {
        match serde_json::to_string_pretty(&listing) {
            Ok(text) => text + "\n",
            Err(error) => {
                eprintln!("daxtier: {error}");
                return ExitCode::FAILURE;
            }
        }
    } else {
        listing.to_text()
    };
    // A reader that has seen enough (`daxtier list | head -1`) is no failure.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

impl Listing {
    fn read(root: &Path, released_path: &Path) -> Listing {
        let topology = Topology::read(root);
        let releases = list_releases(released_path);
        let (packages, caches) = cpus(root);
        Listing {
            devices: device::discover(root)
                .iter()
                .map(|info| DeviceEntry::new(info, &topology, &releases))
                .collect(),
            nodes: topology.nodes.iter().map(|node| NodeEntry::new(node, &topology)).collect(),
            packages,
            caches,
            released_error: releases.err().map(|error| error.to_string()),
        }
    }

    fn to_text(&self) -> String {
        let mut text = String::new();
        if self.devices.is_empty() {
            text += "No dax devices. An emulated one works everywhere: daxtier run --slow emulated:2G -- COMMAND\n";
        } else {
            text += &format!("{}\n", self.device_table());
            for device in &self.devices {
                if let Some(reason) = &device.reason {
                    text += &format!("{}: {reason}\n", device.path);
                }
                if let Some(mend) = &device.mend {
                    text += &format!("  to use it: {mend}\n");
                }
            }
        }
        if let Some(error) = &self.released_error {
            text += &format!("{error}\n");
        }
        text += &format!("\n{}\n", self.node_table());
        for package in &self.packages {
            text += &format!("Package {}: {} cores, CPUs {}\n", package.package, package.cores, package.cpus);
        }
        for cache in &self.caches {
            let (size, CacheEntry { level, count, shared_by, .. }) = (Bytes(cache.size), cache);
            let shared =
                if *shared_by > 1 { format!(", each shared by {shared_by} CPUs") } else { String::new() };
            text += &format!("L{level} cache: {count} of {size}{shared}\n");
        }
        text
    }

    fn device_table(&self) -> Table {
        let mut table = table(&[
            "Device",
            "Size",
            "Align",
            "Origin",
            "Node",
            "Tier",
            "State",
            "Released",
            "Read",
            "Bandwidth",
        ]);
        for device in &self.devices {
            let origin = match &device.region {
                Some(region) => format!("{} {region}", device.origin),
                None => device.origin.to_owned(),
            };
            table.add_row([
                device.path.clone(),
                Bytes(device.size).to_string(),
                Bytes(device.align).to_string(),
                origin,
                or_dash(device.target_node),
                device.tier.to_owned(),
                device.state.to_owned(),
                if device.released { "yes" } else { "no" }.to_owned(),
                device.performance.latency(),
                device.performance.bandwidth(),
            ]);
        }
        table
    }

    fn node_table(&self) -> Table {
        let mut headings: Vec<String> =
            ["Node", "CPUs", "Memory", "Free", "Tier", "Read", "Bandwidth"].map(str::to_owned).to_vec();
        headings.extend(self.nodes.iter().map(|node| format!("to {}", node.node)));
        let mut table = table(&headings);
        for node in &self.nodes {
            let mut row = vec![
                node.node.to_string(),
                if node.cpus.is_empty() { "none".to_owned() } else { node.cpus.clone() },
                Bytes(node.memory_bytes).to_string(),
                node.free_bytes.map_or("-".to_owned(), |bytes| Bytes(bytes).to_string()),
                node.tier.unwrap_or("-").to_owned(),
                node.performance.latency(),
                node.performance.bandwidth(),
            ];
            row.extend(node.distances.iter().map(|entry| entry.distance.to_string()));
            table.add_row(row);
        }
        table
    }
}

impl DeviceEntry {
    fn new(
        info: &DaxInfo,
        topology: &Topology,
        releases: &Result<Vec<Release>, ReleaseError>,
    ) -> DeviceEntry {
        let (region, memdevs) = match &info.origin {
            Origin::Cxl { region, memdevs } => (Some(region.clone()), &memdevs[..]),
            Origin::Pmem { region, .. } => (Some(region.clone()), &[][..]),
            Origin::Hmem { device } => (Some(device.clone()), &[][..]),
            _ => (None, &[][..]),
        };
        let claims = match &info.state {
            DaxState::Claimed { holders } => &holders[..],
            _ => &[],
        };
        let obstacle = info.heap_obstacle();
        DeviceEntry {
            chardev: info.name.clone(),
            path: info.path.display().to_string(),
            size: info.len_bytes,
            align: info.align_bytes,
            target_node: info.target_node,
            numa_node: info.numa_node,
            mode: info.mode(),
            state: info.state.as_str(),
            usable: info.state.is_usable() && obstacle.is_none(),
            reason: obstacle.or_else(|| (info.state != DaxState::Free).then(|| info.state.to_string())),
            mend: info.mend(),
            released: releases
                .as_ref()
                .is_ok_and(|entries| entries.iter().any(|entry| info.is_released_by(entry))),
            tier: if is_fast(info.performance, topology) { "fast" } else { "slow" },
            origin: info.origin.as_str(),
            region_id: info.region.id,
            region,
            available_size: info.region.available_bytes,
            memdevs: memdevs
                .iter()
                .map(|memdev| MemdevEntry {
                    memdev: memdev.name.clone(),
                    serial: memdev.serial,
                    numa_node: memdev.numa_node,
                })
                .collect(),
            mappings: info
                .mappings
                .iter()
                .map(|piece| MappingEntry {
                    page_offset: piece.page_offset,
                    start: piece.start,
                    end: piece.end,
                    size: piece
                        .start
                        .zip(piece.end)
                        .and_then(|(start, end)| end.checked_sub(start)?.checked_add(1)),
                })
                .collect(),
            claims: claims
                .iter()
                .map(|holder| ClaimEntry { pid: holder.pid, start: holder.start, end: holder.end })
                .collect(),
            performance: PerformanceEntry::new(info.performance),
        }
    }
}

impl NodeEntry {
    fn new(node: &Node, topology: &Topology) -> NodeEntry {
        let is_near = !node.cpus.is_empty();
        NodeEntry {
            node: node.id,
            cpus: id_list(&node.cpus),
            memory_bytes: node.memory_bytes,
            free_bytes: node.free_bytes,
            tier: (node.memory_bytes > 0)
                .then(|| if is_near || is_fast(node.performance, topology) { "fast" } else { "slow" }),
            kernel_tier: topology.memory_tier_of(node.id).map(|tier| tier.id),
            distances: topology
                .nodes
                .iter()
                .zip(&node.distances)
                .map(|(other, &distance)| DistanceEntry { node: other.id, distance })
                .collect(),
            initiators: node.initiators.clone(),
            performance: PerformanceEntry::new(node.performance),
        }
    }
}

impl PerformanceEntry {
    fn new(performance: Option<Performance>) -> PerformanceEntry {
        let Some(performance) = performance else { return PerformanceEntry::default() };
        PerformanceEntry {
            read_latency_ns: performance.read_latency_ns,
            write_latency_ns: performance.write_latency_ns,
            read_bandwidth_mib_s: performance.read_bandwidth_mib_s,
            write_bandwidth_mib_s: performance.write_bandwidth_mib_s,
        }
    }

    fn latency(&self) -> String {
        self.read_latency_ns.map_or("-".to_owned(), |ns| format!("{ns} ns"))
    }

    fn bandwidth(&self) -> String {
        self.read_bandwidth_mib_s
            .map_or("-".to_owned(), |mib| format!("{}/s", Bytes(mib.saturating_mul(1 << 20))))
    }
}

/// Returns whether memory is at least as fast as the nodes with CPUs, by its bandwidth (high-bandwidth memory). What
/// is not known to be so is slow: that is what dax devices are for.
fn is_fast(performance: Option<Performance>, topology: &Topology) -> bool {
    let bandwidth = performance.and_then(|performance| performance.read_bandwidth_mib_s);
    let best_near = topology.cpu_nodes().filter_map(|node| node.performance?.read_bandwidth_mib_s).max();
    bandwidth.zip(best_near).is_some_and(|(bandwidth, best_near)| bandwidth >= best_near)
}

#[cfg(feature = "hwloc")]
fn cpus(root: &Path) -> (Vec<PackageEntry>, Vec<CacheEntry>) {
    // hwloc knows this machine only, or the made-up one that it is told of.
    if root != Path::new("/") {
        return Default::default();
    }
    let hwloc = match daxtier_hwloc::Hwloc::load() {
        Ok(hwloc) => hwloc,
        Err(error) => {
            eprintln!("daxtier: {error}");
            return Default::default();
        }
    };
    let package = |package: daxtier_hwloc::Package| PackageEntry {
        package: package.id,
        cores: package.cores,
        cpus: id_list(&package.cpus),
    };
    let mut caches: Vec<CacheEntry> = Vec::new();
    for cache in hwloc.caches() {
        let (level, size, shared_by) = (cache.level, cache.len_bytes, cache.cpus.len());
        match caches
            .iter_mut()
            .find(|seen| (seen.level, seen.size, seen.shared_by) == (level, size, shared_by))
        {
            Some(seen) => seen.count += 1,
            None => caches.push(CacheEntry { level, size, count: 1, shared_by }),
        }
    }
    (hwloc.packages().into_iter().map(package).collect(), caches)
}

#[cfg(not(feature = "hwloc"))]
fn cpus(_root: &Path) -> (Vec<PackageEntry>, Vec<CacheEntry>) {
    Default::default()
}

fn table<T: ToString>(headings: &[T]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(headings.iter().map(ToString::to_string));
    table
}

fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or("-".to_owned(), |value| value.to_string())
}

/// Writes ascending numbers as the kernel does: `0-3,8`.
fn id_list(ids: &[u32]) -> String {
    let mut parts: Vec<(u32, u32)> = Vec::new();
    for &id in ids {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == id => *last = id,
            _ => parts.push((id, id)),
        }
    }
    let part = |&(first, last): &(u32, u32)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    parts.iter().map(part).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests;
