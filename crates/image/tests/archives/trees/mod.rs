//! The trees that Docker, Podman, containerd and Vellum make of odd layers.
//!
//! `table.txt` says for each layer of `cases.rs` what the three make of it (20.10, 4.3 and 1.6),
//! whether Vellum makes a tree, and why, where that is another one. `=`: the tree that Vellum
//! makes; `+`: a tree, where Vellum makes none; `-`: none; `broken`: one that lists names which are
//! not there; otherwise the differences. The usual tier asks the real programs about a few layers,
//! the slow tier about all, and about layers of the generator; with `VELLUM_VERDICTS=file` it
//! writes down their results.

mod cases;
mod peers;
mod raw;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Component, PathBuf};

use peers::{Made, PEERS, Peer, ours};
use vellum_image::Limits;
use vellum_image::tar::{EntryKind, SliceSource, TarReader};
use vellum_testkit::clients::available;
use vellum_testkit::tree::{Ignore, Kind};
use vellum_testkit::{Rng, Tree, needs_root};

use crate::generator;

/// A line of the table.
struct Row {
    name: &'static str,
    peers: [&'static str; 3],
    vellum: &'static str,
    /// A key from the table's head; empty if there is nothing to explain.
    why: &'static str,
}

const TABLE: &str = include_str!("table.txt");

fn table() -> Vec<Row> {
    let lines = TABLE
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty());
    let row = |line: &'static str| match line.split('\t').collect::<Vec<_>>()[..] {
        [name, docker, podman, containerd, vellum, why] => Row {
            name,
            peers: [docker, podman, containerd],
            vellum,
            why,
        },
        _ => panic!("{line:?} is not a line of the table"),
    };
    lines.map(row).collect()
}

/// Directories that the layer lists: every program has its own times for others.
fn listed(layer: &[u8]) -> BTreeSet<PathBuf> {
    let mut reader = TarReader::new(SliceSource::new(layer), &Limits::default());
    let mut found = BTreeSet::new();
    while let Ok(Some(entry)) = reader.next_entry() {
        reader.raw().clear();
        if entry.kind == EntryKind::Directory {
            let parts = entry.path().components();
            let parts = parts.filter(|part| matches!(part, Component::Normal(_)));
            let path: PathBuf = parts.collect();
            let name = path.file_name().unwrap_or_default().as_encoded_bytes();
            // A whiteout whose entry is a directory creates none.
            if !name.starts_with(b".wh.") {
                found.insert(path);
            }
        }
    }
    found
}

/// Removes differences from a tree that mean nothing. Podman gives every root 0555.
fn plain(layer: &[u8], tree: &Tree) -> Tree {
    let listed = listed(layer);
    let mut tree = tree.clone();
    for (path, entry) in &mut tree.entries {
        if entry.kind == Kind::Directory && !listed.contains(path) {
            entry.mtime = (0, 0);
        }
        if path.as_os_str().is_empty() && entry.mode == 0o555 {
            entry.mode = 0o755;
        }
    }
    tree
}

/// The differences in their tree, as one line.
fn compared(layer: &[u8], ours: &Made, theirs: &Made, ignore: Ignore) -> String {
    let (ours, theirs) = match (ours, theirs) {
        (_, Made::Broken) => return "broken".into(),
        (_, Made::Refused(_)) => return "-".into(),
        (Made::Tree(ours), Made::Tree(theirs)) => (plain(layer, ours), plain(layer, theirs)),
        (_, Made::Tree(_)) => return "+".into(),
    };
    let mut words = Vec::new();
    for difference in ours.differences(&theirs, ignore) {
        let path = match difference.path.as_os_str() {
            path if path.is_empty() => "/".into(),
            path if path.len() > 20 => "...".into(),
            path => path.as_encoded_bytes().escape_ascii().to_string(),
        };
        words.push(match difference.what.as_str() {
            "only in the first" => format!("no {path}"),
            "only in the second" => format!("also {path}"),
            what => format!("{} of {path}", what.replace('"', "")),
        });
    }
    match words.is_empty() {
        true => "=".into(),
        false => words.join(", "),
    }
}

fn verdict(made: &Made) -> &'static str {
    match made {
        Made::Tree(_) => "+",
        Made::Refused(_) => "-",
        Made::Broken => "broken",
    }
}

