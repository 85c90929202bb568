//! Docker's daemon on the plugin, and the same steps on its own overlay2: users must see the same.
//!
//! The daemon is Debian's 20.10. Plugins are killed and restarted while containers run.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

use vellum_testkit::Tree;
use vellum_testkit::clients::{Dockerd, Home, Plugin, available, run, small_image};
use vellum_testkit::tree::Ignore;
use vellum_testkit::untested;

const VELLUM: &str = env!("CARGO_BIN_EXE_vellum");

/// Two daemons at a time are enough for a small machine.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// What a container does: changes of every kind. Times that would differ from run to run are
/// ignored when trees are compared.
const CHANGE: &str = "echo 'version 3' > /app/version; rm /odd/setuid; chmod 600 /srv/large.bin; \
    rm -r /odd/replaced; mkdir /odd/replaced; echo alone > /odd/replaced/new; \
    ln /odd/replaced/new /odd/linked-new; ln -s replaced/new /odd/symlinked; rm /odd/fifo; mkdir /odd/fifo; \
    mkdir /made; echo x > /made/file; mv /made /moved";

const IMAGE: &str = "vellum-demo-small";

/// The files that the daemon itself puts into containers differ from run to run.
const OF_THE_DAEMON: [&str; 4] = ["etc/hostname", "etc/hosts", "etc/resolv.conf", ".dockerenv"];

fn ignoring_times() -> Ignore {
    Ignore {
        root: true,
        directory_mtimes: true,
        mtimes: true,
        nanoseconds: true,
        hard_links: false,
        owners: false,
        xattrs: false,
    }
}

fn ready() -> bool {
    available(&["dockerd", "docker", "python3", "busybox", "runc"])
}

/// Everything a user sees of the steps.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    diff: Vec<String>,
    size: String,
    copied: String,
    history: Vec<String>,
    layers: Vec<String>,
    built_says: String,
    built_layers: usize,
    image_size: String,
}

