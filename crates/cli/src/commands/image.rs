//! The verbs on images.

use std::path::Path;

use jiff::Timestamp;
use vellum_image::Compression;
use vellum_service::image::{
    BroughtIn, ImportRequest, ImportSource, LoadRequest, LoadSource, PullRequest, PushRequest,
    SaveFormat, SaveRequest, SaveTarget,
};
use vellum_service::{Context, image as verbs, keep, names};

use super::{Outcome, for_all};
use crate::args;
use crate::exit_code::{DONE, Failure};
use crate::out::{self, stdout};

/// `load`
pub fn load(ctx: &Context, args: args::Load, quiet: bool) -> Outcome {
    let from = args.input.unwrap_or(args.archive);
    let source = if from == Path::new("-") {
        LoadSource::Stdin
    } else {
        LoadSource::Path(from)
    };
    let request = LoadRequest {
        source,
        name: args.tag,
        platform: args.platform,
    };
    let loaded = verbs::load(ctx, &request)?;
    tell_layers(ctx, &loaded, quiet || args.output.json);
    let mut out = stdout();
    if args.output.json {
        out.json(&loaded)?;
    } else {
        for image in &loaded {
            out.line(called(image))?;
        }
    }
    out.done()?;
    Ok(DONE)
}

/// `pull`
pub fn pull(ctx: &Context, args: args::Pull, quiet: bool) -> Outcome {
    let request = PullRequest {
        image: args.image,
        platform: args.platform,
        insecure: args.insecure,
        auth_file: None,
    };
    let pulled = verbs::pull(ctx, &request)?;
    tell_layers(
        ctx,
        std::slice::from_ref(&pulled),
        quiet || args.output.json,
    );
    print_one(&pulled, args.output.json)
}

/// `import`
pub fn import(ctx: &Context, args: args::Import, quiet: bool) -> Outcome {
    let source = if args.source == Path::new("-") {
        ImportSource::Stdin
    } else {
        ImportSource::Path(args.source)
    };
    let request = ImportRequest {
        source,
        name: args.image,
        changes: args.change,
        message: args.message,
        platform: args.platform,
    };
    let imported = verbs::import(ctx, &request)?;
    tell_layers(
        ctx,
        std::slice::from_ref(&imported),
        quiet || args.output.json,
    );
    print_one(&imported, args.output.json)
}

fn print_one(image: &BroughtIn, json: bool) -> Outcome {
    let mut out = stdout();
    if json {
        out.json(image)?;
    } else {
        out.line(called(image))?;
    }
    out.done()?;
    Ok(DONE)
}

/// What a user types to mean the image.
fn called(image: &BroughtIn) -> String {
    match image.names.as_slice() {
        [] => image.id.clone(),
        names => names.join("\n"),
    }
}

fn tell_layers(ctx: &Context, images: &[BroughtIn], quiet: bool) {
    for image in images {
        for (name, from) in &image.moved_names {
            ctx.progress.warn(&format!(
                "{name} was the name of image {from}, which keeps its id only"
            ));
        }
        if !quiet {
            let id = names::short(&image.id);
            let (new, present) = (image.new_layers, image.present_layers);
            ctx.progress.say(&match present {
                0 => format!("image {id}: {new} layers"),
                _ => format!("image {id}: {new} new layers, {present} that were there"),
            });
        }
    }
}

/// `save`
pub fn save(ctx: &Context, args: args::Save, quiet: bool) -> Outcome {
    let format = match args.format {
        args::SaveFormat::DockerArchive => SaveFormat::DockerArchive,
        args::SaveFormat::OciArchive => SaveFormat::OciArchive,
        args::SaveFormat::OciDir => SaveFormat::OciDirectory,
    };
    let target = match args.output {
        Some(path) if path != Path::new("-") => SaveTarget::Path(path),
        _ => {
            out::refuse_terminal("the archive")?;
            SaveTarget::Stdout
        }
    };
    let request = SaveRequest {
        images: args.images,
        target,
        format,
        compression: args.compress.map(compression),
    };
    let to_stdout = request.target == SaveTarget::Stdout;
    let saved = match verbs::save(ctx, &request) {
        Err(e) if to_stdout => return Err(Failure::of_output(e)),
        other => other?,
    };
    if !quiet {
        for image in saved {
            let name = image
                .names
                .first()
                .cloned()
                .unwrap_or_else(|| names::short(&image.id).to_owned());
            ctx.progress
                .say(&format!("saved {name} with manifest {}", image.manifest));
        }
    }
    Ok(DONE)
}

fn compression(how: args::Compression) -> Compression {
    match how {
        args::Compression::None => Compression::None,
        args::Compression::Gzip => Compression::Gzip,
        args::Compression::Zstd => Compression::Zstd,
    }
}

