//! A small JSON writer: what the statistics and the programs' `--json` print.
//!
//! [`document`] hands a [`Value`] to a closure, which fills it with one thing; objects and arrays nest through
//! further closures, so whatever is written is well formed. Numbers are whole, arrays of numbers stand on one
//! line, everything else on lines of its own.
//!
//! ```
//! use daxtier::runtime::json;
//!
//! let text = json::document(|value| {
//!     value.object(|object| {
//!         object.key("name").string("fast \"lane\"");
//!         object.key("orders").numbers(&[1, 2]);
//!     })
//! });
//! assert_eq!(text, "{\n  \"name\": \"fast \\\"lane\\\"\",\n  \"orders\": [1, 2]\n}\n");
//! ```

use std::fmt::Write as _;

/// Writes one JSON document, with a newline at its end.
pub fn document(fill: impl FnOnce(Value<'_>)) -> String {
    let mut out = Out { text: String::new(), depth: 0 };
    fill(Value(&mut out));
    out.text.push('\n');
    out.text
}

#[derive(Debug)]
struct Out {
    text: String,
    depth: usize,
}

impl Out {
    fn new_line(&mut self) {
        self.text.push('\n');
        for _ in 0..self.depth {
            self.text.push_str("  ");
        }
    }

    fn string(&mut self, string: &str) {
        self.text.push('"');
        for c in string.chars() {
            match c {
                '"' => self.text.push_str("\\\""),
                '\\' => self.text.push_str("\\\\"),
                '\n' => self.text.push_str("\\n"),
                '\r' => self.text.push_str("\\r"),
                '\t' => self.text.push_str("\\t"),
                // DEL and the C1 controls need no escape in JSON; they get one for the terminal's sake.
                c if c.is_control() => {
                    let _ = write!(self.text, "\\u{:04x}", u32::from(c));
                }
                c => self.text.push(c),
            }
        }
        self.text.push('"');
    }

    fn nest(&mut self, open: char, close: char, fill: impl FnOnce(&mut Out)) {
        self.text.push(open);
        self.depth += 1;
        let before = self.text.len();
        fill(self);
        self.depth -= 1;
        if self.text.len() > before {
            self.new_line();
        }
        self.text.push(close);
    }

    fn separate(&mut self, is_first: &mut bool) {
        if !std::mem::replace(is_first, false) {
            self.text.push(',');
        }
        self.new_line();
    }
}

/// A place for exactly one value.
#[derive(Debug)]
#[must_use = "a place that nothing is written to is not a value"]
pub struct Value<'a>(&'a mut Out);

impl Value<'_> {
    /// Writes a string.
    pub fn string(self, string: &str) {
        self.0.string(string);
    }

    /// Writes a string, or `null`.
    pub fn string_or_null(self, string: Option<&str>) {
        match string {
            Some(string) => self.string(string),
            None => self.null(),
        }
    }

    /// Writes a number.
    pub fn number(self, number: u64) {
        let _ = write!(self.0.text, "{number}");
    }

    /// Writes a number, or `null`.
    pub fn number_or_null(self, number: Option<u64>) {
        match number {
            Some(number) => self.number(number),
            None => self.null(),
        }
    }

    /// Writes `true` or `false`.
    pub fn boolean(self, boolean: bool) {
        self.0.text.push_str(if boolean { "true" } else { "false" });
    }

    /// Writes `null`.
    pub fn null(self) {
        self.0.text.push_str("null");
    }

    /// Writes an array of numbers on one line.
    pub fn numbers(self, numbers: &[u64]) {
        let text: Vec<String> = numbers.iter().map(u64::to_string).collect();
        let _ = write!(self.0.text, "[{}]", text.join(", "));
    }

    /// Writes an array.
    pub fn array(self, fill: impl FnOnce(&mut Array<'_>)) {
        self.0.nest('[', ']', |out| fill(&mut Array { out, is_first: true }));
    }

    /// Writes an object.
    pub fn object(self, fill: impl FnOnce(&mut Object<'_>)) {
        self.0.nest('{', '}', |out| fill(&mut Object { out, is_first: true }));
    }
}

/// An array under construction.
#[derive(Debug)]
pub struct Array<'a> {
    out: &'a mut Out,
    is_first: bool,
}

impl Array<'_> {
    /// Adds an element.
    pub fn element(&mut self) -> Value<'_> {
        self.out.separate(&mut self.is_first);
        Value(self.out)
    }
}

/// An object under construction.
#[derive(Debug)]
pub struct Object<'a> {
    out: &'a mut Out,
    is_first: bool,
}

impl Object<'_> {
    /// Adds a member. Keys are not checked for repetition.
    pub fn key(&mut self, key: &str) -> Value<'_> {
        self.out.separate(&mut self.is_first);
        self.out.string(key);
        self.out.text.push_str(": ");
        Value(self.out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn string(string: &str) -> String {
        document(|value| value.string(string)).trim_end().to_owned()
    }

    #[test]
    fn strings_are_escaped_as_json_wants() {
        for (text, json) in [
            ("", r#""""#),
            (r#"a"b\c/"#, r#""a\"b\\c/""#),
            ("\0\x01\x1f\x08\x0c\n\r\t", r#""\u0000\u0001\u001f\u0008\u000c\n\r\t""#),
            ("\x7f\u{9b}", r#""\u007f\u009b""#),
            ("käse \u{1f9c0} \u{2028}", "\"käse \u{1f9c0} \u{2028}\""),
        ] {
            assert_eq!(string(text), json, "{text:?}");
        }
    }

    #[test]
    fn everything_nests() {
        let text = document(|value| {
            value.object(|object| {
                object.key("empty").object(|_| ());
                object.key("none").array(|_| ());
                object.key("list").array(|array| {
                    array.element().number(u64::MAX);
                    array.element().object(|object| object.key("k").boolean(false));
                    array.element().numbers(&[]);
                });
                object.key("last").string_or_null(None);
            })
        });
        let lines = [
            "{",
            "  \"empty\": {},",
            "  \"none\": [],",
            "  \"list\": [",
            "    18446744073709551615,",
            "    {",
            "      \"k\": false",
            "    },",
            "    []",
            "  ],",
            "  \"last\": null",
            "}",
            "",
        ];
        assert_eq!(text, lines.join("\n"));
    }
}
