//! The verbs on stacks of layers: `ls` of a path, `cat`, `explain`, `settle`, and those on single layers.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use vellum_format::Prefix;
use vellum_overlay::options::Manners;
use vellum_overlay::parse;
use vellum_service::layer::{self, How, Input, Made, Marks};
use vellum_service::look::{self, Tree};
use vellum_service::{Context, Error, settle};

use super::Outcome;
use crate::args;
use crate::exit_code::{DONE, Failure};
use crate::out::{self, stdout};

/// What is looked at: a tree, and the path in it.
fn find(path: &OsStr, tree: &args::Tree) -> Result<(Tree, PathBuf), Failure> {
    if let Some(image) = &tree.image {
        return Ok((Tree::Image(image.clone()), path.into()));
    }
    if !tree.options.is_empty() {
        // Read-only is enough, and what is misspelled is an error here as for a mount.
        let parsed =
            parse::parse(Manners::Own, &tree.options).map_err(vellum_overlay::Error::from)?;
        let here = std::env::current_dir().map_err(Error::io("find", "."))?;
        let options = parsed.options.made_absolute(&here);
        return Ok((Tree::Layers(Box::new(options)), path.into()));
    }
    let bytes = path.as_bytes();
    let colon = bytes.iter().position(|&b| b == b':');
    if let Some(at) = colon
        && let Ok(name) = std::str::from_utf8(&bytes[..at])
        && !name.is_empty()
        && !name.contains('/')
    {
        let inside = Path::new(OsStr::from_bytes(&bytes[at + 1..])).to_owned();
        return Ok((Tree::Container(name.to_owned()), inside));
    }
    Err(Failure::misused(format!(
        "which tree is {} in? write CONTAINER:PATH, or name one with --image or -o lowerdir=...",
        path.display()
    )))
}

/// `ls` with a path
pub fn ls(ctx: &Context, path: &OsStr, args: &args::Ls) -> Outcome {
    let (tree, path) = find(path, &args.tree)?;
    let lines = look::list(&look::stack(ctx, &tree)?, &path)?;
    let mut out = stdout();
    if args.output.json {
        out.json(&lines)?;
    } else if args.size {
        let rows: Vec<_> = lines
            .iter()
            .map(|line| {
                vec![
                    line.layer.to_string(),
                    format!("{} {:04o}", line.kind, line.mode),
                    format!("{}:{}", line.uid, line.gid),
                    out::bytes(line.size_bytes),
                    line.name.display().to_string(),
                ]
            })
            .collect();
        out.table(&["LAYER", "MODE", "OWNER", "SIZE", "NAME"], &rows)?;
    } else {
        for line in &lines {
            out.line(line.name.as_os_str().as_bytes())?;
        }
    }
    out.done()?;
    Ok(DONE)
}

/// `cat`
pub fn cat(ctx: &Context, args: args::Cat) -> Outcome {
    let (tree, path) = find(&args.look.path, &args.look.tree)?;
    let union = look::stack(ctx, &tree)?;
    look::cat(&union, &path, &mut std::io::stdout().lock()).map_err(Failure::of_output)?;
    Ok(DONE)
}

/// `explain`
pub fn explain(ctx: &Context, args: args::Explain) -> Outcome {
    let (tree, path) = find(&args.look.path, &args.look.tree)?;
    let explained = look::explain(ctx, &tree, &path)?;
    let mut out = stdout();
    if args.output.json {
        out.json(&explained)?;
        out.done()?;
        return Ok(DONE);
    }
    out.line(format!(
        "/{}: {}",
        explained.path.display(),
        explained.outcome
    ))?;
    if let Some(layer) = &explained.attributes_from {
        out.line(format!("attributes: {layer}"))?;
    }
    for layer in &explained.data_from {
        out.line(format!("content:    {layer}"))?;
    }
    for said in &explained.layers {
        let mark = if said.counts { "" } else { " (not asked)" };
        out.line(format!(
            "layer {}: {}: {}{mark}",
            said.layer,
            Path::new(&said.name).join(&said.path).display(),
            said.says
        ))?;
    }
    if let Some(form) = explained.upper_hides_with {
        out.line(format!("the upper hides names with {form}"))?;
    }
    out.done()?;
    Ok(DONE)
}

/// `settle`
pub fn settle(ctx: &Context, args: args::Settle) -> Outcome {
    let here = std::env::current_dir().map_err(Error::io("find", "."))?;
    let options = match args.options.is_empty() {
        true => None,
        false => {
            let parsed =
                parse::parse(Manners::Own, &args.options).map_err(vellum_overlay::Error::from)?;
            Some(parsed.options.made_absolute(&here))
        }
    };
    let done = match &args.work {
        Some(work) => settle::settle(
            &args.upper,
            work,
            options.as_ref(),
            &mut |_| {},
            &ctx.cancel,
        )?,
        None => {
            let Some(name) = args.upper.to_str() else {
                return Err(Failure::misused("a container's name is text"));
            };
            settle::settle_container(ctx, name, &mut |_| {})?
        }
    };
    let mut out = stdout();
    out.line(format!(
        "settled {} files, copied {}",
        done.done.files,
        out::bytes(done.done.bytes)
    ))?;
    out.done()?;
    Ok(DONE)
}

/// `layer`
pub fn layer(ctx: &Context, args: args::Layer) -> Outcome {
    let made = match args {
        args::Layer::Merge(a) => {
            let upper = Input {
                dir: a.upper,
                work: a.how.work.clone(),
            };
            layer::merge(
                &upper,
                &a.lower,
                &a.how.below,
                how(ctx, &a.how, false),
                &ctx.cancel,
            )?
        }
        args::Layer::Squash(a) => {
            let mut layers: Vec<Input> = a
                .layers
                .into_iter()
                .map(|dir| Input { dir, work: None })
                .collect();
            if let Some(top) = layers.first_mut() {
                top.work = a.how.work.clone();
            }
            layer::squash(
                &layers,
                &a.how.below,
                &a.output,
                how(ctx, &a.how, a.whole),
                &ctx.cancel,
            )?
        }
        args::Layer::Convert(a) => {
            let input = Input {
                dir: a.layer,
                work: a.how.work.clone(),
            };
            layer::convert(
                &input,
                &a.how.below,
                a.output.as_deref(),
                how(ctx, &a.how, false),
                &ctx.cancel,
            )?
        }
    };
    tell(ctx, &made)
}

fn how(ctx: &Context, args: &args::LayerHow, whole: bool) -> How {
    let usual = How::usual(ctx.process);
    How {
        read: match args.userxattr {
            true => Prefix::User,
            false => usual.read,
        },
        write: match (whole, args.marks) {
            (true, _) => Marks::Whole,
            (false, None) => usual.write,
            (false, Some(args::Marks::Trusted)) => Marks::Kernel(Prefix::Trusted),
            (false, Some(args::Marks::User)) => Marks::Kernel(Prefix::User),
            (false, Some(args::Marks::Wh)) => Marks::WhNames,
        },
        process: ctx.process,
    }
}

fn tell(ctx: &Context, made: &Made) -> Outcome {
    for path in &made.left_out {
        ctx.progress.say(&format!(
            "left out, since a layer holds no sockets: {}",
            path.display()
        ));
    }
    let mut out = stdout();
    out.line(made.layer.as_os_str().as_bytes())?;
    out.done()?;
    Ok(DONE)
}
