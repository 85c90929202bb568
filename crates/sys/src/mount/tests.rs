//! Real mounts, by each method. They need the privilege to mount; without it they report so and
//! count as untested.

use std::ffi::OsStr;

use super::*;
use crate::testing::can_mount;

fn dirs(at: &Path, names: &[&[u8]]) -> Vec<PathBuf> {
    names
        .iter()
        .map(|name| {
            let dir = at.join(OsStr::from_bytes(name));
            std::fs::create_dir_all(&dir).unwrap();
            dir
        })
        .collect()
}

/// `count` lower layers `l/0000`.. each with a file named after it and one of the same name in all.
fn layers(at: &Path, count: usize) -> Vec<PathBuf> {
    (0..count)
        .map(|i| {
            let dir = at.join(format!("l/{i:04}"));
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(dir.join(format!("own-{i}")), format!("{i}")).unwrap();
            std::fs::write(dir.join("same"), format!("{i}")).unwrap();
            dir
        })
        .collect()
}

fn writable(at: &Path, lowers: Vec<PathBuf>) -> (OverlayMount, PathBuf) {
    let made = dirs(at, &[b"upper", b"work", b"merged"]);
    let mount = OverlayMount {
        lowers,
        upper: Some(made[0].clone()),
        work: Some(made[1].clone()),
        ..OverlayMount::default()
    };
    (mount, made[2].clone())
}

#[track_caller]
fn check_layers(at: &Path, count: usize, method: &Method) {
    let lowers = layers(at, count);
    let (mount, merged) = writable(at, lowers);
    let facts = overlay(&mount, &merged, method).unwrap();
    assert!(!facts.is_bind);
    assert_eq!(std::fs::read_to_string(merged.join("same")).unwrap(), "0");
    for i in [0, count / 2, count - 1] {
        assert_eq!(
            std::fs::read_to_string(merged.join(format!("own-{i}"))).unwrap(),
            format!("{i}")
        );
    }
    std::fs::write(merged.join("new"), "x").unwrap();
    std::fs::remove_file(merged.join("same")).unwrap();
    assert!(at.join("upper/new").exists());
    assert!(unmount_id(&merged, facts.mnt_id).unwrap());
    let upper = Dir::open(&at.join("upper")).unwrap();
    assert!(
        upper.stat("same").unwrap().is_null_device(),
        "the whiteout is kept"
    );
}

#[test]
fn five_hundred_layers_as_descriptors() {
    let Some(scratch) = can_mount() else { return };
    if has(&Method::LayerFds) {
        check_layers(scratch.path(), 500, &Method::LayerFds);
    }
}

#[test]
fn five_hundred_layers_as_paths() {
    let Some(scratch) = can_mount() else { return };
    if has(&Method::LowerdirPaths) {
        check_layers(scratch.path(), 500, &Method::LowerdirPaths);
    }
}

#[test]
fn a_hundred_and_twenty_eight_layers_on_the_option_page() {
    let Some(scratch) = can_mount() else { return };
    let home = scratch.path().to_path_buf();
    check_layers(scratch.path(), 128, &Method::OptionPage { home });
}

#[test]
fn too_many_or_no_layers_are_refused_before_the_kernel_is_asked() {
    let Some(scratch) = can_mount() else { return };
    let (mount, merged) = writable(scratch.path(), vec![scratch.path().join("l"); 501]);
    let e = overlay(&mount, &merged, &Method::LayerFds).unwrap_err();
    assert!(
        matches!(
            e,
            MountError::TooManyLayers {
                layers: 501,
                limit: 500
            }
        ),
        "{e}"
    );
    let (mount, merged) = writable(
        scratch.path(),
        vec!["/a/rather/long/path/of/a/lower/layer".into(); 128],
    );
    let e = overlay(
        &mount,
        &merged,
        &Method::OptionPage {
            home: scratch.path().into(),
        },
    )
    .unwrap_err();
    assert!(
        matches!(
            e,
            MountError::OptionsTooLong {
                layers: 128,
                limit: 4095,
                ..
            }
        ),
        "{e}"
    );
    let (mount, merged) = writable(scratch.path(), Vec::new());
    let e = overlay(&mount, &merged, &Method::LayerFds).unwrap_err();
    assert!(matches!(e, MountError::Unsupported { .. }), "{e}");
    assert_eq!(
        e.to_string(),
        "overlayfs cannot mount this: there is no lower layer"
    );
}

