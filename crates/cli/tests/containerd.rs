//! The containerd of this machine on Vellum's snapshotter: images come, containers run, everything goes again, and a crash of either side
//! costs nothing. What newer containerds can do besides is in `newer_containerd.rs`.

use std::time::{Duration, Instant};

use vellum_testkit::clients::{
    Access, Containerd, Home, Registry, SNAPSHOTTER, Skopeo, SnapshotServer, available, run,
    small_image,
};

const HELLO: &str = "hello from version 2, 13 entries at the root";
const IMAGE: &str = "docker.io/library/vellum-demo-small:latest";

/// A server and a containerd that know each other.
struct Pair {
    // Dropped in this order: containerd would wait for a server that is gone.
    containerd: Containerd,
    server: SnapshotServer,
    home: Home,
}

impl Pair {
    fn start() -> Self {
        let home = Home::new().unwrap();
        let socket = Containerd::socket_in(&home);
        let program = env!("CARGO_BIN_EXE_vellum");
        let server = SnapshotServer::start(program, &home, "v", &socket, &[]).unwrap();
        let containerd = Containerd::start(&home, server.socket()).unwrap();
        Self {
            containerd,
            server,
            home,
        }
    }

    fn import(&self) {
        let archive = small_image(&self.home).unwrap();
        let archive = archive.to_str().unwrap();
        self.containerd
            .ctr(&["image", "import", "--snapshotter", SNAPSHOTTER, archive])
            .unwrap();
    }

    /// Starts a container that stays until it is killed.
    fn start_box(&self, id: &str) {
        let loop_forever = "echo begun > /begun; while :; do sleep 1; done";
        let mut command = self.containerd.run_command("default");
        command.args(["--detach", IMAGE, id, "/bin/sh", "-c", loop_forever]);
        run(&mut command).unwrap();
        wait("the container to begin", || {
            self.inside(id, "grep -qx begun /begun").is_ok()
        });
    }

    /// Runs the image's own command in a container of a moment.
    fn hello(&self, namespace: &str, image: &str, id: &str) -> anyhow::Result<String> {
        run(self
            .containerd
            .run_command(namespace)
            .args(["--rm", image, id]))
    }

