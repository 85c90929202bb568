//! One suite that every driver passes: what Docker's graph driver tests check, and what they don't.
//!
//! The store never mounts; here the kernel does, through the test kit's own mount code.

mod common;

use std::{
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink},
    path::Path,
    thread,
};

use common::*;
use vellum_store::*;
use vellum_testkit::{
    FsKind, Rng, Scratch, Tree, churn, kernel::Since, needs_root, tree::Ignore, untested,
};

/// Runs a check for every driver.
fn every(check: impl Fn(&Scratch, &Store, DriverKind)) {
    if !needs_root("drivers") {
        return;
    }
    for driver in DriverKind::ALL {
        let scratch = Scratch::new();
        let store = open(&scratch, driver);
        println!("driver {driver}");
        check(&scratch, &store, driver);
    }
}

fn shown(
    scratch: &Scratch,
    store: &Store,
    name: &str,
    at: &str,
) -> (TreeParts, std::path::PathBuf) {
    let parts = store.tree(&key(name)).unwrap();
    let path = show(scratch, &parts, at);
    (parts, path)
}

fn picture(scratch: &Scratch, store: &Store, name: &str) -> Tree {
    let at = format!("picture/{}", name.replace('/', "_"));
    let (parts, path) = shown(scratch, store, name, &at);
    let tree = Tree::read(&path).unwrap();
    hide(scratch, &parts, &path);
    tree
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.retain(|name| name != "lost+found");
    names.sort();
    names
}

#[test]
fn an_empty_tree_has_a_plain_root() {
    every(|scratch, store, _| {
        store.prepare(&key("empty"), &on(None)).unwrap();
        let (_, root) = shown(scratch, store, "empty", "m");
        let facts = fs::metadata(&root).unwrap();
        assert_eq!(
            (facts.mode() & 0o7777, facts.uid(), facts.gid()),
            (0o755, 0, 0)
        );
        assert!(names(&root).is_empty());
        store.view(&key("nothing"), &on(None)).unwrap();
        assert!(matches!(
            store.tree(&key("nothing")).unwrap().shape,
            Shape::Plain {
                read_only: true,
                ..
            }
        ));
    });
}

#[test]
fn modes_owners_and_special_bits_go_through_layers() {
    every(|scratch, store, _| {
        layer(scratch, store, "base", None, |root| {
            fs::create_dir(root.join("a subdir")).unwrap();
            chown(root.join("a subdir"), Some(1), Some(2)).unwrap();
            fs::set_permissions(root.join("a subdir"), Permissions::from_mode(0o1705)).unwrap();
            fs::write(root.join("a file"), "Some data").unwrap();
            fs::set_permissions(root.join("a file"), Permissions::from_mode(0o4222)).unwrap();
        });
        for (name, parent) in [("snap", "base"), ("view", "base")] {
            match name {
                "view" => store.view(&key(name), &on(Some(parent))).unwrap(),
                _ => store.prepare(&key(name), &on(Some(parent))).unwrap(),
            };
            let (parts, root) = shown(scratch, store, name, name);
            assert_eq!(names(&root), ["a file", "a subdir"]);
            let dir = fs::metadata(root.join("a subdir")).unwrap();
            assert_eq!((dir.mode() & 0o7777, dir.uid(), dir.gid()), (0o1705, 1, 2));
            let file = fs::metadata(root.join("a file")).unwrap();
            assert_eq!((file.mode() & 0o7777, file.len()), (0o4222, 9));
            hide(scratch, &parts, &root);
        }
    });
}

