//! What programs see while a file moves from a lower layer to the upper one.

mod support;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};

use rustix::fs::{CWD, FlockOperation};
use support::*;

const BIG_BYTES: u64 = 8 << 20;

fn write_to(path: impl AsRef<std::path::Path>) -> File {
    OpenOptions::new().write(true).open(path).unwrap()
}

#[test]
fn a_descriptor_from_before_a_copy_up_sees_what_is_written_after_it() {
    everywhere(
        "a_descriptor_from_before_a_copy_up_sees_what_is_written_after_it",
        |world| {
            world.put("file", "old content");
            world.mount();
            let mut reader = File::open(world.at("file")).unwrap();
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            assert_eq!(text, "old content");
            write_to(world.at("file")).write_all(b"NEW").unwrap();
            reader.seek(SeekFrom::Start(0)).unwrap();
            text.clear();
            reader.read_to_string(&mut text).unwrap();
            assert_eq!(text, "NEW content");
            assert_eq!(fs::read(world.lower("file")).unwrap(), b"old content");
            assert_eq!(fs::read(world.upper("file")).unwrap(), b"NEW content");
            assert_eq!(reader.metadata().unwrap().len(), 11);
        },
    );
}

#[test]
fn a_mapping_from_before_a_copy_up_sees_what_is_written_after_it() {
    everywhere(
        "a_mapping_from_before_a_copy_up_sees_what_is_written_after_it",
        |world| {
            world.put("file", vec![b'a'; 10_000]);
            world.mount();
            // A program that maps it, prints its content, and prints it again on request.
            let script = r#"
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
m = mmap.mmap(fd, 10000, mmap.MAP_SHARED, mmap.PROT_READ)
print(chr(m[9000]), flush=True)
sys.stdin.readline()
print(chr(m[9000]), flush=True)
"#;
            let mut child = std::process::Command::new("python3")
                .args(["-c", script])
                .arg(world.at("file"))
                .stdin(std::process::Stdio::piped())
                .stdout(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            let mut out = child.stdout.take().unwrap();
            let mut said = [0; 2];
            out.read_exact(&mut said).unwrap();
            assert_eq!(&said, b"a\n");
            write_to(world.at("file")).write_all_at(b"b", 9000).unwrap();
            child.stdin.take().unwrap().write_all(b"\n").unwrap();
            out.read_exact(&mut said).unwrap();
            assert_eq!(&said, b"b\n");
            assert!(child.wait().unwrap().success());
        },
    );
}

#[test]
fn what_is_stored_through_a_mapping_reaches_the_file() {
    everywhere(
        "what_is_stored_through_a_mapping_reaches_the_file",
        |world| {
            world.put("file", vec![b'a'; 10_000]);
            world.mount();
            let script = r#"
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
m = mmap.mmap(fd, 10000, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
m[9000:9003] = b"xyz"
m.flush()
"#;
            let ran = std::process::Command::new("python3")
                .args(["-c", script])
                .arg(world.at("file"))
                .status()
                .unwrap();
            assert!(ran.success());
            let mut wanted = vec![b'a'; 10_000];
            wanted[9000..9003].copy_from_slice(b"xyz");
            assert!(fs::read(world.at("file")).unwrap() == wanted);
            assert!(fs::read(world.upper("file")).unwrap() == wanted);
            assert!(fs::read(world.lower("file")).unwrap() == vec![b'a'; 10_000]);
        },
    );
}

#[test]
fn locks_survive_a_copy_up() {
    everywhere("locks_survive_a_copy_up", |world| {
        world.put("file", "content");
        world.mount();
        let open = || {
            let mut options = OpenOptions::new();
            options
                .read(true)
                .write(true)
                .open(world.at("file"))
                .unwrap()
        };
        let (holder, other) = (open(), open());
        rustix::fs::flock(&holder, FlockOperation::LockExclusive).unwrap();
        other.write_all_at(b"C", 0).unwrap();
        let refused = rustix::fs::flock(open(), FlockOperation::NonBlockingLockExclusive);
        assert_eq!(refused, Err(rustix::io::Errno::AGAIN));
        rustix::fs::flock(&holder, FlockOperation::Unlock).unwrap();
        rustix::fs::flock(&other, FlockOperation::NonBlockingLockExclusive).unwrap();
        // POSIX and OFD locks, each seen by another process.
        world.put("second", "x");
        let script = r#"
import fcntl, os, struct, subprocess, sys
def lock(fd, cmd, kind): return fcntl.fcntl(fd, cmd, struct.pack("hhqqi4x", kind, 0, 0, 0, 0))
F_OFD_GETLK, F_OFD_SETLK = 36, 37
path = sys.argv[1]
for set_, get in ((fcntl.F_SETLK, fcntl.F_GETLK), (F_OFD_SETLK, F_OFD_GETLK)):
    fd = os.open(path, os.O_RDWR)
    lock(fd, set_, fcntl.F_WRLCK)
    pid = os.fork()
    if pid == 0:
        mine = os.open(path, os.O_RDWR)
        os.pwrite(mine, b"y", 0)
        found = struct.unpack("hhqqi4x", lock(mine, get, fcntl.F_WRLCK))
        os._exit(0 if found[0] == fcntl.F_WRLCK else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, set_
    os.close(fd)
"#;
        let ran = std::process::Command::new("python3")
            .args(["-c", script])
            .arg(world.at("second"))
            .status()
            .unwrap();
        assert!(ran.success());
    });
}

#[test]
fn watches_survive_a_copy_up() {
    everywhere("watches_survive_a_copy_up", |world| {
        world.put("dir/file", "content");
        world.mount();
        use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
        let watcher = inotify::init(CreateFlags::NONBLOCK).unwrap();
        for path in ["dir/file", "dir"] {
            let flags = WatchFlags::MODIFY | WatchFlags::ATTRIB | WatchFlags::CREATE;
            inotify::add_watch(&watcher, world.at(path), flags).unwrap();
        }
        let seen = || {
            let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
            let mut reader = inotify::Reader::new(&watcher, &mut buffer);
            let mut all = ReadFlags::empty();
            while let Ok(event) = reader.next() {
                all |= event.events();
            }
            all
        };
        write_to(world.at("dir/file")).write_all(b"1").unwrap();
        assert!(seen().contains(ReadFlags::MODIFY));
        write_to(world.at("dir/file")).write_all(b"2").unwrap();
        assert!(seen().contains(ReadFlags::MODIFY));
        let mode = fs::Permissions::from_mode(0o600);
        fs::set_permissions(world.at("dir/file"), mode).unwrap();
        assert!(seen().contains(ReadFlags::ATTRIB));
        File::create(world.at("dir/other")).unwrap();
        assert!(seen().contains(ReadFlags::CREATE));
    });
}

#[test]
fn changing_attributes_copies_no_data() {
    everywhere("changing_attributes_copies_no_data", |world| {
        for name in ["mode", "owner", "times", "xattr", "open"] {
            world.put(name, vec![7; BIG_BYTES as usize]);
        }
        world.mount();
        let mode = fs::Permissions::from_mode(0o640);
        fs::set_permissions(world.at("mode"), mode).unwrap();
        std::os::unix::fs::chown(world.at("owner"), Some(5), Some(6)).unwrap();
        let times = fs::FileTimes::new().set_modified(std::time::SystemTime::UNIX_EPOCH);
        write_to(world.at("times")).set_times(times).unwrap();
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(world.at("xattr"), "user.vellum-test", b"value", flags).unwrap();
        drop(
            OpenOptions::new()
                .read(true)
                .append(true)
                .open(world.at("open"))
                .unwrap(),
        );
        for name in ["mode", "owner", "times", "xattr"] {
            let stat = fs::metadata(world.upper(name)).unwrap();
            assert!(
                stat.blocks() < 100,
                "{name} was copied: {} blocks",
                stat.blocks()
            );
            assert!(fs::read(world.at(name)).unwrap() == vec![7; BIG_BYTES as usize]);
        }
        assert!(!world.upper("open").exists(), "an open copied the file");
        world.remount();
        let stat = fs::metadata(world.at("owner")).unwrap();
        assert_eq!((stat.uid(), stat.gid(), stat.len()), (5, 6, BIG_BYTES));
        assert_eq!(
            fs::metadata(world.at("mode")).unwrap().mode() & 0o7777,
            0o640
        );
        assert_eq!(fs::metadata(world.at("times")).unwrap().mtime(), 0);
        let mut value = [0; 5];
        rustix::fs::getxattr(world.at("xattr"), "user.vellum-test", &mut value).unwrap();
        assert_eq!(&value, b"value");
    });
}

#[test]
fn truncation_copies_no_data() {
    everywhere("truncation_copies_no_data", |world| {
        for name in ["by-open", "by-call", "creat"] {
            world.put(name, vec![7; BIG_BYTES as usize]);
        }
        world.mount();
        drop(
            OpenOptions::new()
                .write(true)
                .truncate(true)
                .open(world.at("by-open"))
                .unwrap(),
        );
        write_to(world.at("by-call")).set_len(0).unwrap();
        File::create(world.at("creat"))
            .unwrap()
            .write_all(b"new")
            .unwrap();
        for (name, content) in [("by-open", ""), ("by-call", ""), ("creat", "new")] {
            assert_eq!(fs::read(world.at(name)).unwrap(), content.as_bytes());
            let stat = fs::metadata(world.upper(name)).unwrap();
            assert!(stat.blocks() <= 16, "{name}: {} blocks", stat.blocks());
        }
        world.remount();
        assert_eq!(fs::read(world.at("creat")).unwrap(), b"new");
        assert_eq!(fs::metadata(world.at("by-open")).unwrap().len(), 0);
        assert_eq!(
            fs::read(world.lower("creat")).unwrap().len() as u64,
            BIG_BYTES
        );
    });
}

#[test]
fn hard_links_of_a_lower_file_stay_one_file() {
    everywhere("hard_links_of_a_lower_file_stay_one_file", |world| {
        world.put("a", "old");
        fs::create_dir(world.lower("dir")).unwrap();
        fs::hard_link(world.lower("a"), world.lower("dir/b")).unwrap();
        world.mount();
        let before = identity(world.at("a"));
        assert_eq!(before, identity(world.at("dir/b")));
        assert_eq!(before.2, 2);
        let check = |world: &World, links: u64| {
            assert_eq!(fs::read(world.at("a")).unwrap(), b"new");
            assert_eq!(fs::read(world.at("dir/b")).unwrap(), b"new");
            let wanted = (before.0, before.1, links);
            assert_eq!(identity(world.at("a")), wanted);
            assert_eq!(identity(world.at("dir/b")), wanted);
        };
        fs::write(world.at("dir/b"), "new").unwrap();
        check(world, 2);
        fs::hard_link(world.at("dir/b"), world.at("c")).unwrap();
        check(world, 3);
        world.remount();
        let links = identity(world.at("a")).2;
        assert_eq!(links, 3);
        assert_eq!(fs::read(world.at("a")).unwrap(), b"new");
        assert_eq!(fs::read(world.at("dir/b")).unwrap(), b"new");
        assert_eq!(identity(world.at("a")).1, before.1);
        assert_eq!(identity(world.at("dir/b")).1, before.1);
        fs::remove_file(world.at("a")).unwrap();
        assert_eq!(identity(world.at("dir/b")).2, 2);
        fs::write(world.at("c"), "newer").unwrap();
        assert_eq!(fs::read(world.at("dir/b")).unwrap(), b"newer");
    });
}

#[test]
fn inode_numbers_never_change() {
    everywhere("inode_numbers_never_change", |world| {
        world.put("dir/sub/file", "content");
        world.put("file", "content");
        symlink("target", world.lower("link")).unwrap();
        world.mount();
        fs::write(world.at("made"), "x").unwrap();
        let all = ["dir", "dir/sub", "dir/sub/file", "file", "link", "made"];
        let before = all.map(|name| identity(world.at(name)));
        let dev = before[0].0;
        assert!(before.iter().all(|identity| identity.0 == dev));
        let check = |world: &World, names: [&str; 6], when: &str| {
            for (name, before) in names.iter().zip(before) {
                let (dev, ino, _) = identity(world.at(name));
                let one = identity(world.at("")).0;
                assert_eq!(dev, one, "{name} {when}: one device for all");
                // A symbolic link can have no user.* xattr, so a plain user's has nowhere to keep
                // its number.
                let forgets = world.is_user && *name == "link2" && when.contains("remount");
                if !forgets {
                    assert_eq!(ino, before.1, "{name} {when}");
                }
                // A listing and stat show the same numbers.
                let path = world.at(name);
                let listed = fs::read_dir(path.parent().unwrap())
                    .unwrap()
                    .find_map(|entry| {
                        let entry = entry.unwrap();
                        (entry.path() == path).then(|| std::os::unix::fs::DirEntryExt::ino(&entry))
                    });
                assert_eq!(listed, Some(ino), "{name} in a listing {when}");
            }
        };
        check(world, all, "at first");
        for name in ["dir/sub/file", "file", "made"] {
            fs::write(world.at(name), "other").unwrap();
        }
        let mode = fs::Permissions::from_mode(0o700);
        fs::set_permissions(world.at("dir"), mode).unwrap();
        check(world, all, "after copy-up");
        world.remount();
        check(world, all, "after a remount");
        fs::rename(world.at("dir"), world.at("moved")).unwrap();
        fs::rename(world.at("file"), world.at("moved/file")).unwrap();
        fs::rename(world.at("link"), world.at("link2")).unwrap();
        let moved = [
            "moved",
            "moved/sub",
            "moved/sub/file",
            "moved/file",
            "link2",
            "made",
        ];
        check(world, moved, "after a rename");
        world.remount();
        check(world, moved, "after a rename and a remount");
    });
}

#[test]
fn unlinked_open_files_stay_usable() {
    everywhere("unlinked_open_files_stay_usable", |world| {
        world.put("lower", "lower content");
        world.mount();
        fs::write(world.at("upper"), "upper content").unwrap();
        for name in ["lower", "upper"] {
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).open(world.at(name)).unwrap();
            fs::remove_file(world.at(name)).unwrap();
            let mut content = vec![0; 5];
            file.read_exact_at(&mut content, 0).unwrap();
            assert_eq!(content, name.as_bytes());
            file.write_all_at(b"written", 0).unwrap();
            file.read_exact_at(&mut content, 0).unwrap();
            assert_eq!(content, b"writt");
            file.set_len(100_000).unwrap();
            assert_eq!(file.metadata().unwrap().len(), 100_000);
            assert_eq!(file.metadata().unwrap().nlink(), 0, "{name}");
            file.set_permissions(fs::Permissions::from_mode(0o600))
                .unwrap();
            assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o600);
            std::os::unix::fs::fchown(&file, Some(3), Some(4)).unwrap();
            assert_eq!(file.metadata().unwrap().uid(), 3);
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::fsetxattr(&file, "user.x", b"1", flags).unwrap();
            file.sync_all().unwrap();
            rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 200_000).unwrap();
            assert_eq!(file.metadata().unwrap().len(), 200_000);
        }
        assert!(names(world.at("")).is_empty());
    });
}

