//! What a snapshot is, and which transitions are legal: pure functions, no files, no database.
//!
//! A snapshot is **active** (writable), a **view** (read-only) or **committed** (a layer). Only a
//! committed one can be a parent; only an active one can be committed, which gives it a new name
//! and frees the old key; nothing that has children can be removed. The rules, the order in which
//! they are checked and the meaning of labels follow containerd's own metadata store
//! (`snapshots/storage`), so that a front end can return its answers unchanged.

use std::{collections::BTreeMap, fmt};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use vellum_format::Digest;

use crate::{
    driver::{DriverKind, TreeId},
    error::{Result, StoreError, Subject},
};

/// The name of a snapshot: any bytes, at least one. It is never used as a path.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SnapshotKey(Vec<u8>);

impl SnapshotKey {
    /// Wraps `bytes` as they are.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    /// Returns the bytes as given.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the text it was made from. Invalid UTF-8 is replaced; nothing is escaped, unlike in
    /// printing.
    pub fn to_text(&self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }
}

impl From<&str> for SnapshotKey {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }
}

impl From<String> for SnapshotKey {
    fn from(text: String) -> Self {
        Self(text.into_bytes())
    }
}

impl From<&[u8]> for SnapshotKey {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }
}

impl From<&Digest> for SnapshotKey {
    /// A layer's name is its chain id's text.
    fn from(chain_id: &Digest) -> Self {
        Self(chain_id.to_string().into_bytes())
    }
}

impl fmt::Display for SnapshotKey {
    /// Prints the bytes as text; control characters and invalid bytes are escaped (`\xNN`).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                if c.is_control() {
                    write!(f, "{}", c.escape_default())?
                } else {
                    write!(f, "{c}")?
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for SnapshotKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// The state of a snapshot.
///
/// The numbers are on disk (`snapshots.kind`) and equal containerd's wire values: changing one
/// turns layers into containers in every existing store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SnapshotKind {
    /// A read-only view of a committed snapshot, or of an empty tree.
    View = 1,
    /// Writable.
    Active = 2,
    /// A layer: never changes again, can be a parent.
    Committed = 3,
}

impl SnapshotKind {
    /// Returns the word that filters and listings use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Active => "active",
            Self::Committed => "committed",
        }
    }

    pub(crate) fn from_disk(number: i64) -> Result<Self> {
        match number {
            1 => Ok(Self::View),
            2 => Ok(Self::Active),
            3 => Ok(Self::Committed),
            other => Err(StoreError::Damaged {
                what: "the database".into(),
                why: format!("a snapshot of kind {other}"),
            }),
        }
    }
}

impl fmt::Display for SnapshotKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Labels: sorted, keys unique, values never empty unless set so at creation.
pub type Labels = BTreeMap<String, String>;

/// Space that a tree itself takes: blocks and inodes, each inode once, including its root
/// directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Allocated blocks of 512 bytes, times 512.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

impl std::ops::AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.inodes += other.inodes;
    }
}

/// What ends a snapshot's life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keep {
    /// `gc` removes it once no image, container, lease or other kept snapshot needs it. For what
    /// the command line creates.
    #[default]
    WhileReferenced = 0,
    /// Only [`crate::Store::remove`] removes it. For front ends whose clients do the accounting
    /// (containerd, dockerd).
    UntilRemoved = 1,
}

impl Keep {
    pub(crate) fn from_disk(number: i64) -> Self {
        if number == 1 {
            Self::UntilRemoved
        } else {
            Self::WhileReferenced
        }
    }
}

