//! A plain user's union behaves like the user's ordinary directories: through fusermount3, in a
//! namespace with one id, and in one with subordinate ids.

mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::UNIX_EPOCH;

use support::layered::VELLUM;
use support::said;
use vellum_testkit::{PlainUser, Scratch};

const SCRIPT: &str = include_str!("support/as_in_a_directory.py");

/// The user's identity outside and inside the union.
#[derive(Clone, Copy)]
enum Setting {
    /// A plain user on the machine; fusermount3 mounts.
    Fusermount,
    /// Root of a user namespace with that one id.
    OneId,
    /// Root of a user namespace with 65,536 more.
    ManyIds,
}

impl Setting {
    /// The prefix for a command that is to run as this user.
    fn enter(self) -> &'static str {
        match self {
            Setting::Fusermount => "",
            Setting::OneId => "unshare --user --mount --map-root-user",
            Setting::ManyIds => "unshare --user --mount --map-root-user --map-auto",
        }
    }
}

struct World {
    _scratch: Scratch,
    user: PlainUser,
    script: PathBuf,
    program: PathBuf,
}

impl World {
    fn new() -> Option<World> {
        let scratch = Scratch::new();
        let user = PlainUser::with_fuse(&scratch)?;
        let script = scratch.join("as_in_a_directory.py");
        fs::write(&script, SCRIPT).unwrap();
        let program = user.borrow_program(Path::new(VELLUM));
        Some(World {
            _scratch: scratch,
            user,
            script,
            program,
        })
    }

    /// Creates directories that belong to the user.
    fn dirs(&self, names: &[&str]) -> PathBuf {
        let at = self.user.home().join("union");
        for name in names.iter().map(|name| at.join(name)) {
            fs::create_dir_all(&name).unwrap();
            chown(&name, Some(self.user.id), Some(self.user.id)).unwrap();
        }
        chown(&at, Some(self.user.id), Some(self.user.id)).unwrap();
        at
    }

    /// Mounts `lower`, runs a shell command next to it and unmounts; returns the command's standard
    /// output.
    fn beside_the_union(&self, setting: Setting, command: &str) -> String {
        let vellum = self.program.display();
        let script = format!(
            "cd union && {vellum} overlay -o lowerdir=lower,upperdir=upper,workdir=work merged || exit 9
            {command}
            code=$?; fusermount3 -u merged 2> /dev/null || umount merged || exit 8; exit $code"
        );
        let enter = setting.enter().split_whitespace();
        let mut words = enter.chain(["sh", "-c", &script]);
        let mut all: Command = self.user.command(words.next().unwrap_or("sh"));
        let done = said(all.args(words).output().unwrap());
        assert_eq!(done.code, 0, "{} {}", done.out, done.err);
        done.out
    }

    fn python(&self, args: &[&str]) {
        let mut all = Command::new("python3");
        let done = said(all.arg(&self.script).args(args).output().unwrap());
        assert_eq!(done.code, 0, "{} {}", done.out, done.err);
    }
}

/// Makes the same random changes in the union and in a directory: modes, ACLs, capabilities,
/// attributes, owners and names, on a tree that has all of these, foreign ones too in every third
/// one.
fn all_is_as_in_a_directory(setting: Setting) {
    let Some(world) = World::new() else { return };
    let (seeds, count) = match std::env::var_os("VELLUM_SLOW") {
        Some(_) => (1..=160, "150"),
        None => (1..=12, "60"),
    };
    let mut made = 0;
    for seed in seeds {
        let at = world.dirs(&["lower", "bare", "upper", "work", "merged"]);
        let path = |name: &str| at.join(name).display().to_string();
        let (seed, id) = (seed.to_string(), world.user.id.to_string());
        world.python(&["make", &seed, &path("lower"), &path("bare"), &id, &id]);
        let script = world.script.display();
        let command = format!("python3 {script} change {seed} {count} bare merged");
        let out = world.beside_the_union(setting, &command);
        made += out.trim().parse::<u32>().unwrap();
        fs::remove_dir_all(&at).unwrap();
    }
    assert!(made >= 100, "only {made} changes were made");
}