#[test]
fn random_changes_look_the_same_after_a_commit() {
    every(|scratch, store, driver| {
        let mut rng = Rng::for_test("random_changes_look_the_same_after_a_commit");
        let mut parent: Option<String> = None;
        for round in 0..4 {
            let (active, name) = (format!("active {round}"), format!("layer {round}"));
            let parts = store
                .prepare(&key(&active), &on(parent.as_deref()))
                .unwrap();
            let at = show(scratch, &parts, &format!("m{round}"));
            match round {
                0 => churn::grow(&mut rng, &at, 150),
                _ => churn::Churn {
                    links: false,
                    ..churn::Churn::ALL
                }
                .run(&mut rng, &at, 120),
            }
            // A new mount reads everything from disk, as every later one will.
            hide(scratch, &parts, &at);
            let before = picture(scratch, store, &active);
            store
                .commit(&key(&name), &key(&active), Commit::default())
                .unwrap();
            store.view(&key("look"), &on(Some(&name))).unwrap();
            let ignore = Ignore {
                // A hard link between layers looks like two files where each layer is separate.
                hard_links: driver != DriverKind::Native,
                ..Ignore::default()
            };
            let mut after = picture(scratch, store, "look");
            let mut before = before;
            // Marks of an inner overlay are visible only where a stack hides its own.
            let plain =
                |name: &std::ffi::OsStr| !name.to_string_lossy().starts_with("trusted.overlay.");
            before.retain_xattrs(plain);
            after.retain_xattrs(plain);
            before.assert_same(&after, ignore);
            store.remove(&key("look"), Sweep::Now).unwrap();
            parent = Some(name);
        }
    });
}

#[test]
fn deletions_and_replacements_reach_the_child() {
    every(|scratch, store, _| {
        layer(scratch, store, "base", None, |root| {
            for i in 0..20 {
                fs::write(root.join(format!("f{i}")), "base").unwrap();
            }
            fs::create_dir_all(root.join("var/lib")).unwrap();
            fs::write(root.join("var/lib/x"), "x").unwrap();
            fs::create_dir(root.join("opaque")).unwrap();
            fs::write(root.join("opaque/old"), "x").unwrap();
        });
        layer(scratch, store, "top", Some("base"), |root| {
            for i in 0..20 {
                match i % 3 {
                    0 => fs::write(root.join(format!("f{i}")), "changed").unwrap(),
                    1 => fs::remove_file(root.join(format!("f{i}"))).unwrap(),
                    _ => fs::write(root.join(format!("new{i}")), "new").unwrap(),
                }
            }
            fs::remove_dir_all(root.join("var/lib")).unwrap();
            fs::write(root.join("var/lib"), "a file now").unwrap();
            fs::remove_dir_all(root.join("opaque")).unwrap();
            fs::create_dir(root.join("opaque")).unwrap();
            fs::write(root.join("opaque/young"), "x").unwrap();
        });
        store.prepare(&key("child"), &on(Some("top"))).unwrap();
        let (_, root) = shown(scratch, store, "child", "child");
        assert_eq!(fs::read_to_string(root.join("f0")).unwrap(), "changed");
        assert!(!root.join("f1").exists());
        assert_eq!(fs::read_to_string(root.join("f2")).unwrap(), "base");
        assert_eq!(fs::read_to_string(root.join("new2")).unwrap(), "new");
        assert_eq!(
            fs::read_to_string(root.join("var/lib")).unwrap(),
            "a file now"
        );
        assert_eq!(names(&root.join("opaque")), ["young"]);
        // The parent is unchanged.
        store.view(&key("old"), &on(Some("base"))).unwrap();
        let (_, root) = shown(scratch, store, "old", "old");
        assert_eq!(fs::read_to_string(root.join("f0")).unwrap(), "base");
        assert_eq!(fs::read_to_string(root.join("var/lib/x")).unwrap(), "x");
    });
}

#[test]
fn writing_a_child_never_changes_its_parent() {
    every(|scratch, store, _| {
        layer(scratch, store, "base", None, |root| {
            fs::write(root.join("f"), "base").unwrap();
            fs::hard_link(root.join("f"), root.join("g")).unwrap();
            symlink("f", root.join("s")).unwrap();
            rustix::fs::setxattr(
                root.join("f"),
                "user.k",
                b"v",
                rustix::fs::XattrFlags::empty(),
            )
            .unwrap();
        });
        let before = picture(scratch, store, "base");
        store.prepare(&key("child"), &on(Some("base"))).unwrap();
        let (parts, root) = shown(scratch, store, "child", "child");
        fs::write(root.join("f"), "child").unwrap();
        chown(root.join("g"), Some(9), Some(9)).unwrap();
        fs::set_permissions(root.join("f"), Permissions::from_mode(0o600)).unwrap();
        rustix::fs::setxattr(
            root.join("f"),
            "user.k",
            b"w",
            rustix::fs::XattrFlags::empty(),
        )
        .unwrap();
        fs::remove_file(root.join("s")).unwrap();
        hide(scratch, &parts, &root);
        store
            .commit(&key("top"), &key("child"), Commit::default())
            .unwrap();
        before.assert_same(&picture(scratch, store, "base"), Ignore::default());
    });
}

