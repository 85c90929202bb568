//! Adapts a layer that was filled before its parents were known to its parents.
//!
//! A tar may contain `etc/app/conf` without an entry for `etc`. If it is unpacked onto its parent,
//! the directory there shows through. If it is unpacked into an empty tree, the unpacker must make
//! one up, which hides the true owner and mode once the tree is on its parent. So each such
//! directory gets the attributes that the layers below show at its path; only the union decides
//! what those are. Which directories were made up is known for layers that were unpacked here
//! ([`settle_on`]), and guessed for those of another program ([`settle_foreign`]), which the store
//! calls at the commit.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vellum_format::{Mark, Opaque, Prefix};
use vellum_image::Applied;
use vellum_image::apply::{drop_whiteouts, hide_all};
use vellum_store::{LayerDir, StoreError};
use vellum_sys::{Dir, FileKind, Process, xattr};
use vellum_union::{Layer, Stack};

use crate::error::{Error, Result};
use crate::stack;

/// The directories that the layer needs but does not list, including the root; shallowest first.
pub(crate) fn implied(applied: &Applied) -> impl Iterator<Item = &Path> {
    let root = (!applied.root_listed).then_some(Path::new(""));
    root.into_iter()
        .chain(applied.implied_dirs.iter().map(PathBuf::as_path))
}

/// Adapts an overlay's layer to `below`, now that it is known: directories that the layer does not
/// list look as they do below, and it hides exactly what it should.
pub(crate) fn settle_on(
    process: Process,
    layer: &Dir,
    applied: &Applied,
    below: &[Arc<dyn Layer>],
) -> Result<()> {
    if !below.is_empty() {
        lend_attributes(layer, implied(applied), below)?;
    }
    if !applied.root_opaque {
        return drop_idle_whiteouts(layer, &applied.whiteout_dirs, below);
    }
    hide_names_of(below, layer, process.prefix(), &applied.whiteout_dirs)
}

/// Like [`settle_on`], for a layer that another program unpacked without its parents, since
/// `since_ns` nanoseconds after 1970: only its tree is known. `below` are its parents, nearest
/// first.
///
/// A directory counts as made up if it looks so: owned by root, 0755, without xattrs of its own,
/// and changed since the unpacking began (a listed directory has its entry's time, and no entry has
/// a time after its own unpacking). An opaque mark does not count as an xattr: a layer can empty a
/// directory that it does not list. A listed directory that looks made up gets the attributes of
/// the directory it replaces. See decision 0022.
///
/// A layer may also hide everything below it, by an opaque mark for its root. An overlay merges the
/// roots of all its layers, so the unpacker leaves the mark on the root, where it has no effect;
/// here it is replaced by marks that an overlay understands.
///
/// Reads every entry of the tree's directories. Can be repeated after a crash: a directory that has
/// got its attributes no longer looks made up, or gets the same ones again.
pub(crate) fn settle_foreign(
    root: &Path,
    below: &[LayerDir],
    since_ns: i64,
) -> Result<(), StoreError> {
    let failed = |error: Error| match error {
        Error::Sys(error) => StoreError::Sys(error),
        other => StoreError::Io {
            op: "apply its parents' attributes to",
            path: root.to_owned(),
            source: io::Error::other(other),
        },
    };
    // The store calls this and has no context.
    let process = Process::read();
    let settle = || -> Result<()> {
        let layer = Dir::open(root)?;
        let below = below.iter().map(|layer| stack::lower(process, layer));
        let below = below.collect::<Result<Vec<_>>>()?;
        for prefix in Prefix::ALL {
            let mark = prefix.xattr(Mark::Opaque);
            if xattr::get_fd(&layer, mark)?.is_some_and(|value| value == Opaque::Opaque.encode()) {
                hide_names_of(&below, &layer, prefix, &[])?;
                xattr::remove_fd(&layer, mark)?;
            }
        }
        let made_up = made_up(&layer, since_ns)?;
        lend_attributes(&layer, made_up.iter().map(PathBuf::as_path), &below)
    };
    settle().map_err(failed)
}

