//! PAX extended records: `<length> <key>=<value>\n`, one after the other.
//!
//! Pure. Keys and values are bytes: attribute names and values can contain anything. A malformed
//! record invalidates the whole header. If two records have one key, the later one counts; an empty
//! value means nothing, except for an attribute. Values are parsed only once it is known which
//! entry they are for, so that a header that another one replaces can't invalidate anything. Go's
//! `archive/tar` does all of this. POSIX.1-2008, "pax Extended Header"; the `GNU.sparse` keys are
//! in GNU tar's manual ("PAX Sparse Files"), `SCHILY.xattr.` is star's.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use vellum_sys::Timespec;

use super::number;

/// The records of one header that affect the tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Records {
    said: BTreeMap<Vec<u8>, Vec<u8>>,
    xattrs: BTreeMap<OsString, Vec<u8>>,
}

/// Keys whose values are used. Times that are not used are still checked.
const KNOWN: [&[u8]; 15] = [
    b"path",
    b"linkpath",
    b"size",
    b"uid",
    b"gid",
    b"mtime",
    b"atime",
    b"ctime",
    MAJOR,
    MINOR,
    MAP,
    COUNT,
    NAME,
    SIZE,
    REAL_SIZE,
];
pub(super) const MAJOR: &[u8] = b"GNU.sparse.major";
pub(super) const MINOR: &[u8] = b"GNU.sparse.minor";
pub(super) const MAP: &[u8] = b"GNU.sparse.map";
pub(super) const COUNT: &[u8] = b"GNU.sparse.numblocks";
pub(super) const NAME: &[u8] = b"GNU.sparse.name";
pub(super) const SIZE: &[u8] = b"GNU.sparse.size";
/// The name of [`SIZE`] in format 1.0.
pub(super) const REAL_SIZE: &[u8] = b"GNU.sparse.realsize";
const OFFSET: &[u8] = b"GNU.sparse.offset";
const LENGTH: &[u8] = b"GNU.sparse.numbytes";
const XATTR: &[u8] = b"SCHILY.xattr.";

impl Records {
    /// Parses the records of a header. The error says what is wrong with the first bad one.
    pub fn parse(data: &[u8]) -> Result<Self, &'static str> {
        let mut found = Self::default();
        let mut pairs: Vec<&[u8]> = Vec::new();
        let mut rest = data;
        while !rest.is_empty() {
            let (key, value);
            (key, value, rest) = split(rest)?;
            if matches!(key, OFFSET | LENGTH) {
                // Only format 0.0 repeats a key: the pairs in a row are the map of 0.1.
                let expected = [OFFSET, LENGTH][pairs.len() % 2];
                if key != expected || value.contains(&b',') {
                    return Err("a sparse map with something that is not a pair of numbers");
                }
                pairs.push(value);
            } else if let Some(name) = key.strip_prefix(XATTR) {
                let name = OsString::from_vec(unescaped(name));
                found.xattrs.insert(name, value.to_vec());
            } else if KNOWN.contains(&key) {
                found.said.insert(key.to_vec(), value.to_vec());
            }
            // Everything else (uname, comment, LIBARCHIVE.xattr., ...) doesn't affect the tree.
        }
        if !pairs.is_empty() {
            found.said.insert(MAP.to_vec(), pairs.join(&b','));
        }
        Ok(found)
    }

    /// Returns the value of `key`, if any.
    pub fn text(&self, key: &[u8]) -> Option<&[u8]> {
        let value = self.said.get(key)?;
        (!value.is_empty()).then_some(value)
    }

    /// Returns the value of `key` as a number, if any. The error names the key.
    pub fn number(&self, key: &[u8]) -> Result<Option<i64>, String> {
        self.value(key, number::decimal)
    }

    /// Returns the value of `key` as a time, if any. The error names the key.
    pub fn time(&self, key: &[u8]) -> Result<Option<Timespec>, String> {
        self.value(key, number::time)
    }

    fn value<T>(&self, key: &[u8], read: impl Fn(&[u8]) -> Option<T>) -> Result<Option<T>, String> {
        let Some(text) = self.text(key) else {
            return Ok(None);
        };
        let bad = || format!("a PAX record {} that is not a number", key.escape_ascii());
        read(text).map(Some).ok_or_else(bad)
    }

    /// Returns the extended attributes by name, as the file system will know them; values may be
    /// empty.
    pub fn take_xattrs(&mut self) -> Vec<(OsString, Vec<u8>)> {
        std::mem::take(&mut self.xattrs).into_iter().collect()
    }
}

type Split<'a> = (&'a [u8], &'a [u8], &'a [u8]);

