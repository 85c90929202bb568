//! What other systems have and this one doesn't: left out of the tree, reported, and written back
//! with the layer.

use super::*;

/// Applies the layer, which [`Fixture::apply`] also writes back, and returns what was left out and
/// how often.
#[track_caller]
fn left_out(fixture: &Fixture, marks: TargetMarks, parts: &[Vec<u8>]) -> (u64, String) {
    let left_out = fixture.apply(marks, parts).unwrap().left_out;
    (left_out.count, left_out.to_string())
}

fn attr(name: &str, value: &[u8]) -> Vec<u8> {
    pax(b'x', &[(&format!("SCHILY.xattr.{name}"), value)])
}

#[test]
fn attributes_of_other_systems_are_left_out() {
    if !needs_root("apply as root") {
        return;
    }
    let long = format!("user.{}", "n".repeat(251));
    for (name, value) in [
        ("com.apple.quarantine", &b"0081;5f0c"[..]),
        ("com.apple.provenance", b"\x01\x02"),
        ("system.nfs4_acl", b"\0"),
        ("system.unheard.of", b"x"),
        ("no-name-space", b"x"),
        ("", b"x"),
        ("user.", b"x"),
        (&long, b"x"),
        ("user.large", &[b'x'; 65_537]),
        ("security.capability", b"no capability"),
        ("system.posix_acl_access", b"no list"),
    ] {
        for marks in [OVERLAY, TargetMarks::Plain] {
            let fixture = Fixture::new();
            let parts = [
                attr(name, value),
                file("a", "hello"),
                attr(name, value),
                dir("d/"),
            ];
            let (count, text) = left_out(&fixture, marks, &parts);
            assert_eq!(count, 2, "{name}: {text}");
            let expect = format!("the extended attribute {name} of 'a' (");
            assert!(text.starts_with(&expect), "{text}");
            assert!(text.ends_with("), and 1 more"), "{text}");
            assert_eq!(fixture.read("a"), "hello");
        }
    }
    // A keyword that only bsdtar uses is not an attribute for other tools, and invalid base64 does
    // no harm.
    let parts = [
        pax(b'x', &[("LIBARCHIVE.xattr.user.a", b"not base64!")]),
        file("a", "hello"),
    ];
    assert_eq!(left_out(&Fixture::new(), OVERLAY, &parts).0, 0);
}

#[test]
fn user_attributes_are_left_out_where_the_file_type_has_none() {
    if !needs_root("apply as root") {
        return;
    }
    for (kind, name) in [
        (b'2', "link"),
        (b'3', "character"),
        (b'4', "block"),
        (b'6', "fifo"),
    ] {
        let entry = Raw::new(name, kind)
            .link(if kind == b'2' { "target" } else { "" })
            .put(field::DEV_MINOR, "0000003")
            .owner(5, 6);
        let fixture = Fixture::new();
        let parts = [
            pax(
                b'x',
                &[
                    ("SCHILY.xattr.user.x", b"1"),
                    ("SCHILY.xattr.trusted.x", b"2"),
                    ("mtime", b"9.5"),
                ],
            ),
            entry.block(),
        ];
        assert_eq!(left_out(&fixture, OVERLAY, &parts).0, 1, "{name}");
        // Everything else is as it should be.
        let meta = fs::symlink_metadata(fixture.path(name)).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (5, 6), "{name}");
        assert_eq!(mtime(&fixture.path(name)), (9, 500_000_000), "{name}");
        assert_eq!(fixture.xattr(name, "trusted.x").unwrap(), b"2", "{name}");
    }
}

#[test]
fn entry_types_without_meaning_here_are_left_out() {
    let fixture = Fixture::new();
    let parts = [
        Raw::new("label", b'V').block(),
        Raw::new("dump", b'D').data(b"Ya\0Yb\0\0"),
        Raw::new("../../evil", b'Z').data(&[1; 700]),
        file("a", "hello"),
    ];
    let (count, text) = left_out(&fixture, TargetMarks::Plain, &parts);
    assert_eq!(count, 3);
    assert!(text.starts_with("'label', an entry of type 'V',"), "{text}");
    assert_eq!(fs::read_dir(&fixture.root).unwrap().count(), 1);
    assert_eq!(fixture.read("a"), "hello");
}

#[test]
fn ids_are_those_that_reach_the_kernel() {
    if !needs_root("apply as root") {
        return;
    }
    let owned = |name: &str, id: [u8; 8]| Raw::new(name, b'0').put(field::UID, id).block();
    let said = |name: &str, id: &[u8]| [pax(b'x', &[("uid", id)]), file(name, "")].concat();
    let fixture = Fixture::new();
    let parts = [
        owned("minus-2", [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe]),
        owned("large", [0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xfe]),
        owned("too-large", [0x80, 0, 0, 1, 0, 0, 0, 7]),
        said("said-minus-2", b"-2"),
        said("said-too-large", b"4294967303"),
        // "Leave it unchanged": the process's own.
        owned("minus-1", [0xff; 8]),
        said("said-largest", b"4294967295"),
    ];
    assert_eq!(left_out(&fixture, OVERLAY, &parts).0, 0);
    for (name, uid) in [
        ("minus-2", u32::MAX - 1),
        ("large", u32::MAX - 1),
        ("too-large", 7),
        ("said-minus-2", u32::MAX - 1),
        ("said-too-large", 7),
        ("minus-1", 0),
        ("said-largest", 0),
    ] {
        assert_eq!(
            fs::metadata(fixture.path(name)).unwrap().uid(),
            uid,
            "{name}"
        );
    }
}

