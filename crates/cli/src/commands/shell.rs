//! What has to do with the shell: completions, man pages, the rootless namespace.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use vellum_service::config::Config;

use crate::args;
use crate::exit_code::{DONE, Failure};
use crate::other_words;
use crate::{complete, help};

/// `completions`
pub fn completions(args: &args::Completions) -> super::Outcome {
    let script = complete::script(&args.shell.to_string())
        .ok_or_else(|| Failure::other(format!("there are no completions for {}", args.shell)))?
        .map_err(|e| Failure::other(format!("cannot write completions: {e}")))?;
    let mut out = crate::out::stdout();
    out.bytes(&script)?;
    out.done()?;
    Ok(DONE)
}

/// `man`
pub fn man(args: &args::Man) -> super::Outcome {
    let failed = |e: std::io::Error| {
        Failure::other(format!(
            "cannot write man pages to {}: {e}",
            args.dir.display()
        ))
    };
    std::fs::create_dir_all(&args.dir).map_err(failed)?;
    clap_mangen::generate_to(help::man_command(), &args.dir).map_err(failed)?;
    Ok(DONE)
}

/// `help`
pub fn help(args: &args::Help) -> super::Outcome {
    let mut command = help::command();
    command.build();
    let mut title = String::from("vellum");
    let mut page = &mut command;
    for word in &args.words {
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

/// `version`
pub fn version() -> super::Outcome {
    let mut out = crate::out::stdout();
    out.line(concat!("vellum ", env!("CARGO_PKG_VERSION")))?;
    out.done()?;
    Ok(DONE)
}

/// `unshare`
///
/// Root is in no namespace of ours; the command is run all the same, so that scripts need not ask.
pub fn unshare(args: &args::Unshare, config: &Config) -> super::Outcome {
    let shell = || std::env::var_os("SHELL").unwrap_or_else(|| OsString::from("/bin/sh"));
    let command = if args.command.is_empty() {
        vec![shell()]
    } else {
        args.command.clone()
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