/// Whether this kernel has a method; recorded as untested if not.
fn has(method: &Method) -> bool {
    let has = is_known(method);
    if !has {
        let release = crate::probe::kernel().release;
        let why = format!("Linux {release} has no such option");
        vellum_testkit::untested(&format!("{method:?}"), why);
    }
    has
}

fn is_known(method: &Method) -> bool {
    let kernel = crate::probe::kernel();
    match method {
        Method::LayerFds => kernel.has_layer_fds,
        Method::LowerdirPaths => kernel.has_lowerdir_plus,
        Method::OptionPage { .. } => true,
    }
}

/// Every method that this kernel has, the best first.
fn methods(home: &Path) -> Vec<Method> {
    let home = home.to_path_buf();
    let all = [
        Method::LayerFds,
        Method::LowerdirPaths,
        Method::OptionPage { home },
    ];
    all.into_iter().filter(is_known).collect()
}

/// For tests that do not depend on the method.
fn any_method(home: &Path) -> Method {
    methods(home).swap_remove(0)
}

#[test]
fn any_characters_in_paths() {
    let Some(scratch) = can_mount() else { return };
    let names: [&[u8]; 8] = [
        b"a:b",
        b"a,b",
        b"back\\slash\\",
        b"sp ace",
        b"new\nline",
        b"\xff\xfe",
        b"tab\there",
        b"\\:,\\,",
    ];
    for i in 0..methods(scratch.path()).len() {
        for (j, name) in names.iter().enumerate() {
            let at = scratch
                .path()
                .join(format!("{i}-{j}"))
                .join(OsStr::from_bytes(name));
            std::fs::create_dir_all(&at).unwrap();
            check_layers(&at, 3, &methods(&at)[i]);
            // A home elsewhere, so that the strange name is in the options, too.
            let lowers = dirs(&at, &[b"x", name]);
            std::fs::write(lowers[1].join("f"), "odd").unwrap();
            let odd = dirs(
                &at,
                &[&[b"up", *name].concat(), &[b"wk", *name].concat(), b"m2"],
            );
            let mount = OverlayMount {
                lowers,
                upper: Some(odd[0].clone()),
                work: Some(odd[1].clone()),
                ..OverlayMount::default()
            };
            let method = &methods(scratch.path())[i];
            overlay(&mount, &odd[2], method)
                .unwrap_or_else(|e| panic!("{method:?} {name:?}: {e}: {:?}", e.errno()));
            assert_eq!(std::fs::read_to_string(odd[2].join("f")).unwrap(), "odd");
            std::fs::write(odd[2].join("up"), "x").unwrap();
            assert!(odd[0].join("up").exists());
            assert!(unmount(&odd[2], Detach::Yes).unwrap());
        }
    }
}

#[test]
fn roots_of_three_hundred_bytes() {
    let Some(scratch) = can_mount() else { return };
    for i in 0..methods(scratch.path()).len() {
        let at = scratch
            .path()
            .join(format!("{i}"))
            .join("r".repeat(150))
            .join("s".repeat(150));
        std::fs::create_dir_all(&at).unwrap();
        check_layers(&at, 12, &methods(&at)[i]);
    }
}

#[test]
fn several_lowers_without_an_upper_are_read_only() {
    let Some(scratch) = can_mount() else { return };
    for method in methods(scratch.path()) {
        let lowers = layers(scratch.path(), 2);
        let merged = dirs(scratch.path(), &[b"ro"]).remove(0);
        let mount = OverlayMount {
            lowers,
            ..OverlayMount::default()
        };
        overlay(&mount, &merged, &method).unwrap();
        assert_eq!(std::fs::read_to_string(merged.join("same")).unwrap(), "0");
        let e = std::fs::write(merged.join("new"), "x").unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::ReadOnlyFilesystem);
        assert!(unmount(&merged, Detach::No).unwrap());
        assert!(!unmount(&merged, Detach::No).unwrap());
    }
}

