//! The hardware of each route to a dax device, as arguments for QEMU, and what the guest's kernel is told.

use std::str::FromStr;

/// A way in which memory becomes a dax device, or a NUMA node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// A CXL type-3 expander of 512 MiB behind a host bridge, with HMAT figures.
    Cxl,
    /// Two such expanders behind two host bridges, without HMAT.
    Cxl2,
    /// Memory that the firmware reserves for a purpose (`dax_hmem`): 1 GiB on a node of its own, with HMAT figures.
    Hmem,
    /// A legacy pmem namespace in devdax mode, 512 MiB.
    Pmem,
    /// A second node of 1 GiB without processors, as system-ram CXL memory appears.
    Numa,
}

impl Route {
    pub(super) const ALL: [Route; 5] = [Route::Cxl, Route::Cxl2, Route::Hmem, Route::Pmem, Route::Numa];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Route::Cxl => "cxl",
            Route::Cxl2 => "cxl2",
            Route::Hmem => "hmem",
            Route::Pmem => "pmem",
            Route::Numa => "numa",
        }
    }

    /// Returns the script that makes the dax device in the guest, if one is needed.
    pub(super) const fn script(self) -> Option<&'static str> {
        match self {
            Route::Cxl | Route::Cxl2 => Some("cxl"),
            Route::Hmem => Some("hmem"),
            Route::Pmem => Some("pmem"),
            Route::Numa => None,
        }
    }

    /// Returns the modules that the guest loads first.
    pub(super) const fn modules(self) -> &'static str {
        match self {
            Route::Cxl | Route::Cxl2 => "cxl_acpi cxl_pci cxl_mem cxl_pmem device_dax dax_cxl",
            Route::Hmem => "dax_hmem device_dax",
            Route::Pmem => "nd_e820 nd_pmem device_dax dax_pmem",
            Route::Numa => "",
        }
    }

    /// Returns what the kernel's command line says about memory.
    pub(super) const fn kernel_words(self) -> &'static str {
        match self {
            Route::Hmem => "memmap=1G%4G+0xefffffff",
            Route::Pmem => "memmap=512M!1G",
            Route::Cxl | Route::Cxl2 | Route::Numa => "",
        }
    }

    /// Returns QEMU's arguments for the machine: `memory` of ordinary RAM and `cpus` processors.
    pub(super) fn hardware(self, memory: &str, cpus: u32) -> String {
        let last_cpu = cpus - 1;
        let slots = format!("-m {memory},maxmem=16G,slots=4");
        let node0 = |size: &str, initiator: &str| {
            format!(
                "-object memory-backend-ram,id=m0,size={size} -numa node,nodeid=0,memdev=m0,cpus=0-{last_cpu}{initiator}"
            )
        };
        let hmat = format!("{} {}", figures(0, 10, 100), figures(1, 50, 32));
        let devices = match self {
            Route::Cxl => format!(
                "-machine q35,cxl=on,hmat=on,cxl-fmw.0.targets.0=cxl.1,cxl-fmw.0.size=4G {slots} {} \
                 -numa node,nodeid=1,initiator=0 {hmat} {} -object acpi-generic-port,id=gp0,pci-bus=cxl.1,node=1",
                node0(memory, ",initiator=0"),
                expander(0, 1, 12)
            ),
            Route::Cxl2 => format!(
                "-machine q35,cxl=on,cxl-fmw.0.targets.0=cxl.1,cxl-fmw.0.size=4G,cxl-fmw.1.targets.0=cxl.2,cxl-fmw.1.size=4G \
                 {slots} {} {}",
                expander(0, 1, 12),
                expander(1, 2, 222)
            ),
            // 2 GiB on node 0 puts node 1 at 4 GiB, where the kernel is told to find it.
            Route::Hmem => format!(
                "-machine q35,hmat=on -m 3G {} -object memory-backend-ram,id=m1,size=1G -numa node,nodeid=1,memdev=m1,initiator=0 \
                 -numa dist,src=0,dst=1,val=20 {hmat}",
                node0("2G", ",initiator=0")
            ),
            Route::Pmem => format!("-machine q35 {slots}"),
            Route::Numa => format!(
                "-machine q35 -m 2G {} -object memory-backend-ram,id=m1,size=1G -numa node,nodeid=1,memdev=m1 \
                 -numa dist,src=0,dst=1,val=20",
                node0("1G", "")
            ),
        };
        format!("{devices} -smp {cpus} -accel tcg,thread=multi,tb-size=512 -cpu max,hypervisor=off")
    }
}

impl FromStr for Route {
    type Err = String;

    fn from_str(text: &str) -> Result<Route, String> {
        Route::ALL
            .into_iter()
            .find(|route| route.name() == text)
            .ok_or_else(|| format!("there is no route {text:?}: {}", Route::ALL.map(Route::name).join(", ")))
    }
}

/// HMAT figures of a node as seen from node 0, in ns and GB/s.
fn figures(node: u32, latency_ns: u32, bandwidth: u32) -> String {
    let figure = |what: &str| {
        format!("-numa hmat-lb,initiator=0,target={node},hierarchy=memory,data-type=access-{what}")
    };
    format!("{},latency={latency_ns} {},bandwidth={bandwidth}G", figure("latency"), figure("bandwidth"))
}

/// A type-3 device of 512 MiB behind a host bridge of its own.
fn expander(number: u32, bridge: u32, bus: u32) -> String {
    format!(
        "-object memory-backend-ram,id=vmem{number},share=on,size=512M -device pxb-cxl,bus_nr={bus},bus=pcie.0,id=cxl.{bridge} \
         -device cxl-rp,port=0,bus=cxl.{bridge},id=rp{number},chassis=0,slot={} \
         -device cxl-type3,bus=rp{number},volatile-memdev=vmem{number},id=cxl-mem{number},sn={bridge}",
        number + 2
    )
}
