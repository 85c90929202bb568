//! What the kernel caches is true: every operation combined with every attribute, by each way that
//! requests and bytes travel; and there is no notification of changes that the kernel knows of.
//!
//! The server itself says whether an answer is true, past the kernel's cache. An ordinary directory
//! shows which attributes an operation should change, and the kernel's overlay does for files of
//! lower layers.

mod support;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use support::*;
use vellum_testkit::caching::{Extent, Seen, Ways};
use vellum_testkit::kernel::{Overlay, Since};
use vellum_testkit::{Scratch, untested};

/// Operations that open a file of a lower layer for writing and write nothing: then the kernel's
/// overlay copies it up. The others change a file through one of two names: there the kernel copies
/// up the directory of that name, but a server learns of no name. When a file is removed that
/// exists only in a lower layer, the kernel keeps counting a link.
const UNLIKE_THE_KERNEL: [&str; 8] = [
    "rename_over",
    "rename_dir_over_empty",
    "change_nothing_of_the_owner",
    "copy_range_of_nothing",
    "change_times",
    "link_again",
    "unlink",
    "remove_dir",
];

/// All operations, with attributes read in these ways, and in all ways in the slow tier.
fn extent(usual: Ways) -> Extent<'static> {
    Extent {
        operations: &[],
        ways: match std::env::var_os("VELLUM_SLOW") {
            Some(_) => Ways::Each,
            None => usual,
        },
    }
}

/// Makes the directories above searchable by others. The mount is for others too.
fn for_others(world: &mut World) {
    world.option("allow_other");
    let mut dir = world.beside("");
    while dir.pop() && fs::metadata(&dir).unwrap().mode() & 1 == 0 {
        if set_mode(&dir, 0o711).is_err() {
            break;
        }
    }
    set_mode(world.beside(""), 0o711).unwrap();
}

fn set_mode(path: impl AsRef<Path>, mode: u32) -> std::io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn mode(path: impl AsRef<Path>) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

/// Tries all operations on files of the lower layer and on files created in the mount; returns the
/// results of both.
#[track_caller]
fn tried(world: &mut World, extent: Extent<'_>, mount: impl FnOnce(&mut World)) -> [Seen; 2] {
    for_others(world);
    extent.prepare(&world.lower("old"));
    mount(world);
    let old = extent.try_in(&world.at("old"));
    extent.prepare(&world.at("new"));
    let new = extent.try_in(&world.at("new"));
    for (which, seen) in [("old", &old), ("new", &new)] {
        assert!(seen.cells > 0);
        let stale = seen.stale.join("\n");
        assert!(stale.is_empty(), "{which}, {}:\n{stale}", seen.cells);
    }
    eprintln!("{} answers compared", old.cells + new.cells);
    [old, new]
}

#[test]
fn what_is_shown_is_true_after_every_operation() {
    everywhere("what_is_shown_is_true_after_every_operation", |world| {
        world.option("nouring");
        let usual = match world.is_user {
            true => Ways::AllFields,
            false => Ways::EachFieldOnce,
        };
        let [old, new] = tried(world, extent(usual), World::mount);
        assert!(old.cells > 2_000, "{}", old.cells);
        let few = Extent {
            operations: &[],
            ways: Ways::Changes,
        };
        // Compared with an ordinary directory, whose server is the file system.
        few.prepare(&world.beside("plain"));
        let plain = few.try_in(&world.beside("plain"));
        assert_eq!(new.untried, plain.untried);
        let but: &[&str] = match world.is_user {
            false => &["change_nothing_of_the_owner"],
            // A server without privileges can't write a mapping's stores and keep setuid.
            true => &[
                "change_nothing_of_the_owner",
                "store_suid",
                "store_by_user",
                "store_by_user_locked",
                "store_by_user_linked",
            ],
        };
        let differs = new.differs(&plain, but).join("\n");
        assert!(differs.is_empty(), "unlike a directory:\n{differs}");
        if world.is_user {
            return;
        }
        // Compared with the kernel's overlay on the same layers.
        let scratch = Scratch::new();
        let lower = scratch.dir("lower");
        few.prepare(&lower.join("old"));
        set_mode(scratch.path(), 0o711).unwrap();
        let overlay = Overlay {
            lowers: vec![lower],
            data_lowers: Vec::new(),
            upper: Some((scratch.dir("upper"), scratch.dir("work"))),
            options: Vec::new(),
        };
        let overlay = ["redirect_dir", "metacopy", "index", "xino"]
            .into_iter()
            .fold(overlay, |overlay, option| overlay.option(option, "on"));
        let target = scratch.dir("merged");
        overlay.mount(&scratch, &target).unwrap();
        let kernel = few.try_in(&target.join("old"));
        let differs = old.differs(&kernel, &UNLIKE_THE_KERNEL).join("\n");
        assert!(differs.is_empty(), "unlike the kernel:\n{differs}");
    });
}

