//! Compares two trees, name by name.
//!
//! Not compared are: access and change times, inode numbers, the sizes of directories, holes, and
//! labels that a security module sets. Of a whiteout only its presence counts, since nothing shows
//! the rest. A directory with an entry too many or too few has another time as a consequence, which
//! is not a finding of its own.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use vellum_sys::{Cancel, Dir, FileKind, Stat};

use super::attributes::xattrs;
use super::difference::{kind, time, value};
use super::{Aspect, Contents, Difference, Outlined};
use crate::error::{Error, Result};

/// A layer's tree, and what is known about its files.
pub struct Found<'a> {
    /// The tree.
    pub tree: &'a Dir,
    /// If it also holds what the layers below have: what the files that it got from them should
    /// contain. Their content is read and compared.
    pub inherited: Option<&'a Contents>,
    /// Files that were compared before, perhaps by another name or in another tree, and are right:
    /// by device and inode number, the inode of the outline that they were compared with. Those
    /// compared now are added if the tree holds more than its own layer.
    pub right: &'a mut HashMap<(u64, u64), u64>,
    /// Directories whose attributes nothing says: they are not compared.
    pub unsaid: &'a HashSet<PathBuf>,
    /// Whether a tar says when the root was changed.
    pub root_time: bool,
}

/// Compares `found` with `outline`, the tree that `outlined` was applied to. Returns what differs,
/// in the order of paths: nothing if all is well.
///
/// What can't be read is an error: the caller knows whether the tree was removed meanwhile.
pub fn compare(
    outline: &Dir,
    outlined: &Outlined,
    found: Found<'_>,
    cancel: &Cancel,
) -> Result<Vec<Difference>> {
    let mut comparison = Comparison {
        outline,
        found,
        own: &outlined.contents,
        changed: outlined
            .changed
            .iter()
            .map(|(path, why)| (path.as_path(), why.as_str()))
            .collect(),
        cancel,
        first_expected: HashMap::new(),
        first_found: HashMap::new(),
        differences: Vec::new(),
    };
    comparison.directories()?;
    comparison.unseen_content();
    let mut differences = comparison.differences;
    if let Some(digest) = &outlined.wrong_digest
        && outlined.changed.is_empty()
    {
        differences.push(Difference {
            path: PathBuf::new(),
            aspect: Aspect::Digest,
            expected: Some(outlined.applied.blob.diff_id.to_string()),
            found: Some(digest.to_string()),
        });
    }
    differences.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(differences)
}

struct Comparison<'a> {
    outline: &'a Dir,
    found: Found<'a>,
    own: &'a Contents,
    changed: BTreeMap<&'a Path, &'a str>,
    cancel: &'a Cancel,
    /// The first name of each file that has several, in the outline and in the tree.
    first_expected: HashMap<(u64, u64), PathBuf>,
    first_found: HashMap<(u64, u64), PathBuf>,
    differences: Vec<Difference>,
}

/// The same object in both trees.
struct Pair<'d> {
    path: PathBuf,
    /// Where it is in the outline and in the tree, and its name there; the empty name is the
    /// directory itself.
    dirs: (&'d Dir, &'d Dir),
    name: &'d OsStr,
    expected: Stat,
    found: Stat,
}

