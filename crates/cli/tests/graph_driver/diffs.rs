//! Layers as tars and lists of changes: exported, applied, against any other layer, and
//! interrupted.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::PathBuf;
use std::process::Command;

use serde_json::json;
use vellum_testkit::Tree;
use vellum_testkit::clients::run;

use super::driver::{ROOT_ASIDE, every_way, many_files, names, pack, unpack};

#[test]
fn a_diff_applied_elsewhere_gives_the_same_tree_and_size() {
    every_way(|driver| {
        driver.create("base", "");
        driver.with("base", |dir| {
            many_files(dir, 300, 3);
            fs::write(dir.join("gone-file"), "x").unwrap();
            fs::create_dir_all(dir.join("var/lib")).unwrap();
            fs::write(dir.join("var/lib/in"), "x").unwrap();
        });
        driver.create_read_write("upper", "base");
        driver.with("upper", |dir| {
            many_files(dir, 300, 6);
            fs::remove_file(dir.join("gone-file")).unwrap();
            fs::remove_dir_all(dir.join("var/lib")).unwrap();
        });
        let size =
            driver.call("DiffSize", json!({ "ID": "upper", "Parent": "base" }))["Size"].clone();
        let tar = driver.diff("upper", "base");
        let wanted = driver.with("upper", |dir| Tree::read(dir).unwrap());
        for (id, chunked) in [("told", false), ("chunked", true)] {
            driver.create(id, "base");
            let applied = driver.apply(id, "base", &tar, chunked);
            assert_eq!(json!(applied), size, "{}", driver.way);
            driver.with(id, |dir| {
                Tree::read(dir).unwrap().assert_same(&wanted, ROOT_ASIDE);
                assert!(!dir.join("gone-file").exists() && !dir.join("var/lib").exists());
            });
            // The exported tar is the applied tar, bit for bit.
            assert!(driver.diff(id, "base") == tar, "{}", driver.way);
        }
    });
}

#[test]
fn changes_are_listed_as_docker_lists_them() {
    every_way(|driver| {
        driver.create("base", "");
        driver.with("base", |dir| many_files(dir, 20, 3));
        driver.create_read_write("upper", "base");
        let mut wanted = vec![("/directory-0".to_owned(), 0)];
        driver.with("upper", |dir| {
            for at in 0..20 {
                let path = format!("/directory-0/file-{at}");
                let inside = dir.join(&path[1..]);
                match at % 3 {
                    0 => {
                        fs::write(&inside, "changed").unwrap();
                        wanted.push((path, 0));
                    }
                    1 => {
                        fs::write(dir.join(format!("directory-0/new-{at}")), "new").unwrap();
                        wanted.push((format!("/directory-0/new-{at}"), 1));
                    }
                    _ => {
                        fs::remove_file(&inside).unwrap();
                        wanted.push((path, 2));
                    }
                }
            }
        });
        wanted.sort();
        let mut found = driver.changes("upper", "base");
        found.sort();
        assert_eq!(found, wanted, "{}", driver.way);
    });
}

#[test]
fn a_truncated_layer_leaves_nothing_and_returns_an_error_status() {
    every_way(|driver| {
        let dir = driver.home.dir("content").unwrap();
        many_files(&dir, 50, 1);
        let tar = pack(&dir);
        driver.create("half", "");
        // The tar ends too early, in the middle of an entry.
        let path = "GraphDriver.ApplyDiff?id=half&parent=";
        let half = tar.len() / 1024 * 512 + 100;
        let (status, answer) = driver.plugin.post(path, &tar[..half]).unwrap();
        assert_eq!(status, 500, "{}", String::from_utf8_lossy(&answer));
        // The body ends too early.
        let head = format!(
            "POST /{path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
            tar.len()
        );
        let mut stream = std::os::unix::net::UnixStream::connect(driver.plugin.socket()).unwrap();
        std::io::Write::write_all(&mut stream, head.as_bytes()).unwrap();
        std::io::Write::write_all(&mut stream, &tar[..tar.len() / 2]).unwrap();
        drop(stream);
        // Not a tar, and much longer than what is read before it is refused.
        let nonsense = vec![7u8; 3 << 20];
        let (status, _) = driver.plugin.post(path, &nonsense).unwrap();
        assert_eq!(status, 500);
        driver.with("half", |dir| assert!(names(dir).is_empty()));
        driver.apply("half", "", &tar, true);
        driver.with("half", |at| {
            Tree::read(at)
                .unwrap()
                .assert_same(&Tree::read(&dir).unwrap(), ROOT_ASIDE);
        });
        // An error of a diff must not look like a tar.
        for body in [
            json!({ "ID": "none" }),
            json!({ "ID": "half", "Parent": "none" }),
        ] {
            let (status, answer) = driver
                .plugin
                .post("GraphDriver.Diff", body.to_string().as_bytes())
                .unwrap();
            assert_eq!(status, 500);
            assert!(String::from_utf8_lossy(&answer).contains("there is no layer"));
        }
    });
}

#[test]
fn a_damaged_layer_aborts_the_diff_instead_of_ending_it() {
    every_way(|driver| {
        let dir = driver.home.dir("content").unwrap();
        // More than is buffered before the status is sent.
        for at in 0..40 {
            fs::write(dir.join(format!("{at:02}")), vec![at as u8; 100_000]).unwrap();
        }
        driver.create("layer", "");
        driver.apply("layer", "", &pack(&dir), false);
        let root = PathBuf::from(
            driver.call("GetMetadata", json!({ "ID": "layer" }))["Metadata"]["RootDir"]
                .as_str()
                .unwrap(),
        );
        let victim = names(&root).pop().unwrap();
        fs::write(root.join(&victim), "changed behind the store's back").unwrap();
        let body = json!({ "ID": "layer", "Parent": "" }).to_string();
        let broken = match driver.plugin.post("GraphDriver.Diff", body.as_bytes()) {
            Err(_) => true,
            Ok((status, _)) => status != 200,
        };
        assert!(broken, "{}", driver.way);
    });
}

