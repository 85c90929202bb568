//! What `changes` reports for uppers that the kernel wrote.

mod common;

use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use common::{ALL_ON, Rig, lines, touch};
use vellum_union::{Form, changes, compare};

/// Creates `lower`, changes it through a kernel mount, and checks the lines of both forms.
#[track_caller]
fn check(lower: impl Fn(&Path), change: impl Fn(&Path), listing: &[&str], layer: &[&str]) {
    let Some(rig) = Rig::new(1, ALL_ON) else {
        return;
    };
    lower(&rig.lowers[0]);
    rig.mount();
    change(&rig.merged);
    rig.unmount();
    assert_eq!(rig.listing(), listing, "listing");
    assert_eq!(lines(&rig.stack(), Form::Layer), layer, "layer");
}

fn sample(root: &Path) {
    fs::create_dir_all(root.join("d/sub/deep")).unwrap();
    fs::write(root.join("d/f"), "f").unwrap();
    fs::write(root.join("d/sub/g"), "g").unwrap();
    fs::write(root.join("d/sub/deep/h"), "h").unwrap();
    fs::write(root.join("top"), "top").unwrap();
    fs::create_dir(root.join("still")).unwrap();
    fs::write(root.join("still/here"), "").unwrap();
}

#[test]
fn an_unchanged_union_has_no_changes() {
    check(sample, |_| (), &[], &[]);
}

#[test]
fn the_parents_of_a_change_are_modified() {
    let expect = &["C d", "C d/sub", "A d/sub/new"];
    check(
        sample,
        |at| fs::write(at.join("d/sub/new"), "").unwrap(),
        expect,
        expect,
    );
    let expect = &["C d", "C d/sub", "C d/sub/deep", "C d/sub/deep/h"];
    check(
        sample,
        |at| fs::write(at.join("d/sub/deep/h"), "H").unwrap(),
        expect,
        expect,
    );
}

#[test]
fn a_deleted_directory_is_one_line() {
    let expect = &["C d", "D d/sub", "D top"];
    let change = |at: &Path| {
        fs::remove_dir_all(at.join("d/sub")).unwrap();
        fs::remove_file(at.join("top")).unwrap();
    };
    check(sample, change, expect, expect);
}

#[test]
fn a_file_created_and_deleted_is_not_a_change() {
    let change = |at: &Path| {
        fs::write(at.join("new"), "").unwrap();
        fs::remove_file(at.join("new")).unwrap();
    };
    check(sample, change, &[], &[]);
}

#[test]
fn a_directory_replaced_by_another_is_opaque() {
    let change = |at: &Path| {
        fs::remove_dir_all(at.join("d")).unwrap();
        fs::create_dir(at.join("d")).unwrap();
        fs::write(at.join("d/f"), "other").unwrap();
        fs::write(at.join("d/new"), "").unwrap();
    };
    check(
        sample,
        change,
        &["C d", "C d/f", "A d/new", "D d/sub"],
        &["C d opaque", "C d/f", "A d/new"],
    );
}

#[test]
fn a_change_of_type_is_a_modification() {
    let change = |at: &Path| {
        fs::remove_dir_all(at.join("d")).unwrap();
        fs::write(at.join("d"), "now a file").unwrap();
        fs::remove_file(at.join("top")).unwrap();
        fs::create_dir(at.join("top")).unwrap();
        fs::write(at.join("top/in"), "").unwrap();
    };
    let expect = &["C d", "C top", "A top/in"];
    check(sample, change, expect, expect);
}

#[test]
fn a_renamed_directory_is_its_whole_content() {
    let change = |at: &Path| fs::rename(at.join("d/sub"), at.join("moved")).unwrap();
    let expect = &[
        "C d",
        "D d/sub",
        "A moved",
        "A moved/deep",
        "A moved/deep/h",
        "A moved/g",
    ];
    check(sample, change, expect, expect);
}

#[test]
fn a_directory_renamed_onto_a_deleted_one_hides_it() {
    let change = |at: &Path| {
        fs::remove_dir_all(at.join("still")).unwrap();
        fs::rename(at.join("d/sub"), at.join("still")).unwrap();
        fs::remove_file(at.join("still/g")).unwrap();
    };
    let listing = &[
        "C d",
        "D d/sub",
        "C still",
        "A still/deep",
        "A still/deep/h",
        "D still/here",
    ];
    let layer = &[
        "C d",
        "D d/sub",
        "C still opaque",
        "A still/deep",
        "A still/deep/h",
    ];
    check(sample, change, listing, layer);
}

#[test]
fn a_directory_renamed_there_and_back_is_unchanged() {
    let lower = |at: &Path| {
        sample(at);
        touch(at, 1000);
    };
    let change = |at: &Path| {
        fs::rename(at.join("still"), at.join("gone")).unwrap();
        fs::rename(at.join("gone"), at.join("still")).unwrap();
    };
    check(lower, change, &[], &[]);
}

