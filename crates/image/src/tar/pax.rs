//! PAX extended records: `<length> <key>=<value>\n`, one after the other.
//!
//! Pure. Keys and values are bytes: attribute names and values hold anything. A record that is not
//! of that form spoils the whole header. Of two records with one key the later one counts; an empty
//! value says nothing, except about an attribute. Values are read only once it is known which entry
//! they are for, so that a header that another one replaces can't spoil anything. All this is what
//! Go's `archive/tar` does. POSIX.1-2008, "pax Extended Header"; the `GNU.sparse` keys are in GNU
//! tar's manual ("PAX Sparse Files"), `SCHILY.xattr.` is star's.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use vellum_sys::Timespec;

use super::number;

/// The records of one header that say something about the tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Records {
    said: BTreeMap<Vec<u8>, Vec<u8>>,
    xattrs: BTreeMap<OsString, Vec<u8>>,
}

/// Keys whose values are read. The times that are not are still checked.
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
/// What format 1.0 calls [`SIZE`].
pub(super) const REAL_SIZE: &[u8] = b"GNU.sparse.realsize";
const OFFSET: &[u8] = b"GNU.sparse.offset";
const LENGTH: &[u8] = b"GNU.sparse.numbytes";
const XATTR: &[u8] = b"SCHILY.xattr.";

impl Records {
    /// Reads the records of a header. The error says what is wrong with the first bad one.
    pub fn parse(data: &[u8]) -> Result<Self, &'static str> {
        let mut found = Self::default();
        let mut pairs: Vec<&[u8]> = Vec::new();
        let mut rest = data;
        while !rest.is_empty() {
            let (key, value);
            (key, value, rest) = split(rest)?;
            if matches!(key, OFFSET | LENGTH) {
                // Format 0.0 is the one that says a key more than once: the pairs in a row are the
                // map of 0.1.
                let expected = [OFFSET, LENGTH][pairs.len() % 2];
                if key != expected || value.contains(&b',') {
                    return Err("a sparse map with something that is no pair of numbers");
                }
                pairs.push(value);
            } else if let Some(name) = key.strip_prefix(XATTR) {
                let name = OsString::from_vec(unescaped(name));
                found.xattrs.insert(name, value.to_vec());
            } else if KNOWN.contains(&key) {
                found.said.insert(key.to_vec(), value.to_vec());
            }
            // Everything else (uname, comment, LIBARCHIVE.xattr., ...) says nothing about the tree.
        }
        if !pairs.is_empty() {
            found.said.insert(MAP.to_vec(), pairs.join(&b','));
        }
        Ok(found)
    }

    /// Returns what is said for `key`, if anything is.
    pub fn text(&self, key: &[u8]) -> Option<&[u8]> {
        let value = self.said.get(key)?;
        (!value.is_empty()).then_some(value)
    }

    /// Returns the number that is said for `key`, if one is. The error names the key.
    pub fn number(&self, key: &[u8]) -> Result<Option<i64>, String> {
        self.value(key, number::decimal)
    }

    /// Returns the time that is said for `key`, if one is. The error names the key.
    pub fn time(&self, key: &[u8]) -> Result<Option<Timespec>, String> {
        self.value(key, number::time)
    }

    fn value<T>(&self, key: &[u8], read: impl Fn(&[u8]) -> Option<T>) -> Result<Option<T>, String> {
        let Some(text) = self.text(key) else {
            return Ok(None);
        };
        let bad = || format!("a PAX record {} that is no number", key.escape_ascii());
        read(text).map(Some).ok_or_else(bad)
    }

    /// Returns the extended attributes by name, as the file system will know them; values may be
    /// empty.
    pub fn take_xattrs(&mut self) -> Vec<(OsString, Vec<u8>)> {
        std::mem::take(&mut self.xattrs).into_iter().collect()
    }
}

type Split<'a> = (&'a [u8], &'a [u8], &'a [u8]);

/// Returns key and value of the first record, and the records behind it.
fn split(data: &[u8]) -> Result<Split<'_>, &'static str> {
    let space = data
        .iter()
        .position(|&b| b == b' ')
        .ok_or("a PAX record without a length")?;
    let length = number::decimal(&data[..space])
        .and_then(|length| usize::try_from(length).ok())
        .ok_or("a PAX record whose length is no number")?;
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

/// GNU tar writes `=` and `%` of an attribute's name as `%3D` and `%25`, since the key ends at the
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

/// The other way round, for writing.
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
    fn malformed_records_spoil_the_header() {
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
    fn the_last_record_counts_and_an_empty_one_takes_back() {
        let found = Records::parse(b"9 path=x\n9 path=y\n11 size=12\n8 size=\n9 uid=-2\n").unwrap();
        assert_eq!(found.text(b"path"), Some(&b"y"[..]));
        assert_eq!(found.number(b"size"), Ok(None));
        assert_eq!(found.number(b"uid"), Ok(Some(-2)));
        // What is no number is an error only when it is asked for.
        let found = Records::parse(b"9 size=x\n11 mtime=x\n").unwrap();
        assert!(found.number(b"size").is_err() && found.time(b"mtime").is_err());
    }

    #[test]
    fn attributes_are_those_in_the_spelling_of_star() {
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
