//! Layers created from layers, and inspected without a mount.

mod support;

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use support::layered::{ALL, VELLUM, World, changed, kernel_shows, wait_free};
use vellum_testkit::churn::{Churn, grow};
use vellum_testkit::fault::{self, CHANGES, Effect};
use vellum_testkit::kernel::Overlay;
use vellum_testkit::tree::{Ignore, Kind};
use vellum_testkit::{Rng, Tree};

#[test]
fn layers_are_squashed_converted_and_merged_into_what_they_showed() {
    let Some(world) = World::new() else { return };
    let target = changed(&world);
    let expect = Tree::read(&target).unwrap();
    let at = |below: &str| world.at(below).display().to_string();
    let (upper, top, base) = (at("upper"), at("top"), at("base"));

    // Mounted layers are left alone.
    let done = world.vellum(&["layer", "merge", &upper, &top]);
    assert_eq!(done.code, 1, "{}", done.out);
    assert!(done.err.contains("is mounted"), "{}", done.err);
    world.scratch.unmount(&target);

    let ok = |args: &[&str]| world.on_free_layers(args);
    ok(&[
        "layer",
        "squash",
        &upper,
        &top,
        &base,
        "--whole",
        "--output",
        &at("whole"),
    ]);
    Tree::read(&world.at("whole"))
        .unwrap()
        .assert_same(&expect, ALL);

    ok(&[
        "layer",
        "convert",
        &upper,
        "--below",
        &top,
        "--below",
        &base,
        "--output",
        &at("plain"),
    ]);
    kernel_shows(
        &world,
        "k1",
        &[&world.at("plain"), &world.at("top"), &world.at("base")],
    )
    .assert_same(&expect, ALL);

    // Converting between dialects and back loses nothing.
    ok(&[
        "layer",
        "convert",
        &at("plain"),
        "--marks",
        "wh",
        "--output",
        &at("wh"),
    ]);
    assert!(world.at("wh/.wh.dir").exists(), "removed names are files");
    ok(&["layer", "convert", &at("wh"), "--output", &at("again")]);
    kernel_shows(
        &world,
        "k2",
        &[&world.at("again"), &world.at("top"), &world.at("base")],
    )
    .assert_same(&expect, ALL);

    // A reference out of the given layers is reported by name, and nothing is left behind.
    let done = world.vellum(&["layer", "squash", &upper, &top, "--output", &at("half")]);
    assert_eq!(done.code, 1);
    assert!(
        done.err.contains("redirect") || done.err.contains("metacopy"),
        "{}",
        done.err
    );
    assert!(!world.at("half").exists() && !world.at(".vellum-staged.half").exists());

    ok(&[
        "layer",
        "squash",
        &at("plain"),
        &top,
        "--output",
        &at("both"),
    ]);
    kernel_shows(&world, "k3", &[&world.at("both"), &world.at("base")]).assert_same(&expect, ALL);

    // Mounted by our engine a layer is left alone too, also as a lower one.
    let merged = at("merged");
    let lower = format!("lowerdir={top}:{base}");
    ok(&["overlay", "-o", &lower, &merged]);
    world.scratch.adopt_mount(&world.at("merged"));
    let done = world.vellum(&["layer", "merge", &at("plain"), &top]);
    assert_eq!(done.code, 1);
    assert!(
        done.err.contains("is mounted: Vellum's engine uses it"),
        "{}",
        done.err
    );
    world.scratch.unmount(&world.at("merged"));
    wait_free(&world.at("top"));

    ok(&["layer", "merge", &at("plain"), &top]);
    kernel_shows(&world, "k4", &[&world.at("top"), &world.at("base")]).assert_same(&expect, ALL);
}

#[test]
fn layers_are_looked_at_without_a_mount() {
    let Some(world) = World::new() else { return };
    let target = changed(&world);
    world.scratch.unmount(&target);
    let options = world.options();
    let ok = |args: &[&str]| {
        let done = world.vellum(args);
        assert_eq!(done.code, 0, "{args:?}: {}", done.err);
        done.out
    };
    assert_eq!(
        ok(&["ls", "-o", &options, "/"]),
        "both\ngone\nlink\nlinked\nmoved\nnew\n"
    );
    assert_eq!(ok(&["cat", "-o", &options, "/moved/inner/file"]), "deep\n");
    assert_eq!(ok(&["cat", "-o", &options, "both"]), "from the top\n");
    let why = ok(&["explain", "-o", &options, "/both"]);
    let (upper, top) = (world.at("upper"), world.at("top"));
    assert!(
        why.contains(&format!("attributes: {}", upper.display())),
        "{why}"
    );
    assert!(
        why.contains(&format!("content:    {}", top.display())),
        "{why}"
    );
    assert!(
        why.contains("a file, hidden by layer 1 (has no effect)"),
        "{why}"
    );
    let why = ok(&["explain", "-o", &options, "/dir/inner"]);
    assert!(
        why.starts_with("/dir: does not exist\n") && why.contains("whiteout"),
        "{why}"
    );
}

