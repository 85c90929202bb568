//! Hand-made archives: what is read, and what is refused.

use std::ops::Range as Place;
use std::os::unix::ffi::OsStrExt;

use super::super::header::{field, new_ustar, seal};
use super::*;

/// Returns one PAX record.
pub(crate) fn pax_record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    [format!("{length} ").as_bytes(), key, b"=", value, b"\n"].concat()
}

/// A header under construction: a regular, empty file owned by root by default.
#[derive(Clone)]
pub(crate) struct Raw(pub Block);

impl Raw {
    pub fn new(name: &str, typeflag: u8) -> Self {
        let mut header = new_ustar();
        header[field::TYPEFLAG] = typeflag;
        Raw(header)
            .put(field::NAME, name)
            .mode(0o644)
            .owner(0, 0)
            .size(0)
            .put(field::MTIME, "00000000007")
            .put(field::DEV_MAJOR, "0000000")
            .put(field::DEV_MINOR, "0000000")
    }

    /// Puts `bytes` at the start of a field. The rest of it stays.
    pub fn put(mut self, at: Place<usize>, bytes: impl AsRef<[u8]>) -> Self {
        let bytes = bytes.as_ref();
        self.0[at][..bytes.len()].copy_from_slice(bytes);
        self
    }

    pub fn mode(self, mode: u32) -> Self {
        self.put(field::MODE, format!("{mode:07o}\0"))
    }

    pub fn owner(self, uid: u32, gid: u32) -> Self {
        self.put(field::UID, format!("{uid:07o}\0"))
            .put(field::GID, format!("{gid:07o}\0"))
    }

    pub fn size(self, size: u64) -> Self {
        self.put(field::SIZE, format!("{size:011o}\0"))
    }

    pub fn link(self, target: &str) -> Self {
        self.put(field::LINK, target)
    }

    pub fn block(mut self) -> Vec<u8> {
        seal(&mut self.0);
        self.0.to_vec()
    }

    /// The header with `content`, whose length it states, and padding.
    pub fn data(self, content: &[u8]) -> Vec<u8> {
        let mut bytes = self.size(content.len() as u64).block();
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        bytes
    }
}

/// A PAX header with these records.
pub(crate) fn pax(typeflag: u8, records: &[(&str, &[u8])]) -> Vec<u8> {
    let data: Vec<u8> = records
        .iter()
        .flat_map(|(key, value)| pax_record(key.as_bytes(), value))
        .collect();
    Raw::new("PaxHeaders/x", typeflag).data(&data)
}

/// The parts and an end marker.
pub(crate) fn archive(parts: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = parts.concat();
    bytes.extend_from_slice(&[0; 2 * BLOCK]);
    bytes
}

type Content = Vec<u8>;

/// Reads a whole archive and checks on the way that raw bytes and content together are the archive.
fn read(bytes: &[u8]) -> Result<Vec<(Entry, Content)>> {
    read_with(bytes, &Limits::default())
}

fn read_with(bytes: &[u8], limits: &Limits) -> Result<Vec<(Entry, Content)>> {
    let mut reader = TarReader::new(SliceSource::new(bytes), limits);
    let mut again = Vec::new();
    let mut found = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        again.append(reader.raw());
        let mut content = Vec::new();
        loop {
            let piece = reader.payload()?.to_vec();
            if piece.is_empty() {
                break;
            }
            reader.advance(piece.len());
            content.extend_from_slice(&piece);
        }
        again.extend_from_slice(&content);
        found.push((entry, content));
    }
    again.append(reader.raw());
    while let Some(piece) = reader.trailer()? {
        again.extend_from_slice(piece);
    }
    assert!(again == bytes, "raw bytes and content are not the archive");
    Ok(found)
}

fn one(parts: &[Vec<u8>]) -> Entry {
    let mut found = read(&archive(parts)).unwrap();
    assert_eq!(found.len(), 1);
    found.remove(0).0
}

#[track_caller]
fn refused(parts: &[Vec<u8>], because: &str) {
    match read(&archive(parts)) {
        Ok(found) => panic!("accepted: {found:?}"),
        Err(error) => assert!(
            error.to_string().contains(because),
            "{error}, expected {because}"
        ),
    }
}

