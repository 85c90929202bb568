//! What a path below the store's root is: this module parses the names that `layout.rs` makes.
//!
//! Everything that the store creates is on one of a few shelves, and its name there says what it
//! is. `Layout::locate` parses one path, `Layout::holds` lists a shelf, and `rows::is_recorded`
//! asks the database about what was found. The collector, a rebuild, `check` and `why` all parse
//! names through this module, so they can't disagree about one. It looks at names alone: the caller
//! finds out whether a file or a directory has the name, and what is in it.
//!
//! A name that the store never makes is a [`Located::Stranger`], which everything leaves alone.

use std::path::{Path, PathBuf};

use vellum_format::Digest;

use crate::driver::{self, DriverKind, LinkId, TreeId};

/// A directory of the store whose entries are all of one type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shelf {
    /// The trees of a driver.
    Trees(DriverKind),
    /// The short names of a driver's trees, if it gives them any.
    Links(DriverKind),
    /// Record files.
    Records,
    Blobs,
    Recipes,
    Volumes,
    Staging,
    Trash,
    /// The mark of the generation.
    Generation,
}

/// What a path in the store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Located {
    /// A tree, or something in it.
    Tree(DriverKind, TreeId),
    /// The short name of a tree.
    Link(DriverKind, LinkId),
    /// The record file of a tree.
    Record(TreeId),
    /// The record file of an image or container, by the digest in its name. `None`: no image or
    /// container has such a name.
    Sidecar(SidecarKind, Option<Digest>),
    Blob(Digest),
    /// A recipe, by diff id. `None`: no layer has such a diff id.
    Recipe(Option<Digest>),
    /// A volume, or something in it.
    Volume(String),
    /// Something that a command is creating.
    Staged,
    /// Something that waits to be deleted.
    Trashed,
    /// A shelf itself.
    Shelf(Shelf),
    /// A directory that holds shelves of blobs, or held some.
    Content,
    /// The root, the database and the files that accompany it, the mark.
    Own,
    /// Space reserved for a full disk.
    Reserve,
    /// A database that a rebuild set aside.
    OldDatabase,
    /// What repairs took out of trees, or something in it; perhaps also what fsck found.
    LostFound,
    /// Something that the store didn't create.
    Stranger,
}

/// The type of a record file that is not a tree's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SidecarKind {
    /// An image: the digest in the name is its id.
    Image,
    /// A container: the caller chooses its id, so the name has the id's digest.
    Container,
}

impl SidecarKind {
    fn prefix(self) -> &'static str {
        match self {
            Self::Image => "image-",
            Self::Container => "container-",
        }
    }

    /// Returns the type that a file's name says.
    pub fn of(name: &str) -> Option<Self> {
        [Self::Image, Self::Container]
            .into_iter()
            .find(|kind| name.starts_with(kind.prefix()))
    }

    /// Returns the name of the file for this digest.
    pub fn file_name(self, digest: &Digest) -> String {
        format!("{}{}.json", self.prefix(), digest.hex())
    }

    /// Returns the digest in a file's name.
    pub fn digest_in(self, name: &str) -> Option<Digest> {
        let hex = name.strip_prefix(self.prefix())?.strip_suffix(".json")?;
        Digest::from_hex(hex).ok()
    }
}

/// The directory of the shelves of blobs, one for each algorithm.
pub(crate) const CONTENT: &str = "content";

/// Always empty; earlier versions of Vellum look into it.
pub(crate) const CONTENT_UNUSED: &str = "content/sha512";

pub(crate) const DATABASE: &str = "vellum.db";

/// The files that SQLite keeps next to a database, by the suffix of their names.
pub(crate) const DATABASE_COMPANIONS: [&str; 3] = ["-journal", "-wal", "-shm"];

pub(crate) const RESERVE: &str = "reserve";

/// Where repairs put what doesn't belong in a tree.
pub(crate) const LOST_FOUND: &str = "lost+found";

