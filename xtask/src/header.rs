//! `cargo xtask header`: writes `include/daxtier.h` from the C ABI, or compares it (`--check`).
//!
//! cbindgen reads the modules of `ffi/src` that C sees, in the order of the header. Names of types are Rust's here and
//! C's there (`DaxtierFolioInfo`, `struct daxtier_folio_info`).

use crate::root;
use cbindgen::{Builder, Config, DocumentationStyle, ItemType, Language, SortKey, Style};
use std::fs;

/// The modules of `ffi/src`, in the order of the header.
const MODULES: [&str; 11] =
    ["version", "error", "alloc", "pool", "device", "pgmap", "folio", "heap", "migrate", "drain", "loss"];

/// Columns of the header. Comments come as long as they are in the sources.
const LINE_LENGTH: usize = 120;

const HEADER: &str = "include/daxtier.h";

/// Writes the header, or with `--check` fails when the committed one differs from what would be written.
///
/// # Errors
/// What differs, or what could not be read or written.
pub(crate) fn run(args: &[String]) -> Result<(), String> {
    let check = match args {
        [] => false,
        [flag] if flag == "--check" => true,
        [other, ..] => return Err(format!("{other:?} is not understood; the only option is --check")),
    };
    let path = root().join(HEADER);
    let fresh = generate()?;
    if !check {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        }
        return fs::write(&path, fresh).map_err(|error| format!("{}: {error}", path.display()));
    }
    let committed = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    match first_difference(&committed, &fresh) {
        None => Ok(()),
        Some((line, old, new)) => Err(format!(
            "{HEADER} is not what the C ABI says, from line {line} on:\n  committed: {old}\n  generated: {new}\n\
             write it anew with `cargo xtask header`"
        )),
    }
}

/// Returns the text of the header.
fn generate() -> Result<String, String> {
    let mut builder = Builder::new().with_config(config());
    for module in MODULES {
        builder = builder.with_src(root().join("ffi/src").join(module).with_extension("rs"));
    }
    let mut text = Vec::new();
    builder.generate().map_err(|error| format!("cbindgen: {error}"))?.write(&mut text);
    let text = String::from_utf8(text).map_err(|error| format!("cbindgen: {error}"))?;
    Ok(polish(&text))
}

/// Makes what cbindgen writes read like C: no backquotes, short comments on one line, negative numbers in
/// parentheses.
fn polish(text: &str) -> String {
    let text = text.replace('`', "").replace("// extern \"C\"", "").replace("// __cplusplus", "");
    let mut polished = String::with_capacity(text.len());
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let indent = &line[..line.len() - line.trim_start().len()];
        if line.trim_start() == "/**" {
            let mut comment = Vec::new();
            for inner in lines.by_ref() {
                match inner.trim_start() {
                    "*/" => break,
                    inner => comment.push(inner.strip_prefix("* ").unwrap_or("")),
                }
            }
            match comment[..] {
                [only] if indent.len() + only.len() + 6 <= LINE_LENGTH => {
                    polished.push_str(&format!("{indent}/* {only} */\n"));
                }
                _ => {
                    polished.push_str(&format!("{indent}/*\n"));
                    for inner in comment {
                        polished.push_str(format!("{indent} * {inner}").trim_end());
                        polished.push('\n');
                    }
                    polished.push_str(&format!("{indent} */\n"));
                }
            }
            continue;
        }
        match line.split_once(" -").filter(|_| line.starts_with("#define ")) {
            Some((define, number)) => polished.push_str(&format!("{define} (-{number})\n")),
            None => polished.push_str(&format!("{}\n", line.trim_end())),
        }
    }
    polished
}

fn config() -> Config {
    let mut config = Config {
        language: Language::C,
        cpp_compat: true,
        include_guard: Some("DAXTIER_H".to_owned()),
        header: Some(include_str!("header/preface.h").trim_end().to_owned()),
        no_includes: true,
        sys_includes: vec!["stddef.h".to_owned(), "stdint.h".to_owned()],
        style: Style::Tag,
        documentation_style: DocumentationStyle::Doxy,
        usize_is_size_t: true,
        line_length: LINE_LENGTH,
        tab_width: 4,
        sort_by: SortKey::None,
        ..Config::default()
    };
    config.function.sort_by = Some(SortKey::None);
    config.constant.sort_by = Some(SortKey::None);
    config.export.item_types = vec![
        ItemType::Constants,
        ItemType::Structs,
        ItemType::Typedefs,
        ItemType::Functions,
        ItemType::OpaqueItems,
    ];
    for name in TYPES {
        config.export.rename.insert(name.to_owned(), snake_case(name));
    }
    config
}

/// The types that C sees, by their Rust names.
const TYPES: [&str; 17] = [
    "DaxtierPool",
    "DaxtierPgmap",
    "DaxtierFolio",
    "DaxtierStats",
    "DaxtierTierStats",
    "DaxtierPlacement",
    "DaxtierDeviceInfo",
    "DaxtierFreedFolio",
    "DaxtierFolioFree",
    "DaxtierPgmapOptions",
    "DaxtierPgmapStats",
    "DaxtierFolioInfo",
    "DaxtierMove",
    "DaxtierMigration",
    "DaxtierMigrationStats",
    "DaxtierHeld",
    "DaxtierLossHandler",
];

fn snake_case(name: &str) -> String {
    let mut snake = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.push(c.to_ascii_lowercase());
    }
    snake
}

/// Returns the first line, counted from 1, in which two texts differ, and both versions of it.
fn first_difference<'a>(old: &'a str, new: &'a str) -> Option<(usize, &'a str, &'a str)> {
    let (mut old, mut new) = (old.split('\n'), new.split('\n'));
    let mut line = 0;
    loop {
        line += 1;
        match (old.next(), new.next()) {
            (None, None) => return None,
            (old, new) if old == new => {}
            (old, new) => return Some((line, old.unwrap_or("(end)"), new.unwrap_or("(end)"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_types_become_those_of_c() {
        assert_eq!(snake_case("DaxtierFolioInfo"), "daxtier_folio_info");
    }

    #[test]
    fn comments_and_numbers_are_made_to_read_like_c() {
        let raw = "/**\n * Two words.\n */\n#define A -1\n    /**\n     * One.\n     *\n     * `two`.\n     */\n    int a;\n";
        let polished = "/* Two words. */\n#define A (-1)\n    /*\n     * One.\n     *\n     * two.\n     */\n    int a;\n";
        assert_eq!(polish(raw), polished);
    }

    #[test]
    fn the_first_difference_is_found() {
        assert_eq!(first_difference("a\nb\n", "a\nb\n"), None);
        assert_eq!(first_difference("a\nb\n", "a\nc\n"), Some((2, "b", "c")));
        assert_eq!(first_difference("a", "a\nb"), Some((2, "(end)", "b")));
        assert_eq!(first_difference("a", "a\n"), Some((2, "(end)", "")));
    }

    #[test]
    fn the_header_holds_no_rust_names() {
        let header = generate().unwrap();
        for rust in ["Daxtier", "Option<", "::", "usize", "SAFETY"] {
            assert!(!header.contains(rust), "{rust} is left in the header");
        }
    }
}
