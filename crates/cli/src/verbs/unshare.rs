//! `unshare`: runs a command in the user namespace of the store. For root there is no such
//! namespace; the command is run anyway, so that scripts need no special case.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use clap::{Args, ValueHint};

use super::{Examples, Group, Outcome, Verb};
use crate::start::Start;

/// Run a command in the user namespace of the rootless store
#[derive(Debug, Args)]
pub struct Unshare {
    /// The command and its arguments [default: your shell]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND", value_hint = ValueHint::CommandWithArguments)]
    pub command: Vec<OsString>,
}

impl Verb for Unshare {
    const GROUP: Group = Group::Store;
    const EXAMPLES: Examples = &[(
        "",
        "  vellum unshare
  vellum unshare ls -ln ~/.local/share/vellum/overlay2",
    )];

    fn run(self, start: Start<'_>) -> Outcome {
        let config = start.config()?;
        let shell = || std::env::var_os("SHELL").unwrap_or_else(|| OsString::from("/bin/sh"));
        let command = if self.command.is_empty() {
            vec![shell()]
        } else {
            self.command.clone()
        };
        let error = Command::new(&command[0])
            .args(&command[1..])
            .env("VELLUM_ROOT", &config.root.value)
            .env("VELLUM_RUN_DIR", &config.run_dir.value)
            .exec();
        Err(vellum_service::Error::Program {
            program: command[0].clone().into(),
            source: error,
        }
        .into())
    }
}
