//! PAX extended records: `<length> <key>=<value>\n`, one after the other.
//!
//! Pure. Keys and values are bytes: attribute names and values hold anything. A record that does not parse spoils the whole header; a key
//! that appears twice with different values does too, where it matters. POSIX.1-2008, "pax Extended Header"; the `GNU.sparse`
//! keys are in GNU tar's manual ("PAX Sparse Files"), `SCHILY.xattr.` is star's, `LIBARCHIVE.xattr.` is bsdtar's.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use vellum_sys::Timespec;

use super::number;
use super::reader::Range;

/// What the records of one header say. `None` means that they say nothing about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Records {
    pub path: Option<Vec<u8>>,
    pub linkpath: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u64>,
    pub gid: Option<u64>,
    pub mtime: Option<Timespec>,
    /// Names as the file system will know them, in the archive's order.
    pub xattrs: Vec<(OsString, Vec<u8>)>,
    pub sparse: Sparse,
}

/// What the records say about holes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sparse {
    pub major: Option<u64>,
    pub minor: Option<u64>,
    pub name: Option<Vec<u8>>,
    /// `GNU.sparse.size` (0.x) or `GNU.sparse.realsize` (1.0).
    pub size: Option<u64>,
    pub count: Option<u64>,
    /// The whole map (0.1), or the pairs so far (0.0).
    pub map: Option<Vec<Range>>,
    offset: Option<u64>,
}

impl Sparse {
    /// True if the records say anything about holes.
    pub fn is_present(&self) -> bool {
        *self != Sparse::default()
    }
}

/// Splits `data` into key and value of each record. The error says what is wrong with the first bad one.
fn records(mut data: &[u8]) -> impl Iterator<Item = Result<(&[u8], &[u8]), &'static str>> {
    std::iter::from_fn(move || {
        if data.is_empty() {
            return None;
        }
        let (record, rest) = match split(data) {
            Ok(split) => split,
            Err(why) => {
                data = &[];
                return Some(Err(why));
            }
        };
        data = rest;
        Some(Ok(record))
    })
}

type Record<'a> = (&'a [u8], &'a [u8]);

fn split(data: &[u8]) -> Result<(Record<'_>, &[u8]), &'static str> {
    let space = data
        .iter()
        .take(20)
        .position(|&b| b == b' ')
        .ok_or("a PAX record without a length")?;
    let length = number::decimal(&data[..space])
        .and_then(|length| usize::try_from(length).ok())
        .ok_or("a PAX record whose length is no number")?;
    if length > data.len() || length < space + 3 {
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
    if equals == 0 {
        return Err("a PAX record without a key");
    }
    Ok(((&pair[..equals], &pair[equals + 1..]), rest))
}

/// Reads the records of a local header (type `x`). `max_ranges` bounds the sparse map.
pub(crate) fn parse(data: &[u8], max_ranges: u64) -> Result<Records, &'static str> {
    let mut found = Records::default();
    let mut libarchive = Vec::new();
    for record in records(data) {
        let (key, value) = record?;
        match key {
            b"path" => set(&mut found.path, name(value)?)?,
            b"linkpath" => set(&mut found.linkpath, name(value)?)?,
            b"size" => set(&mut found.size, unsigned(value)?)?,
            b"uid" => set(&mut found.uid, unsigned(value)?)?,
            b"gid" => set(&mut found.gid, unsigned(value)?)?,
            b"mtime" => {
                let time = match value {
                    b"" => None,
                    value => Some(number::time(value).ok_or("a PAX mtime that is no time")?),
                };
                set(&mut found.mtime, time)?;
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    let name = OsString::from_vec(unescaped(name));
                    put(&mut found.xattrs, name, value.to_vec())?;
                } else if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                    libarchive.push((name, value));
                } else if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    sparse(&mut found.sparse, key, value, max_ranges)?;
                }
                // Everything else (atime, ctime, uname, comment, ...) says nothing about the tree.
            }
        }
    }
    // bsdtar writes each attribute in both spellings; star's carries the bytes as they are.
    for (name, value) in libarchive {
        let name = OsString::from_vec(
            percent_decoded(name).ok_or("an attribute name that does not decode")?,
        );
        if found.xattrs.iter().any(|(known, _)| *known == name) {
            continue;
        }
        let value = BASE64
            .decode(value)
            .map_err(|_| "an attribute value that is no base64")?;
        found.xattrs.push((name, value));
    }
    if found.xattrs.iter().any(|(name, _)| !usable_xattr(name)) {
        return Err("an attribute without a usable name");
    }
    if found.sparse.offset.is_some() {
        return Err("a sparse map that ends with half a pair");
    }
    Ok(found)
}

