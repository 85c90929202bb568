//! Disks that are full: of bytes, of inodes, up to a quota, on each file system and block size, and
//! disks turned read-only.
//!
//! Each command runs on a disk that was filled to the last block just before, so that what one
//! removal frees does not help the next. No command is killed by a signal, and everything can be
//! removed; on a read-only disk everything can be read.

mod support;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::{Said, World, said, small};
use vellum_testkit::{clients::run, untested};

/// What runs out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lack {
    Bytes,
    Inodes,
    /// The file system has space, but a quota refuses it (EDQUOT).
    Quota,
}

/// A file system, how it is created, and what runs out on it.
const DISKS: [(&str, &[&str], u64, Lack); 8] = [
    (
        "ext4",
        &["-q", "-F", "-b", "1024", "-m", "0"],
        40,
        Lack::Bytes,
    ),
    (
        "ext4",
        &["-q", "-F", "-b", "4096", "-m", "0"],
        40,
        Lack::Bytes,
    ),
    (
        "ext4",
        &["-q", "-F", "-b", "4096", "-O", "^has_journal", "-m", "0"],
        40,
        Lack::Bytes,
    ),
    (
        "ext4",
        &["-q", "-F", "-b", "4096", "-N", "700"],
        64,
        Lack::Inodes,
    ),
    ("xfs", &["-q", "-f"], 310, Lack::Bytes),
    ("xfs", &["-q", "-f", "-b", "size=1024"], 310, Lack::Bytes),
    ("btrfs", &["-q", "-f"], 128, Lack::Bytes),
    ("btrfs", &["-q", "-f"], 256, Lack::Quota),
];

/// A disk with a store on it.
struct Disk {
    world: World,
    /// Where it is mounted.
    disk: PathBuf,
    /// The directory that is filled: a subvolume if a quota runs out.
    top: PathBuf,
    lack: Lack,
    filled: u32,
    name: String,
}

impl Disk {
    /// `None`, and recorded as untested, if it can't be created.
    fn new(kind: &str, options: &[&str], size_mib: u64, lack: Lack) -> Option<Self> {
        let world = World::new()?;
        let name = format!("{kind} {} ({lack:?})", options.join(" "));
        let made = (|| -> anyhow::Result<(PathBuf, PathBuf)> {
            let image = world.scratch.join("disk.img");
            fs::File::create(&image)?.set_len(size_mib << 20)?;
            run(Command::new(format!("mkfs.{kind}"))
                .args(options)
                .arg(&image))?;
            let disk = world.scratch.dir("disk");
            run(Command::new("mount")
                .args(["-o", "loop"])
                .arg(&image)
                .arg(&disk))?;
            world.scratch.adopt_mount(&disk);
            if lack != Lack::Quota {
                return Ok((disk.clone(), disk));
            }
            let top = disk.join("limited");
            run(Command::new("btrfs").args(["quota", "enable"]).arg(&disk))?;
            run(Command::new("btrfs")
                .args(["subvolume", "create"])
                .arg(&top))?;
            run(Command::new("btrfs")
                .args(["qgroup", "limit", "40M"])
                .arg(&top))?;
            Ok((disk, top))
        })();
        match made {
            Ok((disk, top)) => Some(Self {
                world,
                disk,
                top,
                lack,
                filled: 0,
                name,
            }),
            Err(why) => {
                untested(&format!("a full disk: {name}"), format!("{why:#}"));
                None
            }
        }
    }

    fn root(&self) -> PathBuf {
        self.top.join("store")
    }

    fn run(&self, args: &[&str]) -> Said {
        said(self.world.command_at(&self.root(), args).output().unwrap())
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        let said = self.run(args);
        assert_eq!(said.code, 0, "{}: {args:?}: {}", self.name, said.err);
        said.out
    }

    /// A store with images, containers and volumes to remove, and something for gc.
    fn furnish(&self) {
        let archive = small(&self.world.scratch);
        self.ok(&["load", "-i", archive.to_str().unwrap()]);
        for n in 0..12 {
            self.ok(&["create", "--name", &format!("box{n}"), "small:1"]);
            self.ok(&["volume", "create", &format!("data{n}")]);
            self.ok(&["tag", "small:1", &format!("name{n}:1")]);
        }
    }

