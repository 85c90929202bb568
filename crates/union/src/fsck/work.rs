//! The work directory: what the upper's index of hard links, block maps and refusals say, and what
//! a crash left behind.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vellum_format::workdir::incompat;
use vellum_format::{Handle, Mark, NlinkBase, block_map, workdir};
use vellum_sys::{Dir, FileKind, Stat};

use crate::dir_layer::DirHandle;
use crate::fsck::inode::{Inode, Marks, Role};
use crate::fsck::origins::Origin;
use crate::fsck::{Check, Finding, Overlay, Place};
use crate::layer::LayerDir;
use crate::layer::blocks::BlockMaps;

/// The index of hard links.
#[derive(Debug)]
pub(super) struct Index {
    dir: Arc<DirHandle>,
    /// Device and number of its entries.
    inodes: HashSet<(u64, u64)>,
}

impl Index {
    /// Opens the index, if there is one and it can be read.
    pub fn open(overlay: &Overlay) -> Option<Index> {
        let dir = overlay.work.as_ref()?.open_dir(workdir::INDEX).ok()?;
        let dir = Arc::new(dir);
        let mut inodes = HashSet::new();
        for entry in dir.entries().ok()?.flatten() {
            if let Ok(stat) = dir.stat(&entry.name) {
                inodes.insert(stat.identity());
            }
        }
        Some(Index {
            dir: DirHandle::pinned(dir),
            inodes,
        })
    }

    /// Returns whether an inode has a name in it.
    pub fn has(&self, identity: (u64, u64)) -> bool {
        self.inodes.contains(&identity)
    }
}

/// The maps of files copied up block by block.
pub(super) struct Maps(pub BlockMaps);

impl Maps {
    pub fn open(overlay: &Overlay) -> Option<Maps> {
        let maps = BlockMaps::within(overlay.work.as_ref()?);
        maps.ok().flatten().map(Maps)
    }
}

impl Check<'_> {
    fn in_work(&mut self, path: impl AsRef<Path>, aspect: &'static str, why: impl Into<String>) {
        let finding = Finding::error(Place::Work, path.as_ref(), aspect, why);
        self.sink.report(finding);
    }

    fn about_work(&mut self, path: impl AsRef<Path>, aspect: &'static str, why: impl Into<String>) {
        let finding = Finding::remark(Place::Work, path.as_ref(), aspect, why);
        self.sink.report(finding);
    }

    /// Lists a directory in the work directory; `None` if there is none, or it can't be read.
    fn list(&mut self, work: &Dir, path: &str) -> Option<(Dir, Vec<vellum_sys::rooted::Entry>)> {
        let listed = work.open_dir(path).and_then(|dir| {
            let mut all = dir.entries()?.collect::<vellum_sys::Result<Vec<_>>>()?;
            all.sort_by(|a, b| a.name.cmp(&b.name));
            Ok((dir, all))
        });
        match listed {
            Ok(listed) => Some(listed),
            Err(error) if error.is_not_found() => None,
            // The kernel creates it without permissions.
            Err(error) if error.is_denied() && path == workdir::STAGING => {
                let why = "what a crash left in it was not checked: only root may read it";
                self.about_work(path, "read", why);
                None
            }
            Err(error) if error.is_denied() && path == incompat::PATH => None,
            Err(error) => {
                self.unreadable(Place::Work, Path::new(path), &error);
                None
            }
        }
    }

    /// Checks that a file of the upper which counts links leads to its entry in the index.
    pub(super) fn is_indexed(&mut self, path: &Path, stat: &Stat, marks: &Marks) {
        let Some(origin) = &marks.origin else {
            return;
        };
        let Ok(name) = origin.index_name() else {
            return;
        };
        let entry = match &self.index {
            Some(index) => index.dir.stat(Some(&name)).ok().flatten(),
            None => None,
        };
        let finding = match entry {
            Some(entry) if entry.identity() == stat.identity() || entry.is_null_device() => return,
            Some(_) => Finding::error(
                Place::Layer(0),
                path,
                "index",
                "it was copied from a lower file whose other names lead to another copy",
            )
            .differing("one copy", "two"),
            None if marks.nlink.is_none() || self.overlay.work.is_none() => return,
            None => Finding::error(
                Place::Layer(0),
                path,
                "index",
                "the index has no entry of it: the other names of the lower file show old content",
            )
            .differing(format!("index/{}", name.display()), "no such entry"),
        };
        self.sink.report(finding);
    }
}

