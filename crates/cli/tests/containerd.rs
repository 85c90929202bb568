//! The containerd of this machine on Vellum's snapshotter: images are imported, containers run,
//! everything is removed again, and a crash of either side loses nothing. Features of newer
//! containerds are tested in `newer_containerd.rs`.

#[path = "support/containerd.rs"]
mod pair;

use std::time::Duration;

use pair::{HELLO, IMAGE, Pair, programs, wait};
use vellum_testkit::clients::{SNAPSHOTTER, available, run, small_image};
use vellum_testkit::scratch::mount_table;

#[test]
fn containerd_imports_runs_commits_and_leaves_nothing() {
    if !programs() {
        return;
    }
    let pair = Pair::start();
    pair.import();
    let ctr = |arguments: &[&str]| pair.containerd.ctr(arguments).unwrap();
    assert_eq!(pair.hello("default", IMAGE, "hello").unwrap(), HELLO);

    pair.start_box("box");
    let change = "echo changed > /app/version && rm -r /odd/links && mkdir /made && ln /app/version /made/again";
    pair.inside("box", change).unwrap();
    let names = pair.changed_names("box");
    for expected in ["app/version", "odd/.wh.links", "made/again", "begun"] {
        assert!(
            names.iter().any(|name| name == expected),
            "{expected} is missing in {names:?}"
        );
    }
    pair.end_box("box");

    // A snapshot made by hand: prepared on the image's top layer, changed, committed, and then used
    // as a parent.
    let top = ctr(&["snapshots", "--snapshotter", SNAPSHOTTER, "ls"]);
    let parents: Vec<&str> = top
        .lines()
        .filter_map(|l| l.split_whitespace().nth(1))
        .collect();
    let top = top
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .find(|key| key.starts_with("sha256:") && !parents.contains(key))
        .expect("an image has a top layer")
        .to_owned();
    let tree = pair.home.dir("tree").unwrap();
    let at = tree.to_str().unwrap();
    let script = ctr(&[
        "snapshots",
        "--snapshotter",
        SNAPSHOTTER,
        "prepare",
        "--target",
        at,
        "work",
        &top,
    ]);
    run(std::process::Command::new("sh").args(["-ec", &script])).unwrap();
    assert_eq!(
        std::fs::read_to_string(tree.join("app/version")).unwrap(),
        "version 2\n"
    );
    std::fs::write(tree.join("app/version"), "version 5\n").unwrap();
    vellum_testkit::scratch::unmount(&tree).unwrap();
    ctr(&[
        "snapshots",
        "--snapshotter",
        SNAPSHOTTER,
        "commit",
        "layer",
        "work",
    ]);
    let script = ctr(&[
        "snapshots",
        "--snapshotter",
        SNAPSHOTTER,
        "view",
        "--target",
        at,
        "look",
        "layer",
    ]);
    run(std::process::Command::new("sh").args(["-ec", &script])).unwrap();
    assert_eq!(
        std::fs::read_to_string(tree.join("app/version")).unwrap(),
        "version 5\n"
    );
    vellum_testkit::scratch::unmount(&tree).unwrap();
    // No label keeps a view, so containerd's own collection may have removed it already. containerd
    // then still counts it as its parent's child, so the parent goes only at the next collection.
    for (key, quicker) in [("look", "not found"), ("layer", "snapshot with child")] {
        let snapshots = ["snapshots", "--snapshotter", SNAPSHOTTER];
        let told = |arguments: &[&str]| pair.containerd.ctr(&[&snapshots, arguments].concat());
        if let Err(error) = told(&["rm", key]) {
            assert!(error.to_string().contains(quicker), "{error:?}");
            if key == "layer" {
                told(&["label", key, "containerd.io/gc.root="]).unwrap();
            }
        }
    }

    pair.remove_images("default");
    pair.assert_nothing_left();
}

#[test]
fn namespaces_pull_the_same_image_and_remove_it_alone() {
    if !programs() || !available(&["docker-registry", "skopeo"]) {
        return;
    }
    let pair = Pair::start();
    let (_registry, image) = pair.registry();
    for namespace in ["default", "other"] {
        run(&mut pair.pull_command(namespace, &image)).unwrap();
        assert_eq!(pair.hello(namespace, &image, "hello").unwrap(), HELLO);
    }
    pair.remove_images("default");
    wait("the first namespace to be empty", || {
        pair.containerd
            .snapshots("default")
            .is_ok_and(|keys| keys.is_empty())
    });
    assert_eq!(pair.hello("other", &image, "again").unwrap(), HELLO);
    pair.remove_images("other");
    pair.assert_nothing_left();
}