    /// The names of all containers.
    fn names(&self) -> Vec<String> {
        let list: serde_json::Value = serde_json::from_str(&self.ok(&["ls", "--json"])).unwrap();
        let list = list.as_array().unwrap();
        list.iter()
            .map(|container| container["name"].to_string())
            .collect()
    }

    /// Fills the disk until nothing more fits, including what the last removal freed.
    fn fill(&mut self) {
        let dir = self.top.join("filling");
        fs::create_dir_all(&dir).unwrap();
        run(&mut Command::new("sync")).unwrap();
        for size in [1 << 20, 1 << 16, 1 << 12, 1 << 10, 1] {
            for _ in 0..100_000 {
                self.filled += 1;
                let path = dir.join(self.filled.to_string());
                let filled = fs::File::create(&path).and_then(|mut file| {
                    file.write_all(&vec![self.filled as u8; size])?;
                    // Most file systems report only then that there is no space.
                    if size > 1 << 12 || self.lack == Lack::Quota {
                        file.sync_all()
                    } else {
                        Ok(())
                    }
                });
                if filled.is_err() {
                    break;
                }
                if self.lack == Lack::Inodes && size > 1 {
                    break;
                }
            }
            run(&mut Command::new("sync")).unwrap();
        }
    }

    /// Runs a command on the full disk. It may fail, but must not crash.
    #[track_caller]
    ///
    /// With a btrfs quota each change reserves some hundred KiB that it doesn't use, so there the
    /// store's reserve is enough for one removal. The space that it frees serves the next, unless
    /// it has been filled again, as this test does on other file systems.
    fn full(&mut self, args: &[&str]) -> Said {
        if self.lack != Lack::Quota || self.filled == 0 {
            self.fill();
        }
        let said = self.run(args);
        assert!(said.code >= 0, "{}: {args:?} died: {said:?}", self.name);
        said
    }

    /// Runs a command on the full disk that must work there.
    #[track_caller]
    fn full_ok(&mut self, args: &[&str]) {
        let said = self.full(args);
        assert_eq!(said.code, 0, "{}: {args:?}: {}", self.name, said.err);
    }
}

#[test]
fn on_a_full_disk_everything_can_be_removed_and_nothing_dies() {
    let mut tried = 0;
    for (kind, options, size_mib, lack) in DISKS {
        let Some(mut disk) = Disk::new(kind, options, size_mib, lack) else {
            continue;
        };
        disk.furnish();
        for args in [
            &["ls"][..],
            &["images"],
            &["info"],
            &["df"],
            &["inspect", "box0"],
            &["volume", "ls"],
        ] {
            disk.full_ok(args);
        }
        for args in [
            &["create", "--name", "more", "small:1"][..],
            &["tag", "small:1", "more:1"],
            &["rename", "box0", "renamed"],
            &["import", "/etc/hostname", "more:2"],
        ] {
            disk.full(args);
        }
        for n in 1..11 {
            disk.full_ok(&["rm", "--force", &format!("box{n}")]);
            disk.full_ok(&["volume", "rm", &format!("data{n}")]);
            disk.full_ok(&["rmi", &format!("name{n}:1")]);
        }
        disk.full_ok(&["gc"]);
        disk.full_ok(&["check"]);
        tried += 1;
        // With free space, all is well again.
        fs::remove_dir_all(disk.top.join("filling")).unwrap();
        disk.ok(&["gc"]);
        disk.ok(&["check", "--deep"]);
        disk.ok(&["create", "--name", "again", "small:1"]);
    }
    assert!(tried == 0 || tried >= 4, "{tried}");
}

