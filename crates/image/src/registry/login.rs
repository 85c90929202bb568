//! Authenticates to servers: with as little as they ask for, and to no other server.
//!
//! Nothing is sent before a server asks for it. But a server for which there is a login is asked
//! first how to authenticate, since some hide content from anonymous clients. A challenge may come
//! at any request: a registry that is open at its root may want a login for one repository. The
//! results are kept for the requests that follow, separately for pulls and pushes.
//!
//! A login goes to the server that it is for, and to the token service that this server itself
//! names. A challenge that came after a redirect is not answered. Over plain HTTP a login goes only
//! to a registry for which the user allowed that, or to the loopback interface.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Method, StatusCode, Url};
use tokio::time::Instant;
use vellum_sys::sync;

use super::challenge::{self, Challenge};
use super::credentials::Login;
use super::exchange::{Answer, Body, ExchangeError, Http, Request};
use super::host::is_loopback;
use crate::json::{self, fields};

/// The longest response of a token service that is accepted.
const MAX_TOKEN_ANSWER_BYTES: u64 = 1 << 20;
/// How long a token without an expiry is valid, and how long before its expiry it is no longer
/// used.
const USUAL_TOKEN_LIFE: Duration = Duration::from_secs(60);
const TOKEN_MARGIN: Duration = Duration::from_secs(5);

/// The operation on a repository: a token is for one or the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Operation {
    Pull,
    Push,
}

/// Where the user allows a login to go over plain HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InClear {
    Nowhere,
    /// To this machine, without a network in between.
    OnLoopback,
    /// The registry is `insecure`.
    Anywhere,
}

/// What a server accepted as authentication.
#[derive(Clone)]
struct Proof {
    header: HeaderValue,
    until: Option<Instant>,
}

/// What one server asks for, and our responses.
#[derive(Clone)]
pub(super) struct Access {
    login: Login,
    in_clear: InClear,
    server: Url,
    repository: String,
    /// Other repositories of this server from which a push may mount blobs.
    relatives: Vec<String>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    proofs: HashMap<Operation, Proof>,
    /// Whether the server was asked at its root how to authenticate.
    asked: bool,
}

impl Access {
    /// What may be sent to `server` about `repository`.
    pub(super) fn new(login: Login, in_clear: InClear, server: Url, repository: String) -> Self {
        Self {
            login,
            in_clear,
            server,
            repository,
            relatives: Vec::new(),
            state: Arc::default(),
        }
    }

    /// Lets tokens for pushes cover mounts from `repositories`.
    pub(super) fn mounting_from(&mut self, repositories: Vec<String>) {
        self.relatives = repositories;
    }

    /// Sends a request that can be repeated, and authenticates as the server asks.
    pub(super) async fn send(
        &self,
        http: &Http,
        operation: Operation,
        request: impl Fn() -> Request,
    ) -> Result<Answer, ExchangeError> {
        self.introduce(http, operation).await?;
        let answer = self.send_once(http, operation, request()).await?;
        if answer.status() != StatusCode::UNAUTHORIZED
            || !self.satisfy(http, operation, &answer).await?
        {
            return Ok(answer);
        }
        self.send_once(http, operation, request()).await
    }

    /// Sends a request once, because its body can't be sent again. If it is refused, call
    /// [`Access::satisfy`].
    pub(super) async fn send_once(
        &self,
        http: &Http,
        operation: Operation,
        request: Request,
    ) -> Result<Answer, ExchangeError> {
        let proof = self.proof(operation);
        // An upload session may be at another server, which gets no credentials.
        let here = request.url.origin() == self.server.origin();
        http.send(request, proof.as_ref().filter(|_| here)).await
    }

    fn proof(&self, operation: Operation) -> Option<HeaderValue> {
        let state = sync::lock(&self.state);
        let proof = state.proofs.get(&operation)?;
        let good = proof.until.is_none_or(|until| Instant::now() < until);
        good.then(|| proof.header.clone())
    }

    fn keep(&self, operation: Operation, proof: Proof) {
        let mut state = sync::lock(&self.state);
        state.proofs.insert(operation, proof);
    }

    /// Asks a server for which there is a login how to authenticate, before the first request.
    async fn introduce(&self, http: &Http, operation: Operation) -> Result<(), ExchangeError> {
        let first = {
            let mut state = sync::lock(&self.state);
            !std::mem::replace(&mut state.asked, true)
        };
        if !first || matches!(self.login, Login::None) {
            return Ok(());
        }
        let root = self
            .server
            .join("/v2/")
            .map_err(|e| ExchangeError::odd(e.to_string()))?;
        let answer = http.send(Request::new(Method::GET, root), None).await?;
        // Any other response is ignored: the requests themselves will show.
        if answer.status() == StatusCode::UNAUTHORIZED {
            self.satisfy(http, operation, &answer).await?;
        }
        Ok(())
    }

