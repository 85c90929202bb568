//! The marks of one inode, each by itself: is it well formed, on the right kind of inode, in the
//! right place, and does what it names exist?

use std::ffi::{OsStr, OsString};
use std::path::Path;

use rustix::io::Errno;
use vellum_format::{
    FUSE_OVERLAYFS_OPAQUE, Handle, Mark, MarkError, Metacopy, Nlink, Number, Opaque, Prefix,
    Protattr, Redirect, XattrName, block_map,
};
use vellum_sys::{FileKind, Stat};

use crate::fsck::origins::{Origin, kind_name};
use crate::fsck::{Check, Finding, Place, reason, told};
use crate::layer::blocks::maps;
use crate::layer::{LayerDir, Records, WhNames};
use crate::node;

/// What an inode is in the overlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// The root of a layer.
    Root,
    /// Anything below it.
    Entry,
    /// The directory of the index.
    Index,
    /// An entry of the index.
    Indexed,
}

/// An inode to look at.
pub(super) struct Inode<'a> {
    pub place: Place,
    /// The layer whose dialect it has.
    pub layer: usize,
    pub role: Role,
    pub dir: &'a dyn LayerDir,
    /// `None`: the directory itself.
    pub name: Option<&'a OsStr>,
    pub path: &'a Path,
    pub stat: &'a Stat,
}

impl Inode<'_> {
    fn error(&self, aspect: &'static str, why: impl Into<String>) -> Finding {
        Finding::error(self.place, self.path, aspect, why)
    }

    fn remark(&self, aspect: &'static str, why: impl Into<String>) -> Finding {
        Finding::remark(self.place, self.path, aspect, why)
    }

    fn is(&self, kind: FileKind) -> bool {
        self.stat.kind == kind
    }
}

/// The marks found, as far as they could be understood.
#[derive(Debug, Default)]
pub(super) struct Marks {
    pub opaque: Option<Opaque>,
    pub redirect: Option<Redirect>,
    pub metacopy: Option<Metacopy>,
    pub origin: Option<Handle>,
    /// The inode that the origin leads to.
    pub origin_at: Option<Box<Stat>>,
    /// The origin leads nowhere.
    pub origin_is_gone: bool,
    pub nlink: Option<Nlink>,
    pub upper: Option<Handle>,
    pub blocks: Option<Box<str>>,
    pub has_impure: bool,
    pub has_whiteout: bool,
    /// It came from elsewhere: it has an origin, a number or a redirect.
    pub is_foreign: bool,
    has_metacopy: bool,
    has_redirect: bool,
}

/// Marks that are found in the wrong dialect.
#[derive(Default)]
struct Strange {
    opaque: Option<Vec<u8>>,
    fuse_opaque: Option<Vec<u8>>,
}

