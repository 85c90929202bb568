//! Random odd archives: headers of every dialect whose fields are right, nearly right, or anything.
//!
//! The result is mostly well-formed, since an archive ends at its first error; oddities come one at
//! a time, where readers differ.

use vellum_testkit::Rng;

const BLOCK: usize = 512;

/// Returns a whole archive.
pub fn archive(rng: &mut Rng) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..1 + rng.below(4) {
        member(rng, &mut bytes);
    }
    match rng.below(12) {
        0..=3 => bytes.extend_from_slice(&[0; 2 * BLOCK]),
        4 => bytes.extend_from_slice(&[0; BLOCK]),
        5 => bytes.extend_from_slice(&[0; 700]),
        6 => bytes.truncate(bytes.len() - rng.below(bytes.len().min(600))),
        7 => bytes.truncate(rng.below(bytes.len())),
        8 => {
            bytes.extend_from_slice(&[0; BLOCK]);
            bytes.extend_from_slice(&rng.bytes(1500));
        }
        9 => {
            bytes.extend_from_slice(&[0; 2 * BLOCK]);
            bytes.extend_from_slice(&rng.bytes(1500));
        }
        _ => {}
    }
    bytes
}

/// One entry with any extended headers before it.
fn member(rng: &mut Rng, out: &mut Vec<u8>) {
    for _ in 0..rng.below(3) {
        extension(rng, out);
    }
    match rng.below(8) {
        0 => gnu_sparse(rng, out),
        1 | 2 => pax_sparse(rng, out),
        _ => {
            let typeflag = *rng.pick(b"00000\0\0\x005522113344667SVDMNXAZ");
            let content = content(rng);
            let mut header = Header::new(rng, typeflag);
            header.size(rng, content.len());
            let has_content = !matches!(typeflag, b'1'..=b'6') || rng.chance(1);
            header.write(rng, if has_content { &content } else { b"" }, out);
        }
    }
}

fn content(rng: &mut Rng) -> Vec<u8> {
    match rng.below(4) {
        0 => Vec::new(),
        1 => vec![7; BLOCK],
        _ => rng.bytes(1200),
    }
}

/// A PAX header, a global one, or a long name.
fn extension(rng: &mut Rng, out: &mut Vec<u8>) {
    let typeflag = *rng.pick(b"xxxxxgLLK");
    let content = match typeflag {
        b'x' | b'g' => records(rng),
        _ => {
            let mut name = name(rng);
            name.extend_from_slice([&b"\0"[..], b"", b"\0\0", b"\0junk"][rng.below(4)]);
            name
        }
    };
    let mut header = Header::new(rng, typeflag);
    header.size(rng, content.len());
    header.write(rng, &content, out);
}

/// A header that may become stranger.
struct Header([u8; BLOCK]);

impl Header {
    fn new(rng: &mut Rng, typeflag: u8) -> Self {
        let mut header = Header([0; BLOCK]);
        header.put(0, &name(rng));
        for (at, width) in [(100, 8), (108, 8), (116, 8), (136, 12)] {
            let value = rng.below(0o7777) as u64;
            header.number(rng, at, width, value);
        }
        header.0[156] = typeflag;
        if rng.chance(60) || matches!(typeflag, b'1' | b'2') {
            header.put(157, &name(rng));
        }
        let magic: &[u8] = match rng.below(12) {
            0..=5 => b"ustar\x0000",
            6..=8 => b"ustar  \0",
            9 => b"ustar\0  ",
            10 => b"ustar 00",
            _ => b"",
        };
        header.put(257, magic);
        if rng.chance(60) {
            header.put(265, b"user");
            header.number(rng, 329, 8, 1);
            header.number(rng, 337, 8, 3);
        }
        match rng.below(12) {
            0 => header.put(345, b"prefix"),
            1 => header.put(345, b"14000000000\x0014000000001\0"),
            2 => header.put(345, &rng.bytes(155)),
            3 => header.put(345, &[b'p'; 155]),
            4 => {
                header.number(rng, 345, 12, 1);
                header.number(rng, 357, 12, 2);
            }
            _ => {}
        }
        if rng.chance(8) {
            header.put(508, b"tar\0");
            if rng.chance(50) {
                header.number(rng, 476, 12, 1);
                header.number(rng, 488, 12, 2);
            }
        }
        header
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        let n = bytes.len().min(match at {
            0 | 157 => 100,
            345 => 155,
            _ => BLOCK - at,
        });
        self.0[at..at + n].copy_from_slice(&bytes[..n]);
    }

