//! Renames of all types, with the kernel's overlayfs as the judge of what is on disk afterwards.

mod engine_support;

use std::path::Path;

use engine_support::{Rig, User, refusal, user};
use vellum_testkit::Tree;
use vellum_union::Refusal;
use vellum_union::engine::RenameMode;

fn paths(tree: &Tree) -> Vec<String> {
    let paths = tree.entries.keys().map(|path| path.display().to_string());
    paths.filter(|path| !path.is_empty()).collect()
}

fn lower(rig: &Rig) {
    rig.scratch.file("fs/l1/a/x", "x");
    rig.scratch.file("fs/l1/a/b/y", "y");
    rig.scratch.file("fs/l0/a/b/z", "z");
    rig.scratch.file("fs/l1/c/w", "w");
    rig.scratch.file("fs/l1/f", "f");
    rig.scratch.file("fs/l0/g", "g");
}

#[test]
fn a_directory_of_lower_layers_moves_nested_and_again() {
    let Some(rig) = Rig::new(2) else { return };
    lower(&rig);
    let engine = rig.open();
    let u = user(&engine);
    u.rename("a/b", "a/d").unwrap();
    u.rename("a", "e").unwrap();
    u.rename("e/d", "c/d2").unwrap();
    u.rename("c/d2", "e/d3").unwrap();
    u.rename("e", "c/e2").unwrap();
    assert_eq!(u.read("c/e2/d3/y").unwrap(), b"y");
    u.file("c/e2/d3/y", "changed").unwrap();
    u.rename("c", "a").unwrap();
    let want = [
        "a",
        "a/e2",
        "a/e2/d3",
        "a/e2/d3/y",
        "a/e2/d3/z",
        "a/e2/x",
        "a/w",
        "f",
        "g",
    ];
    assert_eq!(paths(&rig.agree(engine)), want);
    // And after a remount, again.
    let engine = rig.open();
    let u = user(&engine);
    u.rename("a/e2/d3", "d4").unwrap();
    u.mkdir("a/e2/d3").unwrap();
    u.rename("a/e2", "e3").unwrap();
    u.rename("d4", "e3/d3").unwrap();
    let want = [
        "a", "a/w", "e3", "e3/d3", "e3/d3/y", "e3/d3/z", "e3/x", "f", "g",
    ];
    assert_eq!(paths(&rig.agree(engine)), want);
}

#[test]
fn files_move_wherever_their_data_is() {
    let Some(rig) = Rig::new(2) else { return };
    lower(&rig);
    let engine = rig.open();
    let u = user(&engine);
    u.rename("f", "a/f").unwrap();
    u.rename("a/f", "c/f").unwrap();
    u.rename("c", "k").unwrap();
    assert_eq!(u.read("k/f").unwrap(), b"f");
    u.rename("g", "f").unwrap();
    u.rename("k/f", "f").unwrap();
    assert_eq!(u.read("f").unwrap(), b"f");
    u.chmod("a/x", 0o600).unwrap();
    u.rename("a/x", "a/x2").unwrap();
    u.rename("a", "a2").unwrap();
    u.rename("a2/x2", "k/x3").unwrap();
    let want = ["a2", "a2/b", "a2/b/y", "a2/b/z", "f", "k", "k/w", "k/x3"];
    assert_eq!(paths(&rig.agree(engine)), want);
}

#[test]
fn names_are_exchanged_or_not_replaced() {
    let Some(rig) = Rig::new(2) else { return };
    lower(&rig);
    let engine = rig.open();
    let u = user(&engine);
    let exchange = |from: &str, to: &str| u.rename_as(from, to, RenameMode::Exchange);
    assert_eq!(
        refusal(u.rename_as("f", "g", RenameMode::NoReplace)),
        Refusal::Exists
    );
    assert_eq!(refusal(exchange("f", "none")), Refusal::NotFound);
    assert_eq!(refusal(exchange("a", "a/b")), Refusal::Invalid);
    assert_eq!(refusal(exchange("a/b", "a")), Refusal::Invalid);
    exchange("f", "g").unwrap();
    assert_eq!(u.read("f").unwrap(), b"g");
    exchange("a", "f").unwrap();
    exchange("f/b", "c").unwrap();
    u.mkdir("n").unwrap();
    u.file("n/1", "1").unwrap();
    exchange("n", "c").unwrap();
    u.rename_as("a", "h", RenameMode::NoReplace).unwrap();
    assert_eq!(
        refusal(u.rename_as("h", "i", RenameMode::Whiteout)),
        Refusal::Invalid
    );
    let want = [
        "c", "c/1", "f", "f/b", "f/b/w", "f/x", "g", "h", "n", "n/y", "n/z",
    ];
    assert_eq!(paths(&rig.agree(engine)), want);
}

