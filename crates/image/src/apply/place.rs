//! Creates what an entry describes.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use flate2::Crc;
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use vellum_format::OverrideKind;
use vellum_sys::copy::{Shared, share_blocks};
use vellum_sys::in_root::{self, Last};
use vellum_sys::stat::stat_fd;
use vellum_sys::{Dir, FileKind, Stat, publish, rooted};

use super::attributes::{DEFAULT_ACL, Object, Situation};
use super::{Applier, MAX_LINKS, Privilege, is_whiteout, names};
use crate::error::{Error, Result};
use crate::tar::{Entry, EntryKind, TarReader, TarSource};

impl Applier<'_, '_> {
    /// Creates the object `name` in the current directory.
    pub(super) fn place<S: TarSource>(
        &mut self,
        name: &OsStr,
        entry: &Entry,
        reader: &mut TarReader<S>,
    ) -> Result<()> {
        match entry.kind {
            EntryKind::Directory => self.directory(name, entry),
            EntryKind::File => self.file(name, entry, reader),
            EntryKind::HardLink => self.hard_link(name, entry),
            EntryKind::Symlink => self.symlink(name, entry),
            EntryKind::Character => self.node(name, entry, FileKind::Char),
            EntryKind::Block => self.node(name, entry, FileKind::Block),
            EntryKind::Fifo => self.node(name, entry, FileKind::Fifo),
            EntryKind::Other(_) => Ok(()),
        }
    }

    /// Creates the directory `name`, or gives an existing one the entry's attributes, and enters
    /// it.
    pub(super) fn directory(&mut self, name: &OsStr, entry: &Entry) -> Result<()> {
        let path = self.stack.path_of(name);
        let create_mode = self.create_mode(entry);
        let mut existed = false;
        let mut opaque = false;
        let made = match self
            .stack
            .top()
            .dir
            .mkdir(name, create_mode.unwrap_or(0o700))
        {
            Err(error) if error.is_exists() => {
                let stat = self.look(name)?;
                existed = stat.is_dir();
                if existed {
                    Ok(())
                } else {
                    // Whatever this layer had there, file or whiteout, hid what is below, and the
                    // directory that follows starts empty.
                    self.clear(name)?;
                    opaque = true;
                    self.stack
                        .top()
                        .dir
                        .mkdir(name, create_mode.unwrap_or(0o700))
                }
            }
            other => other,
        };
        made.map_err(self.failed("make the directory", name))?;
        self.stack.top_mut().dirty = true;
        self.note(name, None);
        self.implied.remove(&path);
        let situation = Situation {
            path: Path::new(OsStr::from_bytes(&path)),
            owner_right: !existed && self.owner_right(entry),
            mode_right: !existed && create_mode.is_some(),
            inherited_acl: self.stack.top().default_acl,
            existed,
            stand_in: None,
        };
        let dir = self
            .stack
            .top()
            .dir
            .open_dir(name)
            .map_err(self.failed("open", name))?;
        self.rules
            .set(Object::Dir(&dir), entry, &situation, false)?;
        self.acl_possible |= entry.xattrs.iter().any(|(attr, _)| attr == DEFAULT_ACL);
        self.stack
            .push(name, dir, self.acl_possible)
            .map_err(self.failed("stat", name))?;
        let frame = self.stack.top_mut();
        frame.mtime = entry.mtime;
        frame.dirty = true;
        match opaque {
            true => self.mark_opaque(),
            false => Ok(()),
        }
    }

    /// The root, which archives list as `.` or `./`: it exists already, and gets the entry's
    /// attributes.
    pub(super) fn root(&mut self, entry: &Entry) -> Result<()> {
        if entry.kind != EntryKind::Directory {
            return Ok(());
        }
        let failed = |error: vellum_sys::Error| Error::Apply {
            action: "enter",
            path: PathBuf::from("."),
            source: error.source,
        };
        self.stack.pop_to(0).map_err(failed)?;
        let situation = Situation {
            path: Path::new("."),
            owner_right: false,
            mode_right: false,
            inherited_acl: false,
            existed: true,
            stand_in: None,
        };
        let dir = self.stack.root().dup().map_err(failed)?;
        self.rules
            .set(Object::Dir(&dir), entry, &situation, false)?;
        self.acl_possible |= entry.xattrs.iter().any(|(attr, _)| attr == DEFAULT_ACL);
        self.root_listed = true;
        let frame = self.stack.top_mut();
        frame.mtime = entry.mtime;
        frame.dirty = true;
        frame.set_gid = entry.mode & 0o2000 != 0;
        frame.default_acl = entry.xattrs.iter().any(|(attr, _)| attr == DEFAULT_ACL);
        Ok(())
    }

