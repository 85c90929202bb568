//! From mount to unmount: readiness, ends, limits of the server itself.

mod support;

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::Signal;
use support::*;
use vellum_testkit::scratch::unmount;
use vellum_testkit::untested;

#[test]
fn a_mount_answers_when_it_is_reported() {
    everywhere("a_mount_answers_when_it_is_reported", |world| {
        world.put("file", "content");
        for _ in 0..5 {
            world.mount();
            let above = fs::metadata(world.beside("")).unwrap();
            assert_ne!(fs::metadata(world.at("")).unwrap().dev(), above.dev());
            assert_eq!(fs::read(world.at("file")).unwrap(), b"content");
            world.unmount();
            let below = fs::metadata(world.at("")).unwrap();
            assert_eq!(below.dev(), above.dev());
        }
    });
}

#[test]
fn a_failed_mount_says_why() {
    everywhere("a_failed_mount_says_why", |world| {
        fs::remove_dir(world.at("")).unwrap();
        let said = world.try_mount().unwrap_err();
        assert!(said.contains("merged"), "{said}");
        fs::write(world.at(""), "no directory").unwrap_err();
        fs::write(world.beside("merged"), "no directory").unwrap();
        let said = world.try_mount().unwrap_err();
        assert!(said.contains("merged"), "{said}");
        fs::remove_file(world.beside("merged")).unwrap();
        fs::create_dir(world.at("")).unwrap();
        world.mount();
    });
}

#[test]
fn unmounting_never_touches_a_later_mount() {
    everywhere("unmounting_never_touches_a_later_mount", |world| {
        world.put("file", "of the union");
        world.mount();
        let server = world.server_pid();
        let later = || {
            rustix::mount::mount("later", world.at(""), "tmpfs", MountFlags::empty(), None)
                .unwrap();
            fs::write(world.at("later"), "x").unwrap();
        };
        later();
        signal(server, Signal::TERM);
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(
            names(world.at("")),
            ["later"],
            "the later mount was taken away"
        );
        unmount(&world.at("")).unwrap();
        assert_eq!(names(world.at("")), ["file"], "ours goes on");
        // Detached while it is in use, and another mount is there now.
        let open = File::open(world.at("file")).unwrap();
        rustix::mount::unmount(world.at(""), UnmountFlags::DETACH).unwrap();
        later();
        signal(server, Signal::TERM);
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(names(world.at("")), ["later"]);
        drop(open);
        unmount(&world.at("")).unwrap();
    });
}

#[test]
fn unmounting_waits_for_users_of_the_union() {
    everywhere("unmounting_waits_for_users_of_the_union", |world| {
        world.put("file", "content");
        world.mount();
        let mut file = OpenOptions::new()
            .append(true)
            .open(world.at("file"))
            .unwrap();
        let server = world.server_pid();
        signal(server, Signal::TERM);
        while fs::metadata(world.at("file")).is_ok() {
            std::thread::sleep(Duration::from_millis(5));
        }
        file.write_all(b" and more").unwrap();
        file.sync_all().unwrap();
        drop(file);
        assert!(world.ended().success());
        assert_eq!(fs::read(world.upper("file")).unwrap(), b"content and more");
    });
}

#[test]
fn a_second_signal_cuts_the_connection() {
    as_root(|world| {
        world.put("file", "content");
        world.mount();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(world.at("file"))
            .unwrap();
        signal(world.server_pid(), Signal::TERM);
        while fs::metadata(world.at("file")).is_ok() {
            std::thread::sleep(Duration::from_millis(5));
        }
        let fusectl = fs::read_dir("/sys/fs/fuse/connections").unwrap().next();
        assert_eq!(world.end().success(), fusectl.is_some());
        assert!(file.write_all_at(b"x", 0).is_err());
    });
}

