//! Requests from the FUSE device: any bytes are a request or an error, and everything read from a
//! request is inside it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vellum_fuse::wire::{Dialect, Op, Request};

fuzz_target!(|input: &[u8]| {
    // Not with `Arbitrary`: it takes a length from the end, so mutations rarely reach the body.
    let Some((dialect, bytes)) = input.split_first() else {
        return;
    };
    let (setxattr_ext, mut bytes) = (dialect & 1 != 0, bytes.to_vec());
    // With a correct length the rest is parsed more often than with a random one.
    let length = (bytes.len() as u32).to_ne_bytes();
    if let Some(said) = bytes.first_chunk_mut() {
        *said = length;
    }
    let Ok(request) = Request::parse(&bytes, Dialect { setxattr_ext }) else {
        return;
    };
    match request.op {
        Op::BatchForget(forgets) => assert!(forgets.count() * 16 <= bytes.len()),
        Op::Write { data, .. } => assert!(data.len() <= bytes.len()),
        Op::Lookup { name } | Op::MkDir { name, .. } | Op::Unlink { name } => {
            let name = name.as_encoded_bytes();
            assert!(!name.is_empty() && !name.contains(&b'/') && !name.contains(&0));
        }
        _ => {}
    }
});
