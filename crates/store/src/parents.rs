//! The parents of all snapshots together: cycles, missing parents, chains of absurd length.
//!
//! A damaged database may say that a snapshot is its own ancestor. Following parents one by one
//! would then never end. `rows::snapshots::ancestors` is the one place that follows them, and it
//! stops with the errors defined here; `check` and a rebuild look at all of them at once, in time
//! linear in their number. [`survey`] is pure and knows neither database nor files.

use std::{collections::HashMap, hash::Hash};

use crate::{
    error::{Result, StoreError},
    snapshot::SnapshotKey,
};

/// The maximum number of ancestors. Docker allows 125 layers and a kernel mount 500; only a damaged
/// record says more.
pub(crate) const MOST: usize = 4096;

/// One fault among the parents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault<K> {
    /// The parent of each is the next, and the parent of the last is the first.
    Cycle(Vec<K>),
    /// The parent of `child` is `parent`, which is missing.
    Missing { child: K, parent: K },
    /// The first of a chain that has more than [`MOST`] ancestors.
    Deep(K),
}

/// The result of a look at all parents.
pub(crate) struct Survey<K> {
    /// How many ancestors each one has, if that can be determined.
    pub depths: HashMap<K, usize>,
    /// What is wrong. Whatever has no depth descends from one of these.
    pub faults: Vec<Fault<K>>,
}

/// Looks at everything in `parents`, which maps each snapshot to its parent.
pub(crate) fn survey<K: Copy + Eq + Hash + Ord>(parents: &HashMap<K, Option<K>>) -> Survey<K> {
    enum Mark {
        /// On the path being followed, at this position.
        Here(usize),
        Sound(usize),
        Broken,
    }
    let mut marks: HashMap<K, Mark> = HashMap::with_capacity(parents.len());
    let mut faults = Vec::new();
    let mut all: Vec<K> = parents.keys().copied().collect();
    all.sort_unstable();
    let mut way: Vec<K> = Vec::new();
    for start in all {
        let mut at = start;
        // Down to a known snapshot, the base, or a fault; `below` is the depth of the last one on
        // the path.
        let mut below = loop {
            match marks.get(&at) {
                Some(Mark::Sound(depth)) => break Some(depth + 1),
                Some(Mark::Broken) => break None,
                Some(Mark::Here(from)) => {
                    faults.push(Fault::Cycle(way[*from..].to_vec()));
                    break None;
                }
                None => {}
            }
            marks.insert(at, Mark::Here(way.len()));
            way.push(at);
            match parents.get(&at) {
                Some(None) => break Some(0),
                Some(Some(parent)) if parents.contains_key(parent) => at = *parent,
                Some(Some(parent)) => {
                    let (child, parent) = (at, *parent);
                    faults.push(Fault::Missing { child, parent });
                    break None;
                }
                // Only keys of the map are followed.
                None => break None,
            }
        };
        for at in way.drain(..).rev() {
            if below == Some(MOST + 1) {
                faults.push(Fault::Deep(at));
                below = None;
            }
            marks.insert(at, below.map_or(Mark::Broken, Mark::Sound));
            below = below.map(|depth| depth + 1);
        }
    }
    let sound = |(key, mark)| match mark {
        Mark::Sound(depth) => Some((key, depth)),
        Mark::Here(_) | Mark::Broken => None,
    };
    Survey {
        depths: marks.into_iter().filter_map(sound).collect(),
        faults,
    }
}

impl<K> Fault<K> {
    /// Describes the fault, with each snapshot named by `name`.
    pub fn words(&self, name: impl Fn(&K) -> String) -> String {
        match self {
            Self::Cycle(cycle) => {
                const SHOWN: usize = 4;
                let mut words: Vec<String> = cycle.iter().take(SHOWN).map(&name).collect();
                if cycle.len() > SHOWN {
                    words.push(format!("{} others", cycle.len() - SHOWN));
                }
                words.extend(cycle.first().map(&name));
                format!("the parents form a cycle: {}", words.join(" -> "))
            }
            Self::Missing { child, parent } => {
                format!(
                    "the parent of {} is {}, which is missing",
                    name(child),
                    name(parent)
                )
            }
            Self::Deep(first) => format!("{} has more than {MOST} ancestors", name(first)),
        }
    }

    /// One of the snapshots it is about.
    pub fn subject(&self) -> Option<&K> {
        match self {
            Self::Cycle(cycle) => cycle.first(),
            Self::Missing { child, .. } => Some(child),
            Self::Deep(first) => Some(first),
        }
    }
}

/// The parents of all snapshots of a database.
pub(crate) struct Parents {
    keys: HashMap<i64, SnapshotKey>,
    pub survey: Survey<i64>,
}

