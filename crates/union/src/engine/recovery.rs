//! Opening an engine (locks, checks, leftovers of a crash) and closing it.
//!
//! Nothing is changed before the locks are held, and nothing is served before all checks have
//! passed. The checks are the kernel's and a few more, each with an error that names the directory
//! and says what to do: an upper that another union uses, one left behind by a volatile union, one
//! that needs an unknown feature, or one with an index of hard links that would be ignored or was
//! written for other lower layers.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vellum_format::workdir::incompat;
use vellum_format::{Handle, Mark, Nlink, NlinkBase, Prefix, workdir};
use vellum_sys::credentials::Credentials;
use vellum_sys::lock::{Lock, Sharing};
use vellum_sys::xattr::{self, SetMode};
use vellum_sys::{Dir, mount, publish, sync};

use crate::dir_layer::{DirHandle, DirLayer};
use crate::engine::blocks::BlockStore;
use crate::engine::inode_numbers::{Numbers, stored_handle};
use crate::engine::limit::Usage;
use crate::engine::nodes::DirBody;
use crate::engine::nodes::table::NodeTable;
use crate::engine::options::{Durability, EngineOptions, UpperOptions};
use crate::engine::staging::Staging;
use crate::engine::{Engine, Upper};
use crate::error::{On, Site};
use crate::layer::{Dialect, LayerDir, Records, WhNames};
use crate::marks::DirAt;
use crate::resolve::Part;
use crate::stack::Stack;
use crate::{Error, Layer, Result};

impl Engine {
    /// Opens a union for use: locks the upper and the work directory, refuses them if they can't be
    /// used, and removes what a crash left.
    ///
    /// Errors: [`Error::BadUpper`] with the directory and the reason; `Io`; those of marks in the
    /// roots.
    pub fn open(options: EngineOptions) -> Result<Engine> {
        let EngineOptions {
            lowers,
            data_lowers,
            upper,
            ids,
            reader_ids,
            static_nlink,
            ino_32_bits,
            no_xattrs,
        } = options;
        let below: Vec<_> = data_lowers
            .iter()
            .rev()
            .chain(lowers.iter().rev())
            .cloned()
            .collect();
        let upper = upper.map(|upper| open_upper(upper, below)).transpose()?;
        let mut layers = lowers;
        if let Some(upper) = &upper {
            layers.insert(0, Arc::clone(&upper.layer) as Arc<dyn Layer>);
        }
        let stack = Stack::with_data_layers(layers, data_lowers)?;
        let parts = Arc::clone(stack.roots());
        let known = |part: &Part<DirAt>| {
            // Without a UUID of the file system, handles have none, like the kernel's.
            let root = part.dir.dir.open_path(None).ok();
            let uuid = root.and_then(vellum_sys::handle::file_system_uuid);
            (part.dir.stat.dev, uuid.unwrap_or_default())
        };
        let numbers = Numbers::new(parts.iter().map(known), ino_32_bits);
        if let (Some(upper), Some(lower)) = (&upper, parts.get(1)) {
            check_origin(upper, &numbers, &*lower.dir.dir)?;
        }
        if let Some(upper) = &upper {
            let work = &upper.options.work;
            enter(upper).map_err(|error| bad(work, reason(&error)))?;
        }
        // As for every merged directory, the number of the topmost lower share.
        let lowest = usize::from(upper.is_some()).min(parts.len() - 1);
        let ino = numbers.show(parts[lowest].dir.stat.identity());
        let body = DirBody {
            parts,
            upper: upper.as_ref().map(|upper| Arc::clone(&upper.root)),
            impure: None,
        };
        let (table, root) = NodeTable::new(ino, body);
        Ok(Engine {
            stack,
            reader_ids: reader_ids.filter(|_| upper.is_none()),
            upper,
            ids,
            static_nlink,
            no_xattrs,
            numbers,
            table,
            root,
            files: Default::default(),
            names: Default::default(),
            copies: Default::default(),
        })
    }

    pub(crate) fn release(self) -> Result<()> {
        let Some(upper) = &self.upper else {
            return Ok(());
        };
        // For a volatile union too: its mark is removed, so from here on a crash must lose nothing.
        let dir = upper.root.dir().on(upper)?;
        publish::sync_fs(&*dir).on(upper)?;
        upper.blocks.close()?;
        self.all_gone();
        upper.usage.close().on(upper)?;
        let staging = upper.staging.dir();
        let Ok(incompat) = staging.open_dir(incompat::NAME) else {
            return upper.unlock();
        };
        let removed = match incompat.rmdir(incompat::OPEN) {
            Err(error) if error.is_not_found() => Ok(()),
            other => other,
        };
        removed.on(upper)?;
        if upper.options.durability == Durability::Volatile {
            incompat.remove_tree(incompat::VOLATILE).on(upper)?;
        }
        // Not empty if another entry still keeps kernels out.
        let _ = staging.rmdir(incompat::NAME);
        upper.unlock()
    }
}

