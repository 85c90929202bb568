//! Registries: images fetched from and pushed to a server that speaks the OCI distribution
//! protocol.
//!
//! From the bottom up: one request and its response, within limits ([`exchange`]); how a server
//! asks us to authenticate, and what we send ([`challenge`], [`login`], [`credentials`]); which
//! servers to ask in which order ([`endpoint`]); manifests ([`fetch`]); blobs as plain readers that
//! survive a broken connection by asking for the missing range ([`download`]); and sending images
//! ([`push()`]). All of it runs on one thread with its own runtime ([`runtime`]); the rest of
//! Vellum stays free of async.
//!
//! Secrets never reach an error, a log or a server that they are not for. This module must not know
//! where layers go. The protocol is the distribution specification, version 1.1, read as leniently
//! as servers require.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

mod challenge;
mod credentials;
mod download;
mod endpoint;
mod error;
mod exchange;
mod fetch;
mod host;
mod login;
mod push;
mod runtime;

pub use error::RegistryError;
pub use exchange::{ErrorResponse, ExchangeError};
pub use fetch::RegistrySource;
pub use push::{Pushed, push};

/// How to reach registries.
#[derive(Clone, Debug, Default)]
pub struct RegistryOptions {
    /// The only file with logins to use; `None` looks in the usual places.
    pub auth_file: Option<PathBuf>,
    /// Settings for a registry, by its host and port.
    pub hosts: BTreeMap<String, HostOptions>,
    /// When to give up.
    pub retry: Retry,
}

/// Settings for one registry.
#[derive(Clone, Debug, Default)]
pub struct HostOptions {
    /// Addresses (`http://host:port/prefix` or `https://…`) to pull from, asked before the
    /// registry.
    pub mirrors: Vec<String>,
    /// Use plain HTTP for the registry itself.
    pub insecure: bool,
    /// A PEM file with a certificate authority to trust besides the system's.
    pub ca_file: Option<PathBuf>,
}

/// When a request is tried again, and how often.
#[derive(Clone, Copy, Debug)]
pub struct Retry {
    /// How often in a row something may fail without any progress.
    pub attempts: u32,
    /// The pause after the first failure; it doubles with each further one.
    pub first_pause: Duration,
    /// The longest pause.
    pub longest_pause: Duration,
    /// How long a connection may transfer nothing, or almost nothing.
    pub silence: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 5,
            first_pause: Duration::from_millis(250),
            longest_pause: Duration::from_secs(8),
            silence: Duration::from_secs(30),
        }
    }
}

/// The longest pause that a server can ask for; if it asks for more, the request fails.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

impl Retry {
    /// Returns the pause after `failures` failures in a row, the last one being `error`, or `None`
    /// to give up.
    fn pause_after(&self, failures: u32, error: &RegistryError) -> Option<Duration> {
        if !error.is_passing() {
            return None;
        }
        let pause = self.pause(failures)?;
        match error.wait() {
            Some(asked) if asked > LONGEST_WAIT => None,
            Some(asked) => Some(pause.max(asked)),
            None => Some(pause),
        }
    }

    fn pause(&self, failures: u32) -> Option<Duration> {
        if failures >= self.attempts {
            return None;
        }
        let doubled = self
            .first_pause
            .saturating_mul(1 << failures.saturating_sub(1).min(16));
        // A quarter of jitter, so that many clients don't come back in step.
        let jitter = 1.0 + rand::random::<f64>() / 4.0;
        Some(doubled.min(self.longest_pause).mul_f64(jitter))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_limit_and_end() {
        let retry = Retry::default();
        let pauses: Vec<_> = (1..10).map_while(|n| retry.pause(n)).collect();
        assert_eq!(pauses.len(), 4);
        for (at, pause) in pauses.iter().enumerate() {
            let base = Duration::from_millis(250 << at);
            assert!(*pause >= base && *pause <= base.mul_f64(1.26), "{pause:?}");
        }
    }
}
