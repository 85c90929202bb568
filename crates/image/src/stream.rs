//! A layer's blob as a stream of uncompressed chunks; separate threads read, decompress and hash
//! it.
//!
//! One thread reads the blob, hashes it and decompresses; a second hashes the tar; the caller
//! consumes the chunks. Between them are bounded channels, and the buffers circulate in a ring, so
//! memory is constant ([`CHUNK_BYTES`] times the buffers of the ring) whatever the layer's size. If
//! the caller stops, the threads stop at their next chunk. This module knows nothing of tar.
//!
//! Invariant: [`LayerStream::finish`] returns digests only after every byte of the blob has passed,
//! so a digest it returns is that of the whole, never of a prefix.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{Builder, JoinHandle};

use crossbeam_channel::{Receiver, Sender, bounded};
use vellum_format::Digest;
use vellum_sys::Cancel;

use crate::compression::{DETECT_BYTES, Decoder, detect};
use crate::error::{Error, Result};
use crate::hash::Hasher;
use crate::limits::{Limits, RATIO_COUNTS_FROM_BYTES, check};
use crate::packing::Packing;

mod as_tar;

/// Size of one buffer of the ring.
pub const CHUNK_BYTES: usize = 256 * 1024;

/// Buffers of the ring: one for each of the three parties, and some for each to run ahead.
const RING: usize = 10;

/// Facts about a layer's blob that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobFacts {
    /// How the blob was compressed.
    pub packing: Packing,
    /// Digest of the blob as it came.
    pub blob_digest: Digest,
    /// Bytes of the blob as it came.
    pub blob_bytes: u64,
    /// Digest of the uncompressed tar.
    pub diff_id: Digest,
    /// Bytes of the uncompressed tar.
    pub tar_bytes: u64,
}

/// Shared counters of one stream, for progress bars.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    blob_bytes: AtomicU64,
    tar_bytes: AtomicU64,
}

impl Progress {
    /// Bytes of the blob read so far.
    pub fn blob_bytes(&self) -> u64 {
        self.0.blob_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of the tar handed out so far.
    pub fn tar_bytes(&self) -> u64 {
        self.0.tar_bytes.load(Ordering::Relaxed)
    }
}

/// The uncompressed bytes of a layer. `Read` and `BufRead` return them; `finish` returns their
/// digests and sizes.
///
/// Dropping it stops the threads, at the latest when the blob's own `read` returns.
pub struct LayerStream {
    chunks: Receiver<Result<Vec<u8>>>,
    /// Takes back emptied buffers.
    empty: Sender<Vec<u8>>,
    current: Vec<u8>,
    position: usize,
    handed_out: u64,
    ended: bool,
    progress: Progress,
    inflate: JoinHandle<Option<(Packing, Digest, u64)>>,
    hash: JoinHandle<(Digest, u64)>,
}

impl LayerStream {
    /// Starts reading `blob`, whose compression is detected from its first bytes.
    ///
    /// Errors (unknown compression, a blob that can't be decompressed, limits, cancellation) occur
    /// when the bytes are read.
    pub fn open(blob: Box<dyn Read + Send>, limits: &Limits, cancel: &Cancel) -> Result<Self> {
        Self::open_with_progress(blob, limits, cancel, Progress::default())
    }

    /// Like [`LayerStream::open`], counting in `progress`.
    pub fn open_with_progress(
        blob: Box<dyn Read + Send>,
        limits: &Limits,
        cancel: &Cancel,
        progress: Progress,
    ) -> Result<Self> {
        let (empty, empties) = bounded::<Vec<u8>>(RING);
        let (inflated_out, inflated) = bounded::<Result<Vec<u8>>>(RING);
        let (chunks_out, chunks) = bounded::<Result<Vec<u8>>>(RING);
        for _ in 0..RING {
            // Can't fail: the channel holds RING buffers and we have its receiver.
            let _ = empty.send(Vec::new());
        }
        let inflater = Inflater {
            limits: limits.clone(),
            cancel: cancel.clone(),
            progress: progress.clone(),
            empties,
            out: inflated_out,
        };
        let inflate = Builder::new()
            .name("layer-inflate".into())
            .spawn(move || inflater.run(blob))
            .map_err(Error::Read)?;
        let hash = Builder::new()
            .name("layer-hash".into())
            .spawn(move || hash_chunks(&inflated, &chunks_out))
            .map_err(Error::Read)?;
        Ok(Self {
            chunks,
            empty,
            current: Vec::new(),
            position: 0,
            handed_out: 0,
            ended: false,
            progress,
            inflate,
            hash,
        })
    }

    /// Returns the available bytes, at least one unless the tar has ended. Consume them with
    /// [`BufRead::consume`].
    pub fn chunk(&mut self) -> Result<&[u8]> {
        while self.position == self.current.len() && !self.ended {
            match self.chunks.recv() {
                Ok(Ok(next)) => {
                    let spent = std::mem::replace(&mut self.current, next);
                    self.position = 0;
                    if spent.capacity() > 0 {
                        // Full or closed: the buffer is not needed any more.
                        let _ = self.empty.try_send(spent);
                    }
                }
                Ok(Err(error)) => {
                    self.ended = true;
                    return Err(error);
                }
                Err(_) => self.ended = true,
            }
        }
        Ok(&self.current[self.position..])
    }

