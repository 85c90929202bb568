//! Drivers: the shapes in which a tree can lie on disk.
//!
//! A driver knows where the parts of a tree are and how a new one is laid out in a staging
//! directory, sealed when it becomes a layer, and repaired from the record. It must not know about
//! records, keys, transactions or mounts: the store calls it between staging and record (see
//! `tx.rs`), and whoever mounts gets [`TreeParts`]. Every snapshot remembers its driver, so a store
//! may hold trees of several; a child always uses its parent's.

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

/// Makes [`DriverKind`] of one line a driver. Beside its `mod` this is all that there is of a
/// driver outside its own file: what sets it apart it says itself, in [`Driver`].
macro_rules! drivers {
    ($($(#[$attribute:meta])* $kind:ident => $driver:path,)+) => {
        /// The drivers there are.
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
    /// Returns the name as users write it and as it stands on disk.
    pub fn as_str(self) -> &'static str {
        driver(self).name()
    }

    /// Tells how the marks of a tar are written into a layer.
    pub fn marks(self) -> LayerMarks {
        driver(self).marks()
    }

    /// True if a layer holds only its own changes, so that it can be filled before its parent is
    /// known, and put on it later.
    pub fn stacks(self) -> bool {
        match self.marks() {
            LayerMarks::Overlay => true,
            LayerMarks::Whole | LayerMarks::Plain => false,
        }
    }

    /// True if a writable tree on a layer is an overlay, which the kernel or Vellum's engine shows.
    pub fn makes_overlays(self) -> bool {
        match self.marks() {
            LayerMarks::Overlay | LayerMarks::Whole => true,
            LayerMarks::Plain => false,
        }
    }

    /// False if the mount point in a tree is there only while something is mounted on it.
    pub fn keeps_mount_points(self) -> bool {
        driver(self).keeps_mount_points()
    }

    /// Returns all names as a part of a sentence; `before_last` is "and" or "or".
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

    /// Reads a driver's name, or what another program calls it.
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

/// The directory name of one tree: 64 hexadecimal digits, random, never used twice.
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

/// The short name of an `overlay2` tree under `l/`: 26 letters and digits of base32, as Docker
/// makes them.
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

/// How the marks of a tar (whiteouts, opaque directories) are to be written into a staged layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerMarks {
    /// As the kernel's overlay marks: the tree holds only what the layer changes.
    Overlay,
    /// Not at all: the parent's full tree is already there, a whiteout deletes, and every file is
    /// unlinked before it is written, since it may be a hard link into the parent. Overlays will be
    /// mounted on the tree, so what is called as their own marks is kept under other names.
    Whole,
    /// As [`LayerMarks::Whole`], and no overlay is ever mounted on it.
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
    /// Which marks beyond whiteouts and opaque directories it may carry; `None`: no such marks.
    pub features: Option<MountFeatures>,
}

/// The parts of a stacked tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// The driver's directory: relative names start here.
    pub home: PathBuf,
    /// Read-only layers, top first; never empty.
    pub lowers: Vec<LayerDir>,
    /// The writable layer; `None` for what is to be mounted read-only.
    pub upper: Option<LayerDir>,
    /// The kernel's work directory, on the same file system; there exactly if `upper` is.
    pub work: Option<PathBuf>,
    /// Where Docker would mount it. Not there until somebody makes it (mode 0700) and mounts.
    pub merged: PathBuf,
}

/// How a tree is to be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One directory is the whole tree: it can be used or bind-mounted as it is.
    Plain {
        /// The directory.
        root: PathBuf,
        /// It must not be written.
        read_only: bool,
        /// The full tree that it was copied from, for comparing; `None` where it began empty.
        base: Option<PathBuf>,
    },
    /// Layers to be stacked by an overlay mount.
    Overlay(Overlay),
}

/// Everything that mounting, comparing or reading a snapshot's tree needs. All paths are absolute.
///
/// A value is a picture of the moment: the snapshot may be removed by another process right after.
/// Layers don't change under it while the snapshot is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeParts {
    /// The tree's own directory name.
    pub tree: TreeId,
    /// Its driver.
    pub driver: DriverKind,
    /// What it is; views and committed ones come without an upper.
    pub kind: SnapshotKind,
    /// Its shape.
    pub shape: Shape,
    /// What its upper was first mounted with: later mounts must use the same. `None`: never
    /// mounted.
    pub features: Option<MountFeatures>,
    /// Limit of the upper in bytes, if one was asked for and is enforced by the file system.
    pub size_limit_bytes: Option<u64>,
}

impl TreeParts {
    /// Returns the directories that make up the tree, top first, the upper included: what a reader
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

/// A tree about to be laid out.
pub(crate) struct NewTree<'a> {
    pub id: &'a TreeId,
    /// `Committed` means a layer to be filled: it will be sealed before it is recorded.
    pub kind: SnapshotKind,
    pub link: Option<&'a LinkId>,
    /// Parents, nearest first.
    pub parents: &'a [TreeRef],
}

/// What a driver does. `dir` is the tree's directory wherever it lies now: staged or in place.
pub(crate) trait Driver: Send + Sync {
    /// Its name: its directory's, and recorded with every snapshot.
    fn name(&self) -> &'static str;

