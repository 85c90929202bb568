//! Tables of mounts with their meaning, and one real mount.

use std::collections::BTreeMap;

use vellum_sys::mount::{self, BindOptions, Detach};

use super::*;

fn place(path: &str, dev: u64, ino: u64, mount: u64, mount_dev: (u32, u32)) -> NotedDir {
    NotedDir {
        path: path.into(),
        dev,
        ino,
        mount,
        mount_dev,
        mount_point: "/data".into(),
        fs_type: "xfs".into(),
        source: "/dev/sdb1".into(),
    }
}

fn note_of(places: Vec<NotedDir>) -> Note {
    Note {
        version: VERSION,
        boot: boot_id(),
        store: "s".into(),
        places,
    }
}

struct Case {
    note: Option<Vec<NotedDir>>,
    table: &'static str,
    has_store: bool,
    now: &'static [(&'static str, (u64, u64))],
}

const ROOT: &str = "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n";

#[track_caller]
fn check(case: Case, expect: &[&str]) {
    let table = mountinfo::parse(format!("{ROOT}{}", case.table).as_bytes()).unwrap();
    let now: BTreeMap<PathBuf, (u64, u64)> = case
        .now
        .iter()
        .map(|(p, id)| (PathBuf::from(p), *id))
        .collect();
    let note = case.note.map(note_of);
    let verdict = judge(
        Path::new("/data/v"),
        note.as_ref(),
        &table,
        case.has_store,
        &|p| now.get(p).copied(),
    );
    let said = match verdict {
        Verdict::GoOn => Vec::new(),
        Verdict::Covered { path, covers } => std::iter::once(format!("covered {}", path.display()))
            .chain(covers.iter().map(|c| c.mount_point.display().to_string()))
            .collect(),
        Verdict::Unmounted { path, was } => vec![format!("unmounted {} {was}", path.display())],
    };
    assert_eq!(said, expect);
}

#[test]
fn an_unchanged_directory_is_accepted() {
    let note = || {
        Some(vec![
            place("/data/v", 1, 10, 1, (8, 1)),
            place("/data/v/overlay2", 1, 11, 1, (8, 1)),
        ])
    };
    let now = &[("/data/v", (1, 10)), ("/data/v/overlay2", (1, 11))];
    check(
        Case {
            note: note(),
            table: "",
            has_store: true,
            now,
        },
        &[],
    );
    check(
        Case {
            note: None,
            table: "",
            has_store: false,
            now,
        },
        &[],
    );
    // Removed or replaced by hand, on the same file system.
    check(
        Case {
            note: note(),
            table: "",
            has_store: false,
            now: &[("/data/v", (1, 99))],
        },
        &[],
    );
    check(
        Case {
            note: note(),
            table: "",
            has_store: false,
            now: &[],
        },
        &[],
    );
}

#[test]
fn covers_are_named_topmost_first() {
    let note = || Some(vec![place("/data/v", 1, 10, 1, (8, 1))]);
    let two = "2 1 0:9 / /data rw - tmpfs a rw\n3 2 0:10 / /data/v rw - tmpfs b rw\n";
    let now = &[("/data/v", (10, 1))];
    check(
        Case {
            note: note(),
            table: two,
            has_store: false,
            now,
        },
        &["covered /data/v", "/data/v", "/data"],
    );
    // The noted mount number now belongs to another mount: the device decides.
    let reused = Some(vec![place("/data/v", 1, 10, 3, (8, 1))]);
    check(
        Case {
            note: reused,
            table: two,
            has_store: false,
            now,
        },
        &["covered /data/v", "/data/v", "/data"],
    );
}

#[test]
fn a_covered_part_is_named() {
    let note = Some(vec![
        place("/data/v", 1, 10, 1, (8, 1)),
        place("/data/v/overlay2", 1, 11, 1, (8, 1)),
    ]);
    let now = &[("/data/v", (1, 10)), ("/data/v/overlay2", (9, 1))];
    let table = "2 1 0:9 / /data/v/overlay2 rw - tmpfs a rw\n";
    check(
        Case {
            note,
            table,
            has_store: true,
            now,
        },
        &["covered /data/v/overlay2", "/data/v/overlay2"],
    );
}

