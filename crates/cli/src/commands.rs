//! One small function per verb: arguments to a request, the request to the service room, the answer to stdout.

use vellum_service::Context;

use crate::args::Command;
use crate::exit_code::{DONE, Failure};

pub mod container;
pub mod image;
pub mod run;
pub mod shell;

/// What a verb gives back to the shell.
type Outcome = Result<i32, Failure>;

/// Runs one verb.
pub fn run(ctx: &Context, command: Command, quiet: bool) -> Outcome {
    match command {
        Command::Create(a) => container::create(ctx, a),
        Command::Mount(a) => container::mount(ctx, a, quiet),
        Command::Umount(a) => container::umount(ctx, a, quiet),
        Command::Diff(a) => container::diff(ctx, a),
        Command::Rename(a) => container::rename(ctx, a),
        Command::Rm(a) => container::rm(ctx, a),
        Command::Ls(a) => container::ls(ctx, a),
        Command::Load(a) => image::load(ctx, a, quiet),
        Command::Save(a) => image::save(ctx, a, quiet),
        Command::Pull(a) => image::pull(ctx, a, quiet),
        Command::Push(a) => image::push(ctx, a, quiet),
        Command::Import(a) => image::import(ctx, a, quiet),
        Command::Tag(a) => image::tag(ctx, a),
        Command::Images(a) => image::images(ctx, a),
        Command::History(a) => image::history(ctx, a),
        Command::Rmi(a) => image::rmi(ctx, a, quiet),
        Command::Run(a) => run::run(ctx, a),
        Command::Bundle(a) => run::bundle(ctx, a),
        // Handled at the start, before there is a context.
        Command::Unshare(_) | Command::Completions(_) | Command::Man(_) => Ok(DONE),
        other => Err(Failure::other(format!("not built yet: {other:?}"))),
    }
}

/// Does `each` for all, reports every failure, and fails at the end if one did.
fn for_all<T>(names: &[T], mut each: impl FnMut(&T) -> Result<(), Failure>) -> Outcome {
    let mut worst = DONE;
    for name in names {
        match each(name) {
            Ok(()) => {}
            // Nobody reads any more, or nobody wants more.
            Err(f @ Failure::Output(_)) => return Err(f),
            Err(f @ Failure::Verb(vellum_service::Error::Cancelled)) => return Err(f),
            Err(failure) => {
                crate::report::failure(&failure);
                worst = crate::exit_code::of(&failure).max(worst);
            }
        }
    }
    if worst == DONE {
        Ok(DONE)
    } else {
        Err(Failure::Said(worst))
    }
}