#[test]
fn one_lower_without_an_upper_is_a_read_only_bind() {
    let Some(scratch) = can_mount() else { return };
    let lowers = layers(scratch.path(), 1);
    let merged = dirs(scratch.path(), &[b"ro"]).remove(0);
    let mount = OverlayMount {
        lowers: lowers.clone(),
        ..OverlayMount::default()
    };
    let facts = overlay(&mount, &merged, &any_method(scratch.path())).unwrap();
    assert!(facts.is_bind);
    assert_eq!(std::fs::read_to_string(merged.join("own-0")).unwrap(), "0");
    assert!(std::fs::write(merged.join("new"), "x").is_err());
    std::fs::write(lowers[0].join("new"), "the source stays writable").unwrap();
}

#[test]
fn options_are_read_back() {
    let Some(scratch) = can_mount() else { return };
    for method in methods(scratch.path()) {
        let (mut mount, merged) = writable(scratch.path(), layers(scratch.path(), 2));
        mount.options = OverlayOptions {
            index: Some(false),
            redirect_dir: Some(RedirectDir::On),
            metacopy: Some(true),
            xino: Some(Xino::On),
            nodev: true,
            ..OverlayOptions::default()
        };
        let facts = overlay(&mount, &merged, &method).unwrap();
        assert_eq!(facts.effective.redirect_dir, "on");
        assert!(facts.effective.metacopy && !facts.effective.index);
        let table = crate::mountinfo::read().unwrap();
        let seen = table.by_id(facts.mnt_id).unwrap();
        assert_eq!(seen.mount_point, merged);
        assert!(seen.options.to_string_lossy().contains("nodev"));
        unmount(&merged, Detach::Yes).unwrap();

        mount.options = OverlayOptions {
            redirect_dir: Some(RedirectDir::Off),
            metacopy: Some(false),
            ..Default::default()
        };
        let facts = overlay(&mount, &merged, &method).unwrap();
        assert_ne!(facts.effective.redirect_dir, "on");
        assert!(!facts.effective.metacopy);
        unmount(&merged, Detach::Yes).unwrap();
    }
}

#[test]
fn a_feature_the_kernel_drops_is_an_error() {
    let asked = OverlayOptions {
        index: Some(true),
        ..OverlayOptions::default()
    };
    let is = EffectiveOptions::default();
    assert_eq!(is.missing(&asked).unwrap().0, "index=on");
    assert_eq!(is.missing(&OverlayOptions::default()), None);
    let asked = OverlayOptions {
        redirect_dir: Some(RedirectDir::Off),
        ..OverlayOptions::default()
    };
    for (is, fits) in [
        ("off", true),
        ("follow", true),
        ("nofollow", true),
        ("on", false),
    ] {
        let is = EffectiveOptions {
            redirect_dir: is.into(),
            ..EffectiveOptions::default()
        };
        assert_eq!(is.missing(&asked).is_none(), fits, "{is:?}");
    }
}

#[test]
fn a_layer_on_a_file_system_without_handles_drops_index_and_is_refused() {
    let Some(scratch) = can_mount() else { return };
    // An overlay mounted without nfs_export has no file handles, so index on top of it is silently
    // dropped.
    let (inner, merged) = writable(scratch.path(), layers(scratch.path(), 2));
    overlay(&inner, &merged, &any_method(scratch.path())).unwrap();
    let top = scratch.path().join("top");
    std::fs::create_dir(&top).unwrap();
    let (mut outer, outer_merged) = writable(&top, vec![merged]);
    outer.options.index = Some(true);
    let e = overlay(&outer, &outer_merged, &any_method(scratch.path())).unwrap_err();
    assert!(
        matches!(&e, MountError::FeatureMissing { feature, .. } if feature == "index=on"),
        "{e}"
    );
    assert!(
        !is_mount_point(&outer_merged).unwrap(),
        "nothing may stay mounted"
    );
}