    fn file<S: TarSource>(
        &mut self,
        name: &OsStr,
        entry: &Entry,
        reader: &mut TarReader<S>,
    ) -> Result<()> {
        let create_mode = self.create_mode(entry);
        let donor = self.donor_of(entry);
        let access = match donor {
            Some(_) => OFlags::RDWR,
            None => OFlags::WRONLY,
        };
        let mode = create_mode.unwrap_or(0o600);
        let file = self.again_if_there(name, |dir| create(dir, name, mode, access))?;
        let shared = match donor {
            Some(donor) => self.share(&donor, &file),
            None => Ok(false),
        };
        let (crc, refused) = match shared {
            _ if self.outlined.is_some() => self.outline_content(&file, entry, reader)?,
            Ok(true) => compare_content(&file, reader)?,
            Ok(false) => write_content(&file, entry, reader)?,
            Err(error) => (0, Some(error)),
        };
        if let Some(source) = refused {
            return Err(Error::Apply {
                action: "write",
                path: entry.path().to_owned(),
                source,
            });
        }
        let path = self.stack.path_of(name);
        let situation = Situation {
            path: Path::new(OsStr::from_bytes(&path)),
            owner_right: self.owner_right(entry),
            mode_right: create_mode.is_some(),
            inherited_acl: self.stack.top().default_acl,
            existed: false,
            stand_in: None,
        };
        self.rules
            .set(Object::File(&file), entry, &situation, true)?;
        let payload = match &mut self.recipe {
            Some(recipe) if entry.payload_bytes > 0 => {
                Some(recipe.payload(&path, entry.payload_bytes, entry.ranges.as_deref(), crc)?)
            }
            _ => None,
        };
        self.note(name, payload);
        if self.outlined.is_none() && entry.size_bytes < WRITEBACK_BYTES {
            self.writeback.take(file, entry.size_bytes);
        }
        Ok(())
    }

    /// Gives a file its size, and passes over its content. Returns the same as [`write_content`].
    fn outline_content<S: TarSource>(
        &mut self,
        file: &File,
        entry: &Entry,
        reader: &mut TarReader<S>,
    ) -> Result<(u32, Option<std::io::Error>)> {
        self.pass_over(reader)?;
        if let Err(error) = file.set_len(entry.size_bytes) {
            return Ok((0, Some(error)));
        }
        let inode = match stat_fd(file) {
            Ok(stat) => stat.ino,
            Err(error) => return Ok((0, Some(error.source))),
        };
        if let Some(outlined) = &mut self.outlined {
            let has_content = entry.payload_bytes > 0;
            let ordinal = has_content.then_some(outlined.payloads);
            outlined.payloads += u32::from(has_content);
            outlined.files.insert(inode, ordinal);
        }
        Ok((0, None))
    }

    /// Returns the file that may have the entry's content already, if there is one of its size and
    /// sharing it saves anything.
    fn donor_of(&self, entry: &Entry) -> Option<File> {
        let tree = self.donor.as_ref()?;
        if entry.ranges.is_some() || entry.payload_bytes < SHARE_FROM_BYTES {
            return None;
        }
        // If anything is wrong with it, the archive has the content anyway.
        let found = in_root::find(tree, entry.path(), Last::Keep).ok()??;
        let stat = stat_fd(&found).ok()?;
        let same = stat.kind == FileKind::File && stat.size_bytes == entry.payload_bytes;
        same.then(|| rooted::reopen(&found).ok()).flatten()
    }

    /// Makes the empty `file` share the blocks of `donor`, whose content is not trusted yet; false
    /// if `file` is empty afterwards.
    fn share(&mut self, donor: &File, file: &File) -> std::io::Result<bool> {
        match share_blocks(donor, file).map_err(|error| error.source)? {
            Shared::Yes => Ok(true),
            Shared::NotThis => Ok(false),
            Shared::NotHere => {
                // No need to try again for this layer.
                tracing::debug!("cannot share blocks");
                self.donor = None;
                Ok(false)
            }
        }
    }