/// Hides, in the root of `layer`, the names in the roots of `below`.
fn hide_names_of(
    below: &[Arc<dyn Layer>],
    layer: &Dir,
    prefix: Prefix,
    whiteout_dirs: &[PathBuf],
) -> Result<()> {
    let names = match below {
        [] => Vec::new(),
        layers => {
            let stack = Stack::new(layers.to_vec())?;
            stack.names(&stack.root()?)?
        }
    };
    Ok(hide_all(layer, prefix, whiteout_dirs, names)?)
}

/// Returns the directories in `layer` that look made up, including the root.
fn made_up(layer: &Dir, since_ns: i64) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut waiting = vec![PathBuf::new()];
    while let Some(path) = waiting.pop() {
        let dir = match path.as_os_str().is_empty() {
            true => layer.dup()?,
            false => layer.open_dir(&path)?,
        };
        for entry in dir.entries()? {
            let entry = entry?;
            if entry.kind == FileKind::Dir {
                waiting.push(path.join(entry.name));
            }
        }
        if is_made_up(&dir, since_ns)? {
            found.push(path);
        }
    }
    Ok(found)
}

fn is_made_up(dir: &Dir, since_ns: i64) -> Result<bool> {
    let stat = dir.stat_self()?;
    let changed = i128::from(stat.mtime.sec) * 1_000_000_000 + i128::from(stat.mtime.nsec);
    if stat.mode != 0o755 || (stat.uid, stat.gid) != (0, 0) || changed < i128::from(since_ns) {
        return Ok(false);
    }
    Ok(xattr::list_fd(dir)?.iter().all(|name| {
        name.as_encoded_bytes().starts_with(b"security.selinux")
            || Prefix::ALL.iter().any(|prefix| prefix.is_control(name))
    }))
}

/// Gives each of `paths` in `layer` the owner, mode, times and attributes of the same directory in
/// `below`, if there is one.
fn lend_attributes<'a>(
    layer: &Dir,
    paths: impl Iterator<Item = &'a Path>,
    below: &[Arc<dyn Layer>],
) -> Result<()> {
    let mut whole = None;
    for path in paths {
        let root = path.as_os_str().is_empty();
        let node = if root {
            // Every layer has a root, and the topmost one's shows: asking all of them would take
            // quadratic time in a tall image.
            Some(Stack::new(below[..1].to_vec())?.root()?)
        } else {
            let stack = match whole.take() {
                Some(stack) => stack,
                None => Stack::new(below.to_vec())?,
            };
            whole.insert(stack).lookup(path)?
        };
        let Some(node) = node.filter(|node| node.is_dir()) else {
            continue;
        };
        let dir = if root {
            layer.dup()?
        } else {
            layer.open_dir(path)?
        };
        // As stored, not as shown: what could only be recorded below can't be set here either.
        let (stat, xattrs) = node.stored()?;
        vellum_sys::dress(&dir, &stat, xattrs)?;
    }
    Ok(())
}

/// Removes whiteouts from directories that the layers below do not have. They hide nothing there,
/// and in a directory that the kernel need not merge, it lists them as names that can't be looked
/// up.
fn drop_idle_whiteouts(layer: &Dir, paths: &[PathBuf], below: &[Arc<dyn Layer>]) -> Result<()> {
    if paths.is_empty() {
        return Ok(());
    }
    let below = match below {
        [] => None,
        layers => Some(Stack::new(layers.to_vec())?),
    };
    for path in paths {
        let merged = match &below {
            None => false,
            Some(_) if path.as_os_str().is_empty() => true,
            Some(stack) => stack.lookup(path)?.is_some_and(|node| node.is_dir()),
        };
        if !merged {
            drop_whiteouts(layer, path)?;
        }
    }
    Ok(())
}
