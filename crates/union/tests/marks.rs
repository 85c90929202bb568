//! Marks on real trees that the kernel did not write: other dialects, records, and malicious marks.

mod common;

use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use common::{set_xattr, stack_of, whiteout};
use vellum_format::Prefix;
use vellum_sys::FileKind;
use vellum_testkit::{Scratch, needs_root};
use vellum_union::{Dialect, DirLayer, Error, Form, Layer, Node, Stack, changes};

const USER: Dialect = Dialect::kernel(Prefix::User);

/// Two layers with marks in `user.overlay.*`, so that no privilege is needed.
fn two(scratch: &Scratch, dialect: Dialect) -> Stack {
    stack_of(&[&scratch.dir("top"), &scratch.dir("low")], &[], dialect)
}

fn get(stack: &Stack, path: &str) -> Option<Node> {
    stack.lookup(Path::new(path)).unwrap()
}

fn read(stack: &Stack, path: &str) -> String {
    let mut text = String::new();
    get(stack, path)
        .unwrap()
        .open_data()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    text
}

fn names(stack: &Stack, path: &str) -> Vec<String> {
    let list = stack.list(Path::new(path)).unwrap();
    list.iter()
        .map(|node| {
            node.path()
                .file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned()
        })
        .collect()
}

/// Returns the error of looking up `path`, with its causes.
#[track_caller]
fn refused(stack: &Stack, path: &str) -> String {
    let error = stack.lookup(Path::new(path)).unwrap_err();
    // A walk gets the same error, and ends.
    assert!(stack.walk().any(|node| node.is_err()));
    assert!(
        changes(stack, Form::Layer)
            .unwrap()
            .any(|change| change.is_err())
    );
    assert!(stack.explain(Path::new(path)).unwrap().outcome.is_err());
    let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
    format!("{error}{}", cause.unwrap_or_default())
}

#[test]
fn an_xattr_whiteout_hides_with_and_without_a_mark_on_its_directory() {
    let scratch = Scratch::new();
    for name in ["a", "b"] {
        scratch.file(format!("low/{name}/f"), "x");
        set_xattr(
            &scratch.file(format!("top/{name}/f"), ""),
            "user.overlay.whiteout",
            b"y",
        );
    }
    set_xattr(&scratch.join("top/a"), "user.overlay.opaque", b"x");
    let stack = two(&scratch, USER);
    assert!(get(&stack, "a/f").is_none() && get(&stack, "b/f").is_none());
    assert_eq!((names(&stack, "a"), names(&stack, "b")), (vec![], vec![]));
    assert_eq!(
        common::lines(&stack, Form::Listing),
        ["C a", "D a/f", "C b", "D b/f"]
    );
}

#[test]
fn whiteouts_by_name_are_a_dialect() {
    let scratch = Scratch::new();
    for file in [
        "low/gone",
        "low/kept",
        "low/d/old",
        "low/e/old",
        "low/both",
        "low/f/old",
        "top/.wh.gone",
    ] {
        scratch.file(file, "low");
    }
    for file in [
        "top/d/.wh..wh..opq",
        "top/d/new",
        "top/.wh.e",
        "top/e/new",
        "top/.wh.both",
        "top/.wh..wh.plnk",
    ] {
        scratch.file(file, "");
    }
    scratch.file("top/both", "top");
    set_xattr(&scratch.dir("top/f"), "user.fuseoverlayfs.opaque", b"y");
    let stack = two(&scratch, USER.with_wh_names());
    assert_eq!(names(&stack, ""), ["both", "d", "e", "f", "kept"]);
    assert_eq!(
        (names(&stack, "d"), names(&stack, "e")),
        (vec!["new".into()], vec!["new".into()])
    );
    assert_eq!(names(&stack, "f"), Vec::<String>::new());
    assert!(get(&stack, "f").unwrap().xattrs().unwrap().is_empty());
    assert_eq!(read(&stack, "both"), "top");
    assert!(get(&stack, "gone").is_none() && get(&stack, ".wh.gone").is_none());
    let listing = [
        "C both", "C d", "A d/new", "D d/old", "C e", "A e/new", "D e/old", "C f", "D f/old",
        "D gone",
    ];
    assert_eq!(common::lines(&stack, Form::Listing), listing);
    // In the kernel's dialect they are ordinary names.
    let stack = two(&scratch, USER);
    assert!(get(&stack, "gone").is_some() && get(&stack, ".wh.gone").is_some());
}

#[test]
fn a_whiteout_of_nothing_is_an_error() {
    let scratch = Scratch::new();
    scratch.file("top/.wh...", "");
    let stack = two(&scratch, USER.with_wh_names());
    let error = stack.walk().last().unwrap().unwrap_err();
    assert!(matches!(error, Error::Mark { .. }), "{error}");
}

