//! Live mounts that go on showing a layer as it was before its repair.
//!
//! The kernel's overlay sees new bytes in the same inode at once. Names that came or went, other
//! objects under the same name, whiteouts, opaque marks, and the mode, owner and capabilities of an
//! inode that it knows already count only for a mount made after the repair. Vellum's own engine
//! caches content too and has no way to be told, so for its mounts everything counts later.
//!
//! So such mounts are noted before a tree is changed, in the run directory, which lasts as long as
//! mounts do, and reported by every check of trees until they are gone. A mount is recognised by
//! its id that is never reused (Linux 6.8); before that by id, device and place, so one that was
//! made anew in between may be reported once too often. All mount namespaces are searched, as far
//! as this user may look.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vellum_image::verify::{Aspect, Difference};
use vellum_overlay::values::BytesPath;
use vellum_store::{Info, SnapshotKey, Store, TreeId};
use vellum_sys::epoch;
use vellum_sys::mountinfo::{self, FsOptions, Mount};
use vellum_sys::plain::{self, Links};
use vellum_sys::{Dir, with_causes};

use super::repair::Outcome;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::mount::place::ENGINE_TYPE;
use crate::{names, run_dir};

/// The name of the file in the run directory.
const FILE: &str = "stale-mounts.json";

/// Larger than any such file.
const FILE_BYTES: u64 = 64 << 20;

/// How many paths are kept for a mount: more are counted.
const KEPT_PATHS: usize = 100;

/// A mount that shows a layer as it was before a repair. On disk: fields are only added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Noted {
    mount: Identity,
    /// Where it is, as its namespace sees it.
    place: BytesPath,
    /// What it belongs to, for people.
    owner: String,
    /// Vellum's own engine serves it.
    engine: bool,
    /// The layer, for people.
    layer: String,
    /// Some of the paths that it shows as they were.
    paths: BTreeSet<String>,
    /// How many there are beyond these.
    more: usize,
}

/// Tells one mount from another until the next boot.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Identity {
    /// The id that is never reused; 0 if the kernel has none.
    unique: u64,
    id: u64,
    dev: (u32, u32),
    namespace: u64,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct File {
    boot: String,
    mounts: Vec<Noted>,
}

/// A mount that shows a layer now.
pub(super) struct Showing {
    mount: Identity,
    place: PathBuf,
    owner: String,
    engine: bool,
}

/// A mount that must be made anew, as findings tell it. The JSON field names are stable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StaleMount {
    /// Where it is mounted, as the processes in its mount namespace see it.
    #[serde(serialize_with = "crate::json::path")]
    pub mount: PathBuf,
    /// Its mount namespace's inode number.
    pub namespace: u64,
    /// Some of the repaired paths that it shows as they were.
    pub paths: Vec<String>,
}

/// Finds the mounts that show a layer.
pub(super) fn showing(ctx: &Context, store: &Store, layer: &Info) -> Result<Vec<Showing>> {
    let tree = store.tree(&layer.key)?;
    let layers = tree.layers();
    let mut words: Vec<Vec<u8>> = vec![layer.tree.as_str().as_bytes().to_vec()];
    let link = layers.first().and_then(|top| top.link.as_ref());
    words.extend(
        link.and_then(|link| link.file_name())
            .map(|name| name.as_bytes().to_vec()),
    );
    let owners = Owners::read(store, &layer.key)?;
    let mut found = Vec::new();
    let mut engine_devices: HashMap<(u32, u32), String> = HashMap::new();
    let mut seen: Vec<(Mount, Option<String>)> = Vec::new();
    let holders = mountinfo::find_holders(|mount, options| {
        let is_engine = mount.fs_type == ENGINE_TYPE && Path::new(&mount.source) == store.root();
        let wanted = is_engine || mount.fs_type == "overlay" && has_lower(options, &words);
        if wanted {
            let owner = owners.of(mount, options);
            if let (true, Some(owner)) = (is_engine, &owner) {
                engine_devices.insert(mount.dev, owner.clone());
            }
            seen.push((mount.clone(), owner));
        }
        wanted
    })?;
    for (holder, (mount, owner)) in holders.into_iter().zip(seen) {
        let engine = mount.fs_type == ENGINE_TYPE;
        let owner = owner.or_else(|| engine_devices.get(&mount.dev).cloned());
        if engine && owner.is_none() && owners.is_elsewhere(&mount) {
            continue;
        }
        let Some(unique) = unique_id(holder.pid, &mount.mount_point) else {
            // It is gone, or nobody can reach it.
            continue;
        };
        found.push(Showing {
            mount: Identity {
                unique,
                id: mount.id,
                dev: mount.dev,
                namespace: holder.namespace,
            },
            place: mount.mount_point,
            owner: owner.unwrap_or_else(|| "a mount of the store".to_owned()),
            engine,
        });
    }
    ctx.go_on()?;
    Ok(found)
}

