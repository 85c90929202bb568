//! The seam itself: what it counts, what it makes fail, and what a power cut loses.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use vellum_testkit::Scratch;
use vellum_testkit::seam::{self, Counted, Effect, Loses, Moment};

/// A file is replaced: created under another name, synced, renamed, and the directory synced. Each
/// step can be left out.
fn replace(root: &Path, sync_file: bool, sync_dir: bool) -> io::Result<()> {
    let new = root.join("new");
    let mut file = File::create(&new)?;
    file.write_all(b"after")?;
    if sync_file {
        file.sync_all()?;
    }
    fs::rename(&new, root.join("file"))?;
    if sync_dir {
        File::open(root)?.sync_all()?;
    }
    Ok(())
}

fn place(scratch: &Scratch, name: &str) -> std::path::PathBuf {
    scratch.file(format!("{name}/file"), "before");
    scratch.join(name)
}

/// The file's content at each moment, with the temporary file's name, if it exists.
fn told(scratch: &Scratch, moments: Vec<Moment>) -> Vec<(Loses, bool, String)> {
    let seen = moments.into_iter().enumerate().map(|(at, moment)| {
        let root = scratch.dir(format!("moment{at}"));
        moment.tree.write_to(&root);
        let file = fs::read_to_string(root.join("file")).unwrap();
        fs::remove_dir_all(&root).unwrap();
        (moment.loses, moment.before.is_none(), file)
    });
    seen.collect()
}

#[test]
fn every_call_fails_in_its_turn_and_none_outside_the_root() {
    if !seam::available() {
        return;
    }
    let scratch = Scratch::new();
    let mut names = Vec::new();
    let hits = seam::each(100, |n| {
        let root = place(&scratch, &format!("fail{n}"));
        let outside = scratch.join("outside");
        let effect = Effect::Fail(libc::ENOSPC);
        let run = seam::run(&root, Counted::Changes, n, effect, || {
            fs::write(&outside, "x").expect("what lies outside is let through");
            replace(&root, true, true)
        });
        let hit = run.hit.clone();
        match &hit {
            Some(call) => {
                names.push(call.name);
                let error = run.value().unwrap_err();
                assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{call}");
            }
            None => run.value().unwrap(),
        }
        hit
    });
    assert_eq!(hits, 5, "{names:?}");
    assert_eq!(names[1..3], ["write", "fsync"]);
}

#[test]
fn after_a_stop_nothing_leaves_a_trace() {
    if !seam::available() {
        return;
    }
    let scratch = Scratch::new();
    let root = place(&scratch, "stop");
    let run = seam::run(&root, Counted::Changes, 4, Effect::Stop, || {
        let done = replace(&root, true, true);
        (done.is_err(), fs::remove_file(root.join("new")).is_err())
    });
    assert_eq!(run.hit.as_ref().unwrap().path, root.join("file"));
    assert_eq!(run.value(), (true, true));
    assert_eq!(fs::read(root.join("new")).unwrap(), b"after");
    assert_eq!(fs::read(root.join("file")).unwrap(), b"before");
}

#[test]
fn a_panic_is_reported_and_threads_are_counted() {
    if !seam::available() {
        return;
    }
    let scratch = Scratch::new();
    let root = place(&scratch, "threads");
    let run = seam::run(&root, Counted::Changes, 1, Effect::Fail(libc::EIO), || {
        let root = root.clone();
        let other = std::thread::spawn(move || fs::write(root.join("other"), "x"));
        other.join().unwrap().expect("the call of the other thread")
    });
    assert!(run.hit.is_some());
    assert!(run.value.is_err());
}

#[test]
fn what_was_synced_in_order_is_old_or_new_at_every_moment() {
    if !seam::available() {
        return;
    }
    let scratch = Scratch::new();
    let root = place(&scratch, "synced");
    let (done, moments) = seam::moments(&root, || replace(&root, true, true));
    done.unwrap();
    let told = told(&scratch, moments);
    assert!(told.len() > 4);
    for (loses, ended, file) in &told {
        assert!(["before", "after"].contains(&&**file), "{loses:?}: {file}");
        assert!(!ended || file == "after", "{loses:?}: {file}");
    }
}

#[test]
fn a_power_cut_takes_bytes_that_were_not_synced() {
    if !seam::available() {
        return;
    }
    let scratch = Scratch::new();
    let root = place(&scratch, "bytes");
    let (done, moments) = seam::moments(&root, || replace(&root, false, true));
    done.unwrap();
    let told = told(&scratch, moments);
    let lost = |file: &&(Loses, bool, String)| file.2.is_empty();
    let lost: Vec<_> = told.iter().filter(lost).collect();
    assert!(
        lost.iter().any(|(loses, ..)| *loses == Loses::Bytes),
        "{told:?}"
    );
    assert!(lost.iter().all(|(loses, ..)| *loses != Loses::Nothing));
}

#[test]
fn a_power_cut_takes_a_name_that_was_not_synced() {
    if !seam::available() {
        return;
    }
    let scratch = Scratch::new();
    let root = place(&scratch, "names");
    let (done, moments) = seam::moments(&root, || replace(&root, true, false));
    done.unwrap();
    let unsynced = told(&scratch, moments)
        .into_iter()
        .filter(|(loses, ..)| *loses == Loses::Unsynced)
        .collect::<Vec<_>>();
    assert!(
        unsynced.iter().all(|(_, _, file)| file == "before"),
        "{unsynced:?}"
    );
}

#[test]
fn a_rename_between_directories_is_one_step() {
    if !seam::available() {
        return;
    }
    for sync in ["from", "to"] {
        let scratch = Scratch::new();
        let root = scratch.dir("root");
        scratch.file("root/from/d/file", "x");
        scratch.dir("root/to");
        let (done, moments) = seam::moments(&root, || {
            fs::rename(root.join("from/d"), root.join("to/d"))?;
            File::open(root.join(sync))?.sync_all()
        });
        done.unwrap();
        for (at, moment) in moments.into_iter().enumerate() {
            let copy = scratch.dir(format!("copy{at}"));
            moment.tree.write_to(&copy);
            let (from, to) = (copy.join("from/d/file"), copy.join("to/d/file"));
            assert!(from.exists() != to.exists(), "{sync}: {moment:?}");
            assert!(moment.before.is_some() || to.exists(), "{sync}: {moment:?}");
        }
    }
}

#[test]
fn a_picture_keeps_what_a_tree_has() {
    let scratch = Scratch::new();
    let root = scratch.dir("root");
    let file = scratch.file("root/a/file", "bytes");
    fs::hard_link(&file, root.join("a/again")).unwrap();
    std::os::unix::fs::symlink("nowhere", root.join("link")).unwrap();
    let copy = scratch.dir("copy");
    seam::Picture::of(&root).write_to(&copy);
    let ignore = vellum_testkit::tree::Ignore {
        mtimes: true,
        ..Default::default()
    };
    let [before, after] = [&root, &copy].map(|at| vellum_testkit::Tree::read(at).unwrap());
    let differences = before.differences(&after, ignore);
    assert!(differences.is_empty(), "{differences:#?}");
}
