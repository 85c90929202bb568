//! Every operation of the store, with the power cut, the process killed or a call failing at each
//! of its system calls, including SQLite's: afterwards the store opens, holds what it held before
//! or after, and one gc leaves no litter.
//!
//! In this process and without root; `crash.rs` does some of it to a real process.

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use common::steps::{self, Outcome, STEPS, assert_whole, holds, is_single, step};
use common::*;
use vellum_store::{DriverKind, Store, StoreOptions};
use vellum_testkit::seam::{self, Counted, Effect, Picture};
use vellum_testkit::{Scratch, needs_root};

/// A store that each run gets a copy of.
struct Pattern {
    scratch: Scratch,
    driver: DriverKind,
    picture: Picture,
    copies: usize,
}

impl Pattern {
    fn new(driver: DriverKind) -> Pattern {
        let scratch = Scratch::new();
        let root = scratch.dir("pattern");
        steps::pattern(&root, driver);
        Pattern {
            picture: Picture::of(&root),
            scratch,
            driver,
            copies: 0,
        }
    }

    fn copy(&mut self, picture: &Picture) -> PathBuf {
        self.copies += 1;
        let root = self.scratch.dir(format!("copy{}", self.copies));
        picture.write_to(&root);
        root
    }

    fn again(&mut self) -> PathBuf {
        let picture = self.picture.clone();
        self.copy(&picture)
    }

    /// What the store holds before `name`, and after it when nothing goes wrong.
    fn both(&mut self, name: &str) -> [BTreeSet<String>; 2] {
        let root = self.again();
        let before = holds(&open_at(&root, self.driver));
        perform(&root, self.driver, name).unwrap_or_else(|e| panic!("{name}: {e}"));
        let after = holds(&open_at(&root, self.driver));
        [before, after]
    }
}

/// Opening and closing the store is included.
fn perform(root: &Path, driver: DriverKind, name: &str) -> Outcome {
    let options = StoreOptions {
        driver,
        ..StoreOptions::new(root)
    };
    step(name, &Store::open(&options)?)
}

fn cut_at_every_call(driver: DriverKind, names: &[&str]) {
    if !seam::available() {
        return;
    }
    let mut pattern = Pattern::new(driver);
    for name in names {
        let [before, after] = pattern.both(name);
        let root = pattern.again();
        let (done, moments) = seam::moments(&root, || perform(&root, driver, name));
        done.unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(moments.len() > 10, "{name}: {} moments", moments.len());
        for moment in moments {
            let context = match &moment.before {
                Some(call) => format!("{driver} {name}, lost {:?} before {call}", moment.loses),
                None => format!("{driver} {name}, lost {:?} at the end", moment.loses),
            };
            let root = pattern.copy(&moment.tree);
            let now = holds(&open_at(&root, driver));
            if is_single(name) {
                assert!(now == before || now == after, "{context}: {now:?}");
            }
            if moment.before.is_none() {
                assert_eq!(now, after, "{context}: what was done is not there");
            }
            assert_whole(&root, driver, &context);
            std::fs::remove_dir_all(&root).unwrap();
        }
    }
}

fn fail_at_every_call(driver: DriverKind, names: &[&str], counted: Counted, effect: Effect) {
    if !seam::available() {
        return;
    }
    let mut pattern = Pattern::new(driver);
    for name in names {
        let [before, after] = pattern.both(name);
        let hits = seam::each(5000, |n| {
            let root = pattern.again();
            let run = seam::run(&root, counted, n, effect, || perform(&root, driver, name));
            let call = run.hit.clone();
            let context = match &call {
                Some(call) => format!("{driver} {name}, {effect:?} at call {n}, {call}"),
                None => format!("{driver} {name}, undisturbed"),
            };
            let done = run.value();
            let context = format!("{context}: {done:?}");
            let now = holds(&open_at(&root, driver));
            if is_single(name) {
                assert!(now == before || now == after, "{context}: {now:?}");
            }
            if done.is_ok() {
                assert_eq!(now, after, "{context}");
            }
            assert_whole(&root, driver, &context);
            std::fs::remove_dir_all(&root).unwrap();
            call
        });
        assert!(hits > 10, "{name}: {hits} calls");
        println!("  {driver} {name} {effect:?}: {hits} calls");
    }
}

#[test]
fn power_cut_at_every_call_nothing_is_lost_or_half_made() {
    cut_at_every_call(DriverKind::Overlay2, &STEPS);
}

#[test]
fn power_cut_at_every_call_of_the_other_drivers() {
    if needs_root("owners and links of whole trees") {
        cut_at_every_call(DriverKind::Overlay, &["commit"]);
        cut_at_every_call(DriverKind::Native, &["prepare"]);
    }
}

#[test]
fn killed_at_every_call_nothing_is_lost_or_half_made() {
    fail_at_every_call(DriverKind::Overlay2, &STEPS, Counted::Changes, Effect::Stop);
}

#[test]
fn a_full_disk_at_every_call_leaves_the_store_whole() {
    let names = ["prepare", "commit", "import"];
    let effect = Effect::FailFrom(rustix::io::Errno::NOSPC.raw_os_error());
    fail_at_every_call(DriverKind::Overlay2, &names, Counted::Changes, effect);
}

#[test]
fn any_call_that_fails_leaves_the_store_whole() {
    let effect = Effect::Fail(rustix::io::Errno::IO.raw_os_error());
    fail_at_every_call(DriverKind::Overlay2, &STEPS, Counted::All, effect);
}
