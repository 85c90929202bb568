//! A client of containerd's content store: the differ reads blobs and writes layers there.
//!
//! containerd gives its differ a digest without the blob, so the differ fetches it over
//! containerd's own socket. The call's metadata names the namespace; if it doesn't, every namespace
//! is asked. Whether a namespace has the blob is always for containerd to say. The bytes are then
//! read from the content store's file, if containerd reports where its files are and there is such
//! a file; else over the socket. The reader checks the digest.
//!
//! A lease reaches the differ only if containerd itself created it, not if the client did. A blob
//! written without a lease gets one of the differ's own, so that garbage collection doesn't remove
//! the blob before the client references it. That lease ends when the client has done so, or when
//! the write fails. If this process ends first, the lease expires.
//!
//! If containerd can't be reached, the error has the path that was tried and the flag to set
//! another.
//!
//! Between calls, only the connection and the location of the files are kept.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tokio::sync::{OnceCell, mpsc};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use vellum_sys::plain::{self, Links};
use vellum_sys::rooted::Access;

use crate::api::services::content::v1::content_client::ContentClient;
use crate::api::services::content::v1::{
    AbortRequest, Info, InfoRequest, ListContentRequest, ReadContentRequest, UpdateRequest,
    WriteAction, WriteContentRequest,
};
use crate::api::services::introspection::v1::PluginsRequest;
use crate::api::services::introspection::v1::introspection_client::IntrospectionClient;
use crate::api::services::leases::v1::leases_client::LeasesClient;
use crate::api::services::leases::v1::{CreateRequest, DeleteRequest};
use crate::api::services::namespaces::v1::ListNamespacesRequest;
use crate::api::services::namespaces::v1::namespaces_client::NamespacesClient;

/// The largest message that containerd sends or accepts.
const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// Size of the pieces in which a blob is sent to containerd.
const PIECE_BYTES: usize = 1 << 20;

/// Pieces queued between the thread that produces them and the connection.
const PIECES: usize = 4;

/// How long a written blob is kept by the differ's own lease.
const HELD: Duration = Duration::from_secs(600);

/// Prefix of the labels with which one blob in containerd references another.
const CONTENT_REFERENCE: &str = "containerd.io/gc.ref.content";

/// The label with the digest of the uncompressed layer.
pub const UNCOMPRESSED: &str = "containerd.io/uncompressed";

const NAMESPACE: &str = "containerd-namespace";
const LEASE: &str = "containerd-lease";

/// The namespace and lease on whose behalf a call is made.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    namespace: Option<MetadataValue<Ascii>>,
    lease: Option<MetadataValue<Ascii>>,
}

impl Caller {
    /// Reads the metadata that containerd sent with a call.
    pub fn of(metadata: &MetadataMap) -> Self {
        Self {
            namespace: metadata.get(NAMESPACE).cloned(),
            lease: metadata.get(LEASE).cloned(),
        }
    }

    fn in_namespace(name: &str) -> Option<Self> {
        Some(Self {
            namespace: Some(name.parse().ok()?),
            lease: None,
        })
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(namespace) = &self.namespace {
            request.metadata_mut().insert(NAMESPACE, namespace.clone());
        }
        if let Some(lease) = &self.lease {
            request.metadata_mut().insert(LEASE, lease.clone());
        }
        request
    }
}

/// A connection to containerd. It is opened at first use, and again after containerd was restarted.
pub struct Containerd {
    socket: PathBuf,
    channel: Channel,
    /// Where the content store keeps its files, if it reports that.
    root: OnceCell<Option<PathBuf>>,
}

/// A blob, with the namespace where it was found.
pub struct FoundBlob {
    caller: Caller,
    /// What containerd knows about it.
    pub info: Info,
}

