//! A layer applied next to a tree that has the same files already: blocks are shared where the file
//! system can, and the content comes from the archive alone.

use std::fs;
use std::io::Cursor;
use std::os::unix::fs::symlink;
use std::path::Path;

use vellum_format::Digest;
use vellum_image::recipe::replay;
use vellum_image::{
    ApplyTarget, Cancel, LayerStream, LayerWriter, Limits, Privilege, TarEntry, TarKind,
    TargetMarks, apply,
};
use vellum_sys::{Dir, Timespec};
use vellum_testkit::{FsKind, Rng, Scratch, is_root, untested};

/// Large enough that a file system's own changes are small in comparison.
const LARGE: usize = 24 << 20;

fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = LayerWriter::new(Vec::new());
    for (path, content) in files {
        let entry = TarEntry {
            path: path.into(),
            kind: TarKind::File {
                size_bytes: content.len() as u64,
            },
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: Timespec::new(1_600_000_000, 0),
            xattrs: Vec::new(),
        };
        writer.append(&entry, &mut &content[..]).unwrap();
    }
    writer.finish().unwrap()
}

fn applied(tar: &[u8], tree: &Path, donor: Option<&Path>) {
    fs::create_dir(tree).unwrap();
    let target = ApplyTarget {
        root: Dir::open(tree).unwrap(),
        marks: TargetMarks::Plain,
        privilege: Privilege::Full,
        donor: donor.map(|donor| Dir::open(donor).unwrap()),
    };
    let (limits, cancel) = (Limits::default(), Cancel::new());
    let mut recipe = Vec::new();
    let stream = LayerStream::open(Box::new(Cursor::new(tar.to_vec())), &limits, &cancel).unwrap();
    let applied = apply(stream, &target, Some(&mut recipe), &limits, &cancel).unwrap();
    assert_eq!(applied.blob.diff_id, Digest::of(tar));
    let mut again = Vec::new();
    replay(&mut Cursor::new(recipe), &target.root, &mut again, &cancel).unwrap();
    assert!(again == tar, "the layer comes back changed");
}

/// The free bytes on the file system of `at`, once everything is written.
fn free(at: &Path) -> u64 {
    rustix::fs::syncfs(fs::File::open(at).unwrap()).unwrap();
    let found = rustix::fs::statvfs(at).unwrap();
    found.f_bfree * found.f_frsize
}

fn random(rng: &mut Rng, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend(rng.next().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

#[test]
fn equal_files_share_their_blocks_where_the_file_system_can() {
    if !is_root() {
        return untested("shared blocks", "making a file system needs root");
    }
    let scratch = Scratch::new();
    let mut rng = Rng::for_test("equal_files_share_their_blocks");
    let large = random(&mut rng, LARGE);
    for kind in [FsKind::Xfs, FsKind::Btrfs, FsKind::Tmpfs] {
        let at = match scratch.file_system(format!("{kind:?}"), kind, 300) {
            Ok(at) => at,
            Err(why) => {
                untested(&format!("shared blocks on {kind:?}"), &why);
                continue;
            }
        };
        let donor = at.join("donor");
        fs::create_dir(&donor).unwrap();
        fs::write(donor.join("large"), &large).unwrap();
        fs::write(donor.join("small"), "small").unwrap();
        let tar = tar(&[("large", &large), ("small", b"small"), ("sub/more", b"x")]);
        let before = free(&at);
        applied(&tar, &at.join("tree"), Some(&donor));
        let taken = before.saturating_sub(free(&at));
        match kind {
            FsKind::Tmpfs => assert!(taken >= LARGE as u64, "{taken} bytes"),
            _ => assert!(taken < LARGE as u64 / 4, "{kind:?}: {taken} bytes"),
        }
        // From the first write on, each has its own.
        fs::write(donor.join("large"), "changed").unwrap();
        assert!(fs::read(at.join("tree/large")).unwrap() == large);
    }
}

#[test]
fn a_wrong_donor_gives_nothing_but_its_blocks() {
    let scratch = Scratch::new();
    let at = match is_root() {
        true => scratch.file_system("fs", FsKind::Xfs, 300).ok(),
        false => None,
    };
    let at = at.unwrap_or_else(|| {
        untested("donors that lie", "no file system that shares blocks");
        scratch.dir("plain")
    });
    let mut rng = Rng::for_test("a_donor_that_lies");
    let true_one = random(&mut rng, 1 << 20);
    let donor = at.join("donor");
    fs::create_dir(&donor).unwrap();
    let mut lie = true_one.clone();
    for place in [0, 1000, 500_000, (1 << 20) - 1] {
        lie[place] ^= 0xff;
    }
    fs::write(donor.join("changed"), &lie).unwrap();
    fs::write(donor.join("shorter"), &lie[..1000]).unwrap();
    fs::write(at.join("secret"), &lie).unwrap();
    symlink("../secret", donor.join("link")).unwrap();
    fs::create_dir(donor.join("directory")).unwrap();
    let names = ["changed", "directory", "link", "missing", "shorter"];
    let files: Vec<(&str, &[u8])> = names.iter().map(|name| (*name, &true_one[..])).collect();
    applied(&tar(&files), &at.join("tree"), Some(&donor));
    for name in names {
        assert!(
            fs::read(at.join("tree").join(name)).unwrap() == true_one,
            "{name}"
        );
    }
    assert!(fs::read(donor.join("changed")).unwrap() == lie);
}
