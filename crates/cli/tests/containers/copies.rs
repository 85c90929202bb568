//! Files copied in and out of containers.

use std::io::{Seek, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;
use vellum_image::{LayerWriter, TarEntry, TarKind};
use vellum_sys::{Dir, RenameFlags, Timespec};

use super::changes::text;
use crate::support::{World, archive_of_many, layer, small};

#[test]
fn cp_goes_in_and_out_by_dockers_rules() {
    let Some(world) = World::new() else { return };
    world.ok(&["load", text(&small(&world.scratch))]);
    world.ok(&["create", "--name", "box", "small:1"]);
    world.scratch.file("from/sub/a", "a\n");
    let from = world.scratch.join("from");
    symlink("sub/a", from.join("link")).unwrap();
    std::fs::hard_link(from.join("sub/a"), from.join("sub/b")).unwrap();
    world.ok(&["cp", text(&from), "box:/fresh"]);
    world.ok(&["cp", text(&from), "box:/etc"]);
    world.ok(&["cp", &format!("{}/.", text(&from)), "box:/dir"]);
    world.ok(&["cp", &format!("{}/link", text(&from)), "box:/etc/as-link"]);
    world.ok(&[
        "cp",
        "-L",
        &format!("{}/link", text(&from)),
        "box:/etc/as-file",
    ]);
    // It was not mounted and is not.
    assert_eq!(world.json(&["mount", "--json"]), json!([]));
    let tree = world.mounted("box");
    for file in ["fresh/sub/a", "etc/from/sub/a", "dir/sub/a", "etc/as-file"] {
        assert_eq!(
            std::fs::read_to_string(tree.join(file)).unwrap(),
            "a\n",
            "{file}"
        );
    }
    assert_eq!(
        tree.join("fresh/sub/a").metadata().unwrap().ino(),
        tree.join("fresh/sub/b").metadata().unwrap().ino()
    );
    assert!(
        tree.join("etc/as-link")
            .symlink_metadata()
            .unwrap()
            .is_symlink()
    );
    assert_eq!(
        std::fs::read_to_string(tree.join("dir/inner")).unwrap(),
        "inner\n",
        "directories are filled up"
    );

    let out = world.scratch.join("out");
    world.ok(&["cp", "box:/etc/top", text(&out)]);
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "top\n");
    let dir = world.scratch.dir("outdir");
    world.ok(&["cp", "box:/fresh/.", text(&dir)]);
    assert_eq!(std::fs::read_to_string(dir.join("sub/a")).unwrap(), "a\n");
    let tar = world
        .command(&["cp", "box:/fresh", "-"])
        .output()
        .unwrap()
        .stdout;
    let back = world.run_with_input(&["cp", "-", "box:/etc/from"], &tar);
    assert_eq!(back.code, 0, "{back:?}");
    assert_eq!(
        std::fs::read_to_string(tree.join("etc/from/fresh/sub/a")).unwrap(),
        "a\n"
    );

    for (args, expect) in [
        (["cp", "box:/nope", "x"], "cannot find box:/nope"),
        (
            ["cp", text(&from), "box:/etc/top"],
            "cannot overwrite non-directory",
        ),
        (
            ["cp", text(&out), "box:/no/such/dir"],
            "cannot find box:/no/such/dir",
        ),
        (["cp", text(&out), "box:/etc/top/"], "there is no directory"),
    ] {
        let said = world.run(&args);
        assert!(
            said.code != 0 && said.err.contains(expect),
            "{args:?}: {said:?}"
        );
    }
}

