//! Applying a layer's tar to a tree: one pass, rooted at a directory descriptor.
//!
//! `names.rs` parses names, `stack.rs` holds the open directories, `place.rs` creates objects,
//! `hide.rs` does whiteouts and removal, `attributes.rs` owners, modes and extended attributes.
//! This file walks the archive and keeps track of three things: what this layer has created (so
//! that its own deletions hide only what is in lower layers, in whatever order they come), which
//! directories it implies, and the recipe.
//!
//! Rules where the image specification is silent:
//! * An entry for the root directory sets the root's attributes. Whether there was one is reported,
//!   since a root that no layer lists has the attributes of the layer below.
//! * A whiteout hides the lower layers, never what its own layer contains; a name that is both
//!   hidden and contained as a directory is opaque.
//! * A hard link's header sets the attributes of the inode from then on, as with other tools.
//! * A hard link to something that is not in this layer is an error.
//! * Only the last component of a name turns an entry into a mark, whatever the entry's type.
//! * A symbolic link on the path to an entry is followed, inside the tree only, if this layer
//!   created it. A link from the parent is replaced by a directory, which is what an overlay of the
//!   two shows.
//! * Character device 0:0 is refused: it would act as a deletion.
//! * What this system can't hold (another system's attribute, a device where none can be created,
//!   an entry of a type that means nothing here) is left out of the tree and reported. The recipe
//!   has it, so the layer can still be written as it came.
//!
//! Invariants: every object is created under its own single-component name in an open directory,
//! exclusively, and never opened through a link; an existing file is removed before its name is
//! reused, never written to. Nothing is synced here. After an error the tree holds part of the
//! layer and can only be removed.

mod attributes;
mod hide;
mod names;
mod place;
mod stack;
mod target;
mod writeback;

use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use vellum_format::Digest;
use vellum_sys::{Cancel, Dir, FileKind, Timespec};

pub use hide::{drop_whiteouts, hide_all};
pub use target::{Applied, ApplyTarget, LeftOut, Privilege, TargetMarks};

use crate::error::{Error, Result};
use crate::limits::{Limits, check};
use crate::recipe::RecipeWriter;
use crate::stream::LayerStream;
use crate::tar::{Ending, Entry, EntryKind, TarReader, TarSource};
use attributes::Rules;
use names::Meaning;
use stack::Stack;
use writeback::Writeback;

/// Symbolic links followed on the path to one entry, as in the kernel.
const MAX_LINKS: u32 = 40;

/// Applies the layer in `stream` to `target` and writes its recipe if asked to.
///
/// Errors leave part of the layer in the tree. On success the caller compares `blob.diff_id` with
/// the promised one, and syncs.
pub fn apply(
    stream: LayerStream,
    target: &ApplyTarget,
    recipe: Option<&mut dyn Write>,
    limits: &Limits,
    cancel: &Cancel,
) -> Result<Applied> {
    let mut reader = TarReader::new(stream, limits);
    let applier = Applier::new(target, recipe, limits)?;
    let (mut applied, applier) = applier.run(&mut reader, cancel)?;
    applied.blob = reader.into_source().finish()?;
    if let Some(recipe) = applier.recipe {
        recipe.finish(applied.blob.tar_bytes, &applied.blob.diff_id)?;
    }
    Ok(applied)
}

/// Applies the layer in `source` to `target` as [`apply`] does, except that files get their size
/// and no content: what the tree must look like, for the price of its inodes.
///
/// `blob` of the result is meaningless: the caller knows what it passed.
pub(crate) fn outline(
    source: impl TarSource,
    target: &ApplyTarget,
    limits: &Limits,
    cancel: &Cancel,
) -> Result<Outline> {
    let mut reader = TarReader::new(source, limits);
    let mut applier = Applier::new(target, None, limits)?;
    applier.outlined = Some(Outlined::default());
    let (applied, applier) = applier.run(&mut reader, cancel)?;
    Ok(Outline {
        applied,
        files: applier.outlined.unwrap_or_default().files,
    })
}

/// The result of [`outline`].
pub(crate) struct Outline {
    pub applied: Applied,
    /// The inodes of the regular files that the layer made, each with the ordinal of its content in
    /// the recipe; `None` for empty ones.
    pub files: HashMap<u64, Option<u32>>,
}

#[derive(Default)]
struct Outlined {
    files: HashMap<u64, Option<u32>>,
    /// How many files with content came so far: they are counted as in the recipe.
    payloads: u32,
}

