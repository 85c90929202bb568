//! The slow tier: the kubelet's interface of containerd 2, in its own root file system, configured
//! by `vellum node install`. `make test-slow` runs it.
//!
//! The client is outside (`support/cri.rs`), the daemons are inside; the sockets are in a directory
//! that both see.

#[path = "support/cri.rs"]
mod kubelet;

use std::path::PathBuf;

use kubelet::{Kubelet, PAUSE, installed, pause_archive, pod, pod_with_ids, volume_of};
use vellum_testkit::clients::{Home, Newer, Registry, available, small_image};
use vellum_testkit::untested;

/// Runs after containerd_2.sh: what the kubelet needs in addition.
const PRELUDE: &str = r#"
run=$dir/run
# mount.fuse3 finds the engine there.
PATH=/exchange:$PATH
mkdir -p "$run" "$dir/cni-bin" "$dir/cni"
# A network of nothing: what a plugin has to answer, and a name for it.
cat > "$dir/cni-bin/nothing" << 'EOF'
#!/bin/sh
test "$CNI_COMMAND" != ADD || echo '{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"'"$CNI_NETNS"'"}],"ips":[{"address":"192.0.2.2/24","interface":0}]}'
EOF
chmod 755 "$dir/cni-bin/nothing"
echo '{"cniVersion":"1.0.0","name":"nothing","plugins":[{"type":"nothing"}]}' > "$dir/cni/10-nothing.conflist"
"#;

/// containerd 2 and Vellum's server inside, the kubelet outside.
struct Node {
    // Dropped in this order: nothing inside may outlive the directory.
    newer: Newer,
    kubelet: Kubelet,
    image: String,
    _registry: Registry,
    _home: Home,
}

impl Node {
    /// Installs Vellum on a node whose containerd has its own default configuration, and starts
    /// both with the two images there. With `remap_ids` both are configured to let the kernel map
    /// ids; `vellum_flags` go before the verb.
    fn start(name: &str, vellum_flags: &str, remap_ids: bool) -> Option<Self> {
        if std::env::var_os("VELLUM_SLOW").is_none() {
            untested(name, "only in the slow tier: make test-slow");
            return None;
        }
        let programs = [
            "debootstrap",
            "python3",
            "busybox",
            "unshare",
            "docker-registry",
            "skopeo",
        ];
        if !available(&programs) {
            return None;
        }
        let home = Home::new().unwrap();
        let program = env!("CARGO_BIN_EXE_vellum");
        let (registry, image) = Registry::with_small_image(&home).unwrap();
        let exchange = home.dir("exchange").unwrap();
        std::fs::copy(program, exchange.join("vellum")).unwrap();
        std::fs::rename(small_image(&home).unwrap(), exchange.join("small.tar")).unwrap();
        std::fs::rename(pause_archive(&home, program), exchange.join("pause.tar")).unwrap();
        let prelude = format!("{}\n{PRELUDE}", include_str!("support/containerd_2.sh"));
        let mut newer = Newer::start(&home, &prelude, name).unwrap();
        let default = newer.run("containerd config default").unwrap();
        let inside = PathBuf::from("/exchange").join(name);
        let config = of_the_test(&default, &inside.display().to_string());
        let config = installed(
            &home,
            program,
            &config,
            &inside.join("v"),
            &inside.join("run/vs"),
        );
        let (config, server_flags) = match remap_ids {
            false => (config, ""),
            true => (with_capability(&config), "--remap-ids"),
        };
        std::fs::write(exchange.join(name).join("config.toml"), config).unwrap();
        newer
            .run(&format!(
                "vellum_flags='{vellum_flags}'; server_flags='{server_flags}'; start_vellum; start_containerd; c -n k8s.io image import --no-unpack /exchange/pause.tar"
            ))
            .unwrap();
        let kubelet = Kubelet::of(&exchange.join(name).join("run/sock"));
        Some(Self {
            newer,
            kubelet,
            image,
            _registry: registry,
            _home: home,
        })
    }
}

