//! What can go wrong with a registry, in words that say who refused what.

use oci_client::errors::{OciDistributionError, OciErrorCode};

use super::credentials::CredentialError;

/// Why a registry didn't give or take something.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// The registry wants a login, or the one it got isn't enough.
    #[error(
        "{registry} refuses access to {repository}: log in (`docker login`, `podman login`), or check the name"
    )]
    Denied {
        /// Who refused.
        registry: String,
        /// What was asked for.
        repository: String,
        /// What it said.
        #[source]
        source: Option<Box<OciDistributionError>>,
    },
    /// No such image or blob.
    #[error("{registry} has no {what}")]
    NotFound {
        /// Who was asked.
        registry: String,
        /// What for.
        what: String,
    },
    /// The registry is asked too often.
    #[error("{registry} allows no more requests for now")]
    RateLimited {
        /// Who refused.
        registry: String,
    },
    /// Nobody answers there.
    #[error("{registry} can't be reached")]
    Unreachable {
        /// Who was asked.
        registry: String,
        /// Why not.
        #[source]
        source: Box<reqwest::Error>,
    },
    /// Any other refusal or failure.
    #[error("{registry} failed to {action}")]
    Failed {
        /// Who was asked.
        registry: String,
        /// What for, as a verb and its object.
        action: String,
        /// What happened.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A mirror's address is not a URL.
    #[error(
        "{url:?} is not the address of a mirror: write http://host[:port][/prefix] or https://…"
    )]
    BadMirror {
        /// As configured.
        url: String,
    },
    /// A certificate file can't be used.
    #[error("certificate file {path} can't be read")]
    Certificate {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Logins can't be read.
    #[error(transparent)]
    Credentials(#[from] CredentialError),
    /// A digest reference without a tag can't be pushed to.
    #[error("{0} has no tag to push to")]
    NoTag(String),
    /// The client thread is gone or could not start.
    #[error("the registry client can't run")]
    Runtime(#[source] std::io::Error),
    /// The user asked to stop.
    #[error("stopped")]
    Stopped,
}

impl RegistryError {
    /// Returns the error for `source`, which happened while `registry` was asked to `action`.
    pub(super) fn from_client(
        registry: &str,
        repository: &str,
        action: String,
        source: OciDistributionError,
    ) -> Self {
        let registry = registry.to_owned();
        match kind(&source) {
            Kind::Denied => Self::Denied {
                registry,
                repository: repository.to_owned(),
                source: Some(Box::new(source)),
            },
            Kind::NotFound => {
                let what = action
                    .split_once(' ')
                    .map_or(action.as_str(), |(_, what)| what);
                Self::NotFound {
                    registry,
                    what: what.to_owned(),
                }
            }
            Kind::RateLimited => Self::RateLimited { registry },
            Kind::Other => Self::Failed {
                registry,
                action,
                source: Box::new(source),
            },
        }
    }

    /// Returns whether asking again, or asking someone else, could help.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::RateLimited { .. } | Self::Unreachable { .. } => true,
            Self::Failed { source, .. } => match source.downcast_ref::<OciDistributionError>() {
                Some(OciDistributionError::RequestError(_) | OciDistributionError::IoError(_)) => {
                    true
                }
                Some(OciDistributionError::ServerError { code, .. }) => {
                    *code >= 500 || *code == 408
                }
                Some(_) => false,
                None => source.downcast_ref::<reqwest::Error>().is_some(),
            },
            _ => false,
        }
    }
}

enum Kind {
    Denied,
    NotFound,
    RateLimited,
    Other,
}

fn kind(error: &OciDistributionError) -> Kind {
    let by_status = |status: u16| match status {
        401 | 403 => Kind::Denied,
        404 => Kind::NotFound,
        429 => Kind::RateLimited,
        _ => Kind::Other,
    };
    match error {
        OciDistributionError::UnauthorizedError { .. }
        | OciDistributionError::AuthenticationFailure(_) => Kind::Denied,
        OciDistributionError::ImageManifestNotFoundError(_) => Kind::NotFound,
        OciDistributionError::ServerError { code, .. } => by_status(*code),
        OciDistributionError::RequestError(request) => request
            .status()
            .map_or(Kind::Other, |status| by_status(status.as_u16())),
        OciDistributionError::RegistryError { envelope, .. } => {
            match envelope.errors.first().map(|e| &e.code) {
                Some(OciErrorCode::Unauthorized | OciErrorCode::Denied) => Kind::Denied,
                Some(
                    OciErrorCode::ManifestUnknown
                    | OciErrorCode::NameUnknown
                    | OciErrorCode::BlobUnknown
                    | OciErrorCode::NotFound,
                ) => Kind::NotFound,
                Some(OciErrorCode::Toomanyrequests) => Kind::RateLimited,
                _ => Kind::Other,
            }
        }
        _ => Kind::Other,
    }
}