/// Checks the work directory.
pub(super) fn check(check: &mut Check<'_>) {
    let Some(work) = &check.overlay.work else {
        return;
    };
    let Some((_, entries)) = check.list(work, ".") else {
        return;
    };
    for entry in entries {
        let known = [workdir::STAGING, workdir::INDEX, workdir::OWN];
        let name = &entry.name;
        match known.iter().any(|known| name == known) {
            true if entry.kind != FileKind::Dir => {
                check.in_work(
                    name,
                    "work",
                    "it is not a directory, so nothing can be mounted",
                );
            }
            true => {}
            false if name.as_bytes().iter().all(u8::is_ascii_digit) => {
                check.about_work(name, "work", "a temporary file of fuse-overlayfs");
            }
            false => check.about_work(name, "work", "no overlay keeps this in a work directory"),
        }
    }
    let has_maps = own(check, work);
    staging(check, work, has_maps);
    index(check, work);
    check.end_tallies();
}

/// Checks unfinished files, and the refusals.
fn staging(check: &mut Check<'_>, work: &Dir, has_maps: bool) {
    let mut refuses_blocks = false;
    let mut refuses_marks = false;
    if let Some((_, entries)) = check.list(work, workdir::STAGING) {
        for entry in entries {
            // The kernel keeps one whiteout, which it links to each hidden name.
            let is_whiteout = entry.kind == FileKind::Char;
            if entry.name != incompat::NAME && !is_whiteout {
                let path = Path::new(workdir::STAGING).join(&entry.name);
                let why = "left by a crash, or by the last mount; the next one removes it";
                check.about_work(path, "work", why);
            }
        }
    }
    for entry in check
        .list(work, incompat::PATH)
        .map_or(Vec::new(), |(_, all)| all)
    {
        let path = Path::new(incompat::PATH).join(&entry.name);
        let Some(name) = entry.name.to_str() else {
            check.in_work(path, "incompat", "a feature that no program here knows");
            continue;
        };
        match name {
            incompat::VOLATILE => volatile(check, work, &path),
            incompat::OPEN => check.about_work(
                path,
                "incompat",
                "Vellum's engine was killed while it had the upper open; its next mount clears this",
            ),
            incompat::BLOCKS => refuses_blocks = true,
            incompat::MARKS => refuses_marks = true,
            incompat::NAMES => {}
            incompat::CONVERTING => check.in_work(
                path,
                "incompat",
                "a conversion of the upper was interrupted: repeat it",
            ),
            name if name.starts_with(incompat::OWN_PREFIX) => check.about_work(
                path,
                "incompat",
                "a feature of another version of Vellum",
            ),
            _ => check.in_work(
                path,
                "incompat",
                "a feature that no program here knows: the mount is refused",
            ),
        }
    }
    if let (false, Some(path)) = (refuses_marks, check.beyond_kernels.take()) {
        let finding = Finding::error(
            Place::Work,
            &Path::new(incompat::PATH).join(incompat::MARKS),
            "incompat",
            format!(
                "it is missing, so kernels mount an upper of which they ignore marks: /{} has one",
                path.display()
            ),
        );
        check.sink.report(finding);
    }
    let path = Path::new(incompat::PATH).join(incompat::BLOCKS);
    match (has_maps, refuses_blocks) {
        (true, false) => {
            let why = "it is missing, so kernels mount an upper that they can't read";
            check.in_work(path, "incompat", why);
        }
        (false, true) => check.about_work(path, "incompat", "no file is partly copied any more"),
        _ => {}
    }
}

/// Checks what a volatile union left.
fn volatile(check: &mut Check<'_>, work: &Dir, path: &Path) {
    let boot = vellum_sys::epoch::boot_id().map(|id| incompat::boot(&id));
    let same_boot = work
        .open_dir(path)
        .ok()
        .zip(boot.ok())
        .is_some_and(|(dir, boot)| dir.stat_opt(&boot).is_ok_and(|found| found.is_some()));
    match same_boot {
        true => check.about_work(
            path,
            "volatile",
            "a volatile union was not closed, but the machine has not restarted since: nothing is lost",
        ),
        false => check.in_work(
            path,
            "volatile",
            "a volatile union was mounted, so after a crash the upper can't be trusted; no kernel mounts it again",
        ),
    }
}

