//! `vellum adopt` on data roots that Docker's daemon really wrote.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use vellum_testkit::Tree;
use vellum_testkit::clients::{Dockerd, Home, Vellum, available, small_image};
use vellum_testkit::fault::{self, Effect};
use vellum_testkit::tree::Ignore;

const VELLUM: &str = env!("CARGO_BIN_EXE_vellum");
const IMAGE: &str = "vellum-demo-small";

/// A data root with the small image, one committed on it, a container, and an image without a name;
/// its daemon has ended.
struct Root {
    path: PathBuf,
    /// The layers' digests of each image, bottom first.
    layers: Vec<(&'static str, Vec<String>)>,
    /// What Docker shows of the committed image.
    tree: Tree,
}

fn layers_of(daemon: &Dockerd, image: &str) -> Vec<String> {
    let format = "{{range .RootFS.Layers}}{{println .}}{{end}}";
    let text = daemon
        .docker(&["image", "inspect", "--format", format, image])
        .unwrap();
    text.lines()
        .filter(|l| !l.is_empty())
        .map(str::to_owned)
        .collect()
}

fn data_root(home: &Home) -> Root {
    let archive = small_image(home).unwrap();
    let daemon = Dockerd::start(home, &[]).unwrap();
    daemon.load(&archive).unwrap();
    let change =
        "echo more > /more; rm -r /odd/replaced; chmod 600 /srv/large.bin; ln /more /again";
    let line = [
        "run",
        "--name",
        "box",
        "--network",
        "none",
        IMAGE,
        "sh",
        "-c",
        change,
    ];
    daemon.docker(&line).unwrap();
    daemon.docker(&["commit", "box", "mine:1"]).unwrap();
    let unnamed = daemon.docker(&["commit", "-m", "no name", "box"]).unwrap();
    assert!(unnamed.starts_with("sha256:"));
    let layers = [IMAGE, "mine:1"]
        .map(|image| (image, layers_of(&daemon, image)))
        .into();
    let at = home.join("dockers-tree");
    daemon.mount_image("mine:1", &at).unwrap();
    let tree = Tree::read(&at).unwrap();
    vellum_testkit::scratch::unmount(&at).unwrap();
    Root {
        path: daemon.data_root().to_owned(),
        layers,
        tree,
    }
}

fn ready() -> bool {
    available(&["dockerd", "docker", "python3", "busybox", "runc"])
}

/// Returns a summary of names, sizes and contents, to see whether anything was changed.
fn picture(path: &Path) -> Tree {
    Tree::read(path).unwrap()
}

/// Kills an adoption at system calls of each kind, at the first one and then in growing steps, and
/// calls `after` with the store each time.
fn killed(
    home: &Home,
    root: &Path,
    kinds: &[&str],
    after: impl Fn(&Vellum, &Path, &fault::Run),
) -> u32 {
    let mut hits = 0;
    for (kind, calls) in kinds.iter().enumerate() {
        let mut n = 1;
        loop {
            let name = format!("killed-{kind}-{n}");
            let vellum = Vellum::new(VELLUM, home, &name).unwrap();
            // The store is created first, since only the adoption is under test.
            vellum.run(&["info"]).unwrap();
            let command = vellum.command();
            let mut arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
            arguments.extend(["adopt".into(), root.as_os_str().to_owned()]);
            let run = fault::run(Path::new(VELLUM), &arguments, &[], calls, Effect::Kill, n);
            if !run.hit {
                assert!(run.status.success(), "{}", run.stderr);
                break;
            }
            hits += 1;
            after(&vellum, &home.join(&name).join("root"), &run);
            // What was adopted has the right digests, and the rest can be adopted now.
            vellum.run(&["adopt", root.to_str().unwrap()]).unwrap();
            assert_eq!(images(&vellum), 2);
            vellum.run(&["check"]).unwrap();
            fs::remove_dir_all(home.join(&name)).unwrap();
            n = 5 * n + 2;
        }
    }
    hits
}

fn litter(store: &Path) -> usize {
    let count = |dir: &str| fs::read_dir(store.join(dir)).map_or(0, Iterator::count);
    count("staging") + count("trash")
}

#[test]
fn ctrl_c_during_an_adoption_leaves_nothing_of_the_unfinished_image() {
    if !ready() {
        return;
    }
    let home = Home::new().unwrap();
    let root = {
        let archive = small_image(&home).unwrap();
        let daemon = Dockerd::start(&home, &[]).unwrap();
        daemon.load(&archive).unwrap();
        // Large enough to be interrupted halfway.
        let change = "head -c 100000000 /dev/urandom > /big";
        let line = ["run", "--name", "box", "--network", "none", IMAGE];
        daemon
            .docker(&[&line[..], &["sh", "-c", change]].concat())
            .unwrap();
        daemon.docker(&["commit", "box", "big:1"]).unwrap();
        daemon.docker(&["rm", "box"]).unwrap();
        daemon.data_root().to_owned()
    };
    let mut stopped = 0;
    for round in 0..10 {
        let name = format!("store-{round}");
        let vellum = Vellum::new(VELLUM, &home, &name).unwrap();
        let store = home.join(&name).join("root");
        let mut adopt = vellum.command();
        adopt.arg("adopt").arg(&root).arg("big:1");
        adopt.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = adopt.spawn().unwrap();
        let until = Instant::now() + Duration::from_secs(60);
        // Part of a layer has been written; each round waits a little longer.
        while litter(&store) == 0 && child.try_wait().unwrap().is_none() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(5 * round));
        // A process that has ended is reaped here; its pid could be reused.
        if child.try_wait().unwrap().is_none() {
            let pid = Pid::from_raw(child.id() as i32).unwrap();
            kill_process(pid, Signal::INT).unwrap();
        }
        let ended = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        match ended.status.code() {
            // The signal came too late to stop anything.
            Some(0) => assert_eq!(images(&vellum), 1),
            code => {
                assert_eq!((code, images(&vellum)), (Some(130), 0), "{said}");
                stopped += 1;
            }
        }
        assert_eq!(litter(&store), 0, "{said}");
        let would_go = vellum.run(&["gc", "--dry-run", "--json"]).unwrap();
        assert_eq!(would_go.trim(), "[]");
        vellum.run(&["check"]).unwrap();
        fs::remove_dir_all(home.join(&name)).unwrap();
        if stopped == 3 {
            break;
        }
    }
    assert!(stopped > 0, "every signal came too late");
    let vellum = Vellum::new(VELLUM, &home, "last").unwrap();
    let (fine, said) = adopt(&vellum, &root, &[]);
    assert!(fine, "{said}");
}

