//! Working as a plain user, from archive to archive, with the real command and as a real other uid.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use vellum_testkit::{PlainUser, Scratch};

struct World {
    user: PlainUser,
    vellum: PathBuf,
    scratch: Scratch,
}

impl World {
    fn new() -> Option<World> {
        let scratch = Scratch::new();
        let user = PlainUser::new(&scratch)?;
        let vellum = user.borrow_program(Path::new(env!("CARGO_BIN_EXE_vellum")));
        Some(World {
            user,
            vellum,
            scratch,
        })
    }

    fn run(&self, args: &[&str]) -> Output {
        self.user.command(&self.vellum).args(args).output().unwrap()
    }

    /// Runs a command that must succeed and returns what it printed.
    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        let out = self.run(args);
        assert!(
            out.status.success(),
            "{args:?}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
        String::from_utf8(out.stdout)
            .unwrap()
            .trim_end_matches('\n')
            .to_string()
    }

    /// Runs a shell command inside the user's namespaces.
    #[track_caller]
    fn inside(&self, script: &str) -> String {
        self.ok(&["unshare", "sh", "-ec", script])
    }

    /// The process that keeps the namespaces, as noted.
    fn holder(&self) -> Option<u32> {
        let note = std::fs::read_to_string(self.user.run_dir().join("vellum/holder.json")).ok()?;
        let digits = note.split("\"pid\":").nth(1)?;
        digits
            .split(|c: char| !c.is_ascii_digit())
            .find(|d| !d.is_empty())?
            .parse()
            .ok()
    }

    /// Ends the holder, and with it every mount, as a reboot does.
    fn end_holder(&self) {
        let Some(pid) = self.holder() else { return };
        let is_ours =
            || std::fs::metadata(format!("/proc/{pid}")).is_ok_and(|m| m.uid() == self.user.id);
        if is_ours() {
            Command::new("kill").arg(pid.to_string()).status().unwrap();
        }
        for _ in 0..500 {
            if !is_ours() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.end_holder();
    }
}

#[test]
fn a_plain_users_containers_mount_again_when_the_holder_is_gone() {
    let Some(world) = World::new() else { return };
    let tree = world.scratch.dir("tree");
    world.scratch.file("tree/file", "below");
    world.ok(&[
        "create",
        "--quiet",
        "--from",
        tree.to_str().unwrap(),
        "--name",
        "box",
    ]);
    let merged = world.ok(&["mount", "box"]);
    let holder = world.holder().unwrap();
    world.inside(&format!("echo mine > {merged}/own; rm {merged}/file"));
    assert_eq!(
        world.holder(),
        Some(holder),
        "one holder serves every command"
    );
    world.end_holder();
    assert!(!world.ok(&["mount"]).contains("box"));
    assert_ne!(world.holder(), Some(holder));
    assert_eq!(world.ok(&["mount", "box"]), merged);
    assert_eq!(
        world.inside(&format!("cat {merged}/own; ! test -e {merged}/file")),
        "mine"
    );
    world.ok(&["rm", "--force", "box"]);
}

#[test]
fn two_first_commands_at_once_make_one_world() {
    let Some(world) = World::new() else { return };
    let commands: Vec<_> = (0..6)
        .map(|_| {
            let mut command = world.user.command(&world.vellum);
            command
                .args(["unshare", "readlink", "/proc/self/ns/mnt"])
                .stdout(std::process::Stdio::piped());
            command.spawn().unwrap()
        })
        .collect();
    let namespaces: Vec<_> = commands
        .into_iter()
        .map(|c| c.wait_with_output().unwrap().stdout)
        .collect();
    assert!(!namespaces[0].is_empty());
    assert!(
        namespaces.iter().all(|n| *n == namespaces[0]),
        "{namespaces:?}"
    );
}