    /// Runs a line of shell in a container that runs. Only its exit status counts: what it prints can get lost on the way when containerd
    /// has just been started again.
    fn inside(&self, id: &str, line: &str) -> anyhow::Result<()> {
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

    fn end_box(&self, id: &str) {
        let ctr = |arguments: &[&str]| self.containerd.ctr_patiently(arguments);
        // Ended by itself is as good.
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
    fn remove_images(&self, namespace: &str) {
        let list = run(self
            .containerd
            .command(namespace)
            .args(["image", "ls", "--quiet"]));
        for image in list.unwrap().lines() {
            let mut command = self.containerd.command(namespace);
            run(command.args(["image", "rm", "--sync", image])).unwrap();
        }
    }

    /// Waits until neither containerd nor the store nor the disk has a snapshot. What was in use when garbage was collected goes the next time.
    #[track_caller]
    fn assert_nothing_left(&self) {
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
                // If it fails, the next look tells.
                let _ = run(collect.args(["content", "prune", "references"]));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

#[track_caller]
fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn programs() -> bool {
    available(&["containerd", "ctr", "runc", "python3", "busybox", "setpriv"])
}

#[test]
fn containerd_imports_runs_commits_and_leaves_nothing() {
    if !programs() {
        return;
    }
    let pair = Pair::start();
    pair.import();
    let ctr = |arguments: &[&str]| pair.containerd.ctr(arguments).unwrap();
    assert_eq!(pair.hello("default", IMAGE, "hello").unwrap(), HELLO);

    pair.start_box("box");
    let change = "echo changed > /app/version && rm -r /odd/links && mkdir /made && ln /app/version /made/again";
    pair.inside("box", change).unwrap();
    let diff = pair.home.join("diff.tar.gz");
    let mut command = pair.containerd.command("default");
    command.args(["snapshots", "--snapshotter", SNAPSHOTTER, "diff", "box"]);
    let bytes = command.output().unwrap();
    assert!(bytes.status.success(), "{bytes:?}");
    std::fs::write(&diff, bytes.stdout).unwrap();
    let names = run(std::process::Command::new("tar").arg("-tzf").arg(&diff)).unwrap();
    let names: Vec<&str> = names
        .lines()
        .map(|name| name.trim_start_matches('/'))
        .collect();
    for expected in ["app/version", "odd/.wh.links", "made/again", "begun"] {
        assert!(
            names.contains(&expected),
            "{expected} is missing in {names:?}"
        );
    }
    pair.end_box("box");

    // A snapshot of one's own: prepared on the image's top layer, changed, committed, and a parent in turn.
    let top = ctr(&["snapshots", "--snapshotter", SNAPSHOTTER, "ls"]);
    let parents: Vec<&str> = top
        .lines()
        .filter_map(|l| l.split_whitespace().nth(1))
        .collect();
    let top = top
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .find(|key| key.starts_with("sha256:") && !parents.contains(key))
        .expect("an image has a top layer")
        .to_owned();
    let tree = pair.home.dir("tree").unwrap();
    let at = tree.to_str().unwrap();
    let script = ctr(&[
        "snapshots",
        "--snapshotter",
        SNAPSHOTTER,
        "prepare",
        "--target",
        at,
        "work",
        &top,
    ]);
    run(std::process::Command::new("sh").args(["-ec", &script])).unwrap();
    assert_eq!(
        std::fs::read_to_string(tree.join("app/version")).unwrap(),
        "version 2\n"
    );
    std::fs::write(tree.join("app/version"), "version 5\n").unwrap();
    vellum_testkit::scratch::unmount(&tree).unwrap();
    ctr(&[
        "snapshots",
        "--snapshotter",
        SNAPSHOTTER,
        "commit",
        "layer",
        "work",
    ]);
    let script = ctr(&[
        "snapshots",
        "--snapshotter",
        SNAPSHOTTER,
        "view",
        "--target",
        at,
        "look",
        "layer",
    ]);
    run(std::process::Command::new("sh").args(["-ec", &script])).unwrap();
    assert_eq!(
        std::fs::read_to_string(tree.join("app/version")).unwrap(),
        "version 5\n"
    );
    vellum_testkit::scratch::unmount(&tree).unwrap();
    for key in ["look", "layer"] {
        let removed = pair
            .containerd
            .ctr(&["snapshots", "--snapshotter", SNAPSHOTTER, "rm", key]);
        // Nobody uses it: containerd's own collection may have been quicker.
        assert!(
            removed.is_ok()
                || removed
                    .as_ref()
                    .is_err_and(|e| e.to_string().contains("not found")),
            "{removed:?}"
        );
    }

    pair.remove_images("default");
    pair.assert_nothing_left();
}

#[test]
fn namespaces_pull_the_same_image_and_remove_it_alone() {
    if !programs() || !available(&["docker-registry", "skopeo"]) {
        return;
    }
    let pair = Pair::start();
    let registry = Registry::start(&pair.home, "registry", Access::Open).unwrap();
    let archive = small_image(&pair.home).unwrap();
    let image = format!("{}/demo:small", registry.host());
    let skopeo = Skopeo::new(&pair.home).unwrap();
    skopeo
        .copy_with(
            &format!("docker-archive:{}", archive.display()),
            &format!("docker://{image}"),
            &["--dest-tls-verify=false"],
        )
        .unwrap();
    let ctr = |namespace: &str, arguments: &[&str]| {
        run(pair.containerd.command(namespace).args(arguments)).unwrap()
    };
    for namespace in ["default", "other"] {
        ctr(
            namespace,
            &[
                "image",
                "pull",
                "--plain-http",
                "--snapshotter",
                SNAPSHOTTER,
                &image,
            ],
        );
        assert_eq!(pair.hello(namespace, &image, "hello").unwrap(), HELLO);
    }
    pair.remove_images("default");
    wait("the first namespace to be empty", || {
        pair.containerd
            .snapshots("default")
            .is_ok_and(|keys| keys.is_empty())
    });
    assert_eq!(pair.hello("other", &image, "again").unwrap(), HELLO);
    pair.remove_images("other");
    pair.assert_nothing_left();
}

#[test]
fn containers_keep_running_when_either_side_is_killed() {
    if !programs() {
        return;
    }
    let mut pair = Pair::start();
    pair.import();
    pair.start_box("box");

    pair.server.daemon.kill();
    // Its tree is the kernel's: nobody is needed for it.
    pair.inside("box", "echo alone > /alone && cat /app/version")
        .unwrap();
    let refused = pair.hello("default", IMAGE, "early");
    assert!(refused.is_err(), "nobody was there to prepare it");
    pair.server.start_again().unwrap();
    let said = pair
        .containerd
        .ctr_patiently(&[
            "snapshots",
            "--snapshotter",
            SNAPSHOTTER,
            "mounts",
            "/tmp",
            "box",
        ])
        .unwrap();
    assert!(said.contains("upperdir="), "{said}");

    pair.containerd.daemon.kill();
    pair.containerd.start_again().unwrap();
    pair.inside("box", "grep -qx alone /alone").unwrap();

    pair.containerd.daemon.kill();
    pair.server.daemon.kill();
    pair.server.start_again().unwrap();
    pair.containerd.start_again().unwrap();
    pair.inside("box", "grep -qx begun /begun").unwrap();
    pair.containerd
        .ctr_patiently(&["snapshots", "--snapshotter", SNAPSHOTTER, "ls"])
        .unwrap();
    assert_eq!(pair.hello("default", IMAGE, "late").unwrap(), HELLO);

    pair.end_box("box");
    // Asked for while the server was away, perhaps.
    let _ = pair.containerd.ctr(&["container", "rm", "early"]);
    pair.remove_images("default");
    pair.assert_nothing_left();
}

#[test]
fn a_server_killed_amid_an_import_loses_and_leaks_nothing() {
    if !programs() {
        return;
    }
    let mut pair = Pair::start();
    let archive = small_image(&pair.home).unwrap();
    for delay_ms in [20, 60, 150, 300] {
        let mut import = pair.containerd.command("default");
        import
            .args(["image", "import", "--snapshotter", SNAPSHOTTER])
            .arg(&archive);
        import
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null());
        let mut import = import.spawn().unwrap();
        std::thread::sleep(Duration::from_millis(delay_ms));
        pair.server.daemon.kill();
        // Whether it had ended before, or failed now, is a matter of luck.
        let _ = import.wait().unwrap();
        pair.server.start_again().unwrap();
    }
    let archive = archive.to_str().unwrap();
    pair.containerd
        .ctr_patiently(&["image", "import", "--snapshotter", SNAPSHOTTER, archive])
        .unwrap();
    assert_eq!(pair.hello("default", IMAGE, "hello").unwrap(), HELLO);
    pair.remove_images("default");
    pair.assert_nothing_left();
}