#[test]
fn deep_chains_read_through() {
    every(|scratch, store, driver| {
        let depth = match driver {
            DriverKind::Overlay2 if Since::LayersOneByOne.is_here_for("140 layers, shown") => 140,
            _ => 20,
        };
        let mut parent: Option<String> = None;
        for i in 0..depth {
            let (active, name) = (key(&format!("a{i}")), format!("l{i}"));
            let parts = store.prepare(&active, &on(parent.as_deref())).unwrap();
            // Written without a mount: into the upper, or the whole tree.
            let at = match &parts.shape {
                Shape::Plain { root, .. } => root.clone(),
                Shape::Overlay(overlay) => overlay.upper.as_ref().unwrap().dir.clone(),
            };
            fs::write(at.join("top-id"), &name).unwrap();
            fs::create_dir(at.join(format!("layer-{i}"))).unwrap();
            fs::write(
                at.join(format!("layer-{i}/parent-id")),
                parent.as_deref().unwrap_or_default(),
            )
            .unwrap();
            store
                .commit(&key(&name), &active, Commit::default())
                .unwrap();
            parent = Some(name);
        }
        store.prepare(&key("top"), &on(parent.as_deref())).unwrap();
        let (_, root) = shown(scratch, store, "top", "top");
        assert_eq!(
            fs::read_to_string(root.join("top-id")).unwrap(),
            format!("l{}", depth - 1)
        );
        for i in (1..depth).rev() {
            let said = fs::read_to_string(root.join(format!("layer-{i}/parent-id"))).unwrap();
            assert_eq!(said, format!("l{}", i - 1));
        }
    });
}

#[test]
fn a_parent_is_not_removed_under_its_children() {
    every(|scratch, store, _| {
        layer(scratch, store, "base", None, |root| {
            fs::write(root.join("f"), "x").unwrap()
        });
        store.prepare(&key("child"), &on(Some("base"))).unwrap();
        assert_eq!(
            store.remove(&key("base"), Sweep::Now).unwrap_err().class(),
            Class::FailedPrecondition
        );
        let (parts, root) = shown(scratch, store, "child", "child");
        assert_eq!(fs::read_to_string(root.join("f")).unwrap(), "x");
        hide(scratch, &parts, &root);
        store.remove(&key("child"), Sweep::Now).unwrap();
        store.remove(&key("base"), Sweep::Now).unwrap();
    });
}

#[test]
fn many_threads_create_and_remove_at_once() {
    every(|scratch, store, _| {
        layer(scratch, store, "base", None, |root| {
            fs::write(root.join("f"), "x").unwrap()
        });
        thread::scope(|scope| {
            for t in 0..8 {
                scope.spawn(move || {
                    for i in 0..10 {
                        let k = key(&format!("{t}/{i}"));
                        let parts = store.prepare(&k, &on(Some("base"))).unwrap();
                        assert_eq!(parts, store.tree(&k).unwrap());
                        if i % 2 == 0 {
                            store
                                .commit(&key(&format!("{t}/{i} layer")), &k, Commit::default())
                                .unwrap();
                        } else {
                            store.remove(&k, Sweep::Now).unwrap();
                        }
                    }
                });
            }
        });
        assert_eq!(store.check(CheckOptions::default()).unwrap(), []);
        let mut count = 0;
        store
            .walk::<StoreError>(&[], |_| {
                count += 1;
                Ok(())
            })
            .unwrap();
        assert_eq!(count, 1 + 8 * 5);
    });
}

