//! A set of blocks, as bits.

use super::{BlockRecord, malformed};
use crate::MarkError;

const WORD: u64 = 64;
/// Blocks in one [`BlockRecord::Bits`].
const RECORD_BLOCKS: u64 = 320;

/// A set of the blocks `0..len`. 128 KiB for a million.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockSet {
    words: Vec<u64>,
    len: u64,
}

impl BlockSet {
    /// Creates an empty set.
    pub fn new(len: u64) -> BlockSet {
        BlockSet {
            words: vec![0; len.div_ceil(WORD) as usize],
            len,
        }
    }

    /// Returns how many blocks there are, in the set or not.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Returns whether there are no blocks at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns whether `block` is in the set; false for blocks past the end.
    pub fn contains(&self, block: u64) -> bool {
        block < self.len && self.words[(block / WORD) as usize] >> (block % WORD) & 1 == 1
    }

    /// Returns whether all of `first..end` are in the set.
    pub fn contains_all(&self, first: u64, end: u64) -> bool {
        first >= end || (self.contains(first) && self.run_end(first, end) == end)
    }

    /// Returns the end of the run of blocks from `first` on that are all in the set, or all not in
    /// it; at most `end`.
    pub fn run_end(&self, first: u64, end: u64) -> u64 {
        let end = end.min(self.len);
        if first >= end {
            return end.max(first);
        }
        let inside = self.contains(first);
        let mut at = first;
        while at < end {
            let word = self.words[(at / WORD) as usize];
            // Bits that differ from the first block's.
            let other = if inside { !word } else { word } >> (at % WORD);
            match other {
                0 => at = (at / WORD + 1) * WORD,
                _ => return (at + u64::from(other.trailing_zeros())).min(end),
            }
        }
        end
    }

    /// Adds `count` blocks from `first` on; ignores blocks past the end.
    pub fn insert(&mut self, first: u64, count: u64) {
        let end = first.saturating_add(count).min(self.len);
        let mut at = first;
        while at < end {
            let within = at % WORD;
            let bits = (WORD - within).min(end - at);
            let mask = (u64::MAX >> (WORD - bits)) << within;
            self.words[(at / WORD) as usize] |= mask;
            at += bits;
        }
    }

    pub(super) fn insert_bits(&mut self, first: u64, bits: &[u8; 40]) -> Result<(), MarkError> {
        for bit in 0..RECORD_BLOCKS {
            if bits[(bit / 8) as usize] >> (bit % 8) & 1 == 1 {
                match first.checked_add(bit) {
                    Some(block) if block < self.len => self.insert(block, 1),
                    _ => return Err(malformed("a block past the lower file's end")),
                }
            }
        }
        Ok(())
    }

    /// Returns how many of the blocks before `end` are in the set.
    pub fn count_before(&self, end: u64) -> u64 {
        let end = end.min(self.len);
        let whole = (end / WORD) as usize;
        let mut count: u64 = self.words[..whole]
            .iter()
            .map(|word| u64::from(word.count_ones()))
            .sum();
        if !end.is_multiple_of(WORD) {
            let mask = u64::MAX >> (WORD - end % WORD);
            count += u64::from((self.words[whole] & mask).count_ones());
        }
        count
    }

    /// Returns records that describe the set: runs where they are long, else bits.
    pub(super) fn records(&self) -> Vec<BlockRecord> {
        let mut records = Vec::new();
        let mut at = 0;
        while at < self.len {
            if !self.contains(at) {
                at = self.run_end(at, self.len);
                continue;
            }
            let end = self.run_end(at, self.len);
            if end - at >= RECORD_BLOCKS || end == self.len {
                records.push(BlockRecord::Written {
                    first: at,
                    count: end - at,
                });
                at = end;
                continue;
            }
            let mut bits = [0; 40];
            for bit in (0..RECORD_BLOCKS).filter(|bit| self.contains(at + bit)) {
                bits[(bit / 8) as usize] |= 1 << (bit % 8);
            }
            records.push(BlockRecord::Bits { first: at, bits });
            at += RECORD_BLOCKS;
        }
        records
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_set_is_what_was_put_in() {
        let len = 1000;
        let mut state = 12345_u64;
        let mut below = |bound: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(99);
            (state >> 33) % bound
        };
        let (mut set, mut model) = (BlockSet::new(len), BTreeSet::new());
        for _ in 0..60 {
            let (first, count) = (below(len), below(40));
            set.insert(first, count);
            model.extend(first..(first + count).min(len));
            let end = below(len + 1);
            assert_eq!(set.count_before(end), model.range(..end).count() as u64);
            let at = below(len);
            let inside = model.contains(&at);
            let run = (at..len)
                .find(|block| model.contains(block) != inside)
                .unwrap_or(len);
            assert_eq!(set.run_end(at, len), run);
            assert_eq!(set.contains(at), inside);
        }
        let mut again = BlockSet::new(len);
        for record in set.records() {
            match record {
                BlockRecord::Written { first, count } => again.insert(first, count),
                BlockRecord::Bits { first, bits } => again.insert_bits(first, &bits).unwrap(),
                _ => unreachable!(),
            }
        }
        assert_eq!(again, set);
    }
}
