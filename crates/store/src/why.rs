//! Saying what keeps a thing, for people who want the room back.
//!
//! The answers are the same that `gc.rs` collects by, asked the other way round: from one path or snapshot up to
//! everything that needs it. Reads records only and changes nothing.

use std::path::Path;

use rusqlite::Transaction;
use vellum_format::Digest;

use crate::{
    driver::TreeId,
    error::{DbContext, Result, StoreError},
    gc::{has_blob, has_sidecar, has_volume, tree_of},
    rows::{self, parse},
    snapshot::{Keep, SnapshotKey},
    store::Store,
};

/// Why something is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A container owns it or stands on it.
    Container {
        /// The container's name.
        name: String,
        /// Its id.
        id: String,
    },
    /// An image is made of it.
    Image {
        /// The image's id.
        id: Digest,
        /// Its names.
        tags: Vec<String>,
    },
    /// A lease holds it.
    Lease {
        /// The lease's id.
        id: String,
        /// What it is for.
        purpose: String,
    },
    /// A snapshot that only an explicit removal ends is or stands on it.
    Kept(SnapshotKey),
    /// It is a volume: those go only by name.
    Volume(String),
    /// It belongs to the store itself.
    Store,
    /// Vellum makes nothing of that name, and leaves it alone.
    Stranger,
}

/// What is known about a path in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Why {
    /// What it is, in words.
    pub what: String,
    /// The snapshot whose tree it belongs to.
    pub snapshot: Option<SnapshotKey>,
    /// Everything that keeps it; empty: the next gc takes it.
    pub reasons: Vec<Reason>,
}

impl Store {
    /// Says what a path in the store is and what keeps it. `path` may be absolute, relative to the root, or a tree's id.
    ///
    /// Errors: `Invalid` if it does not lie in the store.
    pub fn why(&self, path: &Path) -> Result<Why> {
        let absolute = self.root().join(path);
        let outside = || {
            StoreError::Invalid(format!(
                "{} does not lie in the store {}",
                path.display(),
                self.root().display()
            ))
        };
        let relative = absolute.strip_prefix(self.root()).map_err(|_| outside())?;
        let mut names = relative
            .iter()
            .map(|name| name.to_str().unwrap_or_default());
        let (first, second) = (names.next().unwrap_or_default(), names.next());
        if let Some(tree) = tree_of(Path::new(first)) {
            return self.why_tree(&tree);
        }
        let stem = second
            .map(|name| name.strip_suffix(".json").unwrap_or(name))
            .unwrap_or_default();
        let own = |what: &str| Why {
            what: what.into(),
            snapshot: None,
            reasons: vec![Reason::Store],
        };
        match first {
            "overlay2" if stem == "l" => match names.next() {
                None => Ok(own("the short names of overlay2")),
                Some(link) => {
                    let tree: Option<String> = self.read(|tx| {
                        use rusqlite::OptionalExtension;
                        tx.query_row(
                            "SELECT tree FROM snapshots WHERE link = ?1",
                            [link],
                            |row| row.get(0),
                        )
                        .optional()
                        .db("look a link up")
                    })?;
                    match tree {
                        Some(tree) => self.why_tree(&TreeId::try_from(tree)?),
                        None => Ok(litter("a short name without a record")),
                    }
                }
            },
            "overlay2" | "overlay" | "native" | "records" => match tree_of(Path::new(stem)) {
                Some(tree) => self.why_tree(&tree),
                None if stem.is_empty() => Ok(own("trees")),
                None if first == "records" && is_sidecar(second) => {
                    self.why_sidecar(second.unwrap_or_default())
                }
                None => Ok(stranger()),
            },
            "staging" | "trash" if stem.is_empty() => Ok(own("the store itself")),
            "staging" => Ok(litter(
                "staged by a running command, or left by one that died",
            )),
            "trash" => Ok(litter("removed, waiting to be swept")),
            "volumes" if !stem.is_empty() => {
                let there = self.read(|tx| has_volume(tx, stem))?;
                Ok(if there {
                    Why {
                        what: format!("volume {stem}"),
                        snapshot: None,
                        reasons: vec![Reason::Volume(stem.to_owned())],
                    }
                } else {
                    litter("a volume without a record")
                })
            }
            "content" => match names
                .next()
                .and_then(|hex| format!("{stem}:{hex}").parse::<Digest>().ok())
            {
                Some(digest) => self.why_blob(&digest),
                None => Ok(own("blobs")),
            },
            "recipes" if !stem.is_empty() => {
                let Ok(digest) = Digest::from_hex(stem) else {
                    return Ok(litter("a recipe without a record"));
                };
                let keys = self.read(|tx| keys_with_diff_id(tx, &digest))?;
                let mut reasons = Vec::new();
                for key in &keys {
                    reasons.extend(self.reasons_of(key)?);
                }
                Ok(Why {
                    what: format!("recipe of layer {digest}"),
                    snapshot: keys.into_iter().next(),
                    reasons,
                })
            }
            "" | "vellum.db" | "vellum.db-wal" | "vellum.db-shm" | "recipes" | "volumes" => {
                Ok(own("the store itself"))
            }
            "reserve" => Ok(own("space kept back, so that a full disk can be cleared")),
            name if name.starts_with("vellum.db.") => Ok(own(
                "a database of before: remove it by hand when nobody wants it back",
            )),
            _ => Ok(stranger()),
        }
    }

