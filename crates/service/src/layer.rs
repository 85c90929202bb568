//! `layer merge`, `squash` and `convert`: turn layers into other layers, keeping everything that
//! users can see.
//!
//! All three write a new tree next to its final place and publish it in one step. So after a crash
//! there is the old layer or the new one, and perhaps a staged tree that the next run removes. The
//! new layer has only whiteouts and opaque directories: renamed files and data kept elsewhere are
//! written out, so every reader of its dialect understands it.
//!
//! A layer that is mounted anywhere, by the kernel or by Vellum, is refused: its users would see a
//! mix of both.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde::Serialize;
use vellum_format::workdir::incompat;
use vellum_format::{Mark, Prefix, wh, workdir};
use vellum_image::apply::{ApplyTarget, TargetMarks, apply};
use vellum_image::{LayerStream, Limits};
use vellum_overlay::layers::MarkRecords;
use vellum_sys::lock::{Lock, Sharing};
use vellum_sys::rooted::{self, RenameFlags};
use vellum_sys::{Cancel, Dir, FileKind, Process, mountinfo, publish, sync, xattr};
use vellum_union::{
    BlockMaps, Change, Dialect, DirLayer, Form, Layer, LayerTrust, Records, Stack, WhNames,
    changes, folded,
};

use crate::error::{Error, Result};
use crate::stack;

pub mod layer_tar;
pub mod look;
pub(crate) mod on_parents;
pub mod settle;

/// The form of marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marks {
    /// The kernel's: devices 0:0, and xattrs with this prefix.
    Kernel(Prefix),
    /// `.wh.` files.
    WhNames,
    /// None: there is nothing below, so nothing to hide.
    Whole,
}

/// How layers are read and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct How {
    /// The prefix of the marks that are read; `None`: for each layer the one that its work
    /// directory records, or else the one that this process's mounts write.
    pub read: Option<Prefix>,
    /// The form of the result's marks.
    pub write: Marks,
    /// The process that writes them.
    pub process: Process,
}

impl How {
    /// Returns what suits the process: marks as its mounts read and write them.
    pub fn usual(process: Process) -> How {
        let prefix = process.prefix();
        How {
            read: None,
            write: Marks::Kernel(prefix),
            process,
        }
    }
}

/// The result. The JSON field names are stable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Made {
    /// The new layer.
    #[serde(serialize_with = "crate::json::path")]
    pub layer: PathBuf,
    /// The number of names in it, hidden ones included.
    pub entries: u64,
    /// Sockets, which a layer can't have.
    #[serde(serialize_with = "crate::json::paths")]
    pub left_out: Vec<PathBuf>,
}

/// An upper directory, and the work directory that knows more about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// The layer.
    pub dir: PathBuf,
    /// Its work directory, if it was an upper and has one.
    pub work: Option<PathBuf>,
}

/// Folds `upper` into `lower`: afterwards `lower` shows what both together showed, and `upper` is
/// no longer needed.
///
/// `below` are the layers under `lower`, top first; if they are given, whiteouts that hide nothing
/// are left out. `lower` is replaced in one step. Errors: [`Error::InUse`] if one of them is
/// mounted.
pub fn merge(
    upper: &Input,
    lower: &Path,
    below: &[PathBuf],
    how: How,
    cancel: &Cancel,
) -> Result<Made> {
    let lower = real(lower)?;
    let layers = [
        upper.clone(),
        Input {
            dir: lower.clone(),
            work: None,
        },
    ];
    let _locks = lock(&layers)?;
    let union = open(&layers, how)?;
    write(
        &union,
        Content::Folded(below_stack(below, how)?),
        &lower,
        Publish::Replace,
        how,
        cancel,
    )
}

/// Creates `output` from `layers`, top first: one layer that shows what they show. They stay
/// unchanged. `below` as for [`merge`].
pub fn squash(
    layers: &[Input],
    below: &[PathBuf],
    output: &Path,
    how: How,
    cancel: &Cancel,
) -> Result<Made> {
    let _locks = lock(layers)?;
    let union = open(layers, how)?;
    write(
        &union,
        Content::Folded(below_stack(below, how)?),
        output,
        Publish::New,
        how,
        cancel,
    )
}

