//! The kubelet's interface: containerd's own CRI plugin, configured by `vellum node install`, keeps
//! pods on Vellum's snapshotter.
//!
//! There is no kubelet and no network here: pods are in the node's network, as those of a control
//! plane are, and a client plays the kubelet (`support/cri.rs`). Newer containerds are tested in
//! `newer_cri.rs`.

#[path = "support/cri.rs"]
mod kubelet;

use std::process::Command;
use std::time::{Duration, Instant};

use kubelet::{Kubelet, PAUSE, installed, pause_archive, pod};
use vellum_testkit::clients::{
    Containerd, Home, Registry, SnapshotServer, available, run, small_image,
};

/// The configuration of a node's containerd before an install, with all its files inside `home`.
fn node_config(home: &Home) -> String {
    let dir = home.join("ctd");
    format!(
        r#"version = 2
root = "{dir}/root"
state = "{dir}/state"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
  address = "{dir}/sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "{dir}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{dir}/cni-bin"
    conf_dir = "{dir}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      Root = "{dir}/runc"
"#,
        dir = dir.display()
    )
}

/// A program that runs `vellum` with only the capabilities that its unit allows.
fn under_the_units_limits(home: &Home, program: &str) -> String {
    let unit = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../contrib/systemd/vellum-containerd.service"
    );
    let unit = std::fs::read_to_string(unit).unwrap();
    let line = unit
        .lines()
        .find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let names = line
        .unwrap()
        .split(' ')
        .map(|name| name.trim_start_matches("CAP_").to_lowercase());
    let set = names.fold("-all".to_owned(), |set, name| format!("{set},+{name}"));
    let path = home.join("confined");
    // The last command is `exec`ed, so that a signal reaches the server itself.
    let script =
        format!("#!/bin/sh\nexec setpriv --no-new-privs --bounding-set {set} {program} \"$@\"\n");
    std::fs::write(&path, script).unwrap();
    run(Command::new("chmod").arg("755").arg(&path)).unwrap();
    path.display().to_string()
}

#[test]
fn pods_run_on_a_node_that_was_installed() {
    let programs = [
        "containerd",
        "ctr",
        "runc",
        "python3",
        "busybox",
        "setpriv",
        "docker-registry",
        "skopeo",
    ];
    if !available(&programs) {
        return;
    }
    let home = Home::new().unwrap();
    let program = env!("CARGO_BIN_EXE_vellum");
    let (_registry, image) = Registry::with_small_image(&home).unwrap();
    let socket = Containerd::socket_in(&home);
    let confined = under_the_units_limits(&home, program);
    let mut server = SnapshotServer::start(&confined, &home, "v", &socket, &[]).unwrap();
    let config = installed(
        &home,
        program,
        &node_config(&home),
        server.root(),
        server.socket(),
    );
    let containerd = Containerd::start_with(&home, &config).unwrap();
    let plugins = containerd.ctr(&["plugins", "ls"]).unwrap();
    let listed = |line: &str| line.contains("vellum") && line.trim_end().ends_with("ok");
    assert!(plugins.lines().any(listed), "{plugins}");
    let pause = pause_archive(&home, program);
    let mut import = containerd.command("k8s.io");
    run(import.args(["image", "import", "--no-unpack"]).arg(&pause)).unwrap();

    let kubelet = Kubelet::of(&socket);
    kubelet.pull(&image);
    assert!(kubelet.image(&image).is_some_and(|image| image.size > 0));
    let config = pod("web");
    let begun = kubelet.begin_pod(&config);
    let create =
        |name: &str| kubelet.begin(&begun, &config, name, &image, "while :; do sleep 1; done");
    let first = create("first");
    assert_eq!(kubelet.shell(&first, "cat /app/version"), "version 2\n");
    kubelet.shell(
        &first,
        "echo mine > /app/version; grep ' / overlay ' /proc/mounts",
    );

    // The server is replaced while a pod runs.
    server.daemon.kill();
    assert_eq!(kubelet.shell(&first, "cat /app/version"), "mine\n");
    server.start_again().unwrap();
    let second = create("second");
    assert_eq!(kubelet.shell(&second, "cat /app/version"), "version 2\n");

    let used = kubelet.image_file_systems();
    assert_eq!(used.len(), 1, "{used:?}");

    kubelet.end_pod(&begun);
    for name in [image.as_str(), PAUSE] {
        kubelet.remove_image(name);
    }
    assert!(kubelet.image(&image).is_none());
    let deadline = Instant::now() + Duration::from_secs(90);
    loop {
        // Garbage goes at the next collection for which containerd sees a reason.
        let mut collect = containerd.command("k8s.io");
        collect.args(["content", "prune", "references"]);
        let _ = run(&mut collect);
        let left = (
            containerd.snapshots("k8s.io").unwrap(),
            server.trees().unwrap(),
        );
        if left.0.is_empty() && left.1.is_empty() {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "left behind: {left:?}\n{}",
            server.daemon.said()
        );
        std::thread::sleep(Duration::from_millis(300));
    }
}