#[test]
fn a_killed_server_leaves_what_was_written() {
    everywhere("a_killed_server_leaves_what_was_written", |world| {
        world.put("file", "old");
        world.mount();
        fs::write(world.at("file"), "new").unwrap();
        fs::create_dir(world.at("dir")).unwrap();
        fs::write(world.at("dir/made"), "made").unwrap();
        world.crash();
        world.mount();
        assert_eq!(fs::read(world.at("file")).unwrap(), b"new");
        assert_eq!(fs::read(world.at("dir/made")).unwrap(), b"made");
        fs::write(world.at("file"), "newer").unwrap();
    });
}

#[test]
fn a_plain_user_mounts_through_fusermount() {
    as_himself("a_plain_user_mounts_through_fusermount", |world| {
        if Command::new("fusermount3").arg("-V").output().is_err() {
            untested("mounting through fusermount3", "it is not installed");
            return;
        }
        world.put("dir/file", "old");
        world.mount();
        fs::write(world.at("dir/file"), "new").unwrap();
        fs::rename(world.at("dir"), world.at("moved")).unwrap();
        assert_eq!(fs::read(world.at("moved/file")).unwrap(), b"new");
        world.remount();
        assert_eq!(names(world.at("")), ["moved"]);
        assert_eq!(fs::read(world.at("moved/file")).unwrap(), b"new");
        world.unmount();
        assert_eq!(
            fs::metadata(world.at("")).unwrap().dev(),
            fs::metadata(world.beside("")).unwrap().dev()
        );
    });
}

