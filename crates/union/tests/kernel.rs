//! Our view compared with the kernel's: random changes through a kernel mount, then both views
//! compared entry by entry; and the diff of the upper, applied to the tree before, must give the
//! tree after.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use common::{Rig, entry, picture, set_xattr, whiteout};
use vellum_format::{Mark, Metacopy, Redirect};
use vellum_testkit::churn::{Churn, grow};
use vellum_testkit::kernel::{Overlay, Since};
use vellum_testkit::tree::{Ignore, Kind};
use vellum_testkit::{Rng, Tree};
use vellum_union::{ChangeKind, Form, changes, compare};

/// Random uppers, each the top lower of the next.
fn run(
    name: &str,
    options: &[(&str, &str)],
    churn: Churn,
    seeds: usize,
    prepare: impl Fn(&mut Rng, &mut Rig),
) {
    let mut rng = Rng::for_test(name);
    for _ in 0..seeds {
        let Some(mut rig) = Rig::new(2, options) else {
            return;
        };
        for lower in rig.lowers.clone() {
            grow(&mut rng, &lower, 25);
        }
        prepare(&mut rng, &mut rig);
        for _ in 0..4 {
            rig.mount();
            let before = Tree::read(&rig.merged).unwrap();
            churn.run(&mut rng, &rig.merged, 40);
            rig.unmount();
            // A new mount: the kernel, too, must read everything from disk.
            rig.mount();
            let after = Tree::read(&rig.merged).unwrap();
            rig.unmount();
            eprintln!(
                "{} entries, upper {}",
                after.entries.len(),
                rig.upper.display()
            );
            picture(&rig.stack()).assert_same(&after, Ignore::default());
            for form in [Form::Layer, Form::Listing] {
                check_changes(&rig, &before, &after, form);
            }
            check_compare(&rig, &before, &after);
            rig.push();
            // Whiteouts in both forms in the lower layers.
            if rng.chance(30) && Since::WhiteoutsInXattrs.is_here_for("whiteouts in xattrs") {
                to_xattr_whiteouts(
                    &rig.lowers[0],
                    rig.prefix().xattr(Mark::Opaque).to_str().unwrap(),
                );
            }
        }
    }
}

/// Applies the changes to the tree before them; checks their order and type, and that nothing
/// unchanged is listed.
fn check_changes(rig: &Rig, before: &Tree, after: &Tree, form: Form) {
    let mut tree = before.clone();
    let mut last = None;
    for change in changes(&rig.stack(), form).unwrap() {
        let change = change.unwrap();
        eprintln!(
            "{form:?} {} {:?} {}",
            change.kind.letter(),
            change.path,
            change.opaque
        );
        assert!(last < Some(change.path.clone()), "sorted, none twice");
        last = Some(change.path.clone());
        match change.kind {
            ChangeKind::Added => assert!(!before.entries.contains_key(&change.path)),
            ChangeKind::Modified | ChangeKind::Deleted => {
                assert!(before.entries.contains_key(&change.path))
            }
        }
        let Some(node) = &change.node else {
            remove_below(&mut tree.entries, &change.path);
            tree.entries.remove(&change.path);
            continue;
        };
        if !node.is_dir() || change.opaque {
            remove_below(&mut tree.entries, &change.path);
        }
        if let Some(parent) = change
            .path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
        {
            assert_eq!(
                tree.entries.get(parent).map(|entry| entry.kind),
                Some(Kind::Directory)
            );
        }
        tree.entries.insert(change.path, entry(node));
    }
    // A layer has the root only for its attributes; its time is not kept.
    let times = tree.entries.get_mut(Path::new("")).unwrap();
    (times.mtime, times.identity) = (
        after.entries[Path::new("")].mtime,
        after.entries[Path::new("")].identity,
    );
    regroup(&mut tree, after);
    if form == Form::Listing {
        tree.entries
            .insert(PathBuf::new(), after.entries[Path::new("")].clone());
    }
    tree.assert_same(after, Ignore::default());
}

