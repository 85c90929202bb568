//! A test registry that misbehaves on request.
//!
//! By default it is a plain registry over HTTP that keeps everything in memory. A hook sees each
//! request first and may answer it in its own way. Every request is recorded, so a test can check
//! what each client was shown.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sha2::{Digest as _, Sha256};

/// A request as it arrived.
#[derive(Clone, Debug, Default)]
pub struct Call {
    /// `GET`, `PUT`, ...
    pub method: String,
    /// The path without the query.
    pub path: String,
    /// What follows the question mark.
    pub query: String,
    /// Headers, their names in lower case.
    pub headers: BTreeMap<String, String>,
    /// The body.
    pub body: Vec<u8>,
}

impl Call {
    /// A header, empty if there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// How the body of an answer is sent.
#[derive(Clone, Debug)]
pub enum Body {
    /// At once.
    Whole(Vec<u8>),
    /// Without end.
    Endless,
    /// One byte every 50 ms.
    Trickle(Vec<u8>),
    /// The connection ends after this many bytes.
    Cut(Vec<u8>, usize),
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The status.
    pub status: u16,
    /// Headers, except the length.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Body,
}

impl Reply {
    /// An answer with this status and body.
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Body::Whole(body.into()),
        }
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// Replaces the body.
    #[must_use]
    pub fn with(mut self, body: Body) -> Self {
        self.body = body;
        self
    }
}

/// A hook that sees each request first.
pub type Hook = Box<dyn Fn(&OddRegistry, &Call) -> Option<Reply> + Send + Sync>;

/// The registry's content.
#[derive(Default)]
struct Kept {
    blobs: BTreeMap<String, Vec<u8>>,
    manifests: BTreeMap<String, Vec<u8>>,
    uploads: BTreeMap<String, Vec<u8>>,
    calls: Vec<Call>,
}

struct Shared {
    port: u16,
    stop: AtomicBool,
    kept: Mutex<Kept>,
    hook: Hook,
}

/// The running server; it ends when the value that started it is dropped.
pub struct OddRegistry {
    shared: Arc<Shared>,
    owner: bool,
}

