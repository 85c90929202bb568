//! Which server to ask, how to reach it, and with which login.
//!
//! An endpoint is one server that may have an image: a mirror, or the registry itself. Mirrors are
//! asked first, in their order, for pulls only. A registry on this machine's loopback interface
//! that is not configured is asked over HTTPS and, if it doesn't speak that, over HTTP, as Docker
//! does; any other registry uses HTTPS unless configured `insecure`. Certificates are trusted if
//! the system trusts them, or the configured file, or those that Docker and Podman keep in
//! `certs.d/<host:port>/`.
//!
//! A foreign layer may be available at URLs that the manifest names. Such an endpoint is one
//! untrusted file: it is asked last, and gets nothing of ours, neither a login (CVE-2020-15157) nor
//! what is trusted or configured for the registry.

use std::path::{Path, PathBuf};

use reqwest::{Method, StatusCode, Url};
use vellum_format::Digest;

use super::credentials::Login;
use super::exchange::{Answer, ExchangeError, Http, Request};
use super::host::is_loopback;
use super::login::{Access, InClear, Operation};
use super::runtime::Runtime;
use super::{HostOptions, RegistryError, RegistryOptions, Retry, credentials};
use crate::reference::{DEFAULT_REGISTRY, Reference};

/// The server for the name `docker.io`.
const DOCKER_HUB_SERVER: &str = "registry-1.docker.io";
const CERTIFICATE_DIRECTORIES: [&str; 2] = ["/etc/containers/certs.d", "/etc/docker/certs.d"];

/// One server that may have an image, or accept one.
#[derive(Clone)]
pub(super) struct Endpoint {
    http: Http,
    access: Access,
    /// What errors call this server.
    name: String,
    /// Where its repository is: the URL ends in `/`, and names are appended to it.
    base: Url,
    repository: String,
    /// The tag or digest of the image there.
    what: String,
    /// The one file that is there, if this is not a registry.
    file: Option<Url>,
    pub(super) retry: Retry,
}

