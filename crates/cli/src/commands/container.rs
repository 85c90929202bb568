//! The verbs on containers.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use vellum_service::create::{CreateRequest, Origin, create as make};
use vellum_service::error::Kind;
use vellum_service::image::CommitRequest;
use vellum_service::mount::mounted::{self, Mounted};
use vellum_service::{Context, Error, containers, mount as mounts, names, umount};

use super::{Outcome, for_all};
use crate::args;
use crate::exit_code::{DONE, Failure};
use crate::out::{self, stdout};

/// Takes `KEY=VALUE` apart; a bare key has an empty value.
pub fn labels(texts: &[String]) -> std::collections::BTreeMap<String, String> {
    texts
        .iter()
        .map(|text| match text.split_once('=') {
            Some((key, value)) => (key.to_owned(), value.to_owned()),
            None => (text.clone(), String::new()),
        })
        .collect()
}

/// `create`
pub fn create(ctx: &Context, args: args::Create) -> Outcome {
    let origin = match (args.image, args.from) {
        (Some(image), None) => Origin::Image(image),
        (None, Some(dir)) => Origin::Directory(dir),
        _ => {
            return Err(Failure::misused(
                "name an image, or a directory with --from",
            ));
        }
    };
    let request = CreateRequest {
        origin,
        name: args.name,
        size_bytes: None,
        inodes: args.inodes.filter(|&inodes| inodes != 0),
        labels: labels(&args.label),
        volumes: Vec::new(),
    };
    let created = make(ctx, &request)?;
    let mounted = if args.mount {
        Some(mounts::mount_container(ctx, &created.name, None, false)?)
    } else {
        None
    };
    let mut out = stdout();
    match (&mounted, args.output.json) {
        (Some(mounted), true) => out.json(&CreatedAndMounted { created, mounted })?,
        (None, true) => out.json(&created)?,
        (Some(mounted), false) => out.line(mounted.path.as_os_str().as_bytes())?,
        (None, false) => out.line(&created.name)?,
    }
    out.done()?;
    Ok(DONE)
}

/// What `create --mount --json` prints: the container's fields and its mount.
#[derive(serde::Serialize)]
struct CreatedAndMounted<'a, C> {
    #[serde(flatten)]
    created: C,
    mounted: &'a Mounted,
}

/// `mount`
pub fn mount(ctx: &Context, args: args::Mount, quiet: bool) -> Outcome {
    let mut out = stdout();
    let name = match (&args.container, &args.image) {
        (None, None) => {
            let all = mounted::list(ctx)?;
            if args.output.json {
                out.json(&all)?;
            } else {
                let rows: Vec<_> = all
                    .iter()
                    .map(|m| {
                        let state = if m.dead { " (dead)" } else { "" };
                        vec![m.name.clone(), format!("{}{state}", m.path.display())]
                    })
                    .collect();
                out.table(&["CONTAINER", "MOUNTED AT"], &rows)?;
            }
            out.done()?;
            return Ok(DONE);
        }
        (Some(container), _) => container,
        (None, Some(image)) => image,
    };
    if args.dry_run {
        let plan = match &args.image {
            Some(image) => mounts::plan_image(ctx, image)?,
            None => mounts::plan_container(ctx, name, args.read_only)?,
        };
        let printed = plan.printed();
        if args.output.json {
            out.json(&printed)?;
        } else {
            out.bytes(printed.to_string().as_bytes())?;
        }
        out.done()?;
        return Ok(DONE);
    }
    let mounted = match (&args.image, &args.at) {
        (Some(image), Some(at)) => mounts::mount_image(ctx, image, at)?,
        _ => mounts::mount_container(ctx, name, args.target.as_deref(), args.read_only)?,
    };
    if args.output.json {
        out.json(&mounted)?;
    } else {
        out.line(mounted.path.as_os_str().as_bytes())?;
    }
    out.done()?;
    if !quiet && !ctx.process.in_first_namespace && !args.output.json {
        ctx.progress
            .say("(it shows inside your user namespace: `vellum unshare` enters it)");
    }
    Ok(DONE)
}

/// `umount`
pub fn umount(ctx: &Context, args: args::Umount, quiet: bool) -> Outcome {
    let tell = |places: Vec<std::path::PathBuf>| {
        if !quiet {
            for place in places {
                ctx.progress.say(&format!("unmounted {}", place.display()));
            }
        }
    };
    if args.all {
        tell(umount::umount_all(ctx, args.force)?);
        return Ok(DONE);
    }
    for_all(&args.names, |name| {
        let record = name.to_str().map(|text| names::container(ctx, text));
        let places = match record {
            Some(Ok(record)) => umount::umount_container(ctx, &record, args.force)?,
            // What is no container may be a place.
            Some(Err(
                missing @ Error::NotFound {
                    kind: Kind::Container,
                    ..
                },
            )) => {
                let path = Path::new(name);
                if path.components().count() < 2 && !path.exists() {
                    return Err(missing.into());
                }
                umount::umount_path(ctx, path, args.force)?
            }
            Some(Err(e)) => return Err(e.into()),
            None => umount::umount_path(ctx, Path::new(name), args.force)?,
        };
        tell(places);
        Ok(())
    })
}

