//! Requests from the FUSE device: any bytes are a request or an error, and what is read out of one
//! lies inside it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vellum_fuse::wire::{Dialect, Op, Request};

fuzz_target!(|input: &[u8]| {
    // Not by `Arbitrary`: it takes a length from the end, and mutations then seldom reach the body.
    let Some((dialect, bytes)) = input.split_first() else {
        return;
    };
    let (setxattr_ext, mut bytes) = (dialect & 1 != 0, bytes.to_vec());
    // A right length gets the rest looked at more often than a random one.
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
