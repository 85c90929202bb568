//! `check --repair`: damaged trees become what their images say, and nothing else changes.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use support::damaged::{
    DAMAGE, In, Tar, Times, everything, load_with_blobs, low_and_top, script, trees,
};
use support::{Said, World, archive, small};
use vellum_testkit::clients::{Access, Home, Registry, available};
use vellum_testkit::{PlainUser, Scratch};

/// Aspects that are repaired in the same inode.
const IN_PLACE: &[&str] = &[
    "mode", "owner", "group", "size", "content", "time", "opaque", "xattr",
];

/// Returns the inode and the change time of everything in a tree, by path as findings name it.
fn inodes(tree: &Path) -> BTreeMap<String, (u64, i64, i64)> {
    let mut all = BTreeMap::new();
    let mut waiting = vec![tree.to_owned()];
    while let Some(path) = waiting.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        if meta.is_dir() {
            let inside = fs::read_dir(&path).unwrap();
            waiting.extend(inside.map(|entry| entry.unwrap().path()));
        }
        let name = path.strip_prefix(tree).unwrap().to_str().unwrap();
        let seen = (meta.ino(), meta.ctime(), meta.ctime_nsec());
        all.insert(format!("/{name}"), seen);
    }
    all
}

fn findings(said: &Said) -> Vec<Value> {
    let parsed: Value = serde_json::from_str(&said.out).unwrap();
    parsed.as_array().unwrap().clone()
}

fn text<'v>(finding: &'v Value, field: &str) -> &'v str {
    finding[field].as_str().unwrap_or_default()
}

#[track_caller]
fn lost_found(world: &World) -> Vec<PathBuf> {
    match fs::read_dir(world.root().join("lost+found")) {
        Ok(inside) => inside.map(|entry| entry.unwrap().path()).collect(),
        Err(_) => Vec::new(),
    }
}

fn empty_away(world: &World) {
    let _ = fs::remove_dir_all(world.scratch.join("away"));
}

/// Which tree a row of [`DAMAGE`] is about, if the driver has it.
fn tree_of<'t>(place: In, driver: &str, low: &'t Path, top: &'t Path) -> Option<&'t Path> {
    match place {
        In::Low => Some(low),
        In::Top if driver == "overlay2" => Some(top),
        In::Whole if driver != "overlay2" => Some(top),
        In::Top | In::Whole => None,
    }
}

