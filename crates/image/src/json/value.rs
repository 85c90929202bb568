//! Any value at all, for showing a document, or for changing a part and keeping the rest.
//!
//! If a name occurs twice, the last value counts, without merging, and names are case-sensitive.

use serde_json::{Map, Value};

use super::{Input, JsonError, Unmarshal, ValueKind};

/// Values are dropped and written by recursion, so they can't be as deep as a document: what is
/// deeper becomes a string of its JSON.
const MAX_VALUE_DEPTH: usize = 500;

impl Unmarshal for Value {
    fn unmarshal(&mut self, input: &mut Input<'_>) -> Result<(), JsonError> {
        *self = value(input)?;
        Ok(())
    }
}

fn value(input: &mut Input<'_>) -> Result<Value, JsonError> {
    if input.depth() >= MAX_VALUE_DEPTH {
        let text = String::from_utf8_lossy(input.raw()?);
        return Ok(Value::String(text.into_owned()));
    }
    Ok(match input.kind()? {
        ValueKind::Null => {
            input.skip()?;
            Value::Null
        }
        ValueKind::Bool => Value::Bool(input.bool()?),
        ValueKind::Number => {
            let text = input.number()?;
            // A number that no type holds is shown as text.
            serde_json::from_str(text).unwrap_or_else(|_| text.into())
        }
        ValueKind::Text => Value::String(input.string()?.into_owned()),
        ValueKind::List => {
            let mut items = Vec::new();
            input.list(|input, _| {
                items.push(value(input)?);
                Ok(())
            })?;
            Value::Array(items)
        }
        ValueKind::Object => {
            let mut map = Map::new();
            input.object(|input, key| {
                map.insert(key.to_owned(), value(input)?);
                Ok(())
            })?;
            Value::Object(map)
        }
    })
}