#[test]
fn what_is_shown_is_true_over_io_uring() {
    as_root(|world| {
        let mut rings = false;
        let extent = extent(Ways::AllFields);
        tried(world, extent, |world| rings = mount_with_rings(world));
        if !rings {
            untested("io_uring", "the kernel does not offer it to FUSE here");
        }
    });
}

#[test]
fn what_is_shown_is_true_in_passthrough_mode() {
    as_root(|world| {
        if !world.pass_through() {
            return;
        }
        tried(world, extent(Ways::AllFields), World::mount);
    });
}

#[test]
fn what_is_shown_is_true_with_every_option() {
    const SOME: [&str; 24] = [
        "append",
        "write_by_user",
        "write_by_user_linked",
        "write_direct_by_user",
        "store",
        "truncate_open_by_user",
        "allocate_behind_by_user",
        "copy_range_by_user_linked",
        "change_mode",
        "change_owner",
        "change_times",
        "set_xattr",
        "set_acl",
        "set_acl_that_is_a_mode",
        "set_flags",
        "set_extended_flags",
        "make_dir",
        "link",
        "unlink_one_of_two",
        "remove_dir",
        "rename_across",
        "rename_over_one_of_two",
        "rename_dir_across",
        "exchange",
    ];
    for options in [
        &["noindex"][..],
        &["nometacopy", "noredirect"],
        &["noacl"],
        &["writeback"],
        &["checked"],
        &["blocks=1"],
        &["wh"],
        &["size=200000000"],
        &["timeout=0"],
    ] {
        as_root(|world| {
            options.iter().for_each(|option| world.option(option));
            let extent = Extent {
                operations: &SOME,
                ways: Ways::AllFields,
            };
            eprint!("{options:?}: ");
            tried(world, extent, World::mount);
        });
    }
}

