use std::path::Path;

use super::*;

const TABLE: &[u8] = b"\
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
28 27 0:25 / /var rw,nosuid shared:7 master:1 - tmpfs tmp rw,size=4k
29 28 254:0 /data /var/lib/v\\040x ro,relatime - ext4 /dev/vda rw
30 29 0:40 / /var/lib/v\\040x/m\\134n\\012l rw - overlay overlay rw,lowerdir+=/a\\054b,lowerdir+=/c,upperdir=/u\\134,userxattr
31 29 0:41 / /var/lib/v\\040x rw - tmpfs none rw
32 27 0:42 / /opt rw - tmpfs  rw
";

#[test]
fn every_field_is_read() {
    let table = parse(TABLE).unwrap();
    let m = &table.mounts()[3];
    let options = m.fs_options().unwrap();
    assert_eq!((m.id, m.parent, m.dev), (30, 29, (0, 40)));
    assert_eq!(m.mount_point, Path::new("/var/lib/v x/m\\n\nl"));
    assert_eq!(options.all("lowerdir+").collect::<Vec<_>>(), ["/a,b", "/c"]);
    assert_eq!(options.get("upperdir").unwrap(), "/u\\");
    assert_eq!(options.get("userxattr").unwrap(), "");
    assert_eq!(options.get("user"), None);
    assert_eq!(table.mounts()[1].propagation, ["shared:7", "master:1"]);
    assert!(table.mounts()[1].is_shared() && !m.is_shared());
    assert!(table.mounts()[2].is_read_only() && !m.is_read_only());
    assert_eq!(table.mounts()[2].root, Path::new("/data"));
    assert_eq!(table.mounts()[5].source, "");
    assert!(parse(b"1 2 0:1 / / rw").is_err());
    assert!(parse(b"x 2 0:1 / / rw - a b c").is_err());
}

#[test]
fn a_lookup_passes_the_mounts_it_would_really_pass() {
    let table = parse(TABLE).unwrap();
    let ids = |mounts: Vec<&Mount>| mounts.iter().map(|m| m.id).collect::<Vec<_>>();
    assert_eq!(
        ids(table.chain(Path::new("/var/lib/v x/store"))),
        [27, 28, 29, 31]
    );
    assert_eq!(ids(table.chain(Path::new("/varnish"))), [27]);
    assert_eq!(ids(table.covering(Path::new("/var/lib/v x"), 29)), [31]);
    assert_eq!(
        ids(table.covering(Path::new("/var/lib/v x"), 28)),
        [31, 30, 29]
    );
    assert_eq!(
        ids(table.covering(Path::new("/var/lib/v x"), 27)),
        [31, 30, 29, 28]
    );
    assert!(table.covering(Path::new("/var/lib/v x"), 31).is_empty());
    assert!(table.covering(Path::new("/var/lib/v x"), 99).is_empty());
    assert_eq!(ids(table.beneath(Path::new("/var/lib"))), [30, 31, 29]);
}

#[test]
fn a_hidden_branch_is_not_walked() {
    let table = parse(
        b"1 0 8:1 / / rw - ext4 a rw\n2 1 8:2 / /srv/store rw - xfs b rw\n3 1 0:9 / /srv rw - tmpfs c rw\n",
    )
    .unwrap();
    let ids = |mounts: Vec<&Mount>| mounts.iter().map(|m| m.id).collect::<Vec<_>>();
    assert_eq!(ids(table.chain(Path::new("/srv/store"))), [1, 3]);
    assert_eq!(ids(table.covering(Path::new("/srv/store"), 2)), [3]);
}

#[test]
fn a_cover_hidden_by_another_and_what_hangs_on_it_are_in_the_order() {
    let table = parse(
        b"1 0 8:1 / / rw - ext4 a rw\n2 1 0:9 / /srv/store rw - tmpfs b rw\n3 1 0:10 / /srv rw - tmpfs c rw\n\
          4 3 0:11 / /srv/x rw - tmpfs d rw\n5 4 0:12 / /srv/x/y rw - tmpfs e rw\n6 2 0:13 / /srv/store/s rw - tmpfs f rw\n",
    )
    .unwrap();
    let order: Vec<_> = table
        .covering(Path::new("/srv/store"), 1)
        .iter()
        .map(|m| m.id)
        .collect();
    assert_eq!(order, [5, 4, 3, 6, 2]);
}

#[test]
fn only_octal_is_an_escape() {
    assert_eq!(unescape(b"a\\040b\\x\\1\\"), b"a b\\x\\1\\");
    assert_eq!(unescape(b"\\134040"), b"\\040");
    assert_eq!(unescape(b"\\377"), b"\xff");
}