#[test]
fn one_of_many_concurrent_callers_gets_a_key() {
    every(|_, store, _| {
        let won: usize = thread::scope(|scope| {
            let all: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| store.prepare(&key("k"), &on(None)).is_ok()))
                .collect();
            all.into_iter()
                .filter(|_| true)
                .map(|t| usize::from(t.join().unwrap()))
                .sum()
        });
        assert_eq!(won, 1);
        assert_eq!(names(&store.root().join("records")).len(), 1);
        assert_eq!(names(&store.root().join("staging")).len(), 0);
    });
}

#[test]
fn a_reopened_store_has_the_same_trees() {
    every(|scratch, store, driver| {
        layer(scratch, store, "base", None, |root| {
            fs::write(root.join("f"), "x").unwrap()
        });
        store.prepare(&key("a"), &on(Some("base"))).unwrap();
        let features = MountFeatures {
            redirect_dir: true,
            ..MountFeatures::default()
        };
        assert_eq!(
            store.record_features(&key("a"), features).unwrap(),
            features
        );
        let again = open(scratch, driver);
        assert_eq!(
            again.tree(&key("a")).unwrap(),
            store.tree(&key("a")).unwrap()
        );
        assert_eq!(again.tree(&key("a")).unwrap().features, Some(features));
        // The first record stays in force.
        assert_eq!(
            again
                .record_features(&key("a"), MountFeatures::default())
                .unwrap(),
            features
        );
    });
}

/// The upper directory of a writable snapshot.
fn upper(store: &Store, name: &str) -> std::path::PathBuf {
    match store.tree(&key(name)).unwrap().shape {
        Shape::Overlay(overlay) => overlay.upper.unwrap().dir,
        Shape::Plain { root, .. } => root,
    }
}

#[test]
fn a_layer_records_the_marks_its_tree_has() {
    use vellum_format::{Mark, Prefix};
    use vellum_sys::{Dir, xattr};

    if !needs_root("drivers") {
        return;
    }
    let scratch = Scratch::new();
    let store = open(&scratch, DriverKind::Overlay2);
    layer(&scratch, &store, "base", None, |root| {
        fs::create_dir(root.join("d")).unwrap();
        fs::write(root.join("f"), "x").unwrap();
    });
    let mounted_with = MountFeatures {
        redirect_dir: true,
        metacopy: true,
        xino: true,
        ..MountFeatures::default()
    };
    let commit = |name: &str, made: &dyn Fn(&Path)| {
        store.prepare(&key("a"), &on(Some("base"))).unwrap();
        store.record_features(&key("a"), mounted_with).unwrap();
        made(&upper(&store, "a"));
        store.commit(&key(name), &key("a"), Commit::default())
    };
    let mark = |dir: &Path, name: &str, mark: Mark, value: &[u8]| {
        let dir = Dir::open(dir).unwrap();
        let attr = Prefix::Trusted.xattr(mark);
        xattr::set(&dir, name.as_ref(), attr, value, xattr::SetMode::Any).unwrap();
    };
    let plain = commit("plain", &|upper| fs::write(upper.join("new"), "y").unwrap()).unwrap();
    let needs = |info: &Info| info.features.map(|f| (f.redirect_dir, f.metacopy, f.xino));
    assert_eq!(needs(&plain), Some((false, false, true)));
    let renamed = commit("renamed", &|upper| {
        fs::create_dir_all(upper.join("n/e")).unwrap();
        mark(&upper.join("n"), "e", Mark::Redirect, b"/d");
    });
    assert_eq!(needs(&renamed.unwrap()), Some((true, false, true)));
    let attributes = commit("attributes", &|upper| {
        fs::write(upper.join("f"), "").unwrap();
        mark(upper, "f", Mark::Metacopy, b"");
    });
    assert_eq!(needs(&attributes.unwrap()), Some((false, true, true)));
    let tree = store.tree(&key("renamed")).unwrap();
    assert_eq!(tree.features.map(|f| f.redirect_dir), Some(true));

    let refused = commit("unsettled", &|upper| {
        fs::write(upper.join("f"), "").unwrap();
        mark(upper, "f", Mark::Metacopy, b"v");
    });
    let refused = refused.unwrap_err();
    assert!(refused.to_string().contains("unsettled"), "{refused}");
    assert_eq!(
        store.stat(&key("a")).unwrap().kind,
        SnapshotKind::Active,
        "nothing was lost"
    );
}