#[test]
fn an_archive_may_end_wherever_a_header_may_begin() {
    let ending = |bytes: &[u8]| {
        read(bytes).unwrap();
        let mut reader = TarReader::new(SliceSource::new(bytes), &Limits::default());
        let mut count = 0;
        while reader.next_entry().unwrap().is_some() {
            count += 1;
        }
        (count, reader.ending().unwrap())
    };
    for (bytes, expect) in [
        (0, Ending::Unmarked),
        (512, Ending::Unmarked),
        (1024, Ending::Marked),
        (10240, Ending::Marked),
    ] {
        assert_eq!(ending(&vec![0; bytes]), (0, expect), "{bytes} zeros");
    }
    // Whatever follows the end marker belongs to the layer's bytes and to nothing else.
    let mut bytes = archive(&[Raw::new("a", b'0').data(b"x")]);
    bytes.extend_from_slice(b"trailing junk");
    assert_eq!(ending(&bytes), (1, Ending::Marked));
    // After the last file, in its padding, after an extended header and in its padding.
    let file = Raw::new("a", b'0').data(b"x");
    for (bytes, count) in [
        (file.clone(), 1),
        (file[..600].to_vec(), 1),
        (file[..513].to_vec(), 1),
        ([file.clone(), pax(b'x', &[("path", b"b")])].concat(), 1),
        (pax(b'x', &[("path", b"b")])[..600].to_vec(), 0),
    ] {
        assert_eq!(ending(&bytes), (count, Ending::Unmarked), "{}", bytes.len());
    }
}

#[test]
fn an_archive_that_ends_within_something_is_an_error() {
    let bytes = archive(&[
        pax(b'x', &[("path", b"longer")]),
        Raw::new("a", b'0').data(&[7; 700]),
        Raw::new("b", b'5').block(),
    ]);
    // Header, records, header, content, header, end marker: everything but the padding.
    let within = [
        1..512,
        512..512 + 15,
        1025..1536,
        1536..1536 + 700,
        2561..3072,
        3073..3584,
        3585..4096,
    ];
    for cut in 0..=bytes.len() {
        let read = read(&bytes[..cut]);
        match within.iter().any(|part| part.contains(&cut)) {
            true => assert!(matches!(read, Err(Error::Truncated { .. })), "{cut}"),
            false => assert!(read.is_ok(), "{cut}: {read:?}"),
        }
    }
}

#[test]
fn every_kind_and_number() {
    let entry = one(&[Raw::new("dir/", b'5').mode(0o1777).owner(1000, 7).block()]);
    assert_eq!(
        (entry.kind, entry.mode, entry.uid, entry.gid),
        (EntryKind::Directory, 0o1777, 1000, 7)
    );
    let entry = one(&[Raw::new("null", b'3')
        .put(field::DEV_MAJOR, "0000001")
        .put(field::DEV_MINOR, "0000003")
        .block()]);
    assert_eq!((entry.kind, entry.rdev), (EntryKind::Character, (1, 3)));
    assert_eq!(
        one(&[Raw::new("old/", 0).block()]).kind,
        EntryKind::Directory
    );
    assert_eq!(one(&[Raw::new("old", 0).block()]).kind, EntryKind::File);
    assert_eq!(one(&[Raw::new("c", b'7').block()]).kind, EntryKind::File);
    // A hard link states its target's size and has no content.
    let found = read(&archive(&[
        Raw::new("a", b'0').data(b"abc"),
        Raw::new("b", b'1').link("a").size(3).block(),
    ]))
    .unwrap();
    assert_eq!(
        (found[1].0.kind, found[1].0.payload_bytes),
        (EntryKind::HardLink, 0)
    );
    // The bits that reach the kernel count.
    let entry = one(&[Raw::new("big", b'3')
        .put(field::UID, [0x80, 0, 0, 1, 0, 0, 0, 5])
        .put(field::GID, b"\xff\xff\xff\xff\xff\xff\xff\xfe")
        .put(field::MTIME, [0xff; 12])
        .put(field::DEV_MAJOR, [0x80, 0, 0, 0, 0, 0, 0x12, 0x34])
        .put(field::DEV_MINOR, [0xff; 8])
        .block()]);
    assert_eq!((entry.uid, entry.gid), (5, u32::MAX - 1));
    assert_eq!(entry.mtime, Timespec::new(-1, 0));
    assert_eq!(entry.rdev, (0x234, 0xf_ffff));
}