#[test]
fn a_pull_for_pods_adopts_what_vellum_loaded() {
    let programs = [
        "containerd",
        "ctr",
        "runc",
        "python3",
        "busybox",
        "setpriv",
        "docker-registry",
        "skopeo",
    ];
    if !available(&programs) {
        return;
    }
    let home = Home::new().unwrap();
    let program = env!("CARGO_BIN_EXE_vellum");
    let (_registry, image) = Registry::with_small_image(&home).unwrap();
    let archive = small_image(&home).unwrap();
    let socket = Containerd::socket_in(&home);
    let server = SnapshotServer::start(program, &home, "v", &socket, &[]).unwrap();
    let vellum = |arguments: &[&str]| {
        let mut command = Command::new(program);
        command.env_remove("VELLUM_ROOT");
        command.arg("--root").arg(server.root());
        command.arg("--run-dir").arg(home.join("v/run"));
        command.arg("--config").arg(home.join("v/vellum.toml"));
        run(command.args(arguments)).unwrap()
    };
    vellum(&["--quiet", "load", archive.to_str().unwrap()]);
    let trees = server.trees().unwrap().len();
    let config = installed(
        &home,
        program,
        &node_config(&home),
        server.root(),
        server.socket(),
    );
    let containerd = Containerd::start_with(&home, &config).unwrap();
    let kubelet = Kubelet::of(&socket);
    kubelet.pull(&image);
    // Ten layers were adopted and none was unpacked: the new snapshots in the store are empty.
    assert_eq!(containerd.snapshots("k8s.io").unwrap().len(), trees);
    assert_eq!(server.trees().unwrap().len(), 2 * trees);
    let filled = std::fs::read_dir(server.root().join("overlay2"))
        .unwrap()
        .filter_map(|tree| {
            let diff = tree.unwrap().path().join("diff");
            std::fs::read_dir(diff).ok()?.next()
        });
    assert_eq!(filled.count(), trees);

    // Vellum's image is removed, and containerd's layers still work.
    vellum(&["rmi", "vellum-demo-small:latest"]);
    vellum(&["gc", "--quiet"]);
    let hello = containerd.run_once("k8s.io", &image, "hello").unwrap();
    assert_eq!(hello, "hello from version 2, 13 entries at the root");
    vellum(&["check"]);
    let mut remove = containerd.command("k8s.io");
    run(remove.args(["image", "rm", "--sync", &image])).unwrap();
    let deadline = Instant::now() + Duration::from_secs(90);
    loop {
        // The plugin keeps the image under a second name, its configuration's digest.
        let mut images = containerd.command("k8s.io");
        for name in run(images.args(["image", "ls", "--quiet"]))
            .unwrap()
            .lines()
        {
            let mut remove = containerd.command("k8s.io");
            // The plugin may have removed it already.
            let _ = run(remove.args(["image", "rm", "--sync", name]));
        }
        vellum(&["gc", "--quiet"]);
        let left = (
            containerd.snapshots("k8s.io").unwrap(),
            server.trees().unwrap(),
        );
        if left.0.is_empty() && left.1.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "left behind: {left:?}");
        std::thread::sleep(Duration::from_millis(300));
    }
}
