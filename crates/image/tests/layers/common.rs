//! Helpers of the layer tests: applying, writing again, and other tar programs.

use std::fs::File;
use std::io::{Cursor, Write};
use std::path::Path;
use std::process::Command;

use vellum_format::Digest;
use vellum_image::recipe::replay;
use vellum_image::{
    Applied, ApplyTarget, Cancel, LayerStream, Limits, Privilege, TargetMarks, apply,
};
use vellum_sys::Dir;

/// Applies the tar `layer` to `tree`; returns its recipe too.
pub fn apply_to(layer: &Path, tree: &Path, marks: TargetMarks) -> (Applied, Vec<u8>) {
    let target = ApplyTarget {
        root: Dir::open(tree).unwrap(),
        marks,
        privilege: Privilege::Full,
        donor: None,
    };
    let (limits, cancel) = (Limits::default(), Cancel::new());
    let mut recipe = Vec::new();
    let stream = LayerStream::open(Box::new(File::open(layer).unwrap()), &limits, &cancel).unwrap();
    let applied = apply(stream, &target, Some(&mut recipe), &limits, &cancel)
        .unwrap_or_else(|error| panic!("{}: {}", layer.display(), chain(&error)));
    (applied, recipe)
}

/// The error with its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}

/// Writes the layer again and compares it with `layer`, byte for byte.
#[track_caller]
pub fn assert_comes_back(layer: &Path, tree: &Path, recipe: &[u8]) {
    let bytes = std::fs::read(layer).unwrap();
    let mut again = Vec::new();
    let replayed = replay(
        &mut Cursor::new(recipe),
        &Dir::open(tree).unwrap(),
        &mut again,
        &Cancel::new(),
    )
    .unwrap_or_else(|error| panic!("{}: {}", layer.display(), chain(&error)));
    assert!(again == bytes, "{} comes back changed", layer.display());
    assert_eq!(replayed.diff_id, Digest::of(&bytes));
}

/// Runs a program; a failure includes its output.
#[track_caller]
pub fn run(command: &mut Command) {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Extracts with GNU tar, including everything it can.
#[track_caller]
pub fn gnu_extract(layer: &Path, tree: &Path) {
    run(Command::new("tar")
        .args([
            "--extract",
            "--numeric-owner",
            "--same-owner",
            "--same-permissions",
        ])
        .args([
            "--xattrs",
            "--xattrs-include=*",
            "--delay-directory-restore",
            "--file",
        ])
        .arg(layer)
        .arg("--directory")
        .arg(tree));
}

/// True if a program is installed.
pub fn installed(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success())
}

/// Runs Python with `script` and `arguments`.
#[track_caller]
pub fn python(script: &str, arguments: &[&Path]) {
    let mut child = Command::new("python3")
        .arg("-")
        .args(arguments)
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(script.as_bytes())
        .unwrap();
    assert!(child.wait().unwrap().success());
}