#[test]
fn a_size_without_content_means_nothing() {
    for (kind, typeflag, name) in [
        (EntryKind::HardLink, b'1', "x"),
        (EntryKind::Symlink, b'2', "x"),
        (EntryKind::Character, b'3', "x"),
        (EntryKind::Block, b'4', "x"),
        (EntryKind::Directory, b'5', "x"),
        (EntryKind::Fifo, b'6', "x"),
        (EntryKind::Directory, 0, "x/"),
    ] {
        let sized = Raw::new(name, typeflag).link("t").size(4096).block();
        let next = Raw::new("next", b'0').data(b"abc");
        let found = read(&archive(&[sized.clone(), next])).unwrap();
        assert_eq!((found[0].0.kind, found[0].0.payload_bytes), (kind, 0));
        assert_eq!(found[1].1, b"abc");
        // A header follows, or something unreadable.
        let content = vec![b'x'; 4096];
        refused(&[sized, content], "checksum");
        let negative = Raw::new(name, typeflag).put(field::SIZE, [0xff; 12]);
        match typeflag {
            0 => refused(&[negative.block()], "size is negative"),
            _ => assert_eq!(one(&[negative.block()]).size_bytes, 0),
        }
    }
}

#[test]
fn unknown_entry_types_are_distinguished() {
    let parts = [
        Raw::new("label", b'V').data(b"some text"),
        Raw::new("a", b'0').data(b"abc"),
    ];
    let found = read(&archive(&parts)).unwrap();
    assert_eq!(found[0].0.kind, EntryKind::Other(b'V'));
    assert_eq!(found[0].1, b"some text");
    assert_eq!(found[1].1, b"abc");
}

#[test]
fn names_of_every_dialect() {
    let prefixed = |magic: &[u8; 8]| {
        Raw::new("name", b'0')
            .put(field::MAGIC, &magic[..6])
            .put(field::VERSION, &magic[6..])
            .put(field::PREFIX, "prefix")
            .block()
    };
    assert_eq!(one(&[prefixed(b"ustar\x0000")]).name, "prefix/name");
    // Go before 1.8 wrote a prefix into GNU headers.
    assert_eq!(one(&[prefixed(b"ustar  \0")]).name, "prefix/name");
    assert_eq!(one(&[prefixed(b"\0\0\0\0\0\0\0\0")]).name, "name");
    // Any version of ustar, only one of GNU.
    assert_eq!(one(&[prefixed(b"ustar\x0077")]).name, "prefix/name");
    assert_eq!(one(&[prefixed(b"ustar 00")]).name, "name");
    let gnu = Raw::new("name", b'0')
        .put(field::MAGIC, "ustar ")
        .put(field::VERSION, " \0");
    let times = gnu.clone().put(field::PREFIX, "14000000000\x0014000000001");
    assert_eq!(one(&[times.block()]).name, "name");
    let foreign = gnu.put(field::PREFIX, "pr\u{e9}fix");
    assert_eq!(one(&[foreign.block()]).name, "name");
    // star's prefix is shorter, and times follow.
    let star = Raw::new("name", b'0')
        .put(field::STAR_PREFIX, [b'p'; 131])
        .put(field::STAR_ATIME, "00000000001")
        .put(field::STAR_CTIME, "00000000002")
        .put(field::STAR_TRAILER, "tar\0");
    assert_eq!(one(&[star.block()]).name.len(), 131 + 5);
    // V7 has no devices.
    let device = Raw::new("name", b'4')
        .put(field::MAGIC, [0; 6])
        .put(field::DEV_MAJOR, "0000008");
    assert_eq!(one(&[device.block()]).rdev, (0, 0));
    let long = "x/".repeat(200) + "y";
    let entry = one(&[
        Raw::new("././@LongLink", b'L').data(format!("{long}\0").as_bytes()),
        Raw::new("././@LongLink", b'K').data(format!("{long}k\0").as_bytes()),
        Raw::new("short", b'2').link("short").block(),
    ]);
    assert_eq!(
        (entry.name, entry.link),
        (long.clone().into(), format!("{long}k").into())
    );
    let entry = one(&[
        pax(b'x', &[("path", b"b\xffn"), ("linkpath", b"t\xfe")]),
        Raw::new("short", b'2').link("short").block(),
    ]);
    assert_eq!(
        (entry.name.as_bytes(), entry.link.as_bytes()),
        (&b"b\xffn"[..], &b"t\xfe"[..])
    );
}