fn has_lower(options: &FsOptions, words: &[Vec<u8>]) -> bool {
    let mut lowers = ["lowerdir+", "lowerdir"]
        .into_iter()
        .flat_map(|name| options.all(name));
    lowers.any(|value| {
        let mut parts = value.as_bytes().split(|byte| matches!(byte, b':' | b'/'));
        parts.any(|part| words.iter().any(|word| word == part))
    })
}

/// Returns the id of a mount that is never reused, 0 if the kernel has none; `None` if the mount is
/// not to be found.
fn unique_id(pid: u32, mount_point: &Path) -> Option<u64> {
    let root = Dir::open(Path::new(&format!("/proc/{pid}/root"))).ok()?;
    let below = mount_point.strip_prefix("/").ok()?;
    // Opened without asking the file system, which may hang.
    let below = match below.as_os_str().is_empty() {
        true => Path::new("."),
        false => below,
    };
    epoch::mount_id(root.open_path(below).ok()?).ok()
}

/// Who may have the layer mounted: the snapshots on it, by the names of their trees.
struct Owners {
    above: HashMap<TreeId, String>,
    others: BTreeSet<String>,
}

impl Owners {
    fn read(store: &Store, layer: &SnapshotKey) -> Result<Self> {
        let mut infos: HashMap<SnapshotKey, Info> = HashMap::new();
        store.walk(&[], |info| {
            infos.insert(info.key.clone(), info);
            Ok::<_, Error>(())
        })?;
        let containers: HashMap<SnapshotKey, String> = store
            .containers()?
            .into_iter()
            .map(|container| (container.snapshot, container.name))
            .collect();
        let mut owners = Self {
            above: HashMap::new(),
            others: BTreeSet::new(),
        };
        for info in infos.values() {
            let mut at = Some(info);
            let mut steps = 0;
            while let Some(here) = at.filter(|here| here.key != *layer && steps <= infos.len()) {
                at = here.parent.as_ref().and_then(|parent| infos.get(parent));
                steps += 1;
            }
            if at.is_some_and(|at| at.key == *layer) {
                let name = match containers.get(&info.key) {
                    Some(name) => format!("container {name}"),
                    None => format!("snapshot {}", names::short_key(&info.key.to_string())),
                };
                owners.above.insert(info.tree.clone(), name);
            } else {
                owners.others.insert(info.tree.to_string());
            }
        }
        Ok(owners)
    }

    /// Returns whose mount it is, by a tree that it names.
    fn of(&self, mount: &Mount, options: &FsOptions) -> Option<String> {
        let upper = options.get("upperdir").map(PathBuf::from);
        let places = [upper.as_deref(), Some(&*mount.mount_point)];
        for place in places.into_iter().flatten() {
            for part in place.iter().filter_map(|part| part.to_str()) {
                let tree = TreeId::try_from(part.to_owned()).ok();
                if let Some(owner) = tree.and_then(|tree| self.above.get(&tree)) {
                    return Some(owner.clone());
                }
            }
        }
        None
    }

    /// Whether a mount is that of a snapshot that doesn't have the layer.
    fn is_elsewhere(&self, mount: &Mount) -> bool {
        let mut parts = mount.mount_point.iter().filter_map(|part| part.to_str());
        parts.any(|part| self.others.contains(part))
    }
}

/// Whether a difference, once repaired, counts for a living kernel mount only when that is made
/// anew.
fn counts_later(difference: &Difference) -> bool {
    match &difference.aspect {
        Aspect::Content | Aspect::Size | Aspect::Time | Aspect::Digest => false,
        Aspect::Xattr(name) => !name.as_encoded_bytes().starts_with(b"user."),
        _ => true,
    }
}

/// What was noted at a moment.
pub(super) struct Noticed(Vec<Noted>);

/// The mounts that must be made anew.
pub(super) struct Stale {
    file: File,
    path: PathBuf,
}

impl Stale {
    /// Reads what was noted, without what is gone.
    pub fn read(ctx: &Context) -> Result<Self> {
        let path = ctx.run_dir().join(FILE);
        let boot = hex::encode(epoch::boot_id()?);
        let me = rustix::process::geteuid().as_raw();
        // Another user's directory says nothing.
        let own = fs::symlink_metadata(ctx.run_dir()).is_ok_and(|found| found.uid() == me);
        let mut file = match plain::read(&path, FILE_BYTES, Links::InParents) {
            Ok(bytes) if own => serde_json::from_slice(&bytes).unwrap_or_default(),
            _ => File::default(),
        };
        if file.boot != boot {
            file = File {
                boot,
                mounts: Vec::new(),
            };
        }
        if !file.mounts.is_empty() {
            let living = living()?;
            file.mounts.retain(|noted| living.contains(&noted.mount));
        }
        Ok(Self { file, path })
    }

    /// Notes, before a layer is changed, which mounts will show it as it was. Returns what was
    /// noted before.
    pub fn note(
        &mut self,
        ctx: &Context,
        showing: &[Showing],
        layer: &str,
        differences: &[Difference],
    ) -> Result<Noticed> {
        let before = Noticed(self.file.mounts.clone());
        for mount in showing {
            let later = |d: &&Difference| mount.engine || counts_later(d);
            let paths = differences.iter().filter(later).map(shown);
            self.add(mount, layer, paths.collect());
        }
        if self.file.mounts != before.0 {
            self.write(ctx)?;
        }
        Ok(before)
    }

