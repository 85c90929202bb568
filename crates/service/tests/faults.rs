//! A user's commands on images and containers, with a power cut, a kill or a failing call at every
//! system call they make: afterwards the store is intact, every layer results in its tar, and the
//! state is either the old or the new one.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use support::{archive_of, context, layer_of, load_path};
use vellum_service::container::create::{CreateRequest, Origin, create};
use vellum_service::container::remove::remove;
use vellum_service::container::rename::rename;
use vellum_service::image::{CommitRequest, commit, images, rmi, tag};
use vellum_service::store::check::{CheckRequest, Wrong, check};
use vellum_service::{Context, Result, names};
use vellum_store::{Labels, Shape};
use vellum_testkit::Scratch;
use vellum_testkit::seam::{self, Counted, Effect, Picture};

/// What is done, with the archive that it may load.
type Verb = (&'static str, fn(&Context, &Path) -> Result<()>);

const VERBS: &[Verb] = &[
    ("load", |ctx, archive| load_path(ctx, archive).map(drop)),
    ("create", |ctx, _| new_container(ctx, "new").map(drop)),
    ("commit", |ctx, _| {
        let request = CommitRequest {
            container: "box".into(),
            name: Some("changed:1".into()),
            changes: vec!["ENV a=b".into()],
            author: None,
            message: None,
        };
        commit(ctx, &request).map(drop)
    }),
    ("tag", |ctx, _| {
        tag(ctx, "image:latest", "other:2").map(drop)
    }),
    ("rename", |ctx, _| rename(ctx, "box", "crate").map(drop)),
    ("rm", |ctx, _| remove(ctx, "box", false).map(drop)),
    ("rmi", |ctx, _| rmi(ctx, "spare:latest", false).map(drop)),
];

fn new_container(ctx: &Context, name: &str) -> Result<()> {
    let request = CreateRequest {
        origin: Origin::Image("image:latest".into()),
        name: Some(name.into()),
        size_bytes: None,
        inodes: None,
        labels: Labels::new(),
        volumes: Vec::new(),
    };
    create(ctx, &request).map(drop)
}

/// A store with an image and a changed container of it, a second image without containers, and an
/// archive of a third image, whose first layer is in the store.
struct Pattern {
    scratch: Scratch,
    store: Picture,
    archive: PathBuf,
    copies: usize,
}

impl Pattern {
    fn new() -> Pattern {
        let scratch = Scratch::new();
        let layer = |name: &str, bytes: &str| {
            let from = scratch.dir(format!("{name}.from/dir"));
            fs::write(from.join("file"), bytes.repeat(3000)).unwrap();
            fs::hard_link(from.join("file"), from.join("again")).unwrap();
            std::os::unix::fs::symlink("file", from.join("link")).unwrap();
            let members = ["dir", "dir/file", "dir/again", "dir/link"];
            layer_of(
                &scratch,
                name,
                &scratch.join(format!("{name}.from")),
                &members,
            )
        };
        let (one, two, three) = (layer("1", "one"), layer("2", "two"), layer("3", "three"));
        let first = archive_of(&scratch, "first.tar", &[one.clone(), two.clone()]);
        let spare = archive_of(&scratch, "spare.tar", std::slice::from_ref(&three));
        let archive = archive_of(&scratch, "third.tar", &[one, three, two]);
        let ctx = context(&scratch, "pattern");
        load_path(&ctx, &spare).unwrap();
        tag(&ctx, "image:latest", "spare:latest").unwrap();
        load_path(&ctx, &first).unwrap();
        new_container(&ctx, "box").unwrap();
        let record = names::container(&ctx, "box").unwrap();
        let tree = ctx.store().unwrap().tree(&record.snapshot).unwrap();
        let Shape::Overlay(overlay) = tree.shape else {
            panic!("a container of an image is stacked")
        };
        let upper = overlay.upper.unwrap().dir;
        fs::create_dir(upper.join("made")).unwrap();
        fs::write(upper.join("made/file"), vec![7; 9000]).unwrap();
        drop(ctx);
        let store = Picture::of(&scratch.join("pattern/store"));
        Pattern {
            scratch,
            store,
            archive,
            copies: 0,
        }
    }

    /// A copy of a store as found after a boot: the run directory is empty.
    fn copy(&mut self, store: &Picture) -> (String, PathBuf) {
        self.copies += 1;
        let name = format!("copy{}", self.copies);
        let root = self.scratch.dir(format!("{name}/store"));
        store.write_to(&root);
        (name, root)
    }

    fn again(&mut self) -> (String, PathBuf) {
        let store = self.store.clone();
        self.copy(&store)
    }

    /// The content before and after.
    fn both(&mut self, verb: &Verb) -> [BTreeSet<String>; 2] {
        let (name, _) = self.again();
        let ctx = context(&self.scratch, &name);
        let before = holds(&ctx);
        verb.1(&ctx, &self.archive).unwrap_or_else(|e| panic!("{}: {e}", verb.0));
        let after = holds(&ctx);
        assert_ne!(before, after, "{}", verb.0);
        [before, after]
    }

    /// Checks a store and removes it. Returns whether the verb's result is there.
    #[track_caller]
    fn check(&self, name: &str, [before, after]: &[BTreeSet<String>; 2], what: &str) -> bool {
        let ctx = context(&self.scratch, name);
        let now = holds(&ctx);
        assert!(now == *before || now == *after, "{what}: {now:#?}");
        let request = CheckRequest {
            heal: true,
            deep: true,
            ..CheckRequest::default()
        };
        let wrong = check(&ctx, &request).unwrap().wrong;
        // The copies of the store have other times.
        let of_time = |wrong: &&Wrong| wrong.in_tree.as_ref().is_some_and(|at| at.aspect == "time");
        let wrong: Vec<_> = wrong
            .iter()
            .filter(|wrong| !wrong.healed && !of_time(wrong))
            .collect();
        assert!(wrong.is_empty(), "{what}: {wrong:#?}");
        fs::remove_dir_all(self.scratch.join(name)).unwrap();
        now == *after
    }
}

/// Names of images and containers, and the size of a container's file.
fn holds(ctx: &Context) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for image in images(ctx, None).unwrap() {
        // Not its id: it contains the time of a commit.
        all.insert(format!("image {:?}", image.names));
    }
    for container in ctx.store().unwrap().containers().unwrap() {
        let tree = ctx.store().unwrap().tree(&container.snapshot).unwrap();
        let Shape::Overlay(overlay) = tree.shape else {
            panic!("a container of an image is stacked")
        };
        let made = fs::read(overlay.upper.unwrap().dir.join("made/file"));
        let made = made.map_or(0, |bytes| bytes.iter().filter(|byte| **byte == 7).count());
        all.insert(format!("container {}: {made} bytes", container.name));
    }
    all
}