fn damage_is_repaired(driver: &'static str) {
    let Some(world) = World::with(&["--storage-driver", driver]) else {
        return;
    };
    load_with_blobs(&world);
    let (low, top) = low_and_top(&world.root(), driver);
    let mut count = 0;
    for (place, damage, _, paths, _) in DAMAGE {
        let Some(tree) = tree_of(*place, driver, &low, &top) else {
            continue;
        };
        let times = Times::of(tree);
        script(&world, tree, damage);
        if !damage.starts_with("touch") {
            times.restore(false);
        }
        let (before, kept) = (inodes(tree), lost_found(&world).len());
        let planned = world.run(&["check", "--repair", "--dry-run", "--json"]);
        assert_eq!(planned.code, 1, "{driver}: {damage}: {planned:?}");
        for one in findings(&planned) {
            assert_eq!(one["would_repair"], true, "{driver}: {damage}: {one}");
            assert_eq!(one["repaired"], false, "{driver}: {damage}: {one}");
        }
        assert_eq!(inodes(tree), before, "{driver}: {damage}: a dry run");
        let said = world.run(&["check", "--repair", "--json"]);
        assert_eq!(said.code, 0, "{driver}: {damage}: {said:?}");
        let found = findings(&said);
        let changed: BTreeSet<&str> = found.iter().map(|one| text(one, "path")).collect();
        let named: BTreeSet<&str> = paths.iter().copied().collect();
        assert_eq!(changed, named, "{driver}: {damage}: {found:#?}");
        let after = inodes(tree);
        let mut touched = changed.clone();
        for one in &found {
            assert_eq!(one["repaired"], true, "{driver}: {damage}: {one}");
            let path = text(one, "path");
            let mut same = found.iter().filter(|other| text(other, "path") == path);
            if same.all(|one| IN_PLACE.contains(&text(one, "aspect"))) {
                assert_eq!(after[path].0, before[path].0, "{driver}: {damage}: {one}");
            }
            touched.insert(path.rsplit_once('/').map_or("/", |(dir, _)| match dir {
                "" => "/",
                dir => dir,
            }));
        }
        let inodes_touched: BTreeSet<u64> = touched
            .iter()
            .flat_map(|path| [&before, &after].map(|all| all.get(*path).map(|seen| seen.0)))
            .flatten()
            .collect();
        for (path, seen) in &before {
            let is_inside = changed
                .iter()
                .any(|one| path.starts_with(&format!("{one}/")));
            if !inodes_touched.contains(&seen.0) && !is_inside {
                assert_eq!(after.get(path), Some(seen), "{driver}: {damage}: {path}");
            }
        }
        let again = world.run(&["check", "--repair", "--json"]);
        assert_eq!(
            (again.code, again.out.trim()),
            (0, "[]"),
            "{driver}: {damage}"
        );
        assert_eq!(inodes(tree), after, "{driver}: {damage}: a second repair");
        let moved = found.iter().map(|one| text(one, "moved_to"));
        let moved: BTreeSet<&str> = moved.filter(|place| !place.is_empty()).collect();
        for place in &moved {
            let place = world.root().join(place);
            assert!(fs::symlink_metadata(&place).is_ok(), "{driver}: {place:?}");
        }
        assert_eq!(lost_found(&world).len(), kept + moved.len(), "{damage}");
        empty_away(&world);
        count += 1;
    }
    assert_eq!(world.ok(&["check", "--deep", "--json"]), "[]", "{driver}");
    // Nothing removes what was moved away.
    let kept = lost_found(&world).len();
    assert!(kept > 10, "{kept}");
    world.ok(&["gc"]);
    assert_eq!(lost_found(&world).len(), kept);
    let df = world.ok(&["df"]);
    assert!(
        df.lines().any(|line| line.starts_with("lost+found ")),
        "{df}"
    );
    let why = world.ok(&["why", "lost+found"]);
    assert!(why.contains("what a repair took out of layers"), "{why}");
    println!("{driver}: {count} kinds of damage");
}

#[test]
fn every_damage_to_a_tree_of_overlay2_is_repaired() {
    damage_is_repaired("overlay2");
}

#[test]
fn every_damage_to_a_tree_of_overlay_is_repaired() {
    damage_is_repaired("overlay");
}

#[test]
fn every_damage_to_a_tree_of_native_is_repaired() {
    damage_is_repaired("native");
}

#[test]
fn without_a_source_only_content_is_left() {
    for driver in ["overlay2", "overlay", "native"] {
        let Some(world) = World::with(&["--storage-driver", driver]) else {
            return;
        };
        let image = everything(&world.scratch);
        world.ok(&["load", "--input", image.to_str().unwrap()]);
        let (low, _) = low_and_top(&world.root(), driver);
        let times = Times::of(&low);
        script(
            &world,
            &low,
            "printf X | dd of=file conv=notrunc; chmod 4755 tool; mv xattr $AWAY; rm link; touch extra",
        );
        times.restore(false);
        let said = world.run(&["check", "--repair"]);
        assert_eq!(said.code, 1, "{driver}: {said:?}");
        for (line, end) in [
            (
                "/file: its content differs",
                "(left: no source has its content)",
            ),
            ("/xattr: is missing", "(left: no source has its content)"),
            ("/tool: mode is 4755, should be 0755", "(repaired)"),
            ("/link: is missing, should be a symbolic link", "(repaired)"),
        ] {
            let mut lines = said.out.lines();
            let found = lines.find(|said| said.contains(line));
            let found = found.unwrap_or_else(|| panic!("{driver}: {line}: {said:?}"));
            assert!(found.ends_with(end), "{driver}: {found}");
        }
        assert!(
            said.out.contains("; what was there is lost+found/"),
            "{said:?}"
        );
        let left = world.run(&["check", "--trees", "--json"]);
        let left = findings(&left);
        let paths: BTreeSet<&str> = left.iter().map(|one| text(one, "path")).collect();
        assert_eq!(
            paths,
            BTreeSet::from(["/file", "/xattr"]),
            "{driver}: {left:#?}"
        );
        // The archive has it.
        let dry = [
            "check",
            "--repair",
            "--dry-run",
            "--from",
            image.to_str().unwrap(),
        ];
        let said = world.run(&dry);
        assert_eq!(said.code, 1, "{driver}: {said:?}");
        let would = format!("(would be repaired from {})", image.display());
        assert_eq!(said.out.matches(&would).count(), left.len(), "{said:?}");
        let said = world.run(&["check", "--repair", "--from", image.to_str().unwrap()]);
        assert_eq!(said.code, 0, "{driver}: {said:?}");
        assert_eq!(world.ok(&["check", "--deep", "--json"]), "[]", "{driver}");
    }
}

