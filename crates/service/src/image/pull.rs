//! `pull`: pulls an image from a registry.

use std::path::PathBuf;

use vellum_image::registry::{HostOptions, RegistryOptions, RegistrySource};

use super::record::{BroughtIn, bring_in};
use super::{platform, reference};
use crate::context::Context;
use crate::error::Result;

/// What to pull.
#[derive(Clone, Debug, Default)]
pub struct PullRequest {
    /// The image's name.
    pub image: String,
    /// The platform to choose, `os/architecture[/variant]`; `None`: this machine's.
    pub platform: Option<String>,
    /// Use plain HTTP with its registry, whatever is configured.
    pub insecure: bool,
    /// The file with logins, instead of the configured one.
    pub auth_file: Option<PathBuf>,
}

/// Pulls an image; only layers that the store lacks are fetched.
pub fn pull(context: &Context, request: &PullRequest) -> Result<BroughtIn> {
    super::or_cancelled(context, run(context, request))
}

fn run(context: &Context, request: &PullRequest) -> Result<BroughtIn> {
    let name = reference(&request.image)?;
    let wanted = platform(request.platform.as_deref())?;
    let options = registry_options(
        context,
        name.registry(),
        request.insecure,
        request.auth_file.clone(),
    );
    let source = RegistrySource::open(&name, &wanted, &options, &context.cancel)?;
    bring_in(context, &source, 0, &[name], &wanted)
}

/// Returns the options for registries: the configured ones, and the command's for `registry`.
pub(super) fn registry_options(
    context: &Context,
    registry: &str,
    insecure: bool,
    auth_file: Option<PathBuf>,
) -> RegistryOptions {
    let config = &context.config;
    let mut options = RegistryOptions {
        auth_file: auth_file.or_else(|| config.auth_file.value.clone()),
        ..RegistryOptions::default()
    };
    for (host, settings) in &config.registries.value {
        options.hosts.insert(
            host.clone(),
            HostOptions {
                mirrors: settings.mirrors.clone(),
                insecure: settings.insecure,
                ca_file: settings.ca_file.clone(),
            },
        );
    }
    if insecure {
        options
            .hosts
            .entry(registry.to_owned())
            .or_default()
            .insecure = true;
    }
    options
}
