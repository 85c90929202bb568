//! Hand-made archives: what is read, and what is refused.

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

/// A header under construction: a regular, empty file of root's unless said otherwise.
#[derive(Clone)]
pub(crate) struct Raw(pub Header);

impl Raw {
    pub fn new(name: &str, typeflag: u8) -> Self {
        let mut header = Header::new_ustar();
        let ustar = header.as_ustar_mut();
        ustar.name[..name.len()].copy_from_slice(name.as_bytes());
        ustar.typeflag = [typeflag];
        ustar.mode = *b"0000644\0";
        ustar.uid = *b"0000000\0";
        ustar.gid = *b"0000000\0";
        ustar.size = *b"00000000000\0";
        ustar.mtime = *b"00000000007\0";
        ustar.dev_major = *b"0000000\0";
        ustar.dev_minor = *b"0000000\0";
        Raw(header)
    }

    pub fn with(mut self, change: impl FnOnce(&mut tar_core::UstarHeader)) -> Self {
        change(self.0.as_ustar_mut());
        self
    }

    pub fn mode(self, mode: u32) -> Self {
        self.with(|h| h.mode.copy_from_slice(format!("{mode:07o}\0").as_bytes()))
    }

    pub fn owner(self, uid: u32, gid: u32) -> Self {
        self.with(|h| {
            h.uid.copy_from_slice(format!("{uid:07o}\0").as_bytes());
            h.gid.copy_from_slice(format!("{gid:07o}\0").as_bytes());
        })
    }

    pub fn size(self, size: u64) -> Self {
        self.with(|h| h.size.copy_from_slice(format!("{size:011o}\0").as_bytes()))
    }

    pub fn link(self, target: &str) -> Self {
        self.with(|h| h.linkname[..target.len()].copy_from_slice(target.as_bytes()))
    }

    pub fn block(mut self) -> Vec<u8> {
        self.0.set_checksum();
        self.0.as_bytes().to_vec()
    }

    /// The header with `content`, whose length it says, and padding.
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
fn empty_archives_and_end_markers() {
    assert_eq!(read(b"").unwrap().len(), 0);
    assert_eq!(read(&[0; 512]).unwrap().len(), 0);
    assert_eq!(read(&[0; 1024]).unwrap().len(), 0);
    assert_eq!(read(&[0; 10240]).unwrap().len(), 0);
    // Whatever stands behind the end marker belongs to the layer's bytes and to nothing else.
    let mut bytes = archive(&[Raw::new("a", b'0').data(b"x")]);
    bytes.extend_from_slice(b"trailing junk");
    assert_eq!(read(&bytes).unwrap().len(), 1);
}

#[test]
fn truncated_archives_are_errors() {
    let bytes = archive(&[
        pax(b'x', &[("path", b"longer")]),
        Raw::new("a", b'0').data(&[7; 700]),
        Raw::new("b", b'5').block(),
    ]);
    for cut in 1..bytes.len() - 512 {
        let error = read(&bytes[..cut]).expect_err(&format!("cut at {cut}"));
        assert!(matches!(error, Error::Truncated { .. }), "{cut}: {error}");
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
        .with(|h| {
            h.dev_major = *b"0000001\0";
            h.dev_minor = *b"0000003\0";
        })
        .block()]);
    assert_eq!((entry.kind, entry.rdev), (EntryKind::Character, (1, 3)));
    assert_eq!(
        one(&[Raw::new("old/", 0).block()]).kind,
        EntryKind::Directory
    );
    assert_eq!(one(&[Raw::new("old", 0).block()]).kind, EntryKind::File);
    assert_eq!(one(&[Raw::new("c", b'7').block()]).kind, EntryKind::File);
    // A hard link says its target's size and has no content.
    let found = read(&archive(&[
        Raw::new("a", b'0').data(b"abc"),
        Raw::new("b", b'1').link("a").size(3).block(),
    ]))
    .unwrap();
    assert_eq!(
        (found[1].0.kind, found[1].0.payload_bytes),
        (EntryKind::HardLink, 0)
    );
    let entry = one(&[Raw::new("big", b'0')
        .with(|h| {
            h.uid = [0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xfe];
            h.mtime = [0xff; 12];
        })
        .block()]);
    assert_eq!(
        (entry.uid, entry.mtime),
        (u32::MAX - 1, Timespec::new(-1, 0))
    );
}

