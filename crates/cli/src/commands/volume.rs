//! The verbs on volumes.

use vellum_service::{Context, volumes};

use super::{Outcome, for_all};
use crate::args;
use crate::commands::container::labels;
use crate::exit_code::{DONE, Failure};
use crate::out::{self, stdout};

/// `volume ...`
pub fn volume(ctx: &Context, args: args::Volume, quiet: bool) -> Outcome {
    match args {
        args::Volume::Create(a) => create(ctx, a),
        args::Volume::Ls(a) => ls(ctx, a, quiet),
        args::Volume::Rm(a) => rm(ctx, a),
    }
}

fn create(ctx: &Context, args: args::VolumeCreate) -> Outcome {
    let made = volumes::create(ctx, args.name.as_deref(), &labels(&args.label))?;
    let mut out = stdout();
    if args.output.json {
        out.json(&made)?;
    } else {
        out.line(&made.name)?;
    }
    out.done()?;
    Ok(DONE)
}

/// `--quiet` behind the verb prints names.
fn ls(ctx: &Context, args: args::VolumeLs, quiet: bool) -> Outcome {
    let all = volumes::list(ctx)?;
    let mut out = stdout();
    if args.output.json {
        out.json(&all)?;
    } else if quiet {
        for volume in &all {
            out.line(&volume.name)?;
        }
    } else {
        let rows: Vec<_> = all
            .iter()
            .map(|v| {
                let users = if v.containers.is_empty() {
                    "-".to_owned()
                } else {
                    v.containers.join(", ")
                };
                vec![
                    v.name.clone(),
                    out::ago(v.created),
                    users,
                    v.path.display().to_string(),
                ]
            })
            .collect();
        out.table(&["NAME", "CREATED", "CONTAINERS", "DIRECTORY"], &rows)?;
    }
    out.done()?;
    Ok(DONE)
}

/// What is in a volume is the user's own data, so it goes only if he says so.
fn rm(ctx: &Context, args: args::VolumeRm) -> Outcome {
    for_all(&args.names, |name| {
        let found = volumes::find(ctx, name)?;
        let holds =
            std::fs::read_dir(&found.path).is_ok_and(|mut entries| entries.next().is_some());
        if holds && !args.force && !out::confirm(&format!("volume `{name}` holds data; remove it?"))
        {
            return Err(Failure::other(format!(
                "volume `{name}` holds data\nhint: --force removes it with what is in it"
            )));
        }
        volumes::remove(ctx, name)?;
        let mut out = stdout();
        out.line(name)?;
        out.done()
    })
}