#[test]
fn an_unmounted_disk_is_not_a_new_store() {
    let note = || Some(vec![place("/data/v", 5, 10, 7, (8, 17))]);
    check(
        Case {
            note: note(),
            table: "",
            has_store: false,
            now: &[],
        },
        &["unmounted /data/v xfs (/dev/sdb1) on /data"],
    );
    // Another disk in its place, with a store of its own, is used.
    let table = "9 1 8:33 / /data rw - xfs /dev/sdc1 rw\n";
    check(
        Case {
            note: note(),
            table,
            has_store: true,
            now: &[("/data/v", (6, 3))],
        },
        &[],
    );
}

#[test]
fn a_store_mounted_on_purpose_is_used_unless_containers_of_the_old_one_run() {
    let note = || Some(vec![place("/data/v", 1, 10, 1, (8, 1))]);
    let now = &[("/data/v", (6, 3))];
    let over = "9 1 8:33 / /data rw - xfs /dev/sdc1 rw\n";
    check(
        Case {
            note: note(),
            table: over,
            has_store: true,
            now,
        },
        &[],
    );
    let running = "8 1 0:50 / /data/v/overlay2/x/merged rw - overlay overlay rw\n9 1 8:33 / /data rw - xfs /dev/sdc1 rw\n";
    check(
        Case {
            note: note(),
            table: running,
            has_store: true,
            now,
        },
        &["covered /data/v", "/data"],
    );
}

#[test]
fn hidden_containers_reveal_a_cover_without_a_note() {
    let running = "8 1 0:50 / /data/v/overlay2/x/merged rw - overlay overlay rw\n9 1 0:33 / /data/v rw - tmpfs none rw\n";
    check(
        Case {
            note: None,
            table: running,
            has_store: false,
            now: &[],
        },
        &["covered /data/v", "/data/v"],
    );
    let reached = "8 1 0:50 / /data/v/overlay2/x/merged rw - overlay overlay rw\n";
    check(
        Case {
            note: None,
            table: reached,
            has_store: false,
            now: &[],
        },
        &[],
    );
}

#[test]
fn notes_survive_being_written() {
    let scratch = vellum_testkit::Scratch::new();
    let run = scratch.join("run");
    use std::os::unix::ffi::OsStrExt;
    let root = scratch.dir(OsStr::from_bytes(b"st\xffore"));
    std::fs::create_dir(root.join("overlay2")).unwrap();
    verify(&root, &run).unwrap();
    note(&root, &run, "id").unwrap();
    let root = root.canonicalize().unwrap();
    let read = read_note(&note_file(&root, &run)).unwrap();
    assert_eq!(
        read.places
            .iter()
            .map(|p| p.path.clone())
            .collect::<Vec<_>>(),
        [root.clone(), root.join("overlay2")]
    );
    verify(&root, &run).unwrap();
    // A directory that is created later is noted too.
    std::fs::create_dir(root.join("native")).unwrap();
    note(&root, &run, "id").unwrap();
    assert_eq!(read_note(&note_file(&root, &run)).unwrap().places.len(), 3);
}

#[test]
fn a_covered_root_is_recognised_and_usable_again_after_the_unmount() {
    if !vellum_testkit::needs_root("mounting") {
        return;
    }
    let scratch = vellum_testkit::Scratch::new();
    let (root, run, other) = (
        scratch.dir("disk/root"),
        scratch.join("run"),
        scratch.dir("other"),
    );
    std::fs::write(root.join("vellum.db"), "").unwrap();
    std::fs::create_dir(root.join("overlay2")).unwrap();
    note(&root, &run, "id").unwrap();
    let places = [
        root.clone(),
        root.parent().unwrap().to_path_buf(),
        root.join("overlay2"),
    ];
    for cover in &places {
        mount::bind(&other, cover, BindOptions::default()).unwrap();
        let verdict = verify(&root, &run);
        let untouched = std::fs::read_dir(&other).unwrap().count() == 0;
        mount::unmount(cover, Detach::No).unwrap();
        let Err(Error::Covered { covers, .. }) = verdict else {
            panic!("{}: {verdict:?}", cover.display())
        };
        assert_eq!(covers.len(), 1);
        assert_eq!(covers[0].mount_point, cover.canonicalize().unwrap());
        assert!(untouched);
        verify(&root, &run).unwrap();
    }
}