fn fail_at_every_call(effect: Effect) {
    if !seam::available() {
        return;
    }
    let mut pattern = Pattern::new();
    for verb in VERBS {
        let both = pattern.both(verb);
        let hits = seam::each(5000, |n| {
            let (name, root) = pattern.again();
            let (scratch, archive) = (&pattern.scratch, &pattern.archive);
            let run = seam::run(&root, Counted::Changes, n, effect, || {
                let ctx = context(scratch, &name);
                verb.1(&ctx, archive).map_err(|e| format!("{e:?}"))
            });
            let hit = run.hit.clone();
            let done = run.value();
            let what = format!("{}, {effect:?} at call {n}, {hit:?}: {done:?}", verb.0);
            let is_there = pattern.check(&name, &both, &what);
            assert!(is_there || done.is_err(), "{what}: it is not there");
            hit
        });
        println!("  {} {effect:?}: {hits} calls", verb.0);
        assert!(hits > 10, "{}: {hits} calls", verb.0);
    }
}

#[test]
fn killed_at_every_call_a_verb_is_done_or_not() {
    fail_at_every_call(Effect::Stop);
}

#[test]
fn with_the_disk_full_from_any_call_a_verb_is_done_or_not() {
    fail_at_every_call(Effect::FailFrom(rustix::io::Errno::NOSPC.raw_os_error()));
}

#[test]
fn with_the_power_cut_at_every_call_a_verb_is_done_or_not() {
    if !seam::available() {
        return;
    }
    let mut pattern = Pattern::new();
    for verb in VERBS {
        let both = pattern.both(verb);
        let (name, root) = pattern.again();
        let (scratch, archive) = (&pattern.scratch, &pattern.archive);
        let (done, moments) = seam::moments(&root, || verb.1(&context(scratch, &name), archive));
        done.unwrap();
        println!("  {}: {} moments", verb.0, moments.len());
        for moment in moments {
            let what = format!(
                "{}: {:?} lost before {:?}",
                verb.0, moment.loses, moment.before
            );
            let (name, _) = pattern.copy(&moment.tree);
            let is_there = pattern.check(&name, &both, &what);
            assert!(
                is_there || moment.before.is_some(),
                "{what}: it is not there"
            );
        }
    }
}
