//! Layers that try to leave the tree, or to get more than they should.

use super::*;

/// Applies the layer and expects a refusal; nothing may have appeared outside the tree.
#[track_caller]
fn refused(parts: &[Vec<u8>], because: &str) {
    for marks in [OVERLAY, TargetMarks::Plain] {
        let fixture = Fixture::new();
        fixture.scratch.file("outside/secret", "untouched");
        let outside = fixture.scratch.join("outside");
        match fixture.apply(marks, parts) {
            Ok(applied) => panic!("accepted: {applied:?}"),
            Err(error) => assert!(
                error.to_string().contains(because),
                "{error}, expected {because}"
            ),
        }
        let names: Vec<_> = fs::read_dir(fixture.scratch.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names.len(), 2, "{names:?}");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
        assert_eq!(
            fs::read_to_string(outside.join("secret")).unwrap(),
            "untouched"
        );
    }
}

#[test]
fn names_that_leave_the_tree_are_refused() {
    if !needs_root("apply as root") {
        return;
    }
    let link = |name: &str, target: &str| Raw::new(name, b'2').link(target).block();
    let hard = |name: &str, target: &str| Raw::new(name, b'1').link(target).block();
    refused(
        &[link("a", "b"), link("b", "a"), file("a/x", "x")],
        "too many symbolic links",
    );
    refused(
        &[link("l", "../outside"), hard("h", "l/secret")],
        "not in the tree",
    );
    refused(&[hard("h", "../outside/secret")], "not in the tree");
    refused(&[hard("h", "/etc/passwd")], "not in the tree");
    refused(&[hard("h", "h")], "not in the tree");
    refused(&[dir("d/"), hard("h", "d")], "hard link to a directory");
    refused(&[file("a/.wh..", "")], "whiteout of nothing");
    refused(&[file(".wh.", "")], "whiteout of nothing");
    refused(&[file("f", "x"), file("f/below", "x")], "not a directory");
    refused(&[Raw::new("c", b'3').block()], "device 0:0");
}

#[test]
fn names_that_climb_above_the_root_stay_in_it() {
    if !needs_root("apply as root") {
        return;
    }
    let link = |name: &str, target: &str| Raw::new(name, b'2').link(target).block();
    for marks in [OVERLAY, TargetMarks::Plain] {
        let fixture = Fixture::new();
        fixture.scratch.file("outside/secret", "untouched");
        fixture.scratch.file("secret", "untouched");
        let parts = [
            file("outside/ours", "ours"),
            link("l", "../outside"),
            file("l/through", "ours"),
            link("deep", "../../../../../../outside"),
            file("deep/down", "ours"),
            dir("d/"),
            link("d/l", "../../outside"),
            file("d/l/within", "ours"),
            file("/../outside/absolute", "ours"),
            file("../outside/relative", "ours"),
            file("d/../../../outside/late", "ours"),
            dir(".."),
            file("../.wh.secret", ""),
            Raw::new("hard", b'1').link("../outside/ours").block(),
            Raw::new("soft", b'1').link("d/l/within").block(),
            file("l/.wh.secret", ""),
        ];
        fixture.apply(marks, &parts).unwrap();
        for name in [
            "outside/through",
            "outside/down",
            "outside/within",
            "outside/absolute",
            "outside/relative",
            "outside/late",
            "hard",
            "soft",
        ] {
            assert_eq!(fixture.read(name), "ours", "{name}");
        }
        let outside = fixture.scratch.join("outside");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
        for secret in [outside.join("secret"), fixture.scratch.join("secret")] {
            assert_eq!(fs::read_to_string(secret).unwrap(), "untouched");
        }
    }
}

#[test]
fn absolute_names_and_links_stay_inside() {
    let fixture = Fixture::new();
    fixture
        .apply(
            TargetMarks::Plain,
            &[
                file("/etc/passwd", "ours"),
                Raw::new("abs", b'2').link("/etc").block(),
                file("abs/shadow", "ours"),
                Raw::new("rel", b'2').link("etc/../etc/.").block(),
                file("rel/group", "ours"),
                Raw::new("hard", b'1').link("/abs/passwd").block(),
                Raw::new("self", b'1').link("self").block(),
            ][..6],
        )
        .unwrap();
    for name in ["etc/passwd", "etc/shadow", "etc/group", "hard"] {
        assert_eq!(fixture.read(name), "ours", "{name}");
    }
    assert_ne!(fs::read_to_string("/etc/passwd").unwrap(), "ours");
}

#[test]
fn a_link_of_the_parent_gives_way_to_a_directory() {
    let fixture = Fixture::new();
    fixture.scratch.file("outside/secret", "untouched");
    std::os::unix::fs::symlink("../outside", fixture.path("l")).unwrap();
    std::os::unix::fs::symlink("usr/bin", fixture.path("bin")).unwrap();
    let applied = fixture
        .apply(
            TargetMarks::Plain,
            &[file("l/secret", "mine"), file("bin/x", "mine")],
        )
        .unwrap();
    assert_eq!(applied.implied_dirs, [Path::new("bin"), Path::new("l")]);
    assert_eq!(fixture.read("l/secret"), "mine");
    assert!(fs::symlink_metadata(fixture.path("bin")).unwrap().is_dir());
    assert_eq!(
        fs::read_to_string(fixture.scratch.join("outside/secret")).unwrap(),
        "untouched"
    );
}

