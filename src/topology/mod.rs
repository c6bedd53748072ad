//! What the machine looks like: NUMA nodes, their distances and speeds, and the kernel's memory tiers.
//!
//! Plain data, read once from sysfs under a root path. [`Topology`] holds [`Node`]s and [`MemoryTier`]s;
//! [`Performance`] is what the firmware's HMAT table says of a memory. CPUs' packages and caches are not here: the
//! command-line program takes them from hwloc. Uses nothing; used by `device` and everything above it.

mod sysfs;
#[cfg(test)]
#[path = "../../tests/fixtures/tree.rs"]
pub(crate) mod tree;

pub(crate) use sysfs::{node_free_bytes, node_memory_bytes, read_id_list, read_text, read_u64};

use std::path::Path;
use sysfs::meminfo_bytes;

/// The machine's memory, as the kernel lists it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Topology {
    /// The online nodes, ascending. Kernels without NUMA have one, node 0.
    pub nodes: Vec<Node>,
    /// The kernel's memory tiers, fastest first; empty on kernels without them.
    pub memory_tiers: Vec<MemoryTier>,
}

/// A NUMA node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Node {
    /// The node's number.
    pub id: u32,
    /// Its CPUs; none for memory that is not near any CPU, such as a CXL device's.
    pub cpus: Vec<u32>,
    /// Bytes of memory, 0 for a node without.
    pub memory_bytes: u64,
    /// Bytes that are free now, where the kernel tells it.
    pub free_bytes: Option<u64>,
    /// Distances to the online nodes, in their order; 10 is the node itself.
    pub distances: Vec<u32>,
    /// Latency and bandwidth from the nearest initiators, where the firmware tells it.
    pub performance: Option<Performance>,
    /// The nodes that `performance` holds for; empty where it is not known.
    pub initiators: Vec<u32>,
}

/// What the firmware says of a memory, seen from its nearest CPUs. A figure that it does not tell is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Performance {
    /// Read latency in nanoseconds.
    pub read_latency_ns: Option<u64>,
    /// Write latency in nanoseconds.
    pub write_latency_ns: Option<u64>,
    /// Read bandwidth in MiB/s.
    pub read_bandwidth_mib_s: Option<u64>,
    /// Write bandwidth in MiB/s.
    pub write_bandwidth_mib_s: Option<u64>,
}

/// One of the kernel's memory tiers: nodes of like speed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryTier {
    /// The kernel's number; lower is faster.
    pub id: u32,
    /// The nodes in it.
    pub nodes: Vec<u32>,
}

impl Topology {
    /// Reads the machine's topology from the sysfs and procfs under `root` (`/` for this machine's own). What is
    /// missing there is missing in the answer; nothing is guessed.
    pub fn read(root: &Path) -> Topology {
        let dir = root.join("sys/devices/system/node");
        let nodes = match read_id_list(&dir.join("online")) {
            Some(online) => online.iter().map(|&id| Node::read(&dir, id)).collect(),
            None => vec![Node::whole_machine(root)],
        };
        Topology { nodes, memory_tiers: read_memory_tiers(root) }
    }

    /// Returns node `id`, if it is online.
    pub fn node(&self, id: u32) -> Option<&Node> {
        self.nodes.iter().find(|node| node.id == id)
    }

    /// Returns the distance between two online nodes.
    pub fn distance(&self, from: u32, to: u32) -> Option<u32> {
        let index = self.nodes.iter().position(|node| node.id == to)?;
        self.node(from)?.distances.get(index).copied()
    }

    /// Returns the nodes that have both CPUs and memory: where DRAM is.
    pub fn cpu_nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| !node.cpus.is_empty() && node.memory_bytes > 0)
    }

    /// Returns the kernel's memory tier that holds node `id`.
    pub fn memory_tier_of(&self, id: u32) -> Option<&MemoryTier> {
        self.memory_tiers.iter().find(|tier| tier.nodes.contains(&id))
    }
}

impl Node {
    fn read(dir: &Path, id: u32) -> Node {
        let dir = dir.join(format!("node{id}"));
        let meminfo = read_text(&dir.join("meminfo")).unwrap_or_default();
        let distances = read_text(&dir.join("distance")).unwrap_or_default();
        let initiators = dir.join("access0/initiators");
        Node {
            id,
            cpus: read_id_list(&dir.join("cpulist")).unwrap_or_default(),
            memory_bytes: meminfo_bytes(&meminfo, "MemTotal").unwrap_or(0),
            free_bytes: meminfo_bytes(&meminfo, "MemFree"),
            distances: distances.split_whitespace().map_while(|word| word.parse().ok()).collect(),
            performance: Performance::read(&initiators),
            initiators: numbered_entries(&initiators, "node"),
        }
    }

    /// The one node of a kernel without NUMA.
    fn whole_machine(root: &Path) -> Node {
        let meminfo = read_text(&root.join("proc/meminfo")).unwrap_or_default();
        Node {
            cpus: read_id_list(&root.join("sys/devices/system/cpu/online")).unwrap_or_default(),
            memory_bytes: meminfo_bytes(&meminfo, "MemTotal").unwrap_or(0),
            free_bytes: meminfo_bytes(&meminfo, "MemFree"),
            distances: vec![10],
            ..Node::default()
        }
    }
}