#[test]
fn the_kernels_message_is_in_the_error() {
    let Some(scratch) = can_mount() else { return };
    let (mut mount, merged) = writable(scratch.path(), layers(scratch.path(), 1));
    mount.options.extra = vec![("no_such_option".into(), Some("1".into()))];
    for method in [Method::LayerFds, Method::LowerdirPaths]
        .iter()
        .filter(|m| has(m))
    {
        let e = overlay(&mount, &merged, method).unwrap_err();
        assert!(
            e.to_string().contains("no_such_option") && e.to_string().contains("kernel: "),
            "{e}"
        );
    }
    mount.options = OverlayOptions {
        userxattr: true,
        metacopy: Some(true),
        ..OverlayOptions::default()
    };
    let e = overlay(&mount, &merged, &any_method(scratch.path())).unwrap_err();
    // The kernel reports some refusals only in its own log.
    assert!(e.is_unsupported(), "{e:?}");
}

#[test]
fn the_holder_of_an_upper_is_found_by_its_path() {
    let Some(scratch) = can_mount() else { return };
    let (mut mount, merged) = writable(scratch.path(), layers(scratch.path(), 2));
    mount.options.index = Some(true);
    overlay(&mount, &merged, &any_method(scratch.path())).unwrap();
    let second = dirs(scratch.path(), &[b"second"]).remove(0);
    let e = overlay(&mount, &second, &any_method(scratch.path())).unwrap_err();
    assert!(e.is_busy(), "{e}");
    let upper = mount.upper.as_deref().unwrap();
    let holders = crate::mountinfo::find_overlay_holders(upper, mount.work.as_deref()).unwrap();
    assert!(
        holders.iter().any(|h| h.mount_point == merged),
        "{holders:?}"
    );
    unmount(&merged, Detach::Yes).unwrap();
    let us = std::process::id();
    let holders = crate::mountinfo::find_overlay_holders(upper, None).unwrap();
    assert!(holders.iter().all(|h| h.pid != us), "{holders:?}");
}

