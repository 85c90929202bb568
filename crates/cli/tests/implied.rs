//! Layers that change something in a directory without listing the directory: the directory looks
//! as in the layers below, with every driver, after loading and in containers.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use vellum_sys::mount;
use vellum_testkit::{Scratch, needs_root};

/// Returns a tar by GNU tar of exactly `names` in `dir`, without their parents and contents.
fn tar(dir: &Path, names: &[&str]) -> Vec<u8> {
    let mut command = Command::new("tar");
    command.args([
        "--format=pax",
        "--no-recursion",
        "--xattrs",
        "--xattrs-include=*",
        "-C",
    ]);
    let out = command.arg(dir).arg("-c").args(names).output().unwrap();
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    out.stdout
}

/// A docker-archive of one image with these layers, the lowest first.
fn archive(scratch: &Scratch, layers: &[Vec<u8>]) -> PathBuf {
    let dir = scratch.dir("archive");
    let names: Vec<_> = (0..layers.len()).map(|at| format!("{at}.tar")).collect();
    for (name, layer) in names.iter().zip(layers) {
        fs::write(dir.join(name), layer).unwrap();
    }
    let diff_ids: Vec<_> = layers
        .iter()
        .map(|layer| vellum_format::Digest::of(layer).to_string())
        .collect();
    let config = serde_json::json!({
        "architecture": vellum_image::Platform::host().architecture, "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let manifest = serde_json::json!([{ "Config": "config.json", "RepoTags": ["implied:1"], "Layers": names }]);
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    fs::write(dir.join("manifest.json"), manifest.to_string()).unwrap();
    let path = scratch.join("image.tar");
    let all: Vec<_> = names
        .iter()
        .map(String::as_str)
        .chain(["config.json", "manifest.json"])
        .collect();
    fs::write(&path, tar(&dir, &all)).unwrap();
    path
}

#[test]
fn directories_that_a_layer_does_not_list_look_as_below() {
    if !needs_root("loading and mounting") {
        return;
    }
    for driver in ["overlay2", "overlay", "native"] {
        let scratch = Scratch::new();
        let low = scratch.dir("low");
        fs::create_dir_all(low.join("odd/deep")).unwrap();
        fs::write(low.join("odd/deep/gone"), "").unwrap();
        let xattr = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(low.join("odd"), "user.kept", b"yes", xattr).unwrap();
        for (dir, mode, owner) in [("odd", 0o1777, 5), ("odd/deep", 0o2750, 6)] {
            chown(low.join(dir), Some(owner), Some(owner)).unwrap();
            fs::set_permissions(low.join(dir), fs::Permissions::from_mode(mode)).unwrap();
        }
        scratch.file("middle/odd/deep/.wh.gone", "");
        scratch.file("middle/fresh/made", "");
        scratch.file("top/odd/deep/new", "new");
        let layers = [
            tar(&low, &["odd", "odd/deep", "odd/deep/gone"]),
            tar(
                &scratch.join("middle"),
                &["odd/deep/.wh.gone", "fresh/made"],
            ),
            tar(&scratch.join("top"), &["odd/deep/new"]),
        ];
        let image = archive(&scratch, &layers);
        let vellum = |args: &[&str]| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_vellum"));
            command.arg("--root").arg(scratch.join("root"));
            command.arg("--run-dir").arg(scratch.join("run"));
            command
                .args(["--quiet", "--storage-driver", driver])
                .args(args);
            command
                .env_clear()
                .env("PATH", std::env::var_os("PATH").unwrap());
            let out = command.stdin(Stdio::null()).output().unwrap();
            assert!(
                out.status.success(),
                "{args:?}: {}",
                String::from_utf8_lossy(&out.stderr)
            );
            String::from_utf8(out.stdout).unwrap().trim_end().to_owned()
        };
        vellum(&["load", image.to_str().unwrap()]);
        vellum(&["create", "implied:1", "--name", "box"]);
        let root = PathBuf::from(vellum(&["mount", "box"]));
        let look = |path: &str| {
            let meta = fs::symlink_metadata(root.join(path)).unwrap();
            (meta.mode() & 0o7777, meta.uid(), meta.gid())
        };
        let seen = (look("odd"), look("odd/deep"), look("fresh"));
        let mut value = [0; 8];
        let kept = rustix::fs::getxattr(root.join("odd"), "user.kept", &mut value[..]);
        let names = fs::read_dir(root.join("odd/deep")).unwrap().count();
        mount::unmount_all(scratch.path()).unwrap();
        assert_eq!(
            seen,
            ((0o1777, 5, 5), (0o2750, 6, 6), (0o755, 0, 0)),
            "{driver}"
        );
        assert_eq!(kept.unwrap(), 3, "{driver}");
        assert_eq!(names, 1, "{driver}: one is gone, one is new");
    }
}