impl Performance {
    /// Reads the four figures in `dir`. `None` when not one of them is there; 0 means unknown, as the kernel has it.
    pub(crate) fn read(dir: &Path) -> Option<Performance> {
        let figure = |name| read_u64(&dir.join(name)).filter(|&figure| figure > 0);
        let performance = Performance {
            read_latency_ns: figure("read_latency"),
            write_latency_ns: figure("write_latency"),
            read_bandwidth_mib_s: figure("read_bandwidth"),
            write_bandwidth_mib_s: figure("write_bandwidth"),
        };
        (performance != Performance::default()).then_some(performance)
    }
}

fn read_memory_tiers(root: &Path) -> Vec<MemoryTier> {
    let dir = root.join("sys/devices/virtual/memory_tiering");
    let ids = numbered_entries(&dir, "memory_tier");
    let tier = |id| MemoryTier {
        id,
        nodes: read_id_list(&dir.join(format!("memory_tier{id}/nodelist"))).unwrap_or_default(),
    };
    ids.into_iter().map(tier).filter(|tier| !tier.nodes.is_empty()).collect()
}

/// Returns the numbers of the entries of `dir` that are called `prefix` and a number, ascending.
pub(crate) fn numbered_entries(dir: &Path, prefix: &str) -> Vec<u32> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut numbers: Vec<u32> =
        entries.filter_map(|entry| entry.file_name().to_str()?.strip_prefix(prefix)?.parse().ok()).collect();
    numbers.sort_unstable();
    numbers
}

#[cfg(test)]
mod tests {
    use super::tree::Tree;
    use super::*;

    #[test]
    fn a_plain_machine_has_one_node_and_nothing_invented() {
        let topology = Topology::read(Tree::recorded("one-node").root());
        assert_eq!(topology.nodes.len(), 1);
        let node = &topology.nodes[0];
        assert_eq!((node.id, node.cpus.len(), node.memory_bytes), (0, 8, 16_384_000 << 10));
        assert_eq!((node.performance, node.initiators.len()), (None, 0));
        assert_eq!(topology.memory_tiers, []);
        assert_eq!(topology.distance(0, 0), Some(10));
        assert_eq!(topology.distance(0, 1), None);
    }

    #[test]
    fn a_cpu_less_node_is_told_from_dram_and_has_its_speed() {
        let topology = Topology::read(Tree::recorded("two-nodes").root());
        assert_eq!(topology.cpu_nodes().map(|node| node.id).collect::<Vec<_>>(), [0]);
        let far = topology.node(1).unwrap();
        assert_eq!(
            (far.cpus.len(), far.memory_bytes, far.free_bytes),
            (0, 991_392 << 10, Some(950_764 << 10))
        );
        let performance = far.performance.unwrap();
        assert_eq!((performance.read_latency_ns, performance.read_bandwidth_mib_s), (Some(30), Some(20480)));
        assert_eq!(far.initiators, [0]);
        assert_eq!((topology.distance(0, 1), topology.distance(1, 1)), (Some(20), Some(10)));
        assert_eq!(topology.memory_tier_of(0).map(|tier| tier.id), Some(4));
        assert_eq!(topology.memory_tier_of(1).map(|tier| tier.id), Some(67));
    }

    #[test]
    fn distances_follow_the_online_nodes_across_a_gap_in_their_numbers() {
        let topology = Topology::read(Tree::recorded("cxl-system-ram").root());
        assert_eq!(topology.nodes.iter().map(|node| node.id).collect::<Vec<_>>(), [0, 2]);
        assert_eq!((topology.distance(0, 2), topology.distance(0, 1)), (Some(20), None));
        assert_eq!(topology.node(2).unwrap().performance.unwrap().write_latency_ns, Some(302));
        assert_eq!(topology.node(2).unwrap().initiators, [] as [u32; 0], "the kernel named none");
    }

    #[test]
    fn a_kernel_without_numa_is_one_node() {
        let topology = Topology::read(Tree::recorded("no-numa").root());
        assert_eq!(topology.nodes.len(), 1);
        assert_eq!((topology.nodes[0].cpus.len(), topology.nodes[0].memory_bytes), (4, 4_096_000 << 10));
    }

    #[test]
    fn damaged_files_are_left_out() {
        let tree = Tree::recorded("two-nodes");
        tree.write("sys/devices/system/node/node1/meminfo", "nonsense");
        tree.write("sys/devices/system/node/node1/distance", "20 x");
        tree.write("sys/devices/system/node/node1/access0/initiators/read_latency", "soon");
        tree.write("sys/devices/virtual/memory_tiering/memory_tier67/nodelist", "9-1");
        let topology = Topology::read(tree.root());
        let node = topology.node(1).unwrap();
        assert_eq!((node.memory_bytes, node.free_bytes, &node.distances[..]), (0, None, &[20][..]));
        assert_eq!(node.performance.unwrap().read_latency_ns, None);
        assert_eq!(topology.memory_tier_of(1), None);
    }

    #[test]
    fn this_machine_has_a_node_with_memory() {
        let topology = Topology::read(Path::new("/"));
        assert!(topology.nodes.iter().any(|node| node.memory_bytes > 0), "{topology:?}");
    }
}
