//! The snapshotter's calls as a client sees them: what containerd's own suite doesn't test.

#[path = "support/snapshotter.rs"]
mod server;

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;

use server::{Labels, Server, labels, refused, upper, value, wait_for};
use tonic::Code;
use vellum_snapshotter::api::services::snapshots::v1 as wire;

#[test]
fn every_refusal_has_the_code_that_containerd_expects() {
    let Some(server) = Server::start(&[], &[]) else {
        return;
    };
    let c = server.client();
    c.layer("base", "");
    c.prepare("active", "base").unwrap();
    c.view("view", "base").unwrap();
    c.prepare("loose", "").unwrap();
    for make in [
        |c: &server::Client, key: &str, parent: &str| c.prepare(key, parent),
        |c: &server::Client, key: &str, parent: &str| c.view(key, parent),
    ] {
        refused(make(&c, "active", ""), Code::AlreadyExists, "active");
        refused(make(&c, "active", "gone"), Code::AlreadyExists, "active");
        refused(make(&c, "base", ""), Code::AlreadyExists, "base");
        refused(make(&c, "new", "gone"), Code::NotFound, "gone");
        refused(make(&c, "new", "active"), Code::InvalidArgument, "active");
        refused(make(&c, "new", "view"), Code::InvalidArgument, "view");
        refused(make(&c, "", ""), Code::InvalidArgument, "empty");
    }
    refused(c.mounts("gone"), Code::NotFound, "gone");
    refused(c.mounts("base"), Code::FailedPrecondition, "committed");
    refused(c.stat("gone"), Code::NotFound, "gone");
    refused(c.usage("gone"), Code::NotFound, "gone");
    refused(c.remove("gone"), Code::NotFound, "gone");
    refused(c.remove("base"), Code::FailedPrecondition, "remove");
    refused(c.commit("base", "gone"), Code::AlreadyExists, "base");
    refused(c.commit("new", "gone"), Code::NotFound, "gone");
    refused(c.commit("new", "view"), Code::FailedPrecondition, "view");
    refused(c.commit("new", "base"), Code::FailedPrecondition, "base");
    refused(c.commit("", "active"), Code::InvalidArgument, "empty");
    let on = |parent: &str, key: &str| c.commit_on("new", key, Labels::new(), parent);
    c.layer("other", "");
    refused(on("other", "active"), Code::InvalidArgument, "base");
    refused(on("gone", "loose"), Code::NotFound, "gone");
    refused(on("view", "loose"), Code::FailedPrecondition, "view");
    refused(c.list(&["name==\"", "("]), Code::InvalidArgument, "filter");
    let named = |name: &str| wire::Info {
        name: name.into(),
        ..wire::Info::default()
    };
    refused(c.update(named("gone"), None), Code::NotFound, "gone");
    let parent = c.update(named("base"), Some(&["parent"]));
    refused(parent, Code::InvalidArgument, "parent");
    // None of this left anything behind.
    let mut names = c.names(&[]);
    names.sort();
    assert_eq!(names, ["active", "base", "loose", "other", "view"]);
    server.assert_sound();
}

