//! The slow tier: the node's installer and the units under a running systemd, with Debian's
//! containerd and Docker. `make test-slow` runs it. What happens inside is in
//! `support/systemd_scenario.sh`.

use std::path::Path;
use std::process::Command;

use vellum_testkit::clients::{Home, available, run, small_image};
use vellum_testkit::untested;

#[test]
fn units_work_under_a_live_systemd() {
    let name = "units under a live systemd";
    if std::env::var_os("VELLUM_SLOW").is_none() {
        untested(name, "only in the slow tier: make test-slow");
        return;
    }
    if !available(&["systemd-nspawn", "containerd", "dockerd", "runc"]) {
        return;
    }
    let home = Home::new().unwrap();
    let archive = small_image(&home).unwrap();
    let exchange = home.dir("exchange").unwrap();
    std::fs::rename(&archive, exchange.join("small.tar")).unwrap();
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let said = run(Command::new("bash")
        .arg(here.join("tests/support/live_systemd.sh"))
        .arg(env!("CARGO_BIN_EXE_vellum"))
        .arg(here.join("../../contrib"))
        .arg(here.join("tests/support/systemd_scenario.sh"))
        .arg(&exchange))
    .unwrap();
    let told: Vec<&str> = said
        .lines()
        .filter_map(|line| line.strip_prefix("ok: "))
        .collect();
    let expected = [
        "installed: active enabled",
        "containerd's first call started the server: active",
        "a container ran",
        "a reload keeps the process",
        "eight crashes in a row, and containerd noticed none",
        "neither a restart nor a stop",
        "a server that can't begin tries again, and not at once",
        "a container on the engine outlives the server, containerd, both, and an upgrade",
        "nothing is left",
        "uninstalled: 0 0",
        "docker's storage is vellum, its server active",
        "a container ran",
        "nothing that docker did failed for a crash and two restarts",
        "the end",
    ];
    assert_eq!(told, expected, "{said}");
}