/// An upper with changes of every kind on a lower layer with everything, made by the kernel.
#[test]
fn whatever_the_kernel_made_is_squashed_and_converted_to_the_same() {
    let Some(world) = World::new() else { return };
    let mut rng = Rng::for_test("whatever_the_kernel_made_is_squashed_and_converted_to_the_same");
    for round in 0..12 {
        let dir = |name: &str| world.scratch.dir(format!("r{round}/{name}"));
        let (base, middle, upper, work) = (dir("base"), dir("middle"), dir("upper"), dir("work"));
        grow(&mut rng, &base, 60);
        let change = |rng: &mut Rng, lowers: &[&Path], top: &Path, work: &Path| {
            let target = world.scratch.dir("target");
            Overlay {
                lowers: lowers.iter().map(|l| l.to_path_buf()).collect(),
                upper: Some((top.to_owned(), work.to_owned())),
                ..Overlay::default()
            }
            .option("redirect_dir", "on")
            .option("metacopy", "on")
            .mount(&world.scratch, &target)
            .unwrap();
            Churn::ALL.run(rng, &target, 60);
            let tree = Tree::read(&target).unwrap();
            world.scratch.unmount(&target);
            tree
        };
        change(&mut rng, &[&base], &middle, &dir("work-of-middle"));
        let mut expect = change(&mut rng, &[&middle, &base], &upper, &work);
        // A layer can't hold sockets, and links of one inode in several layers become several
        // files.
        expect.entries.retain(|_, entry| entry.kind != Kind::Socket);
        let ignore = Ignore {
            hard_links: true,
            directory_mtimes: true,
            ..ALL
        };
        let at = |name: &str| world.at(&format!("r{round}/{name}")).display().to_string();
        let ok = |args: &[&str]| world.on_free_layers(args);
        ok(&[
            "layer",
            "squash",
            &at("upper"),
            &at("middle"),
            &at("base"),
            "--whole",
            "--output",
            &at("whole"),
        ]);
        kernel_shows(&world, "shown", &[&world.at(&format!("r{round}/whole"))])
            .assert_same(&expect, ignore);
        ok(&[
            "layer",
            "convert",
            &at("upper"),
            "--below",
            &at("middle"),
            "--below",
            &at("base"),
            "--output",
            &at("top"),
        ]);
        ok(&[
            "layer",
            "convert",
            &at("middle"),
            "--below",
            &at("base"),
            "--output",
            &at("next"),
        ]);
        ok(&[
            "layer",
            "squash",
            &at("top"),
            &at("next"),
            "--output",
            &at("both"),
            "--below",
            &at("base"),
        ]);
        kernel_shows(
            &world,
            "shown",
            &[&world.at(&format!("r{round}/both")), &base],
        )
        .assert_same(&expect, ignore);
        ok(&[
            "layer",
            "merge",
            &at("top"),
            &at("next"),
            "--below",
            &at("base"),
        ]);
        kernel_shows(
            &world,
            "shown",
            &[&world.at(&format!("r{round}/next")), &base],
        )
        .assert_same(&expect, ignore);
    }
}

/// Killed at any change it makes to the disk, a conversion in place leaves the old layer or the new
/// one, and the next one finishes.
#[test]
fn a_conversion_killed_anywhere_leaves_the_old_layer_or_the_new() {
    let Some(world) = World::new() else { return };
    if !fault::available() {
        return;
    }
    let target = changed(&world);
    let expect = Tree::read(&target).unwrap();
    world.scratch.unmount(&target);
    let copy = |name: &str| {
        let done = std::process::Command::new("cp")
            .arg("-a")
            .arg(world.at("upper"))
            .arg(world.at(name))
            .status();
        assert!(done.unwrap().success());
    };
    let shows = |upper: &str| {
        let target = world.scratch.dir("shown");
        Overlay {
            lowers: vec![world.at(upper), world.at("top"), world.at("base")],
            ..Overlay::default()
        }
        .option("redirect_dir", "on")
        .option("metacopy", "on")
        .mount(&world.scratch, &target)
        .unwrap();
        let tree = Tree::read(&target).unwrap();
        world.scratch.unmount(&target);
        tree
    };
    let mut killed = 0;
    for calls in CHANGES {
        let mut n = 1;
        loop {
            copy("victim");
            let work = world.scratch.dir("victims-work/index");
            let at = |name: &str| world.at(name).display().to_string();
            let args = [
                "layer",
                "convert",
                &at("victim"),
                "--work",
                work.parent().unwrap().to_str().unwrap(),
                "--below",
                &at("top"),
                "--below",
                &at("base"),
            ]
            .map(str::to_owned);
            let none: [(&str, &OsStr); 0] = [];
            let run = fault::run(Path::new(VELLUM), &args, &none, calls, Effect::Kill, n);
            shows("victim").assert_same(&expect, ALL);
            world.on_free_layers(&args.each_ref().map(String::as_str));
            kernel_shows(
                &world,
                "plain",
                &[&world.at("victim"), &world.at("top"), &world.at("base")],
            )
            .assert_same(&expect, ALL);
            assert!(!world.at(".vellum-staged.victim").exists());
            assert!(
                !world.at("victims-work/index").exists()
                    && !world
                        .at("victims-work")
                        .join("work")
                        .join("incompat")
                        .exists()
            );
            fs::remove_dir_all(world.at("victim")).unwrap();
            fs::remove_dir_all(world.at("victims-work")).unwrap();
            if !run.hit {
                break;
            }
            killed += 1;
            n = n * 2 + 1;
        }
    }
    assert!(killed > 5, "{killed}");
}