#[test]
fn labels_change_and_times_keep_their_nanoseconds() {
    let Some(server) = Server::start(&[], &[]) else {
        return;
    };
    let c = server.client();
    let given = labels(&[("a", "1"), ("b", "2"), ("containerd.io/snapshot/x", "y")]);
    c.prepare_with("k", "", given.clone()).unwrap();
    let made = c.stat("k").unwrap();
    assert_eq!(made.labels, given);
    assert_eq!(made.created_at, made.updated_at);
    assert_eq!(c.list(&[]).unwrap(), std::slice::from_ref(&made));
    // As clients send it: zero times of year one, kind committed, and an empty mask.
    let zero = prost_types::Timestamp {
        seconds: -62_135_596_800,
        nanos: 0,
    };
    let ask = |pairs: &[(&str, &str)]| wire::Info {
        name: "k".into(),
        parent: "nonsense".into(),
        kind: wire::Kind::Committed as i32,
        created_at: Some(zero),
        updated_at: Some(zero),
        labels: labels(pairs),
    };
    let after = c.update(ask(&[("c", "3")]), Some(&[])).unwrap();
    assert_eq!(after.labels, labels(&[("c", "3")]));
    assert_eq!((after.created_at, after.kind), (made.created_at, made.kind));
    let (new, old) = (after.updated_at.unwrap(), made.updated_at.unwrap());
    assert!((new.seconds, new.nanos) > (old.seconds, old.nanos));
    assert_eq!(c.stat("k").unwrap(), after);
    let check = |pairs: &[(&str, &str)], mask: Option<&[&str]>, expect: &[(&str, &str)]| {
        let info = c.update(ask(pairs), mask).unwrap();
        assert_eq!(info.labels, labels(expect), "{mask:?}");
    };
    check(
        &[("d", "4"), ("e", "5")],
        Some(&["labels.d"]),
        &[("c", "3"), ("d", "4")],
    );
    check(&[("d", "")], Some(&["labels.d"]), &[("c", "3")]);
    check(&[], Some(&["labels.c"]), &[]);
    check(&[("f", "6")], Some(&["labels"]), &[("f", "6")]);
    check(&[("g", "7")], None, &[("g", "7")]);
    // A commit replaces the labels and resets the times.
    c.commit_on("l", "k", labels(&[("h", "8")]), "").unwrap();
    let layer = c.stat("l").unwrap();
    assert_eq!(layer.labels, labels(&[("h", "8")]));
    assert_eq!(layer.created_at, layer.updated_at);
    assert_ne!(layer.created_at, made.created_at);
    refused(c.stat("k"), Code::NotFound, "k");
}

#[test]
fn a_list_passes_filters_and_comes_in_pieces_while_things_change() {
    let Some(server) = Server::start(&[], &[]) else {
        return;
    };
    let c = server.client();
    c.layer("base", "");
    c.prepare_with("odd key/with: all \"sorts\"", "base", labels(&[("l", "x")]))
        .unwrap();
    c.view("view", "base").unwrap();
    assert_eq!(c.names(&["kind==committed"]), ["base"]);
    assert_eq!(c.names(&["kind==view", "name==base"]).len(), 2);
    assert_eq!(c.names(&["parent==base,kind==active"]).len(), 1);
    assert_eq!(c.names(&["labels.l"]).len(), 1);
    assert_eq!(c.names(&["labels.\"l\"==x,name~=/sorts/"]).len(), 1);
    assert_eq!(c.names(&["labels.l!=x"]).len(), 2);
    assert_eq!(c.names(&["parent!=base"]), ["base"]);
    // More than a thousand, created by several clients at once.
    std::thread::scope(|scope| {
        for part in 0..4 {
            let c = &c;
            scope.spawn(move || {
                for n in 0..275 {
                    c.prepare(&format!("many/{part}/{n}"), "base").unwrap();
                }
            });
        }
    });
    let mut round = 0;
    let messages = c
        .list_messages(&[], |infos| {
            assert!(infos.len() <= 100);
            // Other calls work between two messages.
            c.stat(&infos[0].name).unwrap();
            c.prepare(&format!("meanwhile {round}"), "base").unwrap();
            c.remove(&format!("many/0/{round}")).unwrap();
            round += 1;
        })
        .unwrap();
    assert!(messages.len() >= 11, "{}", messages.len());
    let listed: Vec<_> = messages.concat();
    let names: BTreeSet<_> = listed.iter().map(|info| &info.name).collect();
    assert_eq!(names.len(), listed.len(), "no snapshot is listed twice");
    assert!((1..4).all(|part| names.contains(&format!("many/{part}/100"))));
    // A client that goes away in the middle leaves nothing running.
    let _ = server.runtime.block_on(async {
        let mut wire = c.wire.clone();
        let request = wire::ListSnapshotsRequest::default();
        let mut stream = wire.list(request).await.unwrap().into_inner();
        stream.message().await.unwrap()
    });
    assert_eq!(c.stat("base").unwrap().name, "base");
}

