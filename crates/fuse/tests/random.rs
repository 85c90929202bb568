//! Random changes through a mount, compared with the same changes to an ordinary directory; then
//! the kernel's overlay shows the upper.

mod support;

use std::fs;

use support::*;
use vellum_testkit::churn::{Churn, grow};
use vellum_testkit::kernel::Overlay;
use vellum_testkit::tree::Tree;
use vellum_testkit::{Rng, Scratch};

fn compare(churn: Churn, world: &mut World, name: &str) {
    let mut rng = Rng::for_test(name);
    for round in 0..4 {
        let seed = rng.next();
        eprintln!("round {round} with seed {seed}");
        let bare = world.beside(format!("bare-{round}"));
        fs::create_dir(&bare).unwrap();
        for root in [world.lower(""), bare.clone()] {
            grow(&mut Rng::seeded(seed), &root, 60);
        }
        world.mount();
        for step in 0..3 {
            for root in [world.at(""), bare.clone()] {
                churn.run(&mut Rng::seeded(seed + 1 + step), &root, 120);
            }
            let wanted = Tree::read(&bare).unwrap();
            Tree::read(&world.at(""))
                .unwrap()
                .assert_same(&wanted, IGNORE);
            match step {
                1 => {
                    world.crash();
                    world.mount();
                }
                _ => world.remount(),
            }
            Tree::read(&world.at(""))
                .unwrap()
                .assert_same(&wanted, IGNORE);
        }
        world.unmount();
        if !world.is_user {
            let scratch = Scratch::new();
            let merged = scratch.dir("merged");
            let overlay = Overlay {
                lowers: vec![world.lower("")],
                upper: Some((world.upper(""), world.work())),
                ..Overlay::default()
            };
            let options = [
                ("redirect_dir", "on"),
                ("metacopy", "on"),
                ("index", "on"),
                ("xino", "on"),
            ];
            options
                .iter()
                .fold(overlay, |overlay, (key, value)| overlay.option(key, value))
                .mount(&scratch, &merged)
                .expect("the kernel mounts what was written");
            let wanted = Tree::read(&bare).unwrap();
            Tree::read(&merged).unwrap().assert_same(&wanted, IGNORE);
        }
        for dir in ["lower", "upper", "work"] {
            fs::remove_dir_all(world.beside(dir)).unwrap();
            fs::create_dir(world.beside(dir)).unwrap();
        }
    }
}

#[test]
fn random_changes_through_a_mount_are_those_of_a_directory_and_the_kernel_shows_them() {
    as_root(|world| {
        compare(
            Churn::ALL,
            world,
            "random_changes_through_a_mount_are_those_of_a_directory_and_the_kernel_shows_them",
        );
    });
}

#[test]
fn random_changes_of_a_plain_user_are_those_of_a_directory() {
    let name = "random_changes_of_a_plain_user_are_those_of_a_directory";
    everywhere(name, |world| {
        let churn = Churn {
            links: true,
            trusted_xattrs: false,
            devices: false,
        };
        compare(churn, world, name);
    });
}
