//! containerd's content store, of which the differ is a client: blobs read, layers written.
//!
//! containerd hands its differ a digest and no blob, so the differ asks back over containerd's own
//! socket. The call's metadata says in which namespace; where it does not, every namespace is
//! asked. Whether a namespace has the blob is always containerd's answer; the bytes are then read
//! from the store's file where containerd says its files are (and the digest is checked by whoever
//! reads them), and over the socket where there is no such file. A lease reaches the differ only
//! when containerd itself took it, not when the client did: what is written without one gets a
//! lease of its own, so that no collection takes the blob before the client names it. The lease
//! ends when the client has, or when the write comes to nothing; if this process ends before, by
//! itself.
//!
//! A containerd that can't be reached is told with the path that was tried, and with the flag that
//! names another.
//!
//! Nothing is kept between two calls but the connection and the place of the files.

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

/// What containerd sends and takes at most.
const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// One piece of a blob on its way to containerd.
const PIECE_BYTES: usize = 1 << 20;

/// Pieces between the thread that makes them and the connection.
const PIECES: usize = 4;

/// How long a written blob is held when the call came without a lease.
const HELD: Duration = Duration::from_secs(600);

/// What labels begin with by which one blob of containerd's holds another.
const CONTENT_REFERENCE: &str = "containerd.io/gc.ref.content";

/// The label with the digest of the uncompressed layer.
pub const UNCOMPRESSED: &str = "containerd.io/uncompressed";

const NAMESPACE: &str = "containerd-namespace";
const LEASE: &str = "containerd-lease";

/// On whose behalf a call is made.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    namespace: Option<MetadataValue<Ascii>>,
    lease: Option<MetadataValue<Ascii>>,
}

impl Caller {
    /// Reads what containerd sent along with a call.
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

/// A connection to containerd. It is made when it is first needed, and again when containerd was
/// restarted.
pub struct Containerd {
    socket: PathBuf,
    channel: Channel,
    /// Where the content store keeps its files, if it says so.
    root: OnceCell<Option<PathBuf>>,
}

/// A blob that one namespace has.
pub struct Found {
    caller: Caller,
    /// What containerd knows of it.
    pub info: Info,
}

impl Containerd {
    /// Returns a client of the containerd that listens on `socket`. Nothing is connected yet.
    ///
    /// Must be called where tokio runs. Errors: a path that no address can hold.
    pub fn at(socket: &Path) -> Result<Self, tonic::transport::Error> {
        let address = format!("unix://{}", socket.display());
        let endpoint = Endpoint::from_shared(address)?
            // A layer comes in pieces of a megabyte: the default windows would make it wait for
            // each.
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

    /// Says of a call that failed for want of a containerd where one was looked for, and how to
    /// name another place.
    fn or_unreachable(&self, status: Status) -> Status {
        let socket = self.socket.display();
        let hint = "`vellum serve containerd --containerd PATH` names containerd's own socket";
        let unreachable = std::error::Error::source(&status)
            .is_some_and(|source| source.is::<tonic::transport::Error>());
        let said = match status.code() {
            Code::Unimplemented => {
                format!("what listens on {socket} has no content store; {hint}")
            }
            _ if unreachable => {
                let why = innermost(&status);
                format!("containerd can't be reached on {socket}: {why}; {hint}")
            }
            _ => return status,
        };
        Status::new(status.code(), said)
    }

    /// Looks for a blob in the caller's namespace, or in all if it is not known.
    ///
    /// Errors: what containerd answers; `Unavailable` with the socket's path if it does not.
    pub async fn find(&self, caller: &Caller, digest: &str) -> Result<Found, Status> {
        let found = self.find_anywhere(caller, digest).await;
        found.map_err(|status| self.or_unreachable(status))
    }

    async fn find_anywhere(&self, caller: &Caller, digest: &str) -> Result<Found, Status> {
        if caller.namespace.is_some() {
            let info = self.info(caller, digest).await?;
            return Ok(Found {
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
                Ok(info) => return Ok(Found { caller, info }),
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
            .ok_or_else(|| Status::internal("containerd answered without an info"))
    }

    /// Opens a blob for reading. Errors as [`Containerd::find`].
    pub async fn open(&self, found: &Found) -> Result<Box<dyn Read + Send>, Status> {
        let opened = self.open_anyhow(found).await;
        opened.map_err(|status| self.or_unreachable(status))
    }

    async fn open_anyhow(&self, found: &Found) -> Result<Box<dyn Read + Send>, Status> {
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
                // Nobody reads any more: the blob is given up.
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
        // A proxy in its place keeps its blobs elsewhere.
        Ok(match plugins.as_slice() {
            [only] => only.exports.get("root").map(PathBuf::from),
            _ => None,
        })
    }

    /// Starts writing a blob. `name` is that of the write; an unfinished one of that name begins
    /// anew. Errors as [`Containerd::find`].
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
        // Nothing comes back before the first message has gone out.
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

    /// Makes a lease, which ends by itself should nobody end it.
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
            .map_err(|_| Status::internal("a lease has an impossible id"))?;
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

/// Returns the text of what lies at the bottom of an error: the layers above it say "transport
/// error".
fn innermost(status: &Status) -> String {
    let mut at: &dyn std::error::Error = status;
    while let Some(source) = at.source() {
        at = source;
    }
    at.to_string()
}

/// A lease of the differ's own. Dropped, it ends.
struct OwnLease {
    channel: Channel,
    caller: Caller,
    id: MetadataValue<Ascii>,
}

impl OwnLease {
    /// Lets the lease go on until something in the namespace names the blob, or nobody has it any
    /// more; no longer than [`HELD`].
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
                        tracing::debug!(digest, %status, "whether a layer is named can't be told");
                    }
                }
            }
        });
    }

