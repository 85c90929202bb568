//! The record of a container: its own settings, and the parts of its tree.

use serde::{Deserialize, Serialize};
use vellum_store::{ContainerRecord, Labels, LayerDir, Shape, TreeParts};
use vellum_union::engine::Limit;

pub use vellum_overlay::values::BytesPath;

use crate::context::Context;
use crate::error::{Error, Result};
use crate::home;

/// What is kept about a container besides the store's own record; JSON in the record's `config`.
///
/// On disk: fields are only added, and absent ones have their default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Settings {
    /// The directory of which the container is a copy, if it was created with `--from`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<BytesPath>,
    /// Labels.
    #[serde(skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Limit of its own layer in bytes, if Vellum's engine enforces it and not a quota.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// Limit of its own layer in inodes, which Vellum's engine enforces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inodes: Option<u64>,
}

impl Settings {
    /// The limits that Vellum's engine enforces.
    pub fn limit(&self) -> Limit {
        Limit {
            size_bytes: self.size_bytes,
            inodes: self.inodes,
        }
    }

    /// Reads the settings kept with `record`.
    pub fn of(record: &ContainerRecord) -> Result<Self> {
        if record.config.is_empty() {
            return Ok(Self::default());
        }
        serde_json::from_str(&record.config).map_err(|e| Error::Damaged {
            what: format!("the settings record of container {}", record.name),
            why: e.to_string(),
        })
    }

    /// Returns the JSON to store.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|e| Error::Damaged {
            what: "a container's settings".into(),
            why: e.to_string(),
        })
    }
}

/// Returns the parts of a container's tree; for a copy of a directory, that directory is its only
/// lower layer.
pub fn parts(ctx: &Context, record: &ContainerRecord) -> Result<TreeParts> {
    let store = ctx.store()?;
    let info = store.stat(&record.snapshot)?;
    let driver = store.driver_home(info.driver);
    home::uncovered(&driver, &driver.join(info.tree.as_str()))?;
    let mut parts = store.tree(&record.snapshot)?;
    let Some(BytesPath(from)) = Settings::of(record)?.from else {
        return Ok(parts);
    };
    match &mut parts.shape {
        Shape::Overlay(overlay) => {
            if let [base] = &mut overlay.lowers[..] {
                *base = LayerDir {
                    dir: from,
                    link: None,
                    diff_id: None,
                    features: None,
                    ..base.clone()
                };
                return Ok(parts);
            }
        }
        Shape::Plain { .. } => {}
    }
    Err(Error::Damaged {
        what: format!("the tree of container {}", record.name),
        why: "a copy of a directory has exactly one empty layer below it, but this tree does not"
            .into(),
    })
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    #[test]
    fn settings_survive_the_round_trip_with_any_path() {
        for bytes in [&b"/plain"[..], b"/odd\xff"] {
            let settings = Settings {
                size_bytes: Some(5),
                inodes: None,
                from: Some(BytesPath(OsString::from_vec(bytes.to_vec()).into())),
                labels: Labels::from([("a".to_owned(), "b".to_owned())]),
            };
            let again: Settings = serde_json::from_str(&settings.to_json().unwrap()).unwrap();
            assert_eq!(again, settings);
        }
        assert_eq!(
            serde_json::from_str::<Settings>("{}").unwrap(),
            Settings::default()
        );
    }
}
