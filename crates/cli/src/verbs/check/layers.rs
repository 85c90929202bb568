//! `check --layers`: checks the marks of an overlay's directories, whichever program wrote them.
//! Findings are printed as they are made; the exit code is 1 if one is an error.

use std::ffi::{OsStr, OsString};
use std::ops::ControlFlow;
use std::path::PathBuf;

use clap::{Args, ValueHint};
use vellum_overlay::fsck::{Checked, Directories, Wrong, check};

use crate::args::Output;
use crate::exit_code::{DONE, FAILED, Failure, INTERRUPTED};
use crate::out::{self, Out, stdout};
use crate::start::Start;
use crate::verbs::Outcome;

/// The directories of an overlay.
#[derive(Debug, Args)]
pub struct Overlay {
    /// Check the marks of these layers, top first, as lowerdir= takes them; needs no store
    #[arg(long, value_name = "TOP:NEXT...", value_hint = ValueHint::DirPath,
          conflicts_with_all = ["heal", "deep", "trees", "repair", "rebuild"])]
    pub layers: Option<OsString>,
    /// Upper directory above the layers
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, requires = "layers")]
    pub upper: Option<PathBuf>,
    /// Work directory of the upper
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, requires = "upper")]
    pub work: Option<PathBuf>,
    /// Read marks in user.overlay.*, whatever the directories say
    #[arg(long, requires = "layers")]
    pub userxattr: bool,
}

/// Checks the directories, and prints what is found.
pub fn run(lowers: &OsStr, overlay: &Overlay, output: Output, start: &Start<'_>) -> Outcome {
    let ctx = start.context()?;
    let directories = Directories {
        upper: overlay.upper.clone(),
        work: overlay.work.clone(),
        user_xattr: overlay.userxattr,
        ..Directories::parse(lowers)?
    };
    let mut printer = Printer {
        out: stdout(),
        json: output.json,
        count: 0,
        failed: None,
    };
    let checked = check(
        &directories,
        &ctx.cancel,
        &mut |wrong| match printer.print(&wrong) {
            Ok(()) => ControlFlow::Continue(()),
            Err(failure) => {
                printer.failed = Some(failure);
                ControlFlow::Break(())
            }
        },
    )?;
    printer.end()?;
    if !start.quiet {
        if directories.upper.is_some() && directories.work.is_none() {
            ctx.progress.say(
                "not checked: the index of hard links and what a crash left, which are in the work directory (--work)",
            );
        }
        ctx.progress.say(&summary(checked));
    }
    Ok(match checked {
        _ if ctx.cancel.is_cancelled() => INTERRUPTED,
        Checked { errors: 0, .. } => DONE,
        _ => FAILED,
    })
}

fn summary(checked: Checked) -> String {
    let Checked {
        errors, remarks, ..
    } = checked;
    let remarks = match remarks {
        0 => String::new(),
        count => format!(", {}", out::counted(count, "remark")),
    };
    match errors {
        0 => format!("no errors found{remarks}"),
        count => format!("{} found{remarks}", out::counted(count, "error")),
    }
}

/// Prints findings one by one: a check of many layers takes a while.
struct Printer {
    out: Out,
    json: bool,
    count: u64,
    failed: Option<Failure>,
}

impl Printer {
    fn print(&mut self, wrong: &Wrong) -> Result<(), Failure> {
        self.count += 1;
        if !self.json {
            self.out.line(wrong.line())?;
            return self.out.flush();
        }
        let text = serde_json::to_string(wrong).map_err(|e| Failure::Output(e.into()))?;
        let before = if self.count == 1 { "[\n" } else { ",\n" };
        self.out.bytes(before.as_bytes())?;
        self.out.bytes(b"  ")?;
        self.out.bytes(text.as_bytes())
    }

    fn end(mut self) -> Result<(), Failure> {
        if let Some(failure) = self.failed {
            return Err(failure);
        }
        if self.json {
            let end: &[u8] = if self.count == 0 { b"[]\n" } else { b"\n]\n" };
            self.out.bytes(end)?;
        }
        self.out.done()
    }
}
