//! Reporting what a machine can't test.
//!
//! A test that lacks a kernel feature or privilege calls [`untested`] and returns. The line goes to
//! the test's output and to the file named by `VELLUM_UNTESTED`, so that the end of a run can count
//! what was left untested.

use std::io::Write;

/// Records that `feature` was not tested, and why.
///
/// One line is appended to the file named by the environment variable `VELLUM_UNTESTED`, if it is
/// set.
pub fn untested(feature: &str, why: impl std::fmt::Display) {
    let thread = std::thread::current();
    // Programs print several lines, and a claim is counted once.
    let why = why.to_string();
    let why = why.lines().next().unwrap_or_default();
    let line = format!(
        "UNTESTED {feature} [{}]: {why}\n",
        thread.name().unwrap_or("?")
    );
    eprint!("{line}");
    if let Some(path) = std::env::var_os("VELLUM_UNTESTED") {
        let file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path);
        // One write: lines of tests that run at the same time must not mix.
        file.and_then(|mut file| file.write_all(line.as_bytes()))
            .expect("the file of VELLUM_UNTESTED takes a line");
    }
}

/// Returns whether this process is root in the initial user namespace, judging by its capabilities.
pub fn is_root() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let whole = map.split_whitespace().eq(["0", "0", "4294967295"]);
    rustix::process::geteuid().is_root() && whole
}

/// Returns whether the test may continue because it runs as root; otherwise records `feature` as
/// untested.
#[must_use]
pub fn needs_root(feature: &str) -> bool {
    if !is_root() {
        untested(feature, "needs root in the initial user namespace");
    }
    is_root()
}
