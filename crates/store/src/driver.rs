//! Drivers: the layouts that a tree can have on disk.
//!
//! A driver knows where the parts of a tree are and how a new one is laid out in a staging
//! directory, sealed when it becomes a layer, and repaired from the record. It must not know about
//! records, keys, transactions or mounts: the store calls it between staging and record (see
//! `tx.rs`), and the code that mounts gets [`TreeParts`]. Every snapshot remembers its driver, so a
//! store may hold trees of several; a child always uses its parent's.

mod native;
mod overlay;
mod overlay2;

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use data_encoding::BASE32_NOPAD;
use serde::{Deserialize, Serialize};
use vellum_format::Digest;
use vellum_sys::plain;

use crate::{
    error::{IoContext, Result, StoreError},
    layout::{self, Layout, make_dir},
    snapshot::{MountFeatures, SnapshotKind, Usage},
};

/// Makes [`DriverKind`] from one line per driver. Apart from its `mod` this is all that exists of a
/// driver outside its own file: it describes its differences itself, in [`Driver`].
macro_rules! drivers {
    ($($(#[$attribute:meta])* $kind:ident => $driver:path,)+) => {
        /// The storage drivers.
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize,
            Deserialize,
        )]
        #[serde(rename_all = "lowercase")]
        pub enum DriverKind {
            $($(#[$attribute])* $kind,)+
        }

        impl DriverKind {
            /// All of them.
            pub const ALL: [Self; [$(stringify!($kind)),+].len()] = [$(Self::$kind),+];
        }

        pub(crate) fn driver(kind: DriverKind) -> &'static dyn Driver {
            match kind {
                $(DriverKind::$kind => &$driver,)+
            }
        }
    };
}

drivers! {
    /// Directories of changes stacked by overlayfs, in Docker's `overlay2` layout.
    #[default]
    Overlay2 => overlay2::Overlay2,
    /// Docker's first overlay driver: one lower, layers are full trees of hard links.
    Overlay => overlay::Overlay1,
    /// Full copies, reflinked where the file system can.
    Native => native::Native,
}

impl DriverKind {
    /// Returns the name as users write it and as it is on disk.
    pub fn as_str(self) -> &'static str {
        driver(self).name()
    }

    /// Says how the marks of a tar are written into a layer.
    pub fn marks(self) -> LayerMarks {
        driver(self).marks()
    }

    /// True if a layer holds only its own changes, so that it can be filled before its parent is
    /// known and rebased later.
    pub fn stacks(self) -> bool {
        match self.marks() {
            LayerMarks::Overlay => true,
            LayerMarks::Whole | LayerMarks::Plain => false,
        }
    }

    /// True if a writable tree on a layer is an overlay, mounted by the kernel or by Vellum's
    /// engine.
    pub fn makes_overlays(self) -> bool {
        match self.marks() {
            LayerMarks::Overlay | LayerMarks::Whole => true,
            LayerMarks::Plain => false,
        }
    }

    /// False if the mount point in a tree exists only while something is mounted on it.
    pub fn keeps_mount_points(self) -> bool {
        driver(self).keeps_mount_points()
    }

    /// Returns all names as part of a sentence; `before_last` is "and" or "or".
    pub fn all_names(before_last: &str) -> String {
        let names = Self::ALL.map(Self::as_str);
        match names.split_last() {
            Some((last, others)) => format!("{} {before_last} {last}", others.join(", ")),
            None => String::new(),
        }
    }
}

impl fmt::Display for DriverKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for DriverKind {
    type Err = StoreError;

    /// Parses a driver's name, or another program's name for it.
    fn from_str(name: &str) -> Result<Self> {
        let is_called = |kind: &Self| {
            let driver = driver(*kind);
            driver.name() == name || driver.other_names().contains(&name)
        };
        let found = Self::ALL.into_iter().find(is_called);
        found.ok_or_else(|| StoreError::UnknownDriver {
            name: name.to_owned(),
            known: Self::all_names("and"),
        })
    }
}

