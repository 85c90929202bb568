//! Names: what hides, escapes or records a name can be turned back into it.
#![no_main]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use libfuzzer_sys::fuzz_target;
use vellum_format::{Handle, Prefix, record, wh};

fuzz_target!(|bytes: &[u8]| {
    let name = OsStr::from_bytes(bytes);
    if let wh::Name::Whiteout(hidden) = wh::parse(name) {
        assert!(!matches!(hidden.as_bytes(), b"" | b"." | b"..") && !hidden.as_bytes().contains(&b'/'));
    }
    if let Some(hiding) = wh::whiteout(name) {
        assert_eq!(wh::parse(&hiding), wh::Name::Whiteout(name));
    }
    for prefix in Prefix::ALL {
        let stored = prefix.escape(name);
        assert!(!prefix.is_control(&stored));
        assert_eq!(prefix.unescape(&stored).as_deref(), Some(name));
    }
    if let Some(stored) = record::recorded(name).filter(|_| !bytes.is_empty()) {
        assert_eq!(record::original(&stored), Some(name));
    }
    if let Ok(handle) = Handle::parse_index_name(name) {
        assert_eq!(handle.index_name().as_deref(), Ok(name));
    }
});
