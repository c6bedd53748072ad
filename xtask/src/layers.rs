//! `cargo xtask check-layers`: no layer imports one above it.
//!
//! The table is the one in `docs/ARCHITECTURE.md`, so what people read is what is checked: a row may use the rows
//! before it and its own. Looks at `crate::` and `super::` paths in the text of `src/`, without comments and
//! without test modules, and also at calls into libc outside `sys`.

mod source;

use source::{Mention, Source};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const BEGIN: &str = "<!-- layers:begin -->";
const END: &str = "<!-- layers:end -->";

/// The layer that alone makes system calls.
const SYSTEM_CALLS: &str = "sys";

/// The layer table: for each module its row, and the modules that it must not know in spite of its row.
#[derive(Debug, Default)]
struct Table {
    row_of: BTreeMap<String, usize>,
    unknown_to: BTreeMap<String, Vec<String>>,
}

/// Checks the tree.
///
/// # Errors
/// Every violation, one per line.
pub(crate) fn run(_args: &[String]) -> Result<(), String> {
    let root = crate::root();
    let document = root.join("docs/ARCHITECTURE.md");
    let text = std::fs::read_to_string(&document).map_err(|e| format!("{}: {e}", document.display()))?;
    let table = Table::parse(&text)?;
    let mut files = Vec::new();
    collect(&root.join("src"), &mut files)?;
    let mut violations = Vec::new();
    for file in &files {
        let relative = file.strip_prefix(root.join("src")).unwrap_or(file);
        let text = std::fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
        violations.extend(table.check(relative, &text));
    }
    if violations.is_empty() {
        println!("{} files keep to {} layers", files.len(), table.row_of.len());
        Ok(())
    } else {
        Err(format!("the layer table of docs/ARCHITECTURE.md is broken:\n  {}", violations.join("\n  ")))
    }
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> Result<(), String> {
    let entries = std::fs::read_dir(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    for entry in entries {
        let path = entry.map_err(|e| format!("{}: {e}", dir.display()))?.path();
        if path.is_dir() {
            if path.file_name().is_none_or(|name| name != "tests") {
                collect(&path, files)?;
            }
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(())
}

impl Table {
    /// Reads the rows between the two markers.
    fn parse(document: &str) -> Result<Table, String> {
        let table = document
            .split_once(BEGIN)
            .and_then(|(_, rest)| rest.split_once(END))
            .map(|(table, _)| table)
            .ok_or_else(|| format!("docs/ARCHITECTURE.md has no table between {BEGIN} and {END}"))?;
        let mut parsed = Table::default();
        for (row, line) in table.lines().filter(|line| line.starts_with("| `")).enumerate() {
            let cells: Vec<&str> = line.trim_matches('|').split('|').collect();
            for module in names_in(cells[0]) {
                if parsed.row_of.insert(module.clone(), row).is_some() {
                    return Err(format!("docs/ARCHITECTURE.md has the layer `{module}` twice"));
                }
                parsed.unknown_to.insert(module, cells.get(2).map(|cell| names_in(cell)).unwrap_or_default());
            }
        }
        if parsed.row_of.is_empty() {
            return Err("docs/ARCHITECTURE.md has an empty layer table".to_owned());
        }
        Ok(parsed)
    }

    /// Returns the violations in one file, `relative` to `src/`.
    fn check(&self, relative: &Path, text: &str) -> Vec<String> {
        let source = Source::new(relative, text);
        let Some(layer) = source.top_module() else {
            return Vec::new();
        };
        let place = |line: usize| format!("src/{}:{line}", relative.display());
        let Some(&row) = self.row_of.get(layer) else {
            return vec![format!("{}: `{layer}` is not in the table: give it a row", place(1))];
        };
        let mut violations = Vec::new();
        for Mention { line, module } in source.mentions_of_root() {
            if module == layer {
                continue;
            }
            let complaint = match self.row_of.get(&module) {
                None => {
                    format!("`{layer}` takes `{module}` from the crate's root: name the layer it lives in")
                }
                Some(&other) if other > row => {
                    format!("`{layer}` uses `{module}`, which stands above it")
                }
                Some(_) if self.unknown_to.get(layer).is_some_and(|names| names.contains(&module)) => {
                    format!("`{layer}` uses `{module}`, which it must not know")
                }
                Some(_) => continue,
            };
            violations.push(format!("{}: {complaint}", place(line)));
        }
        if layer != SYSTEM_CALLS {
            for Mention { line, module: function } in source.libc_calls() {
                violations.push(format!(
                    "{}: `{layer}` calls libc::{function}; system calls belong to `{SYSTEM_CALLS}`",
                    place(line)
                ));
            }
        }
        violations
    }
}

/// Returns what stands between backquotes.
fn names_in(cell: &str) -> Vec<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = "before\n<!-- layers:begin -->\n| layer | what | does not use |\n|---|---|---|\n\
        | `units`, `error` | sizes | |\n| `sys` | calls | |\n| `folio` | memory | |\n| `migrate` | moves | |\n\
        | `heap` | malloc | `migrate` |\n<!-- layers:end -->\n| `after` | | |\n";

    fn violations(file: &str, text: &str) -> Vec<String> {
        Table::parse(DOCUMENT).unwrap().check(Path::new(file), text)
    }

    #[test]
    fn an_import_from_above_is_caught() {
        let found = violations("folio/mod.rs", "use crate::units::Order;\nuse crate::heap::Heap;\n");
        assert_eq!(found, ["src/folio/mod.rs:2: `folio` uses `heap`, which stands above it"]);
    }

    #[test]
    fn every_way_to_write_it_is_caught() {
        for text in [
            "fn f() { crate::heap::g() }",
            "use crate::{units::Order, heap::{self, Heap}};",
            "use crate::{\n    units::{Bytes, Order},\n    heap,\n};",
            "use super::super::heap::Heap;",
            "use super::super::{units, heap};",
            "pub(in crate::heap) fn f() {}",
        ] {
            assert_eq!(violations("folio/table.rs", text).len(), 1, "{text}");
        }
    }

    #[test]
    fn a_row_may_use_itself_and_those_before() {
        let text =
            "use crate::error::SysError;\nuse crate::units::Order;\nuse crate::sys::mm;\nuse super::Folio;";
        assert_eq!(violations("folio/table.rs", text), Vec::<String>::new());
        assert_eq!(violations("units.rs", "use crate::error::SysError;"), Vec::<String>::new());
    }

    #[test]
    fn layers_that_must_not_know_each_other_are_kept_apart() {
        let found = violations("heap.rs", "use crate::migrate::Batch;");
        assert_eq!(found, ["src/heap.rs:1: `heap` uses `migrate`, which it must not know"]);
    }

    #[test]
    fn comments_and_tests_may_mention_anything() {
        let text = "//! See [`crate::heap`].\n/* crate::heap */\nfn f() {} // crate::heap\n\
            #[cfg(test)]\nmod tests {\n    use crate::heap::Heap;\n    fn g() { if true { } }\n}\n";
        assert_eq!(violations("folio.rs", text), Vec::<String>::new());
        assert_eq!(violations("folio/table_tests.rs", "use crate::heap::Heap;"), Vec::<String>::new());
        let after = format!("{text}use crate::heap::Heap;\n");
        assert_eq!(violations("folio.rs", &after).len(), 1);
    }

    #[test]
    fn a_module_outside_the_table_is_caught() {
        assert_eq!(violations("extra.rs", "").len(), 1);
        assert_eq!(violations("folio.rs", "use crate::Pool;").len(), 1);
        assert_eq!(violations("lib.rs", "pub use crate::heap::Heap;"), Vec::<String>::new());
    }

    #[test]
    fn a_system_call_outside_sys_is_caught() {
        let text = "fn f() { let n: libc::c_int = libc::ENOMEM; unsafe { libc::munmap(p, 1) }; }";
        let found = violations("heap.rs", text);
        assert_eq!(found, ["src/heap.rs:1: `heap` calls libc::munmap; system calls belong to `sys`"]);
        assert_eq!(violations("sys/mm.rs", text), Vec::<String>::new());
        assert_eq!(violations("heap.rs", "fn f(d: u64) -> u32 { libc::major(d) }"), Vec::<String>::new());
    }

    #[test]
    fn the_table_in_the_document_is_read() {
        let document = std::fs::read_to_string(crate::root().join("docs/ARCHITECTURE.md")).unwrap();
        let table = Table::parse(&document).unwrap();
        assert!(table.row_of["units"] < table.row_of["sys"]);
        assert!(table.row_of["heap"] < table.row_of["runtime"]);
        assert_eq!(table.unknown_to["heap"], ["migrate"]);
    }
}