    /// Returns the snapshot whose tree `path` (absolute, without symbolic links) lies in, if it lies in one.
    pub fn snapshot_at(&self, path: &Path) -> Result<Option<SnapshotKey>> {
        let tree = path.strip_prefix(self.root()).ok().and_then(|relative| {
            let mut names = relative.iter();
            let driver = names.next()?.to_str()?;
            let id = names.next()?;
            ["overlay2", "overlay", "native"]
                .contains(&driver)
                .then(|| tree_of(Path::new(id)))
                .flatten()
        });
        match tree {
            None => Ok(None),
            Some(tree) => Ok(self.row_of_tree(&tree)?.map(|row| row.record.key)),
        }
    }

    fn row_of_tree(&self, tree: &TreeId) -> Result<Option<rows::SnapshotRow>> {
        self.read(|tx| {
            use rusqlite::OptionalExtension;
            let id: Option<i64> = tx
                .query_row(
                    "SELECT id FROM snapshots WHERE tree = ?1",
                    [tree.as_str()],
                    |row| row.get(0),
                )
                .optional()
                .db("look a tree up")?;
            id.map(|id| rows::by_id(tx, id)).transpose()
        })
    }

    fn why_sidecar(&self, name: &str) -> Result<Why> {
        match self.read(|tx| has_sidecar(tx, name))? {
            true => Ok(Why {
                what: "the record file of an image or container, which a lost database is made anew from".into(),
                snapshot: None,
                reasons: vec![Reason::Store],
            }),
            false => Ok(litter("the record file of something that is gone")),
        }
    }

    fn why_tree(&self, tree: &TreeId) -> Result<Why> {
        let Some(row) = self.row_of_tree(tree)? else {
            return Ok(litter("a tree without a record"));
        };
        let reasons = self.reasons_of(&row.record.key)?;
        Ok(Why {
            what: format!(
                "the tree of {} snapshot {}",
                row.record.kind, row.record.key
            ),
            snapshot: Some(row.record.key),
            reasons,
        })
    }

    fn why_blob(&self, digest: &Digest) -> Result<Why> {
        self.read(|tx| {
            if !has_blob(tx, digest)? {
                return Ok(litter("a blob without a record"));
            }
            let mut reasons = images_where(
                tx,
                "id = ?1 OR manifest = ?1 OR id IN (SELECT image FROM image_layers WHERE blob = ?1)",
                &digest.to_string(),
            )?;
            reasons.extend(leases_where(tx, "lease_digests WHERE digest = ?1", &digest.to_string())?);
            Ok(Why { what: format!("blob {digest}"), snapshot: None, reasons })
        })
    }

