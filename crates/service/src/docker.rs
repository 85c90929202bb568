//! Layers as Docker's daemon manages them: ids that it invents, counted mounts, diffs as tar
//! streams.
//!
//! The daemon keeps account of images, containers and layers' parents, and calls a graph driver by
//! id. Here an id is a snapshot: writable under one key until it gets a child or its content as a
//! diff, and from then on a layer under another key. What the daemon says once, at its start, is
//! kept in the store, because it does not repeat it to a driver that was restarted.
//!
//! [`mounts`] has the counted mounts, [`changes`] diffs in and out. This file must not know HTTP.
//!
//! Locks: one per id, in the run directory, so that several threads and processes agree; a child's
//! before its parent's.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::RwLock;

use serde::{Deserialize, Serialize};
use vellum_format::IdRun;
use vellum_store::{
    Commit, Info, Keep, Labels, PrepareOptions, Shape, SnapshotKey, SnapshotKind, Store,
    StoreError, Sweep, TreeParts,
};
use vellum_sys::lock::Lock;
use vellum_sys::plain::{self, Links};
use vellum_sys::{Dir, publish, sync};
use vellum_union::engine::Limit;

use crate::config::parse_size;
use crate::context::Context;
use crate::error::{Error, ObjectKind, Result};
use crate::mount::limit;
use crate::{home, run_dir};

mod changes;
mod mounts;

pub use changes::{GraphChange, TarStream};

/// The file in the store's directory with what the daemon said at its start. Another name would
/// orphan it.
const SESSION_FILE: &str = "docker.json";

/// The version of that file; a newer one is refused.
const SESSION_VERSION: u32 = 1;

/// Prefixes of the keys of layers, and of writable snapshots. On disk: others would lose every
/// layer.
const LAYER: &str = "docker/";
const WRITABLE: &str = "docker-rw/";

/// Label of a layer that was created for writing, not to be filled with one diff.
const READ_WRITE: &str = "vellum.docker/read-write";

/// Label of a layer whose size limit, in bytes, Vellum's engine enforces.
const SIZE: &str = "vellum.docker/size";

/// Longest id: the lock file is named after it.
const MAX_ID_BYTES: usize = 200;

/// What the daemon says at its start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Session {
    version: u32,
    /// The driver's directory in the daemon's data root. Nothing is written there; it tells daemons
    /// apart.
    home: PathBuf,
    /// Options, as given.
    options: Vec<String>,
}

/// How to create a layer.
#[derive(Clone, Debug, Default)]
pub struct Creation {
    /// Whether it is a container's, for writing.
    pub read_write: bool,
    /// SELinux label of its mounts; empty: none.
    pub mount_label: String,
    /// Storage options: `size`.
    pub storage: BTreeMap<String, String>,
}

/// The store as a graph driver. Usable from many threads at once.
pub struct Graph {
    ctx: Context,
    session: RwLock<Option<Session>>,
}

impl Graph {
    /// Opens the store of `ctx` and reads what the daemon said, if it ever did.
    pub fn open(ctx: Context) -> Result<Self> {
        let root = ctx.store()?.root().to_path_buf();
        let session = read_session(&root)?;
        Ok(Self {
            ctx,
            session: RwLock::new(session),
        })
    }

    /// Returns the context.
    pub fn context(&self) -> &Context {
        &self.ctx
    }

    /// Returns the driver's directory in the data root of the daemon that this store serves, if the
    /// daemon has named it.
    pub fn home(&self) -> Option<PathBuf> {
        self.session().map(|session| session.home)
    }

