//! Podman and Buildah in a container, on nothing but the container's own file system, as most
//! builds in CI run: with Vellum as the mount program they build the same as with the kernel's
//! overlay on a disk.

mod support;

use std::fs;
use std::process::Command;

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use support::podman::{LIMITS, VELLUM, call};
use support::{Said, said};
use vellum_testkit::clients::{Dockerd, Home, available};
use vellum_testkit::{needs_root, untested};

const SCENARIO: &str = include_str!("support/nested_scenario.sh");

/// A script that gives a container's root directory this machine's programs and a user.
///
/// A container without CAP_SYS_ADMIN needs `newuidmap` with file capabilities: set-user-id root is
/// not the owner of the user's namespace.
const ROOT: &str = r#"
    set -e; mkdir -p root/usr root/etc root/var/tmp root/run root/tmp root/proc root/sys root/dev root/root root/home/user root/opt/bin root/build
    for name in bin sbin lib lib64; do [ ! -e /usr/$name ] || ln -s usr/$name root/$name; done
    chmod 1777 root/tmp root/var/tmp
    cp -a /etc/containers /etc/alternatives /etc/ld.so.cache /etc/nsswitch.conf root/etc
    echo 'root:x:0:0::/root:/bin/sh' > root/etc/passwd; echo 'user:x:2345:2345::/home/user:/bin/sh' >> root/etc/passwd
    echo 'root:x:0:' > root/etc/group; echo 'user:x:2345:' >> root/etc/group
    echo 'user:100000:65536' > root/etc/subuid; cp root/etc/subuid root/etc/subgid; chown 2345:2345 root/home/user
    tar -C root -cf root.tar .; rm -r root"#;

/// The user who builds in the container, as the command before the script.
#[derive(Debug, Clone, Copy)]
enum Inside {
    Root,
    User,
}

impl Inside {
    fn script(self) -> &'static str {
        match self {
            Inside::Root => "exec sh /build/scenario.sh /build/vellum",
            Inside::User => {
                "cp /usr/bin/newuidmap /usr/bin/newgidmap /opt/bin; chmod 755 /opt/bin/*
                setcap cap_setuid=ep /opt/bin/newuidmap; setcap cap_setgid=ep /opt/bin/newgidmap
                export PATH=/opt/bin:$PATH HOME=/home/user
                exec setpriv --reuid 2345 --regid 2345 --clear-groups --inh-caps=-all sh /build/scenario.sh /build/vellum"
            }
        }
    }
}

/// A container's privileges, as arguments that both Podman and Docker accept.
const PRIVILEGED: &[&str] = &["--privileged"];
const SYS_ADMIN: &[&str] = &[
    "--cap-add",
    "SYS_ADMIN",
    "--security-opt",
    "seccomp=unconfined",
    "--security-opt",
    "apparmor=unconfined",
];
const PLAIN: &[&str] = &[
    "--security-opt",
    "seccomp=unconfined",
    "--security-opt",
    "apparmor=unconfined",
];

struct World {
    home: Home,
    /// The report from the kernel's overlay on this machine's disk.
    judge: String,
}

impl World {
    fn new() -> Option<World> {
        let programs = [
            "podman",
            "buildah",
            "runc",
            "busybox",
            "setpriv",
            "setcap",
            "newuidmap",
        ];
        if !needs_root("containers") || !available(&programs) {
            return None;
        }
        let home = Home::new().unwrap();
        fs::write(home.join("scenario.sh"), SCENARIO).unwrap();
        fs::copy(VELLUM, home.join("vellum")).unwrap();
        let mode = Mode::from_raw_mode(0o666);
        let device = home.join("fuse");
        mknodat(
            CWD,
            &device,
            FileType::CharacterDevice,
            mode,
            makedev(10, 229),
        )
        .unwrap();
        let open = Command::new("chmod").arg("666").arg(&device).status();
        assert!(open.unwrap().success());
        let made = Command::new("sh")
            .args(["-c", ROOT])
            .current_dir(home.path())
            .status();
        assert!(made.unwrap().success());
        let mut kernel = Command::new("timeout");
        kernel.args(["200", "sh"]).arg(home.join("scenario.sh"));
        let judge = said(kernel.arg(VELLUM).arg("kernel").output().unwrap());
        assert_eq!(judge.code, 0, "{}", judge.err);
        let (mounter, judge) = judge.out.split_once('\n').unwrap();
        assert_eq!(mounter, "overlay");
        assert_eq!(judge.lines().count(), 9, "{judge}");
        let judge = judge.to_owned();
        Some(World { home, judge })
    }

