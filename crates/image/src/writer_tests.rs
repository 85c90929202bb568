//! The reader reads what the writer writes, and what no layer can hold is refused.

use std::path::PathBuf;

use super::*;
use crate::limits::Limits;
use crate::tar::{EntryKind, SliceSource, TarReader};

fn entry(path: &str, kind: TarKind) -> TarEntry {
    TarEntry {
        path: PathBuf::from(path),
        kind,
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: Timespec::new(1, 0),
        xattrs: Vec::new(),
    }
}

fn file(path: &str) -> TarEntry {
    entry(path, TarKind::File { size_bytes: 0 })
}

fn written(write: impl FnOnce(&mut LayerWriter<Vec<u8>>) -> Result<()>) -> Result<Vec<u8>> {
    let mut writer = LayerWriter::new(Vec::new());
    write(&mut writer)?;
    writer.finish()
}

#[test]
fn what_fits_in_ustar_needs_no_extended_header() {
    let tar = written(|w| {
        w.append(&entry("d", TarKind::Directory), &mut &b""[..])?;
        w.append(
            &entry("d/f", TarKind::File { size_bytes: 3 }),
            &mut &b"abc"[..],
        )
    })
    .unwrap();
    assert_eq!(tar.len(), 512 + 512 + 512 + 1024);
    assert_eq!(&tar[..2], b"d/");
}

#[test]
fn everything_round_trips() {
    let long = format!("{}/{}", "n".repeat(120), "\u{fc}".repeat(60));
    let mut entries = vec![
        TarEntry {
            mode: 0o4755,
            uid: 4_000_000_000,
            gid: 2_097_152,
            mtime: Timespec::new(-2, 250_000_000),
            xattrs: vec![
                ("user.b=%".into(), b"\0\n=".to_vec()),
                ("security.capability".into(), vec![1, 2]),
            ],
            ..entry("a", TarKind::File { size_bytes: 5 })
        },
        entry("b", TarKind::HardLink { target: "a".into() }),
        TarEntry {
            mtime: Timespec::new(1 << 34, 1),
            ..entry(
                "c",
                TarKind::Symlink {
                    target: long.clone().into(),
                },
            )
        },
        entry(
            "d",
            TarKind::Character {
                major: 4095,
                minor: 1_048_575,
            },
        ),
        entry("e", TarKind::Block { major: 8, minor: 0 }),
        entry("f", TarKind::Fifo),
        entry(&"n".repeat(120), TarKind::Directory),
        file(&long),
    ];
    entries.push(TarEntry {
        path: PathBuf::from(OsStr::from_bytes(&[&b"o"[..], &[0xff; 150]].concat())),
        ..file("")
    });
    let tar = written(|w| {
        entries
            .iter()
            .try_for_each(|e| w.append(e, &mut &b"12345"[..]))
    })
    .unwrap();
    let mut reader = TarReader::new(SliceSource::new(&tar), &Limits::default());
    for expect in &entries {
        let found = reader.next_entry().unwrap().unwrap();
        let mut name = expect.path.as_os_str().to_owned();
        if expect.kind == TarKind::Directory {
            name.push("/");
        }
        assert_eq!(found.name, name);
        assert_eq!(
            (found.mode, found.uid, found.gid),
            (expect.mode, expect.uid, expect.gid)
        );
        assert_eq!(found.mtime, expect.mtime);
        let mut xattrs = expect.xattrs.clone();
        xattrs.sort();
        assert_eq!(found.xattrs, xattrs);
        let (kind, link, rdev) = match &expect.kind {
            TarKind::File { .. } => (EntryKind::File, "".into(), (0, 0)),
            TarKind::Directory => (EntryKind::Directory, "".into(), (0, 0)),
            TarKind::Symlink { target } => (EntryKind::Symlink, target.clone(), (0, 0)),
            TarKind::HardLink { target } => (EntryKind::HardLink, target.clone().into(), (0, 0)),
            TarKind::Character { major, minor } => {
                (EntryKind::Character, "".into(), (*major, *minor))
            }
            TarKind::Block { major, minor } => (EntryKind::Block, "".into(), (*major, *minor)),
            TarKind::Fifo => (EntryKind::Fifo, "".into(), (0, 0)),
        };
        assert_eq!((found.kind, found.link, found.rdev), (kind, link, rdev));
    }
    assert!(reader.next_entry().unwrap().is_none());
}

#[test]
fn deletions_are_spelled_as_the_image_specification_does() {
    let tar = written(|w| {
        w.append(&entry("d", TarKind::Directory), &mut &b""[..])?;
        w.opaque(Path::new("d"))?;
        w.whiteout(Path::new("d/x"))?;
        w.whiteout(Path::new("e"))
    })
    .unwrap();
    let mut reader = TarReader::new(SliceSource::new(&tar), &Limits::default());
    let mut names = Vec::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        names.push(entry.name);
    }
    assert_eq!(names, ["d/", "d/.wh..wh..opq", "d/.wh.x", ".wh.e"]);
}

#[test]
fn entries_that_no_layer_can_hold_are_refused() {
    let none = &mut &b""[..];
    for path in [
        "",
        "/a",
        "a/../b",
        "./a",
        "a/",
        "a//b",
        ".",
        "..",
        ".wh.a",
        "a/.wh.b/c",
        "a\0b",
    ] {
        assert!(
            written(|w| w.append(&file(path), &mut &b""[..])).is_err(),
            "{path:?}"
        );
    }
    for (first, second) in [("a", "a"), ("b", "a"), ("a/b", "a"), ("a/b", "a-")] {
        let result = written(|w| {
            w.append(&file(first), &mut &b""[..])?;
            w.append(&file(second), &mut &b""[..])
        });
        // Component by component: "a/b" comes before "a-", though not byte by byte.
        assert_eq!(
            result.is_ok(),
            (first, second) == ("a/b", "a-"),
            "{first} {second}"
        );
    }
    let short = entry("a", TarKind::File { size_bytes: 4 });
    assert!(written(|w| w.append(&short, &mut &b"abc"[..])).is_err());
    assert!(
        written(|w| w.append(&entry("a", TarKind::Character { major: 0, minor: 0 }), none))
            .is_err()
    );
    assert!(written(|w| w.whiteout(Path::new(&"n".repeat(252)))).is_err());
    assert!(written(|w| w.whiteout(Path::new(".wh.x"))).is_err());
    assert!(written(|w| w.opaque(Path::new("never-written"))).is_err());
}
