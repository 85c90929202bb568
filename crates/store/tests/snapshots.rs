//! The calls on snapshots, with the semantics and errors that containerd's clients expect, for
//! every driver.

mod common;

use std::{collections::BTreeMap, fs};

use common::*;
use vellum_store::{
    Class, Commit, DriverKind, Filter, Info, Keep, LabelChange, Shape, SnapshotKey, SnapshotKind,
    StoreError, Sweep,
};
use vellum_testkit::{Scratch, needs_root};

fn class<T: std::fmt::Debug>(result: Result<T, StoreError>) -> Class {
    result.expect_err("this must fail").class()
}

/// A commit that names the parent.
fn onto(parent: &str) -> Commit {
    Commit {
        parent: Some(key(parent)),
        settle: Some(|_, _, _| Ok(())),
        ..Commit::default()
    }
}

#[test]
fn prepare_commit_remove_tree() {
    for driver in DriverKind::ALL {
        let scratch = Scratch::new();
        let store = open(&scratch, driver);
        let odd = SnapshotKey::new(b"default/7/extract a \xff b/..".as_slice());
        let parts = store.prepare(&odd, &on(None)).unwrap();
        assert_eq!(parts, store.tree(&odd).unwrap());
        let Shape::Plain {
            root,
            read_only: false,
            ..
        } = &parts.shape
        else {
            panic!("{parts:?}")
        };
        fs::write(root.join("f"), b"x").unwrap();
        assert_eq!(class(store.prepare(&odd, &on(None))), Class::AlreadyExists);
        let info = store.commit(&key("base"), &odd, Commit::default()).unwrap();
        assert_eq!(
            (info.kind, &info.key, info.usage.unwrap().inodes),
            (SnapshotKind::Committed, &key("base"), 2)
        );
        assert_eq!(info.created, info.updated);
        assert_eq!(store.stat(&key("base")).unwrap(), info);
        assert_eq!(class(store.stat(&odd)), Class::NotFound);

        store.prepare(&odd, &on(Some("base"))).unwrap();
        assert_eq!(store.stat(&odd).unwrap().parent, Some(key("base")));
        let refused = store.remove(&key("base"), Sweep::Now).unwrap_err();
        assert!(refused.to_string().contains("remove"), "{refused}");
        assert_eq!(refused.class(), Class::FailedPrecondition);
        store.remove(&odd, Sweep::Now).unwrap();
        store.prepare(&odd, &on(Some("base"))).unwrap();
        store.remove(&odd, Sweep::Later).unwrap();
        store.remove(&key("base"), Sweep::Now).unwrap();
        store.sweep().unwrap();
        for dir in ["trash", "staging", "records"] {
            assert_eq!(
                fs::read_dir(store.root().join(dir)).unwrap().count(),
                0,
                "{driver} {dir}"
            );
        }
        let left: Vec<_> = fs::read_dir(store.driver_home(driver))
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert!(left.is_empty() || left == ["l"], "{left:?}");
    }
}