    /// Starts serving the daemon whose directory for this driver is `home`.
    ///
    /// Durable on return. From now on each mounted layer counts as gotten once, as a daemon expects
    /// after its start. Errors: `Invalid` for unknown options; `InUse` if the store has layers of
    /// another daemon; `Unsupported` for user namespaces.
    pub fn init(&self, home: &Path, options: &[String], ids: &[IdRun]) -> Result<()> {
        if ids.iter().any(|run| run.inside != run.outside) {
            return Err(Error::Unsupported {
                what: "the daemon remaps users (--userns-remap), but Vellum's graph driver can't"
                    .into(),
                hint: "start dockerd without --userns-remap, or use its own overlay2 driver".into(),
            });
        }
        default_size(options)?;
        let store = self.store()?;
        if let Some(old) = self.session()
            && old.home != home
            && old.home.exists()
            && let Some(id) = self.any_layer()?
        {
            return Err(Error::InUse {
                kind: ObjectKind::Layer,
                name: id,
                by: format!(
                    "this store serves the daemon whose driver directory is {}",
                    old.home.display()
                ),
                hint: format!(
                    "give each daemon a store of its own with --root; if the data root was moved, remove the old {}",
                    old.home.display()
                ),
            });
        }
        // The daemon creates its data root, and the driver its own directory in it: this shows that
        // the data root is still there.
        std::fs::create_dir_all(home).map_err(Error::io("create", home))?;
        let session = Session {
            version: SESSION_VERSION,
            home: home.to_path_buf(),
            options: options.to_vec(),
        };
        let text =
            serde_json::to_vec_pretty(&session).map_err(|e| Error::io("write", home)(e.into()))?;
        let root = Dir::open(store.root())?;
        publish::write_file_atomic(&root, OsStr::new(SESSION_FILE), &text, 0o600)?;
        *sync::write(&self.session) = Some(session);
        self.forget_counts();
        Ok(())
    }

    /// Creates the layer `id` on `parent`, or an empty one.
    ///
    /// Durable on return. A writable parent is sealed: it becomes a layer permanently. Repeating a
    /// call is not an error, since an answer may have been lost. Errors: `NotFound` (parent),
    /// `NameTaken`, `InUse` (a parent that is being written to), `Invalid`, `Unsupported`.
    pub fn create(&self, id: &str, parent: &str, creation: &Creation) -> Result<()> {
        check_id(id)?;
        check_label(id, &creation.mount_label)?;
        let size_bytes = self.size_of(creation)?;
        let parent_key = match parent {
            "" => None,
            parent => Some(layer_key(parent)),
        };
        let _lock = self.lock(id)?;
        if let Some(found) = self.find(id)? {
            let same = found.parent == parent_key
                && found.kind == SnapshotKind::Active
                && found.labels.contains_key(READ_WRITE) == creation.read_write;
            return match same {
                true => Ok(()),
                false => Err(Error::NameTaken {
                    kind: ObjectKind::Layer,
                    name: id.to_owned(),
                }),
            };
        }
        if !parent.is_empty() {
            self.seal(parent)?;
        }
        let mut labels = Labels::new();
        if creation.read_write {
            labels.insert(READ_WRITE.to_owned(), "true".to_owned());
        }
        let mut size_limit_bytes = size_bytes;
        if let Some(bytes) = size_bytes
            && let Some(parent) = &parent_key
            && limit::kept_by_engine(&self.ctx, parent)?
        {
            labels.insert(SIZE.to_owned(), bytes.to_string());
            size_limit_bytes = None;
        }
        let options = PrepareOptions {
            parent: parent_key,
            labels,
            keep: Keep::UntilRemoved,
            size_limit_bytes,
            ..PrepareOptions::default()
        };
        self.store()?.prepare(&writable_key(id), &options)?;
        Ok(())
    }

    /// Removes the layer `id`, mounted or not. One that is not there counts as removed.
    ///
    /// Durable on return. Errors: `InUse` while another layer is on top of it.
    pub fn remove(&self, id: &str) -> Result<()> {
        check_id(id)?;
        let lock = self.lock(id)?;
        let store = self.store()?;
        let Some(found) = self.find(id)? else {
            return Ok(());
        };
        // Checked first: a child may be mounted, and use this layer.
        if let Some(child) = store.child(&found.key)? {
            return Err(has_child(id, &child));
        }
        self.detach(id, &found)?;
        // Both keys: a crash may have left the empty tree that a diff has replaced.
        for key in [layer_key(id), writable_key(id)] {
            match store.remove(&key, Sweep::Now) {
                Ok(()) | Err(StoreError::NotFound { .. }) => {}
                Err(StoreError::HasChildren { child, .. }) => return Err(has_child(id, &child)),
                Err(error) => return Err(error.into()),
            }
        }
        drop(lock);
        run_dir::forget(&self.ctx, &lock_name(id));
        Ok(())
    }

    /// Tells whether there is a layer `id`.
    pub fn exists(&self, id: &str) -> Result<bool> {
        check_id(id)?;
        Ok(self.find(id)?.is_some())
    }

