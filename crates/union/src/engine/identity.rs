//! Inode numbers: one for each file, over all layers, for good.
//!
//! A number is that of the inode a file was first seen by, with the number of its file system in the high bits: none for
//! the upper layer's file system, so that a union on one file system shows its numbers unchanged.

use crate::Result;
use crate::engine::Engine;
use crate::marks::{DirAt, FileAt};
use crate::resolve::Part;

/// How inode numbers of the layers become those of the union.
#[derive(Debug)]
pub(crate) struct Numbers {
    /// The file systems of the layers by their `st_dev`; the first is the upper layer's, or that of the top one.
    devs: Vec<u64>,
    /// How many high bits tell the file system.
    bits: u32,
    /// Cut to 32 bits.
    short: bool,
}

impl Numbers {
    /// Takes the device of each layer, the top one first. Equal ones may be repeated.
    pub fn new(layers: impl IntoIterator<Item = u64>, short: bool) -> Numbers {
        let mut devs = Vec::new();
        for dev in layers {
            if !devs.contains(&dev) {
                devs.push(dev);
            }
        }
        // One value more than there are file systems: for numbers that don't fit, and file systems mounted within a layer.
        let bits = usize::BITS - devs.len().leading_zeros();
        Numbers { devs, bits, short }
    }

    /// Returns the number to show for an inode of a layer.
    pub fn show(&self, (dev, ino): (u64, u64)) -> u64 {
        let low = u64::MAX >> self.bits;
        let fs = self.devs.iter().position(|&known| known == dev);
        let long = match fs {
            // On one file system alone nothing can collide.
            Some(0) if self.devs.len() == 1 => ino,
            Some(fs) if ino <= low => (fs as u64).rotate_right(self.bits) | ino,
            _ => {
                let spare = (self.devs.len() as u64).rotate_right(self.bits);
                spare | (mix(mix(dev) ^ ino) & low)
            }
        };
        match self.short {
            false => long,
            true => match long >> 32 {
                0 => long,
                // 0 is no inode number.
                _ => (mix(long) & 0xffff_ffff).max(2),
            },
        }
    }
}

impl Engine {
    /// Returns the inode number of a directory made of these shares: that of the topmost lower layer's, if there is one.
    pub(crate) fn number_of_dir(&self, parts: &[Part<DirAt>]) -> u64 {
        let lowest = match (&self.upper, parts) {
            (Some(_), [top, lower, ..]) if top.layer == 0 => lower,
            _ => &parts[0],
        };
        self.numbers.show(lowest.dir.stat.identity())
    }

    /// Returns the inode number of a file, and the lower inode it was copied from if that may have other names.
    pub(crate) fn number_of_file(
        &self,
        _is_upper: bool,
        file: &FileAt,
    ) -> Result<(u64, Option<(u64, u64)>)> {
        Ok((self.numbers.show(file.stat.identity()), None))
    }
}

/// Spreads a number over all its bits (the finalizer of SplitMix64). Changing it changes the numbers shown of files that
/// don't fit otherwise.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_file_system_keeps_its_numbers() {
        let numbers = Numbers::new([7, 7, 7], false);
        for ino in [1, 2, u64::MAX >> 1, u64::MAX] {
            assert_eq!(numbers.show((7, ino)), ino);
        }
    }

    #[test]
    fn several_never_meet() {
        let numbers = Numbers::new([7, 8, 7, 9], false);
        assert_eq!(numbers.show((7, 5)), 5);
        let mut shown: Vec<_> = [7, 8, 9, 10]
            .iter()
            .flat_map(|&dev| [1, 5, 1 << 61, u64::MAX].map(|ino| numbers.show((dev, ino))))
            .collect();
        let all = shown.len();
        shown.sort_unstable();
        shown.dedup();
        assert_eq!(shown.len(), all);
    }

    #[test]
    fn short_numbers_fit() {
        let numbers = Numbers::new([7, 8], true);
        assert_eq!(numbers.show((7, 5)), 5);
        assert!(numbers.show((8, 5)) < 1 << 32);
        assert_ne!(numbers.show((8, 5)), 5);
    }
}