impl Containerd {
    /// Returns a client of the containerd that listens on `socket`. Nothing is connected yet.
    ///
    /// Must be called in a tokio runtime. Errors: a path that can't be part of an address.
    pub fn at(socket: &Path) -> Result<Self, tonic::transport::Error> {
        let address = format!("unix://{}", socket.display());
        let endpoint = Endpoint::from_shared(address)?
            // A layer comes in pieces of 1 MiB: with the default windows, each would wait.
            .initial_stream_window_size(Some(8 << 20))
            .initial_connection_window_size(Some(16 << 20));
        Ok(Self {
            socket: socket.to_owned(),
            channel: endpoint.connect_lazy(),
            root: OnceCell::new(),
        })
    }

    fn content(&self) -> ContentClient<Channel> {
        content(&self.channel)
    }

    /// If a call failed because containerd is not there, names the socket that was tried and the
    /// flag to set another.
    fn or_unreachable(&self, status: Status) -> Status {
        let socket = self.socket.display();
        let hint = "set containerd's own socket with `vellum serve containerd --containerd PATH`";
        let unreachable = std::error::Error::source(&status)
            .is_some_and(|source| source.is::<tonic::transport::Error>());
        let said = match status.code() {
            Code::Unimplemented => {
                format!("the server on {socket} has no content store; {hint}")
            }
            _ if unreachable => {
                let why = innermost(&status);
                format!("cannot reach containerd on {socket}: {why}; {hint}")
            }
            _ => return status,
        };
        Status::new(status.code(), said)
    }

    /// Looks for a blob in the caller's namespace, or in all namespaces if that is not known.
    ///
    /// Errors: containerd's answer; `Unavailable` with the socket's path if there is none.
    pub async fn find(&self, caller: &Caller, digest: &str) -> Result<FoundBlob, Status> {
        let found = self.find_anywhere(caller, digest).await;
        found.map_err(|status| self.or_unreachable(status))
    }

    async fn find_anywhere(&self, caller: &Caller, digest: &str) -> Result<FoundBlob, Status> {
        if caller.namespace.is_some() {
            let info = self.info(caller, digest).await?;
            return Ok(FoundBlob {
                caller: caller.clone(),
                info,
            });
        }
        let mut namespaces = NamespacesClient::new(self.channel.clone());
        let list = namespaces.list(ListNamespacesRequest::default()).await?;
        for namespace in list.into_inner().namespaces {
            let Some(caller) = Caller::in_namespace(&namespace.name) else {
                continue;
            };
            match self.info(&caller, digest).await {
                Ok(info) => return Ok(FoundBlob { caller, info }),
                Err(status) if status.code() == Code::NotFound => {}
                Err(status) => return Err(status),
            }
        }
        Err(Status::not_found(format!("content {digest}")))
    }

    async fn info(&self, caller: &Caller, digest: &str) -> Result<Info, Status> {
        let request = caller.request(InfoRequest {
            digest: digest.to_owned(),
        });
        let answer = self.content().info(request).await?.into_inner();
        answer
            .info
            .ok_or_else(|| Status::internal("containerd answered without info"))
    }

    /// Opens a blob for reading. Errors like [`Containerd::find`].
    pub async fn open(&self, found: &FoundBlob) -> Result<Box<dyn Read + Send>, Status> {
        let opened = self.open_anyhow(found).await;
        opened.map_err(|status| self.or_unreachable(status))
    }

    async fn open_anyhow(&self, found: &FoundBlob) -> Result<Box<dyn Read + Send>, Status> {
        if let Some(file) = self.file(&found.info).await {
            return Ok(Box::new(file));
        }
        let request = found.caller.request(ReadContentRequest {
            digest: found.info.digest.clone(),
            offset: 0,
            size: 0,
        });
        let mut pieces = self.content().read(request).await?.into_inner();
        let (sender, receiver) = mpsc::channel(PIECES);
        tokio::spawn(async move {
            while let Some(piece) = pieces.next().await {
                let last = piece.is_err();
                // The reader is gone: give up.
                if sender.send(piece.map(|piece| piece.data)).await.is_err() || last {
                    return;
                }
            }
        });
        Ok(Box::new(Pieces {
            receiver,
            current: Vec::new(),
            position: 0,
        }))
    }