impl Shelf {
    /// All of them; trees come before what is named after them.
    pub fn all() -> impl Iterator<Item = Self> {
        let links = |kind: &DriverKind| driver::driver(*kind).links().is_some();
        let trees = DriverKind::ALL.into_iter().map(Self::Trees);
        let links = DriverKind::ALL.into_iter().filter(links).map(Self::Links);
        trees.chain(links).chain([
            Self::Records,
            Self::Blobs,
            Self::Recipes,
            Self::Volumes,
            Self::Staging,
            Self::Trash,
            Self::Generation,
        ])
    }

    /// Returns its path below the root: part of the on-disk format.
    pub fn dir(self) -> PathBuf {
        match self {
            Self::Trees(kind) => kind.as_str().into(),
            Self::Links(kind) => {
                Path::new(kind.as_str()).join(driver::driver(kind).links().unwrap_or_default())
            }
            Self::Records => "records".into(),
            Self::Blobs => Path::new(CONTENT).join(Digest::ALGORITHM),
            Self::Recipes => "recipes".into(),
            Self::Volumes => "volumes".into(),
            Self::Staging => "staging".into(),
            Self::Trash => "trash".into(),
            Self::Generation => "generation".into(),
        }
    }

    /// Says what has this name on the shelf.
    pub fn read(self, name: &str) -> Located {
        let tree = |name: &str| TreeId::try_from(name.to_owned()).ok();
        let found = match self {
            Self::Trees(kind) => tree(name).map(|tree| Located::Tree(kind, tree)),
            Self::Links(kind) => {
                let link = LinkId::try_from(name.to_owned());
                link.ok().map(|link| Located::Link(kind, link))
            }
            Self::Records => match name.strip_suffix(".json").and_then(tree) {
                Some(tree) => Some(Located::Record(tree)),
                None => {
                    SidecarKind::of(name).map(|kind| Located::Sidecar(kind, kind.digest_in(name)))
                }
            },
            Self::Blobs => Digest::from_hex(name).ok().map(Located::Blob),
            Self::Recipes => Some(Located::Recipe(Digest::from_hex(name).ok())),
            Self::Volumes => Some(Located::Volume(name.to_owned())),
            Self::Staging => Some(Located::Staged),
            Self::Trash => Some(Located::Trashed),
            Self::Generation => Some(Located::Own),
        };
        found.unwrap_or(Located::Stranger)
    }
}

/// Returns the names of a store's own directories directly below its root.
pub fn directories() -> Vec<PathBuf> {
    let mut dirs = own_dirs();
    dirs.retain(|dir| dir.iter().count() == 1);
    dirs
}

/// Returns the store's own directories below its root, each after its parent.
pub(crate) fn own_dirs() -> Vec<PathBuf> {
    let mut dirs: Vec<PathBuf> = vec![CONTENT.into(), CONTENT_UNUSED.into()];
    dirs.extend(Shelf::all().map(Shelf::dir));
    dirs.sort_by_key(|dir| dir.iter().count());
    dirs
}

impl Located {
    /// Says what `below` is, a path relative to the store's root.
    pub fn of(below: &Path) -> Self {
        // The deepest shelf on the way counts: short names are on a shelf among trees.
        let shelf = Shelf::all()
            .filter(|shelf| below.starts_with(shelf.dir()))
            .max_by_key(|shelf| shelf.dir().iter().count());
        let Some(shelf) = shelf else {
            return outside_shelves(below);
        };
        let name = below.iter().nth(shelf.dir().iter().count());
        match name.map(|name| name.to_str()) {
            None => Located::Shelf(shelf),
            Some(Some(name)) => shelf.read(name),
            // The store's own names are all text.
            Some(None) => Located::Stranger,
        }
    }
}