#[test]
fn containers_keep_running_when_either_side_is_killed() {
    if !programs() {
        return;
    }
    let mut pair = Pair::start();
    pair.import();
    pair.start_box("box");

    pair.server.daemon.kill();
    // The kernel mounted its tree, so it needs no server.
    pair.inside("box", "echo alone > /alone && cat /app/version")
        .unwrap();
    let refused = pair.hello("default", IMAGE, "early");
    assert!(refused.is_err(), "no server was there to prepare it");
    pair.server.start_again().unwrap();
    let said = pair
        .containerd
        .ctr_patiently(&[
            "snapshots",
            "--snapshotter",
            SNAPSHOTTER,
            "mounts",
            "/tmp",
            "box",
        ])
        .unwrap();
    assert!(said.contains("upperdir="), "{said}");

    pair.containerd.daemon.kill();
    pair.containerd.start_again().unwrap();
    pair.inside("box", "grep -qx alone /alone").unwrap();

    pair.containerd.daemon.kill();
    pair.server.daemon.kill();
    pair.server.start_again().unwrap();
    pair.containerd.start_again().unwrap();
    pair.inside("box", "grep -qx begun /begun").unwrap();
    pair.containerd
        .ctr_patiently(&["snapshots", "--snapshotter", SNAPSHOTTER, "ls"])
        .unwrap();
    assert_eq!(pair.hello("default", IMAGE, "late").unwrap(), HELLO);

    pair.end_box("box");
    // The request may have come while the server was down.
    let _ = pair.containerd.ctr(&["container", "rm", "early"]);
    pair.remove_images("default");
    pair.assert_nothing_left();
}

#[test]
fn killing_the_server_amid_an_import_loses_and_leaks_nothing() {
    if !programs() {
        return;
    }
    let mut pair = Pair::start();
    let archive = small_image(&pair.home).unwrap();
    for delay_ms in [20, 60, 150, 300] {
        let mut import = pair.containerd.command("default");
        import
            .args(["image", "import", "--snapshotter", SNAPSHOTTER])
            .arg(&archive);
        import
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null());
        let mut import = import.spawn().unwrap();
        std::thread::sleep(Duration::from_millis(delay_ms));
        pair.server.daemon.kill();
        // It may have finished before, or failed now; either is fine.
        let _ = import.wait().unwrap();
        pair.server.start_again().unwrap();
    }
    let archive = archive.to_str().unwrap();
    pair.containerd
        .ctr_patiently(&["image", "import", "--snapshotter", SNAPSHOTTER, archive])
        .unwrap();
    assert_eq!(pair.hello("default", IMAGE, "hello").unwrap(), HELLO);
    pair.remove_images("default");
    pair.collect_litter();
    pair.assert_nothing_left();
}

#[test]
fn containers_have_their_own_ids() {
    if !programs() || !available(&["mount.fuse3"]) {
        return;
    }
    let pair = Pair::start();
    pair.import();
    let map = [
        "--uidmap",
        "0:100000:6000000",
        "--gidmap",
        "0:7000000:6000000",
    ];
    let owners = |files: &str, expected: &str| {
        format!("test \"$(stat -c %u:%g {files} | tr '\\n' ' ')\" = '{expected} '")
    };
    // A copy with other owners, made by containerd; and labels, on which Vellum's engine maps them.
    for (id, remap) in [("copied", &[][..]), ("labels", &["--remap-labels"])] {
        pair.start_box_with(&[&map, remap].concat(), IMAGE, id);
        for line in [
            "grep -qE '^ *0 +100000 +6000000$' /proc/self/uid_map",
            &owners("/ /app/version", "0:0 1000:1000"),
            &owners("/odd/far-owner", "3000000:4000000"),
            "echo mine > /mine; echo more >> /app/version; chown 7:8 /odd/empty",
            &owners("/mine /app/version /odd/empty", "0:0 1000:1000 7:8"),
        ] {
            let done = pair.inside(id, line);
            assert!(done.is_ok(), "{id}: {done:?}");
        }
        pair.end_box(id);
    }
    pair.remove_images("default");
    pair.assert_nothing_left();
}

