//! Each tree's own record, `records/<tree>.json`: enough to rebuild the database from the trees
//! alone.
//!
//! The database is the authority. These files follow it, and are read only by `rebuild`, `check`
//! and the code that judges a tree without a row. The file of a new tree is written before its row,
//! and synced together with the tree, so a recorded tree always has one. A changed one is written
//! after its row. See `records.rs`.

use std::{fs, path::Path};

use serde::{Deserialize, Serialize};
use vellum_format::Digest;

use crate::{
    driver::{DriverKind, LinkId, TreeId},
    error::Result,
    layout::Layout,
    records::{self, VERSION},
    snapshot::{Keep, Labels, MountFeatures, SnapshotKey, SnapshotKind, Usage},
    stamp::Stamp,
};

/// The record of one tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TreeRecord {
    version: u32,
    pub tree: TreeId,
    pub driver: DriverKind,
    pub kind: SnapshotKind,
    pub key: SnapshotKey,
    /// The parent's tree, not its key: keys change at commit.
    pub parent: Option<TreeId>,
    pub link: Option<LinkId>,
    pub keep: Keep,
    pub labels: Labels,
    pub created_ns: i64,
    pub updated_ns: i64,
    pub usage: Option<Usage>,
    pub diff_id: Option<Digest>,
    pub tar_bytes: Option<u64>,
    pub features: Option<MountFeatures>,
    pub size_limit_bytes: Option<u64>,
}

/// What [`TreeRecord::new`] can't derive.
pub(crate) struct Identity {
    pub tree: TreeId,
    pub driver: DriverKind,
    pub kind: SnapshotKind,
    pub key: SnapshotKey,
    pub parent: Option<TreeId>,
    pub link: Option<LinkId>,
    pub created_ns: i64,
}

impl TreeRecord {
    pub fn new(identity: Identity) -> Self {
        let Identity {
            tree,
            driver,
            kind,
            key,
            parent,
            link,
            created_ns,
        } = identity;
        Self {
            version: VERSION,
            tree,
            driver,
            kind,
            key,
            parent,
            link,
            keep: Keep::default(),
            labels: Labels::new(),
            created_ns,
            updated_ns: created_ns,
            usage: None,
            diff_id: None,
            tar_bytes: None,
            features: None,
            size_limit_bytes: None,
        }
    }

    /// Writes the record of a tree that has none yet; not synced. Returns the open file.
    pub fn create(&self, layout: &Layout, stamp: &Stamp) -> Result<fs::File> {
        records::create(&layout.record(&self.tree), self, stamp)
    }

    /// Replaces the record; durable after [`records::sync`]. Returns the open new file, which is
    /// locked.
    pub fn replace(&self, layout: &Layout, stamp: &Stamp) -> Result<fs::File> {
        records::replace(layout, &layout.record(&self.tree), self, stamp)
    }

    /// Reads a record and its stamp; `None` if there is none.
    pub fn read(path: &Path) -> Result<Option<(Self, Option<Stamp>)>> {
        records::read(path)
    }
}

/// A key in JSON: as text if it is text, otherwise in hexadecimal.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum KeyForm {
    Text(String),
    Bytes { hex: String },
}

impl Serialize for SnapshotKey {
    fn serialize<S: serde::Serializer>(
        &self,
        serializer: S,
    ) -> std::result::Result<S::Ok, S::Error> {
        match std::str::from_utf8(self.as_bytes()) {
            Ok(text) => KeyForm::Text(text.to_owned()),
            Err(_) => KeyForm::Bytes {
                hex: hex::encode(self.as_bytes()),
            },
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for SnapshotKey {
    fn deserialize<D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> std::result::Result<Self, D::Error> {
        match KeyForm::deserialize(deserializer)? {
            KeyForm::Text(text) => Ok(Self::from(text)),
            KeyForm::Bytes { hex } => hex::decode(hex)
                .map(Self::new)
                .map_err(serde::de::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_with_any_key_survives_the_round_trip() {
        for key in [
            SnapshotKey::from("sha256:abc"),
            SnapshotKey::new(b"a\xff\0b".as_slice()),
        ] {
            let record = TreeRecord::new(Identity {
                tree: TreeId::random(),
                driver: DriverKind::Native,
                kind: SnapshotKind::Active,
                key,
                parent: Some(TreeId::random()),
                link: Some(LinkId::random()),
                created_ns: 1,
            });
            let tmp = tempfile::tempdir().unwrap();
            let path = tmp.path().join("record.json");
            let stamp = Stamp {
                store: "a".repeat(32),
                generation: 7,
            };
            records::create(&path, &record, &stamp).unwrap();
            let back = TreeRecord::read(&path).unwrap();
            assert_eq!(back, Some((record, Some(stamp))));
        }
    }
}