/// Runs a shell script in the mount as another user.
fn as_other(world: &World, script: &str) -> String {
    let output = Command::new("setpriv")
        .args(["--reuid", "1000", "--regid", "1000", "--clear-groups"])
        .args(["sh", "-euc", script])
        .current_dir(world.at(""))
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success(), "{script}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Changes to a program's bytes, as shell commands on the file `f` and the bytes in `bytes`.
const CHANGES: [(&str, &str); 9] = [
    ("written", "dd if=bytes of=f bs=1M conv=notrunc status=none"),
    (
        "written past the cache",
        "dd if=bytes of=f bs=1M conv=notrunc oflag=direct status=none",
    ),
    ("replaced", "cat bytes > f"),
    ("appended to", "printf x >> f"),
    ("cut and filled", "truncate -s 5000 f; cat bytes > f"),
    ("extended", "truncate -s 1M f"),
    ("given room", "fallocate -l 2M f"),
    ("punched", "fallocate -p -o 900000 -l 4096 f"),
    (
        "copied into",
        "python3 -c 'import os; os.copy_file_range(os.open(\"bytes\", 0), os.open(\"f\", 1), 4096)'",
    ),
];

#[test]
fn a_program_that_was_changed_runs_without_its_owners_rights() {
    for options in [
        &["nouring"][..],
        &["checked"],
        &["passthrough"],
        &["writeback"],
    ] {
        as_root(|world| {
            if options == ["passthrough"] && !Since::FusePassthrough.is_here_for("passthrough") {
                return;
            }
            options.iter().for_each(|option| world.option(option));
            for_others(world);
            let mut bytes = fs::read("/usr/bin/id").unwrap();
            bytes.resize(1 << 20, 0);
            for (change, _) in CHANGES {
                world.put(&format!("below {change}/f"), &bytes);
                set_mode(world.lower(format!("below {change}/f")), 0o6777).unwrap();
            }
            set_mode(world.lower(""), 0o755).unwrap();
            world.put("bytes", &bytes);
            world.mount();
            for (change, command) in CHANGES {
                for place in ["below", "above"] {
                    let dir = format!("{place} {change}");
                    let file = world.at(&dir).join("f");
                    if place == "above" {
                        fs::create_dir(world.at(&dir)).unwrap();
                        fs::write(&file, &bytes).unwrap();
                        set_mode(&file, 0o6777).unwrap();
                    }
                    fs::copy(world.at("bytes"), world.at(&dir).join("bytes")).unwrap();
                    let run = || as_other(world, &format!("cd '{dir}'; ./f"));
                    // It had them, and the kernel knows.
                    assert!(run().contains("euid=0"), "{dir}");
                    as_other(world, &format!("cd '{dir}'; {command}"));
                    let said = run();
                    assert!(!said.contains("euid=0"), "{dir} {options:?}: {said}");
                    assert_eq!(mode(&file), 0o777, "{dir} {options:?}");
                    assert_eq!(mode(world.upper(&dir).join("f")), 0o777, "{dir}");
                }
            }
        });
    }
}

#[test]
fn a_capability_goes_with_the_bytes_it_was_given_to() {
    everywhere(
        "a_capability_goes_with_the_bytes_it_was_given_to",
        |world| {
            for_others(world);
            for name in ["written", "cut", "given", "room"] {
                fs::write(world.put(name, "x"), vec![1; 9000]).unwrap();
                set_mode(world.lower(name), 0o4755).unwrap();
            }
            world.mount();
            let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
            const NAME: &str = "security.capability";
            let flags = rustix::fs::XattrFlags::empty();
            for name in ["written", "cut", "given", "room"] {
                rustix::fs::setxattr(world.at(name), NAME, capability, flags).unwrap();
            }
            let open = |name: &str| OpenOptions::new().write(true).open(world.at(name)).unwrap();
            open("written").write_all_at(b"new", 0).unwrap();
            open("cut").set_len(7).unwrap();
            std::os::unix::fs::chown(world.at("given"), Some(3), None).unwrap();
            let no_flags = rustix::fs::FallocateFlags::empty();
            rustix::fs::fallocate(open("room"), no_flags, 0, 20_000).unwrap();
            for name in ["written", "cut", "given", "room"] {
                let mut value = [0; 64];
                let got = rustix::fs::getxattr(world.at(name), NAME, &mut value);
                assert_eq!(got, Err(rustix::io::Errno::NODATA), "{name}");
            }
            // A process that may keep setuid keeps it, capability or not: root, but not the root of
            // a user namespace.
            let kept = if world.is_user { 0o755 } else { 0o4755 };
            for name in ["written", "cut", "room"] {
                assert_eq!(mode(world.at(name)), kept, "{name}");
            }
        },
    );
}

#[test]
fn privileges_given_during_writes_through_the_kernel_go_with_the_next_write() {
    as_root(|world| {
        for_others(world);
        if !world.pass_through() {
            return;
        }
        world.mount();
        fs::write(world.at("f"), vec![1; 200_000]).unwrap();
        set_mode(world.at("f"), 0o666).unwrap();
        // It opens the file while it may, and writes once it has another user's rights.
        let script = "exec 3<>f; echo open; read go || true; printf new >&3; stat -c %a f";
        let mut child = Command::new("setpriv")
            .args(["--reuid", "1000", "--regid", "1000", "--clear-groups"])
            .args(["sh", "-euc", script])
            .current_dir(world.at(""))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = child.stdout.take().unwrap();
        let mut said = [0; 5];
        std::io::Read::read_exact(&mut out, &mut said).unwrap();
        set_mode(world.at("f"), 0o6755).unwrap();
        assert_eq!(mode(world.at("f")), 0o6755);
        drop(child.stdin.take());
        let said = child.wait_with_output().unwrap();
        drop(said);
        let mut rest = String::new();
        std::io::Read::read_to_string(&mut out, &mut rest).unwrap();
        assert_eq!(mode(world.at("f")), 0o755, "{rest}");
        assert_eq!(mode(world.upper("f")), 0o755);
    });
}

#[test]
fn nothing_is_notified_where_nothing_changed_that_the_kernel_does_not_know() {
    as_root(|world| {
        for_others(world);
        world.option("nouring");
        for name in ["a/b/written", "a/b/mode", "linked", "later"] {
            world.put(name, vec![7; 9000]);
        }
        fs::hard_link(world.lower("linked"), world.lower("other")).unwrap();
        fs::hard_link(world.lower("later"), world.lower("later-still")).unwrap();
        world.mount();
        let file = |world: &World, name: &str| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true);
            options.open(world.at(name)).unwrap()
        };
        // What is only in the upper layer is the kernel's to know.
        fs::create_dir(world.at("dir")).unwrap();
        let (_, asked) = world.requests(|world| {
            for round in 0..20 {
                let name = format!("dir/{round}");
                let one = file(world, &name);
                one.write_all_at(&[1; 5000], 0).unwrap();
                one.set_len(100).unwrap();
                rustix::fs::fallocate(&one, rustix::fs::FallocateFlags::empty(), 0, 9000).unwrap();
                set_mode(world.at(&name), 0o640).unwrap();
                std::os::unix::fs::chown(world.at(&name), Some(1), Some(2)).unwrap();
                let flags = rustix::fs::XattrFlags::empty();
                rustix::fs::setxattr(world.at(&name), "user.x", b"1", flags).unwrap();
                fs::hard_link(world.at(&name), world.at("dir/second")).unwrap();
                fs::rename(world.at(&name), world.at("dir/moved")).unwrap();
                symlink("x", world.at("dir/link")).unwrap();
                fs::create_dir(world.at("dir/sub")).unwrap();
                for gone in ["dir/second", "dir/moved", "dir/link"] {
                    fs::remove_file(world.at(gone)).unwrap();
                }
                fs::rename(world.at("dir/sub"), world.at(format!("dir/sub{round}"))).unwrap();
            }
        });
        assert_eq!(asked.of("notified"), 0, "{asked:?}");
        // A user's writes are checked for setuid, and change nothing if it is not set.
        set_mode(world.at("dir"), 0o777).unwrap();
        let script = "for i in 1 2 3; do printf x >> dir/user; fallocate -l 9000 dir/user; done";
        let (_, asked) = world.requests(|world| as_other(world, script));
        assert_eq!(asked.of("notified"), 0, "{asked:?}");
        set_mode(world.at("dir/user"), 0o4777).unwrap();
        let (_, asked) = world.requests(|world| as_other(world, "printf x >> dir/user"));
        assert!(asked.of("notified") <= 1, "{asked:?}");
        // The first write below notifies of the directories that were copied up, and of the one
        // that contains the topmost of them; the next notifies of none.
        let write = |world: &World| file(world, "a/b/written").write_all_at(b"x", 5).unwrap();
        let (_, asked) = world.requests(write);
        assert_eq!(asked.of("notified"), 3, "{asked:?}");
        let (_, asked) = world.requests(write);
        assert_eq!(asked.of("notified"), 0, "{asked:?}");
        // The reply to a change of mode has the file's own attributes; its directory's ctime
        // changes too.
        let chmod = |world: &World| set_mode(world.at("a/b/mode"), 0o600).unwrap();
        let (_, asked) = world.requests(chmod);
        assert_eq!(asked.of("notified"), 1, "{asked:?}");
        // Both names are one file to the kernel. The first such file makes the root record what its
        // index is for, which changes its ctime.
        for (name, told) in [("other", 1), ("later", 0)] {
            let (_, asked) =
                world.requests(|world| file(world, name).write_all_at(b"x", 5).unwrap());
            assert_eq!(asked.of("notified"), told, "{name}: {asked:?}");
        }
    });
}