/// Where an endpoint is, before any request to it.
struct Address {
    host: String,
    prefix: String,
    scheme: Scheme,
    login_in_clear: InClear,
    ca_file: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Scheme {
    Http,
    Https,
    /// HTTPS, or HTTP if the server doesn't speak HTTPS.
    Either,
}

/// Returns the endpoints to pull `reference` from, mirrors first. Makes no requests, except to a
/// loopback registry.
pub(super) fn for_pull(
    reference: &Reference,
    options: &RegistryOptions,
    runtime: &Runtime,
) -> Result<Vec<Endpoint>, RegistryError> {
    let host = options.hosts.get(reference.registry());
    let mut addresses = Vec::new();
    for url in host.map(|h| h.mirrors.as_slice()).unwrap_or_default() {
        addresses.push(mirror(url, options)?);
    }
    addresses.push(registry(reference.registry(), host));
    addresses
        .into_iter()
        .map(|address| open(address, reference, options, runtime))
        .collect()
}

/// Returns the endpoint to push `reference` to.
pub(super) fn for_push(
    reference: &Reference,
    options: &RegistryOptions,
    runtime: &Runtime,
) -> Result<Endpoint, RegistryError> {
    let address = registry(
        reference.registry(),
        options.hosts.get(reference.registry()),
    );
    open(address, reference, options, runtime)
}

fn registry(name: &str, options: Option<&HostOptions>) -> Address {
    let scheme = match options {
        Some(options) if options.insecure => Scheme::Http,
        Some(HostOptions {
            ca_file: Some(_), ..
        }) => Scheme::Https,
        _ if is_loopback(name) => Scheme::Either,
        _ => Scheme::Https,
    };
    Address {
        host: name.to_owned(),
        prefix: String::new(),
        scheme,
        login_in_clear: match scheme {
            Scheme::Http => InClear::Anywhere,
            Scheme::Either => InClear::OnLoopback,
            Scheme::Https => InClear::Nowhere,
        },
        ca_file: options.and_then(|o| o.ca_file.clone()),
    }
}

fn mirror(url: &str, options: &RegistryOptions) -> Result<Address, RegistryError> {
    let bad = || RegistryError::BadMirror {
        url: url.to_owned(),
    };
    let (scheme, rest) = match url.split_once("://") {
        Some(("http", rest)) => (Scheme::Http, rest),
        Some(("https", rest)) => (Scheme::Https, rest),
        _ => return Err(bad()),
    };
    let (host, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if host.is_empty() || host.contains(['@', '?', '#', ' ']) {
        return Err(bad());
    }
    let prefix = prefix.trim_matches('/').to_owned();
    if prefix.contains(['?', '#', ' ', '@']) {
        return Err(bad());
    }
    let said = options.hosts.get(host);
    Ok(Address {
        host: host.to_owned(),
        prefix,
        scheme,
        login_in_clear: match said.is_some_and(|o| o.insecure) {
            true => InClear::Anywhere,
            false if is_loopback(host) => InClear::OnLoopback,
            false => InClear::Nowhere,
        },
        ca_file: said.and_then(|o| o.ca_file.clone()),
    })
}

fn open(
    address: Address,
    reference: &Reference,
    options: &RegistryOptions,
    runtime: &Runtime,
) -> Result<Endpoint, RegistryError> {
    let failed = |action: &str, source: ExchangeError| {
        RegistryError::from_exchange(
            &address.host,
            reference.repository(),
            action.to_owned(),
            source,
        )
    };
    let http = certificates(&address).and_then(|roots| {
        Http::new(roots, options.retry.silence).map_err(|e| failed("set up TLS", e.into()))
    })?;
    let scheme = match address.scheme {
        Scheme::Http => "http",
        Scheme::Https => "https",
        Scheme::Either => runtime.run(probe(http.clone(), address.host.clone()))?,
    };
    let repository = if address.prefix.is_empty() {
        reference.repository().to_owned()
    } else {
        format!("{}/{}", address.prefix, reference.repository())
    };
    let login = credentials::find(options.auth_file.as_deref(), &address.host, &repository)?;
    let server = if address.host == DEFAULT_REGISTRY {
        DOCKER_HUB_SERVER
    } else {
        &address.host
    };
    let base = Url::parse(&format!("{scheme}://{server}/v2/{repository}/"))
        .map_err(|e| failed("be reached", ExchangeError::odd(e.to_string())))?;
    let what = match (reference.digest(), reference.tag()) {
        (Some(digest), _) => digest.to_string(),
        (None, Some(tag)) => tag.to_owned(),
        (None, None) => return Err(RegistryError::NoTag(reference.to_string())),
    };
    Ok(Endpoint {
        access: Access::new(
            login,
            address.login_in_clear,
            base.clone(),
            repository.clone(),
        ),
        http,
        name: address.host,
        base,
        repository,
        what,
        file: None,
        retry: options.retry,
    })
}

/// No more than this many of a layer's URLs are asked: a manifest has room for thousands.
const MAX_URLS: usize = 5;

/// Returns endpoints for the URLs of a foreign layer, from its manifest's `urls`: only HTTP and
/// HTTPS, and none with secrets in it.
pub(super) fn elsewhere(urls: &[String], retry: Retry) -> Result<Vec<Endpoint>, RegistryError> {
    let urls = urls.iter().filter_map(|url| Url::parse(url).ok());
    let usable = urls.filter(|url| {
        let plain = url.username().is_empty() && url.password().is_none();
        matches!(url.scheme(), "http" | "https") && plain
    });
    let open = |url: Url| {
        let name = url.authority().to_owned();
        let http = Http::new(Vec::new(), retry.silence).map_err(|e| {
            RegistryError::from_exchange(&name, "", "set up TLS".to_owned(), e.into())
        })?;
        Ok(Endpoint {
            access: Access::new(Login::None, InClear::Nowhere, url.clone(), String::new()),
            http,
            name,
            base: url.clone(),
            repository: "a layer".to_owned(),
            what: String::new(),
            file: Some(url),
            retry,
        })
    };
    usable.take(MAX_URLS).map(open).collect()
}

impl Endpoint {
    /// What errors call this server.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The name of the repository at this server.
    pub(super) fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag or digest of the image.
    pub(super) fn what(&self) -> &str {
        &self.what
    }

    /// The rules under which requests are made.
    pub(super) fn http(&self) -> &Http {
        &self.http
    }

    /// What we send the server to authenticate.
    pub(super) fn access(&self) -> &Access {
        &self.access
    }

    /// The URL of `path` in the repository.
    pub(super) fn url(&self, path: &str) -> Result<Url, ExchangeError> {
        self.base
            .join(path)
            .map_err(|e| ExchangeError::odd(e.to_string()))
    }

    /// Asks for `path` in the repository, or for the one file that is there, and returns any
    /// response.
    pub(super) async fn ask(
        &self,
        operation: Operation,
        method: Method,
        path: &str,
        dress: impl Fn(Request) -> Request,
    ) -> Result<Answer, ExchangeError> {
        if let Some(file) = &self.file {
            return self
                .http
                .send(dress(Request::new(method, file.clone())), None)
                .await;
        }
        let url = self.url(path)?;
        let request = || dress(Request::new(method.clone(), url.clone()));
        self.access.send(&self.http, operation, request).await
    }

    /// Lets a push mount blobs from other repositories of this server.
    pub(super) fn mounting_from(&mut self, repositories: Vec<String>) {
        self.access.mounting_from(repositories);
    }

    /// The same repository, but the manifest or index of this digest.
    pub(super) fn at_digest(&self, digest: &Digest) -> Self {
        Self {
            what: digest.to_string(),
            ..self.clone()
        }
    }

    pub(super) fn failed(&self, action: impl Into<String>, source: ExchangeError) -> RegistryError {
        RegistryError::from_exchange(&self.name, &self.repository, action.into(), source)
    }
}

/// Finds out whether a loopback registry speaks HTTPS.
async fn probe(http: Http, host: String) -> Result<&'static str, RegistryError> {
    let unreachable = |source: ExchangeError| {
        RegistryError::from_exchange(&host, "", "be reached".to_owned(), source)
    };
    let root = |scheme: &str| {
        Url::parse(&format!("{scheme}://{host}/v2/"))
            .map(|url| Request::new(Method::GET, url))
            .map_err(|e| unreachable(ExchangeError::odd(e.to_string())))
    };
    let secure = match http.send(root("https")?, None).await {
        Ok(_) => return Ok("https"),
        Err(e) => e,
    };
    match http.send(root("http")?, None).await {
        // What the server says when TLS was expected must not be taken for a response.
        Ok(answer) if answer.status() != StatusCode::BAD_REQUEST => Ok("http"),
        _ => Err(unreachable(secure)),
    }
}

fn certificates(address: &Address) -> Result<Vec<reqwest::Certificate>, RegistryError> {
    let read = |path: &Path| {
        let unusable = |source| RegistryError::Certificate {
            path: path.display().to_string(),
            source,
        };
        let pem = std::fs::read(path).map_err(unusable)?;
        reqwest::Certificate::from_pem(&pem).map_err(|e| unusable(std::io::Error::other(e)))
    };
    let mut found = Vec::new();
    if let Some(path) = &address.ca_file {
        found.push(read(path)?);
    }
    for directory in CERTIFICATE_DIRECTORIES {
        // Usually there is no such directory.
        let Ok(entries) = std::fs::read_dir(Path::new(directory).join(&address.host)) else {
            continue;
        };
        for entry in entries.flatten() {
            if entry.path().extension().is_some_and(|e| e == "crt") {
                found.push(read(&entry.path())?);
            }
        }
    }
    Ok(found)
}

/// Returns whether two references are in the same registry.
pub(super) fn same_registry(a: &Reference, b: &Reference) -> bool {
    a.registry() == b.registry()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_are_urls_without_secrets() {
        let parse = |url: &str| mirror(url, &RegistryOptions::default());
        let found = parse("https://mirror.example:8443/hub/").unwrap();
        assert_eq!(
            (found.host.as_str(), found.prefix.as_str()),
            ("mirror.example:8443", "hub")
        );
        assert_eq!(found.scheme, Scheme::Https);
        for bad in [
            "mirror.example",
            "ftp://x",
            "http://",
            "http://user:secret@host",
            "http://host?x",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
