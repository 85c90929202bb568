//! A store that other users can manipulate: its directories are writable by them, owned by them, or
//! lead outside through a link or a mount.

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use support::{World, small};
use vellum_sys::mount::{self, BindOptions};
use vellum_testkit::Tree;

/// The store's own directories, `""` for its root.
const OWN: [&str; 12] = [
    "",
    "staging",
    "trash",
    "records",
    "content",
    "content/sha256",
    "content/sha512",
    "recipes",
    "volumes",
    "overlay2",
    "overlay2/l",
    "native",
];

/// A store with an image, two containers and something to collect.
fn world() -> Option<(World, PathBuf)> {
    let world = World::new()?;
    let image = small(&world.scratch);
    world.ok(&["load", "--input", image.to_str().unwrap()]);
    world.ok(&["--storage-driver", "native", "volume", "ls"]);
    world.ok(&["create", "--name", "box", "small:1"]);
    world.ok(&["create", "--name", "other", "small:1"]);
    Some((world, image))
}

/// Without the trailing slash that an empty name would give.
fn own_path(world: &World, own: &str) -> PathBuf {
    match own {
        "" => world.root(),
        own => world.root().join(own),
    }
}

/// A tree outside with the same names as the store's directories.
fn canary(world: &World, of: &Path) -> PathBuf {
    let outside = world.scratch.join("outside");
    // The link's target has all the names that gc knows, and more.
    let copied = std::process::Command::new("cp")
        .arg("-aT")
        .arg(of)
        .arg(&outside)
        .status();
    assert!(copied.unwrap().success());
    let hex = "cd".repeat(32);
    for dir in [hex.clone(), "l".to_owned()] {
        fs::create_dir_all(outside.join(&dir)).unwrap();
    }
    for file in [
        "precious".to_owned(),
        format!("{hex}/precious"),
        format!("{hex}.json"),
        format!("image-{hex}.json"),
        format!("container-{hex}.json"),
    ] {
        fs::write(outside.join(file), "precious").unwrap();
    }
    symlink("nowhere", outside.join("A".repeat(26))).unwrap();
    outside
}

/// Runs every command that changes a store. Most must be refused with the name while `path` is not
/// the store's own.
#[track_caller]
fn refused_by_name(world: &World, image: &Path, path: &Path, outside: &Path) {
    let before = Tree::read(outside).unwrap();
    let name = path.to_str().unwrap();
    for args in [
        &["gc"][..],
        &["rm", "--force", "other"],
        &["create", "--name", "third", "small:1"],
        &["load", "--input", image.to_str().unwrap()],
        &["rmi", "--force", "small:1"],
        &["volume", "create", "v"],
        &["check", "--rebuild", "--force"],
    ] {
        let said = world.run(args);
        // An existing image needs no new file.
        assert!(
            said.err.contains(name) || said.out.contains(name),
            "{args:?} with {name}: {said:?}"
        );
        if args != ["load", "--input", image.to_str().unwrap()] {
            assert_eq!(said.code, 1, "{args:?} with {name}: {said:?}");
        }
        assert_eq!(Tree::read(outside).unwrap(), before, "{args:?} with {name}");
    }
    for args in [&["ls"][..], &["info"], &["df"], &["images"]] {
        world.run(args);
        assert_eq!(Tree::read(outside).unwrap(), before, "{args:?} with {name}");
    }
    for args in [&["check"][..], &["check", "--heal"], &["check", "--deep"]] {
        let said = world.run(args);
        assert_eq!(said.code, 1, "{args:?} with {name}: {said:?}");
        assert!(said.out.contains(name), "{args:?} with {name}: {said:?}");
        assert_eq!(Tree::read(outside).unwrap(), before, "{args:?} with {name}");
    }
    assert!(!world.ok(&["ls"]).contains("third"));
}

#[test]
fn a_directory_that_is_a_link_out_of_the_store_is_refused_by_name() {
    for own in OWN
        .iter()
        .filter(|own| !own.is_empty() && **own != "native")
    {
        let Some((world, image)) = world() else {
            return;
        };
        let path = world.root().join(own);
        let outside = canary(&world, &path);
        let aside = world.scratch.join("aside");
        fs::rename(&path, &aside).unwrap();
        symlink(&outside, &path).unwrap();
        refused_by_name(&world, &image, &path, &outside);
        fs::remove_file(&path).unwrap();
        fs::rename(&aside, &path).unwrap();
        world.ok(&["check"]);
        world.ok(&["rm", "--force", "other"]);
        world.ok(&["gc"]);
        world.ok(&["check"]);
    }
}

#[test]
fn a_mount_over_staging_or_trash_is_refused_by_name() {
    for own in ["staging", "trash"] {
        let Some((world, image)) = world() else {
            return;
        };
        let path = world.root().join(own);
        let outside = canary(&world, &path);
        mount::bind(&outside, &path, BindOptions::default()).unwrap();
        // As after a boot: no notes about the earlier state.
        fs::remove_dir_all(world.run_dir()).unwrap();
        refused_by_name(&world, &image, &path, &outside);
        mount::unmount(&path, mount::Detach::No).unwrap();
        fs::remove_dir_all(world.run_dir()).unwrap();
        world.ok(&["check"]);
    }
}

