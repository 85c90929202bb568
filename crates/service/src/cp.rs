//! `cp`: files between a container and the host, or two containers, or a tar.
//!
//! A container's paths are resolved inside its tree only: a symbolic link or `..` in it ends at its root, never on the host. What was found is then
//! touched by descriptor and single names, so swapping a directory for a link meanwhile gains nothing. A container that isn't mounted is mounted for
//! the copy. The rules for names are those of `docker cp`.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use vellum_image::apply::{ApplyTarget, Privilege, TargetMarks, apply};
use vellum_image::{LayerStream, Limits};
use vellum_sys::copy::copy_data;
use vellum_sys::in_root::{self, Last};
use vellum_sys::stat::stat_fd;
use vellum_sys::xattr::{self, SetMode};
use vellum_sys::{Dir, FileKind, Stat, error::fd_path, rooted};

use crate::context::Context;
use crate::error::{Error, Result};
use crate::layer_tar::NodeWriter;
use crate::{container, mount, mounted, names, run_dir, umount};

/// One side of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// A path in a container.
    Container {
        /// The container.
        name: String,
        /// The path, from the container's root.
        path: PathBuf,
    },
    /// A path on the host.
    Host(PathBuf),
    /// A tar on standard input or output.
    Pipe,
}

impl End {
    /// Reads `-`, `CONTAINER:PATH` or a path; a path with a colon in it is written with a leading `./` or `/`.
    pub fn parse(text: &OsStr) -> Self {
        if text == "-" {
            return Self::Pipe;
        }
        let bytes = text.as_bytes();
        if let Some(colon) = bytes.iter().position(|b| *b == b':')
            && !bytes.starts_with(b"/")
            && !bytes.starts_with(b".")
            && !bytes[..colon].contains(&b'/')
            && let Ok(name) = std::str::from_utf8(&bytes[..colon])
            && !name.is_empty()
        {
            let path = OsString::from_vec(bytes[colon + 1..].to_vec()).into();
            return Self::Container {
                name: name.to_owned(),
                path,
            };
        }
        Self::Host(text.into())
    }
}

/// How to copy.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Keep owners and all attributes.
    pub archive: bool,
    /// Follow the source if it is a symbolic link.
    pub follow: bool,
}

/// A root and a path in it: the host's is `/`.
struct Side {
    root: Dir,
    path: PathBuf,
    /// The tree's own path on the host, for taking descriptors' paths apart.
    top: PathBuf,
    /// Whose tree it is, and whether it was mounted for the copy alone: then it is unmounted when that is done.
    container: Option<(vellum_store::ContainerRecord, bool)>,
}

/// Copies. `input` and `output` are the tars' other ends.
pub fn copy(
    ctx: &Context,
    from: &End,
    to: &End,
    options: Options,
    input: impl Read + Send + 'static,
    output: impl Write,
) -> Result<()> {
    match (from, to) {
        (End::Pipe, End::Pipe) => Err(invalid("one of the two has to be a path")),
        (End::Host(_), End::Host(_) | End::Pipe) | (End::Pipe, End::Host(_)) => Err(invalid(
            "one of the two has to be in a container: CONTAINER:PATH",
        )),
        (from, End::Pipe) => with(ctx, from, |from| write_tar(ctx, from, options, output)),
        (End::Pipe, to) => with(ctx, to, |to| read_tar(ctx, to, input)),
        (from, to) => with(ctx, from, |from| {
            with(ctx, to, |to| copy_between(ctx, from, to, options))
        }),
    }
}

fn invalid(what: &str) -> Error {
    Error::Invalid {
        what: what.to_owned(),
        hint: Some("`vellum cp --help` has examples".into()),
    }
}

/// Opens a side, mounting its container if it isn't, and unmounts it again afterwards.
fn with<T>(ctx: &Context, end: &End, work: impl FnOnce(&Side) -> Result<T>) -> Result<T> {
    let side = open(ctx, end)?;
    let done = work(&side);
    let Side {
        root, container, ..
    } = side;
    drop(root);
    let (Some((record, for_this)), End::Container { name, .. }) = (container, end) else {
        return done;
    };
    let done = match done {
        Ok(done) => names::still_there(ctx, &record, name).map(|()| done),
        Err(error) => Err(names::unless_gone(ctx, &record, name, error)),
    };
    if for_this {
        let left = umount::umount_container(ctx, &record, true);
        // The copy's own failure is the one to tell.
        if done.is_ok() {
            left?;
        }
    }
    done
}