    /// The size of the content that follows, or sometimes another.
    fn size(&mut self, rng: &mut Rng, size: usize) {
        let size = match rng.chance(1) {
            true => rng.below(3000),
            false => size,
        };
        self.number(rng, 124, 12, size as u64);
    }

    /// A number in one of its formats, or sometimes another number, or none.
    fn number(&mut self, rng: &mut Rng, at: usize, width: usize, value: u64) {
        let digits = width - 1;
        let odd = if rng.chance(4) { rng.below(16) } else { 16 };
        let text: Vec<u8> = match odd {
            0 => format!("{value:digits$o} ").into(),
            1 => format!("{value:o}\0 ").into(),
            2 => format!(" {value:o} \0").into(),
            3 => format!("\0 {value:o}\0junk").into(),
            4 => format!("{value:0width$o}").into(),
            5 => [&[0x80][..], &vec![0; width - 7], &value.to_be_bytes()[2..]].concat(),
            6 => vec![b' '; width],
            7 => vec![0; width],
            8 => vec![0xff; width],
            9 => [&vec![0xff; width - 1][..], &[0xfe]].concat(),
            10 => rng.bytes(width),
            11 => format!("+{value:o}\0").into(),
            12 => format!("-{value:o}\0").into(),
            13 => format!("{value:o} 1\0").into(),
            14 => format!("{value:o}8\0").into(),
            15 => {
                let mut bytes = rng.bytes(width);
                bytes.resize(width, 0);
                bytes[0] |= 0x80;
                bytes
            }
            _ => format!("{value:0digits$o}\0").into(),
        };
        self.0[at..at + width].fill(0);
        let n = text.len().min(width);
        self.0[at..at + n].copy_from_slice(&text[..n]);
    }

    /// Writes the header with its checksum, and the content with its padding.
    fn write(mut self, rng: &mut Rng, content: &[u8], out: &mut Vec<u8>) {
        if rng.chance(1) {
            let at = rng.below(BLOCK);
            self.0[at] = rng.next() as u8;
        }
        self.0[148..156].fill(b' ');
        let sum: i64 = match rng.below(10) {
            0 => self.0.iter().map(|&byte| i64::from(byte as i8)).sum(),
            _ => self.0.iter().map(|&byte| i64::from(byte)).sum(),
        };
        let text = match rng.below(120) {
            0 => format!("{sum:07o}\0"),
            1 => format!("{sum:o}"),
            2 => format!(" {sum:o} \0"),
            3 => format!("{:06o}\0 ", sum + 1),
            _ => format!("{sum:06o}\0 "),
        };
        let n = text.len().min(8);
        self.0[148..148 + n].copy_from_slice(&text.as_bytes()[..n]);
        out.extend_from_slice(&self.0);
        out.extend_from_slice(content);
        out.resize(out.len().next_multiple_of(BLOCK), 0);
    }
}

fn name(rng: &mut Rng) -> Vec<u8> {
    match rng.below(16) {
        0 => b"dir/".to_vec(),
        1 => b"./a".to_vec(),
        2 => b"/abs/name".to_vec(),
        3 => b"../up".to_vec(),
        4 => Vec::new(),
        5 => b"b\xff\xfen".to_vec(),
        6 => "l\u{e4}nge".into(),
        7 => b"cut\0short".to_vec(),
        8 => vec![b'n'; 100],
        9 => vec![b'n'; 130],
        10 => [vec![b'd'; 99], b"/".to_vec(), vec![b'e'; 30]].concat(),
        11 => vec![b'/'; 2 + rng.below(3)],
        _ => vec![b"abcd"[rng.below(4)]],
    }
}

const KEYS: [&[u8]; 20] = [
    b"path",
    b"path",
    b"linkpath",
    b"uid",
    b"uid",
    b"gid",
    b"mtime",
    b"mtime",
    b"atime",
    b"ctime",
    b"uname",
    b"gname",
    b"comment",
    b"hdrcharset",
    b"SCHILY.xattr.user.a",
    b"SCHILY.xattr.user.a",
    b"SCHILY.xattr.user.b",
    b"SCHILY.xattr.",
    b"LIBARCHIVE.xattr.user.a",
    b"size",
];

