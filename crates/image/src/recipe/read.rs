//! Writes a layer's tar again from its recipe and its tree.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use flate2::Crc;
use vellum_format::Digest;
use vellum_sys::{Cancel, Dir};

use super::write::next_data;
use super::{END, FILE, KEPT, MAGIC, PIECE_BYTES, RAW, SPARSE};
use crate::error::{Error, Result};
use crate::hash::HashWrite;

/// A tar that was written again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replayed {
    /// Its digest, equal to that of the original layer.
    pub diff_id: Digest,
    /// Its length.
    pub tar_bytes: u64,
}

/// Writes the tar that `recipe` describes to `out`, taking content from `tree`.
///
/// The recipe is read twice, first to check it as a whole and to find content that it keeps itself.
/// On success, what is written has the diff ID of the original layer. Errors: `BadRecipe` before
/// anything is written; `TreeChanged`, naming the file, or `DigestMismatch` when `out` has got
/// bytes already. The caller decides whether to trust `out` before this returns.
pub fn replay(
    recipe: &mut (impl Read + Seek),
    tree: &Dir,
    out: &mut dyn Write,
    cancel: &Cancel,
) -> Result<Replayed> {
    let written = write_again(recipe, tree, out, cancel, &|_| Ok(None), None)?;
    match written.found {
        None => Ok(written.expected),
        Some(found) => Err(Error::DigestMismatch {
            what: "the layer written from its tree".into(),
            expected: written.expected.diff_id,
            found,
        }),
    }
}

/// What [`survey`] learned about a tree.
pub struct Survey {
    /// What the recipe says about the tar.
    pub expected: Replayed,
    /// The digest of what was written, if it is another one.
    pub found: Option<Digest>,
    /// The content of each file that the recipe names, by ordinal.
    pub contents: Vec<Content>,
    /// The files whose content is not what the recipe says, each with the reason.
    pub changed: Vec<(PathBuf, String)>,
}

/// Like [`replay`], but goes on where content is missing or differs, with zeros in its place: every
/// header is as in the original layer, and everything that differs is in the result.
///
/// Also reads what [`replay`] doesn't need: the holes of sparse files, which must be empty. Errors:
/// `BadRecipe`, `Read`, `Write`, `Cancelled`.
pub fn survey(
    recipe: &mut (impl Read + Seek),
    tree: &Dir,
    out: &mut dyn Write,
    cancel: &Cancel,
) -> Result<Survey> {
    let mut notes = Notes::default();
    let written = write_again(recipe, tree, out, cancel, &|_| Ok(None), Some(&mut notes))?;
    Ok(Survey {
        expected: written.expected,
        found: written.found,
        contents: notes.contents,
        changed: notes.changed,
    })
}

/// Returns the file that has the content with an ordinal, if it is not to be the tree's.
pub type Instead<'i> = dyn Fn(u32) -> io::Result<Option<File>> + 'i;

