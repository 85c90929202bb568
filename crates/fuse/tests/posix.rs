//! POSIX requirements for any file system: privileges, modes, ACLs, flags, space.

mod support;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use rustix::fs::{FallocateFlags, IFlags, XattrFlags};
use support::*;
use vellum_testkit::untested;

const TXTBSY: i32 = 26;
const PERM: i32 = 1;

fn mode(path: impl AsRef<Path>) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

fn set_mode(path: impl AsRef<Path>, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Runs a shell script in the mount as another user of the namespace.
fn as_other(world: &World, script: &str) -> bool {
    Command::new("setpriv")
        .args([
            "--reuid",
            "1000",
            "--regid",
            "1000",
            "--clear-groups",
            "sh",
            "-euc",
            script,
        ])
        .current_dir(world.at(""))
        .status()
        .unwrap()
        .success()
}

/// Makes the directories above searchable by others. The mount is for others too.
fn for_others(world: &mut World) {
    world.option("allow_other");
    let mut dir = world.beside("");
    while dir.pop() && fs::metadata(&dir).unwrap().mode() & 1 == 0 {
        if fs::set_permissions(&dir, fs::Permissions::from_mode(0o711)).is_err() {
            break;
        }
    }
    set_mode(world.beside(""), 0o711);
}

#[test]
fn setuid_and_setgid_are_cleared_as_posix_asks() {
    everywhere("setuid_and_setgid_are_cleared_as_posix_asks", |world| {
        for_others(world);
        for name in ["written", "cut", "by-root", "not-executable", "given"] {
            let path = world.put(name, "content");
            set_mode(&path, 0o6777);
        }
        set_mode(world.lower("not-executable"), 0o2767);
        set_mode(world.lower(""), 0o777);
        world.mount();
        assert!(as_other(world, "printf x >> written"));
        assert_eq!(mode(world.at("written")), 0o777);
        assert!(as_other(world, "truncate -s 3 cut"));
        assert_eq!(mode(world.at("cut")), 0o777);
        // There it means mandatory locking, which only members of the group may set.
        assert!(as_other(world, "printf x >> not-executable"));
        assert_eq!(mode(world.at("not-executable")), 0o767);
        chown(world.at("given"), Some(3), Some(3)).unwrap();
        assert_eq!(mode(world.at("given")), 0o777);
        let mut file = OpenOptions::new()
            .append(true)
            .open(world.at("by-root"))
            .unwrap();
        file.write_all(b"x").unwrap();
        drop(file);
        // Root may keep them; the root of a user namespace may not on any of the machine's file
        // systems.
        let kept = match world.is_user {
            true => 0o777,
            false => 0o6777,
        };
        assert_eq!(mode(world.at("by-root")), kept);
        world.remount();
        assert_eq!(mode(world.at("written")), 0o777);
        assert_eq!(mode(world.at("by-root")), kept);
    });
}

#[test]
fn new_files_have_the_right_owner_and_mode() {
    everywhere("new_files_have_the_right_owner_and_mode", |world| {
        for_others(world);
        fs::create_dir(world.lower("shared")).unwrap();
        chown(world.lower("shared"), Some(0), Some(77)).unwrap();
        set_mode(world.lower("shared"), 0o3777);
        world.mount();
        let script = "umask 027; cd shared; touch file; mkdir dir; mkfifo pipe; ln -s x link";
        assert!(as_other(world, script));
        for _ in 0..2 {
            for (name, wanted) in [("file", 0o640), ("dir", 0o2750), ("pipe", 0o640)] {
                let stat = fs::metadata(world.at("shared").join(name)).unwrap();
                assert_eq!((stat.uid(), stat.gid()), (1000, 77), "{name}");
                assert_eq!(stat.mode() & 0o7777, wanted, "{name}");
            }
            let stat = fs::symlink_metadata(world.at("shared/link")).unwrap();
            assert_eq!((stat.uid(), stat.gid()), (1000, 77));
            world.remount();
        }
        // The sticky bit: a stranger may not remove another user's files.
        fs::write(world.at("shared/roots"), "x").unwrap();
        assert!(!as_other(world, "rm -f shared/roots 2>/dev/null"));
        assert!(as_other(world, "rm shared/file"));
    });
}

#[test]
fn supplementary_groups_count() {
    everywhere("supplementary_groups_count", |world| {
        for_others(world);
        world.put("theirs", "group's");
        chown(world.lower("theirs"), Some(0), Some(88)).unwrap();
        set_mode(world.lower("theirs"), 0o060);
        world.mount();
        let run = |groups: &str| {
            Command::new("setpriv")
                .args(["--reuid", "1000", "--regid", "1000", "--groups", groups])
                .args(["sh", "-c", "printf x 2>/dev/null >> theirs"])
                .current_dir(world.at(""))
                .stderr(std::process::Stdio::null())
                .status()
                .unwrap()
                .success()
        };
        assert!(!run("87"));
        assert!(run("87,88"));
        assert_eq!(fs::read(world.at("theirs")).unwrap(), b"group'sx");
    });
}

#[test]
fn acls_are_enforced_inherited_and_survive_a_copy_up() {
    everywhere(
        "acls_are_enforced_inherited_and_survive_a_copy_up",
        |world| {
            for tool in ["setfacl", "getfacl"] {
                if Command::new(tool).arg("--version").output().is_err() {
                    untested("ACLs", format!("{tool} is not installed"));
                    return;
                }
            }
            for_others(world);
            world.put("file", "x");
            fs::create_dir(world.lower("dir")).unwrap();
            set_mode(world.lower("file"), 0o600);
            let set = |acl: &str, path: &Path| {
                let ran = Command::new("setfacl")
                    .args(["-m", acl])
                    .arg(path)
                    .status()
                    .unwrap();
                assert!(ran.success());
            };
            set("u:1000:rw", &world.lower("file"));
            set("d:u:1000:rwx,d:g::r-x,d:o::---", &world.lower("dir"));
            world.mount();
            assert!(as_other(world, "cat file >/dev/null"));
            set_mode(world.at("file"), 0o640);
            assert!(
                !as_other(world, "printf y 2>/dev/null >> file"),
                "the mask is r"
            );
            set("u:1000:rw", &world.at("file"));
            assert!(as_other(world, "printf y >> file"));
            // Inherited, and the umask is not applied.
            let made = Command::new("sh")
                .args(["-euc", "umask 077; mkdir dir/sub; echo x > dir/new"])
                .current_dir(world.at(""))
                .status()
                .unwrap();
            assert!(made.success());
            for _ in 0..2 {
                assert_eq!(mode(world.at("dir/new")), 0o660);
                assert!(as_other(world, "echo z >> dir/new"));
                assert!(as_other(world, "echo z > dir/sub/by-other"));
                world.remount();
            }
        },
    );
}

#[test]
fn a_running_program_is_not_written_to() {
    everywhere("a_running_program_is_not_written_to", |world| {
        fs::copy("/bin/sleep", world.lower("program")).unwrap();
        world.mount();
        let mut running = Command::new(world.at("program"))
            .arg("100")
            .spawn()
            .unwrap();
        let refused = OpenOptions::new().write(true).open(world.at("program"));
        let refused = errno(refused);
        running.kill().unwrap();
        running.wait().unwrap();
        assert_eq!(refused, TXTBSY);
    });
}

#[test]
fn flags_of_chattr_are_kept_and_obeyed() {
    as_root(|world| {
        world.put("file", "content");
        world.mount();
        let file = File::open(world.at("file")).unwrap();
        rustix::fs::ioctl_setflags(&file, IFlags::IMMUTABLE | IFlags::NOATIME).unwrap();
        drop(file);
        for _ in 0..2 {
            let file = File::open(world.at("file")).unwrap();
            let flags = rustix::fs::ioctl_getflags(&file).unwrap();
            assert!(flags.contains(IFlags::IMMUTABLE), "{flags:?}");
            drop(file);
            let file = OpenOptions::new().write(true).open(world.at("file"));
            assert_eq!(errno(file.unwrap().write_all(b"x")), PERM);
            assert_eq!(errno(fs::remove_file(world.at("file"))), PERM);
            assert_eq!(errno(fs::rename(world.at("file"), world.at("other"))), PERM);
            assert_eq!(
                errno(fs::hard_link(world.at("file"), world.at("other"))),
                PERM
            );
            let refused = fs::set_permissions(world.at("file"), fs::Permissions::from_mode(0o600));
            assert_eq!(errno(refused), PERM);
            assert_eq!(fs::read(world.at("file")).unwrap(), b"content");
            world.remount();
        }
        let file = File::open(world.at("file")).unwrap();
        rustix::fs::ioctl_setflags(&file, IFlags::empty()).unwrap();
        drop(file);
        fs::remove_file(world.at("file")).unwrap();
    });
}

#[test]
fn setgid_of_new_files_follows_supplementary_groups() {
    as_root(|world| {
        fs::create_dir(world.lower("shared")).unwrap();
        chown(world.lower("shared"), None, Some(2000)).unwrap();
        fs::set_permissions(world.lower("shared"), PermissionsExt::from_mode(0o2777)).unwrap();
        fs::set_permissions(world.beside(""), PermissionsExt::from_mode(0o755)).unwrap();
        let script = r#"
import os, sys
os.setgroups([2000] if sys.argv[2] == "member" else []); os.setgid(1000); os.setuid(1000); os.umask(0)
os.close(os.open(sys.argv[1] + "/file", os.O_CREAT | os.O_WRONLY, 0o2775))
os.mkdir(sys.argv[1] + "/dir", 0o775)
for name in ("file", "dir"):
    at = os.stat(f"{sys.argv[1]}/{name}")
    print(oct(at.st_mode), at.st_uid, at.st_gid)
"#;
        let make = |at: std::path::PathBuf, who: &str| {
            let ran = Command::new("python3")
                .args(["-c", script])
                .arg(at)
                .arg(who)
                .output();
            let ran = ran.unwrap();
            assert!(ran.status.success(), "{ran:?}");
            String::from_utf8(ran.stdout).unwrap()
        };
        world.option("allow_other");
        for who in ["member", "stranger"] {
            let bare = world.beside(format!("bare-{who}"));
            fs::create_dir(&bare).unwrap();
            chown(&bare, None, Some(2000)).unwrap();
            fs::set_permissions(&bare, PermissionsExt::from_mode(0o2777)).unwrap();
            let wanted = make(bare, who);
            assert_eq!(wanted.contains("0o102775"), who == "member", "{wanted}");
            world.mount();
            assert_eq!(make(world.at("shared"), who), wanted, "{who}");
            fs::remove_file(world.at("shared/file")).unwrap();
            fs::remove_dir(world.at("shared/dir")).unwrap();
            world.unmount();
        }
    });
}

/// docs/decisions/0033 relies on this. If the kernel starts sending this request, the answer must
/// be more than "no such call".
#[test]
fn syncfs_sends_no_request() {
    as_root(|world| {
        world.mount();
        fs::write(world.at("file"), "content").unwrap();
        let (_, requests) = world.requests(|world| {
            let file = File::open(world.at("file")).unwrap();
            rustix::fs::syncfs(&file).unwrap();
        });
        assert_eq!(requests.of("SyncFs"), 0, "{requests:?}");
    });
}

#[test]
fn with_allow_root_others_are_refused() {
    as_root(|world| {
        world.put("dir/file", "content");
        for dir in [world.beside(""), world.lower("dir")] {
            fs::set_permissions(dir, PermissionsExt::from_mode(0o755)).unwrap();
        }
        let script = r#"
import os, sys
os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
root, refused = sys.argv[1], 0
def look(what):
    global refused
    try: what()
    except PermissionError: refused += 1
for _ in range(3):
    look(lambda: os.stat(root))
    look(lambda: os.listdir(root))
    look(lambda: os.stat(root + "/dir/file"))
    look(lambda: open(root + "/dir/file").read())
    look(lambda: os.stat(root + "/none") if os.path.lexists(root + "/none") else os.listdir(root + "/dir"))
print(refused)
"#;
        let refused = |world: &World, uid: u32| {
            let ran = Command::new("python3")
                .args(["-c", script])
                .arg(world.at(""))
                .arg(uid.to_string())
                .output()
                .unwrap();
            assert!(ran.status.success(), "{ran:?}");
            String::from_utf8(ran.stdout)
                .unwrap()
                .trim()
                .parse::<u32>()
                .unwrap()
        };
        world.option("allow_other");
        world.option("only=1000");
        world.mount();
        // The owner and root have looked at everything before the stranger comes.
        for (uid, wanted) in [(1000, 0), (0, 0), (1001, 15), (1000, 0), (1001, 15)] {
            assert_eq!(refused(world, uid), wanted, "user {uid}");
        }
    });
}

#[test]
fn project_numbers_are_kept_and_copied_up() {
    // Project numbers are kept even without quotas.
    as_root_on(vellum_testkit::FsKind::Xfs, |world| {
        let script = r#"
import fcntl, os, struct, sys
GET, SET = 0x801c581f, 0x401c5820
def get(path):
    fd = os.open(path, os.O_RDONLY)
    got = struct.unpack("IIIII8x", fcntl.ioctl(fd, GET, bytes(28)))
    os.close(fd)
    return got
def give(path, project):
    fd = os.open(path, os.O_RDONLY)
    fcntl.ioctl(fd, SET, struct.pack("IIIII8x", get(path)[0], 0, 0, project, 0))
    os.close(fd)
step, root = sys.argv[1:]
file, other, directory = (f"{root}/{name}" for name in ("file", "other", "dir"))
if step == "below":
    give(file, 7)
elif step == "change":
    assert get(file)[3] == 7 and get(directory)[3] == 0
    os.chmod(file, 0o600)
    assert get(file)[3] == 7, "after a copy-up"
    give(other, 8)
    give(directory, 9)
    try: fcntl.ioctl(os.open(other, os.O_RDONLY), SET, struct.pack("IIIII8x", 0, 4096, 0, 8, 0))
    except OSError as error: assert error.errno in (22, 95), error
    else: raise SystemExit("an extent size was taken")
if step != "below":
    assert [get(path)[3] for path in (file, other, directory)] == [7, 8, 9]
"#;
        let run = |step: &str, root: std::path::PathBuf| {
            let ran = Command::new("python3")
                .args(["-c", script, step])
                .arg(root)
                .status();
            assert!(ran.unwrap().success(), "{step}");
        };
        world.put("file", "content");
        world.put("other", "content");
        world.put("dir/file", "content");
        run("below", world.lower(""));
        world.mount();
        run("change", world.at(""));
        world.remount();
        run("again", world.at(""));
        assert_eq!(fs::read(world.at("other")).unwrap(), b"content");
        run("again", world.at(""));
    });
}

#[test]
fn with_free_opens_an_immutable_file_refuses_the_first_write() {
    as_root(|world| {
        world.put("file", "content");
        world.mount();
        let immutable = |world: &World, flags| {
            let file = File::open(world.at("file")).unwrap();
            rustix::fs::ioctl_setflags(&file, flags).unwrap();
        };
        immutable(world, IFlags::IMMUTABLE);
        let mut file = OpenOptions::new()
            .write(true)
            .open(world.at("file"))
            .unwrap();
        assert_eq!(errno(file.write_all(b"x")), PERM);
        assert_eq!(errno(file.set_len(0)), PERM);
        drop(file);
        assert_eq!(fs::read(world.at("file")).unwrap(), b"content");
        world.unmount();
        world.option("checked");
        world.mount();
        let refused = OpenOptions::new().write(true).open(world.at("file"));
        assert_eq!(errno(refused), PERM, "a checked open refuses at once");
        immutable(world, IFlags::empty());
        OpenOptions::new()
            .write(true)
            .open(world.at("file"))
            .unwrap();
    });
}

#[test]
fn direct_reads_and_writes_work() {
    everywhere("direct_reads_and_writes_work", |world| {
        world.put("file", vec![b'a'; 1 << 20]);
        world.mount();
        let copied = Command::new("dd")
            .args(["bs=64k", "iflag=direct", "oflag=direct", "status=none"])
            .arg(format!("if={}", world.at("file").display()))
            .arg(format!("of={}", world.at("copy").display()))
            .status()
            .unwrap();
        assert!(copied.success());
        assert!(fs::read(world.at("copy")).unwrap() == vec![b'a'; 1 << 20]);
        let direct = rustix::fs::OFlags::DIRECT.bits() as i32;
        let file = OpenOptions::new()
            .write(true)
            .custom_flags(direct)
            .open(world.at("file"));
        drop(file.unwrap());
        let written = Command::new("dd")
            .args([
                "bs=4k",
                "count=1",
                "seek=3",
                "conv=notrunc",
                "oflag=direct",
                "status=none",
            ])
            .args(["if=/dev/zero"])
            .arg(format!("of={}", world.at("file").display()))
            .status()
            .unwrap();
        assert!(written.success());
        let mut wanted = vec![b'a'; 1 << 20];
        wanted[12288..16384].fill(0);
        assert!(fs::read(world.at("file")).unwrap() == wanted);
    });
}

#[test]
fn holes_are_made_found_and_kept() {
    everywhere("holes_are_made_found_and_kept", |world| {
        let lower = File::create(world.lower("sparse")).unwrap();
        lower.set_len(8 << 20).unwrap();
        lower.write_all_at(b"data", 4 << 20).unwrap();
        world.put("dense", vec![1; 1 << 20]);
        world.mount();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(world.at("sparse"))
            .unwrap();
        file.write_all_at(b"x", 0).unwrap();
        assert!(file.metadata().unwrap().blocks() < 200, "holes were filled");
        let data = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(100_000)).unwrap();
        assert_eq!(data, 4 << 20);
        let hole = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(data)).unwrap();
        assert!(hole > data && hole <= (4 << 20) + 65536);
        drop(file);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(world.at("dense"))
            .unwrap();
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&file, punch, 65536, 65536).unwrap();
        let mut wanted = vec![1; 1 << 20];
        wanted[65536..131072].fill(0);
        drop(file);
        for _ in 0..2 {
            assert!(fs::read(world.at("dense")).unwrap() == wanted);
            world.remount();
        }
    });
}

