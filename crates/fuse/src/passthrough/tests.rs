//! Opens while another open waits for a slow lower layer. There is no device here: a file that
//! can't be registered is served by requests, and that is decided in the same place.

use std::fs;

use stalling::{Question, Stall, before, soon};
use vellum_format::Prefix;
use vellum_testkit::Scratch;
use vellum_union::engine::EngineOptions;
use vellum_union::{Dialect, DirLayer, Layer};

use super::*;
use crate::counters::Counters;

#[path = "../../../union/tests/stalling/mod.rs"]
mod stalling;

const FILE_BYTES: usize = 2 * SMALLEST_BYTES as usize;
const PID: u32 = 1;

#[test]
fn a_slow_open_delays_no_other_file() {
    let scratch = Scratch::new();
    let low = scratch.dir("low");
    for name in ["slow", "quick"] {
        fs::write(low.join(name), vec![1; FILE_BYTES]).unwrap();
    }
    let stall = Stall::new("slow", Question::Open);
    let layer = DirLayer::open(&low, Dialect::kernel(Prefix::User)).unwrap();
    let layer: Arc<dyn Layer> = Arc::new(layer);
    let engine = Engine::open(EngineOptions::new(vec![before(layer, &stall)])).unwrap();
    let find = |name: &str| {
        let entry = engine.lookup(NodeId::ROOT, name.as_ref()).unwrap();
        entry.unwrap().node.0
    };
    let (slow, quick) = (find("slow"), find("quick"));
    let nowhere = File::create(scratch.path().join("no-device")).unwrap();
    let device = Arc::new(Channel::new(nowhere.into()));
    let notifier = Notifier::new(Arc::clone(&device), Arc::new(Counters::default()));
    let passthrough = Passthrough::new(device, notifier);
    let open = |wire| match passthrough.open(&engine, wire, PID, false) {
        Ok(Open::Answered(opened)) => opened,
        other => panic!("{other:?}"),
    };
    std::thread::scope(|scope| {
        let let_go = stall.arm();
        let first = scope.spawn(|| open(slow));
        stall.wait();
        let opened = soon("an open of another file", || open(quick), &stall);
        let again = soon("and once more", || open(quick), &stall);
        assert_eq!(opened, again);
        let asked = || {
            passthrough.looked_up(NodeId(slow), PID);
            passthrough.release(quick, COUNTED);
            assert!(passthrough.may_keep_attributes(NodeId(quick)));
            passthrough.wire(NodeId(slow))
        };
        assert_eq!(soon("what others ask of the table", asked, &stall), slow);
        // The same file: one open decides, and the other follows it.
        let second = scope.spawn(|| open(slow));
        drop(let_go);
        assert_eq!(first.join().unwrap(), second.join().unwrap());
    });
    passthrough.release(slow, COUNTED);
    passthrough.release(slow, COUNTED);
    passthrough.release(quick, COUNTED);
    assert_eq!(passthrough.lock().how(slow), None);
    assert_eq!(passthrough.lock().how(quick), None);
}