fn check_compare(rig: &Rig, before: &Tree, after: &Tree) {
    let stack = rig.stack();
    let named: BTreeMap<_, _> = compare(&stack.below().unwrap(), &stack)
        .unwrap()
        .map(|change| change.map(|change| (change.path, change.kind)).unwrap())
        .collect();
    let ignore = Ignore {
        root: true,
        hard_links: true,
        ..Ignore::default()
    };
    for difference in before.differences(after, ignore) {
        let path = difference.path;
        let named = path.ancestors().find_map(|path| named.get(path));
        // A comparison that reads no content can't detect a file that was written and set back to
        // the same size and time.
        assert!(
            named.is_some() || difference.what == "content",
            "{path:?} {} is not named",
            difference.what
        );
    }
    for (path, kind) in named {
        let expect = (kind != ChangeKind::Added, kind != ChangeKind::Deleted);
        assert_eq!(
            (
                before.entries.contains_key(&path),
                after.entries.contains_key(&path)
            ),
            expect,
            "{path:?}"
        );
    }
}

fn remove_below<T>(entries: &mut BTreeMap<PathBuf, T>, path: &Path) {
    entries.retain(|other, _| other == path || !other.starts_with(path));
}

/// Recomputes the hard-link groups of a tree that comes from two mounts: identities of the first
/// have no meaning in the second.
fn regroup(tree: &mut Tree, after: &Tree) {
    for (path, entry) in &mut tree.entries {
        if let Some(there) = after.entries.get(path) {
            entry.linked_with = there.linked_with.clone();
        }
    }
}

/// Turns every whiteout that is a device into one that is a file with an xattr.
fn to_xattr_whiteouts(layer: &Path, opaque: &str) {
    let prefix = opaque.strip_suffix("opaque").unwrap();
    let mut left = vec![layer.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap()) {
            let meta = entry.metadata().unwrap();
            if meta.is_dir() {
                left.push(entry.path());
            } else if meta.file_type().is_char_device() && meta.rdev() == 0 {
                fs::remove_file(entry.path()).unwrap();
                let mut value = [0; 8];
                match rustix::fs::lgetxattr(&dir, opaque, &mut value[..]) {
                    // An opaque directory can't be marked for such whiteouts, and needs none.
                    Ok(1) if value[0] == b'y' => continue,
                    _ => set_xattr(&dir, opaque, b"x"),
                }
                fs::write(entry.path(), "").unwrap();
                set_xattr(&entry.path(), &format!("{prefix}whiteout"), b"y");
            }
        }
    }
}

#[test]
fn redirects_and_metacopies() {
    let options = &[
        ("redirect_dir", "on"),
        ("metacopy", "on"),
        ("index", "off"),
        ("xino", "off"),
    ];
    run(
        "redirects_and_metacopies",
        options,
        Churn::ALL,
        6,
        |_, _| (),
    );
}

#[test]
fn redirects_and_metacopies_with_xino() {
    let options = &[
        ("redirect_dir", "on"),
        ("metacopy", "on"),
        ("index", "off"),
        ("xino", "on"),
    ];
    run(
        "redirects_and_metacopies_with_xino",
        options,
        Churn::ALL,
        3,
        |_, _| (),
    );
}

/// Without hard links: those of an indexed upper are joined by its work directory, which is not
/// part of a layer.
#[test]
fn index_without_hard_links() {
    let options = &[
        ("redirect_dir", "on"),
        ("metacopy", "on"),
        ("index", "on"),
        ("xino", "on"),
    ];
    run(
        "index_without_hard_links",
        options,
        Churn {
            links: false,
            ..Churn::ALL
        },
        3,
        |_, _| (),
    );
}

#[test]
fn everything_off() {
    let options = &[
        ("redirect_dir", "off"),
        ("metacopy", "off"),
        ("index", "off"),
        ("xino", "off"),
    ];
    run("everything_off", options, Churn::ALL, 3, |_, _| ());
}

