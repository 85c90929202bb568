//! Each tree's own record, `records/<tree>.json`: enough to build the database anew from the trees alone.
//!
//! The database is the authority; these files follow it and are read only by `rebuild` and `check`. A file is written
//! before the database says so, and synced together with the tree, so a recorded tree always has one; after a crash
//! between the two it may be one step ahead, which `check` puts right.

use std::{fs, io::Write, os::unix::fs::OpenOptionsExt, path::Path};

use serde::{Deserialize, Serialize};

use crate::{
    digest::Digest,
    driver::{DriverKind, LinkId, TreeId},
    error::{IoContext, Result, StoreError},
    layout::Layout,
    snapshot::{Keep, Kind, Labels, MountFeatures, SnapshotKey, Usage},
    tx::Staged,
};

/// Version of the file's form. An older program refuses a newer one.
const VERSION: u32 = 1;

/// The record of one tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TreeRecord {
    version: u32,
    pub tree: TreeId,
    pub driver: DriverKind,
    pub kind: Kind,
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

/// What [`TreeRecord::new`] can't guess.
pub(crate) struct Identity {
    pub tree: TreeId,
    pub driver: DriverKind,
    pub kind: Kind,
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

    fn to_bytes(&self) -> Result<Vec<u8>> {
        serde_json::to_vec_pretty(self)
            .map_err(|e| StoreError::Invalid(format!("record of tree {}: {e}", self.tree)))
    }

    /// Writes the record of a tree that has none yet; not synced. Returns the open file.
    pub fn create(&self, layout: &Layout) -> Result<fs::File> {
        let path = layout.record(&self.tree);
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .on("create", &path)?;
        file.write_all(&self.to_bytes()?).on("write", &path)?;
        Ok(file)
    }

    /// Replaces the record atomically; synced only if `sync`. Returns the open new file.
    pub fn replace(&self, layout: &Layout, sync: bool) -> Result<fs::File> {
        let path = layout.record(&self.tree);
        // Staged under a lock like everything else: a sweep by another process must not take it.
        let (mut staged, mut file) = Staged::file(layout, &format!("record-{}", TreeId::random()))?;
        file.write_all(&self.to_bytes()?)
            .on("write", staged.path())?;
        if sync {
            file.sync_all().on("sync", staged.path())?;
        }
        staged.publish_shared(&path)?;
        Ok(file)
    }

    /// Reads a record.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).on("read", path)?;
        let damaged = |why: String| StoreError::Damaged {
            what: path.display().to_string(),
            why,
        };
        let record: Self = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
        if record.version > VERSION {
            return Err(damaged(format!(
                "written by a newer vellum (form {}, known is {VERSION})",
                record.version
            )));
        }
        Ok(record)
    }
}

/// A key in JSON: text where it is text, else hexadecimal.
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
    fn a_record_survives_the_round_trip_with_any_key() {
        for key in [
            SnapshotKey::from("sha256:abc"),
            SnapshotKey::new(b"a\xff\0b".as_slice()),
        ] {
            let record = TreeRecord::new(Identity {
                tree: TreeId::random(),
                driver: DriverKind::Native,
                kind: Kind::Active,
                key,
                parent: Some(TreeId::random()),
                link: Some(LinkId::random()),
                created_ns: 1,
            });
            let back: TreeRecord = serde_json::from_slice(&record.to_bytes().unwrap()).unwrap();
            assert_eq!(back, record);
        }
    }
}