#[test]
fn usage_counts_a_snapshots_own_space() {
    for driver in ["overlay2", "overlay", "native"] {
        let Some(server) = Server::start(&["--storage-driver", driver], &[]) else {
            return;
        };
        let c = server.client();
        let mounts = c.prepare("a", "").unwrap();
        let (empty, inodes) = c.usage("a").unwrap();
        assert_eq!(inodes, 1, "the root directory");
        let tree = upper(&mounts);
        std::fs::write(tree.join("file"), vec![7; 1 << 20]).unwrap();
        std::fs::hard_link(tree.join("file"), tree.join("again")).unwrap();
        std::fs::create_dir(tree.join("dir")).unwrap();
        std::fs::File::open(tree.join("file"))
            .unwrap()
            .sync_all()
            .unwrap();
        let dir = std::fs::metadata(tree.join("dir")).unwrap().blocks() as i64 * 512;
        let expect = (empty + (1 << 20) + dir, 3);
        assert_eq!(c.usage("a").unwrap(), expect, "{driver}");
        c.commit("l", "a").unwrap();
        assert_eq!(c.usage("l").unwrap(), expect, "{driver}");
        c.view("v", "l").unwrap();
        assert_eq!(c.usage("v").unwrap(), (0, 0), "{driver}");
        if driver == "overlay2" {
            let on = c.prepare("b", "l").unwrap();
            assert_eq!(c.usage("b").unwrap(), (empty, 1));
            std::fs::write(upper(&on).join("x"), "x").unwrap();
            c.commit("m", "b").unwrap();
            assert_eq!(c.usage("m").unwrap().1, 2);
        }
        // What the commit recorded stays, whatever happens to the server.
        wait_for("the count", || {
            server
                .vellum()
                .arg("check")
                .output()
                .is_ok_and(|said| said.status.success())
        });
    }
}

#[test]
fn a_removed_key_is_free_at_once_and_its_space_after_a_cleanup() {
    let Some(server) = Server::start(&[], &[]) else {
        return;
    };
    let c = server.client();
    let tree = upper(&c.prepare("k", "").unwrap());
    std::fs::write(tree.join("file"), "content").unwrap();
    c.remove("k").unwrap();
    assert!(!tree.exists());
    let trash = || {
        std::fs::read_dir(server.root().join("trash"))
            .unwrap()
            .count()
    };
    assert_eq!(trash(), 1);
    let again = upper(&c.prepare("k", "").unwrap());
    assert_ne!(again, tree);
    assert_eq!(std::fs::read_dir(&again).unwrap().count(), 0);
    c.cleanup().unwrap();
    assert_eq!(trash(), 0);
    assert!(again.exists());
}

#[test]
fn a_known_chain_is_adopted_and_not_unpacked_again() {
    let Some(server) = Server::start(&[], &[]) else {
        return;
    };
    let c = server.client();
    let chain = |n: u8| format!("sha256:{}", format!("{n:02x}").repeat(32));
    let target = |n: u8| labels(&[("containerd.io/snapshot.ref", chain(n).as_str())]);
    let mut parent = String::new();
    for n in 1..=2 {
        let key = format!("one/{n}/extract");
        c.prepare_with(&key, &parent, target(n)).unwrap();
        let name = format!("one/{n}/{}", chain(n));
        c.commit_on(&name, &key, target(n), "").unwrap();
        parent = name;
    }
    // Another namespace has its own keys, and finds the layer that it looks for.
    let mut parent = String::new();
    for n in 1..=2 {
        let key = format!("two/{n}/extract");
        let answer = c.prepare_with(&key, &parent, target(n));
        refused(answer, Code::AlreadyExists, &chain(n));
        refused(c.stat(&key), Code::NotFound, "extract");
        let filter = format!(
            "labels.\"containerd.io/snapshot.ref\"=={},parent==\"{parent}\"",
            chain(n)
        );
        let found = c.names(&[&filter]);
        assert_eq!(found, [format!("one/{n}/{}", chain(n))]);
        parent = found[0].clone();
    }
    // The same layer on another parent is another layer; so is one that is not committed.
    c.prepare_with("two/3/extract", "", target(2)).unwrap();
    c.prepare_with("two/4/extract", "", target(2)).unwrap();
    let taken = c.prepare_with("two/4/extract", "", target(1));
    refused(taken, Code::AlreadyExists, "two/4/extract");
}

