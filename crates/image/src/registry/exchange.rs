//! One request to a server and its response, within limits.
//!
//! Every request to a registry, a mirror or a token service goes through here, so the same rules
//! hold for all of them:
//!
//! * Redirects are followed by our own code. Credentials go to the server that was asked and to no
//!   other, and never from HTTPS to HTTP.
//! * A response that is not a blob is read up to a limit.
//! * A request fails if the server sends too little for too long, whether it is silent or trickles
//!   ([`Pace`]), or stops accepting an upload.
//! * URLs stay out of errors: those of redirects and upload sessions may contain secrets.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::Stream;
use reqwest::header::{
    AUTHORIZATION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, LOCATION, RETRY_AFTER,
};
use reqwest::{Method, StatusCode, Url};
use tokio::time::Instant;

use crate::json::{self, List, fields};

/// The maximum number of redirects.
const MAX_REDIRECTS: usize = 10;
/// Bytes that must be transferred within the time that a connection may be silent.
const LEAST_PROGRESS_BYTES: u64 = 4 << 10;
/// The longest error message that is read, and the longest that is shown.
const MAX_ERROR_BYTES: u64 = 64 << 10;
const MAX_TOLD_CHARS: usize = 300;
/// How many times the usual silence a registry may take after an upload is complete.
const SILENCES_TO_DIGEST: u32 = 10;

/// What went wrong between us and a server.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The server refused.
    #[error(transparent)]
    Refused(#[from] ErrorResponse),
    /// The name of the server has no address.
    #[error("its name can't be resolved")]
    Unresolved(#[source] reqwest::Error),
    /// The server doesn't answer, or isn't trusted.
    #[error("no connection")]
    Connect(#[source] reqwest::Error),
    /// The connection broke.
    #[error("the connection broke")]
    Broken(#[source] reqwest::Error),
    /// The body ended before the promised size.
    #[error("the response ended early")]
    Short,
    /// Too little was received, or accepted, for too long.
    #[error("less than 4 KiB in {0:?}")]
    TooSlow(Duration),
    /// A response that should be small is not.
    #[error("the response is longer than {0} bytes")]
    TooLong(u64),
    /// The source of an upload can't be read.
    #[error("the source of the upload can't be read")]
    Supply(#[source] std::io::Error),
    /// The server no longer accepts our token, and there is a newer one.
    #[error("the server asks for authentication again")]
    Outdated,
    /// A login would have to be sent over a connection that anyone can read.
    #[error("{0} wants a login over plain HTTP: that needs `insecure` for the registry")]
    LoginInClear(String),
    /// A response that the protocol doesn't allow.
    #[error("a response that can't be understood: {0}")]
    Odd(String),
}

impl ExchangeError {
    pub(super) fn odd(what: impl Into<String>) -> Self {
        Self::Odd(what.into())
    }

    /// Returns whether the same request might succeed later.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Refused(response) => matches!(response.status.as_u16(), 408 | 429 | 500..),
            // A name that doesn't exist won't exist in a second; a resolver may recover.
            Self::Unresolved(error) => chain(error).any(|e| e.to_string().contains("emporary")),
            Self::Connect(_)
            | Self::Broken(_)
            | Self::Short
            | Self::TooSlow(_)
            | Self::Outdated => true,
            Self::TooLong(_) | Self::Supply(_) | Self::LoginInClear(_) | Self::Odd(_) => false,
        }
    }
}

impl From<reqwest::Error> for ExchangeError {
    fn from(error: reqwest::Error) -> Self {
        let error = error.without_url();
        if chain(&error).any(|e| e.is::<Unresolvable>()) {
            Self::Unresolved(error)
        } else if error.is_connect() {
            Self::Connect(error)
        } else {
            Self::Broken(error)
        }
    }
}

/// The error and its causes.
fn chain<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |e| e.source())
}

