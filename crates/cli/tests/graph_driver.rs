//! The graph driver plugin by its protocol: what Docker's own suite for graph drivers checks, and what it leaves out.
//!
//! Each test runs with every storage driver and both engines. The suite's checks come first.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use vellum_testkit::clients::{Home, Plugin, find, run};
use vellum_testkit::{Tree, is_root, tree::Ignore, untested};

const VELLUM: &str = env!("CARGO_BIN_EXE_vellum");

/// Every way a tree can lie and be shown.
const WAYS: [(&str, &[&str]); 4] = [
    ("overlay2", &["--engine", "kernel"]),
    ("overlay2, Vellum's engine", &["--engine", "vellum"]),
    ("overlay", &["--storage-driver", "overlay"]),
    ("native", &["--storage-driver", "native"]),
];

/// A plugin and the calls of a daemon.
struct Driver {
    plugin: Plugin,
    home: Home,
    way: &'static str,
}

impl Driver {
    fn start(way: &'static str, arguments: &[&str]) -> Self {
        let home = Home::new().unwrap();
        let plugin = Plugin::start(VELLUM, &home, arguments).unwrap();
        let driver = Self { plugin, home, way };
        driver.init();
        driver
    }

    fn init(&self) {
        let home = self.home.join("data").join(self.plugin.name());
        self.call(
            "Init",
            json!({ "Home": home, "Opts": null, "UIDMaps": null, "GIDMaps": null }),
        );
    }

    fn ask(&self, call: &str, body: Value) -> (u16, Value) {
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
    fn call(&self, call: &str, body: Value) -> Value {
        let (status, answer) = self.ask(call, body.clone());
        assert_eq!(
            (status, &answer["Err"]),
            (200, &json!("")),
            "{}: {call} {body}: {answer}",
            self.way
        );
        answer
    }

    /// A call that must fail; returns what it said.
    #[track_caller]
    fn fails(&self, call: &str, body: Value) -> String {
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
    fn create(&self, id: &str, parent: &str) {
        self.call(
            "Create",
            json!({ "ID": id, "Parent": parent, "MountLabel": "", "StorageOpt": null }),
        );
    }

    #[track_caller]
    fn create_read_write(&self, id: &str, parent: &str) {
        self.call("CreateReadWrite", json!({ "ID": id, "Parent": parent }));
    }

    #[track_caller]
    fn get(&self, id: &str) -> PathBuf {
        let dir = self.call("Get", json!({ "ID": id }))["Dir"]
            .as_str()
            .unwrap()
            .into();
        assert!(Path::new(&dir).is_dir());
        dir
    }

    #[track_caller]
    fn put(&self, id: &str) {
        self.call("Put", json!({ "ID": id }));
    }

    #[track_caller]
    fn remove(&self, id: &str) {
        self.call("Remove", json!({ "ID": id }));
    }

    /// Mounts a layer, calls `work` with its tree, and takes the mount away.
    #[track_caller]
    fn with<T>(&self, id: &str, work: impl FnOnce(&Path) -> T) -> T {
        let dir = self.get(id);
        let done = work(&dir);
        self.put(id);
        done
    }

    #[track_caller]
    fn diff(&self, id: &str, parent: &str) -> Vec<u8> {
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
    fn apply(&self, id: &str, parent: &str, tar: &[u8], chunked: bool) -> u64 {
        let path = format!("GraphDriver.ApplyDiff?id={id}&parent={parent}");
        let (status, answer) = match chunked {
            true => self.plugin.post_in_chunks(&path, tar).unwrap(),
            false => self.plugin.post(&path, tar).unwrap(),
        };
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        assert_eq!(status, 200, "{}: {answer}", self.way);
        answer["Size"].as_u64().unwrap()
    }

    fn changes(&self, id: &str, parent: &str) -> Vec<(String, u64)> {
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

    fn exists(&self, id: &str) -> bool {
        self.call("Exists", json!({ "ID": id }))["Exists"]
            .as_bool()
            .unwrap()
    }

    fn is_mounted(&self, dir: &Path) -> bool {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        mounts
            .lines()
            .any(|line| line.split(' ').nth(4) == dir.to_str())
    }

    /// Whether trees are shown by mounts, which are counted.
    fn mounts(&self) -> bool {
        self.way != "native"
    }
}

/// Does `test` with every driver and both engines.
fn every_way(test: impl Fn(&Driver)) {
    if !is_root() {
        return untested("the graph driver", "the test does not run as root");
    }
    for (way, arguments) in WAYS {
        test(&Driver::start(way, arguments));
    }
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn unpack(tar: &[u8], home: &Home, name: &str) -> PathBuf {
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
fn pack(dir: &Path) -> Vec<u8> {
    let done = Command::new("tar")
        .arg("-C")
        .arg(dir)
        .args(["--format=posix", "-c", "."])
        .output()
        .unwrap();
    assert!(done.status.success());
    done.stdout
}

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
                    .contains("no id")
            );
        }
    });
}

#[test]
fn a_body_that_comes_late_is_waited_for_whatever_was_called() {
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

fn many_files(dir: &Path, count: usize, seed: usize) {
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
            // What came in goes out, to the bit.
            assert!(driver.diff(id, "base") == tar, "{}", driver.way);
        }
    });
}

