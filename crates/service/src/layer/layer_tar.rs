//! Writes the nodes of a union as a layer's tar, and connects a writing thread to a reader.
//!
//! Used by `commit` and `diff --tar` (the changes of the top layer), by `cp` (a subtree) and where
//! a whole tree becomes a layer. Hard links within the written files stay links; sockets can't be
//! in a tar and are left out, as Docker does.

use std::collections::HashMap;
use std::io::{self, BufWriter, PipeReader, PipeWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::thread::{Builder, JoinHandle};

use vellum_image::{LayerWriter, TarEntry, TarKind};
use vellum_sys::{Cancel, FileKind, Timespec};
use vellum_union::{Change, ChangeKind, Node, Stack};

use crate::error::{Error, Result};

/// Writes one layer from nodes that come in path order.
pub struct NodeWriter<W: Write> {
    writer: LayerWriter<W>,
    /// The first name of each inode that has several.
    links: HashMap<(u64, u64), PathBuf>,
    /// Later times are written as this one.
    newest: Option<Timespec>,
    /// Maps a node's owner and group to those that are written.
    owners: Option<Box<Owners>>,
}

type Owners = dyn Fn(u32, u32) -> (u32, u32) + Send;

impl<W: Write> NodeWriter<W> {
    /// Starts a layer in `out`.
    pub fn new(out: W) -> Self {
        Self::with(LayerWriter::new(out))
    }

    /// Starts a tar of files in `out` that is not a layer: no name means a deletion.
    pub fn of_files(out: W) -> Self {
        Self::with(LayerWriter::of_files(out))
    }

    fn with(writer: LayerWriter<W>) -> Self {
        Self {
            writer,
            links: HashMap::new(),
            newest: None,
            owners: None,
        }
    }

    /// Writes the owners and groups that `owners` returns.
    pub fn owned_by(self, owners: impl Fn(u32, u32) -> (u32, u32) + Send + 'static) -> Self {
        Self {
            owners: Some(Box::new(owners)),
            ..self
        }
    }

    /// Writes modification times after `newest` as `newest`, so that the same build results in the
    /// same bytes.
    pub fn not_after(self, newest: Timespec) -> Self {
        Self {
            newest: Some(newest),
            ..self
        }
    }

    /// Writes a change: the new file, or its deletion.
    ///
    /// The root itself gets no entry: layers of other tools have none either.
    pub fn change(&mut self, change: &Change) -> Result<()> {
        match &change.node {
            None => self.writer.whiteout(&change.path)?,
            Some(_) if change.path.as_os_str().is_empty() => {}
            Some(node) => {
                if self.node(node, &change.path)? {
                    if change.opaque {
                        self.writer.opaque(&change.path)?;
                    }
                } else if change.kind == ChangeKind::Modified {
                    // A file that can't be written still hides the old one.
                    self.writer.whiteout(&change.path)?;
                }
            }
        }
        Ok(())
    }

    /// Writes `node` under the name `path`. Returns false if it can't be in a tar.
    pub fn node(&mut self, node: &Node, path: &Path) -> Result<bool> {
        let stat = node.stat();
        if !node.is_dir() && stat.nlink > 1 && stat.kind != FileKind::Socket {
            if let Some(first) = self.links.get(&node.identity()) {
                let kind = TarKind::HardLink {
                    target: first.clone(),
                };
                self.writer
                    .append(&self.entry(node, path, kind, Vec::new()), &mut io::empty())?;
                return Ok(true);
            }
            self.links.insert(node.identity(), path.to_owned());
        }
        let (major, minor) = stat.rdev;
        let kind = match stat.kind {
            FileKind::File => TarKind::File {
                size_bytes: stat.size_bytes,
            },
            FileKind::Dir => TarKind::Directory,
            FileKind::Symlink => TarKind::Symlink {
                target: node.read_link()?,
            },
            FileKind::Char => TarKind::Character { major, minor },
            FileKind::Block => TarKind::Block { major, minor },
            FileKind::Fifo => TarKind::Fifo,
            FileKind::Socket => return Ok(false),
        };
        let is_file = stat.kind == FileKind::File;
        let xattrs = node.xattrs()?.into_iter().collect();
        let entry = self.entry(node, path, kind, xattrs);
        if is_file {
            self.writer.append(&entry, &mut node.open_data()?)?;
        } else {
            self.writer.append(&entry, &mut io::empty())?;
        }
        Ok(true)
    }

    /// Ends the layer and returns the inner writer.
    pub fn finish(self) -> Result<W> {
        Ok(self.writer.finish()?)
    }

    fn entry(
        &self,
        node: &Node,
        path: &Path,
        kind: TarKind,
        xattrs: Vec<(std::ffi::OsString, Vec<u8>)>,
    ) -> TarEntry {
        let stat = node.stat();
        let (uid, gid) = match &self.owners {
            None => (stat.uid, stat.gid),
            Some(owners) => owners(stat.uid, stat.gid),
        };
        TarEntry {
            path: path.to_owned(),
            kind,
            mode: stat.mode,
            uid,
            gid,
            mtime: match self.newest {
                Some(newest) => stat.mtime.min(newest),
                None => stat.mtime,
            },
            xattrs,
        }
    }
}

/// Writes changes as one layer and returns the inner writer.
pub fn write_changes<W: Write>(
    changes: impl Iterator<Item = vellum_union::Result<Change>>,
    out: W,
    cancel: &Cancel,
) -> Result<W> {
    let mut writer = NodeWriter::new(out);
    for change in changes {
        go_on(cancel)?;
        writer.change(&change?)?;
    }
    writer.finish()
}

/// Writes a whole union as one layer and returns the inner writer.
pub fn write_tree<W: Write>(union: &Stack, out: W, cancel: &Cancel) -> Result<W> {
    let mut writer = NodeWriter::new(out);
    for node in union.walk() {
        go_on(cancel)?;
        let node = node?;
        if !node.path().as_os_str().is_empty() {
            writer.node(&node, node.path())?;
        }
    }
    writer.finish()
}

fn go_on(cancel: &Cancel) -> Result<()> {
    if cancel.is_cancelled() {
        Err(Error::Cancelled)
    } else {
        Ok(())
    }
}

/// The reading end of a tar that a thread writes. It reports the thread's failure at the end.
pub struct Piped {
    reader: PipeReader,
    thread: Option<JoinHandle<Result<()>>>,
}

/// Runs `write` in a thread of its own and returns a reader of its output.
pub fn piped(
    write: impl FnOnce(BufWriter<PipeWriter>) -> Result<()> + Send + 'static,
) -> Result<Piped> {
    let (reader, writer) = io::pipe().map_err(Error::io("make", "a pipe"))?;
    let thread = Builder::new()
        .name("tar".to_owned())
        .spawn(move || write(BufWriter::with_capacity(256 << 10, writer)))
        .map_err(Error::io("start", "a thread"))?;
    Ok(Piped {
        reader,
        thread: Some(thread),
    })
}

impl Read for Piped {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let got = self.reader.read(buf)?;
        if got == 0
            && !buf.is_empty()
            && let Some(thread) = self.thread.take()
        {
            match thread.join() {
                Ok(Ok(())) => {}
                Ok(Err(e)) => return Err(io::Error::other(e)),
                Err(_) => return Err(io::Error::other("the thread that writes the tar panicked")),
            }
        }
        Ok(got)
    }
}