/// The configuration with what an administrator adds for ids that the kernel maps.
fn with_capability(config: &str) -> String {
    let mut document: toml::Table = config.parse().unwrap();
    let vellum = &mut document["proxy_plugins"]["vellum"];
    let vellum = vellum.as_table_mut().unwrap();
    vellum.insert("capabilities".into(), vec!["remap-ids"].into());
    document.to_string()
}

/// containerd's default configuration with its paths moved into `dir`, and without what tests can't
/// use.
fn of_the_test(default: &str, dir: &str) -> String {
    let mut config = default.to_owned();
    let changes = [
        ("root = '/var/lib/containerd'", format!("root = '{dir}/c'")),
        (
            "state = '/run/containerd'",
            format!("state = '{dir}/run/c'"),
        ),
        (
            "address = '/run/containerd/containerd.sock'",
            format!("address = '{dir}/run/sock'"),
        ),
        (
            "sandbox = 'registry.k8s.io/pause:3.10'",
            format!("sandbox = '{PAUSE}'"),
        ),
        ("path = '/opt/containerd'", format!("path = '{dir}/opt'")),
        (
            "bin_dirs = ['/usr/lib/cni', '/opt/cni/bin']",
            format!("bin_dirs = ['{dir}/cni-bin']"),
        ),
        (
            "conf_dir = '/etc/cni/net.d'",
            format!("conf_dir = '{dir}/cni'"),
        ),
        (
            "use_internal_loopback = false",
            "use_internal_loopback = true".into(),
        ),
        ("disable_apparmor = false", "disable_apparmor = true".into()),
        (
            "restrict_oom_score_adj = false",
            "restrict_oom_score_adj = true".into(),
        ),
        ("level = ''", "level = 'debug'".into()),
    ];
    for (from, to) in changes {
        assert!(config.contains(from), "{from} is not in {default}");
        config = config.replacen(from, &to, 1);
    }
    config
}

impl Node {
    /// Runs a piece of shell inside.
    #[track_caller]
    fn inside(&mut self, piece: &str) -> String {
        self.newer.run(piece).unwrap()
    }

    /// Removes the images, and waits until containerd has no snapshot and the store no tree.
    #[track_caller]
    fn leave_nothing(&mut self) {
        for image in [self.image.as_str(), PAUSE] {
            self.kubelet.remove_image(image);
            assert!(self.kubelet.image(image).is_none());
        }
        // Garbage goes at the next collection for which containerd sees a reason.
        self.inside(
            r#"
            nothing_left() {
              c -n k8s.io content prune references || true
              test -z "$(c -n k8s.io snapshots --snapshotter vellum ls | sed 1d)"
              # What stood below adopted layers is Vellum's own to collect.
              /exchange/vellum --root "$dir/v" --run-dir "$run/v" --config /dev/null --quiet gc
              test "$(ls "$dir/v/overlay2")" = l
            }
            collected() { (set -e; nothing_left); }
            for try in $(seq 300); do if collected > /dev/null 2>&1; then break; fi; sleep 0.2; done
            nothing_left
            ! grep " $dir/" /proc/self/mountinfo || false
            kill $containerd_pid; wait $containerd_pid || true
            kill $vellum_pid; wait $vellum_pid"#,
        );
    }
}

const WAIT: &str = "echo begun; while :; do sleep 1; done";

#[test]
fn pods_run_on_containerd_2_as_it_was_installed() {
    pods_run("cri2", "", "overlay");
}

#[test]
fn pods_of_containerd_2_run_on_vellums_engine() {
    pods_run("crie", "--engine vellum", "fuse.vellum");
}