#[test]
fn a_mount_leaked_into_another_namespace_is_found_and_its_holder_named() {
    use std::io::BufRead;
    use std::process::{Command, Stdio};
    let Some(scratch) = can_mount() else { return };
    let (mut mount, merged) = writable(scratch.path(), layers(scratch.path(), 2));
    mount.options.index = Some(true);
    overlay(&mount, &merged, &any_method(scratch.path())).unwrap();
    let mut holder = Command::new("unshare")
        .args(["--mount", "--propagation", "private"])
        .args(["sh", "-c", "echo in; read x; true"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    io::BufReader::new(holder.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "in\n");
    unmount(&merged, Detach::Yes).unwrap();
    // Our own table shows nothing, and still the kernel refuses: the other namespace uses the
    // upper.
    let table = crate::mountinfo::read().unwrap();
    assert!(table.beneath(scratch.path()).is_empty());
    let e = overlay(&mount, &merged, &any_method(scratch.path())).unwrap_err();
    assert!(e.is_busy(), "{e}");
    let (upper, work) = (mount.upper.as_deref().unwrap(), mount.work.as_deref());
    let found = crate::mountinfo::find_overlay_holders(upper, work).unwrap();
    // Programs started elsewhere in their own namespaces are found, too, and hold it as long as
    // they run.
    let found = found
        .iter()
        .find(|h| h.pid == holder.id())
        .expect("the holder is found");
    assert!(found.to_string().contains("(sh)"), "{found}");
    drop(holder.stdin.take());
    holder.wait().unwrap();
    let again = (0..500).find_map(|_| {
        let again = overlay(&mount, &merged, &any_method(scratch.path()));
        if again.as_ref().is_err_and(MountError::is_busy) {
            std::thread::sleep(std::time::Duration::from_millis(20));
            return None;
        }
        Some(again)
    });
    again.expect("the upper is free at last").unwrap();
}

#[test]
fn only_the_intended_mount_is_unmounted() {
    let Some(scratch) = can_mount() else { return };
    let place = dirs(scratch.path(), &[b"place", b"a", b"b"]);
    bind(&place[1], &place[0], BindOptions::default()).unwrap();
    let first = stat_id(&place[0]);
    bind(&place[2], &place[0], BindOptions::default()).unwrap();
    assert!(!unmount_id(&place[0], first).unwrap());
    assert!(is_mount_point(&place[0]).unwrap());
    let table = crate::mountinfo::read().unwrap();
    let covering = table.covering(&place[0], first);
    assert_eq!(covering.len(), 1);
    assert_eq!(covering[0].id, stat_id(&place[0]));
    assert_eq!(unmount_all(&place[0]).unwrap(), 2);
    assert!(!is_mount_point(&place[0]).unwrap());
}

#[test]
fn a_mount_in_a_tree_survives_the_trees_removal() {
    let Some(scratch) = can_mount() else { return };
    let made = dirs(scratch.path(), &[b"src", b"tree/a/b", b"tree/c"]);
    std::fs::write(made[0].join("precious"), "x").unwrap();
    std::fs::write(made[2].join("file"), "x").unwrap();
    std::fs::write(made[2].join("bound"), "").unwrap();
    bind(&made[0], &made[1], BindOptions::default()).unwrap();
    bind(
        &made[0].join("precious"),
        &made[2].join("bound"),
        BindOptions::default(),
    )
    .unwrap();
    let dir = Dir::open(scratch.path()).unwrap();
    let crate::rooted::Removal::Mounted(mut left) = dir.remove_tree("tree").unwrap() else {
        panic!("mounts were removed")
    };
    left.sort();
    assert_eq!(
        left,
        [PathBuf::from("tree/a/b"), PathBuf::from("tree/c/bound")]
    );
    assert!(made[0].join("precious").exists());
    assert!(!made[2].join("file").exists(), "the rest is removed");
    unmount_all(&scratch.path().join("tree")).unwrap();
    assert_eq!(
        dir.remove_tree("tree").unwrap(),
        crate::rooted::Removal::Gone
    );
    assert!(made[0].join("precious").exists());
}

#[test]
fn bind_mounts_can_be_restricted_and_moved() {
    let Some(scratch) = can_mount() else { return };
    let made = dirs(scratch.path(), &[b"src", b"one", b"two"]);
    bind(
        &made[0],
        &made[1],
        BindOptions {
            read_only: true,
            nodev: true,
            ..BindOptions::default()
        },
    )
    .unwrap();
    assert!(std::fs::write(made[1].join("f"), "").is_err());
    move_to(&made[1], &made[2]).unwrap();
    assert!(!is_mount_point(&made[1]).unwrap() && is_mount_point(&made[2]).unwrap());
}

fn stat_id(path: &Path) -> u64 {
    crate::stat::stat_fd(std::fs::File::open(path).unwrap())
        .unwrap()
        .mnt_id
}

#[test]
fn a_view_without_submounts_shows_what_is_covered() {
    let Some(scratch) = can_mount() else { return };
    let made = dirs(scratch.path(), &[b"tree/covered", b"tree/bare"]);
    std::fs::write(made[0].join("beneath"), "b").unwrap();
    filesystem("tmpfs", Path::new("none"), &made[0], c"mode=0700").unwrap();
    std::fs::write(made[0].join("on-top"), "t").unwrap();
    let dir = Dir::open(&scratch.path().join("tree")).unwrap();
    let view = without_submounts(&dir);
    unmount(&made[0], Detach::Yes).unwrap();
    let view = view.unwrap();
    let covered = view.open_dir("covered").unwrap();
    assert!(covered.stat_opt("on-top").unwrap().is_none());
    assert_eq!(covered.stat("beneath").unwrap().size_bytes, 1);
    assert_eq!(covered.entries().unwrap().count(), 1);
    crate::xattr::list(&covered, OsStr::new("beneath")).unwrap();
    let refused = view.mkdir("new", 0o700).unwrap_err();
    assert!(refused.is(Errno::ROFS), "{refused}");
    drop(dir);
    let mut text = String::new();
    io::Read::read_to_string(&mut view.open_file("covered/beneath").unwrap(), &mut text).unwrap();
    assert_eq!(text, "b");
}
