//! The options of a mount by Vellum's own engine: plain values, and the tables of the `-o` options
//! that set them.
//!
//! [`crate::parse`] reads [`MountOptions`] from `-o` strings; the mount plan derives them from a
//! store's layers. Nothing here touches files.
//!
//! A new option needs a field of [`MountOptions`] with its default, an entry in a table, and a line
//! in docs/overlay.md.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

pub use vellum_fuse::{DataMode, MountFlags, OpenMode};
use vellum_union::engine::{IdRules, Limit};

use crate::values::Toggle;

mod entry;
mod given;
mod kinds;
pub(crate) mod list;
mod others;

pub(crate) use entry::Draft;
use entry::Effect::{Bytes, Dir, OnOff, Text, Word};
use entry::{MountOption, option};
pub use given::BadOption;

use given::{Given, lower_list, needed};
pub use kinds::{Access, Manners, Redirects, Settle, Trust, WhFiles};
pub use list::listed;

/// Reads a list of lower layers as `lowerdir=` takes it: the ordinary ones, top first, and the
/// data-only ones. Errors if a name is empty.
pub fn layer_list(value: &OsStr) -> Result<(Vec<PathBuf>, Vec<PathBuf>), BadOption> {
    lower_list(value.as_bytes(), Manners::Own)
}

/// Files of at least this size are copied up block by block.
///
/// A whole copy of a smaller file costs about as much as the bookkeeping, and leaves a plain file
/// that every reader understands.
pub const BLOCKS_FROM_BYTES: u64 = 4 << 20;

/// How long the kernel remembers names and attributes by default: for ever, as far as a FUSE reply
/// can say so. The engine is the only writer, so its replies stay right.
pub const CACHE_FOR: Duration = Duration::from_secs(1_000_000_000);

/// The options of one mount. Paths are as given: see [`MountOptions::made_absolute`].
#[derive(Debug, Clone, PartialEq)]
pub struct MountOptions {
    /// Read-only layers, top first; at least one.
    pub lowers: Vec<PathBuf>,
    /// Layers below them whose files are reached by metacopies only.
    pub data_lowers: Vec<PathBuf>,
    /// Where changes go. `None`: the union is read-only.
    pub upper: Option<PathBuf>,
    /// Goes with the upper, on its file system.
    pub work: Option<PathBuf>,
    /// Owners inside and outside.
    pub ids: IdRules,
    /// Directories have link count 1.
    pub static_nlink: bool,
    /// Inode numbers have 32 bits.
    pub ino_32_bits: bool,
    /// Every call on xattrs is refused.
    pub no_xattrs: bool,
    /// POSIX ACLs are xattrs like any other.
    pub no_acl: bool,
    /// Owners, modes and devices that can't be set are recorded in xattrs. Off: existing records
    /// are read in layers whose root has one.
    pub records: bool,
    /// Nothing is synced.
    pub is_volatile: bool,
    /// A copy is durable before it is visible; otherwise it is only ordered.
    pub sync_copies: bool,
    /// Whether directories of lower layers can be renamed.
    pub redirects: Redirects,
    /// Attributes change without a copy of the data.
    pub metacopy: bool,
    /// Hard links of lower files stay one file.
    pub index: bool,
    /// Inode numbers unique over all layers: `On` requires handles in every layer.
    pub xino: Toggle,
    /// Marks are `user.overlay.*`. `None`: only where `trusted.overlay.*` isn't available.
    pub user_xattr: Option<bool>,
    /// Whose marks are followed in lower layers.
    pub trust: Trust,
    /// Numbers of further `lowers` whose marks are followed, from 0.
    pub trusted: Vec<usize>,
    /// Whether `.wh.` names hide others.
    pub wh_files: WhFiles,
    /// How long the kernel remembers names and attributes.
    pub cache_for: Duration,
    /// The kernel collects writes before it passes them on.
    pub writeback: bool,
    /// How file data is read and written.
    pub data: DataMode,
    /// When refusals are reported.
    pub open: OpenMode,
    /// The most that the upper may hold.
    pub limit: Limit,
    /// When partly copied files are completed.
    pub settle: Settle,
    /// Files of at least this size are copied block by block; `None`: none are.
    pub blocks_from_bytes: Option<u64>,
    /// Kernel mount flags.
    pub flags: MountFlags,
    /// Which users may use it. `None`: every user if root mounts, else the owner.
    pub access: Option<Access>,
    /// How many threads serve. `None`: as many as the machine suggests.
    pub threads: Option<usize>,
    /// Requests come over io_uring where the kernel offers it.
    pub io_uring: bool,
    /// The most bytes in one write request.
    pub max_write_bytes: Option<u32>,
    /// The SELinux label of the whole mount.
    pub context: Option<OsString>,
    /// The source in the mount table.
    pub source: Option<OsString>,
    /// Every request is logged to stderr, and the program stays in the foreground.
    pub debug: bool,
}

