//! A layer that is slow to answer about one name delays only requests for that name. A change of
//! the name in the meantime counts, not the old answer.

mod engine_support;
mod stalling;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use engine_support::{Rig, options, user};
use stalling::{Question, Stall, before, soon};
use vellum_format::Prefix;
use vellum_union::engine::{Engine, NodeId};
use vellum_union::{Dialect, DirLayer, Layer, Refusal};

/// Layers with a stall before the lower one.
struct Slow {
    rig: Rig,
    stall: Arc<Stall>,
}

impl Slow {
    /// The lower layer has `d/slow`, `d/quick`, `d/sub/x`, `e/f` and `away/from/here`.
    fn new(question: Question) -> Option<Slow> {
        let rig = Rig::new(1)?;
        let low = &rig.lowers[0];
        for dir in ["d/sub", "e", "away/from", "to"] {
            fs::create_dir_all(low.join(dir)).unwrap();
        }
        for file in ["d/slow", "d/quick", "d/sub/x", "e/f", "away/from/here"] {
            fs::write(low.join(file), file).unwrap();
        }
        let stall = Stall::new("slow", question);
        Some(Slow { rig, stall })
    }

    fn open(&self) -> Engine {
        let mut options = options(&self.rig.lowers, &self.rig.upper, &self.rig.work);
        for layer in &mut options.lowers {
            *layer = before(Arc::clone(layer), &self.stall);
        }
        Engine::open(options).unwrap()
    }

    /// Looks up `path`, whose name is slow; does `meanwhile` before the answer comes. Returns what
    /// `look` returns for the node found.
    fn overtaken<T: Send>(
        &self,
        path: &str,
        meanwhile: impl FnOnce(&Engine) + Send,
        look: impl FnOnce(&Engine, Option<NodeId>) -> T,
    ) -> T {
        let engine = self.open();
        let path = Path::new(path);
        // Looked up before, as the kernel knows the directory of a lookup.
        let who = user(&engine);
        let (dir, name) = who.above(path).unwrap();
        let found = std::thread::scope(|scope| {
            let let_go = self.stall.arm();
            let looking = scope.spawn(|| engine.lookup(dir.node, name));
            self.stall.wait();
            soon(
                "what happens to the name",
                || meanwhile(&engine),
                &self.stall,
            );
            drop(let_go);
            looking.join().unwrap().unwrap()
        });
        let node = found.as_ref().map(|entry| entry.node);
        let seen = look(&engine, node);
        let held = found.map(|entry| who.hold(entry));
        drop((held, dir));
        assert_eq!(engine.live_nodes(), 1, "nodes are left behind");
        self.rig.agree(engine);
        seen
    }
}

