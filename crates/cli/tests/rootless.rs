//! Working as a plain user, from archive to archive, with the real command and under a real other
//! uid.

use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use vellum_sys::{Dir, FileKind, xattr};
use vellum_testkit::{PlainUser, Scratch};

struct World {
    user: PlainUser,
    vellum: PathBuf,
    scratch: Scratch,
}

impl World {
    fn new() -> Option<World> {
        World::of(PlainUser::new)
    }

    fn of(user: fn(&Scratch) -> Option<PlainUser>) -> Option<World> {
        let scratch = Scratch::new();
        let user = user(&scratch)?;
        let vellum = user.borrow_program(Path::new(env!("CARGO_BIN_EXE_vellum")));
        Some(World {
            user,
            vellum,
            scratch,
        })
    }

    fn run(&self, args: &[&str]) -> Output {
        self.user.command(&self.vellum).args(args).output().unwrap()
    }

    /// Runs a command that must succeed and returns what it printed.
    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        let out = self.run(args);
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

    /// Runs a shell command in the user's namespaces.
    #[track_caller]
    fn inside(&self, script: &str) -> String {
        self.ok(&["unshare", "sh", "-ec", script])
    }

    fn store(&self) -> PathBuf {
        self.user.home().join(".local/share/vellum")
    }

    /// Returns the process that keeps the namespaces, from its note.
    fn holder(&self) -> Option<u32> {
        let note = std::fs::read_to_string(self.user.run_dir().join("vellum/holder.json")).ok()?;
        let digits = note.split("\"pid\":").nth(1)?;
        digits
            .split(|c: char| !c.is_ascii_digit())
            .find(|d| !d.is_empty())?
            .parse()
            .ok()
    }

    /// Ends the holder, and with it every mount, as a reboot does.
    fn end_holder(&self) {
        let Some(pid) = self.holder() else { return };
        let is_ours =
            || std::fs::metadata(format!("/proc/{pid}")).is_ok_and(|m| m.uid() == self.user.id);
        if is_ours() {
            Command::new("kill").arg(pid.to_string()).status().unwrap();
        }
        for _ in 0..500 {
            if !is_ours() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.end_holder();
    }
}

/// Creates a docker-archive of two layers with files that a plain user may not create, and returns
/// its path and the diff IDs.
fn archive(world: &World) -> (PathBuf, Vec<String>) {
    let at = |path: &str| world.scratch.join(path);
    let base = world.scratch.dir("base");
    world.scratch.file("base/etc/shadow", "secret\n");
    world.scratch.file("base/home/ann", "ann's\n");
    world.scratch.file("base/gone", "x\n");
    std::os::unix::fs::chown(at("base/home/ann"), Some(1000), Some(1001)).unwrap();
    let dir = Dir::open(&base).unwrap();
    dir.set_mode("gone", 0o4755).unwrap();
    dir.open_dir("etc")
        .unwrap()
        .set_mode("shadow", 0o600)
        .unwrap();
    dir.mkdir("dev", 0o755).unwrap();
    let dev = dir.open_dir("dev").unwrap();
    dev.mknod("null", FileKind::Char, 0o666, (1, 3)).unwrap();
    dev.mknod("loop9", FileKind::Block, 0o660, (7, 9)).unwrap();
    dev.set_owner("loop9", 0, 6).unwrap();
    dev.set_mode("null", 0o666).unwrap();
    xattr::set(
        &dir,
        OsStr::new("gone"),
        OsStr::new("trusted.kept"),
        b"yes",
        xattr::SetMode::Any,
    )
    .unwrap();
    world.scratch.dir("top");
    world.scratch.file("top/.wh.gone", "");
    world.scratch.file("top/new", "new\n");
    let mut ids = Vec::new();
    for layer in ["base", "top"] {
        let tar = at(&format!("archive/{layer}.tar"));
        std::fs::create_dir_all(tar.parent().unwrap()).unwrap();
        let made = Command::new("tar")
            .args([
                "--format=pax",
                "--numeric-owner",
                "--xattrs",
                "--xattrs-include=trusted.kept",
                "--sort=name",
                "-cf",
            ])
            .arg(&tar)
            .arg("-C")
            .arg(at(layer))
            .arg(".")
            .status()
            .unwrap();
        assert!(made.success());
        ids.push(format!(
            "sha256:{}",
            vellum_testkit::tree::hash(std::fs::File::open(&tar).unwrap()).unwrap()
        ));
    }
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{"Cmd":["/bin/sh"]}},"rootfs":{{"type":"layers","diff_ids":["{}","{}"]}}}}"#,
        ids[0], ids[1]
    );
    let name = vellum_testkit::tree::hash(config.as_bytes()).unwrap();
    world.scratch.file(format!("archive/{name}.json"), &config);
    let manifest = format!(
        r#"[{{"Config":"{name}.json","RepoTags":["odd:1"],"Layers":["base.tar","top.tar"]}}]"#
    );
    world.scratch.file("archive/manifest.json", manifest);
    let archive = at("home-of-the-plain-user/odd.tar");
    let made = Command::new("tar")
        .arg("-cf")
        .arg(&archive)
        .arg("-C")
        .arg(at("archive"))
        .arg(".")
        .status()
        .unwrap();
    assert!(made.success());
    (archive, ids)
}