/// A name that has no address, as distinct from everything else that can go wrong with a
/// connection.
#[derive(Debug, thiserror::Error)]
#[error("{name} has no address")]
struct Unresolvable {
    name: String,
    #[source]
    source: std::io::Error,
}

/// The system's resolver, with errors that can be recognised.
struct SystemResolver;

impl reqwest::dns::Resolve for SystemResolver {
    fn resolve(&self, name: reqwest::dns::Name) -> reqwest::dns::Resolving {
        Box::pin(async move {
            let name = name.as_str().to_owned();
            let found = tokio::net::lookup_host((name.as_str(), 0)).await;
            let found: Result<Vec<_>, _> = found.map(Iterator::collect);
            match found {
                Ok(found) => Ok(Box::new(found.into_iter()) as reqwest::dns::Addrs),
                Err(source) => Err(Unresolvable { name, source }.into()),
            }
        })
    }
}

/// A response with an error status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorResponse {
    /// Its status.
    pub status: StatusCode,
    /// The server's message, cleaned for display; often empty.
    pub text: String,
    /// How long the server asks to wait.
    pub wait: Option<Duration>,
}

impl std::fmt::Display for ErrorResponse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.status)?;
        if !self.text.is_empty() {
            write!(f, ": {}", self.text)?;
        }
        Ok(())
    }
}

impl std::error::Error for ErrorResponse {}

/// Measures whether a transfer is fast enough: at least 4 KiB in the time that a connection may be
/// silent.
///
/// Only time spent waiting for the network counts, so a slow disk doesn't end a transfer.
pub(super) struct Pace {
    limit: Duration,
    waited: Duration,
    bytes: u64,
}

impl Pace {
    fn new(limit: Duration) -> Self {
        Self {
            limit,
            waited: Duration::ZERO,
            bytes: 0,
        }
    }

    /// Waits for the next piece of a body. `None` is its end.
    pub(super) async fn next(
        &mut self,
        answer: &mut reqwest::Response,
    ) -> Result<Option<Bytes>, ExchangeError> {
        let start = Instant::now();
        let left = self.limit.saturating_sub(self.waited);
        let Ok(chunk) = tokio::time::timeout(left, answer.chunk()).await else {
            return Err(ExchangeError::TooSlow(self.limit));
        };
        let chunk = chunk?;
        self.waited += start.elapsed();
        self.bytes += chunk.as_ref().map_or(0, |c| c.len() as u64);
        if self.bytes >= LEAST_PROGRESS_BYTES {
            (self.waited, self.bytes) = (Duration::ZERO, 0);
        }
        Ok(chunk)
    }

    /// Returns whether this many bytes count as progress.
    pub(super) fn is_progress(bytes: u64) -> bool {
        bytes >= LEAST_PROGRESS_BYTES
    }
}

/// The body of a request.
pub(super) enum Body {
    Nothing,
    Bytes(Bytes),
    Stream(Upload),
}

/// A body that is read while it is sent, once.
pub(super) struct Upload {
    pub(super) body: reqwest::Body,
    pub(super) size_bytes: u64,
    sent: Arc<AtomicU64>,
}

impl Upload {
    /// The bytes of `chunks`, `size_bytes` in all.
    pub(super) fn new(
        chunks: impl Stream<Item = Result<Bytes, SupplyError>> + Send + 'static,
        size_bytes: u64,
    ) -> Self {
        use futures_util::StreamExt;

        let sent = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&sent);
        let counted = chunks.inspect(move |chunk| {
            if let Ok(chunk) = chunk {
                counter.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            }
        });
        Self {
            body: reqwest::Body::wrap_stream(counted),
            size_bytes,
            sent,
        }
    }
}

/// A request that has not been sent.
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    pub(super) body: Body,
}

impl Request {
    pub(super) fn new(method: Method, url: Url) -> Self {
        Self {
            method,
            url,
            headers: HeaderMap::new(),
            body: Body::Nothing,
        }
    }

