//! One handler per call. Work that touches the disk runs on blocking threads, so that no call waits
//! for another.

use std::path::PathBuf;
use std::time::Instant;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use axum::routing::post;
use serde::de::DeserializeOwned;
use vellum_service::Error;
use vellum_service::docker::Graph;

use crate::answers::{Shared, json, refused};
use crate::bodies;
use crate::wire::{Activation, Capabilities, Init, Reply, Request, text_of};

/// The request assumed for a call without arguments.
const NOTHING: Bytes = Bytes::from_static(b"{}");

/// The body of a call without arguments. It is read anyway: closing a connection with unread bytes
/// resets it, and the answer may be lost.
type Unused = Bytes;

/// Returns the plugin's calls.
pub fn router(shared: Shared) -> Router {
    Router::new()
        .route("/Plugin.Activate", post(activate))
        .route("/GraphDriver.Init", post(init))
        .route("/GraphDriver.Capabilities", post(capabilities))
        .route("/GraphDriver.Create", post(create))
        .route("/GraphDriver.CreateReadWrite", post(create_read_write))
        .route("/GraphDriver.Remove", post(remove))
        .route("/GraphDriver.Get", post(get))
        .route("/GraphDriver.Put", post(put))
        .route("/GraphDriver.Exists", post(exists))
        .route("/GraphDriver.Status", post(status))
        .route("/GraphDriver.GetMetadata", post(metadata))
        .route("/GraphDriver.Cleanup", post(cleanup))
        .route("/GraphDriver.Changes", post(changes))
        .route("/GraphDriver.DiffSize", post(diff_size))
        .route("/GraphDriver.Diff", post(bodies::diff))
        .route(
            "/GraphDriver.ApplyDiff",
            post(bodies::apply_diff).layer(DefaultBodyLimit::disable()),
        )
        .fallback(unknown)
        .with_state(shared)
}

/// A call of a newer Docker, or not a call at all.
async fn unknown(uri: Uri, _: Unused) -> Response {
    let reply = Reply {
        err: format!("{} is not a call of this plugin", uri.path()),
        ..Reply::default()
    };
    json(StatusCode::NOT_FOUND, &reply)
}

async fn activate(_: Unused) -> Response {
    json(
        StatusCode::OK,
        &Activation {
            implements: &["GraphDriver"],
        },
    )
}

async fn capabilities(_: Unused) -> Response {
    let capabilities = Some(Capabilities {
        reproduces_exact_diffs: true,
    });
    json(
        StatusCode::OK,
        &Reply {
            capabilities,
            ..Reply::default()
        },
    )
}

async fn init(shared: State<Shared>, body: Bytes) -> Response {
    call(shared, "Init", body, |graph, init: Init| {
        let options = init.opts.clone().unwrap_or_default();
        graph.init(&init.home, &options, &init.ids())?;
        tracing::info!(home = %init.home.display(), ?options, "a daemon has started");
        Ok(Reply::default())
    })
    .await
}

async fn create(shared: State<Shared>, body: Bytes) -> Response {
    call(shared, "Create", body, |graph, request: Request| {
        graph.create(&request.id, &request.parent, &request.creation(false))?;
        Ok(Reply::default())
    })
    .await
}

async fn create_read_write(shared: State<Shared>, body: Bytes) -> Response {
    call(
        shared,
        "CreateReadWrite",
        body,
        |graph, request: Request| {
            graph.create(&request.id, &request.parent, &request.creation(true))?;
            Ok(Reply::default())
        },
    )
    .await
}

async fn remove(shared: State<Shared>, body: Bytes) -> Response {
    call(shared, "Remove", body, |graph, request: Request| {
        graph.remove(&request.id)?;
        Ok(Reply::default())
    })
    .await
}

async fn get(shared: State<Shared>, body: Bytes) -> Response {
    call(shared, "Get", body, |graph, request: Request| {
        let dir: PathBuf = graph.get(&request.id, &request.mount_label)?;
        Ok(Reply {
            dir: Some(dir),
            ..Reply::default()
        })
    })
    .await
}

async fn put(shared: State<Shared>, body: Bytes) -> Response {
    call(shared, "Put", body, |graph, request: Request| {
        graph.put(&request.id)?;
        Ok(Reply::default())
    })
    .await
}

async fn exists(shared: State<Shared>, body: Bytes) -> Response {
    call(shared, "Exists", body, |graph, request: Request| {
        Ok(Reply {
            exists: Some(graph.exists(&request.id)?),
            ..Reply::default()
        })
    })
    .await
}

async fn status(shared: State<Shared>, _: Unused) -> Response {
    call(shared, "Status", NOTHING, |graph, _: Request| {
        Ok(Reply {
            status: Some(graph.status()?),
            ..Reply::default()
        })
    })
    .await
}

async fn metadata(shared: State<Shared>, body: Bytes) -> Response {
    call(shared, "GetMetadata", body, |graph, request: Request| {
        Ok(Reply {
            metadata: Some(graph.metadata(&request.id)?),
            ..Reply::default()
        })
    })
    .await
}

async fn cleanup(shared: State<Shared>, _: Unused) -> Response {
    call(shared, "Cleanup", NOTHING, |graph, _: Request| {
        graph.cleanup()?;
        tracing::info!("the daemon has ended");
        Ok(Reply::default())
    })
    .await
}

async fn changes(shared: State<Shared>, body: Bytes) -> Response {
    call(shared, "Changes", body, |graph, request: Request| {
        let changes = graph.changes(&request.id, &request.parent)?;
        Ok(Reply {
            changes: Some(changes.into_iter().map(Into::into).collect()),
            ..Reply::default()
        })
    })
    .await
}

async fn diff_size(shared: State<Shared>, body: Bytes) -> Response {
    call(shared, "DiffSize", body, |graph, request: Request| {
        Ok(Reply {
            size: Some(graph.diff_size(&request.id, &request.parent)?),
            ..Reply::default()
        })
    })
    .await
}

/// Does one call on a blocking thread and logs it. The call runs to its end even if the daemon does
/// not wait for the answer.
async fn call<Q: DeserializeOwned + Send + 'static>(
    State(shared): State<Shared>,
    name: &'static str,
    body: Bytes,
    work: impl FnOnce(&Graph, Q) -> Result<Reply, Error> + Send + 'static,
) -> Response {
    if body.trim_ascii().is_empty() {
        return refused(
            name,
            "request without a body: Docker is retrying a call that was interrupted when the server was killed. Repeat the command that failed",
        );
    }
    let question = match serde_json::from_slice(&body) {
        Ok(question) => question,
        Err(error) => {
            return refused(
                name,
                &format!("the request is not valid JSON for this call: {error}"),
            );
        }
    };
    let begun = Instant::now();
    let done = tokio::task::spawn_blocking(move || work(&shared.graph, question)).await;
    let took_ms = begun.elapsed().as_millis() as u64;
    match done {
        Ok(Ok(reply)) => {
            tracing::debug!(call = name, took_ms, "done");
            json(StatusCode::OK, &reply)
        }
        Ok(Err(error)) => refused(name, &text_of(&error)),
        Err(_) => refused(name, "the thread that handled the call panicked"),
    }
}
