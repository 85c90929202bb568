//! Runs of user or group ids that have other numbers on the other side: inside a namespace or
//! union, and outside or on disk.
//!
//! A run is three numbers. Every program that maps ids writes them in some order: the kernel in
//! `/proc/PID/uid_map`, containerd in labels, fuse-overlayfs in options. An id without a
//! counterpart maps to `None`; the caller decides what that means. Of several runs, the first that
//! has the id maps it.

use std::fmt;

/// A run of ids: `inside + i` is `outside + i` on the other side, for `i` below `count`.
///
/// `Display` is a line of the kernel's maps without its end: inside, outside, count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRun {
    /// The first id inside the namespace, the container or the union.
    pub inside: u32,
    /// The first id outside: on the host, on disk.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

impl IdRun {
    /// Returns the run, or `None` if it would end past the last id. The largest number means "no
    /// id" and is never part of a run.
    pub fn new(inside: u32, outside: u32, count: u32) -> Option<Self> {
        inside.checked_add(count)?;
        outside.checked_add(count)?;
        Some(Self {
            inside,
            outside,
            count,
        })
    }

    /// Returns the outside id of the inside `id`.
    pub fn outside_of(&self, id: u32) -> Option<u32> {
        shifted(id, self.inside, self.outside, self.count)
    }

    /// Returns the inside id of the outside `id`.
    pub fn inside_of(&self, id: u32) -> Option<u32> {
        shifted(id, self.outside, self.inside, self.count)
    }
}

fn shifted(id: u32, from: u32, to: u32, count: u32) -> Option<u32> {
    let at = id.checked_sub(from).filter(|&at| at < count)?;
    to.checked_add(at)
}

impl fmt::Display for IdRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.inside, self.outside, self.count)
    }
}

/// Returns the outside id of the inside `id`, by the first run that has it.
pub fn outside_of(runs: &[IdRun], id: u32) -> Option<u32> {
    runs.iter().find_map(|run| run.outside_of(id))
}

/// Returns the inside id of the outside `id`, by the first run that has it.
pub fn inside_of(runs: &[IdRun], id: u32) -> Option<u32> {
    runs.iter().find_map(|run| run.inside_of(id))
}

/// Returns whether the inside ids and the outside ids have no number in common.
pub fn are_apart(runs: &[IdRun]) -> bool {
    let end = |first: u32, count: u32| u64::from(first) + u64::from(count);
    runs.iter().all(|a| {
        runs.iter().all(|b| {
            end(a.inside, a.count) <= u64::from(b.outside)
                || end(b.outside, b.count) <= u64::from(a.inside)
        })
    })
}

/// Reads a map as the kernel prints it: a line for each run (user_namespaces(7)). Skips lines that
/// are something else.
pub fn parse_kernel(text: &str) -> Vec<IdRun> {
    let run = |line: &str| three(line.split_whitespace());
    text.lines().filter_map(run).collect()
}

/// Reads `INSIDE:OUTSIDE:COUNT`, several separated by commas, as in containerd's labels and the
/// options of an id-mapped mount.
///
/// `None` if it is something else, or a run would end past the last id.
pub fn parse_list(text: &str) -> Option<Vec<IdRun>> {
    let run = |run: &str| {
        let run = three(run.split(':'))?;
        IdRun::new(run.inside, run.outside, run.count)
    };
    text.split(',').map(run).collect()
}

fn three<'a>(mut numbers: impl Iterator<Item = &'a str>) -> Option<IdRun> {
    let mut next = || numbers.next()?.parse().ok();
    let run = IdRun {
        inside: next()?,
        outside: next()?,
        count: next()?,
    };
    numbers.next().is_none().then_some(run)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(inside: u32, outside: u32, count: u32) -> IdRun {
        IdRun {
            inside,
            outside,
            count,
        }
    }

    #[test]
    fn the_first_run_that_has_an_id_maps_it() {
        let runs = [run(0, 1000, 1), run(1, 100_000, 65_535), run(1, 7, 1)];
        for (inside, outside) in [(0, 1000), (1, 100_000), (65_535, 165_534)] {
            assert_eq!(outside_of(&runs, inside), Some(outside));
            assert_eq!(inside_of(&runs, outside), Some(inside));
        }
        assert_eq!(
            (outside_of(&runs, 65_536), inside_of(&runs, 0)),
            (None, None)
        );
    }

    #[test]
    fn a_run_beyond_the_last_id_has_no_counterpart_there() {
        let far = run(5, u32::MAX - 1, 10);
        assert_eq!(
            [5, 6, 7].map(|id| far.outside_of(id)),
            [Some(u32::MAX - 1), Some(u32::MAX), None]
        );
        assert_eq!(IdRun::new(5, u32::MAX - 1, 10), None);
        assert_eq!(IdRun::new(0, 0, u32::MAX), Some(run(0, 0, u32::MAX)));
    }

    #[test]
    fn maps_of_the_kernel_are_read_as_they_are_printed() {
        let text = "         0       1000          1\n         1     100000      65536\nodd\n1 2\n";
        let runs = parse_kernel(text);
        assert_eq!(runs, [run(0, 1000, 1), run(1, 100_000, 65_536)]);
        assert_eq!(runs[1].to_string(), "1 100000 65536");
    }

    #[test]
    fn lists_are_read_whole_or_not_at_all() {
        let two = parse_list("0:1000:1,1:100000:65535");
        assert_eq!(two, Some(vec![run(0, 1000, 1), run(1, 100_000, 65_535)]));
        for text in [
            "",
            "0",
            "0:1",
            "0:1:2:3",
            "a:1:1",
            "0:1:1,",
            "0:4294967295:2",
        ] {
            assert_eq!(parse_list(text), None, "{text}");
        }
    }

    #[test]
    fn sides_that_meet_are_not_apart() {
        assert!(are_apart(&[run(0, 100_000, 65_536)]));
        assert!(!are_apart(&[run(0, 1000, 1001)]));
        assert!(!are_apart(&[run(0, 100_000, 10), run(100_005, 5000, 1)]));
    }
}
