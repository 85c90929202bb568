//! Follows the remedies in `docs/operations.md` to the letter.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use vellum_testkit::clients::{Home, Vellum, available, run, small_image};
use vellum_testkit::{is_root, untested};

const IMAGE: &str = "vellum-demo-small:latest";

fn world() -> Option<(Home, Vellum, PathBuf)> {
    if !available(&["python3", "busybox", "mount"]) {
        return None;
    }
    let home = Home::new().unwrap();
    let vellum = Vellum::new(env!("CARGO_BIN_EXE_vellum"), &home, "v").unwrap();
    let archive = small_image(&home).unwrap();
    Some((home, vellum, archive))
}

/// A file of one of the store's layers.
fn file_of_a_layer(home: &Home) -> PathBuf {
    let trees = fs::read_dir(home.join("v/root/overlay2")).unwrap();
    trees
        .map(|tree| tree.unwrap().path().join("diff/app/version"))
        .find(|file| file.exists())
        .unwrap()
}

fn save(vellum: &Vellum, home: &Home) -> anyhow::Result<String> {
    let archive = home.join("saved.tar");
    vellum.run(&["save", IMAGE, "--output", archive.to_str().unwrap()])
}

#[test]
fn a_corrupted_layer_is_found_by_save_and_goes_with_its_image() {
    let Some((home, vellum, archive)) = world() else {
        return;
    };
    vellum.load_as(&archive, IMAGE).unwrap();
    fs::write(file_of_a_layer(&home), "tampered\n").unwrap();
    let found = save(&vellum, &home).unwrap_err().to_string();
    assert!(found.contains("app/version"), "{found}");
    vellum.run(&["rmi", IMAGE]).unwrap();
    vellum.load_as(&archive, IMAGE).unwrap();
    save(&vellum, &home).unwrap();

    // After a rebuild everything is kept until the user has looked at it; only then can it be
    // replaced.
    fs::write(file_of_a_layer(&home), "tampered\n").unwrap();
    fs::write(home.join("v/root/vellum.db"), "no database").unwrap();
    vellum.run(&["check", "--rebuild", "--force"]).unwrap();
    assert!(save(&vellum, &home).is_err());
    vellum.run(&["rmi", IMAGE]).unwrap();
    vellum.run(&["gc", "--rebuilt"]).unwrap();
    vellum.load_as(&archive, IMAGE).unwrap();
    save(&vellum, &home).unwrap();
}

#[test]
fn a_full_disk_leaves_nothing_half_made_and_more_room_is_enough() {
    let Some((home, vellum, archive)) = world() else {
        return;
    };
    let disk = home.dir("v/root").unwrap();
    let mount = |options: &str, at: &Path| {
        run(Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "full"])
            .arg(at))
    };
    mount("size=6m", &disk).unwrap();
    let full = vellum.load_as(&archive, IMAGE).unwrap_err().to_string();
    assert!(full.contains("vellum gc --dry-run"), "{full}");
    vellum.run(&["gc"]).unwrap();
    vellum.run(&["check"]).unwrap();
    run(Command::new("mount")
        .args(["-o", "remount,size=64m"])
        .arg(&disk))
    .unwrap();
    vellum.load_as(&archive, IMAGE).unwrap();
    save(&vellum, &home).unwrap();
}

#[test]
fn used_up_inodes_are_named_and_more_of_them_are_enough() {
    let Some((home, vellum, archive)) = world() else {
        return;
    };
    let disk = home.dir("v/root").unwrap();
    let mount = |options: &str| {
        run(Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "few"])
            .arg(&disk))
    };
    mount("size=64m,nr_inodes=150").unwrap();
    let full = vellum.load_as(&archive, IMAGE).unwrap_err().to_string();
    assert!(full.contains("inodes") && full.contains("df -i"), "{full}");
    vellum.run(&["gc"]).unwrap();
    vellum.run(&["check"]).unwrap();
    mount("remount,size=64m,nr_inodes=5000").unwrap();
    vellum.load_as(&archive, IMAGE).unwrap();
    save(&vellum, &home).unwrap();

    mount("remount,ro").unwrap();
    for verb in [&["create", IMAGE][..], &["rmi", IMAGE]] {
        let refused = vellum.run(verb).unwrap_err().to_string();
        assert!(
            refused.contains("read-only") && refused.contains("dmesg"),
            "{refused}"
        );
    }
    mount("remount,rw").unwrap();
    vellum.run(&["rmi", IMAGE]).unwrap();
    vellum.run(&["check"]).unwrap();
}