#[test]
fn content_comes_from_another_layer_if_the_digest_proves_it() {
    let Some(world) = World::new() else { return };
    let image = everything(&world.scratch);
    world.ok(&["load", "--input", image.to_str().unwrap()]);
    let (low, _) = low_and_top(&world.root(), "overlay2");
    // `twin` has the same content.
    let times = Times::of(&low);
    script(&world, &low, "printf X | dd of=hard2 conv=notrunc");
    times.restore(true);
    let said = world.run(&["check", "--repair", "--json"]);
    assert_eq!(said.code, 0, "{said:?}");
    let found = findings(&said);
    assert!(text(&found[0], "from").starts_with("layer "), "{found:#?}");
    assert_eq!(world.ok(&["check", "--deep", "--json"]), "[]");
    // Beside damage without a source nothing proves it.
    script(
        &world,
        &low,
        "printf X | dd of=hard2 conv=notrunc; : > file",
    );
    times.restore(true);
    let said = world.run(&["check", "--repair", "--json"]);
    assert_eq!(said.code, 1, "{said:?}");
    assert_eq!(findings(&said).len(), 2, "{said:?}");
    assert_eq!(fs::read(low.join("hard1")).unwrap(), b"Xinked");
}

#[test]
fn damage_to_one_image_leaves_the_others_and_one_can_be_chosen() {
    let Some(world) = World::new() else { return };
    let load = |image: PathBuf| world.ok(&["load", "--input", image.to_str().unwrap()]);
    load(everything(&world.scratch));
    let (low, _) = low_and_top(&world.root(), "overlay2");
    load(small(&world.scratch));
    script(&world, &low, "rm file; chmod 4755 tool");
    let inner = trees(&world.root(), "overlay2");
    let inner = inner.iter().find(|tree| tree.join("dir/inner").exists());
    script(&world, inner.unwrap(), "chmod 4755 dir/inner");
    let said = world.run(&["check", "--repair", "--image", "small:1"]);
    assert_eq!(said.code, 0, "{said:?}");
    assert!(said.err.contains("all problems were repaired"), "{said:?}");
    assert_eq!(
        fs::metadata(low.join("tool")).unwrap().mode() & 0o7777,
        0o4755
    );
    let said = world.run(&["check", "--repair"]);
    assert_eq!(said.code, 1, "{said:?}");
    assert_eq!(
        fs::metadata(low.join("tool")).unwrap().mode() & 0o7777,
        0o755
    );
    for misuse in [
        &["check", "--dry-run"][..],
        &["check", "--from", "x"],
        &["check", "--repair", "--rebuild"],
    ] {
        world.fails(2, misuse);
    }
    world.fails(1, &["check", "--repair", "--from", "/nowhere"]);
}

/// An attacker, or a backup, may give a layer's inode a name elsewhere, or a layer's name another
/// inode.
#[test]
fn what_has_names_outside_the_layer_is_never_written_to() {
    for driver in ["overlay2", "overlay", "native"] {
        let Some(world) = World::with(&["--storage-driver", driver]) else {
            return;
        };
        load_with_blobs(&world);
        let (low, _) = low_and_top(&world.root(), driver);
        let secret = world.scratch.file("secret", "host's");
        let mode = fs::metadata(&secret).unwrap().mode();
        let times = Times::of(&low);
        script(
            &world,
            &low,
            "rm file tool d/inner; ln $AWAY/../secret file",
        );
        script(
            &world,
            &low,
            "ln $AWAY/../secret tool; ln -s $AWAY/../secret d/inner",
        );
        times.restore(false);
        let said = world.run(&["check", "--repair"]);
        assert_eq!(said.code, 0, "{driver}: {said:?}");
        assert_eq!(fs::read_to_string(&secret).unwrap(), "host's", "{driver}");
        assert_eq!(fs::metadata(&secret).unwrap().mode(), mode, "{driver}");
        assert_eq!(world.ok(&["check", "--deep", "--json"]), "[]", "{driver}");
    }
}

