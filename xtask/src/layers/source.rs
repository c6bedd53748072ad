//! One Rust file as the layer check sees it: its text without comments and test modules, and the paths in it.

use std::path::Path;

/// Functions of libc that compute, or register a function with the C library.
const NO_SYSTEM_CALL: &[&str] = &["atexit", "major", "makedev", "minor", "pthread_atfork"];

/// A name that a line of the file mentions.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mention {
    /// Counted from 1.
    pub(super) line: usize,
    pub(super) module: String,
}

/// A file of the core crate.
pub(super) struct Source {
    /// The modules that the file stands for, outermost first: `src/pgmap/extent.rs` is `pgmap`, `extent`.
    modules: Vec<String>,
    text: String,
}

impl Source {
    pub(super) fn new(relative: &Path, text: &str) -> Source {
        let mut modules: Vec<String> =
            relative.with_extension("").iter().map(|part| part.to_string_lossy().into_owned()).collect();
        if modules.last().is_some_and(|last| last == "mod" || last == "lib") {
            modules.pop();
        }
        let is_test_file = modules
            .last()
            .is_some_and(|last| matches!(last.as_str(), "tests" | "testing") || last.ends_with("_tests"));
        let text = if is_test_file { String::new() } else { without_tests(&without_comments(text)) };
        Source { modules, text }
    }

    /// Returns the layer that the file belongs to; `None` for the crate's root.
    pub(super) fn top_module(&self) -> Option<&str> {
        self.modules.first().map(String::as_str)
    }

    /// Returns every module of the crate's root that a `crate::` path, or a `super::` path that climbs to the
    /// root, names.
    pub(super) fn mentions_of_root(&self) -> Vec<Mention> {
        let mut mentions = Vec::new();
        for (at, _) in self.words("crate") {
            if let Some(rest) = self.text[at + "crate".len()..].trim_start().strip_prefix("::") {
                self.heads(at, rest, &mut mentions);
            }
        }
        let climb = "super::".repeat(self.modules.len());
        for (at, rest) in self.words("super") {
            let is_first = !self.text[..at].ends_with("super::");
            if is_first && let Some(rest) = rest.strip_prefix(climb.as_str()).filter(|_| !climb.is_empty()) {
                self.heads(at, rest, &mut mentions);
            }
        }
        mentions
    }

    /// Returns every function of libc that is called and may make a system call.
    pub(super) fn libc_calls(&self) -> Vec<Mention> {
        let mut mentions = Vec::new();
        for (at, rest) in self.words("libc") {
            let Some(rest) = rest.strip_prefix("libc::") else { continue };
            let name = identifier(rest);
            if NO_SYSTEM_CALL.contains(&name) {
                continue;
            }
            if rest[name.len()..].starts_with('(') && name.starts_with(|c: char| c.is_ascii_lowercase()) {
                mentions.push(Mention { line: self.line_of(at), module: name.to_owned() });
            }
        }
        mentions
    }

    /// Finds a whole word; returns where it is and the text from there on.
    fn words<'a>(&'a self, word: &'a str) -> impl Iterator<Item = (usize, &'a str)> {
        let is_part = |c: char| c.is_alphanumeric() || c == '_';
        self.text.match_indices(word).filter_map(move |(at, _)| {
            let before = self.text[..at].chars().next_back();
            let after = self.text[at + word.len()..].chars().next();
            (!before.is_some_and(is_part) && !after.is_some_and(is_part)).then(|| (at, &self.text[at..]))
        })
    }

    /// Adds the first name of each path in `rest`: one, or those of a `{...}` group.
    fn heads(&self, at: usize, rest: &str, mentions: &mut Vec<Mention>) {
        let rest = rest.trim_start();
        let line = self.line_of(at);
        let Some(group) = rest.strip_prefix('{') else {
            let name = identifier(rest);
            if name != "super" && !name.is_empty() {
                mentions.push(Mention { line, module: name.to_owned() });
            }
            return;
        };
        let mut depth = 0;
        let mut start = 0;
        for (i, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth > 0 => depth -= 1,
                ',' | '}' if depth == 0 => {
                    let name = identifier(group[start..i].trim_start());
                    if !name.is_empty() && name != "self" {
                        mentions.push(Mention { line, module: name.to_owned() });
                    }
                    start = i + 1;
                    if c == '}' {
                        return;
                    }
                }
                _ => {}
            }
        }
    }

    fn line_of(&self, at: usize) -> usize {
        self.text[..at].matches('\n').count() + 1
    }
}

fn identifier(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

/// Blanks comments and the insides of string literals; keeps every line break.
fn without_comments(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if c == '"' {
            string_len(rest)
        } else if rest.starts_with("'\"'") {
            3
        } else {
            out.push(c);
            rest = &rest[c.len_utf8()..];
            continue;
        };
        out.extend(rest[..skipped].chars().filter(|&c| c == '\n'));
        rest = &rest[skipped..];
    }
    out
}

/// Returns the length of the string literal that `text` begins with.
fn string_len(text: &str) -> usize {
    let mut escaped = false;
    for (i, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return i + 1,
            _ => {}
        }
    }
    text.len()
}

/// Blanks what stands behind `#[cfg(test)]` or `#[cfg(all(test, ...))]`: one item, up to its closing brace.
fn without_tests(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let trimmed = line.trim_start();
        if !(trimmed.starts_with("#[cfg(test") || trimmed.starts_with("#[cfg(all(test")) {
            out.push_str(line);
            out.push('\n');
            continue;
        }
        out.push('\n');
        let indent = &line[..line.len() - trimmed.len()];
        let close = format!("{indent}}}");
        for line in lines.by_ref() {
            out.push('\n');
            let ends_here =
                line.trim_end().ends_with(';') && !line[indent.len().min(line.len())..].starts_with(' ');
            if line.trim_end() == close || ends_here {
                break;
            }
        }
    }
    out
}