/// Reads the records of a global header (type `g`) into `defaults`.
///
/// Owner and time are defaults for what follows, as POSIX says. A global name, size or attribute makes no sense for a layer, and readers
/// disagree about what it means: an error.
pub(crate) fn parse_global(data: &[u8], defaults: &mut Records) -> Result<(), &'static str> {
    for record in records(data) {
        let (key, value) = record?;
        match key {
            b"uid" => defaults.uid = unsigned(value)?,
            b"gid" => defaults.gid = unsigned(value)?,
            b"mtime" => {
                defaults.mtime = match value {
                    b"" => None,
                    value => Some(number::time(value).ok_or("a PAX mtime that is no time")?),
                }
            }
            b"path" | b"linkpath" | b"size" => {
                return Err("a global PAX header that names or measures every file");
            }
            _ if key.starts_with(b"GNU.sparse.")
                || key.starts_with(b"SCHILY.xattr.")
                || key.starts_with(b"LIBARCHIVE.xattr.") =>
            {
                return Err("a global PAX header with attributes or holes for every file");
            }
            _ => {}
        }
    }
    Ok(())
}

fn set<T: PartialEq>(slot: &mut Option<T>, value: Option<T>) -> Result<(), &'static str> {
    if slot.is_some() && *slot != value {
        return Err("a PAX header that says one thing twice, differently");
    }
    *slot = value;
    Ok(())
}

fn put(
    xattrs: &mut Vec<(OsString, Vec<u8>)>,
    name: OsString,
    value: Vec<u8>,
) -> Result<(), &'static str> {
    match xattrs.iter().find(|(known, _)| *known == name) {
        None => xattrs.push((name, value)),
        Some((_, known)) if *known == value => {}
        Some(_) => return Err("a PAX header that says one thing twice, differently"),
    }
    Ok(())
}

/// An empty value takes back what was said before: back to the header's field.
fn name(value: &[u8]) -> Result<Option<Vec<u8>>, &'static str> {
    if value.contains(&0) {
        return Err("a PAX name with a NUL in it");
    }
    Ok((!value.is_empty()).then(|| value.to_vec()))
}

fn unsigned(value: &[u8]) -> Result<Option<u64>, &'static str> {
    match value {
        b"" => Ok(None),
        value => number::decimal(value)
            .map(Some)
            .ok_or("a PAX number that is no number"),
    }
}