fn open(ctx: &Context, end: &End) -> Result<Side> {
    match end {
        End::Host(path) => {
            let path = absolute(path)?;
            Ok(Side {
                root: Dir::open(Path::new("/"))?,
                path,
                top: "/".into(),
                container: None,
            })
        }
        End::Container { name, path } => names::with_container(ctx, name, |record| {
            let _lock = run_dir::lock_container(ctx, &record.id)?;
            let shown = mounted::is_shown(ctx, record)?;
            let mounted = mount::mount_locked(ctx, record, None, false)?;
            let top =
                std::fs::canonicalize(&mounted.path).map_err(Error::io("find", &mounted.path))?;
            Ok(Side {
                root: Dir::open(&top)?,
                path: Path::new("/").join(path),
                top,
                container: Some((record.clone(), !shown)),
            })
        }),
        End::Pipe => Err(invalid("a tar has no path")),
    }
}

/// Makes a path absolute, keeping a trailing `/` or `/.`, which mean something here.
fn absolute(path: &Path) -> Result<PathBuf> {
    let mut whole = match path.is_absolute() {
        true => OsString::new(),
        false => std::env::current_dir()
            .map_err(Error::io("find", "."))?
            .into_os_string(),
    };
    if !whole.is_empty() {
        whole.push("/");
    }
    whole.push(path);
    Ok(whole.into())
}

/// A thing that was found: its directory by descriptor, and its name there. The root has no name.
struct Found {
    dir: Dir,
    name: Option<OsString>,
    stat: Stat,
}

impl Side {
    /// Finds what is at this side's path; `None` if there is nothing.
    fn find(&self, last: Last) -> Result<Option<Found>> {
        let Some(handle) = in_root::find(&self.root, &self.path, last)? else {
            return Ok(None);
        };
        let stat = stat_fd(&handle)?;
        let real = fd_path(handle.as_fd()).ok_or_else(|| self.missing())?;
        let inside = real.strip_prefix(&self.top).map_err(|_| self.missing())?;
        match (inside.parent(), inside.file_name()) {
            (Some(above), Some(name)) => Ok(Some(Found {
                dir: self.dir(above)?,
                name: Some(name.to_owned()),
                stat,
            })),
            _ => Ok(Some(Found {
                dir: self.root.dup()?,
                name: None,
                stat,
            })),
        }
    }

    fn dir(&self, inside: &Path) -> Result<Dir> {
        if inside.as_os_str().is_empty() {
            Ok(self.root.dup()?)
        } else {
            Ok(self.root.open_dir(inside)?)
        }
    }

    fn missing(&self) -> Error {
        Error::Io {
            action: "find",
            path: self.path.clone(),
            source: rustix::io::Errno::NOENT.into(),
        }
    }

    /// The path ends with `/` or `/.`: the directory's content is meant, or a directory is asked for.
    fn ends_as_directory(&self) -> bool {
        let bytes = self.path.as_os_str().as_bytes();
        bytes.ends_with(b"/") || bytes.ends_with(b"/.")
    }

    fn wants_content(&self) -> bool {
        self.path.as_os_str().as_bytes().ends_with(b"/.")
    }
}

impl Found {
    fn is_dir(&self) -> bool {
        self.stat.kind == FileKind::Dir
    }

    fn open_dir(&self) -> Result<Dir> {
        match &self.name {
            Some(name) => Ok(self.dir.open_dir(name)?),
            None => Ok(self.dir.dup()?),
        }
    }
}

fn source(side: &Side, options: Options) -> Result<Found> {
    let last = if options.follow || side.ends_as_directory() {
        Last::Follow
    } else {
        Last::Keep
    };
    let found = side.find(last)?.ok_or_else(|| side.missing())?;
    if side.ends_as_directory() && !found.is_dir() {
        return Err(invalid(&format!("{} is no directory", side.path.display())));
    }
    Ok(found)
}

/// The name that a copied thing gets if its destination is a directory.
fn base_name(side: &Side, found: &Found) -> OsString {
    let typed = side.path.components().next_back();
    match (typed, &found.name) {
        (Some(Component::Normal(name)), _) => name.to_owned(),
        (_, Some(name)) => name.clone(),
        (_, None) => OsString::from("rootfs"),
    }
}

