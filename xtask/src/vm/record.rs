//! `cargo xtask record [NAME...]`: writes `tests/fixtures/sysfs/NAME.txt`, the sysfs of a guest as discovery reads it.
//!
//! A [`Recording`] is a boot: a route, and the shapes that its machine is brought to one after the other. What is printed comes from
//! `tests/fixtures/record.sh`, which records any machine. The recorded trees `hmem`, `nvdimm`, `two-nodes` and those without
//! dax devices come from machines that no route has.

use super::guest::Guest;
use super::machine::Route;
use super::packages::Cache;
use std::collections::BTreeMap;
use std::fs;

/// A guest, and the machines to be seen in it.
struct Recording {
    route: Route,
    newer_kernel: Option<&'static str>,
    shapes: &'static [Shape],
}

/// A machine to record.
struct Shape {
    /// The name of its file.
    name: &'static str,
    /// What the file says about it.
    remark: &'static str,
    /// Commands that turn the machine before into this one.
    made_by: &'static str,
}

/// Sizes are written to sysfs as daxctl can't resize a device in steps.
const RECORDINGS: &[Recording] = &[
    Recording {
        route: Route::Cxl,
        newer_kernel: None,
        shapes: &[
            Shape {
                name: "cxl-devdax",
                remark: "A CXL region as one dax device in devdax mode, numa_node -1.",
                made_by: "",
            },
            Shape {
                name: "cxl-no-driver",
                remark: "A CXL region whose dax device no driver has taken.",
                made_by: "daxctl disable-device dax0.0",
            },
            Shape {
                name: "cxl-discontiguous",
                remark: "A CXL region with two dax devices, dax0.0 in two pieces around dax0.1.",
                made_by: "resize dax0.0 128; daxctl create-device -r 0 -s 128M; resize dax0.0 256; daxctl enable-device dax0.0",
            },
            Shape {
                name: "cxl-size-zero",
                remark: "A CXL region with a dax device of size 0 and no driver beside a used one.",
                made_by: "daxctl disable-device dax0.1; resize dax0.1 0",
            },
            Shape {
                name: "cxl-small-pages",
                remark: "A CXL region with two dax devices; dax0.1 has an alignment of 4 KiB, and three pieces.",
                made_by: "daxctl disable-device dax0.0; resize dax0.0 64; daxctl destroy-device dax0.1
                          daxctl create-device -r 0 -s 64M -a 4096; resize dax0.0 128
                          daxctl disable-device dax0.1; resize dax0.1 128; resize dax0.0 192; resize dax0.1 256
                          daxctl enable-device dax0.0; daxctl enable-device dax0.1",
            },
        ],
    },
    Recording {
        route: Route::Cxl,
        newer_kernel: None,
        shapes: &[Shape {
            name: "cxl-system-ram",
            remark: "A CXL region taken as system RAM: CPU-less node 2 with HMAT figures.",
            made_by: "to_ram",
        }],
    },
    Recording {
        route: Route::Cxl,
        newer_kernel: Some("7"),
        shapes: &[Shape {
            name: "cxl-system-ram-7",
            remark: "A CXL region taken as system RAM on a newer kernel.",
            made_by: "to_ram",
        }],
    },
    Recording {
        route: Route::Cxl2,
        newer_kernel: None,
        shapes: &[
            Shape {
                name: "cxl-two",
                remark: "Two CXL memory devices behind two host bridges, one region each.",
                made_by: "",
            },
        ],
    },
    Recording {
        route: Route::Hmem,
        newer_kernel: None,
        shapes: &[
            Shape {
                name: "hmem-node",
                remark: "A whole soft-reserved NUMA node as a dax_hmem device; the node is not online.",
                made_by: "",
            },
            Shape {
                name: "hmem-giant-pages",
                remark: "A soft-reserved NUMA node as a dax_hmem device with an alignment of 1 GiB.",
                made_by: "daxctl disable-device dax0.0; echo 1073741824 >/sys/bus/dax/devices/dax0.0/align; daxctl enable-device dax0.0",
            },
            Shape {
                name: "hmem-system-ram",
                remark: "A soft-reserved NUMA node taken as system RAM, with HMAT figures.",
                made_by: "daxctl disable-device dax0.0; echo 2097152 >/sys/bus/dax/devices/dax0.0/align; to_ram",
            },
        ],
    },
    Recording {
        route: Route::Pmem,
        newer_kernel: None,
        shapes: &[
            Shape {
                name: "pmem",
                remark: "A legacy persistent-memory namespace in devdax mode; its region has no create.",
                made_by: "",
            },
            Shape {
                name: "pmem-small-pages",
                remark: "A legacy persistent-memory namespace in devdax mode with an alignment of 4 KiB.",
                made_by: "ndctl create-namespace -f -m devdax -a 4096 -e namespace0.0",
            },
        ],
    },
];