fn sparse(
    found: &mut Sparse,
    key: &[u8],
    value: &[u8],
    max_ranges: u64,
) -> Result<(), &'static str> {
    let number = || number::decimal(value).ok_or("a sparse map with something that is no number");
    match key {
        b"major" => set(&mut found.major, Some(number()?)),
        b"minor" => set(&mut found.minor, Some(number()?)),
        b"name" => set(&mut found.name, name(value)?),
        b"size" | b"realsize" => set(&mut found.size, Some(number()?)),
        b"numblocks" => set(&mut found.count, Some(number()?)),
        b"offset" => match found.offset.replace(number()?) {
            None => Ok(()),
            Some(_) => Err("a sparse map with two offsets in a row"),
        },
        b"numbytes" => {
            let offset = found
                .offset
                .take()
                .ok_or("a sparse map with a length before its offset")?;
            let map = found.map.get_or_insert_default();
            if map.len() as u64 >= max_ranges {
                return Err("a sparse map with too many ranges");
            }
            map.push(Range {
                offset,
                length: number()?,
            });
            Ok(())
        }
        b"map" => {
            let mut numbers = Vec::new();
            if !value.is_empty() {
                for part in value.split(|&b| b == b',') {
                    if numbers.len() as u64 >= max_ranges.saturating_mul(2) {
                        return Err("a sparse map with too many ranges");
                    }
                    numbers.push(
                        number::decimal(part)
                            .ok_or("a sparse map with something that is no number")?,
                    );
                }
            }
            if numbers.len() % 2 != 0 {
                return Err("a sparse map that ends with half a pair");
            }
            let map = numbers
                .chunks_exact(2)
                .map(|pair| Range {
                    offset: pair[0],
                    length: pair[1],
                })
                .collect();
            set(&mut found.map, Some(map))
        }
        _ => Err("a sparse record of an unknown kind"),
    }
}

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

fn usable_xattr(name: &OsString) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let bytes = name.as_bytes();
    !bytes.is_empty() && bytes.len() <= 255 && !bytes.contains(&0)
}

/// GNU tar writes `=` and `%` of an attribute's name as `%3D` and `%25`, since the key ends at the first `=`.
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

fn percent_decoded(name: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(name.len());
    let mut bytes = name.iter();
    while let Some(&byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digits = [*bytes.next()?, *bytes.next()?];
        let mut decoded = [0];
        hex::decode_to_slice(digits, &mut decoded).ok()?;
        out.push(decoded[0]);
    }
    Some(out)
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
        let found = parse(&data, 10).unwrap();
        assert_eq!(found.path.as_deref(), Some("na\u{ef}ve".as_bytes()));
        assert_eq!(
            found.xattrs,
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
            b"11 path=x\n9 path=x\n",
            b"11 path=a\0b\n",
            b"9 size=x\n",
            b"10 size=-1\n",
            b"9 path=x\n9 path=y\n",
            b"9 size=1\n9 size=2\n",
            b"22 GNU.sparse.offset=1\n",
            b"24 GNU.sparse.numbytes=1\n",
            b"22 GNU.sparse.map=0,1,2\n",
        ] {
            assert!(parse(bad, 10).is_err(), "{}", bad.escape_ascii());
        }
        assert!(parse(b"9 path=x\n9 path=x\n", 10).is_ok());
        assert!(parse(b"", 10).is_ok());
    }

    #[test]
    fn both_spellings_of_attributes() {
        let data = [
            record(b"LIBARCHIVE.xattr.user.a%3db", b"dmFsdWU"),
            record(b"LIBARCHIVE.xattr.user.c", b"aWdub3JlZA=="),
            record(b"SCHILY.xattr.user.c", b"star"),
            record(b"SCHILY.xattr.user.d%3De%25", b""),
        ]
        .concat();
        let found = parse(&data, 10).unwrap();
        assert_eq!(
            found.xattrs,
            [
                ("user.c".into(), b"star".to_vec()),
                ("user.d=e%".into(), Vec::new()),
                ("user.a=b".into(), b"value".to_vec()),
            ]
        );
        assert_eq!(escaped(b"user.d=e%"), b"user.d%3De%25");
    }

    #[test]
    fn global_headers_give_owner_and_time_only() {
        let mut defaults = Records::default();
        let data = [
            record(b"uid", b"7"),
            record(b"mtime", b"1.5"),
            record(b"comment", b"x"),
        ]
        .concat();
        parse_global(&data, &mut defaults).unwrap();
        assert_eq!((defaults.uid, defaults.gid), (Some(7), None));
        for key in [
            "path",
            "linkpath",
            "size",
            "GNU.sparse.major",
            "SCHILY.xattr.user.x",
        ] {
            assert!(
                parse_global(&record(key.as_bytes(), b"1"), &mut defaults).is_err(),
                "{key}"
            );
        }
    }
}
