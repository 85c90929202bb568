//! The slow tier: containerd 2 with Vellum's snapshotter and differ, and dockerd 28 on them, in
//! their own root file system. `make test-slow` runs it. The scripts that run inside are
//! `support/*.sh`.

use std::path::Path;
use std::process::Command;

use vellum_testkit::clients::{Home, Registry, available, run, small_image};
use vellum_testkit::untested;

const HELLO: &str = "hello from version 2, 13 entries at the root";

/// Runs a scenario inside and compares what it reports.
fn scenario(name: &str, script: &str, expected: &[&str]) {
    if std::env::var_os("VELLUM_SLOW").is_none() {
        untested(name, "only in the slow tier: make test-slow");
        return;
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
        return;
    }
    let home = Home::new().unwrap();
    let (registry, _image) = Registry::with_small_image(&home).unwrap();
    let archive = small_image(&home).unwrap();
    let exchange = home.dir("exchange").unwrap();
    std::fs::rename(&archive, exchange.join("small.tar")).unwrap();
    std::fs::copy(env!("CARGO_BIN_EXE_vellum"), exchange.join("vellum")).unwrap();
    let script = format!("{}\n{script}", include_str!("support/containerd_2.sh"));
    let forky = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/forky-root.sh");
    let said = run(Command::new(forky)
        .args(["run", "bash", "-c", &script, "bash", name])
        .env("EXCHANGE", &exchange)
        .env("REGISTRY", registry.host()))
    .unwrap();
    let said: Vec<&str> = said
        .lines()
        .filter_map(|line| line.strip_prefix("ok: "))
        .map(str::trim_end)
        .collect();
    assert_eq!(said, expected);
}

#[test]
fn containerd_2_works_with_snapshotter_and_differ() {
    let hello = |what: &str| format!("{what}: {HELLO}");
    scenario(
        "ctd2",
        include_str!("support/containerd_2_scenario.sh"),
        &[
            &hello("import"),
            "ten layers went through the differ",
            "the trees are the same",
            &hello("pull"),
            &hello("the container went on"),
            "diff: app/ app/version begun made/ odd/ odd/.wh.links",
            "zstd:  28 b5 2f fd",
            "nothing is left",
            "ended",
        ],
    );
}

#[test]
fn killing_either_side_of_containerd_2_amid_pulls_loses_and_leaks_nothing() {
    scenario(
        "kills",
        include_str!("support/containerd_2_crashes.sh"),
        &[
            "nothing leaked",
            &format!("pulled: {HELLO}"),
            "the container went on",
            "nothing is left",
            "ended",
        ],
    );
}

#[test]
fn docker_28_keeps_its_images_in_vellum() {
    scenario(
        "d28",
        include_str!("support/docker_28_scenario.sh"),
        &[
            "driver: vellum",
            "every step gave what it gives on overlayfs",
            "built: version 8 copied new /odd/setuid",
            "restart: alone",
            "nothing is left",
            "ended",
        ],
    );
}

#[test]
fn containers_of_containerd_2_have_their_own_ids() {
    let said = "/ 0:0 /app/version 1000:1000 /odd/far-owner 3000000:4000000 \
                /fresh 0:0 /app/version 1000:1000 /made 1000:7 0 100000 6000000";
    let ways = [
        "copied",
        "copied-and-told",
        "kernel",
        "engine",
        "copied-engine",
        "overlay",
        "native",
    ];
    let mut expected = ways.map(|way| format!("{way}: {said}")).to_vec();
    expected.push("ended".into());
    let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
    let script = include_str!("support/containerd_2_ids_scenario.sh");
    scenario("ids2", script, &expected);
}

#[test]
fn a_running_containers_changes_are_the_same_however_it_is_mounted_and_mapped() {
    scenario(
        "diff2",
        include_str!("support/containerd_2_diff_scenario.sh"),
        &[
            "-rw-r--r-- 0/0 begun",
            "-rw-r--r-- 1000/1000 app/version",
            "-rw-r--r-- 7/8 odd/empty",
            "drwxr-x--- 0/0 odd/empty-directory/",
            "drwxr-xr-x 0/0 app/",
            "drwxr-xr-x 0/0 made/",
            "drwxr-xr-x 0/0 odd/",
            "hrw-r--r-- 1000/1000 made/again link to app/version",
            "whiteout odd/.wh.links",
            "the same: mapped-by-the-kernel",
            "the same: engine",
            "the same: mapped-by-the-engine",
            "the same: walked",
            "ended",
        ],
    );
}
