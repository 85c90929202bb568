//! Podman and Buildah with Vellum as their mount program: they show, save and build the same as
//! with the kernel's overlay.

mod support;

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use support::podman::{AS_PLAIN_USER, LIMITS, VELLUM, in_newer, newer, plain_image, podman};
use support::{Said, said};
use vellum_testkit::clients::{Home, available, small_image};
use vellum_testkit::{PlainUser, Scratch, untested};

const NEWER_SCENARIO: &str = include_str!("support/podman_5_scenario.sh");
const SCENARIO: &str = include_str!("support/podman_scenario.sh");

/// Returns both reports, or the lines that differ.
fn assert_same(kernel: &Said, vellum: &Said) {
    assert_eq!(kernel.code, 0, "the kernel's: {}", kernel.err);
    assert_eq!(vellum.code, 0, "{}\n{}", tail(&vellum.out), vellum.err);
    let (kernel, vellum): (Vec<_>, Vec<_>) =
        (kernel.out.lines().collect(), vellum.out.lines().collect());
    let only = |a: &[&str], b: &[&str]| -> Vec<String> {
        a.iter()
            .filter(|line| !b.contains(line))
            .map(|line| (*line).to_owned())
            .collect()
    };
    assert_eq!(
        only(&kernel, &vellum),
        only(&vellum, &kernel),
        "only in one of the two"
    );
    assert_eq!(kernel, vellum);
    assert!(kernel.len() > 100, "{kernel:?}");
}

