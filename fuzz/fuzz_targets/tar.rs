//! Archives: every byte of an accepted archive is accounted for, as raw bytes or as content, and
//! the archive is within the limits.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vellum_image::Limits;
use vellum_image::tar::{SliceSource, TarReader};

fuzz_target!(|bytes: &[u8]| {
    let limits = Limits {
        max_entries: 1000,
        ..Limits::default()
    };
    let mut reader = TarReader::new(SliceSource::new(bytes), &limits);
    let mut seen = Vec::new();
    loop {
        let entry = match reader.next_entry() {
            Ok(Some(entry)) => entry,
            Ok(None) => break,
            Err(_) => return,
        };
        let ranges = entry.ranges.as_deref().unwrap_or_default();
        assert!(ranges.windows(2).all(|pair| pair[0].offset + pair[0].length <= pair[1].offset));
        assert!(ranges.iter().all(|range| range.offset + range.length <= entry.size_bytes));
        seen.append(reader.raw());
        let mut content = 0;
        loop {
            let Ok(piece) = reader.payload() else { return };
            let n = piece.len();
            if n == 0 {
                break;
            }
            seen.extend_from_slice(piece);
            reader.advance(n);
            content += n as u64;
        }
        assert_eq!(content, entry.payload_bytes);
    }
    seen.append(reader.raw());
    while let Ok(Some(piece)) = reader.trailer() {
        seen.extend_from_slice(piece);
    }
    assert_eq!(seen, bytes);
});
