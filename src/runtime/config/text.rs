//! The grammar of a configuration string or file: `KEY=VALUE` words between blanks and newlines.
//!
//! A `#` at the start of a word begins a comment that ends with the line. A value with blanks in it stands in
//! double quotes, with `\"` and `\\` inside for a quote and a backslash. [`Words`] yields the words with their
//! lines and knows nothing of what they mean.

use std::borrow::Cow;
use std::fmt;

/// One `KEY=VALUE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Word<'a> {
    /// Which line it stands on, from 1.
    pub(super) line: u32,
    /// What stands before the first `=`.
    pub(super) key: &'a str,
    /// What stands behind it, without its quotes.
    pub(super) value: Result<Cow<'a, str>, BadWord>,
}

/// Why a word has no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadWord {
    /// There is no `=`.
    NoValue,
    /// A quote does not close at the end of the value.
    OpenQuote,
}

/// The words of a text.
pub(super) struct Words<'a> {
    rest: &'a str,
    line: u32,
}

impl<'a> Words<'a> {
    pub(super) fn new(text: &'a str) -> Words<'a> {
        Words { rest: text, line: 1 }
    }

    /// Takes `len` bytes off the front and counts their lines.
    fn take(&mut self, len: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(len);
        self.line = self.line.saturating_add(taken.bytes().filter(|&b| b == b'\n').count() as u32);
        self.rest = rest;
        taken
    }

    fn take_until(&mut self, stop: impl Fn(char) -> bool) -> &'a str {
        self.take(self.rest.find(stop).unwrap_or(self.rest.len()))
    }

    /// Takes the rest of a quoted value, whose opening quote is gone.
    fn take_quoted(&mut self) -> Result<Cow<'a, str>, BadWord> {
        let mut value = String::new();
        let mut chars = self.rest.char_indices();
        while let Some((ix, c)) = chars.next() {
            match c {
                '"' => {
                    self.take(ix + 1);
                    let closes = self.rest.chars().next().is_none_or(char::is_whitespace);
                    return if closes { Ok(Cow::Owned(value)) } else { Err(BadWord::OpenQuote) };
                }
                '\\' => match chars.next() {
                    Some((_, c @ ('"' | '\\'))) => value.push(c),
                    Some((_, c)) => value.extend(['\\', c]),
                    None => break,
                },
                c => value.push(c),
            }
        }
        self.take(self.rest.len());
        Err(BadWord::OpenQuote)
    }
}

impl<'a> Iterator for Words<'a> {
    type Item = Word<'a>;

    fn next(&mut self) -> Option<Word<'a>> {
        loop {
            self.take_until(|c| !c.is_whitespace());
            if !self.rest.starts_with('#') {
                break;
            }
            self.take_until(|c| c == '\n');
        }
        if self.rest.is_empty() {
            return None;
        }
        let line = self.line;
        let key = self.take_until(|c| c == '=' || c.is_whitespace());
        if !self.rest.starts_with('=') {
            return Some(Word { line, key, value: Err(BadWord::NoValue) });
        }
        self.take(1);
        let value = if self.rest.starts_with('"') {
            self.take(1);
            self.take_quoted()
        } else {
            Ok(Cow::Borrowed(self.take_until(char::is_whitespace)))
        };
        Some(Word { line, key, value })
    }
}

/// A value as it stands in a configuration string: quoted where the grammar needs it.
pub(super) struct Quoted<T>(pub(super) T);

impl<T: fmt::Display> fmt::Display for Quoted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_string();
        if !text.is_empty() && !text.starts_with('"') && !text.contains(char::is_whitespace) {
            return f.write_str(&text);
        }
        write!(f, "\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<(u32, String, Result<String, BadWord>)> {
        let owned = |word: Word<'_>| (word.line, word.key.to_owned(), word.value.map(Cow::into_owned));
        Words::new(text).map(owned).collect()
    }

    fn word(line: u32, key: &str, value: &str) -> (u32, String, Result<String, BadWord>) {
        (line, key.into(), Ok(value.into()))
    }

    #[test]
    fn words_stand_between_blanks_and_know_their_line() {
        assert_eq!(words("  "), []);
        assert_eq!(words("a=1\tb=2"), [word(1, "a", "1"), word(1, "b", "2")]);
        let text = "# first\na=1 # the rest = nothing\n\n  b=x=y#z\r\n#\nc=";
        assert_eq!(words(text), [word(2, "a", "1"), word(4, "b", "x=y#z"), word(6, "c", "")]);
    }

    #[test]
    fn quotes_keep_blanks_together() {
        assert_eq!(
            words(r#"a="x y" b="" c="q\"\\\n" d=x"y"#),
            [word(1, "a", "x y"), word(1, "b", ""), word(1, "c", r#"q"\\n"#), word(1, "d", r#"x"y"#),]
        );
        assert_eq!(words("a=\"x\ny\" b=1"), [word(1, "a", "x\ny"), word(2, "b", "1")]);
    }

    #[test]
    fn words_without_a_value_are_told_apart() {
        assert_eq!(
            words("fast = 64M"),
            [
                (1, "fast".into(), Err(BadWord::NoValue)),
                word(1, "", ""),
                (1, "64M".into(), Err(BadWord::NoValue)),
            ]
        );
        for text in [r#"a=""#, r#"a="x"#, r#"a="x\""#, r#"a="x"y"#, r#"a="x\"#] {
            assert_eq!(words(text)[0].2, Err(BadWord::OpenQuote), "{text}");
        }
    }

    #[test]
    fn a_quoted_value_reads_back() {
        for value in ["", "x", "x y", "\"", "\\ ", "a\"b c\\", "\u{3000}", "x\\y"] {
            assert_eq!(words(&format!("k={}", Quoted(value))), [word(1, "k", value)]);
        }
    }
}
