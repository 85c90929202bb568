//! `run`: a command in a container, through runc, crun or whatever speaks their language.
//!
//! In the foreground: the runtime has this process's input, output and terminal, its exit code is
//! the answer; where it never came as far as to start the command, [`failure`] makes one of its
//! words. The container's tree is mounted for the run and unmounted after it, unless it was mounted
//! before. While it runs, a lock says so; it ends with this process, so a crash leaves no container
//! that looks running.

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
    /// Give it this process's input.
    pub interactive: bool,
}

/// How long a container gets to end after the user asked to stop.
const GRACE: Duration = Duration::from_secs(10);

/// A runtime that fails says so in a few lines.
const LOG_LIMIT_BYTES: u64 = 1 << 20;

/// Runs the request's command to its end and returns its exit code: 128 and the signal's number if
/// one ended it; 127 if the command is not there, 126 if it can't be executed, 125 if the runtime
/// failed before. In these three cases the runtime has told on stderr what is wrong.
pub fn run(ctx: &Context, request: &RunRequest) -> Result<i32> {
    names::with_container(ctx, &request.container, |record| {
        let Some(_running) = run_dir::claim_run(ctx, &record.id)? else {
            return Err(Error::InUse {
                kind: ObjectKind::Container,
                name: record.name.clone(),
                by: "a `vellum run` of it is under way".into(),
                hint: "wait for its end, or run the command in a container of its own".into(),
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
                // What the command ended with comes first.
                (Ok(_), Err(e)) => ctx.progress.warn(&format!("it stays mounted: {e}")),
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
    // What a run that was killed may have left; a runtime's old words must not be taken for new
    // ones.
    match fs::remove_dir_all(&bundle) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(Error::io("remove", &bundle)(e));
        }
        _ => {}
    }
    fs::create_dir_all(&bundle).map_err(Error::io("create", &bundle))?;
    let text = compose(ctx, record, tree, tree, &request.process)?;
    // Never held while something of the user's runs.
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
    // Both clear up after a run by themselves, unless they were killed.
    let _ = Command::new(runtime)
        .arg("--root")
        .arg(&state)
        .args(["delete", "--force", id])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let started = started.exists();
    let said = read_log(&log);
    // Nobody but this run knows of it; it goes with the next boot at the latest.
    let _ = fs::remove_dir_all(&bundle);
    let status = ended.map_err(Error::io("wait for", runtime))?;
    if started || status.success() || ctx.cancel.is_cancelled() {
        return Ok(code(status));
    }
    Ok(failure::code(&said))
}

/// What the runtime wrote into its log; nothing, if it wrote none.
fn read_log(path: &Path) -> String {
    let mut text = Vec::new();
    // It only makes the exit code more exact.
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

/// Waits for the runtime; when the user asks to stop, it is asked too, and killed after a while.
fn wait(ctx: &Context, mut child: Child) -> io::Result<ExitStatus> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let (done, ended) = crossbeam_channel::bounded(1);
    std::thread::spawn(move || {
        // Nobody may be left to hear it.
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
            // It may have ended this very moment.
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
        hint: "install one (Debian: apt-get install runc), or name another with --runtime; `vellum bundle` needs none".into(),
    })
}