impl Upper {
    /// Releases the locks explicitly: a child just being started has copies of them for a moment.
    pub(crate) fn unlock(&self) -> Result<()> {
        let mut locks = self.locks.iter();
        locks.try_for_each(|lock| lock.release().on(self))
    }

    /// Marks on the upper's root which lower layer the index is for, before its first entry is
    /// added. Returns whether the mark is new.
    pub(crate) fn claim_index(&self) -> Result<bool> {
        let mut unclaimed = sync::lock(&self.unclaimed);
        let Some(origin) = &*unclaimed else {
            return Ok(false);
        };
        let root = self.root.dir().on(self)?;
        let mark = self.options.prefix.xattr(Mark::Origin);
        match xattr::set_fd(&root, mark, origin, SetMode::Any) {
            Err(error) if !error.is_unsupported() => return Err(self.io(error)),
            _ => *unclaimed = None,
        }
        Ok(true)
    }

    /// Notes that a mark is about to be written that kernels refuse or ignore in a plain user's
    /// upper.
    ///
    /// From then on kernels can't mount its work directory.
    pub(crate) fn beyond_the_kernel(&self) -> Result<()> {
        if self.options.prefix == Prefix::Trusted || self.kernel_kept_out.load(Ordering::Relaxed) {
            return Ok(());
        }
        let kept = (|| {
            let incompat = self.staging.dir().create_dir_all(incompat::NAME, 0o700)?;
            match incompat.mkdir(incompat::MARKS, 0o700) {
                Err(error) if error.is_exists() => Ok(()),
                other => other,
            }
        })();
        kept.on(self)?;
        self.kernel_kept_out.store(true, Ordering::Relaxed);
        Ok(())
    }
}

/// How long to wait for a directory in use: a child of the process that used it may still hold
/// copies of the descriptors until it executes its own program.
const PATIENCE: Duration = Duration::from_secs(1);

/// Opens and locks an upper or a work directory.
pub(crate) fn lock(path: &Path) -> Result<(Dir, Lock)> {
    let failed = |error| bad(path, reason(&error));
    let dir = Dir::open(path).map_err(failed)?;
    let dup = dir.dup().map_err(failed)?;
    let lock = Lock::wait_at_most(dup, Sharing::Exclusive, PATIENCE).map_err(failed)?;
    let why =
        "another union is using it; unmount that first, in every mount namespace that shows it";
    let lock = lock.ok_or_else(|| bad(path, why))?;
    Ok((dir, lock))
}

fn bad(path: &Path, why: impl Into<String>) -> Error {
    Error::BadUpper {
        path: path.to_owned(),
        why: why.into(),
    }
}

fn open_upper(options: UpperOptions, below: Vec<Arc<dyn Layer>>) -> Result<Upper> {
    apart(&options.upper, &options.work)?;
    let (upper, upper_lock) = lock(&options.upper)?;
    let (work, work_lock) = lock(&options.work)?;
    let in_work = |error: vellum_sys::Error| bad(&options.work, reason(&error));
    let dev = |dir: &Dir| dir.stat_self().map(|stat| stat.dev).map_err(in_work);
    if dev(&upper)? != dev(&work)? {
        let why = "the work directory must be on the upper's file system";
        return Err(bad(&options.work, why));
    }
    // If that can't be checked (a plain user may not), the mark set below keeps the kernel out
    // from now on.
    if mount::overlay_holds(&upper).unwrap_or(false) {
        let why = "the kernel has it mounted as an overlay's upper; unmount that first";
        return Err(bad(&options.upper, why));
    }
    let staging = own_dir(&work, workdir::STAGING).map_err(in_work)?;
    let kernel_kept_out = sweep(&staging, &options)?;
    let index = open_index(&work, &options)?;
    let unnamed = staging.create_unnamed(0o600).is_ok();
    // Without /proc, assume that the process lacks this capability.
    let strips = !Credentials::own().is_some_and(|own| own.keeps_privileges());
    let name = options.upper.display().to_string();
    let maps = Arc::new(BlockStore::make_dir(&work).map_err(in_work)?);
    let usage = Usage::open(options.limit, &upper, &work).map_err(in_work)?;
    let durable = options.durability != Durability::Volatile;
    let data_order = publish::data_order(&upper).on(&*name)?;
    let of_maps = Arc::clone(&maps);
    let blocks = BlockStore::open(work, of_maps, name.clone(), options.prefix, durable, below)?;
    let mut dialect = Dialect::kernel(options.prefix);
    if options.records == Records::Read {
        dialect = dialect.with_records();
    }
    if options.wh_names == WhNames::Whiteouts {
        dialect = dialect.with_wh_names();
    }
    let layer = DirLayer::new(upper, name, dialect).with_block_maps(Some(maps));
    Ok(Upper {
        root: layer.root_handle(),
        layer: Arc::new(layer),
        staging: Staging::new(Arc::new(staging)),
        index: index.map(|index| DirHandle::pinned(Arc::new(index))),
        blocks,
        usage,
        data_order,
        options,
        unnamed,
        strips,
        kernel_kept_out: AtomicBool::new(kernel_kept_out),
        unclaimed: Mutex::default(),
        locks: [upper_lock, work_lock],
    })
}

