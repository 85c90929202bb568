//! Says what keeps a thing, for people who want the space back.
//!
//! `located.rs` says what a path is, and `rows/alive.rs` what holds it: the query that `gc.rs`
//! collects by, asked about one thing. Only reads records; changes nothing.

use std::path::{Path, PathBuf};
use std::slice;

use rusqlite::Transaction;
use vellum_format::Digest;

use crate::{
    driver::{DriverKind, TreeId},
    error::{Result, StoreError, Subject},
    layout,
    located::{Located, Shelf},
    rows::{
        self,
        alive::{Alive, Holdable, Holder},
    },
    snapshot::SnapshotKey,
    store::Store,
};

/// Why something is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A container owns it or one of its descendants.
    Container {
        /// The container's name.
        name: String,
        /// Its id.
        id: String,
    },
    /// An image contains it.
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
    /// It is a snapshot that only an explicit removal ends, or an ancestor of one.
    Kept(SnapshotKey),
    /// It is a volume: volumes are removed only by name.
    Volume(String),
    /// It belongs to the store itself.
    Store,
    /// Vellum creates nothing of that name, and leaves it alone.
    Stranger,
}

/// What is known about a path in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Why {
    /// What it is, in words.
    pub what: String,
    /// The snapshot whose tree it belongs to.
    pub snapshot: Option<SnapshotKey>,
    /// Everything that keeps it; if empty, the next gc removes it.
    pub reasons: Vec<Reason>,
}

impl Store {
    /// Says what a path in the store is and what keeps it. `path` may be absolute, relative to the
    /// root, or a tree's id.
    ///
    /// Errors: `Invalid` if it is not in the store, `NotFound` if nothing is recorded or there.
    pub fn why(&self, path: &Path) -> Result<Why> {
        let paths = self.layout();
        // A tree's id alone is enough.
        let id = path.iter().next().and_then(|name| name.to_str());
        if let Some(tree) = id.and_then(|id| TreeId::try_from(id.to_owned()).ok()) {
            let homes = DriverKind::ALL.map(|kind| paths.driver(kind));
            let why = self.why_tree(&tree)?;
            return self.unless_absent(why, homes.map(|home| home.join(path)).as_slice(), path);
        }
        let Some(located) = paths.locate(path) else {
            return Err(StoreError::Invalid(format!(
                "{} is not in the store {}",
                path.display(),
                self.root().display()
            )));
        };
        let is_recorded = self.read(|tx| rows::is_recorded(tx, &located))?;
        let why = match located {
            Located::Tree(_, tree) | Located::Record(tree) => self.why_tree(&tree)?,
            Located::Link(_, link) => {
                match self.read(|tx| rows::snapshots::tree_of_link(tx, &link))? {
                    Some(tree) => self.why_tree(&tree)?,
                    None => litter("a short name without a record"),
                }
            }
            Located::Sidecar(..) if is_recorded => kept(
                "the record file of an image or container, from which a lost database is rebuilt",
                Reason::Store,
            ),
            Located::Sidecar(..) => litter("the record file of something that is gone"),
            Located::Blob(digest) if is_recorded => Why {
                what: format!("blob {digest}"),
                snapshot: None,
                reasons: self.read(|tx| reasons(tx, Holdable::Blob(&digest)))?,
            },
            Located::Blob(_) => litter("a blob without a record"),
            Located::Recipe(Some(diff_id)) if is_recorded => self.read(|tx| {
                let keys = rows::snapshots::with_diff_id(tx, &diff_id)?;
                Ok(Why {
                    what: format!("recipe of layer {diff_id}"),
                    snapshot: keys.into_iter().next(),
                    reasons: reasons(tx, Holdable::Recipe(&diff_id))?,
                })
            })?,
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
                "space reserved so that a full disk can be cleared",
                Reason::Store,
            ),
            Located::OldDatabase => kept(
                "a database that a rebuild set aside: remove it by hand when it is not needed any more",
                Reason::Store,
            ),
            Located::LostFound => kept(
                "what a repair took out of layers: look at it, then remove it by hand",
                Reason::Store,
            ),
            Located::Stranger => kept("not created by the store", Reason::Stranger),
        };
        let absolute = paths.root().join(path);
        self.unless_absent(why, slice::from_ref(&absolute), &absolute)
    }

    /// Returns `why`, unless it is about something without a record that is at none of `places`
    /// either.
    fn unless_absent(&self, why: Why, places: &[PathBuf], shown: &Path) -> Result<Why> {
        if !matches!(why.reasons.as_slice(), [] | [Reason::Stranger]) || why.snapshot.is_some() {
            return Ok(why);
        }
        for place in places {
            if layout::exists(place)? {
                return Ok(why);
            }
        }
        Err(StoreError::not_found(Subject::Path, shown.display()))
    }

    /// Returns the snapshot whose tree `path` (absolute, without symbolic links) is in, if any.
    pub fn snapshot_at(&self, path: &Path) -> Result<Option<SnapshotKey>> {
        match self.layout().locate(path) {
            Some(Located::Tree(_, tree)) => {
                let row = self.read(|tx| rows::snapshots::by_tree(tx, &tree))?;
                Ok(row.map(|row| row.record.key))
            }
            _ => Ok(None),
        }
    }

    fn why_tree(&self, tree: &TreeId) -> Result<Why> {
        self.read(|tx| {
            let Some(row) = rows::snapshots::by_tree(tx, tree)? else {
                return Ok(litter("a tree without a record"));
            };
            Ok(Why {
                what: format!(
                    "the tree of {} snapshot {}",
                    row.record.kind, row.record.key
                ),
                snapshot: Some(row.record.key),
                reasons: reasons(tx, Holdable::Snapshot(row.id))?,
            })
        })
    }

    /// Returns everything that keeps the snapshot `key`; if empty, the next gc removes it. Errors:
    /// `NotFound`.
    pub fn reasons_of(&self, key: &SnapshotKey) -> Result<Vec<Reason>> {
        self.read(|tx| reasons(tx, Holdable::Snapshot(rows::snapshots::get(tx, key)?.id)))
    }
}

/// Returns everything that keeps a thing. Sorted: containers, images, leases, kept snapshots.
fn reasons(tx: &Transaction<'_>, thing: Holdable<'_>) -> Result<Vec<Reason>> {
    let reason = |holder| {
        Ok(match holder {
            Holder::Container { id, name } => Reason::Container { name, id },
            Holder::Image(id) => Reason::Image {
                tags: rows::images::tags_of(tx, &id)?,
                id,
            },
            Holder::Lease { id, purpose } => Reason::Lease { id, purpose },
            Holder::Kept(key) => Reason::Kept(key),
        })
    };
    let holders = Alive::now(tx)?.holders(tx, thing)?;
    holders.into_iter().map(reason).collect()
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
