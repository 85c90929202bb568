//! Layers produced by other programs: the tree is the one GNU tar extracts, entry by entry, and the
//! layer is written again byte for byte.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use super::common::{apply_to, assert_comes_back, gnu_extract, installed, python, run};
use vellum_format::Prefix;
use vellum_image::TargetMarks;
use vellum_sys::xattr::SetMode;
use vellum_sys::{Dir, FileKind, Timespec, xattr};
use vellum_testkit::tree::Ignore;
use vellum_testkit::{Scratch, Tree, needs_root, untested};

const OVERLAY: TargetMarks = TargetMarks::Overlay(Prefix::Trusted);

/// A tree with everything about which archives differ.
fn furnish(root: &Path) {
    let dir = Dir::open(root).unwrap();
    fs::create_dir_all(root.join("sub/deep")).unwrap();
    fs::write(root.join("sub/file"), "content\n").unwrap();
    fs::write(root.join("sub/empty"), "").unwrap();
    fs::write(root.join("exact"), [b'x'; 1024]).unwrap();
    fs::hard_link(root.join("sub/file"), root.join("sub/deep/link")).unwrap();
    std::os::unix::fs::symlink("sub/file", root.join("symlink")).unwrap();
    std::os::unix::fs::symlink("t".repeat(150), root.join("long-symlink")).unwrap();
    dir.mknod("fifo", FileKind::Fifo, 0o622, (0, 0)).unwrap();
    dir.mknod("null", FileKind::Char, 0o666, (1, 3)).unwrap();
    dir.mknod("disk", FileKind::Block, 0o660, (8, 17)).unwrap();
    fs::write(root.join(OsStr::from_bytes(b"not \xff utf-8 \n")), "x").unwrap();
    let long = "long-".repeat(40);
    fs::create_dir(root.join(&long)).unwrap();
    fs::write(root.join(&long).join("name-".repeat(30)), "long").unwrap();
    fs::hard_link(
        root.join(&long).join("name-".repeat(30)),
        root.join(&long).join("another-".repeat(15)),
    )
    .unwrap();
    let sparse = File::create(root.join("sparse")).unwrap();
    sparse.set_len(20 << 20).unwrap();
    for i in 0..40 {
        sparse.write_all_at(b"data", (i << 19) + 4096).unwrap();
    }
    let hole = File::create(root.join("hole")).unwrap();
    hole.set_len(1 << 20).unwrap();
    dir.set_owner("exact", 3_000_000, 4_000_000_000).unwrap();
    dir.set_owner("symlink", 12, 34).unwrap();
    fs::set_permissions(root.join("exact"), fs::Permissions::from_mode(0o6711)).unwrap();
    fs::set_permissions(root.join("sub"), fs::Permissions::from_mode(0o1777)).unwrap();
    let exact = OsStr::new("exact");
    xattr::set(&dir, exact, OsStr::new("user.text"), b"value", SetMode::Any).unwrap();
    xattr::set(
        &dir,
        exact,
        OsStr::new("user.binary"),
        b"\0\n=\xff",
        SetMode::Any,
    )
    .unwrap();
    xattr::set(
        &dir,
        OsStr::new("sub"),
        OsStr::new("trusted.dir"),
        b"d",
        SetMode::Any,
    )
    .unwrap();
    let times = |name: &str, sec, nsec| {
        let time = Some(Timespec::new(sec, nsec));
        dir.set_times(name, time, time).unwrap();
    };
    times("exact", 1_700_000_000, 123_456_789);
    times("symlink", 1_600_000_000, 5);
    times("fifo", 0, 0);
    times("null", -86_400, 500_000_000);
    times("sub", 1_500_000_000, 999_999_999);
}

/// Applies `layer`, compares with what GNU tar extracts, and writes it again.
#[track_caller]
fn check(scratch: &Scratch, layer: &Path, what: &str) {
    let name = layer.file_name().unwrap().to_string_lossy().into_owned();
    let ours = scratch.dir(format!("{name}.ours"));
    let theirs = scratch.dir(format!("{name}.theirs"));
    let (_, recipe) = apply_to(layer, &ours, OVERLAY);
    gnu_extract(layer, &theirs);
    let ignore = Ignore {
        root: true,
        ..Ignore::default()
    };
    let differences = Tree::read(&theirs)
        .unwrap()
        .differences(&Tree::read(&ours).unwrap(), ignore);
    assert!(differences.is_empty(), "{what}: {differences:#?}");
    assert_comes_back(layer, &ours, &recipe);
}