/// Checks Vellum's own directory. Returns whether there are block maps.
fn own(check: &mut Check<'_>, work: &Dir) -> bool {
    let mut has_maps = false;
    for entry in check
        .list(work, workdir::BLOCK_MAPS)
        .map_or(Vec::new(), |(_, all)| all)
    {
        let path = Path::new(workdir::BLOCK_MAPS).join(&entry.name);
        let name = entry.name.as_bytes();
        match block_map::parse_name(name) {
            None if name.starts_with(b".tmp-") => {
                check.about_work(path, "map", "left by a crash; settling removes it");
            }
            None => check.about_work(path, "map", "it is not called like a map"),
            Some(name) => {
                has_maps = true;
                if !check.maps_named.contains(&name) {
                    check.about_work(path, "map", "no file names it; settling removes it");
                }
            }
        }
    }
    has_maps
}

/// Checks the index: that it is this upper's, on these layers, and each entry.
fn index(check: &mut Check<'_>, work: &Dir) {
    let Some((dir, entries)) = check.list(work, workdir::INDEX) else {
        return;
    };
    let path = PathBuf::from(workdir::INDEX);
    let Ok(stat) = dir.stat_self() else { return };
    let dir = DirHandle::pinned(Arc::new(dir));
    let marks = check.inode(&Inode {
        place: Place::Work,
        layer: 0,
        role: Role::Index,
        dir: &*dir,
        name: None,
        path: &path,
        stat: &stat,
    });
    belongs(check, &marks, entries.is_empty());
    let mut removed = HashMap::new();
    for entry in entries {
        self::entry(check, &dir, &entry.name, &mut removed);
    }
    still_shown(check, removed);
}

/// Reports lower files that the union shows although the index calls them removed: the kernel
/// answers EIO for them.
fn still_shown(check: &mut Check<'_>, mut removed: Removed) {
    if removed.is_empty() {
        return;
    }
    // An error ends the walk; what causes it was reported where it is.
    for node in check.whole.walk().map_while(Result::ok) {
        if check.sink.is_stopped() || removed.is_empty() {
            return;
        }
        let shown = match node.layer() {
            0 if check.overlay.has_upper => None,
            _ => removed.remove(&node.identity()),
        };
        if let Some(path) = shown {
            let why = format!(
                "it says that a file was removed, which the layers show at /{}",
                node.path().display()
            );
            check.in_work(path, "index", why);
        }
    }
}

/// The lower files that the index calls removed, with the entries that do.
type Removed = HashMap<(u64, u64), PathBuf>;

/// Checks whose index it is.
fn belongs(check: &mut Check<'_>, marks: &Marks, is_empty: bool) {
    let own = check.file_systems.first();
    match &marks.upper {
        Some(upper) if own.and_then(|own| own.root_is(upper)) == Some(false) => {
            let why = "the index belongs to another upper, or this one was copied";
            check.in_work(workdir::INDEX, "upper", why);
        }
        None if !is_empty => {
            let why = "the index has no mark that says whose it is";
            check.about_work(workdir::INDEX, "upper", why);
        }
        _ => {}
    }
    let root = check.overlay.layers[0].root();
    let name = check.overlay.prefix.xattr(Mark::Origin);
    let origin = root.xattr(None, name).ok().flatten();
    // What is malformed was reported with the upper.
    let origin = origin.and_then(|value| Handle::parse(&value).ok().flatten());
    let below = check.file_systems.get(1);
    match origin {
        Some(origin) if below.and_then(|below| below.root_is(&origin)) == Some(false) => {
            check.sink.report(Finding::error(
                Place::Layer(0),
                Path::new(""),
                "origin",
                "the index was written for another top lower layer, or that one was copied or replaced",
            ));
        }
        _ => {}
    }
}