    /// Returns the paths of a layer's parts, under the names of Docker's overlay2.
    pub fn metadata(&self, id: &str) -> Result<BTreeMap<String, String>> {
        check_id(id)?;
        let parts = self.parts(&self.get_info(id)?)?;
        let text = |path: &Path| path.display().to_string();
        let mut data = BTreeMap::new();
        match &parts.shape {
            Shape::Plain { root, .. } => {
                data.insert("RootDir".to_owned(), text(root));
            }
            Shape::Overlay(overlay) => {
                let mut dirs = overlay.upper.iter().chain(&overlay.lowers);
                if let Some(top) = dirs.next() {
                    data.insert("UpperDir".to_owned(), text(&top.dir));
                }
                let lowers: Vec<_> = dirs.map(|layer| text(&layer.dir)).collect();
                data.insert("LowerDir".to_owned(), lowers.join(":"));
                data.insert("MergedDir".to_owned(), text(&overlay.merged));
                if let Some(work) = &overlay.work {
                    data.insert("WorkDir".to_owned(), text(work));
                }
            }
        }
        Ok(data)
    }

    /// Returns what `docker info` shows, in order.
    pub fn status(&self) -> Result<Vec<(String, String)>> {
        let info = crate::store::info::info(&self.ctx)?;
        let pairs = [
            ("Backing Filesystem", info.backing_filesystem.clone()),
            ("Supports d_type", info.supports_d_type.to_string()),
            ("Native Overlay Diff", info.native_diff.to_string()),
            ("userxattr", info.userxattr.to_string()),
            ("Vellum", info.version.to_owned()),
            ("Vellum Driver", info.driver.clone()),
            ("Vellum Engine", self.ctx.config.engine.value.to_string()),
            ("Vellum Store", info.root.display().to_string()),
        ];
        Ok(pairs.map(|(name, value)| (name.to_owned(), value)).into())
    }

    fn store(&self) -> Result<&Store> {
        self.ctx.store()
    }

    fn session(&self) -> Option<Session> {
        let session = sync::read(&self.session);
        session.clone()
    }

    fn size_of(&self, creation: &Creation) -> Result<Option<u64>> {
        let mut size = None;
        for (name, value) in &creation.storage {
            match name.to_ascii_lowercase().as_str() {
                "size" if creation.read_write => size = Some(parse_limit(value)?),
                "size" => {
                    return Err(Error::Invalid {
                        what: "--storage-opt size is only supported for read-write layers".into(),
                        hint: None,
                    });
                }
                _ => {
                    return Err(Error::Invalid {
                        what: format!("unknown storage option `{name}`"),
                        hint: Some("Vellum's graph driver knows `size`".into()),
                    });
                }
            }
        }
        match (size, creation.read_write, self.session()) {
            (Some(size), _, _) => Ok(size),
            (None, true, Some(session)) => default_size(&session.options),
            _ => Ok(None),
        }
    }

    fn lock(&self, id: &str) -> Result<Lock> {
        run_dir::lock_container(&self.ctx, &lock_name(id))
    }