    /// Adds a header. The value is our own or has been checked.
    pub(super) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    pub(super) fn body(mut self, body: Body) -> Self {
        self.body = body;
        self
    }
}

/// The HTTP client with its rules.
#[derive(Clone, Debug)]
pub(super) struct Http {
    client: reqwest::Client,
    silence: Duration,
}

impl Http {
    /// A client that trusts the authorities in `roots` in addition to the system's.
    pub(super) fn new(
        roots: Vec<reqwest::Certificate>,
        silence: Duration,
    ) -> Result<Self, reqwest::Error> {
        let client = reqwest::Client::builder()
            .user_agent(concat!("vellum/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(silence)
            .redirect(reqwest::redirect::Policy::none())
            .dns_resolver(SystemResolver)
            .tls_certs_merge(roots)
            .build()?;
        Ok(Self { client, silence })
    }

    /// Sends a request and follows redirects. `proof` goes only to the server first asked.
    ///
    /// Returns any response, including errors. A streamed body can't be sent a second time, and no
    /// body is sent to another server, since it may be a login: a redirect of such a request is
    /// returned as it is.
    pub(super) async fn send(
        &self,
        request: Request,
        proof: Option<&HeaderValue>,
    ) -> Result<Answer, ExchangeError> {
        let Request {
            mut method,
            mut url,
            headers,
            mut body,
        } = request;
        let asked = url.origin();
        for _ in 0..=MAX_REDIRECTS {
            let mut headers = headers.clone();
            if let Some(proof) = proof.filter(|_| url.origin() == asked) {
                headers.insert(AUTHORIZATION, proof.clone());
            }
            // What would be sent again; `None` if that can't be.
            let kept = match &body {
                Body::Nothing => Some(Body::Nothing),
                Body::Bytes(bytes) => Some(Body::Bytes(bytes.clone())),
                Body::Stream(_) => None,
            };
            let response = self
                .exchange(method.clone(), url.clone(), headers, body)
                .await?;
            let status = response.status();
            let answer = Answer {
                at_asked: url.origin() == asked,
                url: url.clone(),
                response,
                silence: self.silence,
            };
            let Some(kept) = kept.filter(|_| is_redirect(status)) else {
                return Ok(answer);
            };
            let next = answer
                .location()?
                .ok_or_else(|| ExchangeError::odd(format!("{status} without a Location")))?;
            if url.scheme() == "https" && next.scheme() != "https" {
                return Err(ExchangeError::odd("a redirect from HTTPS to plain HTTP"));
            }
            body = kept;
            // Like a browser, and like every other client: the response to what was sent is fetched
            // from another URL.
            if matches!(status.as_u16(), 301..=303) && method != Method::HEAD {
                method = Method::GET;
                body = Body::Nothing;
            }
            if !matches!(body, Body::Nothing) && next.origin() != asked {
                return Ok(answer);
            }
            url = next;
        }
        Err(ExchangeError::odd("too many redirects"))
    }

    async fn exchange(
        &self,
        method: Method,
        url: Url,
        headers: HeaderMap,
        body: Body,
    ) -> Result<reqwest::Response, ExchangeError> {
        let mut request = self.client.request(method, url).headers(headers);
        let mut upload = None;
        match body {
            Body::Nothing => {}
            Body::Bytes(bytes) => request = request.body(bytes),
            Body::Stream(stream) => {
                upload = Some((stream.sent, stream.size_bytes));
                request = request
                    .header(CONTENT_LENGTH, stream.size_bytes)
                    .body(stream.body);
            }
        }
        let call = request.send();
        tokio::pin!(call);
        let (mut before, mut thinking) = (0, 0);
        loop {
            if let Ok(answer) = tokio::time::timeout(self.silence, &mut call).await {
                return answer.map_err(supply_or_network);
            }
            let sent = upload
                .as_ref()
                .map_or(0, |(sent, _)| sent.load(Ordering::Relaxed));
            let taken_whole = upload.as_ref().is_some_and(|(_, size)| sent == *size);
            if sent - before >= LEAST_PROGRESS_BYTES {
                before = sent;
            } else if taken_whole && thinking < SILENCES_TO_DIGEST {
                thinking += 1;
            } else {
                return Err(ExchangeError::TooSlow(self.silence));
            }
        }
    }
}

/// Distinguishes an upload whose source can't be read from one that the network broke.
fn supply_or_network(error: reqwest::Error) -> ExchangeError {
    let supply = chain(&error).find_map(|e| e.downcast_ref::<SupplyError>());
    match supply {
        Some(e) => ExchangeError::Supply(std::io::Error::new(e.0.kind(), e.0.to_string())),
        None => error.into(),
    }
}

/// Marks an error of the source of an upload while it passes through the HTTP client.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct SupplyError(pub(super) std::io::Error);

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// A server's response.
pub(super) struct Answer {
    pub(super) response: reqwest::Response,
    /// Where it came from, after redirects.
    pub(super) url: Url,
    /// Whether that is the server which was asked, not one it redirected us to.
    pub(super) at_asked: bool,
    /// How long the server may send too little.
    silence: Duration,
}

impl Answer {
    pub(super) fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// Measures the transfer of the body.
    pub(super) fn pace(&self) -> Pace {
        Pace::new(self.silence)
    }

    /// The text of a header, if it is present and text.
    pub(super) fn header(&self, name: HeaderName) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }

    /// Where the response says to continue, resolved relative to its own URL.
    pub(super) fn location(&self) -> Result<Option<Url>, ExchangeError> {
        let Some(value) = self.response.headers().get(LOCATION) else {
            return Ok(None);
        };
        let next = std::str::from_utf8(value.as_bytes())
            .ok()
            .and_then(|text| self.url.join(text).ok());
        match next {
            Some(next) if matches!(next.scheme(), "http" | "https") => Ok(Some(next)),
            _ => Err(ExchangeError::odd("a Location that is not a URL")),
        }
    }

    /// Returns the response if it is a success, an error otherwise.
    pub(super) async fn accepted(self) -> Result<Self, ExchangeError> {
        if self.status().is_success() {
            return Ok(self);
        }
        Err(self.error_response().await.into())
    }

    /// Reads why the server refused. What can't be read is left out: the status is enough.
    pub(super) async fn error_response(self) -> ErrorResponse {
        let status = self.status();
        let wait = self
            .header(RETRY_AFTER)
            .and_then(|text| retry_after(text, SystemTime::now()));
        let json = self
            .header(reqwest::header::CONTENT_TYPE)
            .is_none_or(|kind| kind.contains("json"));
        let body = self.start(MAX_ERROR_BYTES).await;
        let text = if json {
            explanation(&body)
        } else {
            String::new()
        };
        ErrorResponse { status, text, wait }
    }

    /// Reads the whole response, which must not be longer than `limit_bytes`.
    pub(super) async fn whole(self, limit_bytes: u64) -> Result<Vec<u8>, ExchangeError> {
        let mut bytes = Vec::new();
        let mut pace = self.pace();
        let mut response = self.response;
        while let Some(chunk) = pace.next(&mut response).await? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() as u64 > limit_bytes {
                return Err(ExchangeError::TooLong(limit_bytes));
            }
        }
        Ok(bytes)
    }

