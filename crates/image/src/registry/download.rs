//! A registry's blob as a reader that survives broken connections.
//!
//! A task on the client's thread fetches the blob and passes chunks through a bounded channel, so a
//! slow reader slows the transfer instead of filling memory. When the connection breaks, ends early
//! or is too slow, the task asks for the missing range, with growing pauses. After too many
//! failures without progress it asks the next endpoint, continuing from the same position. From a
//! server that ignores or refuses ranges the blob is read from the start and the known part is
//! dropped.
//!
//! The reader delivers exactly the promised number of bytes or an error; the code that hashes them
//! checks whether they are the right ones.

use std::io::{self, Read};

use bytes::Bytes;
use reqwest::header::{CONTENT_RANGE, HeaderValue, RANGE};
use reqwest::{Method, StatusCode};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use vellum_format::Digest;
use vellum_sys::Cancel;

use super::RegistryError;
use super::endpoint::Endpoint;
use super::exchange::{Answer, ExchangeError, Pace};
use super::login::Operation;
use super::runtime::{Runtime, unless_cancelled};
use crate::manifest::Descriptor;
use crate::source::SourceError;

/// Chunks on the way to the reader; each comes from one read from the network, at most about 16
/// KiB.
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
            ranges: true,
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

/// Recovers the original error from an I/O error of this module's reader.
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
    /// Whether the server may support ranges.
    ranges: bool,
    out: Sender<Result<Bytes, RegistryError>>,
    cancel: Cancel,
}

/// The reader is gone, so there is no reason to continue.
struct Unwanted;

impl Transfer {
    async fn run(mut self) {
        let mut last_error = RegistryError::Stopped;
        for endpoint in std::mem::take(&mut self.endpoints) {
            self.ranges = true;
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
        // This fails only if the reader is gone.
        let _ = self.out.send(Err(last_error)).await;
    }

    /// Fetches what is missing from `endpoint`, again and again as long as it makes progress.
    async fn from(&mut self, endpoint: &Endpoint) -> Result<Result<(), RegistryError>, Unwanted> {
        let mut failures = 0;
        while self.offset < self.size_bytes {
            let before = self.offset;
            let cancel = self.cancel.clone();
            let error = match unless_cancelled(&cancel, self.attempt(endpoint)).await {
                None => return Ok(Err(RegistryError::Stopped)),
                Some(attempt) => match attempt? {
                    Ok(()) => continue,
                    Err(e) => endpoint.failed(format!("give blob {}", self.digest), e),
                },
            };
            // A connection that trickles would otherwise continue forever.
            failures = if Pace::is_progress(self.offset - before) {
                1
            } else {
                failures + 1
            };
            let Some(pause) = endpoint.retry.pause_after(failures, &error) else {
                return Ok(Err(error));
            };
            tracing::debug!(
                endpoint = endpoint.name(),
                offset = self.offset,
                error = %error,
                "the transfer broke; continuing after a pause"
            );
            if unless_cancelled(&cancel, tokio::time::sleep(pause))
                .await
                .is_none()
            {
                return Ok(Err(RegistryError::Stopped));
            }
        }
        Ok(Ok(()))
    }

    /// One request: passes on what it returns. Success means that all bytes have been passed on.
    async fn attempt(
        &mut self,
        endpoint: &Endpoint,
    ) -> Result<Result<(), ExchangeError>, Unwanted> {
        let (answer, start) = match self.ask(endpoint).await {
            Ok(found) => found,
            Err(e) => return Ok(Err(e)),
        };
        let mut to_skip = self.offset - start;
        let mut pace = answer.pace();
        let mut response = answer.response;
        loop {
            let mut chunk = match pace.next(&mut response).await {
                Ok(Some(chunk)) => chunk,
                Ok(None) if self.offset == self.size_bytes => return Ok(Ok(())),
                Ok(None) => return Ok(Err(ExchangeError::Short)),
                Err(e) => return Ok(Err(e)),
            };
            let skipped = to_skip.min(chunk.len() as u64);
            to_skip -= skipped;
            chunk = chunk.split_off(usize::try_from(skipped).unwrap_or(usize::MAX));
            if chunk.is_empty() {
                continue;
            }
            if chunk.len() as u64 > self.size_bytes - self.offset {
                return Ok(Err(ExchangeError::TooLong(self.size_bytes)));
            }
            self.offset += chunk.len() as u64;
            if self.out.send(Ok(chunk)).await.is_err() {
                return Err(Unwanted);
            }
        }
    }

    /// Asks for what is missing. Returns the response and the position of its first byte in the
    /// blob, which is not after the first missing one.
    async fn ask(&mut self, endpoint: &Endpoint) -> Result<(Answer, u64), ExchangeError> {
        let path = format!("blobs/{}", self.digest);
        loop {
            let range = (self.ranges && self.offset > 0)
                .then(|| HeaderValue::try_from(format!("bytes={}-", self.offset)))
                .transpose()
                .map_err(|e| ExchangeError::odd(e.to_string()))?;
            let ranged = range.is_some();
            let answer = endpoint
                .ask(
                    Operation::Pull,
                    Method::GET,
                    &path,
                    |request| match &range {
                        Some(range) => request.header(RANGE, range.clone()),
                        None => request,
                    },
                )
                .await?;
            let status = answer.status();
            if status == StatusCode::PARTIAL_CONTENT {
                // If the response doesn't say, it is assumed to be what was requested.
                let start = answer
                    .header(CONTENT_RANGE)
                    .map_or(Some(self.offset), range_start);
                match start {
                    Some(start) if start <= self.offset => return Ok((answer, start)),
                    _ if !ranged => {
                        return Err(ExchangeError::odd("a range that was not requested"));
                    }
                    _ => self.ranges = false,
                }
            } else if status.is_success() {
                return Ok((answer, 0));
            } else if ranged && !matches!(status.as_u16(), 401 | 403 | 404 | 408 | 429 | 503) {
                // 400, 416, 501 and others: perhaps the server refuses only the range.
                self.ranges = false;
            } else {
                return Err(answer.error_response().await.into());
            }
        }
    }
}

/// Where a range begins, by its `Content-Range`.
fn range_start(header: &str) -> Option<u64> {
    let span = header.trim().strip_prefix("bytes")?.trim_start();
    span.split_once('-')?.0.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_says_where_it_begins() {
        for (header, start) in [
            ("bytes 7-9/10", Some(7)),
            ("bytes 0-9/*", Some(0)),
            (" bytes  7 - 9/10", Some(7)),
            ("bytes */10", None),
            ("items 7-9/10", None),
            ("bytes -9/10", None),
            ("", None),
        ] {
            assert_eq!(range_start(header), start, "{header:?}");
        }
    }
}
