//! Passthrough mode: a file is one inode to programs, however it was opened; and the limits of a
//! descriptor that reads a lower file which is no longer the file's.

mod support;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::{FlockOperation, Gid, Uid, XattrFlags};
use support::*;

/// Files of this size are read by the kernel itself.
const BIG_BYTES: usize = 128 << 10;
const MATRIX: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/passthrough_matrix.py");

/// Runs `check` in a world that is mounted in passthrough mode once `before` has run.
fn through(before: impl FnOnce(&mut World), check: impl FnOnce(&mut World)) {
    as_root(|world| {
        if !world.pass_through() {
            return;
        }
        world.option("allow_other");
        fs::set_permissions(world.beside(""), fs::Permissions::from_mode(0o711)).unwrap();
        before(world);
        world.mount();
        check(world);
    });
}

fn big(byte: u8) -> Vec<u8> {
    vec![byte; BIG_BYTES]
}

fn open_to_write(path: impl AsRef<Path>) -> File {
    OpenOptions::new().write(true).open(path).unwrap()
}

fn chmod(path: impl AsRef<Path>, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn mode(path: impl AsRef<Path>) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

/// Opens `name` so that the kernel reads the lower file, which stops being the file's while it is
/// open.
fn left_behind(world: &World, name: &str) -> File {
    let old = File::open(world.at(name)).unwrap();
    open_to_write(world.at(name)).write_all(b"NEW").unwrap();
    let mut start = [0; 3];
    old.read_exact_at(&mut start, 0).unwrap();
    assert_eq!(&start, b"aaa", "it reads the lower file");
    assert!(fs::read(world.at(name)).unwrap().starts_with(b"NEWa"));
    old
}

fn python(script: &str, arguments: &[&Path]) {
    let ran = Command::new("python3")
        .args(["-c", script])
        .args(arguments)
        .status()
        .unwrap();
    assert!(ran.success());
}

/// Runs a shell line in the mount as a user that owns nothing.
fn as_nobody(world: &World, line: &str) -> std::process::ExitStatus {
    Command::new("setpriv")
        .args(["--reuid", "1000", "--regid", "1000", "--clear-groups"])
        .args(["sh", "-c", line])
        .current_dir(world.at(""))
        .stderr(Stdio::null())
        .status()
        .unwrap()
}

/// Runs every cell of `passthrough_matrix.py` on files that come from `origin`, in a mount with
/// this additional option.
fn matrix(origin: &str, option: Option<&str>) {
    let make = |place: &Path| {
        let made = Command::new("python3")
            .args([MATRIX, "make"])
            .arg(place)
            .status();
        assert!(made.unwrap().success());
    };
    let before = |world: &mut World| {
        if let Some(option) = option {
            world.option(option);
        }
        fs::create_dir(world.beside("plain")).unwrap();
        match origin {
            "lower" => make(&world.lower("")),
            "upper" => make(&world.upper("")),
            _ => return,
        }
        make(&world.beside("plain"));
    };
    through(before, |world| {
        let ran = Command::new("python3")
            .arg(MATRIX)
            .args([world.at(""), world.lower(""), world.upper("")])
            .args([world.beside("plain").as_os_str(), origin.as_ref()])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&ran.stdout);
        let err = String::from_utf8_lossy(&ran.stderr);
        assert!(said.ends_with("cells=2592 differences=0\n"), "{said}{err}");
    });
}

#[test]
fn a_file_of_a_lower_layer_is_one_inode_to_programs() {
    matrix("lower", None);
}

#[test]
fn a_file_that_is_copied_up_by_blocks_is_one_inode_to_programs() {
    matrix("lower", Some("blocks=32768"));
}

#[test]
fn a_file_of_the_upper_layer_is_one_inode_to_programs() {
    matrix("upper", None);
}

#[test]
fn a_file_that_was_made_is_one_inode_to_programs() {
    matrix("created", None);
}

#[test]
fn an_old_descriptor_sees_the_new_mode_owner_size_and_links() {
    let put = |world: &mut World| drop(world.put("file", big(b'a')));
    through(put, |world| {
        let old = left_behind(world, "file");
        let same = || {
            let (by_name, now) = (
                fs::metadata(world.at("file")).unwrap(),
                old.metadata().unwrap(),
            );
            let facts = |stat: &fs::Metadata| {
                let owner = (stat.uid(), stat.gid());
                (stat.mode(), owner, stat.len(), stat.nlink(), stat.ino())
            };
            assert_eq!(facts(&now), facts(&by_name));
            assert_eq!(now.mtime(), by_name.mtime());
            facts(&now)
        };
        same();
        chmod(world.at("file"), 0o640);
        assert_eq!(same().0 & 0o7777, 0o640);
        std::os::unix::fs::chown(world.at("file"), Some(5), Some(6)).unwrap();
        assert_eq!(same().1, (5, 6));
        open_to_write(world.at("file")).set_len(1000).unwrap();
        assert_eq!(same().2, 1000);
        let end = rustix::fs::seek(&old, rustix::fs::SeekFrom::End(0)).unwrap();
        assert_eq!(end, 1000);
        fs::hard_link(world.at("file"), world.at("more")).unwrap();
        assert_eq!(same().3, 2);
        fs::remove_file(world.at("more")).unwrap();
        assert_eq!(same().3, 1);
    });
}