impl OddRegistry {
    /// Starts a registry on loopback.
    pub fn start(hook: Hook) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let shared = Arc::new(Shared {
            port: listener.local_addr()?.port(),
            stop: AtomicBool::new(false),
            kept: Mutex::default(),
            hook,
        });
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if serving.stop.load(Ordering::SeqCst) {
                    break;
                }
                let Ok(client) = client else { break };
                let server = Self {
                    shared: Arc::clone(&serving),
                    owner: false,
                };
                // If a connection fails, the client notices too.
                std::thread::spawn(move || server.serve(&client).ok());
            }
        });
        Ok(Self {
            shared,
            owner: true,
        })
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.shared.port)
    }

    /// Every request so far.
    pub fn calls(&self) -> Vec<Call> {
        self.kept().calls.clone()
    }

    /// The manifest that a tag or digest names.
    pub fn manifest(&self, name: &str) -> Option<Vec<u8>> {
        self.kept().manifests.get(name).cloned()
    }

    /// The blob of this digest.
    pub fn blob(&self, digest: &str) -> Option<Vec<u8>> {
        self.kept().blobs.get(digest).cloned()
    }

    /// Keeps a manifest under `name` and its digest.
    pub fn put_manifest(&self, name: &str, manifest: &[u8]) {
        let mut kept = self.kept();
        kept.manifests.insert(name.to_owned(), manifest.to_vec());
        kept.manifests.insert(digest(manifest), manifest.to_vec());
    }

    /// Copies the content of another registry.
    pub fn copy_from(&self, other: &Self) {
        let other = other.kept();
        let mut kept = self.kept();
        kept.blobs.clone_from(&other.blobs);
        kept.manifests.clone_from(&other.manifests);
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.shared
            .kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers requests of one connection until either side closes it.
    fn serve(&self, client: &TcpStream) -> anyhow::Result<()> {
        client.set_read_timeout(Some(Duration::from_secs(60)))?;
        let mut from = BufReader::new(client.try_clone()?);
        while let Some(call) = read_call(&mut from)? {
            self.kept().calls.push(call.clone());
            let reply = (self.shared.hook)(self, &call).unwrap_or_else(|| self.plainly(&call));
            if !write_reply(client, &call, &reply)? {
                break;
            }
        }
        Ok(())
    }

    /// Acts as a plain registry, and returns its answer.
    pub fn plainly(&self, call: &Call) -> Reply {
        let last = call.path.rsplit('/').next().unwrap_or_default();
        let mut kept = self.kept();
        if call.path == "/v2/" {
            return Reply::new(200, "{}");
        }
        if call.path.contains("/manifests/") {
            if call.method == "PUT" {
                let name = digest(&call.body);
                kept.manifests.insert(last.to_owned(), call.body.clone());
                kept.manifests.insert(name.clone(), call.body.clone());
                return Reply::new(201, "").header("Docker-Content-Digest", name);
            }
            return match kept.manifests.get(last) {
                Some(manifest) => Reply::new(200, manifest.clone())
                    .header("Content-Type", "application/vnd.oci.image.manifest.v1+json")
                    .header("Docker-Content-Digest", digest(manifest)),
                None => Reply::new(404, r#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#)
                    .header("Content-Type", "application/json"),
            };
        }
        if call.path.contains("/blobs/uploads/") {
            let (place, _) = call.path.rsplit_once('/').unwrap_or_default();
            if call.method == "POST" {
                let id = format!("u{}", kept.uploads.len());
                kept.uploads.insert(id.clone(), Vec::new());
                return Reply::new(202, "")
                    .header("Location", format!("{place}/{id}?_state=secret"))
                    .header("Docker-Upload-UUID", id)
                    .header("Range", "0-0");
            }
            let mut upload = kept.uploads.get(last).cloned().unwrap_or_default();
            upload.extend_from_slice(&call.body);
            if call.method == "PATCH" {
                let end = upload.len().saturating_sub(1);
                kept.uploads.insert(last.to_owned(), upload);
                return Reply::new(202, "")
                    .header("Location", format!("{place}/{last}?_state=secret"))
                    .header("Range", format!("0-{end}"));
            }
            let name = digest(&upload);
            if !call.query.replace("%3A", ":").contains(&name) {
                return Reply::new(400, r#"{"errors":[{"code":"DIGEST_INVALID"}]}"#)
                    .header("Content-Type", "application/json");
            }
            kept.blobs.insert(name.clone(), upload);
            let (place, _) = place.rsplit_once('/').unwrap_or_default();
            return Reply::new(201, "")
                .header("Location", format!("{place}/{name}"))
                .header("Docker-Content-Digest", name);
        }
        let Some(blob) = kept.blobs.get(last) else {
            return Reply::new(404, r#"{"errors":[{"code":"BLOB_UNKNOWN"}]}"#)
                .header("Content-Type", "application/json");
        };
        let start = call
            .header("range")
            .strip_prefix("bytes=")
            .and_then(|range| range.trim_end_matches('-').parse::<usize>().ok());
        match start {
            Some(start) if start < blob.len() => Reply::new(206, blob[start..].to_vec()).header(
                "Content-Range",
                format!("bytes {start}-{}/{}", blob.len() - 1, blob.len()),
            ),
            _ => Reply::new(200, blob.clone()),
        }
    }
}

impl Drop for OddRegistry {
    fn drop(&mut self) {
        if self.owner {
            self.shared.stop.store(true, Ordering::SeqCst);
            // Wakes the listener, which then ends.
            let _ = TcpStream::connect(("127.0.0.1", self.shared.port));
        }
    }
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// Reads a request; `None` when the client sends no more, or does not speak HTTP.
fn read_call(from: &mut BufReader<TcpStream>) -> anyhow::Result<Option<Call>> {
    let mut line = String::new();
    // A client that tries TLS first sends no text.
    if from
        .fill_buf()?
        .first()
        .is_none_or(|b| !b.is_ascii_uppercase())
    {
        return Ok(None);
    }
    from.read_line(&mut line)?;
    let mut words = line.split_ascii_whitespace();
    let (method, target) = (
        words.next().unwrap_or_default(),
        words.next().unwrap_or_default(),
    );
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut call = Call {
        method: method.to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        ..Call::default()
    };
    loop {
        line.clear();
        from.read_line(&mut line)?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => {
                call.headers
                    .insert(name.to_ascii_lowercase(), value.trim().to_owned());
            }
            None => break,
        }
    }
    if call.header("transfer-encoding") == "chunked" {
        loop {
            line.clear();
            from.read_line(&mut line)?;
            let size = usize::from_str_radix(line.trim(), 16)?;
            let mut chunk = vec![0; size + 2];
            from.read_exact(&mut chunk)?;
            if size == 0 {
                break;
            }
            call.body.extend_from_slice(&chunk[..size]);
        }
    } else {
        call.body = vec![0; call.header("content-length").parse().unwrap_or(0)];
        from.read_exact(&mut call.body)?;
    }
    Ok(Some(call))
}

/// Sends the answer. Returns whether the connection can continue.
fn write_reply(mut client: &TcpStream, call: &Call, reply: &Reply) -> anyhow::Result<bool> {
    let mut head = format!("HTTP/1.1 {} Odd\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let body = match &reply.body {
        Body::Endless => {
            head.push_str("Transfer-Encoding: chunked\r\n\r\n");
            client.write_all(head.as_bytes())?;
            let mut chunk = b"100000\r\n".to_vec();
            chunk.resize(chunk.len() + (1 << 20), b' ');
            chunk.extend_from_slice(b"\r\n");
            // Ends when the client has had enough.
            loop {
                client.write_all(&chunk)?;
            }
        }
        Body::Whole(body) | Body::Trickle(body) | Body::Cut(body, _) => body,
    };
    if reply.status != 204 {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    client.write_all(head.as_bytes())?;
    if call.method == "HEAD" || reply.status == 204 {
        return Ok(true);
    }
    match &reply.body {
        Body::Trickle(body) => {
            for byte in body {
                client.write_all(&[*byte])?;
                std::thread::sleep(Duration::from_millis(50));
            }
            Ok(true)
        }
        Body::Cut(body, at) => {
            client.write_all(&body[..*at])?;
            Ok(false)
        }
        _ => {
            client.write_all(body)?;
            Ok(true)
        }
    }
}
