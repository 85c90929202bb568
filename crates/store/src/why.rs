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
    located::{Located, Shelf},
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
        let layout = self.layout();
        // A tree's id alone will do.
        let id = path.iter().next().and_then(|name| name.to_str());
        if let Some(tree) = id.and_then(|id| TreeId::try_from(id.to_owned()).ok()) {
            return self.why_tree(&tree);
        }
        let Some(located) = layout.locate(path) else {
            return Err(StoreError::Invalid(format!(
                "{} does not lie in the store {}",
                path.display(),
                self.root().display()
            )));
        };
        let is_recorded = self.read(|tx| rows::is_recorded(tx, &located))?;
        Ok(match located {
            Located::Tree(_, tree) | Located::Record(tree) => self.why_tree(&tree)?,
            Located::Link(_, link) => {
                match self.read(|tx| rows::snapshots::tree_of_link(tx, &link))? {
                    Some(tree) => self.why_tree(&tree)?,
                    None => litter("a short name without a record"),
                }
            }
            Located::Sidecar(..) if is_recorded => kept(
                "the record file of an image or container, which a lost database is made anew from",
                Reason::Store,
            ),
            Located::Sidecar(..) => litter("the record file of something that is gone"),
            Located::Blob(digest) if is_recorded => self.why_blob(&digest)?,
            Located::Blob(_) => litter("a blob without a record"),
            Located::Recipe(Some(diff_id)) if is_recorded => self.why_recipe(&diff_id)?,
            Located::Recipe(_) => litter("a recipe without a record"),
            Located::Volume(name) if is_recorded => {
                kept(&format!("volume {name}"), Reason::Volume(name))
            }
            Located::Volume(_) => litter("a volume without a record"),
            Located::Staged => litter("staged by a running command, or left by one that died"),
            Located::Trashed => litter("removed, waiting to be swept"),
            Located::Shelf(Shelf::Trees(_) | Shelf::Records) => kept("trees", Reason::Store),
            Located::Shelf(Shelf::Links(driver)) => {
                kept(&format!("the short names of {driver}"), Reason::Store)
            }
            Located::Shelf(Shelf::Blobs) | Located::Content => kept("blobs", Reason::Store),
            Located::Shelf(
                Shelf::Recipes | Shelf::Volumes | Shelf::Staging | Shelf::Trash | Shelf::Generation,
            )
            | Located::Own => kept("the store itself", Reason::Store),
            Located::Reserve => kept(
                "space kept back, so that a full disk can be cleared",
                Reason::Store,
            ),
            Located::OldDatabase => kept(
                "a database of before: remove it by hand when nobody wants it back",
                Reason::Store,
            ),
            Located::Stranger => kept("nothing of the store's making", Reason::Stranger),
        })
    }

    /// Returns the snapshot whose tree `path` (absolute, without symbolic links) lies in, if it lies in one.
    pub fn snapshot_at(&self, path: &Path) -> Result<Option<SnapshotKey>> {
        match self.layout().locate(path) {
            Some(Located::Tree(_, tree)) => Ok(self.row_of_tree(&tree)?.map(|row| row.record.key)),
            _ => Ok(None),
        }
    }

    fn row_of_tree(&self, tree: &TreeId) -> Result<Option<rows::snapshots::SnapshotRow>> {
        self.read(|tx| rows::snapshots::by_tree(tx, tree))
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

    fn why_recipe(&self, diff_id: &Digest) -> Result<Why> {
        let keys = self.read(|tx| rows::snapshots::with_diff_id(tx, diff_id))?;
        let mut reasons = Vec::new();
        for key in &keys {
            reasons.extend(self.reasons_of(key)?);
        }
        Ok(Why {
            what: format!("recipe of layer {diff_id}"),
            snapshot: keys.into_iter().next(),
            reasons,
        })
    }

    fn why_blob(&self, digest: &Digest) -> Result<Why> {
        self.read(|tx| {
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
            let row = rows::snapshots::get(tx, key)?;
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

fn kept(what: &str, by: Reason) -> Why {
    Why {
        what: what.into(),
        snapshot: None,
        reasons: vec![by],
    }
}

fn litter(what: &str) -> Why {
    Why {
        what: what.into(),
        snapshot: None,
        reasons: Vec::new(),
    }
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
