//! Whatever replaces a file or directory of the store, no command hangs, crashes, or touches
//! anything outside.
//!
//! Each place in a store is replaced by each kind of thing: pipes, sockets, devices, links,
//! directories, files of the wrong length or content. Then every command is run on it, one after
//! the other, and must end by itself. A tree outside must stay as it is; the links lead to it, and
//! it has the names that gc would remove. With `VELLUM_SLOW=1` all places are tested with all
//! kinds, with every storage driver; otherwise each place is tested with three, chosen so that
//! every kind occurs.

mod support;

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use support::{World, small};
use vellum_sys::{Dir, FileKind};
use vellum_testkit::{Scratch, Tree, needs_root};

/// Longer than any command takes on a busy machine.
const HANGS_AFTER: Duration = Duration::from_secs(60);

const KINDS: [&str; 12] = [
    "pipe",
    "socket",
    "device",
    "directory",
    "full directory",
    "link outside",
    "dangling link",
    "link to a pipe",
    "huge file",
    "empty file",
    "garbage",
    "mode 000",
];

struct Store {
    scratch: Scratch,
    driver: &'static str,
}

/// What a command printed, and how it ended.
struct Ended {
    code: Option<i32>,
    text: String,
}

impl Store {
    /// A store with an image of two layers, a container, a volume, a blob that is kept, and notes
    /// of its engine.
    fn new(driver: &'static str) -> Self {
        let scratch = Scratch::new();
        let image = small(&scratch);
        let store = Self { scratch, driver };
        let root = store.scratch.join("base");
        let run = store.scratch.join("base-run");
        for args in [
            &["load", "--input", image.to_str().unwrap()][..],
            &["volume", "create", "data"],
            &["create", "--name", "box", "small:1"],
            &["mount", "box"],
            &["umount", "box"],
        ] {
            let ended = store.run(&root, &run, args);
            assert_eq!(ended.code, Some(0), "{args:?}: {}", ended.text);
        }
        for name in ["docker.json", "staging/left", "trash/left"] {
            fs::write(root.join(name), "{}").unwrap();
        }
        for work in find(&root, |path| {
            path.file_name().is_some_and(|name| name == "work")
        }) {
            fs::create_dir_all(work.join("vellum/maps")).unwrap();
            for name in ["layer", "usage", "mounted"] {
                fs::write(work.join("vellum").join(name), "0:1\n").unwrap();
            }
        }
        store
    }