struct Applier<'a, 'w> {
    limits: &'a Limits,
    rules: Rules,
    stack: Stack,
    recipe: Option<RecipeWriter<'w>>,
    /// See [`ApplyTarget::donor`]; `None` once sharing blocks has failed.
    donor: Option<Dir>,
    /// What this layer created, by hash of its path: 0, or the payload's ordinal plus one. A keyed
    /// hash of 64 bits keeps this small; a collision is practically impossible.
    made: HashMap<u64, u32>,
    hasher: RandomState,
    implied: BTreeSet<Vec<u8>>,
    /// Directories in which whiteouts were created.
    whiteout_dirs: BTreeSet<Vec<u8>>,
    /// A directory may have default ACLs that its entries inherit.
    acl_possible: bool,
    /// The process's own ids, which new files get by default.
    own_ids: (u32, u32),
    umask: u32,
    plnk: bool,
    /// The tar has an entry for the root itself.
    root_listed: bool,
    /// The tar has an opaque mark for the root.
    root_opaque: bool,
    skipped: u64,
    newest: Option<Timespec>,
    writeback: Writeback,
    /// Set if files get no content; see [`outline`].
    outlined: Option<Outlined>,
}

impl<'a, 'w> Applier<'a, 'w> {
    fn new(
        target: &ApplyTarget,
        recipe: Option<&'w mut dyn Write>,
        limits: &'a Limits,
    ) -> Result<Self> {
        let failed = |error: vellum_sys::Error| Error::Apply {
            action: "open",
            path: PathBuf::from("."),
            source: error.source,
        };
        let root = target.root.dup().map_err(failed)?;
        let stack = Stack::new(root).map_err(failed)?;
        let acl_possible = target.marks.is_whole() || stack.top().default_acl;
        Ok(Self {
            limits,
            rules: Rules {
                marks: target.marks,
                privilege: target.privilege,
                recorded: 0,
                left_out: LeftOut::default(),
            },
            stack,
            recipe: recipe.map(RecipeWriter::new).transpose()?,
            donor: target
                .donor
                .as_ref()
                .map(Dir::dup)
                .transpose()
                .map_err(failed)?,
            made: HashMap::new(),
            hasher: RandomState::new(),
            implied: BTreeSet::new(),
            whiteout_dirs: BTreeSet::new(),
            acl_possible,
            own_ids: (
                rustix::process::geteuid().as_raw(),
                rustix::process::getegid().as_raw(),
            ),
            umask: umask(),
            plnk: false,
            root_listed: false,
            root_opaque: false,
            skipped: 0,
            newest: None,
            writeback: Writeback::default(),
            outlined: None,
        })
    }

    /// Applies the whole archive.
    fn run<S: TarSource>(
        mut self,
        reader: &mut TarReader<S>,
        cancel: &Cancel,
    ) -> Result<(Applied, Self)> {
        while let Some(entry) = reader.next_entry()? {
            if cancel.is_cancelled() {
                return Err(Error::Cancelled);
            }
            self.take_raw(reader.raw())?;
            self.entry(&entry, reader)?;
            debug_assert!(
                reader.payload()?.is_empty(),
                "content belongs to the recipe"
            );
        }
        self.take_raw(reader.raw())?;
        while reader.trailer()?.is_some() {
            self.take_raw(reader.raw())?;
        }
        let mut applied = self.finish(reader.entries())?;
        applied.ending = reader.ending().unwrap_or(applied.ending);
        Ok((applied, self))
    }

    fn take_raw(&mut self, raw: &mut Vec<u8>) -> Result<()> {
        if let Some(recipe) = &mut self.recipe {
            recipe.raw(raw)?;
        }
        raw.clear();
        Ok(())
    }

