//! The verbs on the store as a whole: inspect, info, df, gc, check, why.

use std::sync::Arc;

use serde_json::{Value, json};
use vellum_service::error::Kind;
use vellum_service::keep::{self, Size};
use vellum_service::names::short_key;
use vellum_service::progress::Silent;
use vellum_service::{
    Cancel, Context, Error, check as checks, image, info as infos, inspect as inspects, volumes,
};

use super::Outcome;
use crate::args;
use crate::exit_code::{DONE, FAILED, Failure};
use crate::out::{self, stdout};

/// `inspect`: an array in the order of the names. Containers come first, then images, then volumes.
pub fn inspect(ctx: &Context, args: args::Inspect) -> Outcome {
    let mut found = Vec::new();
    for name in &args.names {
        found.push(one(ctx, name)?);
    }
    let mut out = stdout();
    out.json(&found)?;
    out.done()?;
    Ok(DONE)
}

fn one(ctx: &Context, name: &str) -> Result<Value, Failure> {
    match inspects::inspect_container(ctx, name) {
        Err(Error::NotFound {
            kind: Kind::Container,
            ..
        }) => {}
        other => return Ok(other?),
    }
    match image::inspect_image(ctx, name) {
        Err(Error::NotFound {
            kind: Kind::Image, ..
        }) => {}
        other => return Ok(other?),
    }
    match volumes::find(ctx, name) {
        Ok(volume) => {
            let mut value = json!({ "kind": "volume" });
            let fields = serde_json::to_value(volume).map_err(|e| Failure::other(e.to_string()))?;
            if let (Value::Object(all), Value::Object(fields)) = (&mut value, fields) {
                all.extend(fields);
            }
            Ok(value)
        }
        Err(Error::NotFound { .. }) => Err(Failure::other(format!(
            "there is no container, image or volume `{name}`\nhint: `vellum ls`, `vellum images` and `vellum volume ls` list them"
        ))),
        Err(e) => Err(e.into()),
    }
}

/// `info`
pub fn info(ctx: &Context, args: args::Info) -> Outcome {
    let info = infos::info(ctx)?;
    let mut out = stdout();
    if args.output.json {
        out.json(&info)?;
        out.done()?;
        return Ok(DONE);
    }
    let yes = |b: bool| if b { "true" } else { "false" };
    let kernel = &info.kernel;
    let count = |driver: &str| {
        info.snapshots
            .iter()
            .find(|(d, _)| d == driver)
            .map_or(0, |(_, n)| *n)
    };
    let mut line = |name: &str, value: &str| out.line(format!("{name}: {value}"));
    line("Vellum", info.version)?;
    line("Storage Driver", &info.driver)?;
    line(" Backing Filesystem", &info.backing_filesystem)?;
    line(" Supports d_type", yes(info.supports_d_type))?;
    line(" Whiteouts", info.whiteouts)?;
    line(" Native Overlay Diff", yes(info.native_diff))?;
    line(" userxattr", yes(info.userxattr))?;
    line(" Project Quota", info.project_quota)?;
    line(" Reflink", yes(info.reflink))?;
    line("Store", &info.root.display().to_string())?;
    line(" Schema", &info.schema.to_string())?;
    line(" Images", &info.images.to_string())?;
    line(" Containers", &info.containers.to_string())?;
    line(" Volumes", &info.volumes.to_string())?;
    for driver in ["overlay2", "overlay", "native"] {
        if count(driver) > 0 {
            line(&format!(" Trees of {driver}"), &count(driver).to_string())?;
        }
    }
    line("Run Directory", &info.run_dir.display().to_string())?;
    line("Kernel", &kernel.release)?;
    line(" Layers as Descriptors (6.13)", yes(kernel.layer_fds))?;
    line(
        " Layers One by One, lowerdir+ (6.8)",
        yes(kernel.lowerdir_plus),
    )?;
    line(" redirect_dir", yes(kernel.redirect_dir))?;
    line(" metacopy", yes(kernel.metacopy))?;
    line(" index", yes(kernel.index))?;
    line(" xino", yes(kernel.xino))?;
    line(" FUSE over io_uring", info.fuse_io_uring)?;
    line("Mounts", "")?;
    line(" Method", info.mount_method)?;
    line(" Most Layers", &info.max_layers.to_string())?;
    line("Rootless", yes(info.rootless))?;
    out.line("Limits:")?;
    for limit in &info.limits {
        out.line(format!(" {}: {}", limit.what, limit.why))?;
    }
    out.line("Settings:")?;
    for setting in &info.settings {
        out.line(format!(
            " {} = {} ({})",
            setting.name, setting.value, setting.source
        ))?;
    }
    out.done()?;
    Ok(DONE)
}

