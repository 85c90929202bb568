//! Damaged recipes and changed trees.

use std::fs;
use std::io::Cursor;
use std::path::Path;

use vellum_sys::{Cancel, Dir};
use vellum_testkit::Scratch;

use super::*;
use crate::apply::{ApplyTarget, Privilege, TargetMarks, apply};
use crate::error::{Error, Result};
use crate::tar::reader::tests::{Raw, archive};
use crate::{LayerStream, Limits};

struct Layer {
    scratch: Scratch,
    recipe: Vec<u8>,
    tar: Vec<u8>,
}

fn layer() -> Layer {
    let scratch = Scratch::new();
    let tar = archive(&[
        Raw::new("a", b'0').data(b"first"),
        Raw::new("a", b'0').data(b"second"),
        Raw::new("d/", b'5').mode(0o755).block(),
        Raw::new("d/b", b'0').data(&[7; 5000]),
    ]);
    let target = ApplyTarget {
        root: Dir::open(&scratch.dir("tree")).unwrap(),
        marks: TargetMarks::Plain,
        privilege: Privilege::Full,
        donor: None,
    };
    let mut recipe = Vec::new();
    let (limits, cancel) = (Limits::default(), Cancel::new());
    let stream = LayerStream::open(Box::new(Cursor::new(tar.clone())), &limits, &cancel).unwrap();
    apply(stream, &target, Some(&mut recipe), &limits, &cancel).unwrap();
    Layer {
        scratch,
        recipe,
        tar,
    }
}

impl Layer {
    fn replay(&self, recipe: &[u8]) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        let tree = Dir::open(&self.scratch.join("tree")).unwrap();
        replay(&mut Cursor::new(recipe), &tree, &mut out, &Cancel::new())?;
        Ok(out)
    }

    #[track_caller]
    fn changed(&self, expect: &str, why: &str) {
        match self.replay(&self.recipe) {
            Err(Error::TreeChanged { path, why: found }) => {
                assert_eq!(path, Path::new(expect));
                assert!(found.contains(why), "{found}, expected {why}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_changed_file_is_named() {
    let layer = layer();
    assert_eq!(layer.replay(&layer.recipe).unwrap(), layer.tar);
    let path = layer.scratch.join("tree/d/b");
    fs::write(&path, [8; 5000]).unwrap();
    layer.changed("d/b", "content");
    fs::write(&path, [7; 4999]).unwrap();
    layer.changed("d/b", "4999 bytes");
    fs::write(&path, [7; 5001]).unwrap();
    layer.changed("d/b", "5001 bytes");
    fs::remove_file(&path).unwrap();
    layer.changed("d/b", "");
    // A link in its place is not followed.
    fs::write(layer.scratch.join("elsewhere"), [7; 5000]).unwrap();
    std::os::unix::fs::symlink("../../elsewhere", &path).unwrap();
    layer.changed("d/b", "");
    fs::remove_file(&path).unwrap();
    fs::write(&path, [7; 5000]).unwrap();
    assert_eq!(layer.replay(&layer.recipe).unwrap(), layer.tar);
}

#[test]
fn damage_is_found_before_anything_is_written() {
    let layer = layer();
    let tree = Dir::open(&layer.scratch.join("tree")).unwrap();
    let check = |recipe: &[u8], what: &str| {
        let mut out = Vec::new();
        let error =
            replay(&mut Cursor::new(recipe), &tree, &mut out, &Cancel::new()).expect_err(what);
        assert!(
            matches!(error, Error::BadRecipe { .. } | Error::Read(_)),
            "{what}: {error}"
        );
        assert!(out.is_empty(), "{what}");
    };
    for cut in 0..layer.recipe.len() {
        check(&layer.recipe[..cut], &format!("cut at {cut}"));
    }
    for at in 0..layer.recipe.len() {
        let mut damaged = layer.recipe.clone();
        damaged[at] ^= 0x10;
        // zstd doesn't read every bit of a frame; a change that it doesn't see doesn't count.
        let mut out = Vec::new();
        match replay(&mut Cursor::new(&damaged), &tree, &mut out, &Cancel::new()) {
            Ok(_) => assert_eq!(out, layer.tar, "damage at {at}"),
            Err(error) => {
                assert!(
                    matches!(error, Error::BadRecipe { .. } | Error::Read(_)),
                    "{at}: {error}"
                );
                assert!(out.is_empty(), "damage at {at}");
            }
        }
    }
    check(
        &[layer.recipe.as_slice(), b"more"].concat(),
        "something after the end",
    );
}

#[test]
fn another_version_is_refused_by_number() {
    let layer = layer();
    let mut recipe = layer.recipe.clone();
    recipe[7] = 2;
    let error = layer.replay(&recipe).unwrap_err();
    assert!(error.to_string().contains("version 2"), "{error}");
    assert!(layer.replay(b"no recipe at all").is_err());
}

#[test]
fn a_recipe_is_verified_without_its_tree() {
    let layer = layer();
    let good = verify(&mut Cursor::new(&layer.recipe)).unwrap();
    assert_eq!(good, vellum_format::Digest::of(&layer.tar));
    for cut in 0..layer.recipe.len() {
        let left = &layer.recipe[..cut];
        assert!(verify(&mut Cursor::new(left)).is_err(), "cut to {cut}");
    }
    let mut unseen = 0;
    for at in 0..layer.recipe.len() {
        let mut bytes = layer.recipe.clone();
        bytes[at] ^= 0xff;
        assert!(
            verify(&mut Cursor::new(&bytes)).is_err(),
            "byte {at} flipped"
        );
        for bit in 0..8 {
            let mut bytes = layer.recipe.clone();
            bytes[at] ^= 1 << bit;
            // zstd doesn't read every bit of a frame; then the recipe is still the same.
            match verify(&mut Cursor::new(&bytes)) {
                Ok(same) => {
                    assert_eq!(same, good);
                    assert_eq!(
                        layer.replay(&bytes).unwrap(),
                        layer.tar,
                        "bit {bit} of {at}"
                    );
                    unseen += 1;
                }
                Err(Error::BadRecipe { .. } | Error::Read(_)) => {}
                Err(other) => panic!("bit {bit} of {at}: {other}"),
            }
        }
    }
    assert!(
        unseen * 50 < layer.recipe.len() * 8,
        "{unseen} bits are not read"
    );
    assert!(verify(&mut Cursor::new(layer.recipe.repeat(2))).is_err());
}
