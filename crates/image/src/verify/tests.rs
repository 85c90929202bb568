//! Layers applied, damaged and compared with their outline.

use std::collections::HashSet;
use std::fs;
use std::io::Cursor;
use std::os::unix::fs::FileExt;
use std::path::Path;

use vellum_format::Prefix;
use vellum_testkit::{Scratch, needs_root};

use super::*;
use crate::apply::{Privilege, TargetMarks, apply};
use crate::stream::LayerStream;
use crate::tar::reader::tests::{Raw, archive, pax};

struct Fixture {
    scratch: Scratch,
    marks: TargetMarks,
    recipe: Vec<u8>,
}

impl Fixture {
    fn new(marks: TargetMarks, parts: &[Vec<u8>]) -> Self {
        let scratch = Scratch::new();
        scratch.dir("tree");
        let mut fixture = Self {
            scratch,
            marks,
            recipe: Vec::new(),
        };
        let (limits, cancel) = (Limits::default(), Cancel::new());
        let tar = Box::new(Cursor::new(archive(parts)));
        let stream = LayerStream::open(tar, &limits, &cancel).unwrap();
        let target = fixture.target("tree");
        let mut recipe = Vec::new();
        apply(stream, &target, Some(&mut recipe), &limits, &cancel).unwrap();
        fixture.recipe = recipe;
        fixture
    }

    fn target(&self, name: &str) -> ApplyTarget {
        ApplyTarget {
            root: Dir::open(&self.scratch.dir(name)).unwrap(),
            marks: self.marks,
            privilege: Privilege::Full,
            donor: None,
        }
    }

    fn tree(&self, name: &str) -> PathBuf {
        self.scratch.join("tree").join(name)
    }

    /// Returns what differs, each as a line.
    fn differences(&self) -> Vec<String> {
        let tree = Dir::open(&self.scratch.join("tree")).unwrap();
        let outline_at = self.scratch.join("outline");
        if outline_at.exists() {
            fs::remove_dir_all(&outline_at).unwrap();
        }
        let target = self.target("outline");
        let (limits, cancel) = (Limits::default(), Cancel::new());
        let mut recipe = Cursor::new(&self.recipe);
        let outlined = outline(&mut recipe, &tree, &target, &|_| (), &limits, &cancel).unwrap();
        let found = Found {
            tree: &tree,
            inherited: None,
            right: &mut HashMap::new(),
            unsaid: &HashSet::new(),
            root_time: false,
        };
        let differences = compare(&target.root, &outlined, found, &cancel).unwrap();
        differences
            .iter()
            .map(|one| format!("{}: {one}", one.path.display()))
            .collect()
    }
}

fn sparse(name: &str) -> Vec<u8> {
    [
        pax(
            b'x',
            &[
                ("GNU.sparse.major", b"0"),
                ("GNU.sparse.minor", b"1"),
                ("GNU.sparse.size", b"1048576"),
                ("GNU.sparse.numblocks", b"2"),
                ("GNU.sparse.map", b"5,2,500000,4"),
            ],
        ),
        Raw::new(name, b'0').data(b"abcdef"),
    ]
    .concat()
}

#[test]
fn data_in_the_hole_of_a_sparse_file_is_found() {
    let fixture = Fixture::new(TargetMarks::Plain, &[sparse("s")]);
    assert_eq!(fixture.differences(), [] as [&str; 0]);
    let path = fixture.tree("s");
    let file = fs::File::options().write(true).open(&path).unwrap();
    let time = file.metadata().unwrap().modified().unwrap();
    for (offset, expect) in [
        (0, "there is data in one of its holes"),
        (100_000, "there is data in one of its holes"),
        (1_048_575, "there is data in one of its holes"),
        (5, "its content differs"),
        (500_003, "its content differs"),
    ] {
        let mut before = [0];
        fs::File::open(&path)
            .unwrap()
            .read_exact_at(&mut before, offset)
            .unwrap();
        file.write_all_at(b"!", offset).unwrap();
        file.set_modified(time).unwrap();
        assert_eq!(fixture.differences(), [format!("s: {expect}")], "{offset}");
        file.write_all_at(&before, offset).unwrap();
        file.set_modified(time).unwrap();
        assert_eq!(fixture.differences(), [] as [&str; 0]);
    }
}

/// Content that the layer lost itself is in the recipe; what remains is verified.
#[test]
fn entries_that_a_layer_replaces_are_not_missed() {
    let fixture = Fixture::new(
        TargetMarks::Plain,
        &[
            Raw::new("a", b'0').data(b"first"),
            Raw::new("a", b'0').data(b"second"),
            Raw::new("d/x", b'0').data(b"lost with its directory"),
            Raw::new("d", b'0').data(b"a file now"),
            Raw::new("b", b'0').data(b"a directory soon"),
            Raw::new("b/", b'5').mode(0o755).block(),
            Raw::new("l", b'0').data(b"linked"),
            Raw::new("l2", b'1').link("l").block(),
            Raw::new("l", b'0').data(b"replaced"),
            sparse("a2"),
            Raw::new("a2", b'0').data(b"dense"),
        ],
    );
    assert_eq!(fixture.differences(), [] as [&str; 0]);
    let path = fixture.tree("l2");
    let time = fs::metadata(&path).unwrap().modified().unwrap();
    fs::write(&path, "LINKED").unwrap();
    fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_modified(time)
        .unwrap();
    // The recipe has that content, under a name that has become another file's.
    assert_eq!(fixture.differences(), ["l2: its content differs"]);
}

#[test]
fn marks_and_records_of_an_overlay_are_compared() {
    if !needs_root("whiteouts") {
        return;
    }
    let fixture = Fixture::new(
        TargetMarks::Overlay(Prefix::Trusted),
        &[
            Raw::new("implied/f", b'0').data(b"x"),
            Raw::new(".wh.gone", b'0').block(),
            Raw::new("opaque/", b'5').mode(0o755).block(),
            Raw::new("opaque/.wh..wh..opq", b'0').block(),
            pax(b'x', &[("SCHILY.xattr.trusted.overlay.redirect", b"/etc")]),
            Raw::new("escaped/", b'5').mode(0o755).block(),
        ],
    );
    assert_eq!(fixture.differences(), [] as [&str; 0]);
    fs::remove_file(fixture.tree("gone")).unwrap();
    let mut found = fixture.differences();
    assert_eq!(
        found.pop().unwrap(),
        "gone: is missing, should be a whiteout (it hides what lower layers have there)"
    );
    assert_eq!(found, [] as [&str; 0]);
}

#[test]
fn a_damaged_recipe_is_an_error_and_not_a_finding() {
    let fixture = Fixture::new(TargetMarks::Plain, &[Raw::new("a", b'0').data(b"content")]);
    let tree = Dir::open(Path::new(&fixture.scratch.join("tree"))).unwrap();
    let mut recipe = fixture.recipe.clone();
    let last = recipe.len() - 1;
    recipe[last] ^= 1;
    let target = fixture.target("outline");
    let outlined = outline(
        &mut Cursor::new(&recipe),
        &tree,
        &target,
        &|_| (),
        &Limits::default(),
        &Cancel::new(),
    );
    assert!(matches!(outlined, Err(Error::BadRecipe { .. })));
}

#[test]
fn values_are_shown_as_text_or_in_hexadecimal() {
    use super::difference::value;
    assert_eq!(value(b"plain"), "'plain'");
    assert_eq!(value(b""), "''");
    assert_eq!(value(&[1, 0xff]), "0x01ff");
    assert_eq!(
        value(&[b'x'; 70]),
        format!("'{}' and 6 more bytes", "x".repeat(64))
    );
}
