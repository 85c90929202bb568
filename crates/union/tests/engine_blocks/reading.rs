//! Who can't read them: the kernel, and Vellum without the map, with another lower file, or with a
//! damaged map.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

use vellum_format::Prefix;
use vellum_testkit::FsKind;
use vellum_testkit::kernel::Overlay;
use vellum_testkit::rng::Rng;
use vellum_union::engine::{Engine, NodeId};
use vellum_union::{Error, Form, Node, Result, Stack, changes};

use super::rig::{
    block_options, content, find, layer, lower, maps, of, open, read, resize, settle_now, stack,
};
use crate::engine_support::Rig;

#[test]
fn no_kernel_mount_serves_an_unsettled_file() {
    for prefix in [Prefix::Trusted, Prefix::User] {
        let Some(rig) = Rig::on(FsKind::Ext4, 1) else {
            return;
        };
        lower(&rig, "f", 200_000);
        let mut options = block_options(&rig);
        options.upper.as_mut().unwrap().prefix = prefix;
        let engine = Engine::open(options).unwrap();
        let node = find(&engine, "f");
        engine
            .privileged()
            .write(node, 70_000, b"new", false)
            .unwrap();
        engine.close().unwrap();
        let target = rig.scratch.dir("kernel");
        let overlay = |work: &Path| Overlay {
            lowers: rig.lowers.clone(),
            data_lowers: Vec::new(),
            upper: Some((rig.upper.clone(), work.to_owned())),
            options: match prefix {
                Prefix::Trusted => Vec::new(),
                Prefix::User => vec![("userxattr".to_owned(), String::new())],
            },
        };
        let with = |overlay: Overlay, set: &[(&str, &str)]| {
            let add = |overlay: Overlay, (key, value): &(&str, &str)| overlay.option(key, value);
            set.iter().fold(overlay, add)
        };
        let sets: &[&[(&str, &str)]] = match prefix {
            Prefix::Trusted => &[
                &[],
                &[("metacopy", "off")],
                &[("metacopy", "on")],
                &[
                    ("metacopy", "on"),
                    ("redirect_dir", "on"),
                    ("index", "on"),
                    ("xino", "on"),
                ],
                &[("redirect_dir", "nofollow")],
                &[
                    ("redirect_dir", "off"),
                    ("index", "off"),
                    ("metacopy", "off"),
                ],
                &[("volatile", "")],
            ],
            Prefix::User => &[&[], &[("xino", "on")], &[("volatile", "")]],
        };
        for set in sets {
            // Its own work directory is refused.
            let own = with(overlay(&rig.work), set).mount(&rig.scratch, &target);
            assert!(own.is_err(), "{set:?}");
            // With a fresh one, or as a lower layer, the mount succeeds, and the file is an error.
            let fresh = rig.scratch.dir("fs/fresh");
            with(overlay(&fresh), set)
                .mount(&rig.scratch, &target)
                .unwrap();
            refused(&target.join("f"), set);
            rig.scratch.unmount(&target);
            std::fs::remove_dir_all(&fresh).unwrap();
            let other = rig.scratch.dir("fs/other");
            let fresh = rig.scratch.dir("fs/fresh");
            let mut as_lower = overlay(&fresh);
            as_lower.lowers = [std::slice::from_ref(&rig.upper), &rig.lowers[..]].concat();
            as_lower.upper = Some((other.clone(), fresh.clone()));
            with(as_lower.clone(), set)
                .mount(&rig.scratch, &target)
                .unwrap();
            refused(&target.join("f"), set);
            rig.scratch.unmount(&target);
            if !set
                .iter()
                .any(|(key, _)| *key == "volatile" || *key == "index")
            {
                as_lower.upper = None;
                with(as_lower, set).mount(&rig.scratch, &target).unwrap();
                refused(&target.join("f"), set);
                rig.scratch.unmount(&target);
            }
            std::fs::remove_dir_all(&fresh).unwrap();
            std::fs::remove_dir_all(&other).unwrap();
        }
    }
}

#[track_caller]
fn refused(path: &Path, set: &[(&str, &str)]) {
    let error = content(path).expect_err("the kernel serves it");
    assert_eq!(
        error.raw_os_error(),
        Some(rustix::io::Errno::IO.raw_os_error()),
        "{set:?}"
    );
}