impl Check<'_> {
    /// Reports what is wrong with the marks of one inode, and returns them.
    pub(super) fn inode(&mut self, at: &Inode<'_>) -> Marks {
        let mut marks = Marks::default();
        let mut strange = Strange::default();
        let prefix = self.overlay.prefix;
        let names = match at.dir.xattr_names(at.name) {
            Ok(names) => names,
            Err(error) if error.is(Errno::TOOBIG) => {
                let why = "it has more attributes than can be listed";
                self.sink.report(at.remark("read", why));
                let all = Mark::ALL.iter().map(|&mark| prefix.xattr(mark).to_owned());
                all.collect()
            }
            Err(error) => {
                self.unreadable(at.place, at.path, &error);
                return marks;
            }
        };
        for name in &names {
            match prefix.classify(name) {
                XattrName::Control(mark) => {
                    if let Some(value) = self.value(at, name) {
                        self.mark(at, &mut marks, mark, &value);
                    }
                }
                XattrName::UnknownControl => {
                    let why = format!("{} is not a known mark", name.display());
                    self.sink.report(at.remark("unknown", why));
                }
                XattrName::Escaped(_) => {
                    self.tally(at.place, at.path, "escaped", "marks of an inner overlay")
                }
                XattrName::Plain => self.foreign(at, name, &mut strange),
            }
        }
        self.together(at, &mut marks, &strange);
        marks
    }

    fn value(&mut self, at: &Inode<'_>, name: &OsStr) -> Option<Vec<u8>> {
        at.dir.xattr(at.name, name).unwrap_or_else(|error| {
            self.unreadable(at.place, at.path, &error);
            None
        })
    }

    /// Looks at an attribute that is not a mark of the overlay's own dialect.
    fn foreign(&mut self, at: &Inode<'_>, name: &OsString, strange: &mut Strange) {
        if name == FUSE_OVERLAYFS_OPAQUE {
            strange.fuse_opaque = self.value(at, name);
            return;
        }
        let other = match self.overlay.prefix {
            Prefix::Trusted => Prefix::User,
            Prefix::User => Prefix::Trusted,
        };
        match other.classify(name) {
            XattrName::Control(Mark::Opaque) => strange.opaque = self.value(at, name),
            XattrName::Control(_) => {
                let what = match other {
                    Prefix::Trusted => "marks in trusted.overlay.*, which this overlay ignores",
                    Prefix::User => "marks in user.overlay.*, which this overlay ignores",
                };
                self.tally(at.place, at.path, "dialect", what);
            }
            _ => {}
        }
    }

    fn parsed<T>(
        &mut self,
        at: &Inode<'_>,
        mark: Mark,
        value: &[u8],
        parse: impl FnOnce(&[u8]) -> Result<T, MarkError>,
    ) -> Option<T> {
        match parse(value) {
            Ok(parsed) => Some(parsed),
            Err(error) => {
                let finding = at.error(mark.as_str(), reason(&error));
                self.sink.report(Finding {
                    found: Some(shown(value)),
                    ..finding
                });
                None
            }
        }
    }

    /// Returns whether this kind of inode can have a mark, and reports it otherwise.
    fn fits(&mut self, at: &Inode<'_>, mark: Mark, kinds: &[FileKind]) -> bool {
        let fits = kinds.contains(&at.stat.kind);
        if !fits {
            let kinds: Vec<_> = kinds.iter().map(|&kind| kind_name(kind)).collect();
            let kinds = kinds.join(" or ");
            let found = kind_name(at.stat.kind);
            let why = format!("a {found} has this mark, which only a {kinds} can have");
            let finding = at.error(mark.as_str(), why);
            self.sink.report(finding.differing(kinds, found));
        }
        fits
    }

    fn mark(&mut self, at: &Inode<'_>, marks: &mut Marks, mark: Mark, value: &[u8]) {
        use FileKind::{Dir, File};
        let is_upper = self.is_upper(at.layer);
        match mark {
            Mark::Opaque => {
                if self.fits(at, mark, &[Dir]) {
                    marks.opaque = self.parsed(at, mark, value, Opaque::parse);
                }
                if at.role == Role::Root && marks.opaque == Some(Opaque::Opaque) {
                    let why = "it has no effect on the root of a layer";
                    self.sink.report(at.remark(mark.as_str(), why));
                }
            }
            Mark::Whiteout => {
                if self.fits(at, mark, &[File]) {
                    marks.has_whiteout = at.stat.size_bytes == 0;
                    if !marks.has_whiteout {
                        let why = "a file with content is marked as a whiteout, and shows";
                        let found = format!("{} bytes", at.stat.size_bytes);
                        let finding = at.error("whiteout", why);
                        self.sink.report(finding.differing("an empty file", found));
                    }
                }
            }
            Mark::Redirect => {
                marks.has_redirect = true;
                marks.is_foreign = true;
                marks.redirect = self.parsed(at, mark, value, Redirect::parse);
                self.fits(at, mark, &[Dir, File]);
                if at.role == Role::Root {
                    let why = "the root of a layer can't be renamed";
                    self.sink.report(at.error(mark.as_str(), why));
                }
            }
            Mark::Metacopy => {
                marks.has_metacopy = true;
                if self.fits(at, mark, &[File]) {
                    marks.metacopy = self.parsed(at, mark, value, Metacopy::parse);
                }
            }
            Mark::Origin => {
                marks.is_foreign |= at.role != Role::Root;
                marks.origin = self.parsed(at, mark, value, Handle::parse).flatten();
            }
            Mark::Impure => {
                marks.has_impure = true;
                self.fits(at, mark, &[Dir]);
                self.parsed(at, mark, value, vellum_format::impure);
            }
            Mark::Nlink => {
                marks.nlink = self.parsed(at, mark, value, Nlink::parse);
                if at.is(Dir) {
                    let why = "a directory has this mark, which only a file can have";
                    self.sink.report(at.error(mark.as_str(), why));
                }
            }
            Mark::Upper => {
                marks.upper = self.parsed(at, mark, value, Handle::parse).flatten();
                if !matches!(at.role, Role::Index | Role::Indexed) {
                    let why = "only directories in an index have this mark";
                    self.sink.report(at.error(mark.as_str(), why));
                }
            }
            Mark::Protattr => {
                self.fits(at, mark, &[File, Dir]);
                self.parsed(at, mark, value, Protattr::parse);
            }
            Mark::Uuid => {
                self.parsed(at, mark, value, vellum_format::uuid);
                if at.role != Role::Root {
                    let why = "only the root of an upper has this mark";
                    self.sink.report(at.remark(mark.as_str(), why));
                }
            }
            Mark::Number => {
                marks.is_foreign = true;
                self.parsed(at, mark, value, Number::parse);
            }
            Mark::Blocks => {
                if self.fits(at, mark, &[File]) {
                    marks.blocks = block_map::parse_name(value);
                    if marks.blocks.is_none() {
                        let finding = at.error("map", "the mark that names its map is damaged");
                        self.sink
                            .report(finding.differing("32 hex digits", shown(value)));
                    }
                }
            }
            Mark::Probe if is_upper => {
                let why = "a trial of whether marks can be set was not removed";
                self.sink.report(at.remark("probe", why));
            }
            Mark::Probe => {}
        }
    }

    /// Looks at what can only be judged once all marks are known.
    fn together(&mut self, at: &Inode<'_>, marks: &mut Marks, strange: &Strange) {
        let ignored = marks.redirect.is_some() || marks.metacopy.is_some();
        if ignored && self.is_upper(at.layer) && self.overlay.prefix == Prefix::User {
            self.beyond_kernels
                .get_or_insert_with(|| at.path.to_owned());
        }
        if at.is(FileKind::File) && marks.has_redirect && !marks.has_metacopy {
            let why = "a redirect without a metacopy mark is ignored: the file has its own data";
            self.sink.report(at.remark("redirect", why));
        }
        if marks.blocks.is_some() && marks.metacopy != Some(Metacopy::Unsettled) {
            let why = "it names a block map, but is not marked as partly copied";
            self.sink.report(at.remark("map", why));
        }
        if marks.metacopy == Some(Metacopy::Unsettled) {
            self.unsettled(at, marks);
        }
        self.opaque_in_every_dialect(at, marks, strange);
        let layer = &self.overlay.layers[at.layer];
        if layer.dialect().records == Records::Read
            && matches!(at.stat.kind, FileKind::File | FileKind::Dir)
            && let Err(error) = node::shown(&**layer, at.dir, at.name, at.stat)
        {
            let why = match error {
                crate::Error::Mark { source, .. } => reason(&source),
                other => told(&other),
            };
            self.sink.report(at.error("override_stat", why));
        }
        // Only an upper's origins are read.
        if self.is_upper(at.layer)
            && let Some(handle) = marks.origin.clone()
            && at.role != Role::Root
        {
            self.follow(at, marks, &handle);
        }
    }

    fn follow(&mut self, at: &Inode<'_>, marks: &mut Marks, handle: &Handle) {
        match self.origin(at.layer, handle) {
            Origin::At(stat) if stat.kind != at.stat.kind => {
                let (wanted, found) = (kind_name(stat.kind), kind_name(at.stat.kind));
                let why = format!("the {found} was copied from a {wanted}");
                self.sink
                    .report(at.error("origin", why).differing(wanted, found));
            }
            Origin::At(stat) => marks.origin_at = Some(stat),
            Origin::Gone => {
                marks.origin_is_gone = true;
                // Reported by the index, if it is in there.
                if at.role == Role::Entry {
                    let why = "what it was copied from no longer exists: its inode number changes";
                    self.sink.report(at.remark("origin", why));
                }
            }
            Origin::Elsewhere => {
                let what = "origins on a file system that no layer is on";
                self.tally(at.place, at.path, "origin", what);
            }
            Origin::Unknown => {}
        }
    }

    /// Different readers look at different marks, so all that are set must agree.
    fn opaque_in_every_dialect(&mut self, at: &Inode<'_>, marks: &Marks, strange: &Strange) {
        let own = marks.opaque.map(Opaque::encode);
        if let Some(other) = &strange.opaque {
            let differs = own.is_some_and(|own| own != other.as_slice());
            let finding = match differs {
                true => at.error(
                    "opaque",
                    "the marks in trusted.overlay.* and user.overlay.* disagree",
                ),
                false => at.remark(
                    "opaque",
                    "it is also marked in the namespace that this overlay ignores",
                ),
            };
            let expected = own.map_or_else(|| "no mark".to_owned(), shown);
            self.sink.report(finding.differing(expected, shown(other)));
        }
        let Some(fuse) = &strange.fuse_opaque else {
            return;
        };
        let by_name = self.overlay.layers[at.layer].dialect().wh_names == WhNames::Whiteouts;
        if fuse != b"y" {
            let why = "the value of fuse-overlayfs's mark is malformed";
            let finding = at.error("opaque", why);
            self.sink.report(finding.differing("y", shown(fuse)));
        } else if !by_name && marks.opaque != Some(Opaque::Opaque) {
            let why = "only fuse-overlayfs hides what is below: the kernel doesn't read its mark";
            self.sink.report(at.error("opaque", why));
        }
    }

    /// Checks a file that is copied up block by block.
    fn unsettled(&mut self, at: &Inode<'_>, marks: &Marks) {
        if !self.is_upper(at.layer) {
            let why = "only part of its data is here, and a lower layer has no map of it";
            self.sink.report(at.error("metacopy", why));
            return;
        }
        let Some(name) = &marks.blocks else {
            let why = "only part of its data is here, and no mark names its map";
            self.sink.report(at.error("map", why));
            return;
        };
        self.maps_named.insert(name.clone());
        let Some(maps) = &self.maps else {
            let finding = match self.overlay.work {
                Some(_) => at.error("map", "its map is not in this work directory"),
                None => at.remark(
                    "map",
                    "its map is in the work directory, which was not given",
                ),
            };
            self.sink.report(finding);
            return;
        };
        let below = self.whole.below_from_bottom();
        let checked = maps.0.read(name).and_then(|map| {
            maps::check_upper(&map, at.stat.ino)?;
            maps::open_lower(&map.header.lower, &below).map(drop)
        });
        if let Err(why) = checked {
            self.sink.report(at.error("map", why));
        }
    }
}

/// Shows the value of a mark: as text if it is text, and not beyond a few words.
pub(super) fn shown(value: &[u8]) -> String {
    const LONGEST: usize = 64;
    let cut = &value[..value.len().min(LONGEST)];
    let rest = match value.len() - cut.len() {
        0 => String::new(),
        more => format!("... and {more} bytes"),
    };
    format!("\"{}\"{rest}", cut.escape_ascii())
}