#[test]
fn overlay_attributes_of_an_archive_never_act() {
    if !needs_root("trusted attributes") {
        return;
    }
    let attrs = [
        ("SCHILY.xattr.trusted.overlay.opaque", &b"y"[..]),
        ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
        ("SCHILY.xattr.user.overlay.opaque", b"y"),
    ];
    let fixture = Fixture::new();
    fixture
        .apply(OVERLAY, &[pax(b'x', &attrs), dir("d/")])
        .unwrap();
    assert_eq!(fixture.xattr("d", "trusted.overlay.opaque"), None);
    assert_eq!(fixture.xattr("d", "trusted.overlay.redirect"), None);
    assert_eq!(
        fixture
            .xattr("d", "trusted.overlay.overlay.redirect")
            .unwrap(),
        b"/etc"
    );
    // The other dialect's name is an ordinary one here.
    assert_eq!(fixture.xattr("d", "user.overlay.opaque").unwrap(), b"y");
    let fixture = Fixture::new();
    fixture
        .apply(TargetMarks::Plain, &[pax(b'x', &attrs), dir("d/")])
        .unwrap();
    // Nothing is mounted on such a tree: the names are ordinary.
    for attr in ["trusted.overlay.opaque", "user.overlay.opaque"] {
        assert_eq!(fixture.xattr("d", attr).unwrap(), b"y", "{attr}");
    }
    let fixture = Fixture::new();
    let whole = TargetMarks::Whole(Prefix::User);
    fixture
        .apply(whole, &[pax(b'x', &attrs), dir("d/")])
        .unwrap();
    assert_eq!(fixture.xattr("d", "trusted.overlay.opaque").unwrap(), b"y");
    assert_eq!(fixture.xattr("d", "user.overlay.opaque"), None);
}

#[test]
fn cancellation_stops_the_walk() {
    let fixture = Fixture::new();
    let cancel = Cancel::new();
    cancel.cancel();
    let stream = LayerStream::open(
        Box::new(Cursor::new(archive(&[file("a", "x")]))),
        &Limits::default(),
        &cancel,
    )
    .unwrap();
    let error = apply(
        stream,
        &fixture.target(TargetMarks::Plain),
        None,
        &Limits::default(),
        &cancel,
    )
    .unwrap_err();
    assert!(matches!(error, Error::Cancelled), "{error}");
    assert!(!fixture.exists("a"));
}

#[test]
fn a_path_that_no_program_could_name_is_refused() {
    let name = |bytes: usize| {
        let mut name = "d".repeat(200) + "/";
        name = name.repeat(bytes / name.len());
        name + &"f".repeat(bytes % 201)
    };
    let named = |name: &str| {
        [
            Raw::new("././@LongLink", b'L').data(name.as_bytes()),
            Raw::new("cut", b'0').data(b"content"),
        ]
        .concat()
    };
    let fixture = Fixture::new();
    // What can be named can be written back, however long its spelling is.
    let parts = [
        named(&name(4095)),
        named(&("./".repeat(20_000) + &name(4094))),
    ];
    fixture.apply(TargetMarks::Plain, &parts).unwrap();
    let tree = Dir::open(&fixture.root).unwrap();
    let file = tree.open_file(name(4095)).unwrap();
    assert_eq!(std::io::read_to_string(file).unwrap(), "content");
    // The path in the tree counts.
    let through = [
        Raw::new("././@LongLink", b'K')
            .data(name(3000 / 201 * 201).trim_end_matches('/').as_bytes()),
        Raw::new("l", b'2').link("cut").block(),
        named(&format!("l/{}", name(1500))),
    ];
    let parts = [vec![named(&name(4096))], through.to_vec()];
    for parts in parts {
        for marks in [OVERLAY, TargetMarks::Plain] {
            match Fixture::new().apply(marks, &parts) {
                Err(Error::Limit { limit, .. }) => assert_eq!(limit, "the length of a path"),
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn depth_and_name_limits_are_named() {
    let fixture = Fixture::new();
    let deep = "d/".repeat(600) + "f";
    let error = fixture
        .apply(
            TargetMarks::Plain,
            &[
                pax(b'x', &[("path", deep.as_bytes())]),
                Raw::new("f", b'0').block(),
            ],
        )
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::Limit {
                limit: "the depth of a name",
                ..
            }
        ),
        "{error}"
    );
    let long = "n".repeat(256);
    let error = fixture
        .apply(
            TargetMarks::Plain,
            &[
                pax(b'x', &[("path", long.as_bytes())]),
                Raw::new("f", b'0').block(),
            ],
        )
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::Limit {
                limit: "the length of a name",
                ..
            }
        ),
        "{error}"
    );
}
