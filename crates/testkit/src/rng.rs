//! Random choices that can be repeated.
//!
//! A small generator of our own (SplitMix64), so that a seed printed today still means the same
//! after an update of any dependency.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::time::{SystemTime, UNIX_EPOCH};

/// A seeded generator.
#[derive(Debug, Clone)]
pub struct Rng {
    state: u64,
    seed: u64,
}

impl Rng {
    /// Returns a generator for one test: seeded by `VELLUM_SEED` if that is set, otherwise by the
    /// clock.
    ///
    /// Prints the seed; the test harness shows it when the test fails.
    pub fn for_test(name: &str) -> Rng {
        let seed = match std::env::var("VELLUM_SEED") {
            Ok(text) => text.parse().expect("VELLUM_SEED is a number"),
            Err(_) => {
                let now = SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .expect("the clock is past 1970");
                now.as_nanos() as u64 ^ u64::from(std::process::id()) << 40
            }
        };
        eprintln!("{name}: VELLUM_SEED={seed}");
        Rng::seeded(seed)
    }

    /// Returns a generator with a fixed seed.
    pub fn seeded(seed: u64) -> Rng {
        Rng { state: seed, seed }
    }

    /// Returns the seed it began with.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Returns the next 64 bits.
    #[expect(
        clippy::should_implement_trait,
        reason = "random choices are not an iterator"
    )]
    pub fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number below `bound`, which must not be 0.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// Returns true in `percent` of all cases.
    pub fn chance(&mut self, percent: u32) -> bool {
        self.next() % 100 < u64::from(percent)
    }

    /// Returns one of `choices`, which must not be empty.
    pub fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len())]
    }

    /// Returns up to `max` random bytes.
    pub fn bytes(&mut self, max: usize) -> Vec<u8> {
        let length = self.below(max + 1);
        (0..length).map(|_| self.next() as u8).collect()
    }

    /// Returns a file name of 1 to 12 bytes that may not be UTF-8, never `.`, `..`, and never a
    /// `.wh.` name.
    pub fn name(&mut self) -> OsString {
        let length = 1 + self.below(12);
        let mut name: Vec<u8> = (0..length)
            .map(|_| match self.next() as u8 {
                0 | b'/' | b'.' => b'_',
                byte => byte,
            })
            .collect();
        if self.chance(70) {
            name.iter_mut().for_each(|byte| *byte = b'a' + *byte % 26);
        }
        OsString::from_vec(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats() {
        let (mut a, mut b) = (Rng::seeded(7), Rng::seeded(7));
        assert_eq!(
            (a.next(), a.name(), a.bytes(9)),
            (b.next(), b.name(), b.bytes(9))
        );
        assert_eq!(
            Rng::seeded(0).next(),
            0xe220_a839_7b1d_cdaf,
            "SplitMix64's published first value"
        );
    }
}