impl Comparison<'_> {
    /// Directories are opened by their whole path, so that a deep tree needs no more descriptors
    /// than a flat one.
    fn directories(&mut self) -> Result<()> {
        let mut waiting = vec![PathBuf::new()];
        while let Some(path) = waiting.pop() {
            if self.cancel.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let expected = self.outline.open_dir(&path).map_err(at("open", &path))?;
            let found = self.found.tree.open_dir(&path).map_err(at("open", &path))?;
            let below = waiting.len();
            let whole = self.entries(&path, &expected, &found, &mut waiting)?;
            waiting[below..].reverse();
            let pair = Pair {
                expected: expected.stat_self().map_err(at("look at", &path))?,
                found: found.stat_self().map_err(at("look at", &path))?,
                dirs: (&expected, &found),
                name: OsStr::new(""),
                path,
            };
            if !self.found.unsaid.contains(&pair.path) {
                let is_root = pair.path.as_os_str().is_empty();
                self.attributes(&pair, whole && (self.found.root_time || !is_root))?;
            }
        }
        Ok(())
    }

    /// Compares the entries of a directory, and adds its directories to `waiting`. Returns whether
    /// both have the same names.
    fn entries(
        &mut self,
        path: &Path,
        expected: &Dir,
        found: &Dir,
        waiting: &mut Vec<PathBuf>,
    ) -> Result<bool> {
        let names = names(expected, path)?;
        let there = names_set(found, path)?;
        let mut same = true;
        for name in there
            .iter()
            .filter(|name| names.binary_search(name).is_err())
        {
            same = false;
            let stat = found.stat(name).map_err(at("look at", &path.join(name)))?;
            self.add(
                &path.join(name),
                Aspect::Entry,
                None,
                Some(kind(&stat).into()),
            );
        }
        for name in &names {
            let path = path.join(name);
            let should = expected.stat(name).map_err(at("look at", &path))?;
            let is = match there.contains(name) {
                true => found.stat(name).map_err(at("look at", &path))?,
                false => {
                    same = false;
                    self.add(&path, Aspect::Entry, Some(kind(&should).into()), None);
                    continue;
                }
            };
            if should.kind != is.kind || should.is_null_device() != is.is_null_device() {
                same = false;
                let (should, is) = (kind(&should).into(), kind(&is).into());
                self.add(&path, Aspect::Kind, Some(should), Some(is));
            } else if should.is_dir() {
                waiting.push(path);
            } else if !should.is_null_device() {
                let pair = Pair {
                    path,
                    dirs: (expected, found),
                    name,
                    expected: should,
                    found: is,
                };
                self.object(&pair)?;
            }
        }
        Ok(same)
    }

    /// Compares what is not a directory.
    fn object(&mut self, pair: &Pair<'_>) -> Result<()> {
        let Pair {
            path,
            dirs,
            name,
            expected,
            found,
        } = pair;
        self.attributes(pair, true)?;
        self.links(path, expected, found);
        match expected.kind {
            FileKind::File if expected.size_bytes != found.size_bytes => self.add(
                path,
                Aspect::Size,
                Some(expected.size_bytes.to_string()),
                Some(found.size_bytes.to_string()),
            ),
            FileKind::File => self.content(pair)?,
            FileKind::Symlink => {
                let should = dirs.0.read_link(name).map_err(at("read", path))?;
                let is = dirs.1.read_link(name).map_err(at("read", path))?;
                if should != is {
                    let text = |target: &OsStr| Some(format!("'{}'", target.display()));
                    self.add(path, Aspect::Target, text(&should), text(&is));
                }
            }
            FileKind::Char | FileKind::Block if expected.rdev != found.rdev => {
                let text = |(major, minor): (u32, u32)| Some(format!("{major}:{minor}"));
                self.add(path, Aspect::Device, text(expected.rdev), text(found.rdev));
            }
            _ => {}
        }
        Ok(())
    }

    /// Compares the content of a file of the right size.
    fn content(&mut self, pair: &Pair<'_>) -> Result<()> {
        let identity = pair.found.identity();
        if let Some(why) = self.changed.remove(pair.path.as_path()) {
            self.differs(&pair.path, why.to_owned());
            return Ok(());
        }
        let inherited = self.found.inherited;
        let content = match self.own.of(pair.expected.ino) {
            // Compared while its tar was written.
            Some(own) if !own.is_kept() => {
                if inherited.is_some() {
                    self.found.right.insert(identity, pair.expected.ino);
                }
                return Ok(());
            }
            Some(own) => own,
            None => match inherited.and_then(|contents| contents.of(pair.expected.ino)) {
                Some(inherited) => inherited,
                None => return Ok(()),
            },
        };
        if pair.expected.size_bytes == 0
            || self.found.right.get(&identity) == Some(&pair.expected.ino)
        {
            return Ok(());
        }
        let wrong = match pair.dirs.1.open_file(pair.name) {
            Ok(file) => content.compare(&file, self.cancel)?,
            Err(error) => Some(error.to_string()),
        };
        match wrong {
            None => drop(self.found.right.insert(identity, pair.expected.ino)),
            Some(why) => self.differs(&pair.path, why),
        }
        Ok(())
    }

    /// Reports content that differs where nothing else was reported: a file of another size or type
    /// was, and one that is missing.
    fn unseen_content(&mut self) {
        let about_all = |difference: &&Difference| {
            matches!(
                difference.aspect,
                Aspect::Entry | Aspect::Kind | Aspect::Size | Aspect::Content
            )
        };
        let seen: HashSet<PathBuf> = self
            .differences
            .iter()
            .filter(about_all)
            .map(|difference| difference.path.clone())
            .collect();
        for (path, why) in std::mem::take(&mut self.changed) {
            if !path.ancestors().any(|part| seen.contains(part)) {
                self.differs(path, why.to_owned());
            }
        }
    }

    fn differs(&mut self, path: &Path, why: String) {
        self.add(path, Aspect::Content, None, Some(why));
    }

    fn attributes(&mut self, pair: &Pair<'_>, with_time: bool) -> Result<()> {
        let (expected, found) = (&pair.expected, &pair.found);
        let path = &pair.path;
        if expected.kind != FileKind::Symlink && expected.mode != found.mode {
            let text = |mode: u32| Some(format!("{mode:04o}"));
            self.add(path, Aspect::Mode, text(expected.mode), text(found.mode));
        }
        for (aspect, should, is) in [
            (Aspect::Owner, expected.uid, found.uid),
            (Aspect::Group, expected.gid, found.gid),
        ] {
            if should != is {
                self.add(path, aspect, Some(should.to_string()), Some(is.to_string()));
            }
        }
        if with_time && expected.mtime != found.mtime {
            let (should, is) = (time(expected.mtime), time(found.mtime));
            self.add(path, Aspect::Time, Some(should), Some(is));
        }
        let should = xattrs(pair.dirs.0, pair.name, path)?;
        let is = xattrs(pair.dirs.1, pair.name, path)?;
        let names: BTreeSet<&OsString> = should.keys().chain(is.keys()).collect();
        for name in names {
            let (should, is) = (should.get(name), is.get(name));
            if should == is {
                continue;
            }
            let aspect = Aspect::of_xattr(name);
            let text = |bytes: &Vec<u8>| match aspect {
                Aspect::Opaque => "opaque (it hides what lower layers have in it)".to_owned(),
                _ => value(bytes),
            };
            let (should, is) = match (aspect == Aspect::Opaque, should, is) {
                (true, None, Some(_)) => (Some("not opaque".to_owned()), is.map(text)),
                (true, Some(_), None) => (should.map(text), Some("not opaque".to_owned())),
                (true, Some(_), Some(bytes)) => {
                    let wrong = format!("marked as opaque with the value {}", value(bytes));
                    (should.map(text), Some(wrong))
                }
                _ => (should.map(text), is.map(text)),
            };
            self.add(path, aspect, should, is);
        }
        Ok(())
    }

    /// Compares which names are the same file.
    fn links(&mut self, path: &Path, expected: &Stat, found: &Stat) {
        if expected.nlink < 2 && found.nlink < 2 {
            return;
        }
        let first = |firsts: &mut HashMap<(u64, u64), PathBuf>, stat: &Stat| {
            let first = firsts.entry(stat.identity());
            first.or_insert_with(|| path.to_owned()).clone()
        };
        let should = first(&mut self.first_expected, expected);
        let is = first(&mut self.first_found, found);
        if should != is {
            let text = |first: PathBuf| match first == path {
                true => "a file of its own".to_owned(),
                false => format!("another name of '{}'", first.display()),
            };
            self.add(path, Aspect::HardLink, Some(text(should)), Some(text(is)));
        }
    }

    fn add(
        &mut self,
        path: &Path,
        aspect: Aspect,
        expected: Option<String>,
        found: Option<String>,
    ) {
        self.differences.push(Difference {
            path: path.to_owned(),
            aspect,
            expected,
            found,
        });
    }
}

/// Returns the names in a directory, sorted.
pub(super) fn names(dir: &Dir, path: &Path) -> Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in dir.entries().map_err(at("list", path))? {
        names.push(entry.map_err(at("list", path))?.name);
    }
    names.sort();
    Ok(names)
}

fn names_set(dir: &Dir, path: &Path) -> Result<BTreeSet<OsString>> {
    Ok(names(dir, path)?.into_iter().collect())
}

pub(super) fn at<'p>(
    action: &'static str,
    path: &'p Path,
) -> impl FnOnce(vellum_sys::Error) -> Error + use<'p> {
    move |error| Error::Verify {
        action,
        path: path.to_owned(),
        source: error.source,
    }
}