    /// Does what the challenge in the response asks. Returns whether there is a new token or login
    /// to send.
    pub(super) async fn satisfy(
        &self,
        http: &Http,
        operation: Operation,
        refusal: &Answer,
    ) -> Result<bool, ExchangeError> {
        if !refusal.at_asked || refusal.url.origin() != self.server.origin() {
            return Ok(false);
        }
        let challenges: Vec<Challenge> = refusal
            .response
            .headers()
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| std::str::from_utf8(value.as_bytes()).ok())
            .flat_map(challenge::parse)
            .collect();
        let bearer = challenges
            .iter()
            .find(|c| c.scheme == "bearer" && c.get("realm").is_some());
        if let Some(bearer) = bearer {
            let proof = self.token(http, operation, bearer).await?;
            self.keep(operation, proof);
            return Ok(true);
        }
        if challenges.iter().any(|c| c.scheme == "basic")
            && let Some(header) = self.login_for(&self.server)?
        {
            let known = self.proof(operation).is_some_and(|known| known == header);
            self.keep(
                operation,
                Proof {
                    header,
                    until: None,
                },
            );
            return Ok(!known);
        }
        Ok(false)
    }

    /// The login as a header for `to`; `None` if there is none with a password.
    fn login_for(&self, to: &Url) -> Result<Option<HeaderValue>, ExchangeError> {
        let Login::Password { user, password } = &self.login else {
            return Ok(None);
        };
        self.may_go_to(to)?;
        basic(user, password).map(Some)
    }

    fn may_go_to(&self, to: &Url) -> Result<(), ExchangeError> {
        let host = to.host_str().unwrap_or_default();
        let may = to.scheme() == "https"
            || match self.in_clear {
                InClear::Nowhere => false,
                InClear::OnLoopback => is_loopback(host),
                InClear::Anywhere => true,
            };
        match may {
            true => Ok(()),
            false => Err(ExchangeError::LoginInClear(host.to_owned())),
        }
    }

    /// Gets a token from the service that the challenge names.
    async fn token(
        &self,
        http: &Http,
        operation: Operation,
        challenge: &Challenge,
    ) -> Result<Proof, ExchangeError> {
        let realm = challenge.get("realm").unwrap_or_default();
        let realm = self
            .server
            .join(realm)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https"))
            .ok_or_else(|| ExchangeError::odd("a token service whose address is not a URL"))?;
        let scopes = self.scopes(operation, challenge.get("scope"));
        let service = challenge.get("service");
        let (request, proof) = match &self.login {
            Login::IdentityToken(token) => {
                self.may_go_to(&realm)?;
                (with_identity(realm, service, &scopes, token), None)
            }
            login => {
                let proof = self.login_for(&realm)?;
                let user = match login {
                    Login::Password { user, .. } => Some(user.as_str()),
                    _ => None,
                };
                (with_password(realm, service, &scopes, user), proof)
            }
        };
        let asked = Instant::now();
        let answer = http.send(request, proof.as_ref()).await?;
        let answer = answer.accepted().await?;
        let body = answer.whole(MAX_TOKEN_ANSWER_BYTES).await?;
        read_token(&body, asked)
    }

    /// What the token must cover: the operation, and whatever else the server names.
    fn scopes(&self, operation: Operation, wanted: Option<&str>) -> Vec<String> {
        let repository = &self.repository;
        let mut scopes = match operation {
            Operation::Pull => vec![format!("repository:{repository}:pull")],
            Operation::Push => vec![format!("repository:{repository}:pull,push")],
        };
        let own = format!("repository:{repository}:");
        let others = wanted.unwrap_or_default().split_ascii_whitespace();
        scopes.extend(
            others
                .filter(|scope| !scope.starts_with(&own))
                .map(str::to_owned),
        );
        if operation == Operation::Push {
            let mounts = self
                .relatives
                .iter()
                .map(|name| format!("repository:{name}:pull"));
            scopes.extend(mounts);
        }
        scopes
    }
}

fn with_password(
    mut realm: Url,
    service: Option<&str>,
    scopes: &[String],
    user: Option<&str>,
) -> Request {
    {
        let mut query = realm.query_pairs_mut();
        let named = [("account", user), ("service", service)];
        query.extend_pairs(
            named
                .into_iter()
                .filter_map(|(name, value)| Some((name, value?))),
        );
        query.extend_pairs(scopes.iter().map(|scope| ("scope", scope)));
    }
    Request::new(Method::GET, realm)
}

/// The token service exchanges an identity token, which a login stored, for one that is valid here.
fn with_identity(realm: Url, service: Option<&str>, scopes: &[String], token: &str) -> Request {
    // The form has the encoding of a query, so a URL does the encoding.
    let mut form = realm.clone();
    form.set_query(None);
    form.query_pairs_mut()
        .append_pair("grant_type", "refresh_token")
        .append_pair("client_id", "vellum")
        .append_pair("service", service.unwrap_or_default())
        .append_pair("scope", &scopes.join(" "))
        .append_pair("refresh_token", token);
    let form = form.query().unwrap_or_default().to_owned();
    Request::new(Method::POST, realm)
        .header(
            CONTENT_TYPE,
            HeaderValue::from_static("application/x-www-form-urlencoded"),
        )
        .body(Body::Bytes(Bytes::from(form)))
}