#[test]
fn tar_reads_a_changed_union_without_complaint() {
    as_root(|world| {
        for i in 0..50 {
            world.put(&format!("bin/{i}"), "x");
        }
        world.mount();
        for round in 0..3 {
            fs::write(world.at("bin/new"), vec![round; 100_000]).unwrap();
            fs::write(world.at(format!("bin/{round}")), "changed").unwrap();
            let output = Command::new("tar")
                .args(["-cf", "/dev/null", "."])
                .current_dir(world.at(""))
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{said}");
        }
    });
}

#[test]
fn a_successor_keeps_notifying() {
    as_root(|world| {
        for_others(world);
        world.put("dir/f", "content");
        world.will_hand_over(1);
        world.mount();
        let held = File::open(world.at("dir/f")).unwrap();
        set_mode(world.at("dir/f"), 0o6777).unwrap();
        world.succeed(1);
        assert_eq!(held.metadata().unwrap().mode() & 0o7777, 0o6777);
        let before = fs::metadata(world.at("dir")).unwrap();
        as_other(world, "printf x >> dir/f");
        assert_eq!(held.metadata().unwrap().mode() & 0o7777, 0o777);
        assert_eq!(
            fs::metadata(world.at("dir")).unwrap().mtime(),
            before.mtime()
        );
    });
}