#[test]
fn containers_run_on_vellums_engine() {
    if !programs() || !available(&["mount.fuse3"]) {
        return;
    }
    let mut pair = Pair::with(&["--engine", "vellum"]);
    pair.import();
    assert_eq!(pair.hello("default", IMAGE, "hello").unwrap(), HELLO);
    pair.start_box("box");
    let mounted = |kind: &str| {
        let table = mount_table();
        let ours = format!(" {}/ctd/", pair.home.path().display());
        let is = |line: &&str| line.contains(&ours) && line.contains(kind);
        table.lines().filter(is).count()
    };
    wait("the engine to have the one tree", || {
        (mounted(" - fuse.vellum "), mounted(" - overlay ")) == (1, 0)
    });
    let change = "echo \"version 9\" > /app/version && rm -r /odd/links && mkdir /made && ln /app/version /made/again && mv /app /moved";
    pair.inside("box", change).unwrap();
    // A second mount, read-only, beside the container's.
    let mut names = pair.changed_names("box");
    names.sort();
    let expected = [
        ".wh.app",
        "begun",
        "made/",
        "made/again",
        "moved/",
        "moved/hello",
        "moved/version",
        "odd/",
        "odd/.wh.links",
    ];
    assert_eq!(names, expected);
    pair.inside("box", "grep -qx 'version 9' /moved/version")
        .unwrap();

    // Data doesn't pass through the server, and the engine is not a child process that would die
    // with it.
    pair.server.daemon.kill();
    pair.inside("box", "grep -qx 'version 9' /moved/version")
        .unwrap();
    pair.containerd.daemon.kill();
    pair.server.start_again().unwrap();
    pair.containerd.start_again().unwrap();
    pair.inside("box", "grep -qx 'version 9' /made/again")
        .unwrap();
    pair.end_box("box");
    pair.remove_images("default");
    // The view for the comparison may have been in removal when the server was killed.
    pair.collect_litter();
    pair.assert_nothing_left();
    wait("the engine to end", || {
        !mount_table().contains(&format!(" {}/ctd/", pair.home.path().display()))
    });
}

#[test]
fn a_clients_label_limits_what_its_container_writes() {
    if !programs() || !available(&["mount.fuse3"]) {
        return;
    }
    let mut pair = Pair::start();
    pair.import();
    let label = "containerd.io/snapshot/max-size=8388608";
    pair.start_box_with(&["--snapshotter-label", label], IMAGE, "small");
    // Eight of twenty MiB fit; removing files frees space again.
    let fill = "said=$(dd if=/dev/zero of=/big bs=4k count=5120 2>&1) && exit 1; \
                case $said in *'No space left'*) ;; *) exit 2 ;; esac; \
                size=$(stat -c %s /big); test $size -ge 4194304 && test $size -le 8388608 || exit 3";
    pair.inside("small", fill).unwrap();
    pair.inside("small", "echo x > /another").unwrap_err();
    let wrong = pair
        .containerd
        .run_command("default")
        .args([
            "--snapshotter-label",
            "containerd.io/snapshot/max-size=8m",
            IMAGE,
            "wrong",
        ])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&wrong.stderr);
    assert!(
        !wrong.status.success() && said.contains("not a number of bytes"),
        "{said}"
    );
    // containerd created its record of the container before it asked for the snapshot.
    let _ = pair.containerd.ctr(&["container", "rm", "wrong"]);
    // The limit is not enforced by the server.
    pair.server.daemon.kill();
    pair.inside("small", "echo x >> /big").unwrap_err();
    pair.server.start_again().unwrap();
    let room = "rm /big && dd if=/dev/zero of=/half bs=1M count=4 && rm /half";
    pair.inside("small", room).unwrap();
    pair.inside("small", fill).unwrap();
    pair.end_box("small");
    wait("containerd to find the server again", || {
        pair.containerd.snapshots("default").is_ok()
    });
    pair.remove_images("default");
    pair.assert_nothing_left();
}