#[test]
fn pax_records_win_and_global_ones_are_ignored() {
    let parts = [
        pax(b'x', &[("uid", b"9")]),
        pax(
            b'g',
            &[
                ("uid", b"5"),
                ("path", b"p"),
                ("size", b"7"),
                ("mtime", b"x"),
            ],
        ),
        pax(
            b'x',
            &[
                ("size", b"3"),
                ("uid", b"4294967294"),
                ("mtime", b"-1.5"),
                ("SCHILY.xattr.user.a", b"\0\n"),
            ],
        ),
        {
            let mut bytes = Raw::new("a", b'0').size(999).block();
            bytes.extend_from_slice(b"abc");
            bytes.resize(1024, 0);
            bytes
        },
        pax(b'x', &[("uid", b"7")]),
        pax(b'g', &[]),
        Raw::new("b", b'0').block(),
    ];
    let found = read(&archive(&parts)).unwrap();
    let (a, content) = &found[0];
    assert_eq!((a.uid, a.gid, a.size_bytes), (u32::MAX - 1, 0, 3));
    assert_eq!(a.mtime, Timespec::new(-2, 500_000_000));
    assert_eq!(a.xattrs, [("user.a".into(), b"\0\n".to_vec())]);
    assert_eq!(content, b"abc");
    // A global header is an entry of its own: what precedes it is not about the next one.
    assert_eq!((&found[1].0.name, found[1].0.uid), (&"b".into(), 0));
}

#[test]
fn the_later_of_two_extended_headers_counts() {
    let long = |name: &str| Raw::new("././@LongLink", b'L').data(name.as_bytes());
    let file = Raw::new("a", b'0').block();
    let of = |headers: &[Vec<u8>]| {
        let parts: Vec<_> = headers.iter().chain([&file]).cloned().collect();
        one(&parts)
    };
    assert_eq!(of(&[long("b\0"), long("c\0")]).name, "c");
    assert_eq!(of(&[long("b\0"), pax(b'x', &[("path", b"c")])]).name, "b");
    assert_eq!(of(&[long("\0b"), pax(b'x', &[("path", b"c")])]).name, "c");
    // All of a replaced PAX header is ignored, even what is malformed in it.
    let first = pax(b'x', &[("path", b"c"), ("uid", b"x")]);
    let entry = of(&[first, pax(b'x', &[("gid", b"3")])]);
    assert_eq!((entry.name, entry.gid), ("a".into(), 3));
}