#[test]
fn marks_in_user_xattrs() {
    run(
        "marks_in_user_xattrs",
        &[("userxattr", "")],
        Churn::ALL,
        3,
        |_, _| (),
    );
}

/// Some files of the lower layers become metacopies whose data is in a data-only layer.
#[test]
fn data_only_layers() {
    if !Since::DataOnlyLayers.is_here_for("data-only layers") {
        return;
    }
    let options = &[("redirect_dir", "on"), ("metacopy", "on"), ("index", "off")];
    run("data_only_layers", options, Churn::ALL, 3, |rng, rig| {
        let data = [rig.scratch.dir("data0"), rig.scratch.dir("data1")];
        // Not a name that the tree may have: if a merged layer has a directory of this name, the
        // kernel gives up on the file.
        let beside = Path::new("of data only/files");
        let prefix = rig.prefix();
        let xattr = |path: &Path, mark, value: &[u8]| {
            set_xattr(path, prefix.xattr(mark).to_str().unwrap(), value)
        };
        for lower in rig.lowers.clone() {
            for (index, path) in Tree::read(&lower).unwrap().entries.into_iter().enumerate() {
                if path.1.kind != Kind::File || rng.chance(50) {
                    continue;
                }
                let file = lower.join(&path.0);
                let home = rng.pick(&data).join(beside);
                fs::create_dir_all(&home).unwrap();
                let name = format!("{}-{index}", lower.file_name().unwrap().display());
                fs::copy(&file, home.join(&name)).unwrap();
                let size = fs::metadata(&file).unwrap().len();
                fs::File::create(&file).unwrap().set_len(size).unwrap();
                xattr(&file, Mark::Metacopy, &Metacopy::DataBelow(None).encode());
                let redirect = Redirect::from_root(&beside.join(name)).unwrap();
                xattr(&file, Mark::Redirect, &redirect.encode());
            }
        }
        rig.data_lowers = data.to_vec();
    });
}

/// A whiteout, a directory or something else at a redirect's target ends the search in the merged
/// layers, but not in the data-only ones.
#[test]
fn whiteouts_on_the_way_do_not_stop_data_only_layers() {
    if !Since::DataOnlyLayers.is_here_for("obstacles before data-only layers") {
        return;
    }
    let obstacles: [fn(&Path); 4] = [
        whiteout,
        |path| fs::create_dir(path).unwrap(),
        |path| std::os::unix::fs::symlink("nowhere", path).unwrap(),
        |path| {
            fs::create_dir(path).unwrap();
            set_xattr(path, "trusted.overlay.opaque", b"y");
        },
    ];
    for (which, obstacle) in obstacles.iter().enumerate() {
        let Some(mut rig) = Rig::new(2, common::ALL_ON) else {
            return;
        };
        let data = rig.scratch.dir("data");
        rig.scratch.file("data/d", "what is given");
        let file = rig.scratch.file("l0/f", "");
        fs::File::options()
            .write(true)
            .open(&file)
            .unwrap()
            .set_len(13)
            .unwrap();
        let mark = |mark, value: &[u8]| {
            set_xattr(&file, rig.prefix().xattr(mark).to_str().unwrap(), value);
        };
        mark(Mark::Metacopy, &Metacopy::DataBelow(None).encode());
        let redirect = Redirect::from_root(Path::new("d")).unwrap();
        mark(Mark::Redirect, &redirect.encode());
        obstacle(&rig.lowers[1].join("d"));
        rig.data_lowers = vec![data];
        rig.mount();
        let read = fs::read_to_string(rig.path("f")).unwrap();
        assert_eq!(read, "what is given", "obstacle {which}");
        let shown = Tree::read(&rig.merged).unwrap();
        rig.unmount();
        picture(&rig.stack()).assert_same(&shown, Ignore::default());
    }
}

