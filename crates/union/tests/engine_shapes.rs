//! Unusual unions: read-only, with data-only layers, very deep, and with the options that change
//! what shows.

mod engine_support;

use std::fs;
use std::os::unix::fs::MetadataExt;

use engine_support::{Rig, names, refusal, user, view};
use vellum_format::{Metacopy, Prefix};
use vellum_testkit::kernel::Overlay;
use vellum_testkit::tree::Ignore;
use vellum_testkit::{FsKind, Tree};
use vellum_union::engine::{Engine, NewNode, NodeId};
use vellum_union::{Dialect, DirLayer, Refusal};

#[test]
fn without_an_upper_changes_are_refused() {
    let Some(rig) = Rig::new(2) else { return };
    fs::create_dir(rig.lowers[1].join("d")).unwrap();
    fs::write(rig.lowers[1].join("d/f"), "x").unwrap();
    fs::hard_link(rig.lowers[1].join("d/f"), rig.lowers[1].join("g")).unwrap();
    fs::create_dir(rig.lowers[0].join("d")).unwrap();
    let mut options = rig.options();
    options.upper = None;
    let engine = Engine::open(options).unwrap();
    let who = user(&engine);
    assert_eq!(who.read("d/f").unwrap(), b"x");
    assert_eq!(who.attr("d/f").unwrap().ino, who.attr("g").unwrap().ino);
    assert_eq!(refusal(who.chmod("d/f", 0o600)), Refusal::ReadOnly);
    assert_eq!(refusal(who.unlink("d/f")), Refusal::ReadOnly);
    assert_eq!(refusal(who.mkdir("new")), Refusal::ReadOnly);
    assert_eq!(refusal(who.rename("d", "e")), Refusal::ReadOnly);
    assert!(engine.statfs().unwrap().blocks > 0);
    let ours = view(&engine);
    engine.close().unwrap();
    let overlay = Overlay {
        lowers: rig.lowers.clone(),
        ..Overlay::default()
    };
    let target = rig.scratch.dir("merged");
    overlay.mount(&rig.scratch, &target).unwrap();
    ours.assert_same(&Tree::read(&target).unwrap(), Ignore::default());
}

#[test]
fn data_only_layers_give_data_and_no_names() {
    let Some(rig) = Rig::new(1) else { return };
    let data = rig.scratch.dir("fs/data");
    fs::create_dir(data.join("blobs")).unwrap();
    fs::write(data.join("blobs/one"), "the data").unwrap();
    let low = &rig.lowers[0];
    fs::write(low.join("f"), "").unwrap();
    fs::File::options()
        .write(true)
        .open(low.join("f"))
        .unwrap()
        .set_len(8)
        .unwrap();
    let set = |name: &str, value: &[u8]| {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::lsetxattr(low.join("f"), name, value, flags).unwrap();
    };
    set(
        "trusted.overlay.metacopy",
        &Metacopy::DataBelow(None).encode(),
    );
    set("trusted.overlay.redirect", b"/blobs/one");
    let open = || {
        let mut options = rig.options();
        let dialect = Dialect::kernel(Prefix::Trusted);
        options.data_lowers = vec![std::sync::Arc::new(DirLayer::open(&data, dialect).unwrap())];
        Engine::open(options).unwrap()
    };
    let engine = open();
    let who = user(&engine);
    assert_eq!(who.read("f").unwrap(), b"the data");
    assert_eq!(names(&engine, NodeId::ROOT).unwrap(), ["f"]);
    who.chmod("f", 0o640).unwrap();
    assert_eq!(who.read("f").unwrap(), b"the data");
    engine.close().unwrap();
    let engine = open();
    let who = user(&engine);
    assert_eq!(who.attr("f").unwrap().mode, 0o640);
    assert_eq!(who.read("f").unwrap(), b"the data");
    let held = who.find("f").unwrap();
    engine
        .privileged()
        .write(held.node, 4, b"DATA", false)
        .unwrap();
    drop(held);
    let ours = view(&engine);
    engine.close().unwrap();
    assert_eq!(fs::read(data.join("blobs/one")).unwrap(), b"the data");
    let overlay = Overlay {
        lowers: rig.lowers.clone(),
        data_lowers: vec![data],
        upper: Some((rig.upper.clone(), rig.work.clone())),
        options: Vec::new(),
    };
    let target = rig.scratch.dir("merged");
    let overlay = overlay.option("metacopy", "on").option("index", "on");
    overlay.mount(&rig.scratch, &target).unwrap();
    ours.assert_same(&Tree::read(&target).unwrap(), Ignore::default());
    assert_eq!(fs::read(target.join("f")).unwrap(), b"the DATA");
}

