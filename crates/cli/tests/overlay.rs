//! Mounts of Vellum's own engine through every name and by every kind of user, and layers without a
//! mount.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::layered::{ALL, VELLUM, World, changed, command, read, wait_free};
use support::{Said, said};
use vellum_testkit::clients::{Home, available, small_image};
use vellum_testkit::kernel::Overlay;
use vellum_testkit::{PlainUser, Scratch, Tree, needs_root, untested};

#[test]
fn a_mount_answers_when_the_command_returns() {
    let Some(world) = World::new() else { return };
    let merged = world.mount("");
    assert_eq!(read(&merged.join("both")), "from the top\n");
    fs::write(merged.join("new"), "written\n").unwrap();
    fs::rename(merged.join("dir"), merged.join("moved")).unwrap();
    fs::remove_file(merged.join("gone")).unwrap();
    world.unmount();
    assert_eq!(read(&world.at("upper/new")), "written\n");
    // After an unmount, a new mount works at once, although the first server is still writing.
    for _ in 0..10 {
        world.mount("");
        world.scratch.unmount(&world.at("merged"));
    }
    let merged = world.mount("");
    assert_eq!(read(&merged.join("moved/inner/file")), "deep\n");
    assert!(!merged.join("gone").exists() && !merged.join("dir").exists());
}

#[test]
fn a_mount_that_fails_says_why_and_leaves_nothing() {
    let Some(world) = World::new() else { return };
    let merged = world.at("merged");
    let merged = merged.to_str().unwrap();
    for (options, code, says) in [
        (
            "lowerdir=/nowhere-at-all".to_owned(),
            2,
            "there is no layer /nowhere-at-all",
        ),
        (
            format!("{},shiny=1", world.options()),
            2,
            "no mount option `shiny=1`",
        ),
        (format!("{},nfs_export=on", world.options()), 2, "NFS"),
        ("upperdir=/a,workdir=/b".to_owned(), 2, "no lower layer"),
        (format!("lowerdir=//p/x//{merged}"), 2, "plugin"),
    ] {
        let done = world.vellum(&["overlay", "-o", &options, merged]);
        assert_eq!(done.code, code, "{options}: {}", done.err);
        assert!(done.err.contains(says), "{options}: {}", done.err);
        assert!(done.err.contains("hint: "), "{options}: {}", done.err);
    }
    let left = |dir: &str| fs::read_dir(world.at(dir)).unwrap().count();
    assert_eq!((left("upper"), left("work")), (0, 0));
    world.mount("");
    let other = world.scratch.dir("other");
    let record = fs::read(world.at("work/vellum/layer")).unwrap();
    let empty = world.scratch.dir("empty");
    for taken in [
        world.options(),
        // With other layers, with another work directory, and with a lower layer for an upper.
        world
            .options()
            .replace(world.at("top").to_str().unwrap(), empty.to_str().unwrap()),
        format!(
            "lowerdir={1},upperdir={0}/upper,workdir={1}",
            world.at("").display(),
            empty.display()
        ),
        format!(
            "lowerdir={1},upperdir={0}/base,workdir={1}",
            world.at("").display(),
            empty.display()
        ),
    ] {
        let done = world.vellum(&["overlay", "-o", &taken, other.to_str().unwrap()]);
        assert_eq!(done.code, 1, "{}", done.err);
        assert!(
            done.err.contains("another union is using it"),
            "{}",
            done.err
        );
        assert_eq!(
            fs::read(world.at("work/vellum/layer")).unwrap(),
            record,
            "{taken}"
        );
        assert_eq!(left("empty"), 0, "{taken}");
    }
    let table = vellum_testkit::scratch::mount_table();
    assert!(!table.contains(other.to_str().unwrap()));
}

/// Starts a server of `merged` that stays in the foreground, and waits until it answers.
fn serving(world: &World, mut serve: Command) -> Child {
    let merged = world.at("merged");
    let mut serving = serve.spawn().unwrap();
    while !merged.join("both").exists() {
        assert!(serving.try_wait().unwrap().is_none(), "it ended");
        std::thread::yield_now();
    }
    world.scratch.adopt_mount(&merged);
    serving
}