#[test]
fn a_plain_user_works_from_archive_to_archive() {
    let Some(world) = World::new() else { return };
    let (archive, ids) = archive(&world);
    world.ok(&["load", "--quiet", "--input", archive.to_str().unwrap()]);

    // In the store everything belongs to the user or to the user's subordinate ids; what the user
    // may not create is a record.
    let overlay2 = world.store().join("overlay2");
    let (uid, first) = (world.user.id, world.user.first_subid);
    let mut seen = Vec::new();
    for layer in std::fs::read_dir(&overlay2).unwrap() {
        let diff = layer.unwrap().path().join("diff");
        let Ok(dir) = Dir::open(&diff) else { continue };
        if let Ok(dev) = dir.open_dir("dev") {
            let null = dev.stat("null").unwrap();
            assert_eq!((null.kind, null.uid), (FileKind::File, uid));
            let record = xattr::get(
                &dev,
                OsStr::new("null"),
                OsStr::new("user.containers.override_stat"),
            )
            .unwrap();
            assert_eq!(
                String::from_utf8_lossy(&record.unwrap()),
                "0:0:0666:char-1-3"
            );
            let home = dir.open_dir("home").unwrap().stat("ann").unwrap();
            assert_eq!((home.uid, home.gid), (first + 999, first + 1000));
            let kept = xattr::get(
                &dir,
                OsStr::new("gone"),
                OsStr::new("user.vellum.xattr.trusted.kept"),
            )
            .unwrap();
            assert_eq!(kept.as_deref(), Some(&b"yes"[..]));
            assert_eq!(dir.stat("gone").unwrap().mode, 0o4755);
            seen.push("base");
        } else if dir.stat_opt("new").unwrap().is_some() {
            assert!(dir.stat("gone").unwrap().is_null_device());
            seen.push("top");
        }
    }
    seen.sort_unstable();
    assert_eq!(seen, ["base", "top"]);

    // The saved image equals the loaded one, including devices and refused attributes.
    let (digests, listing) = saved(&world, "odd:1");
    assert!(listing.contains("crw-rw-rw- 0/0"), "{listing}");
    for id in &ids {
        assert!(digests.contains(id), "layer {id} came out another one");
    }

    // One command mounts, the next ones find it.
    world.ok(&["create", "--quiet", "odd:1", "--name", "box"]);
    let merged = world.ok(&["mount", "box"]);
    assert!(
        std::fs::read_dir(&merged).is_ok_and(|d| d.count() == 0),
        "outside nothing shows"
    );
    let owners = world.inside(&format!(
        "cd {merged}; stat -c '%u:%g %a' etc/shadow home/ann; ! test -e gone; cat new"
    ));
    assert_eq!(owners, "0:0 600\n1000:1001 644\nnew");
    world.inside(&format!(
        "cd {merged}; echo more >> home/ann; rm new; mkdir made; chown 7:8 made"
    ));
    let changes = world.ok(&["diff", "box"]);
    for line in ["C /home/ann", "D /new", "A /made"] {
        assert!(changes.lines().any(|l| l == line), "{changes}");
    }

    // The new layer lies on top of them.
    world.ok(&["commit", "--quiet", "box", "odd:2"]);
    let (digests, listing) = saved(&world, "odd:2");
    for id in &ids {
        assert!(digests.contains(id), "layer {id} came out another one");
    }
    for expect in ["7/8", "1000/1001", "crw-rw-rw- 0/0", ".wh.new"] {
        assert!(listing.contains(expect), "{expect}: {listing}");
    }
    for method in ["layer-fds", "lowerdir-plus", "option-page"] {
        world.ok(&["umount", "box"]);
        assert_eq!(
            world.ok(&["--mount-method", method, "mount", "box"]),
            merged
        );
        assert_eq!(
            world.inside(&format!("tail -n1 {merged}/home/ann")),
            "more",
            "{method}"
        );
    }
    world.ok(&["rm", "--force", "box"]);
}

