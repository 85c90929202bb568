//! Which programs read our uppers correctly: tests the table in docs/overlay.md, cell by cell.
//!
//! Each row of the table is an upper with one kind of change, and each column is a reader. The test
//! creates the upper, lets the reader show it, and compares the result with what the union showed.
//! The table must say the same.

mod support;

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use support::layered::{ALL, VELLUM, World, command, read, wait_free};
use support::said;
use vellum_testkit::kernel::Overlay;
use vellum_testkit::tree::Ignore;
use vellum_testkit::{Tree, untested};

/// One kind of change, with its name in the table.
struct Row {
    name: &'static str,
    /// Options of the union besides its layers.
    options: &'static str,
    change: fn(&Path),
    /// Settled afterwards.
    settled: bool,
}

const ROWS: &[Row] = &[
    row("new, removed and replaced names", "", names),
    row("a directory from below renamed", "", rename),
    row("attributes of a lower file changed", "", attributes),
    row("a lower file with two names changed", "", hard_link),
    row("a big lower file changed in part", "", part),
    Row {
        settled: true,
        ..row("the same, after `vellum settle`", "", part)
    },
    row("names removed with `wh=whiteouts`", "wh=whiteouts", names),
    row(
        "`userxattr`: new, removed and replaced names",
        "userxattr",
        names,
    ),
    row(
        "`userxattr`: a directory from below renamed",
        "userxattr",
        rename,
    ),
    row(
        "`userxattr`: attributes of a lower file changed",
        "userxattr",
        attributes,
    ),
];

const fn row(name: &'static str, options: &'static str, change: fn(&Path)) -> Row {
    Row {
        name,
        options,
        change,
        settled: false,
    }
}

fn names(at: &Path) {
    fs::write(at.join("new"), "new\n").unwrap();
    fs::remove_file(at.join("gone")).unwrap();
    fs::remove_dir_all(at.join("dir")).unwrap();
    fs::create_dir(at.join("dir")).unwrap();
    fs::write(at.join("dir/another"), "x").unwrap();
    symlink("new", at.join("link")).unwrap();
}

fn rename(at: &Path) {
    fs::rename(at.join("dir"), at.join("moved")).unwrap();
}

fn attributes(at: &Path) {
    fs::set_permissions(at.join("both"), fs::Permissions::from_mode(0o600)).unwrap();
}

fn hard_link(at: &Path) {
    let mut file = fs::OpenOptions::new()
        .append(true)
        .open(at.join("linked"))
        .unwrap();
    file.write_all(b"more\n").unwrap();
}

fn part(at: &Path) {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .open(at.join("big"))
        .unwrap();
    file.seek(SeekFrom::Start(5 << 20)).unwrap();
    file.write_all(b"changed").unwrap();
}

