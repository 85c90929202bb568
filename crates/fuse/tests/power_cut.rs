//! A machine that stops while files are copied up: what the disk holds at that moment is mounted
//! again.

mod support;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use support::*;
use vellum_testkit::{FsKind, Scratch, needs_root, untested};

const FILES: usize = 400;

fn content(file: usize) -> Vec<u8> {
    // Some smaller than a block, some of several.
    (0..(file * 97) % 20_000 + 1)
        .map(|at| (at * 31 + file) as u8 | 1)
        .collect()
}

/// Copies the disk's state at one moment, as if the power had failed: the image lies on a file
/// system that shares blocks, and nothing writes to it meanwhile.
fn picture(image: &Path, to: &Path) {
    let image = fs::File::open(image).unwrap();
    let to = fs::File::create(to).unwrap();
    rustix::fs::ioctl_ficlone(&to, &image).unwrap();
}

/// Mounts a picture, which replays the journal, and checks each file of the upper.
fn look_at(scratch: &Scratch, kind: FsKind, picture: &Path, number: usize) -> usize {
    let options = match kind {
        // The disk itself is mounted, too.
        FsKind::Xfs => "loop,nouuid",
        _ => "loop",
    };
    let place = scratch.dir(format!("picture-{number}"));
    let done = Command::new("mount")
        .args(["-o", options])
        .arg(picture)
        .arg(&place)
        .output()
        .unwrap();
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    scratch.adopt_mount(&place);
    let mut found = 0;
    for file in 0..FILES {
        let path = place.join(format!("upper/{file}"));
        let now = match fs::read(&path) {
            Ok(now) => now,
            // Still below.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => panic!("{}: {error}", path.display()),
        };
        found += 1;
        let before = content(file);
        // Appended bytes were not synced: they may be there or not, or only their size.
        assert!(now.len() >= before.len(), "{file}: {} bytes", now.len());
        assert!(now[..before.len()] == before, "{file}: not what was copied");
    }
    scratch.unmount(&place);
    found
}

#[test]
fn a_power_cut_leaves_a_copy_whole_or_leaves_none() {
    if !needs_root("mounting file systems") {
        return;
    }
    for kind in [FsKind::Ext4, FsKind::Xfs] {
        let scratch = Scratch::new();
        let below = scratch.file_system("below", FsKind::Xfs, 1024);
        let disk = match below.and_then(|_| scratch.file_system("below/disk", kind, 64)) {
            Ok(disk) => disk,
            Err(why) => {
                untested(&format!("a power cut on {kind:?}"), &why);
                continue;
            }
        };
        let image = scratch.join("below/disk.img");
        let mut world = World::at_place(&disk);
        for file in 0..FILES {
            world.put(&file.to_string(), content(file));
        }
        rustix::fs::syncfs(fs::File::open(&disk).unwrap()).unwrap();
        world.mount();
        let mut found = Vec::new();
        std::thread::scope(|scope| {
            let world = &world;
            let writer = scope.spawn(move || {
                for file in 0..FILES {
                    let mut open = OpenOptions::new()
                        .append(true)
                        .open(world.at(file.to_string()))
                        .unwrap();
                    open.write_all(b"appended").unwrap();
                    if file % 100 == 50 {
                        // Commits the journal, with the names of all copies so far.
                        open.sync_all().unwrap();
                    }
                }
            });
            let mut number = 0;
            while !writer.is_finished() || number < 3 {
                picture(&image, &scratch.join(format!("below/picture-{number}.img")));
                number += 1;
                if number == 12 {
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            writer.join().unwrap();
            for picture in 0..number {
                let path = scratch.join(format!("below/picture-{picture}.img"));
                found.push(look_at(&scratch, kind, &path, picture));
                fs::remove_file(&path).unwrap();
            }
        });
        eprintln!("{kind:?}: copies found after each power cut: {found:?}");
        world.unmount();
    }
}
