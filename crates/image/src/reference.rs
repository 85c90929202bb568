//! The names of images: `debian`, `ghcr.io/a/b:1.2`, `localhost:5000/x@sha256:…`.
//!
//! A name typed by a person is short; the name a store or a registry knows is long. A [`Reference`]
//! is always the long one: it has a registry (`docker.io` if none was given), Docker Hub's one-word
//! repositories have their `library/`, and there is a tag or a digest. Nothing else in Vellum
//! parses image names. The grammar is that of the distribution project (`reference/reference.go`),
//! so that every other tool accepts a name accepted here.
//!
//! This module must not know where images are kept or how they are fetched.

use std::fmt;
use std::str::FromStr;

use vellum_format::Digest;

/// The registry of a name without one.
pub const DEFAULT_REGISTRY: &str = "docker.io";
/// The tag of a name without tag and digest.
pub const DEFAULT_TAG: &str = "latest";

const MAX_NAME_BYTES: usize = 255;
const MAX_TAG_BYTES: usize = 128;

/// The full name of an image: registry, repository, and a tag or a digest or both.
///
/// Ordered by its text. [`fmt::Display`] gives the long form (`docker.io/library/debian:latest`),
/// which parses back to the same value; [`Reference::familiar`] gives the short one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is not the name of an image.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{text:?} is not an image name: {reason}")]
pub struct ReferenceError {
    /// What was given.
    pub text: String,
    /// Which rule it breaks.
    pub reason: &'static str,
}

impl Reference {
    /// Returns the reference for `text` as a person writes it.
    ///
    /// Neither tag nor digest means the tag `latest`; no registry means Docker Hub.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        parse(text).map_err(|reason| ReferenceError {
            text: text.to_owned(),
            reason,
        })
    }

    /// Returns the reference for `tag` in the repository `name`.
    ///
    /// `name` is a name without tag (`debian`, `ghcr.io/a/b`), as some archives keep them apart.
    pub fn with_parts(name: &str, tag: &str) -> Result<Self, ReferenceError> {
        Self::parse(&format!("{name}:{tag}"))
    }

    /// Returns the host (and port) that has the image, `docker.io` for Docker Hub.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Returns the repository inside the registry, such as `library/debian`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Returns the tag, if the reference has one.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Returns the digest of the manifest or index, if the reference pins one.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Returns the name as people write it: without `docker.io/` and `library/`.
    pub fn familiar(&self) -> String {
        let mut text = self.familiar_name();
        self.push_suffix(&mut text);
        text
    }

    /// Returns registry and repository as people write them, without tag and digest.
    pub fn familiar_name(&self) -> String {
        let repository = self.repository.as_str();
        if self.registry != DEFAULT_REGISTRY {
            return format!("{}/{repository}", self.registry);
        }
        match repository.strip_prefix("library/") {
            Some(word) if !word.contains('/') => word.to_owned(),
            // `localhost/x` and `a.b/x` on Docker Hub would be read as names in other registries.
            _ if !split_registry(repository).0.is_empty() => {
                format!("{DEFAULT_REGISTRY}/{repository}")
            }
            _ => repository.to_owned(),
        }
    }

    fn push_suffix(&self, text: &mut String) {
        if let Some(tag) = &self.tag {
            text.push(':');
            text.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            text.push('@');
            text.push_str(&digest.to_string());
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = format!("{}/{}", self.registry, self.repository);
        self.push_suffix(&mut text);
        f.write_str(&text)
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

fn parse(text: &str) -> Result<Reference, &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => {
            let digest = digest
                .parse::<Digest>()
                .map_err(|_| "its digest is malformed")?;
            (rest, Some(digest))
        }
        None => (text, None),
    };
    // A colon after the last slash starts the tag; one before it belongs to a port.
    let name_end = rest.rfind('/').map_or(0, |slash| slash + 1);
    let (name, tag) = match rest[name_end..].split_once(':') {
        Some((last, tag)) => (&rest[..name_end + last.len()], Some(tag)),
        None => (rest, None),
    };
    if let Some(tag) = tag
        && !is_tag(tag)
    {
        return Err(
            "a tag is up to 128 letters, digits, '_', '.' and '-', not starting with '.' or '-'",
        );
    }
    let (registry, repository) = split_registry(name);
    let registry = match registry {
        "" | "index.docker.io" | "registry-1.docker.io" => DEFAULT_REGISTRY,
        other => other,
    };
    if !is_registry(registry) {
        return Err("its registry is not a host name");
    }
    if !repository.split('/').all(is_path_component) {
        return Err(
            "a repository is lower-case letters and digits, joined by '.', '_', '-' and '/'",
        );
    }
    let repository = if registry == DEFAULT_REGISTRY && !repository.contains('/') {
        format!("library/{repository}")
    } else {
        repository.to_owned()
    };
    if registry.len() + 1 + repository.len() > MAX_NAME_BYTES {
        return Err("it is longer than 255 bytes");
    }
    let tag = match (tag, &digest) {
        (Some(tag), _) => Some(tag.to_owned()),
        (None, Some(_)) => None,
        (None, None) => Some(DEFAULT_TAG.to_owned()),
    };
    Ok(Reference {
        registry: registry.to_owned(),
        repository,
        tag,
        digest,
    })
}

