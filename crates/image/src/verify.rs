//! Verifies a layer's tree: whether everything in it is as its tar says, and nothing else is there.
//!
//! A tree and its recipe result in the layer's tar again, and that tar is applied once more, beside
//! the layer, by the code that made the layer. Only the content is left out: a file gets its size.
//! So this outline has every name, type, attribute, link and mark that the layer must have, by the
//! same rules (later entries win, whiteouts, implied directories, what a plain user can only
//! record), as this file system stores them; and [`compare()`] is a plain comparison of two trees.
//! A model of those rules in memory would be a second unpacker, and each difference between the two
//! a false finding. The price is an inode for each of the layer's, for as long as it is verified.
//!
//! Content is compared with the recipe's checksums while the tar is written, and the digest of that
//! tar proves the whole. This module doesn't know where trees are kept or what is below a layer:
//! the caller prepares the outline's directory as it did the layer's, and settles it on the layers
//! below in the same way.
//!
//! Memory grows with the entries of a layer, not with their content.

mod attributes;
mod compare;
mod difference;
mod mend;
mod names;
mod repair;

use std::collections::HashMap;
use std::io::{self, BufWriter, PipeReader, Read, Seek, Write};
use std::path::PathBuf;

use vellum_format::Digest;
use vellum_sys::{Cancel, Dir};

pub use compare::{Found, compare};
pub use difference::{Aspect, Difference};
pub use mend::{Displace, Mended};
pub use repair::{Damaged, Need, Repair};

use crate::apply::{self, Applied, ApplyTarget};
use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::packing::Packing;
use crate::recipe::{self, Content, Survey};
use crate::stream::BlobFacts;
use crate::tar::TarSource;

/// A layer that was applied once more, without content.
pub struct Outlined {
    /// What there is to settle, as after [`apply`](crate::apply()).
    pub applied: Applied,
    /// The content of the files in the outline.
    pub contents: Contents,
    /// Files of the layer's tree whose content differs, each with the reason.
    pub changed: Vec<(PathBuf, String)>,
    /// Set if the layer's tar has another digest than the recipe says: the one that was found.
    pub wrong_digest: Option<Digest>,
}

impl Outlined {
    /// Compares the content in `tree` with the recipe once more, after a repair.
    ///
    /// Errors: as [`outline`], apart from those of applying.
    pub fn look_again(
        &mut self,
        recipe: &mut (impl Read + Seek),
        tree: &Dir,
        cancel: &Cancel,
    ) -> Result<()> {
        let survey = recipe::survey(recipe, tree, &mut io::sink(), cancel)?;
        self.changed = survey.changed;
        self.wrong_digest = survey.found;
        Ok(())
    }
}

/// The content that the files of an outline should have, by inode number, each with the layer that
/// it is from: 0 for the first that was added.
#[derive(Default)]
pub struct Contents {
    files: HashMap<u64, (usize, Content)>,
    layers: usize,
}

impl Contents {
    /// Adds those of a layer that was applied on top. Inodes that it made anew are its own.
    pub fn extend(&mut self, above: Outlined) {
        let layer = self.layers;
        let files = above.contents.files.into_iter();
        self.files
            .extend(files.map(|(inode, (_, content))| (inode, (layer, content))));
        self.layers += 1;
    }

    fn of(&self, inode: u64) -> Option<&Content> {
        self.files.get(&inode).map(|(_, content)| content)
    }
}

/// Applies the layer of `recipe` to `target`, without content, and compares the content in `tree`
/// with the recipe.
///
/// `advance` is told how many bytes of the tar have passed. Errors: `BadRecipe`, `Cancelled`, and
/// those of applying, which are about `target`. What is wrong with `tree` is in the result.
pub fn outline(
    recipe: &mut (impl Read + Seek + Send),
    tree: &Dir,
    target: &ApplyTarget,
    advance: &(dyn Fn(u64) + Sync),
    limits: &Limits,
    cancel: &Cancel,
) -> Result<Outlined> {
    let (reader, writer) = io::pipe().map_err(Error::Read)?;
    let (surveyed, outlined) = std::thread::scope(|scope| {
        let survey = scope.spawn(|| {
            let out = BufWriter::with_capacity(PIPE_BYTES, writer);
            recipe::survey(recipe, tree, &mut Counted { out, advance }, cancel)
        });
        let outlined = apply::outline(Piped::new(reader), target, limits, cancel);
        let died = |_| Error::Read(io::Error::other("the thread that writes the tar died"));
        (survey.join().map_err(died), outlined)
    });
    let (survey, outline) = match (surveyed?, outlined) {
        (Ok(survey), Ok(outline)) => (survey, outline),
        // The reader stopped first: the writer's error is only a consequence.
        (Err(Error::Write(error)), Err(cause)) if error.kind() == io::ErrorKind::BrokenPipe => {
            return Err(cause);
        }
        // Otherwise the reader found a tar that was cut short.
        (Err(cause), _) | (Ok(_), Err(cause)) => return Err(cause),
    };
    let Survey {
        expected,
        found,
        contents,
        changed,
    } = survey;
    let mut contents: Vec<Option<Content>> = contents.into_iter().map(Some).collect();
    let mut by_inode = HashMap::new();
    for (inode, ordinal) in outline.files {
        let content = match ordinal {
            None => Content::empty(),
            Some(ordinal) => contents
                .get_mut(ordinal as usize)
                .and_then(Option::take)
                .ok_or_else(|| Error::BadRecipe {
                    why: "it names fewer files than its tar has".into(),
                })?,
        };
        by_inode.insert(inode, (0, content));
    }
    let blob = BlobFacts {
        packing: Packing::NONE,
        blob_digest: expected.diff_id,
        blob_bytes: expected.tar_bytes,
        diff_id: expected.diff_id,
        tar_bytes: expected.tar_bytes,
    };
    Ok(Outlined {
        applied: Applied {
            blob,
            ..outline.applied
        },
        contents: Contents {
            files: by_inode,
            layers: 1,
        },
        changed,
        wrong_digest: found,
    })
}

/// How much of the tar is passed on at once.
const PIPE_BYTES: usize = 256 << 10;

struct Counted<'a, W> {
    out: W,
    advance: &'a (dyn Fn(u64) + Sync),
}

impl<W: Write> Write for Counted<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        (self.advance)(written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// A tar that comes through a pipe.
struct Piped {
    reader: PipeReader,
    buf: Vec<u8>,
    begin: usize,
    end: usize,
    offset: u64,
}

impl Piped {
    fn new(reader: PipeReader) -> Self {
        Self {
            reader,
            buf: vec![0; PIPE_BYTES],
            begin: 0,
            end: 0,
            offset: 0,
        }
    }
}

impl TarSource for Piped {
    fn chunk(&mut self) -> Result<&[u8]> {
        while self.begin == self.end {
            self.begin = 0;
            self.end = match self.reader.read(&mut self.buf) {
                Ok(0) => {
                    self.end = 0;
                    break;
                }
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                Err(error) => return Err(Error::Read(error)),
            };
        }
        Ok(&self.buf[self.begin..self.end])
    }

    fn consume(&mut self, n: usize) {
        self.begin += n;
        self.offset += n as u64;
    }

    fn offset(&self) -> u64 {
        self.offset
    }
}

#[cfg(test)]
mod tests;
