//! The Debian packages that `make deb` makes: installed, used and removed in a copy of this
//! machine's root. What happens inside is in `support/packages_scenario.sh`.

use std::path::Path;
use std::process::Command;

use vellum_testkit::clients::{Home, available, run, small_image};

#[test]
fn packages_are_installed_used_and_removed() {
    if !available(&[
        "dpkg-deb",
        "dpkg-shlibdeps",
        "strip",
        "make",
        "unshare",
        "chroot",
    ]) {
        return;
    }
    let home = Home::new().unwrap();
    let archive = small_image(&home).unwrap();
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let packages = home.dir("packages").unwrap();
    // The programs of this build, hardly compressed: what is tried are the packages.
    let built = Path::new(env!("CARGO_BIN_EXE_vellum")).parent().unwrap();
    run(Command::new(here.join("../../scripts/deb.sh"))
        .args([built, &packages])
        .env("DEB_LEVEL", "0"))
    .unwrap();
    let scratch = home.dir("chroot").unwrap();
    let said = run(Command::new("unshare")
        .args(["--mount", "--pid", "--fork", "--kill-child", "bash"])
        .arg(here.join("tests/support/packages_scenario.sh"))
        .args([&packages, &scratch, &archive]))
    .unwrap();
    let told: Vec<&str> = said.lines().collect();
    let expected = [
        "ok: installed",
        "ok: pages, completions and units are there",
        "ok: an image is loaded and a container mounted",
        "ok: mount(8) knows the type fuse.vellum",
        "ok: the mount program alone serves a union",
        "ok: removed, and the store is kept",
    ];
    assert_eq!(told, expected);
}