#[test]
fn unnamed_files_get_names() {
    everywhere("unnamed_files_get_names", |world| {
        world.put("dir/below", "");
        world.mount();
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o640);
        let flags = rustix::fs::OFlags::TMPFILE.bits() as i32;
        let file = options.custom_flags(flags).open(world.at("dir")).unwrap();
        file.write_all_at(b"content", 0).unwrap();
        assert_eq!(names(world.at("dir")), ["below"]);
        let from = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        let follow = rustix::fs::AtFlags::SYMLINK_FOLLOW;
        rustix::fs::linkat(CWD, from, CWD, world.at("dir/named"), follow).unwrap();
        assert_eq!(fs::read(world.at("dir/named")).unwrap(), b"content");
        assert_eq!(identity(world.at("dir/named")).2, 1);
        // A clean unmount waits for users of the union.
        drop(file);
        world.remount();
        assert_eq!(fs::read(world.at("dir/named")).unwrap(), b"content");
        assert_eq!(
            fs::metadata(world.at("dir/named")).unwrap().mode() & 0o777,
            0o640
        );
    });
}

/// Everything about a file or directory except its access time and block count.
const PICTURE: &str = r#"
import os, sys
os.chdir(os.fsencode(sys.argv[1]))
def picture(path):
    at = os.lstat(path)
    xattrs = []
    for name in sorted(os.listxattr(path, follow_symlinks=False)):
        xattrs.append((name, os.getxattr(path, name, follow_symlinks=False)))
    kind = at.st_mode & 0o170000
    said = [path, oct(at.st_mode), at.st_uid, at.st_gid, at.st_mtime_ns, at.st_ino, at.st_rdev, xattrs]
    if kind == 0o100000:
        holes = []
        with open(path, "rb") as file:
            end, place = at.st_size, 0
            while place < end:
                try: place = os.lseek(file.fileno(), place, os.SEEK_DATA)
                except OSError: break
                stop = os.lseek(file.fileno(), place, os.SEEK_HOLE)
                holes.append((place, stop)); place = stop
            file.seek(0)
            import hashlib
            said += [at.st_size, at.st_nlink, holes, hashlib.sha256(file.read()).hexdigest()]
    if kind == 0o120000: said += [os.readlink(path)]
    return said