#[test]
fn odd_names_and_deep_trees_are_moved_away_whole() {
    let Some(world) = World::new() else { return };
    let image = everything(&world.scratch);
    world.ok(&["load", "--input", image.to_str().unwrap()]);
    let (low, _) = low_and_top(&world.root(), "overlay2");
    let times = Times::of(&low);
    script(
        &world,
        &low,
        "touch \"$(printf 'd/new\\nline')\" \"$(printf 'd/\\377\\001%%2F')\"; \
         p=d/deep; for n in $(seq 200); do p=$p/deeper-and-deeper; done; mkdir -p $p; touch $p/x; \
         rm -r etc; ln -s / etc",
    );
    times.restore(false);
    let said = world.run(&["check", "--repair"]);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.out.contains("/etc: is a symbolic link"), "{said:?}");
    assert!(fs::symlink_metadata(low.join("etc")).unwrap().is_dir());
    assert!(fs::symlink_metadata("/etc/passwd").unwrap().is_file());
    assert_eq!(lost_found(&world).len(), 4);
    let said = world.run(&["check", "--repair", "--from", image.to_str().unwrap()]);
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(world.ok(&["check", "--deep", "--json"]), "[]");
}

#[test]
fn content_comes_from_each_kind_of_source() {
    let Some(world) = World::new() else { return };
    let image = everything(&world.scratch);
    world.ok(&["load", "--input", image.to_str().unwrap()]);
    let (low, _) = low_and_top(&world.root(), "overlay2");
    let [oci, dir] = ["oci-archive", "oci-dir"].map(|format| {
        let to = world.scratch.join(format).to_str().unwrap().to_owned();
        world.ok(&["save", "everything:1", "--format", format, "-o", &to]);
        to
    });
    let mut sources = vec![image.to_str().unwrap().to_owned(), oci, dir];
    let home = Home::new().unwrap();
    let mut registry = None;
    if available(&["docker-registry"]) {
        let started = Registry::start(&home, "registry", Access::Open).unwrap();
        let name = format!("{}/everything:1", started.host());
        world.ok(&["tag", "everything:1", &name]);
        world.ok(&["push", &name]);
        sources.push(name);
        registry = Some(started);
    }
    for source in &sources {
        let times = Times::of(&low);
        script(
            &world,
            &low,
            "printf X | dd of=holes conv=notrunc bs=1 seek=900000; rm file xattr",
        );
        times.restore(true);
        let said = world.run(&["check", "--repair", "--from", source, "--json"]);
        assert_eq!(said.code, 0, "{source}: {said:?}");
        for one in findings(&said) {
            assert_eq!(one["from"], source.as_str(), "{one}");
        }
        assert_eq!(world.ok(&["check", "--deep", "--json"]), "[]", "{source}");
    }
    drop(registry);
}