#[test]
fn an_old_descriptor_reads_the_old_bytes_of_a_file_that_was_truncated() {
    let put = |world: &mut World| drop(world.put("file", big(b'a')));
    through(put, |world| {
        // By name, so that nothing is opened again.
        let old = File::open(world.at("file")).unwrap();
        python(
            "import os, sys; os.truncate(sys.argv[1], 10)",
            &[&world.at("file")],
        );
        assert_eq!(old.metadata().unwrap().len(), 10);
        let mut all = vec![0; BIG_BYTES];
        old.read_exact_at(&mut all, 0).unwrap();
        assert!(all == big(b'a'));
        assert_eq!(fs::read(world.at("file")).unwrap(), vec![b'a'; 10]);
    });
}

#[test]
fn what_an_old_descriptor_changes_shows_by_name_at_once() {
    let put = |world: &mut World| drop(world.put("file", big(b'a')));
    through(put, |world| {
        let old = left_behind(world, "file");
        chmod(world.at("file"), 0o644);
        assert!(as_nobody(world, "cat file > /dev/null").success());
        old.set_permissions(fs::Permissions::from_mode(0o600))
            .unwrap();
        assert_eq!(mode(world.at("file")), 0o600);
        assert!(!as_nobody(world, "cat file > /dev/null").success());
        rustix::fs::fchown(&old, Some(Uid::from_raw(1000)), Some(Gid::from_raw(1000))).unwrap();
        assert_eq!(fs::metadata(world.at("file")).unwrap().uid(), 1000);
        assert!(as_nobody(world, "cat file > /dev/null").success());
        rustix::fs::fsetxattr(&old, "user.mine", b"yes", XattrFlags::empty()).unwrap();
        let mut value = [0; 8];
        let length = rustix::fs::getxattr(world.at("file"), "user.mine", &mut value).unwrap();
        assert_eq!(&value[..length], b"yes");
        let then = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
        old.set_modified(then).unwrap();
        assert_eq!(fs::metadata(world.at("file")).unwrap().mtime(), 1_000_000);
    });
}

#[test]
fn the_names_of_a_file_agree_when_one_was_known_before_it_was_copied_up() {
    let put = |world: &mut World| {
        world.put("a", big(b'a'));
        fs::hard_link(world.lower("a"), world.lower("b")).unwrap();
    };
    through(put, |world| {
        assert_eq!(mode(world.at("b")), 0o644);
        let _old = left_behind(world, "a");
        chmod(world.at("a"), 0o640);
        assert_eq!(mode(world.at("b")), 0o640);
        chmod(world.at("b"), 0o600);
        assert_eq!(mode(world.at("a")), 0o600);
        fs::remove_file(world.at("b")).unwrap();
        assert_eq!(fs::metadata(world.at("a")).unwrap().nlink(), 1);
        fs::rename(world.at("a"), world.at("c")).unwrap();
        assert!(fs::read(world.at("c")).unwrap().starts_with(b"NEWa"));
    });
}

#[test]
fn a_write_through_the_kernel_takes_privileges_that_were_given_after_the_open() {
    through(
        |_| {},
        |world| {
            fs::write(world.at("file"), b"harmless").unwrap();
            chmod(world.at("file"), 0o666);
            // Its own descriptor, opened before the file has privileges.
            let line = "exec 3<>file; echo > ../open; while [ ! -e ../given ]; do sleep 0.01; done; echo evil >&3";
            chmod(world.beside(""), 0o777);
            let (open, given) = (world.beside("open"), world.beside("given"));
            for given_mode in [0o4777, 0o2777, 0o6755] {
                let ended = std::thread::scope(|scope| {
                    let world = &*world;
                    let writer = scope.spawn(move || as_nobody(world, line));
                    while !open.exists() {
                        std::thread::sleep(std::time::Duration::from_millis(5));
                    }
                    chmod(world.at("file"), given_mode);
                    assert_eq!(mode(world.at("file")), given_mode);
                    File::create(&given).unwrap();
                    writer.join().unwrap()
                });
                assert!(ended.success());
                assert_eq!(mode(world.at("file")), given_mode & 0o777);
                assert_eq!(mode(world.upper("file")), given_mode & 0o777);
                fs::remove_file(&open).unwrap();
                fs::remove_file(&given).unwrap();
                chmod(world.at("file"), 0o666);
            }
        },
    );
}