/// Saves an image and returns the digests of all files in the archive, and what tar lists of those
/// that are tars.
#[track_caller]
fn saved(world: &World, image: &str) -> (Vec<String>, String) {
    let saved = world.user.home().join("saved.tar");
    world.ok(&[
        "save",
        "--quiet",
        "--output",
        saved.to_str().unwrap(),
        image,
    ]);
    let out = world
        .scratch
        .dir(format!("out-{}", image.replace(':', "-")));
    assert!(
        Command::new("tar")
            .arg("-xf")
            .arg(&saved)
            .arg("-C")
            .arg(&out)
            .status()
            .unwrap()
            .success()
    );
    std::fs::remove_file(&saved).unwrap();
    let mut digests = Vec::new();
    let mut listing = String::new();
    walk(&out, &mut |file| {
        let content = std::fs::File::open(file).unwrap();
        digests.push(format!(
            "sha256:{}",
            vellum_testkit::tree::hash(content).unwrap()
        ));
        let listed = Command::new("tar")
            .arg("--numeric-owner")
            .arg("-tvf")
            .arg(file)
            .output()
            .unwrap();
        listing.push_str(&String::from_utf8_lossy(&listed.stdout));
    });
    (digests, listing)
}

#[test]
fn a_plain_user_works_with_every_driver() {
    let Some(world) = World::new() else { return };
    let (archive, ids) = archive(&world);
    for driver in ["overlay", "native"] {
        let root = world.user.home().join(driver);
        let with = |args: &[&str]| {
            let mut all = vec![
                "--quiet",
                "--root",
                root.to_str().unwrap(),
                "--storage-driver",
                driver,
            ];
            all.extend(args);
            world.ok(&all)
        };
        with(&["load", "--input", archive.to_str().unwrap()]);
        with(&["create", "odd:1", "--name", "box"]);
        let merged = with(&["mount", "box"]);
        world.inside(&format!(
            "cd {merged}; ! test -e gone; cat new; rm new; echo more > more"
        ));
        assert_eq!(with(&["diff", "box"]), "A /more\nD /new", "{driver}");
        with(&["commit", "box", "odd:2"]);
        let saved = world.user.home().join("saved.tar");
        with(&["save", "--output", saved.to_str().unwrap(), "odd:2"]);
        let listed = Command::new("tar").arg("-tf").arg(&saved).output().unwrap();
        let listed = String::from_utf8(listed.stdout).unwrap();
        for id in &ids {
            assert!(
                listed.contains(id.trim_start_matches("sha256:")),
                "{driver}: layer {id} came out another one"
            );
        }
        with(&["rm", "--force", "box"]);
    }
}

#[test]
fn a_plain_user_with_one_id_keeps_owners_as_records() {
    let Some(world) = World::of(PlainUser::with_one_id) else {
        return;
    };
    let (archive, ids) = archive(&world);
    world.ok(&["load", "--quiet", "--input", archive.to_str().unwrap()]);
    assert_eq!(world.inside("wc -l < /proc/self/uid_map"), "1");
    world.ok(&["create", "--quiet", "odd:1", "--name", "box"]);
    let merged = world.ok(&["mount", "box"]);
    assert_eq!(
        world.inside(&format!("cat {merged}/home/ann; echo more > {merged}/more")),
        "ann's"
    );
    assert_eq!(world.ok(&["diff", "box"]), "A /more");
    let (digests, _) = saved(&world, "odd:1");
    for id in &ids {
        assert!(digests.contains(id), "layer {id} came out another one");
    }
    world.ok(&["rm", "--force", "box"]);
}

