//! Values of marks: any bytes are a value or an error, and a value survives being written and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
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
    let _ = (vellum_format::impure(bytes), vellum_format::uuid(bytes));
});
