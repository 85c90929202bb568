//! Unions mounted for tests, as root and as a plain user, each served by its own process.
//!
//! A test that holds for every user calls [`everywhere`]: its body runs as root, and once more, in
//! another process of this same program, as a plain user that is root in its own user namespace.
#![allow(dead_code)]

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use vellum_testkit::kernel::Since;
use vellum_testkit::scratch::copy_program;
use vellum_testkit::tree::Ignore;
use vellum_testkit::{PlainUser, Scratch, needs_root, untested};

/// Tells the inner process its directory.
const INNER: &str = "VELLUM_FUSE_TEST_PLACE";

/// Directories of a union, and its mount while it is mounted.
pub struct World {
    base: PathBuf,
    /// Other lower directories, below `lower`.
    pub more_lowers: Vec<PathBuf>,
    /// Run as a plain user.
    pub is_user: bool,
    /// Additional arguments for `mount_union`.
    pub options: Vec<String>,
    /// The most descriptors the server may have.
    pub descriptors: Option<u32>,
    server: Option<Child>,
    program: PathBuf,
    /// What the last server printed at its end.
    pub last_words: String,
}

impl World {
    fn new(base: &Path, program: PathBuf, is_user: bool) -> World {
        for dir in ["lower", "upper", "work", "merged"] {
            fs::create_dir_all(base.join(dir)).unwrap();
        }
        World {
            base: base.to_owned(),
            more_lowers: Vec::new(),
            is_user,
            options: match is_user {
                true => vec![String::from("userxattr")],
                false => Vec::new(),
            },
            descriptors: None,
            server: None,
            program,
            last_words: String::new(),
        }
    }

    /// Directories below `base`, for root.
    pub fn at_place(base: &Path) -> World {
        World::new(base, program(), false)
    }

    /// Creates a union in the new directory `base`, which may be in this one.
    pub fn inside(&self, base: &Path) -> World {
        World::new(base, self.program.clone(), self.is_user)
    }

    /// A path next to the union.
    pub fn beside(&self, name: impl AsRef<Path>) -> PathBuf {
        self.base.join(name)
    }

    pub fn lower(&self, name: impl AsRef<Path>) -> PathBuf {
        self.base.join("lower").join(name)
    }

    pub fn upper(&self, name: impl AsRef<Path>) -> PathBuf {
        self.base.join("upper").join(name)
    }

    pub fn work(&self) -> PathBuf {
        self.base.join("work")
    }

    /// A path in the mount.
    pub fn at(&self, name: impl AsRef<Path>) -> PathBuf {
        self.base.join("merged").join(name)
    }

