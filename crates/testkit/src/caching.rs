//! Every operation combined with every attribute: whether a mount keeps showing stale values, and
//! what each operation changed.
//!
//! The operations, and the ways to read attributes, are in `caching/matrix.py`, a program since
//! many of them switch to another user's rights in the middle. An operation is repeated for each
//! way of reading, since one answer may refresh the cache for the next.

use std::path::Path;
use std::process::Command;

const MATRIX: &str = include_str!("caching/matrix.py");

/// The observed results of the operations.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Stale answers: operation, how the attribute was read, of what, the answer and the truth.
    pub stale: Vec<String>,
    /// What each operation changed of each node, except access times and block counts.
    pub changed: Vec<String>,
    /// Operations that are impossible there, and why.
    pub untried: Vec<String>,
    /// How many answers were compared.
    pub cells: u64,
}

/// How attributes are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ways {
    /// Each field by itself and all together, by name and by descriptor.
    Each,
    /// Each field by itself by descriptor, and all together in both ways.
    EachFieldOnce,
    /// All fields together, in both ways.
    AllFields,
    /// Once: for what changed.
    Changes,
}

impl Ways {
    fn as_str(self) -> &'static str {
        match self {
            Ways::Each => "each",
            Ways::EachFieldOnce => "each field once",
            Ways::AllFields => "all fields",
            Ways::Changes => "changes",
        }
    }
}

/// How much to try.
#[derive(Debug, Clone, Copy)]
pub struct Extent<'a> {
    /// Names of operations; empty means all.
    pub operations: &'a [&'a str],
    /// How attributes are read.
    pub ways: Ways,
}

impl Extent<'_> {
    fn run(&self, step: &str, dir: &Path) -> String {
        let mut command = Command::new("python3");
        command.args(["-c", MATRIX, step]).arg(dir);
        command.env("OPERATIONS", self.operations.join(","));
        command.env("WAYS", self.ways.as_str());
        let output = command.output().expect("python3 runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{step}: {said}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Creates the files that [`Extent::try_in`] uses up.
    pub fn prepare(&self, dir: &Path) {
        self.run("prepare", dir);
    }

    /// Tries every operation in a prepared directory, through a mount or not.
    pub fn try_in(&self, dir: &Path) -> Seen {
        let mut seen = Seen::default();
        for line in self.run("try", dir).lines() {
            match line.split_once(' ') {
                Some(("stale", what)) => seen.stale.push(what.to_owned()),
                Some(("changed", what)) => seen.changed.push(what.to_owned()),
                Some(("untried", what)) => seen.untried.push(what.to_owned()),
                Some(("cells", count)) => seen.cells = count.parse().expect("a number"),
                _ => panic!("{line}"),
            }
        }
        seen
    }
}

impl Seen {
    /// Returns the changes that differ from `other`, by operation and node, without the operations
    /// in `but`.
    pub fn differs(&self, other: &Seen, but: &[&str]) -> Vec<String> {
        let counts = |line: &&String| {
            let operation = line.split(' ').next().unwrap_or_default();
            !but.contains(&operation)
        };
        let theirs: Vec<_> = other.changed.iter().filter(counts).collect();
        let ours: Vec<_> = self.changed.iter().filter(counts).collect();
        assert_eq!(ours.len(), theirs.len(), "the same operations were tried");
        ours.iter()
            .zip(theirs)
            .filter(|(ours, theirs)| **ours != *theirs)
            .map(|(ours, theirs)| format!("{ours}\n  not {theirs}"))
            .collect()
    }
}