#[test]
fn a_slow_name_delays_no_other_request() {
    let Some(slow) = Slow::new(Question::Stat) else {
        return;
    };
    let engine = slow.open();
    let d = user(&engine).find("d").unwrap();
    std::thread::scope(|scope| {
        let let_go = slow.stall.arm();
        let looking = scope.spawn(|| engine.lookup(d.node, "slow".as_ref()));
        slow.stall.wait();
        let others = [
            ("a LOOKUP in the directory", "d/quick"),
            ("a LOOKUP of a directory in it", "d/sub"),
            ("a LOOKUP below it", "d/sub/x"),
            ("a LOOKUP elsewhere", "e/f"),
        ];
        let look_at_all = || {
            for (what, path) in others {
                soon(what, || user(&engine).attr(path).unwrap(), &slow.stall);
            }
        };
        look_at_all();
        let absent = || assert!(!user(&engine).exists("d/absent"));
        soon("a LOOKUP of nothing", absent, &slow.stall);
        let open = || user(&engine).read("e/f").unwrap();
        assert_eq!(soon("an open elsewhere", open, &slow.stall), b"e/f");
        let open = || user(&engine).read("d/quick").unwrap();
        assert_eq!(soon("an open beside it", open, &slow.stall), b"d/quick");
        let list = || user(&engine).names("d").unwrap();
        let names = soon("a listing of the directory", list, &slow.stall);
        assert_eq!(names.len(), 3);
        let make = || user(&engine).file("d/new", "n").unwrap();
        soon("a new file in the directory", make, &slow.stall);
        let write = || user(&engine).file("d/quick", "changed").unwrap();
        soon("a copy-up in the directory", write, &slow.stall);
        let unlink = || user(&engine).unlink("d/quick").unwrap();
        soon("a removal in the directory", unlink, &slow.stall);
        // This one takes the rename gate exclusively, and every other request queues behind a
        // thread that waits for it.
        let rename = || user(&engine).rename("away/from", "to/there").unwrap();
        soon("a directory that moves", rename, &slow.stall);
        let rename = || user(&engine).rename("d", "to/d").unwrap();
        soon("the directory itself moves", rename, &slow.stall);
        let rename = || user(&engine).rename("to/d", "d").unwrap();
        soon("the directory itself comes back", rename, &slow.stall);
        let file = || user(&engine).file("d/quick", "again").unwrap();
        soon("a file under a removed name", file, &slow.stall);
        look_at_all();
        drop(let_go);
        let entry = looking.join().unwrap().unwrap().unwrap();
        let again = engine.lookup(d.node, "slow".as_ref()).unwrap().unwrap();
        assert_eq!(entry.node, again.node);
        assert_eq!(user(&engine).read("d/slow").unwrap(), b"d/slow");
        engine.forget(entry.node, 2);
    });
    drop(d);
    assert_eq!(engine.live_nodes(), 1, "nodes are left behind");
    slow.rig.agree(engine);
}

#[test]
fn a_slow_open_delays_no_other_request() {
    let Some(slow) = Slow::new(Question::Open) else {
        return;
    };
    let engine = slow.open();
    std::thread::scope(|scope| {
        let let_go = slow.stall.arm();
        let reading = scope.spawn(|| user(&engine).read("d/slow").unwrap());
        slow.stall.wait();
        let open = || user(&engine).read("d/quick").unwrap();
        assert_eq!(soon("an open beside it", open, &slow.stall), b"d/quick");
        let rename = || user(&engine).rename("away/from", "to/there").unwrap();
        soon("a directory that moves", rename, &slow.stall);
        let open = || user(&engine).read("e/f").unwrap();
        assert_eq!(soon("an open elsewhere", open, &slow.stall), b"e/f");
        let list = || user(&engine).names("d").unwrap();
        assert_eq!(soon("a listing", list, &slow.stall).len(), 3);
        drop(let_go);
        assert_eq!(reading.join().unwrap(), b"d/slow");
    });
    slow.rig.agree(engine);
}

/// While a lower layer is slow to return a file's attributes or bytes for a copy-up, only requests
/// for that file wait.
#[test]
fn a_slow_copy_up_delays_no_other_request() {
    for question in [Question::Stat, Question::Open] {
        let Some(slow) = Slow::new(question) else {
            return;
        };
        let engine = slow.open();
        let held = user(&engine).find("d/slow").unwrap();
        std::thread::scope(|scope| {
            let let_go = slow.stall.arm();
            let write = || engine.privileged().write(held.node, 0, b"D", false);
            let writing = scope.spawn(write);
            slow.stall.wait();
            let rename = || user(&engine).rename("away/from", "to/there").unwrap();
            soon("a directory that moves", rename, &slow.stall);
            let write = || user(&engine).file("d/quick", "changed").unwrap();
            soon("another copy-up", write, &slow.stall);
            let rename = || user(&engine).rename("d/quick", "e/quick").unwrap();
            soon("a file that moves", rename, &slow.stall);
            let look = || user(&engine).attr("d/slow").unwrap();
            soon("a look at the file itself", look, &slow.stall);
            drop(let_go);
            assert_eq!(writing.join().unwrap().unwrap(), 1);
        });
        drop(held);
        assert_eq!(user(&engine).read("d/slow").unwrap(), b"D/slow");
        slow.rig.agree(engine);
    }
}

