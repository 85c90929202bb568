//! A machine that stops right after a directory was synced: what its names lead to, whatever order
//! the file system keeps.
//!
//! Each change happens in its own directory, through a union, and then only that directory is
//! synced. What the disk holds at that moment is mounted again, with a union on it: it shows the
//! state before the change or after it, never something between. File systems that keep no order
//! (btrfs) log the names of a synced directory with little of what they lead to.

mod support;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{AtFlags, CWD, Gid, RenameFlags, Uid, XattrFlags};
use support::*;
use vellum_testkit::tree::{Kind, Tree};
use vellum_testkit::{FsKind, Scratch, needs_root, untested};

/// What a disk may show of a change once its directory is synced.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shows {
    /// The state before, or after.
    OldOrNew,
    /// The state after: only names matter.
    New,
    /// As `OldOrNew`, but what was written was not synced: a file may have any part of it after the
    /// first bytes, which it had before.
    Begins(usize),
}

type Change = fn(&Path) -> std::io::Result<()>;

/// Every change, with the directory it happens in.
const CHANGES: &[(&str, Shows, Change)] = &[
    ("chmod", Shows::OldOrNew, |d| chmod(&d.join("file"), 0o600)),
    ("chown", Shows::OldOrNew, |d| chown(&d.join("file"))),
    ("utimes", Shows::OldOrNew, |d| {
        let times = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH);
        File::open(d.join("file"))?.set_times(times)
    }),
    ("setxattr", Shows::OldOrNew, |d| {
        set(&d.join("file"), "user.b")
    }),
    ("removexattr", Shows::OldOrNew, |d| {
        Ok(rustix::fs::removexattr(d.join("file"), "user.a")?)
    }),
    ("empty", Shows::Begins(0), |d| cut(&d.join("file"), 0)),
    ("chmod of a small file", Shows::OldOrNew, |d| {
        chmod(&d.join("small"), 0o600)
    }),
    ("append to a small file", Shows::Begins(SMALL_BYTES), |d| {
        let mut file = OpenOptions::new().append(true).open(d.join("small"))?;
        file.write_all(b"appended")
    }),
    ("rename of a small file", Shows::New, |d| {
        fs::rename(d.join("small"), d.join("new"))
    }),
    ("chmod, then empty", Shows::Begins(0), |d| {
        chmod(&d.join("file"), 0o600)?;
        cut(&d.join("file"), 0)?;
        fs::hard_link(d.join("file"), d.join("new"))
    }),
    ("cut", Shows::Begins(10_000), |d| {
        cut(&d.join("file"), 10_000)
    }),
    ("append", Shows::Begins(BYTES), |d| {
        let mut file = OpenOptions::new().append(true).open(d.join("file"))?;
        file.write_all(b"appended")
    }),
    ("write, then link", Shows::Begins(BYTES), |d| {
        let file = OpenOptions::new().write(true).open(d.join("file"))?;
        file.write_all_at(b"appended", 20_000)?;
        fs::hard_link(d.join("file"), d.join("new"))
    }),
    ("link", Shows::New, |d| {
        fs::hard_link(d.join("file"), d.join("new"))
    }),
    ("rename", Shows::New, |d| {
        fs::rename(d.join("file"), d.join("new"))
    }),
    ("chmod, then rename", Shows::New, |d| {
        chmod(&d.join("file"), 0o600)?;
        fs::rename(d.join("file"), d.join("new"))
    }),
    ("rename to another directory", Shows::New, |d| {
        fs::rename(d.join("file"), d.join("sub/new"))
    }),
    ("rename over", Shows::New, |d| {
        fs::rename(d.join("file"), d.join("other"))
    }),
    ("exchange", Shows::New, |d| {
        exchange(&d.join("file"), &d.join("other"))
    }),
    ("unlink", Shows::New, |d| fs::remove_file(d.join("file"))),
    ("chmod of a hard link", Shows::OldOrNew, |d| {
        chmod(&d.join("hard1"), 0o600)
    }),
    ("rename of a hard link", Shows::New, |d| {
        fs::rename(d.join("hard1"), d.join("hard3"))
    }),
    ("one more hard link", Shows::New, |d| {
        fs::hard_link(d.join("hard1"), d.join("hard3"))
    }),
    ("one hard link less", Shows::New, |d| {
        fs::remove_file(d.join("hard1"))
    }),
    ("write to a hard link", Shows::OldOrNew, |d| {
        let file = OpenOptions::new().write(true).open(d.join("hard2"))?;
        file.write_all_at(b"new", 0)?;
        file.sync_all()
    }),
    ("chmod of a directory", Shows::OldOrNew, |d| {
        chmod(&d.join("sub"), 0o700)
    }),
    ("setxattr of a directory", Shows::OldOrNew, |d| {
        set(&d.join("sub"), "user.b")
    }),
    ("rename of a directory", Shows::New, |d| {
        fs::rename(d.join("sub"), d.join("new"))
    }),
    ("exchange of directories", Shows::New, |d| {
        exchange(&d.join("sub"), &d.join("sub2"))
    }),
    ("a directory made again", Shows::New, |d| {
        fs::remove_dir_all(d.join("sub"))?;
        fs::create_dir(d.join("sub"))
    }),
    ("a directory moved where one was", Shows::New, |d| {
        fs::create_dir(d.join("fresh"))?;
        fs::remove_dir_all(d.join("sub"))?;
        fs::rename(d.join("fresh"), d.join("sub"))
    }),
    ("a directory replaced by an empty one", Shows::New, |d| {
        fs::remove_file(d.join("sub/inner"))?;
        fs::create_dir(d.join("fresh"))?;
        fs::rename(d.join("fresh"), d.join("sub"))
    }),
    ("chown of a symbolic link", Shows::OldOrNew, |d| {
        chown(&d.join("symlink"))
    }),
    ("rename of a symbolic link", Shows::New, |d| {
        fs::rename(d.join("symlink"), d.join("new"))
    }),
    ("chmod of a pipe", Shows::OldOrNew, |d| {
        chmod(&d.join("pipe"), 0o600)
    }),
    ("link of a pipe", Shows::New, |d| {
        fs::hard_link(d.join("pipe"), d.join("new"))
    }),
];

