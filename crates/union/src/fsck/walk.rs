//! One layer's tree, held against the layers below it.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use vellum_format::{Metacopy, Opaque, Redirect, wh};
use vellum_sys::{FileKind, Stat};

use crate::explain::Heard;
use crate::fsck::inode::{Inode, Marks, Role};
use crate::fsck::{Check, Claims, Finding, Place, Severity};
use crate::layer::{LayerDir, RawEntry, WhNames};
use crate::marks::{DirAt, FileAt};
use crate::resolve::{Fault, MergeError, Merged, Part, merge};
use crate::stack::{Layers, Stack};

/// Checks one layer. `stack` begins with it.
pub(super) fn layer(check: &mut Check<'_>, number: usize, stack: &Stack) {
    let root = stack.roots()[0].dir.clone();
    let mut walk = Walk {
        place: Place::Layer(number),
        by_name: stack.layers()[0].dialect().wh_names == WhNames::Whiteouts,
        check,
        number,
        stack,
        root: root.stat.clone(),
        path: PathBuf::new(),
        frames: Vec::new(),
        claims: HashMap::new(),
    };
    let at = walk.at(&*root.dir, None, &root.stat, Role::Root);
    let marks = walk.check.inode(&at.of(&PathBuf::new()));
    let first = walk.frame(root, stack.roots().to_vec(), &marks);
    walk.frames.extend(first);
    while let Some(mut frame) = walk.frames.pop() {
        if walk.check.sink.is_stopped() {
            return;
        }
        let Some(entry) = frame.names.next() else {
            frame.own.dir.release();
            walk.path.pop();
            continue;
        };
        walk.path.push(&entry.name);
        let below = walk.entry(&mut frame, entry);
        walk.frames.push(frame);
        match below {
            Some(below) => walk.frames.push(below),
            None => {
                walk.path.pop();
            }
        }
    }
    check.end_tallies();
}

/// A directory of the layer on the way to the current name.
struct Frame {
    own: DirAt,
    /// The directory's shares in this layer and below.
    parts: Vec<Part<DirAt>>,
    names: std::vec::IntoIter<RawEntry>,
    /// It needs no remark about a missing impure mark: it has one, or had the remark.
    has_impure: bool,
}

struct Walk<'c, 'o, 's> {
    check: &'c mut Check<'o>,
    place: Place,
    number: usize,
    /// Names such as `.wh.x` are marks.
    by_name: bool,
    stack: &'s Stack,
    root: Stat,
    path: PathBuf,
    frames: Vec<Frame>,
    /// The lower directories that redirects lead to.
    claims: Claims,
}

/// An [`Inode`] without its path, which the walk changes.
struct At<'a> {
    place: Place,
    layer: usize,
    role: Role,
    dir: &'a dyn LayerDir,
    name: Option<&'a OsStr>,
    stat: &'a Stat,
}

