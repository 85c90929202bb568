//! An image with one of everything, and the ways in which its trees are damaged.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use vellum_image::{LayerWriter, TarEntry, TarKind};
use vellum_sys::{Dir, Timespec};
use vellum_testkit::Scratch;

use super::{World, archive};

/// Version 2 of a file's capabilities: cap_net_raw, permitted and effective.
pub const CAPABILITY: [u8; 20] = [
    1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

/// `user::rwx,user:1:rwx,group::r-x,mask::rwx,other::r-x`.
pub fn acl() -> Vec<u8> {
    let entries: [[u8; 8]; 5] = [
        [1, 0, 7, 0, 255, 255, 255, 255],
        [2, 0, 7, 0, 1, 0, 0, 0],
        [4, 0, 5, 0, 255, 255, 255, 255],
        [16, 0, 7, 0, 255, 255, 255, 255],
        [32, 0, 5, 0, 255, 255, 255, 255],
    ];
    [&2u32.to_le_bytes()[..], &entries.concat()].concat()
}

pub struct Tar(LayerWriter<Vec<u8>>);

impl Tar {
    pub fn new() -> Self {
        Self(LayerWriter::new(Vec::new()))
    }

    pub fn add(self, path: &str, kind: TarKind, mode: u32, content: &[u8]) -> Self {
        self.full(path, kind, (mode, 0, 0), &[], content)
    }

    pub fn full(
        mut self,
        path: &str,
        kind: TarKind,
        (mode, uid, gid): (u32, u32, u32),
        xattrs: &[(&str, &[u8])],
        mut content: &[u8],
    ) -> Self {
        let entry = TarEntry {
            path: path.into(),
            kind,
            mode,
            uid,
            gid,
            mtime: Timespec::new(1_600_000_000, 123_456_789),
            xattrs: xattrs
                .iter()
                .map(|(name, value)| ((*name).into(), value.to_vec()))
                .collect(),
        };
        self.0.append(&entry, &mut content).unwrap();
        self
    }

    pub fn dir(self, path: &str) -> Self {
        self.add(path, TarKind::Directory, 0o755, b"")
    }

    pub fn file(self, path: &str, mode: u32, content: &[u8]) -> Self {
        self.add(path, file_of(content), mode, content)
    }

    pub fn with(self, path: &str, mode: u32, xattrs: &[(&str, &[u8])], content: &[u8]) -> Self {
        self.full(path, file_of(content), (mode, 0, 0), xattrs, content)
    }

    pub fn link(self, path: &str, target: &str) -> Self {
        let target = target.into();
        self.add(path, TarKind::Symlink { target }, 0o777, b"")
    }

    pub fn whiteout(mut self, path: &str) -> Self {
        self.0.whiteout(Path::new(path)).unwrap();
        self
    }

    pub fn opaque(mut self, path: &str) -> Self {
        self.0.opaque(Path::new(path)).unwrap();
        self
    }

    pub fn done(self) -> Vec<u8> {
        self.0.finish().unwrap()
    }
}

pub fn file_of(content: &[u8]) -> TarKind {
    TarKind::File {
        size_bytes: content.len() as u64,
    }
}

/// An image of two layers with one of everything.
pub fn everything(scratch: &Scratch) -> PathBuf {
    let mut holes = vec![0; 1 << 20];
    holes[500_000] = 1;
    let deep = "deep/".repeat(40);
    let mut low = Tar::new()
        .with("acl", 0o775, &[("system.posix_acl_access", &acl())], b"a")
        .dir("d")
        .file("d/inner", 0o640, b"inner");
    for depth in 1..=40 {
        low = low.dir(&deep[..depth * 5 - 1]);
    }
    let low = low
        .file(&format!("{deep}file"), 0o644, b"far down")
        .file("empty", 0o644, b"")
        .dir("etc")
        .file("etc/keep", 0o644, b"keep")
        .file("etc/secret", 0o600, b"password")
        .add("fifo", TarKind::Fifo, 0o600, b"")
        .full("file", file_of(b"content"), (0o644, 5, 6), &[], b"content")
        .file("hard1", 0o644, b"linked")
        .add(
            "hard2",
            TarKind::HardLink {
                target: "hard1".into(),
            },
            0o644,
            b"",
        )
        .file("holes", 0o644, &holes)
        .link("link", "etc/keep")
        .add(
            "null",
            TarKind::Character { major: 1, minor: 3 },
            0o666,
            b"",
        )
        .dir("opq")
        .file("opq/old", 0o644, b"old")
        .with("ping", 0o755, &[("security.capability", &CAPABILITY)], b"p")
        .file("su", 0o4755, b"su")
        .file("tool", 0o755, b"tool")
        .file("twin", 0o644, b"linked")
        .with("xattr", 0o644, &[("user.kept", b"value")], b"x")
        .done();
    let top = Tar::new()
        .dir("etc")
        .file("etc/new", 0o644, b"new")
        .whiteout("etc/secret")
        .dir("opq")
        .opaque("opq")
        .file("opq/new", 0o644, b"new")
        .done();
    archive(scratch, "everything:1", &[low, top], json!({}))
}

/// Loads that image so that the store keeps the blobs of its layers, which only a layout has.
pub fn load_with_blobs(world: &World) -> PathBuf {
    let image = everything(&world.scratch);
    world.ok(&["load", "--input", image.to_str().unwrap()]);
    let layout = world.scratch.join("layout.tar");
    let to = layout.to_str().unwrap();
    world.ok(&["save", "everything:1", "--format", "oci-archive", "-o", to]);
    world.ok(&["rmi", "everything:1"]);
    world.ok(&["gc"]);
    world.ok(&["load", "--keep-blobs", "--input", to]);
    layout
}

/// Which tree a damage is done to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum In {
    /// That of the base layer.
    Low,
    /// That of the upper layer, if it holds only its own entries.
    Top,
    /// That of the upper layer, if it holds everything.
    Whole,
}

