//! Trouble around a store, with the real command: things mounted over it, trees in use, reboots,
//! moved disks.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use vellum_sys::mount::{self, BindOptions};
use vellum_sys::mountinfo;
use vellum_testkit::scratch::unmount;
use vellum_testkit::tree::Ignore;
use vellum_testkit::{FsKind, Scratch, Tree, needs_root, untested};

/// A store with its run directory, and a directory tree to create containers from. Everything is
/// unmounted at the end.
struct World {
    scratch: Scratch,
    root: PathBuf,
}

impl World {
    /// `None`, and recorded as untested, if not run as root.
    fn new() -> Option<World> {
        if !needs_root("mounting") {
            return None;
        }
        let scratch = Scratch::new();
        scratch.file("tree/etc/hostname", "below\n");
        scratch.file("tree/dir/inner", "inner\n");
        let root = scratch.join("disk/root");
        Some(World { scratch, root })
    }

    fn command(&self, root: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vellum"));
        command
            .arg("--root")
            .arg(root)
            .arg("--run-dir")
            .arg(self.scratch.join("run"))
            .args(args);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(&self.root, args).output().unwrap()
    }

    /// Runs a command that must succeed and returns what it printed, without the last newline.
    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        said(args, self.run(args))
    }

    /// Runs a command that must fail and returns its complaint.
    #[track_caller]
    fn fails(&self, args: &[&str]) -> String {
        let out = self.run(args);
        assert!(!out.status.success(), "{args:?} succeeded: {out:?}");
        String::from_utf8(out.stderr).unwrap()
    }

    /// Creates a container over the tree and returns where it is mounted.
    #[track_caller]
    fn mounted(&self, name: &str) -> PathBuf {
        let tree = self.scratch.join("tree");
        self.ok(&[
            "create",
            "--quiet",
            "--from",
            tree.to_str().unwrap(),
            "--name",
            name,
        ]);
        PathBuf::from(self.ok(&["mount", name]))
    }

    /// The state after a reboot: no mounts, no run directory.
    fn reboot(&self) {
        mount::unmount_all(&self.root).unwrap();
        std::fs::remove_dir_all(self.scratch.join("run")).unwrap();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Err(e) = mount::unmount_all(self.scratch.path()) {
            eprintln!("mounts stay: {e}");
        }
    }
}