/// The lower layers are asked whether a directory is empty before anything is locked.
#[test]
fn a_slow_removal_of_a_directory_delays_no_other_request() {
    let Some(slow) = Slow::new(Question::Names) else {
        return;
    };
    fs::create_dir(slow.rig.lowers[0].join("e/slow")).unwrap();
    fs::write(slow.rig.lowers[0].join("e/slow/x"), "x").unwrap();
    let engine = slow.open();
    user(&engine).unlink("e/slow/x").unwrap();
    user(&engine).mkdir("new").unwrap();
    let rmdir: fn(&Engine) = |engine| user(engine).rmdir("e/slow").unwrap();
    let rename: fn(&Engine) = |engine| user(engine).rename("new", "e/slow").unwrap();
    let full: fn(&Engine) = |engine| {
        assert!(user(engine).rmdir("e/slow").is_err());
    };
    let refill: fn(&Engine) = |engine| user(engine).file("e/slow/x", "again").unwrap();
    let empty: fn(&Engine) = |engine| user(engine).unlink("e/slow/x").unwrap();
    let nothing: fn(&Engine) = |_| {};
    let steps = [(refill, full), (empty, rename), (nothing, rmdir)];
    for (number, (meanwhile, act)) in steps.into_iter().enumerate() {
        std::thread::scope(|scope| {
            let let_go = slow.stall.arm();
            let acting = scope.spawn(|| act(&engine));
            if number < 2 {
                slow.stall.wait();
            }
            let look = || user(&engine).attr("e/f").unwrap();
            soon("a LOOKUP in the directory", look, &slow.stall);
            let (from, to) = [("away", "to/away"), ("to/away", "away")][number % 2];
            let rename = || user(&engine).rename(from, to).unwrap();
            soon("a directory that moves", rename, &slow.stall);
            soon("a change in it", || meanwhile(&engine), &slow.stall);
            drop(let_go);
            acting.join().unwrap();
        });
    }
    assert!(!user(&engine).exists("e/slow"));
    slow.rig.agree(engine);
}

/// A reader that looks up the names it reads, as READDIRPLUS does, delays no other reader.
#[test]
fn a_slow_name_in_a_listing_delays_no_other_request() {
    let Some(slow) = Slow::new(Question::Stat) else {
        return;
    };
    let engine = slow.open();
    let d = user(&engine).find("d").unwrap();
    std::thread::scope(|scope| {
        let let_go = slow.stall.arm();
        let listing = scope.spawn(|| {
            let mut found = 0;
            let listed = engine.list(d.node, 0, &mut |listing| {
                let entry = engine.lookup(d.node, &listing.name).unwrap().unwrap();
                engine.forget(entry.node, 1);
                found += 1;
                std::ops::ControlFlow::Continue(())
            });
            listed.map(|()| found)
        });
        slow.stall.wait();
        let list = || user(&engine).names("d").unwrap();
        assert_eq!(soon("another listing", list, &slow.stall).len(), 3);
        drop(let_go);
        assert_eq!(listing.join().unwrap().unwrap(), 3);
    });
    drop(d);
    slow.rig.agree(engine);
}

/// Concurrent lookups of one name share one node.
#[test]
fn concurrent_lookups_share_one_node() {
    let Some(slow) = Slow::new(Question::Stat) else {
        return;
    };
    let engine = slow.open();
    let d = user(&engine).find("d").unwrap();
    std::thread::scope(|scope| {
        let let_go = slow.stall.arm();
        let ask = || {
            engine
                .lookup(d.node, "slow".as_ref())
                .unwrap()
                .unwrap()
                .node
        };
        let first = scope.spawn(ask);
        slow.stall.wait();
        let second = soon("another caller that asks for the name", ask, &slow.stall);
        drop(let_go);
        assert_eq!(first.join().unwrap(), second);
        engine.forget(second, 1);
        engine.forget(second, 1);
    });
    drop(d);
    assert_eq!(engine.live_nodes(), 1, "nodes are left behind");
    slow.rig.agree(engine);
}

