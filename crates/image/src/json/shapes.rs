//! The types of fields: texts, numbers, lists, maps, and the few forms that image documents add.

use std::collections::BTreeMap;

use super::{Input, JsonError, Unmarshal, ValueKind};

impl Unmarshal for bool {
    fn unmarshal(&mut self, input: &mut Input<'_>) -> Result<(), JsonError> {
        if !input.null()? {
            *self = input.bool()?;
        }
        Ok(())
    }
}

impl Unmarshal for i64 {
    fn unmarshal(&mut self, input: &mut Input<'_>) -> Result<(), JsonError> {
        const EXPECTED: &str = "a whole number of 64 bits";
        match input.kind()? {
            ValueKind::Null => drop(input.null()?),
            ValueKind::Number => {
                let text = input.number()?;
                *self = text.parse().map_err(|_| JsonError::Shape {
                    field: String::new(),
                    found: text.chars().take(40).collect(),
                    expected: EXPECTED,
                })?;
            }
            _ => return Err(input.unexpected(EXPECTED)),
        }
        Ok(())
    }
}

impl Unmarshal for String {
    fn unmarshal(&mut self, input: &mut Input<'_>) -> Result<(), JsonError> {
        if !input.null()? {
            *self = input.string()?.into_owned();
        }
        Ok(())
    }
}

/// Something that may be absent; null removes it.
impl<T: Unmarshal + Default> Unmarshal for Option<T> {
    fn unmarshal(&mut self, input: &mut Input<'_>) -> Result<(), JsonError> {
        if input.null()? {
            *self = None;
            return Ok(());
        }
        self.get_or_insert_default().unmarshal(input)
    }
}

/// A map that a second object adds to. Values start from their default each time.
impl<T: Unmarshal + Default> Unmarshal for BTreeMap<String, T> {
    fn unmarshal(&mut self, input: &mut Input<'_>) -> Result<(), JsonError> {
        if input.null()? {
            self.clear();
            return Ok(());
        }
        input.object(|input, key| {
            let mut value = T::default();
            value.unmarshal(input).map_err(|e| e.within(key))?;
            self.insert(key.to_owned(), value);
            Ok(())
        })
    }
}

/// A list, as Go fills a slice: a second list starts at the front again, merging *into* the items
/// of the first.
///
/// Items beyond the end are remembered, because a third and longer list is merged into them. Nobody
/// writes that, but two readers must not see two images.
#[derive(Clone, Debug)]
pub struct List<T> {
    items: Vec<T>,
    len: usize,
}

impl<T> List<T> {
    /// Returns the items.
    pub fn into_vec(mut self) -> Vec<T> {
        self.items.truncate(self.len);
        self.items
    }
}

impl<T> Default for List<T> {
    fn default() -> Self {
        Self {
            items: Vec::new(),
            len: 0,
        }
    }
}

impl<T: Unmarshal + Default> Unmarshal for List<T> {
    fn unmarshal(&mut self, input: &mut Input<'_>) -> Result<(), JsonError> {
        if input.null()? {
            *self = Self::default();
            return Ok(());
        }
        self.len = 0;
        input.list(|input, at| {
            if at == self.items.len() {
                self.items.push(T::default());
            }
            self.len = at + 1;
            self.items[at].unmarshal(input)
        })?;
        if self.len == 0 {
            self.items.clear();
        }
        Ok(())
    }
}

/// A list of words, or a single one, as in images of the first Dockers. Docker starts from an empty
/// list each time.
#[derive(Clone, Debug, Default)]
pub struct Words(pub Vec<String>);

impl Unmarshal for Words {
    fn unmarshal(&mut self, input: &mut Input<'_>) -> Result<(), JsonError> {
        self.0 = match input.kind()? {
            ValueKind::Text => vec![input.string()?.into_owned()],
            ValueKind::List | ValueKind::Null => {
                let mut list = List::default();
                list.unmarshal(input)?;
                list.into_vec()
            }
            _ => return Err(input.unexpected("a string or a list of strings")),
        };
        Ok(())
    }
}

/// An object whose content doesn't matter: what a set in Go's JSON has for values.
#[derive(Clone, Copy, Debug, Default)]
pub struct Empty;

impl Unmarshal for Empty {
    fn unmarshal(&mut self, input: &mut Input<'_>) -> Result<(), JsonError> {
        input.object(|input, _| input.skip())
    }
}

/// Whether there is a value at all, of any type; null is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Any(pub bool);

impl Unmarshal for Any {
    fn unmarshal(&mut self, input: &mut Input<'_>) -> Result<(), JsonError> {
        self.0 = input.kind()? != ValueKind::Null;
        input.skip()
    }
}