/// Returns whether recipe and tree would result in the layer's tar if some files had the content of
/// those that `instead` returns. Nothing else proves content: a checksum can be forged.
///
/// Errors: `BadRecipe`, `Read`, `Cancelled`.
pub fn prove(
    recipe: &mut (impl Read + Seek),
    tree: &Dir,
    instead: &Instead<'_>,
    cancel: &Cancel,
) -> Result<bool> {
    match write_again(recipe, tree, &mut io::sink(), cancel, instead, None) {
        Ok(written) => Ok(written.found.is_none()),
        Err(Error::TreeChanged { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

#[derive(Default)]
struct Notes {
    contents: Vec<Content>,
    changed: Vec<(PathBuf, String)>,
}

struct Written {
    expected: Replayed,
    /// The digest of what was written, if it is another one.
    found: Option<Digest>,
}

/// Writes the tar again, with the files that `instead` returns in place of the tree's. With
/// `notes`, what is wrong with the tree is noted there and replaced by zeros; without, it is an
/// error.
fn write_again(
    recipe: &mut (impl Read + Seek),
    tree: &Dir,
    out: &mut dyn Write,
    cancel: &Cancel,
    instead: &Instead<'_>,
    mut notes: Option<&mut Notes>,
) -> Result<Written> {
    let kept = Kept::collect(recipe)?;
    let mut segments = Segments::open(recipe)?;
    let mut copy = Copy {
        tree,
        out: HashWrite::new(out),
        buf: vec![0; 128 * 1024],
        holes: notes.is_some(),
    };
    let mut payloads = 0u32;
    loop {
        if cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        match segments.next()? {
            Segment::Raw(bytes) => copy.out.write_all(&bytes).map_err(Error::Write)?,
            Segment::Payload { path, mut content } => {
                content.kept = kept.files.contains_key(&payloads);
                let begin = copy.out.bytes();
                content.ordinal = payloads;
                content.tar_offset = begin;
                let copied = match (
                    kept.files.get(&payloads),
                    instead(payloads).map_err(Error::Read)?,
                ) {
                    (Some(base), _) => {
                        copy.copy_from_file(&kept.spool, *base, &path, &content, cancel)
                    }
                    (None, Some(file)) => copy.copy_from_file(&file, 0, &path, &content, cancel),
                    (None, None) => copy.copy_from_tree(&path, &content, cancel),
                };
                match (copied, &mut notes) {
                    (Err(Error::TreeChanged { path, why }), Some(notes)) => {
                        notes.changed.push((path, why));
                        let done = copy.out.bytes() - begin;
                        copy.zeros(content.pieces.length().saturating_sub(done), cancel)?;
                    }
                    (copied, _) => copied?,
                }
                if let Some(notes) = &mut notes {
                    notes.contents.push(content);
                }
                payloads += 1;
            }
            Segment::Kept { .. } => segments.skip_kept()?,
            Segment::End {
                tar_bytes, diff_id, ..
            } => {
                let found_bytes = copy.out.bytes();
                let (out, found) = copy.out.finish();
                out.flush().map_err(Error::Write)?;
                let same = found == diff_id && found_bytes == tar_bytes;
                return Ok(Written {
                    expected: Replayed { diff_id, tar_bytes },
                    found: (!same).then_some(found),
                });
            }
        }
    }
}

/// Content of files that the tree no longer has, in an unnamed file.
struct Kept {
    spool: File,
    /// Where each payload's file starts in the spool.
    files: HashMap<u32, u64>,
}

impl Kept {
    fn collect(recipe: &mut (impl Read + Seek)) -> Result<Self> {
        let mut kept = Kept {
            spool: tempfile::tempfile().map_err(Error::Write)?,
            files: HashMap::new(),
        };
        let mut base = 0u64;
        scan(recipe, |part| match part {
            Part::Begin { ordinal } => {
                kept.files.insert(ordinal, base);
                Ok(())
            }
            Part::Bytes { offset, bytes } => {
                let at = base
                    .checked_add(offset)
                    .ok_or_else(|| bad("kept content of an impossible size"))?;
                kept.spool.write_all_at(bytes, at).map_err(Error::Write)
            }
            Part::End { size } => {
                base = base
                    .checked_add(size)
                    .ok_or_else(|| bad("kept content of an impossible size"))?;
                // Holes at the end must be readable too.
                kept.spool.set_len(base).map_err(Error::Write)
            }
        })?;
        Ok(kept)
    }
}

/// A part of the content that a recipe keeps itself.
enum Part<'b> {
    Begin { ordinal: u32 },
    Bytes { offset: u64, bytes: &'b [u8] },
    End { size: u64 },
}

/// Reads all of a recipe, checks it, and returns the diff ID of its layer.
fn scan(
    recipe: &mut (impl Read + Seek),
    mut kept: impl FnMut(Part<'_>) -> Result<()>,
) -> Result<Digest> {
    let mut segments = Segments::open(recipe)?;
    let mut payloads = 0u64;
    loop {
        match segments.next()? {
            Segment::Raw(_) => {}
            Segment::Payload { .. } => payloads += 1,
            Segment::Kept { ordinal, size } => {
                if u64::from(ordinal) >= payloads {
                    return Err(bad("it keeps content of an unnamed file"));
                }
                kept(Part::Begin { ordinal })?;
                segments.read_kept(|offset, bytes| {
                    if offset.saturating_add(bytes.len() as u64) > size {
                        return Err(bad("kept content extends beyond the end of its file"));
                    }
                    kept(Part::Bytes { offset, bytes })
                })?;
                kept(Part::End { size })?;
            }
            Segment::End {
                payloads: said,
                diff_id,
                ..
            } => {
                if said != payloads {
                    return Err(bad("the number of files it names differs from its count"));
                }
                segments.end()?;
                return Ok(diff_id);
            }
        }
    }
}

/// Checks a recipe as far as possible without its tree, and returns the diff ID of its layer.
///
/// A flipped bit or a missing end is found, wherever it is. Errors: `BadRecipe`, `Read`.
pub fn verify(recipe: &mut (impl Read + Seek)) -> Result<Digest> {
    scan(recipe, |_| Ok(()))
}

struct Copy<'a> {
    tree: &'a Dir,
    out: HashWrite<&'a mut dyn Write>,
    buf: Vec<u8>,
    /// Whether holes are read too.
    holes: bool,
}

impl Copy<'_> {
    fn copy_from_tree(&mut self, path: &[u8], content: &Content, cancel: &Cancel) -> Result<()> {
        let name = Path::new(OsStr::from_bytes(path));
        let changed = |why: String| Error::TreeChanged {
            path: name.to_owned(),
            why,
        };
        let file = self
            .tree
            .open_file(name)
            .map_err(|error| changed(error.to_string()))?;
        if let Pieces::Whole(length) = content.pieces {
            let size = file
                .metadata()
                .map_err(|error| changed(error.to_string()))?
                .len();
            if size != length {
                return Err(changed(format!("it has {size} bytes instead of {length}")));
            }
        }
        self.copy_from_file(&file, 0, path, content, cancel)?;
        match self.holes {
            true => content
                .check_holes(&file, &mut self.buf, cancel)?
                .map_or(Ok(()), |why| Err(changed(why))),
            false => Ok(()),
        }
    }

    fn copy_from_file(
        &mut self,
        file: &File,
        base: u64,
        path: &[u8],
        content: &Content,
        cancel: &Cancel,
    ) -> Result<()> {
        let out = &mut self.out;
        let wrong = content.read(file, base, &mut self.buf, cancel, |part| {
            out.write_all(part).map_err(Error::Write)
        })?;
        match wrong {
            None => Ok(()),
            Some(why) => Err(Error::TreeChanged {
                path: Path::new(OsStr::from_bytes(path)).to_owned(),
                why,
            }),
        }
    }

    fn zeros(&mut self, mut length: u64, cancel: &Cancel) -> Result<()> {
        self.buf.fill(0);
        while length > 0 {
            if cancel.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let n = part_of(&self.buf, length);
            self.out.write_all(&self.buf[..n]).map_err(Error::Write)?;
            length -= n as u64;
        }
        Ok(())
    }
}

fn part_of(buf: &[u8], length: u64) -> usize {
    buf.len().min(usize::try_from(length).unwrap_or(usize::MAX))
}

/// The content of one file, as a recipe knows it.
#[derive(Clone)]
pub struct Content {
    pieces: Pieces,
    crc: u32,
    /// The position among the contents of its recipe.
    ordinal: u32,
    /// Where it begins in the layer's tar.
    tar_offset: u64,
    /// The recipe has it itself, since the name it came under was lost.
    kept: bool,
}

impl Content {
    fn new(pieces: Pieces, crc: u32) -> Self {
        Self {
            pieces,
            crc,
            ordinal: 0,
            tar_offset: 0,
            kept: false,
        }
    }

    /// Returns that of an empty file.
    pub(crate) fn empty() -> Self {
        Self::new(Pieces::Whole(0), 0)
    }

    /// Whether [`survey`] took it from the recipe, so that nothing is known about the tree's.
    pub(crate) fn is_kept(&self) -> bool {
        self.kept
    }

    /// Returns its position among the contents of its recipe, for [`prove`].
    pub fn ordinal(&self) -> u32 {
        self.ordinal
    }

    /// Returns what can be asked of another recipe: how many bytes of tar it is, and the checksum.
    pub fn likeness(&self) -> (u64, u32) {
        (self.pieces.length(), self.crc)
    }

    /// Compares `file`, which has the right size, with this. Returns what is wrong with it.
    pub fn compare(&self, file: &File, cancel: &Cancel) -> Result<Option<String>> {
        let mut buf = vec![0; 128 * 1024];
        match self.read(file, 0, &mut buf, cancel, |_| Ok(()))? {
            None => self.check_holes(file, &mut buf, cancel),
            wrong => Ok(wrong),
        }
    }

    /// Passes the content to `take`, piece by piece. Returns what is wrong with it.
    fn read(
        &self,
        file: &File,
        base: u64,
        buf: &mut [u8],
        cancel: &Cancel,
        mut take: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<Option<String>> {
        let mut found = Crc::new();
        for &(offset, length) in self.pieces.ranges().iter() {
            let mut done = 0;
            while done < length {
                if cancel.is_cancelled() {
                    return Err(Error::Cancelled);
                }
                let n = part_of(buf, length - done);
                let part = &mut buf[..n];
                if let Err(error) = file.read_exact_at(part, base + offset + done) {
                    return Ok(Some(match error.kind() {
                        io::ErrorKind::UnexpectedEof => "it is shorter".into(),
                        _ => error.to_string(),
                    }));
                }
                found.update(part);
                take(part)?;
                done += n as u64;
            }
        }
        Ok((found.sum() != self.crc).then(|| "its content differs".into()))
    }

    /// Reads what is between the ranges of a sparse file: nothing may be there.
    fn check_holes(&self, file: &File, buf: &mut [u8], cancel: &Cancel) -> Result<Option<String>> {
        let Pieces::Ranges(ranges) = &self.pieces else {
            return Ok(None);
        };
        let size = match file.metadata() {
            Ok(meta) => meta.len(),
            Err(error) => return Ok(Some(error.to_string())),
        };
        let mut begin = 0;
        for &(offset, length) in ranges.iter().chain([&(size, 0)]) {
            let mut at = begin;
            while at < offset {
                let data = match next_data(file, at, offset) {
                    Ok(data) => data,
                    Err(error) => return Ok(Some(error.to_string())),
                };
                let Some((data, end)) = data else { break };
                at = data;
                while at < end.min(offset) {
                    if cancel.is_cancelled() {
                        return Err(Error::Cancelled);
                    }
                    let n = part_of(buf, end.min(offset) - at);
                    if let Err(error) = file.read_exact_at(&mut buf[..n], at) {
                        return Ok(Some(error.to_string()));
                    }
                    if buf[..n].iter().any(|&byte| byte != 0) {
                        return Ok(Some("there is data in one of its holes".into()));
                    }
                    at += n as u64;
                }
            }
            begin = offset + length;
        }
        Ok(None)
    }
}

#[derive(Clone)]
enum Pieces {
    Whole(u64),
    Ranges(Vec<(u64, u64)>),
}

impl Pieces {
    fn ranges(&self) -> std::borrow::Cow<'_, [(u64, u64)]> {
        match self {
            Pieces::Whole(length) => vec![(0, *length)].into(),
            Pieces::Ranges(ranges) => ranges.as_slice().into(),
        }
    }

    /// Returns how many bytes of the tar they are.
    fn length(&self) -> u64 {
        match self {
            Pieces::Whole(length) => *length,
            Pieces::Ranges(ranges) => ranges
                .iter()
                .fold(0, |sum, (_, length)| sum.saturating_add(*length)),
        }
    }
}

/// Takes the contents of some files out of a layer's tar while it passes, whatever its headers say:
/// the recipe knows where each content is.
///
/// The files are written to and not synced, and one is open at a time. The caller knows whether it
/// was the layer's tar, and compares each content ([`Content::compare`]).
pub struct Gather<'f> {
    /// Where in the tar, how long, which content and where in its file; sorted.
    runs: Vec<(u64, u64, usize, u64)>,
    next: usize,
    position: u64,
    open: &'f dyn Fn(usize) -> io::Result<File>,
    current: Option<(usize, File)>,
}

impl<'f> Gather<'f> {
    /// Takes each content, by the number that comes with it, into the file that `open` returns for
    /// it: one of the right size, without data.
    pub fn new<'c>(
        wanted: impl IntoIterator<Item = (usize, &'c Content)>,
        open: &'f dyn Fn(usize) -> io::Result<File>,
    ) -> Self {
        let mut runs = Vec::new();
        for (number, content) in wanted {
            let mut at = content.tar_offset;
            for &(offset, length) in content.pieces.ranges().iter() {
                runs.push((at, length, number, offset));
                at = at.saturating_add(length);
            }
        }
        runs.sort_unstable();
        Self {
            runs,
            next: 0,
            position: 0,
            open,
            current: None,
        }
    }

    fn put(&mut self, number: usize, bytes: &[u8], offset: u64) -> io::Result<()> {
        // Zeros are there already, and may be a hole.
        if bytes.iter().all(|&byte| byte == 0) {
            return Ok(());
        }
        let file = match self.current.take() {
            Some((open, file)) if open == number => file,
            _ => (self.open)(number)?,
        };
        file.write_all_at(bytes, offset)?;
        self.current = Some((number, file));
        Ok(())
    }
}

impl Write for Gather<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let end = self.position + bytes.len() as u64;
        while let Some(&(at, length, number, offset)) = self.runs.get(self.next) {
            let run_end = at.saturating_add(length);
            let (from, to) = (at.max(self.position), run_end.min(end));
            if from < to {
                let part = (from - self.position) as usize..(to - self.position) as usize;
                self.put(number, &bytes[part], offset + (from - at))?;
            }
            if run_end > end {
                break;
            }
            self.next += 1;
        }
        self.position = end;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A content that a recipe names, as [`likenesses`] found it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alike {
    /// The file, relative to the layer's tree.
    pub path: PathBuf,
    /// Its length and checksum, as [`Content::likeness`] returns them.
    pub likeness: (u64, u32),
}

/// Returns the files of a recipe whose content may be one of `wanted`, by length and checksum.
/// Errors: `BadRecipe`, `Read`.
pub fn likenesses(
    recipe: &mut (impl Read + Seek),
    wanted: &HashSet<(u64, u32)>,
) -> Result<Vec<Alike>> {
    let mut segments = Segments::open(recipe)?;
    let mut found = Vec::new();
    loop {
        match segments.next()? {
            Segment::Raw(_) => {}
            Segment::Payload { path, content } => {
                let likeness = content.likeness();
                if wanted.contains(&likeness) {
                    found.push(Alike {
                        path: PathBuf::from(OsString::from_vec(path)),
                        likeness,
                    });
                }
            }
            Segment::Kept { .. } => segments.skip_kept()?,
            Segment::End { .. } => return Ok(found),
        }
    }
}

enum Segment {
    Raw(Vec<u8>),
    Payload {
        path: Vec<u8>,
        content: Content,
    },
    /// Its content follows and must be read or skipped.
    Kept {
        ordinal: u32,
        size: u64,
    },
    End {
        tar_bytes: u64,
        payloads: u64,
        diff_id: Digest,
    },
}

/// The segments of a recipe, one after the other.
struct Segments<R: Read> {
    input: BufReader<zstd::stream::read::Decoder<'static, BufReader<R>>>,
}

impl<'r, R: Read + Seek> Segments<&'r mut R> {
    fn open(recipe: &'r mut R) -> Result<Self> {
        recipe.seek(SeekFrom::Start(0)).map_err(Error::Read)?;
        let mut magic = [0; MAGIC.len()];
        recipe.read_exact(&mut magic).map_err(cut)?;
        if magic[..7] != MAGIC[..7] {
            return Err(bad("it is not a recipe"));
        }
        if magic != MAGIC {
            return Err(bad(&format!(
                "it has version {}, and this program knows version {} only",
                magic[7], MAGIC[7]
            )));
        }
        let decoder = zstd::stream::read::Decoder::new(recipe).map_err(Error::Read)?;
        Ok(Self {
            input: BufReader::with_capacity(64 * 1024, decoder),
        })
    }
}

impl<R: Read> Segments<R> {
    fn next(&mut self) -> Result<Segment> {
        match self.byte()? {
            END => {
                let tar_bytes = self.number()?;
                let payloads = self.number()?;
                let mut diff_id = [0; 32];
                self.input.read_exact(&mut diff_id).map_err(cut)?;
                Ok(Segment::End {
                    tar_bytes,
                    payloads,
                    diff_id: Digest::from_bytes(diff_id),
                })
            }
            RAW => {
                let length = self.number()?;
                Ok(Segment::Raw(self.bytes(length, PIECE_BYTES)?))
            }
            FILE => {
                let path = self.path()?;
                let pieces = Pieces::Whole(self.number()?);
                let crc = self.crc()?;
                Ok(Segment::Payload {
                    path,
                    content: Content::new(pieces, crc),
                })
            }
            SPARSE => {
                let path = self.path()?;
                let count = self.number()?;
                let mut ranges = Vec::new();
                let mut end = 0u64;
                for _ in 0..count {
                    let (gap, length) = (self.number()?, self.number()?);
                    let offset = end
                        .checked_add(gap)
                        .ok_or_else(|| bad("a range out of range"))?;
                    end = offset
                        .checked_add(length)
                        .ok_or_else(|| bad("a range out of range"))?;
                    ranges.push((offset, length));
                }
                let pieces = Pieces::Ranges(ranges);
                let crc = self.crc()?;
                Ok(Segment::Payload {
                    path,
                    content: Content::new(pieces, crc),
                })
            }
            KEPT => Ok(Segment::Kept {
                ordinal: u32::try_from(self.number()?)
                    .map_err(|_| bad("a file number out of range"))?,
                size: self.number()?,
            }),
            other => Err(bad(&format!("it has a segment of unknown type {other}"))),
        }
    }

    /// Reads the content of a KEPT segment piece by piece, each with its offset in the file.
    fn read_kept(&mut self, mut take: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        let mut end = 0u64;
        loop {
            let (gap, length) = (self.number()?, self.number()?);
            if length == 0 {
                return Ok(());
            }
            let offset = end
                .checked_add(gap)
                .ok_or_else(|| bad("a range out of range"))?;
            let bytes = self.bytes(length, PIECE_BYTES)?;
            take(offset, &bytes)?;
            end = offset + length;
        }
    }

    fn skip_kept(&mut self) -> Result<()> {
        self.read_kept(|_, _| Ok(()))
    }

    /// Checks that nothing follows, which also checks the frame's checksum.
    fn end(&mut self) -> Result<()> {
        match self.input.read(&mut [0]).map_err(cut)? {
            0 => Ok(()),
            _ => Err(bad("data follows its end")),
        }
    }

    fn byte(&mut self) -> Result<u8> {
        let mut byte = [0];
        self.input.read_exact(&mut byte).map_err(cut)?;
        Ok(byte[0])
    }

    fn number(&mut self) -> Result<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(bad("a number out of range"))
    }

    fn crc(&mut self) -> Result<u32> {
        let mut bytes = [0; 4];
        self.input.read_exact(&mut bytes).map_err(cut)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn path(&mut self) -> Result<Vec<u8>> {
        let length = self.number()?;
        self.bytes(length, 64 * 1024)
    }

    fn bytes(&mut self, length: u64, max: usize) -> Result<Vec<u8>> {
        let length = usize::try_from(length)
            .ok()
            .filter(|length| *length <= max)
            .ok_or_else(|| bad("a segment that is too long"))?;
        let mut bytes = vec![0; length];
        self.input.read_exact(&mut bytes).map_err(cut)?;
        Ok(bytes)
    }
}

fn bad(why: &str) -> Error {
    Error::BadRecipe {
        why: why.to_owned(),
    }
}

fn cut(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => bad("it is cut short"),
        _ => bad(&error.to_string()),
    }
}
