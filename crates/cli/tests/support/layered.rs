//! Layers to mount, created by the test, and what the kernel shows of them.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use vellum_testkit::kernel::Overlay;
use vellum_testkit::tree::Ignore;
use vellum_testkit::{PlainUser, Scratch, Tree, needs_root};

use super::{Said, said};

pub const VELLUM: &str = env!("CARGO_BIN_EXE_vellum");

/// Two layers, an upper, a work directory and a place to mount on.
pub struct World {
    pub scratch: Scratch,
}

impl World {
    pub fn new() -> Option<World> {
        if !needs_root("mounting") {
            return None;
        }
        let world = World {
            scratch: Scratch::new(),
        };
        world.fill();
        Some(world)
    }

    pub fn fill(&self) {
        for dir in ["upper", "work", "merged", "top", "base/dir/inner"] {
            self.scratch.dir(dir);
        }
        self.scratch.file("top/both", "from the top\n");
        self.scratch.file("base/both", "from the base\n");
        self.scratch.file("base/dir/inner/file", "deep\n");
        self.scratch.file("base/gone", "soon\n");
    }

    pub fn at(&self, below: &str) -> PathBuf {
        self.scratch.join(below)
    }

    /// `lowerdir=...,upperdir=...,workdir=...`
    pub fn options(&self) -> String {
        let at = |below: &str| self.at(below).display().to_string();
        format!(
            "lowerdir={}:{},upperdir={},workdir={}",
            at("top"),
            at("base"),
            at("upper"),
            at("work")
        )
    }

    pub fn vellum(&self, args: &[&str]) -> Said {
        said(command(VELLUM, args).output().unwrap())
    }

    /// The same for layers that were just unmounted, which must succeed: a mount namespace that
    /// another process has just created may hold a copy of the mount for a while.
    #[track_caller]
    pub fn on_free_layers(&self, args: &[&str]) {
        for _ in 0..1200 {
            let done = self.vellum(args);
            if done.code == 0 {
                return;
            }
            assert!(done.err.contains("is mounted: "), "{args:?}: {}", done.err);
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        panic!("{args:?}: a process holds the layers");
    }

    /// Mounts with these options besides the layers, and unmounts at the end of the test.
    pub fn mount(&self, options: &str) -> PathBuf {
        let merged = self.at("merged");
        let all = format!("{},{options}", self.options());
        let done = self.vellum(&["overlay", "-o", &all, merged.to_str().unwrap()]);
        assert_eq!((done.code, done.err.as_str()), (0, ""), "{}", done.out);
        self.scratch.adopt_mount(&merged);
        merged
    }

    /// Gives the layers to the plain user, runs a script as that user and returns its result.
    pub fn as_user(&self, user: &PlainUser, script: &str) -> Said {
        let dirs = ["top", "base", "upper", "work", "merged"].map(|dir| self.at(dir));
        let mut give = Command::new("chown");
        give.arg("-R").arg(format!("{0}:{0}", user.id)).args(dirs);
        assert!(give.status().unwrap().success());
        let vellum = user.borrow_program(Path::new(VELLUM));
        let mut run = user.command("sh");
        run.arg("-c")
            .arg(format!("set -eu; cd \"$2\"; {script}"))
            .arg("sh")
            .arg(vellum)
            .arg(self.scratch.path());
        said(run.output().unwrap())
    }

    /// Unmounts, and waits until the upper is free. Then everything is written.
    pub fn unmount(&self) {
        self.scratch.unmount(&self.at("merged"));
        wait_free(&self.at("upper"));
    }
}

pub fn command(program: impl AsRef<std::ffi::OsStr>, args: &[&str]) -> Command {
    let mut command = Command::new("timeout");
    command.arg("300").arg(program).args(args);
    command.stdin(Stdio::null());
    command
}

pub fn wait_free(upper: &Path) {
    let mut wait = command("flock", &["--exclusive", upper.to_str().unwrap(), "true"]);
    assert!(
        wait.status().unwrap().success(),
        "the engine did not let go"
    );
}

pub fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Everything a layer may hold, created through the kernel's overlay with all its marks.
pub fn changed(world: &World) -> PathBuf {
    let target = world.scratch.dir("made");
    Overlay {
        lowers: vec![world.at("top"), world.at("base")],
        upper: Some((world.at("upper"), world.at("work"))),
        ..Overlay::default()
    }
    .option("redirect_dir", "on")
    .option("metacopy", "on")
    .mount(&world.scratch, &target)
    .unwrap();
    fs::write(target.join("new"), "new\n").unwrap();
    fs::hard_link(target.join("new"), target.join("linked")).unwrap();
    fs::rename(target.join("dir"), target.join("moved")).unwrap();
    fs::set_permissions(target.join("both"), fs::Permissions::from_mode(0o4700)).unwrap();
    fs::remove_file(target.join("gone")).unwrap();
    fs::create_dir(target.join("gone")).unwrap();
    fs::write(target.join("gone/in"), "a directory now\n").unwrap();
    symlink("new", target.join("link")).unwrap();
    target
}

pub const ALL: Ignore = Ignore {
    root: false,
    directory_mtimes: false,
    mtimes: false,
    nanoseconds: false,
    hard_links: false,
    owners: false,
    xattrs: false,
};

/// Mounts layers with the kernel, read-only and with every feature off, and returns the tree.
pub fn kernel_shows(world: &World, name: &str, layers: &[&Path]) -> Tree {
    let target = world.scratch.dir(name);
    let empty = world.scratch.dir("empty");
    let lowers = layers
        .iter()
        .map(|l| l.to_path_buf())
        .chain([empty])
        .collect();
    Overlay {
        lowers,
        ..Overlay::default()
    }
    .option("metacopy", "off")
    .option("redirect_dir", "nofollow")
    .mount(&world.scratch, &target)
    .unwrap();
    let tree = Tree::read(&target).unwrap();
    world.scratch.unmount(&target);
    tree
}
