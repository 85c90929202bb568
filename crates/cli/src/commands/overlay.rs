//! `overlay`, under all its names: options to a mount, and the process that serves it.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use vellum_service::Error;
use vellum_service::overlay::options::{Manners, MountOptions};
use vellum_service::overlay::{daemon, layers, parse, serve};

use super::Outcome;
use crate::args;
use crate::exit_code::{self, DONE, Failure, MISUSED};
use crate::mount_names::{Asked, Call, Name, read, usage};
use crate::report;

/// Who serves the mount, once it is known what is asked for.
#[derive(Clone, Copy)]
pub struct Started<'a> {
    /// The name this program was called by.
    pub called_as: &'a OsStr,
    /// Everything behind it, [`daemon::SERVE_ARGUMENT`] left out.
    pub arguments: &'a [OsString],
    /// This is the process that serves.
    pub serves: bool,
}

/// `overlay`
pub fn overlay(args: args::Overlay, started: Started<'_>) -> Outcome {
    let mut places = args.places;
    let target = places.pop().unwrap_or_default();
    let mut options = args.options;
    if let Some(source) = places.pop() {
        let mut text = OsString::from("fsname=");
        text.push(source);
        options.insert(0, text);
    }
    if args.debug {
        options.push("debug".into());
    }
    let call = Call {
        target,
        options,
        foreground: args.foreground,
        ignored: Vec::new(),
    };
    mount(Manners::Own, "vellum", call, started)
}

/// The whole command line under another name. Returns the exit code.
pub fn by_name(name: Name, started: Started<'_>) -> i32 {
    let manners = match name {
        Name::FuseOverlayfs => Manners::FuseOverlayfs,
        Name::MountHelper => Manners::Own,
    };
    let call = match read(name, started.arguments) {
        Ok(Asked::Help) => {
            println(&usage(name));
            return DONE;
        }
        Ok(Asked::Version) => {
            println(&version(name));
            return DONE;
        }
        Ok(Asked::Nothing) => return DONE,
        Ok(Asked::Mount(call)) => call,
        Ok(Asked::Remount { target, options }) => {
            let done = vellum_sys::mount::remount(&target, options.iter().map(String::as_str));
            return match done.map_err(Error::from) {
                Ok(()) => DONE,
                Err(error) => {
                    let failure = Failure::from(error);
                    report::failure(&failure);
                    exit_code::of(&failure)
                }
            };
        }
        Err(why) => {
            report::failure(&Failure::misused(why));
            report::line(&format!("hint: {}", usage(name)));
            return MISUSED;
        }
    };
    match mount(manners, name.as_str(), call, started) {
        Ok(code) => code,
        Err(failure) => {
            report::failure(&failure);
            exit_code::of(&failure)
        }
    }
}

fn println(text: &str) {
    let mut out = crate::out::stdout();
    // Help and versions are results; a closed pipe is nobody's fault.
    let _ = out.line(text).and_then(|()| out.done());
}

/// Podman shows it in `podman info`, line by line.
fn version(name: Name) -> String {
    match name {
        Name::FuseOverlayfs => format!(
            "fuse-overlayfs: version 2.0.0\nprovided by Vellum {}",
            env!("CARGO_PKG_VERSION")
        ),
        Name::MountHelper => format!("{} {}", name.as_str(), env!("CARGO_PKG_VERSION")),
    }
}

fn mount(manners: Manners, name: &str, call: Call, started: Started<'_>) -> Outcome {
    let parsed = parse::parse(manners, &call.options).map_err(Error::from)?;
    let here = std::env::current_dir().map_err(Error::io("find", "."))?;
    let options = parsed.options.made_absolute(&here);
    let target = place(&call.target)?;
    layers::apart_from(&target, &options)?;
    let foreground = call.foreground || options.debug;
    if !foreground && !started.serves {
        return Ok(daemon::start(
            started.called_as,
            started.arguments,
            &target,
        )?);
    }
    if started.serves {
        daemon::begin();
    }
    logging(&options);
    let left_out: Vec<_> = call.ignored.into_iter().chain(parsed.unknown).collect();
    if !left_out.is_empty() {
        let words: Vec<_> = left_out.iter().map(|w| w.display().to_string()).collect();
        report::line(&format!(
            "{name}: unknown argument ignored: {}",
            words.join(", ")
        ));
    }
    let request = serve::Request {
        options,
        target,
        manners,
    };
    let log = std::env::var_os("VELLUM_LOG_FILE")
        .or_else(|| std::env::var_os("FUSE_OVERLAYFS_DEBUG_LOG"))
        .map(PathBuf::from);
    serve::serve(
        &request,
        |warning| report::line(&format!("{name}: warning: {warning}")),
        || match started.serves {
            true => daemon::ready(log.as_deref()),
            false => Ok(()),
        },
    )?;
    Ok(DONE)
}

/// Requests are told one by one in the foreground with `-d`; else what `VELLUM_LOG` says.
fn logging(options: &MountOptions) {
    crate::start::logging(if options.debug { "debug" } else { "warn" });
}

/// Where to mount, without links: what is mounted there is later found by that path.
fn place(target: &Path) -> Result<PathBuf, Failure> {
    let found = std::fs::metadata(target).and_then(|_| std::fs::canonicalize(target));
    let found = found.map_err(|e| match e.raw_os_error() {
        Some(libc::ENOTCONN) => Error::Unsupported {
            what: format!("{} is a mount whose server has died", target.display()),
            hint: format!("umount --lazy {} takes it away", target.display()),
        },
        _ => Error::io("find", target)(e),
    })?;
    match found.is_dir() {
        true => Ok(found),
        false => Err(Error::Invalid {
            what: format!("{} is no directory to mount on", target.display()),
            hint: None,
        }
        .into()),
    }
}