#[test]
fn parts_of_files_are_copied() {
    everywhere("parts_of_files_are_copied", |world| {
        world.put(
            "from",
            (0..100_000u32)
                .flat_map(u32::to_ne_bytes)
                .collect::<Vec<_>>(),
        );
        world.put("to", vec![9; 1000]);
        world.mount();
        let from = File::open(world.at("from")).unwrap();
        let to = OpenOptions::new()
            .read(true)
            .write(true)
            .open(world.at("to"))
            .unwrap();
        let (mut at, mut into) = (400, 500);
        let mut left = 300_000;
        while left > 0 {
            let copied =
                rustix::fs::copy_file_range(&from, Some(&mut at), &to, Some(&mut into), left)
                    .unwrap();
            assert!(copied > 0);
            left -= copied;
        }
        let source = fs::read(world.lower("from")).unwrap();
        let mut wanted = vec![9; 500];
        wanted.extend(&source[400..300_400]);
        assert!(fs::read(world.at("to")).unwrap() == wanted);
        assert!(fs::read(world.lower("to")).unwrap() == vec![9; 1000]);
    });
}

#[test]
fn attributes_are_set_listed_and_removed() {
    everywhere("attributes_are_set_listed_and_removed", |world| {
        world.put("file", "x");
        let flags = XattrFlags::empty();
        rustix::fs::setxattr(world.lower("file"), "user.below", b"1", flags).unwrap();
        world.mount();
        let file = world.at("file");
        rustix::fs::setxattr(&file, "user.above", b"22", flags).unwrap();
        let refused = rustix::fs::setxattr(&file, "user.above", b"3", XattrFlags::CREATE);
        assert_eq!(refused.unwrap_err().raw_os_error(), 17);
        let refused = rustix::fs::setxattr(&file, "user.none", b"3", XattrFlags::REPLACE);
        assert_eq!(refused.unwrap_err().raw_os_error(), 61);
        rustix::fs::removexattr(&file, "user.below").unwrap();
        let gone = rustix::fs::removexattr(&file, "user.below");
        assert_eq!(gone.unwrap_err().raw_os_error(), 61);
        for _ in 0..2 {
            let mut list = [0; 256];
            let length = rustix::fs::listxattr(&file, &mut list[..]).unwrap();
            assert_eq!(&list[..length], b"user.above\0");
            let mut small = [0; 1];
            let short = rustix::fs::getxattr(&file, "user.above", &mut small[..]);
            assert_eq!(short.unwrap_err().raw_os_error(), 34);
            world.remount();
        }
    });
}

