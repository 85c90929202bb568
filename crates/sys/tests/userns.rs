//! A namespace holder and the processes that join it, run as a plain user with just one id.
//!
//! The program plays every part itself, chosen by its first argument, since leaving and joining a
//! user namespace needs a process with one thread. Run as root it becomes another user; run as a
//! plain user it stays that user.

mod support;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use support::{AsUser, is_root};
use vellum_sys::mount::{self, Method, OverlayMount, OverlayOptions};
use vellum_sys::userns::{self, Holder, IdMaps};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("__hold") => {
            let e = userns::hold().unwrap_err();
            eprintln!("{e}: {}", e.source);
            std::process::exit(1);
        }
        Some("__first") => println!("{}", userns::is_initial()),
        Some("__live") => live(Path::new(&args[2])),
        Some("__join") => join(&args[2], &args[3], Path::new(&args[4])),
        _ => {
            if args.iter().any(|a| a == "--list") {
                println!("a_plain_user_mounts_in_namespaces_that_stay: test");
                println!("a_namespace_with_all_ids_is_not_the_first: test");
                return;
            }
            a_plain_user_mounts_in_namespaces_that_stay();
            println!("test a_plain_user_mounts_in_namespaces_that_stay ... ok");
            a_namespace_with_all_ids_is_not_the_first();
            println!("test a_namespace_with_all_ids_is_not_the_first ... ok");
        }
    }
}

fn a_plain_user_mounts_in_namespaces_that_stay() {
    AsUser::new(|_| {}).play("__live", "cannot leave the user namespace");
}

/// Its id map looks like that of the first.
fn a_namespace_with_all_ids_is_not_the_first() {
    if !is_root() || !userns::is_initial() {
        vellum_testkit::untested("a namespace with all ids", "only root may make one");
        return;
    }
    let mut child = Command::new("unshare")
        .args([
            "--user",
            "sh",
            "-c",
            "echo; read -r go; exec \"$0\" __first",
        ])
        .arg(std::env::current_exe().unwrap())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    for map in ["uid_map", "gid_map"] {
        let path = format!("/proc/{}/{map}", child.id());
        std::fs::write(path, "0 0 4294967295\n").unwrap();
    }
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    line.clear();
    out.read_line(&mut line).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(line, "false\n");
}

/// Stops the holder when a check fails, too.
struct Ender(Holder);

impl Drop for Ender {
    fn drop(&mut self) {
        let _ = self.0.stop();
    }
}

/// The plain user's session: start a holder, run two commands in it, check that the second finds
/// the first's mount, end.
fn live(home: &Path) {
    let me = std::fs::metadata("/proc/self").unwrap();
    assert_ne!(me.uid(), 0);
    let program = std::env::current_exe().unwrap();
    let maps = IdMaps::single(me.uid(), me.gid());
    let holder = match userns::spawn_holder(Command::new(&program).arg("__hold"), &maps) {
        Ok(holder) => holder,
        Err(e) => {
            eprintln!("{e}: {}", e.source);
            std::process::exit(1);
        }
    };
    let _end = Ender(holder);
    assert!(holder.is_alive());
    for part in ["make", "find"] {
        let out = Command::new(&program)
            .args([
                "__join",
                part,
                &format!("{}:{}", holder.pid, holder.start_ticks),
            ])
            .arg(home)
            .current_dir(home)
            .output()
            .unwrap();
        assert!(
            out.status.success(),
            "{part}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
    }
    assert!(
        !home.join("merged/new").exists(),
        "the mount must not show outside"
    );
    assert!(home.join("upper/new").exists());
    assert_eq!(
        std::fs::metadata(home.join("upper/new")).unwrap().uid(),
        me.uid()
    );
    assert!(holder.stop().unwrap());
    for _ in 0..500 {
        if !holder.is_alive() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert!(!holder.is_alive());
    assert!(!userns::join(&holder).unwrap());
}

fn join(part: &str, holder: &str, home: &Path) {
    let (pid, start) = holder.split_once(':').unwrap();
    let holder = Holder {
        pid: pid.parse().unwrap(),
        start_ticks: start.parse().unwrap(),
    };
    let before = std::env::current_dir().unwrap();
    assert!(userns::is_initial());
    assert!(userns::join(&holder).unwrap());
    assert!(!userns::is_initial());
    assert_eq!(std::env::current_dir().unwrap(), before);
    assert_eq!(
        std::fs::metadata(home).unwrap().uid(),
        0,
        "we are id 0 inside"
    );
    assert!(IdMaps::current().unwrap().is_single());
    let facts = vellum_sys::probe::directory(home).unwrap();
    assert!(
        facts.overlay.userxattr && !facts.overlay.trusted,
        "{facts:?}"
    );
    assert!(!facts.trusted_xattrs);
    let kernel = vellum_sys::probe::kernel();
    assert!(kernel.in_user_namespace && kernel.may_mount);
    let merged = home.join("merged");
    if part == "find" {
        assert!(mount::is_mount_point(&merged).unwrap());
        assert!(merged.join("new").exists());
        return;
    }
    let dirs: [PathBuf; 4] = ["lower", "base", "upper", "work"].map(|name| home.join(name));
    for dir in dirs.iter().chain([&merged]) {
        std::fs::create_dir(dir).unwrap();
    }
    std::fs::write(dirs[0].join("gone"), "x").unwrap();
    let wanted = OverlayMount {
        lowers: dirs[..2].to_vec(),
        upper: Some(dirs[2].clone()),
        work: Some(dirs[3].clone()),
        options: OverlayOptions {
            userxattr: true,
            ..OverlayOptions::default()
        },
        ..OverlayMount::default()
    };
    let method = match (kernel.has_layer_fds, kernel.has_lowerdir_plus) {
        (true, _) => Method::LayerFds,
        (_, true) => Method::LowerdirPaths,
        _ => Method::OptionPage {
            home: home.to_path_buf(),
        },
    };
    let facts = mount::overlay(&wanted, &merged, &method).unwrap();
    assert!(facts.effective.userxattr);
    std::fs::write(merged.join("new"), "x").unwrap();
    std::fs::remove_file(merged.join("gone")).unwrap();
    let upper = vellum_sys::Dir::open(&dirs[2]).unwrap();
    assert!(
        upper.stat("gone").unwrap().is_null_device(),
        "the kernel makes whiteouts for plain users too"
    );
}
