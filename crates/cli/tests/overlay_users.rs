//! A plain user mounts Vellum's own engine: through fusermount3, in the user's own namespace, and
//! for Podman.

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use support::layered::{VELLUM, World, command};
use support::said;
use vellum_testkit::clients::available;
use vellum_testkit::{PlainUser, untested};

#[test]
fn a_plain_user_mounts_through_fusermount3() {
    let Some(world) = World::new() else { return };
    let Some(user) = PlainUser::with_fuse(&world.scratch) else {
        return;
    };
    let options = "lowerdir=top:base,upperdir=upper,workdir=work";
    let done = world.as_user(
        &user,
        &format!(
            "timeout 60 \"$1\" overlay -o {options} merged; cat merged/both; echo new > merged/new; rm merged/gone; mv merged/dir merged/moved; \
             cat merged/moved/inner/file; fusermount3 -u merged; flock upper true; \
             timeout 60 \"$1\" overlay -o {options} merged; ls merged; cat merged/moved/inner/file; fusermount3 -u merged; flock upper true"
        ),
    );
    assert_eq!(done.code, 0, "{}", done.err);
    assert_eq!(
        done.out, "from the top\ndeep\nboth\nmoved\nnew\ndeep\n",
        "{}",
        done.err
    );
}

#[test]
fn a_plain_users_layers_are_squashed_to_what_they_showed() {
    let Some(world) = World::new() else { return };
    let Some(user) = PlainUser::with_fuse(&world.scratch) else {
        return;
    };
    let done = world.as_user(
        &user,
        "timeout 60 \"$1\" overlay -o lowerdir=top:base,upperdir=upper,workdir=work merged; \
         rm merged/gone; mv merged/dir merged/moved; fusermount3 -u merged; flock upper true; \
         \"$1\" layer squash upper top base --whole --output merged/whole >&2; \
         \"$1\" layer convert upper --below top --below base --output merged/converted >&2; \
         cd merged; cat whole/moved/inner/file converted/moved/inner/file; ls whole",
    );
    assert_eq!(
        (done.code, done.out.as_str()),
        (0, "deep\ndeep\nboth\nmoved\n"),
        "{}",
        done.err
    );
    // Root follows the marks of another user only if told to, and never overlooks them.
    let at = |below: &str| world.at(below).display().to_string();
    let layers = [at("upper"), at("top"), at("base")];
    let mut squash = vec!["layer", "squash"];
    squash.extend(layers.iter().map(String::as_str));
    let by_root = at("by-root");
    squash.extend(["--whole", "--output", &by_root]);
    let refused = world.vellum(&squash);
    assert_eq!(refused.code, 1, "{}", refused.out);
    assert!(refused.err.contains("--userxattr"), "{}", refused.err);
    let work = at("work");
    squash.extend(["--work", &work]);
    world.on_free_layers(&squash);
    let deep = fs::read_to_string(world.at("by-root/moved/inner/file")).unwrap();
    assert_eq!(deep, "deep\n");
    assert!(!world.at("by-root/gone").exists());
}

