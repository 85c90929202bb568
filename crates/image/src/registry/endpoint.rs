//! Which server to ask, how to reach it, and as whom.
//!
//! An endpoint is one server that may have an image: a mirror, or the registry itself. Mirrors are
//! asked first, in their order, for pulls only. A registry on this machine's loopback that is not
//! configured is asked over HTTPS and, if that isn't spoken there, over HTTP, as Docker does; any other
//! registry speaks HTTPS unless configured `insecure`. Certificates are trusted if the system trusts
//! them, or the configured file, or those that Docker and Podman keep in `certs.d/<host:port>/`.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference as Address, RegistryOperation};

use super::runtime::Runtime;
use super::{HostOptions, RegistryError, RegistryOptions, Retry, credentials};
use crate::digest::Digest;
use crate::reference::Reference;

const USER_AGENT: &str = concat!("vellum/", env!("CARGO_PKG_VERSION"));
const CERTIFICATE_DIRECTORIES: [&str; 2] = ["/etc/containers/certs.d", "/etc/docker/certs.d"];

/// One server, logged in to.
#[derive(Clone)]
pub(super) struct Endpoint {
    pub(super) client: Client,
    /// For the one request that `oci-client` can't make within bounds.
    pub(super) http: reqwest::Client,
    pub(super) scheme: &'static str,
    /// The image's address at this server.
    pub(super) address: Address,
    pub(super) auth: RegistryAuth,
    pub(super) retry: Retry,
}