/// Checks one entry of the index.
fn entry(check: &mut Check<'_>, index: &Arc<DirHandle>, name: &OsString, removed: &mut Removed) {
    let path = Path::new(workdir::INDEX).join(name);
    if name.as_bytes().starts_with(b"#") {
        // The kernel keeps one whiteout, which it links to each hidden name.
        if index
            .stat(Some(name))
            .is_ok_and(|stat| stat.is_some_and(|stat| stat.is_null_device()))
        {
            return;
        }
        return check.about_work(path, "index", "left by a crash; the next mount removes it");
    }
    let stat = match index.stat(Some(name)) {
        Ok(Some(stat)) => stat,
        Ok(None) => return,
        Err(error) => return check.unreadable(Place::Work, &path, &error),
    };
    let handle = match Handle::parse_index_name(name) {
        Ok(handle) => handle,
        Err(error) => {
            let why = format!("its name is not a file handle: {}", error.reason);
            return check.in_work(path, "index", why);
        }
    };
    if stat.is_null_device() {
        let why = "it says that file handles of a removed file are stale";
        check.about_work(&path, "index", why);
        if let Origin::At(stat) = check.origin(0, &handle) {
            removed.insert(stat.identity(), path);
        }
        return;
    }
    let marks = check.inode(&Inode {
        place: Place::Work,
        layer: 0,
        role: Role::Indexed,
        dir: &**index,
        name: Some(name),
        path: &path,
        stat: &stat,
    });
    match stat.kind {
        FileKind::Dir => directory(check, &path, &marks),
        _ => file(check, &path, &handle, &marks, &stat),
    }
}

/// An entry of a directory, which a mount with `nfs_export=on` makes.
fn directory(check: &mut Check<'_>, path: &Path, marks: &Marks) {
    let Some(upper) = &marks.upper else {
        let why = "no mark says which directory of the upper it is for";
        return check.in_work(path, "index", why);
    };
    let wanted = vellum_sys::handle::FileHandle {
        kind: upper.kind.into(),
        bytes: upper.bytes.clone(),
    };
    let root = check.file_systems.first().and_then(|own| own.root.as_ref());
    let found = root.map(|root| vellum_sys::handle::open(root, &wanted));
    if let Some(Err(error)) = found
        && error.is(rustix::io::Errno::STALE)
    {
        check.about_work(
            path,
            "index",
            "the directory of the upper is gone; a mount removes this",
        );
    }
}

fn file(check: &mut Check<'_>, path: &Path, named: &Handle, marks: &Marks, stat: &Stat) {
    match &marks.origin {
        None => {
            let why = "no origin says which lower file it is the copy of";
            return check.in_work(path, "index", why);
        }
        Some(origin) if origin != named => {
            let finding = Finding::error(
                Place::Work,
                path,
                "index",
                "its name is not that of the lower file it was copied from",
            );
            let found = origin.index_name().unwrap_or_default();
            let wanted = found.display().to_string();
            let name = path.file_name().unwrap_or_default().display().to_string();
            return check.sink.report(finding.differing(wanted, name));
        }
        Some(_) => {}
    }
    if marks.origin_is_gone {
        let why = "the lower file it is the copy of no longer exists";
        check.in_work(path, "index", why);
    }
    counts(check, path, marks, stat);
}

/// Checks the count of names against what can be counted: no fewer than the names in the upper,
/// and no more than these and all of the lower file's.
fn counts(check: &mut Check<'_>, path: &Path, marks: &Marks, stat: &Stat) {
    let Some(mark) = marks.nlink else {
        let why = "no mark counts its names";
        return check.about_work(path, "nlink", why);
    };
    let lower = marks.origin_at.as_ref().map(|stat| i64::from(stat.nlink));
    let base = match mark.base {
        NlinkBase::Upper => Some(i64::from(stat.nlink)),
        NlinkBase::Lower => lower,
    };
    let Some(base) = base else { return };
    let count = base + i64::from(mark.delta);
    let seen = check.upper_names.of(stat).map_or(0, |names| names.seen);
    let least = i64::from(seen);
    let most = lower.map(|lower| least.max(i64::from(stat.nlink) - 1) + lower);
    if count < least || most.is_some_and(|most| count > most) {
        let most = most.map_or_else(String::new, |most| format!(" to {most}"));
        let finding = Finding::error(
            Place::Work,
            path,
            "nlink",
            "it counts names that don't exist, or too few",
        );
        let finding = finding.differing(format!("{least}{most} names"), format!("{count} names"));
        check.sink.report(finding);
    } else if count == 0 {
        check.about_work(
            path,
            "index",
            "its last name was removed; the next mount removes it",
        );
    }
}
