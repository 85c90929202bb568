//! What other systems have and this one has not: left out of the tree, reported, and given back with the layer.

use super::*;

/// Applies the layer, which [`Place::apply`] also gives back, and returns what was left out and how often.
#[track_caller]
fn left_out(place: &Place, marks: TargetMarks, parts: &[Vec<u8>]) -> (u64, String) {
    let left_out = place.apply(marks, parts).unwrap().left_out;
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
            let place = Place::new();
            let parts = [
                attr(name, value),
                file("a", "hello"),
                attr(name, value),
                dir("d/"),
            ];
            let (count, text) = left_out(&place, marks, &parts);
            assert_eq!(count, 2, "{name}: {text}");
            let expect = format!("the extended attribute {name} of 'a' (");
            assert!(text.starts_with(&expect), "{text}");
            assert!(text.ends_with("), and 1 more"), "{text}");
            assert_eq!(place.read("a"), "hello");
        }
    }
    // Spelled by bsdtar alone it is no attribute for anybody else, and what is no base64 harms nothing.
    let parts = [
        pax(b'x', &[("LIBARCHIVE.xattr.user.a", b"not base64!")]),
        file("a", "hello"),
    ];
    assert_eq!(left_out(&Place::new(), OVERLAY, &parts).0, 0);
}

#[test]
fn user_attributes_on_what_can_have_none_are_left_out() {
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
        let place = Place::new();
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
        assert_eq!(left_out(&place, OVERLAY, &parts).0, 1, "{name}");
        // All else is as it should be.
        let meta = fs::symlink_metadata(place.path(name)).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (5, 6), "{name}");
        assert_eq!(mtime(&place.path(name)), (9, 500_000_000), "{name}");
        assert_eq!(place.xattr(name, "trusted.x").unwrap(), b"2", "{name}");
    }
}

#[test]
fn kinds_that_mean_nothing_here_are_left_out() {
    let place = Place::new();
    let parts = [
        Raw::new("label", b'V').block(),
        Raw::new("dump", b'D').data(b"Ya\0Yb\0\0"),
        Raw::new("../../evil", b'Z').data(&[1; 700]),
        file("a", "hello"),
    ];
    let (count, text) = left_out(&place, TargetMarks::Plain, &parts);
    assert_eq!(count, 3);
    assert!(text.starts_with("'label', an entry of type 'V',"), "{text}");
    assert_eq!(fs::read_dir(&place.root).unwrap().count(), 1);
    assert_eq!(place.read("a"), "hello");
}

#[test]
fn ids_are_those_that_reach_the_kernel() {
    if !needs_root("apply as root") {
        return;
    }
    let owned = |name: &str, id: [u8; 8]| Raw::new(name, b'0').put(field::UID, id).block();
    let said = |name: &str, id: &[u8]| [pax(b'x', &[("uid", id)]), file(name, "")].concat();
    let place = Place::new();
    let parts = [
        owned("minus-2", [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe]),
        owned("large", [0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xfe]),
        owned("too-large", [0x80, 0, 0, 1, 0, 0, 0, 7]),
        said("said-minus-2", b"-2"),
        said("said-too-large", b"4294967303"),
        // "Leave it as it is": the process's own.
        owned("minus-1", [0xff; 8]),
        said("said-largest", b"4294967295"),
    ];
    assert_eq!(left_out(&place, OVERLAY, &parts).0, 0);
    for (name, uid) in [
        ("minus-2", u32::MAX - 1),
        ("large", u32::MAX - 1),
        ("too-large", 7),
        ("said-minus-2", u32::MAX - 1),
        ("said-too-large", 7),
        ("minus-1", 0),
        ("said-largest", 0),
    ] {
        assert_eq!(fs::metadata(place.path(name)).unwrap().uid(), uid, "{name}");
    }
}

#[test]
fn layers_without_an_end_marker_come_out_again() {
    let whole = [file("a", "hello"), dir("d/"), file("d/b", "world")].concat();
    for bytes in [
        whole.clone(),
        [whole.clone(), vec![0; 512]].concat(),
        whole[..whole.len() - 100].to_vec(),
        whole[..whole.len() - 507].to_vec(),
    ] {
        let place = Place::new();
        let applied = place.apply_bytes(TargetMarks::Plain, bytes).unwrap();
        assert_eq!(applied.ending, Ending::Unmarked);
        assert_eq!(place.read("d/b"), "world");
    }
    let place = Place::new();
    let marked = place.apply(TargetMarks::Plain, &[whole]).unwrap();
    assert_eq!(marked.ending, Ending::Marked);
}