    fn symlink(&mut self, name: &OsStr, entry: &Entry) -> Result<()> {
        self.again_if_there(name, |dir| dir.symlink(&entry.link, name))?;
        self.note(name, None);
        let path = self.stack.path_of(name);
        let frame = self.stack.top();
        let situation = Situation {
            path: Path::new(OsStr::from_bytes(&path)),
            owner_right: self.owner_right(entry),
            mode_right: true,
            // Links have no ACL.
            inherited_acl: false,
            existed: false,
            stand_in: None,
        };
        self.rules
            .set(Object::Symlink(&frame.dir, name), entry, &situation, true)
    }

    fn node(&mut self, name: &OsStr, entry: &Entry, kind: FileKind) -> Result<()> {
        if kind == FileKind::Char && entry.rdev == vellum_format::WHITEOUT_RDEV {
            return Err(Error::BadName {
                path: entry.path().to_owned(),
                why: "a character device 0:0 would act as a deletion",
            });
        }
        let create_mode = self.create_mode(entry);
        let mode = create_mode.unwrap_or(0o600);
        let recorded = self.rules.privilege == Privilege::Recorded;
        let mut stand_in = None;
        let made =
            self.again_if_there(name, |dir| match dir.mknod(name, kind, mode, entry.rdev) {
                Err(error) if error.is(Errno::PERM) && recorded => {
                    let (major, minor) = entry.rdev;
                    stand_in = Some(match kind {
                        FileKind::Char => OverrideKind::Character { major, minor },
                        FileKind::Block => OverrideKind::Block { major, minor },
                        _ => OverrideKind::Fifo,
                    });
                    dir.mknod(name, FileKind::File, mode, (0, 0)).map(|()| true)
                }
                Err(error) if error.is(Errno::PERM) => Ok(false),
                other => other.map(|()| true),
            })?;
        if !made {
            self.rules.left_out.add(|| {
                let path = entry.path().display();
                format!("the device '{path}', since devices can't be made here")
            });
            return Ok(());
        }
        self.note(name, None);
        let path = self.stack.path_of(name);
        let frame = self.stack.top();
        let situation = Situation {
            path: Path::new(OsStr::from_bytes(&path)),
            owner_right: self.owner_right(entry),
            mode_right: create_mode.is_some(),
            inherited_acl: frame.default_acl,
            existed: false,
            stand_in,
        };
        self.rules
            .set(Object::Name(&frame.dir, name), entry, &situation, true)
    }

    /// Creates another name for a file of this layer. The file then gets the attributes of this
    /// name's header, as with Docker, Podman and containerd.
    fn hard_link(&mut self, name: &OsStr, entry: &Entry) -> Result<()> {
        let missing = || Error::LinkTargetMissing {
            path: entry.path().to_owned(),
            target: Path::new(&entry.link).to_owned(),
        };
        let components = names::components(&entry.link, self.limits)?;
        let (&last, parents) = components.split_last().ok_or_else(missing)?;
        let (elsewhere, path) = match self.stack.is_at(parents) {
            true => (None, self.stack.path_of(last)),
            false => {
                let (dir, mut path) = self.find_dir(parents, entry)?.ok_or_else(missing)?;
                path.push(last);
                (Some(dir), path.into_os_string().into_vec())
            }
        };
        let target_dir = elsewhere.as_ref().unwrap_or(&self.stack.top().dir);
        let stat = target_dir
            .stat_opt(last)
            .map_err(self.failed("stat the target of", name))?
            .filter(|stat| !is_whiteout(stat))
            .ok_or_else(missing)?;
        // A whole tree also shows what other layers contain.
        if !self.made.contains_key(&self.key(&path)) {
            return Err(missing());
        }
        if stat.is_dir() {
            return Err(Error::BadName {
                path: entry.path().to_owned(),
                why: "it is a hard link to a directory",
            });
        }
        if let Some(existing) = self
            .stack
            .top()
            .dir
            .stat_opt(name)
            .map_err(self.failed("stat", name))?
        {
            // It is that very file already, perhaps because the link names itself: removing the
            // name would lose the file.
            if existing.identity() == stat.identity() {
                return Ok(());
            }
            self.clear(name)?;
        }
        let target_dir = elsewhere.as_ref().unwrap_or(&self.stack.top().dir);
        self.stack
            .top()
            .dir
            .link(target_dir, last, name)
            .map_err(self.failed("link", name))?;
        self.stack.top_mut().dirty = true;
        self.note(name, None);
        self.dress_again(name, entry, &stat)
    }