/// Kernel features that a writable tree was first mounted with, and whose marks it may therefore
/// carry.
///
/// Recorded once (see [`crate::Store::record_features`]); later mounts of the same upper use the
/// same, even if the defaults change. Stored as JSON; unknown fields are refused, so that an older
/// program never mounts a tree whose needs it can't read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MountFeatures {
    /// Marks are `user.overlay.*` and the mount used `userxattr`.
    pub userxattr: bool,
    /// Directories may carry redirects.
    pub redirect_dir: bool,
    /// Files may be metadata-only copies.
    pub metacopy: bool,
    /// Hard links are tracked in an index.
    pub index: bool,
    /// Inode numbers are made unique across layers.
    pub xino: bool,
    /// Vellum's own engine wrote to it: there may be files that only this engine reads.
    #[serde(default, skip_serializing_if = "is_false")]
    pub engine: bool,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// All that is recorded about one snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// Its key while active or a view, its name once committed.
    pub key: SnapshotKey,
    /// What it is.
    pub kind: SnapshotKind,
    /// Its parent.
    pub parent: Option<SnapshotKey>,
    /// Labels as last set.
    pub labels: Labels,
    /// When it was created; a commit counts as creation.
    pub created: Timestamp,
    /// When it or its labels last changed.
    pub updated: Timestamp,
    /// What ends its life.
    pub keep: Keep,
    /// The driver its tree belongs to, even if the store's default is another one now.
    pub driver: DriverKind,
    /// The name of its tree's directory, under the driver's.
    pub tree: TreeId,
    /// Digest of the layer's uncompressed tar, if it came from one or was written as one.
    pub diff_id: Option<Digest>,
    /// Length of that tar in bytes.
    pub tar_bytes: Option<u64>,
    /// Usage fixed at commit; `None` for others.
    pub usage: Option<Usage>,
    /// What its writable tree was first mounted with; `None` if it never was.
    pub features: Option<MountFeatures>,
    /// Size limit of its writable tree in bytes, if one was asked for.
    pub size_limit_bytes: Option<u64>,
}

/// What the rules need to know about an existing snapshot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen<'a> {
    pub key: &'a SnapshotKey,
    pub kind: SnapshotKind,
}

/// Decides whether something may be prepared as `key` on `parent` (outer `None`: no parent asked
/// for; inner: it doesn't exist).
pub(crate) fn policy_create(
    key: &SnapshotKey,
    taken: bool,
    parent: Option<(&SnapshotKey, Option<SnapshotKind>)>,
) -> Result<()> {
    if key.as_bytes().is_empty() {
        return Err(StoreError::Invalid(
            "a snapshot key must not be empty".into(),
        ));
    }
    if taken {
        return Err(StoreError::exists(Subject::Snapshot, key));
    }
    policy_parent(parent, false)
}

fn policy_parent(
    parent: Option<(&SnapshotKey, Option<SnapshotKind>)>,
    committing: bool,
) -> Result<()> {
    match parent {
        None | Some((_, Some(SnapshotKind::Committed))) => Ok(()),
        Some((parent, None)) => Err(StoreError::not_found(Subject::Snapshot, parent)),
        Some((parent, Some(kind))) => Err(StoreError::ParentNotCommitted {
            parent: parent.clone(),
            kind,
            committing,
        }),
    }
}

/// Decides whether `key` may be committed as `name`. `has` is its parent, `asked` the one that the
/// caller names, with its kind if it exists. The order of the checks is containerd's.
pub(crate) fn policy_commit(
    name: &SnapshotKey,
    name_taken: bool,
    key: &SnapshotKey,
    seen: Option<Seen<'_>>,
    has: Option<&SnapshotKey>,
    asked: Option<(&SnapshotKey, Option<SnapshotKind>)>,
) -> Result<()> {
    if name.as_bytes().is_empty() {
        return Err(StoreError::Invalid(
            "a snapshot name must not be empty".into(),
        ));
    }
    if name_taken {
        return Err(StoreError::exists(Subject::Snapshot, name));
    }
    let seen = seen.ok_or_else(|| StoreError::not_found(Subject::Snapshot, key))?;
    if seen.kind != SnapshotKind::Active {
        return Err(StoreError::NotActive {
            key: seen.key.clone(),
            kind: seen.kind,
        });
    }
    match (has, asked) {
        (Some(has), Some((asked, _))) if has != asked => Err(StoreError::ParentMismatch {
            key: key.clone(),
            has: has.clone(),
            asked: asked.clone(),
        }),
        (_, asked) => policy_parent(asked, true),
    }
}

/// Decides whether `key` may be removed: anything without children may.
pub(crate) fn policy_remove(
    key: &SnapshotKey,
    children: u64,
    child: Option<SnapshotKey>,
) -> Result<()> {
    match child {
        None => Ok(()),
        Some(child) => Err(StoreError::HasChildren {
            key: key.clone(),
            children,
            child,
        }),
    }
}

/// What an update changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LabelChange {
    /// All labels are replaced by these.
    Replace(Labels),
    /// One label is set; an empty value deletes it.
    Set(String, String),
}

