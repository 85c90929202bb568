//! What is in each cell's directories before the copy, and the sources that all share.

use std::ffi::OsString;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use vellum_image::{LayerWriter, TarEntry, TarKind};
use vellum_sys::xattr::{self, SetMode};
use vellum_sys::{Dir, Timespec};

/// `cap_net_raw+ep`
pub const CAPABILITY: &[u8] = &[
    1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

/// Returns the directory of the cell `at` in the container.
pub fn here(at: usize) -> PathBuf {
    format!("c{at:04}").into()
}

/// One object of a cell's directory in the container.
struct Object {
    path: &'static str,
    kind: TarKind,
    mode: u32,
    owner: (u32, u32),
    data: &'static [u8],
}

/// Returns the layer of an image with `cells` directories.
pub fn image(cells: usize) -> Vec<u8> {
    let mut layer = LayerWriter::new(Vec::new());
    for at in 0..cells {
        let here = here(at);
        append(&mut layer, &here, TarKind::Directory, 0o755, (0, 0), b"");
        let mut objects = objects(&here);
        objects.sort_by_key(|object| Path::new(object.path));
        for object in objects {
            let path = here.join(object.path);
            append(
                &mut layer,
                &path,
                object.kind,
                object.mode,
                object.owner,
                object.data,
            );
        }
    }
    layer.finish().unwrap()
}

fn append(
    layer: &mut LayerWriter<Vec<u8>>,
    path: &Path,
    kind: TarKind,
    mode: u32,
    (uid, gid): (u32, u32),
    mut data: &[u8],
) {
    let capable = path.file_name().is_some_and(|name| name == "cap");
    let entry = TarEntry {
        path: path.to_owned(),
        kind,
        mode,
        uid,
        gid,
        mtime: Timespec::new(1_500_000_000, 0),
        xattrs: match capable {
            true => vec![("security.capability".into(), CAPABILITY.to_vec())],
            false => Vec::new(),
        },
    };
    layer.append(&entry, &mut data).unwrap();
}

fn objects(here: &Path) -> Vec<Object> {
    let object = |path, kind, mode, owner, data| Object {
        path,
        kind,
        mode,
        owner,
        data,
    };
    let dir = |path, mode, owner| object(path, TarKind::Directory, mode, owner, b"");
    let file = |path, mode, owner, data: &'static [u8]| {
        let size_bytes = data.len() as u64;
        object(path, TarKind::File { size_bytes }, mode, owner, data)
    };
    let link = |path, target: &str| {
        let target = OsString::from(target);
        object(path, TarKind::Symlink { target }, 0o777, (0, 0), b"")
    };
    let inside = |path: &str| here.join(path).display().to_string();
    let climbing = format!("{}{}", "../".repeat(9), inside("dir"));
    vec![
        dir("dir", 0o750, (7, 8)),
        file("dir/old", 0o640, (7, 8), b"old"),
        dir("dir/taken-dir", 0o700, (5, 6)),
        file("dir/taken-dir/inner", 0o600, (5, 6), b"inner"),
        file("dir/taken-file", 0o600, (5, 6), b"taken"),
        link("dir/taken-link", "taken-dir"),
        link("dir/taken-file-link", "taken-file"),
        link("dir/taken-dangling", "nothing"),
        file("dir/twin-a", 0o644, (0, 0), b"twin"),
        object(
            "dir/twin-b",
            TarKind::HardLink {
                target: here.join("dir/twin-a"),
            },
            0o644,
            (0, 0),
            b"",
        ),
        dir("empty", 0o711, (0, 0)),
        dir("sticky", 0o1777, (0, 0)),
        dir("set-gid", 0o2775, (3, 4)),
        file("file", 0o644, (0, 0), b"file"),
        link("link-file", "file"),
        link("link-dir", "dir"),
        link("link-link", "link-dir"),
        link("absolute", &format!("/{}", inside("dir"))),
        link("climbing", &climbing),
        link("dangling", "absent"),
        link("deep-dangling", "absent/deep"),
        link("loop", "loop"),
        object("fifo", TarKind::Fifo, 0o600, (0, 0), b""),
        object(
            "null",
            TarKind::Character { major: 1, minor: 3 },
            0o666,
            (0, 0),
            b"",
        ),
        dir("out", 0o750, (33, 44)),
        file("out/a", 0o600, (1, 2), b"a"),
        file("out/cap", 0o755, (0, 0), b"cap"),
        link("out/link", "a"),
        file("out/one", 0o644, (0, 0), b"one"),
        object("out/fifo", TarKind::Fifo, 0o600, (1, 2), b""),
        object(
            "out/null",
            TarKind::Character { major: 1, minor: 5 },
            0o600,
            (1, 2),
            b"",
        ),
        dir("out/sub", 0o555, (0, 0)),
        file("out/sub/b", 0o444, (0, 0), b"b"),
        object(
            "out/sub/two",
            TarKind::HardLink {
                target: here.join("out/one"),
            },
            0o644,
            (0, 0),
            b"",
        ),
        dir("ups", 0o755, (0, 0)),
        link("ups/up", "../../../etc/passwd"),
        file("set-uid", 0o4755, (1234, 55), b"s"),
        file("set-uid-root", 0o6755, (0, 0), b"s"),
    ]
}

