//! The contents of trees created through the snapshotter: marks, attributes, links, limits and ids,
//! mounted as clients mount them.

#[path = "support/snapshotter.rs"]
mod server;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use server::{Labels, Server, labels, mount_at, refused, unmount, upper, value};
use tonic::Code;
use vellum_testkit::clients::{available, run};
use vellum_testkit::untested;

/// A whiteout, as an unpacker writes it into an overlay's upper.
fn hide(path: &Path) {
    run(Command::new("mknod").arg(path).args(["c", "0", "0"])).unwrap();
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

/// Gives a listed directory its time, as unpackers do.
fn set_old(path: &Path) {
    run(Command::new("touch").args(["-d", "2001-02-03"]).arg(path)).unwrap();
}

const REF: &str = "containerd.io/snapshot.ref";
const PARENT: &str = "containerd.io/snapshot/parent-chain-id";

#[test]
fn a_layer_unpacked_before_its_parent_keeps_whiteouts_and_directories_keep_their_modes() {
    let Some(server) = Server::start(&[], &[]) else {
        return;
    };
    let c = server.client();
    let base = upper(&c.prepare("base/extract", "").unwrap());
    for dir in ["odd/deep", "replaced", "plain"] {
        fs::create_dir_all(base.join(dir)).unwrap();
    }
    for file in ["odd/gone", "odd/stays", "odd/deep/file", "replaced/old"] {
        fs::write(base.join(file), file).unwrap();
    }
    set_mode(&base.join("odd"), 0o1777);
    set_mode(&base.join("odd/deep"), 0o2750);
    std::os::unix::fs::chown(base.join("odd/deep"), Some(7), Some(8)).unwrap();
    set_mode(&base, 0o711);
    ["odd/deep", "odd", "replaced", "plain"]
        .iter()
        .for_each(|dir| set_old(&base.join(dir)));
    c.commit("base", "base/extract").unwrap();

    let target = labels(&[(REF, "sha256:22"), (PARENT, "sha256:11")]);
    let mounts = c.prepare_with("top/extract", "", target.clone()).unwrap();
    // One overlay with an upper: unpackers write marks into it, which they do not with a plain
    // directory.
    assert_eq!(mounts[0].r#type, "overlay");
    assert_eq!(c.mounts("top/extract").unwrap(), mounts);
    let empty = value(&mounts[0], "lowerdir=");
    assert_eq!(fs::read_dir(empty).unwrap().count(), 0);
    let top = upper(&mounts);
    // As containerd's unpacker leaves it: directories without an entry are made up, listed ones
    // have their times.
    fs::create_dir_all(top.join("odd/deep")).unwrap();
    hide(&top.join("odd/gone"));
    fs::write(top.join("odd/deep/new"), "new").unwrap();
    fs::create_dir(top.join("replaced")).unwrap();
    run(Command::new("setfattr")
        .args(["-n", "trusted.overlay.opaque", "-v", "y"])
        .arg(top.join("replaced")))
    .unwrap();
    fs::create_dir(top.join("plain")).unwrap();
    set_mode(&top.join("plain"), 0o700);
    set_old(&top.join("plain"));
    c.commit_on("top", "top/extract", target, "base").unwrap();
    assert_eq!(c.stat("top").unwrap().parent, "base");

    let at = server.home.join("mnt");
    mount_at(&c.view("look", "top").unwrap(), &at);
    let seen = (
        [&at, &at.join("odd"), &at.join("odd/deep")].map(|dir| mode(dir)),
        [&at.join("replaced"), &at.join("plain")].map(|dir| mode(dir)),
        fs::metadata(at.join("odd/deep")).map(|found| (found.uid(), found.gid())),
        [
            "odd/gone",
            "odd/stays",
            "odd/deep/file",
            "odd/deep/new",
            "replaced/old",
        ]
        .map(|file| at.join(file).exists()),
    );
    unmount(&at);
    assert_eq!(seen.0, [0o711, 0o1777, 0o2750]);
    assert_eq!(seen.1, [0o755, 0o700]);
    assert_eq!(seen.2.unwrap(), (7, 8));
    assert_eq!(seen.3, [false, true, true, true, false]);
    server.assert_sound();

    // Trees that are full copies can't get a parent afterwards, and the error comes before anything
    // is unpacked.
    let Some(native) = Server::start(&["--storage-driver", "native"], &[]) else {
        return;
    };
    let asked = labels(&[(REF, "sha256:22"), (PARENT, "sha256:11")]);
    let answer = native.client().prepare_with("top", "", asked);
    refused(answer, Code::FailedPrecondition, "rebase");
}

/// Changes a tree layer by layer through mounts and compares what each driver and engine shows.
#[test]
fn attributes_and_links_are_kept_across_layers() {
    for flags in [
        &[][..],
        &["--storage-driver", "overlay"],
        &["--storage-driver", "native"],
        &["--engine", "vellum"],
    ] {
        let Some(server) = Server::start(flags, &[]) else {
            return;
        };
        if flags == ["--engine", "vellum"] && !available(&["mount.fuse3"]) {
            continue;
        }
        let c = server.client();
        let at = server.home.join("mnt");
        let change = |name: &str, parent: &str, change: &dyn Fn(&Path)| {
            let key = format!("change {name}");
            mount_at(&c.prepare(&key, parent).unwrap(), &at);
            change(&at);
            unmount(&at);
            c.commit(name, &key).unwrap();
        };
        let attribute = |path: &Path, name: &str, value: &str| {
            run(Command::new("setfattr")
                .args(["-n", name, "-v", value])
                .arg(path))
            .unwrap();
        };
        change("one", "", &|at| {
            fs::write(at.join("file"), "first").unwrap();
            attribute(&at.join("file"), "user.kept", "1");
            fs::hard_link(at.join("file"), at.join("linked")).unwrap();
            fs::create_dir(at.join("dir")).unwrap();
            fs::write(at.join("dir/old"), "old").unwrap();
            symlink("dir/old", at.join("link")).unwrap();
            fs::write(at.join("suid"), "x").unwrap();
            set_mode(&at.join("suid"), 0o4711);
        });
        change("two", "one", &|at| {
            attribute(&at.join("file"), "user.more", "2");
            fs::remove_file(at.join("dir/old")).unwrap();
            fs::write(at.join("dir/new"), "new").unwrap();
            fs::write(at.join("a"), "a").unwrap();
            fs::hard_link(at.join("a"), at.join("b")).unwrap();
        });
        change("three", "two", &|at| {
            fs::remove_dir_all(at.join("dir")).unwrap();
            fs::create_dir(at.join("dir")).unwrap();
            fs::rename(at.join("a"), at.join("c")).unwrap();
        });
        mount_at(&c.view("look", "three").unwrap(), &at);
        let get = |path: &str, name: &str| {
            run(Command::new("getfattr")
                .args(["--absolute-names", "--only-values", "-n", name])
                .arg(at.join(path)))
        };
        let seen = (
            get("file", "user.kept"),
            get("file", "user.more"),
            fs::read_dir(at.join("dir")).map(|dir| dir.count()),
            mode(&at.join("suid")),
            fs::metadata(at.join("b")).map(|b| (b.ino(), b.nlink())),
            fs::metadata(at.join("c")).map(|c| (c.ino(), c.nlink())),
            fs::read_link(at.join("link")),
            fs::write(at.join("no"), "no").is_err(),
        );
        unmount(&at);
        assert_eq!(seen.0.unwrap(), "1", "{flags:?}");
        assert_eq!(seen.1.unwrap(), "2", "{flags:?}");
        assert_eq!(seen.2.unwrap(), 0, "{flags:?}");
        assert_eq!(seen.3, 0o4711, "{flags:?}");
        // The kernel's overlay may break the link at the rename's copy-up; whatever it shows is
        // correct.
        assert!(seen.4.is_ok() && seen.5.is_ok(), "{flags:?}");
        assert_eq!(seen.6.unwrap(), Path::new("dir/old"), "{flags:?}");
        assert!(seen.7, "{flags:?}: a view can be written");
        server.assert_sound();
    }
}

#[test]
fn a_size_limit_holds() {
    let Some(server) = Server::start(&[], &[]) else {
        return;
    };
    if !available(&["mount.fuse3"]) {
        return;
    }
    let c = server.client();
    c.layer("base", "");
    let limit = labels(&[("containerd.io/snapshot/max-size", "4194304")]);
    let mounts = c.prepare_with("k", "base", limit).unwrap();
    let at = server.home.join("mnt");
    mount_at(&mounts, &at);
    let small = fs::write(at.join("small"), vec![1; 1 << 20]);
    let large = fs::write(at.join("large"), vec![1; 8 << 20]);
    unmount(&at);
    small.unwrap();
    let error = large.unwrap_err();
    let full = [libc_enospc(), 122];
    assert!(full.contains(&error.raw_os_error().unwrap()), "{error}");
    c.commit("l", "k").unwrap();
    server.assert_sound();
}

fn libc_enospc() -> i32 {
    rustix::io::Errno::NOSPC.raw_os_error()
}

const UIDS: &str = "containerd.io/snapshot/uidmapping";
const GIDS: &str = "containerd.io/snapshot/gidmapping";
const MAP: &str = "0:100000:65536";

fn mapping() -> Labels {
    labels(&[(UIDS, MAP), (GIDS, MAP)])
}

#[test]
fn owners_are_shown_as_the_labels_map_them() {
    // Without the capability the client mounts as usual, and the engine maps.
    let Some(server) = Server::start(&[], &[]) else {
        return;
    };
    let c = server.client();
    c.layer("base", "");
    c.layer("on", "base");
    let mounts = c.prepare_with("k", "on", mapping()).unwrap();
    if available(&["mount.fuse3"]) {
        let at = server.home.join("mnt");
        mount_at(&mounts, &at);
        let seen = [".", "base", "on"].map(|name| fs::metadata(at.join(name)).unwrap().uid());
        unmount(&at);
        assert_eq!(seen, [100000; 3]);
    }
    // With it, the options are those that the client's mounts take, and the upper is the mapped
    // root's.
    let Some(server) = Server::start(&[], &["--remap-ids"]) else {
        return;
    };
    let c = server.client();
    c.layer("base", "");
    c.layer("on", "base");
    let mounts = c.prepare_with("k", "on", mapping()).unwrap();
    assert_eq!(mounts[0].r#type, "overlay");
    assert_eq!(value(&mounts[0], "uidmap="), MAP);
    assert_eq!(value(&mounts[0], "gidmap="), MAP);
    let own = fs::metadata(upper(&mounts)).unwrap();
    assert_eq!((own.uid(), own.gid()), (100000, 100000));
    for lower in value(&mounts[0], "lowerdir=").split(':') {
        let found = fs::symlink_metadata(lower).unwrap();
        assert!(found.is_dir(), "{lower} is not a directory");
    }
    for (uids, gids, named) in [
        ("5:1:1", MAP, "uidmapping"),
        (MAP, "0:1", "gidmapping"),
        ("", MAP, "uidmapping"),
    ] {
        let bad = labels(&[(UIDS, uids), (GIDS, gids)]);
        let answer = c.prepare_with("bad", "on", bad);
        refused(answer, Code::InvalidArgument, named);
        refused(c.stat("bad"), Code::NotFound, "bad");
    }
}

#[test]
fn owners_that_a_client_mapped_itself_are_not_mapped_again() {
    for (flags, serve_flags) in [
        (&[][..], &[][..]),
        (&["--engine", "vellum"], &[]),
        (&["--storage-driver", "overlay"], &[]),
        (&["--storage-driver", "native"], &[]),
        (&[], &["--remap-ids"]),
        (&["--engine", "vellum"], &["--remap-ids"]),
    ] {
        let Some(server) = Server::start(flags, serve_flags) else {
            return;
        };
        if flags.contains(&"--engine") && !available(&["mount.fuse3"]) {
            continue;
        }
        let c = server.client();
        c.layer("base", "");
        let at = server.home.join("mnt");
        // What containerd does without `remap-ids`: a copy with other owners, and the labels
        // anyway.
        mount_at(&c.prepare("copy-remap", "base").unwrap(), &at);
        run(Command::new("chown")
            .args(["-hR", "100000:100000"])
            .arg(&at))
        .unwrap();
        unmount(&at);
        c.commit("copy", "copy-remap").unwrap();
        let mounts = c.prepare_with("k", "copy", mapping()).unwrap();
        let told = mounts[0].options.iter().filter(|o| o.contains("map"));
        assert_eq!(told.count(), 0, "{flags:?} {mounts:?}");
        mount_at(&mounts, &at);
        let seen = [".", "base"].map(|name| fs::metadata(at.join(name)).unwrap().uid());
        // A container's root may give its root directory away.
        std::os::unix::fs::chown(&at, Some(100_007), Some(100_007)).unwrap();
        unmount(&at);
        assert_eq!(seen, [100_000; 2], "{flags:?}");
        assert_eq!(c.mounts("k").unwrap(), mounts);
        let ours = |label: &String| label.starts_with("vellum");
        let shown = c.stat("k").unwrap().labels;
        assert!(!shown.keys().any(ours), "{shown:?}");
        server.assert_sound();
    }
}

#[test]
fn a_tree_that_is_one_directory_is_mapped_by_the_kernel_or_refused() {
    let native = ["--storage-driver", "native"];
    let Some(server) = Server::start(&native, &[]) else {
        return;
    };
    let c = server.client();
    c.layer("base", "");
    let answer = c.prepare_with("k", "base", mapping());
    refused(answer, Code::FailedPrecondition, "remap-ids");
    refused(c.stat("k"), Code::NotFound, "k");
    let Some(server) = Server::start(&native, &["--remap-ids"]) else {
        return;
    };
    let c = server.client();
    c.layer("base", "");
    let mounts = c.prepare_with("k", "base", mapping()).unwrap();
    assert_eq!(mounts[0].r#type, "bind");
    assert_eq!(value(&mounts[0], "uidmap="), MAP);
    assert_eq!(value(&mounts[0], "gidmap="), MAP);
    let own = fs::metadata(&mounts[0].source).unwrap();
    assert_eq!(own.uid(), 0, "the mount maps the root directory, too");
}

#[test]
fn changed_settings_keep_who_maps_ids_and_the_engine_maps_deep_chains() {
    let Some(mut server) = Server::start(&[], &["--remap-ids"]) else {
        return;
    };
    let c = server.client();
    c.layer("base", "");
    let by_kernel = c.prepare_with("kernel", "base", mapping()).unwrap();
    assert_eq!(by_kernel[0].r#type, "overlay");
    let mut top = "base".to_owned();
    for n in 0..60 {
        let name = format!("l{n}");
        c.layer(&name, &top);
        top = name;
    }
    // Layers by their real names are too many for mount(2)'s page.
    let by_engine = c.prepare_with("deep", &top, mapping()).unwrap();
    assert_eq!(by_engine[0].r#type, "fuse3.vellum");
    assert_eq!(value(&by_engine[0], "uidmapping="), MAP);
    assert_eq!(fs::metadata(upper(&by_engine)).unwrap().uid(), 0);
    if available(&["mount.fuse3"]) {
        let at = server.home.join("mnt");
        mount_at(&by_engine, &at);
        let seen = [".", "base", "l59"].map(|name| fs::metadata(at.join(name)).unwrap().uid());
        unmount(&at);
        assert_eq!(seen, [100_000; 3]);
    }
    drop(c);
    server.end();
    fs::write(server.home.join("vellum.toml"), "engine = \"vellum\"\n").unwrap();
    server.spawn();
    let c = server.client();
    assert_eq!(c.mounts("kernel").unwrap(), by_kernel);
    assert_eq!(c.mounts("deep").unwrap(), by_engine);
    let later = c.prepare_with("later", "base", mapping()).unwrap();
    assert_eq!(later[0].r#type, "fuse3.vellum");
}

#[test]
fn the_deepest_image_chain_is_mounted_by_the_clients_own_means() {
    let Some(server) = Server::start(&[], &[]) else {
        return;
    };
    let c = server.client();
    let mut parent = String::new();
    for n in 0..127 {
        let name = format!("l{n}");
        c.layer(&name, &parent);
        parent = name;
    }
    let mounts = c.prepare("k", &parent).unwrap();
    let lowers = value(&mounts[0], "lowerdir=");
    let common = Path::new(lowers.split(':').next().unwrap())
        .parent()
        .unwrap();
    let relative: Vec<_> = lowers
        .split(':')
        .map(|lower| {
            Path::new(lower)
                .strip_prefix(common)
                .unwrap()
                .to_str()
                .unwrap()
        })
        .collect();
    // What containerd passes to mount(2): layers relative to the directory they have in common.
    let rest = mounts[0]
        .options
        .iter()
        .filter(|o| !o.starts_with("lowerdir="));
    let page = format!(
        "{},lowerdir={}",
        rest.cloned().collect::<Vec<_>>().join(","),
        relative.join(":")
    );
    assert!(page.len() < 4096, "{}", page.len());
    let at = server.home.dir("mnt").unwrap();
    let mounted = Command::new("mount")
        .args(["-n", "-i", "-t", "overlay", "-o", &page, "overlay"])
        .arg(&at)
        .current_dir(common)
        .output()
        .unwrap();
    if !mounted.status.success() {
        // mount(8) of util-linux 2.39 and later passes paths one by one.
        untested(
            "a full page of options",
            String::from_utf8_lossy(&mounted.stderr),
        );
        return;
    }
    let names = fs::read_dir(&at).unwrap().count();
    unmount(&at);
    assert_eq!(names, 127);
}

#[test]
fn a_commit_is_refused_on_a_parent_of_another_driver() {
    let Some(mut server) = Server::start(&["--storage-driver", "native"], &[]) else {
        return;
    };
    server.client().layer("native", "");
    server.end();
    // The default changes; existing snapshots stay under their driver.
    let config = server.home.join("vellum.toml");
    fs::write(&config, "").unwrap();
    let Some(other) = Server::stopped(&[], &[]) else {
        return;
    };
    fs::rename(server.root(), other.root()).unwrap();
    let mut other = other;
    other.spawn();
    let c = other.client();
    assert_eq!(c.prepare("on", "native").unwrap()[0].r#type, "bind");
    c.prepare("loose", "").unwrap();
    let answer = c.commit_on("l", "loose", Labels::new(), "native");
    refused(answer, Code::FailedPrecondition, "native");
    assert!(c.mounts("loose").is_ok());
}
