//! Values of settings as text: how a variable spells them, and how `info` shows them.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Driver, Engine, MountMethod, RegistrySettings, Toggle, parse_size};

/// The types of settings.
pub(super) trait Value: Sized {
    /// Reads the value of a variable or of a kernel option.
    fn read(text: &OsStr) -> Result<Self, String>;
    /// Returns the value as `info` shows it.
    fn shown(&self) -> String;
}

/// Types that are read and shown as words.
macro_rules! words {
    ($($type:ty),+) => {
        $(impl Value for $type {
            fn read(text: &OsStr) -> Result<Self, String> {
                utf8(text)?.parse().map_err(|why: <$type as FromStr>::Err| why.to_string())
            }
            fn shown(&self) -> String {
                self.to_string()
            }
        })+
    };
}

words!(Driver, Engine, MountMethod, Toggle);

fn utf8(text: &OsStr) -> Result<&str, String> {
    text.to_str().ok_or_else(|| "it is not UTF-8".to_owned())
}

impl Value for PathBuf {
    fn read(text: &OsStr) -> Result<Self, String> {
        Ok(text.into())
    }
    fn shown(&self) -> String {
        self.display().to_string()
    }
}

impl Value for Option<PathBuf> {
    fn read(text: &OsStr) -> Result<Self, String> {
        Ok(Some(text.into()))
    }
    fn shown(&self) -> String {
        self.as_ref().map_or_else(|| "-".to_owned(), Value::shown)
    }
}

impl Value for bool {
    fn read(text: &OsStr) -> Result<Self, String> {
        match utf8(text)? {
            // A bare kernel option is on; an empty variable is ignored.
            "" | "1" | "true" | "yes" | "on" => Ok(true),
            "0" | "false" | "no" | "off" => Ok(false),
            other => Err(format!("`{other}` is neither true nor false")),
        }
    }
    fn shown(&self) -> String {
        self.to_string()
    }
}

impl Value for usize {
    fn read(text: &OsStr) -> Result<Self, String> {
        let text = utf8(text)?;
        text.parse()
            .map_err(|_| format!("`{text}` is not a number"))
    }
    fn shown(&self) -> String {
        self.to_string()
    }
}

impl Value for Size {
    fn read(text: &OsStr) -> Result<Self, String> {
        utf8(text)?.parse()
    }
    fn shown(&self) -> String {
        self.0.unwrap_or(0).to_string()
    }
}

/// No variable configures registries.
impl Value for BTreeMap<String, RegistrySettings> {
    fn read(_: &OsStr) -> Result<Self, String> {
        Err("registries can only be configured in files".to_owned())
    }
    fn shown(&self) -> String {
        match self.is_empty() {
            true => "-".to_owned(),
            false => self
                .keys()
                .map(String::as_str)
                .collect::<Vec<_>>()
                .join(", "),
        }
    }
}

/// A number of bytes, read with units: `10G`, `512MiB`, `1500`. Zero means: no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub Option<u64>);

impl From<u64> for Size {
    fn from(bytes: u64) -> Self {
        Self((bytes != 0).then_some(bytes))
    }
}

impl FromStr for Size {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        parse_size(text).map(Self::from)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(u64),
            Text(String),
        }
        match Either::deserialize(deserializer)? {
            Either::Number(bytes) => Ok(bytes.into()),
            Either::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0.unwrap_or(0))
    }
}
