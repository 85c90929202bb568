//! Concurrent commands: one reads what another one is changing or removing at that moment.
//!
//! Every reading command runs concurrently with every changing one, again and again. The reader
//! either answers or says that the thing is not there. It never reports damage, and a listing never
//! fails because an entry vanished.

mod support;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use support::{Said, World, small};

/// What a command may say if its object was just removed, or is not there yet.
const NOT_THERE: [&str; 4] = [
    "there is no container",
    "there is no image",
    "is in use",
    "the name `",
];

/// Words that report damage, or a record that users don't know.
const FALSE_ALARMS: [&str; 10] = [
    "damaged",
    "is missing",
    "is lost",
    "are lost",
    "does not exist",
    "No such file",
    "WARN",
    "repaired",
    "panicked",
    "can't be determined",
];

/// Commands that list everything. They never fail.
const LISTINGS: [&str; 8] = [
    "ls",
    "ls --size",
    "images",
    "df",
    "check",
    "check --deep",
    "info",
    "mount",
];

fn judge(reader: &[&str], changer: &str, said: &Said) -> Result<(), String> {
    let told = format!("{reader:?} beside {changer}: {said:?}");
    if FALSE_ALARMS
        .iter()
        .any(|alarm| said.err.contains(alarm) || said.out.contains(alarm))
    {
        return Err(told);
    }
    let lists = LISTINGS.contains(&reader.join(" ").as_str());
    match said.code {
        0 => Ok(()),
        1 if !lists && NOT_THERE.iter().any(|words| said.err.contains(words)) => Ok(()),
        _ => Err(told),
    }
}

/// The changing commands. Each is a round that restores what it removes.
fn changers(archive: &Path) -> Vec<(&'static str, Vec<Vec<String>>)> {
    let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let load = format!("load --input {}", archive.display());
    let round = |lines: &[&str]| lines.iter().map(|line| words(line)).collect::<Vec<_>>();
    vec![
        (
            "rm",
            round(&["create --name box small:1", "rm --force box"]),
        ),
        ("rmi", round(&[&load, "rmi --force small:1"])),
        (
            "gc",
            round(&[
                &load,
                "create --name box small:1",
                "rm --force box",
                "rmi --force small:1",
                "gc",
            ]),
        ),
        ("load", round(&["rmi --force small:1", "gc", &load])),
        (
            "create",
            round(&[
                &load,
                "create --name box small:1",
                "create --name box2 small:1",
                "rm --force box2",
                "rm --force box",
            ]),
        ),
        (
            "commit",
            round(&[
                &load,
                "create --name box small:1",
                "commit box made:1",
                "rmi made:1",
                "rm --force box",
            ]),
        ),
        (
            "mount",
            round(&[
                &load,
                "create --name box small:1",
                "mount box",
                "umount box",
                "rm --force box",
            ]),
        ),
    ]
}

#[test]
fn concurrent_commands_never_report_damage() {
    let Some(world) = World::new() else { return };
    let archive = small(&world.scratch);
    world.ok(&["load", "--input", archive.to_str().unwrap()]);
    let saved = world.scratch.join("saved.tar");
    let out = world.scratch.join("copied");
    let export = world.scratch.join("exported");
    let readers: [&[&str]; 19] = [
        &["ls"],
        &["ls", "--size"],
        &["images"],
        &["df"],
        &["check"],
        &["check", "--deep"],
        &["info"],
        &["mount"],
        &["diff", "box"],
        &["inspect", "box"],
        &["inspect", "small:1"],
        &["history", "small:1"],
        &["mount", "box"],
        &["mount", "--dry-run", "box"],
        &["save", "--output", saved.to_str().unwrap(), "small:1"],
        &["commit", "box", "read:1"],
        &["cp", "box:/dir/inner", out.to_str().unwrap()],
        &["create", "--name", "third", "small:1"],
        &[
            "export",
            "containers-storage",
            export.to_str().unwrap(),
            "small:1",
        ],
    ];
    let slow = std::env::var_os("VELLUM_SLOW").is_some();
    let long = Duration::from_millis(if slow { 6000 } else { 100 });
    let (mut pairs, mut met) = (0, 0);
    let mut wrong = Vec::new();
    for (changer, round) in changers(&archive) {
        for reader in readers {
            let stop = AtomicBool::new(false);
            thread::scope(|scope| {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        for args in &round {
                            let args: Vec<&str> = args.iter().map(String::as_str).collect();
                            // It runs concurrently with the reader; only reading commands are
                            // judged.
                            world.run(&args);
                        }
                    }
                });
                let until = Instant::now() + long;
                let mut times = 0;
                while times < 2 || Instant::now() < until {
                    let said = world.run(reader);
                    wrong.extend(judge(reader, changer, &said).err());
                    times += 1;
                    if reader[0] == "create" {
                        world.run(&["rm", "--force", "third"]);
                    }
                }
                met += times;
                stop.store(true, Ordering::Relaxed);
            });
            world.run(&["umount", "box"]);
            world.run(&["rm", "--force", "box"]);
            world.run(&["rmi", "--force", "read:1"]);
            let _ = fs::remove_file(&out); // there only if the copy met its container
            pairs += 1;
        }
    }
    println!("{pairs} pairs, {met} meetings");
    assert!(
        wrong.is_empty(),
        "{} of {met}:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    world.ok(&["load", "--input", archive.to_str().unwrap()]);
    world.ok(&["gc"]);
    world.ok(&["check", "--deep"]);
}
