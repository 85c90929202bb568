//! The syntax of JSON: a position in the text that moves over one value at a time.
//!
//! It is as strict as Go's scanner and does not recurse.

use std::borrow::Cow;

use super::{JsonError, MAX_DEPTH};

/// The type of a value, as its first byte shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueKind {
    /// `null`
    Null,
    /// `true` or `false`
    Bool,
    /// `1`
    Number,
    /// `"a"`
    Text,
    /// `[1]`
    List,
    /// `{"a": 1}`
    Object,
}

impl ValueKind {
    pub(super) fn named(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool => "a boolean",
            Self::Number => "a number",
            Self::Text => "a string",
            Self::List => "a list",
            Self::Object => "an object",
        }
    }
}

/// JSON text and a position in it.
#[derive(Debug)]
pub struct Input<'a> {
    text: &'a [u8],
    at: usize,
    depth: usize,
}

impl<'a> Input<'a> {
    pub(super) fn new(text: &'a [u8]) -> Self {
        Self {
            text,
            at: 0,
            depth: 0,
        }
    }

    /// Errors if anything but white space follows.
    pub(super) fn end(&mut self) -> Result<(), JsonError> {
        match self.next() {
            None => Ok(()),
            Some(_) => Err(self.syntax("unexpected text after the value")),
        }
    }

    /// Returns the type of the next value, without moving.
    pub fn kind(&mut self) -> Result<ValueKind, JsonError> {
        Ok(match self.next() {
            Some(b'n') => ValueKind::Null,
            Some(b't' | b'f') => ValueKind::Bool,
            Some(b'-' | b'0'..=b'9') => ValueKind::Number,
            Some(b'"') => ValueKind::Text,
            Some(b'[') => ValueKind::List,
            Some(b'{') => ValueKind::Object,
            Some(_) => return Err(self.syntax("not the start of a value")),
            None => return Err(self.syntax("a value is missing")),
        })
    }

    /// Moves past a null if that is next, and returns whether it was.
    pub fn null(&mut self) -> Result<bool, JsonError> {
        if self.kind()? != ValueKind::Null {
            return Ok(false);
        }
        self.word(b"null")?;
        Ok(true)
    }

    /// Returns the error for a next value of another type than `expected`.
    pub fn unexpected(&mut self, expected: &'static str) -> JsonError {
        match self.kind() {
            Ok(kind) => JsonError::Shape {
                field: String::new(),
                found: kind.named().to_owned(),
                expected,
            },
            Err(syntax) => syntax,
        }
    }

    /// Returns the boolean that is next.
    pub fn bool(&mut self) -> Result<bool, JsonError> {
        match self.next() {
            Some(b't') => self.word(b"true").map(|()| true),
            Some(b'f') => self.word(b"false").map(|()| false),
            _ => Err(self.unexpected("true or false")),
        }
    }

    /// Returns the text of the number that is next.
    pub fn number(&mut self) -> Result<&'a str, JsonError> {
        if self.kind()? != ValueKind::Number {
            return Err(self.unexpected("a number"));
        }
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        match self.peek() {
            Some(b'0') => self.at += 1,
            _ => self.digits()?,
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        // Only ASCII was skipped.
        Ok(std::str::from_utf8(&self.text[start..self.at]).unwrap_or_default())
    }

