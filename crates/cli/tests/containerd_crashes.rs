//! The containerd of this machine, and the server of its snapshots, killed amid pulls and amid
//! containers: images pulled again are whole, containers keep running, and the store has exactly
//! the snapshots that containerd knows.

#[path = "support/containerd.rs"]
mod pair;

use pair::{HELLO, Pair, programs, wait};
use vellum_testkit::clients::{SNAPSHOTTER, Vellum, available, run, small_image};

/// The side that crashes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Side {
    Containerd,
    Server,
    Both,
}

/// Imports an image that has no layer in common with the pulled one.
fn import_another(pair: &Pair) -> String {
    let vellum = Vellum::new(env!("CARGO_BIN_EXE_vellum"), &pair.home, "w").unwrap();
    vellum
        .load_as(&small_image(&pair.home).unwrap(), "small:1")
        .unwrap();
    let at = pair.home.dir("tree").unwrap();
    let at = at.to_str().unwrap();
    let archive = pair.home.join("another.tar");
    let archive = archive.to_str().unwrap();
    let image = "docker.io/library/another:1";
    vellum
        .run(&["mount", "--image", "small:1", "--at", at])
        .unwrap();
    vellum.run(&["--quiet", "import", at, image]).unwrap();
    vellum.run(&["umount", at]).unwrap();
    vellum
        .run(&["--quiet", "save", "--output", archive, image])
        .unwrap();
    pair.containerd
        .ctr(&["image", "import", "--snapshotter", SNAPSHOTTER, archive])
        .unwrap();
    image.into()
}

/// Pulls until the store has `trees` more trees (or the pull has ended), then crashes one side and
/// restarts it.
fn crash_amid_a_pull(pair: &mut Pair, image: &str, trees: usize, side: Side) {
    let before = pair.server.trees().unwrap().len();
    let mut pull = pair.begin_pull("default", image);
    wait("layers to come", || {
        let now = pair.server.trees().unwrap().len();
        now >= before + trees || pull.try_wait().unwrap().is_some()
    });
    if side != Side::Server {
        pair.containerd.daemon.kill();
    }
    if side != Side::Containerd {
        pair.server.daemon.kill();
        pair.server.start_again().unwrap();
    }
    if side != Side::Server {
        pair.containerd.start_again().unwrap();
    }
    // It may have ended, fail now or continue with the next daemon; each is fine.
    let _ = pull.kill();
    let _ = pull.wait().unwrap();
}

#[test]
fn killing_either_side_amid_pulls_and_containers_loses_and_leaks_nothing() {
    if !programs() || !available(&["docker-registry", "skopeo"]) {
        return;
    }
    let mut pair = Pair::start();
    let another = import_another(&pair);
    pair.start_box_of(&another, "box");
    let (_registry, image) = pair.registry();
    // The first layer has no parent, so that it is mounted to be unpacked; the others are written
    // without a mount.
    let crashes = [
        (1, Side::Containerd),
        (1, Side::Server),
        (2, Side::Containerd),
        (2, Side::Both),
        (3, Side::Server),
    ];
    for (trees, side) in crashes {
        crash_amid_a_pull(&mut pair, &image, trees, side);
        pair.inside("box", "grep -qx begun /begun").unwrap();
    }
    pair.assert_only_known(&["default"], 1);
    wait("the pull to succeed", || {
        run(&mut pair.pull_command("default", &image)).is_ok()
    });
    assert_eq!(pair.hello("default", &image, "hello").unwrap(), HELLO);
    pair.assert_only_known(&["default"], 1);
    pair.inside("box", "echo on > /on").unwrap();
    pair.end_box("box");
    pair.remove_images("default");
    pair.assert_nothing_left();
}