#[test]
fn a_removal_overtakes_a_lookup() {
    let Some(slow) = Slow::new(Question::Stat) else {
        return;
    };
    let unlink = |engine: &Engine| user(engine).unlink("d/slow").unwrap();
    slow.overtaken("d/slow", unlink, |_, node| assert!(node.is_none()));
}

#[test]
fn a_move_away_overtakes_a_lookup() {
    let Some(slow) = Slow::new(Question::Stat) else {
        return;
    };
    let rename = |engine: &Engine| user(engine).rename("d/slow", "e/moved").unwrap();
    slow.overtaken("d/slow", rename, |engine, node| {
        assert!(node.is_none());
        assert_eq!(user(engine).read("e/moved").unwrap(), b"d/slow");
    });
}

#[test]
fn a_move_over_the_name_overtakes_a_lookup() {
    let Some(slow) = Slow::new(Question::Stat) else {
        return;
    };
    let rename = |engine: &Engine| user(engine).rename("e/f", "d/slow").unwrap();
    slow.overtaken("d/slow", rename, |engine, node| {
        assert_eq!(read(engine, node), b"e/f");
    });
}

#[test]
fn an_exchange_overtakes_a_lookup() {
    let Some(slow) = Slow::new(Question::Stat) else {
        return;
    };
    let exchange = |engine: &Engine| {
        let mode = vellum_union::engine::RenameMode::Exchange;
        user(engine).rename_as("e/f", "d/slow", mode).unwrap();
    };
    slow.overtaken("d/slow", exchange, |engine, node| {
        assert_eq!(read(engine, node), b"e/f");
        assert_eq!(user(engine).read("e/f").unwrap(), b"d/slow");
    });
}

#[test]
fn a_new_file_overtakes_a_lookup() {
    let Some(slow) = Slow::new(Question::Stat) else {
        return;
    };
    let make = |engine: &Engine| user(engine).file("e/slow", "made").unwrap();
    slow.overtaken("e/slow", make, |engine, node| {
        assert_eq!(read(engine, node), b"made");
    });
}

#[test]
fn a_new_link_overtakes_a_lookup() {
    let Some(slow) = Slow::new(Question::Stat) else {
        return;
    };
    let link = |engine: &Engine| user(engine).link("d/quick", "e/slow").unwrap();
    slow.overtaken("e/slow", link, |engine, node| {
        assert_eq!(read(engine, node), b"d/quick");
    });
}

/// The file found in the lower layer is copied up and forgotten in between.
#[test]
fn a_copy_up_overtakes_a_lookup() {
    let Some(slow) = Slow::new(Question::Stat) else {
        return;
    };
    let write = |engine: &Engine| user(engine).file("d/slow", "changed").unwrap();
    slow.overtaken("d/slow", write, |engine, node| {
        assert_eq!(read(engine, node), b"changed");
        user(engine).file("d/slow", "once more").unwrap();
        assert_eq!(read(engine, node), b"once more");
    });
}

/// As above, by another name of the file, in another directory.
#[test]
fn a_copy_up_by_another_name_overtakes_a_lookup() {
    let Some(slow) = Slow::new(Question::Stat) else {
        return;
    };
    let low = &slow.rig.lowers[0];
    fs::hard_link(low.join("d/slow"), low.join("e/alias")).unwrap();
    let write = |engine: &Engine| user(engine).file("e/alias", "changed").unwrap();
    slow.overtaken("d/slow", write, |engine, node| {
        assert_eq!(read(engine, node), b"changed");
        user(engine).file("d/slow", "once more").unwrap();
        assert_eq!(user(engine).read("e/alias").unwrap(), b"once more");
        let (one, other) = (user(engine).attr("d/slow"), user(engine).attr("e/alias"));
        assert_eq!(one.unwrap().ino, other.unwrap().ino);
    });
}