/// Returns the labels after `changes`; empty values delete.
pub(crate) fn apply_labels(mut labels: Labels, changes: &[LabelChange]) -> Labels {
    for change in changes {
        match change {
            LabelChange::Replace(all) => labels = all.clone(),
            LabelChange::Set(key, value) => {
                labels.insert(key.clone(), value.clone());
            }
        }
        labels.retain(|_, value| !value.is_empty());
    }
    labels
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Class;

    fn key(text: &str) -> SnapshotKey {
        text.into()
    }

    #[test]
    fn keys_print_escaped() {
        let key = SnapshotKey::new(b"default/7/extract a\xff\n".as_slice());
        assert_eq!(key.to_string(), "default/7/extract a\\xff\\n");
    }

    #[test]
    fn create_follows_the_table() {
        #[track_caller]
        fn check(taken: bool, parent: Option<Option<SnapshotKind>>, expect: Option<Class>) {
            let p = key("p");
            let got = policy_create(&key("k"), taken, parent.map(|kind| (&p, kind)));
            assert_eq!(got.err().map(|e| e.class()), expect);
        }
        check(false, None, None);
        check(false, Some(Some(SnapshotKind::Committed)), None);
        check(true, None, Some(Class::AlreadyExists));
        check(true, Some(None), Some(Class::AlreadyExists));
        check(false, Some(None), Some(Class::NotFound));
        check(
            false,
            Some(Some(SnapshotKind::Active)),
            Some(Class::InvalidArgument),
        );
        check(
            false,
            Some(Some(SnapshotKind::View)),
            Some(Class::InvalidArgument),
        );
        assert_eq!(
            policy_create(&key(""), false, None).unwrap_err().class(),
            Class::InvalidArgument
        );
    }

    #[test]
    fn commit_follows_the_table() {
        #[track_caller]
        fn check(
            taken: bool,
            kind: Option<SnapshotKind>,
            has: Option<&str>,
            asked: Option<(&str, Option<SnapshotKind>)>,
            expect: Option<Class>,
        ) {
            let (k, has) = (key("k"), has.map(key));
            let asked = asked.map(|(name, kind)| (key(name), kind));
            let got = policy_commit(
                &key("n"),
                taken,
                &k,
                kind.map(|kind| Seen { key: &k, kind }),
                has.as_ref(),
                asked.as_ref().map(|(name, kind)| (name, *kind)),
            );
            assert_eq!(got.err().map(|e| e.class()), expect);
        }
        let committed = Some(SnapshotKind::Committed);
        check(false, Some(SnapshotKind::Active), None, None, None);
        check(
            false,
            Some(SnapshotKind::Active),
            Some("p"),
            Some(("p", committed)),
            None,
        );
        check(
            false,
            Some(SnapshotKind::Active),
            None,
            Some(("p", committed)),
            None,
        );
        check(true, None, None, None, Some(Class::AlreadyExists)); // the name is checked first
        check(false, None, None, None, Some(Class::NotFound));
        check(
            false,
            Some(SnapshotKind::View),
            None,
            None,
            Some(Class::FailedPrecondition),
        );
        check(
            false,
            committed,
            None,
            None,
            Some(Class::FailedPrecondition),
        );
        check(
            false,
            Some(SnapshotKind::Active),
            Some("p"),
            Some(("q", committed)),
            Some(Class::InvalidArgument),
        );
        check(
            false,
            Some(SnapshotKind::Active),
            None,
            Some(("p", None)),
            Some(Class::NotFound),
        );
        check(
            false,
            Some(SnapshotKind::Active),
            None,
            Some(("p", Some(SnapshotKind::View))),
            Some(Class::FailedPrecondition),
        );
    }

    #[test]
    fn refusing_a_removal_says_remove() {
        let refused = policy_remove(&key("k"), 2, Some(key("c"))).unwrap_err();
        assert!(refused.to_string().contains("remove"), "{refused}");
        assert_eq!(refused.class(), Class::FailedPrecondition);
    }

    #[test]
    fn an_empty_value_deletes_a_label() {
        let labels = |pairs: &[(&str, &str)]| -> Labels {
            pairs
                .iter()
                .map(|(k, v)| (k.to_string(), v.to_string()))
                .collect()
        };
        let set = |k: &str, v: &str| LabelChange::Set(k.into(), v.into());
        let start = labels(&[("a", "1"), ("b", "2")]);
        assert_eq!(
            apply_labels(start.clone(), &[set("a", "")]),
            labels(&[("b", "2")])
        );
        assert_eq!(apply_labels(start.clone(), &[set("c", "3")]).len(), 3);
        assert_eq!(
            apply_labels(
                start,
                &[LabelChange::Replace(labels(&[("x", "9"), ("y", "")]))]
            ),
            labels(&[("x", "9")])
        );
    }
}