#[test]
fn the_hint_recovers_the_database_from_any_damage() {
    let Some((home, vellum, archive)) = world() else {
        return;
    };
    vellum.load_as(&archive, IMAGE).unwrap();
    vellum.run(&["create", "--name", "box", IMAGE]).unwrap();
    let database = home.join("v/root/vellum.db");
    let aside = |end: &str| database.with_file_name(format!("vellum.db{end}"));
    let forget_log = || {
        let _ = fs::remove_file(aside("-journal")); // there unless another program wrote last
    };
    type Harm<'a> = (&'a str, &'a dyn Fn());
    let harms: [Harm<'_>; 4] = [
        ("is missing", &|| {
            forget_log();
            fs::remove_file(&database).unwrap();
        }),
        ("not an SQLite database", &|| {
            forget_log();
            fs::write(&database, "no database, and none of another program").unwrap();
        }),
        ("database", &|| {
            // Its pages are gone, its head is whole.
            forget_log();
            let mut bytes = fs::read(&database).unwrap();
            bytes[100..].fill(0xa5);
            fs::write(&database, bytes).unwrap();
        }),
        ("made by a newer vellum", &|| {
            let newer = "import sqlite3,sys; c=sqlite3.connect(sys.argv[1]); c.execute('pragma user_version=99'); c.commit()";
            run(Command::new("python3").args(["-c", newer]).arg(&database)).unwrap();
        }),
    ];
    for (says, harm) in harms {
        harm();
        for verb in [&["ls"][..], &["create", IMAGE], &["check"]] {
            let told = vellum.run(verb).unwrap_err().to_string();
            assert!(told.contains(says), "{says}: {told}");
            assert!(told.contains("`vellum check --rebuild`"), "{says}: {told}");
        }
        vellum.run(&["check", "--rebuild", "--force"]).unwrap();
        save(&vellum, &home).unwrap();
        assert!(vellum.run(&["ls"]).unwrap().contains("box"));
        vellum.run(&["gc", "--rebuilt"]).unwrap();
        vellum.run(&["check"]).unwrap();
    }
}

/// The process that serves the engine's mounts of a store.
fn server_of(home: &Home) -> Option<i32> {
    let marker = home.path().as_os_str().as_encoded_bytes();
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let mut pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.find(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let has = |what: &[u8]| line.windows(what.len()).any(|part| part == what);
        has(b"__serve-overlay") && has(marker)
    })
}

#[test]
fn a_mount_whose_server_was_killed_comes_back_with_what_was_synced() {
    if !is_root() || !Path::new("/dev/fuse").exists() {
        untested("mounts of Vellum's engine", "no root, or no /dev/fuse");
        return;
    }
    let Some((home, vellum, archive)) = world() else {
        return;
    };
    vellum.load_as(&archive, IMAGE).unwrap();
    vellum.run(&["create", "--name", "box", IMAGE]).unwrap();
    let mounted = || vellum.run(&["--engine", "vellum", "mount", "box"]).unwrap();
    let at = PathBuf::from(mounted());
    fs::write(at.join("kept"), "kept\n").unwrap();
    fs::File::open(at.join("kept")).unwrap().sync_all().unwrap();
    let pid = rustix::process::Pid::from_raw(server_of(&home).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    // The kernel answers from its own cache.
    while fs::write(at.join("later"), "").is_ok() {
        assert!(Instant::now() < deadline, "the mount outlived its server");
        std::thread::sleep(Duration::from_millis(50));
    }
    vellum.run(&["umount", "box"]).unwrap();
    let at = PathBuf::from(mounted());
    assert_eq!(fs::read_to_string(at.join("kept")).unwrap(), "kept\n");
    vellum.run(&["umount", "box"]).unwrap();
}