/// Tars of changes have no entry for the root.
const ROOT_ASIDE: Ignore = Ignore {
    root: true,
    directory_mtimes: false,
    mtimes: false,
    nanoseconds: false,
    hard_links: false,
    owners: false,
    xattrs: false,
};

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
fn what_stands_below_another_layer_is_not_removed() {
    every_way(|driver| {
        driver.create("base", "");
        driver.create("child", "base");
        let said = driver.fails("Remove", json!({ "ID": "base" }));
        assert!(said.contains("child") && said.contains("hint"), "{said}");
        assert!(driver.exists("base"));
        driver.remove("child");
        driver.remove("base");
        // What is gone is as good as removed: the daemon may ask twice.
        driver.remove("base");
        driver.put("base");
    });
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
fn a_layer_that_breaks_off_leaves_nothing_and_is_said_with_an_error_status() {
    every_way(|driver| {
        let dir = driver.home.dir("content").unwrap();
        many_files(&dir, 50, 1);
        let tar = pack(&dir);
        driver.create("half", "");
        // The tar ends too early.
        let path = "GraphDriver.ApplyDiff?id=half&parent=";
        let (status, answer) = driver.plugin.post(path, &tar[..tar.len() / 2]).unwrap();
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
        // No tar at all, and a much longer one than is read before it is refused.
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
fn a_damaged_layer_breaks_the_diff_off_and_does_not_end_it() {
    every_way(|driver| {
        let dir = driver.home.dir("content").unwrap();
        // More than is held back before the status is sent.
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
fn a_diff_against_any_other_layer_leads_from_that_to_this() {
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

fn every_way_mut(test: impl Fn(&mut Driver)) {
    if !is_root() {
        return untested("the graph driver", "the test does not run as root");
    }
    for (way, arguments) in WAYS {
        test(&mut Driver::start(way, arguments));
    }
}

#[test]
fn what_a_daemon_said_is_kept_and_another_daemon_is_refused() {
    every_way_mut(|driver| {
        driver.plugin.kill_and_restart().unwrap();
        assert!(
            driver
                .plugin
                .log()
                .contains("serving a daemon that is known")
        );
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
                    // All want one parent sealed, and each its own layer.
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
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(driver.plugin.root().to_str().unwrap()));
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
        // What others stand on can't be written to any more. The driver `overlay` shows its plain trees as they are.
        if driver.way != "overlay" {
            driver.with("box", |dir| {
                assert!(fs::write(dir.join("late"), "x").is_err());
            });
        }
    });
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
        run(Command::new("umount").arg(&tree)).unwrap();
        driver.with("box", |dir| assert!(names(dir).is_empty()));
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
            // Neither project quotas nor Vellum's engine.
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
            // What was written counts in the next mount, too.
            fs::remove_file(dir.join("too much")).unwrap();
            assert!(fs::write(dir.join("still too much"), vec![1; 4 << 20]).is_err());
            assert_eq!(fs::metadata(dir.join("fits")).unwrap().len(), 2 << 20);
        });
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
        assert!(String::from_utf8_lossy(&second.stderr).contains("somebody serves"));
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