/// Performs the steps and calls `between` between them.
fn steps(
    home: &Home,
    daemon: &Dockerd,
    archive: &Path,
    between: &mut dyn FnMut(),
) -> (Seen, Tree, Tree) {
    let docker = |arguments: &[&str]| {
        daemon
            .docker(arguments)
            .unwrap_or_else(|e| panic!("{arguments:?}: {e:?}"))
    };
    let net = ["--network", "none"];
    daemon.load(archive).unwrap();
    between();
    let script = format!("{CHANGE}; echo ready; exec sleep 1000");
    docker(
        &[
            &["run", "-d", "--name", "box"],
            &net[..],
            &[IMAGE, "sh", "-c", &script],
        ]
        .concat(),
    );
    let mut said = String::new();
    for _ in 0..600 {
        said = docker(&["logs", "box"]);
        if said.contains("ready") {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert!(said.contains("ready"), "{said}");
    between();
    // The container has kept running.
    docker(&[
        "exec",
        "box",
        "sh",
        "-c",
        "echo more > /more; cat /odd/linked-new",
    ]);
    let mut diff: Vec<String> = docker(&["diff", "box"])
        .lines()
        .map(str::to_owned)
        .collect();
    diff.sort();
    let size = docker(&["ps", "-s", "--format", "{{.Size}}"]);
    let here = home.join("copied");
    fs::write(&here, "from outside").unwrap();
    docker(&["cp", here.to_str().unwrap(), "box:/moved/outside"]);
    fs::remove_file(&here).unwrap();
    docker(&["cp", "box:/moved/outside", here.to_str().unwrap()]);
    let copied = fs::read_to_string(&here).unwrap();
    fs::remove_file(&here).unwrap();
    docker(&["commit", "box", "committed"]);
    let exported = unpacked(home, |at| {
        docker(&["export", "-o", at, "box"]);
    });
    between();
    docker(&["stop", "-t", "0", "box"]);
    docker(&["start", "box"]);
    docker(&["rm", "-f", "box"]);
    let committed = unpacked(home, |at| {
        docker(&[&["create", "--name", "look"], &net[..], &["committed", "x"]].concat());
        docker(&["export", "-o", at, "look"]);
        docker(&["rm", "look"]);
    });
    let context = home.dir("context").unwrap();
    fs::write(context.join("added"), "added\n").unwrap();
    fs::write(
        context.join("Dockerfile"),
        format!(
            "FROM {IMAGE}\nCOPY added /app/added\nRUN rm /app/version && mkdir /one && echo 1 > /one/1\n\
             RUN mv /one /two && chmod 700 /two\nCMD [\"cat\", \"/two/1\", \"/app/added\"]\n"
        ),
    )
    .unwrap();
    run(daemon.command().env("DOCKER_BUILDKIT", "0").args([
        "build",
        "-q",
        "--network",
        "none",
        "-t",
        "built",
        context.to_str().unwrap(),
    ]))
    .unwrap();
    between();
    let built_says = docker(&[&["run", "--rm"], &net[..], &["built"]].concat());
    let history = docker(&[
        "history",
        "--no-trunc",
        "--format",
        "{{.Size}} {{.CreatedBy}}",
        "built",
    ])
    .lines()
    .map(str::to_owned)
    .collect();
    let layers_of = |image: &str| -> Vec<String> {
        let format = "{{range .RootFS.Layers}}{{println .}}{{end}}";
        docker(&["image", "inspect", "--format", format, image])
            .lines()
            .map(str::to_owned)
            .filter(|line| !line.is_empty())
            .collect()
    };
    let layers = layers_of(IMAGE);
    let built_layers = layers_of("built").len();
    let image_size = docker(&["image", "inspect", "--format", "{{.Size}}", IMAGE]);
    // A loaded image is saved with the same layers: the daemon checks every digest.
    let saved = home.join("saved.tar");
    docker(&[
        "save",
        "-o",
        saved.to_str().unwrap(),
        IMAGE,
        "built",
        "committed",
    ]);
    for image in ["built", "committed", IMAGE] {
        docker(&["rmi", image]);
    }
    daemon.load(&saved).unwrap();
    assert_eq!(layers_of(IMAGE), layers);
    fs::remove_file(&saved).unwrap();
    for image in ["built", "committed", IMAGE] {
        docker(&["rmi", image]);
    }
    let seen = Seen {
        diff,
        size,
        copied,
        history,
        layers,
        built_says,
        built_layers,
        image_size,
    };
    (seen, exported, committed)
}

/// Calls `export` with the path of a tar to write, and returns the tar's tree.
fn unpacked(home: &Home, export: impl FnOnce(&str)) -> Tree {
    let tar = home.join("export.tar");
    export(tar.to_str().unwrap());
    let at = home.dir("unpacked").unwrap();
    run(Command::new("tar")
        .args(["--xattrs", "--xattrs-include=*", "-xpf"])
        .arg(&tar)
        .arg("-C")
        .arg(&at))
    .unwrap();
    for name in OF_THE_DAEMON {
        // Not there in every container.
        let _ = fs::remove_file(at.join(name));
    }
    let tree = Tree::read(&at).unwrap();
    fs::remove_dir_all(&at).unwrap();
    fs::remove_file(&tar).unwrap();
    tree
}

/// The steps on Docker's own driver.
fn reference() -> (Seen, Tree, Tree) {
    let home = Home::new().unwrap();
    let archive = small_image(&home).unwrap();
    let daemon = Dockerd::start(&home, &[]).unwrap();
    steps(&home, &daemon, &archive, &mut || {})
}

/// The default way of mounting is always tested, the others only in the slow tier.
fn only_in_the_slow_tier() -> bool {
    let slow = std::env::var_os("VELLUM_SLOW").is_some();
    if !slow {
        untested(
            "dockerd with another driver or engine",
            "only in the slow tier: make test-slow",
        );
    }
    !slow
}

fn compare(arguments: &[&str]) {
    if !ready() {
        return;
    }
    let _one = ONE_AT_A_TIME
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let (theirs, their_export, their_commit) = reference();
    let home = Home::new().unwrap();
    let archive = small_image(&home).unwrap();
    let mut plugin = Plugin::start(VELLUM, &home, arguments).unwrap();
    let name = plugin.name().to_owned();
    let daemon = Dockerd::start(&home, &["--experimental", "--storage-driver", &name]).unwrap();
    let info = daemon.docker(&["info"]).unwrap();
    assert!(info.contains(&format!("Storage Driver: {name}")), "{info}");
    let (ours, export, commit) = steps(&home, &daemon, &archive, &mut || {
        plugin.kill_and_restart().unwrap();
    });
    assert_eq!(ours, theirs);
    export.assert_same(&their_export, ignoring_times());
    commit.assert_same(&their_commit, ignoring_times());
    drop(daemon);
    // Nothing is mounted any more, and every layer is gone.
    let mounts = vellum_testkit::scratch::mount_table();
    let root = plugin.root().display().to_string();
    let left: Vec<_> = mounts.lines().filter(|l| l.contains(&root)).collect();
    assert!(left.is_empty(), "{left:?}");
    plugin.end(rustix::process::Signal::TERM).unwrap();
    let df = run(plugin.command().args(["df", "--json"])).unwrap();
    let df: serde_json::Value = serde_json::from_str(&df).unwrap();
    assert_eq!(df["items"].as_array().map(Vec::len), Some(0), "{df}");
    let wrong = run(plugin.command().args(["check", "--quiet"])).unwrap();
    assert_eq!(wrong, "");
}

#[test]
fn dockerd_on_the_plugin_matches_its_overlay2() {
    compare(&["--engine", "kernel"]);
}

#[test]
fn dockerd_on_the_plugin_with_vellums_engine_matches_its_overlay2() {
    if only_in_the_slow_tier() {
        return;
    }
    compare(&["--engine", "vellum"]);
}

#[test]
fn dockerd_on_the_plugin_with_the_overlay_driver_matches_its_overlay2() {
    if only_in_the_slow_tier() {
        return;
    }
    compare(&["--storage-driver", "overlay"]);
}

#[test]
fn dockerd_on_the_plugin_with_the_native_driver_matches_its_overlay2() {
    if only_in_the_slow_tier() {
        return;
    }
    compare(&["--storage-driver", "native"]);
}

/// The daemon itself says only that the driver is not supported; its log has the plugin's reason.
#[test]
fn a_daemon_that_remaps_users_is_refused_with_the_reason() {
    if !ready() || !available(&["unshare", "timeout"]) {
        return;
    }
    let places = ["/etc/subuid", "/etc/subgid"];
    if !places.iter().all(|place| Path::new(place).exists()) {
        return untested("--userns-remap", "there is no /etc/subuid to put one over");
    }
    let home = Home::new().unwrap();
    let plugin = Plugin::start(VELLUM, &home, &[]).unwrap();
    let at = home.dir("remapped").unwrap();
    fs::write(at.join("ids"), "nobody:200000:65536\n").unwrap();
    fs::write(at.join("daemon.json"), "{}").unwrap();
    // In its own mount namespace, so that the machine's user database stays unchanged.
    let script = "mount --bind $0/ids /etc/subuid && mount --bind $0/ids /etc/subgid && exec \
        timeout 120 dockerd --experimental --storage-driver $1 --userns-remap nobody:nogroup --data-root $0/data \
        --exec-root $0/exec --pidfile $0/pid --host unix://$0/sock --config-file $0/daemon.json \
        --iptables=false --ip6tables=false --bridge=none --ip-forward=false --ip-masq=false";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", script]);
    let ended = command.arg(&at).arg(plugin.name()).output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(
        said.contains("userns-remap") && said.contains("use its own overlay2 driver"),
        "{said}"
    );
    // Nothing is left that would disturb a daemon without remapping.
    let daemon = Dockerd::start(
        &home,
        &["--experimental", "--storage-driver", plugin.name()],
    )
    .unwrap();
    daemon.docker(&["info"]).unwrap();
}