#[test]
fn a_damaged_source_is_named_and_nothing_of_it_is_used() {
    let Some(world) = World::new() else { return };
    let layout = load_with_blobs(&world);
    let (low, _) = low_and_top(&world.root(), "overlay2");
    // One byte of the layer's blob is enough.
    let blobs = fs::read_dir(world.root().join("content/sha256")).unwrap();
    let blobs = blobs.map(|blob| blob.unwrap().path());
    let blob = blobs
        .max_by_key(|blob| fs::metadata(blob).unwrap().len())
        .unwrap();
    let good = fs::read(&blob).unwrap();
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    fs::write(&blob, &bad).unwrap();
    let whole = fs::read(&layout).unwrap();
    let mut parts = whole.windows(good.len());
    let at = parts.position(|part| part == good).unwrap();
    let mut spoiled = whole.clone();
    spoiled[at..at + bad.len()].copy_from_slice(&bad);
    fs::write(&layout, spoiled).unwrap();
    let times = Times::of(&low);
    script(
        &world,
        &low,
        "printf X | dd of=file conv=notrunc; chmod 4755 tool",
    );
    times.restore(true);
    let from = layout.to_str().unwrap();
    let said = world.run(&["check", "--repair", "--from", from]);
    assert_eq!(said.code, 1, "{said:?}");
    for source in ["the kept blob", from] {
        let warning = format!("warning: {source} can't be used for a repair: ");
        assert!(said.err.contains(&warning), "{said:?}");
    }
    assert!(
        said.out.contains("(left: no source has its content)"),
        "{said:?}"
    );
    assert!(said.out.contains("should be 0755 (repaired)"), "{said:?}");
    assert_eq!(fs::read(low.join("file")).unwrap(), b"Xontent");
    fs::write(&layout, whole).unwrap();
    let said = world.run(&["check", "--repair", "--from", from]);
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(world.ok(&["check", "--trees", "--json"]), "[]");
}

#[test]
fn a_file_that_is_executed_is_left_and_the_next_repair_finishes_it() {
    let Some(world) = World::new() else { return };
    let sleep = fs::read("/bin/sleep").unwrap();
    let layer = Tar::new().file("sleep", 0o755, &sleep).done();
    let image = archive(&world.scratch, "sleep:1", &[layer], serde_json::json!({}));
    let image = image.to_str().unwrap();
    world.ok(&["load", "--input", image]);
    let tree = trees(&world.root(), "overlay2").remove(0);
    script(&world, &tree, "echo more >> sleep");
    let mut running = std::process::Command::new(tree.join("sleep"));
    let mut running = running.arg("1000").spawn().unwrap();
    let said = world.run(&["check", "--repair", "--from", image]);
    let executed = fs::File::options().write(true).open(tree.join("sleep"));
    let busy = executed.is_err();
    running.kill().unwrap();
    running.wait().unwrap();
    if !busy {
        vellum_testkit::untested("a file that is executed", "this kernel lets it be written");
        return;
    }
    assert_eq!(said.code, 1, "{said:?}");
    let left = "(left: a process is executing it; stop that and repeat)";
    assert!(said.out.contains(left), "{said:?}");
    let said = world.run(&["check", "--repair", "--from", image]);
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(world.ok(&["check", "--deep", "--json"]), "[]");
}

#[test]
fn a_tree_in_which_something_is_mounted_is_left() {
    let Some(world) = World::new() else { return };
    let image = everything(&world.scratch);
    let image = image.to_str().unwrap();
    world.ok(&["load", "--input", image]);
    let (low, _) = low_and_top(&world.root(), "overlay2");
    script(
        &world,
        &low,
        "chmod 4755 tool; mount -t tmpfs none d; touch d/mine",
    );
    let said = world.run(&["check", "--repair"]);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(
        said.out
            .contains("left: something is mounted in the layer's tree"),
        "{said:?}"
    );
    script(&world, &low, "test -e d/mine; umount d");
    let said = world.run(&["check", "--repair"]);
    assert_eq!(said.code, 0, "{said:?}");
}

