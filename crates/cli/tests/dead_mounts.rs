//! Mounts of Vellum's own engine whose process was killed: what each verb does with the remains.

mod support;

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use vellum_testkit::scratch::mount_table;
use vellum_testkit::untested;

use support::{World, small};

fn world() -> Option<World> {
    if !Path::new("/dev/fuse").exists() {
        untested("mounts of Vellum's engine", "there is no /dev/fuse");
        return None;
    }
    let world = World::with(&["--engine", "vellum"])?;
    world.ok(&["load", text(&small(&world.scratch))]);
    Some(world)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Kills the process that serves the mount at `place`, and waits until it is gone.
#[track_caller]
fn kill_server(place: &Path) {
    let ends_with = |line: &[u8]| {
        let mut words = line.split(|&b| b == 0).filter(|word| !word.is_empty());
        words.clone().any(|word| word == b"__serve-overlay")
            && words.next_back() == Some(place.as_os_str().as_bytes())
    };
    let pid = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .find(|pid| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| ends_with(&line)))
        .expect("no process serves the mount");
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    // A zombie has released everything, and has no command line any more.
    while fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| ends_with(&line))
        || rustix::fs::statfs(place).is_ok()
    {
        assert!(Instant::now() < until, "the server outlives SIGKILL");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Creates and mounts a container with a change, and kills its server.
fn dead(world: &World, name: &str) -> PathBuf {
    world.ok(&["create", "--name", name, "small:1"]);
    let place = world.mounted(name);
    fs::write(place.join("kept"), "kept\n").unwrap();
    fs::remove_file(place.join("etc/top")).unwrap();
    kill_server(&place);
    place
}

fn is_mounted(place: &Path) -> bool {
    let table = mount_table();
    let mut lines = table.lines();
    lines.any(|line| line.split(' ').nth(4) == Some(text(place)))
}

/// A process whose working directory is `place`.
struct Sitter(Child);

impl Sitter {
    fn new(place: &Path) -> Self {
        let mut command = Command::new("sleep");
        command.arg("1000").current_dir(place);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        Self(command.stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Sitter {
    fn drop(&mut self) {
        // It can't have exited by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_dead_mount_is_mounted_again_in_place() {
    let Some(world) = world() else { return };
    world.ok(&["create", "--name", "box", "small:1"]);
    let place = world.mounted("box");
    let at = world.scratch.dir("at");
    let seen = world.scratch.dir("seen");
    world.ok(&["mount", "box", text(&at)]);
    world.ok(&["mount", "box", text(&seen), "--read-only"]);
    fs::write(place.join("kept"), "kept\n").unwrap();
    let sitter = Sitter::new(&place);
    kill_server(&place);
    let said = world.run(&["mount", "box"]);
    assert_eq!((said.code, said.out.trim_end()), (0, text(&place)));
    let who = format!("process {} (sleep)", sitter.0.id());
    assert!(
        said.err.contains("had ended") && said.err.contains(&who),
        "{}",
        said.err
    );
    for place in [&place, &at, &seen] {
        assert_eq!(fs::read_to_string(place.join("kept")).unwrap(), "kept\n");
    }
    fs::write(at.join("more"), "more\n").unwrap();
    assert!(fs::write(seen.join("more"), "x").is_err());
    // A live mount is left as it is.
    let said = world.run(&["mount", "box"]);
    assert_eq!((said.code, said.err.as_str()), (0, ""));
    assert_eq!(world.ok(&["diff", "box"]), "A /kept\nA /more");
    kill_server(&place);
    // Mounting it at another place: it is mounted there once, and also at its own place.
    world.ok(&["mount", "box", text(&at)]);
    assert_eq!(fs::read_to_string(at.join("more")).unwrap(), "more\n");
    let table = mount_table();
    let here = |line: &&str| line.split(' ').nth(4) == Some(text(&at));
    assert_eq!(table.lines().filter(here).count(), 1);
    drop(sitter);
    world.ok(&["umount", "box"]);
    assert!(![&place, &at, &seen].iter().any(|place| is_mounted(place)));
    world.ok(&["check"]);
}

#[test]
fn a_dead_mount_is_reported_and_removed() {
    let Some(world) = world() else { return };
    let place = dead(&world, "box");
    let listed = world.json(&["ls", "--json"]);
    assert_eq!(listed[0]["state"], "dead", "{listed}");
    assert!(world.ok(&["ls"]).contains("dead"));
    assert!(world.ok(&["mount"]).contains("(dead)"));
    assert_eq!(world.json(&["mount", "--json"])[0]["dead"], true);
    assert_eq!(world.json(&["inspect", "box"])[0]["dead"], true);
    for verb in ["info", "df", "check", "gc"] {
        world.ok(&[verb]);
    }
    assert_eq!(world.ok(&["diff", "box"]), "C /etc\nD /etc/top\nA /kept");
    let said = world.fails(1, &["rm", "box"]);
    assert!(said.contains("a process that has ended"), "{said}");
    // No process can do anything in it, so none keeps it busy.
    let at = world.scratch.dir("at");
    let again = world.mounted("box");
    world.ok(&["mount", "box", text(&at)]);
    let sitter = Sitter::new(&again);
    kill_server(&again);
    world.ok(&["umount", text(&at)]);
    assert!(is_mounted(&place) && !is_mounted(&at));
    world.ok(&["umount", "box"]);
    assert!(!is_mounted(&place));
    drop(sitter);
    let place = dead(&world, "other");
    world.ok(&["rm", "--force", "other"]);
    assert!(!is_mounted(&place));
    let place = dead(&world, "third");
    world.ok(&["umount", "--all"]);
    assert!(!is_mounted(&place));
    assert_eq!(world.json(&["ls", "--json"])[0]["state"], "created");
    world.ok(&["rm", "box", "third"]);
    world.ok(&["check"]);
}

#[test]
fn writes_that_a_dead_mount_had_answered_are_committed_and_copied() {
    let Some(world) = world() else { return };
    let place = dead(&world, "box");
    world.ok(&["commit", "box", "mine:1"]);
    let out = world.scratch.join("out");
    world.ok(&["cp", "box:/kept", text(&out)]);
    assert_eq!(fs::read_to_string(&out).unwrap(), "kept\n");
    // A copy needs a mount, and leaves the container in its intended state.
    assert_eq!(fs::read_to_string(place.join("kept")).unwrap(), "kept\n");
    world.ok(&["create", "--name", "next", "mine:1"]);
    let next = world.mounted("next");
    assert_eq!(fs::read_to_string(next.join("kept")).unwrap(), "kept\n");
    assert!(!next.join("etc/top").exists());
    world.ok(&["umount", "--all"]);
    world.ok(&["check"]);
}

#[test]
fn a_dead_image_mount_is_mounted_again() {
    let Some(world) = world() else { return };
    let at = world.scratch.dir("at");
    let mount = || world.ok(&["mount", "--image", "small:1", "--at", text(&at)]);
    mount();
    kill_server(&at);
    mount();
    assert_eq!(fs::read_to_string(at.join("etc/top")).unwrap(), "top\n");
    kill_server(&at);
    world.ok(&["umount", text(&at)]);
    assert!(!is_mounted(&at));
}
