//! What can go wrong with a registry, in words that say which server refused what.

use std::time::Duration;

use super::credentials::CredentialError;
use super::exchange::{ErrorResponse, ExchangeError};

/// Why a registry didn't deliver or accept something.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The registry wants a login, or the one it got isn't enough.
    #[error(
        "{registry} refuses access to {repository}: log in (`docker login`, `podman login`), or check the name"
    )]
    Denied {
        /// The registry.
        registry: String,
        /// What was asked for.
        repository: String,
        /// What it said.
        #[source]
        source: Option<ErrorResponse>,
    },
    /// No such image or blob.
    #[error("{registry} has no {what}")]
    NotFound {
        /// The registry.
        registry: String,
        /// What was requested.
        what: String,
    },
    /// The registry gets too many requests.
    #[error("{registry} allows no more requests for now{}", again_in(.wait.as_ref()))]
    RateLimited {
        /// The registry.
        registry: String,
        /// How long it asks to wait.
        wait: Option<Duration>,
    },
    /// The server doesn't answer.
    #[error("{registry} can't be reached")]
    Unreachable {
        /// The registry.
        registry: String,
        /// Why not.
        #[source]
        source: ExchangeError,
    },
    /// There is no such server.
    #[error("{registry} can't be reached: its name can't be resolved")]
    Unresolved {
        /// The registry.
        registry: String,
        /// Why not.
        #[source]
        source: ExchangeError,
    },
    /// Any other refusal or failure.
    #[error("{registry} failed to {action}")]
    Failed {
        /// The registry.
        registry: String,
        /// The request, as a verb and its object.
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
    pub(super) fn from_exchange(
        registry: &str,
        repository: &str,
        action: String,
        source: ExchangeError,
    ) -> Self {
        let registry = registry.to_owned();
        match source {
            ExchangeError::Refused(response) => match response.status.as_u16() {
                401 | 403 => Self::Denied {
                    registry,
                    repository: repository.to_owned(),
                    source: Some(response),
                },
                404 => {
                    let what = action
                        .split_once(' ')
                        .map_or(action.as_str(), |(_, what)| what);
                    Self::NotFound {
                        registry,
                        what: what.to_owned(),
                    }
                }
                429 => Self::RateLimited {
                    registry,
                    wait: response.wait,
                },
                _ => Self::Failed {
                    registry,
                    action,
                    source: Box::new(ExchangeError::Refused(response)),
                },
            },
            source @ ExchangeError::Unresolved(_) => Self::Unresolved { registry, source },
            source @ ExchangeError::Connect(_) => Self::Unreachable { registry, source },
            source => Self::Failed {
                registry,
                action,
                source: Box::new(source),
            },
        }
    }

    /// The failure of the server or the network, if this error is about one.
    fn exchange(&self) -> Option<&ExchangeError> {
        match self {
            Self::Unreachable { source, .. } | Self::Unresolved { source, .. } => Some(source),
            Self::Failed { source, .. } => source.downcast_ref(),
            _ => None,
        }
    }

    /// Returns whether asking again, or asking another server, could help.
    pub(super) fn is_passing(&self) -> bool {
        matches!(self, Self::RateLimited { .. })
            || self.exchange().is_some_and(ExchangeError::is_passing)
    }

    /// How long the server asks to wait before the next request.
    pub(super) fn wait(&self) -> Option<Duration> {
        match (self, self.exchange()) {
            (Self::RateLimited { wait, .. }, _) => *wait,
            (_, Some(ExchangeError::Refused(response))) => response.wait,
            _ => None,
        }
    }
}

/// The end of a sentence that says how long to wait.
fn again_in(wait: Option<&Duration>) -> String {
    match wait.map(Duration::as_secs) {
        None | Some(0) => String::new(),
        Some(seconds) if seconds < 120 => format!(": try again in {seconds} seconds"),
        Some(seconds) => format!(": try again in {} minutes", seconds.div_ceil(60)),
    }
}