#[test]
fn recorded_attributes_and_xattrs_are_shown() {
    let scratch = Scratch::new();
    let device = scratch.file("low/dev", "");
    set_xattr(
        &device,
        "user.containers.override_stat",
        b"0:5:0660:block-8-1",
    );
    set_xattr(&device, "user.vellum.xattr.security.capability", b"cap");
    set_xattr(
        &scratch.file("low/link", "to/where"),
        "user.fuseoverlayfs.override_stat",
        b"1:1:0777:symlink",
    );
    set_xattr(
        &scratch.dir("low/d"),
        "user.containers.override_stat",
        b"7:8:1777:dir",
    );
    let stack = two(&scratch, USER.with_records());
    let node = get(&stack, "dev").unwrap();
    assert_eq!(
        (node.kind(), node.stat().rdev, node.stat().mode),
        (FileKind::Block, (8, 1), 0o660)
    );
    assert_eq!(node.stat().gid, 5);
    let xattrs: Vec<_> = node.xattrs().unwrap().into_keys().collect();
    assert_eq!(xattrs, ["security.capability"]);
    assert!(node.open_data().is_err(), "a device has no data");
    assert_eq!(
        get(&stack, "link").unwrap().read_link().unwrap(),
        "to/where"
    );
    let dir = get(&stack, "d").unwrap();
    assert_eq!((dir.stat().uid, dir.stat().mode), (7, 0o1777));
    // To make another directory look like it, set the stored values.
    let (stat, stored) = dir.stored().unwrap();
    assert_ne!(stat.uid, 7);
    assert_eq!(
        stored.into_keys().collect::<Vec<_>>(),
        ["user.containers.override_stat"]
    );
    // If records are not read, they are ordinary xattrs.
    let plain = get(&two(&scratch, USER), "dev").unwrap();
    assert_eq!(
        (plain.kind(), plain.xattrs().unwrap().len()),
        (FileKind::File, 2)
    );
}

#[test]
fn a_record_of_another_shape_than_its_inode_is_an_error() {
    let scratch = Scratch::new();
    set_xattr(
        &scratch.file("top/f", ""),
        "user.containers.override_stat",
        b"0:0:0755:dir",
    );
    assert!(refused(&two(&scratch, USER.with_records()), "f").contains("override_stat"));
    set_xattr(
        &scratch.join("top/f"),
        "user.containers.override_stat",
        b"root:0:0755",
    );
    assert!(refused(&two(&scratch, USER.with_records()), "f").contains("override_stat"));
}

#[test]
fn marks_are_hidden_and_inner_ones_unescaped() {
    let scratch = Scratch::new();
    let dir = scratch.dir("top/d");
    set_xattr(&dir, "user.overlay.impure", b"y");
    set_xattr(&dir, "user.overlay.unheard-of", b"y");
    set_xattr(&dir, "user.overlay.overlay.opaque", b"y");
    set_xattr(&dir, "user.plain", b"p");
    scratch.file("low/d/shows", "");
    let stack = two(&scratch, USER);
    let xattrs: Vec<_> = get(&stack, "d")
        .unwrap()
        .xattrs()
        .unwrap()
        .into_keys()
        .collect();
    assert_eq!(xattrs, ["user.overlay.opaque", "user.plain"]);
    let (_, stored) = get(&stack, "d").unwrap().stored().unwrap();
    assert_eq!(
        stored.into_keys().collect::<Vec<_>>(),
        ["user.overlay.overlay.opaque", "user.plain"]
    );
    assert_eq!(names(&stack, "d"), ["shows"]);
}

#[test]
fn a_plain_tree_has_no_marks() {
    let scratch = Scratch::new();
    let dir = scratch.dir("top/d");
    set_xattr(&dir, "user.overlay.redirect", b"/../x");
    set_xattr(&scratch.file("top/f", ""), "user.overlay.metacopy", b"1");
    if vellum_testkit::is_root() {
        whiteout(&scratch.join("top/device"));
    }
    let stack = stack_of(&[&scratch.join("top")], &[], Dialect::plain());
    assert_eq!(stack.walk().filter(|node| node.is_err()).count(), 0);
    assert_eq!(get(&stack, "d").unwrap().xattrs().unwrap().len(), 1);
    assert_eq!(get(&stack, "device").is_some(), vellum_testkit::is_root());
}