/// The first component is a registry if it can't be part of a Docker Hub name.
fn split_registry(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => ("", name),
    }
}

fn is_registry(text: &str) -> bool {
    let (host, port) = if text.starts_with('[') {
        match text.find(']') {
            Some(end) => (&text[..=end], &text[end + 1..]),
            None => return false,
        }
    } else {
        match text.find(':') {
            Some(colon) => (&text[..colon], &text[colon..]),
            None => (text, ""),
        }
    };
    let host_ok = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-')
        }),
    };
    let port_ok = port.is_empty()
        || port.strip_prefix(':').is_some_and(|p| {
            !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()) && p.parse::<u16>().is_ok()
        });
    host_ok && port_ok
}

/// `[a-z0-9]+` runs joined by one of `.`, `_`, `__`, or any number of `-`.
fn is_path_component(text: &str) -> bool {
    let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    if !alphanumeric(first) || !alphanumeric(last) {
        return false;
    }
    bytes.split(alphanumeric).all(|separator| {
        matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-')
    })
}

fn is_tag(text: &str) -> bool {
    let bytes = text.as_bytes();
    !bytes.is_empty()
        && bytes.len() <= MAX_TAG_BYTES
        && !matches!(bytes[0], b'.' | b'-')
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[track_caller]
    fn check(text: &str, full: &str, familiar: &str) {
        let reference = Reference::parse(text).unwrap();
        assert_eq!(reference.to_string(), full, "long form of {text}");
        assert_eq!(reference.familiar(), familiar, "short form of {text}");
        assert_eq!(
            Reference::parse(full).unwrap(),
            reference,
            "the long form names the same"
        );
        assert_eq!(
            Reference::parse(familiar).unwrap(),
            reference,
            "the short form too"
        );
    }

    #[test]
    fn short_names_mean_docker_hub() {
        check("debian", "docker.io/library/debian:latest", "debian:latest");
        check("a/b:1", "docker.io/a/b:1", "a/b:1");
        check(
            "index.docker.io/debian",
            "docker.io/library/debian:latest",
            "debian:latest",
        );
        check("docker.io/library/x:y", "docker.io/library/x:y", "x:y");
    }

    #[test]
    fn the_short_form_never_names_another_image() {
        check(
            "docker.io/localhost/x",
            "docker.io/localhost/x:latest",
            "docker.io/localhost/x:latest",
        );
        check(
            "docker.io/a.b/x",
            "docker.io/a.b/x:latest",
            "docker.io/a.b/x:latest",
        );
        check(
            "docker.io/library/a/b",
            "docker.io/library/a/b:latest",
            "library/a/b:latest",
        );
    }

    #[test]
    fn registries_have_a_dot_a_port_or_are_localhost() {
        check("localhost/x", "localhost/x:latest", "localhost/x:latest");
        check(
            "localhost:5000/x",
            "localhost:5000/x:latest",
            "localhost:5000/x:latest",
        );
        check(
            "127.0.0.1:5000/a/b/c:T",
            "127.0.0.1:5000/a/b/c:T",
            "127.0.0.1:5000/a/b/c:T",
        );
        check("[::1]:5000/a", "[::1]:5000/a:latest", "[::1]:5000/a:latest");
        check("UPPER/x", "UPPER/x:latest", "UPPER/x:latest");
    }

    #[test]
    fn a_digest_makes_the_tag_optional() {
        let by_digest = format!("debian@sha256:{HEX}");
        check(
            &by_digest,
            &format!("docker.io/library/{by_digest}"),
            &by_digest,
        );
        let both = format!("debian:12@sha256:{HEX}");
        check(&both, &format!("docker.io/library/{both}"), &both);
    }

    #[test]
    fn separators_follow_the_grammar() {
        for good in ["a.b", "a_b", "a__b", "a-b", "a---b", "a/b-c/d.e"] {
            assert!(Reference::parse(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "a..b",
            "a___b",
            "-a",
            "a-",
            "a//b",
            "/a",
            "a/",
            "a._b",
            "Debian",
            "a b",
            "a:",
            "a:-x",
            "a:.x",
            "a:b:c",
            "ä",
            "a@sha256:12",
            "a@b",
            "host:port/x",
            "h.x:99999/y",
            "-h.x/y",
            "../x",
            "a:b/../c",
            "[::1/x",
        ] {
            assert!(
                Reference::parse(bad).is_err(),
                "{bad:?} was accepted as a name"
            );
        }
        assert!(Reference::parse(&format!("a:{}", "t".repeat(128))).is_ok());
        assert!(Reference::parse(&format!("a:{}", "t".repeat(129))).is_err());
        assert!(Reference::parse(&"a".repeat(300)).is_err());
    }
}