#[test]
fn a_write_through_the_kernel_by_root_leaves_privileges() {
    through(
        |world| {
            fs::write(world.upper("file"), big(b'a')).unwrap();
            chmod(world.upper("file"), 0o6755);
        },
        |world| {
            let (_, requests) = world.requests(|world| {
                open_to_write(world.at("file"))
                    .write_all_at(b"x", 0)
                    .unwrap();
            });
            assert_eq!(requests.of("Write"), 0, "{requests:?}");
            assert_eq!(mode(world.at("file")), 0o6755);
            assert_eq!(mode(world.upper("file")), 0o6755);
        },
    );
}

#[test]
fn privileges_are_not_given_by_an_old_descriptor() {
    let put = |world: &mut World| {
        world.put("a", big(b'a'));
        fs::hard_link(world.lower("a"), world.lower("b")).unwrap();
    };
    through(put, |world| {
        assert_eq!(mode(world.at("b")), 0o644);
        let old = left_behind(world, "a");
        let refused = old.set_permissions(fs::Permissions::from_mode(0o4755));
        assert_eq!(errno(refused), rustix::io::Errno::STALE.raw_os_error());
        let value = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        let refused =
            rustix::fs::fsetxattr(&old, "security.capability", value, XattrFlags::empty());
        assert_eq!(refused, Err(rustix::io::Errno::STALE));
        assert_eq!(mode(world.at("a")), 0o644);
        // By name, it can.
        for name in ["a", "b"] {
            chmod(world.at(name), 0o4755);
            assert_eq!(mode(world.at("a")), 0o4755);
            chmod(world.at(name), 0o644);
        }
        old.set_permissions(fs::Permissions::from_mode(0o1644))
            .unwrap();
        assert_eq!(mode(world.at("a")), 0o1644);
    });
}

#[test]
fn appends_without_a_name_go_to_the_end() {
    let put = |world: &mut World| drop(world.put("log", big(b'a')));
    through(put, |world| {
        let target = world.beside("bound");
        File::create(&target).unwrap();
        rustix::mount::mount_bind(world.at("log"), &target).unwrap();
        let appended = (|| {
            let old = left_behind(world, "log");
            drop(old);
            let append = |path: &Path| OpenOptions::new().append(true).open(path);
            // Served once the kernel has reported that the lower file is no longer read.
            let mut bound = loop {
                match append(&target) {
                    Err(error) if error.raw_os_error() == Some(116) => {}
                    other => break other?,
                }
                std::thread::sleep(std::time::Duration::from_millis(5));
            };
            let mut named = append(&world.at("log"))?;
            for round in 0..20 {
                bound.write_all(format!("bound {round}\n").as_bytes())?;
                named.write_all(format!("named {round}\n").as_bytes())?;
            }
            std::io::Result::Ok(())
        })();
        rustix::mount::unmount(&target, rustix::mount::UnmountFlags::DETACH).unwrap();
        appended.unwrap();
        let rounds = (0..20).map(|round| format!("bound {round}\nnamed {round}\n"));
        let expected = rounds.collect::<String>();
        let all = fs::read(world.at("log")).unwrap();
        assert_eq!(
            String::from_utf8_lossy(&all[BIG_BYTES..]),
            expected,
            "{} bytes",
            all.len()
        );
    });
}

#[test]
fn a_mapping_whose_descriptor_is_closed_stays_the_files() {
    through(
        |_| {},
        |world| {
            for size in ["5000", "200000"] {
                let script = r#"
import mmap, os, sys, time
path, size = sys.argv[1], int(sys.argv[2])
open(path, "wb").write(b"a" * size)
# The kernel tells of a close some time later, so whether it is read through the kernel or not is
# open: both have to be right.
for pause in (0, 0.3):
    time.sleep(pause)
    fd = os.open(path, os.O_RDWR)
    m = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    os.close(fd)
    time.sleep(pause)
    reader = os.open(path, os.O_RDONLY)
    assert os.pread(reader, 1, 0) == b"a"
    m[0:1] = b"b"
    assert os.pread(reader, 1, 0) == b"b", "a reader sees the store"
    with open(path, "r+b") as writer:
        writer.write(b"c")
    assert m[0:1] == b"c", "the mapping sees the write"
    m[0:1] = b"a"
    assert open(path, "rb").read(1) == b"a"
    os.close(reader)
"#;
                let path = world.at("file");
                python(script, &[&path, Path::new(size)]);
            }
        },
    );
}