    /// Returns everything that keeps the snapshot `key`; empty: the next gc takes it. Errors: `NotFound`.
    pub fn reasons_of(&self, key: &SnapshotKey) -> Result<Vec<Reason>> {
        self.read(|tx| {
            let row = rows::get(tx, key)?;
            tx.execute_batch("CREATE TEMP TABLE IF NOT EXISTS above (id INTEGER PRIMARY KEY); DELETE FROM temp.above")
                .db("follow children")?;
            tx.execute(
                "WITH RECURSIVE up (id) AS (SELECT ?1 UNION SELECT s.id FROM up JOIN snapshots s ON s.parent = up.id) \
                 INSERT INTO temp.above SELECT id FROM up",
                [row.id],
            )
            .db("follow children")?;
            let mut reasons = Vec::new();
            let mut statement = tx
                .prepare("SELECT name, id FROM containers WHERE snapshot IN temp.above ORDER BY name")
                .db("look for users")?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).db("look for users")?;
            for row in rows {
                let (name, id) = row.db("look for users")?;
                reasons.push(Reason::Container { name, id });
            }
            reasons.extend(images_where(
                tx,
                "?1 = ?1 AND id IN (SELECT image FROM image_layers WHERE snapshot IN temp.above)",
                "",
            )?);
            reasons.extend(leases_where(tx, "lease_snapshots WHERE ?1 = ?1 AND snapshot IN temp.above", "")?);
            let mut statement = tx
                .prepare("SELECT key FROM snapshots WHERE keep = ?1 AND id IN temp.above ORDER BY key")
                .db("look for users")?;
            let rows = statement
                .query_map([Keep::UntilRemoved as i64], |row| row.get::<_, Vec<u8>>(0))
                .db("look for users")?;
            for row in rows {
                reasons.push(Reason::Kept(SnapshotKey::new(row.db("look for users")?)));
            }
            Ok(reasons)
        })
    }
}

fn is_sidecar(name: Option<&str>) -> bool {
    name.is_some_and(|name| name.starts_with("image-") || name.starts_with("container-"))
}

fn stranger() -> Why {
    Why {
        what: "nothing of the store's making".into(),
        snapshot: None,
        reasons: vec![Reason::Stranger],
    }
}

fn litter(what: &str) -> Why {
    Why {
        what: what.into(),
        snapshot: None,
        reasons: Vec::new(),
    }
}

fn keys_with_diff_id(tx: &Transaction<'_>, diff_id: &Digest) -> Result<Vec<SnapshotKey>> {
    let mut statement = tx
        .prepare_cached("SELECT key FROM snapshots WHERE diff_id = ?1 ORDER BY key")
        .db("look up")?;
    let rows = statement
        .query_map([diff_id.to_string()], |row| row.get::<_, Vec<u8>>(0))
        .db("look up")?;
    rows.map(|row| Ok(SnapshotKey::new(row.db("look up")?)))
        .collect()
}

fn images_where(tx: &Transaction<'_>, condition: &str, value: &str) -> Result<Vec<Reason>> {
    let sql = format!(
        "SELECT id, (SELECT group_concat(name, char(10)) FROM tags WHERE image = images.id) FROM images \
         WHERE {condition} ORDER BY id"
    );
    let mut statement = tx.prepare(&sql).db("look for users")?;
    let rows = statement
        .query_map([value], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, Option<String>>(1)?))
        })
        .db("look for users")?;
    rows.map(|row| {
        let (id, tags) = row.db("look for users")?;
        let tags = tags
            .map(|tags| tags.lines().map(str::to_owned).collect())
            .unwrap_or_default();
        Ok(Reason::Image {
            id: parse(&id)?,
            tags,
        })
    })
    .collect()
}

fn leases_where(tx: &Transaction<'_>, condition: &str, value: &str) -> Result<Vec<Reason>> {
    let sql = format!(
        "SELECT id, purpose FROM leases WHERE id IN (SELECT lease FROM {condition}) ORDER BY id"
    );
    let mut statement = tx.prepare(&sql).db("look for users")?;
    let rows = statement
        .query_map([value], |row| Ok((row.get(0)?, row.get(1)?)))
        .db("look for users")?;
    rows.map(|row| {
        let (id, purpose) = row.db("look for users")?;
        Ok(Reason::Lease { id, purpose })
    })
    .collect()
}