    fn run(&self, root: &Path, run: &Path, args: &[&str]) -> Ended {
        let out = self.scratch.join(format!("out-{}", unique()));
        let file = File::create(&out).unwrap();
        let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_vellum"))
            .arg("--root")
            .arg(root)
            .arg("--run-dir")
            .arg(run)
            .args(["--storage-driver", self.driver])
            .args(args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", self.scratch.path())
            .env("VELLUM_CONFIG", self.scratch.file("vellum.toml", ""))
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        let until = Instant::now() + HANGS_AFTER;
        let status = loop {
            match child.try_wait().unwrap() {
                Some(status) => break status,
                None if Instant::now() < until => thread::sleep(Duration::from_millis(2)),
                None => {
                    child.kill().unwrap();
                    child.wait().unwrap();
                    panic!("{args:?} hangs");
                }
            }
        };
        let text = String::from_utf8_lossy(&fs::read(&out).unwrap()).into_owned();
        fs::remove_file(&out).unwrap();
        assert_eq!(status.signal(), None, "{args:?}: {text}");
        assert!(!text.contains("panicked"), "{args:?}: {text}");
        Ended {
            code: status.code(),
            text,
        }
    }

    /// The places of the store and its run directory, as paths below the directory that holds both.
    fn places(&self) -> Vec<PathBuf> {
        let base = self.scratch.path();
        let all = find(&base.join("base"), |path| {
            // Not the image's content, except its top directory.
            let inner = path.components().any(|part| {
                ["diff", "root", "upper", "_data", "merged"]
                    .iter()
                    .any(|name| part.as_os_str() == *name)
            });
            let top = path.file_name().is_some_and(|name| {
                ["diff", "root", "upper", "_data"]
                    .iter()
                    .any(|top| name == *top)
            });
            let nested = path.parent().is_some_and(|above| {
                above.components().any(|part| {
                    ["diff", "upper", "_data"]
                        .iter()
                        .any(|name| part.as_os_str() == *name)
                })
            });
            (!inner || top) && !nested
        });
        let run = find(&base.join("base-run"), |_| true);
        let mut places: Vec<PathBuf> = all
            .into_iter()
            .chain(run)
            .map(|path| path.strip_prefix(base).unwrap().to_owned())
            // Both may be reached through a link.
            .filter(|path| path != Path::new("base") && path != Path::new("base-run"))
            .collect();
        for companion in ["vellum.db-journal", "vellum.db-wal", "vellum.db-shm"] {
            places.push(Path::new("base").join(companion));
        }
        places.sort();
        places.dedup();
        places
    }
}

fn unique() -> u64 {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

fn find(top: &Path, wanted: impl Fn(&Path) -> bool) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![top.to_owned()];
    while let Some(path) = todo.pop() {
        if fs::symlink_metadata(&path).unwrap().is_dir() {
            todo.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        }
        if wanted(path.strip_prefix(top).unwrap()) {
            found.push(path);
        }
    }
    found
}

/// A tree outside the store, with the names of things that gc removes.
fn canary(scratch: &Scratch, name: &str) -> PathBuf {
    let top = scratch.dir(name);
    let hex = "ab".repeat(32);
    for dir in [
        hex.clone(),
        format!("{hex}/diff"),
        "sha256".into(),
        "left".into(),
        "l".into(),
    ] {
        fs::create_dir_all(top.join(dir)).unwrap();
    }
    for file in [
        format!("{hex}.json"),
        format!("image-{hex}.json"),
        format!("container-{hex}.json"),
        format!("{hex}/diff/precious"),
        format!("sha256/{hex}"),
        "left/precious".into(),
        "precious".into(),
    ] {
        fs::write(top.join(file), "precious").unwrap();
    }
    symlink(format!("../{hex}/diff"), top.join("l").join("A".repeat(26))).unwrap();
    top
}

fn plant(kind: &str, at: &Path, outside: &Path) {
    match fs::symlink_metadata(at) {
        Ok(found) if kind == "mode 000" => {
            if !found.file_type().is_symlink() {
                fs::set_permissions(at, fs::Permissions::from_mode(0o000)).unwrap();
            }
            return;
        }
        Ok(found) if found.is_dir() => fs::remove_dir_all(at).unwrap(),
        Ok(_) => fs::remove_file(at).unwrap(),
        Err(_) => {}
    }
    let dir = Dir::open(at.parent().unwrap()).unwrap();
    let name = at.file_name().unwrap();
    match kind {
        "pipe" => dir.mknod(name, FileKind::Fifo, 0o600, (0, 0)).unwrap(),
        "socket" => dir.mknod(name, FileKind::Socket, 0o600, (0, 0)).unwrap(),
        // /dev/zero: reading it to its end never ends.
        "device" => dir.mknod(name, FileKind::Char, 0o600, (1, 5)).unwrap(),
        "directory" => fs::create_dir(at).unwrap(),
        "full directory" => {
            fs::create_dir_all(at.join("some/thing")).unwrap();
            fs::write(at.join("file"), "in it").unwrap();
        }
        "link outside" => symlink(outside, at).unwrap(),
        "dangling link" => symlink(outside.join("nothing"), at).unwrap(),
        "link to a pipe" => symlink(outside.with_extension("pipe"), at).unwrap(),
        "huge file" => File::create(at).unwrap().set_len(1 << 43).unwrap(),
        "empty file" => drop(File::create(at).unwrap()),
        "garbage" => fs::write(at, b"\0\xff garbage {]".repeat(100)).unwrap(),
        _ => {}
    }
}

/// Runs every command on a store with one place replaced. Returns how many were run.
fn cell(store: &Store, place: &Path, kind: &str) -> u64 {
    let here = store.scratch.join(format!("cell-{}", unique()));
    fs::create_dir(&here).unwrap();
    let copied = std::process::Command::new("cp")
        .args(["-a", "--"])
        .arg(store.scratch.join("base"))
        .arg(store.scratch.join("base-run"))
        .arg(&here)
        .status()
        .unwrap();
    assert!(copied.success());
    let (root, run) = (here.join("base"), here.join("base-run"));
    let is_file = fs::symlink_metadata(here.join(place)).is_ok_and(|found| found.is_file());
    let canary = canary(
        &store.scratch,
        here.file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .replace("cell", "canary")
            .as_str(),
    );
    let outside = if is_file {
        canary.join("precious")
    } else {
        canary.clone()
    };
    let pipe = outside.with_extension("pipe");
    let above = Dir::open(pipe.parent().unwrap()).unwrap();
    above
        .mknod(pipe.file_name().unwrap(), FileKind::Fifo, 0o600, (0, 0))
        .unwrap();
    let before = Tree::read(&canary).unwrap();
    plant(kind, &here.join(place), &outside);

    let archive = here.join("saved.tar");
    let path = here.join(place);
    let commands: [&[&str]; 17] = [
        &["ls"],
        &["images"],
        &["info"],
        &["df"],
        &["why", path.to_str().unwrap()],
        &["check"],
        &["check", "--deep"],
        &["gc", "--dry-run"],
        &["save", "--output", archive.to_str().unwrap(), "small:1"],
        &["diff", "box"],
        &["mount", "box"],
        &["umount", "box"],
        &["create", "--name", "other", "small:1"],
        &["gc"],
        &["rm", "--force", "box"],
        &["check", "--rebuild", "--force"],
        &["gc", "--rebuilt"],
    ];
    for args in commands {
        let ended = store.run(&root, &run, args);
        assert!(
            matches!(ended.code, Some(0..=2)),
            "{args:?} with a {kind} at {}: {}",
            place.display(),
            ended.text
        );
        let now = Tree::read(&canary).unwrap();
        assert_eq!(now, before, "{args:?} with a {kind} at {}", place.display());
        // A check names a link that leads out, unless an earlier command has replaced it by the
        // right thing.
        let is_link = fs::symlink_metadata(&path).is_ok_and(|found| found.is_symlink());
        if args == ["check"] && kind == "link outside" && is_link && is_own(place) {
            let name = place.strip_prefix("base").unwrap().to_str().unwrap();
            assert!(
                ended.code == Some(1) && ended.text.contains(name),
                "a check with a {kind} at {}: {:?} {}",
                place.display(),
                ended.code,
                ended.text
            );
        }
    }
    assert!(fs::symlink_metadata(&pipe).unwrap().file_type().is_fifo());
    vellum_sys::mount::unmount_all(&here).unwrap();
    let (parent, name) = (
        Dir::open(store.scratch.path()).unwrap(),
        here.file_name().unwrap(),
    );
    parent.remove_tree(name).unwrap();
    fs::remove_dir_all(&canary).unwrap();
    commands.len() as u64
}

/// True for what a check examines: not litter that a sweep removes, nor what only one command uses,
/// nor a name without content.
fn is_own(place: &Path) -> bool {
    let name = place.to_str().unwrap();
    let others = [
        "left",
        "docker.json",
        "work/",
        "merged",
        "generation/",
        "/l/",
    ];
    place.starts_with("base") && !others.iter().any(|other| name.contains(other))
}

fn every_kind_in_place(driver: &'static str) {
    if !needs_root("device nodes and mounts") {
        return;
    }
    let slow = std::env::var_os("VELLUM_SLOW").is_some();
    let store = Store::new(driver);
    let places = store.places();
    let mut cells: Vec<(PathBuf, &str)> = Vec::new();
    for (at, place) in places.iter().enumerate() {
        let kinds = KINDS.iter().enumerate();
        let chosen = kinds.filter(|(kind, _)| slow || (kind + at) % KINDS.len() == 0);
        cells.extend(chosen.map(|(_, kind)| (place.clone(), *kind)));
    }
    let next = std::sync::atomic::AtomicUsize::new(0);
    let ran: u64 = thread::scope(|scope| {
        let work = || {
            let mut ran = 0;
            while let Some((place, kind)) =
                cells.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
            {
                ran += cell(&store, place, kind);
            }
            ran
        };
        let workers: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap())
            .sum()
    });
    println!(
        "{driver}: {} places, {} takings, {ran} commands",
        places.len(),
        cells.len()
    );
    assert!(
        places.len() > 30 && ran > 500,
        "{} places, {ran}",
        places.len()
    );
}