#[test]
fn a_union_through_fusermount3_behaves_like_the_users_directory() {
    all_is_as_in_a_directory(Setting::Fusermount);
}

#[test]
fn a_union_in_a_namespace_with_one_id_behaves_like_a_directory() {
    all_is_as_in_a_directory(Setting::OneId);
}

#[test]
fn a_union_in_a_namespace_with_many_ids_behaves_like_a_directory() {
    all_is_as_in_a_directory(Setting::ManyIds);
}

/// Trees as created by Go's module cache and Nix: read-only throughout, although the user owns
/// them.
#[test]
fn own_closed_directories_can_be_changed_and_stay_unchanged_below() {
    let Some(world) = World::new() else { return };
    for setting in [Setting::Fusermount, Setting::OneId, Setting::ManyIds] {
        let at = world.dirs(&[
            "lower",
            "lower/module",
            "lower/shut",
            "upper",
            "work",
            "merged",
        ]);
        for (file, mode) in [("module/go.mod", 0o444), ("shut/in", 0)] {
            let file = at.join("lower").join(file);
            fs::write(&file, "module\n").unwrap();
            chown(&file, Some(world.user.id), Some(world.user.id)).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        }
        for (dir, mode) in [("module", 0o555), ("shut", 0)] {
            let mode = fs::Permissions::from_mode(mode);
            fs::set_permissions(at.join("lower").join(dir), mode).unwrap();
        }
        let before = listing(&at.join("lower"), "%P %m %s %T@ %C@\n");
        let changes = "
            set -e; cd merged
            stat shut > /dev/null
            chmod 644 module/go.mod; echo more >> module/go.mod
            chmod 700 shut; ls shut > /dev/null; chmod 600 shut/in; cat shut/in
            mv shut moved; cat moved/in module/go.mod
            chmod -R u+rwX .; rm -r moved; mkdir -m 0300 new; touch new/file; chmod 700 new; rm -r new module";
        let out = world.beside_the_union(setting, &format!("({changes}); [ -z \"$(ls merged)\" ]"));
        assert_eq!(out, "module\nmodule\nmodule\nmore\n");
        assert_eq!(listing(&at.join("lower"), "%P %m %s %T@ %C@\n"), before);
        fs::remove_dir_all(&at).unwrap();
    }
}

/// A line of `find -printf` for each name in a tree.
fn listing(root: &Path, format: &str) -> Vec<String> {
    let mut find = Command::new("find");
    let out = said(find.arg(root).args(["-printf", format]).output().unwrap()).out;
    let mut lines: Vec<_> = out.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

#[test]
fn reading_through_a_union_changes_no_times_in_layers() {
    let Some(world) = World::new() else { return };
    for setting in [Setting::Fusermount, Setting::OneId, Setting::ManyIds] {
        let at = world.dirs(&["lower", "lower/dir", "upper", "work", "merged"]);
        let lower = at.join("lower");
        let paths = ["file", "dir/file", "dir", "."].map(|name| lower.join(name));
        for path in &paths[..2] {
            fs::write(path, "x").unwrap();
            chown(path, Some(world.user.id), Some(world.user.id)).unwrap();
        }
        for path in &paths {
            // Older than a day and than the last change, so any read would update it.
            let touched = Command::new("touch")
                .args(["-a", "-d", "2020-01-01"])
                .arg(path)
                .status();
            assert!(touched.unwrap().success());
        }
        let command = "ls -lR merged > /dev/null; cat merged/file merged/dir/file > /dev/null";
        world.beside_the_union(setting, command);
        for path in &paths {
            let atime = fs::metadata(path).unwrap().accessed().unwrap();
            let seconds = atime.duration_since(UNIX_EPOCH).unwrap().as_secs();
            assert!(seconds < 1_600_000_000, "{}: {seconds}", path.display());
        }
        fs::remove_dir_all(&at).unwrap();
    }
}