#[test]
fn changed_attributes_are_a_change_until_restored() {
    let chmod =
        |at: &Path, mode| fs::set_permissions(at, fs::Permissions::from_mode(mode)).unwrap();
    let change = move |at: &Path| {
        let mode = fs::metadata(at.join("top")).unwrap().permissions().mode();
        chmod(&at.join("top"), mode ^ 0o7);
        chmod(&at.join("top"), mode);
        chmod(&at.join("d/f"), 0o4711);
    };
    check(sample, change, &["C d", "C d/f"], &["C d", "C d/f"]);
    let xattr = |at: &Path| common::set_xattr(&at.join("still"), "user.x", b"1");
    check(sample, xattr, &["C still"], &["C still"]);
    let time = |at: &Path| {
        let time = fs::metadata(at.join("top")).unwrap().modified().unwrap()
            + std::time::Duration::from_nanos(1);
        fs::File::open(at.join("top"))
            .unwrap()
            .set_modified(time)
            .unwrap();
    };
    check(sample, time, &["C top"], &["C top"]);
    check(
        sample,
        |at| symlink("x", at.join("link")).unwrap(),
        &["A link"],
        &["A link"],
    );
}

#[test]
fn only_a_layer_names_the_root() {
    let change = |at: &Path| fs::set_permissions(at, fs::Permissions::from_mode(0o711)).unwrap();
    check(sample, change, &[], &["C "]);
}

#[test]
fn every_name_of_a_changed_hard_link_is_listed() {
    let lower = |at: &Path| fs::write(at.join("a"), "a").unwrap();
    let change = |at: &Path| fs::hard_link(at.join("a"), at.join("b")).unwrap();
    let Some(rig) = Rig::new(1, ALL_ON) else {
        return;
    };
    lower(&rig.lowers[0]);
    rig.mount();
    change(&rig.merged);
    rig.unmount();
    let found: Vec<_> = changes(&rig.stack(), Form::Layer)
        .unwrap()
        .map(|change| change.unwrap())
        .collect();
    let found: Vec<_> = found
        .iter()
        .filter(|change| !change.path.as_os_str().is_empty())
        .collect();
    assert_eq!(
        found
            .iter()
            .map(|change| change.path.as_path())
            .collect::<Vec<_>>(),
        [Path::new("a"), Path::new("b")]
    );
    let nodes: Vec<_> = found
        .iter()
        .map(|change| change.node.as_ref().unwrap())
        .collect();
    assert_eq!(nodes[0].identity(), nodes[1].identity());
    assert_eq!(nodes[0].stat().nlink, 2);
}