#[test]
fn a_plain_user_changes_what_squashed_owners_have() {
    let Some(world) = World::new() else { return };
    let Some(user) = PlainUser::with_fuse(&world.scratch) else {
        return;
    };
    let work = "echo more >> both; chmod 600 both; touch dir/inner/file; echo new > dir/new; mv gone kept; mkdir dir/sub; ls . dir; cat both";
    let right = ".:\nboth\ndir\nkept\n\ndir:\ninner\nnew\nsub\nfrom the top\nmore\n";
    for (number, (options, before, umount)) in [
        (
            format!("squash_to_uid={0},squash_to_gid={0}", user.id),
            "sh",
            "fusermount3 -u merged",
        ),
        (
            "squash_to_root".to_owned(),
            "unshare --user --map-root-user --mount sh",
            "umount merged",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let (upper, work_dir) = (format!("upper{number}"), format!("work{number}"));
        for dir in [&upper, &work_dir] {
            world.scratch.dir(dir);
        }
        let mut give = Command::new("chown");
        let dirs = [upper.as_str(), &work_dir, "merged"].map(|dir| world.at(dir));
        give.arg(format!("{0}:{0}", user.id)).args(dirs);
        assert!(give.status().unwrap().success());
        // The layers still belong to root, and every user may write there.
        let layers = [world.at("top"), world.at("base")];
        assert!(
            Command::new("chmod")
                .args(["-R", "a+rwX"])
                .args(&layers)
                .status()
                .unwrap()
                .success()
        );
        let vellum = user.borrow_program(Path::new(VELLUM));
        let script = format!(
            "set -eu; cd \"$2\"; timeout 60 \"$1\" overlay -o lowerdir=top:base,upperdir={upper},workdir={work_dir},{options} merged; \
             cd merged; {work}; cd ..; {umount}; flock {upper} true"
        );
        let mut run = user.command("sh");
        run.args([
            "-c",
            &format!("exec {before} -c \"$0\" sh \"$1\" \"$2\""),
            &script,
        ])
        .arg(vellum)
        .arg(world.scratch.path());
        let done = said(run.output().unwrap());
        assert_eq!(
            (done.code, done.out.as_str()),
            (0, right),
            "{options}: {}",
            done.err
        );
        assert_eq!(
            fs::metadata(world.at(&upper).join("both")).unwrap().uid(),
            user.id
        );
    }
}

#[test]
fn an_acl_for_ids_that_a_namespace_lacks_stops_no_change() {
    let Some(world) = World::new() else { return };
    let Some(user) = PlainUser::with_fuse(&world.scratch) else {
        return;
    };
    if !available(&["setfacl"]) {
        return;
    }
    let [file, dir] = ["base/gone", "base/dir"].map(|at| world.at(at).display().to_string());
    for words in [
        &["-m", "u:1234:rw", &file][..],
        &["-m", "u:1234:rwx", &dir],
        &["-d", "-m", "u:1234:rwx", &dir],
    ] {
        assert!(command("setfacl", words).status().unwrap().success());
    }
    let inside = "timeout 60 $0 overlay -o lowerdir=top:base,upperdir=upper,workdir=work merged; cd merged; \
        echo x > dir/new; mkdir dir/sub; echo more >> gone; chmod 640 gone; touch gone; ls dir; cat gone; cd ..; umount merged; flock upper true";
    let script = format!("unshare --user --map-root-user --mount sh -euc '{inside}' \"$1\"");
    let done = world.as_user(&user, &script);
    assert_eq!(
        (done.code, done.out.as_str()),
        (0, "inner\nnew\nsub\nsoon\nmore\n"),
        "{}",
        done.err
    );
    assert_eq!(
        fs::metadata(world.at("upper/gone")).unwrap().mode() & 0o777,
        0o640
    );
}

#[test]
fn a_user_in_their_own_namespace_mounts_directly() {
    let Some(world) = World::new() else { return };
    let Some(user) = PlainUser::with_fuse(&world.scratch) else {
        return;
    };
    let inside = "timeout 60 $0 overlay -o lowerdir=top:base,upperdir=upper,workdir=work merged; \
        rm merged/gone; mv merged/dir merged/moved; chown 7:7 merged/both; stat -c %u merged/both; cat merged/both; umount merged; flock upper true";
    let script =
        format!("unshare --user --map-auto --map-root-user --mount sh -euc '{inside}' \"$1\"");
    let done = world.as_user(&user, &script);
    if done.err.contains("map-auto") {
        return untested("ids of plain users", "unshare(1) has no --map-auto");
    }
    assert_eq!(done.code, 0, "{}", done.err);
    assert_eq!(done.out, "7\nfrom the top\n", "{}", done.err);
    assert_eq!(
        fs::metadata(world.at("upper/both")).unwrap().uid(),
        user.first_subid + 6
    );
}

#[test]
fn a_plain_users_podman_uses_it_as_mount_program() {
    let Some(world) = World::new() else { return };
    let Some(user) = PlainUser::with_fuse(&world.scratch) else {
        return;
    };
    if !available(&["podman", "runc", "busybox"]) {
        return;
    }
    // An image of busybox and a directory to rename.
    for dir in ["fs/bin", "fs/etc", "fs/usr/share/vellum"] {
        world.scratch.dir(dir);
    }
    let busybox = said(
        Command::new("sh")
            .args(["-c", "command -v busybox"])
            .output()
            .unwrap(),
    )
    .out;
    fs::copy(busybox.trim(), world.at("fs/bin/busybox")).unwrap();
    for applet in ["sh", "mount", "grep", "mv", "chmod", "cat", "ls", "stat"] {
        symlink("busybox", world.at("fs/bin").join(applet)).unwrap();
    }
    world.scratch.file("fs/usr/share/vellum/file", "below\n");
    world
        .scratch
        .file("fs/etc/passwd", "root:x:0:0::/:/bin/sh\n");
    let script = r#"
        export HOME; tar -C fs -cf image.tar .; cd "$HOME"; image=$2/image.tar run=$2/r
        ln -s "$1" fuse-overlayfs
        podman() {
            timeout 120 podman --root "$HOME/store" --runroot "$run" --storage-driver overlay \
                --storage-opt overlay.mount_program="$HOME/fuse-overlayfs" --runtime runc --cgroup-manager cgroupfs \
                --events-backend file "$@"
        }
        limits="--network none --ulimit nofile=1000:1000 --ulimit nproc=1000:1000"
        podman import -q "$image" localhost/base:1 >&2
        podman run $limits --name box localhost/base:1 sh -c "mount | grep -c 'on / type fuse.fuse-overlayfs'; echo changed > /etc/new
            mv /usr/share/vellum /usr/share/moved; chmod 600 /etc/passwd; echo ok"
        podman commit -q box localhost/mine:1 >&2
        podman run --rm $limits localhost/mine:1 sh -c "cat /etc/new /usr/share/moved/file; stat -c %a /etc/passwd"
        # Podman's own clean-up after an ended container may still be running.
        surely() { for try in $(seq 30); do ! "$@" >&2 || return 0; sleep 1; done; return 1; }
        surely podman rm -f box; surely podman rmi -af
        podman system migrate >&2
    "#;
    let give = Command::new("chown")
        .args(["-R", &format!("{0}:{0}", user.id)])
        .arg(world.at("fs"))
        // Podman accepts at most 50 characters for this path.
        .arg(world.scratch.dir("r"))
        .status();
    assert!(give.unwrap().success());
    fs::set_permissions(world.scratch.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let done = world.as_user(&user, script);
    assert_eq!(done.code, 0, "{}", done.err);
    assert_eq!(done.out, "1\nok\nchanged\nbelow\n600\n", "{}", done.err);
}