    /// Returns how many bytes of the tar were consumed so far.
    pub fn offset(&self) -> u64 {
        self.handed_out
    }

    /// Reads what is left and returns the facts about the blob.
    pub fn finish(mut self) -> Result<BlobFacts> {
        loop {
            let n = self.chunk()?.len();
            if n == 0 {
                break;
            }
            self.consume(n);
        }
        drop(self.chunks);
        let died = |_| Error::Read(io::Error::other("a reader thread died"));
        let (diff_id, tar_bytes) = self.hash.join().map_err(died)?;
        // `None` only after an error, which `chunk` has returned above.
        let (packing, blob_digest, blob_bytes) = self
            .inflate
            .join()
            .map_err(died)?
            .ok_or_else(|| Error::Read(io::Error::other("the reader stopped early")))?;
        Ok(BlobFacts {
            packing,
            // An uncompressed blob is hashed only once.
            blob_digest: match packing {
                Packing::NONE => diff_id,
                _ => blob_digest,
            },
            blob_bytes,
            diff_id,
            tar_bytes,
        })
    }
}

impl Read for LayerStream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(buf)?;
        self.consume(n);
        Ok(n)
    }
}

impl BufRead for LayerStream {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.chunk().map_err(io::Error::other)
    }

    fn consume(&mut self, n: usize) {
        self.position += n;
        self.handed_out += n as u64;
        self.progress
            .0
            .tar_bytes
            .store(self.handed_out, Ordering::Relaxed);
    }
}

fn hash_chunks(
    inflated: &Receiver<Result<Vec<u8>>>,
    out: &Sender<Result<Vec<u8>>>,
) -> (Digest, u64) {
    let mut hasher = Hasher::default();
    for chunk in inflated {
        if let Ok(bytes) = &chunk {
            hasher.update(bytes);
        }
        if out.send(chunk).is_err() {
            break;
        }
    }
    let bytes = hasher.bytes();
    (hasher.finish(), bytes)
}

/// The blob's own bytes: counted, and hashed unless the tar's hash is the same.
struct BlobRead {
    inner: Box<dyn Read + Send>,
    hasher: Option<Hasher>,
    bytes: u64,
    progress: Progress,
}

impl Read for BlobRead {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buf[..n]);
        }
        self.bytes += n as u64;
        self.progress
            .0
            .blob_bytes
            .store(self.bytes, Ordering::Relaxed);
        Ok(n)
    }
}

struct Inflater {
    limits: Limits,
    cancel: Cancel,
    progress: Progress,
    empties: Receiver<Vec<u8>>,
    out: Sender<Result<Vec<u8>>>,
}

impl Inflater {
    fn run(self, blob: Box<dyn Read + Send>) -> Option<(Packing, Digest, u64)> {
        match self.pump(blob) {
            Ok(facts) => facts,
            Err(error) => {
                // If nobody listens, there is nothing to report.
                let _ = self.out.send(Err(error));
                None
            }
        }
    }

    /// Returns `None` if the caller is gone.
    fn pump(&self, mut blob: Box<dyn Read + Send>) -> Result<Option<(Packing, Digest, u64)>> {
        let mut head = Vec::with_capacity(DETECT_BYTES);
        (&mut blob)
            .take(DETECT_BYTES as u64)
            .read_to_end(&mut head)
            .map_err(own_error_or(Error::Read))?;
        let packing = detect(&head);
        let blob = BlobRead {
            inner: Box::new(io::Cursor::new(head).chain(blob)),
            hasher: match packing {
                Packing::NONE => None,
                _ => Some(Hasher::default()),
            },
            bytes: 0,
            progress: self.progress.clone(),
        };
        let failed = |error: io::Error| match packing {
            Packing::NONE => own_error_or(Error::Read)(error),
            packing => own_error_or(|source| Error::Decompress { packing, source })(error),
        };
        // Smaller than a chunk: uncompressed data is then read straight into the chunk, without a
        // copy.
        let blob = BufReader::with_capacity(CHUNK_BYTES / 2, blob);
        let mut decoder = Decoder::new(packing, blob).map_err(failed)?;
        let mut tar_bytes = 0u64;
        loop {
            if self.cancel.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let Ok(mut chunk) = self.empties.recv() else {
                return Ok(None);
            };
            chunk.resize(CHUNK_BYTES, 0);
            let filled = fill(&mut decoder, &mut chunk).map_err(failed)?;
            chunk.truncate(filled);
            if filled == 0 {
                break;
            }
            tar_bytes += filled as u64;
            check(
                "the uncompressed layer",
                tar_bytes,
                self.limits.max_tar_bytes,
                None,
            )?;
            if tar_bytes > RATIO_COUNTS_FROM_BYTES {
                let blob_bytes = decoder.get_ref().get_ref().bytes.max(1);
                check(
                    "the compression ratio",
                    tar_bytes / blob_bytes,
                    self.limits.max_ratio,
                    None,
                )?;
            }
            if self.out.send(Ok(chunk)).is_err() {
                return Ok(None);
            }
        }
        let mut blob = decoder.into_inner();
        // A decoder may stop before the blob ends (it has read the last frame's end); whatever
        // follows belongs to the blob's digest.
        io::copy(&mut blob, &mut io::sink()).map_err(failed)?;
        let blob = blob.into_inner();
        let digest = blob.hasher.unwrap_or_default().finish();
        Ok(Some((packing, digest, blob.bytes)))
    }
}