#[test]
fn no_command_hangs_on_or_leaves_a_store_of_overlay2() {
    every_kind_in_place("overlay2");
}

#[test]
fn no_command_hangs_on_or_leaves_a_store_of_overlay() {
    if std::env::var_os("VELLUM_SLOW").is_some() {
        every_kind_in_place("overlay");
    } else {
        one_of("overlay", &["lower-id", "upper", "work", "root"]);
    }
}

#[test]
fn no_command_hangs_on_or_leaves_a_store_of_native() {
    if std::env::var_os("VELLUM_SLOW").is_some() {
        every_kind_in_place("native");
    } else {
        one_of("native", &["root"]);
    }
}

/// The places specific to a driver, each with kinds that would hang a reader or lead outside.
fn one_of(driver: &'static str, names: &[&str]) {
    if !needs_root("device nodes and mounts") {
        return;
    }
    let store = Store::new(driver);
    for name in names {
        let places = store.places();
        let place = places
            .iter()
            .rev()
            .find(|path| path.ends_with(name))
            .unwrap();
        for kind in ["pipe", "link outside"] {
            cell(&store, place, kind);
        }
    }
}

#[test]
fn the_list_of_places_is_complete() {
    // The matrix is only as good as its list of places: new entries of a store must be added to it.
    let Some(world) = World::new() else { return };
    let image = small(&world.scratch);
    world.ok(&["load", "--input", image.to_str().unwrap()]);
    let known = [
        "content",
        "generation",
        "native",
        "overlay",
        "overlay2",
        "records",
        "recipes",
        "reserve",
        "staging",
        "trash",
        "vellum.db",
        "vellum.db-journal",
        "vellum.db-shm",
        "vellum.db-wal",
        "volumes",
    ];
    for entry in fs::read_dir(world.root()).unwrap() {
        let name = entry.unwrap().file_name();
        assert!(known.iter().any(|known| name == *known), "{name:?}");
    }
}
