//! The ten calls of the snapshotter.
//!
//! Each call unpacks the request, runs one verb on a blocking thread, and builds the answer. During
//! a call the client holds its own locks (its metadata transaction during Commit, the whole
//! snapshotter during List and Remove), so work that can wait is left to Cleanup or to the
//! background. List sends while it reads the store page by page: nothing is locked, and a client
//! may make other calls between two messages.

use std::sync::Arc;

use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use vellum_service::Context;
use vellum_service::containerd::snapshots::{self as verbs, ClientSettings, Prepared};

use crate::api::services::snapshots::v1 as wire;
use crate::convert;
use crate::shared::Shared;

/// How many snapshots one message of a list carries.
const LIST_CHUNK: usize = 100;

/// How many messages of a list are queued for the client.
const LIST_AHEAD: usize = 4;

/// The snapshotter, as a gRPC service.
#[derive(Clone)]
pub struct Snapshots {
    shared: Arc<Shared>,
}

impl Snapshots {
    /// Returns a service on `shared`.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Runs a verb on a blocking thread.
    async fn verb<T: Send + 'static>(
        &self,
        call: &'static str,
        key: &str,
        verb: impl FnOnce(&Context, ClientSettings) -> Result<T, vellum_service::Error> + Send + 'static,
    ) -> Result<T, Status> {
        self.shared.run(call, key, verb).await
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl wire::snapshots_server::Snapshots for Snapshots {
    async fn prepare(
        &self,
        request: Request<wire::PrepareSnapshotRequest>,
    ) -> Answer<wire::PrepareSnapshotResponse> {
        let asked = request.into_inner();
        let new = convert::new_snapshot(asked.key.clone(), asked.parent, asked.labels);
        let prepared = self
            .verb("Prepare", &asked.key, move |ctx, client| {
                verbs::prepare(ctx, client, &new)
            })
            .await?;
        match prepared {
            Prepared::New(entries) => Ok(Response::new(wire::PrepareSnapshotResponse {
                mounts: convert::mounts(entries),
            })),
            Prepared::Known { chain } => {
                self.shared.metrics().adopted();
                Err(Status::already_exists(format!(
                    "the layer {chain} already exists"
                )))
            }
        }
    }

    async fn view(
        &self,
        request: Request<wire::ViewSnapshotRequest>,
    ) -> Answer<wire::ViewSnapshotResponse> {
        let asked = request.into_inner();
        let new = convert::new_snapshot(asked.key.clone(), asked.parent, asked.labels);
        let entries = self
            .verb("View", &asked.key, move |ctx, client| {
                verbs::view(ctx, client, &new)
            })
            .await?;
        Ok(Response::new(wire::ViewSnapshotResponse {
            mounts: convert::mounts(entries),
        }))
    }

    async fn mounts(&self, request: Request<wire::MountsRequest>) -> Answer<wire::MountsResponse> {
        let key = request.into_inner().key;
        let name = key.clone();
        let entries = self
            .verb("Mounts", &key, move |ctx, client| {
                verbs::mounts(ctx, client, &name)
            })
            .await?;
        Ok(Response::new(wire::MountsResponse {
            mounts: convert::mounts(entries),
        }))
    }

    async fn commit(&self, request: Request<wire::CommitSnapshotRequest>) -> Answer<()> {
        let asked = request.into_inner();
        let (key, name) = (asked.key.clone(), asked.name.clone());
        self.verb("Commit", &key, move |ctx, _| {
            let parent = convert::some(asked.parent);
            verbs::commit(
                ctx,
                &asked.name,
                &asked.key,
                asked.labels,
                parent.as_deref(),
            )
        })
        .await?;
        self.shared.count_later(name);
        Ok(Response::new(()))
    }

    async fn remove(&self, request: Request<wire::RemoveSnapshotRequest>) -> Answer<()> {
        let key = request.into_inner().key;
        let name = key.clone();
        self.verb("Remove", &key, move |ctx, client| {
            verbs::remove(ctx, client, &name)
        })
        .await?;
        Ok(Response::new(()))
    }

    async fn stat(
        &self,
        request: Request<wire::StatSnapshotRequest>,
    ) -> Answer<wire::StatSnapshotResponse> {
        let key = request.into_inner().key;
        let name = key.clone();
        let info = self
            .verb("Stat", &key, move |ctx, client| {
                verbs::stat(ctx, client, &name)
            })
            .await?;
        Ok(Response::new(wire::StatSnapshotResponse {
            info: Some(convert::info(info)),
        }))
    }

    async fn update(
        &self,
        request: Request<wire::UpdateSnapshotRequest>,
    ) -> Answer<wire::UpdateSnapshotResponse> {
        let asked = request.into_inner();
        let given = asked
            .info
            .ok_or_else(|| Status::invalid_argument("the update has no info"))?;
        let mask = asked.update_mask.unwrap_or_default().paths;
        let changes = convert::changes(given.labels, &mask)?;
        let key = given.name.clone();
        let info = self
            .verb("Update", &key, move |ctx, client| {
                verbs::update(ctx, client, &given.name, &changes)
            })
            .await?;
        Ok(Response::new(wire::UpdateSnapshotResponse {
            info: Some(convert::info(info)),
        }))
    }

    type ListStream = ReceiverStream<Result<wire::ListSnapshotsResponse, Status>>;

    async fn list(&self, request: Request<wire::ListSnapshotsRequest>) -> Answer<Self::ListStream> {
        let filters = request.into_inner().filters;
        let (sender, receiver) = tokio::sync::mpsc::channel(LIST_AHEAD);
        let this = self.clone();
        tokio::spawn(async move {
            let messages = sender.clone();
            let listed = this
                .verb("List", "", move |ctx, client| {
                    let mut chunk = Vec::with_capacity(LIST_CHUNK);
                    verbs::walk(ctx, client, &filters, |info| {
                        chunk.push(convert::info(info));
                        if chunk.len() < LIST_CHUNK {
                            return Ok(());
                        }
                        let info = std::mem::replace(&mut chunk, Vec::with_capacity(LIST_CHUNK));
                        // An error here means that the client is gone, so the walk stops.
                        messages
                            .blocking_send(Ok(wire::ListSnapshotsResponse { info }))
                            .map_err(|_| vellum_service::Error::Cancelled)
                    })?;
                    if !chunk.is_empty() {
                        let last = wire::ListSnapshotsResponse { info: chunk };
                        messages
                            .blocking_send(Ok(last))
                            .map_err(|_| vellum_service::Error::Cancelled)?;
                    }
                    Ok(())
                })
                .await;
            if let Err(status) = listed {
                // As above: a client that is gone doesn't need it.
                let _ = sender.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn usage(&self, request: Request<wire::UsageRequest>) -> Answer<wire::UsageResponse> {
        let key = request.into_inner().key;
        let name = key.clone();
        let usage = self
            .verb("Usage", &key, move |ctx, _| verbs::usage(ctx, &name))
            .await?;
        Ok(Response::new(wire::UsageResponse {
            size: usage.bytes as i64,
            inodes: usage.inodes as i64,
        }))
    }

    async fn cleanup(&self, _: Request<wire::CleanupRequest>) -> Answer<()> {
        self.shared.clean().await?;
        Ok(Response::new(()))
    }
}
