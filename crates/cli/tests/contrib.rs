//! The command accepts what `contrib/` provides: units, snippets, manifests, alerts.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use vellum_testkit::clients::{Home, available, find, run};
use vellum_testkit::untested;

const VELLUM: &str = env!("CARGO_BIN_EXE_vellum");

fn contrib(path: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../contrib")).join(path)
}

fn read(path: &str) -> String {
    fs::read_to_string(contrib(path)).unwrap()
}

/// Documents of a YAML file as JSON, by Python's reader.
fn yaml(path: &str) -> Option<Vec<serde_json::Value>> {
    let script =
        "import json,sys,yaml; print(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))";
    let output = Command::new("python3")
        .args(["-c", script])
        .arg(contrib(path))
        .output();
    match output {
        Ok(output) if output.status.success() => {
            Some(serde_json::from_slice(&output.stdout).unwrap())
        }
        Ok(output) if !String::from_utf8_lossy(&output.stderr).contains("No module named") => {
            panic!("{path}: {}", String::from_utf8_lossy(&output.stderr))
        }
        _ => {
            untested("YAML of contrib/", "python3-yaml is not installed");
            None
        }
    }
}

const UNITS: [&str; 4] = [
    "vellum-containerd.socket",
    "vellum-containerd.service",
    "vellum-docker.socket",
    "vellum-docker.service",
];

