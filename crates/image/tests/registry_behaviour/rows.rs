//! The rows of the matrix: one odd behaviour each, and its outcome.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use vellum_testkit::clients::{Body, Call, Hook, OddRegistry, Reply};

/// "u:p" in base64.
pub const LOGIN: &str = "dTpw";
pub const SIZE: usize = 300_000;

/// How a pull or push ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    Denied,
    NotFound,
    RateLimited,
    /// Refused, or failed in another way: its text or that of a cause contains this.
    Failed(&'static str),
}
use Outcome::{Denied, Done, Failed, NotFound, RateLimited};

/// What skopeo does with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skopeo19 {
    Takes,
    Refuses,
    /// It would take too long, or forever.
    NotAsked,
}
use Skopeo19::{NotAsked, Refuses, Takes};

pub struct Row {
    pub name: &'static str,
    pub push: bool,
    pub login: bool,
    pub hook: Hook,
    pub outcome: Outcome,
    pub skopeo: Skopeo19,
}

fn pull(name: &'static str, outcome: Outcome, skopeo: Skopeo19, hook: Hook) -> Row {
    Row {
        name,
        push: false,
        login: false,
        hook,
        outcome,
        skopeo,
    }
}

fn pushed(name: &'static str, outcome: Outcome, skopeo: Skopeo19, hook: Hook) -> Row {
    Row {
        push: true,
        ..pull(name, outcome, skopeo, hook)
    }
}

fn with_login(row: Row) -> Row {
    Row { login: true, ..row }
}

pub fn hook(f: impl Fn(&OddRegistry, &Call) -> Option<Reply> + Send + Sync + 'static) -> Hook {
    Box::new(f)
}

pub fn is_layer(call: &Call) -> bool {
    call.method == "GET" && call.path.contains("/blobs/") && !call.path.contains("uploads")
}

/// Counts its requests.
#[derive(Clone, Default)]
struct Count(Arc<AtomicUsize>);

impl Count {
    fn next(&self) -> usize {
        self.0.fetch_add(1, Ordering::SeqCst)
    }
}

/// Cuts the first response with a whole layer after 100,000 bytes; the row decides what comes then.
fn cut_first(
    then: impl Fn(&OddRegistry, &Call, &Reply) -> Option<Reply> + Send + Sync + 'static,
) -> Hook {
    let count = Count::default();
    hook(move |registry, call| {
        if !is_layer(call) {
            return None;
        }
        let whole = registry.blob(call.path.rsplit('/').next()?)?;
        if whole.len() < SIZE {
            return None;
        }
        let whole = Reply::new(200, whole);
        if count.next() == 0 {
            let Body::Whole(bytes) = whole.body else {
                return None;
            };
            return Some(Reply::new(200, "").with(Body::Cut(bytes, 100_000)));
        }
        then(registry, call, &whole)
    })
}

fn bytes(reply: &Reply) -> Vec<u8> {
    match &reply.body {
        Body::Whole(bytes) => bytes.clone(),
        _ => Vec::new(),
    }
}

fn start_of(call: &Call) -> Option<usize> {
    call.header("range")
        .strip_prefix("bytes=")?
        .trim_end_matches('-')
        .parse()
        .ok()
}

/// A range of a layer that begins at `start`, stated or not.
fn part(whole: &Reply, start: usize, said: bool) -> Reply {
    let bytes = bytes(whole);
    let reply = Reply::new(206, bytes[start..].to_vec());
    if said {
        let (last, all) = (bytes.len() - 1, bytes.len());
        reply.header("Content-Range", format!("bytes {start}-{last}/{all}"))
    } else {
        reply
    }
}