impl<'a> At<'a> {
    fn of(&self, path: &'a Path) -> Inode<'a> {
        Inode {
            place: self.place,
            layer: self.layer,
            role: self.role,
            dir: self.dir,
            name: self.name,
            path,
            stat: self.stat,
        }
    }
}

impl Walk<'_, '_, '_> {
    fn at<'a>(
        &self,
        dir: &'a dyn LayerDir,
        name: Option<&'a OsStr>,
        stat: &'a Stat,
        role: Role,
    ) -> At<'a> {
        At {
            place: self.place,
            layer: self.number,
            role,
            dir,
            name,
            stat,
        }
    }

    fn error(&mut self, aspect: &'static str, why: impl Into<String>) {
        let finding = Finding::error(self.place, &self.path, aspect, why);
        self.check.sink.report(finding);
    }

    fn remark(&mut self, aspect: &'static str, why: impl Into<String>) {
        let finding = Finding::remark(self.place, &self.path, aspect, why);
        self.check.sink.report(finding);
    }

    fn frame(&mut self, own: DirAt, parts: Vec<Part<DirAt>>, marks: &Marks) -> Option<Frame> {
        let mut names = match own.dir.names() {
            Ok(names) => names,
            Err(error) => {
                self.check.unreadable(self.place, &self.path, &error);
                return None;
            }
        };
        names.sort_by(|a, b| a.name.cmp(&b.name));
        Some(Frame {
            own,
            parts,
            names: names.into_iter(),
            has_impure: marks.has_impure,
        })
    }

    /// Checks one name; returns the directory to go into.
    fn entry(&mut self, frame: &mut Frame, entry: RawEntry) -> Option<Frame> {
        if self.by_name {
            match wh::parse(&entry.name) {
                wh::Name::Plain => {}
                wh::Name::Whiteout(hidden) => {
                    self.whiteout_file(frame, &entry, hidden);
                    return None;
                }
                wh::Name::Malformed => {
                    self.error("whiteout", "the name says that nothing is hidden");
                    return None;
                }
                wh::Name::Opaque if entry.kind != FileKind::File => {
                    self.remark("opaque", "it is not a regular file, but hides all the same");
                    return None;
                }
                wh::Name::Opaque | wh::Name::Reserved => return None,
            }
        } else if entry.name.as_bytes().starts_with(wh::PREFIX.as_bytes()) {
            self.remark(
                "name",
                "an ordinary name here, but a whiteout to fuse-overlayfs and to unpackers of images",
            );
        }
        let stat = match frame.own.dir.stat(Some(&entry.name)) {
            Ok(Some(stat)) => stat,
            Ok(None) => {
                self.error("read", "it vanished during the check");
                return None;
            }
            Err(error) => {
                self.check.unreadable(self.place, &self.path, &error);
                return None;
            }
        };
        if !stat.same_mount(&self.root) {
            self.remark(
                "mount",
                "something is mounted here, and what it covers was not checked",
            );
            return None;
        }
        match stat.kind {
            FileKind::Dir => return self.directory(frame, &entry.name, stat),
            _ => self.file(frame, &entry.name, &stat),
        }
        None
    }

    fn inode(&mut self, frame: &mut Frame, name: &OsStr, stat: &Stat) -> Marks {
        let dir = frame.own.dir.clone();
        let at = self.at(&*dir, Some(name), stat, Role::Entry);
        let marks = self.check.inode(&at.of(&self.path));
        if marks.is_foreign && !frame.has_impure && self.check.is_upper(self.number) {
            frame.has_impure = true;
            let above = self.path.parent().unwrap_or(Path::new(""));
            let why = "it holds names from elsewhere, and has no such mark: listings may show other inode numbers";
            let finding = Finding::remark(self.place, above, "impure", why);
            self.check.sink.report(finding);
        }
        marks
    }

    fn directory(&mut self, frame: &mut Frame, name: &OsString, stat: Stat) -> Option<Frame> {
        let marks = self.inode(frame, name, &stat);
        let own = DirAt {
            dir: frame.own.dir.subdir(name),
            stat,
            xattr_whiteouts: marks.opaque == Some(Opaque::XattrWhiteouts),
        };
        let alone = vec![Part {
            layer: 0,
            dir: own.clone(),
        }];
        let parts = match self.merge(&frame.parts, name) {
            Ok(Merged::Dir { parts, .. }) if parts[0].layer == 0 => parts,
            Err(MergeError::Fault(Fault::Dangling { layer: 0, to })) => {
                let to = Path::new("/").join(to);
                let reason = self.obstacle(&frame.parts, name);
                let finding = Finding::error(
                    self.place,
                    &self.path,
                    "redirect",
                    format!("it leads to no directory below: {reason}"),
                );
                let finding = finding.differing(format!("a directory {}", to.display()), reason);
                self.check.sink.report(finding);
                alone
            }
            // Marks that can't be followed are reported where they are: here already, or in their
            // own layer.
            _ => alone,
        };
        if let Some(redirect) = &marks.redirect {
            match marks.opaque {
                Some(Opaque::Opaque) => {
                    self.remark("redirect", "an opaque directory's redirect is ignored")
                }
                _ => self.claim(frame, redirect, &parts),
            }
        }
        self.frame(own, parts, &marks)
    }

    /// Makes sure that the lower directory of a redirect is shown once.
    fn claim(&mut self, frame: &Frame, redirect: &Redirect, parts: &[Part<DirAt>]) {
        let Some(target) = parts.get(1) else { return };
        let identity = |part: &Part<DirAt>| {
            let (dev, ino) = part.dir.stat.identity();
            (part.layer, dev, ino)
        };
        let claimed = identity(target);
        if let Some(first) = self.claims.get(&claimed) {
            let why = format!(
                "it leads to the directory that /{} shows already",
                first.display()
            );
            return self.error("redirect", why);
        }
        self.claims.insert(claimed, self.path.clone());
        let old = match redirect {
            Redirect::Sibling(name) => self.path.with_file_name(name),
            Redirect::FromRoot(path) => path.clone(),
        };
        if old == self.path {
            return;
        }
        let shown = match redirect {
            Redirect::Sibling(name) => match self.merge(&frame.parts, name) {
                Ok(Merged::Dir { parts, .. }) => parts.iter().any(|part| identity(part) == claimed),
                _ => false,
            },
            Redirect::FromRoot(path) => self
                .stack
                .lookup(path)
                .is_ok_and(|node| node.is_some_and(|node| node.has_part(claimed))),
        };
        if shown {
            let why = format!(
                "the directory it was renamed from still shows at /{}: nothing hides it there",
                old.display()
            );
            self.error("redirect", why);
        }
    }

    fn merge(&self, parts: &[Part<DirAt>], name: &OsStr) -> Outcome {
        merge(&Layers::of(self.stack), parts, self.stack.roots(), name)
    }

    /// Says what is where a mark leads: the last thing that a layer below answered.
    fn obstacle(&self, parts: &[Part<DirAt>], name: &OsStr) -> String {
        let heard = Heard::of(self.stack);
        let _ = merge(&heard, parts, self.stack.roots(), name);
        let statements = heard.statements();
        match statements.iter().rfind(|said| said.layer > 0) {
            None => "there is no layer below".to_owned(),
            Some(said) => format!(
                "in {} /{}: {}",
                said.layer_name,
                said.path.display(),
                said.says
            ),
        }
    }

    fn file(&mut self, frame: &mut Frame, name: &OsStr, stat: &Stat) {
        let marks = self.inode(frame, name, stat);
        if stat.is_null_device() {
            // The kernel's have no mode, those of fuse-overlayfs 0700.
            if !matches!(stat.mode, 0 | 0o700 | 0o600 | 0o644) {
                let finding = Finding::remark(
                    self.place,
                    &self.path,
                    "whiteout",
                    "no program that is known gives a whiteout this mode",
                );
                let finding = finding.differing("0000", format!("{:04o}", stat.mode));
                self.check.sink.report(finding);
            }
            return self.hides(frame, name);
        }
        if stat.kind == FileKind::Block && stat.rdev == (0, 0) {
            self.remark("whiteout", "a block device 0:0 is not a whiteout: it shows");
        }
        if marks.has_whiteout {
            if self.check.is_upper(self.number) {
                self.error(
                    "whiteout",
                    "the kernel reads whiteouts in attributes in lower layers only: it shows an empty file",
                );
            } else if !frame.own.xattr_whiteouts {
                self.error(
                    "whiteout",
                    "its directory is not marked opaque=x, so listings show the name that lookups hide",
                );
            }
            return self.hides(frame, name);
        }
        if let Some(Metacopy::DataBelow(_)) = marks.metacopy {
            self.metacopy(frame, name, stat);
        }
        self.check.names.saw(&self.path, stat, marks.nlink);
        if self.check.is_upper(self.number) {
            self.check.is_indexed(&self.path, stat, &marks);
        }
    }

    fn metacopy(&mut self, frame: &Frame, name: &OsStr, stat: &Stat) {
        match self.merge(&frame.parts, name) {
            Ok(Merged::File {
                data: Some((_, data)),
                ..
            }) if data.stat.size_bytes != stat.size_bytes => {
                let finding = Finding::error(
                    self.place,
                    &self.path,
                    "metacopy",
                    "its size is not that of its data",
                );
                let bytes = |count: u64| format!("{count} bytes");
                let (wanted, found) = (bytes(data.stat.size_bytes), bytes(stat.size_bytes));
                self.check.sink.report(finding.differing(wanted, found));
            }
            Err(MergeError::Fault(Fault::NoData { layer: 0, .. })) => {
                let reason = self.obstacle(&frame.parts, name);
                let finding = Finding::error(
                    self.place,
                    &self.path,
                    "metacopy",
                    format!("its data is in no layer below: {reason}"),
                );
                let finding = finding.differing("a regular file", reason);
                self.check.sink.report(finding);
            }
            _ => {}
        }
    }

    /// Checks a file `.wh.NAME`.
    fn whiteout_file(&mut self, frame: &Frame, entry: &RawEntry, hidden: &OsStr) {
        // fuse-overlayfs 1 puts a device of this name into each directory that it marks opaque.
        if hidden == ".opq" {
            return;
        }
        match entry.kind {
            FileKind::File => {
                let stat = frame.own.dir.stat(Some(&entry.name));
                if let Ok(Some(stat)) = stat
                    && stat.size_bytes > 0
                {
                    self.remark("whiteout", "it has content, which no reader shows");
                }
            }
            FileKind::Dir => self.error(
                "whiteout",
                "a directory hides a name, and its content is lost",
            ),
            _ => self.remark(
                "whiteout",
                "it is not a regular file, but hides all the same",
            ),
        }
        self.hides(frame, hidden);
    }

    /// Remarks on a whiteout below which there is nothing.
    fn hides(&mut self, frame: &Frame, name: &OsStr) {
        let below = match frame.parts.get(1..) {
            None | Some([]) => false,
            Some(parts) => match self.merge(parts, name) {
                Ok(Merged::Absent(_)) => false,
                Ok(Merged::File { .. } | Merged::Dir { .. }) | Err(_) => true,
            },
        };
        if !below {
            self.remark("whiteout", "it hides nothing");
        }
    }
}