#[test]
fn memory_returns_when_the_kernel_forgets() {
    as_root(|world| {
        let slow = std::env::var_os("VELLUM_SLOW").is_some();
        let dirs = if slow { 1000 } else { 30 };
        // At most half of what is promised, so that the test is not decided by a page.
        let allowed_kib = if slow { 16 << 10 } else { 8 << 10 };
        for dir in 0..dirs {
            let path = world.lower(format!("{dir}"));
            fs::create_dir(&path).unwrap();
            let dir = File::open(path).unwrap();
            for file in 0..1000 {
                let kind = rustix::fs::FileType::RegularFile;
                let mode = rustix::fs::Mode::from_raw_mode(0o644);
                rustix::fs::mknodat(&dir, format!("{file}"), kind, mode, 0).unwrap();
            }
        }
        world.mount();
        let pid = world.server_pid();
        // Its own memory: the program's text is in the page cache, and in a debug build large.
        let own_kib = || {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let line = status
                .lines()
                .find(|line| line.starts_with("RssAnon"))
                .unwrap();
            line.split_whitespace()
                .nth(1)
                .unwrap()
                .parse::<u64>()
                .unwrap()
        };
        let before = own_kib();
        let mut found = Command::new("find")
            .arg(world.at(""))
            .args(["-printf", "%s\n"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(found.stdout.take().unwrap()).lines();
        // The peak: the kernel may be forgetting already.
        let mut between = 0;
        let count = lines
            .enumerate()
            .map(|(at, _)| {
                if at % 1000 == 0 {
                    between = between.max(own_kib());
                }
            })
            .count();
        assert_eq!(count, dirs * 1001 + 1);
        assert!(found.wait().unwrap().success());
        between = between.max(own_kib());
        assert!(between > before + ((dirs as u64 * 1000 * 128) >> 10));
        // The kernel forgets file by file, a directory after its content, and the server learns of
        // each separately: how long that takes does not matter, only where it ends.
        let deadline = Instant::now() + Duration::from_secs(600);
        let mut after = between;
        while after > before + allowed_kib && Instant::now() < deadline {
            fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
            std::thread::sleep(Duration::from_millis(300));
            after = own_kib();
        }
        eprintln!(
            "{} files: {before} KiB, {between} KiB, {after} KiB",
            dirs * 1001
        );
        assert!(
            after <= before + allowed_kib,
            "{before} KiB, {between} KiB, {after} KiB"
        );
    });
}

#[test]
fn long_copy_ups_stop_no_other_request() {
    as_root(|world| {
        // More of them than there are threads at first.
        let writers = std::thread::available_parallelism().unwrap().get().max(2) + 2;
        for i in 0..writers {
            let path = world.put(&format!("big-{i}"), "");
            let file = OpenOptions::new().write(true).open(path).unwrap();
            rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 200 << 20)
                .unwrap();
            // Written extents: nothing can be skipped as a hole.
            let block = vec![1; 1 << 20];
            for at in 0..200 {
                file.write_all_at(&block, at << 20).unwrap();
            }
        }
        for i in 0..2000 {
            world.put(&format!("many/{i}"), "");
        }
        world.mount();
        let running = AtomicBool::new(true);
        let at = |name: String| world.at(name);
        let mut times = Vec::new();
        std::thread::scope(|scope| {
            let copies: Vec<_> = (0..writers)
                .map(|i| {
                    let path = at(format!("big-{i}"));
                    scope.spawn(move || {
                        let file = OpenOptions::new().write(true).open(path).unwrap();
                        file.write_all_at(b"x", 0).unwrap();
                    })
                })
                .collect();
            let running = &running;
            let stats = scope.spawn(move || {
                let mut times = Vec::new();
                for i in 0..2000 {
                    if !running.load(Ordering::Relaxed) {
                        break;
                    }
                    let begun = Instant::now();
                    fs::metadata(at(format!("many/{i}"))).unwrap();
                    times.push(begun.elapsed());
                    std::thread::sleep(Duration::from_micros(200));
                }
                times
            });
            for copy in copies {
                copy.join().unwrap();
            }
            running.store(false, Ordering::Relaxed);
            times = stats.join().unwrap();
        });
        times.sort();
        let answered = times.len();
        if let Some(p99) = times.get(answered * 99 / 100) {
            eprintln!("{answered} names looked up during {writers} copies, p99 {p99:?}");
        }
        // With every thread in a copy, almost none would have been answered before the copies
        // ended.
        assert!(
            answered > 20,
            "only {answered} lookups were answered during the copies"
        );
    });
}

#[test]
fn a_mount_outlives_each_of_its_workers() {
    as_root(|world| {
        world.put("file", "old");
        world.option("workers=1");
        world.option("nouring");
        world.mount();
        // Each of these takes its worker a while, so another is started, and one of the two leaves.
        for round in 0..1500 {
            let file = File::create(world.at("file")).unwrap();
            (&file).write_all(format!("{round}").as_bytes()).unwrap();
            file.sync_all().unwrap();
        }
        assert_eq!(fs::read_to_string(world.at("file")).unwrap(), "1499");
    });
}

#[test]
fn a_few_descriptors_are_enough() {
    as_root(|world| {
        world.descriptors = Some(1024);
        for i in 0..3000 {
            world.put(&format!("dir-{}/{i}", i % 100), "x");
        }
        world.mount();
        let script = r#"
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (8192, 8192))
os.chdir(sys.argv[1])
fds = [os.open("dir-%d/%d" % (i % 100, i), os.O_RDWR) for i in range(3000)]
for fd in fds: os.pwrite(fd, b"y", 0)
dirs = [os.open("dir-%d" % i, os.O_RDONLY) for i in range(100)]
for i in range(500): os.unlink("dir-%d/%d" % (i % 100, i))
for fd in fds:
    assert os.pread(fd, 10, 0) == b"y"
    os.fstat(fd)
for d in dirs: os.listdir(d)
made = [os.open("made-%d" % i, os.O_RDWR | os.O_CREAT) for i in range(2000)]
for fd in made: os.write(fd, b"z")
"#;
        let ran = Command::new("python3")
            .args(["-c", script])
            .arg(world.at(""))
            .status()
            .unwrap();
        assert!(ran.success());
        world.remount();
        assert_eq!(names(world.at("")).len(), 100 + 2000);
    });
}