/// A damage: what it does, how it is undone, the paths that are found, and what is said about the
/// first.
pub type Damage = (
    In,
    &'static str,
    &'static str,
    &'static [&'static str],
    &'static str,
);

pub const DAMAGE: &[Damage] = &[
    (
        In::Low,
        "chmod 4755 tool",
        "chmod 755 tool",
        &["/tool"],
        "mode is 4755, should be 0755",
    ),
    (
        In::Low,
        "chmod 755 su",
        "chmod 4755 su",
        &["/su"],
        "mode is 0755, should be 4755",
    ),
    (
        In::Low,
        "chmod 777 etc",
        "chmod 755 etc",
        &["/etc"],
        "mode is 0777, should be 0755",
    ),
    (
        In::Low,
        "chmod 1755 d",
        "chmod 755 d",
        &["/d"],
        "mode is 1755",
    ),
    (
        In::Low,
        "chmod 700 .",
        "chmod 755 .",
        &["/"],
        "mode is 0700, should be 0755",
    ),
    (
        In::Low,
        "chmod 666 fifo",
        "chmod 600 fifo",
        &["/fifo"],
        "mode is 0666",
    ),
    (
        In::Low,
        "chmod 600 null",
        "chmod 666 null",
        &["/null"],
        "mode is 0600",
    ),
    (
        In::Low,
        "chmod 666 hard1",
        "chmod 644 hard1",
        &["/hard1", "/hard2"],
        "mode is 0666",
    ),
    (
        In::Low,
        "chown 1234 file",
        "chown 5 file",
        &["/file"],
        "owner is 1234, should be 5",
    ),
    (
        In::Low,
        "chgrp 77 file",
        "chgrp 6 file",
        &["/file"],
        "group is 77, should be 6",
    ),
    (
        In::Low,
        "chown -h 9 link",
        "chown -h 0 link",
        &["/link"],
        "owner is 9, should be 0",
    ),
    (
        In::Low,
        "chown 9:9 etc",
        "chown 0:0 etc",
        &["/etc"],
        "owner is 9, should be 0",
    ),
    (
        In::Low,
        "chown 9 .",
        "chown 0 .",
        &["/"],
        "owner is 9, should be 0",
    ),
    (
        In::Low,
        "chown 9 null",
        "chown 0 null",
        &["/null"],
        "owner is 9",
    ),
    (
        In::Low,
        "setfattr -n user.x -v y tool",
        "setfattr -x user.x tool",
        &["/tool"],
        "extended attribute user.x is 'y', should be absent",
    ),
    (
        In::Low,
        "setfattr -n user.kept -v other xattr",
        "setfattr -n user.kept -v value xattr",
        &["/xattr"],
        "user.kept is 'other', should be 'value'",
    ),
    (
        In::Low,
        "setfattr -x user.kept xattr",
        "setfattr -n user.kept -v value xattr",
        &["/xattr"],
        "user.kept is absent, should be 'value'",
    ),
    (
        In::Low,
        "setfattr -n trusted.x -v y d",
        "setfattr -x trusted.x d",
        &["/d"],
        "trusted.x is 'y'",
    ),
    (
        In::Low,
        "setfattr -n trusted.x -v y -h link",
        "setfattr -x trusted.x -h link",
        &["/link"],
        "trusted.x is 'y'",
    ),
    (
        In::Low,
        "setfattr -x security.capability ping",
        "setfattr -n security.capability -v 0x0100000200200000000000000000000000000000 ping",
        &["/ping"],
        "security.capability is absent, should be 0x01",
    ),
    (
        In::Low,
        "setfattr -n security.capability -v 0x0100000200200000000000000000000000000000 tool",
        "setfattr -x security.capability tool",
        &["/tool"],
        "security.capability is 0x01",
    ),
    (
        In::Low,
        "setfattr -n security.capability -v 0x01000002ffffffff000000000000000000000000 ping",
        "setfattr -n security.capability -v 0x0100000200200000000000000000000000000000 ping",
        &["/ping"],
        "security.capability is 0x01000002ff",
    ),
    (
        In::Low,
        "setfacl -b acl",
        "setfacl -m u:1:rwx,m::rwx acl",
        &["/acl"],
        "system.posix_acl_access is absent",
    ),
    (
        In::Low,
        "setfacl -m u:1:r twin",
        "setfacl -b twin",
        &["/twin"],
        "system.posix_acl_access is 0x",
    ),
    (
        In::Low,
        "setfacl -m u:1:r acl",
        "setfacl -m u:1:rwx,m::rwx acl",
        &["/acl"],
        "system.posix_acl_access is 0x",
    ),
    (
        In::Low,
        "setfacl -d -m u:1:rwx d",
        "setfacl -k d",
        &["/d"],
        "system.posix_acl_default is 0x",
    ),
    (
        In::Low,
        "setfattr -n trusted.overlay.opaque -v y d",
        "setfattr -x trusted.overlay.opaque d",
        &["/d"],
        "is opaque (it hides what lower layers have in it), should be not opaque",
    ),
    (
        In::Low,
        "setfattr -n trusted.overlay.redirect -v /etc d",
        "setfattr -x trusted.overlay.redirect d",
        &["/d"],
        "trusted.overlay.redirect is '/etc', should be absent",
    ),
    (
        In::Low,
        "setfattr -n trusted.overlay.metacopy tool",
        "setfattr -x trusted.overlay.metacopy tool",
        &["/tool"],
        "trusted.overlay.metacopy is",
    ),
    (
        In::Low,
        "touch -m -d @1 tool",
        "",
        &["/tool"],
        "modification time is 1970-01-01T00:00:01Z, should be 2020-09-13T12:26:40.123456789Z",
    ),
    (
        In::Low,
        "touch -m -d @1 d",
        "",
        &["/d"],
        "modification time is",
    ),
    (
        In::Low,
        "touch -h -m -d @1 link",
        "",
        &["/link"],
        "modification time is",
    ),
    (
        In::Low,
        "touch -m -d @1600000000.1 fifo",
        "",
        &["/fifo"],
        "modification time is",
    ),
    (
        In::Low,
        "ln -sfn /etc/shadow link",
        "ln -sfn etc/keep link",
        &["/link"],
        "leads to '/etc/shadow', should lead to 'etc/keep'",
    ),
    (
        In::Low,
        "rm link; cp -p tool link",
        "rm link; ln -s etc/keep link",
        &["/link"],
        "is a regular file, should be a symbolic link",
    ),
    (
        In::Low,
        "mv file $AWAY",
        "mv $AWAY/file .",
        &["/file"],
        "is missing, should be a regular file",
    ),
    (
        In::Low,
        "mv empty $AWAY",
        "mv $AWAY/empty .",
        &["/empty"],
        "is missing",
    ),
    (
        In::Low,
        "mv d $AWAY",
        "mv $AWAY/d .",
        &["/d"],
        "is missing, should be a directory",
    ),
    (
        In::Low,
        "mv file $AWAY; mkdir file",
        "rmdir file; mv $AWAY/file .",
        &["/file"],
        "is a directory, should be a regular file",
    ),
    (
        In::Low,
        "mv d $AWAY; ln -s etc d",
        "rm d; mv $AWAY/d .",
        &["/d"],
        "is a symbolic link, should be a directory",
    ),
    (
        In::Low,
        "mv file $AWAY; mkfifo file",
        "rm file; mv $AWAY/file .",
        &["/file"],
        "is a named pipe, should be a regular file",
    ),
    (
        In::Low,
        "mv file $AWAY; ln -s /etc/shadow file",
        "rm file; mv $AWAY/file .",
        &["/file"],
        "is a symbolic link, should be a regular file",
    ),
    (
        In::Low,
        "mv fifo $AWAY",
        "mv $AWAY/fifo .",
        &["/fifo"],
        "is missing, should be a named pipe",
    ),
    (
        In::Low,
        "mv null $AWAY; mknod -m 666 null c 1 5; touch -r $AWAY/null null",
        "mv $AWAY/null .",
        &["/null"],
        "device is 1:5, should be 1:3",
    ),
    (
        In::Low,
        "mv null $AWAY; mknod -m 666 null b 1 3; touch -r $AWAY/null null",
        "mv $AWAY/null .",
        &["/null"],
        "is a block device, should be a character device",
    ),
    (
        In::Low,
        "mv null $AWAY; mknod null c 0 0",
        "rm null; mv $AWAY/null .",
        &["/null"],
        "is a whiteout (it hides what lower layers have there), should be a character device",
    ),
    (
        In::Low,
        "cp -a hard2 $AWAY; mv $AWAY/hard2 .",
        "ln -f hard1 hard2",
        &["/hard2"],
        "is a file of its own, should be another name of 'hard1'",
    ),
    (
        In::Low,
        "ln -f hard1 twin",
        "cp -a hard1 $AWAY; mv $AWAY/hard1 twin",
        &["/twin"],
        "is another name of 'hard1', should be a file of its own",
    ),
    (
        In::Low,
        "printf X | dd of=file conv=notrunc; touch -d @1600000000.123456789 file",
        "printf c | dd of=file conv=notrunc",
        &["/file"],
        "its content differs",
    ),
    (
        In::Low,
        "printf X | dd of=hard2 conv=notrunc; touch -d @1600000000.123456789 hard1",
        "printf l | dd of=hard2 conv=notrunc",
        &["/hard1"],
        "its content differs",
    ),
    (
        In::Low,
        "printf X | dd of=holes conv=notrunc bs=1 seek=900000; touch -d @1600000000.123456789 holes",
        "printf '\\0' | dd of=holes conv=notrunc bs=1 seek=900000",
        &["/holes"],
        "its content differs",
    ),
    (
        In::Low,
        "cp -p file $AWAY; truncate -s 3 file; touch -r $AWAY/file file",
        "cat $AWAY/file > file",
        &["/file"],
        "size is 3, should be 7",
    ),
    (
        In::Low,
        "truncate -s 8 file; touch -d @1600000000.123456789 file",
        "truncate -s 7 file",
        &["/file"],
        "size is 8, should be 7",
    ),
    (
        In::Low,
        "echo x > empty; touch -d @1600000000.123456789 empty",
        ": > empty",
        &["/empty"],
        "size is 2, should be 0",
    ),
    (
        In::Low,
        "chmod 777 deep/deep/deep/deep/deep/deep/deep/deep/deep/deep/deep/deep/deep/deep/deep/deep/deep/deep/deep/deep",
        "chmod 755 deep/deep/deep/deep/deep/deep/deep/deep/deep/deep/deep/deep/deep/deep/deep/deep/deep/deep/deep/deep",
        &[
            "/deep/deep/deep/deep/deep/deep/deep/deep/deep/deep/deep/deep/deep/deep/deep/deep/deep/deep/deep/deep",
        ],
        "mode is 0777",
    ),
    (
        In::Low,
        "echo '#!/bin/sh' > d/extra",
        "rm d/extra",
        &["/d/extra"],
        "is a regular file that the layer does not list",
    ),
    (
        In::Low,
        "cp -p su d/extra",
        "rm d/extra",
        &["/d/extra"],
        "is a regular file that the layer does not list",
    ),
    (
        In::Low,
        "ln su extra",
        "rm extra",
        &["/extra"],
        "is a regular file that the layer does not list",
    ),
    (
        In::Low,
        "mkdir d/more; touch d/more/x",
        "rm -r d/more",
        &["/d/more"],
        "is a directory that the layer does not list",
    ),
    (
        In::Low,
        "ln -s / d/out",
        "rm d/out",
        &["/d/out"],
        "is a symbolic link that the layer does not list",
    ),
    (
        In::Low,
        "mkfifo d/pipe",
        "rm d/pipe",
        &["/d/pipe"],
        "is a named pipe that the layer does not list",
    ),
    (
        In::Low,
        "mknod d/mem c 1 1",
        "rm d/mem",
        &["/d/mem"],
        "is a character device that the layer does not list",
    ),
    (
        In::Low,
        "mknod d/gone c 0 0",
        "rm d/gone",
        &["/d/gone"],
        "is a whiteout (it hides what lower layers have there) that the layer does not list",
    ),
    (
        In::Low,
        "mv tool tool2",
        "mv tool2 tool",
        &["/tool", "/tool2"],
        "is missing",
    ),
    (
        In::Low,
        "mv tool $AWAY; mv twin tool; mv $AWAY/tool twin",
        "mv tool $AWAY; mv twin tool; mv $AWAY/tool twin",
        &["/tool", "/twin"],
        "mode is 0644",
    ),
    (
        In::Top,
        "rm etc/secret",
        "mknod -m 0 etc/secret c 0 0",
        &["/etc/secret"],
        "is missing, should be a whiteout",
    ),
    (
        In::Top,
        "rm etc/secret; echo x > etc/secret",
        "rm etc/secret; mknod -m 0 etc/secret c 0 0",
        &["/etc/secret"],
        "is a regular file, should be a whiteout",
    ),
    (
        In::Top,
        "mv etc/secret etc/other",
        "mv etc/other etc/secret",
        &["/etc/other", "/etc/secret"],
        "is a whiteout",
    ),
    (
        In::Top,
        "setfattr -x trusted.overlay.opaque opq",
        "setfattr -n trusted.overlay.opaque -v y opq",
        &["/opq"],
        "is not opaque, should be opaque (it hides what lower layers have in it)",
    ),
    (
        In::Top,
        "setfattr -n trusted.overlay.opaque -v x opq",
        "setfattr -n trusted.overlay.opaque -v y opq",
        &["/opq"],
        "is marked as opaque with the value 'x', should be opaque",
    ),
    (
        In::Top,
        "setfattr -n trusted.overlay.opaque -v y etc",
        "setfattr -x trusted.overlay.opaque etc",
        &["/etc"],
        "is opaque",
    ),
    (
        In::Top,
        "mknod etc/keep c 0 0",
        "rm etc/keep",
        &["/etc/keep"],
        "is a whiteout",
    ),
    (
        In::Top,
        "chmod 4755 etc/new",
        "chmod 644 etc/new",
        &["/etc/new"],
        "mode is 4755",
    ),
    (
        In::Top,
        "chmod 700 .",
        "chmod 755 .",
        &["/"],
        "mode is 0700",
    ),
    (
        In::Whole,
        "echo password > etc/secret",
        "rm etc/secret",
        &["/etc/secret"],
        "is a regular file that the layer does not list",
    ),
    (
        In::Whole,
        "echo old > opq/old",
        "rm opq/old",
        &["/opq/old"],
        "is a regular file that the layer does not list",
    ),
    (
        In::Whole,
        "cp -p file $AWAY; mv file $AWAY/kept; mv $AWAY/file .; printf X | dd of=file conv=notrunc; touch -r $AWAY/kept file",
        "rm file; mv $AWAY/kept file",
        &["/file"],
        "its content differs",
    ),
    (
        In::Whole,
        "mv tool $AWAY",
        "mv $AWAY/tool .",
        &["/tool"],
        "is missing",
    ),
    (
        In::Whole,
        "chmod 4755 etc/new",
        "chmod 644 etc/new",
        &["/etc/new"],
        "mode is 4755",
    ),
];

