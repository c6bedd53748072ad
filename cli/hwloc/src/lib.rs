//! CPU packages, caches and CPU binding through hwloc.
//!
//! [`Hwloc::load`] takes hwloc's picture of the machine, or of the one that `HWLOC_SYNTHETIC` describes;
//! [`Hwloc::packages`] and [`Hwloc::caches`] copy it into plain data, [`Hwloc::bind_current_thread`] binds the calling
//! thread. Memory is not asked for here: nodes, distances and speeds come from sysfs, in `daxtier::topology`.
//!
//! The crate `hwloc2` is used for a few calls only. Its `name` and `Display` of an object free or overrun memory that
//! is not theirs, its list of NUMA nodes panics, and its bitmaps that point into the topology do not say how long they
//! live. What is used here: loading, the depth of a type, the objects at a depth, an object's number and CPU set, a
//! cache's size and level, and binding. CPU sets are copied while the topology is borrowed. hwloc needs the library
//! libhwloc 2, so this crate is never a dependency of the libraries that programs load.

use hwloc2::{CpuBindFlags, CpuSet, ObjectType, Topology, TopologyObject};
use std::sync::Mutex;

/// hwloc's picture of the machine.
pub struct Hwloc {
    /// Binding wants the topology mutably; nothing else changes it once it is loaded.
    topology: Mutex<Topology>,
}

/// A CPU package (a socket).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Package {
    /// The system's number for it.
    pub id: u32,
    /// Its logical CPUs, ascending.
    pub cpus: Vec<u32>,
    /// How many cores it has.
    pub cores: usize,
}

/// A data or unified cache.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Cache {
    /// 1 for the one nearest to the core.
    pub level: u32,
    /// Its size.
    pub len_bytes: u64,
    /// The logical CPUs that share it, ascending.
    pub cpus: Vec<u32>,
}

/// Something that hwloc could not do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HwlocError {
    /// The topology could not be loaded.
    #[error(
        "hwloc cannot read this machine's topology; look at HWLOC_SYNTHETIC and HWLOC_XMLFILE if they are set"
    )]
    NotLoaded,
    /// The set of CPUs is empty.
    #[error("no CPU was named to bind to")]
    NoCpus,
    /// A CPU is not in the topology.
    #[error("there is no CPU {cpu} here")]
    NoSuchCpu {
        /// The CPU's number.
        cpu: u32,
    },
    /// The kernel or hwloc refused.
    #[error("hwloc cannot bind this thread to the CPUs {cpus:?}; are they in the process's cpuset?")]
    NotBound {
        /// The CPUs asked for.
        cpus: Vec<u32>,
    },
}

/// CPU sets that hwloc leaves open-ended are cut here; no machine has so many CPUs.
const MAX_CPUS: usize = 1 << 16;

const CACHES: [ObjectType; 5] =
    [ObjectType::L1Cache, ObjectType::L2Cache, ObjectType::L3Cache, ObjectType::L4Cache, ObjectType::L5Cache];

impl Hwloc {
    /// Loads the topology. Takes milliseconds to tens of milliseconds.
    ///
    /// # Errors
    /// [`HwlocError::NotLoaded`].
    pub fn load() -> Result<Hwloc, HwlocError> {
        let topology = Topology::new().ok_or(HwlocError::NotLoaded)?;
        Ok(Hwloc { topology: Mutex::new(topology) })
    }

    /// Returns the CPU packages in hwloc's order; none where the machine does not tell them (some virtual ones).
    pub fn packages(&self) -> Vec<Package> {
        self.with(|topology| {
            let cores: Vec<Vec<u32>> = objects(topology, &ObjectType::Core).map(cpus_of).collect();
            let package = |object: &TopologyObject| {
                let cpus = cpus_of(object);
                let is_inside = |core: &&Vec<u32>| core.first().is_some_and(|cpu| cpus.contains(cpu));
                Package { id: object.os_index(), cores: cores.iter().filter(is_inside).count(), cpus }
            };
            objects(topology, &ObjectType::Package).map(package).collect()
        })
    }

    /// Returns the data and unified caches, smallest level first.
    pub fn caches(&self) -> Vec<Cache> {
        self.with(|topology| {
            let cache = |object: &TopologyObject| {
                let attributes = object.cache_attributes()?;
                Some(Cache { level: attributes.depth(), len_bytes: attributes.size(), cpus: cpus_of(object) })
            };
            CACHES.iter().flat_map(|kind| objects(topology, kind)).filter_map(cache).collect()
        })
    }

    /// Returns the logical CPUs, ascending.
    pub fn cpus(&self) -> Vec<u32> {
        self.with(|topology| cpus_of(topology.object_at_root()))
    }

    /// Binds the calling thread to `cpus`.
    ///
    /// With a synthetic topology hwloc binds nothing and says that it did.
    ///
    /// # Errors
    /// [`HwlocError`] for an empty set, a CPU that is not there, or the refusal of the kernel.
    pub fn bind_current_thread(&self, cpus: &[u32]) -> Result<(), HwlocError> {
        let known = self.cpus();
        if cpus.is_empty() {
            return Err(HwlocError::NoCpus);
        }
        if let Some(&cpu) = cpus.iter().find(|cpu| !known.contains(cpu)) {
            return Err(HwlocError::NoSuchCpu { cpu });
        }
        let set: CpuSet = cpus.iter().copied().collect();
        self.with(|topology| topology.set_cpubind(set, CpuBindFlags::CPUBIND_THREAD))
            .map_err(|_| HwlocError::NotBound { cpus: cpus.to_owned() })
    }

    /// Returns the CPUs that the calling thread may run on, where hwloc can tell.
    pub fn current_thread_cpus(&self) -> Option<Vec<u32>> {
        self.with(|topology| topology.get_cpubind(CpuBindFlags::CPUBIND_THREAD)).map(numbers)
    }

    fn with<T>(&self, act: impl FnOnce(&mut Topology) -> T) -> T {
        // The topology is not changed by what `act` does, so a panic in it leaves nothing half done.
        act(&mut self.topology.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

impl std::fmt::Debug for Hwloc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hwloc").finish_non_exhaustive()
    }
}

/// Returns the objects of a type that lies at one depth; none where there are none or they lie at several.
fn objects<'a>(
    topology: &'a Topology,
    kind: &ObjectType,
) -> impl Iterator<Item = &'a TopologyObject> + use<'a> {
    let depth = topology.depth_for_type(kind).ok();
    depth.map(|depth| topology.objects_at_depth(depth)).unwrap_or_default().into_iter()
}

fn cpus_of(object: &TopologyObject) -> Vec<u32> {
    object.cpuset().map(numbers).unwrap_or_default()
}

fn numbers(set: CpuSet) -> Vec<u32> {
    set.into_iter().take(MAX_CPUS).collect()
}