#[test]
fn a_plain_user_copies_by_the_same_rules() {
    for (user, ids) in [
        (PlainUser::new as fn(&Scratch) -> Option<PlainUser>, "many"),
        (PlainUser::with_one_id, "one"),
    ] {
        let Some(world) = World::of(user) else { return };
        let (archive, _) = archive(&world);
        world.ok(&["load", "--quiet", "--input", archive.to_str().unwrap()]);
        world.ok(&["create", "--quiet", "odd:1", "--name", "box"]);
        let own = |args: &[&str]| {
            let done = world.user.command(args[0]).args(&args[1..]).output();
            assert!(done.unwrap().status.success(), "{args:?}");
        };
        let home = world.user.home().display().to_string();
        let src = format!("{home}/src");
        own(&[
            "sh",
            "-ec",
            "mkdir -p $0/a $0/b; cd $0; echo x > a/x; ln a/x b/y; ln -s a link; chmod 750 a; chmod 555 b; mkfifo fifo",
            &src,
        ]);
        // Root's, and readable: root is not mapped in the user's namespace.
        std::fs::write(world.user.home().join("roots"), "root's").unwrap();
        // Not mounted, then mounted.
        world.ok(&["cp", &src, "box:/copy"]);
        let merged = world.ok(&["mount", "box"]);
        world.ok(&["cp", &format!("{src}/."), "box:/copy"]);
        world.ok(&["cp", &format!("{home}/roots"), "box:/"]);
        let seen = world.inside(&format!(
            "cd {merged}; test -L copy/link; test -p copy/fifo; test copy/a/x -ef copy/b/y; \
             ln -s /etc esc; stat -c '%n %a %u:%g' copy copy/a copy/b roots"
        ));
        let expect = "copy 755 0:0\ncopy/a 750 0:0\ncopy/b 555 0:0\nroots 644 0:0";
        assert_eq!(seen, expect, "{ids}");

        // A tar's owners are kept if the user has those ids; the copy goes through a link, and no
        // directory is replaced.
        let tar = |script: &str| {
            let script = format!(
                "cd {src}; tar {script} | {} cp - box:/",
                world.vellum.display()
            );
            let done = world.user.command("sh").args(["-c", &script]).output();
            let done = done.unwrap();
            (
                done.status.success(),
                String::from_utf8(done.stderr).unwrap(),
            )
        };
        let told = tar("-c --owner=33 --group=44 --transform 's,^a/x,esc/x,' a/x");
        match ids {
            "many" => {
                assert_eq!(told, (true, String::new()));
                let owner = world.inside(&format!("stat -c %u:%g {merged}/etc/x"));
                assert_eq!(owner, "33:44");
            }
            _ => assert!(!told.0 && told.1.contains("owner"), "{told:?}"),
        }
        let told = tar("-c --owner=0 --group=0 --transform 's,^a/x,etc,' a/x");
        assert!(
            !told.0 && told.1.contains("cannot overwrite directory"),
            "{told:?}"
        );

        let out = format!("{home}/out");
        world.ok(&["cp", "box:/copy", &out]);
        let out = Path::new(&out);
        let x = out.join("a/x").metadata().unwrap();
        assert_eq!(x.ino(), out.join("b/y").metadata().unwrap().ino());
        assert_eq!((x.uid(), x.gid()), (world.user.id, world.user.id));
        own(&[
            "sh",
            "-c",
            "chmod -R u+w $0/src $0/out && rm -r $0/src $0/out",
            &home,
        ]);
        world.ok(&["rm", "--force", "box"]);
    }
}

#[test]
fn a_plain_users_containers_mount_again_when_the_holder_is_gone() {
    let Some(world) = World::new() else { return };
    let tree = world.scratch.dir("tree");
    world.scratch.file("tree/file", "below");
    world.ok(&[
        "create",
        "--quiet",
        "--from",
        tree.to_str().unwrap(),
        "--name",
        "box",
    ]);
    let merged = world.ok(&["mount", "box"]);
    let holder = world.holder().unwrap();
    world.inside(&format!("echo mine > {merged}/own; rm {merged}/file"));
    assert_eq!(
        world.holder(),
        Some(holder),
        "one holder serves every command"
    );
    world.end_holder();
    assert!(!world.ok(&["mount"]).contains("box"));
    assert_ne!(world.holder(), Some(holder));
    assert_eq!(world.ok(&["mount", "box"]), merged);
    assert_eq!(
        world.inside(&format!("cat {merged}/own; ! test -e {merged}/file")),
        "mine"
    );
    world.ok(&["rm", "--force", "box"]);
}