/// The reader that shows the upper.
enum Reader {
    /// The kernel's overlay with these options.
    Kernel(&'static [(&'static str, &'static str)]),
    /// A program, with its version prefix.
    FuseOverlayfs(&'static str),
}

const NOTHING: [(&str, &str); 3] = [
    ("redirect_dir", "nofollow"),
    ("metacopy", "off"),
    ("index", "off"),
];
const REDIRECTS: [(&str, &str); 3] = [
    ("redirect_dir", "on"),
    ("metacopy", "off"),
    ("index", "off"),
];
const METACOPIES: [(&str, &str); 3] =
    [("redirect_dir", "on"), ("metacopy", "on"), ("index", "off")];
const ALL_OF_THEM: [(&str, &str); 3] =
    [("redirect_dir", "on"), ("metacopy", "on"), ("index", "on")];

const READERS: &[Reader] = &[
    Reader::Kernel(&NOTHING),
    Reader::Kernel(&REDIRECTS),
    Reader::Kernel(&METACOPIES),
    Reader::Kernel(&ALL_OF_THEM),
    Reader::FuseOverlayfs("1."),
    Reader::FuseOverlayfs("2."),
];

/// Returns `fuse-overlayfs` of a version, if it is on the path.
fn fuse_overlayfs(version: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let mut all = std::env::split_paths(&path).map(|dir| dir.join("fuse-overlayfs"));
    all.find(|program| {
        program.exists() && {
            let out = said(command(program, &["--version"]).output().unwrap()).out;
            out.lines().any(|line| {
                line.strip_prefix("fuse-overlayfs: version ")
                    .is_some_and(|found| found.starts_with(version))
            })
        }
    })
}

/// Returns how a reader shows the upper, as a word of the table; `None` if the reader is not
/// installed.
fn reads(reader: &Reader, world: &World, row: &Row, wanted: &Tree) -> Option<&'static str> {
    let target = world.scratch.dir("shown");
    match reader {
        Reader::Kernel(options) => {
            let overlay = Overlay {
                lowers: vec![world.at("top"), world.at("base")],
                upper: Some((world.at("upper"), world.at("work"))),
                ..Overlay::default()
            };
            // With attributes of users the kernel takes neither of the two, and asking for them is
            // an error.
            let asked = options.iter().filter(|(_, value)| {
                row.options != "userxattr" || matches!(*value, "on" | "follow")
            });
            let overlay = asked.fold(overlay, |all, (key, value)| all.option(key, value));
            let overlay = match row.options {
                "userxattr" => overlay.option("userxattr", ""),
                _ => overlay,
            };
            if let Err(error) = overlay.mount(&world.scratch, &target) {
                println!("{}, {options:?}: {error}", row.name);
                return Some("refused");
            }
        }
        Reader::FuseOverlayfs(version) => {
            let program = fuse_overlayfs(version)?;
            let text = target.to_str().unwrap();
            let done = said(
                command(program, &["-o", &world.options(), text])
                    .output()
                    .unwrap(),
            );
            if done.code != 0 {
                return Some("refused");
            }
            world.scratch.adopt_mount(&target);
        }
    }
    // Programs differ in the root's attributes and the times of directories.
    let ignore = Ignore {
        root: true,
        directory_mtimes: true,
        ..ALL
    };
    let word = match Tree::read(&target) {
        Err(_) => "error",
        Ok(tree) if tree.differences(wanted, ignore).is_empty() => "yes",
        Ok(_) => "no",
    };
    world.scratch.unmount(&target);
    wait_free(&world.at("upper"));
    Some(word)
}

/// The rows of the table in docs/overlay.md: name, then cells.
fn table() -> Vec<Vec<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/overlay.md");
    let text = read(&path);
    let (_, rest) = text
        .split_once("## Who can read an upper afterwards")
        .unwrap();
    let lines = rest
        .lines()
        .skip_while(|line| !line.starts_with("|---"))
        .skip(1);
    lines
        .take_while(|line| line.starts_with('|'))
        .map(|line| {
            line.trim_matches('|')
                .split(" | ")
                .map(|cell| cell.trim().to_owned())
                .collect()
        })
        .collect()
}

#[test]
fn readers_of_an_upper_match_the_table() {
    let table = table();
    let named: Vec<_> = ROWS.iter().map(|row| row.name).collect();
    let rows: Vec<_> = table.iter().map(|cells| cells[0].as_str()).collect();
    assert_eq!(rows, named);
    let mut wrong = Vec::new();
    for (row, cells) in ROWS.iter().zip(&table) {
        assert_eq!(cells.len(), READERS.len() + 1, "{}", row.name);
        for (place, (reader, cell)) in READERS.iter().zip(&cells[1..]).enumerate() {
            let Some(world) = World::new() else { return };
            fs::write(world.at("base/linked"), "linked\n").unwrap();
            fs::hard_link(world.at("base/linked"), world.at("base/twin")).unwrap();
            fs::write(world.at("base/big"), vec![b'x'; 8 << 20]).unwrap();
            let merged = world.at("merged");
            let options = format!("{},{}", world.options(), row.options);
            let done = world.vellum(&[
                "overlay",
                "-o",
                options.trim_end_matches(','),
                merged.to_str().unwrap(),
            ]);
            assert_eq!(done.code, 0, "{}", done.err);
            world.scratch.adopt_mount(&merged);
            (row.change)(&merged);
            let wanted = Tree::read(&merged).unwrap();
            world.unmount();
            if row.settled {
                let dirs = ["upper", "work"].map(|name| world.at(name).display().to_string());
                world.on_free_layers(&["settle", &dirs[0], &dirs[1]]);
            }
            match reads(reader, &world, row, &wanted) {
                Some(word) if word == cell => {}
                Some(word) => wrong.push(format!(
                    "{}, reader {place}: {word}, and not {cell}",
                    row.name
                )),
                None => untested(
                    "who reads an upper",
                    "fuse-overlayfs of one of the versions is not here",
                ),
            }
        }
    }
    assert!(wrong.is_empty(), "{VELLUM}:\n{}", wrong.join("\n"));
}