/// `push`
pub fn push(ctx: &Context, args: args::Push, quiet: bool) -> Outcome {
    let request = PushRequest {
        image: args.image,
        destination: args.destination,
        compression: compression(args.compress),
        insecure: args.insecure,
        auth_file: None,
    };
    let pushed = verbs::push(ctx, &request)?;
    if !quiet && !args.output.json {
        ctx.progress.say(&format!(
            "pushed {}: {} layers sent, {} were there",
            pushed.name, pushed.sent_layers, pushed.present_layers
        ));
    }
    let mut out = stdout();
    if args.output.json {
        out.json(&pushed)?;
    } else {
        out.line(&pushed.manifest)?;
    }
    out.done()?;
    Ok(DONE)
}

/// `tag`
pub fn tag(ctx: &Context, args: args::Tag) -> Outcome {
    if let Some(before) = verbs::tag(ctx, &args.image, &args.name)? {
        ctx.progress.warn(&format!(
            "{} was the name of image {before}, which keeps its id",
            args.name
        ));
    }
    Ok(DONE)
}

/// `images`
///
/// `--quiet` behind the verb prints ids, as Docker and Podman do.
pub fn images(ctx: &Context, args: args::Images, quiet: bool) -> Outcome {
    let found = verbs::images(ctx, args.filter.as_deref())?;
    let mut out = stdout();
    let id = |full: &str| {
        if args.no_trunc {
            full.to_owned()
        } else {
            names::short(full).to_owned()
        }
    };
    if args.output.json {
        out.json(&found)?;
    } else if args.ids || quiet {
        for image in &found {
            out.line(id(&image.id))?;
        }
    } else {
        let mut rows = Vec::new();
        for image in &found {
            let mut shown = image.names.clone();
            if shown.is_empty() {
                shown.push("<none>".to_owned());
            }
            for name in shown {
                let created = image
                    .created
                    .as_deref()
                    .and_then(|c| c.parse::<Timestamp>().ok());
                rows.push(vec![
                    name,
                    id(&image.id),
                    image.layers.to_string(),
                    created.map_or_else(String::new, out::ago),
                    out::bytes(image.size_bytes),
                ]);
            }
        }
        out.table(&["IMAGE", "ID", "LAYERS", "CREATED", "SIZE"], &rows)?;
    }
    out.done()?;
    Ok(DONE)
}

/// `history`
pub fn history(ctx: &Context, args: args::History) -> Outcome {
    let steps = verbs::history(ctx, &args.image)?;
    let mut out = stdout();
    if args.output.json {
        out.json(&steps)?;
        out.done()?;
        return Ok(DONE);
    }
    let short = |text: &str, length: usize| {
        let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
        if args.no_trunc || flat.chars().count() <= length {
            return flat;
        }
        flat.chars().take(length - 1).chain(['…']).collect()
    };
    let rows: Vec<_> = steps
        .iter()
        .map(|step| {
            let created = step
                .created
                .as_deref()
                .and_then(|c| c.parse::<Timestamp>().ok());
            vec![
                step.diff_id.as_deref().map_or_else(
                    || "-".to_owned(),
                    |id| {
                        if args.no_trunc {
                            id.to_owned()
                        } else {
                            names::short(id).to_owned()
                        }
                    },
                ),
                created.map_or_else(String::new, out::ago),
                if step.diff_id.is_some() {
                    out::bytes(step.size_bytes)
                } else {
                    "-".to_owned()
                },
                short(
                    step.created_by
                        .as_deref()
                        .or(step.comment.as_deref())
                        .unwrap_or(""),
                    60,
                ),
            ]
        })
        .collect();
    out.table(&["LAYER", "CREATED", "SIZE", "BY"], &rows)?;
    out.done()?;
    Ok(DONE)
}

/// `rmi`
pub fn rmi(ctx: &Context, args: args::Rmi, quiet: bool) -> Outcome {
    let mut image_gone = false;
    let code = for_all(&args.images, |image| -> Result<(), Failure> {
        let removed = verbs::rmi(ctx, image, args.force)?;
        image_gone |= removed.image.is_some();
        if !quiet {
            for name in &removed.names {
                ctx.progress.say(&format!("untagged {name}"));
            }
            if let Some(id) = &removed.image {
                ctx.progress
                    .say(&format!("removed image {}", names::short(id)));
            }
        }
        Ok(())
    })?;
    if image_gone {
        // Whoever removes an image wants its space: what nothing needs any more goes with it.
        let gone = keep::gc(ctx, false)?;
        let layers = gone.iter().filter(|g| g.kind == "snapshot");
        let count = layers.clone().count();
        if !quiet && count > 0 {
            let freed = layers.filter_map(|g| g.size).map(|size| size.bytes).sum();
            ctx.progress
                .say(&format!("freed {} of {count} layers", out::bytes(freed)));
        }
    }
    Ok(code)
}