/// The kernel refuses redirects and metacopies in a plain user's mounts; the engine allows them,
/// and doesn't let the kernel mount what it wrote.
#[test]
fn a_plain_users_containers_rename_directories_on_vellums_engine() {
    let Some(world) = World::new() else { return };
    if !world.user.give_fuse() {
        return;
    }
    let (archive, _) = archive(&world);
    world.ok(&["load", "--quiet", "--input", archive.to_str().unwrap()]);
    world.ok(&["create", "--quiet", "odd:1", "--name", "box"]);
    let merged = world.ok(&["--engine", "vellum", "mount", "box"]);
    let script = format!(
        "cd {merged}; mv home moved; cat moved/ann; stat -c '%F' dev/null; chmod 600 moved/ann"
    );
    assert_eq!(world.inside(&script), "ann's\ncharacter special file");
    let diff = world.ok(&["diff", "box"]);
    assert!(
        diff.contains("D /home") && diff.contains("A /moved/ann"),
        "{diff}"
    );
    world.ok(&["umount", "box"]);
    let refused = world.run(&["--engine", "kernel", "mount", "box"]);
    assert_eq!(refused.status.code(), Some(1));
    world.ok(&["commit", "--quiet", "box", "mine:1"]);
    assert_eq!(world.ok(&["mount", "box"]), merged);
    assert_eq!(
        world.inside(&format!("stat -c %a {merged}/moved/ann")),
        "600"
    );
    world.ok(&["rm", "--force", "box"]);
    world.ok(&["create", "--quiet", "mine:1", "--name", "next"]);
    let plan = world.ok(&["mount", "next", "--dry-run"]);
    assert!(plan.starts_with("overlay by"), "{plan}");
    world.ok(&["rm", "--force", "next"]);
}

#[test]
fn two_first_commands_at_once_share_one_namespace() {
    let Some(world) = World::new() else { return };
    let commands: Vec<_> = (0..6)
        .map(|_| {
            let mut command = world.user.command(&world.vellum);
            command
                .args(["unshare", "readlink", "/proc/self/ns/mnt"])
                .stdout(std::process::Stdio::piped());
            command.spawn().unwrap()
        })
        .collect();
    let namespaces: Vec<_> = commands
        .into_iter()
        .map(|c| c.wait_with_output().unwrap().stdout)
        .collect();
    assert!(!namespaces[0].is_empty());
    assert!(
        namespaces.iter().all(|n| *n == namespaces[0]),
        "{namespaces:?}"
    );
}

#[test]
fn another_users_run_directory_is_refused() {
    use std::os::unix::fs::{PermissionsExt, chown, symlink};
    let Some(world) = World::new() else { return };
    let mine = world.user.home().join("mine");
    std::fs::create_dir(&mine).unwrap();
    chown(&mine, Some(world.user.id), None).unwrap();
    let roots = world.scratch.dir("roots");
    let link = world.scratch.join("link");
    symlink(&mine, &link).unwrap();
    let open = world.user.home().join("open");
    std::fs::create_dir(&open).unwrap();
    chown(&open, Some(world.user.id), None).unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
    for dir in [&roots, &link, &open] {
        let out = world.run(&["--run-dir", dir.to_str().unwrap(), "ls"]);
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(
            !out.status.success() && said.contains("belongs to another user"),
            "{said}"
        );
        assert!(!mine.join("holder.json").exists() && !open.join("holder.json").exists());
    }
}

#[test]
fn a_plain_user_is_told_what_needs_root() {
    use std::os::unix::fs::PermissionsExt;
    let Some(world) = World::new() else { return };
    let theirs = world.scratch.dir("theirs");
    std::fs::set_permissions(&theirs, std::fs::Permissions::from_mode(0o700)).unwrap();
    let theirs = theirs.to_str().unwrap();
    let inside = format!("{theirs}/x");
    for verb in [
        &["adopt", theirs][..],
        &["--root", &inside, "images"],
        &["node", "status", "--host-root", theirs],
    ] {
        let said = world.run(verb);
        let said = String::from_utf8_lossy(&said.stderr);
        assert!(
            said.contains("hint: you lack a permission"),
            "{verb:?}: {said}"
        );
    }
}

#[test]
fn info_lists_what_a_plain_user_cant_do() {
    let Some(world) = World::new() else { return };
    let info = world.ok(&["info"]);
    for word in ["userxattr", "redirect_dir", "metacopy"] {
        assert!(info.contains(word), "{word}: {info}");
    }
}

fn walk(dir: &Path, see: &mut impl FnMut(&Path)) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.symlink_metadata().unwrap().is_dir() {
            walk(&path, see);
        } else if path.symlink_metadata().unwrap().is_file() {
            see(&path);
        }
    }
}
