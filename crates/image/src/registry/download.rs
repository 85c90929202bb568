//! A blob of a registry as a reader that doesn't mind a broken connection.
//!
//! A task on the client's thread fetches the blob and passes chunks through a bounded channel, so a
//! slow reader slows the transfer instead of filling memory. When the connection breaks or ends early,
//! the task asks for the missing range again, with growing pauses, and after too many failures without
//! progress asks the next endpoint, still from where it stands. A server that ignores ranges is read
//! from the start and the known part is dropped.
//!
//! The reader delivers exactly the promised number of bytes or an error; whether they are the right
//! ones is checked by whoever hashes them.

use std::io::{self, Read};

use bytes::Bytes;
use futures_util::StreamExt;
use oci_client::RegistryOperation;
use oci_client::client::BlobResponse;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use vellum_sys::Cancel;

use super::RegistryError;
use super::endpoint::Endpoint;
use super::runtime::{LOOK, Runtime};
use crate::digest::Digest;
use crate::error::Error;
use crate::manifest::Descriptor;
use crate::source::SourceError;

/// Chunks on the way to the reader; each is what one read from the network gave, at most some 16 KiB.
const CHUNKS_AHEAD: usize = 64;

/// The bytes of one blob, as they arrive.
pub(super) struct BlobReader {
    chunks: Receiver<Result<Bytes, RegistryError>>,
    current: Bytes,
    left_bytes: u64,
    task: tokio::task::AbortHandle,
}

impl BlobReader {
    /// Starts fetching `blob` from the first endpoint that has it.
    pub(super) fn start(endpoints: &[Endpoint], blob: &Descriptor, runtime: &Runtime) -> Self {
        let (out, chunks) = channel(CHUNKS_AHEAD);
        let transfer = Transfer {
            endpoints: endpoints.to_vec(),
            digest: blob.digest,
            size_bytes: blob.size_bytes,
            offset: 0,
            out,
            cancel: runtime.cancel().clone(),
        };
        let task = runtime.handle().spawn(transfer.run()).abort_handle();
        Self {
            chunks,
            current: Bytes::new(),
            left_bytes: blob.size_bytes,
            task,
        }
    }
}

impl Drop for BlobReader {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Read for BlobReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.left_bytes == 0 || buf.is_empty() {
            return Ok(0);
        }
        while self.current.is_empty() {
            self.current = match self.chunks.blocking_recv() {
                Some(Ok(chunk)) => chunk,
                Some(Err(e)) => return Err(io::Error::other(e)),
                None => return Err(io::Error::other(RegistryError::Stopped)),
            };
        }
        let got = self.current.len().min(buf.len());
        buf[..got].copy_from_slice(&self.current.split_to(got));
        self.left_bytes -= got as u64;
        Ok(got)
    }
}

/// Turns what came out of a reader of this module back into what it was.
pub(super) fn surfaced(error: io::Error, path: &str) -> SourceError {
    match error.downcast::<RegistryError>() {
        Ok(own) => own.into(),
        Err(other) => SourceError::io(path, other),
    }
}

struct Transfer {
    endpoints: Vec<Endpoint>,
    digest: Digest,
    size_bytes: u64,
    /// How many bytes have been passed on.
    offset: u64,
    out: Sender<Result<Bytes, RegistryError>>,
    cancel: Cancel,
}

/// The reader is gone: there is nobody to fetch for.
struct Unwanted;

impl Transfer {
    async fn run(mut self) {
        let mut last_error = RegistryError::Stopped;
        for endpoint in std::mem::take(&mut self.endpoints) {
            match self.from(&endpoint).await {
                Ok(Ok(())) | Err(Unwanted) => return,
                Ok(Err(e)) => {
                    tracing::debug!(endpoint = endpoint.name(), error = %e, "giving up on this endpoint");
                    last_error = e;
                    if matches!(last_error, RegistryError::Stopped) {
                        break;
                    }
                }
            }
        }
        // Nobody listening any more is the only way this fails.
        let _ = self.out.send(Err(last_error)).await;
    }

    /// Fetches what is missing from `endpoint`, again and again as long as it makes progress.
    async fn from(&mut self, endpoint: &Endpoint) -> Result<Result<(), RegistryError>, Unwanted> {
        let mut failures = 0;
        while self.offset < self.size_bytes {
            let before = self.offset;
            let error = match self.attempt(endpoint).await? {
                Ok(()) => continue,
                Err(e) => e,
            };
            failures = if self.offset > before {
                1
            } else {
                failures + 1
            };
            let Some(pause) = endpoint
                .retry
                .pause(failures)
                .filter(|_| error.is_passing())
            else {
                return Ok(Err(error));
            };
            tracing::debug!(
                endpoint = endpoint.name(),
                offset = self.offset,
                error = %error,
                "the transfer broke, going on after a pause"
            );
            tokio::time::sleep(pause).await;
            if self.cancel.is_cancelled() {
                return Ok(Err(RegistryError::Stopped));
            }
        }
        Ok(Ok(()))
    }

    /// One request: passes on what it gives. Success means that all bytes have been passed on.
    async fn attempt(
        &mut self,
        endpoint: &Endpoint,
    ) -> Result<Result<(), RegistryError>, Unwanted> {
        let action = format!("give blob {}", self.digest);
        if let Err(e) = endpoint.log_in(RegistryOperation::Pull).await {
            return Ok(Err(e));
        }
        let wanted = self.digest.to_string();
        let response = endpoint
            .client
            .pull_blob_stream_partial(&endpoint.address, wanted.as_str(), self.offset, None)
            .await;
        let (stream, mut to_skip) = match response {
            Ok(BlobResponse::Partial(stream)) => (stream, 0),
            Ok(BlobResponse::Full(stream)) => (stream, self.offset),
            Err(e) => return Ok(Err(endpoint.failed(action, e))),
        };
        let mut stream = stream.stream;
        loop {
            let next = match tokio::time::timeout(LOOK, stream.next()).await {
                Ok(next) => next,
                Err(_) if self.cancel.is_cancelled() => return Ok(Err(RegistryError::Stopped)),
                Err(_) => continue,
            };
            let mut chunk = match next {
                Some(Ok(chunk)) => chunk,
                Some(Err(e)) => return Ok(Err(endpoint.failed(action, e.into()))),
                None if self.offset == self.size_bytes => return Ok(Ok(())),
                None => {
                    let short =
                        io::Error::new(io::ErrorKind::UnexpectedEof, "the blob ended early");
                    return Ok(Err(endpoint.failed(action, short.into())));
                }
            };
            let skipped = to_skip.min(chunk.len() as u64);
            to_skip -= skipped;
            chunk = chunk.split_off(usize::try_from(skipped).unwrap_or(usize::MAX));
            if chunk.is_empty() {
                continue;
            }
            if chunk.len() as u64 > self.size_bytes - self.offset {
                let too_long = Error::SizeMismatch {
                    what: format!("blob {} from {}", self.digest, endpoint.name()),
                    expected: self.size_bytes,
                    found: self.offset + chunk.len() as u64,
                };
                let registry = endpoint.name().to_owned();
                return Ok(Err(RegistryError::Failed {
                    registry,
                    action,
                    source: Box::new(too_long),
                }));
            }
            self.offset += chunk.len() as u64;
            if self.out.send(Ok(chunk)).await.is_err() {
                return Err(Unwanted);
            }
        }
    }
}
