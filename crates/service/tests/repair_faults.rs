//! `check --repair` with a kill, a power cut or a full disk at every system call it makes: what was
//! done by then is right or as it was, another repair finishes the rest, and nothing that was moved
//! away is lost.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use support::{archive_of, context, layer_of, load_path};
use vellum_service::Context;
use vellum_service::store::check::{CheckRequest, Checked, RepairRequest, check};
use vellum_testkit::Scratch;
use vellum_testkit::seam::{self, Counted, Effect, Picture};

/// A store with one image whose tree is damaged in every way, and its archive.
struct Pattern {
    scratch: Scratch,
    store: Picture,
    archive: PathBuf,
    copies: usize,
}

/// What the layer doesn't list, and what had the wrong type.
const STRANGE: [&[u8]; 2] = [b"nobody knows this", b"was a link"];

impl Pattern {
    fn new() -> Self {
        let scratch = Scratch::new();
        let from = scratch.dir("from");
        for dir in ["dir", "gone"] {
            fs::create_dir(from.join(dir)).unwrap();
        }
        fs::write(from.join("dir/content"), "right".repeat(3000)).unwrap();
        fs::write(from.join("dir/mode"), "mode").unwrap();
        fs::write(from.join("gone/inside"), "inside").unwrap();
        fs::hard_link(from.join("gone/inside"), from.join("gone/again")).unwrap();
        std::os::unix::fs::symlink("mode", from.join("dir/link")).unwrap();
        let members = [
            "dir",
            "dir/content",
            "dir/mode",
            "dir/link",
            "gone",
            "gone/inside",
            "gone/again",
        ];
        let layer = layer_of(&scratch, "layer", &from, &members);
        let archive = archive_of(&scratch, "archive.tar", &[layer]);
        let ctx = context(&scratch, "pattern");
        load_path(&ctx, &archive).unwrap();
        let tree = tree(&ctx);
        fs::write(tree.join("dir/content"), "wrong".repeat(3000)).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o4755);
        fs::set_permissions(tree.join("dir/mode"), mode).unwrap();
        fs::write(tree.join("dir/strange"), STRANGE[0]).unwrap();
        fs::remove_file(tree.join("dir/link")).unwrap();
        fs::write(tree.join("dir/link"), STRANGE[1]).unwrap();
        fs::remove_dir_all(tree.join("gone")).unwrap();
        drop(ctx);
        Self {
            store: Picture::of(&scratch.join("pattern/store")),
            scratch,
            archive,
            copies: 0,
        }
    }

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

    /// Repairs what is left in a store and checks that all is right then, and nothing was lost.
    #[track_caller]
    fn finish(&self, name: &str, what: &str) {
        let ctx = context(&self.scratch, name);
        // No byte is neither the old nor the new one.
        let content = fs::read(tree(&ctx).join("dir/content")).unwrap();
        let of_either =
            |(at, byte): (usize, &u8)| *byte == b"right"[at % 5] || *byte == b"wrong"[at % 5];
        assert!(content.iter().enumerate().all(of_either), "{what}");
        let repaired = repair(&ctx, &self.archive).unwrap();
        let left: Vec<_> = repaired.wrong.iter().filter(|one| !one.healed).collect();
        assert!(left.is_empty(), "{what}: {left:#?}");
        let request = CheckRequest {
            deep: true,
            ..CheckRequest::default()
        };
        let wrong = check(&ctx, &request).unwrap().wrong;
        assert!(wrong.is_empty(), "{what}: {wrong:#?}");
        let kept = ctx.store().unwrap().root().join("lost+found");
        let mut kept: Vec<Vec<u8>> = fs::read_dir(kept)
            .unwrap()
            .map(|entry| fs::read(entry.unwrap().path()).unwrap())
            .collect();
        kept.sort();
        // A cut between two syncs may leave both names of what was moved.
        kept.dedup();
        assert_eq!(kept, STRANGE, "{what}");
        fs::remove_dir_all(self.scratch.join(name)).unwrap();
    }
}

fn tree(ctx: &Context) -> PathBuf {
    let image = vellum_service::names::image(ctx, "image:latest").unwrap();
    let tree = ctx.store().unwrap().tree(image.top().unwrap()).unwrap();
    tree.layers()[0].dir.clone()
}

fn repair(ctx: &Context, archive: &Path) -> vellum_service::Result<Checked> {
    let request = CheckRequest {
        heal: true,
        trees: true,
        repair: Some(RepairRequest {
            dry_run: false,
            from: vec![archive.display().to_string()],
        }),
        ..CheckRequest::default()
    };
    check(ctx, &request)
}

fn fail_at_every_call(effect: Effect) {
    if !seam::available() {
        return;
    }
    let mut pattern = Pattern::new();
    let hits = seam::each(5000, |n| {
        let (name, root) = pattern.again();
        let (scratch, archive) = (&pattern.scratch, &pattern.archive);
        let run = seam::run(&root, Counted::Changes, n, effect, || {
            let ctx = context(scratch, &name);
            let repaired = repair(&ctx, archive).map_err(|e| format!("{e:?}"))?;
            Ok::<_, String>(repaired.wrong.iter().all(|one| one.healed))
        });
        let hit = run.hit.clone();
        let done = run.value();
        let what = format!("{effect:?} at call {n}, {hit:?}: {done:?}");
        if done == Ok(true) {
            let ctx = context(&pattern.scratch, &name);
            let request = CheckRequest {
                trees: true,
                ..CheckRequest::default()
            };
            let wrong = check(&ctx, &request).unwrap().wrong;
            assert!(wrong.is_empty(), "{what}: {wrong:#?}");
        }
        pattern.finish(&name, &what);
        hit
    });
    println!("  repair {effect:?}: {hits} calls");
    assert!(hits > 50, "{hits} calls");
}

#[test]
fn a_repair_that_is_killed_at_any_call_is_finished_by_another() {
    fail_at_every_call(Effect::Stop);
}

#[test]
fn a_repair_on_a_disk_that_is_full_from_any_call_is_finished_by_another() {
    fail_at_every_call(Effect::FailFrom(rustix::io::Errno::NOSPC.raw_os_error()));
}

#[test]
fn a_repair_in_which_any_call_fails_says_what_is_left() {
    fail_at_every_call(Effect::Fail(rustix::io::Errno::IO.raw_os_error()));
}

#[test]
fn a_repair_with_the_power_cut_at_any_call_is_finished_by_another() {
    if !seam::available() {
        return;
    }
    let mut pattern = Pattern::new();
    let (name, root) = pattern.again();
    let (scratch, archive) = (&pattern.scratch, &pattern.archive);
    let (done, moments) = seam::moments(&root, || repair(&context(scratch, &name), archive));
    assert!(done.unwrap().wrong.iter().all(|one| one.healed));
    println!("  repair: {} moments", moments.len());
    for moment in moments {
        let what = format!("{:?} lost before {:?}", moment.loses, moment.before);
        let (name, _) = pattern.copy(&moment.tree);
        pattern.finish(&name, &what);
    }
}