    fn entry<S: TarSource>(&mut self, entry: &Entry, reader: &mut TarReader<S>) -> Result<()> {
        if let EntryKind::Other(kind) = entry.kind
            && !self.is_mark(entry)
        {
            self.rules.left_out.add(|| {
                let (path, kind) = (entry.path().display(), kind.escape_ascii());
                format!("'{path}', an entry of type '{kind}', which means nothing here")
            });
            return self.pass_over(reader);
        }
        let components = names::components(&entry.name, self.limits)?;
        let (parents, meaning) = names::meaning(entry.path(), &components)?;
        match meaning {
            Meaning::Root => {
                self.root(entry)?;
                return self.pass_over(reader);
            }
            Meaning::Reserved => {
                self.skipped += 1;
                return self.pass_over(reader);
            }
            _ => {}
        }
        if components[0] == names::PLNK {
            self.plnk = true;
        } else {
            self.newest = self.newest.max(Some(entry.mtime));
        }
        self.enter(parents, entry)?;
        let name = components.last().map_or(0, |name| name.len() as u64 + 1);
        check(
            "the length of a path",
            self.stack.path().len() as u64 + name - u64::from(self.stack.path().is_empty()),
            self.limits.max_path_bytes,
            Some(entry.path()),
        )?;
        self.note_directories();
        match meaning {
            Meaning::Whiteout(hidden) => {
                self.whiteout(hidden, entry)?;
                self.pass_over(reader)
            }
            Meaning::Opaque => {
                self.opaque(entry)?;
                self.pass_over(reader)
            }
            Meaning::Object(name) => self.place(name, entry, reader),
            Meaning::Root | Meaning::Reserved => Ok(()),
        }
    }

    /// Whether the entry deletes something, which its name alone says, whatever its type.
    fn is_mark(&self, entry: &Entry) -> bool {
        names::components(&entry.name, self.limits).is_ok_and(|components| {
            let meaning = names::meaning(entry.path(), &components);
            matches!(meaning, Ok((_, Meaning::Whiteout(_) | Meaning::Opaque)))
        })
    }

    /// Content that is not written to the tree goes into the recipe unchanged.
    fn pass_over<S: TarSource>(&mut self, reader: &mut TarReader<S>) -> Result<()> {
        loop {
            let piece = reader.payload()?;
            let n = piece.len();
            if n == 0 {
                return Ok(());
            }
            if let Some(recipe) = &mut self.recipe {
                recipe.raw(piece)?;
            }
            reader.advance(n);
        }
    }

    /// Makes `parents` the current directory, creating what is missing.
    fn enter(&mut self, parents: &[&OsStr], entry: &Entry) -> Result<()> {
        let common = self.stack.common(parents);
        self.leave_to(common)?;
        let mut links = 0;
        for name in &parents[common..] {
            self.step(name, entry, &mut links)?;
        }
        Ok(())
    }

    fn leave_to(&mut self, depth: usize) -> Result<()> {
        self.stack.pop_to(depth).map_err(|error| Error::Apply {
            action: "set the times of a directory on the way to",
            path: PathBuf::from(OsStr::from_bytes(self.stack.path())),
            source: error.source,
        })
    }

    /// Enters the directory `name`.
    fn step(&mut self, name: &OsStr, entry: &Entry, links: &mut u32) -> Result<()> {
        match self.stack.top().dir.open_dir(name) {
            Ok(dir) => self
                .stack
                .push(name, dir, self.acl_possible)
                .map_err(self.failed("open", name)),
            Err(error) if error.is_not_found() => self.imply(name, entry),
            Err(error) if error.is(Errno::LOOP) || error.is(Errno::NOTDIR) => {
                self.step_over(name, entry, links)
            }
            Err(error) => Err(self.failed("open", name)(error)),
        }
    }

    /// Enters `name`, which is not a directory.
    fn step_over(&mut self, name: &OsStr, entry: &Entry, links: &mut u32) -> Result<()> {
        let stat = self
            .stack
            .top()
            .dir
            .stat(name)
            .map_err(self.failed("stat", name))?;
        let ours = self.made.contains_key(&self.key(&self.stack.path_of(name)));
        if is_whiteout(&stat) || !ours {
            let opaque = self.clear(name)?;
            self.imply(name, entry)?;
            return match opaque {
                true => self.mark_opaque(),
                false => Ok(()),
            };
        }
        if stat.kind != FileKind::Symlink {
            return Err(Error::BadName {
                path: entry.path().to_owned(),
                why: "one of its parents is not a directory",
            });
        }
        *links += 1;
        if *links > MAX_LINKS {
            return Err(Error::Escapes {
                path: entry.path().to_owned(),
                why: "too many symbolic links on the way",
            });
        }
        let link = self
            .stack
            .top()
            .dir
            .read_link(name)
            .map_err(self.failed("read", name))?;
        if link.as_bytes().starts_with(b"/") {
            self.leave_to(0)?;
        }
        for part in link.as_bytes().split(|&b| b == b'/') {
            match part {
                b"" | b"." => {}
                // Above the root is the root, as for a process that follows the link in a
                // container.
                b".." => self.leave_to(self.depth().saturating_sub(1))?,
                part => {
                    self.step(OsStr::from_bytes(part), entry, links)?;
                    // In an overlay's layer the directory now exists, even if the link leads on to
                    // somewhere else.
                    self.note_directories();
                }
            }
        }
        Ok(())
    }

