//! The slow tier: container tools of Debian's next release (dockerd 28 with containerd's image
//! store, podman 5), in their own root file system. `make test-slow` runs it.

use std::path::Path;
use std::process::Command;

use vellum_testkit::clients::{Home, Vellum, available, run, small_image};
use vellum_testkit::tree::Ignore;
use vellum_testkit::untested;

/// The script that runs inside: both tools load what Vellum saved and run it, and docker saves it
/// again.
const INSIDE: &str = r#"
mkdir -p /exchange/docker /run/docker-test
echo '{"features":{"containerd-snapshotter":true}}' > /exchange/docker/daemon.json
dockerd --config-file /exchange/docker/daemon.json --data-root /exchange/docker/data \
  --exec-root /run/docker-test --pidfile /run/docker-test/pid --host unix:///run/docker-test/sock \
  --iptables=false --ip6tables=false --bridge=none --ip-forward=false --ip-masq=false \
  > /exchange/docker/log 2>&1 &
export DOCKER_HOST=unix:///run/docker-test/sock
for try in $(seq 300); do docker version > /dev/null 2>&1 && break; sleep 0.1; done
docker load --quiet --input /exchange/saved.tar > /dev/null
echo "docker: $(docker run --rm --network none demo:changed)"
docker save --output /exchange/again.tar demo:changed
kill "$(cat /run/docker-test/pid)"
wait
podman() {
  command podman --root /exchange/podman/root --runroot /run/podman-test --tmpdir /run/podman-tmp \
    --storage-driver overlay --cgroup-manager cgroupfs --events-backend file --runtime runc "$@"
}
podman load --quiet --input /exchange/saved.tar > /dev/null 2>&1
echo "podman: $(podman run --rm --network none --ulimit nofile=20000:20000 --ulimit nproc=10000:10000 demo:changed 2> /dev/null)"
"#;

#[test]
fn a_saved_image_runs_in_newer_docker_and_podman_and_comes_back() {
    if std::env::var_os("VELLUM_SLOW").is_none() {
        untested("newer clients", "only in the slow tier: make test-slow");
        return;
    }
    if !available(&["debootstrap", "python3", "busybox", "unshare"]) {
        return;
    }
    let home = Home::new().unwrap();
    let vellum = Vellum::new(env!("CARGO_BIN_EXE_vellum"), &home, "vellum").unwrap();
    vellum
        .load_as(&small_image(&home).unwrap(), "demo:loaded")
        .unwrap();
    vellum
        .run(&["create", "--name", "box", "demo:loaded"])
        .unwrap();
    let tree = vellum.mount("box").unwrap();
    std::fs::write(tree.join("app/version"), "version 4\n").unwrap();
    std::fs::remove_dir_all(tree.join("odd/links")).unwrap();
    vellum.run(&["umount", "box"]).unwrap();
    vellum.run(&["commit", "box", "demo:changed"]).unwrap();
    let exchange = home.dir("exchange").unwrap();
    let saved = exchange.join("saved.tar");
    vellum
        .run(&["save", "--output", saved.to_str().unwrap(), "demo:changed"])
        .unwrap();

    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/forky-root.sh");
    let said = run(Command::new(script)
        .args(["run", "sh", "-ec", INSIDE])
        .env("EXCHANGE", &exchange))
    .unwrap();
    let hello = "hello from version 4, 13 entries at the root";
    assert_eq!(said, format!("docker: {hello}\npodman: {hello}"));

    vellum
        .load_as(&exchange.join("again.tar"), "demo:again")
        .unwrap();
    let before = vellum.image_tree("demo:changed", &home).unwrap();
    let after = vellum.image_tree("demo:again", &home).unwrap();
    before.assert_same(
        &after,
        Ignore {
            root: true,
            ..Ignore::default()
        },
    );
}
