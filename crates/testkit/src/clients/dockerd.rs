//! A dockerd of the test's own, on a unix socket, without network.

use super::{Home, find, run};
use anyhow::{Context, bail};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running dockerd (overlay2) with its own containerd. Stopped when dropped.
#[derive(Debug)]
pub struct Dockerd {
    child: Child,
    socket: PathBuf,
    exec_root: PathBuf,
    data_root: PathBuf,
}

impl Dockerd {
    /// Starts dockerd in `home` and waits until it answers.
    ///
    /// It is told to end when the calling thread does, so that an aborted test leaves no daemon.
    /// `extra` is added to the command line.
    pub fn start(home: &Home, extra: &[&str]) -> anyhow::Result<Self> {
        let dir = home.dir("dockerd")?;
        let program = find("dockerd").context("dockerd is not installed")?;
        let log_path = dir.join("log");
        // An empty one of its own: the machine's may name a driver or hosts.
        let config = dir.join("daemon.json");
        std::fs::write(&config, "{}")?;
        let log = std::fs::File::create(&log_path)?;
        let socket = dir.join("sock");
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "TERM"])
            .arg(program)
            .arg("--data-root")
            .arg(dir.join("data"))
            .arg("--exec-root")
            .arg(dir.join("exec"))
            .arg("--pidfile")
            .arg(dir.join("pid"))
            .arg("--host")
            .arg(format!("unix://{}", socket.display()))
            .arg("--config-file")
            .arg(config)
            .args(["--storage-driver", "overlay2"])
            .args(["--iptables=false", "--ip6tables=false", "--bridge=none"])
            .args(["--ip-forward=false", "--ip-masq=false"])
            .args(extra)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start dockerd")?;
        let mut daemon = Self {
            child,
            socket,
            exec_root: dir.join("exec"),
            data_root: dir.join("data"),
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        while run(daemon.command().arg("version")).is_err() {
            if daemon.child.try_wait()?.is_some() || Instant::now() > deadline {
                let log = std::fs::read_to_string(&log_path).unwrap_or_default();
                bail!("dockerd did not come up:\n{log}");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(daemon)
    }

    /// A `docker` command that speaks to this daemon.
    pub fn command(&self) -> Command {
        let mut command = Command::new("docker");
        command
            .arg("--host")
            .arg(format!("unix://{}", self.socket.display()));
        command
    }

    /// Runs `docker` with `arguments` and returns what it prints.
    pub fn docker(&self, arguments: &[&str]) -> anyhow::Result<String> {
        run(self.command().args(arguments))
    }

    /// Loads an archive and returns docker's output.
    pub fn load(&self, archive: &Path) -> anyhow::Result<String> {
        run(self.command().arg("load").arg("--input").arg(archive))
    }

    /// The directory of the daemon's data.
    pub fn data_root(&self) -> &Path {
        &self.data_root
    }

    /// The layer directories of `image`, uppermost first, as the overlay2 driver keeps them.
    pub fn layer_dirs(&self, image: &str) -> anyhow::Result<Vec<PathBuf>> {
        let format = "{{.GraphDriver.Data.UpperDir}}:{{.GraphDriver.Data.LowerDir}}";
        let text = self.docker(&["image", "inspect", "--format", format, image])?;
        Ok(text
            .split(':')
            .filter(|part| part.starts_with('/'))
            .map(PathBuf::from)
            .collect())
    }

    /// Mounts `image` read-only at `target` with the kernel's overlayfs: what a container of it
    /// would see, without the files that Docker adds to containers.
    pub fn mount_image(&self, image: &str, target: &Path) -> anyhow::Result<()> {
        let dirs = self.layer_dirs(image)?;
        let lowers: Vec<_> = dirs.iter().map(|dir| dir.display().to_string()).collect();
        std::fs::create_dir_all(target)?;
        let mut command = Command::new("mount");
        if let [only] = lowers.as_slice() {
            command.args(["--bind", only]);
        } else {
            let options = format!("ro,lowerdir={}", lowers.join(":"));
            command.args(["-t", "overlay", "overlay", "-o", &options]);
        }
        run(command.arg(target))?;
        Ok(())
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        // dockerd stops its containerd when it is asked to exit, but not when it is killed.
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id() as i32) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let deadline = Instant::now() + Duration::from_secs(30);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = self.child.kill(); // no effect on one that has ended
        let _ = self.child.wait();
        let pid_file = self.exec_root.join("containerd/containerd.pid");
        let containerd = std::fs::read_to_string(pid_file)
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = containerd {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}
