//! A containerd of the test's own, on a unix socket, and its snapshotter's server.
//!
//! Both can be killed and started again at the same path, as in crashes and upgrades. Containers
//! run under shims that outlive containerd; dropping it ends them too, found by the socket's name
//! in their command lines.

use super::{Home, find, run};
use anyhow::{Context, bail};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a server may take to answer on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);

/// A program that serves on a socket until it is stopped. Killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    program: PathBuf,
    arguments: Vec<String>,
    log: PathBuf,
    child: Option<Child>,
    /// A directory that comes first on its search path.
    finds: Option<PathBuf>,
}

impl Daemon {
    /// Describes a daemon whose output is appended to `log`; nothing is started.
    pub fn new(program: &Path, arguments: Vec<String>, log: PathBuf) -> Self {
        Self {
            program: program.into(),
            arguments,
            log,
            child: None,
            finds: None,
        }
    }

    /// Makes it, and what it starts, look for programs in `dir` first.
    pub fn finding(mut self, dir: &Path) -> Self {
        self.finds = Some(dir.into());
        self
    }

    /// `PATH`, if it differs from this process's.
    fn search_path(&self) -> Option<(&'static str, std::ffi::OsString)> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let dirs = std::iter::once(self.finds.clone()?).chain(std::env::split_paths(&path));
        Some(("PATH", std::env::join_paths(dirs).ok()?))
    }

    /// Starts it and waits until `answers`. It is killed when the calling thread ends.
    pub fn start(&mut self, answers: impl Fn() -> bool) -> anyhow::Result<()> {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&self.log)?;
        let mut command = Command::new("setpriv");
        command.envs(self.search_path());
        let child = command
            .args(["--pdeathsig", "KILL"])
            .arg(&self.program)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        let child = self.child.insert(child);
        let deadline = Instant::now() + PATIENCE;
        while !answers() {
            if child.try_wait()?.is_some() || Instant::now() > deadline {
                let program = self.program.display().to_string();
                bail!("{program} did not come up:\n{}", self.said());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Its process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Kills it as a crash would: none of its handlers run.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill(); // no effect on one that has ended
            let _ = child.wait();
        }
    }

    /// Asks it to exit and waits until it has.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        let Some(child) = &mut self.child else {
            return Ok(());
        };
        if let Some(pid) = rustix::process::Pid::from_raw(child.id() as i32) {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        }
        let deadline = Instant::now() + PATIENCE;
        while child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                bail!("{} does not exit", self.program.display());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.child = None;
        Ok(())
    }

    /// Its output so far.
    pub fn said(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

/// `vellum serve containerd` with a store of its own.
#[derive(Debug)]
pub struct SnapshotServer {
    /// The server.
    pub daemon: Daemon,
    socket: PathBuf,
    root: PathBuf,
}

impl SnapshotServer {
    /// Starts the command at `program` in directory `name` of `home`. `containerd` is the socket of
    /// the containerd it will serve; `extra` goes before the verb.
    pub fn start(
        program: &str,
        home: &Home,
        name: &str,
        containerd: &Path,
        extra: &[&str],
    ) -> anyhow::Result<Self> {
        let dir = home.dir(name)?;
        let config = dir.join("vellum.toml");
        std::fs::write(&config, "")?;
        let socket = dir.join("s");
        let root = dir.join("root");
        let text = |path: &Path| path.display().to_string();
        let mut arguments = vec![
            "--root".into(),
            text(&root),
            "--run-dir".into(),
            text(&dir.join("run")),
            "--config".into(),
            text(&config),
        ];
        arguments.extend(extra.iter().map(|&word| word.to_owned()));
        arguments.extend(["serve", "containerd", "--socket"].map(str::to_owned));
        arguments.extend([text(&socket), "--containerd".into(), text(containerd)]);
        let mut server = Self {
            daemon: Daemon::new(Path::new(program), arguments, dir.join("log")),
            socket,
            root,
        };
        server.start_again()?;
        Ok(server)
    }

    /// Restarts it at the same path after [`Daemon::kill`] or [`Daemon::stop`].
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        let socket = self.socket.clone();
        self.daemon
            .start(|| std::os::unix::net::UnixStream::connect(&socket).is_ok())
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The store's directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The trees that have a directory of the store's driver.
    pub fn trees(&self) -> anyhow::Result<Vec<String>> {
        let mut names = Vec::new();
        let dir = self.root.join("overlay2");
        for entry in std::fs::read_dir(&dir).with_context(|| dir.display().to_string())? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name != "l" {
                names.push(name);
            }
        }
        Ok(names)
    }
}