/// `df`
pub fn df(ctx: &Context, args: args::Df) -> Outcome {
    let disk = keep::df(ctx)?;
    let mut out = stdout();
    if args.output.json {
        out.json(&disk)?;
        out.done()?;
        return Ok(DONE);
    }
    let size = |s: &Size| vec![out::bytes(s.bytes), s.inodes.to_string()];
    if args.verbose {
        let rows: Vec<_> = disk
            .items
            .iter()
            .map(|item| {
                let name = match item.names.first() {
                    Some(name) if item.kind == "image" => vellum_service::names::familiar(name),
                    Some(name) => name.clone(),
                    None => short_key(&item.id),
                };
                let mut row = vec![item.kind.to_owned(), name];
                row.extend(size(&item.exclusive));
                row.extend(size(&item.shared));
                row.push(item.users.to_string());
                row
            })
            .collect();
        out.table(
            &[
                "KIND", "NAME", "OWN", "INODES", "SHARED", "INODES", "USED BY",
            ],
            &rows,
        )?;
        out.line("")?;
    }
    let mut rows = Vec::new();
    for (kind, title) in [
        ("layer", "layers"),
        ("container", "containers"),
        ("workspace", "workspaces"),
        ("volume", "volumes"),
    ] {
        let of: Vec<_> = disk.items.iter().filter(|i| i.kind == kind).collect();
        let sum = of.iter().fold(Size::default(), |sum, item| {
            // A layer counts once, whoever has it.
            let extra = if kind == "layer" {
                item.shared
            } else {
                Size::default()
            };
            Size {
                bytes: sum.bytes + item.exclusive.bytes + extra.bytes,
                inodes: sum.inodes + item.exclusive.inodes + extra.inodes,
            }
        });
        if kind == "workspace" && of.is_empty() {
            continue;
        }
        let mut row = vec![title.to_owned(), of.len().to_string()];
        row.extend(size(&sum));
        rows.push(row);
    }
    for (title, part) in [("blobs", &disk.content), ("recipes", &disk.recipes)] {
        let mut row = vec![title.to_owned(), part.inodes.to_string()];
        row.extend(size(part));
        rows.push(row);
    }
    let mut row = vec!["total".to_owned(), String::new()];
    row.extend(size(&disk.total));
    rows.push(row);
    out.table(&["WHAT", "COUNT", "SIZE", "INODES"], &rows)?;
    out.done()?;
    if disk.unused_layers.inodes > 0 {
        ctx.progress.say(&format!(
            "{} in layers that no image has: `vellum gc` frees it",
            out::bytes(disk.unused_layers.bytes)
        ));
    }
    Ok(DONE)
}

/// `gc`
pub fn gc(ctx: &Context, args: args::Gc, quiet: bool) -> Outcome {
    if args.rebuilt {
        // Nothing held is as good.
        let _ = keep::let_go_of_rebuilt(ctx)?;
    }
    let all = keep::gc(ctx, args.dry_run)?;
    let mut out = stdout();
    if args.output.json {
        out.json(&all)?;
    } else {
        for item in &all {
            let size = item
                .size
                .map_or_else(String::new, |s| format!(", {}", out::bytes(s.bytes)));
            let cause = item
                .cause
                .as_ref()
                .map_or_else(String::new, |c| format!(": {c}"));
            out.line(format!(
                "{} {} {}{cause} ({}{size})",
                item.fate, item.kind, item.what, item.why
            ))?;
        }
    }
    out.done()?;
    if !quiet && all.is_empty() {
        ctx.progress.say("nothing to collect");
    }
    Ok(DONE)
}