/// Rewrites `layer` with other marks: to `output`, or in its own place. Renamed directories and
/// data kept elsewhere are looked up in `below`.
pub fn convert(
    layer: &Input,
    below: &[PathBuf],
    output: Option<&Path>,
    how: How,
    cancel: &Cancel,
) -> Result<Made> {
    let below = below.iter().map(|dir| Input {
        dir: dir.clone(),
        work: None,
    });
    let layers: Vec<Input> = std::iter::once(layer.clone()).chain(below).collect();
    let _locks = lock(&layers[..1])?;
    let union = open(&layers, how)?;
    let content = match layers.len() {
        1 => Content::Folded(None),
        _ => Content::TopLayer,
    };
    match output {
        Some(output) => write(&union, content, output, Publish::New, how, cancel),
        None => {
            let place = real(&layer.dir)?;
            // The work directory describes the old tree: nothing may be mounted in between.
            let work = layer.work.as_deref().map(Dir::open).transpose()?;
            if let Some(work) = &work {
                work.create_dir_all(Path::new(incompat::PATH).join(incompat::CONVERTING), 0o700)?;
            }
            let made = write(&union, content, &place, Publish::Replace, how, cancel)?;
            if let Some(work) = &work {
                forget_upper(work)?;
            }
            Ok(made)
        }
    }
}

/// Removes what a work directory knows about a replaced upper: the index of hard links, the maps of
/// partly copied files, marks that keep the kernel out.
fn forget_upper(work: &Dir) -> Result<()> {
    for name in [workdir::INDEX, workdir::OWN] {
        if work.stat_opt(name)?.is_some() {
            work.remove_tree(name)?;
        }
    }
    if let Ok(staging) = work.open_dir(workdir::STAGING)
        && staging.stat_opt(incompat::NAME)?.is_some()
    {
        staging.remove_tree(incompat::NAME)?;
    }
    Ok(publish::sync_fs(work)?)
}

fn real(path: &Path) -> Result<PathBuf> {
    std::fs::canonicalize(path).map_err(Error::io("find", path))
}

/// Locks the layers for this process alone. Fails with the user of one that is taken.
fn lock(layers: &[Input]) -> Result<Vec<Lock>> {
    layers
        .iter()
        .map(|input| {
            let path = real(&input.dir)?;
            let in_use = |by: String| Error::Unsupported {
                what: format!("the layer {} is mounted: {by}", path.display()),
                hint: "unmount it first: its users would see a mix of the old and the new layer"
                    .into(),
            };
            let names = |m: &mountinfo::Mount, options: &mountinfo::FsOptions| {
                let dirs = ["upperdir", "lowerdir", "lowerdir+", "datadir+"];
                m.fs_type == "overlay"
                    && dirs.iter().flat_map(|name| options.all(name)).any(|value| {
                        value
                            .as_bytes()
                            .split(|&b| b == b':')
                            .any(|one| one == path.as_os_str().as_bytes())
                    })
            };
            if let Some(holder) = mountinfo::find_holders(names)?.first() {
                return Err(in_use(holder.to_string()));
            }
            let dir = Dir::open(&path)?;
            match Lock::try_now(dir.dup()?, Sharing::Exclusive)? {
                Some(lock) => Ok(lock),
                None => Err(in_use("Vellum's engine uses it".into())),
            }
        })
        .collect()
}

/// Returns the layers below as one stack; `None` if none are given.
fn below_stack(below: &[PathBuf], how: How) -> Result<Option<Stack>> {
    let layers: Vec<Input> = below
        .iter()
        .map(|dir| Input {
            dir: dir.clone(),
            work: None,
        })
        .collect();
    match layers.is_empty() {
        true => Ok(None),
        false => open(&layers, how).map(Some),
    }
}

fn open(layers: &[Input], how: How) -> Result<Stack> {
    let mut records = MarkRecords::default();
    let layers = layers
        .iter()
        .map(|input| -> Result<Arc<dyn Layer>> {
            let prefix = prefix_of(input, how, &mut records)?;
            let dialect = Dialect {
                prefix: Some(prefix),
                wh_names: WhNames::Whiteouts,
                records: match prefix {
                    Prefix::Trusted => Records::None,
                    Prefix::User => Records::Read,
                },
                // A layer named on the command line is under the caller's control, so its marks are
                // trusted.
                trust: LayerTrust::Engine,
            };
            let maps = input
                .work
                .as_deref()
                .map(BlockMaps::open)
                .transpose()?
                .flatten();
            let layer = DirLayer::open(&input.dir, dialect)?.with_block_maps(maps.map(Arc::new));
            Ok(Arc::new(layer))
        })
        .collect::<Result<_>>()?;
    Ok(Stack::new(layers)?)
}

