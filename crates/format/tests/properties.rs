//! Properties of every mark: what is written is read back, and no bytes make a parser panic.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use proptest::prelude::*;
use vellum_format::{
    Handle, HandleFlags, Metacopy, Nlink, NlinkBase, Opaque, OverrideKind, OverrideStat, Prefix,
    Protattr, Redirect, Verity, record, wh,
};

fn name() -> impl Strategy<Value = OsString> {
    prop::collection::vec(1u8..=255, 1..60)
        .prop_map(|bytes| {
            bytes
                .into_iter()
                .map(|byte| if byte == b'/' { b'_' } else { byte })
                .collect::<Vec<_>>()
        })
        .prop_filter("dots are not names", |bytes| {
            bytes != b"." && bytes != b".."
        })
        .prop_map(OsString::from_vec)
}

fn prefix() -> impl Strategy<Value = Prefix> {
    prop::sample::select(Prefix::ALL.to_vec())
}

proptest! {
    #[test]
    fn parsers_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..5000)) {
        let _ = Redirect::parse(&bytes);
        let _ = Metacopy::parse(&bytes);
        let _ = Handle::parse(&bytes);
        let _ = Handle::parse_index_name(OsStr::from_bytes(&bytes));
        let _ = Nlink::parse(&bytes);
        let _ = Protattr::parse(&bytes);
        let _ = Opaque::parse(&bytes);
        let _ = OverrideStat::parse(&bytes);
        let _ = vellum_format::impure(&bytes);
        let _ = vellum_format::uuid(&bytes);
        let _ = wh::parse(OsStr::from_bytes(&bytes));
        for prefix in Prefix::ALL {
            let _ = prefix.classify(OsStr::from_bytes(&bytes));
        }
    }

    #[test]
    fn a_value_that_parses_encodes_to_one_that_parses_alike(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        if let Ok(value) = Redirect::parse(&bytes) { prop_assert_eq!(value.encode(), bytes.clone()); }
        if let Ok(value) = Metacopy::parse(&bytes) { prop_assert_eq!(Metacopy::parse(&value.encode()), Ok(value)); }
        if let Ok(Some(value)) = Handle::parse(&bytes) { prop_assert_eq!(value.encode(), Ok(bytes.clone())); }
    }

    #[test]
    fn redirects_survive(names in prop::collection::vec(name(), 1..8)) {
        let path: std::path::PathBuf = names.iter().collect();
        let redirect = Redirect::from_root(&path).unwrap();
        prop_assert_eq!(Redirect::parse(&redirect.encode()), Ok(redirect));
        let sibling = Redirect::sibling(&names[0]).unwrap();
        prop_assert_eq!(Redirect::parse(&sibling.encode()), Ok(sibling));
        prop_assert!(Redirect::from_root(&Path::new("..").join(&path)).is_err());
    }

    #[test]
    fn escaping_survives_and_hides_no_user_name(
        prefix in prefix(), tail in "(overlay\\.){0,3}[a-z]{0,8}", own in any::<bool>(), other in name()
    ) {
        let name = if own { OsString::from(format!("{}{tail}", prefix.as_str())) } else { other };
        let stored = prefix.escape(&name);
        prop_assert!(!prefix.is_control(&stored));
        prop_assert_eq!(prefix.unescape(&stored), Some(name));
    }

    #[test]
    fn whiteouts_survive(name in name()) {
        if let Some(hiding) = wh::whiteout(&name) {
            prop_assert_eq!(wh::parse(&hiding), wh::Name::Whiteout(&name));
        }
    }

    #[test]
    fn records_survive(name in name()) {
        let stored = record::recorded(&name).unwrap();
        prop_assert_eq!(record::original(&stored), Some(name.as_os_str()));
    }

    #[test]
    fn handles_survive(
        big_endian in any::<bool>(), any_endian in any::<bool>(), path_upper in any::<bool>(), kind in any::<u8>(),
        uuid in any::<[u8; 16]>(), bytes in prop::collection::vec(any::<u8>(), 0..=234),
    ) {
        let flags = HandleFlags { big_endian, any_endian, path_upper };
        let handle = Handle { flags, kind, uuid, bytes };
        prop_assert_eq!(Handle::parse(&handle.encode().unwrap()), Ok(Some(handle.clone())));
        prop_assert_eq!(Handle::parse_index_name(&handle.index_name().unwrap()), Ok(handle));
    }

    #[test]
    fn numbers_survive(
        delta in any::<i32>(), lower in any::<bool>(), digest in any::<[u8; 32]>(),
        uid in any::<u32>(), gid in any::<u32>(), mode in 0u32..=0o7777, major in any::<u32>(), minor in any::<u32>(),
        which in 0usize..8,
    ) {
        let nlink = Nlink { base: if lower { NlinkBase::Lower } else { NlinkBase::Upper }, delta };
        prop_assert_eq!(Nlink::parse(&nlink.encode()), Ok(nlink));
        let metacopy = Metacopy::DataBelow(Some(Verity::Sha256(digest)));
        prop_assert_eq!(Metacopy::parse(&metacopy.encode()), Ok(metacopy));
        let kind = [
            None,
            Some(OverrideKind::Directory),
            Some(OverrideKind::File),
            Some(OverrideKind::Symlink),
            Some(OverrideKind::Fifo),
            Some(OverrideKind::Socket),
            Some(OverrideKind::Block { major, minor }),
            Some(OverrideKind::Character { major, minor }),
        ][which];
        let stat = OverrideStat { uid, gid, mode, kind };
        prop_assert_eq!(OverrideStat::parse(&stat.encode()), Ok(stat));
    }
}