#[test]
fn cp_never_leaves_the_containers_root() {
    let Some(world) = World::new() else { return };
    world.ok(&["load", text(&small(&world.scratch))]);
    world.ok(&["create", "--name", "box", "small:1"]);
    let tree = world.mounted("box");
    let outside = world.scratch.dir("outside");
    std::fs::write(outside.join("secret"), "secret").unwrap();
    symlink(&outside, tree.join("absolute")).unwrap();
    let up = "../".repeat(40) + text(&outside).trim_start_matches('/');
    symlink(&up, tree.join("climbing")).unwrap();
    symlink("/proc/self/root", tree.join("magic")).unwrap();
    let file = world.scratch.file("in", "in");
    for link in ["absolute", "climbing", "magic"] {
        // Inside the container these links lead nowhere.
        assert_ne!(
            world
                .run(&["cp", text(&file), &format!("box:/{link}/planted")])
                .code,
            0,
            "{link}"
        );
        assert_ne!(
            world
                .run(&[
                    "cp",
                    &format!("box:/{link}/secret"),
                    text(&world.scratch.join("stolen"))
                ])
                .code,
            0
        );
    }
    let above = format!("box:/{}{}/secret", "../".repeat(40), text(&outside));
    assert_ne!(
        world
            .run(&["cp", &above, text(&world.scratch.join("stolen"))])
            .code,
        0
    );
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
    assert!(!world.scratch.join("stolen").exists());
    // A link to the container's own root leads to the container's own root.
    symlink("/", tree.join("self")).unwrap();
    world.ok(&["cp", text(&file), "box:/self/etc/landed"]);
    assert_eq!(
        std::fs::read_to_string(tree.join("etc/landed")).unwrap(),
        "in"
    );
    assert!(!Path::new("/etc/landed").exists());
}

/// A container's tree to be copied to: links, a directory with a mode of its own, files in the way.
fn with_links(world: &World) -> PathBuf {
    let layer = layer()
        .owned("data", TarKind::Directory, (0o2751, 7, 8), b"")
        .file("data/keep", "keep")
        .dir("etc")
        .file("etc/conf", "conf")
        .symlink("lib", "usr/lib")
        .dir("usr")
        .dir("usr/lib")
        .file("usr/lib/libc", "libc")
        .done();
    let archive = world.scratch.join("links.tar");
    archive_of_many(&archive, &[("links:1".into(), vec![&layer], json!({}))]);
    world.ok(&["load", text(&archive)]);
    world.ok(&["create", "--name", "box", "links:1"]);
    world.mounted("box")
}

/// A tar of names: a directory where one ends in a slash, else a file with its own name in it.
fn names(names: &[&str]) -> Vec<u8> {
    let mut layer = LayerWriter::of_files(Vec::new());
    for name in names {
        let (kind, data) = match name.strip_suffix('/') {
            Some(_) => (TarKind::Directory, ""),
            None => {
                let size_bytes = name.len() as u64;
                (TarKind::File { size_bytes }, *name)
            }
        };
        let entry = TarEntry {
            path: name.trim_end_matches('/').into(),
            kind,
            mode: 0o700,
            uid: 1,
            gid: 1,
            mtime: Timespec::new(1_400_000_000, 0),
            xattrs: Vec::new(),
        };
        layer.append(&entry, &mut data.as_bytes()).unwrap();
    }
    layer.finish().unwrap()
}

#[test]
fn cp_destroys_nothing_it_was_not_told_to() {
    for flags in [
        &["--engine", "auto"][..],
        &["--engine", "vellum"],
        &["--storage-driver", "native"],
    ] {
        let Some(world) = World::with(flags) else {
            return;
        };
        let tree = with_links(&world);
        let tar = |names_in_it: &[&str], to: &str| {
            world.run_with_input(&["cp", "-", &format!("box:{to}")], &names(names_in_it))
        };
        assert_eq!(tar(&["lib/new"], "/").code, 0);
        assert_eq!(tar(&["x"], "/lib").code, 0);
        for (wrong, to, said) in [
            (&["data"][..], "/", "cannot overwrite directory"),
            (
                &["conf/", "conf/x"],
                "/etc",
                "cannot overwrite non-directory",
            ),
            (&["lib/", "lib/x"], "/", "cannot overwrite non-directory"),
            (&["x"], "/etc/conf", "must be a directory"),
            (&["x"], "/none", "must be a directory"),
        ] {
            let got = tar(wrong, to);
            assert!(
                got.code != 0 && got.err.contains(said),
                "{wrong:?}: {got:?}"
            );
        }
        // Names that mean deletions in a layer.
        assert_eq!(tar(&[".wh..wh..opq", ".wh.keep"], "/data").code, 0);
        let files = world.scratch.dir(format!("files{}", flags[1]));
        for (dir, file) in [("into", "data"), ("into", "lib/x"), ("over", "etc/conf/x")] {
            let path = files.join(dir).join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        }
        for dir in ["into/.", "over/."] {
            let got = world.run(&["cp", text(&files.join(dir)), "box:/"]);
            assert!(
                got.code != 0 && got.err.contains("cannot overwrite"),
                "{got:?}"
            );
        }
        // The directory that is copied to stays as it is, whatever is copied into it.
        let closed = world.scratch.dir(format!("closed{}", flags[1]));
        std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o700)).unwrap();
        world.ok(&["cp", &format!("{}/.", text(&closed)), "box:/data"]);

        for from in ["box:/", "box:/data/."] {
            world.ok(&["cp", from, text(&closed)]);
            let mode = closed.metadata().unwrap().mode() & 0o7777;
            assert_eq!(mode, 0o700, "{from}");
        }

        assert_eq!(tree.join("lib").read_link().unwrap(), Path::new("usr/lib"));
        let read = |path: &str| std::fs::read_to_string(tree.join(path)).unwrap();
        for (path, content) in [
            ("lib/libc", "libc"),
            ("usr/lib/new", "lib/new"),
            ("usr/lib/x", "x"),
            ("data/keep", "keep"),
            ("data/.wh.keep", ".wh.keep"),
            ("data/.wh..wh..opq", ".wh..wh..opq"),
            ("etc/conf", "conf"),
        ] {
            assert_eq!(read(path), content, "{flags:?} {path}");
        }
        let data = tree.join("data").metadata().unwrap();
        assert_eq!(
            (data.mode() & 0o7777, data.uid(), data.gid()),
            (0o2751, 7, 8)
        );
        // And out again, under the same names.
        let out = world.command(&["cp", "box:/data", "-"]).output().unwrap();
        let listed = listing(&out.stdout);
        assert_eq!(
            listed,
            ["data/", "data/.wh..wh..opq", "data/.wh.keep", "data/keep"],
            "{flags:?}"
        );
    }
}