#[test]
fn in_the_foreground_it_serves_until_it_is_told_to_end() {
    let Some(world) = World::new() else { return };
    let merged = world.at("merged");
    let mut serve = Command::new(VELLUM);
    serve.args(["overlay", "--foreground", "-o"]);
    serve.arg(world.options() + ",threads=5").arg(&merged);
    let mut serving = serving(&world, serve);
    fs::write(merged.join("new"), "x").unwrap();
    let workers = || {
        let tasks = fs::read_dir(format!("/proc/{}/task", serving.id())).unwrap();
        // A server that has ended by now doesn't count.
        let names =
            tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
        names.filter(|name| name == "vellum-worker\n").count()
    };
    // The first one answers before the last one has started, and each sets its name itself.
    let until = Instant::now() + Duration::from_secs(60);
    while workers() < 5 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(workers(), 5);
    let pid = rustix::process::Pid::from_child(&serving);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(serving.wait().unwrap().success());
    assert!(!merged.join("both").exists());
    assert_eq!(read(&world.at("upper/new")), "x");
}

#[test]
fn debug_logs_every_request_with_its_answer() {
    let Some(world) = World::new() else { return };
    let merged = world.at("merged");
    let log = world.at("log");
    let mut serve = Command::new(VELLUM);
    serve.args(["overlay", "--debug", "-o"]);
    serve.arg(world.options()).arg(&merged);
    serve.stderr(fs::File::create(&log).unwrap());
    let mut serving = serving(&world, serve);
    fs::create_dir(merged.join("made")).unwrap();
    fs::rename(merged.join("both"), merged.join("made/moved")).unwrap();
    fs::write(merged.join("made/moved"), "12345").unwrap();
    assert!(fs::remove_dir(merged.join("made")).is_err());
    world.scratch.unmount(&merged);
    assert!(serving.wait().unwrap().success());
    let log = read(&log);
    for told in [
        "MkDir node 1 \"made\" mode 777 by 0:0: done",
        " node 1 \"both\" to node ",
        "Write node ",
        "5 bytes at 0 by 0:0: done",
        "RmDir node 1 \"made\" by 0:0: Directory not empty",
    ] {
        assert!(log.contains(told), "{told}: {log}");
    }
}

/// A killed process never ends if it waits for an answer that it must give itself.
#[test]
fn a_server_never_accesses_its_own_mount() {
    let Some(world) = World::new() else { return };
    let merged = world.at("merged");
    let mut serving = Command::new(VELLUM)
        .args(["overlay", "--foreground", "-o"])
        .arg(world.options())
        .arg(&merged)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let shows = || {
        let table = vellum_sys::mountinfo::read().unwrap();
        !table.beneath(&merged).is_empty()
    };
    while !shows() {
        assert!(serving.try_wait().unwrap().is_none(), "it ended");
        std::thread::sleep(Duration::from_millis(1));
    }
    world.scratch.adopt_mount(&merged);
    // As soon as the mount is visible, a signal is not lost and doesn't kill the server abruptly.
    let pid = rustix::process::Pid::from_child(&serving);
    rustix::process::kill_process(pid, rustix::process::Signal::USR1).unwrap();
    let mut told = BufReader::new(serving.stderr.take().unwrap()).lines();
    let counts = told
        .find_map(|line| Some(line.unwrap()).filter(|line| line.contains("errors=")))
        .expect("the server reports its requests");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(serving.wait().unwrap().success());
    assert!(!shows());
    assert_eq!(counts, "notified=0 errors=0");
}

#[test]
fn the_server_can_be_killed_at_any_moment() {
    let Some(world) = World::new() else { return };
    let merged = world.at("merged");
    for round in 0..40 {
        let mut serving = Command::new(VELLUM)
            .args(["overlay", "--foreground", "-o"])
            .arg(world.options())
            .arg(&merged)
            .spawn()
            .unwrap();
        while !merged.join("both").exists() {
            assert!(serving.try_wait().unwrap().is_none(), "it ended");
        }
        world.scratch.adopt_mount(&merged);
        serving.kill().unwrap();
        let until = Instant::now() + Duration::from_secs(60);
        while serving.try_wait().unwrap().is_none() {
            assert!(Instant::now() < until, "it does not end, round {round}");
            std::thread::sleep(Duration::from_millis(1));
        }
        world.scratch.unmount(&merged);
    }
}