    /// Corrects the note when it is known what was repaired.
    pub fn correct(
        &mut self,
        ctx: &Context,
        showing: &[Showing],
        layer: &str,
        outcomes: &[(Difference, Outcome)],
        replaced: &BTreeSet<PathBuf>,
        before: Noticed,
    ) -> Result<()> {
        let noted = std::mem::replace(&mut self.file.mounts, before.0);
        for mount in showing {
            let mut paths = BTreeSet::new();
            for (difference, outcome) in outcomes {
                let later =
                    mount.engine || counts_later(difference) || replaced.contains(&difference.path);
                if later && outcome.repaired {
                    paths.insert(shown(difference));
                }
            }
            self.add(mount, layer, paths);
        }
        match self.file.mounts == noted {
            true => Ok(()),
            false => self.write(ctx),
        }
    }

    fn add(&mut self, mount: &Showing, layer: &str, mut paths: BTreeSet<String>) {
        if paths.is_empty() {
            return;
        }
        let mut more = 0;
        let same = |noted: &&mut Noted| noted.mount == mount.mount && noted.layer == layer;
        if let Some(noted) = self.file.mounts.iter_mut().find(same) {
            paths.append(&mut noted.paths);
            more = noted.more;
        }
        while paths.len() > KEPT_PATHS && paths.pop_last().is_some() {
            more += 1;
        }
        self.file
            .mounts
            .retain(|noted| noted.mount != mount.mount || noted.layer != layer);
        self.file.mounts.push(Noted {
            mount: mount.mount.clone(),
            place: BytesPath(mount.place.clone()),
            owner: mount.owner.clone(),
            engine: mount.engine,
            layer: layer.to_owned(),
            paths,
            more,
        });
    }

    /// Writes it down, so that a repair that is killed doesn't hide what it has done.
    fn write(&self, ctx: &Context) -> Result<()> {
        run_dir::make(ctx, "")?;
        let text = serde_json::to_vec(&self.file).map_err(|error| Error::Damaged {
            what: FILE.to_owned(),
            why: with_causes(&error),
        })?;
        let (dir, name) = plain::place("write", &self.path, Links::InParents)?;
        Ok(vellum_sys::publish::write_file_atomic(
            &dir, name, &text, 0o600,
        )?)
    }

    /// Returns what is to be reported: a text of what and why, and the same in parts.
    pub fn findings(&self) -> Vec<(String, String, StaleMount)> {
        // Mounts of one device are one overlay at several places, or in several namespaces.
        let mut by_mount: BTreeMap<(u32, u32), Vec<&Noted>> = BTreeMap::new();
        for noted in &self.file.mounts {
            by_mount.entry(noted.mount.dev).or_default().push(noted);
        }
        let tell = |all: Vec<&Noted>| {
            let first = all.first()?;
            let paths: BTreeSet<&String> = all.iter().flat_map(|noted| &noted.paths).collect();
            let count = paths.len() + all.iter().map(|noted| noted.more).sum::<usize>();
            let example = paths.first()?;
            let others = match count {
                1 => String::new(),
                more => format!(" and {} more", more - 1),
            };
            let places: BTreeSet<&Identity> = all.iter().map(|noted| &noted.mount).collect();
            let place = first.place.0.display();
            let elsewhere = match places.len() {
                1 => String::new(),
                places => format!(" and {} more places or namespaces", places - 1),
            };
            let by = match first.engine {
                true => " (by Vellum's engine)",
                false => "",
            };
            let what = format!("{}, mounted at {place}{elsewhere}{by}", first.owner);
            let why = format!(
                "shows {example}{others} as before the repair, until it is unmounted and mounted again"
            );
            let mount = StaleMount {
                mount: first.place.0.clone(),
                namespace: first.mount.namespace,
                paths: paths.into_iter().cloned().collect(),
            };
            Some((what, why, mount))
        };
        by_mount.into_values().filter_map(tell).collect()
    }
}

fn shown(difference: &Difference) -> String {
    super::trees::path_text(&difference.path)
}

/// Returns every mount of a kind that may have been noted.
fn living() -> Result<BTreeSet<Identity>> {
    let mut mounts = Vec::new();
    let holders = mountinfo::find_holders(|mount, _| {
        let wanted = mount.fs_type == ENGINE_TYPE || mount.fs_type == "overlay";
        if wanted {
            mounts.push(mount.clone());
        }
        wanted
    })?;
    let mut living = BTreeSet::new();
    for (holder, mount) in holders.into_iter().zip(mounts) {
        if let Some(unique) = unique_id(holder.pid, &mount.mount_point) {
            living.insert(Identity {
                unique,
                id: mount.id,
                dev: mount.dev,
                namespace: holder.namespace,
            });
        }
    }
    Ok(living)
}