#[test]
fn a_lost_database_is_rebuilt_on_a_full_disk() {
    for (kind, options, size_mib, lack) in DISKS {
        let Some(mut disk) = Disk::new(kind, options, size_mib, lack) else {
            continue;
        };
        disk.furnish();
        let containers = disk.names();
        let images = disk.ok(&["images", "--json"]);
        // Overwritten, not truncated: nothing is freed.
        let database = disk.root().join("vellum.db");
        let length = fs::metadata(&database).unwrap().len();
        fs::write(&database, vec![0xa5; length as usize]).unwrap();
        disk.full_ok(&["check", "--rebuild", "--force"]);
        assert_eq!(disk.names(), containers, "{}", disk.name);
        assert_eq!(disk.ok(&["images", "--json"]), images, "{}", disk.name);
        disk.full_ok(&["rm", "--force", "box3"]);
        disk.full_ok(&["gc", "--rebuilt"]);
        disk.full_ok(&["check"]);
    }
}

#[test]
fn a_disk_that_turned_read_only_can_be_read() {
    for (kind, options, size_mib, lack) in DISKS {
        if lack != Lack::Bytes {
            continue;
        }
        let Some(disk) = Disk::new(kind, options, size_mib, lack) else {
            continue;
        };
        disk.furnish();
        let remount =
            |how: &str| run(Command::new("mount").args(["-o", how]).arg(&disk.disk)).unwrap();
        remount("remount,ro");
        let tree = tree_of(&disk.root());
        for args in [
            &["ls"][..],
            &["images"],
            &["info"],
            &["df"],
            &["df", "--verbose"],
            &["why", tree.to_str().unwrap()],
            &["check"],
            &["check", "--deep"],
            &["inspect", "box0"],
            &["gc", "--dry-run"],
        ] {
            disk.ok(args);
        }
        let saved = disk.world.scratch.join("saved.tar");
        disk.ok(&["save", "-o", saved.to_str().unwrap(), "small:1"]);
        assert!(fs::metadata(&saved).unwrap().len() > 0);
        for args in [&["create", "small:1"][..], &["rm", "box0"], &["gc"]] {
            let said = disk.run(args);
            assert!(
                said.code == 1 && said.err.contains("read-only"),
                "{}: {args:?}: {said:?}",
                disk.name
            );
        }
        remount("remount,rw");
        disk.ok(&["rm", "box0"]);
    }
}

#[test]
fn a_disk_that_turned_read_only_in_a_transaction_can_be_read() {
    let (kind, options, size_mib, lack) = DISKS[1];
    let Some(disk) = Disk::new(kind, options, size_mib, lack) else {
        return;
    };
    disk.furnish();
    // Cut short at the moment the first page of the database is written over: the journal holds
    // what it was.
    let cut = Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null", "-P"])
        .arg(disk.root().join("vellum.db"))
        .args([
            "-etrace=pwrite64",
            "-einject=pwrite64:signal=SIGKILL:when=2",
        ])
        .arg(env!("CARGO_BIN_EXE_vellum"))
        .arg("--root")
        .arg(disk.root())
        .arg("--run-dir")
        .arg(disk.world.run_dir())
        .args(["rm", "box1"])
        .status();
    if cut.is_err() {
        return untested(
            "a transaction cut short on a read-only disk",
            "strace is missing",
        );
    }
    let journal = fs::read(disk.root().join("vellum.db-journal")).unwrap();
    assert_ne!(
        journal[0], 0,
        "the journal is not hot: the test does not cut where it should"
    );
    run(Command::new("mount")
        .args(["-o", "remount,ro"])
        .arg(&disk.disk))
    .unwrap();
    let containers = disk.ok(&["ls"]);
    assert!(containers.contains("box1"), "{containers}");
    disk.ok(&["images"]);
    disk.ok(&["check"]);
    run(Command::new("mount")
        .args(["-o", "remount,rw"])
        .arg(&disk.disk))
    .unwrap();
    disk.ok(&["rm", "box1"]);
    disk.ok(&["check"]);
}

fn tree_of(root: &Path) -> PathBuf {
    let trees = fs::read_dir(root.join("overlay2")).unwrap();
    trees
        .map(|entry| entry.unwrap().path())
        .find(|path| path.file_name().unwrap().len() == 64)
        .unwrap()
}