/// `diff`
pub fn diff(ctx: &Context, args: args::Diff) -> Outcome {
    if args.tar {
        out::refuse_terminal("a tar")?;
        let record = names::container(ctx, &args.container)?;
        let mut tar = vellum_service::image::changes_tar(ctx, &record)
            .map_err(|error| names::unless_gone(ctx, &record, &args.container, error))?;
        let copied = copy_out(&mut tar);
        names::still_there(ctx, &record, &args.container)?;
        return copied;
    }
    let mut out = stdout();
    if args.output.json {
        let mut lines = Vec::new();
        vellum_service::diff::diff(ctx, &args.container, |line| {
            lines.push(line);
            Ok(())
        })?;
        out.json(&lines)?;
    } else {
        let mut written = Ok(());
        let listed = vellum_service::diff::diff(ctx, &args.container, |line| {
            let mut bytes = vec![line.kind as u8, b' '];
            bytes.extend_from_slice(line.path.as_os_str().as_bytes());
            written = out.line(bytes);
            // Nobody reads any more: stop as if asked to.
            if written.is_err() {
                Err(Error::Cancelled)
            } else {
                Ok(())
            }
        });
        written?;
        listed?;
    }
    out.done()?;
    Ok(DONE)
}

/// `rename`
pub fn rename(ctx: &Context, args: args::Rename) -> Outcome {
    containers::rename(ctx, &args.container, &args.name)?;
    Ok(DONE)
}

/// `rm`
pub fn rm(ctx: &Context, args: args::Rm) -> Outcome {
    for_all(&args.containers, |name| {
        let removed = match containers::remove(ctx, name, args.force) {
            Err(Error::InUse { by, .. })
                if !args.force
                    && out::confirm(&format!(
                        "`{name}` is in use ({by}); remove it all the same?"
                    )) =>
            {
                containers::remove(ctx, name, true)?
            }
            other => other?,
        };
        let mut out = stdout();
        out.line(&removed.name)?;
        out.done()
    })
}

/// `ls`
///
/// `--quiet` behind the verb prints ids, as Docker and Podman do.
pub fn ls(ctx: &Context, args: args::Ls, quiet: bool) -> Outcome {
    let path = args.filter.as_deref().unwrap_or_default();
    if args.tree.is_named() || path.as_bytes().contains(&b':') {
        return super::union::ls(ctx, path, &args);
    }
    let Some(filter) = args
        .filter
        .as_deref()
        .map_or(Some(None), |f| f.to_str().map(Some))
    else {
        return Err(Failure::misused("a container's name is text"));
    };
    let all = containers::list(ctx, filter, args.size)?;
    let mut out = stdout();
    if args.output.json {
        out.json(&all)?;
    } else if args.ids || quiet {
        for container in &all {
            let whole = args.ids || args.no_trunc;
            out.line(if whole {
                &container.id
            } else {
                names::short(&container.id)
            })?;
        }
    } else {
        let mut head = vec!["NAME", "ID", "FROM", "CREATED", "STATE"];
        if args.size {
            head.push("SIZE");
        }
        let rows: Vec<_> = all
            .iter()
            .map(|c| {
                let from = match (&c.image, &c.from) {
                    (Some(image), _) => image.clone(),
                    (None, Some(dir)) => dir.display().to_string(),
                    (None, None) => "-".to_owned(),
                };
                let id = if args.no_trunc {
                    c.id.clone()
                } else {
                    names::short(&c.id).to_owned()
                };
                let mut row = vec![
                    c.name.clone(),
                    id,
                    from,
                    out::ago(c.created),
                    c.state.to_owned(),
                ];
                if let Some(size) = c.size_bytes {
                    row.push(out::bytes(size));
                }
                row
            })
            .collect();
        out.table(&head, &rows)?;
    }
    out.done()?;
    Ok(DONE)
}

/// Copies a stream to stdout.
fn copy_out(from: &mut impl std::io::Read) -> Outcome {
    let mut out = stdout();
    let mut buffer = vec![0; 128 << 10];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(got) => out.bytes(&buffer[..got])?,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::io("read", "the changes")(e).into()),
        }
    }
    out.done()?;
    Ok(DONE)
}

/// `commit`
pub fn commit(ctx: &Context, args: args::Commit, quiet: bool) -> Outcome {
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
            ctx.progress.say(&format!("{name} named {from} until now"));
        }
    }
    Ok(DONE)
}

/// `cp`
pub fn cp(ctx: &Context, args: args::Cp) -> Outcome {
    use vellum_service::cp::{End, Options, copy};
    let (from, to) = (End::parse(&args.source), End::parse(&args.destination));
    if to == End::Pipe {
        out::refuse_terminal("a tar")?;
    }
    let options = Options {
        archive: args.archive,
        follow: args.follow_link,
    };
    match copy(
        ctx,
        &from,
        &to,
        options,
        std::io::stdin(),
        std::io::stdout().lock(),
    ) {
        Ok(()) => Ok(DONE),
        Err(e) if to == End::Pipe => Err(Failure::of_output(e)),
        Err(e) => Err(e.into()),
    }
}
