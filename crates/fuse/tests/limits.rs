//! Limits on size and inodes through the mount: what does not fit is refused before it is created,
//! and the mount continues.

mod support;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use support::*;
use vellum_testkit::FsKind;

const SIZE: u64 = 8 << 20;
const NOSPC: i32 = 28;

/// Writes until it is full; returns how much fit.
fn fill(path: impl AsRef<std::path::Path>) -> u64 {
    let mut file = File::create(path).unwrap();
    let block = vec![7; 64 << 10];
    let mut fitted = 0;
    loop {
        match file.write(&block) {
            Ok(count) => fitted += count as u64,
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(NOSPC), "{error}");
                return fitted;
            }
        }
        assert!(fitted <= SIZE, "more than the limit");
    }
}

#[track_caller]
fn soon(what: &str, done: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < until, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// No half-finished file may lie in the work directory.
fn staged(world: &World) -> Vec<String> {
    let mut left = names(world.work().join("work"));
    left.retain(|name| name != "incompat");
    left
}

fn check(world: &mut World) {
    let big = vec![1; 12 << 20];
    world.put("big", &big);
    world.put("small", "small");
    for option in [format!("size={SIZE}"), String::from("inodes=60")] {
        world.option(&option);
    }
    world.mount();
    let room = || {
        let room = rustix::fs::statvfs(world.at("")).unwrap();
        (room.f_blocks * room.f_frsize, room.f_files)
    };
    assert_eq!(room(), (SIZE, 60));
    // A copy-up that does not fit leaves everything as it was.
    for _ in 0..2 {
        let file = OpenOptions::new()
            .write(true)
            .open(world.at("big"))
            .unwrap();
        assert_eq!(errno(file.write_all_at(b"x", 5)), NOSPC);
        drop(file);
        assert!(fs::read(world.at("big")).unwrap() == big);
        assert!(!world.upper("big").exists());
        assert_eq!(staged(world), [""; 0]);
    }
    // What fits, fits; space of removed files can be used again.
    for _ in 0..3 {
        let fitted = fill(world.at("full"));
        assert!(fitted >= SIZE / 2, "only {fitted} bytes fitted");
        assert_eq!(fs::metadata(world.at("full")).unwrap().len(), fitted);
        assert_eq!(fs::read_to_string(world.at("small")).unwrap(), "small");
        fs::remove_file(world.at("full")).unwrap();
        // The file exists until the kernel reports its close, and a process that another test is
        // just starting may have it open.
        soon("room", || {
            let room = rustix::fs::statvfs(world.at("")).unwrap();
            room.f_bfree * room.f_frsize >= SIZE / 2
        });
    }
    let make = |from: usize| {
        (from..from + 100).find(|n| match File::create(world.at(format!("file-{n}"))) {
            Ok(_) => false,
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(NOSPC), "{error}");
                true
            }
        })
    };
    let made = make(0).expect("there is an end");
    assert!((40..=60).contains(&made), "{made} files");
    fs::remove_file(world.at("file-0")).unwrap();
    soon("an inode", || File::create(world.at("again")).is_ok());
    assert_eq!(errno(File::create(world.at("one-more"))), NOSPC);
    // A copy-up takes an inode, too. Removing needs none beyond the ones freed.
    let refused = fs::set_permissions(
        world.at("small"),
        std::os::unix::fs::PermissionsExt::from_mode(0o600),
    );
    assert_eq!(errno(refused), NOSPC);
    assert_eq!(staged(world), [""; 0]);
    for killed in [false, true] {
        match killed {
            false => world.remount(),
            true => {
                world.crash();
                world.mount();
            }
        }
        assert_eq!(
            errno(File::create(world.at("one-more"))),
            NOSPC,
            "killed: {killed}"
        );
    }
    for n in 1..made {
        fs::remove_file(world.at(format!("file-{n}"))).unwrap();
    }
    fs::write(world.at("small"), "changed").unwrap();
    world.remount();
    assert_eq!(fs::read_to_string(world.at("small")).unwrap(), "changed");
}

#[test]
fn a_limit_holds_through_the_mount() {
    everywhere("a_limit_holds_through_the_mount", check);
}

#[test]
fn a_limit_holds_on_any_file_system() {
    for kind in [FsKind::Xfs, FsKind::Btrfs, FsKind::Tmpfs] {
        eprintln!("{kind:?}");
        as_root_on(kind, check);
    }
}
