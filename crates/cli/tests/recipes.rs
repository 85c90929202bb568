//! Recipes with flipped bits, cut short, swapped or lost: a deep check finds them, and loading the
//! image again repairs them.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use support::{World, small};

fn recipes(root: &Path) -> Vec<PathBuf> {
    let mut all: Vec<_> = fs::read_dir(root.join("recipes"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    all.sort();
    all
}

/// Returns damaged versions of a recipe with these bytes, each with a name.
fn damages(good: &[u8], other: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    // Magic, version, frame header, block header, body, checksum: every byte of head and tail, the
    // body in steps.
    let length = good.len();
    let flipped = (0..24)
        .chain((24..length - 12).step_by(length / 16))
        .chain(length - 12..length);
    for at in flipped {
        let mut bytes = good.to_vec();
        bytes[at] ^= 0xff;
        all.push((format!("byte {at} of {length} flipped"), bytes));
    }
    for left in [
        0,
        1,
        7,
        8,
        9,
        12,
        13,
        14,
        length / 2,
        length - 5,
        length - 4,
        length - 1,
    ] {
        all.push((format!("cut to {left} of {length}"), good[..left].to_vec()));
    }
    all.push(("one more byte".to_owned(), [good, b"x"].concat()));
    all.push(("twice".to_owned(), good.repeat(2)));
    all.push(("all zeros".to_owned(), vec![0; length]));
    all.push(("another layer's".to_owned(), other.to_vec()));
    all
}

#[test]
fn a_damaged_recipe_is_found_and_repaired_by_loading_the_image_again() {
    for driver in ["overlay2", "native"] {
        let Some(world) = World::with(&["--storage-driver", driver]) else {
            return;
        };
        let image = small(&world.scratch);
        let load = ["load", "--input", image.to_str().unwrap()];
        world.ok(&load);
        world.ok(&["check", "--deep"]);
        let saved = world.scratch.join("saved.tar");
        let save = ["save", "--output", saved.to_str().unwrap(), "small:1"];
        world.ok(&save);
        let before = fs::read(&saved).unwrap();
        let all = recipes(&world.root());
        assert_eq!(all.len(), 2);
        let contents: Vec<_> = all.iter().map(|path| fs::read(path).unwrap()).collect();
        let mut count = 0;
        for (at, path) in all.iter().enumerate() {
            let mut damages = damages(&contents[at], &contents[1 - at]);
            if driver != "overlay2" {
                damages.truncate(3);
            }
            for (how, bytes) in damages {
                fs::write(path, &bytes).unwrap();
                let said = world.run(&["check", "--deep"]);
                assert_eq!(said.code, 1, "{how}: {said:?}");
                assert!(said.out.contains(path.to_str().unwrap()), "{how}: {said:?}");
                assert!(said.out.contains("load or pull"), "{how}: {said:?}");
                count += 1;
                if count % 8 == 1 {
                    world.fails(1, &save);
                    let said = world.run(&load);
                    assert_eq!(said.code, 0, "{how}: {said:?}");
                    assert!(said.err.contains("recreating it"), "{how}: {said:?}");
                    assert_eq!(world.ok(&["check", "--deep"]), "", "{how}");
                    world.ok(&save);
                    assert_eq!(fs::read(&saved).unwrap(), before, "{how}");
                }
                fs::write(path, &contents[at]).unwrap();
            }
            fs::remove_file(path).unwrap();
            for check in [&["check"][..], &["check", "--deep"]] {
                let said = world.run(check);
                assert!(said.code == 1 && said.out.contains("missing"), "{said:?}");
            }
            world.ok(&load);
            assert_eq!(world.ok(&["check", "--deep"]), "");
        }
        println!("{driver}: {count} damaged recipes");
    }
}

#[test]
fn a_layer_whose_tree_was_changed_is_found_by_a_deep_check_and_not_blamed_on_its_recipe() {
    let Some(world) = World::new() else { return };
    let image = small(&world.scratch);
    world.ok(&["load", "--input", image.to_str().unwrap()]);
    let trees = fs::read_dir(world.root().join("overlay2")).unwrap();
    let inner: Vec<_> = trees
        .map(|entry| entry.unwrap().path().join("diff/dir/inner"))
        .filter(|path| path.exists())
        .collect();
    assert_eq!(inner.len(), 1);
    fs::write(&inner[0], "other\n").unwrap();
    world.ok(&["check"]);
    let said = world.run(&["check", "--deep"]);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(
        said.out
            .contains("(small:1) /dir/inner: its content differs"),
        "{said:?}"
    );
    assert!(!said.out.contains("recipes/"), "{said:?}");
}
