//! A snapshotter server on its own store, and a client.
#![allow(dead_code)] // each test program uses a part of it

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use vellum_snapshotter::api::services::snapshots::v1 as wire;
use vellum_snapshotter::api::types::Mount;
use vellum_testkit::clients::Home;
use wire::snapshots_client::SnapshotsClient;

pub type Labels = BTreeMap<String, String>;

/// How long anything may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(120);

pub fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_string()))
        .collect()
}

/// Waits until `done`; on timeout, fails with what it waited for.
#[track_caller]
pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < until, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A store, its server and a client. Everything is ended and unmounted at the end.
pub struct Server {
    // Dropped first: the server must be gone before its directory.
    child: Option<Child>,
    pub runtime: Runtime,
    pub home: Home,
    flags: Vec<String>,
    serve_flags: Vec<String>,
    pub environment: Vec<(String, String)>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Server {
    /// Starts one; `None`, and recorded as untested, if not run as root.
    pub fn start(flags: &[&str], serve_flags: &[&str]) -> Option<Self> {
        let mut server = Self::stopped(flags, serve_flags)?;
        server.spawn();
        Some(server)
    }

    /// The same, not started.
    pub fn stopped(flags: &[&str], serve_flags: &[&str]) -> Option<Self> {
        if !vellum_testkit::needs_root("the snapshotter's trees") {
            return None;
        }
        let owned = |list: &[&str]| list.iter().map(|text| text.to_string()).collect();
        Some(Self {
            child: None,
            runtime: Runtime::new().unwrap(),
            home: Home::new().unwrap(),
            flags: owned(flags),
            serve_flags: owned(serve_flags),
            environment: Vec::new(),
        })
    }

    pub fn socket(&self) -> PathBuf {
        self.home.join("s")
    }

    pub fn root(&self) -> PathBuf {
        self.home.join("v")
    }

    /// A command on the same store.
    pub fn vellum(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vellum"));
        let config = self.home.join("vellum.toml");
        if !config.exists() {
            std::fs::write(&config, "").unwrap();
        }
        command
            .env_remove("VELLUM_ROOT")
            .env_remove("NOTIFY_SOCKET")
            .envs(self.environment.iter().cloned())
            .arg("--root")
            .arg(self.root())
            .arg("--run-dir")
            .arg(self.home.join("r"))
            .arg("--config")
            .arg(config)
            .args(&self.flags);
        command
    }

    pub fn serve_command(&self) -> Command {
        let mut command = self.vellum();
        command
            .args(["serve", "containerd", "--socket"])
            .arg(self.socket())
            .args(&self.serve_flags);
        command
    }

    /// Starts the server and waits until it answers.
    pub fn spawn(&mut self) {
        let log = std::fs::File::options()
            .append(true)
            .create(true)
            .open(self.home.join("log"))
            .unwrap();
        let child = self
            .serve_command()
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        self.wait_until_it_answers();
    }

    pub fn wait_until_it_answers(&mut self) {
        let until = Instant::now() + PATIENCE;
        while std::os::unix::net::UnixStream::connect(self.socket()).is_err() {
            let ended = self.child.as_mut().and_then(|c| c.try_wait().unwrap());
            assert!(
                ended.is_none() && Instant::now() < until,
                "no server ({ended:?}): {}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.home.join("log")).unwrap_or_default()
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// Sends SIGKILL, whatever the server is doing.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have gone already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub fn signal(&self, signal: i32) {
        let pid = rustix::process::Pid::from_raw(self.pid() as i32).unwrap();
        let signal = rustix::process::Signal::from_named_raw(signal).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Sends SIGTERM, and waits for a clean exit.
    pub fn end(&mut self) {
        self.signal(15);
        let status = self.child.take().unwrap().wait().unwrap();
        assert!(status.success(), "{status}: {}", self.log());
    }

    /// A client whose connection is made when it is first used.
    pub fn client(&self) -> Client {
        let _in = self.runtime.enter();
        let endpoint = Endpoint::from_shared(format!("unix://{}", self.socket().display()))
            .unwrap()
            .connect_lazy();
        Client {
            wire: SnapshotsClient::new(endpoint).max_decoding_message_size(16 << 20),
            runtime: self.runtime.handle().clone(),
        }
    }

    /// Checks the store with the command: records and trees agree, and no litter is kept.
    #[track_caller]
    pub fn assert_sound(&self) {
        let said = self.vellum().arg("check").output().unwrap();
        assert!(
            said.status.success(),
            "{}{}",
            String::from_utf8_lossy(&said.stdout),
            String::from_utf8_lossy(&said.stderr)
        );
    }
}

/// A blocking client. Errors are codes with their text.
#[derive(Clone)]
pub struct Client {
    pub wire: SnapshotsClient<Channel>,
    runtime: tokio::runtime::Handle,
}

impl Client {
    pub fn prepare_with(
        &self,
        key: &str,
        parent: &str,
        labels: Labels,
    ) -> Result<Vec<Mount>, Status> {
        let request = wire::PrepareSnapshotRequest {
            snapshotter: "vellum".into(),
            key: key.into(),
            parent: parent.into(),
            labels,
        };
        let mut wire = self.wire.clone();
        let answer = self.runtime.block_on(wire.prepare(request))?;
        Ok(answer.into_inner().mounts)
    }

    pub fn prepare(&self, key: &str, parent: &str) -> Result<Vec<Mount>, Status> {
        self.prepare_with(key, parent, Labels::new())
    }

    pub fn view(&self, key: &str, parent: &str) -> Result<Vec<Mount>, Status> {
        let request = wire::ViewSnapshotRequest {
            snapshotter: "vellum".into(),
            key: key.into(),
            parent: parent.into(),
            labels: Labels::new(),
        };
        let mut wire = self.wire.clone();
        Ok(self
            .runtime
            .block_on(wire.view(request))?
            .into_inner()
            .mounts)
    }

    pub fn mounts(&self, key: &str) -> Result<Vec<Mount>, Status> {
        let request = wire::MountsRequest {
            snapshotter: "vellum".into(),
            key: key.into(),
        };
        let mut wire = self.wire.clone();
        Ok(self
            .runtime
            .block_on(wire.mounts(request))?
            .into_inner()
            .mounts)
    }

    pub fn commit_on(
        &self,
        name: &str,
        key: &str,
        labels: Labels,
        parent: &str,
    ) -> Result<(), Status> {
        let request = wire::CommitSnapshotRequest {
            snapshotter: "vellum".into(),
            name: name.into(),
            key: key.into(),
            labels,
            parent: parent.into(),
        };
        let mut wire = self.wire.clone();
        self.runtime.block_on(wire.commit(request)).map(drop)
    }

    pub fn commit(&self, name: &str, key: &str) -> Result<(), Status> {
        self.commit_on(name, key, Labels::new(), "")
    }

    pub fn remove(&self, key: &str) -> Result<(), Status> {
        let request = wire::RemoveSnapshotRequest {
            snapshotter: "vellum".into(),
            key: key.into(),
        };
        let mut wire = self.wire.clone();
        self.runtime.block_on(wire.remove(request)).map(drop)
    }

    pub fn stat(&self, key: &str) -> Result<wire::Info, Status> {
        let request = wire::StatSnapshotRequest {
            snapshotter: "vellum".into(),
            key: key.into(),
        };
        let mut wire = self.wire.clone();
        let answer = self.runtime.block_on(wire.stat(request))?.into_inner();
        Ok(answer.info.unwrap())
    }

    pub fn update(&self, info: wire::Info, mask: Option<&[&str]>) -> Result<wire::Info, Status> {
        let request = wire::UpdateSnapshotRequest {
            snapshotter: "vellum".into(),
            info: Some(info),
            update_mask: mask.map(|paths| prost_types::FieldMask {
                paths: paths.iter().map(|path| path.to_string()).collect(),
            }),
        };
        let mut wire = self.wire.clone();
        let answer = self.runtime.block_on(wire.update(request))?.into_inner();
        Ok(answer.info.unwrap())
    }

    /// Returns all messages of a list, each with its snapshots; `between` is called after each.
    pub fn list_messages(
        &self,
        filters: &[&str],
        mut between: impl FnMut(&[wire::Info]),
    ) -> Result<Vec<Vec<wire::Info>>, Status> {
        let request = wire::ListSnapshotsRequest {
            snapshotter: "vellum".into(),
            filters: filters.iter().map(|filter| filter.to_string()).collect(),
        };
        let mut wire = self.wire.clone();
        let mut stream = self.runtime.block_on(wire.list(request))?.into_inner();
        let mut messages = Vec::new();
        while let Some(message) = self.runtime.block_on(stream.message())? {
            between(&message.info);
            messages.push(message.info);
        }
        Ok(messages)
    }

    pub fn list(&self, filters: &[&str]) -> Result<Vec<wire::Info>, Status> {
        Ok(self.list_messages(filters, |_| {})?.concat())
    }

    pub fn names(&self, filters: &[&str]) -> Vec<String> {
        let listed = self.list(filters).unwrap();
        listed.into_iter().map(|info| info.name).collect()
    }

    pub fn usage(&self, key: &str) -> Result<(i64, i64), Status> {
        let request = wire::UsageRequest {
            snapshotter: "vellum".into(),
            key: key.into(),
        };
        let mut wire = self.wire.clone();
        let answer = self.runtime.block_on(wire.usage(request))?.into_inner();
        Ok((answer.size, answer.inodes))
    }

    pub fn cleanup(&self) -> Result<(), Status> {
        let request = wire::CleanupRequest {
            snapshotter: "vellum".into(),
        };
        let mut wire = self.wire.clone();
        self.runtime.block_on(wire.cleanup(request)).map(drop)
    }

    /// A layer with one file `name`, on `parent`.
    #[track_caller]
    pub fn layer(&self, name: &str, parent: &str) {
        let key = format!("making {name}");
        let mounts = self.prepare(&key, parent).unwrap();
        std::fs::write(upper(&mounts).join(name.replace('/', "_")), name).unwrap();
        self.commit(name, &key).unwrap();
    }
}

/// Returns where a snapshot's own files are, as an unpacker finds it: the source of a bind mount,
/// or an overlay's upper.
#[track_caller]
pub fn upper(mounts: &[Mount]) -> PathBuf {
    let [mount] = mounts else {
        panic!("{} mounts", mounts.len());
    };
    match mount.r#type.as_str() {
        "bind" => mount.source.clone().into(),
        _ => value(mount, "upperdir=").into(),
    }
}

/// The value of an option.
#[track_caller]
pub fn value<'a>(mount: &'a Mount, name: &str) -> &'a str {
    mount
        .options
        .iter()
        .find_map(|option| option.strip_prefix(name))
        .unwrap_or_else(|| panic!("no {name} in {:?}", mount.options))
}

/// Mounts as containerd does: mount(8) with the options unchanged; FUSE types through their helper.
#[track_caller]
pub fn mount_at(mounts: &[Mount], at: &Path) {
    std::fs::create_dir_all(at).unwrap();
    for mount in mounts {
        let mut command = match mount.r#type.strip_prefix("fuse3.") {
            Some(program) => {
                let mut command = Command::new("mount.fuse3");
                let bin = Path::new(env!("CARGO_BIN_EXE_vellum")).parent().unwrap();
                let path = std::env::var("PATH").unwrap_or_default();
                command.env("PATH", format!("{}:{path}", bin.display()));
                command.arg(&mount.source).arg(at).args(["-t", program]);
                for option in &mount.options {
                    command.arg("-o").arg(option);
                }
                command
            }
            None => {
                let mut command = Command::new("mount");
                command.arg("-n").arg("-i");
                if mount.r#type != "bind" {
                    command.args(["-t", &mount.r#type]);
                }
                command
                    .arg("-o")
                    .arg(mount.options.join(","))
                    .arg(&mount.source)
                    .arg(at);
                command
            }
        };
        vellum_testkit::clients::run(&mut command).unwrap();
    }
}

#[track_caller]
pub fn unmount(at: &Path) {
    vellum_testkit::scratch::unmount(at).unwrap();
}

#[track_caller]
pub fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, text: &str) {
    let status = answer.expect_err("a refusal");
    assert_eq!(status.code(), code, "{status:?}");
    assert!(status.message().contains(text), "{status:?}");
}