#[test]
fn directories_are_replaced_only_when_nothing_shows_in_them() {
    let Some(rig) = Rig::new(2) else { return };
    lower(&rig);
    let engine = rig.open();
    let u = user(&engine);
    u.mkdir("n").unwrap();
    u.file("n/1", "1").unwrap();
    assert_eq!(refusal(u.rename("n", "c")), Refusal::NotEmpty);
    assert_eq!(refusal(u.rename("n", "f")), Refusal::NotADirectory);
    assert_eq!(refusal(u.rename("f", "n")), Refusal::IsADirectory);
    assert_eq!(refusal(u.rename("a", "a/b/in")), Refusal::Invalid);
    assert_eq!(refusal(u.rename("a/b", "a")), Refusal::NotEmpty);
    u.unlink("c/w").unwrap();
    u.rename("n", "c").unwrap();
    assert_eq!(u.names("c").unwrap(), ["1"]);
    // A directory that is only in the lower layers.
    u.unlink("a/b/y").unwrap();
    u.unlink("a/b/z").unwrap();
    u.rename("c", "a/b").unwrap();
    // A merged directory over a merged one.
    u.unlink("a/b/1").unwrap();
    u.rename("a", "q").unwrap();
    u.mkdir("a").unwrap();
    u.rename("q", "a").unwrap();
    assert_eq!(paths(&rig.agree(engine)), ["a", "a/b", "a/x", "f", "g"]);
}

#[test]
fn a_new_directory_hides_what_is_below_its_new_name() {
    let Some(rig) = Rig::new(2) else { return };
    lower(&rig);
    let engine = rig.open();
    let u = user(&engine);
    u.rename("a", "away").unwrap();
    u.mkdir("n").unwrap();
    u.rename("n", "a").unwrap();
    assert!(u.names("a").unwrap().is_empty());
    u.rename("a", "n").unwrap();
    u.rename("away", "a").unwrap();
    assert_eq!(u.names("a/b").unwrap(), ["y", "z"]);
    u.rename("n", "a/b2").unwrap();
    u.rename("a/b", "b").unwrap();
    u.rename("a/b2", "a/b").unwrap();
    assert_eq!(
        paths(&rig.agree(engine)),
        ["a", "a/b", "a/x", "b", "b/y", "b/z", "c", "c/w", "f", "g"]
    );
}

#[test]
fn without_redirects_only_directories_with_nothing_below_move() {
    let Some(rig) = Rig::new(2) else { return };
    lower(&rig);
    let mut options = rig.options();
    let upper = options.upper.as_mut().unwrap();
    (upper.redirect_dir, upper.metacopy) = (false, false);
    let engine = vellum_union::engine::Engine::open(options).unwrap();
    let u = user(&engine);
    assert_eq!(refusal(u.rename("a", "b")), Refusal::CrossDevice);
    u.mkdir("n").unwrap();
    u.rename("n", "c/n").unwrap();
    u.rename("f", "c/n/f").unwrap();
    assert_eq!(u.read("c/n/f").unwrap(), b"f");
    assert!(!std::fs::read(rig.upper.join("c/n/f")).unwrap().is_empty());
    rig.agree(engine);
}

#[test]
fn open_files_under_a_moved_directory_stay_usable() {
    let Some(rig) = Rig::new(2) else { return };
    lower(&rig);
    let engine = rig.open();
    let u: User<'_> = user(&engine);
    let deep = u.find("a/b/y").unwrap();
    let dir = u.find("a/b").unwrap();
    u.rename("a", "n").unwrap();
    u.rename("n/b", "c/b").unwrap();
    engine
        .privileged()
        .write(deep.node, 0, b"Y", false)
        .unwrap();
    assert_eq!(engine.read(deep.node, 0, &mut [0; 4]).unwrap(), 1);
    engine.privileged().unlink(dir.node, "z".as_ref()).unwrap();
    assert_eq!(u.read("c/b/y").unwrap(), b"Y");
    u.unlink("c/b/y").unwrap();
    engine
        .privileged()
        .write(deep.node, 1, b"more", false)
        .unwrap();
    assert_eq!(
        engine_support::read_all(&engine, deep.node).unwrap(),
        b"Ymore"
    );
    assert_eq!(engine.attr(deep.node).unwrap().nlink, 0);
    drop((deep, dir));
    assert_eq!(
        paths(&rig.agree(engine)),
        ["c", "c/b", "c/w", "f", "g", "n", "n/x"]
    );
    assert!(!Path::new(&rig.upper.join("a/b")).exists());
}
