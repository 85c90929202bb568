//! Hand-made layers on real directories.

use std::fs;
use std::io::Cursor;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use vellum_format::Prefix;
use vellum_sys::Dir;
use vellum_testkit::{Scratch, needs_root};

use super::*;
use crate::recipe::replay;
use crate::tar::header::field;
use crate::tar::reader::tests::{Raw, archive, pax};

const OVERLAY: TargetMarks = TargetMarks::Overlay(Prefix::Trusted);

struct Fixture {
    scratch: Scratch,
    root: PathBuf,
}

impl Fixture {
    fn new() -> Self {
        let scratch = Scratch::new();
        let root = scratch.dir("tree");
        Self { scratch, root }
    }

    fn target(&self, marks: TargetMarks) -> ApplyTarget {
        ApplyTarget {
            root: Dir::open(&self.root).unwrap(),
            marks,
            privilege: Privilege::Full,
            donor: None,
        }
    }

    /// Applies the layer and checks that tree and recipe reproduce it.
    fn apply(&self, marks: TargetMarks, parts: &[Vec<u8>]) -> Result<Applied> {
        self.apply_bytes(marks, archive(parts))
    }

    fn apply_bytes(&self, marks: TargetMarks, bytes: Vec<u8>) -> Result<Applied> {
        let target = self.target(marks);
        let cancel = Cancel::new();
        let mut recipe = Vec::new();
        let limits = Limits::default();
        let stream = LayerStream::open(Box::new(Cursor::new(bytes.clone())), &limits, &cancel)?;
        let applied = apply(stream, &target, Some(&mut recipe), &limits, &cancel)?;
        assert_eq!(applied.blob.diff_id, Digest::of(&bytes));
        let mut again = Vec::new();
        replay(&mut Cursor::new(&recipe), &target.root, &mut again, &cancel).unwrap();
        assert!(again == bytes, "the layer comes out as it went in");
        Ok(applied)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn exists(&self, name: &str) -> bool {
        fs::symlink_metadata(self.path(name)).is_ok()
    }

    fn is_whiteout(&self, name: &str) -> bool {
        fs::symlink_metadata(self.path(name))
            .is_ok_and(|meta| meta.file_type().is_char_device() && meta.rdev() == 0)
    }

    fn xattr(&self, name: &str, attr: &str) -> Option<Vec<u8>> {
        let dir = Dir::open(&self.root).unwrap();
        let fd = dir.open_path(name).unwrap();
        vellum_sys::xattr::get_fd(&fd, OsStr::new(attr)).unwrap()
    }

    fn is_opaque(&self, name: &str) -> bool {
        self.xattr(name, "trusted.overlay.opaque").as_deref() == Some(b"y")
    }
}

mod agree;
mod foreign;
mod hostile;

fn file(name: &str, content: &str) -> Vec<u8> {
    Raw::new(name, b'0').data(content.as_bytes())
}

fn dir(name: &str) -> Vec<u8> {
    Raw::new(name, b'5').mode(0o755).block()
}

fn mtime(path: &Path) -> (i64, i64) {
    let meta = fs::symlink_metadata(path).unwrap();
    (meta.mtime(), meta.mtime_nsec())
}

#[test]
fn every_kind_of_entry_with_its_attributes() {
    if !needs_root("apply as root") {
        return;
    }
    let fixture = Fixture::new();
    let applied = fixture
        .apply(
            OVERLAY,
            &[
                Raw::new("d/", b'5').mode(0o2750).owner(5, 6).block(),
                pax(
                    b'x',
                    &[
                        ("mtime", b"1700000000.123456789"),
                        ("SCHILY.xattr.user.a", b"v"),
                    ],
                ),
                Raw::new("d/f", b'0')
                    .mode(0o4755)
                    .owner(7, 8)
                    .data(b"content"),
                Raw::new("d/plain", b'0').data(b"x"),
                Raw::new("d/l", b'2')
                    .link("../anywhere")
                    .owner(1, 2)
                    .block(),
                pax(b'x', &[("mtime", b"1700000000.123456789")]),
                Raw::new("d/h", b'1')
                    .link("d/f")
                    .mode(0o4755)
                    .owner(7, 8)
                    .block(),
                Raw::new("fifo", b'6').mode(0o622).block(),
                Raw::new("null", b'3')
                    .mode(0o666)
                    .put(field::DEV_MAJOR, "0000001\0")
                    .put(field::DEV_MINOR, "0000003\0")
                    .block(),
            ],
        )
        .unwrap();
    assert_eq!(applied.entries, 7);
    assert!(applied.implied_dirs.is_empty());
    let meta = |name: &str| fs::symlink_metadata(fixture.path(name)).unwrap();
    assert_eq!(
        (meta("d").mode() & 0o7777, meta("d").uid(), meta("d").gid()),
        (0o2750, 5, 6)
    );
    assert_eq!(mtime(&fixture.path("d")), (7, 0));
    assert_eq!(
        (
            meta("d/f").mode() & 0o7777,
            meta("d/f").uid(),
            meta("d/f").gid()
        ),
        (0o4755, 7, 8)
    );
    assert_eq!(mtime(&fixture.path("d/f")), (1_700_000_000, 123_456_789));
    assert_eq!(meta("d/h").ino(), meta("d/f").ino());
    assert_eq!(fixture.xattr("d/f", "user.a").unwrap(), b"v");
    // A set-gid parent doesn't pass its group to what belongs to root in the archive.
    assert_eq!((meta("d/plain").uid(), meta("d/plain").gid()), (0, 0));
    assert_eq!(
        fs::read_link(fixture.path("d/l")).unwrap(),
        Path::new("../anywhere")
    );
    assert_eq!((meta("d/l").uid(), meta("d/l").gid()), (1, 2));
    assert_eq!(meta("fifo").mode(), 0o010_622);
    assert_eq!(
        (meta("null").mode(), meta("null").rdev()),
        (0o020_666, 0x103)
    );
}

#[test]
fn capabilities_survive_the_change_of_owner() {
    if !needs_root("file capabilities") {
        return;
    }
    let capability = [
        1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    let fixture = Fixture::new();
    fixture
        .apply(
            OVERLAY,
            &[
                pax(b'x', &[("SCHILY.xattr.security.capability", &capability)]),
                Raw::new("ping", b'0').mode(0o755).owner(1, 1).data(b"x"),
            ],
        )
        .unwrap();
    assert_eq!(
        fixture.xattr("ping", "security.capability").unwrap(),
        capability
    );
}

#[test]
fn default_acls_of_an_archive_apply_only_where_given() {
    if !needs_root("ACLs") {
        return;
    }
    // user::rwx, user:1:rwx, group::r-x, mask::rwx, other::r-x.
    let acl: Vec<u8> = [
        &2u32.to_le_bytes()[..],
        &[1, 0, 7, 0, 255, 255, 255, 255],
        &[2, 0, 7, 0, 1, 0, 0, 0],
        &[4, 0, 5, 0, 255, 255, 255, 255],
        &[16, 0, 7, 0, 255, 255, 255, 255],
        &[32, 0, 5, 0, 255, 255, 255, 255],
    ]
    .concat();
    let fixture = Fixture::new();
    fixture
        .apply(
            OVERLAY,
            &[
                pax(b'x', &[("SCHILY.xattr.system.posix_acl_default", &acl)]),
                dir("d/"),
                Raw::new("d/f", b'0').mode(0o640).data(b"x"),
                dir("d/sub/"),
                pax(b'x', &[("SCHILY.xattr.system.posix_acl_access", &acl)]),
                Raw::new("d/own", b'0').mode(0o775).data(b"x"),
            ],
        )
        .unwrap();
    assert!(fixture.xattr("d", "system.posix_acl_default").is_some());
    assert_eq!(fixture.xattr("d/f", "system.posix_acl_access"), None);
    assert_eq!(
        fs::metadata(fixture.path("d/f"))
            .unwrap()
            .permissions()
            .mode()
            & 0o7777,
        0o640
    );
    assert_eq!(fixture.xattr("d/sub", "system.posix_acl_default"), None);
    assert_eq!(
        fixture.xattr("d/own", "system.posix_acl_access").unwrap(),
        acl
    );
}

#[test]
fn implied_directories_are_reported_until_they_are_listed() {
    if !needs_root("whiteouts") {
        return;
    }
    let fixture = Fixture::new();
    let applied = fixture
        .apply(
            OVERLAY,
            &[
                file("odd/sub/f", "x"),
                file("odd/.wh.x", ""),
                file("b/g", "x"),
                dir("b/"),
                file(".wh.gone", ""),
            ],
        )
        .unwrap();
    assert_eq!(
        applied.implied_dirs,
        [Path::new("odd"), Path::new("odd/sub")]
    );
    assert!(fixture.is_whiteout("odd/x") && fixture.is_whiteout("gone"));
    assert_eq!(
        fs::metadata(fixture.path("odd"))
            .unwrap()
            .permissions()
            .mode()
            & 0o7777,
        0o755
    );
    assert_eq!(mtime(&fixture.path("odd")), (7, 0));
    assert_eq!(mtime(&fixture.path("b")), (7, 0));
}

#[test]
fn a_whiteout_hides_lower_layers_and_never_its_own() {
    if !needs_root("whiteouts") {
        return;
    }
    let fixture = Fixture::new();
    fixture
        .apply(
            OVERLAY,
            &[
                file("first/f", "mine"),
                file(".wh.first", ""),
                file(".wh.second", ""),
                file("second/f", "mine"),
                file(".wh.third", ""),
                dir("third/"),
                file("fourth", "mine"),
                file(".wh.fourth", ""),
                file(".wh.fifth", ""),
                file("fifth", "mine"),
                dir("sixth/"),
                file("sixth/.wh..wh..opq", ""),
                file("sixth/f", "mine"),
                dir("sixth/"),
            ],
        )
        .unwrap();
    for name in ["first", "second", "third", "sixth"] {
        assert!(fixture.is_opaque(name), "{name}");
    }
    for name in ["first/f", "second/f", "fourth", "fifth", "sixth/f"] {
        assert_eq!(fixture.read(name), "mine", "{name}");
    }
}

#[test]
fn plain_targets_lose_what_is_hidden_and_nothing_else() {
    let fixture = Fixture::new();
    for name in [
        "gone",
        "gone-dir/a",
        "both/old",
        "both/sub/old",
        "opaque/old",
        "opaque/sub/old",
        "kept/old",
    ] {
        fixture.scratch.file(Path::new("tree").join(name), "parent");
    }
    fixture
        .apply(
            TargetMarks::Plain,
            &[
                file(".wh.gone", ""),
                file(".wh.gone-dir", ""),
                file(".wh.never-there", ""),
                file("both/sub/new", "mine"),
                file(".wh.both", ""),
                file("opaque/sub/new", "mine"),
                file("opaque/.wh..wh..opq", ""),
                file("opaque/later", "mine"),
                file("kept/new", "mine"),
            ],
        )
        .unwrap();
    for name in [
        "gone",
        "gone-dir",
        "both/old",
        "both/sub/old",
        "opaque/old",
        "opaque/sub/old",
    ] {
        assert!(!fixture.exists(name), "{name}");
    }
    for name in ["both/sub/new", "opaque/sub/new", "opaque/later", "kept/new"] {
        assert_eq!(fixture.read(name), "mine", "{name}");
    }
    assert_eq!(fixture.read("kept/old"), "parent");
    assert!(!fixture.exists(".wh.gone") && !fixture.exists("opaque/.wh..wh..opq"));
}

#[test]
fn plain_targets_never_write_into_shared_inodes() {
    let fixture = Fixture::new();
    fixture.scratch.file("tree/f", "parent");
    fs::hard_link(fixture.path("f"), fixture.scratch.join("of-the-parent")).unwrap();
    let before = mtime(&fixture.scratch.join("of-the-parent"));
    fixture
        .apply(TargetMarks::Plain, &[file("f", "mine")])
        .unwrap();
    assert_eq!(fixture.read("f"), "mine");
    assert_eq!(
        fs::read_to_string(fixture.scratch.join("of-the-parent")).unwrap(),
        "parent"
    );
    assert_eq!(mtime(&fixture.scratch.join("of-the-parent")), before);
}

#[test]
fn the_last_of_two_entries_wins_and_the_recipe_has_both() {
    let fixture = Fixture::new();
    fixture
        .apply(
            TargetMarks::Plain,
            &[
                file("a", "first"),
                file("a", "second"),
                file("d/x", "lost with its directory"),
                file("d", "a file now"),
                file("l", "linked"),
                Raw::new("l2", b'1').link("l").block(),
                file("l", "replaced"),
                file("e", "a directory soon"),
                file("f", "gone"),
                Raw::new("f", b'2').link("a").block(),
                Raw::new("s", b'2').link("a").block(),
                file("s", "no longer a link"),
            ],
        )
        .unwrap();
    assert_eq!(fixture.read("a"), "second");
    assert_eq!(fixture.read("d"), "a file now");
    assert_eq!(fixture.read("l2"), "linked");
    assert_eq!(fixture.read("l"), "replaced");
    assert_eq!(fixture.read("s"), "no longer a link");
    assert_eq!(fs::read_link(fixture.path("f")).unwrap(), Path::new("a"));
}

#[test]
fn sparse_files_keep_their_holes_and_round_trip() {
    let fixture = Fixture::new();
    let sparse = || {
        [
            pax(
                b'x',
                &[
                    ("GNU.sparse.major", b"0"),
                    ("GNU.sparse.minor", b"1"),
                    ("GNU.sparse.size", b"104857600"),
                    ("GNU.sparse.numblocks", b"2"),
                    ("GNU.sparse.map", b"5,2,104857000,4"),
                ],
            ),
            Raw::new("s", b'0').data(b"abcdef"),
        ]
        .concat()
    };
    fixture.apply(TargetMarks::Plain, &[sparse()]).unwrap();
    let meta = fs::metadata(fixture.path("s")).unwrap();
    assert_eq!(meta.len(), 104_857_600);
    assert!(meta.blocks() < 1000, "{} blocks", meta.blocks());
    // When its name is lost, it is kept with its holes.
    fixture
        .apply(TargetMarks::Plain, &[sparse(), file("s", "dense")])
        .unwrap();
    assert_eq!(fixture.read("s"), "dense");
}

#[test]
fn long_runs_of_zeros_become_holes() {
    let fixture = Fixture::new();
    let mut content = vec![0; 8 << 20];
    content[3 << 20] = 1;
    content[(5 << 20) + 77] = 2;
    for (name, content) in [
        ("middle", &content[..]),
        ("end", &content[3 << 20..]),
        ("all", &[0; 1 << 20]),
    ] {
        fixture
            .apply(TargetMarks::Plain, &[Raw::new(name, b'0').data(content)])
            .unwrap();
        assert!(fs::read(fixture.path(name)).unwrap() == content, "{name}");
        let meta = fs::metadata(fixture.path(name)).unwrap();
        assert!(
            meta.blocks() * 512 < meta.len(),
            "{name}: {} blocks",
            meta.blocks()
        );
    }
}

#[test]
fn aufs_files_are_left_out_but_its_links_hold() {
    let fixture = Fixture::new();
    let applied = fixture
        .apply(
            TargetMarks::Plain,
            &[
                file(".wh..wh.aufs", "aufs"),
                dir(".wh..wh.orph/"),
                dir(".wh..wh.plnk/"),
                file(".wh..wh.plnk/12.3", "linked"),
                Raw::new("a", b'1').link(".wh..wh.plnk/12.3").block(),
                Raw::new("b", b'1').link(".wh..wh.plnk/12.3").block(),
            ],
        )
        .unwrap();
    assert_eq!(applied.skipped, 2);
    assert_eq!(fixture.read("a"), "linked");
    assert_eq!(
        fs::metadata(fixture.path("a")).unwrap().ino(),
        fs::metadata(fixture.path("b")).unwrap().ino()
    );
    assert_eq!(fs::read_dir(&fixture.root).unwrap().count(), 2);
}

#[test]
fn a_directory_listed_again_has_the_last_attributes_only() {
    if !needs_root("apply as root") {
        return;
    }
    let fixture = Fixture::new();
    fixture
        .apply(
            OVERLAY,
            &[
                pax(
                    b'x',
                    &[("SCHILY.xattr.user.a", b"1"), ("SCHILY.xattr.user.b", b"1")],
                ),
                Raw::new("d/", b'5').mode(0o700).owner(3, 4).block(),
                file("d/.wh..wh..opq", ""),
                pax(b'x', &[("SCHILY.xattr.user.b", b"2"), ("mtime", b"99.5")]),
                dir("d/"),
                file("d/late", "x"),
            ],
        )
        .unwrap();
    let meta = fs::metadata(fixture.path("d")).unwrap();
    assert_eq!(
        (meta.mode() & 0o7777, meta.uid(), meta.gid()),
        (0o755, 0, 0)
    );
    assert_eq!(
        (
            fixture.xattr("d", "user.a"),
            fixture.xattr("d", "user.b").unwrap()
        ),
        (None, b"2".to_vec())
    );
    assert!(fixture.is_opaque("d"));
    assert_eq!(mtime(&fixture.path("d")), (99, 500_000_000));
}

#[test]
fn directory_times_hold_in_any_order() {
    let fixture = Fixture::new();
    let dated = |name: &str, mtime: &[u8]| [pax(b'x', &[("mtime", mtime)]), dir(name)].concat();
    fixture
        .apply(
            TargetMarks::Plain,
            &[
                dated("a/", b"100"),
                dated("a/b/", b"200.25"),
                file("z", "x"),
                file("a/b/late", "x"),
                file("a/late", "x"),
                file("a/b/later", "x"),
            ],
        )
        .unwrap();
    assert_eq!(mtime(&fixture.path("a")), (100, 0));
    assert_eq!(mtime(&fixture.path("a/b")), (200, 250_000_000));
}