/// Returns the namespace in which a layer's marks are read.
///
/// A mark in the other one would be no mark: what was renamed would be empty, and a file whose data
/// is below would be all zeros, without an error.
fn prefix_of(input: &Input, how: How, records: &mut MarkRecords) -> Result<Prefix> {
    if let Some(asked) = how.read {
        return Ok(asked);
    }
    let usual = how.process.prefix();
    let recorded = records.find(&input.dir, input.work.as_deref())?;
    let layer = input.dir.display();
    match recorded.map(|recorded| (recorded.prefix, recorded.believed)) {
        Some((Prefix::Trusted, _)) if !how.process.is_root() => Err(Error::Unsupported {
            what: format!(
                "the layer {layer} has marks in trusted.overlay.*, which only root can read"
            ),
            hint: "run the command as root outside a user namespace".into(),
        }),
        Some((prefix, true)) => Ok(prefix),
        Some((prefix, false)) if prefix != usual => Err(Error::Unsupported {
            what: format!("the layer {layer} is another user's, with marks in user.overlay.*"),
            hint: "to follow that user's marks, give --userxattr".into(),
        }),
        _ => Ok(usual),
    }
}

/// What is written.
enum Content {
    /// All layers, as one; with the layers below them, if known: only their files have to be
    /// hidden.
    Folded(Option<Stack>),
    /// The top layer; the others are only read.
    TopLayer,
}

/// How the new layer is published.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Publish {
    /// Under a new name.
    New,
    /// In place of the existing layer.
    Replace,
}

fn write(
    union: &Stack,
    content: Content,
    target: &Path,
    publish_as: Publish,
    how: How,
    cancel: &Cancel,
) -> Result<Made> {
    let invalid = |what: String| Error::Invalid { what, hint: None };
    let (Some(above), Some(name)) = (target.parent(), target.file_name()) else {
        return Err(invalid(format!("{} can't be replaced", target.display())));
    };
    let above = Dir::open(if above.as_os_str().is_empty() {
        Path::new(".")
    } else {
        above
    })?;
    if publish_as == Publish::New && above.stat_opt(name)?.is_some() {
        return Err(invalid(format!(
            "{} already exists: name a new directory",
            target.display()
        )));
    }
    let mut staged = OsString::from(".vellum-staged.");
    staged.push(name);
    // Left by a run that died: two runs at a time are prevented by the layer's lock, or by the
    // taken name.
    if above.stat_opt(&staged)?.is_some() {
        above.remove_tree(&staged)?;
    }
    above.mkdir(&staged, 0o700)?;
    let root = above.open_dir(&staged)?;
    let done = fill(union, content, &root, target, how, cancel).and_then(|(entries, left_out)| {
        publish::sync_fs(&root)?;
        match publish_as {
            Publish::New => above.rename(&staged, &above, name, RenameFlags::NOREPLACE)?,
            Publish::Replace => above.rename(&staged, &above, name, RenameFlags::EXCHANGE)?,
        }
        publish::sync_dir(&above)?;
        Ok(Made {
            layer: target.to_owned(),
            entries,
            left_out,
        })
    });
    // The old layer, or an unfinished one. If it can't be removed, it disturbs nothing, and the
    // next run tries again.
    if above.stat_opt(&staged).is_ok_and(|found| found.is_some())
        && let Err(error) = above.remove_tree(&staged)
    {
        tracing::warn!(%error, "a staged layer stays");
    }
    done
}