    /// Writes a file into the lower directory.
    pub fn put(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.lower(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    /// Adds an option for `mount_union`.
    pub fn option(&mut self, option: &str) {
        self.options.push(option.to_owned());
    }

    /// Returns the command that serves this union.
    pub fn command(&self) -> Command {
        let mut lowers = OsString::from(self.base.join("lower"));
        for lower in &self.more_lowers {
            lowers.push(":");
            lowers.push(lower);
        }
        let mut command = match self.descriptors {
            Some(most) => {
                let mut command = Command::new("prlimit");
                command
                    .arg(format!("--nofile={most}"))
                    .arg("--")
                    .arg(&self.program);
                command
            }
            None => Command::new(&self.program),
        };
        command.arg(lowers);
        match self.options.iter().any(|option| option == "no-upper") {
            true => command.args(["-", "-"]),
            false => command.arg(self.base.join("upper")).arg(self.work()),
        };
        command.arg(self.base.join("merged"));
        let options = self.options.iter().filter(|option| *option != "no-upper");
        command.args(options);
        command
    }

    /// Requests passthrough; false, and recorded as untested, if this kernel lacks it.
    pub fn pass_through(&mut self) -> bool {
        self.option("passthrough");
        Since::FusePassthrough.is_here_for("passthrough")
    }

    /// Mounts; the error is the server's output.
    pub fn try_mount(&mut self) -> Result<(), String> {
        assert!(self.server.is_none(), "it is mounted");
        let mut command = self.command();
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.env("RUST_BACKTRACE", "0");
        let mut server = command.spawn().expect("the server runs");
        let mut line = String::new();
        let mut out = BufReader::new(server.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        if line.trim() != "mounted" {
            let mut said = String::new();
            let mut err = server.stderr.take().unwrap();
            err.read_to_string(&mut said).unwrap();
            server.wait().unwrap();
            return Err(said);
        }
        server.stdout = Some(out.into_inner());
        self.server = Some(server);
        Ok(())
    }

    /// Makes the server hand over to the `number`th successor.
    pub fn will_hand_over(&mut self, number: u32) {
        let socket = self.base.join(format!("socket-{number}"));
        self.option(&format!("hand-over={}", socket.display()));
        // Requests that the kernel has given to a ring can't be handed over.
        self.option("nouring");
    }

    /// Makes a new server take over as the `number`th successor.
    pub fn succeed(&mut self, number: u32) {
        let mut before = self.server.take().expect("it is mounted");
        let old = format!("hand-over={}/socket-{number}", self.base.display());
        let take = format!("take-over={}/socket-{number}", self.base.display());
        self.options.retain(|option| *option != old);
        self.option(&take);
        let after = self.try_mount();
        self.options.retain(|option| *option != take);
        let mut said = String::new();
        let mut err = before.stderr.take().unwrap();
        err.read_to_string(&mut said).unwrap();
        let status = before.wait().unwrap();
        assert!(status.success(), "the server before: {status} {said}");
        after.expect("the successor serves");
    }

    pub fn mount(&mut self) {
        self.try_mount().expect("the union is mounted");
    }

    /// The server's process id.
    pub fn server_pid(&self) -> u32 {
        self.server.as_ref().expect("it is mounted").id()
    }

    /// Unmounts cleanly, and asserts that the server exited successfully.
    pub fn unmount(&mut self) {
        let mut server = self.server.take().expect("it is mounted");
        signal(server.id(), rustix::process::Signal::TERM);
        let (mut out, mut err) = (String::new(), String::new());
        server
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut out)
            .unwrap();
        server
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut err)
            .unwrap();
        let status = server.wait().unwrap();
        assert!(status.success(), "the server failed: {status} {err}");
        self.last_words = format!("{out}{err}");
    }

    pub fn remount(&mut self) {
        self.unmount();
        self.mount();
    }

    /// Tells the server to exit, and returns its exit status.
    pub fn end(&mut self) -> std::process::ExitStatus {
        let mut server = self.server.take().expect("it is mounted");
        signal(server.id(), rustix::process::Signal::TERM);
        server.wait().unwrap()
    }

    /// Waits until the server exits by itself, and returns its exit status.
    pub fn ended(&mut self) -> std::process::ExitStatus {
        let mut server = self.server.take().expect("it is mounted");
        server.wait().unwrap()
    }

    /// Kills the server and unmounts the dead mount.
    pub fn crash(&mut self) {
        let mut server = self.server.take().expect("it is mounted");
        signal(server.id(), rustix::process::Signal::KILL);
        server.wait().unwrap();
        let flags = rustix::mount::UnmountFlags::DETACH;
        rustix::mount::unmount(self.base.join("merged"), flags).unwrap();
    }

    /// Returns how often the kernel requested each operation while `run` ran.
    pub fn requests<T>(&mut self, run: impl FnOnce(&World) -> T) -> (T, Requests) {
        let before = self.counts();
        let result = run(self);
        let after = self.counts();
        (result, after.since(&before))
    }

    fn counts(&mut self) -> Requests {
        let server = self.server.as_mut().expect("it is mounted");
        signal(server.id(), rustix::process::Signal::USR1);
        let err = server.stderr.as_mut().unwrap();
        let mut line = Vec::new();
        let mut byte = [0];
        loop {
            err.read_exact(&mut byte).unwrap();
            match byte[0] {
                b'\n' if line.windows(7).any(|part| part == b"errors=") => break,
                b'\n' => line.clear(),
                byte => line.push(byte),
            }
        }
        Requests::parse(std::str::from_utf8(&line).unwrap())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            signal(server.id(), rustix::process::Signal::TERM);
            let ended = (0..200).any(|_| {
                std::thread::sleep(std::time::Duration::from_millis(10));
                server.try_wait().ok().flatten().is_some()
            });
            if !ended {
                // It is in use, or it hangs: the second signal aborts the connection.
                signal(server.id(), rustix::process::Signal::TERM);
                std::thread::sleep(std::time::Duration::from_millis(300));
                let _ = server.kill();
                let _ = server.wait();
            }
            // What a killed server left.
            let flags = rustix::mount::UnmountFlags::DETACH;
            let _ = rustix::mount::unmount(self.base.join("merged"), flags);
        }
    }
}

