//! A directory as a layer's tar, for `import`.
//!
//! The directory is packed as it is: nothing in it is a mark, hard links stay links, holes are
//! written as zeros. A thread writes the tar into a pipe while the other end is unpacked, so
//! nothing is stored in between. Sockets can't be in a tar and are left out.

use std::collections::HashMap;
use std::io::{self, BufWriter, PipeWriter, Read, Write};
use std::path::{Path, PathBuf};

use vellum_image::{LayerWriter, TarEntry, TarKind};
use vellum_sys::{Dir, FileKind, Stat, xattr};

use crate::error::Result;
use crate::layer::layer_tar;

/// Returns a tar of the tree below `path`, written while it is read, and a name for it.
pub(super) fn directory(path: &Path) -> Result<(Box<dyn Read + Send>, String)> {
    let root = Dir::open(path)?;
    let packed = layer_tar::piped(move |out| pack(&root, out))?;
    Ok((Box::new(packed), path.display().to_string()))
}

fn pack(root: &Dir, out: BufWriter<PipeWriter>) -> Result<()> {
    let mut packing = Packing {
        writer: LayerWriter::new(out),
        links: HashMap::new(),
    };
    packing.below(root, Path::new(""))?;
    packing.writer.finish()?;
    Ok(())
}

struct Packing<W: Write> {
    writer: LayerWriter<W>,
    /// The first name of each inode that has several.
    links: HashMap<(u64, u64), PathBuf>,
}

impl<W: Write> Packing<W> {
    fn below(&mut self, dir: &Dir, path: &Path) -> Result<()> {
        let mut names = Vec::new();
        for entry in dir.entries()? {
            names.push(entry?.name);
        }
        names.sort();
        for name in names {
            let stat = dir.stat(&name)?;
            let below = path.join(&name);
            let Some(kind) = self.kind(dir, &name, &stat, &below)? else {
                continue;
            };
            let xattrs = match kind {
                TarKind::HardLink { .. } => Vec::new(),
                _ => xattrs(dir, &name)?,
            };
            let is_file = matches!(kind, TarKind::File { .. });
            let entry = TarEntry {
                path: below.clone(),
                kind,
                mode: stat.mode,
                uid: stat.uid,
                gid: stat.gid,
                mtime: stat.mtime,
                xattrs,
            };
            if is_file {
                self.writer.append(&entry, &mut dir.open_file(&name)?)?;
            } else {
                self.writer.append(&entry, &mut io::empty())?;
            }
            if stat.kind == FileKind::Dir {
                self.below(&dir.open_dir(&name)?, &below)?;
            }
        }
        Ok(())
    }

    /// Returns the entry's type in a tar; `None` if it can't be in one.
    fn kind(
        &mut self,
        dir: &Dir,
        name: &std::ffi::OsStr,
        stat: &Stat,
        path: &Path,
    ) -> Result<Option<TarKind>> {
        if stat.kind != FileKind::Dir && stat.nlink > 1 {
            if let Some(first) = self.links.get(&(stat.dev, stat.ino)) {
                return Ok(Some(TarKind::HardLink {
                    target: first.clone(),
                }));
            }
            if stat.kind != FileKind::Socket {
                self.links.insert((stat.dev, stat.ino), path.to_owned());
            }
        }
        let (major, minor) = stat.rdev;
        Ok(Some(match stat.kind {
            FileKind::File => TarKind::File {
                size_bytes: stat.size_bytes,
            },
            FileKind::Dir => TarKind::Directory,
            FileKind::Symlink => TarKind::Symlink {
                target: dir.read_link(name)?,
            },
            FileKind::Char => TarKind::Character { major, minor },
            FileKind::Block => TarKind::Block { major, minor },
            FileKind::Fifo => TarKind::Fifo,
            FileKind::Socket => return Ok(None),
        }))
    }
}

fn xattrs(dir: &Dir, name: &std::ffi::OsStr) -> Result<Vec<(std::ffi::OsString, Vec<u8>)>> {
    let mut found = Vec::new();
    for attribute in xattr::list(dir, name)? {
        // One that was removed between the two calls.
        if let Some(value) = xattr::get(dir, name, &attribute)? {
            found.push((attribute, value));
        }
    }
    Ok(found)
}