#[test]
fn names_of_every_dialect() {
    let prefixed = |magic: &[u8; 8]| {
        Raw::new("name", b'0')
            .with(|h| {
                h.magic.copy_from_slice(&magic[..6]);
                h.version.copy_from_slice(&magic[6..]);
                h.prefix[..6].copy_from_slice(b"prefix");
            })
            .block()
    };
    assert_eq!(one(&[prefixed(b"ustar\x0000")]).name, "prefix/name");
    // Go before 1.8 wrote a prefix into GNU headers.
    assert_eq!(one(&[prefixed(b"ustar  \0")]).name, "prefix/name");
    assert_eq!(one(&[prefixed(b"\0\0\0\0\0\0\0\0")]).name, "name");
    let times = Raw::new("name", b'0').with(|h| {
        h.magic = *b"ustar ";
        h.version = *b" \0";
        h.prefix[..24].copy_from_slice(b"14000000000\x0014000000001\0");
    });
    assert_eq!(one(&[times.block()]).name, "name");
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
fn pax_records_win_and_globals_are_defaults() {
    let parts = [
        pax(b'g', &[("uid", b"5"), ("gid", b"6"), ("comment", b"x")]),
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
        Raw::new("b", b'0').block(),
    ];
    let found = read(&archive(&parts)).unwrap();
    let (a, content) = &found[0];
    assert_eq!((a.uid, a.gid, a.size_bytes), (u32::MAX - 1, 6, 3));
    assert_eq!(a.mtime, Timespec::new(-2, 500_000_000));
    assert_eq!(a.xattrs, [("user.a".into(), b"\0\n".to_vec())]);
    assert_eq!(content, b"abc");
    assert_eq!((found[1].0.uid, found[1].0.gid), (5, 6));
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
    // A PAX size counts the map, too.
    check(&one_dot_zero(Some(b"518")));
    // GNU's own: four ranges in the header, the others in blocks.
    let descriptor =
        |offset: u64, length: u64| format!("{offset:011o}\0{length:011o}\0").into_bytes();
    let gnu = |ranges: &[(u64, u64)], more: bool| {
        let mut raw = Raw::new("sparse", b'S').size(6).with(|h| {
            h.magic = *b"ustar ";
            h.version = *b" \0";
        });
        let block = raw.0.as_mut_bytes();
        for (i, &(offset, length)) in ranges.iter().enumerate() {
            block[386 + i * 24..386 + (i + 1) * 24].copy_from_slice(&descriptor(offset, length));
        }
        block[482] = u8::from(more);
        block[483..495].copy_from_slice(b"00000023420\0");
        raw.block()
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
                ("GNU.sparse.map", b""),
            ],
        ),
        Raw::new("sparse", b'0').block(),
    ]);
    assert_eq!((entry.size_bytes, entry.ranges), (5000, Some(Vec::new())));
}

#[test]
fn contradictions_and_nonsense_are_refused() {
    let file = || Raw::new("a", b'0').block();
    refused(&[Raw::new("", b'0').block()], "no name");
    refused(&[Raw::new("l", b'2').block()], "without a target");
    refused(&[Raw::new("d", b'5').data(b"content")], "can't have any");
    refused(
        &[Raw::new("d", b'2').link("x").data(b"content")],
        "can't have any",
    );
    refused(&[Raw::new("a", b'Z').block()], "type 'Z'");
    refused(
        &[Raw::new("a", b'0')
            .with(|h| h.size = *b"0000000000x\0")
            .block()],
        "size is no number",
    );
    refused(
        &[Raw::new("a", b'0').with(|h| h.size = [0xff; 12]).block()],
        "size is negative",
    );
    refused(
        &[Raw::new("a", b'0').with(|h| h.uid = [0xff; 8]).block()],
        "uid is negative",
    );
    refused(
        &[Raw::new("a", b'0')
            .with(|h| h.uid = [0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff])
            .block()],
        "uid is too large",
    );
    refused(
        &[Raw::new("n", b'3')
            .with(|h| h.dev_major = *b"7777777\0")
            .block()],
        "out of range",
    );
    let mut bad_sum = file();
    bad_sum[0] = b'b';
    refused(&[bad_sum], "checksum");
    refused(&[vec![0; 512], file()], "lone block of zeros");
    refused(&[pax(b'x', &[("path", b"x")])], "belongs to no entry");
    refused(&[pax(b'x', &[]), pax(b'x', &[]), file()], "two PAX headers");
    let long = Raw::new("././@LongLink", b'L').data(b"b\0");
    refused(&[long.clone(), long.clone(), file()], "two long names");
    refused(&[long, pax(b'x', &[("path", b"c")]), file()], "differ");
    refused(&[pax(b'g', &[("path", b"c")]), file()], "every file");
    refused(&[Raw::new("x", b'x').data(b"9 path=x"), file()], "PAX");
    let sparse = |map: &[u8], size: &[u8], content: &[u8]| {
        [
            pax(
                b'x',
                &[
                    ("GNU.sparse.major", b"0"),
                    ("GNU.sparse.minor", b"1"),
                    ("GNU.sparse.size", size),
                    ("GNU.sparse.map", map),
                ],
            ),
            Raw::new("a", b'0').data(content),
        ]
    };
    refused(&sparse(b"5,2", b"10", b"abc"), "add up");
    refused(&sparse(b"5,2", b"6", b"ab"), "beyond");
    refused(&sparse(b"5,2,6,1", b"10", b"abc"), "overlap");
    refused(&sparse(b"18446744073709551615,2", b"10", b"ab"), "beyond");
    refused(
        &[
            pax(
                b'x',
                &[
                    ("GNU.sparse.major", b"2"),
                    ("GNU.sparse.minor", b"0"),
                    ("GNU.sparse.realsize", b"1"),
                ],
            ),
            file(),
        ],
        "unknown version",
    );
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
            max_path_bytes: 4,
            ..limits()
        },
        std::slice::from_ref(&file),
        "the length of a name",
    );
    check(
        Limits {
            max_file_bytes: 2,
            ..limits()
        },
        std::slice::from_ref(&file),
        "the size of a file",
    );
    check(
        Limits {
            max_header_bytes: 600,
            ..limits()
        },
        &[pax(b'x', &[("comment", &[b'x'; 500])]), file.clone()],
        "the extended headers of one entry",
    );
    check(
        Limits {
            max_xattr_bytes: 10,
            ..limits()
        },
        &[pax(b'x', &[("SCHILY.xattr.user.a", b"12345")]), file],
        "the extended attributes of one entry",
    );
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
                let mut header =
                    *Header::from_bytes(damaged[block..block + 512].try_into().unwrap());
                header.set_checksum();
                damaged[block..block + 512].copy_from_slice(header.as_bytes());
            }
        }
        // `read` itself asserts that what was accepted is complete.
        let _ = read(&damaged);
    }
}