/// The directory name of one tree: 64 random hexadecimal digits, never reused.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TreeId(String);

impl TreeId {
    pub(crate) fn random() -> Self {
        Self(hex::encode(rand::random::<[u8; 32]>()))
    }

    /// Returns the text, safe as a file name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TreeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TreeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for TreeId {
    type Error = StoreError;

    fn try_from(text: String) -> Result<Self> {
        if text.len() == 64
            && text
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        {
            Ok(Self(text))
        } else {
            Err(StoreError::Invalid(format!(
                "{text:?} is not the name of a tree"
            )))
        }
    }
}

impl From<TreeId> for String {
    fn from(id: TreeId) -> Self {
        id.0
    }
}

/// The short name of an `overlay2` tree under `l/`: 26 letters and digits of base32, the same form
/// as Docker's.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct LinkId(String);

impl LinkId {
    pub fn random() -> Self {
        let mut text = BASE32_NOPAD.encode(&rand::random::<[u8; 17]>());
        text.truncate(26);
        Self(text)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for LinkId {
    type Error = StoreError;

    fn try_from(text: String) -> Result<Self> {
        if text.len() == 26
            && text
                .bytes()
                .all(|b| b.is_ascii_uppercase() || (b'2'..=b'7').contains(&b))
        {
            Ok(Self(text))
        } else {
            Err(StoreError::Invalid(format!("{text:?} is not a link name")))
        }
    }
}

impl From<LinkId> for String {
    fn from(id: LinkId) -> Self {
        id.0
    }
}

/// How the marks of a tar (whiteouts, opaque directories) are written into a staged layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerMarks {
    /// As the kernel's overlay marks: the tree holds only what the layer changes.
    Overlay,
    /// Not at all: the parent's full tree is already there. A whiteout deletes, and every file is
    /// unlinked before it is written, since it may be a hard link into the parent. Overlays will be
    /// mounted on the tree, so attributes named like overlay marks are kept under other names.
    Whole,
    /// Like [`LayerMarks::Whole`], but no overlay is ever mounted on it.
    Plain,
}

/// One layer directory of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerDir {
    /// The tree it belongs to.
    pub tree: TreeId,
    /// The directory itself, absolute.
    pub dir: PathBuf,
    /// Its short name relative to [`Overlay::home`] (`l/XXXX`), where the driver keeps one.
    pub link: Option<PathBuf>,
    /// Digest of the layer's tar, where known.
    pub diff_id: Option<Digest>,
    /// Which marks it may carry besides whiteouts and opaque directories; `None`: no others.
    pub features: Option<MountFeatures>,
}

/// The parts of a stacked tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// The driver's directory: relative names start here.
    pub home: PathBuf,
    /// Read-only layers, top first; never empty.
    pub lowers: Vec<LayerDir>,
    /// The writable layer; `None` for a read-only mount.
    pub upper: Option<LayerDir>,
    /// The kernel's work directory, on the same file system; present exactly if `upper` is.
    pub work: Option<PathBuf>,
    /// Where Docker would mount it. It doesn't exist until it is created (mode 0700) for a mount.
    pub merged: PathBuf,
}

/// How a tree is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One directory is the whole tree: it can be used or bind-mounted as it is.
    Plain {
        /// The directory.
        root: PathBuf,
        /// It must not be written.
        read_only: bool,
        /// The full tree that it was copied from, for comparing; `None` if it began empty.
        base: Option<PathBuf>,
    },
    /// Layers to be stacked by an overlay mount.
    Overlay(Overlay),
}