fn tail(text: &str) -> String {
    let lines: Vec<_> = text.lines().rev().take(12).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

/// Runs both at the same time and returns the results with the kernel's overlay and with Vellum.
fn both(run: impl Fn(&str) -> Command + Sync) -> (Said, Said) {
    let one = |name: &str| said(run(name).output().unwrap());
    std::thread::scope(|scope| {
        let kernel = scope.spawn(|| one("kernel"));
        let vellum = one("vellum");
        (kernel.join().unwrap(), vellum)
    })
}

#[test]
fn podman_and_buildah_get_the_same_from_vellum_as_from_the_kernel() {
    if !available(&["podman", "buildah", "runc", "python3", "busybox"]) {
        return;
    }
    let home = Home::new().unwrap();
    let archive = small_image(&home).unwrap();
    let program = home.join("fuse-overlayfs");
    symlink(VELLUM, &program).unwrap();
    let (kernel, vellum) = both(|name| {
        let mut run = Command::new("sh");
        run.args(["-c", SCENARIO, "sh"])
            .arg(home.join(name))
            .arg(home.join(&name[..1]))
            .arg(&archive);
        if name == "vellum" {
            run.arg(&program);
        }
        run
    });
    assert_same(&kernel, &vellum);
}

#[test]
fn a_plain_user_gets_the_same_from_vellum_as_from_the_kernel() {
    if !available(&["podman", "buildah", "runc", "busybox"]) {
        return;
    }
    let scratch = Scratch::new();
    let Some(user) = PlainUser::with_fuse(&scratch) else {
        return;
    };
    let archive = plain_image(&scratch);
    let program = user.borrow_program(Path::new(VELLUM));
    let named = scratch.dir("names").join("fuse-overlayfs");
    symlink(&program, &named).unwrap();
    // Podman accepts at most 50 characters for the path of its sockets.
    for short in ["k", "v"] {
        let dir = scratch.dir(short);
        let give = Command::new("chown")
            .arg(user.id.to_string())
            .arg(dir)
            .status();
        assert!(give.unwrap().success());
    }
    fs::set_permissions(&archive, Permissions::from_mode(0o644)).unwrap();
    let (kernel, vellum) = both(|name| {
        let mut run = user.command("sh");
        run.args(["-c", SCENARIO, "sh"])
            .arg(user.home().join(name))
            .arg(scratch.join(&name[..1]))
            .arg(&archive);
        if name == "vellum" {
            run.arg(&named);
        }
        run
    });
    assert_same(&kernel, &vellum);
}

#[test]
fn newer_podman_and_buildah_get_the_same_from_vellum_as_from_the_kernel() {
    let Some((home, exchange)) = newer() else {
        return;
    };
    fs::rename(small_image(&home).unwrap(), exchange.join("small.tar")).unwrap();
    let (kernel, vellum) = both(|name| {
        let mut run = in_newer(&exchange);
        run.args(["sh", "-c", SCENARIO, "sh"]);
        run.arg(format!("/exchange/{name}"))
            .arg(format!("/run/{}", &name[..1]))
            .arg("/exchange/small.tar");
        if name == "vellum" {
            run.arg("/exchange/fuse-overlayfs");
        }
        run
    });
    assert_same(&kernel, &vellum);
}

#[test]
fn newer_podman_maps_ids_as_with_the_kernel_and_reads_other_stores() {
    let Some((home, exchange)) = newer() else {
        return;
    };
    let scratch = Scratch::new();
    fs::copy(plain_image(&scratch), exchange.join("plain.tar")).unwrap();
    symlink("fuse-overlayfs", exchange.join("vellum")).unwrap();
    let (mut kernel, mut vellum) = both(|name| {
        let mut run = in_newer(&exchange);
        run.args(["bash", "-c", NEWER_SCENARIO, "bash"]);
        run.arg(format!("by-{name}"));
        if name == "vellum" {
            run.arg("/exchange/fuse-overlayfs");
        }
        run
    });
    drop(home);
    // When the kernel mounts, Podman loses the removals in such a container.
    kernel.out = kernel.out.replace("\nnot removed\n", "\nremoved\n");
    let exported = "localhost/plain:1 true\n/odd:\nlinks\n\n/usr/share/doc:\nREADME\nA /etc/new\nD /etc/group\nnew\ngone\n";
    for driver in ["overlay2", "overlay", "native"] {
        let said = format!("== exported, {driver}\n{exported}");
        assert!(vellum.out.contains(&said), "{}\n{}", vellum.out, vellum.err);
        vellum.out = vellum.out.replace(&said, "");
    }
    assert_same(&kernel, &vellum);
}

#[test]
fn a_plain_user_of_newer_podman_and_buildah_gets_the_same_from_vellum_as_from_the_kernel() {
    let Some((home, exchange)) = newer() else {
        return;
    };
    if !Path::new("/dev/fuse").exists() {
        return untested("FUSE for plain users", "there is no /dev/fuse");
    }
    let scratch = Scratch::new();
    let archive = plain_image(&scratch);
    fs::copy(archive, exchange.join("plain.tar")).unwrap();
    fs::write(exchange.join("as_plain_user.sh"), AS_PLAIN_USER).unwrap();
    let (kernel, vellum) = both(|name| {
        let mut run = in_newer(&exchange);
        run.args(["sh", "/exchange/as_plain_user.sh"])
            .arg(format!("/exchange/{name}"))
            .args(["env", "RUNTIME=crun", "sh", "-c", SCENARIO, "sh"])
            .arg(format!("/exchange/{name}/all"))
            .arg(format!("/run/user/61234/{}", &name[..1]))
            .arg("/exchange/plain.tar");
        if name == "vellum" {
            run.arg("/exchange/fuse-overlayfs");
        }
        run
    });
    drop(home);
    assert_same(&kernel, &vellum);
}

/// Three mappings: one with ids that overlap those on disk, one separate from those on disk, and
/// one that Podman chooses.
const PLAIN_IDS: &str = r#"
set -eu
podman() {
    timeout 120 podman --root "$HOME/store" --runroot "$XDG_RUNTIME_DIR/s" --tmpdir "$XDG_RUNTIME_DIR/t" --storage-driver overlay --storage-opt overlay.mount_program=/exchange/fuse-overlayfs \
        --runtime crun --cgroup-manager cgroupfs --events-backend file "$@"
}
limits="--network none --ulimit nofile=1000:1000 --ulimit nproc=1000:1000"
podman load --quiet --input /exchange/plain.tar > /dev/null
for ids in --userns=keep-id "--uidmap 0:1000:5000 --gidmap 0:1000:5000" --userns=auto; do
    podman run $limits $ids --user 0 --name box localhost/plain:1 sh -c 'echo x > /new; chown 3:4 /new; mkdir /inner; rm -r /srv; echo more >> /etc/passwd'
    podman diff box | grep -e /bin/busybox || echo untouched
    podman commit --quiet box localhost/mine:1 > /dev/null
    podman run --rm $limits localhost/mine:1 sh -c 'stat -c "%n %u %g" /new /inner /etc/passwd /bin/busybox; [ -e /srv ] || echo removed'
    podman rm --all --force > /dev/null
    podman rmi --force localhost/mine:1 > /dev/null
done
podman rmi --all --force > /dev/null
podman system migrate
"#;

#[test]
fn a_plain_user_of_newer_podman_commits_whole_containers_with_their_own_ids() {
    let Some((home, exchange)) = newer() else {
        return;
    };
    if !Path::new("/dev/fuse").exists() {
        return untested("FUSE for plain users", "there is no /dev/fuse");
    }
    let scratch = Scratch::new();
    fs::copy(plain_image(&scratch), exchange.join("plain.tar")).unwrap();
    fs::write(exchange.join("as_plain_user.sh"), AS_PLAIN_USER).unwrap();
    let mut run = in_newer(&exchange);
    run.args(["sh", "/exchange/as_plain_user.sh", "/exchange/home"])
        .args(["sh", "-c", PLAIN_IDS]);
    let done = said(run.output().unwrap());
    drop(home);
    assert_eq!(done.code, 0, "{}\n{}", done.out, done.err);
    let whole = "untouched\n/new 3 4\n/inner 0 0\n/etc/passwd 0 0\n/bin/busybox 0 0\nremoved\n";
    assert_eq!(done.out, whole.repeat(3), "{}", done.err);
}

#[test]
fn containers_with_their_own_ids_see_those_ids() {
    if !available(&["podman", "runc", "busybox"]) {
        return;
    }
    let home = Home::new().unwrap();
    let scratch = Scratch::new();
    let archive = plain_image(&scratch);
    let podman = |args: &[&str]| podman(&home, "s", &[], args);
    podman(&["load", "--quiet", "--input", archive.to_str().unwrap()]);
    let script = "stat -c '%u %g' /bin/busybox; echo x > /new; chown 3:4 /new; chmod 4755 /new; rm -r /srv; stat -c '%a %u %g' /new; ls -d /srv || echo gone";
    let mapped = [
        "--uidmap",
        "0:100000:65536",
        "--gidmap",
        "0:100000:65536",
        "--name",
        "box",
        "localhost/plain:1",
        "sh",
        "-c",
        script,
    ];
    assert_eq!(
        podman(&[&["run"], &LIMITS[..], &mapped].concat()),
        "0 0\n4755 3 4\ngone\n"
    );
    // On disk the ids are those of the image, and nothing was copied for the other ids.
    podman(&["commit", "--quiet", "box", "localhost/mine:1"]);
    let plain = [
        "--rm",
        "localhost/mine:1",
        "stat",
        "-c",
        "%a %u %g",
        "/new",
        "/bin/busybox",
    ];
    assert_eq!(
        podman(&[&["run"], &LIMITS[..], &plain].concat()),
        "4755 3 4\n755 0 0\n"
    );
    let changed = podman(&["diff", "box"]);
    assert!(
        changed.contains("A /new") && changed.contains("D /srv") && !changed.contains("/bin"),
        "{changed}"
    );
    podman(&["rm", "--all", "--force"]);
    podman(&["rmi", "--all", "--force"]);
}

#[test]
fn with_force_mask_images_are_readable_on_disk_and_themselves_in_the_container() {
    if !available(&["podman", "runc", "busybox"]) {
        return;
    }
    let home = Home::new().unwrap();
    let scratch = Scratch::new();
    let archive = plain_image(&scratch);
    let podman = |args: &[&str]| {
        podman(
            &home,
            "s",
            &["--storage-opt", "overlay.force_mask=shared"],
            args,
        )
    };
    podman(&["load", "--quiet", "--input", archive.to_str().unwrap()]);
    let script = "chmod 600 /etc/passwd; chown 5:6 /etc/passwd; echo x > /new; chmod 711 /new; stat -c '%a %u %g' /etc/passwd /new /bin/busybox";
    let made = podman(
        &[
            &["run"],
            &LIMITS[..],
            &["--name", "box", "localhost/plain:1", "sh", "-c", script],
        ]
        .concat(),
    );
    assert_eq!(made, "600 5 6\n711 0 0\n755 0 0\n");
    podman(&["commit", "--quiet", "box", "localhost/mine:1"]);
    let again = [
        "--rm",
        "localhost/mine:1",
        "stat",
        "-c",
        "%a %u %g",
        "/etc/passwd",
        "/new",
    ];
    assert_eq!(
        podman(&[&["run"], &LIMITS[..], &again].concat()),
        "600 5 6\n711 0 0\n"
    );
    let overlay = fs::read_dir(home.join("s/overlay")).unwrap();
    let news = overlay.map(|entry| entry.unwrap().path().join("diff/new"));
    let modes = news.filter_map(|new| Some(fs::metadata(new).ok()?.permissions().mode() & 0o777));
    // The image's file has the mask; the container's own file belongs to its user until it is
    // committed.
    let mut modes: Vec<u32> = modes.collect();
    modes.sort_unstable();
    assert_eq!(modes, [0o600, 0o755]);
    podman(&["rm", "--all", "--force"]);
    podman(&["rmi", "--all", "--force"]);
}

#[test]
fn images_of_an_additional_store_run_read_only() {
    if !available(&["podman", "runc", "busybox"]) {
        return;
    }
    let home = Home::new().unwrap();
    let scratch = Scratch::new();
    let archive = plain_image(&scratch);
    podman(
        &home,
        "shared",
        &[],
        &["load", "--quiet", "--input", archive.to_str().unwrap()],
    );
    let shared = format!("overlay.imagestore={}", home.join("shared").display());
    let podman = |args: &[&str]| podman(&home, "own", &["--storage-opt", &shared], args);
    let listed = podman(&["images", "--format", "{{.Repository}} {{.ReadOnly}}"]);
    assert_eq!(listed, "localhost/plain true\n");
    let script = "echo y > /etc/new; cat /etc/new /odd/links/first";
    let said = podman(
        &[
            &["run"],
            &LIMITS[..],
            &["--rm", "localhost/plain:1", "sh", "-c", script],
        ]
        .concat(),
    );
    assert_eq!(said, "y\n1\n");
}