/// A token service and a registry that requires its tokens.
fn token(
    answer: &'static str,
    challenge: impl Fn(&OddRegistry) -> Vec<String> + Send + Sync + 'static,
    root_is_open: bool,
) -> Hook {
    hook(move |registry, call| {
        if call.path == "/token" {
            let known = call.header("authorization") == format!("Basic {LOGIN}");
            return Some(if known {
                Reply::new(200, answer).header("Content-Type", "application/json")
            } else {
                Reply::new(401, r#"{"details":"who are you"}"#)
                    .header("Content-Type", "application/json")
            });
        }
        if (root_is_open && call.path == "/v2/") || call.header("authorization") == "Bearer T" {
            return None;
        }
        let refusal = Reply::new(401, "{}");
        Some(
            challenge(registry)
                .into_iter()
                .fold(refusal, |reply, challenge| {
                    reply.header("WWW-Authenticate", challenge)
                }),
        )
    })
}

pub fn usual(registry: &OddRegistry) -> Vec<String> {
    vec![format!(
        r#"Bearer realm="http://{}/token",service="reg",scope="repository:t:pull""#,
        registry.host()
    )]
}

pub const TOKEN: &str = r#"{"token":"T"}"#;

pub fn basic(root_is_open: bool) -> Hook {
    hook(move |_, call| {
        if (root_is_open && call.path == "/v2/")
            || call.header("authorization") == format!("Basic {LOGIN}")
        {
            return None;
        }
        Some(Reply::new(401, "{}").header("WWW-Authenticate", "Basic realm=\"x\""))
    })
}

/// Redirects requests for layers, with this status, to a server that has them.
fn redirect(
    status: u16,
    to: impl Fn(&OddRegistry, &str) -> String + Send + Sync + 'static,
) -> Hook {
    hook(move |registry, call| {
        if let Some(digest) = call.path.strip_prefix("/elsewhere/") {
            return Some(Reply::new(200, registry.blob(digest)?));
        }
        if !is_layer(call) {
            return None;
        }
        let digest = call.path.rsplit('/').next()?;
        Some(Reply::new(status, "").header("Location", to(registry, digest)))
    })
}

/// Answers the first request for a manifest with `reply`.
pub fn manifest_first(reply: Reply) -> Hook {
    let count = Count::default();
    hook(move |_, call| {
        (call.path.contains("/manifests/") && count.next() == 0).then(|| reply.clone())
    })
}

/// Answers every request of this method whose path contains this.
pub fn always(method: &'static str, part: &'static str, reply: Reply) -> Hook {
    hook(move |_, call| (call.method == method && call.path.contains(part)).then(|| reply.clone()))
}

/// Lets the registry handle the request, and answers with another status.
fn status(method: &'static str, part: &'static str, status: u16, location: bool) -> Hook {
    hook(move |registry, call| {
        if call.method != method || !call.path.contains(part) {
            return None;
        }
        let mut reply = registry.plainly(call);
        if reply.status < 300 {
            reply.status = status;
            if !location {
                reply.headers.retain(|(name, _)| name != "Location");
            }
        }
        Some(reply)
    })
}

/// Gives upload sessions another URL.
fn session(
    location: impl Fn(&OddRegistry, &str) -> Option<String> + Send + Sync + 'static,
) -> Hook {
    hook(move |registry, call| {
        if call.method != "POST" {
            return None;
        }
        let mut reply = registry.plainly(call);
        let id = reply
            .headers
            .iter()
            .find(|(name, _)| name == "Docker-Upload-UUID")
            .map(|(_, id)| id.clone())?;
        reply.headers.retain(|(name, _)| name != "Location");
        if let Some(place) = location(registry, &id) {
            reply.headers.push(("Location".into(), place));
        }
        Some(reply)
    })
}

/// A token is valid for one upload only.
fn tokens_end_early() -> Hook {
    let count = Count::default();
    hook(move |registry, call| {
        if call.path == "/token" {
            return Some(Reply::new(200, TOKEN));
        }
        let late =
            call.method == "PUT" && call.path.contains("/blobs/uploads/") && count.next() == 0;
        if late || call.header("authorization") != "Bearer T" {
            return Some(
                Reply::new(401, "").header("WWW-Authenticate", usual(registry)[0].clone()),
            );
        }
        None
    })
}

/// Makes the large layer a foreign one, which is at `urls` (HOST is this server, `{}` the digest)
/// and perhaps in the registry.
pub fn foreign(urls: &'static [&'static str], here: bool) -> Hook {
    hook(move |registry, call| {
        let last = call.path.rsplit('/').next()?;
        if call.path.starts_with("/elsewhere/") {
            // A client that sends a login here has been fooled.
            let stranger = call.header("authorization").is_empty();
            return Some(match registry.blob(last).filter(|_| stranger) {
                Some(blob) => Reply::new(200, blob),
                None => Reply::new(403, ""),
            });
        }
        if call.path.starts_with("/nowhere/") {
            return Some(Reply::new(404, ""));
        }
        if !here && is_layer(call) && registry.blob(last)?.len() >= SIZE {
            return Some(Reply::new(404, ""));
        }
        if call.method == "PUT" || !call.path.contains("/manifests/") {
            return None;
        }
        let mut manifest: serde_json::Value =
            serde_json::from_slice(&registry.manifest("1")?).ok()?;
        let kind = "application/vnd.oci.image.manifest.v1+json";
        manifest["mediaType"] = kind.into();
        for layer in manifest["layers"].as_array_mut()? {
            if layer["size"].as_u64()? >= SIZE as u64 {
                layer["mediaType"] =
                    "application/vnd.oci.image.layer.nondistributable.v1.tar".into();
                let digest = layer["digest"].as_str()?.to_owned();
                let url = |url: &&str| {
                    let url = url.replace("HOST", &registry.host());
                    url.replace("{}", &digest)
                };
                layer["urls"] = urls.iter().map(url).collect();
            }
        }
        Some(Reply::new(200, manifest.to_string()).header("Content-Type", kind))
    })
}

