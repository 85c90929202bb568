//! Passthrough mode: what is shared with the lower layers, what is never written to, and the
//! exceptions.

mod support;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use rustix::fs::{Mode, OFlags};
use support::*;

const BIG_BYTES: usize = 1 << 20;

/// Runs `check` in a world that is mounted in passthrough mode.
fn through(check: impl FnOnce(&mut World)) {
    as_root(|world| {
        if world.pass_through() {
            check(world);
        }
    });
}

fn big(byte: u8) -> Vec<u8> {
    vec![byte; BIG_BYTES]
}

fn write_open(path: impl AsRef<Path>) -> File {
    OpenOptions::new().write(true).open(path).unwrap()
}

/// Tries until it succeeds: the kernel reports a little later that a file was closed, and a process
/// that another test is just starting may still have it open.
#[track_caller]
fn soon<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
    let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        if let Some(done) = attempt() {
            return done;
        }
        assert!(std::time::Instant::now() < until, "it never succeeds");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

#[track_caller]
fn assert_begins(path: impl AsRef<Path>, with: &[u8]) {
    let content = fs::read(path).unwrap();
    assert_eq!(content.len(), BIG_BYTES);
    assert!(content.starts_with(with), "{:?}", &content[..8]);
}

#[test]
fn passthrough_reads_reach_no_daemon() {
    through(|world| {
        world.put("file", big(b'a'));
        world.mount();
        let (_, requests) = world.requests(|world| assert_begins(world.at("file"), b"aaa"));
        assert_eq!(requests.of("Open"), 1);
        assert_eq!(requests.of("Read"), 0, "{requests:?}");
        // Written once by requests, then through the kernel.
        write_open(world.at("file")).write_all(b"x").unwrap();
        // Through the kernel as soon as the server has seen the close, which nothing waits for.
        let ends = std::time::Instant::now() + std::time::Duration::from_secs(30);
        loop {
            let (_, requests) = world.requests(|world| {
                let file = write_open(world.at("file"));
                file.write_all_at(&big(b'b'), 0).unwrap();
            });
            if requests.of("Write") == 0 {
                break;
            }
            assert!(std::time::Instant::now() < ends, "{requests:?}");
        }
        assert_begins(world.at("file"), b"bbb");
        assert_begins(world.upper("file"), b"bbb");
        assert_begins(world.lower("file"), b"aaa");
    });
}

#[test]
fn passthrough_never_writes_to_a_lower_layer() {
    through(|world| {
        world.put("file", big(b'a'));
        world.put("dir/file", big(b'a'));
        world.mount();
        for name in ["file", "dir/file"] {
            let ino = identity(world.at(name)).1;
            let reader = File::open(world.at(name)).unwrap();
            let mut first = [0; 3];
            reader.read_exact_at(&mut first, 0).unwrap();
            let writer = OpenOptions::new()
                .read(true)
                .write(true)
                .open(world.at(name))
                .unwrap();
            writer.write_all_at(b"NEW", 0).unwrap();
            let second = OpenOptions::new()
                .read(true)
                .write(true)
                .open(world.at(name))
                .unwrap();
            second.write_all_at(b"MORE", 10).unwrap();
            // A new open sees what was written; the old descriptor keeps what it had.
            assert_begins(world.at(name), b"NEWaaaaaaaMORE");
            reader.read_exact_at(&mut first, 0).unwrap();
            assert_eq!(&first, b"aaa");
            drop((writer, second));
            let again = write_open(world.at(name));
            again.write_all_at(b"yes", 0).unwrap();
            assert_begins(world.at(name), b"yesaaaaaaaMORE");
            assert_eq!(identity(world.at(name)).1, ino);
            drop((reader, again));
            assert_begins(world.at(name), b"yesaaaaaaaMORE");
            assert!(fs::read(world.lower(name)).unwrap() == big(b'a'));
            assert_begins(world.upper(name), b"yesaaaaaaaMORE");
        }
        world.remount();
        assert_begins(world.at("file"), b"yesaaaaaaaMORE");
    });
}