#[test]
fn mounts_are_the_same_after_a_restart_of_the_server() {
    let Some(mut server) = Server::start(&[], &[]) else {
        return;
    };
    let c = server.client();
    c.layer("one", "");
    c.layer("two", "one");
    let before = [
        c.prepare("active", "two").unwrap(),
        c.view("view", "two").unwrap(),
        c.view("single", "one").unwrap(),
        c.prepare("loose", "").unwrap(),
    ];
    std::fs::write(upper(&before[0]).join("mine"), "x").unwrap();
    let info = c.stat("active").unwrap();
    for gently in [true, false] {
        match gently {
            true => server.end(),
            false => server.kill(),
        }
        // Derived files are created again if they are missing.
        let links = server.root().join("overlay2/l");
        for link in std::fs::read_dir(&links).unwrap() {
            std::fs::remove_file(link.unwrap().path()).unwrap();
        }
        server.spawn();
        let c = server.client();
        let after = ["active", "view", "single", "loose"].map(|key| c.mounts(key).unwrap());
        assert_eq!(after, before);
        assert_eq!(c.stat("active").unwrap(), info);
    }
    let at = server.home.join("mnt");
    server::mount_at(&before[0], &at);
    let names = ["one", "two", "mine"].map(|name| at.join(name).exists());
    server::unmount(&at);
    assert_eq!(names, [true; 3]);
}

#[test]
fn labels_say_where_files_are_and_how_much_they_may_be() {
    let Some(server) = Server::start(&[], &["--upperdir-label"]) else {
        return;
    };
    const UPPER: &str = "containerd.io/snapshot/overlay.upperdir";
    let c = server.client();
    c.layer("base", "");
    let upper = upper(&c.prepare("k", "base").unwrap());
    let told = c.stat("k").unwrap().labels;
    assert_eq!(told.get(UPPER).map(String::as_str), upper.to_str());
    let filter = format!("labels.\"{UPPER}\"==\"{}\"", upper.display());
    assert_eq!(c.names(&[&filter]), ["k"]);
    // It is reported but not stored.
    let record = std::fs::read_dir(server.root().join("records")).unwrap();
    for file in record {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        assert!(!text.contains("upperdir"), "{text}");
    }
    let size = |text: &str| labels(&[("containerd.io/snapshot/max-size", text)]);
    let bad = c.prepare_with("s", "base", size("much"));
    refused(bad, Code::InvalidArgument, "max-size");
    refused(c.stat("s"), Code::NotFound, "s");
}

#[test]
fn mount_options_say_what_a_foreign_differ_needs() {
    let Some(server) = Server::start(&[], &[]) else {
        return;
    };
    let c = server.client();
    c.layer("one", "");
    c.layer("two", "one");
    let mounts = c.prepare("k", "two").unwrap();
    let [mount] = mounts.as_slice() else {
        panic!("{mounts:?}");
    };
    assert_eq!(
        (mount.r#type.as_str(), mount.target.as_str()),
        ("overlay", "")
    );
    for off in ["index=off", "metacopy=off", "redirect_dir=nofollow"] {
        assert!(
            mount.options.iter().any(|option| option == off),
            "{mount:?}"
        );
    }
    assert_eq!(value(mount, "lowerdir=").split(':').count(), 2);
    // An unpacker never gets a read-only mount, which would mean that the layer already exists.
    let target = labels(&[("containerd.io/snapshot.ref", "sha256:00")]);
    for (key, parent) in [("a", ""), ("b", "one")] {
        let mounts = c.prepare_with(key, parent, target.clone()).unwrap();
        assert!(mounts.iter().all(|m| !m.options.contains(&"ro".to_owned())));
        assert!(upper(&mounts).is_dir());
    }
    let all = c.view("v", "one").unwrap();
    assert_eq!(all[0].options, ["ro", "rbind"]);
}