#[track_caller]
fn said(args: &[&str], out: Output) -> String {
    assert!(
        out.status.success(),
        "{args:?}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8(out.stdout)
        .unwrap()
        .trim_end_matches('\n')
        .to_string()
}

/// A process that has printed a line and waits for its input to end.
struct Waiting(Child);

impl Waiting {
    fn start(command: &mut Command) -> Waiting {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "ready\n");
        Waiting(child)
    }

    fn finish(mut self) -> bool {
        drop(self.0.stdin.take());
        self.0.wait().unwrap().success()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Nothing of a container is left in the store, neither tree nor record.
#[track_caller]
fn gone(world: &World, name: &str) {
    assert!(!world.ok(&["ls"]).contains(name));
    let trees = |dir: &str| std::fs::read_dir(world.root.join(dir)).unwrap().count();
    assert_eq!((trees("trash"), trees("staging")), (0, 0));
    // `l`, and the empty base of containers over directories.
    assert_eq!((trees("overlay2"), trees("overlay2/l")), (2, 1));
}

#[test]
fn rm_removes_a_container_that_a_process_uses() {
    let Some(world) = World::new() else { return };
    let merged = world.mounted("box");
    let sitter = Waiting::start(
        Command::new("sh")
            .args(["-c", "exec 3>held; echo ready; read x; echo late >&3"])
            .current_dir(merged.join("dir")),
    );
    assert!(world.fails(&["umount", "box"]).contains("in use"));
    world.ok(&["rm", "--force", "box"]);
    gone(&world, "box");
    assert!(sitter.finish(), "what it holds open stays usable");
}

#[test]
fn rm_removes_a_container_that_another_mount_namespace_holds() {
    let Some(world) = World::new() else { return };
    let merged = world.mounted("box");
    let holder = Waiting::start(Command::new("unshare").args([
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        "echo ready; read x; true",
    ]));
    world.ok(&["rm", "--force", "box"]);
    gone(&world, "box");
    assert!(!merged.exists());
    assert!(holder.finish());
}

#[test]
fn rm_removes_a_container_with_something_mounted_in_and_over_it() {
    let Some(world) = World::new() else { return };
    let merged = world.mounted("box");
    let foreign = world.scratch.dir("foreign");
    std::fs::write(foreign.join("precious"), "x").unwrap();
    for place in [
        merged.join("dir"),
        merged.clone(),
        merged.parent().unwrap().to_path_buf(),
    ] {
        mount::bind(&foreign, &place, BindOptions::default()).unwrap();
    }
    world.ok(&["rm", "--force", "box"]);
    gone(&world, "box");
    assert!(foreign.join("precious").exists());
    assert!(mountinfo::read().unwrap().beneath(&world.root).is_empty());
}

#[test]
fn a_command_that_waits_for_another_says_so_and_can_be_stopped() {
    let Some(world) = World::new() else { return };
    world.mounted("held");
    let [record] = &serde_json::from_str::<Vec<serde_json::Value>>(&world.ok(&["inspect", "held"]))
        .unwrap()[..]
    else {
        panic!("not one record");
    };
    let locks = world.scratch.join("run/locks");
    let lock = std::fs::File::open(locks.join(record["id"].as_str().unwrap())).unwrap();
    lock.lock().unwrap();
    let mut waiting = world
        .command(&world.root, &["umount", "held"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut told = BufReader::new(waiting.stderr.take().unwrap());
    let mut line = String::new();
    told.read_line(&mut line).unwrap();
    assert!(
        line.contains("waiting for another vellum") && line.contains("container"),
        "{line}"
    );
    let pid = rustix::process::Pid::from_raw(waiting.id() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(waiting.wait().unwrap().code(), Some(130));
    drop(lock);
    world.ok(&["umount", "held"]);
}

#[test]
fn a_store_behind_a_symbolic_link_knows_what_is_mounted() {
    let Some(mut world) = World::new() else {
        return;
    };
    world.scratch.dir("disk");
    let link = world.scratch.join("link");
    std::os::unix::fs::symlink("disk", &link).unwrap();
    let real = std::mem::replace(&mut world.root, link.join("root"));
    let merged = world.mounted("box");
    std::fs::write(merged.join("own"), "x").unwrap();
    // By either name; it is a single mount.
    for root in [&real, &world.root] {
        let said = world.command(root, &["mount"]).output().unwrap();
        assert!(String::from_utf8(said.stdout).unwrap().contains("box"));
        let refused = world.command(root, &["rm", "box"]).output().unwrap();
        let why = String::from_utf8(refused.stderr).unwrap();
        assert!(
            !refused.status.success() && why.contains("mounted"),
            "{why}"
        );
        assert!(merged.join("own").exists());
    }
    world.ok(&["umount", "box"]);
    assert!(!merged.join("own").exists());
    let merged = PathBuf::from(world.ok(&["mount", "box"]));
    assert!(merged.join("own").exists());
    world.ok(&["rm", "--force", "box"]);
    gone(&world, "box");
    assert!(mountinfo::read().unwrap().beneath(&real).is_empty());
}

#[test]
fn a_covered_store_is_named_and_comes_back_without_a_restart() {
    let Some(world) = World::new() else { return };
    let merged = world.mounted("box");
    std::fs::write(merged.join("written"), "before").unwrap();
    let running = Waiting::start(
        Command::new("sh")
            .args(["-c", "echo ready; read x; echo more >> written"])
            .current_dir(&merged),
    );
    let empty = world.scratch.dir("empty");
    let disk = world.scratch.join("disk");
    for covers in [
        vec![&world.root],
        vec![&disk],
        vec![&world.root, &disk],
        vec![&disk, &disk],
    ] {
        for cover in &covers {
            mount::bind(&empty, cover, BindOptions::default()).unwrap();
        }
        for verb in [
            &["ls"][..],
            &["create", "--from", "/etc"],
            &["mount", "box"],
            &["rm", "-f", "box"],
            &["diff", "box"],
        ] {
            let complaint = world.fails(verb);
            assert!(complaint.contains("covered"), "{complaint}");
            let order: Vec<_> = complaint
                .lines()
                .filter(|l| l.contains("umount "))
                .collect();
            assert_eq!(order.len(), 1, "{complaint}");
            let expect: Vec<_> = covers
                .iter()
                .rev()
                .map(|c| format!("umount {}", c.display()))
                .collect();
            assert!(order[0].contains(&expect.join(" && ")), "{complaint}");
        }
        assert_eq!(
            std::fs::read_dir(&empty).unwrap().count(),
            0,
            "nothing was made in what covers it"
        );
        // The remedy that the error gives.
        for cover in covers.iter().rev() {
            unmount(cover).unwrap();
        }
        assert!(world.ok(&["ls"]).contains("box"));
    }
    assert!(running.finish(), "the container kept running");
    assert_eq!(
        std::fs::read_to_string(merged.join("written")).unwrap(),
        "beforemore\n"
    );
    assert_eq!(world.ok(&["mount", "box"]), merged.to_str().unwrap());
}

#[test]
fn mounted_containers_reveal_a_covered_store_when_the_run_directory_is_lost() {
    let Some(world) = World::new() else { return };
    world.mounted("box");
    std::fs::remove_dir_all(world.scratch.join("run")).unwrap();
    let empty = world.scratch.dir("empty");
    mount::bind(&empty, &world.root, BindOptions::default()).unwrap();
    let complaint = world.fails(&["ls"]);
    assert!(
        complaint.contains("covered")
            && complaint.contains(&format!("umount {}", world.root.display())),
        "{complaint}"
    );
    assert_eq!(std::fs::read_dir(&empty).unwrap().count(), 0);
    unmount(&world.root).unwrap();
    assert!(world.ok(&["ls"]).contains("box"));
}

#[test]
fn a_store_whose_disk_is_gone_is_not_created_again() {
    let Some(mut world) = World::new() else {
        return;
    };
    let disk = match world.scratch.file_system("ext4", FsKind::Ext4, 64) {
        Ok(disk) => disk,
        Err(why) => return untested("ext4", why),
    };
    world.root = disk.join("root");
    let merged = world.mounted("box");
    std::fs::write(merged.join("own"), "x").unwrap();
    world.ok(&["umount", "box"]);
    unmount(&disk).unwrap();
    for verb in [&["ls"][..], &["create", "--from", "/etc"]] {
        let complaint = world.fails(verb);
        assert!(
            complaint.contains("is not mounted any more") && complaint.contains("ext4"),
            "{complaint}"
        );
    }
    assert_eq!(
        std::fs::read_dir(&disk).unwrap().count(),
        0,
        "nothing was made on the bare mount point"
    );
    let image = world.scratch.join("ext4.img");
    assert!(
        Command::new("mount")
            .args(["-o", "loop"])
            .arg(&image)
            .arg(&disk)
            .status()
            .unwrap()
            .success()
    );
    let merged = PathBuf::from(world.ok(&["mount", "box"]));
    assert_eq!(std::fs::read_to_string(merged.join("own")).unwrap(), "x");
}

#[test]
fn a_covered_driver_directory_is_named() {
    let Some(world) = World::new() else { return };
    world.mounted("box");
    let empty = world.scratch.dir("empty");
    mount::bind(&empty, &world.root.join("overlay2"), BindOptions::default()).unwrap();
    let complaint = world.fails(&["rm", "-f", "box"]);
    assert!(complaint.contains("overlay2 is covered"), "{complaint}");
    unmount(&world.root.join("overlay2")).unwrap();
    world.ok(&["rm", "-f", "box"]);
    gone(&world, "box");
}

#[test]
fn every_container_mounts_again_after_a_reboot() {
    let Some(world) = World::new() else { return };
    let mut pictures = Vec::new();
    for name in ["one", "two", "three"] {
        let merged = world.mounted(name);
        std::fs::write(merged.join("own"), name).unwrap();
        std::fs::rename(merged.join("dir"), merged.join("moved")).unwrap();
        std::fs::remove_file(merged.join("etc/hostname")).unwrap();
        pictures.push(Tree::read(&merged).unwrap());
    }
    world.reboot();
    assert!(!world.ok(&["mount"]).contains("one"));
    for (name, picture) in ["one", "two", "three"].iter().zip(&pictures) {
        let merged = PathBuf::from(world.ok(&["mount", name]));
        same(picture, &merged);
    }
}

#[test]
fn a_store_copied_to_another_disk_mounts_again() {
    let Some(world) = World::new() else { return };
    let merged = world.mounted("box");
    std::fs::write(merged.join("own"), "own").unwrap();
    std::fs::rename(merged.join("dir"), merged.join("moved")).unwrap();
    std::fs::set_permissions(
        merged.join("etc/hostname"),
        std::os::unix::fs::PermissionsExt::from_mode(0o600),
    )
    .unwrap();
    let picture = Tree::read(&merged).unwrap();
    world.reboot();
    for kind in [FsKind::Xfs, FsKind::Btrfs, FsKind::Tmpfs, FsKind::Ext4] {
        let disk = match world.scratch.file_system(format!("{kind:?}"), kind, 64) {
            Ok(disk) => disk,
            Err(why) => {
                untested(&format!("{kind:?}"), why);
                continue;
            }
        };
        let copy = disk.join("root");
        let copied = Command::new("cp")
            .arg("-a")
            .arg(&world.root)
            .arg(&copy)
            .status()
            .unwrap();
        assert!(copied.success());
        let args = ["mount", "box"];
        let merged = PathBuf::from(said(&args, world.command(&copy, &args).output().unwrap()));
        assert!(merged.starts_with(&copy));
        same(&picture, &merged);
        std::fs::write(merged.join("own"), "changed").unwrap();
        let args = ["umount", "box"];
        said(&args, world.command(&copy, &args).output().unwrap());
    }
}

#[track_caller]
fn same(expect: &Tree, dir: &Path) {
    expect.assert_same(&Tree::read(dir).unwrap(), Ignore::default());
}

#[test]
fn a_foreign_mount_over_a_container_is_neither_mistaken_for_it_nor_removed() {
    let Some(world) = World::new() else { return };
    let merged = world.mounted("box");
    std::fs::write(merged.join("own"), "own").unwrap();
    let foreign = world.scratch.dir("foreign");
    let tree = merged.parent().unwrap();
    for (cover, named) in [
        (merged.as_path(), "merged is covered"),
        (tree, "is covered"),
    ] {
        mount::bind(&foreign, cover, BindOptions::default()).unwrap();
        for verb in ["mount", "umount"] {
            let complaint = world.fails(&[verb, "box"]);
            assert!(complaint.contains(named), "{complaint}");
            assert!(
                complaint.contains(&format!("umount {}", cover.display())),
                "{complaint}"
            );
        }
        assert!(
            mount::is_mount_point(cover).unwrap(),
            "the foreign mount stays"
        );
        assert_eq!(std::fs::read_dir(&foreign).unwrap().count(), 0);
        unmount(cover).unwrap();
        assert_eq!(std::fs::read_to_string(merged.join("own")).unwrap(), "own");
    }
    world.ok(&["umount", "box"]);
    let again = PathBuf::from(world.ok(&["mount", "box"]));
    assert_eq!(std::fs::read_to_string(again.join("own")).unwrap(), "own");
    let view = world.scratch.dir("view");
    world.ok(&["mount", "box", view.to_str().unwrap()]);
    mount::bind(&foreign, tree, BindOptions::default()).unwrap();
    assert!(world.fails(&["rm", "box"]).contains("is covered"));
    world.ok(&["rm", "--force", "box"]);
    gone(&world, "box");
    assert!(
        !mount::is_mount_point(&view).unwrap(),
        "views elsewhere go, too"
    );
}

/// A docker-archive of `count` layers: each adds its own file and replaces the one that they all
/// have.
fn tall_image(world: &World, count: usize) -> PathBuf {
    let mut ids = Vec::new();
    let mut members = Vec::new();
    for i in 0..count {
        let layer = tar(&[
            (format!("own-{i}"), format!("{i}").into_bytes()),
            ("same".into(), format!("{i}").into_bytes()),
        ]);
        ids.push(format!(
            "\"sha256:{}\"",
            vellum_testkit::tree::hash(&layer[..]).unwrap()
        ));
        members.push((format!("{i}.tar"), layer));
    }
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        ids.join(",")
    );
    let layers: Vec<_> = members
        .iter()
        .map(|(name, _)| format!("\"{name}\""))
        .collect();
    let manifest = format!(
        r#"[{{"Config":"c.json","RepoTags":["tall:{count}"],"Layers":[{}]}}]"#,
        layers.join(",")
    );
    members.push(("c.json".into(), config.into_bytes()));
    members.push(("manifest.json".into(), manifest.into_bytes()));
    world
        .scratch
        .file(format!("tall-{count}.tar"), tar(&members))
}

/// Writes a plain tar of regular files.
fn tar(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, content) in files {
        let mut header = [0u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..107].copy_from_slice(b"0000644");
        header[108..115].copy_from_slice(b"0000000");
        header[116..123].copy_from_slice(b"0000000");
        header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
        header[136..147].copy_from_slice(b"00000000000");
        header[148..156].copy_from_slice(b"        ");
        header[156] = b'0';
        header[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        out.extend_from_slice(&header);
        out.extend_from_slice(content);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    out
}

#[test]
fn images_with_many_layers_mount_by_each_method_up_to_its_limit() {
    let Some(world) = World::new() else { return };
    for (count, reaching) in [
        (128, &["layer-fds", "lowerdir-plus", "option-page"][..]),
        (499, &["layer-fds", "lowerdir-plus"]),
    ] {
        let archive = tall_image(&world, count);
        world.ok(&["load", "--quiet", "--input", archive.to_str().unwrap()]);
        let image = format!("tall:{count}");
        world.ok(&["create", "--quiet", &image, "--name", "box"]);
        for method in ["layer-fds", "lowerdir-plus", "option-page"] {
            let args = ["--mount-method", method, "mount", "box"];
            if !reaching.contains(&method) {
                let complaint = world.fails(&args);
                assert!(
                    complaint.contains("4095") && complaint.contains("hint:"),
                    "{complaint}"
                );
                continue;
            }
            let merged = PathBuf::from(world.ok(&args));
            assert_eq!(
                std::fs::read_to_string(merged.join("same")).unwrap(),
                format!("{}", count - 1)
            );
            assert_eq!(std::fs::read_to_string(merged.join("own-0")).unwrap(), "0");
            std::fs::write(merged.join(method), "x").unwrap();
            world.ok(&["umount", "box"]);
        }
        let changes = world.ok(&["diff", "box"]);
        assert_eq!(changes.lines().count(), reaching.len(), "{changes}");
        world.ok(&["rm", "--force", "box"]);
        world.ok(&["rmi", &image]);
    }
}

#[test]
fn a_store_with_a_long_unusual_name_mounts_by_each_method() {
    use std::os::unix::ffi::OsStrExt;
    let Some(mut world) = World::new() else {
        return;
    };
    let archive = tall_image(&world, 3);
    let odd = std::ffi::OsStr::from_bytes(b"a:b,c\\d e\nf\xff");
    let long = "l".repeat(200);
    for name in [odd, std::ffi::OsStr::new(&long)] {
        world.root = world.scratch.path().join(name).join(name);
        world.ok(&["load", "--quiet", "--input", archive.to_str().unwrap()]);
        world.ok(&["create", "--quiet", "tall:3", "--name", "box"]);
        for method in ["layer-fds", "lowerdir-plus", "option-page"] {
            let view = world.scratch.dir("view");
            world.ok(&[
                "--mount-method",
                method,
                "mount",
                "box",
                view.to_str().unwrap(),
            ]);
            assert_eq!(
                std::fs::read_to_string(view.join("same")).unwrap(),
                "2",
                "{name:?} {method}"
            );
            std::fs::write(view.join(method), "x").unwrap();
            world.ok(&["umount", "box"]);
            assert!(!view.join(method).exists());
        }
        assert_eq!(world.ok(&["diff", "box"]).lines().count(), 3);
        world.ok(&["rm", "--force", "box"]);
    }
}