/// Everything needed to mount, compare or read a snapshot's tree. All paths are absolute.
///
/// A value shows one moment: another process may remove the snapshot right after. Layers don't
/// change while the snapshot exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeParts {
    /// The tree's own directory name.
    pub tree: TreeId,
    /// Its driver.
    pub driver: DriverKind,
    /// Its kind; views and committed ones have no upper.
    pub kind: SnapshotKind,
    /// Its shape.
    pub shape: Shape,
    /// What its upper was first mounted with: later mounts must use the same. `None`: never
    /// mounted.
    pub features: Option<MountFeatures>,
    /// The upper's size limit in bytes, if one was asked for and the file system enforces it.
    pub size_limit_bytes: Option<u64>,
}

impl TreeParts {
    /// Returns the directories that make up the tree, top first, including the upper: what a reader
    /// merges.
    pub fn layers(&self) -> Vec<LayerDir> {
        match &self.shape {
            Shape::Plain { root, .. } => vec![LayerDir {
                tree: self.tree.clone(),
                dir: root.clone(),
                link: None,
                diff_id: None,
                features: None,
            }],
            Shape::Overlay(overlay) => overlay
                .upper
                .iter()
                .chain(&overlay.lowers)
                .cloned()
                .collect(),
        }
    }
}

/// What a record says about one tree, as drivers need it.
#[derive(Clone, Debug)]
pub(crate) struct TreeRef {
    pub id: TreeId,
    pub kind: SnapshotKind,
    pub link: Option<LinkId>,
    pub diff_id: Option<Digest>,
    pub features: Option<MountFeatures>,
}

/// A tree to be laid out.
pub(crate) struct NewTree<'a> {
    pub id: &'a TreeId,
    /// `Committed` means a layer to be filled: it is sealed before it is recorded.
    pub kind: SnapshotKind,
    pub link: Option<&'a LinkId>,
    /// Parents, nearest first.
    pub parents: &'a [TreeRef],
}

/// What a driver does. `dir` is the tree's directory wherever it is now: staged or in place.
pub(crate) trait Driver: Send + Sync {
    /// Its name: also its directory's name, and recorded with every snapshot.
    fn name(&self) -> &'static str;

    /// Other programs' names for it.
    fn other_names(&self) -> &'static [&'static str] {
        &[]
    }

    /// How a layer's tar is applied to what [`Driver::fill`] returns.
    fn marks(&self) -> LayerMarks;

    /// See [`DriverKind::keeps_mount_points`].
    fn keeps_mount_points(&self) -> bool {
        true
    }

    /// Creates the driver's own directory and tests whether the file system is fit for it; see
    /// [`crate::StoreOptions::any_file_system`].
    fn create_home(&self, layout: &Layout, any_file_system: bool) -> Result<()>;

    /// The directory, inside the driver's own, for the short names of its trees; `None` if they
    /// have none. If there is one, [`Driver::link`] and [`Driver::unlink`] do something.
    fn links(&self) -> Option<&'static str> {
        None
    }

    /// Returns the tree that a short name points to, by its text; `None` if the text has another
    /// form. The tree need not exist.
    fn leads_to(&self, _layout: &Layout, _link: &LinkId) -> Option<TreeId> {
        None
    }

    /// Lays out `new` in the empty directory `dir`. Anything outside `dir` is only read.
    ///
    /// Returns true if data was copied, so that syncing the directories alone is not enough.
    fn stage(&self, layout: &Layout, dir: &Path, new: &NewTree<'_>) -> Result<bool>;

    /// Returns the directories under a staged tree that must be synced one by one on file systems
    /// without a journal to order them.
    fn staged_parts(&self, new: &NewTree<'_>) -> Vec<&'static str>;

    /// Does what the tree needs outside its own directory, after it was renamed into place.
    fn link(&self, _layout: &Layout, _new: &NewTree<'_>) -> Result<()> {
        Ok(())
    }

    /// Undoes [`Driver::link`]. A missing link is not an error.
    fn unlink(&self, _layout: &Layout, _link: Option<&LinkId>) -> Result<()> {
        Ok(())
    }

    /// Returns the directory that a layer's tar is applied to.
    fn fill(&self, dir: &Path) -> PathBuf;

    /// Turns the writable tree in `dir` into a layer; `parents` are its parents. Can be repeated
    /// after a crash.
    fn seal(&self, layout: &Layout, dir: &Path, tree: &TreeRef, parents: &[TreeRef]) -> Result<()>;

    /// Removes what [`Driver::seal`] left for an unfinished commit; called once the record says
    /// committed.
    fn settle(&self, dir: &Path) -> Result<()>;

    /// Makes `parents` the parents of a tree that has none.
    fn rebase(&self, dir: &Path, parents: &[TreeRef]) -> Result<()>;

    /// Returns what the tree itself takes.
    fn usage(
        &self,
        layout: &Layout,
        dir: &Path,
        tree: &TreeRef,
        parents: &[TreeRef],
    ) -> Result<Usage>;

    /// Returns the tree's parts.
    fn shape(&self, layout: &Layout, tree: &TreeRef, parents: &[TreeRef]) -> Shape;

    /// Checks what a mount of a tree reads through its `parent`, and repairs it if `heal` is set.
    /// Cheap: a few system calls.
    fn ready(&self, layout: &Layout, parent: &TreeRef, heal: bool) -> Result<Vec<Finding>>;

    /// Compares the tree with its record and returns what is wrong. With `heal`, what is only
    /// derived from the record (short names, lists of lowers) is repaired; each finding says
    /// whether it was.
    fn check(
        &self,
        layout: &Layout,
        tree: &TreeRef,
        parents: &[TreeRef],
        heal: bool,
    ) -> Result<Vec<Finding>>;
}

/// One thing that `check` found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is about: a path or a record.
    pub what: String,
    /// What is wrong.
    pub why: String,
    /// True if it was repaired.
    pub healed: bool,
}

