//! Exchanges images with real container tools, and compares trees entry by entry.
//!
//! The reference is always the other tool's own tree of the same image: its mount, or what it
//! unpacked.

use std::path::Path;

use vellum_testkit::Tree;
use vellum_testkit::clients::{
    Buildah, Dockerd, Home, Podman, Skopeo, Umoci, Vellum, available, small_image,
};
use vellum_testkit::tree::Ignore;

/// The image's tars say nothing about the root directory itself: each tool creates its own.
const IGNORE: Ignore = Ignore {
    root: true,
    directory_mtimes: false,
    mtimes: false,
    nanoseconds: false,
    hard_links: false,
    owners: false,
    xattrs: false,
};

const HELLO: &str = "hello from version 3, 13 entries at the root";

fn vellum(home: &Home) -> Vellum {
    Vellum::new(env!("CARGO_BIN_EXE_vellum"), home, "vellum").unwrap()
}

/// A store with the small image, and `demo:changed` committed on top of it.
fn with_changed_image(home: &Home) -> Vellum {
    let vellum = vellum(home);
    let archive = small_image(home).unwrap();
    vellum.load_as(&archive, "demo:loaded").unwrap();
    vellum
        .run(&["create", "--name", "box", "demo:loaded"])
        .unwrap();
    let tree = vellum.mount("box").unwrap();
    change(&tree);
    vellum.run(&["umount", "box"]).unwrap();
    vellum.run(&["commit", "box", "demo:changed"]).unwrap();
    vellum
}

/// Changes of every kind: data, attributes alone, names, links, a renamed and a replaced directory.
fn change(tree: &Path) {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    fs::write(tree.join("app/version"), "version 3\n").unwrap();
    fs::remove_file(tree.join("odd/setuid")).unwrap();
    fs::set_permissions(
        tree.join("srv/large.bin"),
        fs::Permissions::from_mode(0o600),
    )
    .unwrap();
    fs::rename(tree.join("usr/share/vellum"), tree.join("usr/share/moved")).unwrap();
    fs::remove_dir_all(tree.join("odd/replaced")).unwrap();
    fs::create_dir(tree.join("odd/replaced")).unwrap();
    fs::write(tree.join("odd/replaced/new"), "alone here\n").unwrap();
    fs::hard_link(tree.join("odd/replaced/new"), tree.join("odd/linked-new")).unwrap();
    symlink("replaced/new", tree.join("odd/symlinked")).unwrap();
    fs::remove_file(tree.join("odd/fifo")).unwrap();
    fs::create_dir(tree.join("odd/fifo")).unwrap();
}

/// The same kinds of changes, as a shell line for tools that don't mount here.
const CHANGE: &str = "echo 'version 3' > /app/version; rm /odd/setuid; chmod 600 /srv/large.bin; \
    rm -r /odd/replaced; mkdir /odd/replaced; echo alone > /odd/replaced/new; \
    ln /odd/replaced/new /odd/linked-new; ln -s replaced/new /odd/symlinked; rm /odd/fifo; mkdir /odd/fifo";

#[test]
fn a_saved_image_loads_in_dockerd_and_runs_there() {
    if !available(&["dockerd", "docker", "python3", "busybox"]) {
        return;
    }
    let home = Home::new().unwrap();
    let vellum = with_changed_image(&home);
    let saved = home.join("saved.tar");
    vellum
        .run(&["save", "--output", saved.to_str().unwrap(), "demo:changed"])
        .unwrap();
    let daemon = Dockerd::start(&home, &[]).unwrap();
    daemon.load(&saved).unwrap();
    let said = daemon
        .docker(&["run", "--rm", "--network", "none", "demo:changed"])
        .unwrap();
    assert_eq!(said, HELLO);
    let theirs = home.join("theirs");
    daemon.mount_image("demo:changed", &theirs).unwrap();
    let ours = vellum.image_tree("demo:changed", &home).unwrap();
    Tree::read(&theirs).unwrap().assert_same(&ours, IGNORE);
}

#[test]
fn a_saved_image_loads_in_podman_and_runs_there() {
    if !available(&["podman", "runc", "python3", "busybox"]) {
        return;
    }
    let home = Home::new().unwrap();
    let vellum = with_changed_image(&home);
    let ours = vellum.image_tree("demo:changed", &home).unwrap();
    let podman = Podman::new(&home).unwrap();
    for format in ["docker-archive", "oci-archive"] {
        let saved = home.join(format);
        let path = saved.to_str().unwrap();
        vellum
            .run(&["save", "--format", format, "--output", path, "demo:changed"])
            .unwrap();
        podman.load(&saved).unwrap();
        let id = podman.podman(&["images", "--quiet"]).unwrap();
        let id = id.lines().next().unwrap();
        assert_eq!(podman.run_image(id, &[]).unwrap(), HELLO, "{format}");
        let theirs = podman.mount_image(id).unwrap();
        Tree::read(&theirs).unwrap().assert_same(&ours, IGNORE);
        podman.podman(&["image", "unmount", "--all"]).unwrap();
        podman.podman(&["rmi", "--force", id]).unwrap();
    }
}