    /// Returns the record of `id`, whichever key it has.
    fn find(&self, id: &str) -> Result<Option<Info>> {
        let store = self.store()?;
        // The layer counts if both are there. It may be sealed between two lookups, and then the
        // third finds it.
        for key in [layer_key(id), writable_key(id), layer_key(id)] {
            match store.stat(&key) {
                Ok(info) => return Ok(Some(info)),
                Err(StoreError::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }

    fn get_info(&self, id: &str) -> Result<Info> {
        self.find(id)?.ok_or_else(|| Error::NotFound {
            kind: ObjectKind::Layer,
            name: id.to_owned(),
            meant: None,
        })
    }

    fn parts(&self, info: &Info) -> Result<TreeParts> {
        let store = self.store()?;
        let home = store.driver_home(info.driver);
        home::uncovered(&home, &home.join(info.tree.as_str()))?;
        Ok(store.tree(&info.key)?)
    }

    /// Makes `id` a layer permanently, so that others can have it as their parent.
    fn seal(&self, id: &str) -> Result<()> {
        check_id(id)?;
        let _lock = self.lock(id)?;
        let found = self.get_info(id)?;
        if found.kind == SnapshotKind::Committed {
            return Ok(());
        }
        self.release(id, &found)?;
        let commit = Commit {
            labels: found.labels.clone(),
            ..Commit::default()
        };
        self.store()?.commit(&layer_key(id), &found.key, commit)?;
        Ok(())
    }

    /// Returns the id of any layer, if there is one.
    fn any_layer(&self) -> Result<Option<String>> {
        let mut found = None;
        self.store()?.walk(&[], |info| {
            found = found.take().or_else(|| id_of(&info.key));
            Ok::<_, Error>(())
        })?;
        Ok(found)
    }
}

/// Far more than a daemon's options need.
const SESSION_MAX_BYTES: u64 = 1 << 20;

/// Reads what the daemon said.
fn read_session(root: &Path) -> Result<Option<Session>> {
    let path = root.join(SESSION_FILE);
    let bytes = match plain::read(&path, SESSION_MAX_BYTES, Links::InParents) {
        Ok(bytes) => bytes,
        Err(e) if e.is_not_found() => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    let damaged = |why: String| Error::Damaged {
        what: path.display().to_string(),
        why,
    };
    let session: Session = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
    if session.version > SESSION_VERSION {
        return Err(damaged(format!(
            "a newer Vellum wrote it (version {})",
            session.version
        )));
    }
    Ok(Some(session))
}

/// Returns the default size limit that the daemon's options ask for.
fn default_size(options: &[String]) -> Result<Option<u64>> {
    let mut size = None;
    for option in options {
        match option.split_once('=') {
            Some(("size" | "vellum.size", value)) => size = parse_limit(value)?,
            _ => {
                return Err(Error::Invalid {
                    what: format!("unknown storage option `{option}`"),
                    hint: Some("the only one is dockerd --storage-opt vellum.size=10G; everything else is in Vellum's own configuration".into()),
                });
            }
        }
    }
    Ok(size)
}

/// Zero means no limit.
fn parse_limit(text: &str) -> Result<Option<u64>> {
    match parse_size(text) {
        Ok(0) => Ok(None),
        Ok(bytes) => Ok(Some(bytes)),
        Err(why) => Err(Error::Invalid {
            what: format!("size `{text}`: {why}"),
            hint: None,
        }),
    }
}

/// Ids come from the daemon over a socket and name lock files: no part of them may act as a path.
fn check_id(id: &str) -> Result<()> {
    let odd = |c: char| c == '/' || c.is_control();
    if id.is_empty() || id.len() > MAX_ID_BYTES || id.contains(odd) {
        return Err(Error::Invalid {
            what: format!("{id:?} can't be a layer's id"),
            hint: None,
        });
    }
    Ok(())
}

/// Without their label, mounts would be unreadable to the container, or readable to others: so this
/// is an error.
fn check_label(id: &str, label: &str) -> Result<()> {
    if label.is_empty() {
        return Ok(());
    }
    Err(Error::Unsupported {
        what: format!(
            "layer {id} needs the SELinux label {label}, but Vellum's graph driver sets no labels"
        ),
        hint: "start dockerd without --selinux-enabled".into(),
    })
}

/// Returns the limit that Vellum's engine enforces on a tree.
fn kept_by_engine(info: &Info) -> Limit {
    Limit {
        size_bytes: info.labels.get(SIZE).and_then(|bytes| bytes.parse().ok()),
        inodes: None,
    }
}

fn has_child(id: &str, child: &SnapshotKey) -> Error {
    Error::InUse {
        kind: ObjectKind::Layer,
        name: id.to_owned(),
        by: format!(
            "layer {} has it as its parent",
            id_of(child).unwrap_or_else(|| child.to_string())
        ),
        hint: "remove that one first".into(),
    }
}

fn lock_name(id: &str) -> String {
    format!("docker-{id}")
}

fn layer_key(id: &str) -> SnapshotKey {
    SnapshotKey::from(format!("{LAYER}{id}"))
}

fn writable_key(id: &str) -> SnapshotKey {
    SnapshotKey::from(format!("{WRITABLE}{id}"))
}

/// Returns the id that a key was made from, if it is a graph driver's key.
fn id_of(key: &SnapshotKey) -> Option<String> {
    let text = std::str::from_utf8(key.as_bytes()).ok()?;
    let id = text
        .strip_prefix(LAYER)
        .or_else(|| text.strip_prefix(WRITABLE))?;
    Some(id.to_owned())
}

#[cfg(test)]
mod tests;