/// Tests the life of a pod whose containers' trees have the mount type `mounted`.
fn pods_run(name: &str, vellum_flags: &str, mounted: &str) {
    let Some(mut node) = Node::start(name, vellum_flags, false) else {
        return;
    };
    let plugins = node.inside("c plugins ls");
    for (kind, id) in [
        ("io.containerd.snapshotter.v1", "vellum"),
        ("io.containerd.differ.v1", "vellum-diff"),
        ("io.containerd.cri.v1", "images"),
        ("io.containerd.cri.v1", "runtime"),
    ] {
        let is_it = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            words.starts_with(&[kind, id]) && words.ends_with(&["ok"])
        };
        assert!(plugins.lines().any(is_it), "{kind} {id}: {plugins}");
    }
    let image = node.image.clone();
    node.kubelet.pull(&image);
    let known = node.kubelet.image(&image);
    assert!(known.is_some_and(|image| image.size > 0));
    // The kubelet's images go through the differ that the install named.
    let applied = node.inside(r#"grep -c 'call="Apply"' "$dir/vellum.log""#);
    assert!(applied.parse::<u32>().unwrap() >= 10, "{applied}");

    let mut config = pod("web");
    config.log_directory = "/exchange/logs".into();
    let begun = node.kubelet.begin_pod(&config);
    let first = node.kubelet.begin(&begun, &config, "first", &image, WAIT);
    let shell = |node: &Node, line: &str| node.kubelet.shell(&first, line);
    assert_eq!(shell(&node, "cat /app/version"), "version 2\n");
    shell(&node, &format!("grep ' / {mounted} ' /proc/mounts"));
    shell(
        &node,
        "head -c 3000000 /dev/zero > /big; echo mine > /app/version",
    );
    node.inside("wait_for grep -q 'stdout F begun' /exchange/logs/first.log");

    // What it wrote and what images take is counted, and the path is the store that the kubelet
    // watches.
    let (bytes, inodes) = node.kubelet.written(&first, 3_000_000);
    assert!(
        bytes < 6_000_000 && (2..50).contains(&inodes),
        "{bytes} {inodes}"
    );
    let used = node.kubelet.image_file_systems();
    assert_eq!(used.len(), 1, "{used:?}");
    let place = used[0].place.as_ref().unwrap();
    assert_eq!(place.path, format!("/exchange/{name}/v"));
    assert!(
        used[0]
            .bytes
            .as_ref()
            .is_some_and(|used| used.value > bytes),
        "{used:?}"
    );

    // Either daemon is replaced while a pod runs.
    node.inside("crash $vellum_pid");
    assert_eq!(shell(&node, "cat /app/version"), "mine\n");
    node.inside("start_vellum");
    let second = node.kubelet.begin(&begun, &config, "second", &image, WAIT);
    assert_eq!(
        node.kubelet.shell(&second, "cat /app/version"),
        "version 2\n"
    );
    node.inside("crash $containerd_pid; start_containerd");
    node.kubelet.pull(&image);
    assert_eq!(shell(&node, "cat /app/version"), "mine\n");
    let volume = vec![volume_of(&image, &config)];
    let third = node
        .kubelet
        .begin_with(&begun, &config, "third", &image, WAIT, volume);
    assert_eq!(
        node.kubelet
            .shell(&third, "cat /app/version /volume/app/version"),
        "version 2\nversion 2\n"
    );

    node.kubelet.end_pod(&begun);
    node.leave_nothing();
}