/// Opens a directory in the work directory, creating it if there is none.
fn own_dir(work: &Dir, name: &str) -> vellum_sys::Result<Dir> {
    match work.create_dir_all(name, 0o700) {
        // The kernel's have no permissions at all, which stops a plain user that owns them.
        Err(error) if error.is_denied() => {
            work.set_mode(name, 0o700)?;
            work.open_dir(name)
        }
        other => other,
    }
}

/// Marks the work directory as in use. Call it after all checks have passed.
fn enter(upper: &Upper) -> vellum_sys::Result<()> {
    let incompat = upper.staging.dir().create_dir_all(incompat::NAME, 0o700)?;
    incompat.create_dir_all(incompat::OPEN, 0o700)?;
    if upper.by_name() {
        // The kernel's overlay would show what `.wh.` names hide. Kept as long as the work
        // directory exists.
        incompat.create_dir_all(incompat::NAMES, 0o700)?;
    }
    if upper.options.durability == Durability::Volatile {
        let volatile = incompat.create_dir_all(incompat::VOLATILE, 0o700)?;
        // The only thing that a volatile union syncs: that it is volatile.
        volatile.create_dir_all(incompat::DIRTY, 0o700)?;
        volatile.create_dir_all(boot_entry()?, 0o700)?;
        volatile.sync()?;
        incompat.sync()?;
    }
    Ok(())
}

/// Removes the entry with which a killed engine keeps kernels out of `work`. The caller has locked
/// the directory.
pub(crate) fn forget_open(work: &Path) -> vellum_sys::Result<()> {
    let staging = match Dir::open(work)?.open_dir(workdir::STAGING) {
        Ok(staging) => staging,
        Err(error) if error.is_not_found() => return Ok(()),
        Err(error) => return Err(error),
    };
    let incompat = match staging.open_dir(incompat::NAME) {
        Ok(incompat) => incompat,
        Err(error) if error.is_not_found() => return Ok(()),
        Err(error) => return Err(error),
    };
    match incompat.rmdir(incompat::OPEN) {
        Err(error) if !error.is_not_found() => return Err(error),
        _ => {}
    }
    // Not empty if another entry still keeps kernels out.
    let _ = staging.rmdir(incompat::NAME);
    Ok(())
}

/// Refuses directories that contain each other: staged copies would be visible in the union.
fn apart(upper: &Path, work: &Path) -> Result<()> {
    let full = |path: &Path| std::fs::canonicalize(path).map_err(|e| bad(path, e.to_string()));
    let (full_upper, full_work) = (full(upper)?, full(work)?);
    if full_work.starts_with(&full_upper) || full_upper.starts_with(&full_work) {
        return Err(bad(
            work,
            "upper and work directory must not contain each other",
        ));
    }
    Ok(())
}

/// Removes incomplete files, and refuses a work directory that is marked unusable. Returns whether
/// kernels are already kept out because of marks in the upper.
fn sweep(staging: &Dir, options: &UpperOptions) -> Result<bool> {
    let in_work = |error: vellum_sys::Error| bad(&options.work, reason(&error));
    let mut marks = false;
    match staging.open_dir(incompat::NAME) {
        Ok(incompat) => {
            for entry in incompat.entries().map_err(in_work)? {
                let name = entry.map_err(in_work)?.name;
                if name == incompat::VOLATILE {
                    if same_boot(&incompat).map_err(in_work)? {
                        continue;
                    }
                    let why = "a volatile union was not closed, so the upper can't be trusted; remove both directories, or \
                        work/incompat/volatile if the machine has not crashed since";
                    return Err(bad(&options.work, why));
                }
                if !name.as_bytes().starts_with(incompat::OWN_PREFIX.as_bytes()) {
                    let why = format!("it needs a feature unknown to this version: {name:?}");
                    return Err(bad(&options.work, why));
                }
                marks |= name == incompat::MARKS;
            }
        }
        Err(error) if error.is_not_found() => {}
        Err(error) => return Err(in_work(error)),
    }
    let names: Vec<OsString> = staging
        .entries()
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.name)).collect())
        .map_err(in_work)?;
    for name in names.iter().filter(|name| *name != incompat::NAME) {
        staging.remove_tree(name).map_err(in_work)?;
    }
    Ok(marks)
}