    fn depth(&self) -> usize {
        match self.stack.path() {
            [] => 0,
            path => path.iter().filter(|&&b| b == b'/').count() + 1,
        }
    }

    /// Creates a directory that the layer needs and doesn't list, and enters it.
    fn imply(&mut self, name: &OsStr, entry: &Entry) -> Result<()> {
        let path = self.stack.path_of(name);
        let implied = Entry {
            mode: 0o755,
            uid: self.own_ids.0,
            gid: self.own_ids.1,
            xattrs: Vec::new(),
            ..entry.clone()
        };
        self.directory(name, &implied)?;
        if !path.starts_with(names::PLNK.as_bytes()) {
            self.implied.insert(path);
        }
        Ok(())
    }

    /// Notes that this layer created `name` in the current directory; `payload` is the ordinal of
    /// its content.
    fn note(&mut self, name: &OsStr, payload: Option<u32>) {
        let path = self.stack.path_of(name);
        let key = self.key(&path);
        self.made
            .insert(key, payload.map_or(0, |ordinal| ordinal + 1));
        self.note_directories();
    }

    /// Notes that this layer has something in the open directories, even if it is only a deletion.
    ///
    /// In an overlay's layer this layer created each of them. In a full tree they may be the
    /// parent's, and an opaque mark above must not remove them.
    fn note_directories(&mut self) {
        if self.rules.marks.is_whole() {
            let (made, hasher) = (&mut self.made, &self.hasher);
            self.stack.note(|path| {
                made.entry(hasher.hash_one(path)).or_insert(0);
            });
        }
    }

    fn key(&self, path: &[u8]) -> u64 {
        self.hasher.hash_one(path)
    }

    /// Returns a function that turns a system error into this crate's error.
    fn failed(
        &self,
        action: &'static str,
        name: &OsStr,
    ) -> impl FnOnce(vellum_sys::Error) -> Error + use<> {
        let path = PathBuf::from(OsString::from_vec(self.stack.path_of(name)));
        move |error| Error::Apply {
            action,
            path,
            source: error.source,
        }
    }

    fn finish(&mut self, entries: u64) -> Result<Applied> {
        self.leave_to(0)?;
        if self.plnk {
            self.clear(OsStr::new(names::PLNK))?;
        }
        let failed = |error: vellum_sys::Error| Error::Apply {
            action: "set the times of",
            path: PathBuf::from("."),
            source: error.source,
        };
        let root = self.stack.root().dup().map_err(failed)?;
        let whiteout_dirs = self.needed_whiteouts(&root)?;
        self.stack.finish().map_err(failed)?;
        let mut implied_dirs: Vec<PathBuf> = std::mem::take(&mut self.implied)
            .into_iter()
            .map(|path| PathBuf::from(OsString::from_vec(path)))
            .collect();
        implied_dirs.sort_by_key(|path| path.components().count());
        let applied = Applied {
            // Replaced by what the stream reports at its end.
            blob: crate::stream::BlobFacts {
                packing: crate::packing::Packing::NONE,
                blob_digest: Digest::of(b""),
                blob_bytes: 0,
                diff_id: Digest::of(b""),
                tar_bytes: 0,
            },
            entries,
            implied_dirs,
            root_listed: self.root_listed,
            whiteout_dirs,
            skipped: self.skipped,
            recorded: self.rules.recorded,
            left_out: std::mem::take(&mut self.rules.left_out),
            ending: Ending::Unmarked,
            root_opaque: self.root_opaque,
            newest: self.newest,
        };
        Ok(applied)
    }
}

fn is_whiteout(stat: &vellum_sys::Stat) -> bool {
    stat.kind == FileKind::Char && stat.rdev == vellum_format::WHITEOUT_RDEV
}

/// Returns the process's umask, without changing it; if it can't be determined, every bit, so that
/// modes are always set.
fn umask() -> u32 {
    std::fs::read_to_string(Path::new("/proc/self/status"))
        .ok()
        .and_then(|status| {
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix("Umask:"))?;
            u32::from_str_radix(line.trim(), 8).ok()
        })
        .unwrap_or(0o777)
}

#[cfg(test)]
mod tests;