impl MountOptions {
    /// Returns the defaults.
    pub fn new(manners: Manners) -> MountOptions {
        let own = manners == Manners::Own;
        MountOptions {
            lowers: Vec::new(),
            data_lowers: Vec::new(),
            upper: None,
            work: None,
            ids: IdRules::default(),
            static_nlink: false,
            ino_32_bits: false,
            no_xattrs: false,
            no_acl: false,
            records: false,
            is_volatile: false,
            sync_copies: false,
            redirects: Redirects::On,
            metacopy: own,
            index: true,
            xino: Toggle::Auto,
            user_xattr: None,
            trust: Trust::ByRecord,
            trusted: Vec::new(),
            wh_files: WhFiles::Auto,
            cache_for: CACHE_FOR,
            writeback: false,
            data: DataMode::Coherent,
            open: OpenMode::Free,
            limit: Limit::default(),
            settle: if own { Settle::Manual } else { Settle::Unmount },
            blocks_from_bytes: Some(BLOCKS_FROM_BYTES),
            flags: MountFlags {
                noatime: true,
                ..MountFlags::default()
            },
            access: None,
            threads: None,
            io_uring: true,
            max_write_bytes: None,
            context: None,
            source: None,
            debug: false,
        }
    }

    /// Returns the same with every path absolute; relative ones start at `base`. Links are not
    /// resolved.
    pub fn made_absolute(mut self, base: &std::path::Path) -> MountOptions {
        let all = self.lowers.iter_mut().chain(&mut self.data_lowers);
        for path in all.chain(&mut self.upper).chain(&mut self.work) {
            if path.is_relative() {
                *path = base.join(&*path);
            }
        }
        self
    }
}

/// The mount options in the order of the help, in titled groups.
///
/// The parser, "did you mean", the help and the check of docs/overlay.md read these tables and the
/// one in `others`.
static SHOWN: &[(&str, &[MountOption])] = &[
    ("layers", LAYERS),
    ("marks", MARKS),
    ("owners", OWNERS),
    ("data", DATA),
    ("speed", SPEED),
    ("mount", MOUNT),
];

const LAYERS: &[MountOption] = &[
    option(
        "lowerdir=TOP:NEXT::DATA",
        "read-only layers, top first; after `::`, data only",
        Bytes(|to, value| {
            let value = needed("lowerdir", value)?;
            (to.options.lowers, to.options.data_lowers) = lower_list(value, to.manners)?;
            Ok(())
        }),
    ),
    option(
        "lowerdir+=DIR",
        "one more layer, below the given ones",
        Dir(|to, dir| to.options.lowers.push(dir)),
    ),
    option(
        "datadir+=DIR",
        "one more data-only layer",
        Dir(|to, dir| to.options.data_lowers.push(dir)),
    ),
    option(
        "upperdir=DIR",
        "where changes go; without it the union is read-only",
        Dir(|to, dir| to.options.upper = Some(dir)),
    ),
    option(
        "workdir=DIR",
        "goes with upperdir, on the same file system",
        Dir(|to, dir| to.options.work = Some(dir)),
    ),
    option(
        "trust=auto|engine|archive",
        "whose redirects and metacopies are followed",
        Text(|to, given| {
            to.options.trust = given.one_of(&[
                ("auto", Trust::ByRecord),
                ("engine", Trust::Engine),
                ("archive", Trust::Archive),
            ])?;
            Ok(())
        }),
    ),
    option(
        "trusted=N[:N...]",
        "follow them in these layers too; 0 is the first lowerdir",
        Text(|to, given| {
            let parts = given.value.split(':');
            let numbers = parts.map(|value| Given { value, ..given }.number());
            to.options.trusted = numbers.collect::<Result<_, _>>()?;
            Ok(())
        }),
    ),
    option(
        "wh=auto|plain|whiteouts",
        "whether names such as .wh.x hide x",
        Text(|to, given| {
            to.options.wh_files = given.one_of(&[
                ("auto", WhFiles::Auto),
                ("plain", WhFiles::Plain),
                ("whiteouts", WhFiles::Whiteouts),
            ])?;
            Ok(())
        }),
    ),
];