#[test]
fn gnu_tar_in_every_format() {
    if !needs_root("apply as root") {
        return;
    }
    let scratch = Scratch::new();
    let tree = scratch.dir("tree");
    furnish(&tree);
    for (format, options) in [
        ("v7", &[][..]),
        ("oldgnu", &[]),
        ("oldgnu", &["--sparse"]),
        ("gnu", &[]),
        ("gnu", &["--sparse"]),
        ("ustar", &[]),
        ("posix", &[]),
        ("posix", &["--xattrs", "--xattrs-include=*"]),
        ("posix", &["--sparse", "--sparse-version=0.0"]),
        ("posix", &["--sparse", "--sparse-version=0.1"]),
        ("posix", &["--sparse", "--sparse-version=1.0"]),
        (
            "posix",
            &["--sparse", "--xattrs", "--xattrs-include=*", "--sort=name"],
        ),
        // For each file. Only GNU tar accepts it once for all (`uid=77`), in a global header.
        ("posix", &["--pax-option=uid:=77"]),
    ] {
        let what = format!("{format} {}", options.join(" "));
        let layer = scratch.join(format!("{}.tar", what.replace(['*', ' ', '='], "_")));
        // The old formats can't hold everything; tar says so, leaves it out, and ends with a
        // failure.
        let output = Command::new("tar")
            .args(["--create", "--numeric-owner", "--format", format])
            .args(options)
            .arg("--file")
            .arg(&layer)
            .arg("--directory")
            .arg(&tree)
            .arg(".")
            .output()
            .unwrap();
        let can_hold_all = matches!(format, "oldgnu" | "gnu" | "posix");
        assert!(
            output.status.success() || !can_hold_all,
            "{what}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        check(&scratch, &layer, &what);
        if options.contains(&"--xattrs") {
            let ours = Tree::read(&scratch.join(format!(
                "{}.ours",
                layer.file_name().unwrap().to_string_lossy()
            )));
            let ignore = Ignore {
                root: true,
                ..Ignore::default()
            };
            // GNU tar's best format keeps everything.
            Tree::read(&tree)
                .unwrap()
                .assert_same(&ours.unwrap(), ignore);
        }
    }
}

#[test]
fn python_in_every_format() {
    if !needs_root("apply as root") {
        return;
    }
    let scratch = Scratch::new();
    let tree = scratch.dir("tree");
    furnish(&tree);
    let script = r"
import sys, tarfile
root, out = sys.argv[1:]
for name in ('USTAR', 'GNU', 'PAX'):
    format = getattr(tarfile, name + '_FORMAT')
    with tarfile.open(f'{out}/{name}.tar', 'w', format=format, errors='surrogateescape') as tar:
        def keep(info):
            try:
                info.tobuf(format, 'utf-8', 'surrogateescape')
            except (ValueError, UnicodeError):
                return None
            return info
        tar.add(root, arcname='.', filter=keep)
";
    python(script, &[&tree, scratch.path()]);
    for format in ["USTAR", "GNU", "PAX"] {
        check(&scratch, &scratch.join(format!("{format}.tar")), format);
    }
}

#[test]
fn bsdtar_in_every_format() {
    if !needs_root("apply as root") {
        return;
    }
    if !installed("bsdtar") {
        untested("bsdtar's archives", "bsdtar is not installed");
        return;
    }
    let scratch = Scratch::new();
    let tree = scratch.dir("tree");
    furnish(&tree);
    for format in ["ustar", "gnutar", "pax", "v7"] {
        let layer = scratch.join(format!("{format}.tar"));
        let output = Command::new("bsdtar")
            .args([
                "--create",
                "--numeric-owner",
                "--no-acls",
                "--format",
                format,
                "--file",
            ])
            .arg(&layer)
            .arg("-C")
            .arg(&tree)
            .arg(".")
            .output()
            .unwrap();
        assert!(
            output.status.success() || format != "pax",
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        check(&scratch, &layer, format);
    }
}

#[test]
fn compressed_layers_are_the_same_layers() {
    if !needs_root("apply as root") {
        return;
    }
    let scratch = Scratch::new();
    let tree = scratch.dir("tree");
    furnish(&tree);
    let layer = scratch.join("layer.tar");
    run(Command::new("tar")
        .args(["--create", "--format=posix", "--file"])
        .arg(&layer)
        .arg("--directory")
        .arg(&tree)
        .arg("."));
    let (plain, recipe) = apply_to(&layer, &scratch.dir("plain"), OVERLAY);
    for (program, suffix) in [
        ("gzip", "gz"),
        ("zstd", "zst"),
        ("bzip2", "bz2"),
        ("xz", "xz"),
    ] {
        if !installed(program) {
            untested(
                "blobs of other compressors",
                format!("{program} is not installed"),
            );
            continue;
        }
        run(Command::new(program)
            .args(["--keep", "--force"])
            .arg(&layer));
        let blob = scratch.join(format!("layer.tar.{suffix}"));
        let (applied, again) = apply_to(&blob, &scratch.dir(program), OVERLAY);
        assert_eq!(applied.blob.diff_id, plain.blob.diff_id);
        assert_ne!(applied.blob.blob_digest, plain.blob.blob_digest);
        assert_eq!(again, recipe);
        assert_comes_back(&layer, &scratch.join(program), &again);
    }
}