/// What GNU tar lists.
fn listing(tar: &[u8]) -> Vec<String> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(tar).unwrap();
    file.rewind().unwrap();
    let out = Command::new("tar").arg("-t").stdin(file).output().unwrap();
    let names = String::from_utf8(out.stdout).unwrap();
    names.lines().map(str::to_owned).collect()
}

#[test]
fn cp_keeps_hard_links_across_directories() {
    let Some(world) = World::new() else { return };
    let tree = with_links(&world);
    world.scratch.file("src/a/one", "one");
    let src = world.scratch.dir("src/b").parent().unwrap().to_owned();
    for other in ["b/two", "three"] {
        std::fs::hard_link(src.join("a/one"), src.join(other)).unwrap();
    }
    let inode = |path: PathBuf| path.metadata().unwrap().ino();
    let linked = |dir: PathBuf| {
        let one = inode(dir.join("a/one"));
        assert_eq!(
            [inode(dir.join("b/two")), inode(dir.join("three"))],
            [one; 2],
            "{dir:?}"
        );
    };
    world.ok(&["cp", text(&src), "box:/etc/src"]);
    linked(tree.join("etc/src"));
    // Once more, over existing files.
    world.ok(&["cp", &format!("{}/.", text(&src)), "box:/etc/src"]);
    linked(tree.join("etc/src"));
    let tar = world
        .command(&["cp", "box:/etc/src", "-"])
        .output()
        .unwrap()
        .stdout;
    assert_eq!(world.run_with_input(&["cp", "-", "box:/lib"], &tar).code, 0);
    linked(tree.join("usr/lib/src"));
    let out = world.scratch.join("out");
    world.ok(&["cp", "box:/lib/src", text(&out)]);
    linked(out);
    world.ok(&["cp", "box:/lib/src", "box:/data/copy"]);
    linked(tree.join("data/copy"));
}

#[test]
fn a_tar_without_an_end_is_reported_and_a_truncated_entry_refused() {
    let Some(world) = World::new() else { return };
    let tree = with_links(&world);
    let whole = names(&["one", "two"]);
    let unmarked = &whole[..whole.len() - 1024];
    let got = world.run_with_input(&["cp", "-", "box:/data"], unmarked);
    assert_eq!(
        (got.code, got.err.matches("no end marker").count()),
        (0, 1),
        "{got:?}"
    );
    assert!(tree.join("data/two").exists());
    for cut in [510, 512, 512 + 100] {
        std::fs::remove_file(tree.join("data/one")).unwrap();
        let cut = &unmarked[..unmarked.len() - cut];
        let got = world.run_with_input(&["cp", "-", "box:/data"], cut);
        // The content announced by a header is missing, in part or entirely.
        assert!(got.code != 0 && got.err.contains("cut short"), "{got:?}");
        assert!(tree.join("data/one").exists());
    }
    let got = world.run_with_input(&["cp", "-", "box:/data"], &whole);
    assert_eq!((got.code, got.err.as_str()), (0, ""));
}