fn chmod(path: &Path, mode: u32) -> std::io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn chown(path: &Path) -> std::io::Result<()> {
    let (uid, gid) = (Some(Uid::from_raw(5)), Some(Gid::from_raw(6)));
    Ok(rustix::fs::chownat(
        CWD,
        path,
        uid,
        gid,
        AtFlags::SYMLINK_NOFOLLOW,
    )?)
}

fn set(path: &Path, name: &str) -> std::io::Result<()> {
    Ok(rustix::fs::lsetxattr(
        path,
        name,
        b"value",
        XattrFlags::empty(),
    )?)
}

fn cut(path: &Path, size_bytes: u64) -> std::io::Result<()> {
    OpenOptions::new()
        .write(true)
        .open(path)?
        .set_len(size_bytes)
}

fn exchange(one: &Path, other: &Path) -> std::io::Result<()> {
    Ok(rustix::fs::renameat_with(
        CWD,
        one,
        CWD,
        other,
        RenameFlags::EXCHANGE,
    )?)
}

/// Large enough for extents of its own on every file system.
const BYTES: usize = 20_000;
/// btrfs keeps this in the inode's own leaf.
const SMALL_BYTES: usize = 100;

fn content(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at * 31) as u8 | 1).collect()
}

/// An ACL that lets user 7 read what the mode alone lets the group read.
const ACL: &[u8] = b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x02\0\x04\0\x07\0\0\0\x04\0\0\0\xff\xff\xff\xff\x10\0\x04\0\xff\xff\xff\xff\x20\0\0\0\xff\xff\xff\xff";

