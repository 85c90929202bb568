//! A point in a store's life, and whether a database can have been there.
//!
//! Pure: where stamps are kept, and what follows from a contradiction, is `generation.rs`'s.

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
    /// Where a store begins: under an id that no other has.
    pub fn of_new_store() -> Self {
        Self {
            store: hex::encode(rand::random::<[u8; 16]>()),
            generation: 1,
        }
    }

    /// The point after the next transaction, if nothing comes in between.
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

/// Says why a database at `now` can't be the one that `witness` was written for, if it can't.
///
/// `ahead` is how far ahead of the database a witness of its kind may be: 1 for a record file, 0
/// for the mark.
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
    fn only_what_is_ahead_or_of_another_store_contradicts() {
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