const MARKS: &[MountOption] = &[
    option(
        "redirect_dir=on|off|follow|nofollow",
        "directories of lower layers can be renamed",
        Text(|to, given| {
            to.options.redirects = given.one_of(&[
                ("on", Redirects::On),
                // The kernel's `off` follows existing redirects unless its module is configured
                // otherwise.
                ("off", Redirects::Follow),
                ("follow", Redirects::Follow),
                ("nofollow", Redirects::NoFollow),
            ])?;
            to.follows_named |= matches!(given.value, "on" | "follow");
            Ok(())
        }),
    ),
    option(
        "metacopy=on|off",
        "chmod and chown copy no data",
        OnOff(|to, on| {
            to.options.metacopy = on;
            to.follows_named |= on;
        }),
    ),
    option(
        "index=on|off",
        "hard links of lower files stay one file",
        OnOff(|to, on| to.options.index = on),
    ),
    option(
        "xino=on|off|auto",
        "inode numbers are always unique; `on` is accepted",
        Text(|to, given| given.toggle().map(|it| to.options.xino = it)),
    ),
    option(
        "userxattr",
        "marks are user.overlay.* also for root",
        OnOff(|to, on| to.options.user_xattr = Some(on)),
    ),
];

const OWNERS: &[MountOption] = &[
    option(
        "uidmapping=DISK:SHOWN:COUNT[:...]",
        "the mapping from owners on disk to shown owners",
        Text(|to, given| given.id_runs().map(|it| to.options.ids.uids = it)),
    ),
    option(
        "gidmapping=DISK:SHOWN:COUNT[:...]",
        "the same for groups",
        Text(|to, given| given.id_runs().map(|it| to.options.ids.gids = it)),
    ),
    option(
        "squash_to_root",
        "every file belongs to root",
        OnOff(|to, on| to.squash_root = on),
    ),
    option(
        "squash_to_uid=UID",
        "every file belongs to this user",
        Text(|to, given| {
            given
                .number()
                .map(|it| to.options.ids.squash_uid = Some(it))
        }),
    ),
    option(
        "squash_to_gid=GID",
        "every file belongs to this group",
        Text(|to, given| {
            given
                .number()
                .map(|it| to.options.ids.squash_gid = Some(it))
        }),
    ),
    option(
        "xattr_permissions=0|1|2",
        "record owners, modes and devices that can't be set",
        Text(|to, given| {
            // Both spellings are accepted; records are written as containers/storage reads them.
            to.options.records = given.one_of(&[("0", false), ("1", true), ("2", true)])?;
            Ok(())
        }),
    ),
    option(
        "noacl",
        "ACLs are ignored",
        OnOff(|to, on| to.options.no_acl = on),
    ),
    option(
        "acl",
        "ACLs are checked (the default)",
        OnOff(|to, on| to.options.no_acl = !on),
    ),
    option(
        "noxattrs",
        "files have no xattrs",
        OnOff(|to, on| to.options.no_xattrs = on),
    ),
    option(
        "ino32_t",
        "32-bit inode numbers",
        OnOff(|to, on| to.options.ino_32_bits = on),
    ),
];

const DATA: &[MountOption] = &[
    option(
        "blocks=SIZE|off",
        "copy lower files of at least this size block by block",
        Text(|to, given| {
            to.options.blocks_from_bytes = match given.value {
                "off" => None,
                _ => Some(given.size()?),
            };
            Ok(())
        }),
    ),
    option(
        "settle=manual|unmount",
        "when such files are completed",
        Text(|to, given| {
            to.options.settle =
                given.one_of(&[("manual", Settle::Manual), ("unmount", Settle::Unmount)])?;
            Ok(())
        }),
    ),
    option(
        "size=SIZE",
        "the most bytes that the upper may hold; 0: no limit",
        Text(|to, given| {
            to.options.limit.size_bytes = Some(given.size()?).filter(|&most| most != 0);
            Ok(())
        }),
    ),
    option(
        "inodes=N",
        "the most files that the upper may hold; 0: no limit",
        Text(|to, given| {
            to.options.limit.inodes = Some(given.number()?).filter(|&most| most != 0);
            Ok(())
        }),
    ),
    option(
        "fsync=auto|strict|0",
        "strict: a copy is durable before it shows; 0: volatile",
        Text(|to, given| {
            to.options.sync_copies = given.value == "strict";
            to.options.is_volatile = match given.value {
                "auto" | "strict" => false,
                "volatile" => true,
                _ => !given.on_off()?,
            };
            Ok(())
        }),
    ),
    option(
        "volatile",
        "nothing is synced: the upper is lost if the machine crashes",
        OnOff(|to, on| to.options.is_volatile = on),
    ),
];