#[test]
fn odd_layers_become_trees_or_not_as_the_table_says() {
    if !needs_root("trees of odd layers") {
        return;
    }
    let table: BTreeMap<_, _> = table().into_iter().map(|row| (row.name, row)).collect();
    let cases = cases::cases();
    let mut wrong = Vec::new();
    for (name, layer) in &cases {
        let made = ours(layer);
        match table.get(name.as_str()) {
            None => wrong.push(format!("{name}: not in the table")),
            Some(row) if row.vellum != verdict(&made) => {
                wrong.push(format!(
                    "{name}: {} instead of {}",
                    verdict(&made),
                    row.vellum
                ));
            }
            Some(_) => {}
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(table.len(), cases.len(), "the table has others, too");
    println!("{} layers", cases.len());
}

/// If all three make the same tree, Vellum makes it too; otherwise there is a reason.
#[test]
fn every_difference_of_trees_has_a_reason_that_the_head_explains() {
    let head: BTreeSet<&str> = TABLE
        .lines()
        .filter_map(|line| line.strip_prefix("# ")?.split_once(": "))
        .map(|(word, _)| word)
        .collect();
    let mut used = BTreeSet::new();
    for row in table() {
        let same = if row.vellum == "-" { "-" } else { "=" };
        let differs = row.peers.iter().any(|peer| *peer != same);
        assert_eq!(
            differs,
            !row.why.is_empty(),
            "{}: is there a difference to explain?",
            row.name
        );
        if differs {
            assert!(
                head.contains(row.why),
                "{}: {:?} is not explained",
                row.name,
                row.why
            );
            used.insert(row.why);
        }
    }
    assert_eq!(used, head, "every explanation is used");
}

#[test]
fn docker_podman_and_containerd_make_the_trees_of_the_table() {
    if !available(&["dockerd", "podman", "containerd"]) {
        return;
    }
    let mut cases = cases::cases();
    let table: BTreeMap<_, _> = table().into_iter().map(|row| (row.name, row)).collect();
    if std::env::var_os("VELLUM_SLOW").is_none() {
        // Layers that each of them accepts, since a refused one is asked about separately.
        let taken = |name: &str| {
            let row = table.get(name);
            row.is_some_and(|row| !row.peers.contains(&"-"))
        };
        cases.retain(|(name, _)| taken(name));
        let mut rng = Rng::for_test("trees of odd layers");
        while cases.len() > 16 {
            cases.swap_remove(rng.below(cases.len()));
        }
    }
    let layers: Vec<Vec<u8>> = cases.iter().map(|(_, layer)| layer.clone()).collect();
    let columns = PEERS.map(|name| Peer::start(name).trees(&layers));
    let (mut wrong, mut lines) = (Vec::new(), Vec::new());
    for (at, (name, layer)) in cases.iter().enumerate() {
        let ours = ours(layer);
        let theirs = |column: &Vec<Made>| compared(layer, &ours, &column[at], Ignore::default());
        let found = columns.each_ref().map(theirs);
        let known = table.get(name.as_str());
        let why = known.map_or("", |row| row.why);
        lines.push(format!(
            "{name}\t{}\t{}\t{why}\n",
            found.join("\t"),
            verdict(&ours)
        ));
        if known.is_none_or(|row| row.peers != found) {
            let said = columns.iter().filter_map(|column| match &column[at] {
                Made::Refused(why) => why.lines().last(),
                _ => None,
            });
            let said: Vec<&str> = said.collect();
            let known = known.map(|row| row.peers);
            wrong.push(format!("{name}: {found:?} instead of {known:?} {said:?}"));
        }
    }
    if let Some(path) = std::env::var_os("VELLUM_VERDICTS") {
        std::fs::write(path, lines.concat()).unwrap();
    }
    let (count, all) = (wrong.len(), cases.len());
    assert!(wrong.is_empty(), "{count} of {all}:\n{}", wrong.join("\n"));
}

/// Times that all three set to 1970, and the root, for which they have their own rules.
fn without_known_differences(made: Made) -> Made {
    let Made::Tree(mut tree) = made else {
        return made;
    };
    for entry in tree.entries.values_mut() {
        if entry.mtime.0 < 0
            || entry.mtime.0 > i64::MAX / 1_000_000_000
            || entry.kind == Kind::Symlink
        {
            entry.mtime = (0, 0);
        }
    }
    tree.retain_xattrs(|name| name != OsStr::new("security.selinux"));
    Made::Tree(tree)
}

#[test]
fn random_layers_become_the_tree_on_which_all_three_agree() {
    if std::env::var_os("VELLUM_SLOW").is_none() || !available(&["dockerd", "podman", "containerd"])
    {
        return;
    }
    let mut rng = Rng::for_test("trees of layers by chance");
    let ignore = Ignore {
        root: true,
        ..Ignore::default()
    };
    let mut layers = Vec::new();
    while layers.len() < 300 {
        let layer = generator::archive(&mut rng);
        let mut reader = TarReader::new(SliceSource::new(&layer), &Limits::default());
        let readable = loop {
            match reader.next_entry() {
                Ok(Some(_)) => reader.raw().clear(),
                Ok(None) => break true,
                Err(_) => break false,
            }
        };
        // The others are known to be unreadable for all.
        if readable {
            layers.push(layer);
        }
    }
    let columns = PEERS.map(|name| Peer::start(name).trees(&layers));
    let mut columns = columns.map(Vec::into_iter);
    let (mut wrong, mut agreed) = (Vec::new(), 0);
    for (at, layer) in layers.iter().enumerate() {
        let ours = without_known_differences(ours(layer));
        let theirs = columns
            .each_mut()
            .map(|column| without_known_differences(column.next().unwrap()));
        let alike = |a: usize, b: usize| compared(layer, &theirs[a], &theirs[b], ignore) == "=";
        if !alike(0, 1) || !alike(0, 2) {
            continue;
        }
        agreed += 1;
        let found = compared(layer, &ours, &theirs[0], ignore);
        let harmful = matches!(&ours, Made::Refused(why) if why.contains("device 0:0"));
        if found != "=" && !harmful {
            let kept = std::env::temp_dir().join(format!("differs-{at}.tar"));
            std::fs::write(&kept, layer).unwrap();
            let why = match &ours {
                Made::Refused(why) => why,
                _ => "",
            };
            wrong.push(format!("{}: {found} {why}", kept.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(agreed > 50, "the three agree on {agreed} trees only");
    println!("the three agree on {agreed} of {} layers", layers.len());
}