/// Reads until `buf` is full or the reader ends.
fn fill(reader: &mut impl Read, buf: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buf.len() {
        match reader.read(&mut buf[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Extracts this crate's own error from an `io::Error` that only carried it, or wraps the error
/// with `wrap`.
pub(crate) fn own_error_or(
    wrap: impl FnOnce(io::Error) -> Error,
) -> impl FnOnce(io::Error) -> Error {
    |error| match error.downcast::<Error>() {
        Ok(own) => own,
        Err(error) => wrap(error),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::compression::Encoder;
    use crate::packing::Compression;

    fn sample() -> Vec<u8> {
        (0..700_000u32)
            .flat_map(|n| (n / 3).to_le_bytes())
            .collect()
    }

    fn compressed(compression: Compression, bytes: &[u8]) -> Vec<u8> {
        let mut encoder = Encoder::new(compression, Vec::new()).unwrap();
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn open(blob: Vec<u8>, limits: &Limits) -> LayerStream {
        LayerStream::open(Box::new(io::Cursor::new(blob)), limits, &Cancel::new()).unwrap()
    }

    #[test]
    fn stream_gives_the_tar_and_both_digests() {
        let bytes = sample();
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            let blob = compressed(compression, &bytes);
            let mut stream = open(blob.clone(), &Limits::default());
            let mut out = Vec::new();
            stream.read_to_end(&mut out).unwrap();
            assert!(out == bytes);
            let facts = stream.finish().unwrap();
            assert_eq!(
                facts,
                BlobFacts {
                    packing: Packing::Layer(compression),
                    blob_digest: Digest::of(&blob),
                    blob_bytes: blob.len() as u64,
                    diff_id: Digest::of(&bytes),
                    tar_bytes: bytes.len() as u64,
                }
            );
        }
    }

    #[test]
    fn finish_counts_what_the_caller_did_not_read() {
        let bytes = sample();
        let facts = open(bytes.clone(), &Limits::default()).finish().unwrap();
        assert_eq!(facts.diff_id, Digest::of(&bytes));
        let empty = open(Vec::new(), &Limits::default()).finish().unwrap();
        assert_eq!((empty.tar_bytes, empty.diff_id), (0, Digest::of(b"")));
    }

    #[test]
    fn a_cut_blob_never_yields_digests() {
        let mut blob = compressed(Compression::Gzip, &sample());
        blob.truncate(blob.len() - 3);
        let error = open(blob, &Limits::default()).finish().unwrap_err();
        assert!(
            matches!(
                error,
                Error::Decompress {
                    packing: Packing::Layer(Compression::Gzip),
                    ..
                }
            ),
            "{error:?}"
        );
    }

    #[test]
    fn limits_have_names() {
        let limits = Limits {
            max_tar_bytes: 1000,
            ..Limits::default()
        };
        let error = open(sample(), &limits).finish().unwrap_err();
        assert!(
            matches!(
                error,
                Error::Limit {
                    limit: "the uncompressed layer",
                    ..
                }
            ),
            "{error:?}"
        );
        let bomb = compressed(
            Compression::Zstd,
            &vec![0; (RATIO_COUNTS_FROM_BYTES + (4 << 20)) as usize],
        );
        let limits = Limits {
            max_ratio: 2000,
            ..Limits::default()
        };
        let error = open(bomb, &limits).finish().unwrap_err();
        assert!(
            matches!(
                error,
                Error::Limit {
                    limit: "the compression ratio",
                    ..
                }
            ),
            "{error:?}"
        );
    }

    #[test]
    fn cancellation_reaches_the_threads() {
        let cancel = Cancel::new();
        let mut stream =
            LayerStream::open(Box::new(io::repeat(7)), &Limits::default(), &cancel).unwrap();
        assert!(!stream.chunk().unwrap().is_empty());
        cancel.cancel();
        assert!(matches!(stream.finish(), Err(Error::Cancelled)));
    }

    #[test]
    fn errors_of_the_reader_keep_their_type() {
        let short = crate::hash::VerifyRead::new(&b"abc"[..], "blob", Digest::of(b"abcd"), Some(4));
        let error = LayerStream::open(Box::new(short), &Limits::default(), &Cancel::new())
            .unwrap()
            .finish()
            .unwrap_err();
        assert!(
            matches!(error, Error::SizeMismatch { found: 3, .. }),
            "{error:?}"
        );
    }
}
