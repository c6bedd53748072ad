//! Reading and writing the little JSON that this repository's own commands exchange.
//!
//! Numbers are kept as `f64`: byte counts stay exact up to 2^53.

/// A JSON value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Json {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// Any number.
    Number(f64),
    /// A string.
    Text(String),
    /// `[...]`.
    List(Vec<Json>),
    /// `{...}`, in the order it was read or made.
    Object(Vec<(String, Json)>),
}

impl Json {
    /// Reads a document.
    ///
    /// # Errors
    /// What was wrong, and at which byte.
    pub(crate) fn parse(text: &str) -> Result<Json, String> {
        let mut reader = Reader { text, at: 0 };
        let value = reader.value()?;
        reader.skip_space();
        if reader.at == text.len() { Ok(value) } else { Err(reader.wrong("nothing more")) }
    }

    /// Returns the member of an object.
    pub(crate) fn get(&self, name: &str) -> Option<&Json> {
        match self {
            Json::Object(members) => members.iter().find(|(key, _)| key == name).map(|(_, value)| value),
            _ => None,
        }
    }

    /// Returns the items of a list.
    pub(crate) fn items(&self) -> Option<&[Json]> {
        if let Json::List(items) = self { Some(items) } else { None }
    }

    /// Returns a string.
    pub(crate) fn text(&self) -> Option<&str> {
        if let Json::Text(text) = self { Some(text) } else { None }
    }

    /// Returns a number that is a count: whole and not negative.
    pub(crate) fn count(&self) -> Option<u64> {
        match self {
            Json::Number(n) if *n >= 0.0 && n.fract() == 0.0 => Some(*n as u64),
            _ => None,
        }
    }

    /// Returns the document on one line.
    pub(crate) fn line(&self) -> String {
        match self {
            Json::Null => "null".to_owned(),
            Json::Bool(value) => value.to_string(),
            Json::Number(n) if n.is_finite() => n.to_string(),
            Json::Number(_) => "null".to_owned(),
            Json::Text(text) => quoted(text),
            Json::List(items) => {
                let items: Vec<String> = items.iter().map(Json::line).collect();
                format!("[{}]", items.join(", "))
            }
            Json::Object(members) => {
                let members: Vec<String> =
                    members.iter().map(|(key, value)| format!("{}: {}", quoted(key), value.line())).collect();
                format!("{{{}}}", members.join(", "))
            }
        }
    }
}

fn quoted(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c < ' ' => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl Reader<'_> {
    fn wrong(&self, wanted: &str) -> String {
        let near: String = self.text[self.at..].chars().take(20).collect();
        format!("JSON: expected {wanted} at byte {}, found {near:?}", self.at)
    }

    fn skip_space(&mut self) {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
    }

    fn take(&mut self, token: &str) -> bool {
        self.skip_space();
        let found = self.text[self.at..].starts_with(token);
        self.at += if found { token.len() } else { 0 };
        found
    }

    fn expect(&mut self, token: &str) -> Result<(), String> {
        if self.take(token) { Ok(()) } else { Err(self.wrong(token)) }
    }

    fn value(&mut self) -> Result<Json, String> {
        self.skip_space();
        match self.text[self.at..].chars().next() {
            Some('{') => self
                .members("}", |reader| {
                    let key = reader.string()?;
                    reader.expect(":")?;
                    Ok((key, reader.value()?))
                })
                .map(Json::Object),
            Some('[') => self.members("]", Reader::value).map(Json::List),
            Some('"') => self.string().map(Json::Text),
            _ if self.take("null") => Ok(Json::Null),
            _ if self.take("true") => Ok(Json::Bool(true)),
            _ if self.take("false") => Ok(Json::Bool(false)),
            _ => self.number(),
        }
    }

    /// Reads `{` or `[`, what `item` reads, commas between, and `close`.
    fn members<T>(
        &mut self,
        close: &str,
        mut item: impl FnMut(&mut Self) -> Result<T, String>,
    ) -> Result<Vec<T>, String> {
        self.at += 1;
        let mut found = Vec::new();
        if self.take(close) {
            return Ok(found);
        }
        loop {
            found.push(item(self)?);
            if self.take(close) {
                return Ok(found);
            }
            self.expect(",")?;
        }
    }

    fn number(&mut self) -> Result<Json, String> {
        let rest = &self.text[self.at..];
        let end = rest.find(|c: char| !"+-.eE0123456789".contains(c)).unwrap_or(rest.len());
        let number = rest[..end].parse().map_err(|_| self.wrong("a value"))?;
        self.at += end;
        Ok(Json::Number(number))
    }

    fn string(&mut self) -> Result<String, String> {
        self.expect("\"")?;
        let mut out = String::new();
        let mut chars = self.text[self.at..].char_indices();
        while let Some((i, c)) = chars.next() {
            match c {
                '"' => {
                    self.at += i + 1;
                    return Ok(out);
                }
                '\\' => match chars.next().map(|(_, c)| c) {
                    Some('n') => out.push('\n'),
                    Some('t') => out.push('\t'),
                    Some('r') => out.push('\r'),
                    Some('u') => {
                        let digits: String = chars.by_ref().take(4).map(|(_, c)| c).collect();
                        let code =
                            u32::from_str_radix(&digits, 16).map_err(|_| self.wrong("four hex digits"))?;
                        out.push(char::from_u32(code).unwrap_or('\u{fffd}'));
                    }
                    Some(c) => out.push(c),
                    None => break,
                },
                c => out.push(c),
            }
        }
        Err(self.wrong("a closing quote"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let text = r#"{"a": [1, 2.5, -3, null, true], "b\u0041\"": "x\ny", "c": {}}"#;
        let json = Json::parse(text).unwrap();
        assert_eq!(json.get("a").unwrap().items().unwrap().len(), 5);
        assert_eq!(json.get("bA\"").unwrap().text(), Some("x\ny"));
        assert_eq!(Json::parse(&json.line()), Ok(json));
    }

    #[test]
    fn broken_documents_are_refused() {
        for text in ["", "{", "[1 2]", "{\"a\" 1}", "\"open", "[1],", "nul", "{\"a\":}"] {
            assert!(Json::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn counts_are_whole() {
        assert_eq!(Json::Number(7.0).count(), Some(7));
        assert_eq!(Json::Number(7.5).count(), None);
        assert_eq!(Json::Number(-1.0).count(), None);
    }
}