#[test]
fn a_union_may_be_very_deep() {
    let Some(rig) = Rig::new(1) else { return };
    let depth = 2000;
    let name = "d".repeat(100);
    let engine = rig.open();
    let caller = engine_support::ROOT;
    let mut nodes = vec![NodeId::ROOT];
    for _ in 0..depth {
        let at = nodes[nodes.len() - 1];
        let entry = engine
            .privileged()
            .create(at, name.as_ref(), &NewNode::Dir, 0o755, &caller)
            .unwrap();
        nodes.push(entry.node);
    }
    let bottom = nodes[depth];
    let file = engine
        .privileged()
        .create(bottom, "f".as_ref(), &NewNode::File, 0o644, &caller)
        .unwrap();
    engine
        .privileged()
        .write(file.node, 0, b"deep", false)
        .unwrap();
    // The top is moved: everything below moves with it.
    engine
        .privileged()
        .rename(
            NodeId::ROOT,
            name.as_ref(),
            NodeId::ROOT,
            "moved".as_ref(),
            vellum_union::engine::RenameMode::Replace,
        )
        .unwrap();
    assert_eq!(engine.attr(file.node).unwrap().size_bytes, 4);
    // All but the deepest are forgotten, then the deepest too.
    for node in &nodes[1..] {
        engine.forget(*node, 1);
    }
    assert_eq!(engine.live_nodes(), 2);
    assert_eq!(
        engine_support::read_all(&engine, file.node).unwrap(),
        b"deep"
    );
    engine.forget(file.node, 1);
    assert_eq!(engine.live_nodes(), 1);
    engine.close().unwrap();
    // The same, read from lower layers, and copied up from the bottom.
    let mut options = rig.options();
    let lower = rig.upper.clone();
    let (upper, work) = (rig.scratch.dir("fs/u2"), rig.scratch.dir("fs/w2"));
    if let Some(own) = &mut options.upper {
        (own.upper, own.work) = (upper, work);
    }
    let dialect = Dialect::kernel(Prefix::Trusted);
    options.lowers = vec![std::sync::Arc::new(
        DirLayer::open(&lower, dialect).unwrap(),
    )];
    let engine = Engine::open(options).unwrap();
    let mut nodes = vec![NodeId::ROOT];
    for step in 0..depth {
        let at = nodes[nodes.len() - 1];
        let name = if step == 0 { "moved" } else { &name };
        nodes.push(engine.lookup(at, name.as_ref()).unwrap().unwrap().node);
    }
    let file = engine
        .lookup(nodes[depth], "f".as_ref())
        .unwrap()
        .unwrap()
        .node;
    engine.privileged().write(file, 0, b"D", false).unwrap();
    assert_eq!(engine_support::read_all(&engine, file).unwrap(), b"Deep");
    drop(engine);
}

#[test]
fn options_change_what_shows() {
    let Some(mut rig) = Rig::new(2) else { return };
    let other = rig.scratch.file_system("other", FsKind::Ext4, 16).unwrap();
    rig.lowers[1] = other.join("lower");
    fs::create_dir_all(rig.lowers[1].join("d/e")).unwrap();
    fs::write(rig.lowers[1].join("d/f"), "x").unwrap();
    let mut options = rig.options();
    options.static_nlink = true;
    options.ino_32_bits = true;
    options.no_xattrs = true;
    let engine = Engine::open(options).unwrap();
    let who = user(&engine);
    assert_eq!(who.attr("d").unwrap().nlink, 1);
    for path in ["", "d", "d/e", "d/f"] {
        assert!(who.attr(path).unwrap().ino < 1 << 32, "{path}");
    }
    let held = who.find("d/f").unwrap();
    assert_eq!(refusal(engine.xattr_names(held.node)), Refusal::Unsupported);
    drop(held);
    engine.close().unwrap();
    // Without them: the real link count of a directory in a single layer, and long numbers for
    // the second file system.
    let engine = rig.open();
    let who = user(&engine);
    assert_eq!(who.attr("d").unwrap().nlink, 3);
    let own = fs::metadata(rig.lowers[1].join("d/f")).unwrap().ino();
    let shown = who.attr("d/f").unwrap().ino;
    assert!(shown > 1 << 32 && shown & 0xffff_ffff == own, "{shown:x}");
    who.mkdir("d/g").unwrap();
    assert_eq!(who.attr("d").unwrap().nlink, 1, "it is merged now");
    rig.agree(engine);
}