const SPARSE_KEYS: [&[u8]; 9] = [
    b"GNU.sparse.major",
    b"GNU.sparse.minor",
    b"GNU.sparse.name",
    b"GNU.sparse.size",
    b"GNU.sparse.realsize",
    b"GNU.sparse.numblocks",
    b"GNU.sparse.map",
    b"GNU.sparse.offset",
    b"GNU.sparse.numbytes",
];

/// Records of a PAX header.
fn records(rng: &mut Rng) -> Vec<u8> {
    let mut out = Vec::new();
    for _ in 0..rng.below(4) {
        let key = *rng.pick(&KEYS);
        // Records about holes come with a sparse file, and hardly ever without.
        let key = match rng.below(60) {
            0 => *rng.pick(&SPARSE_KEYS),
            _ => key,
        };
        let value = match key {
            b"path" | b"linkpath" | b"uname" | b"gname" | b"GNU.sparse.name" => name(rng),
            b"SCHILY.xattr.user.a" | b"comment" => rng.bytes(40),
            b"mtime" | b"atime" | b"ctime" => time(rng),
            b"size" if rng.chance(90) => rng.below(1500).to_string().into(),
            _ => decimal(rng),
        };
        out.extend_from_slice(&record(rng, key, &value));
    }
    if rng.chance(1) {
        out.extend_from_slice([&b"\n"[..], b"\0", b"\0\0\0\0", b"7", b"7 "][rng.below(5)]);
    }
    out
}

fn record(rng: &mut Rng, key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut key = key.to_vec();
    if rng.below(300) == 0 {
        key.insert(rng.below(key.len()), [0, b'=', b' ', 0xff][rng.below(4)]);
    }
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    let (mut start, mut end) = (length.to_string(), "\n");
    match rng.below(600) {
        0 => start = (length + 1).to_string(),
        1 => start = (length - 1).to_string(),
        2 => start = format!("+{}", length + 1),
        3 => start = format!("000{}", length + 3),
        4 => start = String::new(),
        5 => start = "18446744073709551617".into(),
        6 => start = format!("-{length}"),
        7 => end = "",
        8 => end = "\r",
        9 => start = "4".into(),
        _ => {}
    }
    [
        start.as_bytes(),
        b" ",
        &key,
        if rng.below(600) == 0 { b"" } else { b"=" },
        value,
        end.as_bytes(),
    ]
    .concat()
}

fn time(rng: &mut Rng) -> Vec<u8> {
    let odd = [
        "",
        "0",
        "1.5",
        "-1.5",
        "-0.25",
        "1.",
        ".5",
        "+7",
        "1.0000000009",
        "1.12345678901234567890",
        "1.5x",
        "1e9",
        "9223372036854775807",
        "-9223372036854775808.5",
        "9223372036854775808",
        "--1",
        "1.-5",
        " 1",
    ];
    match rng.chance(85) {
        true => format!("{}.{:09}", rng.below(2_000_000_000), rng.below(1 << 29)).into(),
        false => (*rng.pick(&odd)).into(),
    }
}

fn decimal(rng: &mut Rng) -> Vec<u8> {
    let odd = [
        "",
        "-1",
        "-2",
        "+5",
        "007",
        "4294967294",
        "4294967295",
        "4294967296",
        "9223372036854775807",
        "9223372036854775808",
        "-9223372036854775808",
        "0x10",
        "1_000",
        "1.0",
        "x",
        " 1",
        "1 ",
        "1\0",
    ];
    match rng.chance(88) {
        true => rng.below(3).to_string().into(),
        false => (*rng.pick(&odd)).into(),
    }
}

/// Ranges of a sparse file, its size, and the bytes in the ranges. Nearly always they match.
fn holes(rng: &mut Rng, most: usize) -> (Vec<(u64, u64)>, u64, Vec<u8>) {
    let mut ranges = Vec::new();
    let mut end = 0;
    let mut sum = 0;
    for _ in 0..rng.below(most) {
        let length = rng.below(200) as u64;
        let offset = end + rng.below(300) as u64;
        ranges.push((offset, length));
        end = offset + length;
        sum += length as usize;
    }
    let mut size = end + rng.below(1000) as u64;
    if rng.chance(30) {
        ranges.push((size, 0));
    }
    let mut bytes: Vec<u8> = (0..sum).map(|at| at as u8).collect();
    match rng.below(80) {
        0 => size /= 2,
        1 => bytes.push(1),
        2 => drop(bytes.pop()),
        3 => ranges.reverse(),
        4 => ranges.extend(ranges.last().copied()),
        5 => ranges.push((1 << 63, 1)),
        6 => ranges.push((u64::MAX, 1)),
        _ => {}
    }
    (ranges, size, bytes)
}

