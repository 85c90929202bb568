//! A snapshot server and a containerd that are connected, and what tests do with them.
#![allow(dead_code)]

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use vellum_testkit::clients::{
    Containerd, Home, Registry, SNAPSHOTTER, SnapshotServer, available, run, small_image,
};

pub const HELLO: &str = "hello from version 2, 13 entries at the root";
pub const IMAGE: &str = "docker.io/library/vellum-demo-small:latest";

/// A server and a containerd that are connected.
pub struct Pair {
    // Dropped in this order: containerd would wait for a server that is gone.
    pub containerd: Containerd,
    pub server: SnapshotServer,
    pub home: Home,
}

impl Pair {
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// `flags` are the server's.
    pub fn with(flags: &[&str]) -> Self {
        let home = Home::new().unwrap();
        let socket = Containerd::socket_in(&home);
        let program = env!("CARGO_BIN_EXE_vellum");
        let server = SnapshotServer::start(program, &home, "v", &socket, flags).unwrap();
        // mount.fuse3 finds the engine there.
        let bin = Path::new(program).parent().unwrap();
        let containerd = Containerd::start_finding(&home, server.socket(), bin).unwrap();
        Self {
            containerd,
            server,
            home,
        }
    }

    pub fn import(&self) {
        let archive = small_image(&self.home).unwrap();
        let archive = archive.to_str().unwrap();
        self.containerd
            .ctr(&["image", "import", "--snapshotter", SNAPSHOTTER, archive])
            .unwrap();
    }

    /// Starts a registry that has the small image, and returns its name there.
    pub fn registry(&self) -> (Registry, String) {
        Registry::with_small_image(&self.home).unwrap()
    }

    /// A pull of an image in a namespace.
    pub fn pull_command(&self, namespace: &str, image: &str) -> Command {
        let mut command = self.containerd.command(namespace);
        command.args(["image", "pull", "--plain-http", "--snapshotter"]);
        command.args([SNAPSHOTTER, image]);
        command
    }

    /// Starts a pull without waiting for its outcome.
    pub fn begin_pull(&self, namespace: &str, image: &str) -> Child {
        let mut command = self.pull_command(namespace, image);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().unwrap()
    }

    /// A command on the server's store.
    pub fn vellum(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vellum"));
        command.env_remove("VELLUM_ROOT");
        command.arg("--root").arg(self.server.root());
        command.arg("--run-dir").arg(self.home.join("v/run"));
        command.arg("--config").arg(self.home.join("v/vellum.toml"));
        command
    }

    /// Starts a container that stays until it is killed.
    pub fn start_box(&self, id: &str) {
        self.start_box_of(IMAGE, id);
    }

    /// Like [`Pair::start_box`], with the caller's image.
    pub fn start_box_of(&self, image: &str, id: &str) {
        self.start_box_with(&[], image, id);
    }

    /// Like [`Pair::start_box_of`], with the caller's options.
    pub fn start_box_with(&self, options: &[&str], image: &str, id: &str) {
        let loop_forever = "echo begun > /begun; while :; do sleep 1; done";
        let mut command = self.containerd.run_command("default");
        command.arg("--detach").args(options);
        command.args([image, id, "/bin/sh", "-c", loop_forever]);
        run(&mut command).unwrap();
        wait("the container to begin", || {
            self.inside(id, "grep -qx begun /begun").is_ok()
        });
    }

    /// Runs the image's own command in a temporary container.
    pub fn hello(&self, namespace: &str, image: &str, id: &str) -> anyhow::Result<String> {
        self.containerd.run_once(namespace, image, id)
    }

    /// Runs a line of shell in a running container. Only its exit status counts, because its output
    /// can get lost if containerd has just been restarted.
    pub fn inside(&self, id: &str, line: &str) -> anyhow::Result<()> {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let next = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let exec = format!("exec-{next}");
        let arguments = [
            "task",
            "exec",
            "--exec-id",
            &exec,
            id,
            "/bin/sh",
            "-c",
            line,
        ];
        self.containerd.ctr(&arguments).map(drop)
    }

    /// Returns the paths that a container has changed, as containerd's differ finds them, without a
    /// leading slash.
    pub fn changed_names(&self, id: &str) -> Vec<String> {
        let diff = self.home.join("diff.tar.gz");
        let mut command = self.containerd.command("default");
        command.args(["snapshots", "--snapshotter", SNAPSHOTTER, "diff", id]);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        std::fs::write(&diff, output.stdout).unwrap();
        let names = run(Command::new("tar").arg("-tzf").arg(&diff)).unwrap();
        let bare = |name: &str| name.trim_start_matches('/').to_owned();
        names.lines().map(bare).collect()
    }

