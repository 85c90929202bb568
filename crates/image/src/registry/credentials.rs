//! Logins, from the files that Docker and Podman write.
//!
//! They are looked for in this order, and the first file that has the registry is used: the
//! configured file, `$REGISTRY_AUTH_FILE`, `$XDG_RUNTIME_DIR/containers/auth.json`,
//! `~/.config/containers/auth.json`, `$DOCKER_CONFIG/config.json` (else `~/.docker/config.json`).
//! The files may name credential helpers; the crate `docker_credential` runs them. A configured
//! file that can't be read is an error, and so is a helper that fails: continuing silently without
//! a login would end in a misleading refusal.
//!
//! An empty field means the same as an absent one. Secrets stay inside [`Login`], whose `Debug`
//! hides them.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use docker_credential::{CredentialRetrievalError, DockerCredential};
use serde_json::Value;

use crate::json;

/// The key that `docker login` without an argument writes.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// More than anyone's logins take; a longer file is truncated, and then invalid.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// Why logins can't be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The file can't be opened.
    #[error("login file {path}")]
    Open {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file, or the helper it names, returns no login.
    #[error("login file {path} has no usable login for {registry}")]
    Unusable {
        /// The file.
        path: String,
        /// The registry.
        registry: String,
        /// Why.
        #[source]
        source: CredentialRetrievalError,
    },
}

/// The identity that a registry sees.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Login {
    /// Anonymous.
    None,
    /// A name and a password, or an access token instead of it.
    Password {
        /// The user name.
        user: String,
        /// Their secret.
        password: String,
    },
    /// What a login stored instead of a password; a token service exchanges it for a token.
    IdentityToken(String),
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Password { .. } => "Password(hidden)",
            Self::IdentityToken(_) => "IdentityToken(hidden)",
        })
    }
}

/// Returns the login for `repository` at `registry`, anonymous if no file has one.
pub(super) fn find(
    configured: Option<&Path>,
    registry: &str,
    repository: &str,
) -> Result<Login, CredentialError> {
    let explicit = configured
        .map(Path::to_owned)
        .or_else(|| path_from("REGISTRY_AUTH_FILE"));
    if let Some(path) = explicit {
        return Ok(read(&path, true, registry, repository)?.unwrap_or(Login::None));
    }
    for path in usual_places() {
        if let Some(auth) = read(&path, false, registry, repository)? {
            return Ok(auth);
        }
    }
    Ok(Login::None)
}

fn path_from(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable)
        .filter(|v| !v.is_empty())
        .map(PathBuf::from)
}

fn usual_places() -> Vec<PathBuf> {
    let home = path_from("HOME");
    let runtime = path_from("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json"));
    let config = path_from("XDG_CONFIG_HOME").or_else(|| Some(home.as_ref()?.join(".config")));
    let docker = path_from("DOCKER_CONFIG").or_else(|| Some(home.as_ref()?.join(".docker")));
    [
        runtime,
        config.map(|dir| dir.join("containers/auth.json")),
        docker.map(|dir| dir.join("config.json")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Returns the login that the file has for the registry, `None` if it has none.
fn read(
    path: &Path,
    must_exist: bool,
    registry: &str,
    repository: &str,
) -> Result<Option<Login>, CredentialError> {
    let shown = || path.display().to_string();
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e)
            if !must_exist
                && matches!(
                    e.kind(),
                    std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied
                ) =>
        {
            return Ok(None);
        }
        Err(source) => {
            return Err(CredentialError::Open {
                path: shown(),
                source,
            });
        }
    };
    let unusable = |source| CredentialError::Unusable {
        path: shown(),
        registry: registry.to_owned(),
        source,
    };
    let mut text = Vec::new();
    file.take(MAX_FILE_BYTES)
        .read_to_end(&mut text)
        .map_err(|source| CredentialError::Open {
            path: shown(),
            source,
        })?;
    let said = usual(&text)
        .and_then(|said| serde_json::to_vec(&said).ok())
        .ok_or_else(|| unusable(CredentialRetrievalError::ConfigReadError))?;
    for key in keys(registry, repository) {
        match docker_credential::get_credential_from_reader(said.as_slice(), &key) {
            Ok(DockerCredential::UsernamePassword(user, password)) => {
                return Ok(Some(Login::Password { user, password }));
            }
            Ok(DockerCredential::IdentityToken(token)) => {
                return Ok(Some(Login::IdentityToken(token)));
            }
            Err(CredentialRetrievalError::NoCredentialConfigured) => {}
            // The helper runs and has no login for this registry: that is not a failure.
            Err(CredentialRetrievalError::HelperFailure { stdout, .. })
                if stdout.contains("credentials not found") => {}
            Err(source) => return Err(unusable(source)),
        }
    }
    Ok(None)
}