/// Writes the content into the empty tree `root`. Returns the number of entries, and those that
/// could not be written.
fn fill(
    union: &Stack,
    content: Content,
    root: &Dir,
    target: &Path,
    how: How,
    cancel: &Cancel,
) -> Result<(u64, Vec<PathBuf>)> {
    let prefix = match how.write {
        Marks::Kernel(prefix) => prefix,
        Marks::WhNames | Marks::Whole => how.read.unwrap_or_else(|| how.process.prefix()),
    };
    let seen: Arc<Mutex<(u64, Vec<PathBuf>)>> = Arc::default();
    let entries: Box<dyn Iterator<Item = vellum_union::Result<Change>> + Send> = match content {
        Content::Folded(None) => Box::new(folded(union)),
        Content::Folded(Some(below)) => {
            Box::new(folded(union).filter_map(move |change| match change {
                Ok(change) if change.node.is_none() => match below.lookup(&change.path) {
                    Ok(None) => None,
                    Ok(Some(_)) => Some(Ok(change)),
                    Err(error) => Some(Err(error)),
                },
                change => Some(change),
            }))
        }
        Content::TopLayer => Box::new(changes(union, Form::Layer)?),
    };
    let counted = {
        let seen = Arc::clone(&seen);
        let whole = how.write == Marks::Whole;
        entries
            .inspect(move |change| {
                let Ok(change) = change else { return };
                let mut seen = sync::lock(&seen);
                match &change.node {
                    Some(node) if node.kind() == FileKind::Socket => {
                        seen.1.push(change.path.clone())
                    }
                    _ => seen.0 += 1,
                }
            })
            .filter(move |change| {
                !(whole && change.as_ref().is_ok_and(|change| change.node.is_none()))
            })
            .map(move |change| {
                change.map(|change| Change {
                    opaque: change.opaque && !whole,
                    ..change
                })
            })
    };
    let stop = cancel.clone();
    let tar = layer_tar::piped(move |out| layer_tar::write_changes(counted, out, &stop).map(drop))?;
    let limits = Limits::default();
    let stream = LayerStream::open(Box::new(tar), &limits, cancel)?;
    let privilege = stack::privilege(how.process);
    let apply_to = ApplyTarget {
        root: root.dup()?,
        marks: match how.write {
            Marks::Whole => TargetMarks::Whole(prefix),
            Marks::Kernel(_) | Marks::WhNames => TargetMarks::Overlay(prefix),
        },
        privilege,
        donor: None,
    };
    let left_out = apply(stream, &apply_to, None, &limits, cancel)?.left_out;
    if left_out.count > 0 {
        // The layers exist on this machine, so their files can too, but not on every file system.
        return Err(Error::Invalid {
            what: format!("{} can't store {left_out}", target.display()),
            hint: Some("create it on the layers' file system".into()),
        });
    }
    let (stat, xattrs) = union.root()?.stored()?;
    vellum_sys::dress(root, &stat, xattrs)?;
    if how.write == Marks::WhNames {
        spell_by_names(root, prefix).map_err(|e| match e.is_exists() {
            true => Error::Invalid {
                what: format!(
                    "{} has names that begin with .wh., which would become marks",
                    target.display()
                ),
                hint: Some("rename them, or choose other marks".into()),
            },
            false => e.into(),
        })?;
    }
    let seen = sync::lock(&seen);
    Ok(seen.clone())
}

/// Replaces the kernel's marks in a tree by names: `.wh.x` for a device 0:0 called x,
/// `.wh..wh..opq` in an opaque directory.
fn spell_by_names(root: &Dir, prefix: Prefix) -> vellum_sys::Result<()> {
    let mut waiting = vec![PathBuf::new()];
    while let Some(path) = waiting.pop() {
        let dir = match path.as_os_str().is_empty() {
            true => root.dup()?,
            false => root.open_dir(&path)?,
        };
        let mtime = dir.stat_self()?.mtime;
        let opaque = prefix.xattr(Mark::Opaque);
        if xattr::get_fd(&dir, opaque)?.is_some() {
            dir.create_file(OsStr::new(wh::OPAQUE), 0o600)?;
            xattr::remove_fd(&dir, opaque)?;
        }
        let entries = dir.entries()?.collect::<vellum_sys::Result<Vec<_>>>()?;
        for entry in entries {
            match entry.kind {
                FileKind::Dir => waiting.push(path.join(&entry.name)),
                FileKind::Char if dir.stat(&entry.name)?.is_null_device() => {
                    if let Some(hiding) = wh::whiteout(&entry.name) {
                        dir.create_file(&hiding, 0o600)?;
                        dir.unlink(&entry.name)?;
                    }
                }
                _ => {}
            }
        }
        rooted::set_times_fd(&dir, None, Some(mtime))?;
    }
    Ok(())
}