#[test]
fn nothing_is_copied_onto_or_into_itself() {
    let Some(world) = World::new() else { return };
    let tree = with_links(&world);
    world.ok(&["cp", "box:/etc/conf", "box:/etc/conf"]);
    world.ok(&["cp", "box:/etc/conf", "box:/etc"]);
    assert_eq!(
        std::fs::read_to_string(tree.join("etc/conf")).unwrap(),
        "conf"
    );
    for (from, to) in [
        ("box:/etc", "box:/etc"),
        ("box:/etc", "box:/etc/deeper"),
        ("box:/etc/.", "box:/etc"),
        ("box:/.", "box:/etc"),
        ("/", "box:/etc"),
        (text(&tree), "box:/etc"),
    ] {
        let got = world.run(&["cp", from, to]);
        assert!(got.err.contains("into itself"), "{from} {to}: {got:?}");
    }
    assert_eq!(std::fs::read_dir(tree.join("etc")).unwrap().count(), 1);
}

#[test]
fn holes_of_a_tar_stay_holes_in_the_container() {
    let Some(world) = World::new() else { return };
    let tree = with_links(&world);
    let sparse = world.scratch.file("sparse/file", "head");
    std::fs::File::options()
        .write(true)
        .open(&sparse)
        .unwrap()
        .write_all_at(b"tail", 64 << 20)
        .unwrap();
    for form in ["--format=gnu", "--format=pax", "--sparse-version=0.0"] {
        let tar = Command::new("tar")
            .args(["-cS", form, "-C", text(sparse.parent().unwrap()), "file"])
            .output()
            .unwrap();
        assert_eq!(
            world
                .run_with_input(&["cp", "-", "box:/data"], &tar.stdout)
                .code,
            0,
            "{form}"
        );
        let copy = tree.join("data/file");
        assert!(
            std::fs::read(&copy).unwrap() == std::fs::read(&sparse).unwrap(),
            "{form}"
        );
        assert!(copy.metadata().unwrap().blocks() < 1024, "{form}");
    }
}

#[test]
fn a_container_that_is_mounted_read_only_is_not_written_to() {
    let Some(world) = World::new() else { return };
    let tree = with_links(&world);
    world.ok(&["umount", "box"]);
    world.ok(&["mount", "--read-only", "box"]);
    let got = world.run_with_input(&["cp", "-", "box:/data"], &names(&["x"]));
    assert!(got.code != 0 && got.err.contains("Read-only"), "{got:?}");
    assert!(!tree.join("data/x").exists());
}

#[test]
fn paths_swapped_during_cp_never_lead_it_out() {
    let Some(world) = World::new() else { return };
    let tree = with_links(&world);
    let outside = world.scratch.dir("outside");
    std::fs::write(outside.join("secret"), "secret").unwrap();
    // `swap` is a directory at one moment and a link that leads out at the next.
    std::fs::create_dir(tree.join("swap")).unwrap();
    std::fs::write(tree.join("swap/secret"), "inside").unwrap();
    symlink(&outside, tree.join("other")).unwrap();
    let done = AtomicBool::new(false);
    let many: Vec<String> = (0..500).map(|at| format!("swap/f{at:04}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let tar = names(&many);
    world.scratch.file("in/swap/planted", "planted");
    let from = format!("{}/.", text(&world.scratch.join("in")));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let root = Dir::open(&tree).unwrap();
            while !done.load(Ordering::Relaxed) {
                root.rename("swap", &root, "other", RenameFlags::EXCHANGE)
                    .unwrap();
            }
        });
        for round in 0..10 {
            // They may fail, or succeed inside.
            world.run_with_input(&["cp", "-", "box:/"], &tar);
            world.run(&["cp", &from, "box:/"]);
            let out = world.scratch.join(format!("out{round}"));
            if world.run(&["cp", "box:/swap/.", text(&out)]).code == 0 {
                let secret = std::fs::read_to_string(out.join("secret")).unwrap();
                assert_eq!(secret, "inside");
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
}
