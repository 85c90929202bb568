//! Names: renaming directories, hiding what is below, names that may not be created.

mod support;

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use rustix::fs::{CWD, FileType, Mode, RenameFlags, XattrFlags};
use support::*;

const EXIST: i32 = 17;
const PERM: i32 = 1;

#[test]
fn directories_of_lower_layers_are_moved() {
    everywhere("directories_of_lower_layers_are_moved", |world| {
        world.put("a/b/c/file", "deep");
        world.put("a/b/other", "other");
        world.put("elsewhere/x", "x");
        world.mount();
        fs::rename(world.at("a/b"), world.at("elsewhere/moved")).unwrap();
        fs::write(world.at("elsewhere/moved/c/new"), "new").unwrap();
        fs::rename(world.at("elsewhere/moved/c"), world.at("top")).unwrap();
        fs::rename(world.at("elsewhere"), world.at("a/inside")).unwrap();
        fs::create_dir(world.at("elsewhere")).unwrap();
        let check = |world: &World| {
            assert_eq!(names(world.at("")), ["a", "elsewhere", "top"]);
            assert_eq!(names(world.at("a")), ["inside"]);
            assert_eq!(names(world.at("elsewhere")), [""; 0]);
            assert_eq!(names(world.at("a/inside")), ["moved", "x"]);
            assert_eq!(names(world.at("a/inside/moved")), ["other"]);
            assert_eq!(names(world.at("top")), ["file", "new"]);
            assert_eq!(fs::read(world.at("top/file")).unwrap(), b"deep");
            assert_eq!(
                fs::read(world.at("a/inside/moved/other")).unwrap(),
                b"other"
            );
        };
        check(world);
        world.remount();
        check(world);
        fs::rename(world.at("top"), world.at("a/inside/moved/back")).unwrap();
        fs::rename(world.at("a"), world.at("z")).unwrap();
        world.remount();
        assert_eq!(
            fs::read(world.at("z/inside/moved/back/file")).unwrap(),
            b"deep"
        );
        assert_eq!(names(world.at("")), ["elsewhere", "z"]);
    });
}

#[test]
fn renames_exchange_and_refuse_to_replace() {
    everywhere("renames_exchange_and_refuse_to_replace", |world| {
        world.put("dir/file", "in dir");
        world.put("plain", "plain");
        world.mount();
        let rename = |from: &str, to: &str, flags| {
            rustix::fs::renameat_with(CWD, world.at(from), CWD, world.at(to), flags)
        };
        let refused = rename("plain", "dir", RenameFlags::NOREPLACE);
        assert_eq!(refused.unwrap_err().raw_os_error(), EXIST);
        rename("plain", "dir", RenameFlags::EXCHANGE).unwrap();
        rename("plain", "third", RenameFlags::NOREPLACE).unwrap();
        let check = |world: &World| {
            assert_eq!(names(world.at("")), ["dir", "third"]);
            assert_eq!(fs::read(world.at("dir")).unwrap(), b"plain");
            assert_eq!(fs::read(world.at("third/file")).unwrap(), b"in dir");
        };
        check(world);
        world.remount();
        check(world);
    });
}

#[test]
fn a_directory_is_renamed_over_an_empty_merged_one() {
    everywhere("a_directory_is_renamed_over_an_empty_merged_one", |world| {
        world.put("from/file", "from");
        world.put("to/file", "to");
        world.mount();
        let refused = fs::rename(world.at("from"), world.at("to"));
        assert_eq!(errno(refused), 39);
        fs::remove_file(world.at("to/file")).unwrap();
        fs::rename(world.at("from"), world.at("to")).unwrap();
        for _ in 0..2 {
            assert_eq!(names(world.at("")), ["to"]);
            assert_eq!(fs::read(world.at("to/file")).unwrap(), b"from");
            world.remount();
        }
    });
}

#[test]
fn what_was_removed_stays_removed() {
    everywhere("what_was_removed_stays_removed", |world| {
        world.put("gone", "x");
        world.put("dir/one", "x");
        world.put("dir/two", "x");
        world.put("kept/below", "x");
        world.mount();
        fs::remove_file(world.at("gone")).unwrap();
        fs::remove_file(world.at("kept/below")).unwrap();
        fs::remove_dir_all(world.at("dir")).unwrap();
        assert_eq!(names(world.at("")), ["kept"]);
        world.remount();
        assert_eq!(names(world.at("")), ["kept"]);
        assert_eq!(names(world.at("kept")), [""; 0]);
        fs::create_dir(world.at("dir")).unwrap();
        File::create(world.at("gone")).unwrap();
        for _ in 0..2 {
            assert_eq!(
                names(world.at("dir")),
                [""; 0],
                "a directory made again is empty"
            );
            assert_eq!(fs::read(world.at("gone")).unwrap(), b"");
            world.remount();
        }
    });
}

