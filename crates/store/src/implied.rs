//! Directories that a layer passes through without listing them, in a tree that was filled before its parent was known.
//!
//! A tar may hold `etc/app/conf` and no entry for `etc`. Unpacked onto its parent the directory there shows through; unpacked into an empty tree
//! whoever unpacks has to make one up, as root's with mode 0755, and once the tree lies on its parent that one hides the true owner and mode. So when
//! the parent is told, each made-up directory gets what the nearest layer below has under its path.
//!
//! Made up is what looks so: root's, 0755, without attributes of its own, and changed since the unpacking began (a listed directory has the time
//! its entry says, and nothing is listed with a time after its own unpacking). An opaque mark is not such an attribute: a layer can empty a directory that
//! it does not list. A directory that was listed and looks so all the same would get the attributes of the directory it replaces.
//!
//! A layer may also hide everything below it, by an opaque mark for its root. An overlay merges the roots of all its layers, so whoever unpacks leaves
//! the mark on the root, where it says nothing, and here it becomes what an overlay understands.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use vellum_format::{Mark, Prefix, WHITEOUT_RDEV};
use vellum_sys::xattr::SetMode;
use vellum_sys::{Dir, FileKind, Stat, rooted, xattr};

use crate::{
    clone::copy_attributes,
    error::Result,
    layout,
    walk::{self, Visitor},
};

/// Gives every made-up directory under `root`, itself included, the attributes of the directory below it in `parents` (nearest first).
///
/// Reads every entry of the tree's directories. Can be repeated after a crash: what has got its attributes looks made up no more, or is the same again.
pub(crate) fn merge(root: &Path, parents: &[PathBuf], since_ns: i64) -> Result<()> {
    let top = layout::dir(root)?;
    let lowers: Vec<Dir> = parents
        .iter()
        .map(|dir| layout::dir(dir))
        .collect::<Result<_>>()?;
    hide_all(&top, &lowers)?;
    let mut found = Found {
        since_ns,
        below: PathBuf::new(),
        made_up: Vec::new(),
    };
    if is_made_up(&top, &top.stat_self()?, since_ns)? {
        found.made_up.push(PathBuf::new());
    }
    walk::walk(top.dup()?, &mut found)?;
    // Children first: giving a directory its time must come after all changes in it.
    for path in found.made_up.iter().rev() {
        let here = match path.as_os_str().is_empty() {
            true => top.dup()?,
            false => top.open_dir(path)?,
        };
        if let Some(model) = model(&lowers, path)? {
            copy_attributes(&model, &here)?;
        }
    }
    Ok(())
}

/// Hides what `lowers` have in their roots, if the root is marked opaque, and takes the mark away.
fn hide_all(root: &Dir, lowers: &[Dir]) -> Result<()> {
    for prefix in Prefix::ALL {
        let mark = prefix.xattr(Mark::Opaque);
        if xattr::get_fd(root, mark)?.is_none_or(|value| value != b"y") {
            continue;
        }
        let time = root.stat_self()?.mtime;
        for lower in lowers {
            for entry in lower.entries()? {
                let name = entry?.name;
                match root.stat_opt(&name)? {
                    None => root.mknod(&name, FileKind::Char, 0, WHITEOUT_RDEV)?,
                    Some(stat) if stat.is_dir() => {
                        let dir = root.open_dir(Path::new(&name))?;
                        xattr::set_fd(&dir, mark, b"y", SetMode::Any)?;
                    }
                    Some(_) => {}
                }
            }
        }
        rooted::set_times_fd(root, None, Some(time))?;
        xattr::remove_fd(root, mark)?;
    }
    Ok(())
}

struct Found {
    since_ns: i64,
    below: PathBuf,
    made_up: Vec<PathBuf>,
}

impl Visitor for Found {
    fn entry(&mut self, parent: &Dir, name: &OsStr, stat: &Stat) -> Result<bool> {
        if !stat.is_dir() {
            return Ok(false);
        }
        self.below.push(name);
        if looks_made_up(stat, self.since_ns)
            && is_made_up(&parent.open_dir(Path::new(name))?, stat, self.since_ns)?
        {
            self.made_up.push(self.below.clone());
        }
        Ok(true)
    }

    fn leave(&mut self, _: &Dir, _: &OsStr, _: &Stat) -> Result<()> {
        self.below.pop();
        Ok(())
    }

    fn vanished(&mut self, _: &OsStr) -> Result<()> {
        self.below.pop();
        Ok(())
    }
}

fn looks_made_up(stat: &Stat, since_ns: i64) -> bool {
    let changed = i128::from(stat.mtime.sec) * 1_000_000_000 + i128::from(stat.mtime.nsec);
    stat.mode == 0o755 && (stat.uid, stat.gid) == (0, 0) && changed >= i128::from(since_ns)
}

fn is_made_up(dir: &Dir, stat: &Stat, since_ns: i64) -> Result<bool> {
    if !looks_made_up(stat, since_ns) {
        return Ok(false);
    }
    // One with attributes of its own was listed. Marks are no such: a layer may hide what is in a directory, or one name in it, and not list it.
    Ok(xattr::list_fd(dir)?.iter().all(|name| {
        name.as_encoded_bytes().starts_with(b"security.selinux")
            || Prefix::ALL.iter().any(|prefix| prefix.is_control(name))
    }))
}

/// Returns the directory that shows under `path` in the layers below, if there is one.
fn model(lowers: &[Dir], path: &Path) -> Result<Option<Dir>> {
    if path.as_os_str().is_empty() {
        return Ok(lowers.first().map(Dir::dup).transpose()?);
    }
    for lower in lowers {
        let mut here = lower.dup()?;
        let mut parts = path.iter().peekable();
        while let Some(part) = parts.next() {
            match here.stat_opt(part)?.map(|stat| stat.kind) {
                // This layer says nothing; the next one may, unless this one hides it.
                None => break,
                Some(FileKind::Dir) => {
                    here = here.open_dir(Path::new(part))?;
                    if parts.peek().is_none() {
                        return Ok(Some(here));
                    }
                }
                // A file or a whiteout: nothing below it shows.
                Some(_) => return Ok(None),
            }
            if is_opaque(&here)? && !holds(&here, parts.peek())? {
                return Ok(None);
            }
        }
    }
    Ok(None)
}

fn holds(dir: &Dir, name: Option<&&OsStr>) -> Result<bool> {
    Ok(match name {
        None => true,
        Some(name) => dir.stat_opt(name)?.is_some(),
    })
}

fn is_opaque(dir: &Dir) -> Result<bool> {
    for prefix in Prefix::ALL {
        if xattr::get_fd(dir, prefix.xattr(Mark::Opaque))?.is_some_and(|value| value == b"y") {
            return Ok(true);
        }
    }
    Ok(false)
}
