//! `bundle`: writes an OCI runtime bundle for a container.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::{Args, ValueHint};
use vellum_service::container::bundle as bundles;

use super::{Examples, Group, Outcome, Verb};
use crate::args::process::{Process, process};
use crate::complete;
use crate::exit_code::DONE;
use crate::out::stdout;
use crate::start::Start;

/// Write an OCI runtime bundle for runc, crun or another runtime
#[derive(Debug, Args)]
pub struct Bundle {
    /// Container to mount as the bundle's rootfs
    #[arg(add = complete::containers())]
    pub container: String,
    /// Directory of the bundle; created if missing
    #[arg(value_hint = ValueHint::DirPath)]
    pub dir: PathBuf,
    /// The command and its arguments [default: the image's]
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND"
    )]
    pub command: Vec<OsString>,
    #[command(flatten)]
    /// The process.
    pub process: Process,
}

impl Verb for Bundle {
    const GROUP: Group = Group::Containers;
    const EXAMPLES: Examples = &[(
        "",
        "  vellum bundle box ./bundle && runc run --bundle ./bundle box
  vellum bundle box ./bundle --network host -- /bin/sh -c 'id'",
    )];

    fn run(self, start: Start<'_>) -> Outcome {
        let ctx = &start.context()?;
        let request = process(ctx, self.process, self.command)?;
        let config = bundles::bundle(ctx, &self.container, &self.dir, &request)?;
        let mut out = stdout();
        out.line(config.as_os_str().as_bytes())?;
        out.done()?;
        Ok(DONE)
    }
}