/// Tests pods with their own ids, mapped by the kernel (`kernel`) or by containerd's copies.
fn pods_have_ids_of_their_own(name: &str, by_the_kernel: bool) {
    let Some(mut node) = Node::start(name, "", by_the_kernel) else {
        return;
    };
    let image = node.image.clone();
    node.kubelet.pull(&image);
    // As many as the image's unusual owners need.
    let config = pod_with_ids("own", 100_000, 6_000_000);
    let begun = node.kubelet.begin_pod(&config);
    let first = node.kubelet.begin(&begun, &config, "first", &image, WAIT);
    let shell = |node: &Node, line: &str| node.kubelet.shell(&first, line);
    let map = shell(&node, "cat /proc/self/uid_map");
    let map: Vec<&str> = map.split_whitespace().collect();
    assert_eq!(map, ["0", "100000", "6000000"]);
    let owners = "stat -c '%n %u:%g' / /app/version /odd/far-owner";
    let expected = "/ 0:0\n/app/version 1000:1000\n/odd/far-owner 3000000:4000000\n";
    assert_eq!(shell(&node, owners), expected);
    shell(
        &node,
        "echo new > /fresh; echo more >> /app/version; mkdir /made; chown 1000:7 /made",
    );
    let now = "stat -c '%n %u:%g' /fresh /app/version /made";
    let expected = "/fresh 0:0\n/app/version 1000:1000\n/made 1000:7\n";
    assert_eq!(shell(&node, now), expected);
    let mounted = shell(&node, "grep ' / ' /proc/mounts");
    let mapped = mounted.contains("ovl-idmapped");
    assert_eq!(mapped, by_the_kernel, "{mounted}");
    // On the node they are the host's ids.
    let host = node.inside(r#"find "$dir/v/overlay2" -name fresh -printf '%U:%G\n'; find "$dir/v/overlay2" -name made -printf '%U:%G\n'"#);
    assert_eq!(host, "100000:100000\n101000:100007");

    // The server is replaced: the mapper stays the same, and another container uses the same image.
    node.inside("crash $vellum_pid; start_vellum");
    let second = node.kubelet.begin(&begun, &config, "second", &image, WAIT);
    assert_eq!(
        node.kubelet.shell(&second, "stat -c %u:%g /app/version"),
        "1000:1000\n"
    );
    assert_eq!(shell(&node, now), expected);

    // An image as a volume comes with the labels, and without a copy.
    let volume = vec![volume_of(&image, &config)];
    let third = node
        .kubelet
        .begin_with(&begun, &config, "third", &image, WAIT, volume);
    let shown = node.kubelet.shell(
        &third,
        "cat /volume/app/version; stat -c %u:%g /volume /volume/app/version; ! touch /volume/new 2> /dev/null",
    );
    assert_eq!(shown, "version 2\n0:0\n1000:1000\n");
    node.kubelet.end_pod(&begun);
    node.leave_nothing();
}

#[test]
fn pods_with_their_own_ids_see_the_images_owners() {
    pods_have_ids_of_their_own("ids", false);
}

#[test]
fn the_kernel_maps_pods_with_their_own_ids_if_containerd_is_configured_so() {
    pods_have_ids_of_their_own("idk", true);
}

#[test]
fn a_pull_for_pods_of_containerd_2_adopts_what_vellum_loaded() {
    let Some(mut node) = Node::start("adopt", "", false) else {
        return;
    };
    node.inside(
        r#"
        vellum() { /exchange/vellum --root "$dir/v" --run-dir "$run/v" --config /dev/null --quiet "$@"; }
        filled() { find "$dir"/v/overlay2/*/diff -maxdepth 0 -not -empty | wc -l; }
        vellum load /exchange/small.tar > /dev/null
        layers=$(filled)
        test "$layers" -gt 1"#,
    );
    let image = node.image.clone();
    node.kubelet.pull(&image);
    // Every layer has an empty snapshot, and none was unpacked.
    node.inside(
        r#"
        test "$(c -n k8s.io snapshots --snapshotter vellum ls | sed 1d | wc -l)" = "$layers"
        test "$(filled)" = "$layers"
        ! grep 'call="Apply"' "$dir/vellum.log" || false
        vellum rmi vellum-demo-small:latest > /dev/null
        vellum gc"#,
    );
    let config = pod("web");
    let begun = node.kubelet.begin_pod(&config);
    let first = node.kubelet.begin(&begun, &config, "first", &image, WAIT);
    let version = node.kubelet.shell(&first, "cat /app/version");
    assert_eq!(version, "version 2\n");
    node.kubelet.end_pod(&begun);
    node.leave_nothing();
}
