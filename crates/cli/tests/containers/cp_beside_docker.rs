//! `cp` compared with `docker cp`: every kind of source onto every kind of destination, and tars of
//! every kind. Exit code and resulting tree are the same, or the difference is listed with its
//! reason.
//!
//! Each cell has a directory of its own in the container and on the host, so that one container and
//! one dockerd serve hundreds of them. `fixture.rs` says what is in it, `cells.rs` what is copied.

mod cells;
mod fixture;
mod tars;

use std::collections::{HashMap, VecDeque};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::time::SystemTime;

use serde_json::json;
use vellum_testkit::Tree;
use vellum_testkit::clients::{Dockerd, Home, Vellum, available};
use vellum_testkit::tree::Ignore;

use crate::support::archive_of_many;

/// One copy.
pub struct Cell {
    /// What it is about; in messages.
    name: String,
    /// Arguments of `cp`: `SRC` is the sources' directory, `OUT` the cell's own on the host, `BOX`
    /// the container and `HERE` the cell's directory in it.
    args: Vec<String>,
    /// What comes on stdin.
    input: Vec<u8>,
    /// How Vellum's outcome differs from Docker's, on purpose.
    differences: &'static [&'static str],
    /// Left to the slow tier.
    slow: bool,
    /// The destination is the container's root, so it needs its own container.
    whole: bool,
}

/// Containers that share the cells, so that several copies can run at the same time.
const BOXES: usize = 3;

#[test]
fn cp_does_what_docker_cp_does() {
    if !available(&["dockerd", "docker"]) {
        return;
    }
    let began = SystemTime::now();
    let home = Home::new().unwrap();
    let mut cells = cells::cells();
    if std::env::var_os("VELLUM_SLOW").is_none() {
        cells.retain(|cell| !cell.slow);
    }
    let sources = home.dir("src").unwrap();
    fixture::sources(&sources);
    let archive = home.join("cells.tar");
    let (all, one) = (fixture::image(cells.len()), fixture::image(1));
    let images = [
        (
            "cells:1".to_owned(),
            vec![&all[..]],
            json!({"Cmd": ["/none"]}),
        ),
        (
            "cell:1".to_owned(),
            vec![&one[..]],
            json!({"Cmd": ["/none"]}),
        ),
    ];
    archive_of_many(&archive, &images);
    let dockerd = Dockerd::start(&home, &[]).unwrap();
    dockerd.load(&archive).unwrap();
    let vellum = Vellum::new(env!("CARGO_BIN_EXE_vellum"), &home, "vellum").unwrap();
    vellum
        .run(&["load", "--quiet", archive.to_str().unwrap()])
        .unwrap();
    let mut containers = Vec::new();
    let mut create = |name: String, image: &str| {
        dockerd.docker(&["create", "--name", &name, image]).unwrap();
        vellum.run(&["create", "--name", &name, image]).unwrap();
        containers.push(name);
    };
    for number in 0..BOXES {
        create(format!("box{number}"), "cells:1");
    }
    for at in (0..cells.len()).filter(|at| cells[*at].whole) {
        create(format!("whole{at}"), "cell:1");
    }
    // The others are mounted again for each copy.
    vellum.mount("box0").unwrap();

    let todo: Mutex<VecDeque<usize>> = Mutex::new((0..cells.len()).collect());
    let outcomes = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for number in 0..BOXES {
            let (cells, todo, outcomes) = (&cells, &todo, &outcomes);
            let (home, sources, vellum, dockerd) = (&home, &sources, &vellum, &dockerd);
            scope.spawn(move || {
                while let Some(at) = { todo.lock().unwrap().pop_front() } {
                    let cell = &cells[at];
                    let (container, here) = match cell.whole {
                        true => (format!("whole{at}"), 0),
                        false => (format!("box{number}"), at),
                    };
                    let [ours, theirs] = ["vellum", "docker"].map(|side| {
                        let out = home.dir(&format!("{side}-{at}")).unwrap();
                        fixture::host(&out);
                        let command = match side {
                            "vellum" => vellum.command(),
                            _ => dockerd.command(),
                        };
                        (run(cell, command, sources, &out, &container, here), out)
                    });
                    let outcome = (at, container, here, ours, theirs);
                    outcomes.lock().unwrap().push(outcome);
                }
            });
        }
    });

    let mut wrong = Vec::new();
    let trees = Trees::new(&home, &vellum, &dockerd, &containers);
    for (at, container, here, (ours, our_out), (theirs, their_out)) in
        outcomes.into_inner().unwrap()
    {
        let cell = &cells[at];
        let mut found = Vec::new();
        if ours.0 != theirs.0 {
            found.push(format!("exit: {} / {}", ours.0, theirs.0));
        }
        let below = match cell.whole {
            true => PathBuf::new(),
            false => fixture::here(here),
        };
        let (us, them) = trees.of(&container, &below);
        found.extend(differences(us, them, began));
        let read = |out: &Path| Tree::read(out).unwrap();
        found.extend(differences(read(&our_out), read(&their_out), began));
        if found != cell.differences {
            let (name, args) = (&cell.name, cell.args.join(" "));
            let lines: String = found.iter().map(|line| format!("    {line}\n")).collect();
            wrong.push(format!(
                "{name}: cp {args}\n{lines}  vellum {:?}\n  docker {:?}",
                ours.1, theirs.1
            ));
        }
    }
    wrong.sort();
    let count = cells.len();
    assert!(
        wrong.is_empty(),
        "{} of {count} cells:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    eprintln!("{count} cells");
    assert!(count >= 150, "{count}");
}

