//! Round after round with the real command: an image, a container, random changes, a diff, a
//! commit, and a container of the new image must look like the first. Directories are renamed,
//! attributes changed without data, hard links created, deleted directories created again: whatever
//! the upper holds, the image is plain.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use vellum_sys::mount;
use vellum_testkit::churn::{Churn, grow};
use vellum_testkit::tree::{Ignore, Kind};
use vellum_testkit::{Rng, Scratch, Tree, needs_root};

struct World {
    scratch: Scratch,
    driver: &'static str,
    options: &'static [&'static str],
}

impl World {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vellum"));
        command.arg("--root").arg(self.scratch.join("root"));
        command.arg("--run-dir").arg(self.scratch.join("run"));
        command
            .args(["--quiet", "--storage-driver", self.driver])
            .args(self.options)
            .args(args);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .stdin(Stdio::null());
        command
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) -> Vec<u8> {
        let out = self.command(args).output().unwrap();
        assert!(
            out.status.success(),
            "{args:?}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
        let end = out.stdout.len() - usize::from(out.stdout.ends_with(b"\n"));
        out.stdout[..end].to_vec()
    }

    fn mounted(&self, image: &str, container: &str) -> PathBuf {
        self.ok(&["create", image, "--name", container]);
        PathBuf::from(OsStr::from_bytes(&self.ok(&["mount", container])))
    }

    /// Unmounts. Another test's child, between fork and exec, may hold a descriptor of ours for a
    /// moment.
    fn unmount(&self, container: &str) {
        for _ in 0..100 {
            if self
                .command(&["umount", container])
                .output()
                .unwrap()
                .status
                .success()
            {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        self.ok(&["umount", container]);
    }

    /// Returns what `diff` prints, by path without the leading slash.
    fn diff(&self, container: &str) -> BTreeMap<PathBuf, char> {
        let printed = self.ok(&["diff", container]);
        let mut lines: Vec<Vec<u8>> = Vec::new();
        for line in printed.split(|&byte| byte == b'\n') {
            match (line, lines.last_mut()) {
                ([b'A' | b'C' | b'D', b' ', b'/', ..], _) => lines.push(line.to_vec()),
                // The name before had a newline in it.
                (_, Some(last)) => last.extend([b"\n", line].concat()),
                (_, None) => assert!(line.is_empty(), "{}", line.escape_ascii()),
            }
        }
        let entry = |line: &Vec<u8>| {
            (
                PathBuf::from(OsStr::from_bytes(&line[3..])),
                char::from(line[0]),
            )
        };
        lines.iter().map(entry).collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Err(e) = mount::unmount_all(self.scratch.path()) {
            eprintln!("mounts stay: {e}");
        }
    }
}

/// Sockets are not part of an image.
fn without_sockets(mut tree: Tree) -> Tree {
    tree.entries.retain(|_, entry| entry.kind != Kind::Socket);
    tree.group_links();
    tree
}

fn run(name: &str, driver: &'static str, options: &'static [&'static str], rounds: usize) {
    if !needs_root("commits of mounted containers") {
        return;
    }
    let mut rng = Rng::for_test(name);
    for _ in 0..2 {
        let world = World {
            scratch: Scratch::new(),
            driver,
            options,
        };
        let base = world.scratch.dir("base");
        grow(&mut rng, &base, 40);
        Churn::ALL.run(&mut rng, &base, 60);
        world.ok(&["import", base.to_str().unwrap(), "round:0"]);
        for round in 1..=rounds {
            let (from, to) = (format!("round:{}", round - 1), format!("round:{round}"));
            let container = format!("c{round}");
            let root = world.mounted(&from, &container);
            let before = Tree::read(&root).unwrap();
            Churn::ALL.run(&mut rng, &root, 60);
            // A new mount: the kernel shows a name whose link it has broken as still linked while
            // it remembers it.
            world.unmount(&container);
            let root = PathBuf::from(OsStr::from_bytes(&world.ok(&["mount", &container])));
            let after = Tree::read(&root).unwrap();
            check_diff(&before, &after, &world.diff(&container));
            world.ok(&["commit", &container, &to]);
            let again = world.mounted(&to, &format!("again{round}"));
            let ignore = Ignore {
                root: true,
                ..Ignore::default()
            };
            let (expect, found) = (without_sockets(after), Tree::read(&again).unwrap());
            expect.assert_same(&found, ignore);
            assert!(
                world.diff(&format!("again{round}")).is_empty(),
                "a new container has no changes"
            );
        }
    }
}

fn check_diff(before: &Tree, after: &Tree, printed: &BTreeMap<PathBuf, char>) {
    let ignore = Ignore {
        root: true,
        hard_links: true,
        ..Ignore::default()
    };
    for difference in before.differences(after, ignore) {
        let expect = match difference.what.as_str() {
            "only in the first" => 'D',
            "only in the second" => 'A',
            _ => 'C',
        };
        let path = &difference.path;
        match (printed.get(path), expect) {
            (Some(kind), expect) => assert_eq!(*kind, expect, "{difference}"),
            // Files in a directory that was deleted or replaced by a file.
            (None, 'D') => {
                let gone = path
                    .ancestors()
                    .skip(1)
                    .any(|above| match printed.get(above) {
                        Some('D') => true,
                        Some('C') => after.entries[above].kind != Kind::Directory,
                        _ => false,
                    });
                assert!(gone, "{difference}: not printed");
            }
            (None, _) => panic!("{difference}: not printed"),
        }
    }
    for (path, kind) in printed {
        let there = (
            before.entries.contains_key(path),
            after.entries.contains_key(path),
        );
        let expect = match kind {
            'A' => (false, true),
            'C' => (true, true),
            _ => (true, false),
        };
        assert_eq!(there, expect, "{kind} {path:?}");
    }
}

#[test]
fn an_image_of_a_container_looks_like_it() {
    let name = "an_image_of_a_container_looks_like_it";
    run(name, "overlay2", &[], 4);
}

#[test]
fn an_image_of_a_container_looks_like_it_without_kernel_marks() {
    let name = "an_image_of_a_container_looks_like_it_without_kernel_marks";
    run(name, "overlay2", &["--docker-compatible"], 3);
}

#[test]
fn an_image_of_a_container_looks_like_it_on_hard_linked_layers() {
    let name = "an_image_of_a_container_looks_like_it_on_hard_linked_layers";
    run(name, "overlay", &[], 3);
}

#[test]
fn an_image_of_a_container_looks_like_it_in_whole_copies() {
    let name = "an_image_of_a_container_looks_like_it_in_whole_copies";
    run(name, "native", &[], 3);
}

/// A socket can't be in an image, but the file that it replaced is gone.
#[test]
fn a_socket_in_a_files_place_leaves_nothing() {
    if !needs_root("commits of mounted containers") {
        return;
    }
    for driver in ["overlay2", "native"] {
        let world = World {
            scratch: Scratch::new(),
            driver,
            options: &[],
        };
        let base = world
            .scratch
            .file("base/run/service", "a file")
            .parent()
            .unwrap()
            .parent()
            .unwrap()
            .to_owned();
        world.ok(&["import", base.to_str().unwrap(), "with:file"]);
        let root = world.mounted("with:file", "box");
        let path = root.join("run/service");
        std::fs::remove_file(&path).unwrap();
        let (mode, kind) = (
            rustix::fs::Mode::from_raw_mode(0o600),
            rustix::fs::FileType::Socket,
        );
        rustix::fs::mknodat(rustix::fs::CWD, &path, kind, mode, 0).unwrap();
        world.ok(&["commit", "box", "with:socket"]);
        let root = world.mounted("with:socket", "again");
        assert_eq!(std::fs::read_dir(root.join("run")).unwrap().count(), 0);
    }
}

/// One name's directory moves, the other's stays. For the kernel both are the same lower file, so
/// they must be the same file in the image. The directory of the name that stayed keeps its mode in
/// the layer.
#[test]
fn a_name_left_behind_by_a_moved_directory_stays_linked() {
    if !needs_root("commits of mounted containers") {
        return;
    }
    let world = World {
        scratch: Scratch::new(),
        driver: "overlay2",
        options: &[],
    };
    let base = world.scratch.dir("base");
    let store = world.scratch.file("base/store/blob", "shared");
    std::fs::create_dir_all(base.join("app/modules")).unwrap();
    std::fs::hard_link(&store, base.join("app/modules/blob")).unwrap();
    std::fs::set_permissions(
        base.join("store"),
        std::os::unix::fs::PermissionsExt::from_mode(0o1711),
    )
    .unwrap();
    world.ok(&["import", base.to_str().unwrap(), "linked:0"]);
    let root = world.mounted("linked:0", "box");
    std::fs::rename(root.join("app/modules"), root.join("moved")).unwrap();
    world.ok(&["commit", "box", "linked:1"]);
    let tree = Tree::read(&world.mounted("linked:1", "again")).unwrap();
    let entry = |path: &str| &tree.entries[std::path::Path::new(path)];
    assert_eq!(
        entry("moved/blob").linked_with.as_deref(),
        Some("moved/blob".as_ref())
    );
    assert_eq!(
        entry("store/blob").linked_with.as_deref(),
        Some("moved/blob".as_ref())
    );
    assert_eq!(entry("store").mode, 0o1711);
}