/// Returns how many WRITE requests one write(2) of 1 MiB took.
fn writes_of_a_mebibyte(options: &str) -> Option<u64> {
    let world = World::new()?;
    let merged = world.at("merged");
    let mut serving = Command::new(VELLUM)
        .args(["overlay", "--foreground", "-o"])
        .arg(world.options() + options)
        .arg(&merged)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It handles signals a moment after the mount is visible.
    let status = format!("/proc/{}/status", serving.id());
    let takes_signals = || {
        let status = fs::read_to_string(&status).unwrap_or_default();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let caught = u64::from_str_radix(caught.unwrap_or("0").trim(), 16).unwrap();
        caught & 1 << (rustix::process::Signal::USR1.as_raw() - 1) != 0
    };
    while !merged.join("both").exists() || !takes_signals() {
        assert!(serving.try_wait().unwrap().is_none(), "it ended");
        std::thread::sleep(Duration::from_millis(10));
    }
    world.scratch.adopt_mount(&merged);
    let bytes: Vec<u8> = (0..1 << 20).map(|at: u32| (at >> 9) as u8).collect();
    let mut file = fs::File::create(merged.join("new")).unwrap();
    assert_eq!(file.write(&bytes).unwrap(), bytes.len());
    drop(file);
    let pid = rustix::process::Pid::from_child(&serving);
    rustix::process::kill_process(pid, rustix::process::Signal::USR1).unwrap();
    let told = BufReader::new(serving.stderr.take().unwrap()).lines();
    let counts = told
        .map(|line| line.unwrap())
        .find(|line| line.contains("errors="));
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(serving.wait().unwrap().success());
    assert!(fs::read(world.at("upper/new")).unwrap() == bytes);
    let counts = counts.expect("the server reports its requests");
    let mut counts = counts.split_whitespace();
    let writes = counts.find_map(|count| count.strip_prefix("Write="));
    Some(writes.expect("something was written").parse().unwrap())
}

#[test]
fn no_write_request_is_larger_than_max_write() {
    for (options, least) in [(",max_write=65536", 16), (",max_write=1", 256)] {
        let Some(writes) = writes_of_a_mebibyte(options) else {
            return;
        };
        assert!(writes >= least, "{options}: {writes}");
    }
    let writes = writes_of_a_mebibyte("").unwrap();
    assert!(writes < 16, "{writes}");
}

/// Runs a script in an environment where the program's other names are installed, only for this
/// script.
fn with_names(world: &World, script: &str) -> Said {
    let names = world.scratch.dir("names");
    for name in ["mount.fuse.vellum", "fuse-overlayfs"] {
        let link = names.join(name);
        if !link.exists() {
            symlink(VELLUM, link).unwrap();
        }
    }
    const BEGIN: &str =
        "set -eu; mount -t overlay overlay -o lowerdir=\"$1\":/usr/sbin /usr/sbin; cd \"$2\"; ";
    let script = format!("{BEGIN}{script}");
    let mut run = command(
        "unshare",
        &[
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            &script,
            "sh",
        ],
    );
    said(run.arg(&names).arg(world.scratch.path()).output().unwrap())
}

#[test]
fn mount_8_and_fstab_know_the_type_fuse_vellum() {
    let Some(world) = World::new() else { return };
    let options = world.options();
    let merged = world.at("merged").display().to_string();
    let done = with_names(
        &world,
        &format!(
            "mount -t fuse.vellum layers {merged} -o {options},nosuid; cat merged/both; grep {merged} /proc/mounts; umount {merged}"
        ),
    );
    assert_eq!(done.code, 0, "{}", done.err);
    assert!(done.out.starts_with("from the top\n"), "{}", done.out);
    assert!(
        done.out
            .contains(&format!("layers {merged} fuse.vellum rw,nosuid")),
        "{}",
        done.out
    );
    wait_free(&world.at("upper"));
    world.scratch.file(
        "fstab",
        format!("layers {merged} fuse.vellum {options},noauto,nofail,x-mine=1 0 0\n"),
    );
    let done = with_names(
        &world,
        &format!(
            "mount --fstab fstab {merged}; cat merged/dir/inner/file; umount {merged}; mount -f -t fuse.vellum layers {merged} -o lowerdir=/none"
        ),
    );
    assert_eq!(done.code, 0, "{}", done.err);
    assert_eq!(done.out, "deep\n");
    wait_free(&world.at("upper"));
}

