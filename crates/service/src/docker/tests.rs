use super::*;

#[test]
fn ids_are_not_paths() {
    for good in ["a", "0123abc-init", "Base", "a b", ".."] {
        assert!(check_id(good).is_ok(), "{good}");
        assert_eq!(id_of(&layer_key(good)).as_deref(), Some(good));
        assert_eq!(id_of(&writable_key(good)).as_deref(), Some(good));
        assert_ne!(layer_key(good), writable_key(good));
    }
    for bad in ["", "a/b", "a\0b", "a\nb", &"x".repeat(MAX_ID_BYTES + 1)] {
        assert!(check_id(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn options_are_known_or_refused() {
    let options =
        |all: &[&str]| default_size(&all.iter().map(|o| o.to_string()).collect::<Vec<_>>());
    assert_eq!(options(&[]).unwrap(), None);
    assert_eq!(options(&["vellum.size=1M"]).unwrap(), Some(1 << 20));
    assert_eq!(options(&["size=0"]).unwrap(), None);
    assert!(options(&["overlay2.size=1M"]).is_err());
    assert!(options(&["size"]).is_err());
}