/// What the shapes are made with. daxctl refuses to make system RAM while the kernel puts memory online by itself.
const FUNCTIONS: &str = "
resize() { echo $(($2 << 20)) >/sys/bus/dax/devices/$1/size; }
to_ram() {
    modprobe kmem
    echo offline >/sys/devices/system/memory/auto_online_blocks
    daxctl reconfigure-device -m system-ram dax0.0
}
";
/// Begins the lines of a recording: what else is printed is not a part of it.
const MARK: &str = "| ";
const BEGIN: &str = "recording ";

/// Records the machines that `args` name, or all.
///
/// # Errors
/// A name that there is not, a guest that can't be had, a shape that could not be made.
pub(crate) fn run(args: &[String]) -> Result<(), String> {
    let known: Vec<&str> =
        RECORDINGS.iter().flat_map(|recording| recording.shapes).map(|shape| shape.name).collect();
    if let Some(odd) = args.iter().find(|arg| !known.contains(&arg.as_str())) {
        return Err(format!("no machine {odd:?} is recorded: {}", known.join(", ")));
    }
    let is_wanted = |name: &str| args.is_empty() || args.iter().any(|arg| arg == name);
    let cache = Cache::open()?;
    for recording in RECORDINGS {
        if !recording.shapes.iter().any(|shape| is_wanted(shape.name)) {
            continue;
        }
        let mut lines = Vec::new();
        let kernel = cache.prepare(recording.newer_kernel)?;
        let see = &mut |line: &str| lines.push(line.to_owned());
        Guest::new(recording.route).run_script(&kernel, &script(recording.shapes), see)?;
        for (name, text) in recorded(&lines).into_iter().filter(|(name, _)| is_wanted(name)) {
            let file = crate::root().join(format!("tests/fixtures/sysfs/{name}.txt"));
            fs::write(&file, text).map_err(|error| format!("{}: {error}", file.display()))?;
            println!("wrote {}", file.display());
        }
    }
    Ok(())
}

/// Brings the machine from shape to shape, since each is made of the one before, and prints each.
fn script(shapes: &[Shape]) -> String {
    let mut script = format!("set -e{FUNCTIONS}");
    for Shape { name, remark, made_by } in shapes {
        script += &format!(
            "{made_by}\necho '{BEGIN}{name}'\ntests/fixtures/record.sh '{remark}' | sed 's/^/{MARK}/'\n"
        );
    }
    script
}

/// Takes the recordings out of what was printed, by name.
fn recorded(lines: &[String]) -> BTreeMap<&str, String> {
    let mut texts: BTreeMap<&str, String> = BTreeMap::new();
    let mut text = None;
    for line in lines {
        if let Some(name) = line.strip_prefix(BEGIN) {
            text = Some(texts.entry(name).or_default());
        } else if let (Some(text), Some(line)) = (&mut text, line.strip_prefix(MARK)) {
            **text += &format!("{line}\n");
        }
    }
    texts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_recording_is_made_of_its_own_lines() {
        let lines = ["noise", "recording a", "| # A.", "kernel: noise", "| x = 1", "recording b", "| # B."];
        let lines = lines.map(str::to_owned);
        let texts = recorded(&lines);
        assert_eq!(
            texts.into_iter().collect::<Vec<_>>(),
            [("a", "# A.\nx = 1\n".to_owned()), ("b", "# B.\n".to_owned())]
        );
    }

    #[test]
    fn a_machine_that_is_not_recorded_is_named() {
        let refusal = run(&["cxl-tow".to_owned()]).unwrap_err();
        assert!(refusal.contains("cxl-tow") && refusal.contains("cxl-two"), "{refusal}");
    }

    /// Catches a shape that is recorded and not kept.
    #[test]
    fn every_machine_has_its_file() {
        for shape in RECORDINGS.iter().flat_map(|recording| recording.shapes) {
            let file = crate::root().join(format!("tests/fixtures/sysfs/{}.txt", shape.name));
            let text =
                fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            assert!(text.starts_with(&format!("# {}", shape.remark)), "{}", shape.name);
        }
    }
}