const ELSEWHERE: &str = "http://HOST/elsewhere/{}";

pub fn rows() -> Vec<Row> {
    let nothing = || hook(|_, _| None);
    let mut rows = vec![
        pull("a plain registry", Done, Takes, nothing()),
        // Ranges. Skopeo doesn't continue a broken transfer at all.
        pull("a cut transfer", Done, Refuses, cut_first(|_, _, _| None)),
        pull(
            "a cut transfer, ranges ignored",
            Done,
            Refuses,
            cut_first(|_, _, whole| Some(whole.clone())),
        ),
        pull(
            "a part that begins earlier than asked",
            Done,
            Refuses,
            cut_first(|_, call, whole| Some(part(whole, start_of(call)? & !0xffff, true))),
        ),
        pull(
            "a part that begins later than asked",
            Done,
            Refuses,
            cut_first(|_, call, whole| match start_of(call) {
                Some(start) => Some(part(whole, start + 512, true)),
                None => Some(whole.clone()),
            }),
        ),
        pull(
            "a part that doesn't say where it begins",
            Done,
            Refuses,
            cut_first(|_, call, whole| Some(part(whole, start_of(call)?, false))),
        ),
        pull(
            "a part with a Content-Range that nobody understands",
            Done,
            Refuses,
            cut_first(|_, call, whole| match start_of(call) {
                Some(start) => Some(part(whole, start, false).header("Content-Range", "some")),
                None => Some(whole.clone()),
            }),
        ),
        // Redirects.
        pull(
            "a redirect to another path",
            Done,
            Takes,
            redirect(307, |_, digest| format!("/elsewhere/{digest}")),
        ),
        pull(
            "a redirect to another name of the server",
            Done,
            Takes,
            redirect(302, |registry, digest| {
                let host = registry.host().replace("127.0.0.1", "localhost");
                format!("http://{host}/elsewhere/{digest}?X-Signature=secret")
            }),
        ),
        pull(
            "a redirect in a circle",
            Failed("too many redirects"),
            Refuses,
            redirect(307, |_, digest| format!("/v2/t/blobs/{digest}")),
        ),
        pull(
            "a redirect to something that is not HTTP",
            Failed("can't be understood"),
            Refuses,
            redirect(307, |_, _| "file:///etc/passwd".into()),
        ),
        pull(
            "a redirect without a place",
            Failed("without a Location"),
            Refuses,
            hook(|_, call| is_layer(call).then(|| Reply::new(307, ""))),
        ),
        // Manifests.
        pull(
            "a manifest without a content type",
            Done,
            Refuses,
            hook(|registry, call| {
                let name = call.path.strip_prefix("/v2/t/manifests/")?;
                Some(Reply::new(200, registry.manifest(name)?))
            }),
        ),
        pull(
            "a manifest with a parameter in its content type",
            Done,
            Takes,
            hook(|registry, call| {
                let name = call.path.strip_prefix("/v2/t/manifests/")?;
                let kind = "application/vnd.oci.image.manifest.v1+json; charset=utf-8";
                Some(Reply::new(200, registry.manifest(name)?).header("Content-Type", kind))
            }),
        ),
        pull(
            "a page in place of a manifest",
            NotFound,
            Refuses,
            always(
                "GET",
                "/manifests/",
                Reply::new(404, "<html>not here</html>"),
            ),
        ),
        pull(
            "a manifest without end",
            Failed("the response is longer than"),
            NotAsked,
            always(
                "GET",
                "/manifests/",
                Reply::new(200, "").with(Body::Endless),
            ),
        ),
        pull(
            "a refusal without end",
            Failed("failed to give image t:1"),
            NotAsked,
            always(
                "GET",
                "/manifests/",
                Reply::new(500, "").with(Body::Endless),
            ),
        ),
        pull(
            "a manifest that trickles",
            Failed("less than 4 KiB in"),
            NotAsked,
            always(
                "GET",
                "/manifests/",
                Reply::new(200, "").with(Body::Trickle(vec![b' '; 1000])),
            ),
        ),
        pull(
            "a layer that trickles",
            Failed("less than 4 KiB in"),
            NotAsked,
            hook(|registry, call| {
                let blob = registry
                    .blob(call.path.rsplit('/').next()?)
                    .filter(|_| is_layer(call))?;
                (blob.len() >= SIZE).then(|| Reply::new(200, "").with(Body::Trickle(blob)))
            }),
        ),
        // Too many requests.
        pull(
            "asked to wait a second",
            Done,
            Takes,
            manifest_first(Reply::new(429, "").header("Retry-After", "1")),
        ),
        pull(
            "asked to wait until a moment that has passed",
            Done,
            Takes,
            manifest_first(
                Reply::new(429, "").header("Retry-After", "Sun, 06 Nov 1994 08:49:37 GMT"),
            ),
        ),
        pull(
            "busy once",
            Done,
            Refuses,
            manifest_first(Reply::new(503, "").header("Retry-After", "0")),
        ),
        pull(
            "broken once",
            Done,
            Refuses,
            manifest_first(Reply::new(502, "<html>")),
        ),
        pull(
            "asked to wait an hour",
            RateLimited,
            NotAsked,
            always(
                "GET",
                "/manifests/",
                Reply::new(429, "").header("Retry-After", "3600"),
            ),
        ),
        // Logins.
        with_login(pull("a password", Done, Takes, basic(false))),
        pull(
            "a password that we don't have",
            Denied,
            Refuses,
            basic(false),
        ),
        with_login(pull(
            "a password, asked for late",
            Done,
            Refuses,
            basic(true),
        )),
        with_login(pull("a token", Done, Takes, token(TOKEN, usual, false))),
        pull(
            "a token for which there is no login",
            Denied,
            Refuses,
            token(TOKEN, usual, false),
        ),
        with_login(pull(
            "a token, asked for late",
            Done,
            Refuses,
            token(TOKEN, usual, true),
        )),
        with_login(pull(
            "a wrong password",
            Denied,
            Refuses,
            hook(|_, _| Some(Reply::new(401, "").header("WWW-Authenticate", "Basic realm=\"x\""))),
        )),
        with_login(pull(
            "a token that never satisfies",
            Denied,
            Refuses,
            token(r#"{"token":"wrong"}"#, usual, false),
        )),
        with_login(pull(
            "a refusal that asks for nothing",
            Denied,
            Refuses,
            hook(|_, call| (call.path != "/v2/").then(|| Reply::new(401, ""))),
        )),
        with_login(pull(
            "a refusal that asks for something unknown",
            Denied,
            Refuses,
            hook(|_, _| Some(Reply::new(401, "").header("WWW-Authenticate", "Negotiate"))),
        )),
        with_login(pull(
            "a root that is missing",
            Done,
            Refuses,
            hook(|_, call| (call.path == "/v2/").then(|| Reply::new(404, ""))),
        )),
    ];
    for (name, answer) in [
        (
            "an empty token and an access token",
            r#"{"token":"","access_token":"T"}"#,
        ),
        (
            "no token and an access token",
            r#"{"token":null,"access_token":"T"}"#,
        ),
        (
            "a token with a life of no length",
            r#"{"token":"T","expires_in":0}"#,
        ),
        (
            "a token that has ended already",
            r#"{"token":"T","expires_in":-1,"issued_at":"2001-01-01T00:00:00Z"}"#,
        ),
    ] {
        rows.push(with_login(pull(
            name,
            Done,
            Takes,
            token(answer, usual, false),
        )));
    }
    for (name, answer) in [
        ("a token of nothing", r#"{"token":""}"#),
        ("a token answer that is a page", "<html>"),
        ("a token with a line break", "{\"token\":\"T\\r\\nX: y\"}"),
    ] {
        rows.push(with_login(pull(
            name,
            Failed("can't be understood"),
            Refuses,
            token(answer, usual, false),
        )));
    }
    for (name, skopeo, challenge) in [
        (
            "a challenge without a service",
            Takes,
            r#"Bearer realm="http://HOST/token""#,
        ),
        (
            "a challenge with a query",
            Takes,
            r#"Bearer realm="http://HOST/token?a=b",service="s""#,
        ),
        (
            "a challenge in small letters",
            Takes,
            r#"bearer realm="http://HOST/token",service="s""#,
        ),
        (
            "a challenge without quotes",
            Refuses,
            "Bearer realm=http://HOST/token,service=s",
        ),
        (
            "a challenge with a relative realm",
            Refuses,
            r#"Bearer realm="/token",service="s""#,
        ),
        (
            "two challenges in one header",
            Takes,
            r#"Bearer realm="http://HOST/token",Basic realm="x""#,
        ),
        (
            "two challenges the other way round",
            Refuses,
            r#"Basic realm="x",Bearer realm="http://HOST/token""#,
        ),
    ] {
        let challenge =
            move |registry: &OddRegistry| vec![challenge.replace("HOST", &registry.host())];
        rows.push(with_login(pull(
            name,
            Done,
            skopeo,
            token(TOKEN, challenge, false),
        )));
    }
    let two_headers = |registry: &OddRegistry| {
        let mut challenges = vec!["Negotiate".to_owned(), "Basic realm=\"x\"".to_owned()];
        challenges.extend(usual(registry));
        challenges
    };
    rows.push(with_login(pull(
        "challenges in several headers",
        Done,
        Refuses,
        token(TOKEN, two_headers, false),
    )));
    for (status, name) in [
        (301, "a redirect 301"),
        (303, "a redirect 303"),
        (308, "a redirect 308"),
    ] {
        let to = |_: &OddRegistry, digest: &str| format!("/elsewhere/{digest}");
        rows.push(pull(name, Done, Takes, redirect(status, to)));
    }
    for (code, name) in [
        (400, "ranges refused with 400"),
        (405, "ranges refused with 405"),
        (416, "ranges refused with 416"),
        (500, "ranges refused with 500"),
        (501, "ranges refused with 501"),
    ] {
        let refuse = move |_: &OddRegistry, call: &Call, whole: &Reply| {
            Some(match start_of(call) {
                Some(_) => Reply::new(code, ""),
                None => whole.clone(),
            })
        };
        rows.push(pull(name, Done, Refuses, cut_first(refuse)));
    }
    rows.extend(foreign_rows());
    rows.extend(push_rows());
    rows
}

fn foreign_rows() -> Vec<Row> {
    let here = true;
    vec![
        pull(
            "a foreign layer that the registry has",
            Done,
            Refuses,
            foreign(&["http://HOST/nowhere/{}"], here),
        ),
        pull(
            "a foreign layer that its URL has",
            Done,
            Takes,
            foreign(&[ELSEWHERE], !here),
        ),
        pull(
            "a foreign layer that both have",
            Done,
            Takes,
            foreign(&[ELSEWHERE], here),
        ),
        pull(
            "a foreign layer that its second URL has",
            Done,
            Takes,
            foreign(&["http://HOST/nowhere/{}", ELSEWHERE], !here),
        ),
        pull(
            "a foreign layer that nobody has",
            Failed("has no"),
            Refuses,
            foreign(&["http://HOST/nowhere/{}"], !here),
        ),
        pull(
            "a foreign layer at what is not HTTP",
            Done,
            Takes,
            foreign(&["file:///etc/passwd", "no URL"], here),
        ),
        pull(
            "a foreign layer without URLs",
            Done,
            Takes,
            foreign(&[], here),
        ),
    ]
}

fn push_rows() -> Vec<Row> {
    let mut rows = vec![
        pushed("a plain registry", Done, Takes, hook(|_, _| None)),
        pushed(
            "a blob that nowhere is",
            Done,
            Takes,
            status("PUT", "/blobs/uploads/", 201, false),
        ),
        pushed(
            "an upload with a relative place",
            Done,
            Takes,
            session(|_, id| Some(format!("{id}?_state=secret"))),
        ),
        pushed(
            "an upload with a whole address",
            Done,
            Takes,
            session(|registry, id| {
                Some(format!(
                    "http://{}/v2/t/blobs/uploads/{id}",
                    registry.host()
                ))
            }),
        ),
        pushed(
            "an upload with an id for a place",
            Done,
            Refuses,
            session(|_, _| None),
        ),
        pushed(
            "an upload that must not be opened",
            Denied,
            Refuses,
            always(
                "POST",
                "/blobs/uploads/",
                Reply::new(403, r#"{"errors":[{"code":"DENIED"}]}"#),
            ),
        ),
        pushed(
            "a blob that can't be looked for",
            Done,
            Refuses,
            always("HEAD", "/blobs/", Reply::new(405, "")),
        ),
        pushed(
            "a blob that must not be looked for",
            Done,
            Refuses,
            always("HEAD", "/blobs/", Reply::new(403, "")),
        ),
        pushed(
            "a manifest that is refused",
            Failed("failed to"),
            Refuses,
            always("PUT", "/manifests/", Reply::new(400, "no")),
        ),
        pushed("a token that ends early", Done, Refuses, tokens_end_early()),
        with_login(pushed("a password", Done, Takes, basic(false))),
        with_login(pushed(
            "a password, asked for late",
            Done,
            Refuses,
            basic(true),
        )),
        with_login(pushed("a token", Done, Takes, token(TOKEN, usual, false))),
        with_login(pushed(
            "a token, asked for late",
            Done,
            Refuses,
            token(TOKEN, usual, true),
        )),
    ];
    for (name, method, part, code) in [
        ("a manifest answered with 200", "PUT", "/manifests/", 200),
        ("a manifest answered with 202", "PUT", "/manifests/", 202),
        ("a manifest answered with 204", "PUT", "/manifests/", 204),
        ("a blob answered with 200", "PUT", "/blobs/uploads/", 200),
        ("a blob answered with 202", "PUT", "/blobs/uploads/", 202),
        ("a blob answered with 204", "PUT", "/blobs/uploads/", 204),
        (
            "a session answered with 200",
            "POST",
            "/blobs/uploads/",
            200,
        ),
        (
            "a session answered with 201",
            "POST",
            "/blobs/uploads/",
            201,
        ),
    ] {
        let skopeo = if part == "/manifests/" {
            Takes
        } else {
            Refuses
        };
        rows.push(pushed(name, Done, skopeo, status(method, part, code, true)));
    }
    rows
}
