//! A separate store for each test, used through the real command, and archives created by the test.
#![allow(dead_code)] // each test program uses a part of it

pub mod damaged;
pub mod layered;
pub mod podman;

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use vellum_format::Digest;
use vellum_image::{LayerWriter, Platform, TarEntry, TarKind};
use vellum_sys::{Timespec, mount};
use vellum_testkit::{Scratch, needs_root};

/// A store and its run directory in a scratch place; everything is unmounted at the end.
pub struct World {
    pub scratch: Scratch,
    name: &'static str,
    flags: Vec<String>,
}

/// A command's output and how it ended.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl World {
    /// `None`, and recorded as untested, if not run as root.
    pub fn new() -> Option<World> {
        Self::with(&[])
    }

    /// The same with flags for every command.
    pub fn with(flags: &[&str]) -> Option<World> {
        if !needs_root("mounting") {
            return None;
        }
        let flags = flags.iter().map(|f| (*f).to_owned()).collect();
        Some(World {
            scratch: Scratch::new(),
            name: "store",
            flags,
        })
    }

    pub fn root(&self) -> PathBuf {
        self.scratch.join(self.name).join("root")
    }

    pub fn run_dir(&self) -> PathBuf {
        self.scratch.join(self.name).join("run")
    }

    /// Returns a command with a clean environment.
    pub fn command(&self, args: &[impl AsRef<OsStr>]) -> Command {
        self.command_at(&self.root(), args)
    }

    /// The same on another store.
    pub fn command_at(&self, root: &Path, args: &[impl AsRef<OsStr>]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vellum"));
        command
            .arg("--root")
            .arg(root)
            .arg("--run-dir")
            .arg(self.run_dir())
            .args(&self.flags)
            .args(args);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", self.scratch.path())
            .env("VELLUM_CONFIG", self.scratch.file("vellum.toml", ""))
            .stdin(Stdio::null());
        command
    }

    pub fn run(&self, args: &[&str]) -> Said {
        said(self.command(args).output().unwrap())
    }

    /// Runs a command that must succeed and returns what it printed, without the last newline.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        let said = self.run(args);
        assert_eq!(said.code, 0, "{args:?}: {}", said.err);
        said.out.trim_end_matches('\n').to_owned()
    }

    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(args)).unwrap()
    }

    /// Runs a command that must fail with `code` and returns its error text.
    #[track_caller]
    pub fn fails(&self, code: i32, args: &[&str]) -> String {
        let said = self.run(args);
        assert_eq!(said.code, code, "{args:?}: {said:?}");
        said.err
    }

    /// Mounts a container and returns where.
    #[track_caller]
    pub fn mounted(&self, container: &str) -> PathBuf {
        PathBuf::from(self.ok(&["mount", container]))
    }

    /// Runs a command with this input.
    pub fn run_with_input(&self, args: &[&str], input: &[u8]) -> Said {
        let mut child = self
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let feeder = std::thread::spawn(move || {
            // The command may have stopped reading.
            let _ = stdin.write_all(&input);
        });
        let out = child.wait_with_output().unwrap();
        feeder.join().unwrap();
        said(out)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Err(e) = mount::unmount_all(self.scratch.path()) {
            eprintln!("mounts stay: {e}");
        }
    }
}

pub fn said(out: Output) -> Said {
    Said {
        code: out.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&out.stdout).into_owned(),
        err: String::from_utf8_lossy(&out.stderr).into_owned(),
    }
}

/// A layer under construction.
pub struct LayerTar(LayerWriter<Vec<u8>>);

/// Starts a layer. Entries must come in path order.
pub fn layer() -> LayerTar {
    LayerTar(LayerWriter::new(Vec::new()))
}

impl LayerTar {
    fn entry(self, path: &str, kind: TarKind, mode: u32, data: &[u8]) -> Self {
        self.owned(path, kind, (mode, 0, 0), data)
    }

    /// Anything, with its mode, uid and gid.
    pub fn owned(
        mut self,
        path: &str,
        kind: TarKind,
        (mode, uid, gid): (u32, u32, u32),
        mut data: &[u8],
    ) -> Self {
        let entry = TarEntry {
            path: path.into(),
            kind,
            mode,
            uid,
            gid,
            mtime: Timespec::new(1_600_000_000, 0),
            xattrs: Vec::new(),
        };
        self.0.append(&entry, &mut data).unwrap();
        self
    }

    pub fn dir(self, path: &str) -> Self {
        self.entry(path, TarKind::Directory, 0o755, &[])
    }

    pub fn file(self, path: &str, content: impl AsRef<[u8]>) -> Self {
        let content = content.as_ref();
        self.entry(
            path,
            TarKind::File {
                size_bytes: content.len() as u64,
            },
            0o644,
            content,
        )
    }