#[test]
fn systemd_and_vellum_accept_the_units() {
    for unit in UNITS {
        let text = read(&format!("systemd/{unit}"));
        let setting = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
        if let Some(line) = setting("ExecStart=") {
            let mut words = line.split(' ');
            assert_eq!(words.next(), Some("/usr/local/bin/vellum"));
            // An invalid argument is reported before the help is printed.
            run(Command::new(VELLUM).args(words).arg("--help")).unwrap();
            assert_eq!(
                setting("KillMode="),
                Some("process"),
                "mounts outlive the server"
            );
            // Each of these would hide the mounts from the processes that need them.
            for hides in [
                "Protect",
                "Private",
                "ReadOnlyPaths",
                "InaccessiblePaths",
                "MountFlags",
                "RootDirectory",
                "DynamicUser",
                "Memory",
            ] {
                let alone = |line: &str| {
                    line.starts_with(hides) && !line.starts_with("MemoryDenyWriteExecute")
                };
                assert!(!text.lines().any(alone), "{unit}: {hides}");
            }
        }
    }
    let Some(analyze) = find("systemd-analyze") else {
        untested("systemd-analyze verify", "not installed");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let mut verify = Command::new(analyze);
    verify.args(["verify", "--man=no"]);
    for unit in UNITS {
        let text = read(&format!("systemd/{unit}")).replace("/usr/local/bin/vellum", VELLUM);
        let path = dir.path().join(unit);
        fs::write(&path, text).unwrap();
        verify.arg(path);
    }
    let output = verify.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    // systemd may also complain about other units of the machine.
    assert!(
        output.status.success() && !said.contains("vellum"),
        "{said}"
    );
}

#[test]
fn snippets_match_what_an_install_sets() {
    for version in [2, 3] {
        let node = tempfile::tempdir().unwrap();
        let config = node.path().join("etc/containerd/config.toml");
        fs::create_dir_all(config.parent().unwrap()).unwrap();
        fs::write(&config, format!("version = {version}\n")).unwrap();
        run(Command::new(VELLUM)
            .args(["node", "install", "--host-root"])
            .arg(node.path()))
        .unwrap();
        let snippet = read(&format!("containerd/config-v{version}.toml"));
        let parse = |text: &str| toml::from_str::<toml::Value>(text).unwrap();
        assert_eq!(
            parse(&fs::read_to_string(&config).unwrap()),
            parse(&snippet)
        );
        // The JSON report has the same content as the text.
        let report = run(Command::new(VELLUM)
            .args(["node", "uninstall", "--dry-run", "--json", "--host-root"])
            .arg(node.path()))
        .unwrap();
        let report: serde_json::Value = serde_json::from_str(&report).unwrap();
        assert_eq!(report["dry_run"], true);
        assert_eq!(report["files"][0]["action"], "replace");
    }
    for file in ["docker/daemon-plugin.json", "docker/daemon-containerd.json"] {
        let daemon: serde_json::Value = serde_json::from_str(&read(file)).unwrap();
        assert_eq!(daemon["storage-driver"], "vellum");
    }
}

#[test]
fn the_storage_snippet_is_a_whole_configuration() {
    if !vellum_testkit::needs_root("the system's storage.conf") || !available(&["buildah"]) {
        return;
    }
    let home = Home::new().unwrap();
    symlink(VELLUM, home.join("fuse-overlayfs")).unwrap();
    // Commented-out settings are tried, too.
    let mut text = String::new();
    for line in read("containers/storage.conf").lines() {
        let offered = ["# additionalimagestores", "# mountopt", "# force_mask"];
        let line = match offered.iter().any(|start| line.starts_with(start)) {
            true => &line[2..],
            false => line,
        };
        text += line;
        text += "\n";
    }
    for (theirs, ours) in [
        ("/run/containers/storage", "run"),
        ("/var/lib/containers/storage", "graph"),
        ("/var/lib/vellum-images", "images"),
        ("/usr/local/bin/fuse-overlayfs", "fuse-overlayfs"),
    ] {
        assert!(text.contains(theirs), "{theirs} is not in the snippet");
        text = text.replace(theirs, home.join(ours).to_str().unwrap());
    }
    home.dir("images").unwrap();
    let config = home.join("storage.conf");
    fs::write(&config, text).unwrap();
    let said = run(Command::new("buildah")
        .arg("info")
        .env("CONTAINERS_STORAGE_CONF", &config))
    .unwrap();
    let info: serde_json::Value = serde_json::from_str(&said).unwrap();
    let store = &info["store"];
    assert_eq!(store["GraphRoot"], home.join("graph").to_str().unwrap());
    let options = store["GraphOptions"].to_string();
    for option in ["mount_program", "mountopt", "force_mask"] {
        assert!(options.contains(option), "{options}");
    }
}

#[test]
fn the_daemon_set_asks_for_little_and_calls_what_exists() {
    let Some(documents) = yaml("kubernetes/node-installer.yaml") else {
        return;
    };
    let kinds: Vec<_> = documents
        .iter()
        .filter_map(|d| d["kind"].as_str())
        .collect();
    assert_eq!(
        kinds,
        ["Namespace", "DaemonSet"],
        "roles and accounts are not needed"
    );
    let pod = &documents[1]["spec"]["template"]["spec"];
    assert_eq!(pod["automountServiceAccountToken"], false);
    let containers =
        ["initContainers", "containers"].map(|list| pod[list].as_array().unwrap().clone());
    for container in containers.concat() {
        assert!(
            container["resources"]["limits"]["memory"].is_string(),
            "{container}"
        );
    }
    let mounts = &containers[0][0]["volumeMounts"][0];
    let host = mounts["mountPath"].as_str().unwrap();
    let node = tempfile::tempdir().unwrap();
    let arguments: Vec<&str> = containers[0][0]["args"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(serde_json::Value::as_str)
        .map(|word| {
            if word == host {
                node.path().to_str().unwrap()
            } else {
                word
            }
        })
        .collect();
    run(Command::new(VELLUM).args(arguments).arg("--dry-run")).unwrap();
}

#[test]
fn alerts_use_metrics_that_the_server_exports() {
    let Some(documents) = yaml("prometheus/vellum.rules.yaml") else {
        return;
    };
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../snapshotter/src/metrics.rs");
    let source = fs::read_to_string(source).unwrap();
    let rules = documents[0]["groups"][0]["rules"].as_array().unwrap();
    assert!(rules.len() > 3);
    for rule in rules {
        let expression = rule["expr"].as_str().unwrap();
        for part in expression.split("vellum_containerd_").skip(1) {
            let name: String = part
                .chars()
                .take_while(|c| c.is_ascii_lowercase() || *c == '_')
                .collect();
            // Suffixes that the format adds: the type of metric and its unit.
            let bare = ["_total", "_seconds_bucket", "_bytes"]
                .iter()
                .find_map(|end| name.strip_suffix(end))
                .unwrap_or(&name);
            assert!(
                source.contains(&format!("\"{bare}\",")),
                "{name} in {expression}"
            );
        }
    }
}

#[test]
fn an_activated_install_tells_the_nodes_systemd() {
    if !available(&["chroot", "busybox"]) {
        return;
    }
    let node = tempfile::tempdir().unwrap();
    let at = |path: &str| node.path().join(path);
    for dir in ["bin", "etc/containerd"] {
        fs::create_dir_all(at(dir)).unwrap();
    }
    fs::copy(find("busybox").unwrap(), at("bin/busybox")).unwrap();
    for applet in ["sh", "cat", "test"] {
        symlink("busybox", at("bin").join(applet)).unwrap();
    }
    let systemctl = "#!/bin/sh\ntest -e /etc/refuse && { echo no such bus >&2; exit 1; }\necho \"$@\" >>/told\n";
    fs::write(at("bin/systemctl"), systemctl).unwrap();
    run(Command::new("chmod").arg("755").arg(at("bin/systemctl"))).unwrap();
    fs::write(at("etc/containerd/config.toml"), "version = 2\n").unwrap();
    // As in the installer's image, which has nothing else, and with systemctl at its place on
    // nodes.
    fs::create_dir_all(at("usr")).unwrap();
    fs::rename(at("bin"), at("usr/bin")).unwrap();
    symlink("usr/bin", at("bin")).unwrap();
    let chroot = tempfile::tempdir().unwrap();
    symlink(find("chroot").unwrap(), chroot.path().join("chroot")).unwrap();
    let vellum = |verb: &str| {
        let mut command = Command::new(VELLUM);
        command
            .env("PATH", chroot.path())
            .args(["node", verb, "--activate", "--host-root"])
            .arg(node.path());
        run(&mut command)
    };
    // If systemd could not be notified, the next install does so, even though no file changes any
    // more.
    fs::write(at("etc/refuse"), "").unwrap();
    let refused = vellum("install").unwrap_err().to_string();
    assert!(refused.contains("the same command again"), "{refused}");
    fs::remove_file(at("etc/refuse")).unwrap();
    vellum("install").unwrap();
    vellum("install").unwrap();
    let told = || fs::read_to_string(at("told")).unwrap();
    let expected = "daemon-reload\nenable vellum-containerd.socket vellum-containerd.service\n\
                    restart vellum-containerd.service\ntry-restart containerd.service\n";
    assert_eq!(told(), expected, "once: the second install changed nothing");
    fs::write(at("etc/refuse"), "").unwrap();
    let refused = vellum("uninstall").unwrap_err().to_string();
    assert!(refused.contains("no such bus"), "{refused}");
    assert!(
        at("etc/systemd/system/vellum-containerd.service").exists(),
        "nothing was done"
    );
    fs::remove_file(at("etc/refuse")).unwrap();
    vellum("uninstall").unwrap();
    assert!(told().ends_with("disable --now vellum-containerd.service vellum-containerd.socket\ndaemon-reload\ntry-restart containerd.service\n"));
    assert!(!at("usr/local/bin/vellum").exists());
}