#[test]
fn a_name_that_left_its_hard_link_is_a_change() {
    let lower = |at: &Path| {
        fs::write(at.join("a"), "a").unwrap();
        fs::hard_link(at.join("a"), at.join("b")).unwrap();
    };
    let change = |at: &Path| {
        let mode = fs::metadata(at.join("a")).unwrap().permissions();
        fs::set_permissions(at.join("a"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::set_permissions(at.join("a"), mode).unwrap();
    };
    check(lower, change, &["C a"], &["C a"]);
}

#[test]
fn a_metacopy_gives_its_whole_content_through_renames() {
    let Some(rig) = Rig::new(1, ALL_ON) else {
        return;
    };
    sample(&rig.lowers[0]);
    rig.mount();
    fs::set_permissions(rig.path("d/f"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(rig.path("d/f"), rig.path("d/sub/renamed")).unwrap();
    fs::rename(rig.path("d/sub"), rig.path("far")).unwrap();
    rig.unmount();
    assert_eq!(
        fs::symlink_metadata(rig.upper.join("far/renamed"))
            .unwrap()
            .len(),
        1
    );
    let read = |path: &str| {
        let node = rig.stack().lookup(Path::new(path)).unwrap().unwrap();
        assert_ne!(node.identity(), node.data_identity());
        let mut text = String::new();
        node.open_data().unwrap().read_to_string(&mut text).unwrap();
        (node.stat().mode, node.layer(), text)
    };
    assert_eq!(read("far/renamed"), (0o600, 0, "f".into()));
}

#[test]
fn two_unions_differ_as_the_upper_says() {
    let Some(rig) = Rig::new(1, ALL_ON) else {
        return;
    };
    sample(&rig.lowers[0]);
    rig.mount();
    fs::rename(rig.path("d/sub"), rig.path("moved")).unwrap();
    fs::write(rig.path("top"), "other").unwrap();
    fs::remove_dir_all(rig.path("still")).unwrap();
    fs::create_dir(rig.path("still")).unwrap();
    rig.unmount();
    let stack = rig.stack();
    let found = compare(&stack.below().unwrap(), &stack).unwrap();
    let found: Vec<_> = found
        .map(|change| {
            change
                .map(|change| format!("{} {}", change.kind.letter(), change.path.display()))
                .unwrap()
        })
        .collect();
    assert_eq!(found, rig.listing());
    assert_eq!(compare(&stack, &stack).unwrap().count(), 0);
}

#[test]
fn the_other_name_of_a_moved_file_is_in_the_layer() {
    let lower = |at: &Path| {
        sample(at);
        fs::create_dir_all(at.join("far/away")).unwrap();
        fs::hard_link(at.join("d/sub/g"), at.join("far/away/g2")).unwrap();
        fs::hard_link(at.join("d/sub/g"), at.join("zz")).unwrap();
    };
    let change = |at: &Path| {
        fs::rename(at.join("d/sub"), at.join("moved")).unwrap();
        fs::remove_file(at.join("zz")).unwrap();
    };
    let moved = [
        "A moved",
        "A moved/deep",
        "A moved/deep/h",
        "A moved/g",
        "D zz",
    ];
    let listing = [&["C d", "D d/sub"][..], &moved].concat();
    let layer = [
        &["C d", "D d/sub", "C far", "C far/away", "C far/away/g2"][..],
        &moved,
    ]
    .concat();
    check(lower, change, &listing, &layer);
}

/// As with the native driver: the new tree is a copy, so all inodes differ.
#[test]
fn a_copied_tree_differs_where_it_was_changed() {
    let scratch = vellum_testkit::Scratch::new();
    let (old, new) = (scratch.dir("old"), scratch.join("new"));
    sample(&old);
    fs::write(old.join("twin"), "twin").unwrap();
    fs::hard_link(old.join("twin"), old.join("d/twin")).unwrap();
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .args([&old, &new])
        .status()
        .unwrap();
    assert!(copied.success());
    let found = || {
        let stack = |root| common::stack_of(&[root], &[], vellum_union::Dialect::plain());
        let found = compare(&stack(&old), &stack(&new)).unwrap();
        found
            .map(|change| {
                change
                    .map(|change| format!("{} {}", change.kind.letter(), change.path.display()))
                    .unwrap()
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(found(), Vec::<String>::new());
    // A new name of an old file is listed with the old one, so that they stay one file.
    fs::hard_link(new.join("top"), new.join("d/top2")).unwrap();
    fs::remove_dir_all(new.join("still")).unwrap();
    assert_eq!(found(), ["C d", "A d/top2", "D still", "C top"]);
    // One name of a group moved: its other name must be listed too, although it did not change. A
    // removed name is only a deletion.
    fs::remove_dir_all(&new).unwrap();
    fs::write(old.join("third"), "third").unwrap();
    fs::hard_link(old.join("third"), old.join("d/third")).unwrap();
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .args([&old, &new])
        .status()
        .unwrap();
    assert!(copied.success());
    fs::rename(new.join("d/twin"), new.join("moved")).unwrap();
    fs::remove_file(new.join("d/third")).unwrap();
    assert_eq!(
        found(),
        ["C d", "D d/third", "D d/twin", "A moved", "C twin"]
    );
}

/// A container keeps writing while its changes are read.
#[test]
fn a_tree_in_use_can_be_read() {
    let scratch = vellum_testkit::Scratch::new();
    let (top, low) = (scratch.dir("top"), scratch.dir("low"));
    sample(&low);
    fs::create_dir(top.join("d")).unwrap();
    fs::write(top.join("d/stays"), "").unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for worker in 0..3 {
            let (stop, top) = (&stop, &top);
            scope.spawn(move || {
                let mut turn = 0;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let dir = top.join(format!("d/sub{worker}-{}", turn % 10));
                    turn += 1;
                    fs::create_dir_all(dir.join("a/b")).unwrap();
                    common::set_xattr(&dir.join("a"), "user.x", b"1");
                    fs::write(dir.join("a/b/c"), "c").unwrap();
                    fs::remove_dir_all(&dir).unwrap();
                    // A file in place of a directory.
                    fs::write(&dir, "").unwrap();
                    fs::remove_file(&dir).unwrap();
                }
            });
        }
        let dialect = vellum_union::Dialect::kernel(vellum_format::Prefix::User);
        let _stop = Stop(&stop);
        for round in 0..1500 {
            let form = if round % 2 == 0 {
                Form::Listing
            } else {
                Form::Layer
            };
            let stack = common::stack_of(&[&top, &low], &[], dialect);
            let found = lines(&stack, form);
            assert!(found.contains(&"A d/stays".to_owned()), "{found:?}");
        }
    });
}

/// Sets a flag at the end of its scope, also after a panic.
struct Stop<'a>(&'a std::sync::atomic::AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}