#[test]
fn sparse_files_of_every_format() {
    let expect = |entry: &Entry, content: &[u8]| {
        assert_eq!(entry.name, "sparse");
        assert_eq!((entry.size_bytes, entry.payload_bytes), (10_000, 6));
        let ranges = entry.ranges.as_ref().unwrap();
        assert_eq!(
            ranges.as_slice(),
            [
                Range {
                    offset: 5,
                    length: 2
                },
                Range {
                    offset: 9_000,
                    length: 4
                }
            ]
        );
        assert_eq!(content, b"abcdef");
    };
    let check = |parts: &[Vec<u8>]| {
        let found = read(&archive(parts)).unwrap();
        expect(&found[0].0, &found[0].1);
    };
    // PAX 0.0, 0.1, 1.0.
    check(&[
        pax(
            b'x',
            &[
                ("GNU.sparse.size", b"10000"),
                ("GNU.sparse.numblocks", b"2"),
                ("GNU.sparse.offset", b"5"),
                ("GNU.sparse.numbytes", b"2"),
                ("GNU.sparse.offset", b"9000"),
                ("GNU.sparse.numbytes", b"4"),
            ],
        ),
        Raw::new("sparse", b'0').data(b"abcdef"),
    ]);
    check(&[
        pax(
            b'x',
            &[
                ("GNU.sparse.major", b"0"),
                ("GNU.sparse.minor", b"1"),
                ("GNU.sparse.size", b"10000"),
                ("GNU.sparse.name", b"sparse"),
                ("GNU.sparse.numblocks", b"3"),
                ("GNU.sparse.map", b"5,2,9000,4,10000,0"),
            ],
        ),
        Raw::new("GNUSparseFile.1/sparse", b'0').data(b"abcdef"),
    ]);
    let mut content = b"3\n5\n2\n9000\n4\n10000\n0\n".to_vec();
    content.resize(512, 0);
    content.extend_from_slice(b"abcdef");
    let one_dot_zero = |size: Option<&[u8]>| {
        let mut records = vec![
            ("GNU.sparse.major", &b"1"[..]),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.realsize", b"10000"),
            ("GNU.sparse.name", b"sparse"),
        ];
        records.extend(size.map(|size| ("size", size)));
        [
            pax(b'x', &records),
            Raw::new("GNUSparseFile.1/sparse", b'0').data(&content),
        ]
    };
    check(&one_dot_zero(None));
    // A PAX size includes the map.
    check(&one_dot_zero(Some(b"518")));
    // GNU's own: four ranges in the header, the others in blocks.
    let descriptor =
        |offset: u64, length: u64| format!("{offset:011o}\0{length:011o}\0").into_bytes();
    let gnu = |ranges: &[(u64, u64)], more: bool| {
        let pairs: Vec<u8> = ranges
            .iter()
            .flat_map(|&(offset, length)| descriptor(offset, length))
            .collect();
        Raw::new("sparse", b'S')
            .size(6)
            .put(field::MAGIC, "ustar ")
            .put(field::VERSION, " \0")
            .put(field::GNU_SPARSE, pairs)
            .put(482..483, [u8::from(more)])
            .put(field::GNU_REAL_SIZE, "00000023420\0")
            .block()
    };
    let mut content = b"abcdef".to_vec();
    content.resize(512, 0);
    check(&[
        gnu(&[(5, 2), (9000, 4), (10_000, 0)], false),
        content.clone(),
    ]);
    let mut extension = descriptor(9000, 4);
    extension.resize(512, 0);
    check(&[gnu(&[(5, 2)], true), extension, content.clone()]);
    // Holes only.
    let entry = one(&[
        pax(
            b'x',
            &[
                ("GNU.sparse.major", b"0"),
                ("GNU.sparse.minor", b"1"),
                ("GNU.sparse.size", b"5000"),
                ("GNU.sparse.numblocks", b"0"),
                ("GNU.sparse.map", b""),
            ],
        ),
        Raw::new("sparse", b'0').block(),
    ]);
    assert_eq!((entry.size_bytes, entry.ranges), (5000, Some(Vec::new())));
    // An unknown version is ignored, and so is a size alone.
    for records in [
        &[("GNU.sparse.major", &b"2"[..]), ("GNU.sparse.minor", b"0")][..],
        &[("GNU.sparse.size", b"5000")],
    ] {
        let entry = one(&[pax(b'x', records), Raw::new("a", b'0').data(b"abc")]);
        assert_eq!((entry.size_bytes, entry.ranges), (3, None));
    }
}

