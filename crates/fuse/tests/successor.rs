//! A live mount moves from one server process to the next, and its users notice nothing.

mod support;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use support::*;

fn open(path: impl AsRef<std::path::Path>) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap()
}

fn content(mut file: &File) -> String {
    let mut text = String::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn a_successor_takes_over_a_live_mount() {
    everywhere("a_successor_takes_over_a_live_mount", |world| {
        for name in [
            "lower",
            "gone-lower",
            "gone-upper",
            "read",
            "dir/sub/deep",
            "moved/inside",
        ] {
            world.put(name, format!("old {name}"));
        }
        fs::hard_link(world.lower("lower"), world.lower("dir/link")).unwrap();
        let big: Vec<u8> = (0..1 << 20).map(|at| (at / 1000) as u8).collect();
        world.put("big", &big);
        world.put("gone-big", &big);
        for i in 0..3000 {
            world.put(&format!("many/{i}"), "");
        }
        fs::create_dir_all(world.lower("left")).unwrap();
        fs::create_dir_all(world.lower("left-lower")).unwrap();
        world.option("blocks=65536");
        world.will_hand_over(0);
        world.mount();

        let lower = open(world.at("lower"));
        let gone_lower = open(world.at("gone-lower"));
        fs::remove_file(world.at("gone-lower")).unwrap();
        let gone_upper = open(world.at("gone-upper"));
        gone_upper.write_all_at(b"new", 0).unwrap();
        fs::remove_file(world.at("gone-upper")).unwrap();
        let kept = open(world.at("big"));
        kept.write_all_at(b"changed", 70_000).unwrap();
        let gone_big = open(world.at("gone-big"));
        gone_big.write_all_at(b"changed", 70_000).unwrap();
        let mtime = gone_big.metadata().unwrap().mtime_nsec();
        fs::remove_file(world.at("gone-big")).unwrap();
        let deep = open(world.at("dir/sub/deep"));
        fs::rename(world.at("moved"), world.at("dir/sub/moved")).unwrap();
        let inside = open(world.at("dir/sub/moved/inside"));
        let mut made = OpenOptions::new()
            .append(true)
            .create(true)
            .open(world.at("made"))
            .unwrap();
        made.write_all(b"first ").unwrap();
        let left = [
            File::open(world.at("left")).unwrap(),
            File::open(world.at("left-lower")).unwrap(),
        ];
        File::create(world.at("left/file")).unwrap();
        fs::remove_file(world.at("left/file")).unwrap();
        fs::remove_dir(world.at("left")).unwrap();
        fs::remove_dir(world.at("left-lower")).unwrap();
        let mut listing = fs::read_dir(world.at("many")).unwrap();
        let mut seen: Vec<_> = listing
            .by_ref()
            .take(100)
            .map(|entry| entry.unwrap().file_name())
            .collect();
        let numbers = |world: &World| {
            [
                "lower",
                "dir/link",
                "big",
                "dir/sub",
                "dir/sub/moved",
                "dir/sub/moved/inside",
                "made",
                "many/7",
            ]
            .map(|name| identity(world.at(name)))
        };
        let open_numbers = || {
            [&lower, &gone_lower, &gone_upper, &gone_big, &deep, &inside]
                .map(|file| file.metadata().unwrap().ino())
        };
        let (before, open_before) = (numbers(world), open_numbers());

        // Two others keep running all the time.
        let running = AtomicBool::new(true);
        let count = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for name in ["busy-1", "busy-2"] {
                let (path, other) = (world.at(name), world.at(format!("{name}-moved")));
                let (running, count) = (&running, &count);
                scope.spawn(move || {
                    let mut number = 0_u64;
                    while running.load(Ordering::Relaxed) {
                        let text = format!("{number}");
                        fs::write(&path, &text).unwrap();
                        fs::rename(&path, &other).unwrap();
                        assert_eq!(fs::read_to_string(&other).unwrap(), text);
                        fs::remove_file(&other).unwrap();
                        number += 1;
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            for successor in 0..4 {
                if successor < 3 {
                    world.will_hand_over(successor + 1);
                }
                world.succeed(successor);
                let now = count.load(Ordering::Relaxed);
                while count.load(Ordering::Relaxed) < now + 4 {
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
            }
            running.store(false, Ordering::Relaxed);
        });

        assert_eq!(numbers(world), before);
        assert_eq!(open_numbers(), open_before);
        assert_eq!(content(&gone_lower), "old gone-lower");
        gone_lower.write_all_at(b"NEW", 0).unwrap();
        assert_eq!(content(&gone_lower), "NEW gone-lower");
        assert_eq!(content(&gone_upper), "new gone-upper");
        gone_upper.set_len(3).unwrap();
        assert_eq!(content(&gone_upper), "new");
        for file in [&kept, &gone_big] {
            let mut bytes = vec![0; big.len()];
            file.read_exact_at(&mut bytes, 0).unwrap();
            let mut wanted = big.clone();
            wanted[70_000..70_007].copy_from_slice(b"changed");
            assert!(bytes == wanted);
            file.write_all_at(b"again", 500_000).unwrap();
        }
        assert_ne!(gone_big.metadata().unwrap().mtime_nsec(), mtime);
        lower.write_all_at(b"new", 0).unwrap();
        assert_eq!(
            fs::read_to_string(world.at("dir/link")).unwrap(),
            "new lower"
        );
        deep.write_all_at(b"new", 0).unwrap();
        inside.write_all_at(b"new", 0).unwrap();
        made.write_all(b"second").unwrap();
        assert_eq!(gone_upper.metadata().unwrap().nlink(), 0);
        for dir in &left {
            assert!(dir.metadata().unwrap().is_dir());
        }
        seen.extend(listing.map(|entry| entry.unwrap().file_name()));
        assert_eq!(seen.len(), 3000);
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 3000);
        drop((
            lower, gone_lower, gone_upper, gone_big, kept, deep, inside, made, left,
        ));

        // The last of them unmounts as the first would have done.
        world.remount();
        assert_eq!(fs::read(world.upper("made")).unwrap(), b"first second");
        assert_eq!(
            fs::read_to_string(world.at("dir/sub/moved/inside")).unwrap(),
            "new moved/inside"
        );
        assert_eq!(
            fs::read_to_string(world.at("dir/sub/deep")).unwrap(),
            "new dir/sub/deep"
        );
        assert!(!world.at("left").exists() && !world.at("gone-lower").exists());
        let without_dev = |all: [(u64, u64, u64); 8]| all.map(|(_, ino, nlink)| (ino, nlink));
        assert_eq!(without_dev(numbers(world)), without_dev(before));
    });
}
