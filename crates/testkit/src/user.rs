//! A plain user for one test, with subordinate ids and a home, that leaves no trace on the machine.
//!
//! The user exists only inside the mount namespace of its commands, where copies of `/etc/passwd`
//! and the like that name it cover the real files. Nothing is added to the machine and nothing must
//! be removed again. The test must end processes that the user leaves running.

use std::ffi::OsStr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::scratch::copy_program;
use crate::{Scratch, needs_root, untested};

/// The user's name.
const NAME: &str = "vellum-plain-user";

/// A plain user. Its home and its files lie in the scratch directory it was created in.
#[derive(Debug)]
pub struct PlainUser {
    /// User and group id.
    pub id: u32,
    /// First of its 65,536 subordinate user and group ids.
    pub first_subid: u32,
    etc: PathBuf,
    home: PathBuf,
    scratch: PathBuf,
}

impl PlainUser {
    /// Creates the user; `None`, and recorded as untested, if that is impossible here.
    ///
    /// Makes the scratch directory searchable by others.
    pub fn new(scratch: &Scratch) -> Option<PlainUser> {
        let user = PlainUser::with_one_id(scratch)?;
        let found = user
            .command("sh")
            .args(["-c", "command -v newuidmap && command -v newgidmap"])
            .status();
        if !found.is_ok_and(|status| status.success()) {
            untested(
                "ids of plain users",
                "newuidmap and newgidmap are not installed",
            );
            return None;
        }
        let first = user.first_subid;
        user.write("subuid", &format!("{NAME}:{first}:65536\n"));
        user.write("subgid", &format!("{NAME}:{first}:65536\n"));
        Some(user)
    }

    /// As [`PlainUser::new`], and the user may use FUSE.
    pub fn with_fuse(scratch: &Scratch) -> Option<PlainUser> {
        PlainUser::new(scratch).filter(PlainUser::give_fuse)
    }

    /// As [`PlainUser::new`], but the user has no subordinate ids: it may only use its own.
    pub fn with_one_id(scratch: &Scratch) -> Option<PlainUser> {
        if !needs_root("working as another user") {
            return None;
        }
        let user = PlainUser {
            id: 61_234,
            first_subid: 1_234_000_000,
            etc: scratch.dir("etc-of-the-plain-user"),
            home: scratch.dir("home-of-the-plain-user"),
            scratch: scratch.path().to_owned(),
        };
        let open = std::fs::Permissions::from_mode(0o711);
        std::fs::set_permissions(scratch.path(), open).expect("the scratch directory's mode");
        chown(&user.home, Some(user.id), Some(user.id)).expect("the home's owner");
        let run = user.run_dir();
        std::fs::create_dir(&run).expect("a run directory");
        std::fs::set_permissions(&run, std::fs::Permissions::from_mode(0o700)).expect("its mode");
        chown(&run, Some(user.id), Some(user.id)).expect("its owner");
        let id = user.id;
        let line = format!("{NAME}:x:{id}:{id}::{}:/bin/sh\n", user.home.display());
        user.write("passwd", &line);
        user.write("group", &format!("{NAME}:x:{id}:\n"));
        user.write("subuid", "");
        user.write("subgid", "");
        let tried = user
            .command("unshare")
            .args(["--user", "--mount", "true"])
            .output()
            .expect("unshare runs");
        if !tried.status.success() {
            untested(
                "user namespaces of plain users",
                String::from_utf8_lossy(&tried.stderr).trim(),
            );
            return None;
        }
        Some(user)
    }

    fn write(&self, file: &str, line: &str) {
        let mut text = std::fs::read_to_string(Path::new("/etc").join(file)).unwrap_or_default();
        text.push_str(line);
        let path = self.etc.join(file);
        std::fs::write(&path, text).expect("a file for /etc");
        let mode = std::fs::Permissions::from_mode(0o644);
        std::fs::set_permissions(&path, mode).expect("its mode");
    }

