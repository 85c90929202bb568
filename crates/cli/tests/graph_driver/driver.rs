//! A plugin, called as a daemon calls it, with every storage driver and both engines; and trees and
//! tars to put into it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use vellum_testkit::clients::{Home, Plugin, run};
use vellum_testkit::tree::Ignore;
use vellum_testkit::{is_root, untested};

pub const VELLUM: &str = env!("CARGO_BIN_EXE_vellum");

/// Every storage driver and engine.
pub const WAYS: [(&str, &[&str]); 4] = [
    ("overlay2", &["--engine", "kernel"]),
    ("overlay2, Vellum's engine", &["--engine", "vellum"]),
    ("overlay", &["--storage-driver", "overlay"]),
    ("native", &["--storage-driver", "native"]),
];

/// A plugin and the calls of a daemon.
pub struct Driver {
    pub plugin: Plugin,
    pub home: Home,
    pub way: &'static str,
}

impl Driver {
    pub fn start(way: &'static str, arguments: &[&str]) -> Self {
        let home = Home::new().unwrap();
        let plugin = Plugin::start(VELLUM, &home, arguments).unwrap();
        let driver = Self { plugin, home, way };
        driver.init();
        driver
    }

    pub fn init(&self) {
        let home = self.home.join("data").join(self.plugin.name());
        self.call(
            "Init",
            json!({ "Home": home, "Opts": null, "UIDMaps": null, "GIDMaps": null }),
        );
    }

    pub fn ask(&self, call: &str, body: Value) -> (u16, Value) {
        let path = format!("GraphDriver.{call}");
        let (status, answer) = self
            .plugin
            .post(&path, body.to_string().as_bytes())
            .unwrap();
        let answer = serde_json::from_slice(&answer)
            .unwrap_or_else(|e| panic!("{call}: {e}: {}", String::from_utf8_lossy(&answer)));
        (status, answer)
    }

    #[track_caller]
    pub fn call(&self, call: &str, body: Value) -> Value {
        let (status, answer) = self.ask(call, body.clone());
        assert_eq!(
            (status, &answer["Err"]),
            (200, &json!("")),
            "{}: {call} {body}: {answer}",
            self.way
        );
        answer
    }

    /// Makes a call that must fail; returns the error.
    #[track_caller]
    pub fn fails(&self, call: &str, body: Value) -> String {
        let (status, answer) = self.ask(call, body.clone());
        let said = answer["Err"].as_str().unwrap_or_default().to_owned();
        assert!(
            status == 500 && !said.is_empty(),
            "{}: {call} {body}: {status} {answer}",
            self.way
        );
        said
    }

    #[track_caller]
    pub fn create(&self, id: &str, parent: &str) {
        self.call(
            "Create",
            json!({ "ID": id, "Parent": parent, "MountLabel": "", "StorageOpt": null }),
        );
    }

    #[track_caller]
    pub fn create_read_write(&self, id: &str, parent: &str) {
        self.call("CreateReadWrite", json!({ "ID": id, "Parent": parent }));
    }

    #[track_caller]
    pub fn get(&self, id: &str) -> PathBuf {
        let dir = self.call("Get", json!({ "ID": id }))["Dir"]
            .as_str()
            .unwrap()
            .into();
        assert!(Path::new(&dir).is_dir());
        dir
    }

    #[track_caller]
    pub fn put(&self, id: &str) {
        self.call("Put", json!({ "ID": id }));
    }

    #[track_caller]
    pub fn remove(&self, id: &str) {
        self.call("Remove", json!({ "ID": id }));
    }

    /// Mounts a layer, calls `work` with its tree, and unmounts it.
    #[track_caller]
    pub fn with<T>(&self, id: &str, work: impl FnOnce(&Path) -> T) -> T {
        let dir = self.get(id);
        let done = work(&dir);
        self.put(id);
        done
    }

    #[track_caller]
    pub fn diff(&self, id: &str, parent: &str) -> Vec<u8> {
        let body = json!({ "ID": id, "Parent": parent }).to_string();
        let (status, tar) = self
            .plugin
            .post("GraphDriver.Diff", body.as_bytes())
            .unwrap();
        assert_eq!(
            status,
            200,
            "{}: {}",
            self.way,
            String::from_utf8_lossy(&tar)
        );
        tar
    }

    #[track_caller]
    pub fn apply(&self, id: &str, parent: &str, tar: &[u8], chunked: bool) -> u64 {
        let path = format!("GraphDriver.ApplyDiff?id={id}&parent={parent}");
        let (status, answer) = match chunked {
            true => self.plugin.post_in_chunks(&path, tar).unwrap(),
            false => self.plugin.post(&path, tar).unwrap(),
        };
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        assert_eq!(status, 200, "{}: {answer}", self.way);
        answer["Size"].as_u64().unwrap()
    }

    pub fn changes(&self, id: &str, parent: &str) -> Vec<(String, u64)> {
        let answer = self.call("Changes", json!({ "ID": id, "Parent": parent }));
        let list = answer["Changes"].as_array().unwrap().iter();
        list.map(|c| {
            (
                c["Path"].as_str().unwrap().to_owned(),
                c["Kind"].as_u64().unwrap(),
            )
        })
        .collect()
    }

    pub fn exists(&self, id: &str) -> bool {
        self.call("Exists", json!({ "ID": id }))["Exists"]
            .as_bool()
            .unwrap()
    }

    pub fn is_mounted(&self, dir: &Path) -> bool {
        vellum_testkit::scratch::mount_table()
            .lines()
            .any(|line| line.split(' ').nth(4) == dir.to_str())
    }

    /// Whether trees are shown by mounts, which are counted.
    pub fn mounts(&self) -> bool {
        self.way != "native"
    }
}

/// Runs `test` with every driver and both engines.
pub fn every_way(test: impl Fn(&Driver)) {
    if !is_root() {
        return untested("the graph driver", "the test does not run as root");
    }
    for (way, arguments) in WAYS {
        test(&Driver::start(way, arguments));
    }
}

pub fn every_way_mut(test: impl Fn(&mut Driver)) {
    if !is_root() {
        return untested("the graph driver", "the test does not run as root");
    }
    for (way, arguments) in WAYS {
        test(&mut Driver::start(way, arguments));
    }
}

pub fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

pub fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

pub fn many_files(dir: &Path, count: usize, seed: usize) {
    for at in 0..count {
        let sub = dir.join(format!("directory-{}", at / 100));
        fs::create_dir_all(&sub).unwrap();
        fs::write(
            sub.join(format!("file-{at}")),
            format!("{}", at * 31 + seed),
        )
        .unwrap();
    }
}

pub fn unpack(tar: &[u8], home: &Home, name: &str) -> PathBuf {
    let at = home.dir(name).unwrap();
    let file = home.join("unpack.tar");
    fs::write(&file, tar).unwrap();
    run(Command::new("tar")
        .args(["--xattrs", "--xattrs-include=*", "-xpf"])
        .arg(&file)
        .arg("-C")
        .arg(&at))
    .unwrap();
    at
}

/// A tar of the directory's content.
pub fn pack(dir: &Path) -> Vec<u8> {
    let done = Command::new("tar")
        .arg("-C")
        .arg(dir)
        .args(["--format=posix", "-c", "."])
        .output()
        .unwrap();
    assert!(done.status.success());
    done.stdout
}

/// Tars of changes have no entry for the root.
pub const ROOT_ASIDE: Ignore = Ignore {
    root: true,
    directory_mtimes: false,
    mtimes: false,
    nanoseconds: false,
    hard_links: false,
    owners: false,
    xattrs: false,
};
