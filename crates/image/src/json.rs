//! Reads JSON as Go's `encoding/json` reads it into a struct.
//!
//! Every tool that writes or reads an image's documents is written in Go, and what Go's reader
//! makes of a document is what the document means: a scanner, a registry and a runtime that
//! disagree about it would see different images. So [`read`] does exactly the same:
//!
//! * names are compared case-insensitively, including the Kelvin sign and the long s; unknown names
//!   are skipped;
//! * if a name occurs twice, the last value counts, but objects and lists are merged *into* the
//!   earlier ones;
//! * null leaves a plain value unchanged, and clears a list, a map or an optional value;
//! * bytes that are not UTF-8 and lone surrogates are read as U+FFFD, one for each;
//! * a whole number has neither fraction nor exponent, and fits; a value of the wrong type is an
//!   error that names the field;
//! * nesting is limited to [`MAX_DEPTH`], and only white space may follow the value.
//!
//! A type lists its fields with [`fields!`] and starts from its `Default`. Nothing is built for
//! parts that no field asks for, and recursion goes as deep as the types do, never as deep as the
//! document. The caller limits the number of bytes; this module knows no documents. Decision 0049
//! explains why it isn't serde.

use std::fmt;

use serde_json::{Map, Value};

mod input;
mod shapes;
mod value;

pub use input::{Input, ValueKind};
pub use shapes::{Any, Empty, List, Words};

/// The deepest nesting that is accepted, as in Go.
pub const MAX_DEPTH: usize = 10_000;

/// A type that can be filled from JSON.
pub trait Unmarshal {
    /// Fills `self` from the next value of `input`. Fields that the value doesn't have are
    /// unchanged.
    ///
    /// After an error `self` is unspecified, and `input` must not be read further.
    fn unmarshal(&mut self, input: &mut Input<'_>) -> Result<(), JsonError>;
}

/// Reads the one JSON value in `text`.
pub fn read<T: Unmarshal + Default>(text: &[u8]) -> Result<T, JsonError> {
    let mut value = T::default();
    let mut input = Input::new(text);
    value.unmarshal(&mut input)?;
    input.end()?;
    Ok(value)
}

/// Returns the text of the first value in `text`, whatever follows: what Go's `Decoder` reads from
/// a file.
pub fn first(text: &[u8]) -> Result<&[u8], JsonError> {
    Input::new(text).raw()
}

/// Why JSON can't be read.
#[derive(Debug, PartialEq, Eq)]
pub enum JsonError {
    /// It isn't JSON.
    Syntax {
        /// Where, in bytes.
        offset: usize,
        /// What is wrong there.
        why: &'static str,
    },
    /// A value is not of the expected type.
    Shape {
        /// The path to the field, as in `config.Env[2]`; empty for the document itself.
        field: String,
        /// What is there.
        found: String,
        /// What should be there.
        expected: &'static str,
    },
}

impl JsonError {
    /// Returns the same error as seen from the enclosing object or list: `part` is a name, or
    /// `[2]`.
    pub(crate) fn within(mut self, part: &str) -> Self {
        if let Self::Shape { field, .. } = &mut self {
            let joint = if field.is_empty() || field.starts_with('[') {
                ""
            } else {
                "."
            };
            *field = format!("{part}{joint}{field}");
        }
        self
    }
}

impl fmt::Display for JsonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syntax { offset, why } => write!(f, "{why} at byte {offset}"),
            Self::Shape {
                field,
                found,
                expected,
            } if field.is_empty() => write!(f, "it is {found}, not {expected}"),
            Self::Shape {
                field,
                found,
                expected,
            } => write!(f, "{field} is {found}, not {expected}"),
        }
    }
}

impl std::error::Error for JsonError {}

/// Maps names to fields of a type: `fields!(Layer { "digest" => digest, "size" => size_bytes })`.
macro_rules! fields {
    ($type:ty { $($name:literal => $field:ident),* $(,)? }) => {
        #[allow(dead_code)] // few callers use the names
        impl $type {
            pub(crate) const NAMES: &'static [&'static str] = &[$($name),*];
        }

        impl $crate::json::Unmarshal for $type {
            fn unmarshal(&mut self, input: &mut $crate::json::Input<'_>) -> Result<(), $crate::json::JsonError> {
                input.object(|input, key| {
                    match $crate::json::choose(Self::NAMES, key) {
                        $(Some($name) => $crate::json::Unmarshal::unmarshal(&mut self.$field, input).map_err(|e| e.within($name)),)*
                        _ => input.skip(),
                    }
                })
            }
        }
    };
}
pub(crate) use fields;

/// Returns the name that `key` means: an exact match, else the first that differs only in case.
pub fn choose<'a>(names: &[&'a str], key: &str) -> Option<&'a str> {
    names
        .iter()
        .find(|name| **name == key)
        .or_else(|| names.iter().find(|name| same_but_for_case(name, key)))
        .copied()
}

/// Names of fields are ASCII; two other letters fold into ASCII ones.
pub(crate) fn same_but_for_case(name: &str, key: &str) -> bool {
    let folded = key.chars().map(|c| match c {
        '\u{212a}' => 'k',
        '\u{17f}' => 's',
        c => c.to_ascii_lowercase(),
    });
    name.chars().map(|c| c.to_ascii_lowercase()).eq(folded)
}

/// Moves the values of `map` whose names differ from one of `names` only in case to that name. If
/// that name has a value already it stays, and an object gets what only the other one has.
pub(crate) fn usual_names(map: &mut Map<String, Value>, names: &[&str]) {
    let odd: Vec<String> = map
        .keys()
        .filter(|key| choose(names, key).is_some_and(|name| name != key.as_str()))
        .cloned()
        .collect();
    for key in odd {
        let (Some(value), Some(name)) = (map.remove(&key), choose(names, &key)) else {
            continue;
        };
        match (map.get_mut(name), value) {
            (None, value) => drop(map.insert(name.to_owned(), value)),
            (Some(Value::Object(known)), Value::Object(more)) => {
                for (name, value) in more {
                    known.entry(name).or_insert(value);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
