//! The whole life of a mount program: command line, serving process, messages and exit code.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::names::{Asked, Call, Name, help, read, usage};
use crate::options::Manners;
use crate::{daemon, layers, parse, report, serve};

/// Done.
const DONE: i32 = 0;
/// Understood, tried, failed.
const FAILED: i32 = 1;
/// Not understood.
const MISUSED: i32 = 2;

/// How this process was started.
#[derive(Debug)]
pub struct Started {
    /// The name this program was called by.
    pub called_as: OsString,
    /// Everything after it, without [`daemon::SERVE_ARGUMENT`].
    pub arguments: Vec<OsString>,
    /// This process serves a mount; it is not the one that was asked for it.
    pub serves: bool,
}

impl Started {
    /// Takes this process's command line. A process started as an assistant becomes one here and
    /// does not return before it fails; then its exit code does.
    pub fn take() -> std::result::Result<Started, i32> {
        let mut words = std::env::args_os();
        let called_as = words.next().unwrap_or_default();
        let mut arguments: Vec<OsString> = words.collect();
        let first = arguments.first().map(OsString::as_os_str);
        if first == Some(OsStr::new(daemon::ASSIST_ARGUMENT)) {
            report::line(&daemon::assist().to_string());
            return Err(FAILED);
        }
        let serves = first == Some(OsStr::new(daemon::SERVE_ARGUMENT));
        if serves {
            arguments.remove(0);
        }
        Ok(Started {
            called_as,
            arguments,
            serves,
        })
    }
}

/// Runs the whole command line under another name. Returns the exit code.
pub fn by_name(name: Name, started: &Started) -> i32 {
    let manners = match name {
        Name::FuseOverlayfs => Manners::FuseOverlayfs,
        Name::MountHelper => Manners::Own,
    };
    let call = match read(name, &started.arguments) {
        Ok(Asked::Help) => {
            println(help(name).trim_end());
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
            return done.map_or_else(|error| failed(&error.into()), |()| DONE);
        }
        Err(why) => {
            report::line(&format!("{} {why}", report::error_word(report::colours())));
            report::line(&format!("hint: {}", usage(name)));
            return MISUSED;
        }
    };
    mount(manners, name.as_str(), call, started).unwrap_or_else(|error| failed(&error))
}

/// Reports a failure and returns its exit code.
fn failed(error: &Error) -> i32 {
    report::line(&report::text(error, error.hint(), report::colours()));
    match error.is_misuse() {
        true => MISUSED,
        false => FAILED,
    }
}

fn println(text: &str) {
    // Help and versions are results; a closed pipe is not an error.
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// The text that Podman shows in `podman info`, line by line.
fn version(name: Name) -> String {
    match name {
        Name::FuseOverlayfs => format!(
            "fuse-overlayfs: version 2.0.0\nprovided by Vellum {}",
            env!("CARGO_PKG_VERSION")
        ),
        Name::MountHelper => format!("{} {}", name.as_str(), env!("CARGO_PKG_VERSION")),
    }
}

/// Mounts as requested. Returns once the mount answers, with the exit code of the process that
/// serves it; in the foreground, when it is unmounted. `name` begins each message.
pub fn mount(manners: Manners, name: &str, call: Call, started: &Started) -> Result<i32> {
    let parsed = parse::parse(manners, &call.options)?;
    let here = std::env::current_dir().map_err(Error::io("find", "."))?;
    let options = parsed.options.made_absolute(&here);
    let target = place(&call.target)?;
    layers::apart_from(&target, &options)?;
    let foreground = call.foreground || options.debug;
    if !foreground && !started.serves {
        return daemon::start(&started.called_as, &started.arguments, &target);
    }
    if started.serves {
        daemon::begin();
    }
    // `-d` logs each request in the foreground.
    logging(if options.debug { "debug" } else { "warn" });
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

/// Logs to stderr. `VELLUM_LOG=debug` logs more; without it, the level is `usual`.
pub fn logging(usual: &str) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("VELLUM_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(usual));
    // Set once in a process; no other subscriber can be there before.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(report::colours())
        .without_time()
        .with_target(false)
        .try_init();
}

/// Returns the mount point without links: the mount is later found by that path.
fn place(target: &Path) -> Result<PathBuf> {
    let found = std::fs::metadata(target).and_then(|_| std::fs::canonicalize(target));
    let found = found.map_err(|e| match e.raw_os_error() {
        Some(errno) if errno == rustix::io::Errno::NOTCONN.raw_os_error() => Error::Unsupported {
            what: format!("the server of the mount on {} has died", target.display()),
            hint: format!("remove it with: umount --lazy {}", target.display()),
        },
        _ => Error::io("find", target)(e),
    })?;
    match found.is_dir() {
        true => Ok(found),
        false => Err(Error::Invalid {
            what: format!(
                "{} is not a directory, so nothing can be mounted on it",
                target.display()
            ),
            hint: None,
        }),
    }
}