/// What a plain user can't create is recorded, and records are repaired too.
#[test]
fn the_trees_of_a_plain_user_are_repaired() {
    let scratch = Scratch::new();
    let Some(user) = PlainUser::new(&scratch) else {
        return;
    };
    let vellum = user.borrow_program(Path::new(env!("CARGO_BIN_EXE_vellum")));
    let image = everything(&scratch);
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    fs::set_permissions(&image, readable).unwrap();
    let image = image.to_str().unwrap();
    let run = |args: &[&str]| support::said(user.command(&vellum).args(args).output().unwrap());
    let said = run(&["load", "--input", image]);
    assert_eq!(said.code, 0, "{said:?}");
    let (low, top) = low_and_top(&user.home().join(".local/share/vellum"), "overlay2");
    for (tree, damage) in [
        (&low, "chmod 4755 tool"),
        (
            &low,
            "setfattr -n user.containers.override_stat -v 0:0:4755 null",
        ),
        (&low, "rm file null link; rm -r deep"),
        (&low, "printf X | dd of=tool conv=notrunc; chmod 0 xattr"),
        (&low, "rm fifo; mkdir fifo; touch fifo/inside"),
        (&low, "rm hard2; cp -p hard1 hard2"),
        (&top, "setfattr -x user.overlay.opaque opq; rm etc/secret"),
    ] {
        let there = format!("cd {}; {damage}", tree.display());
        let done = user.command("sh").args(["-ec", &there]).output();
        assert!(
            done.as_ref().is_ok_and(|done| done.status.success()),
            "{damage}: {done:?}"
        );
        let said = run(&["check", "--repair", "--from", image]);
        assert_eq!(said.code, 0, "{damage}: {said:?}");
        assert!(
            said.err.contains("all problems were repaired"),
            "{damage}: {said:?}"
        );
        let said = run(&["check", "--trees", "--json"]);
        assert_eq!(
            (said.code, said.out.trim()),
            (0, "[]"),
            "{damage}: {said:?}"
        );
    }
}

#[test]
fn a_recipe_is_written_again_and_then_the_tree_is_repaired() {
    for driver in ["overlay2", "native"] {
        let Some(world) = World::with(&["--storage-driver", driver]) else {
            return;
        };
        let image = everything(&world.scratch);
        let image = image.to_str().unwrap();
        world.ok(&["load", "--input", image]);
        let (low, _) = low_and_top(&world.root(), driver);
        let recipes = fs::read_dir(world.root().join("recipes")).unwrap();
        let recipes: Vec<PathBuf> = recipes.map(|file| file.unwrap().path()).collect();
        fs::remove_file(&recipes[0]).unwrap();
        let mut bytes = fs::read(&recipes[1]).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&recipes[1], bytes).unwrap();
        script(&world, &low, "chmod 4755 tool; rm file");
        let said = world.run(&["check", "--repair", "--dry-run", "--from", image]);
        assert_eq!(said.code, 1, "{driver}: {said:?}");
        assert!(!recipes[0].exists(), "{driver}");
        let said = world.run(&["check", "--repair"]);
        assert_eq!(said.code, 1, "{driver}: {said:?}");
        assert!(
            said.err.contains("layers not verified"),
            "{driver}: {said:?}"
        );
        let said = world.run(&["check", "--repair", "--from", image]);
        assert_eq!(said.code, 0, "{driver}: {said:?}");
        for recipe in &recipes {
            let line = said
                .out
                .lines()
                .find(|line| line.contains(recipe.to_str().unwrap()));
            let end = format!("(repaired from {image})");
            assert!(
                line.is_some_and(|line| line.ends_with(&end)),
                "{driver}: {said:?}"
            );
        }
        assert_eq!(world.ok(&["check", "--deep", "--json"]), "[]", "{driver}");
    }
}

#[test]
fn a_second_repair_waits_and_says_so() {
    let Some(world) = World::new() else { return };
    let image = everything(&world.scratch);
    world.ok(&["load", "--input", image.to_str().unwrap()]);
    world.ok(&["check", "--repair"]);
    let (low, _) = low_and_top(&world.root(), "overlay2");
    script(&world, &low, "chmod 4755 tool");
    let place = fs::File::open(world.root().join("lost+found")).unwrap();
    place.lock().unwrap();
    let mut second = world.command(&["check", "--repair"]);
    let second = second.stderr(std::process::Stdio::piped());
    let mut second = second.stdout(std::process::Stdio::null()).spawn().unwrap();
    let mut said = String::new();
    let mut lines = std::io::BufReader::new(second.stderr.take().unwrap());
    std::io::BufRead::read_line(&mut lines, &mut said).unwrap();
    assert_eq!(said, "waiting for another repair\n");
    // Neither a check nor a dry run waits.
    assert_eq!(world.run(&["check", "--trees"]).code, 1);
    assert_eq!(world.run(&["check", "--repair", "--dry-run"]).code, 1);
    place.unlock().unwrap();
    assert!(second.wait().unwrap().success());
    assert_eq!(world.ok(&["check", "--trees", "--json"]), "[]");
}