/// Where an endpoint is, before anyone has talked to it.
struct Place {
    host: String,
    prefix: String,
    scheme: Scheme,
    ca_file: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Scheme {
    Http,
    Https,
    /// HTTPS, or HTTP if nobody speaks HTTPS there.
    Either,
}

/// Returns the endpoints to pull `reference` from, mirrors first. Talks to nobody but a loopback registry.
pub(super) fn for_pull(
    reference: &Reference,
    options: &RegistryOptions,
    runtime: &Runtime,
) -> Result<Vec<Endpoint>, RegistryError> {
    let host = options.hosts.get(reference.registry());
    let mut places = Vec::new();
    for url in host.map(|h| h.mirrors.as_slice()).unwrap_or_default() {
        places.push(mirror(url, options)?);
    }
    places.push(registry(reference.registry(), host));
    places
        .into_iter()
        .map(|place| open(place, reference, options, runtime))
        .collect()
}

/// Returns the endpoint to push `reference` to.
pub(super) fn for_push(
    reference: &Reference,
    options: &RegistryOptions,
    runtime: &Runtime,
) -> Result<Endpoint, RegistryError> {
    let place = registry(
        reference.registry(),
        options.hosts.get(reference.registry()),
    );
    open(place, reference, options, runtime)
}

fn registry(name: &str, options: Option<&HostOptions>) -> Place {
    let scheme = match options {
        Some(options) if options.insecure => Scheme::Http,
        Some(HostOptions {
            ca_file: Some(_), ..
        }) => Scheme::Https,
        _ if is_loopback(name) => Scheme::Either,
        _ => Scheme::Https,
    };
    Place {
        host: name.to_owned(),
        prefix: String::new(),
        scheme,
        ca_file: options.and_then(|o| o.ca_file.clone()),
    }
}

fn mirror(url: &str, options: &RegistryOptions) -> Result<Place, RegistryError> {
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
    Ok(Place {
        host: host.to_owned(),
        prefix,
        scheme,
        ca_file: options.hosts.get(host).and_then(|o| o.ca_file.clone()),
    })
}

fn is_loopback(registry: &str) -> bool {
    let host = match registry
        .strip_prefix('[')
        .and_then(|rest| rest.split_once(']'))
    {
        Some((v6, _)) => v6,
        None => registry.split_once(':').map_or(registry, |(host, _)| host),
    };
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn open(
    place: Place,
    reference: &Reference,
    options: &RegistryOptions,
    runtime: &Runtime,
) -> Result<Endpoint, RegistryError> {
    let certificates = certificates(&place)?;
    let http = http_client(&place.host, &certificates, options.retry)?;
    let scheme = match place.scheme {
        Scheme::Http => "http",
        Scheme::Https => "https",
        Scheme::Either => runtime.run(probe(http.clone(), place.host.clone()))?,
    };
    let config = ClientConfig {
        protocol: if scheme == "http" {
            ClientProtocol::Http
        } else {
            ClientProtocol::Https
        },
        extra_root_certificates: certificates
            .into_iter()
            .map(|data| Certificate {
                encoding: CertificateEncoding::Pem,
                data,
            })
            .collect(),
        use_monolithic_push: true,
        platform_resolver: None,
        read_timeout: Some(options.retry.silence),
        connect_timeout: Some(options.retry.silence),
        user_agent: USER_AGENT,
        ..ClientConfig::default()
    };
    let client = Client::try_from(config).map_err(|e| {
        RegistryError::from_client(
            &place.host,
            reference.repository(),
            "set up TLS".to_owned(),
            e,
        )
    })?;
    let repository = if place.prefix.is_empty() {
        reference.repository().to_owned()
    } else {
        format!("{}/{}", place.prefix, reference.repository())
    };
    let auth = credentials::find(options.auth_file.as_deref(), &place.host, &repository)?;
    let address = match (reference.digest(), reference.tag()) {
        (Some(digest), _) => Address::with_digest(place.host, repository, digest.to_string()),
        (None, Some(tag)) => Address::with_tag(place.host, repository, tag.to_owned()),
        (None, None) => return Err(RegistryError::NoTag(reference.to_string())),
    };
    Ok(Endpoint {
        client,
        http,
        scheme,
        address,
        auth,
        retry: options.retry,
    })
}

impl Endpoint {
    /// What errors call this server.
    pub(super) fn name(&self) -> &str {
        self.address.registry()
    }

    /// Logs in for `operation`. Needed once before anything else; tokens are renewed by the client.
    pub(super) async fn log_in(
        &self,
        operation: RegistryOperation,
    ) -> Result<Option<String>, RegistryError> {
        self.client
            .auth(&self.address, &self.auth, operation)
            .await
            .map_err(|e| self.failed("log in", e))
    }

    /// The same repository, but the manifest or index of this digest.
    pub(super) fn at_digest(&self, digest: &Digest) -> Self {
        Self {
            address: self.address.clone_with_digest(digest.to_string()),
            ..self.clone()
        }
    }

    pub(super) fn failed(
        &self,
        action: impl Into<String>,
        source: oci_client::errors::OciDistributionError,
    ) -> RegistryError {
        RegistryError::from_client(
            self.name(),
            self.address.repository(),
            action.into(),
            source,
        )
    }
}

/// Finds out whether a loopback registry speaks HTTPS.
async fn probe(http: reqwest::Client, host: String) -> Result<&'static str, RegistryError> {
    match http.get(format!("https://{host}/v2/")).send().await {
        Ok(_) => Ok("https"),
        Err(secure) => match http.get(format!("http://{host}/v2/")).send().await {
            // What the server says when TLS was expected must not pass for an answer.
            Ok(answer) if answer.status() != reqwest::StatusCode::BAD_REQUEST => Ok("http"),
            _ => Err(RegistryError::Unreachable {
                registry: host,
                source: Box::new(secure),
            }),
        },
    }
}

fn certificates(place: &Place) -> Result<Vec<Vec<u8>>, RegistryError> {
    let read = |path: &Path| {
        std::fs::read(path).map_err(|source| RegistryError::Certificate {
            path: path.display().to_string(),
            source,
        })
    };
    let mut found = Vec::new();
    if let Some(path) = &place.ca_file {
        found.push(read(path)?);
    }
    for directory in CERTIFICATE_DIRECTORIES {
        // No such directory is the usual case.
        let Ok(entries) = std::fs::read_dir(Path::new(directory).join(&place.host)) else {
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

fn http_client(
    host: &str,
    certificates: &[Vec<u8>],
    retry: Retry,
) -> Result<reqwest::Client, RegistryError> {
    let failed = |e: reqwest::Error| RegistryError::Failed {
        registry: host.to_owned(),
        action: "set up TLS".to_owned(),
        source: Box::new(e),
    };
    let roots = certificates
        .iter()
        .map(|pem| reqwest::Certificate::from_pem(pem))
        .collect::<Result<Vec<_>, _>>()
        .map_err(failed)?;
    reqwest::Client::builder()
        .user_agent(USER_AGENT)
        .read_timeout(retry.silence)
        .connect_timeout(retry.silence)
        .tls_certs_merge(roots)
        .build()
        .map_err(failed)
}

/// Returns whether two references are in the same registry.
pub(super) fn same_registry(a: &Reference, b: &Reference) -> bool {
    a.registry() == b.registry()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_recognised_in_every_spelling() {
        for yes in [
            "localhost",
            "localhost:5000",
            "127.0.0.1",
            "127.9.9.9:5000",
            "[::1]:5000",
        ] {
            assert!(is_loopback(yes), "{yes}");
        }
        for no in [
            "localhost.example:5000",
            "10.0.0.1:5000",
            "[2001:db8::1]:5000",
            "ghcr.io",
        ] {
            assert!(!is_loopback(no), "{no}");
        }
    }

    #[test]
    fn mirrors_are_urls_without_secrets() {
        let place = |url: &str| mirror(url, &RegistryOptions::default());
        let found = place("https://mirror.example:8443/hub/").unwrap();
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
            assert!(place(bad).is_err(), "{bad}");
        }
    }
}