/// The directory has moved when the answer comes; the entry is still found, and changes go to the
/// new place.
#[test]
fn the_directory_may_move_during_a_lookup() {
    let Some(slow) = Slow::new(Question::Stat) else {
        return;
    };
    let rename = |engine: &Engine| user(engine).rename("d", "e/elsewhere").unwrap();
    slow.overtaken("d/slow", rename, |engine, node| {
        let node = node.unwrap();
        let found = user(engine).find("e/elsewhere/slow").unwrap();
        assert_eq!(found.node, node);
        engine.privileged().write(node, 0, b"D", false).unwrap();
        let read = user(engine).read("e/elsewhere/slow").unwrap();
        assert_eq!(read, b"D/slow");
    });
}

#[test]
fn a_removed_directory_has_nothing() {
    let Some(slow) = Slow::new(Question::Stat) else {
        return;
    };
    let remove = |engine: &Engine| {
        let who = user(engine);
        who.unlink("d/sub/x").unwrap();
        who.rmdir("d/sub").unwrap();
        who.unlink("d/quick").unwrap();
        who.unlink("d/slow").unwrap();
        who.rmdir("d").unwrap();
    };
    slow.overtaken("d/slow", remove, |_, node| assert!(node.is_none()));
}

/// A directory that is forgotten during the lookup gets no node.
#[test]
fn a_forgotten_directory_is_gone() {
    let Some(slow) = Slow::new(Question::Stat) else {
        return;
    };
    let engine = slow.open();
    let d = engine.lookup(NodeId::ROOT, "d".as_ref()).unwrap().unwrap();
    std::thread::scope(|scope| {
        let let_go = slow.stall.arm();
        let looking = scope.spawn(|| engine.lookup(d.node, "slow".as_ref()));
        slow.stall.wait();
        soon("a FORGET", || engine.forget(d.node, 1), &slow.stall);
        drop(let_go);
        let refused = looking.join().unwrap().unwrap_err();
        assert!(matches!(
            refused,
            vellum_union::Error::Refused {
                refusal: Refusal::Stale
            }
        ));
    });
    assert_eq!(engine.live_nodes(), 1);
    slow.rig.agree(engine);
}

/// The same in a union without an upper layer.
#[test]
fn a_union_without_an_upper_layer_stays_usable() {
    let scratch = vellum_testkit::Scratch::new();
    let low = scratch.dir("low");
    fs::create_dir(low.join("d")).unwrap();
    fs::write(low.join("d/slow"), "s").unwrap();
    fs::write(low.join("d/quick"), "q").unwrap();
    let stall = Stall::new("slow", Question::Stat);
    let layer: Arc<dyn Layer> =
        Arc::new(DirLayer::open(&low, Dialect::kernel(Prefix::User)).unwrap());
    let layers = vec![before(layer, &stall)];
    let engine = Engine::open(vellum_union::engine::EngineOptions::new(layers)).unwrap();
    std::thread::scope(|scope| {
        let let_go = stall.arm();
        let looking = scope.spawn(|| user(&engine).attr("d/slow").unwrap());
        stall.wait();
        let read = || user(&engine).read("d/quick").unwrap();
        assert_eq!(soon("an open beside it", read, &stall), b"q");
        drop(let_go);
        let ino = fs::metadata(low.join("d/slow")).unwrap().ino();
        assert_eq!(looking.join().unwrap().ino, ino);
    });
}

#[track_caller]
fn read(engine: &Engine, node: Option<NodeId>) -> Vec<u8> {
    engine_support::read_all(engine, node.unwrap()).unwrap()
}