#[test]
fn mapped_writes_beyond_a_limit_fail_at_msync() {
    everywhere("mapped_writes_beyond_a_limit_fail_at_msync", |world| {
        world.option("size=4194304");
        world.mount();
        let script = r#"
import mmap, os, sys
path = sys.argv[1]
fd = os.open(path, os.O_RDWR | os.O_CREAT)
os.pwrite(fd, b"first", 0)
os.ftruncate(fd, 32 << 20)
m = mmap.mmap(fd, 32 << 20)
for at in range(1 << 20, 32 << 20, 4096): m[at] = 1
try:
    m.flush()
    os.fsync(fd)
except OSError as error:
    assert error.errno == 28, error
else:
    raise SystemExit("nothing was said")
assert os.pread(fd, 5, 0) == b"first"
"#;
        let ran = Command::new("python3")
            .args(["-c", script])
            .arg(world.at("file"))
            .status()
            .unwrap();
        assert!(ran.success());
        fs::remove_file(world.at("file")).unwrap();
        fs::write(world.at("after"), vec![1; 1 << 20]).unwrap();
        world.remount();
        assert_eq!(names(world.at("")), ["after"]);
    });
}

#[test]
fn warm_files_need_no_requests() {
    everywhere("warm_files_need_no_requests", |world| {
        for i in 0..100 {
            world.put(&format!("dir/{i}"), "content");
        }
        world.mount();
        let walk = |world: &World| {
            for name in names(world.at("dir")) {
                let path = world.at("dir").join(name);
                fs::metadata(&path).unwrap();
                assert_eq!(fs::read(&path).unwrap(), b"content");
                fs::metadata(world.at("dir/none")).unwrap_err();
            }
        };
        walk(world);
        // The kernel may forget at any time, and a concurrent test makes it do so: one walk without
        // is enough.
        let mut seen = Vec::new();
        let quiet = (0..50).any(|_| {
            let (_, requests) = world.requests(walk);
            // Files that were read have another access time by now; nothing else is requested
            // again.
            let others = requests.total() - requests.of("GetAttr") - requests.of("Statx");
            seen.push(requests);
            others == 0
        });
        assert!(quiet, "{seen:?}");
    });
}

#[test]
fn a_file_handle_never_leads_to_another_file() {
    as_root(|world| {
        for name in ["a", "b", "c"] {
            world.put(name, name);
        }
        let script = r#"
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
class Handle(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_uint), ("type", ctypes.c_int), ("handle", ctypes.c_ubyte * 128)]
step, root, kept = sys.argv[1:]
handle, mount = Handle(128), ctypes.c_int()
if step == "keep":
    for name in ("a", "b"): os.stat(f"{root}/{name}")
    done = libc.name_to_handle_at(-100, f"{root}/b".encode(), ctypes.byref(handle), ctypes.byref(mount), 0)
    assert done == 0, os.strerror(ctypes.get_errno())
    open(kept, "wb").write(bytes(handle))
else:
    # In another order than before, so that the numbers are other files'.
    for name in ("c", "b", "a"): os.stat(f"{root}/{name}")
    handle = Handle.from_buffer_copy(open(kept, "rb").read())
fd = libc.open_by_handle_at(os.open(root, os.O_RDONLY), ctypes.byref(handle), os.O_RDONLY)
if fd < 0: assert ctypes.get_errno() == 116 and step != "keep", os.strerror(ctypes.get_errno())
else: assert os.read(fd, 9) == b"b"
"#;
        let kept = world.beside("handle");
        let run = |world: &World, step: &str| {
            let ran = Command::new("python3")
                .args(["-c", script, step])
                .args([world.at(""), kept.clone()])
                .status();
            assert!(ran.unwrap().success(), "{step}");
        };
        world.mount();
        run(world, "keep");
        world.remount();
        run(world, "later");
        world.crash();
        world.mount();
        run(world, "later");
    });
}

#[test]
fn a_read_only_union_takes_no_changes() {
    everywhere("a_read_only_union_takes_no_changes", |world| {
        world.put("dir/file", "content");
        world.option("no-upper");
        world.mount();
        assert_eq!(fs::read(world.at("dir/file")).unwrap(), b"content");
        assert_eq!(errno(fs::write(world.at("new"), "")), 30);
        assert_eq!(errno(fs::remove_file(world.at("dir/file"))), 30);
        assert_eq!(errno(fs::create_dir(world.at("dir/sub"))), 30);
        assert_eq!(errno(fs::rename(world.at("dir"), world.at("other"))), 30);
    });
}