/// Fills the sources' directory.
pub fn sources(at: &Path) {
    for (path, data) in [
        ("file", "new"),
        ("empty", ""),
        ("cap", "cap"),
        ("set-uid", "s"),
        ("owned", "1234:55"),
        ("attribute", "user.a"),
        ("tree/a", "a"),
        ("tree/one", "one"),
        ("tree/sub/b", "b"),
        ("tree/.wh.x", "a name"),
        ("tree/.wh..wh..opq", "a name"),
        ("f/taken-dir", "file"),
        ("f/taken-file", "file"),
        ("f/taken-link", "file"),
        ("f/taken-file-link", "file"),
        ("f/taken-dangling", "file"),
        ("f/twin-a", "new"),
        ("d/taken-dir/inner", "new"),
        ("d/taken-dir/more", "more"),
        ("d/taken-file/x", "x"),
        ("d/taken-link/x", "x"),
        ("d/taken-dangling/x", "x"),
        ("mixed/a", "a"),
        ("mixed/taken-dir", "file"),
        ("mixed/z", "z"),
        ("mixed-dir/a", "a"),
        ("mixed-dir/taken-file/x", "x"),
        ("mixed-dir/z", "z"),
        (".wh.file", "a name"),
    ] {
        let path = at.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, data).unwrap();
    }
    std::fs::create_dir(at.join("none")).unwrap();
    std::fs::hard_link(at.join("tree/one"), at.join("tree/sub/two")).unwrap();
    for (path, target) in [
        ("tree/link", "a"),
        ("tree/absolute", "/etc/passwd"),
        ("link-file", "file"),
        ("link-tree", "tree"),
        ("dangling", "nothing"),
        ("l/taken-dir", "nothing"),
        ("l/taken-file", "nothing"),
        ("l/taken-link", "nothing"),
    ] {
        let path = at.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
    }
    drop(UnixListener::bind(at.join("socket")).unwrap());
    let run = |program: &str, args: &[&str]| {
        let mut command = Command::new(program);
        command.current_dir(at).args(args);
        assert!(command.status().unwrap().success(), "{program} {args:?}");
    };
    run("mkfifo", &["fifo", "tree/fifo"]);
    run("mknod", &["null", "c", "1", "3"]);
    for (path, mode, owner) in [
        ("cap", 0o755, 0),
        ("owned", 0o640, 1234),
        ("set-uid", 0o4711, 1234),
        ("tree/sub", 0o700, 33),
        ("tree", 0o750, 33),
        ("none", 0o700, 9),
        ("d/taken-dir", 0o705, 9),
        ("fifo", 0o620, 9),
    ] {
        let path = at.join(path);
        chown(&path, Some(owner), Some(owner / 2)).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let dir = Dir::open(at).unwrap();
    for (name, attr, value) in [
        ("cap", "security.capability", CAPABILITY),
        ("attribute", "user.a", b"b"),
    ] {
        xattr::set(&dir, name.as_ref(), attr.as_ref(), value, SetMode::Any).unwrap();
    }
    // All have the same time, long ago.
    run(
        "find",
        &[".", "-exec", "touch", "-h", "-d", "2015-05-05", "{}", "+"],
    );
}

/// Fills a cell's directory on the host.
pub fn host(at: &Path) {
    let file = |path: &str, data: &str| std::fs::write(at.join(path), data).unwrap();
    for dir in ["dir/out", "dir/full/a", "empty"] {
        std::fs::create_dir_all(at.join(dir)).unwrap();
    }
    file("dir/old", "old");
    file("dir/out/a", "old");
    file("dir/file", "old");
    file("file", "old");
    for (path, target) in [
        ("link-file", "file"),
        ("link-dir", "dir"),
        ("dangling", "absent"),
        ("deep-dangling", "absent/deep"),
        ("dir/set-uid", "nothing"),
    ] {
        symlink(target, at.join(path)).unwrap();
    }
    std::fs::set_permissions(at.join("dir"), std::fs::Permissions::from_mode(0o711)).unwrap();
}
