//! What every call is handed, and how it is answered.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use vellum_service::docker::Graph;
use vellum_sys::Cancel;

use crate::wire::{CONTENT_TYPE, Reply};

/// What every call is handed.
#[derive(Clone)]
pub struct Shared {
    /// The driver.
    pub graph: Arc<Graph>,
    /// Set when the server must end before its calls do.
    pub cancel: Cancel,
}

/// The answer to a call that failed. Never status 200; see the crate's own page. The one place
/// where errors are logged.
pub fn refused(name: &'static str, text: &str) -> Response {
    tracing::warn!(call = name, error = text, "failed");
    let reply = Reply {
        err: text.to_owned(),
        ..Reply::default()
    };
    json(StatusCode::INTERNAL_SERVER_ERROR, &reply)
}

/// A JSON answer.
pub fn json(status: StatusCode, reply: &impl Serialize) -> Response {
    match serde_json::to_vec(reply) {
        Ok(text) => (
            status,
            [(header::CONTENT_TYPE, CONTENT_TYPE)],
            Body::from(text),
        )
            .into_response(),
        // A path that is no text, in a store whose own path is none.
        Err(error) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("the answer can't be put into JSON: {error}"),
        )
            .into_response(),
    }
}