    /// What other programs call it.
    fn other_names(&self) -> &'static [&'static str] {
        &[]
    }

    /// How a layer's tar is applied to what [`Driver::fill`] returns.
    fn marks(&self) -> LayerMarks;

    /// See [`DriverKind::keeps_mount_points`].
    fn keeps_mount_points(&self) -> bool {
        true
    }

    /// Makes the driver's own directory and tries whether the file system can carry it; see
    /// [`crate::StoreOptions::any_file_system`].
    fn create_home(&self, layout: &Layout, any_file_system: bool) -> Result<()>;

    /// The directory, in the driver's own, of the short names of its trees; `None` if they have
    /// none. Where there is one, [`Driver::link`] and [`Driver::unlink`] do something.
    fn links(&self) -> Option<&'static str> {
        None
    }

    /// Returns the tree that a short name leads to, by what it says; `None` if it says nothing of
    /// the kind. The tree need not be there.
    fn leads_to(&self, _layout: &Layout, _link: &LinkId) -> Option<TreeId> {
        None
    }

    /// Lays out `new` in the empty directory `dir`. Nothing outside `dir` is touched but read.
    ///
    /// Returns true if data was copied, so that small directory syncs won't do.
    fn stage(&self, layout: &Layout, dir: &Path, new: &NewTree<'_>) -> Result<bool>;

    /// Returns the directories under a staged tree that must be synced one by one where no journal
    /// orders them.
    fn staged_parts(&self, new: &NewTree<'_>) -> Vec<&'static str>;

    /// Does what the tree needs outside its own directory, after it was renamed into place.
    fn link(&self, _layout: &Layout, _new: &NewTree<'_>) -> Result<()> {
        Ok(())
    }

    /// Undoes [`Driver::link`]. What is not there is no error.
    fn unlink(&self, _layout: &Layout, _link: Option<&LinkId>) -> Result<()> {
        Ok(())
    }

    /// Returns where a layer's tar is applied to.
    fn fill(&self, dir: &Path) -> PathBuf;

    /// Turns the writable tree in `dir` into a layer, its parents being `parents`. Can be repeated
    /// after a crash.
    fn seal(&self, layout: &Layout, dir: &Path, tree: &TreeRef, parents: &[TreeRef]) -> Result<()>;

    /// Takes away what [`Driver::seal`] left for an unfinished commit; called once the record says
    /// committed.
    fn settle(&self, dir: &Path) -> Result<()>;

    /// Puts a parentless tree on `parents`.
    fn rebase(&self, dir: &Path, parents: &[TreeRef]) -> Result<()>;

    /// Returns what the tree takes by itself.
    fn usage(
        &self,
        layout: &Layout,
        dir: &Path,
        tree: &TreeRef,
        parents: &[TreeRef],
    ) -> Result<Usage>;

    /// Returns the tree's parts.
    fn shape(&self, layout: &Layout, tree: &TreeRef, parents: &[TreeRef]) -> Shape;

    /// Compares what a mount of a tree reads through its `parent`; with `heal` it is put right.
    /// Cheap: a few calls of the system.
    fn ready(&self, layout: &Layout, parent: &TreeRef, heal: bool) -> Result<Vec<Finding>>;

    /// Compares the tree with its record and returns what is wrong. With `heal`, what is only
    /// derived from the record (short names, lists of lowers) is put right; each finding says
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
    /// True if it was put right.
    pub healed: bool,
}

impl Finding {
    /// A directory that holds data is not there.
    pub(crate) fn lost(path: &Path) -> Self {
        Self {
            what: path.display().to_string(),
            why: "the directory is missing; what was in it is lost".into(),
            healed: false,
        }
    }

    /// What there is to say about a directory that holds data: nothing, that it is lost, or that
    /// something else stands there.
    pub(crate) fn unless_there(path: &Path) -> Result<Vec<Self>> {
        match layout::dir(path) {
            Ok(_) => Ok(Vec::new()),
            Err(StoreError::Sys(e)) if e.is_not_found() => Ok(vec![Self::lost(path)]),
            Err(StoreError::Damaged { what, why }) => Ok(vec![Self {
                what,
                why: format!("{why}; what was in it is lost, unless it is put back"),
                healed: false,
            }]),
            Err(e) => Err(e),
        }
    }

    /// What there is to say about a directory that holds nothing lasting and can be made anew; with
    /// `heal` it is.
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

    /// The same of a directory that is of no use any more and may be missing. Anything else in its
    /// place doesn't belong there.
    pub(crate) fn unless_made_or_missing(path: &Path, mode: u32, heal: bool) -> Result<Vec<Self>> {
        match layout::exists(path)? {
            true => Self::unless_made(path, mode, heal),
            false => Ok(Vec::new()),
        }
    }
}

/// Makes the directory of a driver that stacks, unless the kernel would refuse to on its file
/// system (see [`unfit`]): unless somebody else stacks the layers they would be of no use.
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
    // Nothing is in it yet; left behind, it would count as tried.
    std::fs::remove_dir(home).on("remove", home)?;
    Err(StoreError::Unsupported {
        what: format!("storage driver at {}", home.display()),
        why,
    })
}

const NO_WHITEOUTS: &str = "the backing file system takes no devices 0:0, with which layers hide names: it is an overlay or a union itself, as the root of \
    a container is. Give --root a directory on another one, a volume for instance, or use the storage driver native";

/// Says why the kernel's overlay can't have its upper directories on a file system, and what to do;
/// `None` if nothing speaks against it.
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
    fn other_peoples_driver_names_are_understood() {
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
                .contains("there are overlay2, overlay and native")
        );
        for kind in DriverKind::ALL {
            assert_eq!(kind.as_str().parse::<DriverKind>().unwrap(), kind);
            let json = serde_json::to_string(&kind).unwrap();
            assert_eq!(json, format!("{:?}", kind.as_str()));
        }
    }
}
