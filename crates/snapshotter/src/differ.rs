//! The diff service: two calls. Each is a verb of [`vellum_service::containerd::differ`], with
//! blobs fetched from or sent to containerd.
//!
//! The work runs on a blocking thread and stops when the caller goes away. What the verbs can't do
//! is UNIMPLEMENTED, so that containerd asks its next differ.

use std::sync::Arc;
use std::time::Instant;

use tonic::{Code, Request, Response, Status};
use vellum_format::Digest;
use vellum_image::Compression;
use vellum_service::containerd::differ::{self, ApplyRequest, DiffRequest, Written};
use vellum_service::containerd::snapshots::MountEntry;
use vellum_service::{Cancel, Error};
use vellum_sys::Timespec;

use crate::api::services::diff::v1 as diff;
use crate::api::types;
use crate::content::{Caller, Containerd, Expected, UNCOMPRESSED, Writing};
use crate::shared::Shared;

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// Media types of layers, without the suffix for the compression.
const LAYERS: [&str; 4] = [
    LAYER,
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
];

/// Serves containerd's differ.
pub struct Differ {
    shared: Arc<Shared>,
    containerd: Containerd,
}

impl Differ {
    /// Returns a differ that fetches blobs from `containerd`.
    pub fn new(shared: Arc<Shared>, containerd: Containerd) -> Self {
        Self { shared, containerd }
    }
}

#[tonic::async_trait]
impl diff::diff_server::Diff for Differ {
    async fn apply(
        &self,
        request: Request<diff::ApplyRequest>,
    ) -> Result<Response<diff::ApplyResponse>, Status> {
        let caller = Caller::of(request.metadata());
        let request = request.into_inner();
        let blob = request
            .diff
            .ok_or_else(|| Status::invalid_argument("the request names no layer"))?;
        if !is_layer(&blob.media_type) {
            return Err(Status::unimplemented(format!(
                "this differ does not unpack {}",
                blob.media_type
            )));
        }
        let digest: Digest = blob
            .digest
            .parse()
            .map_err(|error| Status::unimplemented(format!("{error}")))?;
        let refused = |status| told("Apply", &blob.digest, status);
        let found = self.containerd.find(&caller, &blob.digest).await;
        let found = found.map_err(refused)?;
        let apply = ApplyRequest {
            mounts: entries(request.mounts),
            digest,
            size_bytes: u64::try_from(found.info.size).ok(),
            sync: request.sync_fs,
        };
        let bytes = self.containerd.open(&found).await.map_err(refused)?;
        let ctx = self.shared.context();
        let work = move |cancel: &Cancel| differ::apply(&ctx, &apply, bytes, cancel);
        let done = blocking(&self.shared, "Apply", &blob.digest, work).await?;
        Ok(Response::new(diff::ApplyResponse {
            applied: Some(descriptor(LAYER, &done.diff_id, done.tar_bytes)?),
        }))
    }