/// Otherwise an image could read any file of the layers below under any name and mode.
#[test]
fn marks_from_an_archive_are_not_followed() {
    let archive = Dialect::archive(Prefix::User);
    let check = |make: &dyn Fn(&Scratch), mark: &str| {
        let scratch = Scratch::new();
        scratch.file("low/secret", "s");
        scratch.file("low/dir/f", "s");
        make(&scratch);
        let error = refused(&two(&scratch, archive), "x");
        assert!(
            error.contains(&format!("{mark} mark")) && error.contains("/x"),
            "{error}"
        );
        // The same layer, recorded as written by an engine, is read.
        assert!(get(&two(&scratch, USER), "x").is_some());
    };
    let metacopy = |scratch: &Scratch| {
        let file = scratch.file("top/x", "");
        set_xattr(&file, "user.overlay.metacopy", b"");
        set_xattr(&file, "user.overlay.redirect", b"/secret");
    };
    check(&metacopy, "metacopy");
    check(
        &|scratch| set_xattr(&scratch.dir("top/x"), "user.overlay.redirect", b"/dir"),
        "redirect",
    );
}

#[test]
fn an_unsettled_file_is_never_read() {
    let scratch = Scratch::new();
    scratch.file("low/f", "old");
    set_xattr(
        &scratch.file("top/f", "half"),
        "user.overlay.metacopy",
        b"\0",
    );
    assert!(refused(&two(&scratch, USER), "f").contains("unsettled"));
}

#[test]
fn redirects_made_to_do_harm_are_errors() {
    let check = |value: &[u8], expect: &str| {
        let scratch = Scratch::new();
        scratch.file("low/file", "f");
        scratch.file("low/outside/f", "f");
        std::os::unix::fs::symlink("outside", scratch.join("low/link")).unwrap();
        std::os::unix::fs::symlink("/etc", scratch.join("low/etc")).unwrap();
        set_xattr(&scratch.dir("top/x"), "user.overlay.redirect", value);
        let error = refused(&two(&scratch, USER), "x");
        assert!(error.contains("/x") && error.contains(expect), "{error}");
        // The same on a file.
        let scratch = Scratch::new();
        scratch.file("low/outside/f", "f");
        let file = scratch.file("top/x", "");
        set_xattr(&file, "user.overlay.metacopy", b"");
        set_xattr(&file, "user.overlay.redirect", value);
        let error = refused(&two(&scratch, USER), "x");
        assert!(error.contains("/x") && error.contains("mark"), "{error}");
    };
    check(b"/../outside", "`..`");
    check(b"..", "`..`");
    check(b"", "empty");
    check(b"/", "empty");
    check(b"a/b", "slash");
    check(b"/a\0b", "NUL");
    check(&[b"/".as_slice(), &[b'n'; 300]].concat(), "300 bytes");
    check(b"/file", "no layer below has a directory");
    check(b"/link", "no layer below has a directory");
    check(b"/link/f", "no layer below has a directory");
    check(b"/etc/ssl", "no layer below has a directory");
    check(b"/nowhere", "no layer below has a directory");
    check(b"x", "no layer below has a directory");
}

#[test]
fn a_redirect_longer_than_a_page_is_an_error() {
    let scratch = Scratch::new();
    let long = [b"/d".repeat(2048), b"/e".to_vec()].concat();
    let dir = scratch.dir("top/x");
    let empty = rustix::fs::XattrFlags::empty();
    // ext4 may have no space for it; then no redirect of that length can exist either.
    match rustix::fs::setxattr(&dir, "user.overlay.redirect", &long, empty) {
        Ok(()) => assert!(refused(&two(&scratch, USER), "x").contains("the limit is 4096")),
        Err(errno) => vellum_testkit::untested("redirect over 4096 bytes", errno),
    }
}

/// Directories that redirect to each other: each is searched in lower layers only, so the search
/// ends.
#[test]
fn redirects_in_a_ring_end() {
    let scratch = Scratch::new();
    let layers: Vec<_> = (0..20)
        .map(|index| scratch.dir(format!("l{index}")))
        .collect();
    for layer in &layers {
        for (name, to) in [("a", "/b"), ("b", "/c"), ("c", "/a")] {
            set_xattr(
                &scratch.dir(layer.join(name)),
                "user.overlay.redirect",
                to.as_bytes(),
            );
        }
    }
    let stack = stack_of(&layers.iter().collect::<Vec<_>>(), &[], USER);
    assert!(refused(&stack, "a").contains("redirect"));
    // With a directory at the end of every chain it is an ordinary directory.
    let lowest = scratch.dir("lowest");
    for name in ["a", "b", "c"] {
        scratch.file(lowest.join(name).join(name), "");
    }
    let stack = stack_of(
        &layers.iter().chain([&lowest]).collect::<Vec<_>>(),
        &[],
        USER,
    );
    assert_eq!(names(&stack, "a"), ["c"], "20 steps along the ring");
}