impl Finding {
    /// A directory that holds data is missing.
    pub(crate) fn lost(path: &Path) -> Self {
        Self {
            what: path.display().to_string(),
            why: "the directory is missing, and its contents are lost".into(),
            healed: false,
        }
    }

    /// What is wrong with a directory that holds data: nothing, it is missing, or something else is
    /// in its place.
    pub(crate) fn unless_there(path: &Path) -> Result<Vec<Self>> {
        match layout::dir(path) {
            Ok(_) => Ok(Vec::new()),
            Err(StoreError::Sys(e)) if e.is_not_found() => Ok(vec![Self::lost(path)]),
            Err(StoreError::Damaged { what, why }) => Ok(vec![Self {
                what,
                why: format!("{why}; its contents are lost unless the directory is put back"),
                healed: false,
            }]),
            Err(e) => Err(e),
        }
    }

    /// What is wrong with a directory that holds nothing lasting and can be created again, which
    /// `heal` does.
    pub(crate) fn unless_made(path: &Path, mode: u32, heal: bool) -> Result<Vec<Self>> {
        let why = match layout::dir(path) {
            Ok(_) => return Ok(Vec::new()),
            Err(StoreError::Sys(e)) if e.is_not_found() => "missing".to_owned(),
            Err(StoreError::Damaged { why, .. }) => why,
            Err(e) => return Err(e),
        };
        if heal {
            plain::unlink(path).map_err(layout::damaged)?;
            make_dir(path, mode)?;
        }
        Ok(vec![Self {
            what: path.display().to_string(),
            why,
            healed: heal,
        }])
    }

    /// The same for a directory that is not used any more and may be missing. Anything else in its
    /// place doesn't belong there.
    pub(crate) fn unless_made_or_missing(path: &Path, mode: u32, heal: bool) -> Result<Vec<Self>> {
        match layout::exists(path)? {
            true => Self::unless_made(path, mode, heal),
            false => Ok(Vec::new()),
        }
    }
}