#[test]
fn a_mapping_through_the_kernel_keeps_what_it_had() {
    through(|world| {
        world.put("file", big(b'a'));
        world.mount();
        let script = r#"
import mmap, os, sys
path = sys.argv[1]
fd = os.open(path, os.O_RDONLY)
m = mmap.mmap(fd, 1 << 20, mmap.MAP_SHARED, mmap.PROT_READ)
assert m[0:1] == b"a"
w = os.open(path, os.O_RDWR)
os.pwrite(w, b"b", 0)
assert os.pread(os.open(path, os.O_RDONLY), 1, 0) == b"b"
assert m[0:1] == b"a"
s = mmap.mmap(w, 1 << 20, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
s[5:6] = b"c"
s.flush()
assert os.pread(os.open(path, os.O_RDONLY), 6, 0) == b"baaaac"
"#;
        let ran = Command::new("python3")
            .args(["-c", script])
            .arg(world.at("file"))
            .status()
            .unwrap();
        assert!(ran.success());
        assert!(fs::read(world.lower("file")).unwrap() == big(b'a'));
        assert_begins(world.upper("file"), b"baaaac");
    });
}

#[test]
fn opens_without_a_name_are_served_without_passthrough() {
    through(|world| {
        for name in ["proc", "path", "bound"] {
            world.put(name, big(b'a'));
        }
        world.mount();
        let by_number = |fd: &OwnedFd, how: OFlags| {
            let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
            rustix::fs::open(path, how, Mode::empty()).map(File::from)
        };
        let begins = |file: &File, with: &[u8]| {
            let mut start = vec![0; with.len()];
            file.read_exact_at(&mut start, 0).unwrap();
            assert_eq!(start, with);
        };
        // An open descriptor, opened again through /proc.
        let old = OwnedFd::from(File::open(world.at("proc")).unwrap());
        write_open(world.at("proc")).write_all(b"NEW").unwrap();
        begins(&by_number(&old, OFlags::RDONLY).unwrap(), b"NEWa");
        // For writing there is no safe answer while the lower file is read through the kernel.
        let refused = by_number(&old, OFlags::RDWR).unwrap_err();
        assert_eq!(refused, rustix::io::Errno::STALE);
        drop(old);
        let new = OwnedFd::from(File::open(world.at("proc")).unwrap());
        let writer = soon(|| by_number(&new, OFlags::RDWR).ok());
        writer.write_all_at(b"w", 3).unwrap();
        begins(&writer, b"NEWw");
        assert_begins(world.at("proc"), b"NEWw");
        // An `O_PATH` descriptor.
        let place = rustix::fs::open(world.at("path"), OFlags::PATH, Mode::empty()).unwrap();
        let reader = File::open(world.at("path")).unwrap();
        write_open(world.at("path")).write_all(b"NEW").unwrap();
        begins(&by_number(&place, OFlags::RDONLY).unwrap(), b"NEWa");
        drop(reader);
        // A file that is bind-mounted elsewhere.
        let target = world.beside("bound-here");
        File::create(&target).unwrap();
        rustix::mount::mount_bind(world.at("bound"), &target).unwrap();
        let reader = File::open(&target).unwrap();
        let written = (|| {
            write_open(world.at("bound")).write_all(b"NEW")?;
            begins(&File::open(&target)?, b"NEWa");
            drop(reader);
            let opened = soon(|| OpenOptions::new().write(true).open(&target).ok());
            opened.write_all_at(b"w", 3)
        })();
        rustix::mount::unmount(&target, rustix::mount::UnmountFlags::DETACH).unwrap();
        written.unwrap();
        assert_begins(world.at("bound"), b"NEWw");
        for name in ["proc", "path", "bound"] {
            assert!(fs::read(world.lower(name)).unwrap() == big(b'a'), "{name}");
        }
    });
}

#[test]
fn passthrough_with_a_limit_writes_by_requests() {
    through(|world| {
        world.option("size=4194304");
        world.put("file", big(b'a'));
        world.mount();
        write_open(world.at("file")).write_all(b"x").unwrap();
        let (_, requests) = world.requests(|world| {
            write_open(world.at("file")).write_all(&big(b'b')).unwrap();
        });
        assert!(requests.of("Write") > 0, "{requests:?}");
        let mut file = File::create(world.at("more")).unwrap();
        let full = (0..64).find_map(|_| file.write_all(&big(b'c')).err());
        assert_eq!(full.unwrap().raw_os_error(), Some(28));
    });
}

#[test]
fn passthrough_clears_privileges() {
    through(|world| {
        world.option("allow_other");
        fs::set_permissions(world.beside(""), fs::Permissions::from_mode(0o711)).unwrap();
        world.put("file", big(b'a'));
        fs::set_permissions(world.lower("file"), fs::Permissions::from_mode(0o4777)).unwrap();
        world.mount();
        // In the upper layer already, so passthrough is possible.
        write_open(world.at("file")).write_all(b"x").unwrap();
        assert_eq!(
            fs::metadata(world.at("file")).unwrap().mode() & 0o7777,
            0o4777
        );
        let ran = Command::new("setpriv")
            .args(["--reuid", "1000", "--regid", "1000", "--clear-groups"])
            .args(["sh", "-c", "printf x >> file"])
            .current_dir(world.at(""))
            .status()
            .unwrap();
        assert!(ran.success());
        assert_eq!(
            fs::metadata(world.at("file")).unwrap().mode() & 0o7777,
            0o777
        );
    });
}

#[test]
fn hard_links_and_passthrough_agree() {
    through(|world| {
        world.put("a", big(b'a'));
        fs::hard_link(world.lower("a"), world.lower("b")).unwrap();
        world.mount();
        let readers = [
            File::open(world.at("a")).unwrap(),
            File::open(world.at("b")).unwrap(),
        ];
        write_open(world.at("b")).write_all(b"NEW").unwrap();
        for name in ["a", "b"] {
            assert_begins(world.at(name), b"NEW");
            write_open(world.at(name))
                .write_all_at(name.as_bytes(), 3)
                .unwrap();
            assert_begins(world.at("a"), &[b"NEW", name.as_bytes()].concat());
            assert_begins(world.at("b"), &[b"NEW", name.as_bytes()].concat());
        }
        drop(readers);
        assert!(fs::read(world.lower("a")).unwrap() == big(b'a'));
    });
}

#[test]
fn a_file_shares_the_page_cache_of_the_lower_layer() {
    through(|world| {
        world.put("file", big(b'a'));
        world.mount();
        assert_begins(world.at("file"), b"a");
        // The mount's file uses the lower file's pages: dropping those leaves none.
        let lower = File::open(world.lower("file")).unwrap();
        lower.sync_all().unwrap();
        rustix::fs::fadvise(&lower, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        let script = r#"
import ctypes, mmap, os, sys
libc = ctypes.CDLL(None)
def resident(path):
    fd = os.open(path, os.O_RDONLY)
    m = mmap.mmap(fd, 1 << 20, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
    at = (ctypes.c_char * (1 << 20)).from_buffer(m)
    seen = (ctypes.c_ubyte * 256)()
    assert libc.mincore(at, ctypes.c_size_t(1 << 20), seen) == 0
    return sum(page & 1 for page in seen)
assert resident(sys.argv[1]) == 0, resident(sys.argv[1])
open(sys.argv[2], "rb").read()
assert resident(sys.argv[1]) == 256
"#;
        let ran = Command::new("python3")
            .args(["-c", script])
            .arg(world.at("file"))
            .arg(world.lower("file"))
            .status()
            .unwrap();
        assert!(ran.success());
    });
}