/// The response of a token service.
#[derive(Default)]
struct Token {
    token: String,
    access_token: String,
    expires_in: i64,
}

fields!(Token {
    "token" => token,
    "access_token" => access_token,
    "expires_in" => expires_in,
});

fn read_token(body: &[u8], asked: Instant) -> Result<Proof, ExchangeError> {
    let odd = || ExchangeError::odd("the token service gave no token");
    // The response may contain a secret all the same.
    let answer: Token = json::first(body).and_then(json::read).map_err(|_| odd())?;
    let token = [answer.token, answer.access_token]
        .into_iter()
        .find(|token| !token.is_empty())
        .ok_or_else(odd)?;
    let mut header = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| odd())?;
    header.set_sensitive(true);
    let life = u64::try_from(answer.expires_in).map_or(USUAL_TOKEN_LIFE, Duration::from_secs);
    let life = life.max(USUAL_TOKEN_LIFE);
    Ok(Proof {
        header,
        until: asked.checked_add(life - TOKEN_MARGIN),
    })
}

fn basic(user: &str, password: &str) -> Result<HeaderValue, ExchangeError> {
    use base64::Engine;

    let encoded = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    let mut header = HeaderValue::try_from(format!("Basic {encoded}"))
        .map_err(|_| ExchangeError::odd("a login that is not valid in a header"))?;
    header.set_sensitive(true);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(body: &str) -> Option<String> {
        let proof = read_token(body.as_bytes(), Instant::now()).ok()?;
        Some(proof.header.to_str().unwrap().to_owned())
    }

    #[test]
    fn a_token_is_taken_from_the_field_that_has_one() {
        for body in [
            r#"{"token":"T"}"#,
            r#"{"access_token":"T"}"#,
            r#"{"token":"","access_token":"T"}"#,
            r#"{"token":null,"access_token":"T","expires_in":null}"#,
            r#"{"token":"T","access_token":"U","expires_in":300,"issued_at":"x","more":{}}"#,
            r#"{"Token":"T","expires_in":9223372036854775807}"#,
            r#"{"token":"U","token":"T"} and more"#,
            r#"{"token":"T","expires_in":-5}"#,
        ] {
            assert_eq!(token(body).as_deref(), Some("Bearer T"), "{body}");
        }
        for body in [
            "",
            "{}",
            "[]",
            r#"{"token":""}"#,
            r#"{"token":null}"#,
            r#"{"token":7}"#,
            "{\"token\":\"a\\nb\"}",
        ] {
            assert_eq!(token(body), None, "{body}");
        }
    }

    #[test]
    fn a_token_covers_the_operation_and_what_the_server_names() {
        let server = Url::parse("https://r.example").unwrap();
        let mut access = Access::new(Login::None, InClear::Nowhere, server, "a/b".into());
        assert_eq!(
            access.scopes(Operation::Pull, None),
            ["repository:a/b:pull"]
        );
        access.mounting_from(vec!["c".into()]);
        assert_eq!(
            access.scopes(
                Operation::Push,
                Some("repository:a/b:pull registry:catalog:*")
            ),
            [
                "repository:a/b:pull,push",
                "registry:catalog:*",
                "repository:c:pull"
            ]
        );
        let realm = Url::parse("https://t.example/token?x=1").unwrap();
        let scopes = access.scopes(Operation::Pull, None);
        let request = with_password(realm, Some("s"), &scopes, Some("me"));
        assert_eq!(
            request.url.as_str(),
            "https://t.example/token?x=1&account=me&service=s&scope=repository%3Aa%2Fb%3Apull"
        );
    }

    #[test]
    fn a_login_goes_over_plain_http_only_where_the_user_allows_it() {
        let login = Login::Password {
            user: "u".into(),
            password: "p".into(),
        };
        let access = |in_clear| {
            let server = Url::parse("https://r.example").unwrap();
            Access::new(login.clone(), in_clear, server, "a".into())
        };
        for (to, nowhere, on_loopback) in [
            ("https://t.example/token", true, true),
            ("http://t.example/token", false, false),
            ("http://127.0.0.1:5000/token", false, true),
            ("http://[::1]:5000/token", false, true),
            ("http://localhost.example/token", false, false),
        ] {
            let to = Url::parse(to).unwrap();
            for (in_clear, may) in [
                (InClear::Nowhere, nowhere),
                (InClear::OnLoopback, on_loopback),
                (InClear::Anywhere, true),
            ] {
                let header = access(in_clear).login_for(&to);
                assert_eq!(header.is_ok_and(|h| h.is_some()), may, "{to} {in_clear:?}");
            }
        }
        let refused =
            access(InClear::OnLoopback).login_for(&Url::parse("http://t.example").unwrap());
        assert!(matches!(refused, Err(ExchangeError::LoginInClear(host)) if host == "t.example"));
    }
}