    /// Gives the inode of a new link the attributes in the link's header. Usually it has them
    /// already.
    fn dress_again(&mut self, name: &OsStr, entry: &Entry, stat: &Stat) -> Result<()> {
        let path = self.stack.path_of(name);
        let dir = &self.stack.top().dir;
        let object = match stat.kind {
            FileKind::Symlink => Object::Symlink(dir, name),
            _ => Object::Name(dir, name),
        };
        let path = Path::new(OsStr::from_bytes(&path));
        let record = self.rules.take_record(object, path)?;
        // With a record, the visible attributes are not the ones to compare with the entry.
        let owner_right = record.is_none() && (entry.uid, entry.gid) == (stat.uid, stat.gid);
        let situation = Situation {
            path,
            owner_right,
            // A change of owner and an ACL both change the mode.
            mode_right: owner_right && entry.xattrs.is_empty() && entry.mode == stat.mode,
            inherited_acl: false,
            existed: false,
            stand_in: record.and_then(|record| record.kind),
        };
        let times = entry.mtime != stat.mtime;
        self.rules.set(object, entry, &situation, times)
    }

    /// Opens the directory of these components as it is in the tree now, and returns its path;
    /// `None` if there is none.
    fn find_dir(&self, components: &[&OsStr], entry: &Entry) -> Result<Option<(Dir, PathBuf)>> {
        let failed = |error: vellum_sys::Error| Error::Apply {
            action: "find the target of",
            path: entry.path().to_owned(),
            source: error.source,
        };
        // Nearly always there is no link on the path, and one call finds the directory.
        let joined = components.join(OsStr::new("/"));
        if let Ok(dir) = self.stack.root().open_dir(&joined) {
            return Ok(Some((dir, PathBuf::from(joined))));
        }
        // From the root, one component after the other, following links inside the tree only.
        let mut todo: Vec<Vec<u8>> = components
            .iter()
            .rev()
            .map(|part| part.as_bytes().to_vec())
            .collect();
        let mut at: Vec<Dir> = vec![self.stack.root().dup().map_err(failed)?];
        let mut path = PathBuf::new();
        let mut links = 0;
        while let Some(part) = todo.pop() {
            let name = OsStr::from_bytes(&part);
            match part.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    at.truncate(at.len().saturating_sub(1).max(1));
                    path.pop();
                    continue;
                }
                _ => {}
            }
            let Some(dir) = at.last() else {
                return Ok(None);
            };
            match dir.open_dir(name) {
                Ok(dir) => {
                    at.push(dir);
                    path.push(name);
                }
                Err(error) if error.is_not_found() => return Ok(None),
                Err(error) if error.is(Errno::LOOP) || error.is(Errno::NOTDIR) => {
                    let Ok(link) = dir.read_link(name) else {
                        return Ok(None);
                    };
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Error::Escapes {
                            path: entry.path().to_owned(),
                            why: "too many symbolic links on the way to its target",
                        });
                    }
                    if link.as_bytes().starts_with(b"/") {
                        at.truncate(1);
                        path.clear();
                    }
                    todo.extend(
                        link.as_bytes()
                            .split(|&b| b == b'/')
                            .rev()
                            .map(<[u8]>::to_vec),
                    );
                }
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(at.pop().map(|dir| (dir, path)))
    }

    /// Creates something called `name`; if that name is taken, what has it is removed first.
    fn again_if_there<T>(
        &mut self,
        name: &OsStr,
        mut make: impl FnMut(&Dir) -> vellum_sys::Result<T>,
    ) -> Result<T> {
        let made = match make(&self.stack.top().dir) {
            Err(error) if error.is_exists() => {
                self.clear(name)?;
                make(&self.stack.top().dir)
            }
            other => other,
        };
        self.stack.top_mut().dirty = true;
        made.map_err(self.failed("create", name))
    }

    fn look(&self, name: &OsStr) -> Result<Stat> {
        self.stack
            .top()
            .dir
            .stat(name)
            .map_err(self.failed("stat", name))
    }

    /// Returns true if a new object in the current directory gets the entry's owner by default.
    fn owner_right(&self, entry: &Entry) -> bool {
        (entry.uid, entry.gid) == self.own_ids && !self.stack.top().set_gid
    }

    /// Returns the mode with which the entry's object can be created so that nothing has to be
    /// changed later, if there is one.
    fn create_mode(&self, entry: &Entry) -> Option<u32> {
        let plain = entry.mode & 0o7000 == 0 && entry.mode & self.umask == 0;
        // Until the owner is right, no other user may read the content; and an ACL's mask depends
        // on the order.
        let alone =
            self.owner_right(entry) && entry.xattrs.is_empty() && !self.stack.top().default_acl;
        (plain && alone).then_some(entry.mode)
    }
}