/// Fills a directory of the lower layer.
fn fill(dir: &Path) {
    let acl = |path: &Path| {
        rustix::fs::setxattr(path, "system.posix_acl_access", ACL, XattrFlags::empty()).unwrap();
    };
    fs::create_dir_all(dir).unwrap();
    for name in ["file", "small", "other", "hard1"] {
        let bytes = if name == "small" { SMALL_BYTES } else { BYTES };
        fs::write(dir.join(name), content(bytes)).unwrap();
        set(&dir.join(name), "user.a").unwrap();
        acl(&dir.join(name));
    }
    fs::hard_link(dir.join("hard1"), dir.join("hard2")).unwrap();
    for name in ["sub", "sub2"] {
        fs::create_dir(dir.join(name)).unwrap();
        fs::write(dir.join(name).join("inner"), name).unwrap();
        set(&dir.join(name), "user.a").unwrap();
        acl(&dir.join(name));
    }
    symlink("nowhere", dir.join("symlink")).unwrap();
    rustix::fs::mknodat(
        CWD,
        dir.join("pipe"),
        rustix::fs::FileType::Fifo,
        0o640.into(),
        0,
    )
    .unwrap();
}

/// Reads a directory through the union, with only what is compared.
fn look(dir: &Path) -> Tree {
    let mut tree = Tree::read(dir).unwrap();
    tree.entries.remove(Path::new(""));
    tree
}

/// Returns what is wrong with what a disk shows.
fn wrong(shows: Shows, old: &Tree, new: &Tree, found: &Tree) -> Option<String> {
    let ignore = vellum_testkit::tree::Ignore {
        directory_mtimes: true,
        mtimes: matches!(shows, Shows::Begins(_)),
        ..Default::default()
    };
    let differs = |tree: &Tree| {
        let all = found.differences(tree, ignore);
        let written = |path: &Path| {
            let names = ["file", "small", "new"].map(Path::new);
            matches!(shows, Shows::Begins(_)) && names.contains(&path)
        };
        let all = all.into_iter().filter(|difference| {
            !(written(&difference.path) && ["size", "content"].contains(&difference.what.as_str()))
        });
        let mut list: Vec<_> = all.map(|difference| difference.to_string()).collect();
        for (path, entry) in &found.entries {
            let number = |tree: &Tree| tree.entries.get(path).map(|entry| entry.identity.1);
            // Links, pipes and devices can't be synced; their number may differ
            // (docs/semantics/mounts.md).
            let kept = matches!(entry.kind, Kind::File | Kind::Directory);
            if kept && number(tree).is_some_and(|number| number != entry.identity.1) {
                list.push(format!("{}: another inode number", path.display()));
            }
        }
        list
    };
    let from_new = differs(new);
    match from_new.is_empty() || shows != Shows::New && differs(old).is_empty() {
        true => None,
        false => Some(from_new.join("; ")),
    }
}

/// Returns what is wrong with the first bytes of a written file.
fn wrong_bytes(shows: Shows, dir: &Path) -> Option<String> {
    let Shows::Begins(kept) = shows else {
        return None;
    };
    let name = if kept == SMALL_BYTES { "small" } else { "file" };
    let found = fs::read(dir.join(name)).unwrap();
    let whole = match kept {
        // It was emptied.
        0 => found.is_empty() || found == content(BYTES),
        kept => found.starts_with(&content(kept)),
    };
    match whole {
        true => None,
        false => Some(format!("{name}: {} other bytes", found.len())),
    }
}

/// What remains after one change.
struct Cut {
    what: String,
    shows: Shows,
    dir: PathBuf,
    old: Tree,
    new: Tree,
    image: PathBuf,
}