#[test]
fn odd_files_survive_diff_and_apply() {
    every_way(|driver| {
        driver.create("base", "");
        driver.with("base", |dir| {
            fs::create_dir_all(dir.join("opaque/old")).unwrap();
            fs::write(dir.join("opaque/old/f"), "x").unwrap();
            fs::write(dir.join("linked"), "same").unwrap();
            fs::hard_link(dir.join("linked"), dir.join("linked-2")).unwrap();
        });
        driver.create_read_write("top", "base");
        driver.with("top", |dir| {
            fs::remove_dir_all(dir.join("opaque")).unwrap();
            fs::create_dir(dir.join("opaque")).unwrap();
            fs::write(dir.join("opaque/new"), "y").unwrap();
            fs::write(dir.join("first"), "pair").unwrap();
            fs::hard_link(dir.join("first"), dir.join("second")).unwrap();
            symlink("/nowhere/at/all", dir.join("symlink")).unwrap();
            fs::write(dir.join("with-xattr"), "z").unwrap();
            for (name, value) in [("user.note", "hello"), ("trusted.note", "deep")] {
                rustix::fs::setxattr(
                    dir.join("with-xattr"),
                    name,
                    value.as_bytes(),
                    rustix::fs::XattrFlags::empty(),
                )
                .unwrap();
            }
            run(Command::new("mkfifo").arg(dir.join("fifo"))).unwrap();
            run(Command::new("mknod")
                .arg(dir.join("null"))
                .args(["c", "1", "3"]))
            .unwrap();
        });
        let tar = driver.diff("top", "base");
        driver.create("again", "base");
        driver.apply("again", "base", &tar, true);
        let top = driver.with("top", |dir| Tree::read(dir).unwrap());
        driver.with("again", |dir| {
            Tree::read(dir).unwrap().assert_same(&top, ROOT_ASIDE);
            assert_eq!(names(&dir.join("opaque")), ["new"]);
            let (a, b) = (
                fs::metadata(dir.join("first")).unwrap(),
                fs::metadata(dir.join("second")).unwrap(),
            );
            assert_eq!(a.ino(), b.ino());
            assert!(
                fs::metadata(dir.join("null"))
                    .unwrap()
                    .file_type()
                    .is_char_device()
            );
        });
    });
}

#[test]
fn a_diff_against_any_layer_leads_from_it_to_this_one() {
    every_way(|driver| {
        driver.create("base", "");
        driver.with("base", |dir| many_files(dir, 10, 1));
        driver.create("left", "base");
        driver.with("left", |dir| {
            fs::write(dir.join("only-left"), "l").unwrap();
            fs::write(dir.join("directory-0/file-1"), "by left").unwrap();
        });
        driver.create("right", "base");
        driver.with("right", |dir| {
            fs::remove_dir_all(dir.join("directory-0")).unwrap();
            fs::write(dir.join("directory-0"), "a file now").unwrap();
        });
        let right = driver.with("right", |dir| Tree::read(dir).unwrap());
        driver.create("from-left", "left");
        let tar = driver.diff("right", "left");
        driver.apply("from-left", "left", &tar, false);
        driver.with("from-left", |dir| {
            Tree::read(dir).unwrap().assert_same(&right, ROOT_ASIDE)
        });
        let changes = driver.changes("right", "left");
        assert_eq!(
            changes,
            [("/directory-0".to_owned(), 0), ("/only-left".to_owned(), 2)]
        );
        // Against the layer below its parent, and against nothing.
        driver.create_read_write("top", "left");
        driver.with("top", |dir| fs::write(dir.join("top"), "t").unwrap());
        let paths: Vec<_> = driver
            .changes("top", "base")
            .into_iter()
            .map(|c| c.0)
            .collect();
        assert_eq!(
            paths,
            ["/directory-0", "/directory-0/file-1", "/only-left", "/top"]
        );
        let whole = unpack(&driver.diff("top", ""), &driver.home, "whole");
        let top = driver.with("top", |dir| Tree::read(dir).unwrap());
        Tree::read(&whole).unwrap().assert_same(&top, ROOT_ASIDE);
        assert!(driver.changes("top", "").iter().all(|(_, kind)| *kind == 1));
    });
}

#[test]
fn a_removed_layer_leaves_nothing_to_collect() {
    every_way(|driver| {
        let tree = driver.home.dir("tree").unwrap();
        fs::write(tree.join("file"), "x").unwrap();
        let tar = pack(&tree);
        driver.create("base", "");
        driver.with("base", |dir| fs::write(dir.join("below"), "x").unwrap());
        // The same layer twice, on different ones.
        for (id, parent) in [("one", ""), ("two", "base")] {
            driver.create(id, parent);
            driver.apply(id, parent, &tar, true);
        }
        let recipes = driver.plugin.root().join("recipes");
        assert_eq!(names(&recipes).len(), 1, "{}", driver.way);
        driver.remove("one");
        assert_eq!(names(&recipes).len(), 1, "{}", driver.way);
        assert_eq!(driver.diff("two", "base"), tar, "byte for byte");
        for id in ["two", "base"] {
            driver.remove(id);
        }
        assert!(names(&recipes).is_empty(), "{:?}", names(&recipes));
        let mut gc = driver.plugin.command();
        let said = run(gc.args(["gc", "--dry-run", "--json"])).unwrap();
        assert_eq!(said.trim(), "[]", "{}", driver.way);
    });
}
