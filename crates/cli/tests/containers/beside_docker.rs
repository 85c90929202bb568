//! Every field of an image's configuration, especially unusual values, run by Vellum and by Docker:
//! both print the same and return the same code.
//!
//! One archive holds all the images, and one dockerd is the reference. Rows where Vellum differs on
//! purpose have its answer. The slow tier runs all rows in Docker; otherwise it runs every fourth.

mod rows;

use std::collections::VecDeque;
use std::process::{Command, Output};
use std::sync::Mutex;

use serde_json::Value;
use vellum_testkit::clients::{Dockerd, Home, Vellum, available};

use crate::support::archive_of_many;

/// In flags: a directory with the file `inbound` in it.
const BOUND: &str = "BOUND";

/// One image and a run of it.
pub struct Row {
    /// What it is about; in messages.
    name: String,
    /// The `config` section.
    config: Value,
    /// The layer above the one with the shell.
    layer: Vec<u8>,
    /// Flags that both commands have.
    flags: Vec<String>,
    /// The command.
    command: Vec<String>,
    expect: Expect,
}

/// The answer expected from Vellum.
pub enum Expect {
    /// What Docker does.
    AsDocker,
    /// This code and output instead.
    Instead(i32, String),
}

#[test]
fn every_field_of_a_configuration_means_what_it_means_to_docker() {
    if !available(&["dockerd", "docker", "runc"]) {
        return;
    }
    let Ok(busybox) = std::fs::read("/usr/bin/busybox").or_else(|_| std::fs::read("/bin/busybox"))
    else {
        vellum_testkit::untested("runs beside Docker", "there is no busybox");
        return;
    };
    let home = Home::new().unwrap();
    let base = rows::base(&busybox);
    let mut rows = rows::rows();
    if std::env::var_os("VELLUM_SLOW").is_none() {
        let mut at = 0;
        rows.retain(|row| {
            at += 1;
            matches!(row.expect, Expect::Instead(..)) || at % 4 == 0
        });
    }
    let images: Vec<_> = rows
        .iter()
        .enumerate()
        .map(|(at, row)| (tag(at), vec![&base[..], &row.layer[..]], row.config.clone()))
        .collect();
    let archive = home.join("rows.tar");
    archive_of_many(&archive, &images);
    let dockerd = Dockerd::start(&home, &[]).unwrap();
    dockerd.load(&archive).unwrap();
    let vellum = Vellum::new(env!("CARGO_BIN_EXE_vellum"), &home, "vellum").unwrap();
    vellum
        .run(&["load", "--quiet", archive.to_str().unwrap()])
        .unwrap();

    let todo: Mutex<VecDeque<usize>> = Mutex::new((0..rows.len()).collect());
    let wrong = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while let Some(at) = { todo.lock().unwrap().pop_front() } {
                    let row = &rows[at];
                    let bound = |side: &str| {
                        let dir = home.dir(&format!("bound-{at}-{side}")).unwrap();
                        std::fs::write(dir.join("inbound"), "x").unwrap();
                        dir.display().to_string()
                    };
                    let ours = outcome(row, at, vellum.command(), &bound("vellum"));
                    let expect = match &row.expect {
                        Expect::AsDocker => outcome(row, at, dockerd.command(), &bound("docker")),
                        Expect::Instead(code, out) => (*code, out.clone(), String::new()),
                    };
                    if (ours.0, &ours.1) != (expect.0, &expect.1) {
                        let name = &row.name;
                        let line = format!("{name}:\n  vellum {ours:?}\n  expected {expect:?}");
                        wrong.lock().unwrap().push(line);
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    let (wrong_count, count) = (wrong.len(), rows.len());
    assert!(
        wrong.is_empty(),
        "{wrong_count} of {count} rows:\n{}",
        wrong.join("\n")
    );
    eprintln!("{count} rows");
    // The declared volumes were removed with the containers.
    assert_eq!(vellum.run(&["volume", "ls", "--json"]).unwrap(), "[]");
    assert_eq!(vellum.run(&["ls", "--json"]).unwrap(), "[]");
}

fn tag(at: usize) -> String {
    format!("row:{at}")
}

/// Exit code, output and errors of a run; `bound` is a directory of its own to bind.
fn outcome(row: &Row, at: usize, mut command: Command, bound: &str) -> (i32, String, String) {
    command.args(["run", "--rm", "--network", "none", "--hostname", "box"]);
    let flags = row.flags.iter().map(|flag| flag.replace(BOUND, bound));
    command.args(flags).arg(tag(at)).args(&row.command);
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    (status.code().unwrap_or(-1), text(&stdout), text(&stderr))
}