#[test]
fn a_merged_directory_is_removed_while_it_is_listed() {
    everywhere(
        "a_merged_directory_is_removed_while_it_is_listed",
        |world| {
            for i in 0..3000 {
                world.put(&format!("big/lower-{i}"), "");
            }
            world.mount();
            for i in 0..1000 {
                File::create(world.at(format!("big/upper-{i}"))).unwrap();
            }
            let mut seen = 0;

            for entry in fs::read_dir(world.at("big")).unwrap() {
                fs::remove_file(entry.unwrap().path()).unwrap();
                seen += 1;
            }
            assert_eq!(seen, 4000);
            fs::remove_dir(world.at("big")).unwrap();
            world.remount();
            assert!(names(world.at("")).is_empty());
        },
    );
}

#[test]
fn a_device_that_means_a_whiteout_cant_be_created() {
    as_root(|world| {
        world.mount();
        let made = rustix::fs::mknodat(
            CWD,
            world.at("null"),
            FileType::CharacterDevice,
            Mode::RUSR,
            0,
        );
        assert_eq!(made.unwrap_err().raw_os_error(), PERM);
        let made = rustix::fs::mknodat(
            CWD,
            world.at("one"),
            FileType::CharacterDevice,
            Mode::RUSR,
            rustix::fs::makedev(1, 5),
        );
        made.unwrap();
        assert_eq!(fs::metadata(world.at("one")).unwrap().rdev(), 0x105);
        assert_eq!(names(world.at("")), ["one"]);
    });
}

#[test]
fn names_that_begin_like_whiteouts_are_names() {
    everywhere("names_that_begin_like_whiteouts_are_names", |world| {
        world.put("file", "x");
        world.mount();
        fs::write(world.at(".wh.file"), "plain").unwrap();
        for _ in 0..2 {
            assert_eq!(names(world.at("")), [".wh.file", "file"]);
            assert_eq!(fs::read(world.at(".wh.file")).unwrap(), b"plain");
            world.remount();
        }
    });
}

#[test]
fn marks_set_through_the_mount_are_plain_attributes() {
    everywhere(
        "marks_set_through_the_mount_are_plain_attributes",
        |world| {
            world.put("dir/below", "x");
            world.mount();
            let name = match world.is_user {
                true => "user.overlay.opaque",
                false => "trusted.overlay.opaque",
            };
            let dir = world.at("dir");
            rustix::fs::setxattr(&dir, name, b"y", XattrFlags::empty()).unwrap();
            for _ in 0..2 {
                assert_eq!(
                    names(world.at("dir")),
                    ["below"],
                    "the mark was taken for ours"
                );
                let mut value = [0; 8];
                let length = rustix::fs::getxattr(&dir, name, &mut value[..]).unwrap();
                assert_eq!(&value[..length], b"y");
                let mut list = [0; 256];
                let length = rustix::fs::listxattr(&dir, &mut list[..]).unwrap();
                let listed: Vec<_> = list[..length].split(|&byte| byte == 0).collect();
                assert!(listed.contains(&name.as_bytes()));
                assert_eq!(listed.len(), 2, "{listed:?}: marks of ours show");
                world.remount();
            }
            rustix::fs::removexattr(&dir, name).unwrap();
            assert!(rustix::fs::getxattr(&dir, name, &mut [0; 8][..]).is_err());
        },
    );
}

#[test]
fn names_of_any_bytes_and_255_of_them() {
    everywhere("names_of_any_bytes_and_255_of_them", |world| {
        world.mount();
        let long = "x".repeat(255);
        fs::write(world.at(&long), "long").unwrap();
        assert_eq!(errno(fs::write(world.at("y".repeat(256)), "")), 36);
        let odd: Vec<u8> = (1..=255).filter(|&byte| byte != b'/').collect();
        let odd = std::ffi::OsStr::from_bytes(&odd);
        fs::create_dir(world.at(odd)).unwrap();
        fs::write(world.at(odd).join(&long), "odd").unwrap();
        fs::rename(world.at(&long), world.at(odd).join("short")).unwrap();
        fs::remove_file(world.at(odd).join(&long)).unwrap();
        world.remount();
        assert_eq!(names(world.at(odd)), ["short"]);
    });
}