    /// Opens the content store's own file of a blob, if there is one of the right size.
    async fn file(&self, info: &Info) -> Option<File> {
        let root = self
            .root
            .get_or_try_init(|| self.content_root())
            .await
            .ok()?
            .as_ref()?;
        let (algorithm, hex) = info.digest.split_once(':')?;
        let plain = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric());
        if !plain(algorithm) || !plain(hex) {
            return None;
        }
        let path = root.join("blobs").join(algorithm).join(hex);
        let file = plain::open(&path, Access::Read, Links::InParents).ok()?;
        let length = file.metadata().ok()?.len();
        (i64::try_from(length) == Ok(info.size)).then_some(file)
    }

    async fn content_root(&self) -> Result<Option<PathBuf>, Status> {
        let mut client = IntrospectionClient::new(self.channel.clone());
        let request = PluginsRequest {
            filters: vec!["type==io.containerd.content.v1".into()],
        };
        let plugins = client.plugins(request).await?.into_inner().plugins;
        // A proxy plugin in its place keeps its blobs elsewhere.
        Ok(match plugins.as_slice() {
            [only] => only.exports.get("root").map(PathBuf::from),
            _ => None,
        })
    }

    /// Starts writing a blob. `name` is the name of the write; an unfinished write of that name is
    /// restarted. Errors like [`Containerd::find`].
    pub async fn write(&self, caller: &Caller, name: &str) -> Result<Writing, Status> {
        let begun = self.begin_write(caller, name).await;
        begun.map_err(|status| self.or_unreachable(status))
    }

    async fn begin_write(&self, caller: &Caller, name: &str) -> Result<Writing, Status> {
        if caller.namespace.is_none() {
            return Err(Status::failed_precondition(
                "the call names no namespace to write the layer to",
            ));
        }
        let (own_name, name) = match name {
            "" => (true, unique("vellum-diff")),
            name => (false, name.to_owned()),
        };
        let mut caller = caller.clone();
        let mut lease = None;
        if caller.lease.is_none() {
            let own = lease.insert(self.lease(&caller).await?);
            caller.lease = Some(own.id.clone());
        }
        let (sender, receiver) = mpsc::channel(PIECES);
        // containerd answers only after the first message.
        let first = WriteContentRequest {
            action: WriteAction::Stat.into(),
            r#ref: name.clone(),
            ..WriteContentRequest::default()
        };
        let gone = |_| Status::unavailable("containerd closed the connection");
        sender.send(first).await.map_err(gone)?;
        let request = caller.request(ReceiverStream::new(receiver));
        let mut answers = self.content().write(request).await?.into_inner();
        answers.next().await.transpose()?;
        let begin = WriteContentRequest {
            action: WriteAction::Write.into(),
            ..WriteContentRequest::default()
        };
        sender.send(begin).await.map_err(gone)?;
        Ok(Writing {
            client: self.content(),
            caller,
            name,
            own_name,
            lease,
            sender,
            answers,
        })
    }

    /// Creates a lease. It expires by itself if it is not ended.
    async fn lease(&self, caller: &Caller) -> Result<OwnLease, Status> {
        let id = unique("vellum-diff");
        let end = prost_types::Timestamp::from(SystemTime::now() + HELD);
        let labels = [("containerd.io/gc.expire".to_owned(), end.to_string())];
        let request = caller.request(CreateRequest {
            id: id.clone(),
            labels: labels.into(),
        });
        LeasesClient::new(self.channel.clone())
            .create(request)
            .await?;
        let id = id
            .parse()
            .map_err(|_| Status::internal("a lease has an invalid id"))?;
        Ok(OwnLease {
            channel: self.channel.clone(),
            caller: caller.clone(),
            id,
        })
    }
}