#[test]
fn a_metacopy_without_data_is_an_error() {
    let scratch = Scratch::new();
    scratch.file("low/dir/f", "");
    set_xattr(&scratch.file("top/dir", ""), "user.overlay.metacopy", b"");
    set_xattr(
        &scratch.file("top/nothing", ""),
        "user.overlay.metacopy",
        &[0, 4, 0, 0],
    );
    let stack = two(&scratch, USER);
    assert!(refused(&stack, "dir").contains("something else is in its place"));
    assert!(refused(&stack, "nothing").contains("no layer below has its data"));
    set_xattr(
        &scratch.file("top/nothing", ""),
        "user.overlay.metacopy",
        &[0, 5, 0, 0],
    );
    assert!(refused(&stack, "nothing").contains("malformed metacopy mark"));
}

#[test]
fn unknown_opaque_values_are_errors() {
    let scratch = Scratch::new();
    set_xattr(&scratch.dir("top/x"), "user.overlay.opaque", b"maybe");
    assert!(refused(&two(&scratch, USER), "x").contains("malformed opaque mark"));
}

#[test]
fn data_only_layers_give_data_and_no_names() {
    let scratch = Scratch::new();
    let (top, data) = (scratch.dir("top"), scratch.dir("data"));
    scratch.file("data/deep/blob", "the data");
    scratch.dir("data/dir");
    std::os::unix::fs::symlink("deep/blob", data.join("link")).unwrap();
    for (name, to) in [
        ("f", "/deep/blob"),
        ("link", "/link"),
        ("dir", "/dir"),
        ("sibling", "deep"),
    ] {
        let file = scratch.file(top.join(name), "");
        fs::File::options()
            .write(true)
            .open(&file)
            .unwrap()
            .set_len(8)
            .unwrap();
        set_xattr(&file, "user.overlay.metacopy", b"");
        set_xattr(&file, "user.overlay.redirect", to.as_bytes());
    }
    let stack = stack_of(&[&top], &[data], USER);
    assert_eq!(read(&stack, "f"), "the data");
    assert!(get(&stack, "deep").is_none());
    for name in ["link", "dir", "sibling"] {
        assert!(stack.lookup(Path::new(name)).is_err(), "{name}");
    }
}

#[test]
fn an_explanation_names_every_layer_that_was_asked() {
    if !needs_root("whiteouts") {
        return;
    }
    let scratch = Scratch::new();
    let layers = ["top", "middle", "low"].map(|name| scratch.dir(name));
    scratch.file("low/d/f", "");
    scratch.dir("middle/d");
    whiteout(&scratch.join("middle/d/f"));
    scratch.dir("top/d");
    let stack = stack_of(
        &layers.iter().collect::<Vec<_>>(),
        &[],
        Dialect::kernel(Prefix::Trusted),
    );
    let explanation = stack.explain(Path::new("d/f")).unwrap();
    assert!(explanation.outcome.unwrap().is_none());
    let says: Vec<_> = explanation
        .statements
        .iter()
        .map(|said| (said.layer, said.says.as_str()))
        .collect();
    assert_eq!(
        says,
        [
            (0, "does not exist"),
            (1, "hidden by a whiteout (device 0:0)")
        ]
    );
    // A path with a missing parent is explained as far as it exists.
    assert_eq!(
        stack.explain(Path::new("d/f/deeper")).unwrap().path,
        Path::new("d/f")
    );
}

#[test]
fn invalid_paths_are_refused() {
    let scratch = Scratch::new();
    scratch.file("top/f", "");
    let stack = two(&scratch, USER);
    assert!(matches!(
        stack.lookup(Path::new("a/../f")),
        Err(Error::BadPath { .. })
    ));
    assert!(get(&stack, "/./f").is_some());
    assert!(get(&stack, "f/below").is_none());
    assert!(
        get(&stack, &"n".repeat(300)).is_none(),
        "no name is that long"
    );
    assert!(matches!(
        stack.list(Path::new("f")),
        Err(Error::NotADirectory { .. })
    ));
    assert!(matches!(Stack::new(Vec::new()), Err(Error::NoLayers)));
    let file = get(&stack, "f").unwrap();
    assert!(matches!(file.read_link(), Err(Error::WrongKind { .. })));
    let root = get(&stack, "").unwrap();
    assert!(matches!(root.open_data(), Err(Error::WrongKind { .. })));
}

/// Locked by tests that count the descriptors of this process.
static COUNTING: std::sync::Mutex<()> = std::sync::Mutex::new(());