fn copy_between(ctx: &Context, from: &Side, to: &Side, options: Options) -> Result<()> {
    let found = source(from, options)?;
    let mut copying = Copying {
        ctx,
        archive: options.archive,
        links: HashMap::new(),
    };
    match to.find(Last::Follow)? {
        Some(target) if target.is_dir() => {
            let into = target.open_dir()?;
            if from.wants_content() || found.name.is_none() {
                return copying.content(&found.open_dir()?, &into);
            }
            copying.entry(&found, &into, &base_name(from, &found))
        }
        Some(_) if found.is_dir() => Err(invalid(&format!(
            "{} is a file, and a directory can't be copied onto it",
            to.path.display()
        ))),
        Some(_) if to.ends_as_directory() => {
            Err(invalid(&format!("{} is no directory", to.path.display())))
        }
        Some(target) => match &target.name {
            Some(name) => copying.entry(&found, &target.dir, name),
            None => Err(to.missing()),
        },
        None if to.ends_as_directory() && !found.is_dir() => Err(invalid(&format!(
            "there is no directory {}",
            to.path.display()
        ))),
        None => {
            let trimmed: PathBuf = to.path.components().collect();
            let (Some(above), Some(name)) = (trimmed.parent(), trimmed.file_name()) else {
                return Err(to.missing());
            };
            let dir = in_root::dir(&to.root, above)?.ok_or_else(|| to.missing())?;
            copying.entry(&found, &dir, name)
        }
    }
}

/// Copies what is in `from` to `to`, and its attributes, all as it is. Neither directory is left.
pub(crate) fn tree(ctx: &Context, from: &Dir, to: &Dir) -> Result<()> {
    let mut copying = Copying {
        ctx,
        archive: true,
        links: HashMap::new(),
    };
    copying.content(from, to)?;
    copying.directory(from, &from.stat_self()?, to)
}

/// One copy under way.
struct Copying<'a> {
    ctx: &'a Context,
    archive: bool,
    /// Where the first name of each inode with several went. A later one is copied anew if it lies in another directory.
    links: HashMap<(u64, u64), (PathBuf, OsString)>,
}