/// Returns key and value of the first record, and the records after it.
fn split(data: &[u8]) -> Result<Split<'_>, &'static str> {
    let space = data
        .iter()
        .position(|&b| b == b' ')
        .ok_or("a PAX record without a length")?;
    let length = number::decimal(&data[..space])
        .and_then(|length| usize::try_from(length).ok())
        .ok_or("a PAX record whose length is not a number")?;
    if length < 5 || length > data.len() || length <= space + 1 {
        return Err("a PAX record whose length is wrong");
    }
    let (record, rest) = data.split_at(length);
    let [pair @ .., b'\n'] = &record[space + 1..] else {
        return Err("a PAX record that does not end where it says");
    };
    let equals = pair
        .iter()
        .position(|&b| b == b'=')
        .ok_or("a PAX record without '='")?;
    let (key, value) = (&pair[..equals], &pair[equals + 1..]);
    let names = matches!(key, b"path" | b"linkpath" | b"uname" | b"gname");
    match () {
        () if key.is_empty() => Err("a PAX record without a key"),
        () if key.contains(&0) => Err("a PAX key with a NUL in it"),
        () if names && value.contains(&0) => Err("a PAX name with a NUL in it"),
        () => Ok((key, value, rest)),
    }
}

/// GNU tar writes `=` and `%` in an attribute's name as `%3D` and `%25`, since the key ends at the
/// first `=`.
fn unescaped(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((&first, tail)) = rest.split_first() {
        if rest.starts_with(b"%3D") {
            out.push(b'=');
            rest = &rest[3..];
        } else if rest.starts_with(b"%25") {
            out.push(b'%');
            rest = &rest[3..];
        } else {
            out.push(first);
            rest = tail;
        }
    }
    out
}

/// The reverse, for writing.
pub(crate) fn escaped(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len());
    for &byte in name {
        match byte {
            b'=' => out.extend_from_slice(b"%3D"),
            b'%' => out.extend_from_slice(b"%25"),
            byte => out.push(byte),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
        super::super::reader::tests::pax_record(key, value)
    }

    #[test]
    fn records_are_read_by_length_not_by_line() {
        let data = [
            record(b"SCHILY.xattr.user.x", b"a\n12 path=b\n\0"),
            record(b"path", "na\u{ef}ve".as_bytes()),
            record(b"comment", b"ignored"),
        ]
        .concat();
        let mut found = Records::parse(&data).unwrap();
        assert_eq!(found.text(b"path"), Some("na\u{ef}ve".as_bytes()));
        assert_eq!(
            found.take_xattrs(),
            [("user.x".into(), b"a\n12 path=b\n\0".to_vec())]
        );
    }

    #[test]
    fn a_malformed_record_invalidates_the_header() {
        for bad in [
            &b"path=x\n"[..],
            b"9 path=x",
            b"9 path=xy",
            b"99 path=x\n",
            b"5 path=x\n",
            b"0 path=x\n",
            b"-9 path=x\n",
            b"7 path\n",
            b"5 =x\n",
            b"4 a=\n",
            b"11 path=x\n9 path=x\n",
            b"11 path=a\0b\n",
            b"12 uname=a\0b\n",
            b"9 pa\0h=x\n",
            b"22 GNU.sparse.numbytes=1\n",
            b"24 GNU.sparse.offset=1,1\n",
            b"22 GNU.sparse.offset=1\n22 GNU.sparse.offset=1\n",
        ] {
            assert!(Records::parse(bad).is_err(), "{}", bad.escape_ascii());
        }
        for good in [&b""[..], b"9 path=x\n", b"+9 path=\n", b"0011 path=\n"] {
            assert!(Records::parse(good).is_ok(), "{}", good.escape_ascii());
        }
    }

    #[test]
    fn the_last_record_counts_and_an_empty_one_removes() {
        let found = Records::parse(b"9 path=x\n9 path=y\n11 size=12\n8 size=\n9 uid=-2\n").unwrap();
        assert_eq!(found.text(b"path"), Some(&b"y"[..]));
        assert_eq!(found.number(b"size"), Ok(None));
        assert_eq!(found.number(b"uid"), Ok(Some(-2)));
        // An invalid number is an error only when it is used.
        let found = Records::parse(b"9 size=x\n11 mtime=x\n").unwrap();
        assert!(found.number(b"size").is_err() && found.time(b"mtime").is_err());
    }

    #[test]
    fn only_stars_spelling_of_attributes_counts() {
        let data = [
            record(b"LIBARCHIVE.xattr.user.a", b"not base64!"),
            record(b"SCHILY.xattr.user.c", b"first"),
            record(b"SCHILY.xattr.user.d%3De%25", b""),
            record(b"SCHILY.xattr.user.c", b"last"),
        ]
        .concat();
        assert_eq!(
            Records::parse(&data).unwrap().take_xattrs(),
            [
                ("user.c".into(), b"last".to_vec()),
                ("user.d=e%".into(), Vec::new()),
            ]
        );
        assert_eq!(escaped(b"user.d=e%"), b"user.d%3De%25");
    }
}