#[test]
fn another_default_driver_hides_nothing() {
    every(|scratch, store, driver| {
        layer(scratch, store, "base", None, |root| {
            fs::write(root.join("f"), "x").unwrap()
        });
        for other in DriverKind::ALL.into_iter().filter(|other| *other != driver) {
            let now = open(scratch, other);
            let name = format!("child under {other}");
            let parts = now.prepare(&key(&name), &on(Some("base"))).unwrap();
            assert_eq!(parts.driver, driver, "a child uses its parent's driver");
            let root = show(scratch, &parts, &name);
            assert_eq!(fs::read_to_string(root.join("f")).unwrap(), "x");
            hide(scratch, &parts, &root);
            assert_eq!(
                now.prepare(&key(&format!("own of {other}")), &on(None))
                    .unwrap()
                    .driver,
                other
            );
            assert_eq!(now.layer_driver(Some(&key("base"))).unwrap(), driver);
        }
        assert_eq!(store.drivers_in_use().unwrap().len(), 3);
        assert_eq!(store.check(CheckOptions::default()).unwrap(), []);
    });
}

#[test]
fn what_is_mounted_in_a_removed_tree_is_left_for_later() {
    every(|scratch, store, driver| {
        let parts = store.prepare(&key("a"), &on(None)).unwrap();
        let Shape::Plain { root, .. } = parts.shape else {
            panic!()
        };
        fs::create_dir(root.join("mnt")).unwrap();
        fs::write(root.join("f"), "x").unwrap();
        let mounted = rustix::mount::mount(
            "none",
            root.join("mnt"),
            "tmpfs",
            rustix::mount::MountFlags::empty(),
            None::<&std::ffi::CStr>,
        );
        if let Err(why) = mounted {
            return untested("removal of a tree with a mount in it", why);
        }
        fs::write(root.join("mnt/precious"), "x").unwrap();
        store.remove(&key("a"), Sweep::Now).unwrap();
        store.prepare(&key("a"), &on(None)).unwrap();
        assert!(!store.driver_home(driver).join(parts.tree.as_str()).exists());
        // The mount followed the tree into the trash; its content was not touched.
        let trash = store.root().join("trash");
        let stuck = trash.join(&names(&trash)[0]);
        let inside = root
            .strip_prefix(store.driver_home(driver).join(parts.tree.as_str()))
            .unwrap()
            .join("mnt");
        assert_eq!(names(&stuck.join(&inside)), ["precious"]);
        scratch.adopt_mount(&stuck.join(&inside));
        assert!(
            store
                .sweep()
                .unwrap()
                .iter()
                .any(|g| matches!(g.fate, Fate::Stuck(_)))
        );
        scratch.unmount(&stuck.join(&inside));
        store.sweep().unwrap();
        assert!(names(&trash).is_empty());
    });
}