const SPEED: &[MountOption] = &[
    option(
        "static_nlink",
        "link count 1 for directories",
        OnOff(|to, on| to.options.static_nlink = on),
    ),
    option(
        "passthrough",
        "the kernel reads and writes backing files directly (root)",
        OnOff(|to, on| {
            to.options.data = match on {
                true => DataMode::Passthrough,
                false => DataMode::Coherent,
            };
        }),
    ),
    option(
        "open=deferred|checked",
        "checked: refuse immutable files when they are opened",
        Text(|to, given| {
            to.options.open =
                given.one_of(&[("deferred", OpenMode::Free), ("checked", OpenMode::Checked)])?;
            Ok(())
        }),
    ),
    option(
        "writeback=1|0",
        "the kernel's writeback cache; off with size or inodes",
        OnOff(|to, on| to.options.writeback = on),
    ),
    option(
        "io_uring=auto|off",
        "requests come over io_uring where the kernel offers it",
        Text(|to, given| {
            to.options.io_uring = given.one_of(&[("auto", true), ("off", false)])?;
            Ok(())
        }),
    ),
    option(
        "timeout=SECONDS",
        "how long the kernel remembers names and attributes",
        Text(|to, given| {
            let seconds: f64 = given.number()?;
            to.options.cache_for = match seconds {
                s if s >= CACHE_FOR.as_secs_f64() => CACHE_FOR,
                s if s >= 0.0 => Duration::from_secs_f64(s),
                _ => return Err(given.wrong("it can't be negative")),
            };
            Ok(())
        }),
    ),
    option(
        "threads=N",
        "how many threads serve, 1 to 8",
        Text(|to, given| match given.number()? {
            0 => Err(BadOption::new("threads=0: at least one thread is needed")),
            threads => {
                to.options.threads = Some(threads);
                Ok(())
            }
        }),
    ),
    option(
        "threaded=1|0",
        "0: one thread serves",
        OnOff(|to, on| {
            to.options.threads = if on { None } else { Some(1) };
        }),
    ),
    option(
        "max_write=BYTES",
        "the most bytes in one write request, up to 1 MiB",
        Text(|to, given| {
            given
                .number()
                .map(|it| to.options.max_write_bytes = Some(it))
        }),
    ),
];

const MOUNT: &[MountOption] = &[
    option(
        "ro rw",
        "read-only, or writable",
        Word(|to, on| to.options.flags.read_only = on),
    ),
    option(
        "nosuid suid",
        "ignore set-user-id bits, or honour them",
        Word(|to, on| to.options.flags.nosuid = on),
    ),
    option(
        "nodev dev",
        "refuse to open devices, or allow it",
        Word(|to, on| to.options.flags.nodev = on),
    ),
    option(
        "noexec exec",
        "refuse to execute files, or allow it",
        Word(|to, on| to.options.flags.noexec = on),
    ),
    option(
        "noatime atime relatime strictatime",
        "leave access times alone, or update them",
        Word(|to, on| to.options.flags.noatime = on),
    ),
    option(
        "nodiratime diratime",
        "the same for directories only",
        Word(|to, on| to.options.flags.nodiratime = on),
    ),
    // mount(8) has a flag of that name; fuse-overlayfs's option is `sync=0`.
    option(
        "sync",
        "each write is on disk before it returns; sync=0: volatile",
        Text(|to, given| {
            match given.value {
                "" => to.options.flags.sync = true,
                _ => to.options.is_volatile = !given.on_off()?,
            }
            Ok(())
        }),
    ),
    option(
        "dirsync async",
        "dirsync: as sync; async: the opposite",
        Word(|to, on| to.options.flags.sync = on),
    ),
    option(
        "allow_other",
        "all users may use the mount, as permissions allow",
        Word(|to, _| to.options.access = Some(Access::All)),
    ),
    option(
        "allow_root",
        "root may use the mount, in addition to its owner",
        Word(|to, _| to.options.access = Some(Access::Root)),
    ),
    option(
        "context=LABEL",
        "the SELinux label of all files",
        Bytes(|to, value| {
            let label = value.filter(|label| !label.is_empty());
            to.options.context = label.map(owned).or(to.options.context.take());
            Ok(())
        }),
    ),
    option(
        "fsname=NAME source=NAME",
        "the source that the mount table shows",
        Bytes(|to, value| {
            to.options.source = value.map(owned);
            Ok(())
        }),
    ),
    option(
        "debug",
        "stay in the foreground and log every request",
        Text(|to, _| {
            to.options.debug = true;
            Ok(())
        }),
    ),
    // As mount(8) passes -s: for the options after it.
    option(
        "sloppy",
        "options that aren't understood are reported and ignored",
        Word(|to, _| to.tolerant = true),
    ),
];

fn owned(bytes: &[u8]) -> OsString {
    OsStr::from_bytes(bytes).to_owned()
}