/// The document as the crate that searches it needs it: field names in their usual spelling,
/// nothing empty. `None` if it isn't a document.
fn usual(text: &[u8]) -> Option<Value> {
    let mut said: Value = json::first(text).and_then(json::read).ok()?;
    let fields = said.as_object_mut()?;
    json::usual_names(fields, &["auths", "credsStore", "credHelpers"]);
    if let Some(Value::Object(auths)) = fields.get_mut("auths") {
        for login in auths.values_mut().filter_map(Value::as_object_mut) {
            json::usual_names(login, &["auth", "username", "password", "identitytoken"]);
        }
    }
    Some(without_empty(said))
}

/// The document without empty values: strings, nulls, and whatever contains nothing else.
///
/// If `auth` has a login, a name and a password next to it are ignored.
fn without_empty(value: Value) -> Value {
    let Value::Object(fields) = value else {
        return value;
    };
    let has_auth = fields
        .get("auth")
        .and_then(Value::as_str)
        .is_some_and(|auth| !auth.is_empty());
    let kept = fields
        .into_iter()
        .filter(|(name, _)| !(has_auth && matches!(name.as_str(), "username" | "password")))
        .map(|(name, value)| (name, without_empty(value)))
        .filter(|(_, value)| match value {
            Value::Null => false,
            Value::String(text) => !text.is_empty(),
            Value::Object(fields) => !fields.is_empty(),
            _ => true,
        });
    Value::Object(kept.collect())
}

/// The keys under which a login may be stored, the most specific first.
///
/// Podman allows logins for a part of a registry (`quay.io/someone`).
fn keys(registry: &str, repository: &str) -> Vec<String> {
    let mut keys = Vec::new();
    let mut scope = format!("{registry}/{repository}");
    loop {
        keys.push(scope.clone());
        match scope.rfind('/') {
            Some(slash) => scope.truncate(slash),
            None => break,
        }
    }
    if registry == crate::reference::DEFAULT_REGISTRY {
        keys.push(DOCKER_HUB_KEY.to_owned());
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic(user: &str, password: &str) -> Login {
        Login::Password {
            user: user.to_owned(),
            password: password.to_owned(),
        }
    }

    #[track_caller]
    fn check(json: &str, registry: &str, repository: &str, expect: Option<Login>) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("auth.json");
        std::fs::write(&path, json).unwrap();
        assert_eq!(read(&path, true, registry, repository).unwrap(), expect);
    }

    #[test]
    fn logins_are_found_by_registry_or_by_a_part_of_it() {
        // "u:p", "v:q" in base64.
        let json = r#"{"auths":{"localhost:5000":{"auth":"dTpw"},"quay.io/me":{"auth":"djpx"},
            "https://index.docker.io/v1/":{"auth":"dTpw"}}}"#;
        check(json, "localhost:5000", "a/b", Some(basic("u", "p")));
        check(json, "quay.io", "me/x", Some(basic("v", "q")));
        check(json, "quay.io", "you/x", None);
        check(json, "docker.io", "library/debian", Some(basic("u", "p")));
    }

    #[test]
    fn a_broken_login_file_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("auth.json");
        assert!(matches!(
            read(&path, true, "x", "y"),
            Err(CredentialError::Open { .. })
        ));
        assert_eq!(read(&path, false, "x", "y").unwrap(), None);
        std::fs::write(&path, "{").unwrap();
        assert!(matches!(
            read(&path, false, "x", "y"),
            Err(CredentialError::Unusable { .. })
        ));
    }

    #[test]
    fn an_empty_field_of_a_login_file_counts_as_absent() {
        for json in [
            r#"{"auths":{"r":{"auth":"dTpw"}},"credsStore":""}"#,
            r#"{"auths":{"r":{"auth":"dTpw"}},"credsStore":null,"credHelpers":{"r":""}}"#,
            r#"{"auths":{"r":{"auth":"dTpw","identitytoken":"","username":"","password":null}}}"#,
            r#"{"auths":{"r":{"auth":"dTpw","username":"someone","password":"else"}}}"#,
            r#"{"auths":{"r":{"auth":"","username":"u","password":"p"}}}"#,
            r#"{"Auths":{"r":{"Auth":"dTpw"}},"CREDSSTORE":""} trailing"#,
        ] {
            check(json, "r", "a", Some(basic("u", "p")));
        }
        for json in [
            "{}",
            r#"{"auths":null}"#,
            r#"{"auths":{}}"#,
            r#"{"auths":{"r":{}}}"#,
            r#"{"auths":{"r":{"auth":""}}}"#,
        ] {
            check(json, "r", "a", None);
        }
    }

    #[test]
    fn an_identity_token_is_a_login_and_stays_hidden() {
        let token = Login::IdentityToken("secret".into());
        assert!(!format!("{token:?} {:?}", basic("u", "secret")).contains("secret"));
        check(
            r#"{"auths":{"x":{"identitytoken":"secret"}}}"#,
            "x",
            "y",
            Some(token),
        );
    }
}