    pub fn program(self, path: &str, content: &[u8]) -> Self {
        self.entry(
            path,
            TarKind::File {
                size_bytes: content.len() as u64,
            },
            0o755,
            content,
        )
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(
            path,
            TarKind::Symlink {
                target: target.into(),
            },
            0o777,
            &[],
        )
    }

    pub fn whiteout(mut self, path: &str) -> Self {
        self.0.whiteout(Path::new(path)).unwrap();
        self
    }

    pub fn done(self) -> Vec<u8> {
        self.0.finish().unwrap()
    }
}

/// Writes a docker-archive of many images, each with its tag, layers and the `config` section of
/// its configuration. A layer that several have is written once.
pub fn archive_of_many(at: &Path, images: &[(String, Vec<&[u8]>, Value)]) {
    let platform = Platform::host();
    let mut files = std::collections::BTreeMap::new();
    let mut manifest = Vec::new();
    for (tag, layers, config) in images {
        let diff_ids: Vec<String> = layers.iter().map(|l| Digest::of(l).to_string()).collect();
        let names: Vec<String> = diff_ids
            .iter()
            .map(|id| format!("{}.tar", &id[7..]))
            .collect();
        for (name, bytes) in names.iter().zip(layers) {
            files.entry(name.clone()).or_insert_with(|| bytes.to_vec());
        }
        let config = json!({
            "architecture": platform.architecture,
            "os": platform.os,
            "config": config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = config.to_string();
        let name = format!("{}.json", &Digest::of(config.as_bytes()).to_string()[7..]);
        manifest.push(json!({ "Config": name, "RepoTags": [tag], "Layers": names }));
        files.insert(name, config.into_bytes());
    }
    let mut outer = layer();
    for (name, bytes) in &files {
        outer = outer.file(name, bytes);
    }
    let bytes = outer
        .file("manifest.json", Value::from(manifest).to_string())
        .done();
    std::fs::write(at, bytes).unwrap();
}

/// Writes a docker-archive of one image and returns its path.
pub fn archive(scratch: &Scratch, tag: &str, layers: &[Vec<u8>], config: Value) -> PathBuf {
    let mut outer = layer();
    let diff_ids: Vec<String> = layers.iter().map(|l| Digest::of(l).to_string()).collect();
    let platform = Platform::host();
    let config = json!({
        "architecture": platform.architecture,
        "os": platform.os,
        "config": config,
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
        "history": diff_ids.iter().map(|_| json!({ "created_by": "test" })).collect::<Vec<_>>(),
    });
    outer = outer.file("config.json", config.to_string());
    let names: Vec<String> = (0..layers.len())
        .map(|at| format!("layer-{at:04}.tar"))
        .collect();
    for (name, bytes) in names.iter().zip(layers) {
        outer = outer.file(name, bytes);
    }
    let manifest = json!([{ "Config": "config.json", "RepoTags": [tag], "Layers": names }]);
    let bytes = outer.file("manifest.json", manifest.to_string()).done();
    scratch.file(format!("{}.tar", tag.replace([':', '/'], "-")), bytes)
}

/// An image of two layers with a whiteout in the upper one.
pub fn small(scratch: &Scratch) -> PathBuf {
    let base = layer()
        .dir("dir")
        .file("dir/inner", "inner\n")
        .dir("etc")
        .file("etc/gone", "gone\n")
        .file("etc/hostname", "below\n")
        .symlink("link", "etc/hostname")
        .done();
    let top = layer()
        .dir("etc")
        .whiteout("etc/gone")
        .file("etc/top", "top\n")
        .done();
    archive(
        scratch,
        "small:1",
        &[base, top],
        json!({ "Cmd": ["/bin/sh"], "Env": ["A=1"] }),
    )
}

/// An image with a shell, if the machine has a static busybox.
pub fn with_shell(scratch: &Scratch) -> Option<PathBuf> {
    let busybox = std::fs::read("/usr/bin/busybox").or_else(|_| std::fs::read("/bin/busybox"));
    let Ok(busybox) = busybox else {
        vellum_testkit::untested("containers with a shell", "there is no busybox");
        return None;
    };
    let mut tar = layer().dir("bin").program("bin/busybox", &busybox);
    for name in ["cat", "echo", "env", "id", "ls", "sh", "sleep"] {
        tar = tar.symlink(&format!("bin/{name}"), "busybox");
    }
    let tar = tar
        .dir("etc")
        .file("etc/group", "root:x:0:\nteam:x:50:app\napp:x:1000:\n")
        .file(
            "etc/passwd",
            "root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n",
        )
        .dir("tmp")
        .done();
    Some(archive(
        scratch,
        "shell:1",
        &[tar],
        json!({ "Cmd": ["/bin/echo", "hello"], "Env": ["A=1", "PATH=/bin"] }),
    ))
}
