//! The part of containerd that its differ talks to: content, leases, introspection and namespaces,
//! in memory, on a unix socket.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tokio::net::UnixListener;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status, Streaming};
use vellum_format::Digest;
use vellum_snapshotter::api::services::content::v1 as content;
use vellum_snapshotter::api::services::introspection::v1 as introspection;
use vellum_snapshotter::api::services::leases::v1 as leases;
use vellum_snapshotter::api::services::namespaces::v1 as namespaces;

/// The namespace that has the blobs.
pub const NAMESPACE: &str = "somewhere";

#[derive(Default)]
pub struct State {
    /// By digest.
    pub blobs: BTreeMap<String, Vec<u8>>,
    pub labels: BTreeMap<String, BTreeMap<String, String>>,
    /// The leases that were created, with their labels.
    pub leases: BTreeMap<String, BTreeMap<String, String>>,
    /// The lease of each committed write.
    pub written_under: Vec<Option<String>>,
    /// How many blobs were read over the socket.
    pub reads: usize,
    /// Where the content store reports its files to be.
    pub root: Option<PathBuf>,
}

#[derive(Clone, Default)]
pub struct FakeContainerd {
    pub state: Arc<Mutex<State>>,
}

impl FakeContainerd {
    /// Serves on `socket` for as long as the runtime lives.
    pub fn serve(&self, socket: &Path) {
        let listener = UnixListener::bind(socket).unwrap();
        let server = tonic::transport::Server::builder()
            .add_service(content::content_server::ContentServer::new(self.clone()))
            .add_service(leases::leases_server::LeasesServer::new(self.clone()))
            .add_service(
                introspection::introspection_server::IntrospectionServer::new(self.clone()),
            )
            .add_service(namespaces::namespaces_server::NamespacesServer::new(
                self.clone(),
            ))
            .serve_with_incoming(UnixListenerStream::new(listener));
        tokio::spawn(server);
    }

    /// Adds a blob, and a file for it if files are kept. Returns its digest.
    pub fn add(&self, bytes: Vec<u8>) -> String {
        let digest = Digest::of(&bytes);
        let mut state = self.state.lock().unwrap();
        if let Some(root) = &state.root {
            let dir = root.join("blobs/sha256");
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(dir.join(digest.hex()), &bytes).unwrap();
        }
        state.blobs.insert(digest.to_string(), bytes);
        digest.to_string()
    }
}

fn namespace<T>(request: &Request<T>) -> Result<(), Status> {
    match request.metadata().get("containerd-namespace") {
        None => Err(Status::failed_precondition("namespace is required")),
        Some(name) if name == NAMESPACE => Ok(()),
        Some(_) => Err(Status::not_found("another namespace")),
    }
}

#[tonic::async_trait]
impl content::content_server::Content for FakeContainerd {
    async fn info(
        &self,
        request: Request<content::InfoRequest>,
    ) -> Result<Response<content::InfoResponse>, Status> {
        namespace(&request)?;
        let digest = request.into_inner().digest;
        let state = self.state.lock().unwrap();
        let blob = state
            .blobs
            .get(&digest)
            .ok_or_else(|| Status::not_found("no such blob"))?;
        Ok(Response::new(content::InfoResponse {
            info: Some(content::Info {
                size: blob.len() as i64,
                labels: state.labels.get(&digest).cloned().unwrap_or_default(),
                digest,
                ..content::Info::default()
            }),
        }))
    }

    async fn update(
        &self,
        request: Request<content::UpdateRequest>,
    ) -> Result<Response<content::UpdateResponse>, Status> {
        namespace(&request)?;
        let info = request.into_inner().info.unwrap();
        let mut state = self.state.lock().unwrap();
        let labels = state.labels.entry(info.digest.clone()).or_default();
        labels.extend(info.labels.clone());
        Ok(Response::new(content::UpdateResponse { info: Some(info) }))
    }

    type ListStream = ReceiverStream<Result<content::ListContentResponse, Status>>;