    async fn diff(
        &self,
        request: Request<diff::DiffRequest>,
    ) -> Result<Response<diff::DiffResponse>, Status> {
        let caller = Caller::of(request.metadata());
        let request = request.into_inner();
        let media_type = match request.media_type.as_str() {
            "" => LAYER_GZIP,
            other => other,
        };
        let compression = match media_type {
            LAYER => Compression::None,
            LAYER_GZIP => Compression::Gzip,
            LAYER_ZSTD => Compression::Zstd,
            other => {
                return Err(Status::unimplemented(format!(
                    "this differ does not write {other}"
                )));
            }
        };
        let wanted = DiffRequest {
            left: entries(request.left),
            right: entries(request.right),
            compression,
            newest: request
                .source_date_epoch
                .map(|time| Timespec::new(time.seconds, u32::try_from(time.nanos).unwrap_or(0))),
        };
        let refused = |status| told("Diff", &request.r#ref, status);
        let writing = self.containerd.write(&caller, &request.r#ref).await;
        let mut writing = writing.map_err(refused)?;
        let ctx = self.shared.context();
        let out = writing.writer();
        let work = move |cancel: &Cancel| differ::diff(&ctx, &wanted, out, cancel);
        let made = blocking(&self.shared, "Diff", &request.r#ref, work);
        let written = match writing.drive(made).await {
            Ok(written) => written,
            Err(status) => {
                writing.abort().await;
                return Err(status);
            }
        };
        let mut labels = request.labels;
        labels.insert(UNCOMPRESSED.to_owned(), written.diff_id.to_string());
        let diff = descriptor(media_type, &written.blob_digest, written.blob_bytes)?;
        finish(writing, &written, diff.size, labels).await?;
        Ok(Response::new(diff::DiffResponse { diff: Some(diff) }))
    }
}

/// Logs a call that failed at containerd, or because containerd is missing.
fn told(call: &'static str, key: &str, status: Status) -> Status {
    let (code, error) = (status.code(), status.message());
    match code {
        Code::NotFound | Code::FailedPrecondition | Code::Cancelled => {
            tracing::debug!(call, key, ?code, error, "refused");
        }
        _ => tracing::warn!(call, key, ?code, error, "failed"),
    }
    status
}

async fn finish(
    writing: Writing,
    written: &Written,
    bytes: i64,
    labels: std::collections::BTreeMap<String, String>,
) -> Result<(), Status> {
    let expected = Expected {
        digest: written.blob_digest.to_string(),
        bytes,
        labels,
    };
    writing.commit(expected).await
}

fn is_layer(media_type: &str) -> bool {
    LAYERS.iter().any(|layer| {
        media_type
            .strip_prefix(layer)
            .is_some_and(|rest| matches!(rest, "" | ".gzip" | "+gzip" | ".zstd" | "+zstd"))
    })
}

fn descriptor(media_type: &str, digest: &Digest, bytes: u64) -> Result<types::Descriptor, Status> {
    Ok(types::Descriptor {
        media_type: media_type.to_owned(),
        digest: digest.to_string(),
        size: i64::try_from(bytes)
            .map_err(|_| Status::out_of_range("the layer has 2^63 bytes or more"))?,
        ..types::Descriptor::default()
    })
}

fn entries(mounts: Vec<types::Mount>) -> Vec<MountEntry> {
    let entry = |mount: types::Mount| MountEntry {
        kind: mount.r#type,
        source: mount.source,
        target: mount.target,
        options: mount.options,
    };
    mounts.into_iter().map(entry).collect()
}

/// Runs a verb on a blocking thread, and stops it when the caller no longer waits. `call` and `key`
/// are for the log.
async fn blocking<T: Send + 'static>(
    shared: &Shared,
    call: &'static str,
    key: &str,
    verb: impl FnOnce(&Cancel) -> Result<T, Error> + Send + 'static,
) -> Result<T, Status> {
    struct StopOnDrop(Cancel);
    impl Drop for StopOnDrop {
        fn drop(&mut self) {
            self.0.cancel();
        }
    }
    let cancel = Cancel::new();
    let _stop = StopOnDrop(cancel.clone());
    let begun = Instant::now();
    let done = match tokio::task::spawn_blocking(move || verb(&cancel)).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error @ Error::Unsupported { .. })) => {
            tracing::info!(call, key, %error, "left to the next differ");
            Err(Status::unimplemented(crate::status::of(&error).message()))
        }
        Ok(Err(error)) => Err(crate::status::refused(call, key, &error)),
        Err(panic) => {
            tracing::error!(call, key, %panic, "a call panicked");
            Err(Status::internal(format!("{call} panicked: {panic}")))
        }
    };
    let took = begun.elapsed();
    let code = done.as_ref().map_or_else(Status::code, |_| Code::Ok);
    shared.metrics().ended(call, code, took);
    if done.is_ok() {
        tracing::debug!(call, key, took_us = took.as_micros() as u64, "done");
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_known_by_their_media_type() {
        for layer in [
            LAYER,
            LAYER_GZIP,
            LAYER_ZSTD,
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            "application/vnd.docker.image.rootfs.diff.tar",
        ] {
            assert!(is_layer(layer), "{layer}");
        }
        for other in [
            "",
            "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
            "application/vnd.oci.image.config.v1+json",
            "application/vnd.erofs.layer.v1",
        ] {
            assert!(!is_layer(other), "{other}");
        }
    }
}