#[test]
fn free_space_is_the_uppers() {
    everywhere("free_space_is_the_uppers", |world| {
        world.mount();
        let here = rustix::fs::statfs(world.at("")).unwrap();
        let upper = rustix::fs::statfs(world.upper("")).unwrap();
        assert_eq!(here.f_blocks, upper.f_blocks);
        assert_eq!(here.f_bsize, upper.f_bsize);
        assert_eq!(here.f_files, upper.f_files);
        assert_eq!(here.f_namelen, 255);
    });
}

#[test]
fn appending_processes_lose_nothing() {
    everywhere("appending_processes_lose_nothing", |world| {
        world.put("log", "begin\n");
        world.mount();
        let script = "for i in $(seq 200); do echo line-$0-$i >> log; done";
        let children: Vec<_> = (0..8)
            .map(|n| {
                let mut command = Command::new("sh");
                command
                    .args(["-c", script, &n.to_string()])
                    .current_dir(world.at(""));
                command.spawn().unwrap()
            })
            .collect();
        for mut child in children {
            assert!(child.wait().unwrap().success());
        }
        world.remount();
        let text = fs::read_to_string(world.at("log")).unwrap();
        let mut lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 1601);
        lines.sort_unstable();
        lines.dedup();
        assert_eq!(lines.len(), 1601);
    });
}