fn create(dir: &Dir, name: &OsStr, mode: u32, access: OFlags) -> vellum_sys::Result<File> {
    let flags = access | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(dir, name, flags, Mode::from_raw_mode(mode))
        .map(File::from)
        .map_err(|errno| vellum_sys::Error::new("create", Path::new(name), errno))
}

/// Writes an entry's content where it belongs. Returns its checksum, and the file system's error if
/// it refused.
fn write_content<S: TarSource>(
    mut file: &File,
    entry: &Entry,
    reader: &mut TarReader<S>,
) -> Result<(u32, Option<std::io::Error>)> {
    let mut crc = Crc::new();
    let Some(ranges) = &entry.ranges else {
        let mut offset = 0;
        let mut begun = 0;
        let mut holes = false;
        loop {
            let piece = reader.payload()?;
            let n = piece.len();
            if n == 0 {
                break;
            }
            crc.update(piece);
            if n >= HOLE_BYTES && is_zero(piece) {
                holes = true;
            } else if let Err(error) = write_at(&mut file, piece, offset, holes) {
                return Ok((0, Some(error)));
            }
            offset += n as u64;
            reader.advance(n);
            if offset - begun >= WRITEBACK_BYTES {
                publish::start_writeback(file, begun, offset - begun);
                begun = offset;
            }
        }
        if offset >= WRITEBACK_BYTES && offset > begun {
            publish::start_writeback(file, begun, offset - begun);
        }
        let sized = match holes {
            true => file.set_len(offset),
            false => Ok(()),
        };
        return Ok((crc.sum(), sized.err()));
    };
    if let Err(error) = file.set_len(entry.size_bytes) {
        return Ok((0, Some(error)));
    }
    for range in ranges {
        let mut done = 0;
        while done < range.length {
            let piece = reader.payload()?;
            let n = piece
                .len()
                .min(usize::try_from(range.length - done).unwrap_or(usize::MAX));
            crc.update(&piece[..n]);
            if let Err(error) = file.write_all_at(&piece[..n], range.offset + done) {
                return Ok((0, Some(error)));
            }
            reader.advance(n);
            done += n as u64;
        }
    }
    Ok((crc.sum(), None))
}

/// Smaller files take one block at most: sharing it costs more than it saves.
const SHARE_FROM_BYTES: u64 = 16 << 10;

/// Reads an entry's content and compares it with what `file` got from the donor; what differs is
/// written. Returns the same as [`write_content`].
fn compare_content<S: TarSource>(
    file: &File,
    reader: &mut TarReader<S>,
) -> Result<(u32, Option<std::io::Error>)> {
    let mut crc = Crc::new();
    let mut offset = 0;
    let mut there = Vec::new();
    loop {
        let piece = reader.payload()?;
        let n = piece.len();
        if n == 0 {
            // The donor may have grown between the check of its size and the sharing.
            let sized = match file.metadata() {
                Ok(found) if found.len() == offset => Ok(()),
                Ok(_) => file.set_len(offset),
                Err(error) => Err(error),
            };
            return Ok((crc.sum(), sized.err()));
        }
        crc.update(piece);
        there.resize(n, 0);
        let same = file.read_exact_at(&mut there, offset).is_ok() && there == piece;
        if !same && let Err(error) = file.write_all_at(piece, offset) {
            return Ok((0, Some(error)));
        }
        offset += n as u64;
        reader.advance(n);
    }
}

/// Content is sent to disk in steps of this many bytes while the layer is still being read, so that
/// the commit waits only for the rest. Smaller files are sent whole, see [`super::writeback`].
const WRITEBACK_BYTES: u64 = 1 << 20;

/// Runs of zeros of at least this many bytes become holes. A layer has no other way to express them
/// that all readers know, and a sparse file that went through one would fill the disk.
const HOLE_BYTES: usize = 64 * 1024;

fn is_zero(bytes: &[u8]) -> bool {
    const ZEROS: [u8; 4096] = [0; 4096];
    bytes
        .chunks(ZEROS.len())
        .all(|part| *part == ZEROS[..part.len()])
}

/// Writes at the file's position or, once something was left out, at the offset where it belongs.
fn write_at(file: &mut &File, piece: &[u8], offset: u64, holes: bool) -> std::io::Result<()> {
    match holes {
        false => file.write_all(piece),
        true => file.write_all_at(piece, offset),
    }
}
