//! Values of marks: any bytes are a value or an error, and a value, written and read again, is the
//! same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vellum_format::block_map::{BlockMap, BlockRecord, Epoch};
use vellum_format::{Handle, Metacopy, Nlink, Opaque, OverrideStat, Protattr, Redirect};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(redirect) = Redirect::parse(bytes) {
        assert_eq!(redirect.encode(), bytes);
        if let Redirect::FromRoot(path) = &redirect {
            assert!(path.components().all(|part| matches!(part, std::path::Component::Normal(_))));
            assert_eq!(Redirect::from_root(path), Ok(redirect));
        }
    }
    if let Ok(metacopy) = Metacopy::parse(bytes) {
        assert_eq!(Metacopy::parse(&metacopy.encode()), Ok(metacopy));
    }
    if let Ok(Some(handle)) = Handle::parse(bytes) {
        assert_eq!(handle.encode().as_deref(), Ok(bytes));
    }
    if let Ok(nlink) = Nlink::parse(bytes) {
        assert_eq!(Nlink::parse(&nlink.encode()), Ok(nlink));
    }
    if let Ok(stat) = OverrideStat::parse(bytes) {
        assert_eq!(OverrideStat::parse(&stat.encode()), Ok(stat));
    }
    if let Ok(protattr) = Protattr::parse(bytes) {
        assert_eq!(protattr.encode().map(Protattr::parse), Some(Ok(protattr)));
    }
    if let Ok(opaque) = Opaque::parse(bytes) {
        assert_eq!(opaque.encode(), bytes);
    }
    let now = Epoch {
        boot: [1; 16],
        mount: 1,
    };
    let _ = BlockMap::parse(bytes, now);
    if let Some(record) = BlockRecord::parse(bytes, &[7; 16], 3) {
        assert_eq!(BlockRecord::parse(&record.encode(&[7; 16], 3), &[7; 16], 3), Some(record));
    }
    let _ = (vellum_format::impure(bytes), vellum_format::uuid(bytes));
    let _ = vellum_format::Number::parse(bytes);
});
