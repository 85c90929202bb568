//! One record of a block map: 64 bytes with its own checksum.

/// Bytes of a record. Records never cross a page, so a killed process leaves a whole record or
/// none.
pub const RECORD_BYTES: usize = 64;

/// The time during which unsynced writes to a file system can't be lost: one boot of the machine
/// and one mount of the file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Epoch {
    /// The kernel's boot id.
    pub boot: [u8; 16],
    /// The mount's unique id; 0 where the kernel has none.
    pub mount: u64,
}

/// Attributes of the upper file that copying data into it would change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptAttributes {
    /// Its last change: seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Its twelve mode bits.
    pub mode: u16,
    /// Its `security.capability`, at most 32 bytes; empty if it has none.
    pub capability: Vec<u8>,
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlockRecord {
    /// What follows was written in this epoch.
    Opened(Epoch),
    /// These blocks are in the upper file.
    Written {
        /// The first.
        first: u64,
        /// How many.
        count: u64,
    },
    /// The blocks whose bits are set are in the upper file; bit 0 of byte 0 is the first.
    Bits {
        /// The first block.
        first: u64,
        /// 320 blocks.
        bits: [u8; 40],
    },
    /// Nothing of the lower file shows from this byte on.
    Limit {
        /// The offset.
        bytes: u64,
    },
    /// Everything before is on disk, with its data.
    Barrier {
        /// This is the second copy of the barrier just before it.
        second: bool,
    },
    /// Settling has begun; these are restored at its end.
    Kept(KeptAttributes),
}

/// The longest capability xattr (version 3 has 24 bytes).
const CAPABILITY_MAX_BYTES: usize = 32;

impl BlockRecord {
    /// Returns the bytes of this record as the `number`-th (0 first) of the map `id`.
    ///
    /// A capability over 32 bytes, which no kernel has, is cut: the caller checks.
    pub fn encode(&self, id: &[u8; 16], number: u64) -> [u8; RECORD_BYTES] {
        let mut out = [0; RECORD_BYTES];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        match self {
            BlockRecord::Opened(Epoch { boot, mount }) => {
                put(0, &[1]);
                put(8, boot);
                put(24, &mount.to_le_bytes());
            }
            BlockRecord::Written { first, count } => {
                put(0, &[2]);
                put(8, &first.to_le_bytes());
                put(16, &count.to_le_bytes());
            }
            BlockRecord::Bits { first, bits } => {
                put(0, &[3]);
                put(8, &first.to_le_bytes());
                put(16, bits);
            }
            BlockRecord::Limit { bytes } => {
                put(0, &[4]);
                put(8, &bytes.to_le_bytes());
            }
            BlockRecord::Barrier { second } => put(0, &[5, (*second).into()]),
            BlockRecord::Kept(kept) => {
                let capability =
                    &kept.capability[..kept.capability.len().min(CAPABILITY_MAX_BYTES)];
                put(0, &[6, capability.len() as u8]);
                put(2, &kept.mode.to_le_bytes());
                put(8, &kept.mtime.0.to_le_bytes());
                put(16, &kept.mtime.1.to_le_bytes());
                put(20, capability);
            }
        }
        let sum = sum(&out, id, number);
        out[60..].copy_from_slice(&sum);
        out
    }

    /// Recognises the `number`-th record of the map `id`; `None` if these are not its bytes.
    pub fn parse(bytes: &[u8], id: &[u8; 16], number: u64) -> Option<BlockRecord> {
        let bytes: &[u8; RECORD_BYTES] = bytes.try_into().ok()?;
        if bytes[60..] != sum(bytes, id, number) {
            return None;
        }
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(word)
        };
        match bytes[0] {
            1 => {
                let mut boot = [0; 16];
                boot.copy_from_slice(&bytes[8..24]);
                Some(BlockRecord::Opened(Epoch {
                    boot,
                    mount: word(24),
                }))
            }
            2 => Some(BlockRecord::Written {
                first: word(8),
                count: word(16),
            }),
            3 => {
                let mut bits = [0; 40];
                bits.copy_from_slice(&bytes[16..56]);
                Some(BlockRecord::Bits {
                    first: word(8),
                    bits,
                })
            }
            4 => Some(BlockRecord::Limit { bytes: word(8) }),
            5 => Some(BlockRecord::Barrier {
                second: bytes[1] == 1,
            }),
            6 => Some(BlockRecord::Kept(KeptAttributes {
                mtime: (
                    word(8) as i64,
                    u32::from_le_bytes([bytes[16], bytes[17], bytes[18], bytes[19]]),
                ),
                mode: u16::from_le_bytes([bytes[2], bytes[3]]),
                capability: bytes[20..20 + CAPABILITY_MAX_BYTES]
                    .get(..usize::from(bytes[1]))?
                    .to_vec(),
            })),
            _ => None,
        }
    }
}

fn sum(bytes: &[u8; RECORD_BYTES], id: &[u8; 16], number: u64) -> [u8; 4] {
    crc32c(&[id, &number.to_le_bytes(), &bytes[..60]]).to_le_bytes()
}

/// Returns the CRC-32C (Castagnoli) of the parts, joined.
pub(super) fn crc32c(parts: &[&[u8]]) -> u32 {
    let mut crc = u32::MAX;
    for &byte in parts.iter().copied().flatten() {
        crc = crc >> 8 ^ TABLE[((crc ^ u32::from(byte)) & 0xff) as usize];
    }
    !crc
}

static TABLE: [u32; 256] = table();

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            // The polynomial, bits reversed.
            crc = crc >> 1 ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_published_one() {
        assert_eq!(crc32c(&[b"1234", b"56789"]), 0xe306_9283);
    }

    #[test]
    fn records_survive_a_roundtrip_and_belong_to_their_place() {
        let records = [
            BlockRecord::Opened(Epoch {
                boot: [3; 16],
                mount: 9,
            }),
            BlockRecord::Written {
                first: 5,
                count: u64::MAX,
            },
            BlockRecord::Bits {
                first: 320,
                bits: [0x81; 40],
            },
            BlockRecord::Limit { bytes: 4097 },
            BlockRecord::Barrier { second: true },
            BlockRecord::Kept(KeptAttributes {
                mtime: (-5, 999),
                mode: 0o4755,
                capability: vec![7; 24],
            }),
        ];
        for (number, record) in records.iter().enumerate() {
            let number = number as u64;
            let bytes = record.encode(&[1; 16], number);
            assert_eq!(
                BlockRecord::parse(&bytes, &[1; 16], number).as_ref(),
                Some(record)
            );
            assert_eq!(BlockRecord::parse(&bytes, &[2; 16], number), None);
            assert_eq!(BlockRecord::parse(&bytes, &[1; 16], number + 1), None);
        }
    }
}
