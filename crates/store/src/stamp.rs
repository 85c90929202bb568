//! A point in a store's life, and whether a database can have been there.
//!
//! Pure: `generation.rs` stores stamps and acts on contradictions.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A point in a store's life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    /// The store's id: 32 hexadecimal digits.
    pub store: String,
    /// How many transactions had changed it.
    pub generation: u64,
}

impl Stamp {
    /// The start of a new store, under a unique id.
    pub fn of_new_store() -> Self {
        Self {
            store: hex::encode(rand::random::<[u8; 16]>()),
            generation: 1,
        }
    }

    /// The point after the next transaction, if no other comes in between.
    pub fn next(mut self) -> Self {
        self.generation += 1;
        self
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:016x}", self.store, self.generation)
    }
}

/// Says why a database at `now` can't be the one that `witness` was written for, if it can't be.
///
/// `ahead` is how far ahead of the database such a witness may be: 1 for a record file, 0 for the
/// mark.
pub(crate) fn contradiction(now: &Stamp, witness: &Stamp, ahead: u64) -> Option<String> {
    if witness.store != now.store {
        return Some(format!(
            "it belongs to store {}, the database to store {}",
            witness.store, now.store
        ));
    }
    (witness.generation > now.generation.saturating_add(ahead)).then(|| {
        format!(
            "it was written for generation {}, and the database is at {}",
            witness.generation, now.generation
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(store: &str, generation: u64) -> Stamp {
        Stamp {
            store: store.repeat(32),
            generation,
        }
    }

    #[test]
    fn only_stamps_ahead_or_of_another_store_contradict() {
        #[track_caller]
        fn check(now: u64, witness: Stamp, ahead: u64, expect: bool) {
            let found = contradiction(&at("a", now), &witness, ahead);
            assert_eq!(found.is_some(), expect, "{found:?}");
        }
        check(5, at("a", 5), 0, false);
        check(5, at("a", 1), 0, false);
        check(5, at("a", 6), 0, true);
        check(5, at("a", 6), 1, false);
        check(5, at("a", 7), 1, true);
        check(5, at("b", 5), 1, true);
        check(u64::MAX, at("a", u64::MAX), 1, false);
    }
}
