//! What modes deny a plain user that owns the files, and what they don't deny the assistant.
//!
//! The program plays every part itself, chosen by its first argument. Run as root it becomes
//! another user; run as a plain user it stays that user.

mod support;

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use support::{AsUser, is_root};
use vellum_sys::rooted::Access;
use vellum_sys::xattr::{self, SetMode};
use vellum_sys::{Dir, RenameFlags, own_files};

const NAME: &str = "the_assistant_gets_past_modes_of_the_users_own_files";

fn main() {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("__assist") => {
            let e = own_files::assist().unwrap_err();
            eprintln!("{e}: {}", e.source);
            std::process::exit(1);
        }
        Some("__live") => live(Path::new(&args[2])),
        _ if args.iter().any(|a| a == "--list") => println!("{NAME}: test"),
        _ => {
            the_assistant_gets_past_modes_of_the_users_own_files();
            println!("test {NAME} ... ok");
        }
    }
}

fn the_assistant_gets_past_modes_of_the_users_own_files() {
    let user = AsUser::new(|home| {
        if is_root() {
            let strange = home.join("strange");
            std::fs::write(&strange, "root's").unwrap();
            std::fs::set_permissions(&strange, std::fs::Permissions::from_mode(0o600)).unwrap();
        }
    });
    user.play("__live", "no user namespaces here");
}

fn live(home: &Path) {
    let tried = Command::new("unshare").args(["--user", "true"]).status();
    if !tried.is_ok_and(|status| status.success()) {
        eprintln!("no user namespaces here");
        std::process::exit(1);
    }
    let dir = Dir::open(home).unwrap();
    for (name, inner) in [("shut", 0o000), ("kept", 0o555), ("unlisted", 0o300)] {
        let made = dir.create_dir_all(name, 0o700).unwrap();
        let mut file = made.create_file("file", 0o600).unwrap();
        file.write_all(b"bytes").unwrap();
        made.symlink("there", "link").unwrap();
        made.set_mode("file", 0).unwrap();
        dir.set_mode(name, inner).unwrap();
    }
    let before = dir.stat("shut").unwrap();
    assert!(dir.open_dir("shut").unwrap_err().is_denied());

    own_files::enable(|| {
        let mut command = Command::new("/proc/self/exe");
        command.arg("__assist");
        command
    });
    for name in ["shut", "kept", "unlisted"] {
        let inner = dir.open_dir(name).unwrap();
        let names: Vec<_> = inner.entries().unwrap().map(|e| e.unwrap().name).collect();
        assert_eq!(names.len(), 2, "{name}: {names:?}");
        assert_eq!(inner.stat("file").unwrap().size_bytes, 5, "{name}");
        assert_eq!(inner.read_link("link").unwrap(), "there", "{name}");
        let mut read = String::new();
        let mut file = inner.open_known_file("file", Access::Read).unwrap();
        file.read_to_string(&mut read).unwrap();
        assert_eq!(read, "bytes", "{name}");
        let mut written = inner.open_file_for("file", Access::ReadWrite).unwrap();
        written.write_all(b"BYTES").unwrap();
        let attr = OsStr::new("user.mine");
        let file = OsStr::new("file");
        xattr::set(&inner, file, attr, b"value", SetMode::Any).unwrap();
        assert_eq!(xattr::get(&inner, file, attr).unwrap().unwrap(), b"value");
        assert_eq!(xattr::list(&inner, file).unwrap(), [attr]);
        assert!(xattr::remove(&inner, file, attr).unwrap());
        assert_eq!(xattr::get(&inner, file, attr).unwrap(), None);
        dir.create_file("new", 0o600).unwrap();
        let none = RenameFlags::empty();
        dir.rename("new", &inner, "moved", none).unwrap();
        inner.link(&inner, "moved", "linked").unwrap();
        inner.unlink("linked").unwrap();
        inner.unlink("moved").unwrap();
    }
    let after = dir.stat("shut").unwrap();
    assert_eq!((before.mode, before.ino), (after.mode, after.ino));
    if dir.stat_opt("strange").unwrap().is_some() {
        let refused = dir.open_known_file("strange", Access::Read).unwrap_err();
        assert!(refused.is_denied(), "another owner's file");
    }

    // The call during which it was killed fails once.
    let me = std::process::id();
    let children = std::fs::read_to_string(format!("/proc/self/task/{me}/children")).unwrap();
    let assistant = children.trim().parse().unwrap();
    let pid = rustix::process::Pid::from_raw(assistant).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let _ = dir.open_dir("shut");
    dir.open_dir("shut").unwrap();
}