#[test]
fn an_adoption_killed_anywhere_leaves_a_sound_store() {
    if !ready() || !fault::available() {
        return;
    }
    let home = Home::new().unwrap();
    let root = data_root(&home);
    let before = picture(&root.path);
    // Each attempt takes some ten commands.
    let few = ["mkdir,mkdirat", "write", "fsync,fdatasync,syncfs"];
    let kinds = match std::env::var_os("VELLUM_SLOW") {
        Some(_) => &fault::CHANGES[..],
        None => &few[..],
    };
    let hits = killed(&home, &root.path, kinds, |vellum, store, run| {
        // An image's record next to the database is written last; it is derived data, and is
        // repaired.
        vellum.run(&["check", "--heal"]).unwrap();
        vellum.run(&["check"]).unwrap();
        vellum.run(&["gc"]).unwrap();
        assert_eq!(litter(store), 0, "{}", run.stderr);
        let saved = store.join("../saved.tar");
        for image in vellum.run(&["images", "--ids"]).unwrap().lines() {
            vellum
                .run(&["save", image, "--output", saved.to_str().unwrap()])
                .unwrap();
        }
    });
    assert!(hits > 5, "only {hits} kills");
    picture(&root.path).assert_same(&before, EXACT);
}

const EXACT: Ignore = Ignore {
    root: false,
    directory_mtimes: false,
    mtimes: false,
    nanoseconds: false,
    hard_links: false,
    owners: false,
    xattrs: false,
};

fn adopt(vellum: &Vellum, root: &Path, more: &[&str]) -> (bool, Value) {
    let done = vellum
        .command()
        .args(["adopt", "--json"])
        .arg(root)
        .args(more)
        .output()
        .unwrap();
    let said = serde_json::from_slice(&done.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&done.stderr)));
    (done.status.success(), said)
}

/// Returns how many images there are.
fn images(vellum: &Vellum) -> usize {
    // It creates the store where that has not happened yet.
    vellum.run(&["info"]).unwrap();
    let said = vellum.run(&["images", "--json"]).unwrap();
    let list: Value = serde_json::from_str(&said).unwrap();
    list.as_array().unwrap().len()
}

/// Returns why each orphan is one, by its path.
fn orphans(said: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let list = said["orphans"].as_array().unwrap().iter();
    list.map(|o| (text(&o["path"]), text(&o["why"]))).collect()
}

