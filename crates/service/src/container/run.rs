//! `run`: runs a command in a container, through runc, crun or a compatible runtime.
//!
//! It runs in the foreground: the runtime has this process's input, output and terminal, and its
//! exit code is the result; if it failed before it started the command, [`failure`] derives one
//! from its messages. The container's tree is mounted for the run and unmounted after it, unless it
//! was mounted before. A lock tells that it runs; it ends with this process, so after a crash no
//! container looks running.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;
use rustix::process::{Pid, Signal};
use vellum_store::ContainerRecord;
use vellum_sys::lock::Lock;

use crate::container::bundle::{ProcessRequest, compose};
use crate::context::Context;
use crate::error::{Error, ObjectKind, Result};
use crate::mount::mounted;
use crate::mount::umount;
use crate::{mount, names, run_dir};

mod failure;

/// What to run, and in which container.
#[derive(Clone, Debug)]
pub struct RunRequest {
    /// The container, by name or id.
    pub container: String,
    /// The process.
    pub process: ProcessRequest,
    /// Whether it gets this process's input.
    pub interactive: bool,
}

/// How long a container may take to end after the user asked to stop it.
const GRACE: Duration = Duration::from_secs(10);

/// A failing runtime writes only a few lines.
const LOG_LIMIT_BYTES: u64 = 1 << 20;

/// Runs the request's command to its end and returns its exit code: 128 plus the signal's number if
/// a signal ended it; 127 if the command is not there, 126 if it can't be executed, 125 if the
/// runtime failed before. In these three cases the runtime has reported the reason on stderr.
pub fn run(ctx: &Context, request: &RunRequest) -> Result<i32> {
    names::with_container(ctx, &request.container, |record| {
        let Some(_running) = run_dir::claim_run(ctx, &record.id)? else {
            return Err(Error::InUse {
                kind: ObjectKind::Container,
                name: record.name.clone(),
                by: "a `vellum run` is using it".into(),
                hint: "wait until it ends, or run the command in a container of its own".into(),
            });
        };
        let runtime = runtime(ctx)?;
        let lock = run_dir::lock_container(ctx, &record.id)?;
        let before = mounted::is_shown(ctx, record)?;
        let mounted = mount::mount_locked(ctx, record, None, false)?;
        let outcome = run_mounted(ctx, record, &runtime, &mounted.path, request, lock);
        if !before {
            let left = umount::umount_container(ctx, record, true);
            match (&outcome, left) {
                (Ok(0), left) => drop(left?),
                // The command's own exit code comes first.
                (Ok(_), Err(e)) => ctx
                    .progress
                    .warn(&format!("the container stays mounted: {e}")),
                (Ok(_), Ok(_)) | (Err(_), _) => {}
            }
        }
        outcome
    })
}

fn run_mounted(
    ctx: &Context,
    record: &ContainerRecord,
    runtime: &Path,
    tree: &Path,
    request: &RunRequest,
    lock: Lock,
) -> Result<i32> {
    let bundle = run_dir::make(ctx, "bundles")?.join(&record.id);
    // Left by a run that was killed; a runtime's old messages must not be taken for new ones.
    match fs::remove_dir_all(&bundle) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(Error::io("remove", &bundle)(e));
        }
        _ => {}
    }
    fs::create_dir_all(&bundle).map_err(Error::io("create", &bundle))?;
    let text = compose(ctx, record, tree, tree, &request.process)?;
    // Never held while the user's command runs.
    drop(lock);
    let config = bundle.join("config.json");
    fs::write(&config, text).map_err(Error::io("write", &config))?;
    let state = run_dir::make(ctx, "runtime")?;
    let id = names::short(&record.id);
    let (log, started) = (bundle.join("log"), bundle.join("pid"));
    let mut command = Command::new(runtime);
    command
        .arg("--root")
        .arg(&state)
        .arg("--log")
        .arg(&log)
        .args(["--log-format", "json", "run", "--pid-file"])
        .arg(&started)
        .arg("--bundle")
        .arg(&bundle)
        .arg(id);
    if !request.interactive && !request.process.tty {
        command.stdin(Stdio::null());
    }
    ctx.go_on()?;
    let child = command.spawn().map_err(|source| Error::Program {
        program: runtime.to_path_buf(),
        source,
    })?;
    let ended = wait(ctx, child);
    // Both clean up after a run themselves, unless they were killed.
    let _ = Command::new(runtime)
        .arg("--root")
        .arg(&state)
        .args(["delete", "--force", id])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let started = started.exists();
    let said = read_log(&log);
    // Only this run knows of it; at the latest it is gone after the next boot.
    let _ = fs::remove_dir_all(&bundle);
    let status = ended.map_err(Error::io("wait for", runtime))?;
    if started || status.success() || ctx.cancel.is_cancelled() {
        return Ok(code(status));
    }
    Ok(failure::code(&said))
}

/// Returns what the runtime wrote into its log; empty, if it wrote none.
fn read_log(path: &Path) -> String {
    let mut text = Vec::new();
    // It only makes the exit code more precise.
    let _ = fs::File::open(path).and_then(|file| file.take(LOG_LIMIT_BYTES).read_to_end(&mut text));
    String::from_utf8_lossy(&text).into_owned()
}

fn code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status
        .code()
        .or_else(|| status.signal().map(|s| 128 + s))
        .unwrap_or(1)
}

/// Waits for the runtime; if the user asks to stop, stops it too, and kills it after a while.
fn wait(ctx: &Context, mut child: Child) -> io::Result<ExitStatus> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let (done, ended) = crossbeam_channel::bounded(1);
    std::thread::spawn(move || {
        // The receiver may be gone.
        let _ = done.send(child.wait());
    });
    let mut asked: Option<Instant> = None;
    loop {
        match ended.recv_timeout(Duration::from_millis(50)) {
            Ok(status) => return status,
            Err(RecvTimeoutError::Disconnected) => return Err(io::ErrorKind::BrokenPipe.into()),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if !ctx.cancel.is_cancelled() {
            continue;
        }
        let signal = match asked {
            None => {
                asked = Some(Instant::now());
                Signal::TERM
            }
            Some(since) if since.elapsed() > GRACE => Signal::KILL,
            Some(_) => continue,
        };
        if let Some(pid) = pid {
            // It may have just ended.
            let _ = rustix::process::kill_process(pid, signal);
        }
    }
}

/// Finds the runtime: the configured one, else runc, else crun.
fn runtime(ctx: &Context) -> Result<PathBuf> {
    let search = |name: &Path| -> Option<PathBuf> {
        if name.components().count() > 1 {
            return name.exists().then(|| name.to_path_buf());
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let usual = [
            "/usr/local/sbin",
            "/usr/local/bin",
            "/usr/sbin",
            "/usr/bin",
            "/sbin",
            "/bin",
        ];
        std::env::split_paths(&path)
            .chain(usual.iter().map(PathBuf::from))
            .map(|dir| dir.join(name))
            .find(|file| file.is_file())
    };
    let configured = &ctx.config.runtime;
    let found = match &configured.value {
        Some(name) => search(name),
        None => search(Path::new("runc")).or_else(|| search(Path::new("crun"))),
    };
    found.ok_or_else(|| Error::Unsupported {
        what: match &configured.value {
            Some(name) => format!("there is no runtime {} ({})", name.display(), configured.source),
            None => "there is neither runc nor crun".into(),
        },
        hint: "install one (Debian: apt-get install runc), or name another with --runtime; `vellum bundle` works without one".into(),
    })
}