#[test]
fn invalid_headers_are_refused() {
    let file = || Raw::new("a", b'0').block();
    let put = |at: Place<usize>, bytes: &[u8]| [Raw::new("a", b'0').put(at, bytes).block()];
    refused(&put(field::SIZE, b"0000000000x"), "size is not a number");
    refused(&put(field::SIZE, &[0xff; 12]), "size is negative");
    refused(&put(field::MODE, b"-000644"), "mode is not a number");
    refused(&put(field::UID, b"0 0"), "uid is not a number");
    // Device numbers are checked for every type, except in other dialects.
    refused(
        &put(field::DEV_MAJOR, b"none"),
        "device number is not a number",
    );
    refused(
        &[pax(b'x', &[("ctime", b"x")]), file()],
        "ctime that is not a number",
    );
    refused(&[pax(b'x', &[("size", b"-1")]), file()], "size is negative");
    let mut bad_sum = file();
    bad_sum[0] = b'b';
    refused(&[bad_sum], "checksum");
    refused(&[vec![0; 512], file()], "lone block of zeros");
    refused(&[Raw::new("x", b'x').data(b"9 path=x"), file()], "PAX");
    refused(&[Raw::new("x", b'g').data(b"9 path=x"), file()], "PAX");
    // Of other dialects.
    refused(&[Raw::new("s", b'S').block()], "another dialect");
    let sparse = |typeflag, map: &[u8], count: &[u8], content: &[u8]| {
        [
            pax(
                b'x',
                &[
                    ("GNU.sparse.major", b"0"),
                    ("GNU.sparse.minor", b"1"),
                    ("GNU.sparse.size", b"10"),
                    ("GNU.sparse.numblocks", count),
                    ("GNU.sparse.map", map),
                ],
            ),
            Raw::new("a", typeflag).data(content),
        ]
    };
    refused(&sparse(b'0', b"5,2", b"1", b"abc"), "add up");
    refused(&sparse(b'0', b"9,2", b"1", b"ab"), "beyond");
    refused(&sparse(b'0', b"5,2,6,1", b"2", b"abc"), "overlap");
    refused(
        &sparse(b'0', b"18446744073709551615,2", b"1", b"ab"),
        "not a number",
    );
    refused(
        &sparse(b'0', b"9223372036854775807,2", b"1", b"ab"),
        "beyond",
    );
    refused(&sparse(b'0', b"-1,2", b"1", b"ab"), "negative");
    refused(&sparse(b'0', b"5,2", b"2", b"ab"), "stated length");
    refused(&sparse(b'0', b"5,2,6", b"1", b"ab"), "stated length");
    refused(&sparse(b'0', b"5,2", b"", b"ab"), "not a number");
    refused(&sparse(b'5', b"5,2", b"1", b""), "can't have any");
    let mut huge = b"999999999999\n".to_vec();
    huge.resize(512, 0);
    refused(
        &[
            pax(
                b'x',
                &[
                    ("GNU.sparse.major", b"1"),
                    ("GNU.sparse.minor", b"0"),
                    ("GNU.sparse.realsize", b"1"),
                ],
            ),
            Raw::new("a", b'0').data(&huge),
        ],
        "limit",
    );
}

#[test]
fn limits_are_named() {
    let check =
        |limits: Limits, parts: &[Vec<u8>], name: &str| match read_with(&archive(parts), &limits) {
            Err(Error::Limit { limit, .. }) => assert_eq!(limit, name),
            other => panic!("{other:?}, expected {name}"),
        };
    let file = Raw::new("a/b/c", b'0').data(b"abc");
    let limits = Limits::default;
    check(
        Limits {
            max_entries: 1,
            ..limits()
        },
        &[file.clone(), file.clone()],
        "the number of entries",
    );
    check(
        Limits {
            max_file_bytes: 2,
            ..limits()
        },
        std::slice::from_ref(&file),
        "the size of a file",
    );
    let header = pax(b'x', &[("comment", &[b'x'; 500])]);
    let limits = Limits {
        max_header_bytes: 510,
        ..limits()
    };
    check(
        limits.clone(),
        &[header.clone(), file.clone()],
        "the size of an extended header",
    );
    let limits = Limits {
        max_header_bytes: 520,
        ..limits
    };
    assert!(read_with(&archive(&[header.clone(), file.clone()]), &limits).is_ok());
    let mut parts = vec![header; 20];
    parts.push(file);
    check(limits, &parts, "the extended headers of one entry");
}

#[test]
fn random_damage_never_panics_and_never_loses_a_byte() {
    let bytes = archive(&[
        pax(b'x', &[("path", b"a"), ("SCHILY.xattr.user.a", b"v")]),
        Raw::new("a", b'0').data(&[7; 700]),
        pax(
            b'x',
            &[
                ("GNU.sparse.major", b"0"),
                ("GNU.sparse.minor", b"1"),
                ("GNU.sparse.size", b"9"),
                ("GNU.sparse.numblocks", b"1"),
                ("GNU.sparse.map", b"1,2"),
            ],
        ),
        Raw::new("s", b'0').data(b"xy"),
        Raw::new("l", b'2').link("a").block(),
    ]);
    let mut rng = vellum_testkit::Rng::for_test("tar reader, random damage");
    for _ in 0..3000 {
        let mut damaged = bytes.clone();
        for _ in 0..1 + rng.below(3) {
            let at = rng.below(damaged.len());
            damaged[at] = rng.next() as u8;
            // Otherwise the checksum would keep most damage from being looked at.
            let block = at / 512 * 512;
            if rng.chance(80) && damaged[block + 257..block + 262] == *b"ustar" {
                let header: &mut Block = (&mut damaged[block..block + 512]).try_into().unwrap();
                seal(header);
            }
        }
        // `read` itself asserts that what was accepted is complete.
        let _ = read(&damaged);
    }
}