#[test]
fn a_detached_mount_ends_while_it_is_being_notified() {
    as_root(|world| {
        for_others(world);
        for i in 0..40 {
            world.put(&format!("a{i}/b/f"), vec![3; 5000]);
        }
        world.mount();
        // Detached: it ends with the last descriptor, in the middle of changes that cause
        // notifications.
        let files: Vec<_> = (0..40)
            .map(|i| {
                let mut options = OpenOptions::new();
                let options = options.write(true).custom_flags(0);
                options.open(world.at(format!("a{i}/b/f"))).unwrap()
            })
            .collect();
        let flags = rustix::mount::UnmountFlags::DETACH;
        rustix::mount::unmount(world.at(""), flags).unwrap();
        for file in files {
            file.write_all_at(b"late", 7).unwrap();
        }
        assert!(world.ended().success());
        for i in 0..40 {
            let content = fs::read(world.upper(format!("a{i}/b/f"))).unwrap();
            assert_eq!(&content[7..11], b"late");
        }
    });
}

#[test]
fn bytes_written_past_the_cache_and_not_waited_for_are_read_through_it() {
    for options in [&["nouring"][..], &[], &["checked"], &["passthrough"]] {
        as_root(|world| {
            if options == ["passthrough"] && !Since::FusePassthrough.is_here_for("passthrough") {
                return;
            }
            options.iter().for_each(|option| world.option(option));
            match options.is_empty() {
                true => drop(mount_with_rings(world)),
                false => world.mount(),
            }
            for how in ["libaio", "io_uring"] {
                let output = Command::new("python3")
                    .args(["-c", include_str!("direct.py"), how])
                    .arg(world.at(how))
                    .arg("60")
                    .output()
                    .unwrap();
                let said = String::from_utf8_lossy(&output.stdout);
                let err = String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success(), "{how} {options:?}: {err}");
                match said.strip_prefix("untried") {
                    Some(why) => untested(&format!("writes by {how}"), why),
                    None => assert_eq!(said, "", "{how} {options:?}"),
                }
            }
        });
    }
}

#[test]
fn reading_leaves_no_trace_in_lower_layers() {
    everywhere("reading_leaves_no_trace_in_lower_layers", |world| {
        let path = world.put("f", vec![1; 100_000]);
        let long_ago = fs::FileTimes::new().set_accessed(std::time::SystemTime::UNIX_EPOCH);
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_times(long_ago)
            .unwrap();
        world.mount();
        assert_eq!(fs::read(world.at("f")).unwrap().len(), 100_000);
        assert_eq!(fs::metadata(&path).unwrap().atime(), 0);
        let mut options = OpenOptions::new();
        let file = options.write(true).open(world.at("f")).unwrap();
        file.write_all_at(b"new", 0).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().atime(), 0);
        assert_eq!(fs::metadata(world.at("f")).unwrap().atime(), 0);
    });
}
