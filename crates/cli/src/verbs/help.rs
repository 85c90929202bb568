//! `help`: shows a help page.

use std::ffi::OsString;

use clap::Args;

use super::{Examples, Group, Outcome, Verb};
use crate::exit_code::{DONE, Failure};
use crate::start::Start;
use crate::{help, other_words};

/// Show the help of a command
#[derive(Debug, Args)]
pub struct Help {
    /// Command, or command and subcommand [default: list all commands]
    #[arg(value_name = "COMMAND")]
    pub words: Vec<String>,
}

impl Verb for Help {
    const GROUP: Group = Group::Store;
    const EXAMPLES: Examples = &[("", "  vellum help\n  vellum help volume ls")];

    fn run(self, _: Start<'_>) -> Outcome {
        let mut command = help::command();
        command.build();
        let mut title = String::from("vellum");
        let mut page = &mut command;
        for word in &self.words {
            title.push_str(&format!(" {word}"));
            page = page
                .find_subcommand_mut(word)
                .ok_or_else(|| Failure::misused(other_words::told(&[OsString::from(word)])))?;
        }
        let text = page.clone().bin_name(title).render_help();
        let mut out = crate::out::stdout();
        out.bytes(text.to_string().as_bytes())?;
        out.done()?;
        Ok(DONE)
    }
}