/// Whether a copy succeeded, and what it said.
type Outcome = (bool, String);

fn run(
    cell: &Cell,
    mut command: Command,
    sources: &Path,
    out: &Path,
    container: &str,
    here: usize,
) -> Outcome {
    let args = cell.args.iter().map(|arg| {
        arg.replace("SRC", sources.to_str().unwrap())
            .replace("OUT", out.to_str().unwrap())
            .replace("BOX", container)
            .replace("HERE", &format!("/{}", fixture::here(here).display()))
    });
    command.arg("cp").args(args);
    let done = with_input(command, &cell.input);
    if done.status.success() && cell.args.last().is_some_and(|arg| arg == "-") {
        let mut tar = Command::new("tar");
        tar.args(["-xp", "--xattrs", "--xattrs-include=*", "--numeric-owner"])
            .arg("-C")
            .arg(out);
        assert!(with_input(tar, &done.stdout).status.success());
    }
    let said = String::from_utf8_lossy(&done.stderr).trim().to_owned();
    (done.status.success(), said)
}

fn with_input(mut command: Command, input: &[u8]) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // The command may have stopped reading.
            let _ = stdin.write_all(input);
        });
        child.wait_with_output().unwrap()
    })
}

/// Returns the differences. All times that this test itself set count as equal.
fn differences(mut ours: Tree, mut theirs: Tree, began: SystemTime) -> Vec<String> {
    let began = began.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    for entry in ours.entries.values_mut().chain(theirs.entries.values_mut()) {
        if entry.mtime.0 >= began.as_secs() as i64 {
            entry.mtime = (i64::MAX, 0);
        }
    }
    let ignore = Ignore {
        nanoseconds: true,
        ..Ignore::default()
    };
    let found = ours.differences(&theirs, ignore);
    found.iter().map(ToString::to_string).collect()
}

/// The containers' trees, mounted.
struct Trees {
    ours: HashMap<String, PathBuf>,
    theirs: HashMap<String, PathBuf>,
}

impl Trees {
    fn new(home: &Home, vellum: &Vellum, dockerd: &Dockerd, containers: &[String]) -> Self {
        let (mut ours, mut theirs) = (HashMap::new(), HashMap::new());
        for name in containers {
            ours.insert(name.clone(), vellum.mount(name).unwrap());
            let format = "{{.GraphDriver.Data.UpperDir}}:{{.GraphDriver.Data.LowerDir}}";
            let layers = dockerd
                .docker(&["container", "inspect", "--format", format, name])
                .unwrap();
            // Without the layer of what Docker adds to containers: `.dockerenv`, `dev/console`.
            let layers: Vec<_> = layers.trim().split(':').collect();
            let plain: Vec<_> = layers
                .into_iter()
                .filter(|dir| !dir.ends_with("-init/diff"))
                .collect();
            let at = home.dir(&format!("tree-of-{name}")).unwrap();
            let options = format!("ro,lowerdir={}", plain.join(":"));
            let mut mount = Command::new("mount");
            mount.args(["-t", "overlay", "overlay", "-o", &options]);
            assert!(mount.arg(&at).status().unwrap().success());
            theirs.insert(name.clone(), at);
        }
        Self { ours, theirs }
    }

    fn of(&self, container: &str, below: &Path) -> (Tree, Tree) {
        let read = |top: &Path| Tree::read(&top.join(below)).unwrap();
        (read(&self.ours[container]), read(&self.theirs[container]))
    }
}