for dir, dirs, files in sorted(os.walk(b".")):
    for name in sorted(dirs + files): print(picture(os.path.join(dir, name)))
"#;

/// Creates files and directories with every attribute that must be kept.
const FURNISH: &str = r#"
import os, struct, subprocess, sys
root, privileged = sys.argv[1], sys.argv[2] == "root"
os.chdir(root)
os.mkdir("sticky"); os.mkdir("group"); os.mkdir("plain")
open("plain/text", "w").write("text" * 5000)
with open("plain/holes", "wb") as file:
    file.seek(1 << 20); file.write(b"x" * 8192); file.seek(3 << 20); file.write(b"y" * 4096); file.truncate(5 << 20)
os.mkfifo("plain/fifo", 0o640)
os.symlink("no\xffwhere".encode("latin-1"), b"plain/link")
for name in ("setuid", "capable", "acl", "xattrs", "owned"): open(f"sticky/{name}", "w").write(name * 500)
os.chown("sticky/owned", 5, 6)
os.setxattr("sticky/xattrs", b"user.\xff\xfe not text", b"\0\1\2")
os.setxattr("sticky/xattrs", "user.empty", b"")
os.setxattr("sticky/xattrs", "user.long", b"v" * 1500)
os.setxattr("group", "user.of a directory", b"d")
if privileged: os.setxattr("sticky/xattrs", "trusted.t", b"t")
os.setxattr("sticky/capable", "security.capability", struct.pack("<IIIII", 0x02000001, 0x400, 0, 0, 0))
acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in [(1, 7, 0xffffffff), (2, 6, 5), (4, 4, 0xffffffff), (16, 6, 0xffffffff), (32, 0, 0xffffffff)])
os.setxattr("sticky/acl", "system.posix_acl_access", acl)
os.setxattr("group", "system.posix_acl_default", acl)
os.chmod("sticky/setuid", 0o6751); os.chmod("sticky", 0o1777); os.chmod("group", 0o2770); os.chown("group", 3, 4); os.chmod("group", 0o2770)
for dir, dirs, files in os.walk(".", topdown=False):
    for n, name in enumerate(files + dirs): os.utime(os.path.join(dir, name), ns=(10**18 + 7, 10**18 + 123456789 + n), follow_symlinks=False)
