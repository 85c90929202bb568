//! The two calls that carry a tar. A short queue passes the bytes between the socket and a blocking
//! thread.

use std::io::{self, Read};
use std::time::Instant;

use axum::body::{Body, Bytes};
use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::answers::{Shared, json, refused};
use crate::wire::{Reply, Request, ids_of, text_of};

/// Pieces in a queue.
const QUEUE: usize = 8;

/// Size of the pieces that are sent.
const PIECE_BYTES: usize = 128 << 10;

/// `Diff`: the answer's body is the tar. The status is sent when its first bytes are ready; an
/// error after that breaks the connection.
pub async fn diff(State(shared): State<Shared>, body: Bytes) -> Response {
    const NAME: &str = "Diff";
    let request: Request = match serde_json::from_slice(&body) {
        Ok(request) => request,
        Err(error) => {
            return refused(
                NAME,
                &format!("the request is not valid JSON for this call: {error}"),
            );
        }
    };
    let (first, begun) = tokio::sync::oneshot::channel();
    let (pieces, queue) = mpsc::channel::<io::Result<Bytes>>(QUEUE);
    tokio::task::spawn_blocking(move || {
        let graph = &shared.graph;
        let opened = graph.diff(&request.id, &request.parent, &shared.cancel);
        let started = opened.map_err(|e| text_of(&e)).and_then(|mut tar| {
            let piece = read_piece(&mut tar).map_err(|e| e.to_string())?;
            Ok((piece, tar))
        });
        let (piece, mut tar) = match started {
            Ok((piece, tar)) => {
                // If the caller is gone, sending the first piece will fail too.
                let _ = first.send(Ok(()));
                (piece, tar)
            }
            Err(text) => {
                let _ = first.send(Err(text));
                return;
            }
        };
        let mut next: io::Result<Option<Bytes>> = Ok(piece);
        loop {
            match next {
                Ok(None) => return,
                Ok(Some(piece)) => {
                    if pieces.blocking_send(Ok(piece)).is_err() {
                        tracing::debug!(call = NAME, id = request.id, "the reader is gone");
                        return;
                    }
                }
                Err(error) => {
                    let text = error.to_string();
                    tracing::warn!(
                        call = NAME,
                        id = request.id,
                        error = text,
                        "failed while sending"
                    );
                    // A reader that is gone doesn't need it.
                    let _ = pieces.blocking_send(Err(error));
                    return;
                }
            }
            next = read_piece(&mut tar);
        }
    });
    match begun.await {
        Ok(Ok(())) => (
            StatusCode::OK,
            [(header::CONTENT_TYPE, "application/x-tar")],
            Body::from_stream(ReceiverStream::new(queue)),
        )
            .into_response(),
        Ok(Err(text)) => refused(NAME, &text),
        Err(_) => refused(NAME, "the thread that handled the call panicked"),
    }
}

/// Returns the next bytes, or `None` at the end.
fn read_piece(tar: &mut impl Read) -> io::Result<Option<Bytes>> {
    let mut piece = vec![0; PIECE_BYTES];
    let mut filled = 0;
    while filled < piece.len() {
        match tar.read(&mut piece[filled..]) {
            Ok(0) => break,
            Ok(got) => filled += got,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    piece.truncate(filled);
    Ok((filled > 0).then(|| piece.into()))
}

/// `ApplyDiff`: the request's body is the tar.
pub async fn apply_diff(
    State(shared): State<Shared>,
    RawQuery(query): RawQuery,
    body: Body,
) -> Response {
    const NAME: &str = "ApplyDiff";
    let (id, parent) = ids_of(&query.unwrap_or_default());
    let begun = Instant::now();
    let (pieces, queue) = mpsc::channel(QUEUE);
    let work = {
        let id = id.clone();
        tokio::task::spawn_blocking(move || {
            let tar = Box::new(QueueReader::new(queue));
            shared.graph.apply_diff(&id, &parent, tar, &shared.cancel)
        })
    };
    let feed = async {
        let mut stream = body.into_data_stream();
        let mut wanted = true;
        while let Some(piece) = stream.next().await {
            let broken = piece.is_err();
            // The rest is read even if the work has ended: the daemon can't send it twice, and
            // reads the answer only after it has sent everything.
            if wanted {
                let piece = piece.map(Piece::Bytes).map_err(io::Error::other);
                wanted = pieces.send(piece).await.is_ok();
            }
            if broken {
                return;
            }
        }
        // If that fails, the work has ended and doesn't need it.
        let _ = pieces.send(Ok(Piece::End)).await;
    };
    let (done, ()) = tokio::join!(work, feed);
    match done {
        Ok(Ok(size)) => {
            let took_ms = begun.elapsed().as_millis() as u64;
            tracing::debug!(call = NAME, id, size, took_ms, "done");
            json(
                StatusCode::OK,
                &Reply {
                    size: Some(size),
                    ..Reply::default()
                },
            )
        }
        Ok(Err(error)) => refused(NAME, &text_of(&error)),
        Err(_) => refused(NAME, "the thread that handled the call panicked"),
    }
}

/// What passes from the socket to the reader. The end is explicit, because the queue also ends when
/// the daemon goes away.
enum Piece {
    Bytes(Bytes),
    End,
}

/// The reading end of a queue.
struct QueueReader {
    queue: mpsc::Receiver<io::Result<Piece>>,
    rest: Bytes,
    ended: bool,
}

impl QueueReader {
    fn new(queue: mpsc::Receiver<io::Result<Piece>>) -> Self {
        Self {
            queue,
            rest: Bytes::new(),
            ended: false,
        }
    }
}

impl Read for QueueReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() && !self.ended {
            match self.queue.blocking_recv() {
                Some(Ok(Piece::Bytes(bytes))) => self.rest = bytes,
                Some(Ok(Piece::End)) => self.ended = true,
                Some(Err(error)) => return Err(error),
                None => {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the daemon closed the connection in the middle of the layer",
                    ));
                }
            }
        }
        let count = buf.len().min(self.rest.len());
        buf[..count].copy_from_slice(&self.rest.split_to(count));
        Ok(count)
    }
}
