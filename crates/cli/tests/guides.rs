//! The commands of the guides (`docs/guides`), run as they are printed.
//!
//! In a guide, a block of `sh` is what the reader types as root, and a block of `sh plain` what a
//! plain user types. The blocks of a user run in order, in one shell, on a machine that the test
//! sets up (`support/guide.sh`); the first command that fails ends it. A block of `text` directly
//! after one of those says what it prints: its lines, in order, with others between them, whatever
//! their spaces. A block of `console` is not run, and the guide says where it was tried.

mod support;

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::json;
use support::{archive, layer};
use vellum_testkit::clients::{available, find};
use vellum_testkit::{Scratch, untested};

const MACHINE: &str = include_str!("support/guide.sh");
const SYSTEMCTL: &str = include_str!("support/guide_systemctl.sh");

/// How `guide.sh` ends where it can't make a machine.
const NO_MACHINE: i32 = 77;

fn root_of_the_tree() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// One block of commands, and what they print.
#[derive(Debug, PartialEq, Eq)]
struct Block {
    /// What follows `sh` in the page: empty, or `plain`.
    user: String,
    commands: String,
    prints: Vec<String>,
}

/// Returns the blocks of a page that are run.
fn blocks(page: &str) -> Vec<Block> {
    let mut found: Vec<Block> = Vec::new();
    // The fence that is open, and whether a block of `text` would say what the last commands print.
    let mut open: Option<&str> = None;
    let mut follows = false;
    for line in page.lines() {
        if let Some(fence) = line.strip_prefix("```") {
            match open {
                None => {
                    if fence == "sh" || fence.starts_with("sh ") {
                        found.push(Block {
                            user: fence[2..].trim().to_owned(),
                            commands: String::new(),
                            prints: Vec::new(),
                        });
                    }
                    open = Some(fence);
                }
                Some(closed) => {
                    follows = closed.starts_with("sh");
                    open = None;
                }
            }
            continue;
        }
        match (open, found.last_mut()) {
            (Some(fence), Some(block)) if fence.starts_with("sh") => {
                block.commands.push_str(line);
                block.commands.push('\n');
            }
            (Some("text"), Some(block)) if follows => block.prints.push(line.to_owned()),
            (None, _) if !line.is_empty() => follows = false,
            _ => {}
        }
    }
    found
}

fn spaced_once(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Returns the first line of `expected` that `output` lacks after those before it.
fn missing<'a>(expected: &'a [String], output: &str) -> Option<&'a str> {
    let mut lines = output.lines().map(spaced_once);
    expected
        .iter()
        .map(String::as_str)
        .find(|wanted| !lines.any(|line| line.contains(&spaced_once(wanted))))
}

/// An image with the name, and the programs, that the guides use of a real one.
fn image(scratch: &Scratch) -> PathBuf {
    let busybox = fs::read(find("busybox").unwrap()).unwrap();
    let mut base = layer().dir("bin").program("bin/busybox", &busybox);
    for applet in ["cat", "echo", "ls", "rm", "sh", "sleep"] {
        base = base.symlink(&format!("bin/{applet}"), "busybox");
    }
    let base = base
        .dir("etc")
        .file("etc/group", "root:x:0:\n")
        .file("etc/motd", "removed above\n")
        .file(
            "etc/os-release",
            "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n",
        )
        .file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")
        .dir("tmp")
        .done();
    let top = layer().dir("etc").whiteout("etc/motd").done();
    archive(
        scratch,
        "debian:12",
        &[base, top],
        json!({ "Cmd": ["sh"], "Env": ["PATH=/usr/bin:/bin"] }),
    )
}

