//! Mounts: counted across restarts, busy, and covered by foreign mounts.

use std::fs;
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;
use serde_json::json;
use vellum_testkit::clients::{find, run};
use vellum_testkit::scratch::unmount;

use super::driver::{every_way, every_way_mut, names};

#[test]
fn mounts_are_counted_through_restarts() {
    every_way_mut(|driver| {
        driver.create("base", "");
        driver.with("base", |dir| fs::write(dir.join("f"), "x").unwrap());
        driver.create_read_write("box", "base");
        let dir = driver.get("box");
        assert_eq!(driver.get("box"), dir);
        let mounts = driver.mounts();
        assert_eq!(driver.is_mounted(&dir), mounts);
        driver.plugin.kill_and_restart().unwrap();
        fs::write(dir.join("while-away"), "x").unwrap();
        assert_eq!(driver.get("box"), dir);
        // Get three times.
        driver.put("box");
        driver.plugin.kill_and_restart().unwrap();
        driver.put("box");
        assert_eq!(driver.is_mounted(&dir), mounts);
        assert_eq!(fs::read(dir.join("while-away")).unwrap(), b"x");
        driver.plugin.end(Signal::TERM).unwrap();
        assert_eq!(driver.is_mounted(&dir), mounts, "mounts stay");
        driver.plugin.begin().unwrap();
        driver.put("box");
        assert!(!driver.is_mounted(&dir));
        // One put too many does no harm.
        driver.put("box");
        driver.with("box", |dir| assert_eq!(names(dir), ["f", "while-away"]));
        // A restarted daemon has forgotten its counts.
        let dir = driver.get("box");
        driver.get("box");
        driver.init();
        driver.get("box");
        driver.put("box");
        assert_eq!(driver.is_mounted(&dir), mounts);
        driver.put("box");
        assert!(!driver.is_mounted(&dir));
        // When it ends, all mounts are removed.
        let dir = driver.get("box");
        driver.get("box");
        driver.call("Cleanup", json!({}));
        assert!(!driver.is_mounted(&dir));
    });
}

#[test]
fn a_busy_layer_can_be_put_and_removed() {
    every_way(|driver| {
        driver.create("base", "");
        driver.create_read_write("busy", "base");
        let dir = driver.get("busy");
        fs::create_dir(dir.join("in")).unwrap();
        let sleeper = Sleeper::start(
            Command::new("sleep")
                .arg("1000")
                .current_dir(dir.join("in")),
        );
        // A copy in another mount namespace goes too, with the mount point.
        let elsewhere = find("unshare").is_some().then(|| {
            Sleeper::start(Command::new("unshare").args([
                "-m",
                "--propagation",
                "private",
                "sleep",
                "1000",
            ]))
        });
        driver.put("busy");
        // Two engines can't share an upper: a busy mount stays, and the next get returns it.
        let engine = driver.way == "overlay2, Vellum's engine";
        assert_eq!(driver.is_mounted(&dir), engine);
        assert_eq!(driver.get("busy"), dir);
        fs::write(dir.join("written"), "x").unwrap();
        driver.put("busy");
        assert_eq!(driver.is_mounted(&dir), engine);
        driver.remove("busy");
        assert!(!driver.exists("busy") && !dir.exists());
        drop((sleeper, elsewhere));
    });
}

#[test]
fn a_busy_engine_mount_goes_with_the_put_after_its_user_ends() {
    every_way(|driver| {
        if driver.way != "overlay2, Vellum's engine" {
            return;
        }
        driver.create("base", "");
        driver.create_read_write("busy", "base");
        let dir = driver.get("busy");
        let sleeper = Sleeper::start(Command::new("sleep").arg("1000").current_dir(&dir));
        driver.put("busy");
        drop(sleeper);
        // It counts as one get, not two.
        assert_eq!(driver.get("busy"), dir);
        driver.put("busy");
        assert!(!driver.is_mounted(&dir));
        driver.remove("busy");
    });
}