#[test]
fn a_directory_that_others_may_write_is_reported_and_closed() {
    let Some((world, _image)) = world() else {
        return;
    };
    for own in OWN.iter().filter(|own| **own != "native") {
        let path = own_path(&world, own);
        let was = fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
        for mode in [0o777, 0o775, 0o770, 0o1777, was | 0o020, was | 0o002] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            // Every command reports it, and a check fails because of it.
            let said = world.run(&["ls"]);
            assert!(
                said.code == 0 && said.err.contains(path.to_str().unwrap()),
                "{said:?}"
            );
            let said = world.run(&["check"]);
            assert!(
                said.code == 1 && said.out.contains(path.to_str().unwrap()),
                "{said:?}"
            );
            assert!(said.out.contains("others may write"), "{said:?}");
            world.ok(&["check", "--heal"]);
            let now = fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
            assert_eq!(now, mode & !0o022, "{own}");
            fs::set_permissions(&path, fs::Permissions::from_mode(was)).unwrap();
            world.ok(&["check"]);
            assert_eq!(world.run(&["ls"]).err, "");
        }
    }
}

#[test]
fn a_directory_of_another_user_is_reported() {
    let Some((world, _image)) = world() else {
        return;
    };
    for own in OWN.iter().filter(|own| **own != "native") {
        let path = own_path(&world, own);
        let was = fs::metadata(&path).unwrap();
        chown(&path, Some(1000), None).unwrap();
        let said = world.run(&["check", "--heal"]);
        assert!(
            said.code == 1 && said.out.contains(path.to_str().unwrap()),
            "{said:?}"
        );
        assert!(said.out.contains("uid 1000"), "{said:?}");
        let said = world.run(&["gc"]);
        assert!(said.err.contains("uid 1000"), "{said:?}");
        chown(&path, Some(was.uid()), None).unwrap();
        world.ok(&["check"]);
    }
}

#[test]
fn an_acl_that_lets_others_write_is_reported() {
    let Some((world, _image)) = world() else {
        return;
    };
    let path = world.root().join("records");
    // Version 2; owner rwx, user 1000 rwx, group ---, mask rwx, others ---.
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in [
        (1u16, 7u16, u32::MAX),
        (2, 7, 1000),
        (4, 0, u32::MAX),
        (16, 7, u32::MAX),
        (32, 0, u32::MAX),
    ] {
        acl.extend(tag.to_le_bytes());
        acl.extend(perm.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    let dir = vellum_sys::Dir::open(&path).unwrap();
    let name = std::ffi::OsStr::new("system.posix_acl_access");
    if vellum_sys::xattr::set_fd(&dir, name, &acl, vellum_sys::xattr::SetMode::Any).is_err() {
        vellum_testkit::untested("access control lists", "the file system has none");
        return;
    }
    let said = world.run(&["check"]);
    assert!(
        said.code == 1 && said.out.contains("access control list"),
        "{said:?}"
    );
    world.ok(&["check", "--heal"]);
    world.ok(&["check"]);
}

#[test]
fn a_tree_or_volume_that_others_may_write_is_reported() {
    let Some((world, _image)) = world() else {
        return;
    };
    world.ok(&["volume", "create", "data"]);
    let trees = fs::read_dir(world.root().join("overlay2")).unwrap();
    let mut places: Vec<PathBuf> = trees.map(|entry| entry.unwrap().path()).collect();
    places.retain(|path| !path.ends_with("l"));
    places.push(world.root().join("volumes/data"));
    assert_eq!(places.len(), 5);
    for path in places {
        let was = fs::metadata(&path).unwrap().permissions();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        let said = world.run(&["check"]);
        assert!(
            said.code == 1 && said.out.contains(path.to_str().unwrap()),
            "{said:?}"
        );
        fs::set_permissions(&path, was).unwrap();
        chown(&path, Some(1000), None).unwrap();
        let said = world.run(&["check"]);
        assert!(said.code == 1 && said.out.contains("uid 1000"), "{said:?}");
        chown(&path, Some(0), None).unwrap();
    }
    // The content of a volume belongs to its users.
    fs::set_permissions(
        world.root().join("volumes/data/_data"),
        fs::Permissions::from_mode(0o1777),
    )
    .unwrap();
    world.ok(&["check"]);
}

#[test]
fn a_store_may_be_reached_through_a_link_and_made_in_a_directory_of_its_owner() {
    let Some(world) = World::new() else { return };
    let image = small(&world.scratch);
    let real = world.scratch.dir("real");
    // The mode that `mkdir` gives a plain user with a private group.
    fs::set_permissions(&real, fs::Permissions::from_mode(0o775)).unwrap();
    let link = world.scratch.join("link");
    symlink(&real, &link).unwrap();
    for args in [
        &["load", "--input", image.to_str().unwrap()][..],
        &["create", "--name", "box", "small:1"],
        &["rm", "box"],
        &["gc"],
        &["check", "--deep"],
    ] {
        let said = support::said(world.command_at(&link, args).output().unwrap());
        assert_eq!(said.code, 0, "{args:?}: {said:?}");
        assert!(!said.err.contains("not safe"), "{args:?}: {said:?}");
    }
    assert_eq!(
        fs::metadata(&real).unwrap().permissions().mode() & 0o7777,
        0o755
    );
}