#[test]
fn errors_follow_the_contract() {
    let scratch = Scratch::new();
    let store = open(&scratch, DriverKind::Overlay2);
    store.prepare(&key("a"), &on(None)).unwrap();
    assert_eq!(
        class(store.prepare(&key("b"), &on(Some("none")))),
        Class::NotFound
    );
    assert_eq!(
        class(store.prepare(&key("b"), &on(Some("a")))),
        Class::InvalidArgument
    );
    assert_eq!(
        class(store.view(&key(""), &on(None))),
        Class::InvalidArgument
    );
    store
        .commit(&key("A"), &key("a"), Commit::default())
        .unwrap();
    assert_eq!(
        class(store.commit(&key("A"), &key("none"), Commit::default())),
        Class::AlreadyExists
    );
    assert_eq!(
        class(store.commit(&key("B"), &key("none"), Commit::default())),
        Class::NotFound
    );
    assert_eq!(
        class(store.commit(&key("B"), &key("A"), Commit::default())),
        Class::FailedPrecondition
    );
    store.view(&key("v"), &on(Some("A"))).unwrap();
    assert_eq!(
        class(store.commit(&key("B"), &key("v"), Commit::default())),
        Class::FailedPrecondition
    );
    store.prepare(&key("c"), &on(Some("A"))).unwrap();
    store.prepare(&key("d"), &on(None)).unwrap();
    assert_eq!(
        class(store.commit(&key("D"), &key("d"), onto("none"))),
        Class::NotFound
    );
    assert_eq!(
        class(store.commit(&key("D"), &key("d"), onto("v"))),
        Class::FailedPrecondition
    );
    let unsettled = Commit {
        settle: None,
        ..onto("A")
    };
    assert_eq!(
        class(store.commit(&key("D"), &key("d"), unsettled)),
        Class::Unsupported
    );
    store.commit(&key("D"), &key("d"), onto("A")).unwrap();
    assert_eq!(store.stat(&key("D")).unwrap().parent, Some(key("A")));
    assert_eq!(
        class(store.commit(&key("C"), &key("c"), onto("D"))),
        Class::InvalidArgument
    );
    for missing in [
        store.stat(&key("none")).map(drop),
        store.tree(&key("none")).map(drop),
        store.usage(&key("none")).map(drop),
        store.update(&key("none"), &[]).map(drop),
        store.remove(&key("none"), Sweep::Now),
    ] {
        assert_eq!(class(missing), Class::NotFound);
    }
}

#[test]
fn times_and_labels_follow_the_contract() {
    let scratch = Scratch::new();
    let store = open(&scratch, DriverKind::Overlay2);
    let before = jiff::Timestamp::now();
    let mut options = on(None);
    options.labels = [("l", "1"), ("empty", "")]
        .map(|(k, v)| (k.into(), v.into()))
        .into();
    store.prepare(&key("a"), &options).unwrap();
    let first = store.stat(&key("a")).unwrap();
    assert!(before <= first.created && first.created <= jiff::Timestamp::now());
    assert_eq!(first.created, first.updated);
    let second = store
        .update(&key("a"), &[LabelChange::Set("m".into(), "2".into())])
        .unwrap();
    assert_eq!(second.created, first.created);
    assert!(second.updated > first.updated);
    assert_eq!(store.stat(&key("a")).unwrap(), second);
    let labels: BTreeMap<String, String> = [("x".to_owned(), "y".to_owned())].into();
    let committed = store
        .commit(
            &key("A"),
            &key("a"),
            Commit {
                labels: labels.clone(),
                ..Commit::default()
            },
        )
        .unwrap();
    assert_eq!(
        committed.labels, labels,
        "labels are replaced, not inherited"
    );
    assert!(committed.created > first.created);
    assert_eq!(committed.created, committed.updated);
}

#[test]
fn a_walk_may_ask_the_store_and_pages_through_many() {
    let scratch = Scratch::new();
    let store = open(&scratch, DriverKind::Overlay2);
    for i in 0..300 {
        store.view(&key(&format!("k{i:03}")), &on(None)).unwrap();
    }
    let mut seen: Vec<Info> = Vec::new();
    store
        .walk::<StoreError>(&[], |info| {
            assert_eq!(store.stat(&info.key)?, info);
            seen.push(info);
            Ok(())
        })
        .unwrap();
    assert_eq!(seen.len(), 300);
    let filters = Filter::parse_all(&["name==k007", "kind==view,name~=^k29"]).unwrap();
    let mut names = Vec::new();
    store
        .walk::<StoreError>(&filters, |info| {
            names.push(info.key.to_string());
            Ok(())
        })
        .unwrap();
    assert_eq!(names.len(), 11);
}