    /// Tells whether the blob is there and no other names it.
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
            // It ends by itself later.
            if let Err(status) = client.delete(request).await {
                tracing::debug!(lease = id, %status, "a lease was not ended");
            }
        });
    }
}

/// A blob on its way to containerd.
pub struct Writing {
    client: ContentClient<Channel>,
    caller: Caller,
    name: String,
    /// Nobody else knows the name.
    own_name: bool,
    /// What holds the blob, if the caller had no lease.
    lease: Option<OwnLease>,
    sender: mpsc::Sender<WriteContentRequest>,
    answers: tonic::Streaming<crate::api::services::content::v1::WriteContentResponse>,
}

/// What a blob is to be when it is complete.
pub struct Expected {
    /// Its digest.
    pub digest: String,
    /// Its size.
    pub bytes: i64,
    /// Its labels.
    pub labels: std::collections::BTreeMap<String, String>,
}

impl Writing {
    /// Returns where a thread writes the bytes.
    pub fn writer(&self) -> PieceWriter {
        PieceWriter {
            sender: self.sender.clone(),
            piece: Vec::new(),
            offset: 0,
        }
    }

    /// Takes containerd's answers until `made` ends, which writes to [`Writing::writer`].
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

    /// Makes the blob be there under its digest; one that is there already will do.
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

    /// Gives a blob that was there before the label that says what it holds.
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

    /// Gives up the blob.
    pub async fn abort(mut self) {
        if !self.own_name {
            return;
        }
        let request = self.caller.request(AbortRequest {
            r#ref: self.name.clone(),
        });
        // What can't be taken back now is collected by containerd within a day.
        if let Err(status) = self.client.abort(request).await {
            tracing::debug!(write = self.name, %status, "a write was not aborted");
        }
    }
}

/// The end of a write that a thread holds. Bytes go out in pieces; [`Write::flush`] sends the last
/// one.
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

/// A blob that comes in pieces, for a thread to read.
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

/// A name that nobody else has chosen.
fn unique(what: &str) -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{what}-{}-{}-{next}", std::process::id(), now.as_nanos())
}