    /// Reads at most `limit_bytes`, or until something goes wrong.
    async fn start(self, limit_bytes: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut pace = self.pace();
        let mut response = self.response;
        while let Ok(Some(chunk)) = pace.next(&mut response).await {
            bytes.extend_from_slice(&chunk);
            if bytes.len() as u64 >= limit_bytes {
                bytes.truncate(usize::try_from(limit_bytes).unwrap_or(usize::MAX));
                break;
            }
        }
        bytes
    }
}

/// The error messages of registries and token services, each in its own field.
#[derive(Default)]
struct Errors {
    errors: List<Explained>,
    details: String,
    error_description: String,
}

#[derive(Clone, Debug, Default)]
struct Explained {
    code: String,
    message: String,
}

fields!(Errors {
    "errors" => errors,
    "details" => details,
    "error_description" => error_description,
});
fields!(Explained { "code" => code, "message" => message });

/// The first message in a registry's errors, cleaned for display: short, on one line, without
/// control characters.
fn explanation(body: &[u8]) -> String {
    // Anything else is not meant for people: an HTML page, or nothing.
    let Ok(errors) = json::first(body).and_then(json::read::<Errors>) else {
        return String::new();
    };
    let told = match errors.errors.into_vec().into_iter().next() {
        Some(first) if first.code.is_empty() => first.message,
        Some(first) if first.message.is_empty() => first.code,
        Some(first) => format!("{}: {}", first.code, first.message),
        None if errors.details.is_empty() => errors.error_description,
        None => errors.details,
    };
    told.chars()
        .filter(|c| !c.is_control())
        .take(MAX_TOLD_CHARS)
        .collect()
}