/// containerd's name for the server's snapshotter.
pub const SNAPSHOTTER: &str = "vellum";

/// A running containerd with one proxy snapshotter, [`SNAPSHOTTER`].
#[derive(Debug)]
pub struct Containerd {
    /// The daemon.
    pub daemon: Daemon,
    socket: PathBuf,
    root: PathBuf,
}

impl Containerd {
    /// Where the containerd of `home` will listen: its snapshotter needs this before containerd
    /// runs.
    pub fn socket_in(home: &Home) -> PathBuf {
        home.join("ctd/sock")
    }

    /// Starts containerd in `home` and waits until it answers. `snapshotter` is the proxy's socket.
    pub fn start(home: &Home, snapshotter: &Path) -> anyhow::Result<Self> {
        Self::begin(home, &Self::usual(home, snapshotter)?, None)
    }

    /// As [`Containerd::start`]; it and its shims look for programs in `dir` first.
    pub fn start_finding(home: &Home, snapshotter: &Path, dir: &Path) -> anyhow::Result<Self> {
        Self::begin(home, &Self::usual(home, snapshotter)?, Some(dir))
    }

    /// The configuration of a containerd in `home`.
    fn usual(home: &Home, snapshotter: &Path) -> anyhow::Result<String> {
        let dir = home.dir("ctd")?;
        let socket = Self::socket_in(home);
        let root = dir.join("root");
        Ok(format!(
            r#"version = 2
root = "{root}"
state = "{state}"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
  address = "{socket}"
[proxy_plugins.{SNAPSHOTTER}]
  type = "snapshot"
  address = "{proxy}"
"#,
            root = root.display(),
            state = dir.join("state").display(),
            socket = socket.display(),
            proxy = snapshotter.display(),
        ))
    }

    /// Starts containerd in `home` with the caller's configuration, which must make it listen at
    /// [`Containerd::socket_in`] and keep its data in `ctd/root` and `ctd/state`.
    pub fn start_with(home: &Home, config_text: &str) -> anyhow::Result<Self> {
        Self::begin(home, config_text, None)
    }

    fn begin(home: &Home, config_text: &str, finds: Option<&Path>) -> anyhow::Result<Self> {
        let dir = home.dir("ctd")?;
        let program = find("containerd").context("containerd is not installed")?;
        let socket = Self::socket_in(home);
        let root = dir.join("root");
        let config = dir.join("config.toml");
        std::fs::write(&config, config_text)?;
        let arguments = vec!["--config".into(), config.display().to_string()];
        let daemon = Daemon::new(&program, arguments, dir.join("log"));
        let mut containerd = Self {
            daemon: match finds {
                None => daemon,
                Some(finds) => daemon.finding(finds),
            },
            socket,
            root,
        };
        containerd.start_again()?;
        Ok(containerd)
    }

    /// Restarts it at the same path after [`Daemon::kill`] or [`Daemon::stop`].
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        let socket = self.socket.clone();
        self.daemon
            .start(|| run(ctr(&socket, "default").arg("version")).is_ok())
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its data directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A `ctr` command in `namespace`.
    pub fn command(&self, namespace: &str) -> Command {
        let mut command = ctr(&self.socket, namespace);
        // `ctr run` also mounts the tree itself, to look for users in it.
        command.envs(self.daemon.search_path());
        command
    }

