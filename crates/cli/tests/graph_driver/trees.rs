//! Layers as trees: the content of a new one, what a child shows of its parents, which ones can be
//! removed, and size limits.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use super::driver::{Driver, every_way, mode, names};

#[test]
fn a_new_layer_is_an_empty_directory_of_roots() {
    every_way(|driver| {
        driver.create("empty", "");
        assert!(driver.exists("empty") && !driver.exists("other"));
        driver.with("empty", |dir| {
            let root = fs::metadata(dir).unwrap();
            assert_eq!((mode(dir), root.uid(), root.gid()), (0o755, 0, 0));
            assert!(names(dir).is_empty());
        });
        driver.remove("empty");
        assert!(!driver.exists("empty"));
    });
}

fn fill_base(driver: &Driver, id: &str) {
    driver.create_read_write(id, "");
    driver.with(id, |dir| {
        let sub = dir.join("a subdir");
        fs::create_dir(&sub).unwrap();
        std::os::unix::fs::chown(&sub, Some(1), Some(2)).unwrap();
        fs::set_permissions(&sub, fs::Permissions::from_mode(0o1705)).unwrap();
        let file = dir.join("a file");
        fs::write(&file, "Some data").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o4222)).unwrap();
    });
}

fn check_base(dir: &Path) {
    assert_eq!(names(dir), ["a file", "a subdir"]);
    let sub = fs::metadata(dir.join("a subdir")).unwrap();
    assert!(sub.is_dir());
    assert_eq!(
        (mode(&dir.join("a subdir")), sub.uid(), sub.gid()),
        (0o1705, 1, 2)
    );
    assert_eq!(mode(&dir.join("a file")), 0o4222);
    assert_eq!(fs::read(dir.join("a file")).unwrap(), b"Some data");
}

#[test]
fn a_child_shows_what_its_parent_has() {
    every_way(|driver| {
        fill_base(driver, "base");
        driver.with("base", check_base);
        driver.create_read_write("snap", "base");
        driver.with("snap", check_base);
        driver.with("snap", |dir| fs::write(dir.join("own"), "x").unwrap());
        driver.with("base", check_base);
    });
}

#[test]
fn deep_chains_read_through_the_plugin() {
    every_way(|driver| {
        // Deeper than Docker's own driver goes; the others copy every layer.
        let depth = match driver.way {
            "overlay2" => 130,
            _ => 10,
        };
        driver.create("0", "");
        driver.with("0", |dir| fs::write(dir.join("base"), "bottom").unwrap());
        for at in 1..=depth {
            let (id, parent) = (at.to_string(), (at - 1).to_string());
            driver.create(&id, &parent);
            driver.with(&id, |dir| {
                fs::write(dir.join("top-id"), &id).unwrap();
                fs::create_dir(dir.join(format!("layer-{id}"))).unwrap();
                fs::write(dir.join(format!("layer-{id}/parent-id")), &parent).unwrap();
            });
        }
        driver.with(&depth.to_string(), |dir| {
            assert_eq!(fs::read(dir.join("base")).unwrap(), b"bottom");
            assert_eq!(
                fs::read_to_string(dir.join("top-id")).unwrap(),
                depth.to_string()
            );
            for at in 1..=depth {
                let parent = fs::read_to_string(dir.join(format!("layer-{at}/parent-id"))).unwrap();
                assert_eq!(parent, (at - 1).to_string());
            }
        });
    });
}

#[test]
fn a_layer_below_another_is_not_removed() {
    every_way(|driver| {
        driver.create("base", "");
        driver.create("child", "base");
        let said = driver.fails("Remove", json!({ "ID": "base" }));
        assert!(said.contains("child") && said.contains("hint"), "{said}");
        assert!(driver.exists("base"));
        driver.remove("child");
        driver.remove("base");
        // A missing layer counts as removed, because the daemon may ask twice.
        driver.remove("base");
        driver.put("base");
    });
}

#[test]
fn a_parent_that_is_written_to_takes_no_child() {
    every_way(|driver| {
        if !driver.mounts() {
            return;
        }
        driver.create("base", "");
        driver.create_read_write("box", "base");
        let dir = driver.get("box");
        let file = fs::File::create(dir.join("open")).unwrap();
        let said = driver.fails("Create", json!({ "ID": "child", "Parent": "box" }));
        assert!(said.contains("in use"), "{said}");
        assert!(!driver.exists("child"));
        drop(file);
        // A process that another test is just starting may have the file open, too.
        let until = std::time::Instant::now() + Duration::from_secs(60);
        let child = json!({ "ID": "child", "Parent": "box" });
        while driver.ask("Create", child.clone()).0 != 200 {
            assert!(std::time::Instant::now() < until);
        }
        driver.with("child", |dir| assert_eq!(names(dir), ["open"]));
        // A layer with children can't be written to any more. The driver `overlay` shows its plain
        // trees as they are.
        if driver.way != "overlay" {
            driver.with("box", |dir| {
                assert!(fs::write(dir.join("late"), "x").is_err());
            });
        }
    });
}

#[test]
fn a_size_limit_holds_or_is_refused() {
    every_way(|driver| {
        driver.create("base", "");
        driver.with("base", |dir| fs::write(dir.join("f"), "x").unwrap());
        let body = json!({ "ID": "box", "Parent": "base", "StorageOpt": { "size": "5M" } });
        let (status, answer) = driver.ask("CreateReadWrite", body);
        if status != 200 {
            // Neither project quotas nor Vellum's engine can enforce it.
            assert!(answer.to_string().contains("project quotas"), "{answer}");
            assert!(!driver.exists("box"));
            assert!(
                driver.way == "native" || driver.way == "overlay2",
                "{answer}"
            );
            return;
        }
        let error = driver.with("box", |dir| {
            fs::write(dir.join("fits"), vec![1; 2 << 20]).unwrap();
            fs::write(dir.join("too much"), vec![1; 20 << 20]).unwrap_err()
        });
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        assert!(
            matches!(error.kind(), QuotaExceeded | StorageFull),
            "{error}"
        );
        driver.with("box", |dir| {
            // Earlier writes count in the next mount, too.
            fs::remove_file(dir.join("too much")).unwrap();
            assert!(fs::write(dir.join("still too much"), vec![1; 4 << 20]).is_err());
            assert_eq!(fs::metadata(dir.join("fits")).unwrap().len(), 2 << 20);
        });
    });
}