/// What no reader of the layer can tell.
pub const HARMLESS: &[&str] = &[
    "touch -a tool d link fifo",
    "find . -type f -exec cat {} + > $AWAY/all; ls -lR > $AWAY/list",
    "chmod 4755 su; chown 0 su; chmod 4755 su",
    "cp -a --sparse=never holes $AWAY; mv $AWAY/holes .",
    "cp -a --sparse=always holes $AWAY; mv $AWAY/holes .",
    "cp -a tool $AWAY; mv $AWAY/tool .",
    "mv d $AWAY; mv $AWAY/d .",
    "for n in $(seq 500); do : > d/a-long-name-that-makes-directories-grow-$n; done; rm d/a-long-name-*",
];

/// Runs a script in a tree.
#[track_caller]
pub fn script(world: &World, tree: &Path, script: &str) {
    let away = world.scratch.dir("away");
    let done = Command::new("sh")
        .args(["-ec", script])
        .current_dir(tree)
        .env("AWAY", &away)
        .output()
        .unwrap();
    assert!(done.status.success(), "{script}: {done:?}");
}

/// The modification times in a tree.
pub struct Times(Vec<(PathBuf, Timespec, bool)>);

impl Times {
    pub fn of(tree: &Path) -> Self {
        let mut found = Vec::new();
        let mut waiting = vec![tree.to_owned()];
        while let Some(path) = waiting.pop() {
            let meta = fs::symlink_metadata(&path).unwrap();
            if meta.is_dir() {
                let inside = fs::read_dir(&path).unwrap();
                waiting.extend(inside.map(|entry| entry.unwrap().path()));
            }
            let time = Timespec::new(meta.mtime(), meta.mtime_nsec() as u32);
            found.push((path, time, meta.is_dir()));
        }
        Self(found)
    }