"#;

/// Copies everything up without changing anything visible.
const TOUCH: &str = r#"
import os, sys
os.chdir(os.fsencode(sys.argv[1]))
for dir, dirs, files in os.walk(b".", topdown=False):
    for name in files + dirs:
        path = os.path.join(dir, name)
        at = os.lstat(path)
        # The times as they are: a change of attributes. And a byte as it is: a change of data.
        if at.st_mode & 0o170000 == 0o100000:
            with open(path, "r+b", buffering=0) as file:
                byte = file.read(1); file.seek(0)
                if byte.strip(b"\0") and not at.st_mode & 0o6000 and b"capable" not in path: file.write(byte)
                os.utime(file.fileno(), ns=(at.st_atime_ns, at.st_mtime_ns))
        else: os.utime(path, ns=(at.st_atime_ns, at.st_mtime_ns), follow_symlinks=False)
"#;

fn python(script: &str, arguments: &[&std::ffi::OsStr]) -> String {
    let ran = std::process::Command::new("python3")
        .args(["-c", script])
        .args(arguments)
        .output()
        .unwrap();
    assert!(
        ran.status.success(),
        "{}",
        String::from_utf8_lossy(&ran.stderr)
    );
    String::from_utf8(ran.stdout).unwrap()
}

#[test]
fn a_copy_up_through_the_mount_keeps_everything() {
    everywhere("a_copy_up_through_the_mount_keeps_everything", |world| {
        let who = std::ffi::OsStr::new(if world.is_user { "user" } else { "root" });
        python(FURNISH, &[world.lower("").as_os_str(), who]);
        let picture = |world: &World| python(PICTURE, &[world.at("").as_os_str()]);
        world.mount();
        let before = picture(world);
        assert_eq!(before.lines().count(), 12, "{before}");
        python(TOUCH, &[world.at("").as_os_str()]);
        // The hole map of a file may be finer or coarser after a copy, but a hole takes no space.
        let holes = |world: &World| fs::metadata(world.upper("plain/holes")).unwrap().blocks();
        assert!(holes(world) < 100, "{} blocks", holes(world));
        let differ = |after: &str| {
            let pairs = before.lines().zip(after.lines());
            pairs
                .filter(|(a, b)| a != b)
                .map(|(a, b)| format!("{a}\n{b}\n"))
                .collect::<String>()
        };
        let after = picture(world);
        assert_eq!(differ(&after), "", "live");
        world.remount();
        let after = picture(world);
        // A plain user's symbolic link or fifo keeps its number only until the union is closed.
        match world.is_user {
            false => assert_eq!(differ(&after), "", "after a remount"),
            true => {
                let but_links = differ(&after);
                let others = but_links
                    .lines()
                    .filter(|line| !line.contains("plain/link") && !line.contains("plain/fifo"));
                assert_eq!(others.collect::<String>(), "", "after a remount");
            }
        }
    });
}
