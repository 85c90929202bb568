//! A union whose layers are in a union: the inner marks belong to the inner one, and both show what
//! they should.

mod support;

use std::fs;

use support::*;
use vellum_testkit::churn::{Churn, grow};
use vellum_testkit::kernel::Overlay;
use vellum_testkit::tree::Tree;
use vellum_testkit::{Rng, Scratch};

#[test]
fn an_engine_with_wh_names_stands_on_another() {
    let name = "an_engine_with_wh_names_stands_on_another";
    everywhere(name, |world| {
        let mut rng = Rng::for_test(name);
        let churn = Churn {
            links: true,
            trusted_xattrs: false,
            devices: false,
        };
        world.mount();
        // The same union on a disk does the same. Neither can use devices 0:0 as whiteouts, so
        // directories from below don't move.
        let mut inner = world.inside(&world.at("inner"));
        let mut judge = world.inside(&world.beside("judge"));
        for union in [&mut inner, &mut judge] {
            union.option("wh");
            // The outer one's file handles don't last, so hard links can't be indexed.
            union.option("noindex");
        }
        let seed = rng.next();
        for union in [&inner, &judge] {
            grow(&mut Rng::seeded(seed), &union.lower(""), 60);
        }
        for step in 0..3 {
            for union in [&mut inner, &mut judge] {
                union.mount();
                churn.run(&mut Rng::seeded(seed + 1 + step), &union.at(""), 120);
            }
            let wanted = Tree::read(&judge.at("")).unwrap();
            let live = Tree::read(&inner.at("")).unwrap();
            live.assert_same(&wanted, IGNORE);
            inner.unmount();
            // The outer one, too, now has only what is on disk.
            world.remount();
            inner.mount();
            let again = Tree::read(&inner.at("")).unwrap();
            again.assert_same(&wanted, IGNORE);
            inner.unmount();
            judge.unmount();
        }
    });
}

#[test]
fn the_kernels_overlay_stands_on_a_union() {
    as_root(|world| {
        // Overlay marks that a user sets in the outer union are the inner one's, so the random
        // changes set none. Without an index the kernel splits hard links.
        let churn = Churn {
            links: false,
            trusted_xattrs: false,
            devices: true,
        };
        let mut rng = Rng::for_test("the_kernels_overlay_stands_on_a_union");
        let bare = world.beside("bare");
        fs::create_dir(&bare).unwrap();
        let seed = rng.next();
        fs::create_dir(world.lower("low")).unwrap();
        for root in [world.lower("low"), bare.clone()] {
            grow(&mut Rng::seeded(seed), &root, 60);
        }
        world.mount();
        // Part of what the kernel shows is in the outer upper.
        for root in [world.at("low"), bare.clone()] {
            churn.run(&mut Rng::seeded(seed + 1), &root, 60);
        }
        for dir in ["kernel-upper", "kernel-work", "kernel"] {
            fs::create_dir(world.beside(dir)).unwrap();
        }
        let scratch = Scratch::new();
        let overlay = Overlay {
            lowers: vec![world.at("low")],
            upper: Some((world.beside("kernel-upper"), world.beside("kernel-work"))),
            ..Overlay::default()
        }
        .option("redirect_dir", "on")
        .option("metacopy", "on");
        for step in 0..3 {
            let target = world.beside("kernel");
            overlay
                .mount(&scratch, &target)
                .expect("the kernel mounts it");
            for root in [target.clone(), bare.clone()] {
                churn.run(&mut Rng::seeded(seed + 2 + step), &root, 100);
            }
            let wanted = Tree::read(&bare).unwrap();
            Tree::read(&target).unwrap().assert_same(&wanted, IGNORE);
            scratch.unmount(&target);
            world.remount();
        }
    });
}