#[test]
fn a_mount_whose_process_was_killed_is_mounted_again() {
    every_way(|driver| {
        if driver.way != "overlay2, Vellum's engine" {
            return;
        }
        driver.create("base", "");
        driver.create_read_write("box", "base");
        let dir = driver.get("box");
        fs::write(dir.join("kept"), "kept").unwrap();
        kill_engine(&dir);
        // The earlier get is followed by its put, too.
        assert_eq!(driver.get("box"), dir);
        assert_eq!(fs::read(dir.join("kept")).unwrap(), b"kept");
        driver.put("box");
        assert!(driver.is_mounted(&dir));
        kill_engine(&dir);
        assert_eq!(driver.changes("box", "base").len(), 1);
        driver.put("box");
        assert!(!driver.is_mounted(&dir));
        kill_engine(&driver.get("box"));
        // As a parent, and as a layer to remove.
        driver.create("child", "box");
        driver.with("child", |dir| assert_eq!(names(dir), ["kept"]));
        driver.create_read_write("last", "base");
        kill_engine(&driver.get("last"));
        driver.remove("last");
        assert!(!driver.exists("last"));
    });
}

/// Kills the process that serves the mount at `dir`, and waits until the mount is dead.
fn kill_engine(dir: &Path) {
    use std::os::unix::ffi::OsStrExt;
    let serves = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = line.split(|&b| b == 0).filter(|word| !word.is_empty());
        words.clone().any(|word| word == b"__serve-overlay")
            && words.next_back() == Some(dir.as_os_str().as_bytes())
    };
    let pid = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .find(serves)
        .expect("no process serves the mount");
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), Signal::KILL)
        .unwrap();
    let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while serves(&pid) || rustix::fs::statfs(dir).is_ok() {
        assert!(std::time::Instant::now() < until);
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

/// A process that does nothing until it is dropped.
struct Sleeper(std::process::Child);

impl Sleeper {
    fn start(command: &mut Command) -> Self {
        let null = std::process::Stdio::null;
        Self(
            command
                .stdin(null())
                .stdout(null())
                .stderr(null())
                .spawn()
                .unwrap(),
        )
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        // It can't have exited by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_mount_over_a_layer_is_named_and_left_alone() {
    every_way(|driver| {
        if !driver.mounts() {
            return;
        }
        driver.create("base", "");
        driver.create_read_write("box", "base");
        let merged = driver.get("box");
        driver.put("box");
        let tree = merged.parent().unwrap().to_owned();
        run(Command::new("mount")
            .args(["-t", "tmpfs", "cover"])
            .arg(&tree))
        .unwrap();
        let said = driver.fails("Get", json!({ "ID": "box" }));
        assert!(said.contains("covered") && said.contains("tmpfs"), "{said}");
        assert!(driver.is_mounted(&tree));
        unmount(&tree).unwrap();
        driver.with("box", |dir| assert!(names(dir).is_empty()));
    });
}

#[test]
fn a_covered_store_is_named_and_comes_back_without_a_restart_of_the_plugin() {
    every_way(|driver| {
        driver.create("base", "");
        driver.create_read_write("box", "base");
        let root = driver.plugin.root();
        run(Command::new("mount")
            .args(["-t", "tmpfs", "cover"])
            .arg(&root))
        .unwrap();
        for (call, body) in [
            ("Create", json!({ "ID": "new", "Parent": "base" })),
            ("Get", json!({ "ID": "box" })),
            // Not "no", since the daemon would believe it.
            ("Exists", json!({ "ID": "box" })),
            ("Remove", json!({ "ID": "box" })),
        ] {
            let said = driver.fails(call, body);
            assert!(
                said.contains("covered by") && said.contains("umount"),
                "{said}"
            );
        }
        assert!(names(&root).is_empty(), "{:?}", names(&root));
        unmount(&root).unwrap();
        driver.with("box", |dir| assert!(names(dir).is_empty()));
        driver.create("new", "base");
    });
}