pub fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    // It may have ended by itself: the caller checks.
    let _ = rustix::process::kill_process(pid, signal);
}

/// Requests by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requests(Vec<(String, u64)>);

impl Requests {
    fn parse(line: &str) -> Requests {
        let pair = |pair: &str| {
            let (name, count) = pair.split_once('=').unwrap();
            (name.to_owned(), count.parse().unwrap())
        };
        Requests(line.split_whitespace().map(pair).collect())
    }

    pub fn of(&self, name: &str) -> u64 {
        let found = self.0.iter().find(|(other, _)| other == name);
        found.map_or(0, |(_, count)| *count)
    }

    pub fn total(&self) -> u64 {
        let all = self
            .0
            .iter()
            .filter(|(name, _)| name != "errors" && name != "notified");
        all.map(|(_, count)| count).sum()
    }

    fn since(&self, earlier: &Requests) -> Requests {
        let all = self.0.iter();
        Requests(
            all.map(|(name, count)| (name.clone(), count - earlier.of(name)))
                .filter(|(_, count)| *count > 0)
                .collect(),
        )
    }
}

/// Finds the example that serves.
fn program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let beside = test.parent().unwrap().parent().unwrap();
    let program = beside.join("examples/mount_union");
    assert!(program.exists(), "{} is not built", program.display());
    program
}

/// Runs `check` in a world as root.
pub fn as_root(check: impl FnOnce(&mut World)) {
    if std::env::var_os(INNER).is_some() || !needs_root("mounting") {
        return;
    }
    let scratch = Scratch::new();
    let mut world = World::new(scratch.path(), program(), false);
    check(&mut world);
}

/// Runs `check` in a world as root, completely on a file system of this type.
pub fn as_root_on(kind: vellum_testkit::FsKind, check: impl FnOnce(&mut World)) {
    if std::env::var_os(INNER).is_some() || !needs_root("mounting") {
        return;
    }
    let scratch = Scratch::new();
    match scratch.file_system("fs", kind, 64) {
        Ok(base) => check(&mut World::new(&base, program(), false)),
        Err(why) => untested(&format!("a mount of layers on {kind:?}"), why),
    }
}

/// Runs `check`, the body of the test `name`, in a world as root, then in one as a plain user.
pub fn everywhere(name: &str, check: impl FnOnce(&mut World)) {
    if let Some(place) = std::env::var_os(INNER) {
        let place = PathBuf::from(place);
        let mut world = World::new(&place, place.join("mount_union"), true);
        check(&mut world);
        return;
    }
    if !needs_root("mounting") {
        return;
    }
    as_user(name);
    as_root(check);
}