    /// Lets the user open `/dev/fuse`, which on most machines every user may. False, and recorded
    /// as untested, if it does not exist.
    pub fn give_fuse(&self) -> bool {
        use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
        let device = self.etc.join("fuse-device");
        let mode = Mode::from_raw_mode(0o666);
        let made = Path::new("/dev/fuse").exists()
            && mknodat(
                CWD,
                &device,
                FileType::CharacterDevice,
                mode,
                makedev(10, 229),
            )
            .is_ok();
        if made {
            let open = std::fs::Permissions::from_mode(0o666);
            std::fs::set_permissions(&device, open).expect("the device's mode");
        } else {
            untested("FUSE for plain users", "there is no /dev/fuse");
        }
        made
    }

    /// Returns the user's home directory.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Returns the user's `XDG_RUNTIME_DIR`.
    pub fn run_dir(&self) -> PathBuf {
        self.home.join("run")
    }

    /// Returns a copy of `program` that the user may run, created once.
    pub fn borrow_program(&self, program: &Path) -> PathBuf {
        let copy = self
            .etc
            .join(program.file_name().expect("a program has a name"));
        if !copy.exists() {
            copy_program(program, &copy);
        }
        copy
    }

    /// Returns a command that runs `program` as the user, in its home, with its environment and
    /// nothing of ours.
    ///
    /// Add arguments with `arg`; `env` and `current_dir` would act on the wrapper: use `env
    /// NAME=VALUE` in the program.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        // The new namespace has copies of the mounts of concurrent tests, and would hold them for
        // as long as it lives.
        const SCRIPT: &str = r#"
            etc=$1 id=$2 home=$3 run=$4 scratch=$5; shift 5
            others=
            while read -r _ _ _ _ at _; do
                case "$at" in
                    "$scratch"/*) ;;
                    */vellum-test-??????/*|/tmp/vt??????/*) others="$others $at" ;;
                esac
            done < /proc/self/mountinfo
            # Names in the table have no blanks; what is in another mount goes with that one.
            set -f; [ -z "$others" ] || umount --lazy --internal-only --no-canonicalize $others 2> /dev/null || :
            set +f
            for file in passwd group subuid subgid; do
                [ -e /etc/$file ] || : > /etc/$file
                mount --bind "$etc/$file" /etc/$file || exit 125
            done
            if [ -e "$etc/fuse-device" ]; then
                mount --bind "$etc/fuse-device" /dev/fuse || exit 125
            fi
            cd "$home" || exit 125
            exec setpriv --reuid "$id" --regid "$id" --clear-groups \
                env -i "HOME=$home" "XDG_RUNTIME_DIR=$run" USER=vellum-plain-user LC_ALL=C.UTF-8 \
                PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"
        "#;
        let mut command = Command::new("unshare");
        command.args([
            "--mount",
            "--propagation",
            "slave",
            "sh",
            "-c",
            SCRIPT,
            "sh",
        ]);
        command
            .arg(&self.etc)
            .arg(self.id.to_string())
            .arg(&self.home)
            .arg(self.run_dir())
            .arg(&self.scratch);
        command.arg(program.as_ref());
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_user_has_no_privileges_but_subordinate_ids() {
        let scratch = Scratch::new();
        let Some(user) = PlainUser::new(&scratch) else {
            return;
        };
        let said = |command: &mut Command| {
            let out = command.output().unwrap();
            assert!(
                out.status.success(),
                "{}",
                String::from_utf8_lossy(&out.stderr)
            );
            String::from_utf8(out.stdout).unwrap()
        };
        assert_eq!(said(user.command("id").arg("-un")).trim(), NAME);
        assert_eq!(
            said(user.command("sh").args(["-c", "echo $HOME"])).trim(),
            user.home().to_str().unwrap()
        );
        assert!(
            !user
                .command("cat")
                .arg("/etc/shadow")
                .output()
                .unwrap()
                .status
                .success()
        );
        let map = said(user.command("unshare").args([
            "--user",
            "--map-users=1234000000,1,65536",
            "--map-root-user",
            "cat",
            "/proc/self/uid_map",
        ]));
        assert!(map.contains("1234000000"), "{map}");
        let copy = user.borrow_program(Path::new("/bin/true"));
        assert!(user.command(copy).status().unwrap().success());
        assert!(
            !std::fs::read_to_string("/etc/passwd")
                .unwrap()
                .contains(NAME)
        );
    }
}