    pub fn end_box(&self, id: &str) {
        let ctr = |arguments: &[&str]| self.containerd.ctr_patiently(arguments);
        // It may have ended by itself.
        let _ = self
            .containerd
            .ctr(&["task", "kill", "--signal", "SIGKILL", id]);
        wait("the container to end", || {
            self.containerd
                .ctr(&["task", "ls"])
                .is_ok_and(|list| !list.contains("RUNNING"))
        });
        ctr(&["task", "rm", id]).unwrap();
        ctr(&["container", "rm", id]).unwrap();
    }

    /// Removes the images of a namespace and collects garbage.
    pub fn remove_images(&self, namespace: &str) {
        let list = run(self
            .containerd
            .command(namespace)
            .args(["image", "ls", "--quiet"]));
        for image in list.unwrap().lines() {
            let mut command = self.containerd.command(namespace);
            run(command.args(["image", "rm", "--sync", image])).unwrap();
        }
    }

    /// Removes what a killed server can leave behind: trees whose record it was about to write.
    pub fn collect_litter(&self) {
        run(self.vellum().args(["gc", "--quiet"])).unwrap();
    }

    /// Drops the leases of unfinished pulls, collects garbage, and checks that the store has
    /// exactly what containerd knows, that trees agree with records, and that exactly `mounts`
    /// trees are mounted.
    #[track_caller]
    pub fn assert_only_known(&self, namespaces: &[&str], mounts: usize) {
        self.collect_litter();
        // The server may have just been started.
        let ls = ["snapshots", "--snapshotter", SNAPSHOTTER, "ls"];
        self.containerd.ctr_patiently(&ls).unwrap();
        for namespace in namespaces {
            let mut list = self.containerd.command(namespace);
            let list = run(list.args(["leases", "ls", "--quiet"])).unwrap();
            for lease in list.lines() {
                let mut command = self.containerd.command(namespace);
                run(command.args(["leases", "rm", "--sync", lease])).unwrap();
            }
            // containerd looks for snapshots that it doesn't know only after one of its own was
            // removed.
            self.containerd
                .ctr_patiently(&["snapshots", "--snapshotter", SNAPSHOTTER, "prepare", "went"])
                .unwrap();
            // A collection may have removed it already.
            let _ = self
                .containerd
                .ctr(&["snapshots", "--snapshotter", SNAPSHOTTER, "rm", "went"]);
            // A lease is created and removed, because removing one triggers a collection.
            let mut command = self.containerd.command(namespace);
            run(command.args(["leases", "create", "--id", "collect"])).unwrap();
            let mut command = self.containerd.command(namespace);
            run(command.args(["leases", "rm", "--sync", "collect"])).unwrap();
        }
        let known = || {
            let mut known = 0;
            for namespace in namespaces {
                known += self.containerd.snapshots(namespace).unwrap().len();
            }
            known
        };
        // Containerd's Cleanup comes after its collection has ended.
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.server.trees().unwrap().len() != known() {
            if Instant::now() > deadline {
                let known = self.containerd.ctr(&ls);
                let trees = self.server.trees();
                let gc = run(self.vellum().args(["gc", "--dry-run"]));
                panic!("containerd knows {known:?}, there are {trees:?}; {gc:?}");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let checked = run(self.vellum().arg("check"));
        assert!(checked.is_ok(), "{checked:?}");
        let table = vellum_testkit::scratch::mount_table();
        let ours = format!(" {}/", self.home.path().display());
        let found: Vec<&str> = table.lines().filter(|line| line.contains(&ours)).collect();
        let trees = |line: &&&str| line.contains(" - overlay ") || line.contains(" - fuse");
        assert_eq!(found.iter().filter(trees).count(), mounts, "{found:#?}");
        let below = format!("{ours}ctd/root/tmpmounts/");
        assert!(
            !found.iter().any(|line| line.contains(&below)),
            "{found:#?}"
        );
    }

    /// Waits until neither containerd nor the store nor the disk has a snapshot. Snapshots in use
    /// during a collection are removed by the next one.
    #[track_caller]
    pub fn assert_nothing_left(&self) {
        let left = || -> anyhow::Result<(Vec<String>, Vec<String>)> {
            Ok((self.containerd.snapshots("default")?, self.server.trees()?))
        };
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            let now = left();
            if matches!(&now, Ok((snapshots, trees)) if snapshots.is_empty() && trees.is_empty()) {
                return;
            }
            if Instant::now() > deadline {
                panic!("left behind: {now:?}\n{}", self.server.daemon.said());
            }
            for namespace in ["default", "other"] {
                let mut collect = self.containerd.command(namespace);
                // If it fails, the next check shows that.
                let _ = run(collect.args(["content", "prune", "references"]));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

#[track_caller]
pub fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

pub fn programs() -> bool {
    available(&["containerd", "ctr", "runc", "python3", "busybox", "setpriv"])
}