#[test]
fn a_data_root_is_adopted_and_nothing_in_it_changes() {
    if !ready() {
        return;
    }
    let home = Home::new().unwrap();
    let root = data_root(&home);
    let before = picture(&root.path);
    let vellum = Vellum::new(VELLUM, &home, "vellum").unwrap();
    let (fine, said) = adopt(&vellum, &root.path, &["--dry-run"]);
    assert!(fine, "{said}");
    assert_eq!(said["images"].as_array().unwrap().len(), 2, "{said}");
    assert_eq!(
        (&said["unnamed"], &said["daemon"]),
        (&1.into(), &Value::Null)
    );
    assert_eq!(said["containers"][0]["name"], "box");
    assert_eq!(orphans(&said), []);
    assert_eq!(images(&vellum), 0);
    let (fine, said) = adopt(&vellum, &root.path, &["--in-place", "--all"]);
    assert!(fine, "{said}");
    let whole = |image: &Value| image["outcome"] == "whole";
    assert_eq!(said["images"].as_array().unwrap().len(), 3);
    assert!(
        said["images"].as_array().unwrap().iter().all(whole),
        "{said}"
    );
    let (fine, said) = adopt(&vellum, &root.path, &[]);
    assert!(fine, "{said}");
    vellum.image_tree("mine:1", &home).unwrap().assert_same(
        &root.tree,
        Ignore {
            root: true,
            ..EXACT
        },
    );
    // The saved image has the same layers as Docker's: load checks each digest.
    for (image, layers) in &root.layers {
        let inspected: Value =
            serde_json::from_str(&vellum.run(&["inspect", image]).unwrap()).unwrap();
        let text = inspected.to_string();
        assert!(layers.iter().all(|layer| text.contains(layer)), "{text}");
        let saved = home.join("saved.tar");
        vellum
            .run(&["save", image, "-o", saved.to_str().unwrap()])
            .unwrap();
        let other = Vellum::new(VELLUM, &home, &format!("other-{}", layers.len())).unwrap();
        other.load_as(&saved, "again:1").unwrap();
        fs::remove_file(&saved).unwrap();
    }
    // The root also repairs what was adopted from it.
    let layers = fs::read_dir(home.join("vellum/root/overlay2")).unwrap();
    let mut files = layers.map(|layer| layer.unwrap().path().join("diff/more"));
    let more = files.find(|file| file.exists()).unwrap();
    fs::write(&more, "less").unwrap();
    let mut check = vellum.command();
    let check = check.args(["check", "--repair", "--from"]).arg(&root.path);
    let check = check.output().unwrap();
    assert!(check.status.success(), "{check:?}");
    assert_eq!(fs::read_to_string(&more).unwrap(), "more\n");
    vellum.run(&["check", "--trees"]).unwrap();
    // Again, nothing is new.
    let (_, said) = adopt(&vellum, &root.path, &["mine:1"]);
    assert_eq!(said["images"][0]["new_layers"], 0, "{said}");
    let missing = vellum
        .command()
        .arg("adopt")
        .arg(&root.path)
        .arg("none:1")
        .output()
        .unwrap();
    assert!(!missing.status.success());
    picture(&root.path).assert_same(&before, EXACT);
}

/// A digest covers contents and headers. The headers come from Docker's record of the tar, and so
/// do the attributes that are set from them.
#[test]
fn data_without_a_digest_is_not_taken_from_a_data_root() {
    if !ready() {
        return;
    }
    let home = Home::new().unwrap();
    let root = data_root(&home);
    let mut touched = 0;
    for tree in fs::read_dir(root.path.join("overlay2")).unwrap() {
        let diff = tree.unwrap().path().join("diff");
        let file = diff.join("app/version");
        if file.exists() {
            fs::write(diff.join("app/stray"), "nobody's").unwrap();
            fs::set_permissions(&file, PermissionsExt::from_mode(0o777)).unwrap();
            chown(&file, Some(7), Some(7)).unwrap();
            touched += 1;
        }
        // The file that the layer deletes exists again.
        let gone = diff.join("odd/replaced");
        if fs::symlink_metadata(&gone).is_ok_and(|found| found.file_type().is_char_device()) {
            fs::remove_file(&gone).unwrap();
            touched += 1;
        }
    }
    assert!(touched >= 2, "{touched}");
    let vellum = Vellum::new(VELLUM, &home, "vellum").unwrap();
    // A comparison in place doesn't cover this either: it only says that the contents match.
    let (fine, said) = adopt(&vellum, &root.path, &["--in-place", "mine:1"]);
    assert!(fine && said["images"][0]["outcome"] == "whole", "{said}");
    let (fine, said) = adopt(&vellum, &root.path, &[]);
    assert!(fine, "{said}");
    vellum.image_tree("mine:1", &home).unwrap().assert_same(
        &root.tree,
        Ignore {
            root: true,
            ..EXACT
        },
    );
}