#[test]
fn another_lower_file_is_an_error_and_never_read() {
    let Some(rig) = Rig::on(FsKind::Ext4, 1) else {
        return;
    };
    let bytes = lower(&rig, "f", 200_000);
    let engine = open(&rig);
    engine
        .privileged()
        .write(find(&engine, "f"), 0, b"new", false)
        .unwrap();
    engine.close().unwrap();
    let path = rig.lowers[0].join("f");
    let aside = rig.lowers[0].join("aside");
    let expect = |why: &str| {
        let engine = open(&rig);
        let node = find(&engine, "f");
        let error = engine.read(node, 100_000, &mut [0; 100]).unwrap_err();
        let text = error.to_string();
        assert!(
            matches!(error, Error::Blocks { .. }) && text.contains(why),
            "{text}"
        );
        let error = engine
            .privileged()
            .write(node, 100_000, b"x", false)
            .unwrap_err();
        assert!(matches!(error, Error::Blocks { .. }), "{error:?}");
        engine.close().unwrap();
        assert!(matches!(
            settle_now(&rig).unwrap_err(),
            Error::Blocks { .. }
        ));
    };
    // An identical copy is another file.
    std::fs::rename(&path, &aside).unwrap();
    let status = std::process::Command::new("cp")
        .args(["-a", "--reflink=never"])
        .args([&aside, &path])
        .status();
    assert!(status.unwrap().success());
    expect("replaced");
    std::fs::write(&path, &bytes[..1000]).unwrap();
    expect("size");
    std::fs::remove_file(&path).unwrap();
    let engine = open(&rig);
    let error = engine
        .read(find(&engine, "f"), 100_000, &mut [0; 10])
        .unwrap_err();
    assert!(error.to_string().contains("in no layer below"), "{error}");
    engine.close().unwrap();
    std::fs::rename(&aside, &path).unwrap();
    let engine = open(&rig);
    assert_eq!(
        read(&engine, find(&engine, "f"), 100_000, 9),
        &bytes[100_000..100_009]
    );
    engine.close().unwrap();
    std::fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .write_all_at(b"changed", 50)
        .unwrap();
    expect("changed");
}

#[test]
fn a_damaged_map_is_an_error_or_makes_no_difference() {
    let Some(rig) = Rig::on(FsKind::Ext4, 1) else {
        return;
    };
    let mut bytes = lower(&rig, "f", 200_000);
    let engine = open(&rig);
    let node = find(&engine, "f");
    for at in [0, 50_000, 120_000] {
        engine.privileged().write(node, at, b"new", false).unwrap();
        bytes[at as usize..at as usize + 3].copy_from_slice(b"new");
        engine.sync(node, true).unwrap();
    }
    resize(&engine, node, 190_000);
    bytes.truncate(190_000);
    engine.close().unwrap();
    let map = maps(&rig).pop().unwrap();
    let good = std::fs::read(&map).unwrap();
    let mut rng = Rng::for_test("damaged maps");
    let mut errors = 0;
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1 << rng.below(8);
        std::fs::write(&map, &bad).unwrap();
        let stack = stack(&rig);
        let node = stack.lookup(Path::new("f")).unwrap().unwrap();
        match node.open_data() {
            Ok(mut data) => {
                let mut got = Vec::new();
                data.read_to_end(&mut got).unwrap();
                assert!(got == bytes, "byte {at}");
            }
            Err(Error::Blocks { .. }) => errors += 1,
            Err(other) => panic!("{other:?}"),
        }
    }
    // The others are in barriers, which have two copies.
    assert!(errors > good.len() / 4, "{errors} of {}", good.len());
    std::fs::remove_file(&map).unwrap();
    let node = stack(&rig).lookup(Path::new("f")).unwrap().unwrap();
    let error = node.open_data().unwrap_err();
    assert!(
        error.to_string().contains("not in this work directory"),
        "{error}"
    );
    std::fs::write(&map, &good).unwrap();
    assert!(settle_now(&rig).unwrap().complete);
    assert!(std::fs::read(rig.upper.join("f")).unwrap() == bytes);
}

#[test]
fn changes_are_read_through_the_map() {
    let Some(rig) = Rig::on(FsKind::Ext4, 1) else {
        return;
    };
    let mut bytes = lower(&rig, "f", 200_000);
    let engine = open(&rig);
    engine
        .privileged()
        .write(find(&engine, "f"), 100, b"new", false)
        .unwrap();
    bytes[100..103].copy_from_slice(b"new");
    // Also while the engine is open.
    for _ in 0..2 {
        let changed: Vec<_> = changes(&stack(&rig), Form::Layer)
            .unwrap()
            .collect::<Result<_>>()
            .unwrap();
        assert_eq!(changed.len(), 1);
        let node: &Node = changed[0].node.as_ref().unwrap();
        let mut data = node.open_data().unwrap();
        assert!(data.as_file().is_none());
        let mut got = Vec::new();
        data.read_to_end(&mut got).unwrap();
        assert!(got == bytes);
    }
    engine.close().unwrap();
    // Without the maps, and as a lower layer, it is an error that names it.
    let no_maps = Stack::new(vec![layer(&rig.upper), layer(&rig.lowers[0])]).unwrap();
    let error = no_maps.lookup(Path::new("f")).unwrap_err();
    assert!(matches!(error, Error::Unsettled { .. }), "{error:?}");
    let lowers = [rig.upper.clone(), rig.lowers[0].clone()];
    let (upper, work) = (rig.scratch.dir("fs/u2"), rig.scratch.dir("fs/w2"));
    let engine = Engine::open(of(&lowers, &upper, &work)).unwrap();
    let error = engine.lookup(NodeId::ROOT, OsStr::new("f")).unwrap_err();
    assert!(matches!(error, Error::Unsettled { .. }), "{error:?}");
}
