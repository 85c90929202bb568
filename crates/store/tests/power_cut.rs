//! The power fails right after a command has returned: the disk then has all of its changes, even
//! without the database.
//!
//! The disk is an image on a file system that shares blocks. A copy of the image at one moment is
//! what a disk has after a power failure: what was still in memory is missing. Each copy is
//! mounted, which replays its journal. Then the store is examined as it is, and rebuilt from the
//! record files alone.

mod common;
#[path = "common/furnished.rs"]
mod furnished;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use common::*;
use furnished::*;
use vellum_store::*;
use vellum_testkit::{FsKind, Scratch, clients::run, needs_root, untested};

/// A disk that is an image, and the copies made of it.
struct Disk<'a> {
    scratch: &'a Scratch,
    kind: FsKind,
    image: PathBuf,
    place: PathBuf,
    pictures: usize,
}

impl<'a> Disk<'a> {
    fn new(scratch: &'a Scratch, kind: FsKind, mkfs: &[&str]) -> Result<Self, String> {
        let images = scratch.file_system(format!("images-{kind:?}"), FsKind::Xfs, 1200)?;
        let image = images.join("disk.img");
        let file = fs::File::create(&image).map_err(|e| e.to_string())?;
        file.set_len(320 << 20).map_err(|e| e.to_string())?;
        run(Command::new(mkfs[0]).args(&mkfs[1..]).arg(&image)).map_err(|e| format!("{e:#}"))?;
        let place = scratch.dir(format!("disk-{kind:?}"));
        run(Command::new("mount")
            .args(["-o", "loop"])
            .arg(&image)
            .arg(&place))
        .map_err(|e| format!("{e:#}"))?;
        scratch.adopt_mount(&place);
        Ok(Self {
            scratch,
            kind,
            image,
            place,
            pictures: 0,
        })
    }

    /// Keeps what the disk would have if the power failed now.
    fn picture(&mut self) -> PathBuf {
        self.pictures += 1;
        let picture = self
            .image
            .with_file_name(format!("picture-{}", self.pictures));
        let image = fs::File::open(&self.image).unwrap();
        rustix::fs::ioctl_ficlone(fs::File::create(&picture).unwrap(), &image).unwrap();
        picture
    }

    /// Mounts a copy in place of the disk.
    fn mount(&self, picture: &Path) {
        if let FsKind::Btrfs = self.kind {
            // The kernel takes file systems with one id for the same, and remembers where it saw
            // it.
            run(Command::new("btrfs").args(["device", "scan", "--forget"])).unwrap();
        }
        run(Command::new("mount")
            .args(["-o", "loop"])
            .arg(picture)
            .arg(&self.place))
        .unwrap();
        self.scratch.adopt_mount(&self.place);
    }
}

#[test]
fn what_a_command_has_changed_is_on_disk_with_its_record_file() {
    if !needs_root("mounting images of disks") {
        return;
    }
    let disks: [(FsKind, &[&str]); 3] = [
        (FsKind::Ext4, &["mkfs.ext4", "-q", "-F"]),
        (FsKind::Xfs, &["mkfs.xfs", "-q", "-f"]),
        (FsKind::Btrfs, &["mkfs.btrfs", "-q", "-f"]),
    ];
    for (kind, mkfs) in disks {
        let scratch = Scratch::new();
        let mut disk = match Disk::new(&scratch, kind, mkfs) {
            Ok(disk) => disk,
            Err(why) => {
                untested(&format!("power cuts on {kind:?}"), why);
                continue;
            }
        };
        let root = disk.place.join("store");
        let store = furnish(&root);
        let pictures = CHANGES.map(|name| {
            change(&store, name);
            (name, holds(&store), disk.picture())
        });
        drop(store);
        scratch.unmount(&disk.place);
        for (name, whole, picture) in pictures {
            disk.mount(&picture);
            let context = format!("{kind:?} after {name}");
            {
                let cut = open_at(&root, DriverKind::Overlay2);
                assert_eq!(cut.rolled_back(), None, "{context}");
                assert_eq!(holds(&cut), whole, "{context}");
                cut.gc(false).unwrap();
                assert_eq!(holds(&cut), whole, "{context}: gc");
            }
            fs::remove_file(root.join("vellum.db")).unwrap();
            {
                let (rebuilt, report) = Store::rebuild(&StoreOptions::new(&root)).unwrap();
                assert_eq!((report.lost, holds(&rebuilt)), (vec![], whole), "{context}");
            }
            scratch.unmount(&disk.place);
        }
    }
}
