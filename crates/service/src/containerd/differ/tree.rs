//! Reads mounts as the directories that they consist of.
//!
//! An overlay is its upper and its lowers, a bind mount is its source; options that only change how
//! the kernel shows them don't matter. A mount by our own engine is its layers too, if they are the
//! store's, which knows how to read them. Ids that the kernel maps are the host's in the upper and
//! in no other layer. A mount with data elsewhere is refused, because its directories are not the
//! whole tree. Paths are resolved once, here: the short names in mounts are symbolic links, and
//! only real names tell whether two trees are the same.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use vellum_format::{IdRun, Prefix, ids};
use vellum_store::{Shape, SnapshotKey, SnapshotKind, TreeParts};
use vellum_union::{Dialect, DirLayer, Layer, Stack};

use crate::containerd::snapshots::{MountEntry, mounts::ENGINE_TYPE};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::stack;

/// The parts of a mount. All paths are absolute and without symbolic links.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    /// Nothing: an empty tree.
    Empty,
    /// An overlay.
    Layers {
        /// The writable layer.
        upper: Option<PathBuf>,
        /// The others, top first.
        lowers: Vec<PathBuf>,
        /// The namespace of their marks.
        prefix: Prefix,
        /// The ids that the kernel maps.
        ids: Option<MappedIds>,
    },
    /// Layers under our own engine, top first; read like an overlay, with the store's knowledge of
    /// them.
    Engine {
        /// The directories.
        dirs: Vec<PathBuf>,
    },
    /// One directory, mounted as it is.
    Directory {
        /// The directory.
        dir: PathBuf,
        /// It is read-only.
        read_only: bool,
    },
}

/// Ids that the kernel maps between the layers and the users of the mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MappedIds {
    pub uids: Vec<IdRun>,
    pub gids: Vec<IdRun>,
}

/// Reads mounts. Errors: [`Error::Unsupported`] for anything but directories.
pub(super) fn shown(mounts: &[MountEntry]) -> Result<Shown> {
    let mount = match mounts {
        [] => return Ok(Shown::Empty),
        [mount] => mount,
        several => {
            return Err(unsupported(format!("{} mounts in one tree", several.len())));
        }
    };
    if !mount.target.is_empty() {
        return Err(unsupported(format!("a mount on {}", mount.target)));
    }
    let has = |option: &str| mount.options.iter().any(|o| o == option);
    match mount.kind.as_str() {
        "overlay" => overlay(mount),
        ENGINE_TYPE => engine(mount),
        "bind" => directory(&mount.source, has("ro")),
        "" | "none" if has("bind") || has("rbind") => directory(&mount.source, has("ro")),
        other => Err(unsupported(format!("a mount of type `{other}`"))),
    }
}

fn directory(source: &str, read_only: bool) -> Result<Shown> {
    Ok(Shown::Directory {
        dir: real(source)?,
        read_only,
    })
}

/// Options about ids don't matter: on disk they are the container's.
fn engine(mount: &MountEntry) -> Result<Shown> {
    let named = |name: &'static str| {
        let options = mount.options.iter();
        options.filter_map(move |option| option.strip_prefix(name)?.strip_prefix('='))
    };
    let dirs: Vec<PathBuf> = named("upperdir")
        .chain(named("lowerdir+"))
        .map(real)
        .collect::<Result<_>>()?;
    match dirs.is_empty() {
        true => Err(unsupported("a mount without layers".into())),
        false => Ok(Shown::Engine { dirs }),
    }
}

fn overlay(mount: &MountEntry) -> Result<Shown> {
    let mut mapped = [None, None];
    let mut upper = None;
    let mut lowers = Vec::new();
    let mut prefix = Prefix::Trusted;
    for option in &mount.options {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        match name {
            "upperdir" => upper = Some(real(value)?),
            "lowerdir+" => lowers.push(real(value)?),
            "lowerdir" => {
                if value.contains('\\') || value.contains("::") {
                    return Err(unsupported("escapes or data layers in `lowerdir`".into()));
                }
                for one in value.split(':').filter(|one| !one.is_empty()) {
                    lowers.push(real(one)?);
                }
            }
            "userxattr" => prefix = Prefix::User,
            "uidmap" => mapped[0] = ids::parse_list(value),
            "gidmap" => mapped[1] = ids::parse_list(value),
            "datadir+" => {
                return Err(unsupported(format!("an overlay with the option `{name}`")));
            }
            // It changes how the kernel shows the layers, not their content.
            _ => {}
        }
    }
    let is_mapped =
        |option: &String| option.starts_with("uidmap=") || option.starts_with("gidmap=");
    let ids = match mapped {
        [Some(uids), Some(gids)] => Some(MappedIds { uids, gids }),
        _ if mount.options.iter().any(is_mapped) => {
            return Err(unsupported(
                "an overlay with only one of two id mappings".into(),
            ));
        }
        _ => None,
    };
    match (&upper, lowers.as_slice()) {
        (None, []) => Err(unsupported("an overlay without layers".into())),
        _ => Ok(Shown::Layers {
            upper,
            lowers,
            prefix,
            ids,
        }),
    }
}