impl Parents {
    /// Surveys them: row number, the parent's, key.
    pub fn new(rows: Vec<(i64, Option<i64>, SnapshotKey)>) -> Self {
        let parents = rows.iter().map(|(id, parent, _)| (*id, *parent));
        Self {
            survey: survey(&parents.collect()),
            keys: rows.into_iter().map(|(id, _, key)| (id, key)).collect(),
        }
    }

    /// True for a snapshot whose parents could not be determined when they were read.
    pub fn is_broken(&self, id: i64) -> bool {
        self.keys.contains_key(&id) && !self.survey.depths.contains_key(&id)
    }

    /// What is wrong, as errors: each names a snapshot and says why.
    pub fn errors(&self) -> impl Iterator<Item = StoreError> {
        self.survey.faults.iter().map(|fault| self.error(fault))
    }

    fn error(&self, fault: &Fault<i64>) -> StoreError {
        let name = |id: &i64| match self.keys.get(id) {
            Some(key) => key.to_string(),
            None => format!("row {id}"),
        };
        let key = fault.subject().and_then(|id| self.keys.get(id)).cloned();
        StoreError::BrokenParents {
            key: key.unwrap_or_else(|| SnapshotKey::from("?")),
            why: fault.words(name),
        }
    }

    /// Nothing may be judged unneeded while the descendants of anything are unknown. Errors:
    /// `BrokenParents`.
    pub fn all_sound(&self) -> Result<()> {
        self.errors().next().map_or(Ok(()), Err)
    }

    /// Returns why the ancestors of row `id` can't be determined, a fault that
    /// `rows::snapshots::ancestors` has just met.
    pub fn fault_of(&self, id: i64) -> StoreError {
        let key = self.keys.get(&id).cloned();
        StoreError::BrokenParents {
            key: key.unwrap_or_else(|| SnapshotKey::from("?")),
            why: match self.errors().next() {
                Some(StoreError::BrokenParents { why, .. }) => why,
                _ => format!("it has more than {MOST} ancestors"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(u32, Option<u32>)]) -> Survey<u32> {
        survey(&pairs.iter().copied().collect())
    }

    #[test]
    fn depths_are_counted_from_the_base() {
        let found = of(&[
            (1, None),
            (2, Some(1)),
            (3, Some(2)),
            (4, Some(2)),
            (9, None),
        ]);
        assert!(found.faults.is_empty());
        let expect = HashMap::from([(1, 0), (2, 1), (3, 2), (4, 2), (9, 0)]);
        assert_eq!(found.depths, expect);
    }

    #[test]
    fn every_cycle_is_named_once_and_its_descendants_have_no_depth() {
        for length in [1, 2, 3, 1000, 100_000u32] {
            let mut pairs: Vec<_> = (0..length)
                .map(|at| (at, Some((at + 1) % length)))
                .collect();
            // A tail on the cycle, a sound chain next to it, and a second cycle.
            pairs.extend([(200_000, Some(0)), (200_001, Some(200_000))]);
            pairs.extend([(300_000, None), (300_001, Some(300_000))]);
            pairs.extend([(400_000, Some(400_001)), (400_001, Some(400_000))]);
            let found = of(&pairs);
            assert_eq!(found.faults.len(), 2, "{length}");
            let Fault::Cycle(cycle) = &found.faults[0] else {
                panic!("{:?}", found.faults[0]);
            };
            assert_eq!(cycle.len(), length as usize);
            assert_eq!(found.depths, HashMap::from([(300_000, 0), (300_001, 1)]));
        }
    }

    #[test]
    fn a_missing_parent_is_named_with_its_child() {
        let found = of(&[(1, None), (2, Some(7)), (3, Some(2))]);
        let missing = Fault::Missing {
            child: 2,
            parent: 7,
        };
        assert_eq!(found.faults, [missing]);
        assert_eq!(found.depths, HashMap::from([(1, 0)]));
    }

    #[test]
    fn a_chain_may_have_the_maximum_length_and_no_more() {
        let chain =
            |length: u32| -> Vec<_> { (0..length).map(|at| (at, at.checked_sub(1))).collect() };
        let most = u32::try_from(MOST).unwrap();
        assert!(of(&chain(most + 1)).faults.is_empty());
        for longer in [most + 2, most + 3, 200_000] {
            let found = of(&chain(longer));
            assert_eq!(found.faults, [Fault::Deep(most + 1)], "{longer}");
            assert_eq!(found.depths.len(), MOST + 1);
        }
    }

    #[test]
    fn the_text_about_a_cycle_has_bounded_length() {
        let name = |id: &u32| format!("s{id}");
        let words = |fault: &Fault<u32>| fault.words(name);
        assert_eq!(
            words(&Fault::Cycle(vec![5])),
            "the parents form a cycle: s5 -> s5"
        );
        assert_eq!(
            words(&Fault::Cycle((0..100).collect())),
            "the parents form a cycle: s0 -> s1 -> s2 -> s3 -> 96 others -> s0"
        );
    }
}