type Outcome = Result<Merged<DirAt, FileAt>, MergeError<crate::Error>>;

/// Findings that may be about every file of a layer: each kind is reported once.
#[derive(Debug)]
pub(super) struct Tally {
    place: Place,
    aspect: &'static str,
    what: &'static str,
    first: PathBuf,
    count: u64,
}

impl Check<'_> {
    /// Counts one of many alike.
    pub(super) fn tally(
        &mut self,
        place: Place,
        path: &Path,
        aspect: &'static str,
        what: &'static str,
    ) {
        let known = self.tallies.iter_mut().find(|tally| tally.what == what);
        match known {
            Some(tally) => tally.count += 1,
            None => self.tallies.push(Tally {
                place,
                aspect,
                what,
                first: path.to_owned(),
                count: 1,
            }),
        }
    }

    /// Reports what was counted.
    pub(super) fn end_tallies(&mut self) {
        for tally in std::mem::take(&mut self.tallies) {
            let Tally {
                place,
                aspect,
                what,
                first,
                count,
            } = tally;
            let more = match count {
                1 => String::new(),
                count => format!("; so have {} more", count - 1),
            };
            self.sink.report(Finding {
                severity: Severity::Remark,
                ..Finding::error(place, &first, aspect, format!("it has {what}{more}"))
            });
        }
    }
}
