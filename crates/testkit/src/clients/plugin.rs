//! `vellum serve docker` as a process, and the little HTTP that a Docker daemon speaks with it.

use super::Home;
use anyhow::{Context, bail};
use rustix::process::Signal;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running plugin with its own store; killed when dropped.
#[derive(Debug)]
pub struct Plugin {
    program: PathBuf,
    arguments: Vec<String>,
    dir: PathBuf,
    name: String,
    child: Option<Child>,
}

impl Plugin {
    /// Starts the command at `program` with a store below `home` and waits until it answers.
    ///
    /// The socket lies where daemons look for it, under a unique name. `arguments` come before the
    /// verb.
    pub fn start(program: &str, home: &Home, arguments: &[&str]) -> anyhow::Result<Self> {
        let name = home
            .path()
            .file_name()
            .context("the home has a name")?
            .to_string_lossy()
            .to_lowercase();
        let mut plugin = Self {
            program: program.into(),
            arguments: arguments.iter().map(|a| (*a).to_owned()).collect(),
            dir: home.dir("plugin")?,
            name,
            child: None,
        };
        std::fs::write(plugin.dir.join("vellum.toml"), "")?;
        plugin.begin()?;
        Ok(plugin)
    }

    /// The driver's name, as `--storage-driver` takes it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The socket.
    pub fn socket(&self) -> PathBuf {
        Path::new("/run/docker/plugins").join(format!("{}.sock", self.name))
    }

    /// The store.
    pub fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// The directory for data that lives until the next boot.
    pub fn run_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// A command on the plugin's store with its settings; the caller adds the verb.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .env_remove("VELLUM_ROOT")
            .arg("--root")
            .arg(self.root())
            .arg("--run-dir")
            .arg(self.run_dir())
            .arg("--config")
            .arg(self.dir.join("vellum.toml"))
            .args(&self.arguments);
        command
    }

    /// Starts the process, which must not be running.
    pub fn begin(&mut self) -> anyhow::Result<()> {
        let log = std::fs::File::options()
            .append(true)
            .create(true)
            .open(self.dir.join("log"))?;
        let child = self
            .command()
            .args(["serve", "docker", "--socket"])
            .arg(self.socket())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start the plugin")?;
        let child = self.child.insert(child);
        let socket = Path::new("/run/docker/plugins").join(format!("{}.sock", self.name));
        let deadline = Instant::now() + Duration::from_secs(60);
        while UnixStream::connect(&socket).is_err() {
            if child.try_wait()?.is_some() || Instant::now() > deadline {
                bail!("the plugin did not come up:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Ends the process with `signal` and waits for it.
    pub fn end(&mut self, signal: Signal) -> anyhow::Result<()> {
        let Some(mut child) = self.child.take() else {
            return Ok(());
        };
        if let Some(pid) = rustix::process::Pid::from_raw(child.id() as i32) {
            rustix::process::kill_process(pid, signal)?;
        }
        child.wait()?;
        Ok(())
    }

    /// Kills the process with SIGKILL and starts it again.
    pub fn kill_and_restart(&mut self) -> anyhow::Result<()> {
        self.end(Signal::KILL)?;
        self.begin()
    }

    /// Its output so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// Sends `body` to `path` and returns status and answer. Errors if the answer is cut off.
    pub fn post(&self, path: &str, body: &[u8]) -> anyhow::Result<(u16, Vec<u8>)> {
        let head = format!(
            "POST /{path} HTTP/1.1\r\nHost: plugin\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        self.exchange(&[head.as_bytes(), body])
    }

    /// As [`Plugin::post`], in chunks of irregular sizes and without a content length.
    pub fn post_in_chunks(&self, path: &str, body: &[u8]) -> anyhow::Result<(u16, Vec<u8>)> {
        let head = format!(
            "POST /{path} HTTP/1.1\r\nHost: plugin\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        );
        let mut sent = head.into_bytes();
        for chunk in body.chunks(7001) {
            sent.extend(format!("{:x}\r\n", chunk.len()).bytes());
            sent.extend(chunk);
            sent.extend(b"\r\n");
        }
        sent.extend(b"0\r\n\r\n");
        self.exchange(&[&sent])
    }

    /// Sends the pieces as they are and reads one answer.
    pub fn exchange(&self, pieces: &[&[u8]]) -> anyhow::Result<(u16, Vec<u8>)> {
        self.exchange_slowly(pieces, Duration::ZERO)
    }

    /// As [`Plugin::exchange`], with a pause before each piece but the first.
    pub fn exchange_slowly(
        &self,
        pieces: &[&[u8]],
        pause: Duration,
    ) -> anyhow::Result<(u16, Vec<u8>)> {
        let mut stream = UnixStream::connect(self.socket())?;
        stream.set_read_timeout(Some(Duration::from_secs(120)))?;
        for (n, piece) in pieces.iter().enumerate() {
            if n > 0 {
                std::thread::sleep(pause);
            }
            stream.write_all(piece)?;
        }
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        parse(&answer)
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("-- the plugin said\n{}", self.log());
        }
        // Nothing is left to report to, and a process that has ended is what we want.
        let _ = self.end(Signal::KILL);
        let _ = std::fs::remove_file(self.socket());
    }
}

fn parse(answer: &[u8]) -> anyhow::Result<(u16, Vec<u8>)> {
    let at = answer
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .context("an answer without a head")?;
    let head = String::from_utf8_lossy(&answer[..at]).to_lowercase();
    let body = &answer[at + 4..];
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|s| s.parse().ok())
        .context("an answer without a status")?;
    if !head.contains("transfer-encoding: chunked") {
        return Ok((status, body.to_vec()));
    }
    let mut rest = body;
    let mut all = Vec::new();
    loop {
        let end = rest
            .windows(2)
            .position(|w| w == b"\r\n")
            .context("the answer breaks off")?;
        let length = usize::from_str_radix(std::str::from_utf8(&rest[..end])?.trim(), 16)?;
        if length == 0 {
            return Ok((status, all));
        }
        let chunk = rest
            .get(end + 2..end + 2 + length)
            .context("the answer breaks off")?;
        all.extend(chunk);
        rest = rest
            .get(end + 4 + length..)
            .context("the answer breaks off")?;
    }
}
