//! One small function per verb: arguments to a request, the request to the service room, the answer to stdout.

use vellum_service::Context;

use crate::args::Command;
use crate::exit_code::{DONE, Failure, INTERRUPTED};
use crate::report;

pub mod adopt;
pub mod config;
pub mod container;
pub mod export;
pub mod image;
pub mod node;
pub mod overlay;
pub mod run;
pub mod serve;
pub mod shell;
pub mod store;
pub mod union;
pub mod volume;

/// What is left out of what a verb says.
#[derive(Clone, Copy, Debug)]
pub struct Quiet {
    /// Talk about what is going on, on stderr.
    pub talk: bool,
    /// All but the ids of a listing.
    pub listing: bool,
}

/// What a verb gives back to the shell.
type Outcome = Result<i32, Failure>;

/// Runs one verb. After one that was stopped, what stays for `vellum gc` is told, or that nothing does.
pub fn run(ctx: &Context, command: Command, quiet: Quiet) -> Outcome {
    let fills = matches!(
        command,
        Command::Load(_)
            | Command::Pull(_)
            | Command::Import(_)
            | Command::Adopt(_)
            | Command::Commit(_)
    );
    let outcome = verb(ctx, command, quiet);
    match &outcome {
        Err(failure) if fills && failure.is_cancelled() => {
            report::failure(&Failure::other(format!("stopped; {}", store::left(ctx))));
            Err(Failure::Said(INTERRUPTED))
        }
        _ => outcome,
    }
}

fn verb(ctx: &Context, command: Command, quiet: Quiet) -> Outcome {
    let Quiet {
        talk: quiet,
        listing,
    } = quiet;
    match command {
        Command::Create(a) => container::create(ctx, a),
        Command::Mount(a) => container::mount(ctx, a, quiet),
        Command::Umount(a) => container::umount(ctx, a, quiet),
        Command::Diff(a) => container::diff(ctx, a),
        Command::Rename(a) => container::rename(ctx, a),
        Command::Rm(a) => container::rm(ctx, a),
        Command::Ls(a) => container::ls(ctx, a, listing),
        Command::Load(a) => image::load(ctx, a, quiet),
        Command::Save(a) => image::save(ctx, a, quiet),
        Command::Export(a) => export::export(ctx, a, quiet),
        Command::Pull(a) => image::pull(ctx, a, quiet),
        Command::Push(a) => image::push(ctx, a, quiet),
        Command::Import(a) => image::import(ctx, a, quiet),
        Command::Tag(a) => image::tag(ctx, a),
        Command::Adopt(a) => adopt::adopt(ctx, a, quiet),
        Command::Images(a) => image::images(ctx, a, listing),
        Command::History(a) => image::history(ctx, a),
        Command::Rmi(a) => image::rmi(ctx, a, quiet),
        Command::Run(a) => run::run(ctx, a),
        Command::Bundle(a) => run::bundle(ctx, a),
        Command::Cat(a) => union::cat(ctx, a),
        Command::Explain(a) => union::explain(ctx, a),
        Command::Layer(a) => union::layer(ctx, a),
        Command::Settle(a) => union::settle(ctx, a),
        Command::Commit(a) => container::commit(ctx, a, quiet),
        Command::Cp(a) => container::cp(ctx, a),
        Command::Inspect(a) => store::inspect(ctx, a),
        Command::Volume(a) => volume::volume(ctx, a, listing),
        Command::Info(a) => store::info(ctx, a),
        Command::Df(a) => store::df(ctx, a),
        Command::Gc(a) => store::gc(ctx, a, quiet),
        Command::Check(a) => store::check(ctx, a, quiet),
        Command::Why(a) => store::why(ctx, a),
        Command::Config(a) => config::config(ctx, a),
        // Handled at the start, before there is a context.
        Command::Serve(_)
        | Command::Node(_)
        | Command::Unshare(_)
        | Command::Overlay(_)
        | Command::Completions(_)
        | Command::Man(_)
        | Command::Help(_)
        | Command::Version
        | Command::Other(_) => Ok(DONE),
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
            Err(f) if f.is_cancelled() => return Err(f),
            Err(failure) => {
                report::failure(&failure);
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