/// Makes every change in a union with these options, and returns the errors found after the power
/// cuts, and how many changes there were.
///
/// `in_upper` says that the directories are in the upper layer beforehand; `apart`, that the lower
/// layer is on another file system, whose blocks can't be shared.
fn cut_power(
    kind: FsKind,
    options: &[&str],
    (in_upper, apart): (bool, bool),
) -> Result<(usize, Vec<String>), String> {
    let scratch = Scratch::new();
    let pictures = scratch.file_system("pictures", FsKind::Xfs, 1024)?;
    let disk = scratch.file_system("pictures/disk", kind, 64)?;
    let image = scratch.join("pictures/disk.img");
    if apart {
        fs::create_dir(pictures.join("lower")).unwrap();
        symlink(pictures.join("lower"), disk.join("lower")).unwrap();
    }
    let mut world = World::at_place(&disk);
    for option in options {
        world.option(option);
    }
    for number in 0..CHANGES.len() {
        fill(&world.lower(number.to_string()));
    }
    world.mount();
    if in_upper {
        for number in 0..CHANGES.len() {
            File::create(world.at(format!("{number}/first"))).unwrap();
        }
    }
    let sync = |path: &Path| rustix::fs::syncfs(File::open(path).unwrap()).unwrap();
    let mut cuts = Vec::new();
    for (number, (what, shows, change)) in CHANGES.iter().enumerate() {
        let dir = world.at(number.to_string());
        let old = look(&dir);
        // Gets pending writes out of the way.
        sync(&disk);
        change(&dir).unwrap_or_else(|error| panic!("{what}: {error}"));
        File::open(&dir).unwrap().sync_all().unwrap();
        let to = pictures.join(format!("{number}.img"));
        rustix::fs::ioctl_ficlone(File::create(&to).unwrap(), File::open(&image).unwrap()).unwrap();
        cuts.push(Cut {
            what: format!(
                "{kind:?} {options:?} in the upper {in_upper}, lower apart {apart}: {what}"
            ),
            shows: *shows,
            dir: PathBuf::from(number.to_string()),
            new: look(&dir),
            old,
            image: to,
        });
    }
    world.unmount();
    scratch.unmount(&disk);
    let mut bad = Vec::new();
    for cut in &cuts {
        let place = scratch.dir("again");
        let mounted = Command::new("mount")
            .args(["-o", "loop"])
            .arg(&cut.image)
            .arg(&place)
            .output();
        let mounted = mounted.unwrap();
        let said = String::from_utf8_lossy(&mounted.stderr);
        assert!(mounted.status.success(), "{}: {said}", cut.what);
        scratch.adopt_mount(&place);
        let mut world = World::at_place(&place);
        for option in options {
            world.option(option);
        }
        world.mount();
        let dir = world.at(&cut.dir);
        let why = [
            wrong(cut.shows, &cut.old, &cut.new, &look(&dir)),
            wrong_bytes(cut.shows, &dir),
        ];
        for why in why.into_iter().flatten() {
            bad.push(format!("{}: {why}", cut.what));
        }
        world.unmount();
        scratch.unmount(&place);
        fs::remove_file(&cut.image).unwrap();
    }
    Ok((cuts.len(), bad))
}

/// Cuts the power after every change, on a file system, with each of these options.
fn after_every_change(kind: FsKind, options: &[&[&str]]) {
    if !needs_root("mounting file systems") {
        return;
    }
    let (mut all, mut bad) = (0, Vec::new());
    for options in options {
        for case in [(true, false), (false, false), (true, true)] {
            match cut_power(kind, options, case) {
                Ok((cuts, wrong)) => {
                    all += cuts;
                    bad.extend(wrong);
                }
                Err(why) => return untested(&format!("power cuts on {kind:?}"), &why),
            }
        }
    }
    eprintln!("{kind:?}: {all} power cuts");
    assert!(
        bad.is_empty(),
        "{} of {all}:\n{}",
        bad.len(),
        bad.join("\n")
    );
}

#[test]
fn names_lead_to_old_or_new_files_after_a_power_cut_without_ordering() {
    after_every_change(
        FsKind::Btrfs,
        &[&[], &["nometacopy"], &["noindex", "blocks=4096"]],
    );
}

#[test]
fn names_lead_to_old_or_new_files_after_a_power_cut_on_ext4() {
    after_every_change(FsKind::Ext4, &[&[]]);
}

#[test]
fn names_lead_to_old_or_new_files_after_a_power_cut_on_xfs() {
    after_every_change(FsKind::Xfs, &[&[]]);
}