/// Runs a guide's commands of one user, with `services` running.
fn follow(guide: &str, user: &str, services: &[&str]) {
    let page = root_of_the_tree().join(format!("docs/guides/{guide}.md"));
    let mut blocks = blocks(&fs::read_to_string(page).unwrap());
    blocks.retain(|block| block.user == user);
    assert!(!blocks.is_empty(), "{guide} has no commands of this user");

    let scratch = Scratch::new();
    let mut commands = "set -e -o pipefail\n".to_owned();
    for (at, block) in blocks.iter().enumerate() {
        writeln!(commands, "printf '\\n@@ {at}\\n'\n{}", block.commands).unwrap();
    }
    scratch.file("guide", commands);
    scratch.file("systemctl", SYSTEMCTL);
    let script = scratch.file("guide.sh", MACHINE);
    fs::rename(image(&scratch), scratch.join("image.tar")).unwrap();
    fs::create_dir(scratch.join("machine")).unwrap();

    let output = scratch.join("output");
    let written = fs::File::create(&output).unwrap();
    let ended = Command::new("timeout")
        .args(["-k", "5", "300", "unshare", "--mount", "--net", "--pid"])
        .args(["--fork", "--kill-child", "--propagation", "private", "sh"])
        .arg(script)
        .arg(scratch.path())
        .arg(if user.is_empty() { "root" } else { user })
        .arg(env!("CARGO_BIN_EXE_vellum"))
        .arg(root_of_the_tree().join("contrib"))
        .args(services)
        .stdin(Stdio::null())
        .stdout(written.try_clone().unwrap())
        .stderr(written)
        .status()
        .unwrap();
    if ended.code() == Some(NO_MACHINE) {
        untested("guides", "the root can't be the lower layer of an overlay");
        return;
    }
    let output = String::from_utf8_lossy(&fs::read(output).unwrap()).into_owned();
    assert!(ended.success(), "{guide}: {ended}\n{output}");
    for (at, block) in blocks.iter().enumerate() {
        let (_, said) = output.split_once(&format!("\n@@ {at}\n")).unwrap();
        let said = said.split("\n@@ ").next().unwrap();
        if let Some(line) = missing(&block.prints, said) {
            panic!(
                "{guide}: `{line}` is not printed by\n{}\nbut\n{said}",
                block.commands
            );
        }
    }
}

/// What a guide needs besides `programs`.
fn ready(programs: &[&str]) -> bool {
    available(&["unshare", "bash", "busybox", "setpriv"]) && available(programs)
}

#[test]
fn containerd_guide_works_as_printed() {
    if ready(&["containerd", "ctr", "runc"]) {
        follow("containerd", "", &["containerd"]);
    }
}

#[test]
fn docker_guide_works_as_printed() {
    if !ready(&["dockerd", "docker", "containerd", "runc"]) {
        return;
    }
    let version = Command::new("dockerd").arg("--version").output().unwrap();
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    let number = version.trim_start_matches("Docker version ");
    let major: Option<u32> = number.split('.').next().and_then(|word| word.parse().ok());
    if major.is_none_or(|major| major > 26) {
        untested("the guide's plugin", format!("not with {version}"));
        return;
    }
    follow("docker", "", &["docker"]);
}

#[test]
fn podman_guide_works_as_printed() {
    if ready(&["podman", "newuidmap"]) {
        follow("podman-rootless", "plain", &[]);
    }
}

#[test]
fn union_guide_works_as_printed() {
    if ready(&["fusermount3"]) {
        follow("union-mount", "plain", &[]);
        follow("union-mount", "", &[]);
    }
}

#[test]
fn throwaway_guide_works_as_printed() {
    if ready(&["newuidmap"]) {
        follow("throwaway-copy", "", &[]);
        follow("throwaway-copy", "plain", &[]);
    }
}

#[test]
fn nodes_guide_works_as_printed() {
    if ready(&["containerd", "ctr", "curl"]) {
        follow("hundred-nodes", "", &["containerd"]);
    }
}

/// A guide that no test above follows would go stale unseen.
#[test]
fn every_guide_and_every_block_has_a_test() {
    let this = include_str!("guides.rs");
    for entry in fs::read_dir(root_of_the_tree().join("docs/guides")).unwrap() {
        let path = entry.unwrap().path();
        let guide = path.file_stem().unwrap().to_str().unwrap();
        for block in blocks(&fs::read_to_string(&path).unwrap()) {
            let call = format!("follow(\"{guide}\", \"{}\", ", block.user);
            assert!(this.contains(&call), "nothing follows {guide}: {block:?}");
        }
    }
}

#[test]
fn blocks_and_what_they_print_are_found_in_a_page() {
    let page = "a\n```sh\none\ntwo\n```\n\n```text\n1  2\n```\n```sh plain\nthree\n```\nb\n\
                ```text\nnot theirs\n```\n```console\n$ never\n```\n";
    let block = |user: &str, commands: &str, prints: &[&str]| Block {
        user: user.into(),
        commands: commands.into(),
        prints: prints.iter().map(|&line| line.into()).collect(),
    };
    let expected = [
        block("", "one\ntwo\n", &["1  2"]),
        block("plain", "three\n", &[]),
    ];
    assert_eq!(blocks(page), expected);
    assert_eq!(missing(&expected[0].prints, "0\n x 1 2 y\n"), None);
    assert_eq!(missing(&["b".into(), "a".into()], "a\nb\n"), Some("a"));
}
