//! How to reach a registry, for the verbs that use one.

use std::path::PathBuf;

use clap::{Args, ValueHint};

use super::absolute;
use crate::exit_code::Failure;

/// How to reach a registry.
#[derive(Debug, Args)]
pub struct Registry {
    /// Use plain HTTP to talk to the registry
    #[arg(long)]
    pub insecure: bool,
    /// File with registry logins [default: Docker's and Podman's]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    auth_file: Option<PathBuf>,
}

impl Registry {
    /// Returns the value for the setting `auth-file`, if the flag was given.
    pub fn auth_file(&self) -> Result<Option<Option<PathBuf>>, Failure> {
        Ok(self
            .auth_file
            .as_deref()
            .map(absolute)
            .transpose()?
            .map(Some))
    }
}
