//! The listener for metrics: as much HTTP as a scraper needs. Each connection has one request and
//! one answer.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use vellum_service::containerd::snapshots as verbs;
use vellum_service::serve::listen::listen_at;
use vellum_service::serve::{self, ServeError};

use crate::metrics::Address;
use crate::shared::Shared;

/// The longest request that is read. A scraper's is short.
const REQUEST_BYTES: usize = 8192;

/// How long a reader may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Listens at `address` and answers every request with the metrics, for as long as the runtime
/// lives.
pub(crate) async fn serve(shared: Arc<Shared>, address: &Address) -> Result<(), ServeError> {
    match address {
        Address::Unix(path) => {
            let listening = listen_at(path)?;
            let listener = serve::listener(&listening)?;
            tokio::spawn(async move {
                // Dropping it removes the socket.
                let _listening = listening;
                loop {
                    if let Some((stream, _)) = serve::connection(listener.accept().await).await {
                        tokio::spawn(answer(Arc::clone(&shared), stream));
                    }
                }
            });
        }
        Address::Loopback(at) => {
            let listener = TcpListener::bind(at)
                .await
                .map_err(ServeError::io("listen for readers of metrics"))?;
            tokio::spawn(async move {
                loop {
                    if let Some((stream, _)) = serve::connection(listener.accept().await).await {
                        tokio::spawn(answer(Arc::clone(&shared), stream));
                    }
                }
            });
        }
    }
    Ok(())
}

/// Answers one request. A reader that goes away or sends nothing gets no answer.
async fn answer(shared: Arc<Shared>, mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let _ = tokio::time::timeout(PATIENCE, async {
        let mut request = Vec::new();
        let mut piece = [0; 1024];
        while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < REQUEST_BYTES {
            match stream.read(&mut piece).await {
                Ok(0) | Err(_) => return,
                Ok(count) => request.extend_from_slice(&piece[..count]),
            }
        }
        let is_known =
            request.starts_with(b"GET /metrics ") || request.starts_with(b"GET / ");
        let (status, body) = match is_known {
            false => ("404 Not Found", "see /metrics\n".to_owned()),
            true => match text_now(&shared).await {
                Ok(body) => ("200 OK", body),
                Err(why) => ("500 Internal Server Error", format!("{why}\n")),
            },
        };
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        // If this fails, the reader is gone.
        let _ = stream.write_all(head.as_bytes()).await;
        let _ = stream.write_all(body.as_bytes()).await;
        let _ = stream.shutdown().await;
    })
    .await;
}

async fn text_now(shared: &Shared) -> Result<String, String> {
    let held = shared
        .quietly(verbs::held)
        .await
        .map_err(|status| status.message().to_owned())?;
    shared
        .metrics()
        .text(&held)
        .map_err(|error| error.to_string())
}