#[test]
fn roots_ignore_the_umask_and_follow_the_parent() {
    if !needs_root("owners") {
        return;
    }
    for driver in DriverKind::ALL {
        let scratch = Scratch::new();
        let store = open(&scratch, driver);
        layer(&scratch, &store, "base", None, |root| {
            use std::os::unix::fs::{MetadataExt, PermissionsExt};
            assert_eq!(fs::metadata(root).unwrap().mode() & 0o7777, 0o755);
            rustix::fs::setxattr(root, "user.k", b"v", rustix::fs::XattrFlags::empty()).unwrap();
            std::os::unix::fs::chown(root, Some(7), Some(8)).unwrap();
            fs::set_permissions(root, fs::Permissions::from_mode(0o1750)).unwrap();
        });
        let parts = store.prepare(&key("c"), &on(Some("base"))).unwrap();
        let at = show(&scratch, &parts, "m/c");
        use std::os::unix::fs::MetadataExt;
        let meta = fs::metadata(&at).unwrap();
        assert_eq!(
            (meta.mode() & 0o7777, meta.uid(), meta.gid()),
            (0o1750, 7, 8),
            "{driver}"
        );
        let mut value = [0; 8];
        let len = rustix::fs::getxattr(&at, "user.k", &mut value).unwrap();
        assert_eq!(&value[..len], b"v");
    }
}

#[test]
fn gc_removes_what_is_not_needed_and_says_why() {
    let scratch = Scratch::new();
    let store = open(&scratch, DriverKind::Overlay2);
    store.prepare(&key("x"), &on(None)).unwrap();
    store
        .commit(&key("X"), &key("x"), Commit::default())
        .unwrap();
    let lease = store.lease("test").unwrap();
    let mut held = on(Some("X"));
    held.lease = Some(lease.id().clone());
    store.prepare(&key("held"), &held).unwrap();
    let mut kept = on(None);
    kept.keep = Keep::UntilRemoved;
    store.prepare(&key("kept"), &kept).unwrap();
    store.prepare(&key("loose"), &on(None)).unwrap();
    let tree = store.stat(&key("loose")).unwrap().tree;
    fs::create_dir(store.root().join("overlay2").join("0".repeat(64))).unwrap();
    let would: Vec<_> = store
        .gc(true)
        .unwrap()
        .into_iter()
        .map(|g| g.thing)
        .collect();
    assert_eq!(would.len(), 2, "{would:?}");
    assert!(store.exists(&key("loose")).unwrap());
    let did: Vec<_> = store
        .gc(false)
        .unwrap()
        .into_iter()
        .map(|g| g.thing)
        .collect();
    assert_eq!(did, would);
    assert!(!store.exists(&key("loose")).unwrap());
    assert!(!store.root().join("overlay2").join(tree.as_str()).exists());
    assert!(store.exists(&key("X")).unwrap() && store.exists(&key("kept")).unwrap());
    assert_eq!(store.reasons_of(&key("X")).unwrap().len(), 1);
    drop(lease);
    assert_eq!(store.gc(false).unwrap().len(), 2);
    assert!(store.gc(false).unwrap().is_empty());
}

#[test]
fn an_unsettled_upper_cannot_become_a_layer() {
    for driver in [DriverKind::Overlay2, DriverKind::Overlay] {
        let scratch = Scratch::new();
        let store = open(&scratch, driver);
        store.prepare(&key("first"), &on(None)).unwrap();
        store
            .commit(&key("base"), &key("first"), Commit::default())
            .unwrap();
        let parts = store.prepare(&key("top"), &on(Some("base"))).unwrap();
        let Shape::Overlay(overlay) = &parts.shape else {
            panic!("{parts:?}")
        };
        let maps = overlay.work.as_ref().unwrap().join("vellum/blocks");
        fs::create_dir_all(&maps).unwrap();
        fs::write(maps.join("0123"), "a map").unwrap();
        let commit = || store.commit(&key("layer"), &key("top"), Commit::default());
        let refused = commit().unwrap_err();
        assert!(refused.to_string().contains("committing"), "{refused}");
        assert_eq!(store.stat(&key("top")).unwrap().kind, SnapshotKind::Active);
        fs::remove_file(maps.join("0123")).unwrap();
        commit().unwrap();
    }
}