#[test]
fn overlay2_is_exactly_dockers_layout() {
    if !needs_root("overlay2") {
        return;
    }
    let scratch = Scratch::new();
    let store = open(&scratch, DriverKind::Overlay2);
    let home = store.driver_home(DriverKind::Overlay2);
    let mode = |path: &Path| fs::symlink_metadata(path).unwrap().mode() & 0o7777;
    layer(&scratch, &store, "one", None, |root| {
        fs::write(root.join("f"), "1").unwrap()
    });
    layer(&scratch, &store, "two", Some("one"), |root| {
        fs::write(root.join("f"), "2").unwrap()
    });
    store.prepare(&key("c"), &on(Some("two"))).unwrap();
    let dir = |name: &str| home.join(store.stat(&key(name)).unwrap().tree.as_str());
    let link = |name: &str| fs::read_to_string(dir(name).join("link")).unwrap();
    assert_eq!((mode(&home), mode(&home.join("l"))), (0o710, 0o700));
    assert_eq!(names(&dir("one")), ["committed", "diff", "link"]);
    assert_eq!(
        names(&dir("two")),
        ["committed", "diff", "link", "lower", "work"]
    );
    assert_eq!(names(&dir("c")), ["diff", "link", "lower", "work"]);
    for name in ["one", "two", "c"] {
        assert_eq!(mode(&dir(name)), 0o710);
        assert_eq!(mode(&dir(name).join("diff")), 0o755);
        assert_eq!(mode(&dir(name).join("link")), 0o644);
        assert_eq!(link(name).len(), 26);
        let target = fs::read_link(home.join("l").join(link(name))).unwrap();
        assert_eq!(
            target,
            Path::new("..")
                .join(dir(name).file_name().unwrap())
                .join("diff")
        );
    }
    assert_eq!(
        (mode(&dir("c").join("work")), mode(&dir("c").join("lower"))),
        (0o700, 0o644)
    );
    assert_eq!(mode(&dir("one").join("committed")), 0o600);
    assert_eq!(
        fs::read_to_string(dir("two").join("lower")).unwrap(),
        format!("l/{}", link("one"))
    );
    let lower = fs::read_to_string(dir("c").join("lower")).unwrap();
    assert_eq!(lower, format!("l/{}:l/{}", link("two"), link("one")));
    // The parts name everything that a mount with relative names needs.
    let Shape::Overlay(overlay) = store.tree(&key("c")).unwrap().shape else {
        panic!()
    };
    let said: Vec<_> = overlay
        .lowers
        .iter()
        .map(|layer| layer.link.clone().unwrap())
        .collect();
    assert_eq!(
        said,
        lower
            .split(':')
            .map(std::path::PathBuf::from)
            .collect::<Vec<_>>()
    );
    // An empty `link` and a missing short name are repaired before any mount.
    fs::write(dir("c").join("link"), "").unwrap();
    fs::remove_file(home.join("l").join(link("one"))).unwrap();
    let (_, root) = shown(&scratch, &store, "c", "m");
    assert_eq!(fs::read_to_string(root.join("f")).unwrap(), "2");
    assert_eq!(link("c").len(), 26);
    assert!(home.join("l").join(link("one")).exists());
}

#[test]
fn overlay_hard_links_layers_and_copies_files_at_the_link_limit() {
    if !needs_root("overlay") {
        return;
    }
    let scratch = Scratch::new();
    let store = open(&scratch, DriverKind::Overlay);
    layer(&scratch, &store, "base", None, |root| {
        fs::write(root.join("f"), "base").unwrap();
        fs::write(root.join("full"), "many names").unwrap();
    });
    let dir = |name: &str| {
        store
            .driver_home(DriverKind::Overlay)
            .join(store.stat(&key(name)).unwrap().tree.as_str())
    };
    assert_eq!(names(&dir("base")), ["root"]);
    store.prepare(&key("c"), &on(Some("base"))).unwrap();
    assert_eq!(names(&dir("c")), ["lower-id", "merged", "upper", "work"]);
    let id = fs::read_to_string(dir("c").join("lower-id")).unwrap();
    assert_eq!(id, store.stat(&key("base")).unwrap().tree.as_str());
    assert_eq!(
        fs::metadata(dir("c").join("lower-id")).unwrap().mode() & 0o7777,
        0o600
    );
    // Give one inode as many names as it can have, elsewhere on the same file system.
    let links = scratch.dir("links");
    let mut n = 0;
    while n < 70_000
        && fs::hard_link(dir("base").join("root/full"), links.join(n.to_string())).is_ok()
    {
        n += 1;
    }
    let full = n < 70_000;
    layer(&scratch, &store, "top", Some("base"), |root| {
        fs::write(root.join("new"), "x").unwrap()
    });
    let ino = |path: &Path| fs::metadata(path).unwrap().ino();
    assert_eq!(
        ino(&dir("top").join("root/f")),
        ino(&dir("base").join("root/f"))
    );
    assert_eq!(
        fs::read_to_string(dir("top").join("root/full")).unwrap(),
        "many names"
    );
    if full {
        assert_ne!(
            ino(&dir("top").join("root/full")),
            ino(&dir("base").join("root/full"))
        );
    } else {
        untested(
            "a file that has all its names",
            "this file system has no limit below 70,000",
        );
    }
    assert_eq!(names(&dir("top")), ["root"]);
}

