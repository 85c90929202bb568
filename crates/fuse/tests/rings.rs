//! Requests over io_uring: the same answers as through the device, also with many concurrent and
//! some long requests.

mod support;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;

use support::*;
use vellum_testkit::untested;

#[test]
fn io_uring_gives_the_same_answers_as_the_device() {
    everywhere("io_uring_gives_the_same_answers_as_the_device", |world| {
        let data: Vec<u8> = (0..3_000_000u32)
            .map(|i| (i * 7 + i / 4096) as u8)
            .collect();
        world.put("dir/file", &data);
        world.put("dir/other", "other");
        if !mount_with_rings(world) {
            untested("io_uring", "the kernel does not offer it to FUSE here");
            return;
        }
        // The largest possible reads and writes, and small ones in between.
        assert_eq!(fs::read(world.at("dir/file")).unwrap(), data);
        let file = OpenOptions::new()
            .write(true)
            .open(world.at("dir/file"))
            .unwrap();
        file.write_all_at(&data[1_000_000..2_500_000], 0).unwrap();
        file.write_all_at(b"small", 7).unwrap();
        drop(file);
        let mut expected = data.clone();
        expected.copy_within(1_000_000..2_500_000, 0);
        expected[7..12].copy_from_slice(b"small");
        assert_eq!(fs::read(world.at("dir/file")).unwrap(), expected);
        // Names, errors, links, listings, attributes.
        fs::rename(world.at("dir"), world.at("moved")).unwrap();
        assert_eq!(errno(fs::read(world.at("dir/file"))), 2);
        let long = "n".repeat(255);
        fs::write(world.at("moved").join(&long), "x").unwrap();
        std::os::unix::fs::symlink("t".repeat(4000), world.at("link")).unwrap();
        assert_eq!(
            fs::read_link(world.at("link")).unwrap().as_os_str().len(),
            4000
        );
        fs::hard_link(world.at("moved/other"), world.at("second")).unwrap();
        assert_eq!(identity(world.at("second")).2, 2);
        for i in 0..300 {
            fs::create_dir(world.at(format!("moved/{i}"))).unwrap();
        }
        assert_eq!(names(world.at("moved")).len(), 303);
        world.remount();
        assert_eq!(fs::read(world.at("moved/file")).unwrap(), expected);
        assert_eq!(names(world.at("moved")).len(), 303);
    });
}

#[test]
fn many_requests_at_once_work_over_io_uring() {
    as_root(|world| {
        for i in 0..8 {
            world.put(&format!("big{i}"), vec![i; 8 << 20]);
        }
        if !mount_with_rings(world) {
            untested("io_uring", "the kernel does not offer it to FUSE here");
            return;
        }
        let world = &*world;
        std::thread::scope(|scope| {
            for i in 0..8u8 {
                scope.spawn(move || {
                    // Copying up and syncing take long; more of them than a queue has threads.
                    let path = world.at(format!("big{i}"));
                    let mut file = OpenOptions::new().append(true).open(&path).unwrap();
                    for round in 0..20 {
                        file.write_all(&[round; 5000]).unwrap();
                        file.sync_all().unwrap();
                        fs::write(world.at(format!("small{i}")), [round]).unwrap();
                        fs::remove_file(world.at(format!("small{i}"))).unwrap();
                    }
                    let content = fs::read(&path).unwrap();
                    assert_eq!(content.len(), (8 << 20) + 20 * 5000);
                    assert!(content[..8 << 20].iter().all(|&byte| byte == i));
                });
            }
        });
    });
}