#[test]
fn orphans_of_a_data_root_are_named_with_their_reason() {
    if !ready() {
        return;
    }
    let home = Home::new().unwrap();
    let root = data_root(&home);
    let overlay2 = root.path.join("overlay2");
    let layerdb = root.path.join("image/overlay2/layerdb");
    let stray = "ab".repeat(32);
    fs::create_dir_all(overlay2.join(&stray).join("diff")).unwrap();
    symlink(
        format!("../{}/diff", "cd".repeat(32)),
        overlay2.join("l").join("A".repeat(26)),
    )
    .unwrap();
    symlink("/etc", overlay2.join("l").join("B".repeat(26))).unwrap();
    fs::create_dir_all(layerdb.join("tmp/write-set-123")).unwrap();
    fs::create_dir_all(
        layerdb
            .join("sha256")
            .join(format!("{}-1234-removing", "ef".repeat(32))),
    )
    .unwrap();
    // A layer whose tree is gone, and one that would lead outside.
    for (name, cache_id) in [("01", "23".repeat(32)), ("45", "../../../etc".to_owned())] {
        let dir = layerdb.join("sha256").join(name.repeat(32));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("cache-id"), cache_id).unwrap();
        fs::write(dir.join("diff"), format!("sha256:{}", "67".repeat(32))).unwrap();
    }
    // A container that is gone.
    let mounts = layerdb.join("mounts").join("89".repeat(32));
    fs::create_dir_all(&mounts).unwrap();
    let vellum = Vellum::new(VELLUM, &home, "vellum").unwrap();
    let (fine, said) = adopt(&vellum, &root.path, &["--dry-run"]);
    assert!(fine, "{said}");
    let found = orphans(&said);
    for (path, why) in [
        (format!("overlay2/{stray}"), "no layer or container"),
        (format!("overlay2/l/{}", "A".repeat(26)), "tree is gone"),
        (
            format!("overlay2/l/{}", "B".repeat(26)),
            "not point to a tree",
        ),
        ("write-set-123".to_owned(), "being stored"),
        ("-removing".to_owned(), "cut short"),
        ("01".repeat(32), "missing"),
        ("45".repeat(32), "cache-id"),
        ("89".repeat(32), "container that is gone"),
    ] {
        let named = found
            .iter()
            .any(|(p, w)| p.ends_with(&path) && w.contains(why));
        assert!(named, "{path} {why}: {found:#?}");
    }
    // The missing tree and its layer without an image are two findings about one place.
    assert_eq!(found.len(), 9, "{found:#?}");
}

#[test]
fn a_data_root_that_lies_gives_no_layer() {
    if !ready() {
        return;
    }
    let home = Home::new().unwrap();
    let root = data_root(&home);
    let vellum = Vellum::new(VELLUM, &home, "vellum").unwrap();
    // The content of one file in the topmost layer has changed.
    let trees = fs::read_dir(root.path.join("overlay2")).unwrap();
    let changed = trees
        .map(|entry| entry.unwrap().path().join("diff/more"))
        .filter(|file| file.exists())
        .map(|file| fs::write(file, "less").map_err(|e| e.to_string()));
    assert!(changed.count() >= 2);
    let (fine, said) = adopt(&vellum, &root.path, &[]);
    assert!(!fine, "{said}");
    let outcome = |name: &str| {
        let images = said["images"].as_array().unwrap();
        let image = images
            .iter()
            .find(|i| i["names"][0].as_str().unwrap().starts_with(name))
            .unwrap();
        (
            image["outcome"].as_str().unwrap(),
            image["why"].as_str().unwrap_or_default(),
        )
    };
    assert_eq!(outcome(IMAGE).0, "adopted");
    let (what, why) = outcome("mine");
    assert!(
        what == "damaged" && why.contains("has changed since"),
        "{why}"
    );
    assert_eq!(images(&vellum), 1);
    // A tree that is a symbolic link to another place.
    let tree = fs::read_dir(root.path.join("overlay2"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|tree| tree.join("diff/app/version").exists())
        .unwrap();
    fs::rename(tree.join("diff"), tree.join("elsewhere")).unwrap();
    symlink("elsewhere", tree.join("diff")).unwrap();
    let other = Vellum::new(VELLUM, &home, "other").unwrap();
    let (fine, said) = adopt(&other, &root.path, &[]);
    assert!(!fine, "{said}");
    assert_eq!(images(&other), 0);
    // A directory that is not a data root, and a data root of another driver.
    let empty = home.dir("empty").unwrap();
    let said = other.command().arg("adopt").arg(&empty).output().unwrap();
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(
        said.contains("not a Docker data root") && said.contains("docker save"),
        "{said}"
    );
    assert!(!said.contains("docker-archive"), "{said}");
    fs::create_dir_all(empty.join("image/vfs")).unwrap();
    let said = other.command().arg("adopt").arg(&empty).output().unwrap();
    assert!(String::from_utf8_lossy(&said.stderr).contains("vfs"));
}