/// Runs the test `name` of this program as a plain user that is root in a user namespace.
pub fn as_user(name: &str) {
    let ids = |first: u32| format!("{first},1,60000");
    run_as_user(name, |user| {
        let mut words = vec![
            "unshare",
            "--user",
            "--mount",
            "--map-root-user",
            "--setgroups=allow",
        ];
        words.push("--map-users");
        let mut words: Vec<_> = words.into_iter().map(String::from).collect();
        words.push(ids(user.first_subid));
        words.extend([String::from("--map-groups"), ids(user.first_subid)]);
        words
    });
}

/// As [`as_user`], but without a namespace of its own.
pub fn as_himself(name: &str, check: impl FnOnce(&mut World)) {
    if let Some(place) = std::env::var_os(INNER) {
        let place = PathBuf::from(place);
        let mut world = World::new(&place, place.join("mount_union"), true);
        world.option("fusermount");
        check(&mut world);
    } else if needs_root("mounting") {
        run_as_user(name, |_| Vec::new());
    }
}

fn run_as_user(name: &str, wrap: impl FnOnce(&PlainUser) -> Vec<String>) {
    let scratch = Scratch::new();
    let Some(user) = PlainUser::with_fuse(&scratch) else {
        return;
    };
    let place = user.home().join("place");
    fs::create_dir(&place).unwrap();
    copy_program(&program(), &place.join("mount_union"));
    chown(&place, Some(user.id), Some(user.id)).unwrap();
    let test = place.join("test");
    copy_program(&std::env::current_exe().unwrap(), &test);
    let asked = ["VELLUM_SEED", "VELLUM_ROUND", "VELLUM_SLOW"]
        .into_iter()
        .filter_map(|name| Some(format!("{name}={}", std::env::var(name).ok()?)));
    let output = user
        .command("timeout")
        .args(["-k", "5", "600"])
        .args(wrap(&user))
        .arg("env")
        .arg(format!("{INNER}={}", place.display()))
        .args(asked)
        .arg(&test)
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "as a plain user: {}\n{said}\n{err}",
        output.status
    );
    for line in err.lines().filter(|line| line.starts_with("UNTESTED")) {
        eprintln!("{line}");
    }
}

/// Whether the kernel offers it to new connections.
const OFFERED: &str = "/sys/module/fuse/parameters/enable_uring";

/// Mounts while the kernel offers io_uring, and restores the kernel's setting.
pub fn mount_with_rings(world: &mut World) -> bool {
    let before = fs::read_to_string(OFFERED).unwrap_or_default();
    if before.trim() == "N" {
        // Refused to a plain user; its test runs where the setting is already on.
        let _ = fs::write(OFFERED, "Y");
    }
    let offered = fs::read_to_string(OFFERED).is_ok_and(|now| now.trim() == "Y");
    world.mount();
    if before.trim() == "N" && offered {
        fs::write(OFFERED, "N").unwrap();
    }
    offered && thread_names(world.server_pid()).contains(&String::from("vellum-ring"))
}

fn thread_names(pid: u32) -> Vec<String> {
    let tasks = fs::read_dir(Path::new("/proc").join(pid.to_string()).join("task")).unwrap();
    let name = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm"));
    tasks
        .filter_map(|task| name(task.unwrap()).ok())
        .map(|name| name.trim().to_owned())
        .collect()
}

/// What identifies a file, and how many names it has.
pub fn identity(path: impl AsRef<Path>) -> (u64, u64, u64) {
    let stat = fs::symlink_metadata(path.as_ref())
        .unwrap_or_else(|error| panic!("{}: {error}", path.as_ref().display()));
    (stat.dev(), stat.ino(), stat.nlink())
}

/// Returns the sorted names in a directory.
pub fn names(dir: impl AsRef<Path>) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// The errno of a failure.
#[track_caller]
pub fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result.unwrap_err().raw_os_error().expect("an errno")
}

/// The differences between two trees that the same changes at different times created.
pub const IGNORE: Ignore = Ignore {
    directory_mtimes: true,
    mtimes: true,
    nanoseconds: true,
    root: true,
    hard_links: false,
    owners: false,
    xattrs: false,
};