fn real(path: &str) -> Result<PathBuf> {
    if !path.starts_with('/') {
        return Err(unsupported(format!("the relative path `{path}`")));
    }
    std::fs::canonicalize(path).map_err(Error::io("find", path))
}

pub(super) fn unsupported(what: String) -> Error {
    Error::Unsupported {
        what: format!("this differ works on directories and overlays of them, not on {what}"),
        hint: "name containerd's own differ after this one: default = [\"vellum\", \"walking\"]"
            .into(),
    }
}

/// A snapshot of the store, found by one of its directories.
pub(super) struct Ours {
    pub key: SnapshotKey,
    pub parts: TreeParts,
}

/// Returns the store's snapshot that has `dir` as its own layer or tree. `None`: it is not in the
/// store.
///
/// Errors: [`Error::Unsupported`] if it is in the store but belongs to no snapshot.
pub(super) fn ours(ctx: &Context, dir: &Path) -> Result<Option<Ours>> {
    let store = ctx.store()?;
    let root = std::fs::canonicalize(store.root()).map_err(Error::io("find", store.root()))?;
    let Ok(inside) = dir.strip_prefix(&root) else {
        return Ok(None);
    };
    let found = store.snapshot_at(&store.root().join(inside))?;
    let Some(key) = found else {
        return Err(unsupported(format!(
            "{}, which is in the store but belongs to no snapshot",
            dir.display()
        )));
    };
    let parts = store.tree(&key)?;
    Ok(Some(Ours { key, parts }))
}

/// A readable tree, and its directories, top first.
pub(super) struct Readable {
    pub dirs: Vec<PathBuf>,
    /// `None`: the tree is empty.
    pub stack: Option<Stack>,
    /// Whether the top directory is the whole tree, a copy of the layer below it.
    pub whole: bool,
    /// The ids mapped in the top directory, which alone has the host's ids.
    pub ids: Option<MappedIds>,
}

/// Opens the mounts' tree for reading.
pub(super) fn readable(ctx: &Context, shown: &Shown) -> Result<Readable> {
    let (dirs, upper, prefix) = match shown {
        Shown::Empty => {
            return Ok(Readable {
                dirs: Vec::new(),
                stack: None,
                whole: false,
                ids: None,
            });
        }
        Shown::Directory { dir, .. } => (vec![dir.clone()], false, ctx.process.prefix()),
        Shown::Layers {
            upper,
            lowers,
            prefix,
            ..
        } => (
            upper.iter().chain(lowers).cloned().collect(),
            upper.is_some(),
            *prefix,
        ),
        Shown::Engine { dirs } => (dirs.clone(), false, ctx.process.prefix()),
    };
    let ids = match shown {
        Shown::Layers {
            upper: Some(_),
            ids,
            ..
        } => ids.clone(),
        _ => None,
    };
    if let Some(ours) = ours(ctx, &dirs[0])? {
        let known = ours.parts.layers();
        let known: Vec<PathBuf> = known
            .iter()
            .map(|layer| std::fs::canonicalize(&layer.dir).map_err(Error::io("find", &layer.dir)))
            .collect::<Result<_>>()?;
        // The record does not describe, for example, a writable snapshot whose upper is mounted
        // without the layers below it.
        if known == dirs {
            let whole = matches!(ours.parts.shape, Shape::Plain { .. });
            return Ok(Readable {
                dirs,
                stack: Some(stack::of_tree(ctx.process, &ours.parts)?),
                whole,
                ids,
            });
        }
    }
    if let Shown::Engine { .. } = shown {
        return Err(unsupported(
            "layers under an engine that are not in the store".into(),
        ));
    }
    let mut layers: Vec<Arc<dyn Layer>> = Vec::with_capacity(dirs.len());
    for (at, dir) in dirs.iter().enumerate() {
        // An overlay mount wrote the upper; the other layers were unpacked.
        let dialect = match (shown, at) {
            (Shown::Directory { .. }, _) => Dialect::plain(),
            (_, 0) if upper => Dialect::kernel(prefix),
            _ => Dialect::archive(prefix),
        };
        layers.push(Arc::new(DirLayer::open(dir, dialect)?));
    }
    Ok(Readable {
        stack: Some(Stack::new(layers)?),
        whole: matches!(shown, Shown::Directory { .. }),
        dirs,
        ids,
    })
}