/// Parses `Retry-After`: seconds, or a date.
fn retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let then = httpdate::parse_http_date(text).ok()?;
    Some(then.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_to_wait_is_read_in_seconds_or_as_a_date() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        let read = |text| retry_after(text, now);
        assert_eq!(read("120"), Some(Duration::from_secs(120)));
        assert_eq!(read(" 0 "), Some(Duration::ZERO));
        assert_eq!(
            read("Sun, 06 Nov 1994 08:50:07 GMT"),
            Some(Duration::from_secs(30))
        );
        assert_eq!(read("Sun, 06 Nov 1994 08:00:00 GMT"), Some(Duration::ZERO));
        for nothing in ["", "soon", "-1", "1.5"] {
            assert_eq!(read(nothing), None, "{nothing:?}");
        }
    }

    #[test]
    fn server_messages_are_cleaned_for_display() {
        let long = format!(
            r#"{{"errors":[{{"code":"X","message":"{}"}}]}}"#,
            "y".repeat(5000)
        );
        assert_eq!(explanation(long.as_bytes()).len(), MAX_TOLD_CHARS);
        for (body, told) in [
            (
                r#"{"errors":[{"code":"DENIED","message":"no\u001b[31m!\n"},{"code":"Z"}]}"#,
                "DENIED: no[31m!",
            ),
            (r#"{"errors":[{"code":7,"message":"no"}]}"#, ""),
            (r#"{"errors":[{"message":"no"}]}"#, "no"),
            (r#"{"errors":null,"error_description":"no"}"#, "no"),
            (r#"{"errors":[{"code":"DENIED"}]}"#, "DENIED"),
            (r#"{"errors":[]}"#, ""),
            (
                r#"{"details":"incorrect username or password"}"#,
                "incorrect username or password",
            ),
            ("<html>", ""),
            ("", ""),
        ] {
            assert_eq!(explanation(body.as_bytes()), told, "{body}");
        }
    }

    #[test]
    fn an_upload_whose_source_cant_be_read_fails_with_that_error() {
        let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = Url::parse(&format!("http://{}/", server.local_addr().unwrap())).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let broken = std::io::Error::other("the disk is gone");
        let chunks = [Ok(Bytes::from_static(b"x")), Err(SupplyError(broken))];
        let upload = Upload::new(futures_util::stream::iter(chunks), 10);
        let request = Request::new(Method::PUT, url).body(Body::Stream(upload));
        let http = Http::new(Vec::new(), Duration::from_secs(60)).unwrap();
        let error = runtime.block_on(http.send(request, None)).err().unwrap();
        assert!(
            matches!(&error, ExchangeError::Supply(e) if e.to_string() == "the disk is gone"),
            "{error:?}"
        );
        assert!(!error.is_passing());
    }
}