/// Says what a stopped command has left in the store, as `gc --dry-run` finds it.
pub fn left(ctx: &Context) -> String {
    // The one at hand is stopped, and so would be each question to it.
    let ctx = Context::new(ctx.config.clone(), Cancel::new(), Arc::new(Silent));
    let Ok(all) = keep::gc(&ctx, true) else {
        return "`vellum gc --dry-run` shows what is left".to_owned();
    };
    let bytes: u64 = all
        .iter()
        .filter_map(|item| item.size)
        .map(|size| size.bytes)
        .sum();
    match all.len() {
        0 => "nothing is left for `vellum gc` to remove".to_owned(),
        count => format!(
            "what was complete stays for the next try; `vellum gc` would now remove {count} {} ({})",
            if count == 1 { "item" } else { "items" },
            out::bytes(bytes),
        ),
    }
}

/// `check`: code 1 if something is wrong and was not put right.
pub fn check(ctx: &Context, args: args::Check, quiet: bool) -> Outcome {
    if args.rebuild {
        return rebuild(ctx, &args, quiet);
    }
    let wrong = checks::check(ctx, args.heal, args.deep)?;
    let mut out = stdout();
    if args.output.json {
        out.json(&wrong)?;
    } else {
        for item in &wrong {
            let healed = if item.healed { " (put right)" } else { "" };
            out.line(format!("{}: {}{healed}", item.what, item.why))?;
        }
    }
    out.done()?;
    let left = wrong.iter().filter(|w| !w.healed).count();
    if !quiet {
        match (wrong.len(), left) {
            (0, _) => ctx.progress.say("all is well"),
            (_, 0) => ctx.progress.say("everything found was put right"),
            _ if args.heal => ctx.progress.say(&format!(
                "{left} left as they are; docs/operations.md says what to do"
            )),
            _ => ctx.progress.say(&format!(
                "{left} found; `vellum check --heal` puts right what follows from the records"
            )),
        }
    }
    Ok(if left == 0 { DONE } else { FAILED })
}

fn rebuild(ctx: &Context, args: &args::Check, quiet: bool) -> Outcome {
    if !args.force
        && !out::confirm("make the database anew from the records beside it? The old one is kept.")
    {
        return Err(Failure::misused(
            "--rebuild needs --force where nobody can be asked",
        ));
    }
    let rebuilt = keep::rebuild(ctx)?;
    let mut out = stdout();
    if args.output.json {
        out.json(&rebuilt)?;
    } else {
        out.line(format!(
            "{} snapshots, {} images, {} containers, {} volumes",
            rebuilt.snapshots, rebuilt.images, rebuilt.containers, rebuilt.volumes
        ))?;
        for lost in &rebuilt.lost {
            out.line(format!("lost: {}: {}", lost.what, lost.why))?;
        }
    }
    out.done()?;
    if let (false, Some(old)) = (quiet, &rebuilt.old_database) {
        ctx.progress
            .say(&format!("the old database is {}", old.display()));
    }
    if !quiet {
        ctx.progress
            .say("everything found is held: when you have looked, `vellum gc --rebuilt` takes what nothing needs");
    }
    Ok(if rebuilt.lost.is_empty() {
        DONE
    } else {
        FAILED
    })
}

/// `why`
pub fn why(ctx: &Context, args: args::Why) -> Outcome {
    let why = keep::why(ctx, &args.path)?;
    let mut out = stdout();
    if args.output.json {
        out.json(&why)?;
    } else {
        out.line(&why.what)?;
        for reason in &why.kept_by {
            out.line(format!("  kept by {reason}"))?;
        }
        if why.kept_by.is_empty() {
            out.line("  nothing keeps it: the next `vellum gc` takes it")?;
        }
    }
    out.done()?;
    Ok(DONE)
}
