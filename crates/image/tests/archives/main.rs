//! Archives read here and by Go's `archive/tar`, which scanners, Docker, Podman and containerd use:
//! both find the same entries, at the same bytes.
//!
//! Archives come from a generator, and from the packages of Go and Python. Where the readers
//! differ, and why, is in `docs/semantics/layers.md` ("Archives"); nothing else may differ.

mod generator;
mod go;
mod trees;

use std::fs;
use std::path::{Path, PathBuf};

use go::Go;
use vellum_testkit::{Rng, untested};

/// Compares the results of both for `archives`, by name. Returns how many were read to their end,
/// and how many to an error.
#[track_caller]
fn compare(go: &Go, archives: &[(String, Vec<u8>)]) -> (usize, usize) {
    let verdicts = go.read(archives.iter().map(|(_, bytes)| bytes.as_slice()));
    assert_eq!(verdicts.len(), archives.len());
    let (mut good, mut bad) = (0, 0);
    for ((name, bytes), theirs) in archives.iter().zip(verdicts) {
        let ours = go::ours(bytes);
        if !go::same(&ours, &theirs) {
            let kept = std::env::temp_dir().join("differs.tar");
            fs::write(&kept, bytes).unwrap();
            panic!(
                "{name}, kept as {}: here\n{ours}\n{go}:\n{theirs}",
                kept.display()
            );
        }
        match ours.end {
            Ok(()) => good += 1,
            Err(_) => bad += 1,
        }
    }
    (good, bad)
}

#[test]
fn odd_archives_are_read_as_go_reads_them() {
    let slow = std::env::var_os("VELLUM_SLOW").is_some();
    let rounds = if slow { 400 } else { 20 };
    for go in Go::all("odd archives") {
        let mut rng = Rng::for_test("odd archives");
        let (mut good, mut bad) = (0, 0);
        for _ in 0..rounds {
            let archives: Vec<_> = (0..2000)
                .map(|at| {
                    let bytes = generator::archive(&mut rng);
                    (format!("archive {at}"), bytes)
                })
                .collect();
            let (more_good, more_bad) = compare(&go, &archives);
            good += more_good;
            bad += more_bad;
        }
        // The generator is useful only if it produces both.
        assert!(good > bad / 4 && bad > good / 4, "{good} good, {bad} bad");
        println!("{go}: {good} archives read to their end, {bad} refused");
    }
}

/// The archives that a package has for its own tests, read in place.
fn brought_along() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut seek = |below: &str, within: &str, accept: fn(&Path) -> bool| {
        let roots = fs::read_dir(below).into_iter().flatten().flatten();
        for root in roots {
            let dir = root.path().join(within);
            let files = fs::read_dir(dir).into_iter().flatten().flatten();
            found.extend(files.map(|file| file.path()).filter(|path| accept(path)));
        }
    };
    let is_tar = |path: &Path| path.extension().is_some_and(|kind| kind == "tar");
    seek("/usr/share", "src/archive/tar/testdata", is_tar);
    seek("/usr/lib", "test", is_tar);
    seek("/usr/lib", "test/archivetestdata", is_tar);
    found.sort();
    found
}

#[test]
fn test_archives_of_others_are_read_as_go_reads_them() {
    let archives: Vec<_> = brought_along()
        .into_iter()
        .map(|path| (path.display().to_string(), fs::read(path).unwrap()))
        .collect();
    for (whose, part) in [("Go", "archive/tar"), ("Python", "testtar")] {
        if !archives.iter().any(|(name, _)| name.contains(part)) {
            untested(
                &format!("the archives that {whose} tests with"),
                "they are not installed",
            );
        }
    }
    for go in Go::all("archives of packages") {
        let (good, bad) = compare(&go, &archives);
        println!("{go}: {good} archives read to their end, {bad} refused");
    }
}
