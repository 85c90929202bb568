//! What the plugin answers: what it is, calls that come twice, late, or from another daemon, and a
//! socket in use.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::time::{Duration, Instant};

use serde_json::json;
use vellum_testkit::{is_root, untested};

use super::driver::{Driver, WAYS, every_way, every_way_mut, names, pack};

#[test]
fn docker_is_told_what_the_plugin_is() {
    every_way(|driver| {
        let (status, answer) = driver.plugin.post("Plugin.Activate", b"").unwrap();
        assert_eq!(status, 200);
        assert_eq!(answer, br#"{"Implements":["GraphDriver"]}"#);
        let answer = driver.call("Capabilities", json!({}));
        assert_eq!(answer["Capabilities"]["ReproducesExactDiffs"], true);
        let answer = driver.call("Status", json!({}));
        let status = answer["Status"].as_array().unwrap();
        assert!(
            status.iter().any(|pair| pair[0] == "Supports d_type"),
            "{status:?}"
        );
        let (status, _) = driver.plugin.post("GraphDriver.Nothing", b"{}").unwrap();
        assert_eq!(status, 404);
        assert!(driver.fails("Get", json!("no object")).contains("JSON"));
        for bad in ["", "a/b", "../x"] {
            assert!(
                driver
                    .fails("Create", json!({ "ID": bad }))
                    .contains("can't be a layer's id")
            );
        }
    });
}

#[test]
fn every_call_waits_for_a_late_body() {
    if !is_root() {
        return untested("the graph driver", "the test does not run as root");
    }
    let driver = Driver::start(WAYS[0].0, WAYS[0].1);
    for (call, wanted) in [
        ("Plugin.Activate", 200),
        ("GraphDriver.Capabilities", 200),
        ("GraphDriver.Status", 200),
        ("GraphDriver.Cleanup", 200),
        ("GraphDriver.Nothing", 404),
    ] {
        let head = format!(
            "POST /{call} HTTP/1.1\r\nHost: plugin\r\nConnection: close\r\nContent-Length: 2\r\n\r\n"
        );
        let pause = Duration::from_millis(200);
        let (status, _) = driver
            .plugin
            .exchange_slowly(&[head.as_bytes(), b"{}"], pause)
            .unwrap_or_else(|e| panic!("{call}: {e}"));
        assert_eq!(status, wanted, "{call}");
    }
}

#[test]
fn a_retried_call_without_its_body_is_refused_with_the_reason() {
    if !is_root() {
        return untested("the graph driver", "the test does not run as root");
    }
    let driver = Driver::start(WAYS[0].0, WAYS[0].1);
    driver.create("base", "");
    for call in [
        "Init",
        "Create",
        "CreateReadWrite",
        "Get",
        "Put",
        "Exists",
        "Remove",
        "DiffSize",
        "Changes",
        "GetMetadata",
    ] {
        let (status, answer) = driver
            .plugin
            .post(&format!("GraphDriver.{call}"), b"")
            .unwrap();
        let said = String::from_utf8_lossy(&answer).into_owned();
        assert_ne!(status, 200, "{call}: {said}");
        assert!(said.contains("without a body"), "{call}: {said}");
    }
    assert!(driver.exists("base"));
    for call in ["Status", "Cleanup", "Capabilities"] {
        let (status, _) = driver
            .plugin
            .post(&format!("GraphDriver.{call}"), b"")
            .unwrap();
        assert_eq!(status, 200, "{call}");
    }
}

#[test]
fn a_call_that_comes_twice_is_done_once() {
    every_way(|driver| {
        driver.create("base", "");
        driver.create("base", "");
        let tar = {
            let dir = driver.home.dir("content").unwrap();
            fs::write(dir.join("f"), "x").unwrap();
            pack(&dir)
        };
        driver.create_read_write("other", "");
        assert!(
            driver
                .fails("Create", json!({ "ID": "base", "Parent": "other" }))
                .contains("taken")
        );
        driver.apply("base", "", &tar, false);
        // The second has an empty body: the daemon has sent the bytes already.
        let (status, answer) = driver
            .plugin
            .post("GraphDriver.ApplyDiff?id=base&parent=", b"")
            .unwrap();
        assert_eq!(status, 500);
        assert!(String::from_utf8_lossy(&answer).contains("has been filled"));
        driver.with("base", |dir| assert_eq!(names(dir), ["f"]));
    });
}

#[test]
fn a_daemons_settings_are_kept_and_another_daemon_is_refused() {
    every_way_mut(|driver| {
        driver.plugin.kill_and_restart().unwrap();
        // The socket accepts connections before the server reports ready.
        let until = Instant::now() + Duration::from_secs(60);
        while !driver.plugin.log().contains("serving a known daemon") {
            assert!(Instant::now() < until, "{}", driver.plugin.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        driver.create("layer", "");
        let other = driver.home.join("other/x");
        let body = json!({ "Home": other, "Opts": [] });
        assert!(
            driver
                .fails("Init", body.clone())
                .contains("store of its own")
        );
        // Its data was moved.
        fs::remove_dir_all(driver.home.join("data")).unwrap();
        driver.call("Init", body);
        let said = driver.fails(
            "Init",
            json!({ "Home": other, "Opts": ["overlay2.size=1G"] }),
        );
        assert!(said.contains("overlay2.size"), "{said}");
        let maps = json!([{ "container_id": 0, "host_id": 100000, "size": 65536 }]);
        let said = driver.fails("Init", json!({ "Home": other, "UIDMaps": maps }));
        assert!(said.contains("userns-remap"), "{said}");
        let said = driver.fails(
            "CreateReadWrite",
            json!({ "ID": "a", "MountLabel": "system_u:x" }),
        );
        assert!(said.contains("SELinux"), "{said}");
        let said = driver.fails(
            "Create",
            json!({ "ID": "a", "StorageOpt": { "size": "1G" } }),
        );
        assert!(said.contains("read-write"), "{said}");
    });
}

#[test]
fn many_calls_at_once_agree() {
    every_way(|driver| {
        driver.create("base", "");
        driver.with("base", |dir| fs::write(dir.join("f"), "x").unwrap());
        driver.create("sealed", "base");
        std::thread::scope(|scope| {
            for worker in 0..8 {
                scope.spawn(move || {
                    // All need the same parent sealed, and each its own layer.
                    let id = format!("own-{worker}");
                    driver.create_read_write(&id, "sealed");
                    for turn in 0..3 {
                        let dir = driver.get(&id);
                        let shared = driver.get("sealed");
                        fs::write(dir.join(format!("turn-{turn}")), "x").unwrap();
                        assert_eq!(names(&shared), ["f"]);
                        driver.put("sealed");
                        driver.put(&id);
                    }
                    assert_eq!(driver.changes(&id, "sealed").len(), 3);
                    driver.remove(&id);
                });
            }
        });
        driver.remove("sealed");
        driver.remove("base");
        let mounts = vellum_testkit::scratch::mount_table();
        assert!(!mounts.contains(driver.plugin.root().to_str().unwrap()));
    });
}

#[test]
fn two_servers_do_not_share_a_socket() {
    every_way(|driver| {
        let second = driver
            .plugin
            .command()
            .args(["serve", "docker", "--socket"])
            .arg(driver.plugin.socket())
            .output()
            .unwrap();
        assert!(!second.status.success());
        assert!(String::from_utf8_lossy(&second.stderr).contains("already listens"));
        assert!(
            driver
                .plugin
                .socket()
                .metadata()
                .unwrap()
                .file_type()
                .is_socket()
        );
        driver.create("still-here", "");
    });
}