#[test]
fn layers_without_an_end_marker_round_trip() {
    let whole = [file("a", "hello"), dir("d/"), file("d/b", "world")].concat();
    for bytes in [
        whole.clone(),
        [whole.clone(), vec![0; 512]].concat(),
        whole[..whole.len() - 100].to_vec(),
        whole[..whole.len() - 507].to_vec(),
    ] {
        let fixture = Fixture::new();
        let applied = fixture.apply_bytes(TargetMarks::Plain, bytes).unwrap();
        assert_eq!(applied.ending, Ending::Unmarked);
        assert_eq!(fixture.read("d/b"), "world");
    }
    let fixture = Fixture::new();
    let marked = fixture.apply(TargetMarks::Plain, &[whole]).unwrap();
    assert_eq!(marked.ending, Ending::Marked);
}

/// Docker, Podman and containerd give an inode the attributes in the header of its last name.
#[test]
fn the_last_name_of_an_inode_sets_its_attributes() {
    if !needs_root("apply as root") {
        return;
    }
    for marks in [OVERLAY, TargetMarks::Plain] {
        let fixture = Fixture::new();
        let parts = [
            attr("user.first", b"1"),
            Raw::new("f", b'0')
                .mode(0o4755)
                .owner(5, 6)
                .data(b"content"),
            attr("user.second", b"2"),
            Raw::new("h", b'1')
                .mode(0o710)
                .owner(7, 8)
                .link("f")
                .block(),
            Raw::new("l", b'2').link("f").block(),
            Raw::new("m", b'1')
                .mode(0o600)
                .owner(7, 8)
                .link("l")
                .block(),
        ];
        fixture.apply(marks, &parts).unwrap();
        let meta = |name: &str| fs::symlink_metadata(fixture.path(name)).unwrap();
        for name in ["f", "h"] {
            let meta = meta(name);
            assert_eq!(meta.mode() & 0o7777, 0o710, "{name}");
            assert_eq!((meta.uid(), meta.gid()), (7, 8), "{name}");
            assert_eq!(fixture.xattr(name, "user.first").unwrap(), b"1");
            assert_eq!(fixture.xattr(name, "user.second").unwrap(), b"2");
        }
        assert_eq!((meta("l").uid(), meta("l").gid()), (7, 8));
        assert_eq!(fixture.read("m"), "content");
    }
}

#[test]
fn attributes_of_hard_links_are_recorded_too() {
    let fixture = Fixture::new();
    let target = ApplyTarget {
        privilege: Privilege::Recorded,
        ..fixture.target(OVERLAY)
    };
    let own = rustix::process::geteuid().as_raw();
    let group = rustix::process::getegid().as_raw();
    let archive = archive(&[
        Raw::new("n", b'3')
            .mode(0o666)
            .owner(own, group)
            .put(field::DEV_MAJOR, "0000001\0")
            .put(field::DEV_MINOR, "0000003\0")
            .block(),
        Raw::new("h", b'1')
            .mode(0o644)
            .owner(own, group)
            .link("n")
            .block(),
    ]);
    let cancel = Cancel::new();
    let limits = Limits::default();
    let stream = LayerStream::open(Box::new(Cursor::new(archive)), &limits, &cancel).unwrap();
    apply(stream, &target, None, &limits, &cancel).unwrap();
    // Root creates the device itself. Without the right to, a record says what it is, with the last
    // mode.
    match fixture.xattr("n", "user.containers.override_stat") {
        None => assert_eq!(
            fs::metadata(fixture.path("n")).unwrap().mode() & 0o7777,
            0o644
        ),
        Some(record) => {
            let expect = format!("{own}:{group}:0644:char-1-3");
            assert_eq!(String::from_utf8(record).unwrap(), expect);
        }
    }
}

#[test]
fn a_hard_link_to_a_file_outside_the_layer_is_an_error_in_whole_trees_too() {
    let fixture = Fixture::new();
    fixture.scratch.file("tree/below", "parent");
    fixture.scratch.file("tree/d/below", "parent");
    std::os::unix::fs::symlink("d", fixture.path("l")).unwrap();
    for target in ["below", "d/below", "l/below"] {
        let parts = [file("d/f", "x"), Raw::new("h", b'1').link(target).block()];
        let error = fixture.apply(TargetMarks::Plain, &parts).unwrap_err();
        assert!(
            matches!(error, Error::LinkTargetMissing { .. }),
            "{target}: {error}"
        );
    }
}

/// As with other tools, only the last component of a name turns an entry into a mark.
#[test]
fn names_below_a_directory_named_like_a_whiteout_are_ordinary() {
    if !needs_root("whiteouts") {
        return;
    }
    for marks in [OVERLAY, TargetMarks::Plain] {
        let fixture = Fixture::new();
        let parts = [
            file("foo", "mine"),
            file(".wh.foo/bar", "x"),
            file(".wh./bar", "x"),
            file("d/.wh..wh..opq/bar", "x"),
            Raw::new("linked", b'1').link(".wh.foo/bar").block(),
        ];
        fixture.apply(marks, &parts).unwrap();
        for name in [".wh.foo/bar", ".wh./bar", "d/.wh..wh..opq/bar", "linked"] {
            assert_eq!(fixture.read(name), "x", "{name}");
        }
        assert_eq!(fixture.read("foo"), "mine");
        assert!(!fixture.is_opaque("d"));
    }
}

#[test]
fn a_whiteout_of_an_unknown_kind_is_a_whiteout() {
    if !needs_root("whiteouts") {
        return;
    }
    let parts = [
        Raw::new(".wh.gone", b'Z').data(b"content"),
        Raw::new("d/.wh..wh..opq", b'V').block(),
    ];
    let fixture = Fixture::new();
    let applied = fixture.apply(OVERLAY, &parts).unwrap();
    assert_eq!(applied.left_out.count, 0);
    assert!(fixture.is_whiteout("gone") && fixture.is_opaque("d"));
}
