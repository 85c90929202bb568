//! What the caller learns when the process that should serve a union doesn't.
//!
//! The program is executed again as the daemon, so it has no test harness: as a daemon it does what
//! the layer's name says.

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use vellum_overlay::daemon::{SERVE_ARGUMENT, start_overlay};
use vellum_overlay::options::{Manners, MountOptions};
use vellum_overlay::{Error, dialect, layers};
use vellum_testkit::untested;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some(SERVE_ARGUMENT) => {
            if arguments.iter().any(|argument| argument == "says ready") {
                std::io::stdout().write_all(b"ready\n").unwrap();
                return;
            }
            eprintln!("error: the disk is gone");
            std::process::exit(1);
        }
        Some("without descriptors") => return cant_be_started(),
        Some("in a namespace") => return has_no_trusted_marks(),
        Some("--list") => {
            for (name, _) in TESTS {
                println!("{name}: test");
            }
            return;
        }
        _ => {}
    }
    for (name, test) in TESTS {
        test();
        println!("test {name} ... ok");
    }
}

const TESTS: [(&str, fn()); 5] = [
    (
        "a_daemon_that_fails_is_quoted",
        a_daemon_that_fails_is_quoted,
    ),
    (
        "a_mount_that_never_answers_is_named",
        a_mount_that_never_answers_is_named,
    ),
    (
        "a_daemon_that_cant_be_started_is_named",
        a_daemon_that_cant_be_started_is_named,
    ),
    (
        "a_mount_point_that_does_not_exist_is_named",
        a_mount_point_that_does_not_exist_is_named,
    ),
    (
        "marks_of_root_are_not_for_a_namespace",
        marks_of_root_are_not_for_a_namespace,
    ),
];

fn start(does: &str) -> Error {
    let arguments = [OsString::from(does)];
    start_overlay(&arguments, Path::new("/nonexistent/merged")).unwrap_err()
}

fn a_daemon_that_fails_is_quoted() {
    let error = start("fails");
    assert!(matches!(error, Error::Engine { .. }), "{error:?}");
    assert_eq!(
        error.to_string(),
        "Vellum's engine could not mount the layers: the disk is gone"
    );
}

fn a_mount_that_never_answers_is_named() {
    let error = start("says ready");
    assert!(matches!(error, Error::Silent { .. }), "{error:?}");
    assert_eq!(
        error.to_string(),
        "the mount on /nonexistent/merged does not answer"
    );
}

fn a_daemon_that_cant_be_started_is_named() {
    let done = Command::new("sh")
        .args(["-c", "ulimit -n 4; exec \"$0\" 'without descriptors'"])
        .arg(std::env::current_exe().unwrap())
        .status();
    assert!(done.unwrap().success());
}

fn cant_be_started() {
    let error = start("fails");
    assert!(matches!(error, Error::Program { .. }), "{error:?}");
    assert_eq!(error.to_string(), "cannot run /proc/self/exe");
}

fn a_mount_point_that_does_not_exist_is_named() {
    let nowhere = Path::new("/nonexistent/merged");
    let error = layers::apart_from(nowhere, &MountOptions::new(Manners::Own)).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error:?}");
    assert_eq!(error.to_string(), "cannot find /nonexistent/merged");
}

fn marks_of_root_are_not_for_a_namespace() {
    let made = Command::new("unshare").args(["-Ur", "true"]).output();
    if !made.is_ok_and(|done| done.status.success()) {
        return untested("a namespace with one id", "it can't be created");
    }
    let done = Command::new("unshare")
        .arg("-Ur")
        .arg(std::env::current_exe().unwrap())
        .arg("in a namespace")
        .status();
    assert!(done.unwrap().success());
}

fn has_no_trusted_marks() {
    let options = MountOptions {
        user_xattr: Some(false),
        ..MountOptions::new(Manners::Own)
    };
    let error = dialect::prefix(&options).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error:?}");
    assert!(error.hint().is_some());
}
