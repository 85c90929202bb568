//! Random layers, applied to a full tree and as an overlay layer over the same tree: what the
//! kernel shows must be the same as the tree.

use vellum_testkit::kernel::Overlay;
use vellum_testkit::tree::Ignore;
use vellum_testkit::{Rng, Tree};

use super::*;

/// A layer of few names, so that they collide: created twice, hidden, below each other, below
/// links.
fn layer(rng: &mut Rng, entries: usize) -> Vec<Vec<u8>> {
    (0..entries)
        .map(|i| {
            let depth = 1 + rng.below(3);
            let mut parts: Vec<&str> = (0..depth).map(|_| *rng.pick(&["a", "b", "c"])).collect();
            match rng.below(10) {
                0..=3 => file(&parts.join("/"), &format!("content {i}")),
                4..=5 => dir(&(parts.join("/") + "/")),
                6 => {
                    let target = *rng.pick(&["a", "b/c", "../a", "/c", "nowhere/d", "c/../b"]);
                    Raw::new(&parts.join("/"), b'2').link(target).block()
                }
                7..=8 => {
                    let hidden = format!(".wh.{}", parts.pop().unwrap());
                    parts.push(&hidden);
                    file(&parts.join("/"), "")
                }
                _ if rng.chance(20) => file(".wh..wh..opq", ""),
                _ => file(&(parts.join("/") + "/.wh..wh..opq"), ""),
            }
        })
        .collect()
}

fn names(parts: &[Vec<u8>]) -> Vec<String> {
    parts
        .iter()
        .map(|part| {
            let text = |at: usize| {
                String::from_utf8_lossy(&part[at..at + 30])
                    .trim_end_matches('\0')
                    .to_owned()
            };
            format!("{} {} {}", part[156] as char, text(0), text(157))
        })
        .collect()
}

/// Compares the two ways of applying `above` over `below_parts`; false if neither can be applied.
#[track_caller]
fn agree(above: &[Vec<u8>], below_parts: &[Vec<u8>]) -> bool {
    let (parent, plain, overlay) = (Fixture::new(), Fixture::new(), Fixture::new());
    if parent.apply(TargetMarks::Plain, below_parts).is_err() {
        return false;
    }
    plain.apply(TargetMarks::Plain, below_parts).unwrap();
    let outcomes = (
        plain.apply(TargetMarks::Plain, above),
        overlay.apply(OVERLAY, above),
    );
    let applied = match outcomes {
        (Ok(_), Ok(applied)) => applied,
        (Err(_), Err(_)) => return false,
        (plain, overlay) => {
            panic!("{plain:?} as a tree, {overlay:?} as a layer")
        }
    };
    // Now that the parent is known, an opaque root hides its entries, and whiteouts that hide
    // nothing are removed.
    let root = Dir::open(&overlay.root).unwrap();
    let below = Dir::open(&parent.root).unwrap();
    if applied.root_opaque {
        let names = below.entries().unwrap().map(|entry| entry.unwrap().name);
        hide_all(&root, Prefix::Trusted, &applied.whiteout_dirs, names).unwrap();
    }
    for path in &applied.whiteout_dirs {
        if !applied.root_opaque && below.open_dir(path).is_err() {
            drop_whiteouts(&root, path).unwrap();
        }
    }
    let view = overlay.scratch.dir("view");
    Overlay {
        lowers: vec![overlay.root.clone(), parent.root.clone()],
        ..Overlay::default()
    }
    .mount(&overlay.scratch, &view)
    .unwrap();
    let ignore = Ignore {
        root: true,
        directory_mtimes: true,
        ..Ignore::default()
    };
    let shown = Tree::read(&view).unwrap_or_else(|error| {
        panic!(
            "{error}: {:#?} over {:#?}",
            names(above),
            names(below_parts)
        )
    });
    let differences = shown.differences(&Tree::read(&plain.root).unwrap(), ignore);
    assert!(
        differences.is_empty(),
        "{differences:#?}\n{:#?} over {:#?}",
        names(above),
        names(below_parts)
    );
    true
}

#[test]
fn a_link_passed_through_leaves_the_same_directories() {
    if !needs_root("kernel overlay mounts") {
        return;
    }
    let below = [file("c/b", "below"), file("c/c/b", "below")];
    let above = [
        Raw::new("c/a", b'2').link("c/../b").block(),
        file("c/a/c", "above"),
        file(".wh.c", ""),
    ];
    assert!(agree(&above, &below));
}

#[test]
fn a_layer_means_the_same_to_every_driver() {
    if !needs_root("kernel overlay mounts") {
        return;
    }
    let mut rng = Rng::for_test("layers applied both ways");
    let mut compared = 0;
    let mut round = 0;
    while compared < 30 {
        round += 1;
        assert!(round < 5000, "only {compared} layers could be compared");
        let below_parts = layer(&mut rng, 12);
        let count = 1 + rng.below(12);
        let above = layer(&mut rng, count);
        compared += usize::from(agree(&above, &below_parts));
    }
}