/// Fails if the store's snapshot must not be written.
pub(super) fn writable(ours: &Ours) -> Result<()> {
    if ours.parts.kind == SnapshotKind::Active {
        return Ok(());
    }
    Err(Error::Invalid {
        what: format!(
            "snapshot {} is {} and must not be written",
            ours.key, ours.parts.kind
        ),
        hint: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(kind: &str, source: &str, options: &[&str]) -> MountEntry {
        MountEntry {
            kind: kind.into(),
            source: source.into(),
            options: options.iter().map(|&o| o.into()).collect(),
            ..MountEntry::default()
        }
    }

    #[test]
    fn mounts_are_read_as_directories() {
        let scratch = tempfile::tempdir().unwrap();
        let at = std::fs::canonicalize(scratch.path()).unwrap();
        for name in ["a", "b", "up"] {
            std::fs::create_dir(at.join(name)).unwrap();
        }
        std::os::unix::fs::symlink("b", at.join("short")).unwrap();
        let text = |name: &str| at.join(name).display().to_string();
        let lower = format!("lowerdir={}:{}", text("a"), text("short"));
        let upper = format!("upperdir={}", text("up"));
        assert_eq!(
            shown(&[mount("overlay", "overlay", &["index=off", &upper, &lower])]).unwrap(),
            Shown::Layers {
                upper: Some(at.join("up")),
                lowers: vec![at.join("a"), at.join("b")],
                prefix: Prefix::Trusted,
                ids: None,
            }
        );
        let mapped = &["uidmap=0:1:2", &upper, &lower, "gidmap=0:3:4,4:9:1"];
        let Shown::Layers { ids: Some(ids), .. } = shown(&[mount("overlay", "", mapped)]).unwrap()
        else {
            panic!("ids are mapped");
        };
        let inside = [2, 1].map(|id| ids::inside_of(&ids.uids, id));
        assert_eq!(
            (inside, ids::inside_of(&ids.gids, 9)),
            ([Some(1), Some(0)], Some(4))
        );
        assert_eq!(ids::inside_of(&ids.uids, 3), None);
        let lowers = [format!("lowerdir+={}", text("short")), "wh=plain".into()];
        let ours = [&lowers[0], &upper, &lowers[1]].map(String::as_str);
        assert_eq!(
            shown(&[mount("fuse3.vellum", "overlay", &ours)]).unwrap(),
            Shown::Engine {
                dirs: vec![at.join("up"), at.join("b")]
            }
        );
        assert_eq!(
            shown(&[mount("bind", &text("a"), &["ro", "rbind"])]).unwrap(),
            Shown::Directory {
                dir: at.join("a"),
                read_only: true
            }
        );
        assert_eq!(shown(&[]).unwrap(), Shown::Empty);
        let refused = [
            vec![mount("fuse3.vellum", "overlay", &["wh=plain"])],
            vec![mount("fuse3.fuse-overlayfs", "overlay", &[&upper, &lower])],
            vec![mount("overlay", "overlay", &["uidmap=0:1:2", &lower])],
            vec![mount("overlay", "overlay", &["lowerdir=relative"])],
            vec![mount("overlay", "overlay", &[])],
            vec![mount("erofs", &text("a"), &["loop"])],
            vec![
                mount("bind", &text("a"), &[]),
                mount("bind", &text("b"), &[]),
            ],
        ];
        for mounts in refused {
            let error = shown(&mounts).unwrap_err();
            assert!(matches!(error, Error::Unsupported { .. }), "{error:?}");
        }
    }
}
