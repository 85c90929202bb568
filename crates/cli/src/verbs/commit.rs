//! `commit`: creates an image from a container's changes.

use clap::Args;
use vellum_service::Context;
use vellum_service::image::CommitRequest;

use super::{Examples, Group, Outcome, Verb, gc};
use crate::args::Output;
use crate::complete;
use crate::exit_code::DONE;
use crate::out::stdout;
use crate::start::Start;

/// Create an image from a container's changes
#[derive(Debug, Args)]
pub struct Commit {
    /// Container to commit
    #[arg(add = complete::containers())]
    pub container: String,
    /// Name for the new image [default: none, only an id]
    pub image: Option<String>,
    /// Change the image's configuration with a Dockerfile instruction: CMD, ENTRYPOINT, ENV,
    /// EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME, WORKDIR
    #[arg(long, short, value_name = "INSTRUCTION")]
    pub change: Vec<String>,
    /// Author of the image
    #[arg(long, short, value_name = "TEXT")]
    pub author: Option<String>,
    /// Comment for the image's history
    #[arg(long, short, value_name = "TEXT")]
    pub message: Option<String>,
    #[command(flatten)]
    /// How results are printed
    pub output: Output,
}

impl Verb for Commit {
    const GROUP: Group = Group::Containers;
    const EXAMPLES: Examples = &[(
        "",
        "  vellum commit box mine:1 --message 'with my settings'
  vellum commit box mine:1 -c 'CMD [\"/bin/app\"]' -c 'ENV MODE=fast' -c 'USER app'",
    )];

    fn run(self, start: Start<'_>) -> Outcome {
        let ctx = &start.context()?;
        gc::or_tell_what_is_left(ctx, commit(ctx, self, start.quiet))
    }
}

fn commit(ctx: &Context, args: Commit, quiet: bool) -> Outcome {
    let request = CommitRequest {
        container: args.container,
        name: args.image,
        changes: args.change,
        author: args.author,
        message: args.message,
    };
    let made = vellum_service::image::commit(ctx, &request)?;
    let mut out = stdout();
    if args.output.json {
        out.json(&made)?;
    } else {
        out.line(&made.id)?;
    }
    out.done()?;
    if !quiet {
        for (name, from) in &made.moved_names {
            ctx.progress
                .say(&format!("{name} was the name of image {from} until now"));
        }
    }
    Ok(DONE)
}