#[test]
fn a_saved_image_is_read_by_skopeo_and_umoci() {
    if !available(&["skopeo", "umoci", "python3", "busybox"]) {
        return;
    }
    let home = Home::new().unwrap();
    let vellum = with_changed_image(&home);
    let ours = vellum.image_tree("demo:changed", &home).unwrap();
    let skopeo = Skopeo::new(&home).unwrap();
    for (format, transport) in [
        ("docker-archive", "docker-archive"),
        ("oci-archive", "oci-archive"),
        ("oci-dir", "oci"),
    ] {
        let saved = home.join(format);
        let path = saved.to_str().unwrap();
        vellum
            .run(&["save", "--format", format, "--output", path, "demo:changed"])
            .unwrap();
        let layout = home.join(&format!("{format}.layout"));
        let to = format!("oci:{}:copied", layout.display());
        skopeo.copy(&format!("{transport}:{path}"), &to).unwrap();
        let theirs = Umoci
            .unpack(&layout, "copied", &home.join(&format!("{format}.bundle")))
            .unwrap();
        // umoci leaves a directory with the time at which it last wrote into it.
        let ignore = Ignore {
            directory_mtimes: true,
            ..IGNORE
        };
        Tree::read(&theirs).unwrap().assert_same(&ours, ignore);
    }
}

#[test]
fn an_image_of_docker_save_gives_the_same_tree() {
    if !available(&["dockerd", "docker", "python3", "busybox"]) {
        return;
    }
    let home = Home::new().unwrap();
    let archive = small_image(&home).unwrap();
    let daemon = Dockerd::start(&home, &[]).unwrap();
    daemon.load(&archive).unwrap();
    daemon
        .docker(&[
            "run",
            "--name",
            "box",
            "--network",
            "none",
            "vellum-demo-small",
            "sh",
            "-ec",
            CHANGE,
        ])
        .unwrap();
    daemon.docker(&["commit", "box", "demo:theirs"]).unwrap();
    let saved = home.join("theirs.tar");
    daemon
        .docker(&["save", "--output", saved.to_str().unwrap(), "demo:theirs"])
        .unwrap();
    let theirs = home.join("theirs");
    daemon.mount_image("demo:theirs", &theirs).unwrap();

    let vellum = vellum(&home);
    vellum.load_as(&saved, "demo:ours").unwrap();
    let ours = vellum.image_tree("demo:ours", &home).unwrap();
    Tree::read(&theirs).unwrap().assert_same(&ours, IGNORE);
}

#[test]
fn images_of_buildah_give_the_same_trees() {
    if !available(&["buildah", "podman", "runc", "python3", "busybox"]) {
        return;
    }
    let home = Home::new().unwrap();
    let archive = small_image(&home).unwrap();
    let buildah = Buildah::new(&home).unwrap();
    let container = buildah
        .from(&format!("docker-archive:{}", archive.display()))
        .unwrap();
    buildah.shell(&container, CHANGE).unwrap();
    let vellum = vellum(&home);
    for transport in ["oci-archive", "docker-archive"] {
        let built = home.join(&format!("{transport}.tar"));
        let target = format!("{transport}:{}:demo:built", built.display());
        buildah.commit(&container, &target).unwrap();
        let again = buildah
            .from(&format!("{transport}:{}", built.display()))
            .unwrap();
        let theirs = buildah.mount(&again).unwrap();
        vellum.load_as(&built, "demo:built").unwrap();
        let ours = vellum.image_tree("demo:built", &home).unwrap();
        Tree::read(&theirs).unwrap().assert_same(&ours, IGNORE);
    }
}

#[test]
fn an_image_of_umoci_gives_the_same_tree() {
    if !available(&["skopeo", "umoci", "python3", "busybox"]) {
        return;
    }
    let home = Home::new().unwrap();
    let archive = small_image(&home).unwrap();
    let layout = home.join("layout");
    let to = format!("oci:{}:one", layout.display());
    Skopeo::new(&home)
        .unwrap()
        .copy(&format!("docker-archive:{}", archive.display()), &to)
        .unwrap();
    let bundle = home.join("bundle");
    let tree = Umoci.unpack(&layout, "one", &bundle).unwrap();
    change(&tree);
    Umoci.repack(&layout, "one", &bundle).unwrap();
    let theirs = Umoci.unpack(&layout, "one", &home.join("again")).unwrap();

    let vellum = vellum(&home);
    vellum.load_as(&layout, "demo:umoci").unwrap();
    let ours = vellum.image_tree("demo:umoci", &home).unwrap();
    let ignore = Ignore {
        directory_mtimes: true,
        ..IGNORE
    };
    Tree::read(&theirs).unwrap().assert_same(&ours, ignore);
}

#[test]
fn images_of_skopeo_give_the_same_trees_in_every_form() {
    if !available(&["skopeo", "podman", "python3", "busybox"]) {
        return;
    }
    let home = Home::new().unwrap();
    let archive = small_image(&home).unwrap();
    let from = format!("docker-archive:{}", archive.display());
    let skopeo = Skopeo::new(&home).unwrap();
    let podman = Podman::new(&home).unwrap();
    skopeo
        .copy(&from, &podman.skopeo_name("demo:theirs"))
        .unwrap();
    let theirs = Tree::read(&podman.mount_image("demo:theirs").unwrap()).unwrap();
    let vellum = vellum(&home);
    for (form, path, options) in [
        (
            "oci",
            "layout-gzip",
            &["--dest-compress-format", "gzip"][..],
        ),
        (
            "oci",
            "layout-zstd",
            &["--dest-compress", "--dest-compress-format", "zstd"],
        ),
        ("oci-archive", "oci.tar", &[]),
        ("docker-archive", "docker.tar", &[]),
    ] {
        let path = home.join(path);
        let to = format!("{form}:{}:demo:copied", path.display());
        skopeo.copy_with(&from, &to, options).unwrap();
        vellum.load_as(&path, "demo:copied").unwrap();
        let ours = vellum.image_tree("demo:copied", &home).unwrap();
        theirs.assert_same(&ours, IGNORE);
    }
}