fn content(channel: &Channel) -> ContentClient<Channel> {
    ContentClient::new(channel.clone())
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

/// Returns the text of an error's root cause: the errors above it only say "transport error".
fn innermost(status: &Status) -> String {
    let mut at: &dyn std::error::Error = status;
    while let Some(source) = at.source() {
        at = source;
    }
    at.to_string()
}

/// A lease of the differ's own. It ends when dropped.
struct OwnLease {
    channel: Channel,
    caller: Caller,
    id: MetadataValue<Ascii>,
}

impl OwnLease {
    /// Keeps the lease until something in the namespace references the blob or the blob is gone; at
    /// most for [`HELD`].
    fn end_when_named(self, digest: String) {
        tokio::spawn(async move {
            let mut wait = Duration::from_secs(1);
            let begun = tokio::time::Instant::now();
            while begun.elapsed() + wait < HELD {
                tokio::time::sleep(wait).await;
                wait *= 2;
                match self.needs(&digest).await {
                    Ok(true) => {}
                    Ok(false) => return,
                    Err(status) => {
                        tracing::debug!(digest, %status, "cannot tell whether a layer is referenced");
                    }
                }
            }
        });
    }

    /// Tells whether the blob exists and no other blob references it.
    async fn needs(&self, digest: &str) -> Result<bool, Status> {
        let request = self.caller.request(ListContentRequest::default());
        let mut lists = content(&self.channel).list(request).await?.into_inner();
        let mut is_there = false;
        while let Some(list) = lists.next().await {
            for info in list?.info {
                is_there |= info.digest == digest;
                let names = |(label, value): (&String, &String)| {
                    label.starts_with(CONTENT_REFERENCE) && value == digest
                };
                if info.labels.iter().any(names) {
                    return Ok(false);
                }
            }
        }
        Ok(is_there)
    }
}

impl Drop for OwnLease {
    fn drop(&mut self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let mut client = LeasesClient::new(self.channel.clone());
        let id = self.id.to_str().unwrap_or_default().to_owned();
        let request = self.caller.request(DeleteRequest {
            id: id.clone(),
            sync: false,
        });
        runtime.spawn(async move {
            // If this fails, the lease expires later.
            if let Err(status) = client.delete(request).await {
                tracing::debug!(lease = id, %status, "cannot end a lease");
            }
        });
    }
}

/// A blob on its way to containerd.
pub struct Writing {
    client: ContentClient<Channel>,
    caller: Caller,
    name: String,
    /// Whether the name is the differ's own, unknown to others.
    own_name: bool,
    /// Keeps the blob, if the caller had no lease.
    lease: Option<OwnLease>,
    sender: mpsc::Sender<WriteContentRequest>,
    answers: tonic::Streaming<crate::api::services::content::v1::WriteContentResponse>,
}

/// What a complete blob must be.
pub struct Expected {
    /// Its digest.
    pub digest: String,
    /// Its size.
    pub bytes: i64,
    /// Its labels.
    pub labels: std::collections::BTreeMap<String, String>,
}

impl Writing {
    /// Returns the writer to which a thread writes the bytes.
    pub fn writer(&self) -> PieceWriter {
        PieceWriter {
            sender: self.sender.clone(),
            piece: Vec::new(),
            offset: 0,
        }
    }

    /// Receives containerd's answers until `made` ends. `made` writes to [`Writing::writer`].
    pub async fn drive<T>(
        &mut self,
        made: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        tokio::pin!(made);
        loop {
            tokio::select! {
                result = &mut made => return result,
                answer = self.answers.next() => match answer {
                    Some(Ok(_)) => {}
                    Some(Err(status)) => return Err(status),
                    None => return Err(Status::unavailable("containerd ended the write early")),
                },
            }
        }
    }

    /// Commits the blob under its digest. It is fine if the blob already exists.
    pub async fn commit(mut self, expected: Expected) -> Result<(), Status> {
        let digest = expected.digest.clone();
        self.complete(expected).await?;
        if let Some(lease) = self.lease.take() {
            lease.end_when_named(digest);
        }
        Ok(())
    }

    async fn complete(&mut self, expected: Expected) -> Result<(), Status> {
        let commit = WriteContentRequest {
            action: WriteAction::Commit.into(),
            total: expected.bytes,
            offset: expected.bytes,
            expected: expected.digest.clone(),
            labels: expected.labels.clone(),
            ..WriteContentRequest::default()
        };
        let gone = |_| Status::unavailable("containerd closed the connection");
        self.sender.send(commit).await.map_err(gone)?;
        loop {
            match self.answers.next().await {
                Some(Ok(answer)) if answer.action == i32::from(WriteAction::Commit) => {
                    return Ok(());
                }
                Some(Ok(_)) => {}
                Some(Err(status)) if status.code() == Code::AlreadyExists => {
                    return self.label(&expected).await;
                }
                Some(Err(status)) => return Err(status),
                None => return Err(Status::unavailable("containerd ended the write early")),
            }
        }
    }

    /// Sets the label with the diff ID on a blob that already existed.
    async fn label(&mut self, expected: &Expected) -> Result<(), Status> {
        let Some(diff_id) = expected.labels.get(UNCOMPRESSED) else {
            return Ok(());
        };
        let labels = [(UNCOMPRESSED.to_owned(), diff_id.clone())];
        let request = self.caller.request(UpdateRequest {
            info: Some(Info {
                digest: expected.digest.clone(),
                labels: labels.into(),
                ..Info::default()
            }),
            update_mask: Some(prost_types::FieldMask {
                paths: vec![format!("labels.{UNCOMPRESSED}")],
            }),
        });
        self.client.update(request).await?;
        Ok(())
    }

    /// Aborts the write.
    pub async fn abort(mut self) {
        if !self.own_name {
            return;
        }
        let request = self.caller.request(AbortRequest {
            r#ref: self.name.clone(),
        });
        // If this fails, containerd collects the write within a day.
        if let Err(status) = self.client.abort(request).await {
            tracing::debug!(write = self.name, %status, "cannot abort a write");
        }
    }
}

/// The thread's end of a write. Bytes are sent in pieces; [`Write::flush`] sends the last one.
pub struct PieceWriter {
    sender: mpsc::Sender<WriteContentRequest>,
    piece: Vec<u8>,
    offset: i64,
}

impl Write for PieceWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.piece.extend_from_slice(buf);
        if self.piece.len() >= PIECE_BYTES {
            self.flush()?;
        }
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let data = std::mem::take(&mut self.piece);
        let length = data.len() as i64;
        let request = WriteContentRequest {
            action: WriteAction::Write.into(),
            offset: self.offset,
            data,
            ..WriteContentRequest::default()
        };
        self.offset += length;
        self.sender
            .blocking_send(request)
            .map_err(|_| io::Error::other("containerd ended the write early"))
    }
}

/// A reader for a thread, over a blob that arrives in pieces.
struct Pieces {
    receiver: mpsc::Receiver<Result<Vec<u8>, Status>>,
    current: Vec<u8>,
    position: usize,
}

impl Read for Pieces {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.position == self.current.len() {
            match self.receiver.blocking_recv() {
                Some(Ok(piece)) => (self.current, self.position) = (piece, 0),
                Some(Err(status)) => return Err(io::Error::other(status)),
                None => return Ok(0),
            }
        }
        let n = buf.len().min(self.current.len() - self.position);
        buf[..n].copy_from_slice(&self.current[self.position..self.position + n]);
        self.position += n;
        Ok(n)
    }
}

/// Returns a unique name.
fn unique(what: &str) -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{what}-{}-{}-{next}", std::process::id(), now.as_nanos())
}
