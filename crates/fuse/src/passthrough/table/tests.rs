//! Every case of the plan, and the table under a model of the kernel's rules.

use vellum_testkit::rng::Rng;

use super::*;

const LOWER: Backing = Backing {
    id: 1,
    side: Side::Lower,
};
const UPPER: Backing = Backing {
    id: 2,
    side: Side::Upper,
};
const OPEN: [Option<How>; 4] = [
    None,
    Some(How::Cached),
    Some(How::Through(LOWER)),
    Some(How::Through(UPPER)),
];
const BYTES: [Bytes; 3] = [Bytes::Lower, Bytes::Upper, Bytes::Requests];

fn every_case() -> impl Iterator<Item = (Option<How>, Bytes, Asked)> {
    let asked = [(false, false), (false, true), (true, false), (true, true)]
        .map(|(write, worth_it)| Asked { write, worth_it });
    OPEN.into_iter().flat_map(move |open| {
        BYTES
            .into_iter()
            .flat_map(move |bytes| asked.map(|asked| (open, bytes, asked)))
    })
}

#[test]
fn a_second_number_has_one_reason() {
    for (open, bytes, asked) in every_case() {
        let moved = open == Some(How::Through(LOWER)) && bytes != Bytes::Lower;
        let plan = plan(open, bytes, asked);
        assert_eq!(
            matches!(plan, Plan::Renumber(_)),
            moved,
            "{open:?} {bytes:?} {asked:?}: {plan:?}"
        );
    }
}

#[test]
fn a_lower_file_is_never_given_for_writing() {
    for (open, bytes, asked) in every_case().filter(|(_, _, asked)| asked.write) {
        let plan = plan(open, bytes, asked);
        let given = match plan {
            Plan::Register(side) => Some(side),
            Plan::Share(backing) | Plan::ByRequests(backing) => Some(backing.side),
            Plan::Cached | Plan::CopyUpFirst | Plan::Renumber(_) => None,
        };
        assert_ne!(
            given,
            Some(Side::Lower),
            "{open:?} {bytes:?} {asked:?}: {plan:?}"
        );
    }
}

#[test]
fn what_an_open_wants_does_not_change_how_a_file_is_open() {
    for (open, bytes, asked) in every_case() {
        let plan = plan(open, bytes, asked);
        match open {
            Some(How::Cached) => assert_eq!(plan, Plan::Cached),
            Some(How::Through(own)) => assert!(
                matches!(plan, Plan::Share(given) | Plan::ByRequests(given) if given == own)
                    || matches!(plan, Plan::CopyUpFirst | Plan::Renumber(_)),
                "{bytes:?} {asked:?}: {plan:?}"
            ),
            None => assert!(matches!(plan, Plan::Cached | Plan::Register(_))),
        }
    }
}

/// The kernel's side of one inode: its opens through the page cache, and its backing file with
/// those through it.
#[derive(Debug, Default)]
struct Inode {
    cached: u32,
    through: u32,
    backing: Option<i32>,
}

impl Inode {
    fn open(&mut self, how: How) {
        match how {
            How::Cached => {
                assert_eq!(self.backing, None, "EIO: it is open with a backing file");
                self.cached += 1;
            }
            How::Through(given) => {
                assert_eq!(self.cached, 0, "EIO: it is open through the page cache");
                let own = *self.backing.get_or_insert(given.id);
                assert_eq!(own, given.id, "EIO: another backing file");
                self.through += 1;
            }
        }
    }

    fn close(&mut self, how: How) {
        match how {
            How::Cached => self.cached -= 1,
            How::Through(_) => {
                self.through -= 1;
                if self.through == 0 {
                    self.backing = None;
                }
            }
        }
    }
}

/// A run of random opens, closes and changes of one file. RELEASE arrives some time after the
/// kernel's own close.
fn run(random: &mut Rng) {
    let mut next = |bound: usize| random.below(bound);
    let node = NodeId(7);
    let (mut table, mut kernel) = (Table::default(), HashMap::<u64, Inode>::new());
    let (mut opened, mut releases) = (Vec::new(), Vec::new());
    let mut bytes = BYTES[next(3)];
    let (mut ids, mut renumbered) = (0, 0);
    for _ in 0..200 {
        match next(10) {
            0..=4 => {
                let asked = Asked {
                    write: next(2) == 0,
                    worth_it: next(2) == 0,
                };
                let wire = table.wire(node);
                let how = match plan(table.how(wire), bytes, asked) {
                    Plan::Cached => How::Cached,
                    Plan::Register(side) => {
                        ids += 1;
                        How::Through(Backing { id: ids, side })
                    }
                    Plan::Share(backing) | Plan::ByRequests(backing) => How::Through(backing),
                    Plan::CopyUpFirst => {
                        bytes = [Bytes::Upper, Bytes::Requests][next(2)];
                        continue;
                    }
                    Plan::Renumber(moved) => {
                        table.renumber(node, moved);
                        renumbered += 1;
                        assert_ne!(table.wire(node), wire);
                        continue;
                    }
                };
                table.add(wire, how, asked.write);
                kernel.entry(wire).or_default().open(how);
                opened.push((wire, how));
            }
            5..=7 if !opened.is_empty() => {
                let (wire, how) = opened.swap_remove(next(opened.len()));
                kernel.entry(wire).or_default().close(how);
                releases.push(wire);
            }
            8 if !releases.is_empty() => {
                let wire = releases.swap_remove(next(releases.len()));
                table.release(wire);
            }
            // A write or a truncation through an existing open, or by name.
            9 if bytes == Bytes::Lower && next(4) == 0 => bytes = Bytes::Upper,
            // A file copied up block by block became whole.
            9 if bytes == Bytes::Requests => bytes = Bytes::Upper,
            // It is append-only from now on.
            9 if bytes == Bytes::Upper && next(4) == 0 => bytes = Bytes::Requests,
            _ => {}
        }
    }
    assert!(renumbered <= 1, "bytes move up once");
    for (wire, how) in opened.drain(..) {
        kernel.entry(wire).or_default().close(how);
        releases.push(wire);
    }
    for wire in releases {
        table.release(wire);
    }
    table.forget(node);
    assert_eq!(table.len(), 0, "nothing is kept of a forgotten node");
}

#[test]
fn the_kernel_never_refuses_what_the_table_answers() {
    let mut random = Rng::for_test("the_kernel_never_refuses_what_the_table_answers");
    for _ in 0..2000 {
        run(&mut random);
    }
}

#[test]
fn a_thread_is_sent_back_only_once() {
    let mut table = Table::default();
    let node = NodeId(3);
    assert!(table.send_back(node, 10));
    assert!(table.send_back(node, 11));
    // Another thread that looks the name up has no effect on the first.
    table.came_back(node, 11);
    assert!(!table.send_back(node, 10));
    assert!(table.send_back(node, 10));
    table.forget(node);
    assert_eq!(table.len(), 0);
}
