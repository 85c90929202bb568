//! Mounts: counted through restarts, busy, and covered by those of others.

use std::fs;
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
        // Gotten three times.
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
        // A put too many is nobody's harm.
        driver.put("box");
        driver.with("box", |dir| assert_eq!(names(dir), ["f", "while-away"]));
        // A daemon that starts anew has forgotten its counts.
        let dir = driver.get("box");
        driver.get("box");
        driver.init();
        driver.get("box");
        driver.put("box");
        assert_eq!(driver.is_mounted(&dir), mounts);
        driver.put("box");
        assert!(!driver.is_mounted(&dir));
        // One that ends takes all mounts along.
        let dir = driver.get("box");
        driver.get("box");
        driver.call("Cleanup", json!({}));
        assert!(!driver.is_mounted(&dir));
    });
}

#[test]
fn a_busy_layer_is_put_and_removed_all_the_same() {
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
        // What a mount namespace has got a copy of goes there too, with the mount point.
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
        assert!(!driver.is_mounted(&dir));
        // Vellum's engine waits for the one who is still in the old mount, and says so in the end.
        if driver.way != "overlay2, Vellum's engine" {
            assert_eq!(driver.get("busy"), dir);
        }
        driver.remove("busy");
        assert!(!driver.exists("busy") && !dir.exists());
        drop((sleeper, elsewhere));
    });
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
        // It can't have ended by itself.
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