/// Says what a path that is on no shelf is.
fn outside_shelves(below: &Path) -> Located {
    if below.starts_with(LOST_FOUND) {
        return Located::LostFound;
    }
    let Some(text) = below.to_str() else {
        return Located::Stranger;
    };
    match text.strip_prefix(DATABASE) {
        _ if text.is_empty() => Located::Own,
        _ if text == RESERVE => Located::Reserve,
        _ if text == CONTENT || text == CONTENT_UNUSED => Located::Content,
        Some("") => Located::Own,
        Some(more) if DATABASE_COMPANIONS.contains(&more) => Located::Own,
        Some(more) if more.starts_with('.') => Located::OldDatabase,
        _ => Located::Stranger,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Layout;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn every_path_has_one_meaning() {
        let layout = Layout::new("/store".into());
        let check = |path: &str, expect: Located| {
            let path = path.replace("HEX", HEX);
            assert_eq!(layout.locate(Path::new(&path)), Some(expect), "{path}");
        };
        let tree = || TreeId::try_from(HEX.to_owned()).unwrap();
        let digest = Digest::from_hex(HEX).unwrap();
        let link = LinkId::try_from("A".repeat(26)).unwrap();
        use DriverKind::{Native, Overlay2};

        check("", Located::Own);
        check("/store", Located::Own);
        check("overlay2", Located::Shelf(Shelf::Trees(Overlay2)));
        check("/store/overlay2/HEX", Located::Tree(Overlay2, tree()));
        check("native/HEX/root/etc", Located::Tree(Native, tree()));
        check("overlay2/l", Located::Shelf(Shelf::Links(Overlay2)));
        check(
            "overlay2/l/AAAAAAAAAAAAAAAAAAAAAAAAAA",
            Located::Link(Overlay2, link),
        );
        for stranger in [
            "overlay2/l/short",
            "native/l",
            "overlay2/other",
            "records/other",
            "records/HEX",
            "records/HEX.json.new",
            "content/sha256/other",
            "content/sha512/HEX",
            "content/md5",
            "vellum.db-other",
            "vellum.dbx",
            "overlay2x/HEX",
        ] {
            check(stranger, Located::Stranger);
        }
        check("records", Located::Shelf(Shelf::Records));
        check("records/HEX.json", Located::Record(tree()));
        use SidecarKind::{Container, Image};
        check(
            "records/image-HEX.json",
            Located::Sidecar(Image, Some(digest)),
        );
        check("records/image-other", Located::Sidecar(Image, None));
        check(
            "records/container-HEX.json",
            Located::Sidecar(Container, Some(digest)),
        );
        check("content", Located::Content);
        check("content/sha256", Located::Shelf(Shelf::Blobs));
        check("content/sha512", Located::Content);
        check("content/sha256/HEX", Located::Blob(digest));
        check("recipes/HEX", Located::Recipe(Some(digest)));
        check("recipes/other", Located::Recipe(None));
        check("volumes/data.json/x", Located::Volume("data.json".into()));
        check("staging/x", Located::Staged);
        check("trash/x/y", Located::Trashed);
        check("generation", Located::Shelf(Shelf::Generation));
        check("generation/HEX", Located::Own);
        check("reserve", Located::Reserve);
        check("lost+found", Located::LostFound);
        check("lost+found/HEX.20261201T000000Z.0.etc", Located::LostFound);
        check("vellum.db", Located::Own);
        check("vellum.db-journal", Located::Own);
        check("vellum.db.17", Located::OldDatabase);
        check("vellum.db.17-wal", Located::OldDatabase);
        assert_eq!(layout.locate(Path::new("/elsewhere")), None);
        assert_eq!(layout.locate(Path::new("/storehouse")), None);
    }

    #[test]
    fn paths_from_layout_are_located_as_what_they_are() {
        let layout = Layout::new("/store".into());
        let tree = TreeId::random();
        let digest = Digest::of(b"x");
        for kind in DriverKind::ALL {
            let found = layout.locate(&layout.tree(kind, &tree));
            assert_eq!(found, Some(Located::Tree(kind, tree.clone())));
        }
        let found = [
            layout.record(&tree),
            layout.records().join(SidecarKind::Image.file_name(&digest)),
            layout.blob(&digest),
            layout.recipe(&digest),
            layout.volumes().join("v"),
            layout.database(),
            layout.reserve(),
        ]
        .map(|path| layout.locate(&path).unwrap());
        let expect = [
            Located::Record(tree),
            Located::Sidecar(SidecarKind::Image, Some(digest)),
            Located::Blob(digest),
            Located::Recipe(Some(digest)),
            Located::Volume("v".into()),
            Located::Own,
            Located::Reserve,
        ];
        assert_eq!(found, expect);
    }
}
