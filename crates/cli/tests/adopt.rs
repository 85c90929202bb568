//! `vellum adopt` on data roots that Docker's daemon really wrote.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::Value;
use vellum_testkit::Tree;
use vellum_testkit::clients::{Dockerd, Home, Vellum, available, small_image};
use vellum_testkit::tree::Ignore;

const VELLUM: &str = env!("CARGO_BIN_EXE_vellum");
const IMAGE: &str = "vellum-demo-small";

/// A data root with the small image, one committed on it, a container, and an image without a name; its daemon has ended.
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

/// A picture of names, sizes and contents: whether anything was changed.
fn picture(path: &Path) -> Tree {
    Tree::read(path).unwrap()
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
    // What goes out has the layers that Docker has: load checks each digest.
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
        (format!("overlay2/{stray}"), "no layer and no container"),
        (format!("overlay2/l/{}", "A".repeat(26)), "tree is gone"),
        (
            format!("overlay2/l/{}", "B".repeat(26)),
            "not lead to a tree",
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
    // The content of one file in the topmost layer is another now.
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
        what == "damaged" && why.contains("not what it was"),
        "{why}"
    );
    assert_eq!(images(&vellum), 1);
    // A tree that is a link to somewhere else.
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
    // No data root at all, and one of another driver.
    let empty = home.dir("empty").unwrap();
    let said = other.command().arg("adopt").arg(&empty).output().unwrap();
    assert!(String::from_utf8_lossy(&said.stderr).contains("no Docker data root"));
    fs::create_dir_all(empty.join("image/vfs")).unwrap();
    let said = other.command().arg("adopt").arg(&empty).output().unwrap();
    assert!(String::from_utf8_lossy(&said.stderr).contains("vfs"));
}