/// Paths deeper than the kernel's limit, with few descriptors.
#[test]
fn depth_costs_no_descriptors() {
    let scratch = Scratch::new();
    let (top, low) = (scratch.dir("top"), scratch.dir("low"));
    for (root, file) in [(&top, "new"), (&low, "old")] {
        let mut dir = vellum_sys::Dir::open(root).unwrap();
        for _ in 0..1500 {
            dir.mkdir("directory", 0o755).unwrap();
            dir = dir.open_dir("directory").unwrap();
        }
        dir.create_file(file, 0o644).unwrap();
    }
    let _alone = COUNTING.lock();
    let fds = || fs::read_dir("/proc/self/fd").unwrap().count();
    let stack = stack_of(&[&top, &low], &[], USER);
    let before = fds();
    let mut most = 0;
    let mut count = 0;
    for node in stack.walk() {
        count += 1;
        let node = node.unwrap();
        most = most.max(if count % 100 == 0 { fds() } else { 0 });
        if node.path().ends_with("old") {
            assert_eq!(node.layer(), 1);
            node.open_data().unwrap();
        }
    }
    assert_eq!(count, 1 + 1500 + 2);
    // Other tests of this process open files too.
    assert!(most < before + 150, "{before} before, {most} at most");
    let found = changes(&stack, Form::Listing)
        .unwrap()
        .map(Result::unwrap)
        .last()
        .unwrap();
    assert!(found.path.ends_with("new"));
}

/// As many layers as the kernel allows, each with a share of every directory, within the usual
/// limit of descriptors.
#[test]
fn five_hundred_layers_are_read_with_few_descriptors() {
    let scratch = Scratch::new();
    let layers: Vec<_> = (0..500)
        .map(|index| {
            scratch.file(format!("l{index}/a/b/c/f{index}"), "");
            scratch.join(format!("l{index}"))
        })
        .collect();
    let _alone = COUNTING.lock();
    let fds = || fs::read_dir("/proc/self/fd").unwrap().count();
    let before = fds();
    let stack = stack_of(&layers.iter().collect::<Vec<_>>(), &[], USER);
    let mut most = 0;
    let count = stack
        .walk()
        .inspect(|_| most = most.max(fds()))
        .map(Result::unwrap)
        .count();
    assert_eq!(count, 1 + 3 + 500);
    assert_eq!(
        changes(&stack, Form::Listing)
            .unwrap()
            .map(Result::unwrap)
            .count(),
        4
    );
    // 500 roots and the cache; other tests of this process open files too.
    assert!(
        most < before + 500 + 256 + 100,
        "{before} before, {most} at most"
    );
}

/// A container can create a tree of any depth: reading it neither overflows the stack nor uses all
/// memory.
#[test]
fn a_bottomless_tree_is_an_error() {
    let scratch = Scratch::new();
    let top = scratch.dir("top");
    let mut dir = vellum_sys::Dir::open(&top).unwrap();
    let name = "d".repeat(200);
    for _ in 0..90 {
        dir.mkdir(&name, 0o755).unwrap();
        dir = dir.open_dir(&name).unwrap();
    }
    let stack = stack_of(&[&top], &[], USER);
    let error = stack.walk().last().unwrap().unwrap_err();
    assert!(matches!(error, Error::TooDeep { .. }), "{error}");
    assert!(error.to_string().contains(&name));
    assert!(matches!(
        changes(&stack, Form::Layer).unwrap().last().unwrap(),
        Err(Error::TooDeep { .. })
    ));
    // A far longer chain of handles is dropped without recursion.
    let mut handle = stack.layers()[0].root();
    for _ in 0..500_000 {
        handle = handle.subdir(OsStr::new("d"));
    }
    drop(handle);
}

#[test]
fn a_directory_without_permission_is_an_error_that_names_it() {
    let scratch = Scratch::new();
    scratch.file("top/closed/f", "");
    fs::set_permissions(
        scratch.join("top/closed"),
        fs::Permissions::from_mode(0o000),
    )
    .unwrap();
    let layer: Arc<dyn Layer> = Arc::new(DirLayer::open(&scratch.join("top"), USER).unwrap());
    let stack = Stack::new(vec![layer]).unwrap();
    let looked = stack.lookup(Path::new("closed/f"));
    fs::set_permissions(
        scratch.join("top/closed"),
        fs::Permissions::from_mode(0o700),
    )
    .unwrap();
    match looked {
        // Root may read anything.
        Ok(Some(_)) if rustix::process::geteuid().is_root() => {}
        other => assert!(format!("{other:?}").contains("closed"), "{other:?}"),
    }
}