#[test]
fn a_store_through_a_mapping_changes_the_visible_times() {
    through(
        |world| {
            // In the upper layer already, so it is open through the kernel at once.
            fs::write(world.upper("above"), big(b'a')).unwrap();
        },
        |world| {
            let script = r#"
import mmap, os, sys, time
path = sys.argv[1]
old = 1000000
os.utime(path, (old, old))
assert os.stat(path).st_mtime == old
changed = os.stat(path).st_ctime_ns
time.sleep(0.05)
fd = os.open(path, os.O_RDWR)
m = mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
assert os.stat(path).st_mtime == old, "a mapping alone changes nothing"
m[0:1] = b"b"
m.flush()
for stat in (os.stat(path), os.fstat(fd)):
    assert stat.st_mtime > old and stat.st_ctime_ns > changed, stat
# Once more, with the descriptor closed.
os.close(fd)
os.utime(path, (old, old))
time.sleep(0.05)
m[1:2] = b"b"
m.flush()
assert os.stat(path).st_mtime > old, os.stat(path)
"#;
            python(script, &[&world.at("above")]);
        },
    );
}

#[test]
fn a_program_is_run_or_written_to_and_not_both_at_once() {
    let put = |world: &mut World| {
        let program = fs::read("/bin/sleep").unwrap();
        for name in ["lower", "written"] {
            world.put(name, [&program[..], &big(0)].concat());
            chmod(world.lower(name), 0o755);
        }
    };
    through(put, |world| {
        let run = |name: &str| Command::new(world.at(name)).arg("30").spawn();
        let busy = Some(rustix::io::Errno::TXTBSY.raw_os_error());
        let writer = open_to_write(world.at("written"));
        let refused = run("written").unwrap_err();
        assert_eq!(refused.raw_os_error(), busy);
        // Also after it was opened for reading, by name.
        fs::read(world.at("written")).unwrap();
        assert_eq!(run("written").unwrap_err().raw_os_error(), busy);
        drop(writer);
        for name in ["lower", "written"] {
            let mut running = run(name).unwrap();
            let open = OpenOptions::new().write(true).open(world.at(name));
            assert_eq!(open.unwrap_err().raw_os_error(), busy, "{name}");
            running.kill().unwrap();
            running.wait().unwrap();
        }
    });
}

#[test]
fn with_a_limit_upper_files_are_served_by_requests() {
    as_root(|world| {
        if !world.pass_through() {
            return;
        }
        world.option("size=4194304");
        world.put("file", big(b'a'));
        world.mount();
        let (_, requests) = world.requests(|world| fs::read(world.at("file")).unwrap());
        assert_eq!(requests.of("Read"), 0, "below, the kernel reads by itself");
        open_to_write(world.at("file")).write_all(b"x").unwrap();
        let (_, requests) = world.requests(|world| fs::read(world.at("file")).unwrap());
        assert!(requests.of("Read") > 0, "{requests:?}");
        // A file that is larger than the limit and has no blocks: stores through a mapping count
        // like writes.
        let script = r#"
import errno, mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, 16 << 20)
os.close(fd)
fd = os.open(sys.argv[1], os.O_RDWR)
m = mmap.mmap(fd, 16 << 20, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
for at in range(0, 16 << 20, 4096):
    m[at] = 1
try:
    m.flush()
    os.fsync(fd)
except OSError as error:
    assert error.errno in (errno.ENOSPC, errno.EIO), error
else:
    sys.exit("it took 16 MiB")
"#;
        python(script, &[&world.at("sparse")]);
        let blocks = fs::metadata(world.upper("sparse")).unwrap().blocks();
        assert!(blocks * 512 <= 4 << 20, "{blocks}");
    });
}

#[test]
fn locks_of_an_old_descriptor_and_of_a_new_one_do_not_meet() {
    let put = |world: &mut World| drop(world.put("file", big(b'a')));
    through(put, |world| {
        // As long as the bytes stay, they do.
        let first = File::open(world.at("file")).unwrap();
        rustix::fs::flock(&first, FlockOperation::LockExclusive).unwrap();
        let second = File::open(world.at("file")).unwrap();
        let refused = rustix::fs::flock(&second, FlockOperation::NonBlockingLockExclusive);
        assert_eq!(refused, Err(rustix::io::Errno::WOULDBLOCK));
        // Wrong, but this is what the kernel offers: it keeps locks by inode, and now there are
        // two. docs/semantics/mounts.md says so.
        let third = open_to_write(world.at("file"));
        rustix::fs::flock(&third, FlockOperation::NonBlockingLockExclusive).unwrap();
        assert!(first.as_raw_fd() != third.as_raw_fd());
    });
}
