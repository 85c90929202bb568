//! The harness itself: the tools start, judge the small image, and leave nothing behind.

use vellum_testkit::clients::{
    Buildah, Dockerd, Home, Podman, Skopeo, Umoci, available, small_image,
};

const HELLO: &str = "hello from version 2, 13 entries at the root";

#[test]
fn dockerd_runs_the_small_image_and_is_gone_afterwards() {
    if !available(&["dockerd", "docker", "python3", "busybox"]) {
        return;
    }
    let home = Home::new().unwrap();
    let archive = small_image(&home).unwrap();
    let daemon = Dockerd::start(&home, &[]).unwrap();
    daemon.load(&archive).unwrap();
    let said = daemon
        .docker(&["run", "--rm", "--network", "none", "vellum-demo-small"])
        .unwrap();
    assert_eq!(said, HELLO);
    let tree = home.join("tree");
    daemon.mount_image("vellum-demo-small", &tree).unwrap();
    assert!(tree.join("odd/opaque/new").exists());
    assert!(
        !tree.join("odd/opaque/hidden").exists(),
        "the opaque mark hides it"
    );
    let path = home.path().to_owned();
    drop(daemon);
    drop(home);
    assert!(!path.exists(), "everything was unmounted and removed");
}

#[test]
fn podman_buildah_skopeo_and_umoci_share_the_small_image() {
    if !available(&[
        "podman", "buildah", "skopeo", "umoci", "runc", "python3", "busybox",
    ]) {
        return;
    }
    let home = Home::new().unwrap();
    let archive = small_image(&home).unwrap();
    let from = format!("docker-archive:{}", archive.display());

    let podman = Podman::new(&home).unwrap();
    podman.load(&archive).unwrap();
    assert_eq!(podman.run_image("vellum-demo-small", &[]).unwrap(), HELLO);
    let mounted = podman.mount_image("vellum-demo-small").unwrap();
    assert!(mounted.join("odd/replaced/by-directory/inside").exists());

    let buildah = Buildah::new(&home).unwrap();
    let container = buildah.from(&from).unwrap();
    buildah
        .shell(&container, "echo changed > /app/version")
        .unwrap();
    let built = home.join("built.tar");
    buildah
        .commit(
            &container,
            &format!("oci-archive:{}:built", built.display()),
        )
        .unwrap();

    let skopeo = Skopeo::new(&home).unwrap();
    let layout = home.join("layout");
    let to = format!("oci:{}:built", layout.display());
    skopeo
        .copy(&format!("oci-archive:{}", built.display()), &to)
        .unwrap();
    let tree = Umoci
        .unpack(&layout, "built", &home.join("bundle"))
        .unwrap();
    assert_eq!(
        std::fs::read_to_string(tree.join("app/version")).unwrap(),
        "changed\n"
    );
}

#[test]
fn the_small_image_is_the_same_each_time() {
    if !available(&["python3", "busybox"]) {
        return;
    }
    let home = Home::new().unwrap();
    let first = std::fs::read(small_image(&home).unwrap()).unwrap();
    let second = std::fs::read(small_image(&home).unwrap()).unwrap();
    assert!(first == second, "the archives differ");
}