    /// The arguments of `podman run` or `docker run` up to the script.
    fn run(&self, privileges: &[&str]) -> Vec<String> {
        let at = |name: &str| self.home.join(name).display().to_string();
        let fuse = match privileges == PRIVILEGED {
            // It has all devices of the machine, unchanged.
            true => ["-v".to_owned(), format!("{}:/dev/fuse", at("fuse"))],
            false => ["--device".to_owned(), format!("{}:/dev/fuse", at("fuse"))],
        };
        let words = ["run", "--rm"]
            .into_iter()
            .chain(privileges.iter().copied());
        let mut all: Vec<_> = words.map(str::to_owned).collect();
        all.extend(fuse);
        for volume in [
            "/usr:/usr:ro".to_owned(),
            format!("{}:/build/vellum:ro", at("vellum")),
            format!("{}:/build/scenario.sh:ro", at("scenario.sh")),
        ] {
            all.extend(["-v".to_owned(), volume]);
        }
        all.extend(["localhost/programs:1", "sh", "-c"].map(str::to_owned));
        all
    }

    #[track_caller]
    fn check(&self, setting: &str, done: &Said) {
        assert_eq!(done.code, 0, "{setting}: {}\n{}", done.out, done.err);
        let shown = done.out.split_once('\n');
        assert_eq!(
            shown,
            Some(("fuse.fuse-overlayfs", &*self.judge)),
            "{setting}"
        );
    }

    /// Runs in a container of Podman; `outer` are options of its store.
    fn in_podman(&self, outer: &[&str], privileges: &[&str], inside: Inside) {
        let store = if outer.is_empty() { "outer" } else { "vellums" };
        if !self.home.join(store).exists() {
            let archive = self.home.join("root.tar").display().to_string();
            let done = call(
                &self.home,
                store,
                outer,
                &["import", "--quiet", &archive, "localhost/programs:1"],
            );
            assert_eq!(done.code, 0, "{}", done.err);
        }
        let mut words = self.run(privileges);
        words.splice(1..1, LIMITS.iter().map(|&word| word.to_owned()));
        words.push(inside.script().to_owned());
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        let done = call(&self.home, store, outer, &words);
        self.check(
            &format!("podman, {outer:?}, {privileges:?}, {inside:?}"),
            &done,
        );
    }
}

#[test]
fn podman_in_a_podman_container_builds_on_its_own_file_system() {
    let Some(world) = World::new() else { return };
    world.in_podman(&[], SYS_ADMIN, Inside::Root);
    if std::env::var_os("VELLUM_SLOW").is_none() {
        return untested(
            "all privileges of a container that builds",
            "only in the slow tier: make test-slow",
        );
    }
    world.in_podman(&[], PRIVILEGED, Inside::Root);
    world.in_podman(&[], PRIVILEGED, Inside::User);
    world.in_podman(&[], PLAIN, Inside::Root);
    world.in_podman(&[], PLAIN, Inside::User);
    // The outer container is on a Vellum union, too.
    let program = world.home.join("fuse-overlayfs");
    fs::copy(VELLUM, &program).unwrap();
    let program = format!("overlay.mount_program={}", program.display());
    let outer = ["--storage-opt", &program];
    world.in_podman(&outer, PRIVILEGED, Inside::Root);
    world.in_podman(&outer, PLAIN, Inside::User);
}

#[test]
fn podman_in_a_docker_container_builds_on_its_own_file_system() {
    if std::env::var_os("VELLUM_SLOW").is_none() {
        return untested("Podman in Docker", "only in the slow tier: make test-slow");
    }
    if !available(&["dockerd", "docker"]) {
        return;
    }
    let Some(world) = World::new() else { return };
    let docker = Dockerd::start(&world.home, &[]).unwrap();
    let archive = world.home.join("root.tar").display().to_string();
    docker
        .docker(&["import", &archive, "localhost/programs:1"])
        .unwrap();
    for privileges in [SYS_ADMIN, PLAIN] {
        for inside in [Inside::Root, Inside::User] {
            let mut words = world.run(privileges);
            let mut run = docker.command();
            words.splice(1..1, ["--network", "none"].map(str::to_owned));
            let done = said(run.args(words).arg(inside.script()).output().unwrap());
            world.check(&format!("docker, {privileges:?}, {inside:?}"), &done);
        }
    }
}