/// GNU tar's old format: pairs in the header and in blocks after it.
fn gnu_sparse(rng: &mut Rng, out: &mut Vec<u8>) {
    let (ranges, size, bytes) = holes(rng, 40);
    let mut header = Header::new(rng, b'S');
    if rng.chance(95) {
        header.put(257, b"ustar  \0");
    }
    header.0[345..508].fill(0);
    header.size(rng, bytes.len());
    header.number(rng, 483, 12, size);
    let pair = |&(offset, length): &(u64, u64)| {
        let number = |n: u64| format!("{n:011o}\0").into_bytes()[..12].to_vec();
        [number(offset), number(length)].concat()
    };
    let (own, more) = ranges.split_at(ranges.len().min(4));
    header.put(386, &own.iter().flat_map(pair).collect::<Vec<_>>());
    header.0[482] = u8::from(!more.is_empty()) * (1 + rng.below(3) as u8);
    let mut blocks = Vec::new();
    let mut chunks = more.chunks(21).peekable();
    while let Some(chunk) = chunks.next() {
        let mut block: Vec<u8> = chunk.iter().flat_map(pair).collect();
        block.resize(BLOCK, 0);
        block[504] = u8::from(chunks.peek().is_some());
        blocks.extend_from_slice(&block);
    }
    header.write(rng, &blocks, out);
    out.extend_from_slice(&bytes);
    out.resize(out.len().next_multiple_of(BLOCK), 0);
}

/// The formats in PAX records.
fn pax_sparse(rng: &mut Rng, out: &mut Vec<u8>) {
    let (ranges, size, mut bytes) = holes(rng, 12);
    let mut records = Vec::new();
    let mut say = |rng: &mut Rng, key: &str, value: &str| {
        if rng.chance(99) {
            records.extend_from_slice(&record(
                rng,
                format!("GNU.sparse.{key}").as_bytes(),
                value.as_bytes(),
            ));
        }
    };
    let count = ranges.len().to_string();
    let version = rng.below(4);
    match version {
        0 => {
            say(rng, "size", &size.to_string());
            say(rng, "numblocks", &count);
            for (offset, length) in &ranges {
                say(rng, "offset", &offset.to_string());
                say(rng, "numbytes", &length.to_string());
            }
        }
        1 => {
            if rng.chance(70) {
                say(rng, "major", "0");
                say(rng, "minor", "1");
            }
            say(rng, "size", &size.to_string());
            say(rng, "numblocks", &count);
            let numbers = ranges
                .iter()
                .flat_map(|(offset, length)| [offset.to_string(), length.to_string()]);
            say(rng, "map", &numbers.collect::<Vec<_>>().join(","));
        }
        2 => {
            say(rng, "major", "1");
            say(rng, "minor", "0");
            say(rng, "realsize", &size.to_string());
            let mut map = format!("{count}\n");
            for (offset, length) in &ranges {
                map += &format!("{offset}\n{length}\n");
            }
            match rng.below(30) {
                0 => map = map.replace('\n', ""),
                1 => map = format!("+000000000000000000000{map}"),
                2 => map = map.replacen('\n', "x\n", 1),
                3 => map += "7\nnot read\n",
                _ => {}
            }
            let mut whole = map.into_bytes();
            whole.resize(whole.len().next_multiple_of(BLOCK), 0);
            whole.extend_from_slice(&bytes);
            bytes = whole;
        }
        _ => {
            for key in ["major", "minor"] {
                let number = rng.below(3).to_string();
                say(rng, key, &number);
            }
            say(rng, "size", &size.to_string());
        }
    }
    if rng.chance(50) {
        say(rng, "name", "named");
    }
    let mut header = Header::new(rng, b'x');
    header.size(rng, records.len());
    header.write(rng, &records, out);
    let typeflag = *rng.pick(b"00000000000000000000000\x0075");
    let mut header = Header::new(rng, typeflag);
    header.size(rng, bytes.len());
    header.write(rng, &bytes, out);
}