#[test]
fn a_file_system_without_d_type_is_refused_with_the_remedy() {
    if !needs_root("file systems of its own") {
        return;
    }
    let scratch = Scratch::new();
    let disk = match scratch.file_system("disk", FsKind::Ext4NoFiletype, 16) {
        Ok(disk) => disk,
        Err(why) => return untested("ext4 without file types", why),
    };
    for driver in [DriverKind::Overlay2, DriverKind::Overlay] {
        let refused = Store::open(&StoreOptions {
            driver,
            ..StoreOptions::new(disk.join("store"))
        })
        .unwrap_err();
        assert_eq!(refused.class(), Class::Unsupported);
        let text = refused.to_string();
        assert!(
            text.contains("without d_type support") && text.contains("native"),
            "{text}"
        );
    }
    let store = open_at(&disk.join("store"), DriverKind::Native);
    layer(&scratch, &store, "base", None, |root| {
        fs::write(root.join("f"), "x").unwrap()
    });
}

#[test]
fn a_size_limit_holds_or_says_what_is_missing() {
    if !needs_root("project quotas") {
        return;
    }
    let scratch = Scratch::new();
    let store = open(&scratch, DriverKind::Overlay2);
    let limited = PrepareOptions {
        size_limit_bytes: Some(1 << 20),
        ..PrepareOptions::default()
    };
    match store.prepare(&key("limited"), &limited) {
        Err(refused) => {
            assert_eq!(refused.class(), Class::Unsupported);
            assert!(refused.to_string().contains("prjquota"), "{refused}");
            assert!(names(&store.root().join("staging")).is_empty());
            untested("a size limit by project quota", refused);
        }
        Ok(parts) => {
            let Shape::Plain { root, .. } = parts.shape else {
                panic!()
            };
            // ext4 doesn't limit processes with CAP_SYS_RESOURCE.
            vellum_sys::quota::hold().unwrap();
            fs::write(root.join("fits"), vec![1; 512 << 10]).unwrap();
            let error = fs::write(root.join("f"), vec![1; 4 << 20]).unwrap_err();
            assert!(matches!(error.raw_os_error(), Some(28 | 122)), "{error}");
        }
    }
}

#[test]
fn native_and_overlay_work_on_other_file_systems() {
    if !needs_root("file systems of its own") {
        return;
    }
    for kind in [FsKind::Xfs, FsKind::Btrfs, FsKind::Tmpfs] {
        let scratch = Scratch::new();
        let disk = match scratch.file_system("disk", kind, 64) {
            Ok(disk) => disk,
            Err(why) => {
                untested(&format!("a store on {kind:?}"), why);
                continue;
            }
        };
        for driver in DriverKind::ALL {
            let store = open_at(&disk.join(driver.as_str()), driver);
            layer(&scratch, &store, "base", None, |root| {
                fs::write(root.join("f"), vec![7; 1 << 20]).unwrap();
            });
            layer(&scratch, &store, "top", Some("base"), |root| {
                fs::write(root.join("g"), "x").unwrap()
            });
            let (parts, root) = shown(&scratch, &store, "top", &format!("m {driver}"));
            assert_eq!(fs::metadata(root.join("f")).unwrap().len(), 1 << 20);
            hide(&scratch, &parts, &root);
            store.remove(&key("top"), Sweep::Now).unwrap();
            assert_eq!(
                store
                    .check(CheckOptions {
                        deep: true,
                        heal: false
                    })
                    .unwrap(),
                []
            );
        }
    }
}
