use super::*;

const NOW: Epoch = Epoch {
    boot: [9; 16],
    mount: 77,
};
const LATER: Epoch = Epoch {
    boot: [8; 16],
    mount: 77,
};
const ID: [u8; 16] = *b"0123456789abcdef";

fn header() -> BlockMapHeader {
    BlockMapHeader {
        id: ID,
        block_bytes: 4096,
        upper_ino: 12,
        lower: LowerIdentity {
            layer: 3,
            path: "a/b\u{e9}".into(),
            ino: 99,
            size_bytes: 40 * 4096 + 5,
            mtime: (1_700_000_000, 123_456_789),
            handle: Some((1, vec![1, 2, 3, 4, 5, 6, 7, 8])),
        },
    }
}

fn bytes(records: &[BlockRecord]) -> Vec<u8> {
    let mut bytes = header().encode().unwrap();
    for (number, record) in records.iter().enumerate() {
        bytes.extend(record.encode(&ID, number as u64));
    }
    bytes
}

/// Blocks 1 and 2 durable, then the limit at 30 blocks durable, then block 7 not.
fn sample() -> Vec<u8> {
    let written = |first, count| BlockRecord::Written { first, count };
    bytes(&[
        BlockRecord::Opened(NOW),
        BlockRecord::Barrier { second: false },
        BlockRecord::Barrier { second: true },
        written(1, 2),
        BlockRecord::Barrier { second: false },
        BlockRecord::Barrier { second: true },
        BlockRecord::Limit { bytes: 30 * 4096 },
        BlockRecord::Barrier { second: false },
        BlockRecord::Barrier { second: true },
        written(7, 1),
    ])
}

fn blocks(map: &BlockMap) -> Vec<u64> {
    (0..map.blocks.len())
        .filter(|&block| map.blocks.contains(block))
        .collect()
}

#[test]
fn a_header_survives_a_roundtrip() {
    let no_handle = BlockMapHeader {
        lower: LowerIdentity {
            handle: None,
            ..header().lower
        },
        ..header()
    };
    for header in [header(), no_handle] {
        let encoded = header.encode().unwrap();
        assert_eq!(BlockMapHeader::parse(&encoded), Ok((header, encoded.len())));
    }
}

#[test]
fn what_was_not_synced_counts_in_its_epoch_only() {
    let map = BlockMap::parse(&sample(), NOW).unwrap();
    assert_eq!(blocks(&map), [1, 2, 7]);
    assert_eq!(map.limit_bytes, 30 * 4096);
    assert!(map.pending && !map.tail_left_out);
    assert_eq!(map.blocks_below(), 27);
    let later = BlockMap::parse(&sample(), LATER).unwrap();
    assert_eq!(blocks(&later), [1, 2]);
    assert!(!later.pending && later.tail_left_out);
    assert_eq!((map.records, later.records), (10, 9));
}

#[test]
fn every_flipped_bit_is_an_error_or_makes_no_difference() {
    for epoch in [NOW, LATER] {
        let good = BlockMap::parse(&sample(), epoch).unwrap();
        let mut harmless = 0;
        for bit in 0..sample().len() * 8 {
            let mut bad = sample();
            bad[bit / 8] ^= 1 << (bit % 8);
            let Ok(map) = BlockMap::parse(&bad, epoch) else {
                continue;
            };
            harmless += 1;
            assert_eq!(blocks(&map), blocks(&good), "bit {bit}");
            assert_eq!(map.limit_bytes, good.limit_bytes, "bit {bit}");
            assert!(map.tail_left_out || epoch == LATER, "bit {bit}");
        }
        // The two copies of each of the three barriers; in another epoch also the ignored tail.
        assert!(harmless <= 7 * RECORD_BYTES * 8, "{harmless}");
    }
}

#[test]
fn a_record_that_is_not_whole_was_never_written() {
    let whole = sample();
    for cut in 1..RECORD_BYTES {
        let map = BlockMap::parse(&whole[..whole.len() - cut], NOW).unwrap();
        assert_eq!(blocks(&map), [1, 2]);
        assert!(map.tail_left_out);
    }
}

#[test]
fn a_foreign_map_and_blocks_that_are_not_there_are_told() {
    assert!(BlockMap::parse(b"", NOW).is_err());
    assert!(BlockMap::parse(&[0; 4096], NOW).is_err());
    let beyond = bytes(&[
        BlockRecord::Opened(NOW),
        BlockRecord::Barrier { second: false },
        BlockRecord::Barrier { second: true },
        BlockRecord::Written {
            first: 40,
            count: 2,
        },
    ]);
    let error = BlockMap::parse(&beyond, NOW).unwrap_err().to_string();
    assert!(error.contains("past the lower file's end"), "{error}");
}

#[test]
fn a_compact_map_says_the_same() {
    let mut map = BlockMap::parse(&sample(), NOW).unwrap();
    map.blocks.insert(20, 10);
    let mut again = BlockMap::new(header());
    for record in map.compact() {
        again.apply(&record).unwrap();
    }
    assert_eq!(
        (&again.blocks, again.limit_bytes),
        (&map.blocks, map.limit_bytes)
    );
}

#[test]
fn blocks_are_small_for_small_files() {
    assert_eq!(block_bytes_for(0), 4096);
    assert_eq!(block_bytes_for(4 << 30), 4096);
    assert_eq!(block_bytes_for(10 << 30), 16384);
    assert_eq!(block_bytes_for(1 << 40), 65536);
    assert_eq!(block_bytes_for(u64::MAX), 65536);
    assert!(fits(0) && fits(10 << 30) && fits(16 << 40));
    assert!(!fits((16 << 40) + 1) && !fits(u64::MAX));
    // Nor is memory allocated for what a damaged header says.
    let huge = BlockMapHeader {
        lower: LowerIdentity {
            size_bytes: u64::MAX,
            ..header().lower
        },
        ..header()
    };
    assert!(BlockMapHeader::parse(&huge.encode().unwrap()).is_err());
}