    /// Returns the string that is next, without quotes and escapes.
    pub fn string(&mut self) -> Result<Cow<'a, str>, JsonError> {
        let (inside, plain) = self.quoted()?;
        match std::str::from_utf8(inside) {
            Ok(text) if plain => Ok(Cow::Borrowed(text)),
            _ => Ok(Cow::Owned(unquoted(inside))),
        }
    }

    /// Calls `each` before every item of the list that is next; it moves past the item.
    pub fn list(
        &mut self,
        mut each: impl FnMut(&mut Self, usize) -> Result<(), JsonError>,
    ) -> Result<(), JsonError> {
        if self.kind()? != ValueKind::List {
            return Err(self.unexpected("a list"));
        }
        self.open()?;
        let mut items = 0;
        let mut more = !self.closed(b']');
        while more {
            each(self, items).map_err(|e| e.within(&format!("[{items}]")))?;
            items += 1;
            more = self.comma(b']')?;
        }
        Ok(())
    }

    /// Calls `each` with every name of the object that is next; it moves past the value. A null is
    /// an object without names.
    pub fn object(
        &mut self,
        mut each: impl FnMut(&mut Self, &str) -> Result<(), JsonError>,
    ) -> Result<(), JsonError> {
        match self.kind()? {
            ValueKind::Null => return self.word(b"null"),
            ValueKind::Object => self.open()?,
            _ => return Err(self.unexpected("an object")),
        }
        let mut more = !self.closed(b'}');
        while more {
            let key = self.key()?;
            each(self, &key)?;
            more = self.comma(b'}')?;
        }
        Ok(())
    }

    /// Moves past the next value, whatever it is.
    pub fn skip(&mut self) -> Result<(), JsonError> {
        let mut open: Vec<u8> = Vec::new();
        loop {
            match self.kind()? {
                ValueKind::Null => self.word(b"null")?,
                ValueKind::Bool => drop(self.bool()?),
                ValueKind::Number => drop(self.number()?),
                ValueKind::Text => drop(self.quoted()?),
                kind @ (ValueKind::List | ValueKind::Object) => {
                    let close = if kind == ValueKind::List { b']' } else { b'}' };
                    self.open()?;
                    if !self.closed(close) {
                        open.push(close);
                        if close == b'}' {
                            self.key()?;
                        }
                        continue;
                    }
                }
            }
            loop {
                let Some(&close) = open.last() else {
                    return Ok(());
                };
                if self.comma(close)? {
                    if close == b'}' {
                        self.key()?;
                    }
                    break;
                }
                open.pop();
            }
        }
    }

    /// Returns how many lists and objects are open around the position.
    pub(super) fn depth(&self) -> usize {
        self.depth
    }

    /// Moves past the next value and returns its text.
    pub(super) fn raw(&mut self) -> Result<&'a [u8], JsonError> {
        self.next();
        let start = self.at;
        self.skip()?;
        Ok(&self.text[start..self.at])
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    /// The next byte that is not white space.
    fn next(&mut self) -> Option<u8> {
        while let Some(b' ' | b'\t' | b'\r' | b'\n') = self.peek() {
            self.at += 1;
        }
        self.peek()
    }

    fn syntax(&self, why: &'static str) -> JsonError {
        let why = if self.at < self.text.len() {
            why
        } else {
            "unexpected end"
        };
        JsonError::Syntax {
            offset: self.at,
            why,
        }
    }

    fn word(&mut self, word: &[u8]) -> Result<(), JsonError> {
        for byte in word {
            if self.peek() != Some(*byte) {
                return Err(self.syntax("not a word of JSON"));
            }
            self.at += 1;
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), JsonError> {
        if !matches!(self.peek(), Some(b'0'..=b'9')) {
            return Err(self.syntax("a number lacks a digit"));
        }
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
        Ok(())
    }

    fn open(&mut self) -> Result<(), JsonError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.syntax("it is nested too deeply"));
        }
        self.at += 1;
        Ok(())
    }

    /// Moves past `close` if it is next.
    fn closed(&mut self, close: u8) -> bool {
        let closed = self.next() == Some(close);
        if closed {
            self.at += 1;
            self.depth -= 1;
        }
        closed
    }

    /// Moves past the comma, or past `close` if that follows the value instead; returns whether it
    /// was a comma.
    fn comma(&mut self, close: u8) -> Result<bool, JsonError> {
        if self.closed(close) {
            return Ok(false);
        }
        if self.peek() != Some(b',') {
            return Err(self.syntax("a comma is missing"));
        }
        self.at += 1;
        Ok(true)
    }

    fn key(&mut self) -> Result<Cow<'a, str>, JsonError> {
        if self.next() != Some(b'"') {
            return Err(self.syntax("a name is missing"));
        }
        let key = self.string()?;
        if self.next() != Some(b':') {
            return Err(self.syntax("a colon is missing"));
        }
        self.at += 1;
        Ok(key)
    }

    /// Moves past the string that is next; returns what is between its quotes, and whether that has
    /// no escapes.
    fn quoted(&mut self) -> Result<(&'a [u8], bool), JsonError> {
        if self.kind()? != ValueKind::Text {
            return Err(self.unexpected("a string"));
        }
        self.at += 1;
        let start = self.at;
        let mut plain = true;
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok((&self.text[start..self.at - 1], plain));
                }
                Some(b'\\') => {
                    plain = false;
                    self.at += 1;
                    self.escape()?;
                }
                Some(0..0x20) => return Err(self.syntax("a control character in a string")),
                Some(_) => self.at += 1,
                None => return Err(self.syntax("")),
            }
        }
    }

    fn escape(&mut self) -> Result<(), JsonError> {
        match self.peek() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 1,
            Some(b'u') => {
                for _ in 0..4 {
                    self.at += 1;
                    if !self.peek().is_some_and(|b| b.is_ascii_hexdigit()) {
                        return Err(self.syntax("an escape lacks a digit"));
                    }
                }
                self.at += 1;
            }
            _ => return Err(self.syntax("unknown escape")),
        }
        Ok(())
    }
}

/// Resolves escapes, which were checked before, and replaces invalid characters.
fn unquoted(mut inside: &[u8]) -> String {
    let mut text = String::with_capacity(inside.len());
    while let Some((&byte, rest)) = inside.split_first() {
        match (byte, rest.first()) {
            (b'\\', Some(b'u')) => {
                let unit = unit(inside);
                inside = &inside[6..];
                match unit {
                    0xd800..0xdc00 if inside.starts_with(b"\\u") => {
                        let low = self::unit(inside);
                        if matches!(low, 0xdc00..0xe000) {
                            inside = &inside[6..];
                            let code = 0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00);
                            text.push(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
                        } else {
                            text.push(char::REPLACEMENT_CHARACTER);
                        }
                    }
                    _ => text.push(char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER)),
                }
            }
            (b'\\', Some(&escaped)) => {
                text.push(match escaped {
                    b'b' => '\u{8}',
                    b'f' => '\u{c}',
                    b'n' => '\n',
                    b'r' => '\r',
                    b't' => '\t',
                    other => char::from(other),
                });
                inside = &inside[2..];
            }
            _ => {
                let run = inside
                    .iter()
                    .position(|b| *b == b'\\')
                    .unwrap_or(inside.len());
                push_lossy(&mut text, &inside[..run]);
                inside = &inside[run..];
            }
        }
    }
    text
}

/// The number in `\uXXXX`.
fn unit(escape: &[u8]) -> u32 {
    escape[2..6].iter().fold(0, |sum, digit| {
        sum << 4 | char::from(*digit).to_digit(16).unwrap_or(0)
    })
}

/// Every byte that is not part of a character becomes a U+FFFD of its own (`from_utf8_lossy`
/// replaces several with one).
fn push_lossy(text: &mut String, bytes: &[u8]) {
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
}