impl Copying<'_> {
    fn content(&mut self, from: &Dir, to: &Dir) -> Result<()> {
        for entry in from.entries()? {
            let name = entry?.name;
            let stat = from.stat(&name)?;
            let found = Found {
                dir: from.dup()?,
                name: Some(name.clone()),
                stat,
            };
            self.entry(&found, to, &name)?;
        }
        Ok(())
    }

    /// Copies one thing, replacing what is no directory and filling up what is one.
    fn entry(&mut self, from: &Found, to: &Dir, to_name: &OsStr) -> Result<()> {
        self.ctx.go_on()?;
        let stat = &from.stat;
        let there = to.stat_opt(to_name)?;
        if from.is_dir() {
            match there {
                Some(there) if there.kind == FileKind::Dir => {}
                Some(_) => {
                    return Err(invalid(&format!(
                        "{} is no directory, and one can't be copied onto it",
                        Path::new(to_name).display()
                    )));
                }
                None => to.mkdir(to_name, 0o700)?,
            }
            let (below, into) = (from.open_dir()?, to.open_dir(to_name)?);
            self.content(&below, &into)?;
            return self.directory(&below, stat, &into);
        }
        let Some(name) = &from.name else {
            return Err(invalid("the root is no file"));
        };
        match there {
            Some(there) if there.kind == FileKind::Dir => {
                return Err(invalid(&format!(
                    "{} is a directory, and a file can't replace it",
                    Path::new(to_name).display()
                )));
            }
            Some(_) => to.unlink(to_name)?,
            None => {}
        }
        if stat.nlink > 1 && self.link(stat, to, to_name)? {
            return Ok(());
        }
        match stat.kind {
            FileKind::File => {
                let source = from.dir.open_file(name)?;
                let target = to.create_file(to_name, 0o600)?;
                copy_data(&source, &target)?;
                // The owner first: to change it takes capabilities away.
                if self.archive {
                    rooted::set_owner_fd(&target, stat.uid, stat.gid)?;
                }
                self.xattrs(&source, &target)?;
            }
            FileKind::Symlink => to.symlink(from.dir.read_link(name)?, to_name)?,
            FileKind::Char | FileKind::Block | FileKind::Fifo => {
                to.mknod(to_name, stat.kind, 0o600, stat.rdev)?
            }
            FileKind::Socket | FileKind::Dir => {
                self.ctx.progress.warn(&format!(
                    "{} is a socket and was left out",
                    Path::new(name).display()
                ));
                return Ok(());
            }
        }
        if self.archive && stat.kind != FileKind::File {
            to.set_owner(to_name, stat.uid, stat.gid)?;
        }
        if stat.kind != FileKind::Symlink {
            to.set_mode(to_name, stat.mode)?;
        }
        to.set_times(to_name, Some(stat.atime), Some(stat.mtime))?;
        if stat.nlink > 1
            && let Some(dir) = to.path()
        {
            self.links
                .insert(stat.identity(), (dir, to_name.to_owned()));
        }
        Ok(())
    }

    /// Gives a directory that is filled the attributes of `from`, whose `stat` is known.
    fn directory(&self, from: &Dir, stat: &Stat, to: &Dir) -> Result<()> {
        if self.archive {
            rooted::set_owner_fd(to, stat.uid, stat.gid)?;
        }
        self.xattrs(from, to)?;
        rooted::set_mode_fd(to, stat.mode)?;
        rooted::set_times_fd(to, Some(stat.atime), Some(stat.mtime))?;
        Ok(())
    }

    /// Links to the copy of the same inode, if there is one in this directory. False: it has to be copied.
    fn link(&self, stat: &Stat, to: &Dir, to_name: &OsStr) -> Result<bool> {
        let Some((dir, name)) = self.links.get(&stat.identity()) else {
            return Ok(false);
        };
        if to.path().as_ref() != Some(dir) {
            return Ok(false);
        }
        to.link(to, name, to_name)?;
        Ok(true)
    }

    /// Takes `user.*` along, with `archive` all attributes. A target that has none of them goes without.
    fn xattrs(&self, from: impl AsFd, to: impl AsFd) -> Result<()> {
        for name in xattr::list_fd(&from)? {
            if !self.archive && !name.as_bytes().starts_with(b"user.") {
                continue;
            }
            let Some(value) = xattr::get_fd(&from, &name)? else {
                continue;
            };
            match xattr::set_fd(&to, &name, &value, SetMode::Any) {
                Ok(()) => {}
                Err(e) if e.is_unsupported() || e.is_denied() => {
                    self.ctx.progress.warn(&format!(
                        "the attribute {} could not be copied: {e}",
                        name.display()
                    ));
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}

/// Writes the source as a tar under its own name.
fn write_tar(ctx: &Context, from: &Side, options: Options, output: impl Write) -> Result<()> {
    let found = source(from, options)?;
    let mut writer = NodeWriter::new(output);
    let name = PathBuf::from(base_name(from, &found));
    if found.is_dir() {
        let union = container::dir_stack(found.open_dir()?, &from.path)?;
        for node in union.walk() {
            ctx.go_on()?;
            let node = node?;
            let root = node.path().as_os_str().is_empty();
            let path = match (from.wants_content() || found.name.is_none(), root) {
                (true, true) => continue,
                (true, false) => node.path().to_path_buf(),
                (false, true) => name.clone(),
                (false, false) => name.join(node.path()),
            };
            writer.node(&node, &path)?;
        }
    } else if let Some(real) = &found.name {
        let union = container::dir_stack(found.dir.dup()?, &from.path)?;
        let node = union
            .lookup(Path::new(real))?
            .ok_or_else(|| from.missing())?;
        writer.node(&node, &name)?;
    }
    writer
        .finish()?
        .flush()
        .map_err(Error::io("write", "the tar"))
}

/// Unpacks a tar into a directory of the container, by the rules that hold for layers: nothing leaves the directory.
fn read_tar(ctx: &Context, to: &Side, input: impl Read + Send + 'static) -> Result<()> {
    let root = in_root::dir(&to.root, &to.path)?.ok_or_else(|| to.missing())?;
    let limits = Limits::default();
    let stream = LayerStream::open(Box::new(input), &limits, &ctx.cancel)?;
    let target = ApplyTarget {
        root,
        marks: TargetMarks::Plain,
        privilege: Privilege::Full,
        donor: None,
    };
    apply(stream, &target, None, &limits, &ctx.cancel)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_apart() {
        let inside = |name: &str, path: &str| End::Container {
            name: name.into(),
            path: path.into(),
        };
        for (text, expect) in [
            ("-", End::Pipe),
            ("box:/etc", inside("box", "/etc")),
            ("box:etc/x:y", inside("box", "etc/x:y")),
            ("box:", inside("box", "")),
            ("./a:b", End::Host("./a:b".into())),
            ("/a:b", End::Host("/a:b".into())),
            ("a/b:c", End::Host("a/b:c".into())),
            (":x", End::Host(":x".into())),
            ("plain", End::Host("plain".into())),
        ] {
            assert_eq!(End::parse(OsStr::new(text)), expect, "{text}");
        }
    }
}
