//! What every call receives, and how it is answered.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use vellum_service::docker::Graph;
use vellum_sys::Cancel;

use crate::wire::{CONTENT_TYPE, Reply};

/// What every call receives.
#[derive(Clone)]
pub struct Shared {
    /// The driver.
    pub graph: Arc<Graph>,
    /// Set when the server must end without waiting for its calls.
    pub cancel: Cancel,
}

/// Returns the answer to a call that failed, and logs the error; no other place does. The status is
/// never 200, for the reason given in the crate's documentation.
pub fn refused(name: &'static str, text: &str) -> Response {
    tracing::warn!(call = name, error = text, "failed");
    let reply = Reply {
        err: text.to_owned(),
        ..Reply::default()
    };
    json(StatusCode::INTERNAL_SERVER_ERROR, &reply)
}

/// Returns a JSON answer.
pub fn json(status: StatusCode, reply: &impl Serialize) -> Response {
    match serde_json::to_vec(reply) {
        Ok(text) => (
            status,
            [(header::CONTENT_TYPE, CONTENT_TYPE)],
            Body::from(text),
        )
            .into_response(),
        // A path that is not UTF-8, in a store whose own path isn't.
        Err(error) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("cannot encode the answer as JSON: {error}"),
        )
            .into_response(),
    }
}