    /// Runs `ctr` in the namespace `default` and returns what it prints.
    pub fn ctr(&self, arguments: &[&str]) -> anyhow::Result<String> {
        run(self.command("default").args(arguments))
    }

    /// Runs `ctr` until it succeeds: after a restart of the snapshotter the next calls may still
    /// meet a closed connection.
    pub fn ctr_patiently(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.ctr(arguments) {
                Err(_) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(200));
                }
                outcome => return outcome,
            }
        }
    }

    /// A `ctr run` in `namespace` on the snapshotter; the caller adds further options, the image,
    /// the id and a command.
    ///
    /// The runtime keeps its state below this containerd's own directory: the usual directory is
    /// shared by all.
    pub fn run_command(&self, namespace: &str) -> Command {
        let mut command = self.command(namespace);
        command
            .args(["run", "--snapshotter", SNAPSHOTTER, "--runc-root"])
            .arg(self.root.with_file_name("runc"));
        command
    }

    /// Runs an image's own command in a short-lived container; returns its output, without the last
    /// newline.
    ///
    /// containerd writes that into a file: `ctr` closes its pipes when the container ends, read or
    /// not.
    pub fn run_once(&self, namespace: &str, image: &str, id: &str) -> anyhow::Result<String> {
        let said = self.root.with_file_name(format!("{namespace}-{id}.log"));
        let mut command = self.run_command(namespace);
        command.arg("--log-uri");
        command.arg(format!("file://{}", said.display()));
        run(command.args(["--rm", image, id]))?;
        let text = std::fs::read_to_string(&said)?;
        std::fs::remove_file(&said)?;
        Ok(text.trim_end().to_owned())
    }

    /// The keys of the snapshots in `namespace`.
    pub fn snapshots(&self, namespace: &str) -> anyhow::Result<Vec<String>> {
        let text =
            run(self
                .command(namespace)
                .args(["snapshots", "--snapshotter", SNAPSHOTTER, "ls"]))?;
        Ok(text
            .lines()
            .skip(1)
            .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
            .collect())
    }
}

fn ctr(socket: &Path, namespace: &str) -> Command {
    let mut command = Command::new("ctr");
    command
        .arg("--address")
        .arg(socket)
        .args(["--namespace", namespace]);
    command
}

impl Drop for Containerd {
    fn drop(&mut self) {
        self.daemon.kill();
        let sockets = self.shim_sockets();
        let address = self.socket.as_os_str().as_encoded_bytes().to_vec();
        let shims: Vec<u32> = processes()
            .filter(|pid| {
                let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                let mut words = line.split(|&byte| byte == 0);
                words.next().is_some_and(|name| {
                    name.windows(b"containerd-shim".len())
                        .any(|part| part == b"containerd-shim")
                }) && words.any(|word| word == address)
            })
            .collect();
        for shim in shims {
            let children = std::fs::read_to_string(format!("/proc/{shim}/task/{shim}/children"))
                .unwrap_or_default();
            let children = children
                .split_whitespace()
                .filter_map(|pid| pid.parse().ok());
            for pid in std::iter::once(shim as i32).chain(children) {
                if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                    // If it is already gone, that is fine.
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                }
            }
        }
        for socket in sockets {
            // A shim that ended by itself has removed it.
            let _ = std::fs::remove_file(socket);
        }
    }
}

impl Containerd {
    /// The shims' sockets, which lie in a directory that all containerds share.
    fn shim_sockets(&self) -> Vec<PathBuf> {
        let tasks = self
            .root
            .with_file_name("state")
            .join("io.containerd.runtime.v2.task");
        let entries = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries(&tasks)
            .flat_map(|namespace| entries(&namespace.path()).collect::<Vec<_>>())
            .filter_map(|task| {
                let address = std::fs::read_to_string(task.path().join("address")).ok()?;
                Some(PathBuf::from(address.trim().strip_prefix("unix://")?))
            })
            .collect()
    }
}

fn processes() -> impl Iterator<Item = u32> {
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}