#[test]
fn mount_8_changes_the_flags_of_a_mounted_union() {
    let Some(world) = World::new() else { return };
    let options = world.options();
    let merged = world.at("merged").display().to_string();
    let script = format!(
        "mount -t fuse.vellum layers {merged} -o {options}; cp /bin/true merged/true
         flags() {{ grep {merged} /proc/mounts | cut -d' ' -f4 | tr , '\\n' | grep -x 'r[ow]\\|noexec\\|nosuid' | paste -sd, ; }}
         mount -o remount,ro {merged}; flags; touch merged/no && echo written; chmod 600 merged/both && echo changed
         mount -o remount,rw,noexec,nosuid {merged}; flags; touch merged/yes; merged/true && echo executed
         mount -o remount,exec,suid {merged}; flags; merged/true; umount {merged}"
    );
    // Commands that must fail are checked by name, without `set -e`.
    let done = with_names(&world, &format!("set +e; {script}"));
    assert_eq!(done.code, 0, "{}", done.err);
    assert_eq!(done.out, "ro\nrw,nosuid,noexec\nrw\n", "{}", done.err);
    wait_free(&world.at("upper"));
    assert!(world.at("upper/yes").exists() && !world.at("upper/no").exists());
}

#[test]
fn names_of_trusted_attributes_are_for_the_administrator() {
    let Some(world) = World::new() else { return };
    let file = world.at("base/both");
    fs::remove_file(world.at("top/both")).unwrap();
    for (name, value) in [("trusted.t", "1"), ("user.u", "2")] {
        let set = command(
            "setfattr",
            &["-n", name, "-v", value, file.to_str().unwrap()],
        )
        .status();
        assert!(set.unwrap().success());
    }
    let merged = world.mount("allow_other");
    fs::set_permissions(world.scratch.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let shown = merged.join("both");
    for (who, sees) in [
        (&["--inh-caps=-all"][..], true),
        (&["--bounding-set=-sys_admin", "--inh-caps=-all"], false),
        (&["--reuid=65534", "--regid=65534", "--clear-groups"], false),
    ] {
        let mut words = who.to_vec();
        words.extend([
            "getfattr",
            "--absolute-names",
            "-m",
            "-",
            shown.to_str().unwrap(),
        ]);
        let said = said(command("setpriv", &words).output().unwrap());
        assert_eq!(said.code, 0, "{who:?}: {}", said.err);
        assert!(said.out.contains("user.u"), "{who:?}: {}", said.out);
        assert_eq!(
            said.out.contains("trusted.t"),
            sees,
            "{who:?}: {}",
            said.out
        );
    }
    world.unmount();
}

#[test]
fn a_layer_that_holds_the_mount_point_shows_it_as_an_empty_directory() {
    let Some(world) = World::new() else { return };
    let all = world.scratch.path();
    for dir in ["own-upper", "own-work", "place"] {
        world.scratch.dir(dir);
    }
    let place = world.at("place");
    let other = world.scratch.dir("other");
    let bind = command(
        "mount",
        &[
            "--bind",
            world.at("top").to_str().unwrap(),
            other.to_str().unwrap(),
        ],
    );
    assert!({ bind }.status().unwrap().success());
    world.scratch.adopt_mount(&other);
    let options = format!("lowerdir={}", all.display());
    let done = world.vellum(&["overlay", "-o", &options, place.to_str().unwrap()]);
    assert_eq!(done.code, 0, "{}", done.err);
    world.scratch.adopt_mount(&place);
    // From outside and with a timeout: a process that accesses a mount that waits for itself can't
    // be killed.
    let list = |what: &str| {
        let at = place.join(what);
        let done = said(
            command("ls", &["-lR", at.to_str().unwrap()])
                .output()
                .unwrap(),
        );
        assert_eq!(done.code, 0, "{what}: {}", done.err);
        done.out
    };
    assert!(list("").contains("own-upper"));
    for empty in ["place", "other"] {
        assert_eq!(list(empty).lines().count(), 2, "{empty}: {}", list(empty));
    }
    world.scratch.unmount(&place);

    // A plain user can't have such a view, and the error says where the mount can't be.
    let Some(user) = PlainUser::with_fuse(&world.scratch) else {
        return;
    };
    let done = world.as_user(
        &user,
        "timeout 60 \"$1\" overlay -o lowerdir=top merged && fusermount3 -u merged; mkdir top/in; \
         timeout 60 \"$1\" overlay -o lowerdir=top top/in",
    );
    assert_eq!(done.code, 1, "{}", done.err);
    assert!(done.err.contains("lies in the lower layer"), "{}", done.err);
}

#[test]
fn as_fuse_overlayfs_it_accepts_its_callers_arguments() {
    let Some(world) = World::new() else { return };
    // containers/storage: relative layers, an empty option, unknown options; containerd, through
    // mount.fuse3: with a source.
    for call in [
        "names/fuse-overlayfs -o lowerdir=top:base,upperdir=upper,workdir=work,,volatile,lazytime,shiny=1 merged",
        "names/fuse-overlayfs overlay merged -o lowerdir=top:base,upperdir=upper,workdir=work,rw,dev,suid",
        "names/fuse-overlayfs -s -o lowerdir=top:base merged",
    ] {
        let done = with_names(
            &world,
            &format!("{call}; cat merged/both; stat -f -c %t merged; umount merged"),
        );
        assert_eq!(done.code, 0, "{call}: {}", done.err);
        assert_eq!(done.out, "from the top\n65735546\n", "{call}");
        let told = done.err.lines().count();
        assert_eq!(
            told,
            usize::from(call.contains("shiny") || call.contains("-s")),
            "{}",
            done.err
        );
        wait_free(&world.at("upper"));
    }
    for (argument, says) in [
        ("--version", "fuse-overlayfs: version"),
        ("--help", "usage: fuse-overlayfs"),
    ] {
        let done = with_names(&world, &format!("names/fuse-overlayfs {argument}"));
        assert_eq!(done.code, 0);
        assert!(done.out.starts_with(says), "{}", done.out);
    }
}

#[test]
fn a_partly_copied_file_is_settled_for_every_reader() {
    let Some(world) = World::new() else { return };
    let big = world.scratch.file("base/big", vec![7; 64 << 20]);
    let merged = world.mount("");
    let mut file = fs::File::options()
        .write(true)
        .open(merged.join("big"))
        .unwrap();
    file.write_all(b"x").unwrap();
    drop(file);
    world.unmount();
    let upper = world.at("upper/big");
    let held = fs::metadata(&upper).unwrap().blocks() * 512;
    if held >= 64 << 20 {
        return untested(
            "block copy-up",
            "the file system below shares blocks or has no xattrs",
        );
    }
    assert!(held <= 1 << 20, "{held} bytes for one");
    let at = |below: &str| world.at(below).display().to_string();
    let done = world.vellum(&["settle", &at("upper"), &at("work")]);
    assert_eq!(
        (done.code, done.out.starts_with("settled 1 file,")),
        (0, true),
        "{}{}",
        done.out,
        done.err
    );
    let target = world.scratch.dir("kernel");
    Overlay {
        lowers: vec![world.at("top"), world.at("base")],
        upper: Some((world.at("upper"), world.scratch.dir("kernel-work"))),
        ..Overlay::default()
    }
    .mount(&world.scratch, &target)
    .unwrap();
    let now = fs::read(target.join("big")).unwrap();
    let mut expect = fs::read(big).unwrap();
    expect[0] = b'x';
    assert!(now == expect, "the kernel reads something else");
}

/// Its callers pass the upper to other programs, so after the unmount every program can read it.
#[test]
fn as_fuse_overlayfs_partly_copied_files_are_whole_after_the_unmount() {
    let Some(world) = World::new() else { return };
    world.scratch.file("base/big", vec![7; 64 << 20]);
    let call = "names/fuse-overlayfs -o lowerdir=top:base,upperdir=upper,workdir=work merged";
    let change = "printf x | dd of=merged/big bs=1 conv=notrunc status=none; chmod 600 merged/both";
    let done = with_names(&world, &format!("{call}; {change}; umount merged"));
    assert_eq!(done.code, 0, "{}", done.err);
    let upper = world.at("upper/big");
    let is_whole = || fs::metadata(&upper).unwrap().blocks() * 512 >= 64 << 20;
    let until = Instant::now() + Duration::from_secs(120);
    while !is_whole() && Instant::now() < until {
        wait_free(&world.at("upper"));
        std::thread::sleep(Duration::from_millis(50));
    }
    wait_free(&world.at("upper"));
    // By the kernel with every option off.
    let target = world.scratch.dir("kernel");
    Overlay {
        lowers: vec![world.at("top"), world.at("base")],
        upper: Some((world.at("upper"), world.at("work"))),
        ..Overlay::default()
    }
    .option("metacopy", "off")
    .mount(&world.scratch, &target)
    .unwrap();
    let big = fs::read(target.join("big")).unwrap();
    assert!(big[0] == b'x' && big[1..].iter().all(|&byte| byte == 7));
    assert_eq!(read(&target.join("both")), "from the top\n");
}

#[test]
fn marks_of_strangers_are_not_followed() {
    let Some(world) = World::new() else { return };
    let target = changed(&world);
    world.scratch.unmount(&target);
    let at = |below: &str| world.at(below).display().to_string();
    let lowers = format!("lowerdir={}:{}:{}", at("upper"), at("top"), at("base"));
    let merged = at("merged");
    // Nothing says that an engine made the top one: it may be from an archive.
    let done = world.vellum(&["overlay", "-o", &lowers, &merged]);
    assert_eq!(done.code, 0, "{}", done.err);
    world.scratch.adopt_mount(&world.at("merged"));
    assert!(fs::read(world.at("merged/both")).is_err());
    assert!(fs::read_dir(world.at("merged/moved")).is_err());
    world.scratch.unmount(&world.at("merged"));
    let trusting = format!("{lowers},trust=engine");
    let done = world.vellum(&["overlay", "-o", &trusting, &merged]);
    assert_eq!(done.code, 0, "{}", done.err);
    world.scratch.adopt_mount(&world.at("merged"));
    assert_eq!(read(&world.at("merged/both")), "from the top\n");
    assert_eq!(read(&world.at("merged/moved/inner/file")), "deep\n");
}

/// Our engine's record is next to the layer, so another user who can write there could forge it.
#[test]
fn a_strangers_record_of_a_layer_is_not_believed() {
    let Some(world) = World::new() else { return };
    if !needs_root("files of a stranger") {
        return;
    }
    let at = |below: &str| world.at(below).display().to_string();
    let merged = at("merged");
    let mount = |options: &str| {
        let done = world.vellum(&["overlay", "-o", options, &merged]);
        assert_eq!(done.code, 0, "{}", done.err);
        world.scratch.adopt_mount(&world.at("merged"));
    };
    let lowers = format!("lowerdir={}:{}", at("top"), at("base"));
    mount(&format!(
        "{lowers},upperdir={},workdir={}",
        at("upper"),
        at("work")
    ));
    fs::rename(world.at("merged/dir"), world.at("merged/moved")).unwrap();
    world.scratch.unmount(&world.at("merged"));
    wait_free(&world.at("upper"));
    let follows = || {
        mount(&lowers.replace("lowerdir=", &format!("lowerdir={}:", at("upper"))));
        let read = fs::read(world.at("merged/moved/inner/file"));
        world.scratch.unmount(&world.at("merged"));
        read.is_ok()
    };
    assert!(follows());
    world.scratch.dir("far");
    fs::rename(world.at("work"), world.at("far/elsewhere")).unwrap();
    symlink("far/elsewhere", world.at("work")).unwrap();
    assert!(!follows());
    fs::remove_file(world.at("work")).unwrap();
    fs::rename(world.at("far/elsewhere"), world.at("work")).unwrap();
    assert!(follows());
    std::os::unix::fs::chown(world.at("work/vellum/layer"), Some(12345), None).unwrap();
    assert!(!follows());
}

#[test]
fn podman_uses_it_as_mount_program_and_the_kernel_mounts_the_upper_afterwards() {
    if !needs_root("podman") || !available(&["podman", "runc", "python3", "busybox"]) {
        return;
    }
    let home = Home::new().unwrap();
    let program = home.join("fuse-overlayfs");
    symlink(VELLUM, &program).unwrap();
    let archive = small_image(&home).unwrap();
    let podman = |args: &[&str]| -> String {
        let mut run = Command::new("timeout");
        run.arg("120").arg("podman");
        run.arg("--root")
            .arg(home.join("podman"))
            .arg("--runroot")
            .arg(home.join("podman-run"));
        run.args([
            "--storage-driver",
            "overlay",
            "--runtime",
            "runc",
            "--cgroup-manager",
            "cgroupfs",
        ]);
        run.args(["--events-backend", "file", "--storage-opt"]);
        run.arg(format!("overlay.mount_program={}", program.display()));
        let mut done = said(run.args(args).output().unwrap());
        // Podman's own clean-up after an ended container may still be running.
        for _ in 0..30 {
            if done.code == 0 || !args[0].starts_with("rm") {
                break;
            }
            std::thread::sleep(Duration::from_secs(1));
            done = said(run.output().unwrap());
        }
        assert_eq!(done.code, 0, "podman {args:?}: {}", done.err);
        done.out
    };
    let limits = [
        "--network",
        "none",
        "--ulimit",
        "nofile=20000:20000",
        "--ulimit",
        "nproc=10000:10000",
    ];
    let run = |first: &[&str], last: &[&str]| podman(&[&["run"], first, &limits, last].concat());
    podman(&["load", "--quiet", "--input", archive.to_str().unwrap()]);
    // For a mount program Podman unpacks whiteouts as .wh. files, which the kernel does not know:
    // so the image has none.
    let layered = podman(&["images", "--quiet"]).trim().to_owned();
    let flat = home.join("flat.tar").display().to_string();
    podman(&["create", "--name", "layered", &layered]);
    podman(&["export", "--output", &flat, "layered"]);
    podman(&["rm", "layered"]);
    podman(&["import", "--quiet", &flat, "flat:1"]);
    let image = "flat:1";
    let script = "mount | grep -c 'on / type fuse.fuse-overlayfs'; echo changed > /etc/new; mv /usr/share/vellum /usr/share/moved; \
        rm -r /srv; mkdir /srv; echo x > /srv/x; chmod 600 /etc/passwd; echo done";
    assert_eq!(
        run(&["--name", "box"], &[image, "sh", "-c", script]),
        "1\ndone\n"
    );
    podman(&["commit", "--quiet", "box", "mine:1"]);
    let check = [
        "sh",
        "-c",
        "cat /etc/new /srv/x; ls -d /usr/share/moved; stat -c %a /etc/passwd",
    ];
    let committed = run(&["--rm"], &[&["mine:1"], &check[..]].concat());
    assert_eq!(committed, "changed\nx\n/usr/share/moved\n600\n");
    // Once more: the same upper is mounted again.
    let mounted = podman(&["mount", "box"]);
    let expect = Tree::read(Path::new(mounted.trim())).unwrap();
    podman(&["umount", "box"]);

    let overlay = home.join("podman/overlay");
    let upper = fs::read_dir(&overlay)
        .unwrap()
        .map(|entry| entry.unwrap().path().join("diff"))
        .find(|diff| {
            diff.join("etc/new").exists()
                && diff.parent().unwrap().join("lower").exists()
                && has_redirect(diff)
        })
        .expect("the container's upper");
    wait_free(&upper);
    let lowers = read(&upper.parent().unwrap().join("lower"));
    let scratch = Scratch::new();
    let target = scratch.dir("kernel");
    Overlay {
        lowers: lowers
            .trim()
            .split(':')
            .map(|l| fs::canonicalize(overlay.join(l)).unwrap())
            .collect(),
        upper: Some((upper.clone(), upper.with_file_name("work"))),
        ..Overlay::default()
    }
    .option("redirect_dir", "on")
    .mount(&scratch, &target)
    .unwrap();
    Tree::read(&target).unwrap().assert_same(&expect, ALL);
    scratch.unmount(&target);
    podman(&["rm", "--force", "box"]);
    podman(&["rmi", "--all", "--force"]);
    assert!(!upper.exists());
}

#[test]
fn containerds_mount_fuse3_finds_it() {
    let Some(world) = World::new() else { return };
    if !available(&["mount.fuse3"]) {
        return;
    }
    let call = "PATH=$PWD/names:$PATH mount.fuse3 overlay merged -o lowerdir=top:base,upperdir=upper,workdir=work,rw -t fuse-overlayfs";
    let done = with_names(&world, &format!("{call}; cat merged/both; umount merged"));
    assert_eq!(done.code, 0, "{}", done.err);
    assert_eq!(done.out, "from the top\n", "{}", done.err);
}

fn has_redirect(diff: &Path) -> bool {
    let out = Command::new("getfattr")
        .args(["--absolute-names", "-n", "trusted.overlay.redirect"])
        .arg(diff.join("usr/share/moved"))
        .output();
    out.is_ok_and(|out| out.status.success())
}
