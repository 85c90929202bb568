//! A layer that was filled before its parents were known, and what it becomes on them.
//!
//! A tar may hold `etc/app/conf` and no entry for `etc`. Unpacked onto its parent the directory
//! there shows through; unpacked into an empty tree whoever unpacks has to make one up, and once
//! the tree lies on its parent that one hides the true owner and mode. So each such directory gets
//! what the layers below show under its path, and the union says what that is: the merge is its
//! business alone. Which directories those are is known of what was unpacked here ([`settle_on`]),
//! and guessed of what another program unpacked ([`settle_foreign`]), which the store calls at the
//! commit.

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

/// The directories that the layer needs and does not list, the root included; shallowest first.
pub(crate) fn implied(applied: &Applied) -> impl Iterator<Item = &Path> {
    let root = (!applied.root_listed).then_some(Path::new(""));
    root.into_iter()
        .chain(applied.implied_dirs.iter().map(PathBuf::as_path))
}

/// Makes an overlay's layer what it is on `below`, now that this is known: directories that it does
/// not list look as there, and what it hides is hidden, and nothing else.
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

/// As [`settle_on`], for a layer that somebody else unpacked, since `since_ns` nanoseconds after
/// 1970, without its parents: what is known of it is what its tree shows. `below` are its parents,
/// nearest first.
///
/// Made up is a directory that looks so: root's, 0755, without attributes of its own, and changed
/// since the unpacking began (a listed directory has the time its entry says, and nothing is listed
/// with a time after its own unpacking). An opaque mark is not such an attribute: a layer can empty
/// a directory that it does not list. One that was listed and looks so all the same gets the
/// attributes of the directory it replaces. See decision 0022.
///
/// A layer may also hide everything below it, by an opaque mark for its root. An overlay merges the
/// roots of all its layers, so whoever unpacks leaves the mark on the root, where it says nothing,
/// and here it becomes what an overlay understands.
///
/// Reads every entry of the tree's directories. Can be repeated after a crash: what has got its
/// attributes looks made up no more, or is the same again.
pub(crate) fn settle_foreign(
    root: &Path,
    below: &[LayerDir],
    since_ns: i64,
) -> Result<(), StoreError> {
    let failed = |error: Error| match error {
        Error::Sys(error) => StoreError::Sys(error),
        other => StoreError::Io {
            op: "settle on its parents",
            path: root.to_owned(),
            source: io::Error::other(other),
        },
    };
    // The store calls this and knows of no context.
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

/// Hides, in the root of `layer`, what `below` show in theirs.
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

/// The directories in `layer` that look made up, the root included.
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
/// `below`, where there is one.
fn lend_attributes<'a>(
    layer: &Dir,
    paths: impl Iterator<Item = &'a Path>,
    below: &[Arc<dyn Layer>],
) -> Result<()> {
    let mut whole = None;
    for path in paths {
        let root = path.as_os_str().is_empty();
        let node = if root {
            // Every layer has a root, and the topmost one's shows: in a tall image asking them all
            // would cost its square.
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
        // As stored, not as shown: what could not be set below and is recorded there can't be set
        // here either.
        let (stat, xattrs) = node.stored()?;
        vellum_sys::dress(&dir, &stat, xattrs)?;
    }
    Ok(())
}

/// Takes whiteouts out of directories that the layers below do not have. They hide nothing there,
/// and in a directory that it need not merge the kernel lists them as names that can't be looked
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