#[test]
fn the_live_table_has_a_root() {
    let table = read().unwrap();
    assert_eq!(
        table.chain(Path::new("/proc/self"))[0].mount_point,
        Path::new("/")
    );
    let stat = crate::stat::stat_fd(std::fs::File::open("/").unwrap()).unwrap();
    let last = table.chain(Path::new("/")).last().unwrap().id;
    assert_eq!(last, stat.mnt_id);
}

#[test]
fn a_root_that_is_its_own_parent_is_the_root() {
    let table =
        parse(b"1 1 0:2 / / rw - rootfs rootfs rw\n2 1 8:2 / /srv rw - xfs b rw\n").unwrap();
    let ids: Vec<_> = table
        .chain(Path::new("/srv/x"))
        .iter()
        .map(|m| m.id)
        .collect();
    assert_eq!(ids, [1, 2]);
}

mod both_ways {
    //! The same questions, answered through listmount(2) and statmount(2) and by reading the text:
    //! the answers must be the same.

    use std::os::fd::OwnedFd;
    use std::process::Command;

    use rustix::fs::{Mode, OFlags};
    use rustix::mount::{MountAttrFlags, OpenTreeFlags};

    use super::*;
    use crate::mount::{self, BindOptions, Method, OverlayMount};
    use crate::testing::can_mount;

    /// Everything known of a mount.
    fn whole(mount: &Mount) -> String {
        let options = mount.fs_options().ok();
        format!(
            "{:?}",
            Mount {
                fs_options: Known::Told(options.unwrap_or_default()),
                ..mount.clone()
            }
        )
    }