    async fn list(
        &self,
        _: Request<content::ListContentRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let state = self.state.lock().unwrap();
        let info = |digest: &String| content::Info {
            digest: digest.clone(),
            labels: state.labels.get(digest).cloned().unwrap_or_default(),
            ..content::Info::default()
        };
        let info = state.blobs.keys().map(info).collect();
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        let answer = content::ListContentResponse { info };
        sender.try_send(Ok(answer)).unwrap();
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    type ReadStream = ReceiverStream<Result<content::ReadContentResponse, Status>>;

    async fn read(
        &self,
        request: Request<content::ReadContentRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        namespace(&request)?;
        let blob = {
            let mut state = self.state.lock().unwrap();
            state.reads += 1;
            state.blobs[&request.into_inner().digest].clone()
        };
        let (sender, receiver) = tokio::sync::mpsc::channel(2);
        tokio::spawn(async move {
            for (number, piece) in blob.chunks(1000).enumerate() {
                let answer = content::ReadContentResponse {
                    offset: number as i64 * 1000,
                    data: piece.to_vec(),
                };
                if sender.send(Ok(answer)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    type WriteStream = ReceiverStream<Result<content::WriteContentResponse, Status>>;

    async fn write(
        &self,
        request: Request<Streaming<content::WriteContentRequest>>,
    ) -> Result<Response<Self::WriteStream>, Status> {
        namespace(&request)?;
        let lease = request
            .metadata()
            .get("containerd-lease")
            .map(|lease| lease.to_str().unwrap().to_owned());
        let state = Arc::clone(&self.state);
        let mut pieces = request.into_inner();
        let (sender, receiver) = tokio::sync::mpsc::channel(2);
        tokio::spawn(async move {
            let mut bytes = Vec::new();
            while let Some(Ok(piece)) = pieces.next().await {
                if piece.action != i32::from(content::WriteAction::Stat) {
                    bytes.truncate(piece.offset as usize);
                    bytes.extend_from_slice(&piece.data);
                }
                let mut answer = content::WriteContentResponse {
                    action: piece.action,
                    offset: bytes.len() as i64,
                    ..content::WriteContentResponse::default()
                };
                if piece.action == i32::from(content::WriteAction::Commit) {
                    let digest = Digest::of(&bytes).to_string();
                    assert_eq!(
                        (&piece.expected, piece.total),
                        (&digest, bytes.len() as i64)
                    );
                    let mut state = state.lock().unwrap();
                    state.written_under.push(lease.clone());
                    state.labels.insert(digest.clone(), piece.labels);
                    state
                        .blobs
                        .insert(digest.clone(), std::mem::take(&mut bytes));
                    answer.digest = digest;
                }
                if sender.send(Ok(answer)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn abort(&self, _: Request<content::AbortRequest>) -> Result<Response<()>, Status> {
        Ok(Response::new(()))
    }
}

#[tonic::async_trait]
impl leases::leases_server::Leases for FakeContainerd {
    async fn create(
        &self,
        request: Request<leases::CreateRequest>,
    ) -> Result<Response<leases::CreateResponse>, Status> {
        namespace(&request)?;
        let request = request.into_inner();
        let mut state = self.state.lock().unwrap();
        state.leases.insert(request.id, request.labels);
        Ok(Response::new(leases::CreateResponse::default()))
    }

    async fn delete(
        &self,
        request: Request<leases::DeleteRequest>,
    ) -> Result<Response<()>, Status> {
        namespace(&request)?;
        let mut state = self.state.lock().unwrap();
        match state.leases.remove(&request.into_inner().id) {
            Some(_) => Ok(Response::new(())),
            None => Err(Status::not_found("no such lease")),
        }
    }
}

#[tonic::async_trait]
impl introspection::introspection_server::Introspection for FakeContainerd {
    async fn plugins(
        &self,
        _: Request<introspection::PluginsRequest>,
    ) -> Result<Response<introspection::PluginsResponse>, Status> {
        let root = self.state.lock().unwrap().root.clone();
        let exports = root.map(|root| ("root".to_owned(), root.display().to_string()));
        Ok(Response::new(introspection::PluginsResponse {
            plugins: vec![introspection::Plugin {
                r#type: "io.containerd.content.v1".into(),
                id: "content".into(),
                exports: exports.into_iter().collect(),
            }],
        }))
    }
}

#[tonic::async_trait]
impl namespaces::namespaces_server::Namespaces for FakeContainerd {
    async fn list(
        &self,
        _: Request<namespaces::ListNamespacesRequest>,
    ) -> Result<Response<namespaces::ListNamespacesResponse>, Status> {
        let named = |name: &str| namespaces::Namespace { name: name.into() };
        Ok(Response::new(namespaces::ListNamespacesResponse {
            namespaces: vec![named("empty"), named(NAMESPACE)],
        }))
    }
}