/// Returns whether a killed process left the volatile union behind since the last boot: then
/// nothing was lost, synced or not.
fn same_boot(incompat: &Dir) -> vellum_sys::Result<bool> {
    let volatile = incompat.open_dir(incompat::VOLATILE)?;
    Ok(volatile.stat_opt(boot_entry()?)?.is_some())
}

/// The name next to `dirty` that says during which boot a volatile union was opened.
fn boot_entry() -> vellum_sys::Result<OsString> {
    Ok(incompat::boot(&vellum_sys::epoch::boot_id()?).into())
}

/// Opens the index of hard links, if the union keeps one.
fn open_index(work: &Dir, options: &UpperOptions) -> Result<Option<Dir>> {
    let in_work = |error: vellum_sys::Error| bad(&options.work, reason(&error));
    if options.index {
        let index = own_dir(work, workdir::INDEX).map_err(in_work)?;
        drop_orphans(&index, options.prefix).map_err(in_work)?;
        return Ok(Some(index));
    }
    match work.open_dir(workdir::INDEX) {
        Ok(index) => match index.entries().map_err(in_work)?.next() {
            None => Ok(None),
            Some(_) => {
                let why = "its index joins hard links of the upper, which would become separate files; use index=on";
                Err(bad(&options.work, why))
            }
        },
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(in_work(error)),
    }
}

/// Removes entries of files without a name: a crash came between removing the last name and the
/// entry.
fn drop_orphans(index: &Dir, prefix: Prefix) -> vellum_sys::Result<()> {
    let names: Vec<OsString> = index
        .entries()?
        .map(|entry| entry.map(|entry| entry.name))
        .collect::<vellum_sys::Result<_>>()?;
    for name in names {
        let Some(stat) = index.stat_opt(&name)? else {
            continue;
        };
        // With a second link it has a name in the upper layer.
        if stat.is_dir() || stat.nlink > 1 {
            continue;
        }
        let mark = xattr::get(index, &name, prefix.xattr(Mark::Nlink))?;
        // A count relative to the lower inode, or an unreadable mark, is left to the lookup.
        let count = mark.and_then(|value| Nlink::parse(&value).ok());
        let orphan = Nlink {
            base: NlinkBase::Upper,
            delta: -1,
        };
        if count == Some(orphan) {
            index.unlink(&name)?;
        }
    }
    Ok(())
}

/// Makes sure that the index belongs to this upper and to this top lower layer, as the kernel does
/// with `index=on`.
fn check_origin(upper: &Upper, numbers: &Numbers, lower: &dyn LayerDir) -> Result<()> {
    let Some(index) = &upper.index else {
        return Ok(());
    };
    let prefix = upper.options.prefix;
    let root = upper.root.dir().on(upper)?;
    let below = lower.open_path(None).on(upper)?;
    let origin = stored_handle(&below, numbers.uuid(1), false).on(upper)?;
    let own = stored_handle(&*root, numbers.uuid(0), true).on(upper)?;
    let index = index.dir().on(upper)?;
    let names_origin = prefix.xattr(Mark::Origin);
    let unused = index.entries().on(upper)?.next().is_none();
    let unclaimed = xattr::get_fd(&root, names_origin).on(upper)?.is_none();
    if unused && unclaimed {
        // Not needed yet, and fuse-overlayfs 1.10 shows nothing of the layers below a root that has
        // this mark.
        let origin = origin.and_then(|handle| handle.encode().ok());
        *sync::lock(&upper.unclaimed) = origin;
    } else if !belongs(&root, names_origin, origin).on(upper)? {
        let why = "its index of hard links belongs to another lower layer (or to one copied or replaced since)";
        return Err(bad(&upper.options.upper, why));
    }
    if !belongs(&index, prefix.xattr(Mark::Upper), own).on(upper)? {
        let why = "its index of hard links belongs to another upper";
        return Err(bad(&upper.options.work, why));
    }
    Ok(())
}

/// Returns whether a directory's mark has this handle. Sets the mark if there is none.
fn belongs(dir: &Dir, mark: &OsStr, handle: Option<Handle>) -> vellum_sys::Result<bool> {
    // Without handles, the index can't have an entry either.
    let Some(expected) = handle.and_then(|handle| handle.encode().ok()) else {
        return Ok(true);
    };
    match xattr::get_fd(dir, mark)? {
        Some(found) => Ok(found == expected),
        None => match xattr::set_fd(dir, mark, &expected, SetMode::Any) {
            Err(error) if !error.is_unsupported() => Err(error),
            _ => Ok(true),
        },
    }
}

/// Returns an error and its sources in one line.
fn reason(error: &vellum_sys::Error) -> String {
    format!("{error}: {}", error.source)
}