    /// Restores those of directories, or all, to hide a change.
    pub fn restore(&self, all: bool) {
        for (path, time, is_dir) in &self.0 {
            let now = fs::symlink_metadata(path);
            if (all || *is_dir) && now.is_ok_and(|now| now.is_dir() == *is_dir) {
                let dir = Dir::open(path.parent().unwrap()).unwrap();
                dir.set_times(path.file_name().unwrap(), None, Some(*time))
                    .unwrap();
            }
        }
    }
}

pub fn trees(root: &Path, driver: &str) -> Vec<PathBuf> {
    let inner = match driver {
        "overlay2" => "diff",
        _ => "root",
    };
    let all = fs::read_dir(root.join(driver)).unwrap();
    all.map(|entry| entry.unwrap().path().join(inner))
        .filter(|path| path.exists())
        .collect()
}

/// Returns the trees of the lower and of the upper layer.
pub fn low_and_top(root: &Path, driver: &str) -> (PathBuf, PathBuf) {
    let (low, top): (Vec<_>, Vec<_>) = trees(root, driver).into_iter().partition(|tree| {
        fs::symlink_metadata(tree.join("etc/secret")).is_ok_and(|meta| meta.is_file())
    });
    assert_eq!((low.len(), top.len()), (1, 1));
    (low[0].clone(), top[0].clone())
}
