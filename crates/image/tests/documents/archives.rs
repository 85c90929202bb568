//! Archives in which one thing is odd, and what Vellum, Docker, Podman and containerd do with them.
//!
//! `corpus.py` writes them; `verdicts.txt` says for each what the three made of it (20.10, 4.3 and
//! 1.6), what Vellum does, and why, where it differs. A verdict is the names that an image got,
//! `<id>` for one without, `()` for no image and no error, and `-` for an error. The slow tier asks
//! the real programs again; with `VELLUM_VERDICTS=file` it writes down the results of all.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use vellum_image::Platform;
use vellum_image::source::open_archive;
use vellum_testkit::Scratch;
use vellum_testkit::clients::{Containerd, Dockerd, Home, Podman, available, find, run};

use crate::support::read_layer;

/// A line of the table.
struct Verdict<'a> {
    archive: &'a str,
    docker: &'a str,
    podman: &'a str,
    containerd: &'a str,
    vellum: &'a str,
    /// A key from the table's head; empty if there is nothing to explain.
    why: &'a str,
}

fn table() -> Vec<Verdict<'static>> {
    let lines = include_str!("verdicts.txt").lines();
    lines
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .map(|line| {
            let fields: Vec<&str> = line.split('\t').collect();
            let [archive, docker, podman, containerd, vellum, why] = fields[..] else {
                panic!("{line:?} is not a line of the table");
            };
            Verdict {
                archive,
                docker,
                podman,
                containerd,
                vellum,
                why,
            }
        })
        .collect()
}

/// Writes the archives; returns where each is, or none without Python.
fn corpus(scratch: &Scratch) -> Option<BTreeMap<String, PathBuf>> {
    let Some(python) = find("python3") else {
        vellum_testkit::untested("archives with odd documents", "python3 is not installed");
        return None;
    };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/documents/corpus.py");
    run(Command::new(python).arg(script).arg(scratch.path())).unwrap();
    let files = std::fs::read_dir(scratch.path()).unwrap();
    let files = files.map(|file| file.unwrap().path());
    let name = |path: &PathBuf| {
        path.file_stem()
            .unwrap()
            .to_str()
            .unwrap()
            .replace("__", "/")
    };
    Some(files.map(|path| (name(&path), path)).collect())
}

/// What Vellum makes of an archive; every layer is read and checked.
fn ours(archive: &Path) -> Result<String, String> {
    let file = File::open(archive).unwrap();
    let source =
        open_archive(file, "archive".to_owned(), &Platform::host()).map_err(|e| e.to_string())?;
    let mut names = Vec::new();
    for (at, image) in source.images().iter().enumerate() {
        for layer in 0..image.layers.len() {
            read_layer(source.as_ref(), at, layer).map_err(|e| e.to_string())?;
        }
        if image.names.is_empty() {
            names.push("<id>".to_owned());
        }
        names.extend(image.names.iter().map(|name| name.familiar()));
    }
    Ok(joined(names))
}

fn joined(names: Vec<String>) -> String {
    let names: BTreeSet<String> = names.into_iter().collect();
    match names.is_empty() {
        true => "()".to_owned(),
        false => names.into_iter().collect::<Vec<_>>().join(","),
    }
}

fn loads(verdict: &str) -> bool {
    !["-", "."].contains(&verdict)
}

#[test]
fn archives_with_odd_documents_load_where_they_load_elsewhere() {
    let scratch = Scratch::new();
    let Some(files) = corpus(&scratch) else {
        return;
    };
    let table = table();
    let mut wrong = Vec::new();
    for verdict in &table {
        let Some(file) = files.get(verdict.archive) else {
            wrong.push(format!("{}: there is no such archive", verdict.archive));
            continue;
        };
        let (found, said) = match ours(file) {
            Ok(names) => (names, String::new()),
            Err(error) => ("-".to_owned(), error),
        };
        if found != verdict.vellum {
            let (archive, expected) = (verdict.archive, verdict.vellum);
            wrong.push(format!("{archive}: {found} instead of {expected} {said}"));
        }
    }
    let listed: BTreeSet<&str> = table.iter().map(|verdict| verdict.archive).collect();
    let unlisted = files.keys().filter(|name| !listed.contains(name.as_str()));
    wrong.extend(unlisted.map(|name| format!("{name}: not in the table")));
    let count = wrong.len();
    assert!(
        wrong.is_empty(),
        "{count} of {}:\n{}",
        table.len(),
        wrong.join("\n")
    );
    eprintln!("{} archives", table.len());
}