/// The mark of an unsettled file keeps every kernel mount from reading wrong bytes. Kernels that
/// don't check metacopies refuse it as one (EPERM), or, with `metacopy=on`, follow it to the file
/// below.
#[test]
fn an_unsettled_file_is_an_error_for_the_kernel_too() {
    let users: [&[(&str, &str)]; 4] = [
        &[],
        &[("metacopy", "on"), ("redirect_dir", "on")],
        &[("metacopy", "off")],
        &[("userxattr", "")],
    ];
    for options in users {
        for as_lower in [false, true] {
            let Some(mut rig) = Rig::new(1, options) else {
                return;
            };
            rig.scratch.file("l0/f", "what is below");
            let half = rig.scratch.file("u0/f", "half");
            let mark = rig.prefix().xattr(Mark::Metacopy).to_str().unwrap();
            set_xattr(&half, mark, &Metacopy::Unsettled.encode());
            if as_lower {
                rig.push();
            }
            rig.mount();
            let read = fs::read(rig.path("f")).map_err(|error| error.raw_os_error());
            let expected = match Since::CheckedMetacopies.is_here() {
                true => Err(Some(5)),
                false if options.contains(&("metacopy", "on")) => Ok(b"what is below".to_vec()),
                false => Err(Some(1)),
            };
            assert_eq!(read, expected, "{options:?} {as_lower}");
            rig.unmount();
            let refused = rig.stack().lookup(Path::new("f"));
            assert!(matches!(
                refused,
                Err(vellum_union::Error::Unsettled { .. })
            ));
        }
    }
}

/// Read-only unions of uppers in arbitrary order show what the kernel shows.
#[test]
fn uppers_in_any_order() {
    let mut rng = Rng::for_test("uppers_in_any_order");
    for _ in 0..4 {
        let Some(mut rig) = Rig::new(2, common::ALL_ON) else {
            return;
        };
        for lower in rig.lowers.clone() {
            grow(&mut rng, &lower, 20);
        }
        for _ in 0..2 {
            rig.mount();
            Churn {
                links: false,
                ..Churn::ALL
            }
            .run(&mut rng, &rig.merged, 40);
            rig.unmount();
            rig.push();
        }
        rig.lowers.swap(0, 1);
        let overlay = Overlay {
            lowers: rig.lowers.clone(),
            options: rig.options.clone(),
            ..Overlay::default()
        };
        overlay.mount(&rig.scratch, &rig.merged).unwrap();
        let all: Vec<_> = rig.lowers.iter().collect();
        let stack = common::stack_of(&all, &[], rig.dialect());
        agree_below(&stack, &stack.root().unwrap(), &rig.merged);
    }
}

/// Compares both views of a directory. Where the kernel returns EIO, so do we; where we report a
/// dangling redirect, the kernel shows what is left.
fn agree_below(stack: &vellum_union::Stack, dir: &vellum_union::Node, real: &Path) {
    let names: Vec<_> = stack.names(dir).unwrap();
    for name in names {
        let real = real.join(&name);
        match (stack.child(dir, &name), real.symlink_metadata()) {
            (Err(vellum_union::Error::Dangling { .. }), Ok(meta)) => assert!(meta.is_dir()),
            (Err(vellum_union::Error::NoData { .. }), Err(error)) => {
                assert_eq!(error.raw_os_error(), Some(5))
            }
            (Ok(None), Err(error)) => assert_eq!(error.raw_os_error(), Some(2), "{real:?}"),
            (Ok(Some(node)), Ok(meta)) => {
                assert_eq!(
                    (node.stat().mode, node.stat().uid),
                    (meta.mode() & 0o7777, meta.uid()),
                    "{real:?}"
                );
                assert_eq!(node.is_dir(), meta.is_dir());
                if node.is_dir() {
                    agree_below(stack, &node, &real);
                } else if meta.is_file() {
                    let content =
                        vellum_testkit::tree::hash(fs::File::open(&real).unwrap()).unwrap();
                    assert_eq!(entry(&node).content, Some(content));
                }
            }
            (ours, kernel) => panic!("{real:?}: {ours:?} / {kernel:?}"),
        }
    }
}