    fn all<'m>(mounts: impl IntoIterator<Item = &'m Mount>) -> Vec<String> {
        mounts.into_iter().map(whole).collect()
    }

    fn is_usable() -> bool {
        let found = statmount::read().is_ok();
        if !found {
            vellum_testkit::untested("statmount", "the kernel is older than 6.13 or forbids it");
        }
        found
    }

    fn run(program: &str, args: &[&OsStr]) {
        let done = Command::new(program).args(args).status().unwrap();
        assert!(done.success(), "{program} {args:?}");
    }

    /// Runs a closure on a thread with `root` as its root, so that other changes it makes to itself
    /// stay there.
    fn in_root<T: Send>(root: &Path, act: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                // SAFETY: no descriptor table is unshared, which is what the contract is about.
                unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS) }
                    .unwrap();
                rustix::process::chroot(root).unwrap();
                std::env::set_current_dir("/").unwrap();
                act()
            });
            thread.join().unwrap()
        })
    }

    /// Mounts of every type in `root`, a file system of its own, and descriptors of a few.
    fn crowd(root: &Path) -> Vec<OwnedFd> {
        let dir = |name: &[u8]| {
            let dir = root.join(OsStr::from_bytes(name));
            std::fs::create_dir_all(&dir).unwrap();
            dir
        };
        let tmpfs = |name: &[u8], source: &str, options: &std::ffi::CStr| {
            let place = dir(name);
            mount::filesystem("tmpfs", Path::new(source), &place, options).unwrap();
            place
        };
        let plain = BindOptions::default();
        // Nested, stacked, and with every character that must be escaped.
        let odd = tmpfs(
            b"odd a\tb\nc\\d\\040e,f:g\xff",
            "a so\turce\\040",
            c"size=64k",
        );
        tmpfs(b"stacked", "one", c"");
        tmpfs(b"stacked", "", c"mode=711");
        dir(b"nested/in");
        tmpfs(b"nested/in", "in", c"ro");
        std::fs::create_dir(odd.join("deep")).unwrap();
        mount::bind(&root.join("stacked"), &odd.join("deep"), plain).unwrap();
        // Covered, from above and from far above.
        tmpfs(b"covered/by/what", "below", c"");
        tmpfs(b"covered", "above", c"");
        // Views of a part, of a deleted directory, of a file, of a namespace.
        let strict = BindOptions {
            read_only: true,
            nosuid: true,
            nodev: true,
            ..plain
        };
        dir(b"from/the inside");
        mount::bind(&root.join("from/the inside"), &dir(b"part"), strict).unwrap();
        mount::bind(&dir(b"gone"), &dir(b"what is gone"), plain).unwrap();
        std::fs::remove_dir(root.join("gone")).unwrap();
        for name in ["a file", "another", "net"] {
            std::fs::write(root.join(name), name).unwrap();
        }
        mount::bind(&root.join("a file"), &root.join("another"), plain).unwrap();
        let net = std::fs::File::open("/proc/self/ns/net").unwrap();
        mount::bind_fd(&net, &root.join("net"), plain).unwrap();
        // Layers, and a server of one's own.
        let overlay = OverlayMount {
            lowers: vec![dir(b"lower,one"), dir(b"lower:two\\")],
            upper: Some(dir(b"upper dir")),
            work: Some(dir(b"work")),
            ..OverlayMount::default()
        };
        let merged = dir(b"merged");
        if let Err(e) = mount::overlay(&overlay, &merged, &Method::LayerFds) {
            vellum_testkit::untested("an overlay among the mounts", format!("{e:?}"));
        }
        let device = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        if let Ok(device) = &device {
            let fuse = mount::FuseMount {
                source: "a source".into(),
                subtype: Some("test".into()),
                owner: (0, 0),
                options: vec![("allow_other".into(), None)],
                attributes: MountAttrFlags::MOUNT_ATTR_NODIRATIME,
            };
            let made = mount::fuse_detached(device, &fuse).unwrap();
            made.attach(&dir(b"fuse")).unwrap();
        }
        // Every type of propagation, and every mount flag.
        let shared = tmpfs(b"shared", "s", c"");
        run("mount", &["--make-shared".as_ref(), shared.as_ref()]);
        let peer = dir(b"peer");
        mount::bind(&shared, &peer, plain).unwrap();
        let slave = dir(b"slave");
        mount::bind(&shared, &slave, plain).unwrap();
        run("mount", &["--make-slave".as_ref(), slave.as_ref()]);
        run("mount", &["--make-shared".as_ref(), slave.as_ref()]);
        std::fs::create_dir(shared.join("spread")).unwrap();
        mount::filesystem("tmpfs", Path::new("x"), &shared.join("spread"), c"").unwrap();
        let lonely = tmpfs(b"lonely", "l", c"");
        run("mount", &["--make-unbindable".as_ref(), lonely.as_ref()]);
        let options = "sync,dirsync,lazytime,noexec,nosuid,nodev,noatime,nodiratime,nosymfollow";
        let told = dir(b"told");
        let args = ["-t", "tmpfs", "-o", options, "none"].map(OsStr::new);
        run("mount", &[&args[..], &[told.as_os_str()]].concat());
        let strict_atime = dir(b"strict atime");
        let args = ["-t", "tmpfs", "-o", "strictatime", "none"].map(OsStr::new);
        run("mount", &[&args[..], &[strict_atime.as_os_str()]].concat());

        let mut open = Vec::new();
        for name in [
            "stacked",
            "another",
            "part",
            "merged/..",
            "covered/by",
            "peer/spread",
        ] {
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            open.extend(rustix::fs::open(root.join(name), flags, Mode::empty()));
        }
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        // One that is attached nowhere, one that is already detached.
        open.push(rustix::mount::open_tree(rustix::fs::CWD, &shared, flags).unwrap());
        let left = tmpfs(b"left", "left", c"");
        open.push(rustix::fs::open(&left, OFlags::PATH, Mode::empty()).unwrap());
        mount::unmount(&left, mount::Detach::Yes).unwrap();
        open
    }

    #[test]
    fn both_ways_to_read_mounts_agree() {
        let Some(scratch) = can_mount() else { return };
        if !is_usable() {
            return;
        }
        let root = scratch.path().join("root");
        std::fs::create_dir(&root).unwrap();
        mount::filesystem("tmpfs", Path::new("root"), &root, c"mode=755").unwrap();
        mount::make_private(&root).unwrap();
        for place in ["proc", "nested/proc"] {
            std::fs::create_dir_all(root.join(place)).unwrap();
            mount::filesystem("proc", Path::new("proc"), &root.join(place), c"").unwrap();
        }
        let open = crowd(&root);

        // Others may mount at the same time, but not here.
        let (listed, text) = (statmount::read().unwrap(), text::read().unwrap());
        assert_eq!(
            all(listed.beneath(scratch.path())),
            all(text.beneath(scratch.path()))
        );
        assert!(listed.beneath(scratch.path()).len() > 20);
        let mut unknown = 0;
        for fd in &open {
            let text = text::of(fd.as_fd()).unwrap();
            unknown += usize::from(text.is_none());
            match statmount::of(fd.as_fd()) {
                Ok(told) => assert_eq!(all(&told), all(&text)),
                // One without a source can't be told from one on a kernel that returns none.
                Err(statmount::Unusable) => assert_eq!(text.unwrap().source, ""),
            }
        }
        assert_eq!(unknown, 2);

        // What isn't beneath a process's root isn't returned, whether that is a mount's root or a
        // directory in one.
        for (inside, count) in [(&root, 20), (&root.join("nested"), 2)] {
            let (listed, text) = in_root(inside, || {
                (
                    all(statmount::read().unwrap().mounts()),
                    all(text::read().unwrap().mounts()),
                )
            });
            assert_eq!(listed, text);
            assert!(listed.len() >= count, "{listed:#?}");
            let each = in_root(inside, || {
                let each = open.iter().map(|fd| (of(fd), text::of(fd.as_fd())));
                each.map(|(told, text)| (all(&told.unwrap()), all(&text.unwrap())))
                    .collect::<Vec<_>>()
            });
            assert!(each.iter().all(|(told, text)| told == text), "{each:#?}");
        }

        // A plain user gets the same answer.
        let (listed, text) = in_root(&root, || {
            let nobody = 65534;
            // SAFETY: takes numbers. The raw call changes only this thread, which is ours and ends
            // right after.
            let done = unsafe { libc::syscall(libc::SYS_setresuid, nobody, nobody, nobody) };
            assert_eq!(done, 0);
            (
                all(statmount::read().unwrap().mounts()),
                all(text::read().unwrap().mounts()),
            )
        });
        assert_eq!(listed, text);
    }

    #[test]
    fn concurrent_mounts_and_unmounts_do_no_harm() {
        let Some(scratch) = can_mount() else { return };
        let stays = scratch.path().join("stays");
        let comes = scratch.path().join("comes");
        for place in [&stays, &comes] {
            std::fs::create_dir(place).unwrap();
        }
        mount::bind(&stays, &stays, BindOptions::default()).unwrap();
        let is_done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_done.load(std::sync::atomic::Ordering::Relaxed) {
                    mount::bind(&stays, &comes, BindOptions::default()).unwrap();
                    mount::unmount(&comes, mount::Detach::Yes).unwrap();
                }
            });
            for _ in 0..200 {
                let table = read();
                let seen = table.as_ref().map(|t| t.beneath(&stays).len());
                let options = table.as_ref().map(|t| {
                    let comes = t.beneath(&comes);
                    comes.iter().all(|m| match m.fs_options() {
                        Ok(_) => true,
                        Err(e) => e.is_not_found(),
                    })
                });
                if !matches!((&seen, &options), (Ok(1), Ok(true))) {
                    is_done.store(true, std::sync::atomic::Ordering::Relaxed);
                    panic!("{seen:?}, {options:?}");
                }
            }
            is_done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    }

    /// Makes this thread's calls of listmount and statmount fail with `errno`, permanently.
    fn forbid(errno: i32, calls: std::ops::RangeInclusive<u32>) {
        let op = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter {
            code: code as u16,
            jt,
            jf,
            k,
        };
        // The syscall number is what the filter sees first.
        let mut filter = [
            op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
            op(
                libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K,
                *calls.start(),
                0,
                2,
            ),
            op(
                libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K,
                *calls.end(),
                1,
                0,
            ),
            op(
                libc::BPF_RET | libc::BPF_K,
                libc::SECCOMP_RET_ERRNO | errno as u32,
                0,
                0,
            ),
            op(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0, 0),
        ];
        let program = libc::sock_fprog {
            len: filter.len() as u16,
            filter: filter.as_mut_ptr(),
        };
        rustix::thread::set_no_new_privs(true).unwrap();
        // SAFETY: the kernel copies the program, which lives through the call; the filter applies
        // only to this thread.
        let done = unsafe {
            libc::prctl(
                libc::PR_SET_SECCOMP,
                libc::SECCOMP_MODE_FILTER,
                &raw const program,
            )
        };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    }

    #[test]
    fn where_the_calls_are_forbidden_the_text_is_read() {
        let Some(scratch) = can_mount() else { return };
        let place = scratch.path().join("a place");
        std::fs::create_dir(&place).unwrap();
        mount::bind(&place, &place, BindOptions::default()).unwrap();
        let open = std::fs::File::open(&place).unwrap();
        for (errno, calls) in [
            (libc::EPERM, 457..=458),
            (libc::ENOSYS, 457..=458),
            (libc::EPERM, 457..=457),
        ] {
            std::thread::scope(|scope| {
                let thread = scope.spawn(|| {
                    forbid(errno, calls);
                    assert!(statmount::read().is_err());
                    assert!(statmount::of(open.as_fd()).is_err());
                    (
                        all(read().unwrap().beneath(&place)),
                        all(&of(&open).unwrap()),
                    )
                });
                let (table, one) = thread.join().unwrap();
                assert_eq!(table, all(text::read().unwrap().beneath(&place)));
                assert_eq!(table, one);
            });
        }
    }
}