/// What all three load is loaded, what all three refuse is refused; otherwise there is a reason.
#[test]
fn every_difference_of_the_table_has_a_reason_that_its_head_explains() {
    let head: BTreeSet<&str> = include_str!("verdicts.txt")
        .lines()
        .filter_map(|line| line.strip_prefix("# ")?.split_once(": "))
        .map(|(word, _)| word)
        .collect();
    let mut used = BTreeSet::new();
    for verdict in table() {
        let others = [verdict.docker, verdict.podman, verdict.containerd];
        let others = others.iter().filter(|other| **other != ".");
        let differs = others
            .clone()
            .any(|other| loads(other) != loads(verdict.vellum));
        let archive = verdict.archive;
        assert_eq!(
            differs,
            !verdict.why.is_empty(),
            "{archive}: is there a difference to explain?"
        );
        if differs {
            assert!(
                head.contains(verdict.why),
                "{archive}: {:?} is not explained",
                verdict.why
            );
            used.insert(verdict.why);
        }
    }
    assert_eq!(used, head, "every explanation is used");
}

/// The three, each with a store of its own.
struct Others {
    docker: Dockerd,
    podman: Podman,
    containerd: Containerd,
    /// Dropped last.
    _home: Home,
}

impl Others {
    fn start() -> Self {
        let home = Home::new().unwrap();
        let docker = Dockerd::start(&home, &[]).unwrap();
        let podman = Podman::new(&home).unwrap();
        let nothing = home.join("no-snapshotter");
        let containerd = Containerd::start(&home, &nothing).unwrap();
        Self {
            docker,
            podman,
            containerd,
            _home: home,
        }
    }

    /// Docker 20.10 doesn't know OCI layouts: one without a `manifest.json` shows nothing. An image
    /// that is its own parent kills dockerd.
    fn docker(&self, name: &str, archive: &Path) -> String {
        let of_layout = name.contains("oci") && !name.contains("json") && !name.contains("beside");
        if of_layout || name == "v1/ring" {
            return ".".to_owned();
        }
        let verdict = loaded(self.docker.load(archive).ok());
        let ids = self
            .docker
            .docker(&["images", "--all", "--quiet", "--no-trunc"])
            .unwrap();
        for id in ids.lines().collect::<BTreeSet<_>>() {
            // A parent is removed with its child.
            let _ = self.docker.docker(&["rmi", "--force", id]);
        }
        verdict
    }

    fn podman(&self, archive: &Path) -> String {
        let verdict = loaded(self.podman.load(archive).ok());
        self.podman.podman(&["rmi", "--all", "--force"]).unwrap();
        verdict
    }

    /// In a namespace of the archive's own. Images by name only: without one there is none. The
    /// result for two of one name differs from run to run.
    fn containerd(&self, name: &str, at: usize, archive: &Path) -> String {
        if name == "archive/one-name-for-two" {
            return ".".to_owned();
        }
        let namespace = format!("row-{at}");
        let ctr = |arguments: &[&str]| run(self.containerd.command(&namespace).args(arguments));
        let archive = archive.to_str().unwrap();
        match ctr(&["images", "import", "--base-name", "base", archive]) {
            Err(_) => "-".to_owned(),
            Ok(_) => {
                let names = ctr(&["images", "list", "--quiet"]).unwrap();
                joined(names.lines().map(str::to_owned).collect())
            }
        }
    }
}

/// The names in what `docker load` and `podman load` print.
fn loaded(said: Option<String>) -> String {
    let Some(said) = said else {
        return "-".to_owned();
    };
    let names = said.lines().filter_map(|line| {
        let (what, name) = line.split_once(": ")?;
        match what {
            "Loaded image ID" => Some("<id>".to_owned()),
            "Loaded image" if name.starts_with("sha256:") => Some("<id>".to_owned()),
            "Loaded image" if !name.is_empty() => Some(name.to_owned()),
            _ => None,
        }
    });
    joined(names.collect())
}

#[test]
fn docker_podman_and_containerd_give_the_verdicts_of_the_table() {
    if std::env::var_os("VELLUM_SLOW").is_none() || !available(&["dockerd", "podman", "containerd"])
    {
        return;
    }
    let others = Others::start();
    let scratch = Scratch::new();
    let Some(files) = corpus(&scratch) else {
        return;
    };
    let table: BTreeMap<&str, Verdict> = table().into_iter().map(|v| (v.archive, v)).collect();
    let (mut wrong, mut lines) = (Vec::new(), Vec::new());
    for (at, (name, file)) in files.iter().enumerate() {
        let found = [
            others.docker(name, file),
            others.podman(file),
            others.containerd(name, at, file),
        ];
        let vellum = ours(file).unwrap_or_else(|_| "-".to_owned());
        let known = table.get(name.as_str());
        let why = known.map_or("", |v| v.why);
        lines.push(format!("{name}\t{}\t{vellum}\t{why}\n", found.join("\t")));
        let expected = known.map(|v| [v.docker, v.podman, v.containerd]);
        if expected.is_none_or(|expected| expected != found) {
            wrong.push(format!("{name}: {found:?} instead of {expected:?}"));
        }
    }
    if let Some(path) = std::env::var_os("VELLUM_VERDICTS") {
        std::fs::write(path, lines.concat()).unwrap();
    }
    let count = wrong.len();
    assert!(
        wrong.is_empty(),
        "{count} of {}:\n{}",
        files.len(),
        wrong.join("\n")
    );
}