/// Creates the directory of a driver that stacks, unless the kernel can't use the file system for
/// it (see [`unfit`]) and only the kernel would stack the layers.
pub(crate) fn make_stacking_home(home: &Path, mode: u32, any_file_system: bool) -> Result<()> {
    make_dir(home, mode)?;
    let why = if !vellum_sys::probe::takes_whiteouts(&layout::dir(home)?)? {
        Some(NO_WHITEOUTS.to_owned())
    } else if any_file_system {
        None
    } else {
        let facts = vellum_sys::probe::directory(home)?;
        unfit(&facts.fs_name, facts.d_type)
    };
    let Some(why) = why else {
        return Ok(());
    };
    // Nothing is in it yet. If it stayed, the file system would count as tested.
    std::fs::remove_dir(home).on("remove", home)?;
    Err(StoreError::Unsupported {
        what: format!("storage driver at {}", home.display()),
        why,
    })
}

const NO_WHITEOUTS: &str = "the backing file system takes no devices 0:0, with which layers hide names: it is an overlay or a union itself, as the root of \
    a container is. Give --root a directory on another one, a volume for instance, or use the storage driver native";

/// Says why a file system can't hold the kernel overlay's upper directories, and what to do; `None`
/// if it can.
fn unfit(fs_name: &str, d_type: bool) -> Option<String> {
    if vellum_sys::probe::is_network(fs_name) {
        return Some(format!(
            "the backing file system is {fs_name}, a network file system, on which the kernel's overlay has no writable layers. \
             Put the store on a local one (--root), use the storage driver native, or engine = auto with /dev/fuse: Vellum's own engine \
             may serve; locks hold on one machine only, so that no other one may use the store meanwhile"
        ));
    }
    if d_type {
        return None;
    }
    let cure = match fs_name {
        "xfs" => "Reformat the file system with ftype=1 to enable d_type support",
        "extfs" => "Enable it with `tune2fs -O filetype` and `e2fsck -fD`, unmounted",
        _ => "Put the store on a file system that has it",
    };
    Some(format!(
        "the backing {fs_name} file system is formatted without d_type support, which leads to incorrect behavior. {cure}, \
         use the storage driver native, or engine = auto with /dev/fuse: Vellum's own engine needs no d_type, the kernel's overlay does"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_file_system_is_refused_with_what_works() {
        for network in ["nfs", "cifs", "smb2", "ceph", "v9fs", "afs"] {
            let why = unfit(network, true).unwrap();
            assert!(why.contains(network) && why.contains("native"), "{why}");
        }
        for local in ["extfs", "xfs", "btrfs", "tmpfs", "fuse"] {
            assert_eq!(unfit(local, true), None);
        }
        assert!(unfit("xfs", false).unwrap().contains("ftype=1"));
    }

    #[test]
    fn names_on_disk_are_parsed_strictly() {
        assert!(TreeId::try_from("../x".to_owned()).is_err());
        assert!(TreeId::try_from("A".repeat(64)).is_err());
        assert_eq!(
            TreeId::try_from(TreeId::random().to_string())
                .unwrap()
                .as_str()
                .len(),
            64
        );
        let link = LinkId::random();
        assert_eq!(link.as_str().len(), 26);
        assert!(LinkId::try_from(link.as_str().to_owned()).is_ok());
        assert!(LinkId::try_from(String::new()).is_err());
        assert!(LinkId::try_from(format!("../{}", "A".repeat(23))).is_err());
    }

    #[test]
    fn driver_names_of_other_programs_are_understood() {
        assert_eq!("vfs".parse::<DriverKind>().unwrap(), DriverKind::Native);
        assert_eq!(
            "overlayfs".parse::<DriverKind>().unwrap(),
            DriverKind::Overlay2
        );
        assert!(
            "devicemapper"
                .parse::<DriverKind>()
                .unwrap_err()
                .to_string()
                .contains("known drivers: overlay2, overlay and native")
        );
        for kind in DriverKind::ALL {
            assert_eq!(kind.as_str().parse::<DriverKind>().unwrap(), kind);
            let json = serde_json::to_string(&kind).unwrap();
            assert_eq!(json, format!("{:?}", kind.as_str()));
        }
    }
}