#[test]
fn paths_may_be_longer_than_4096_bytes() {
    everywhere("paths_may_be_longer_than_4096_bytes", |world| {
        world.mount();
        let script = r#"
import os, sys
os.chdir(sys.argv[1])
name = "d" * 200
for i in range(40):
    if sys.argv[2] == "make": os.mkdir(name)
    os.chdir(name)
if sys.argv[2] == "make":
    open("file", "w").write("deep")
    os.rename("file", "moved")
assert open("moved").read() == "deep"
assert os.listdir(".") == ["moved"]
"#;
        for step in ["make", "look", "look again"] {
            let ran = std::process::Command::new("python3")
                .args(["-c", script])
                .arg(world.at(""))
                .arg(step)
                .status()
                .unwrap();
            assert!(ran.success());
            if step != "make" {
                world.remount();
            }
        }
    });
}

#[test]
fn five_hundred_layers_are_one_tree() {
    everywhere("five_hundred_layers_are_one_tree", |world| {
        for i in 0..520 {
            let layer = world.beside(format!("l{i}"));
            fs::create_dir_all(layer.join("dir")).unwrap();
            fs::write(layer.join(format!("dir/{i}")), "x").unwrap();
            fs::write(layer.join("same"), i.to_string()).unwrap();
            world.more_lowers.push(layer);
        }
        world.mount();
        assert_eq!(names(world.at("dir")).len(), 520);
        assert_eq!(fs::read(world.at("same")).unwrap(), b"0");
        fs::write(world.at("dir/519"), "y").unwrap();
        fs::remove_file(world.at("dir/518")).unwrap();
        world.remount();
        assert_eq!(names(world.at("dir")).len(), 519);
        assert_eq!(fs::read(world.at("dir/519")).unwrap(), b"y");
    });
}

#[test]
fn listings_have_stable_offsets() {
    everywhere("listings_have_stable_offsets", |world| {
        for i in 0..500 {
            world.put(&format!("dir/{i:04}"), "");
        }
        world.mount();
        // telldir and seekdir of one reader, while another lists and names come and go.
        let script = r#"
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.opendir.restype = ctypes.c_void_p
libc.telldir.restype = ctypes.c_long
class Dirent(ctypes.Structure):
    _fields_ = [("ino", ctypes.c_uint64), ("off", ctypes.c_int64), ("len", ctypes.c_uint16), ("kind", ctypes.c_uint8), ("name", ctypes.c_char * 256)]
libc.readdir.restype = ctypes.POINTER(Dirent)
path = sys.argv[1]
d = ctypes.c_void_p(libc.opendir(path.encode()))
def next():
    e = libc.readdir(d)
    return e.contents.name.decode() if e else None
order, places = [], []
while True:
    places.append(libc.telldir(d))
    name = next()
    if name is None: break
    order.append(name)
assert len(order) == 502 and len(set(order)) == 502
for at in (400, 10, 250, 0, 501):
    libc.seekdir(d, ctypes.c_long(places[at]))
    assert next() == order[at], at
gone = set(order[300:320]) - {".", ".."}
for name in gone: os.unlink(os.path.join(path, name))
for i in range(50): open(os.path.join(path, "new%d" % i), "w").close()
assert len(os.listdir(path)) == 500 - len(gone) + 50
libc.seekdir(d, ctypes.c_long(places[290]))
rest = []
while (name := next()) is not None: rest.append(name)
assert len(rest) == len(set(rest))
missing = set(order[290:]) - gone - set(rest) - {".", ".."}
assert not missing, missing
"#;
        let ran = std::process::Command::new("python3")
            .args(["-c", script])
            .arg(world.at("dir"))
            .status()
            .unwrap();
        assert!(ran.success());
    });
}

#[test]
fn two_mounts_never_share_an_upper_or_a_work_directory() {
    everywhere(
        "two_mounts_never_share_an_upper_or_a_work_directory",
        |world| {
            world.mount();
            let server = world.server_pid();
            let try_with = |world: &World, upper: PathBuf, work: PathBuf| {
                let other = world.beside("other-merged");
                fs::create_dir_all(&other).unwrap();
                fs::create_dir_all(&upper).unwrap();
                fs::create_dir_all(&work).unwrap();
                let mine = world.command();
                let output = std::process::Command::new("timeout")
                    .arg("10")
                    .arg(mine.get_program())
                    .arg(world.lower(""))
                    .args([&upper, &work, &other])
                    .args(&world.options)
                    .output()
                    .unwrap();
                assert_eq!(output.status.code(), Some(1), "a second mount was made");
                String::from_utf8(output.stderr).unwrap()
            };
            let said = try_with(world, world.upper(""), world.beside("work2"));
            assert!(said.contains("upper"), "{said}");
            let said = try_with(world, world.beside("upper2"), world.work());
            assert!(said.contains("work"), "{said}");
            fs::write(world.at("still"), "works").unwrap();
            assert_eq!(world.server_pid(), server);
        },
    );
}
