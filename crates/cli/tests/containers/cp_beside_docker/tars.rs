//! Tars byte by byte: what `cp -` is given, well formed and not.

use std::io::Write;

use vellum_image::Compression;
use vellum_image::compression::Encoder;

use super::fixture::CAPABILITY;

/// A tar under construction.
#[derive(Clone, Default)]
pub struct Tar(Vec<u8>);

impl Tar {
    pub fn entry(
        mut self,
        kind: u8,
        name: &str,
        mode: u32,
        owner: u32,
        link: &str,
        data: &[u8],
    ) -> Self {
        let mut header = [0; 512];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, name.as_bytes());
        put(100, format!("{mode:07o}").as_bytes());
        put(108, format!("{owner:07o}").as_bytes());
        put(116, format!("{:07o}", owner / 2).as_bytes());
        put(124, format!("{:011o}", data.len()).as_bytes());
        put(136, format!("{:011o}", 1_400_000_000).as_bytes());
        put(148, b"        ");
        put(156, &[kind]);
        put(157, link.as_bytes());
        put(257, b"ustar\x0000");
        if kind == b'3' {
            put(329, b"0000001");
            put(337, b"0000003");
        }
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&header);
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn file(self, name: &str, data: &str) -> Self {
        self.entry(b'0', name, 0o644, 0, "", data.as_bytes())
    }

    pub fn dir(self, name: &str) -> Self {
        self.entry(b'5', name, 0o755, 0, "", b"")
    }

    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(b'2', name, 0o777, 0, target, b"")
    }

    pub fn link(self, name: &str, target: &str) -> Self {
        self.entry(b'1', name, 0o644, 0, target, b"")
    }

    pub fn pax(self, kind: u8, key: &str, value: &[u8]) -> Self {
        let body = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
        let mut length = body.len();
        while body.len() + length.to_string().len() != length {
            length = body.len() + length.to_string().len();
        }
        let record = [length.to_string().as_bytes(), &body].concat();
        self.entry(kind, "PaxHeaders/x", 0o644, 0, "", &record)
    }

    /// Returns the bytes, with an end marker.
    pub fn end(&self) -> Vec<u8> {
        [&self.0[..], &[0; 1024]].concat()
    }
}

fn tar() -> Tar {
    Tar::default()
}

/// Returns what is unpacked into `dir`: a name, the bytes, and how the outcome differs from
/// Docker's.
pub fn tars() -> Vec<(&'static str, Vec<u8>, &'static [&'static str])> {
    let whole = tar().file("a", "a").dir("d").file("d/b", "b");
    let mut gzip = Encoder::new(Compression::Gzip, Vec::new()).unwrap();
    gzip.write_all(&whole.end()).unwrap();
    let long =
        |names: usize| format!("{}f", format!("{}/", "n".repeat(200)).repeat(names)).into_bytes();
    let too_long = "n".repeat(300);
    let cut = |bytes: usize| {
        let all = tar().file("a", "a").file("b", &"b".repeat(1000));
        all.0[..all.0.len() - bytes].to_vec()
    };
    let tars = [
        ("a file", tar().file("new", "new")),
        ("a file over a file", tar().file("old", "new")),
        ("a file over one of two names", tar().file("twin-a", "new")),
        (
            "a file over a directory",
            tar().file("a", "a").file("taken-dir", "x").file("z", "z"),
        ),
        (
            "a file over a link to a directory",
            tar().file("taken-link", "x"),
        ),
        (
            "a file over a link to a file",
            tar().file("taken-file-link", "x"),
        ),
        (
            "a file over a dangling link",
            tar().file("taken-dangling", "x"),
        ),
        (
            "a directory over a file",
            tar().file("a", "a").dir("taken-file").file("z", "z"),
        ),
        (
            "a directory over a link",
            tar().dir("taken-link").file("taken-link/x", "x"),
        ),
        (
            "a directory over a dangling link",
            tar().dir("taken-dangling"),
        ),
        (
            "a directory that is there",
            tar().dir("taken-dir").file("taken-dir/x", "x"),
        ),
        (
            "its mode and owner",
            tar().entry(b'5', "taken-dir/", 0o1771, 77, "", b""),
        ),
        (
            "a new directory's",
            tar()
                .entry(b'5', "new/", 0o2750, 77, "", b"")
                .file("new/x", "x"),
        ),
        (
            "a new closed directory",
            tar().entry(b'5', "new/", 0, 77, "", b"").file("new/x", "x"),
        ),
        ("through a link", tar().file("taken-link/x", "x")),
        (
            "deep through a link",
            tar().file("taken-link/new/er/x", "x"),
        ),
        (
            "through a dangling link",
            tar().file("taken-dangling/x", "x"),
        ),
        ("through a file", tar().file("old/x", "x")),
        (
            "through a link to a file",
            tar().file("taken-file-link/x", "x"),
        ),
        (
            "the target itself",
            tar().entry(b'5', "./", 0o700, 9, "", b"").file("./x", "x"),
        ),
        (
            "the target as a file",
            tar().entry(b'0', ".", 0o700, 9, "", b""),
        ),
        (
            "the target by a detour",
            tar().entry(b'5', "a/..", 0o700, 9, "", b""),
        ),
        (
            "the target as the root",
            tar().entry(b'5', "/", 0o700, 9, "", b"").file("x", "x"),
        ),
        (
            "the target's parent",
            tar().entry(b'5', "..", 0o700, 9, "", b""),
        ),
        ("a hard link to itself", tar().link("old", "old")),
        (
            "an absolute name",
            tar().file("/abs", "x").file("/deep/abs", "x"),
        ),
        ("an absolute name that climbs", tar().file("/../abs", "x")),
        ("a name that climbs", tar().file("a", "a").file("../x", "x")),
        ("a name that climbs out", tar().file("../../../../x", "x")),
        (
            "a name that climbs and returns",
            tar().file("../dir/x", "x"),
        ),
        ("a name with a detour", tar().file("none/../x", "x")),
        (
            "a name with a detour through a link",
            tar().file("taken-link/../x", "x"),
        ),
        ("directories that are implied", tar().file("deep/er/x", "x")),
        (
            "slashes",
            tar().file("deep//er///x", "x").file("./././y", "y"),
        ),
        ("a hard link", tar().file("one", "1").link("two", "one")),
        (
            "a hard link in another directory",
            tar().file("one", "1").link("d/two", "./one"),
        ),
        ("a hard link to what was there", tar().link("two", "old")),
        (
            "a hard link through a link",
            tar().link("two", "taken-link/inner"),
        ),
        ("a hard link to a link", tar().link("two", "taken-link")),
        (
            "a hard link to nothing",
            tar().file("a", "a").link("two", "nothing"),
        ),
        ("a hard link over a file", tar().link("taken-file", "old")),
        (
            "a hard link over a directory",
            tar().link("taken-dir", "old"),
        ),
        ("a hard link to a directory", tar().link("two", "taken-dir")),
        ("a hard link that climbs", tar().link("two", "../file")),
        ("a hard link to an absolute name", tar().link("two", "/old")),
        ("a symbolic link", tar().symlink("l", "old")),
        (
            "an absolute symbolic link",
            tar().symlink("l", "/etc/passwd"),
        ),
        (
            "a symbolic link that climbs",
            tar().symlink("l", "../../etc/passwd"),
        ),
        (
            "a symbolic link over a file",
            tar().symlink("old", "taken-file"),
        ),
        (
            "a symbolic link over a link",
            tar().symlink("taken-link", "old"),
        ),
        (
            "a symbolic link over a directory",
            tar().symlink("taken-dir", "old"),
        ),
        (
            "through its own link",
            tar().symlink("l", "taken-dir").file("l/x", "x"),
        ),
        (
            "through a link that changes",
            tar()
                .dir("d")
                .symlink("l", "taken-dir")
                .file("l/x", "x")
                .symlink("l", "d")
                .file("l/y", "y"),
        ),
        (
            "through a link that makes way for itself",
            tar()
                .symlink("l", ".")
                .file("l/x", "x")
                .file("l/l", "file")
                .file("l/y", "y"),
        ),
        (
            "through its own absolute link",
            tar().symlink("l", "/").file("l/planted", "x").dir("l/d"),
        ),
        ("a whiteout", tar().file(".wh.old", "x")),
        ("an opaque mark", tar().file("taken-dir/.wh..wh..opq", "x")),
        (
            "a whiteout that is a directory",
            tar().dir(".wh.taken-dir").file(".wh.taken-dir/x", "x"),
        ),
        (
            "a hard link called like a whiteout",
            tar().link(".wh.two", "old"),
        ),
        (
            "reserved names",
            tar().dir(".wh..wh.plnk").file(".wh..wh.plnk/1.2", "x"),
        ),
        ("a fifo", tar().entry(b'6', "p", 0o620, 9, "", b"")),
        (
            "a fifo over a file",
            tar().entry(b'6', "old", 0o620, 9, "", b""),
        ),
        ("a device", tar().entry(b'3', "null", 0o620, 9, "", b"")),
        (
            "a device over a directory",
            tar().entry(b'3', "taken-dir", 0o620, 9, "", b""),
        ),
        ("twice a file", tar().file("x", "1").file("x", "2")),
        (
            "twice a directory",
            tar().dir("x").entry(b'5', "x", 0o700, 9, "", b""),
        ),
        ("a file, then a directory", tar().file("x", "1").dir("x")),
        ("a directory, then a file", tar().dir("x").file("x", "1")),
        (
            "set-user-id",
            tar().entry(b'0', "s", 0o6755, 1234, "", b"s"),
        ),
        ("no mode", tar().entry(b'0', "s", 0, 1234, "", b"s")),
        (
            "a large owner",
            tar().pax(b'x', "uid", b"1000000").file("big", "x"),
        ),
        (
            "a capability",
            tar()
                .pax(b'x', "SCHILY.xattr.security.capability", CAPABILITY)
                .file("cap", "x"),
        ),
        (
            "a user's attribute",
            tar().pax(b'x', "SCHILY.xattr.user.a", b"b").file("x", "x"),
        ),
        (
            "a user's attribute of a link",
            tar()
                .pax(b'x', "SCHILY.xattr.user.a", b"b")
                .symlink("x", "y"),
        ),
        (
            "a user's attribute of a directory",
            tar()
                .pax(b'x', "SCHILY.xattr.user.a", b"b")
                .dir("taken-dir"),
        ),
        (
            "an attribute of no kind",
            tar()
                .pax(b'x', "SCHILY.xattr.mac.finder", b"b")
                .file("x", "x"),
        ),
        (
            "a long path",
            tar().pax(b'x', "path", &long(14)).file("x", "x"),
        ),
        (
            "a path that is too long",
            tar()
                .file("a", "a")
                .pax(b'x', "path", &long(21))
                .file("x", "x"),
        ),
        (
            "a name that is too long",
            tar()
                .file("a", "a")
                .pax(b'x', "path", too_long.as_bytes())
                .file("x", "x"),
        ),
        (
            "a name of unusual bytes",
            tar().pax(b'x', "path", b"a\nb\\ \x01").file("x", "x"),
        ),
        (
            "records for all",
            tar().pax(b'g', "comment", b"x").file("x", "x"),
        ),
        (
            "an unknown type",
            tar()
                .file("a", "a")
                .entry(b'A', "x", 0o644, 0, "", b"")
                .file("z", "z"),
        ),
        (
            "a contiguous file",
            tar().entry(b'7', "x", 0o644, 0, "", b"x"),
        ),
        (
            "content of a directory",
            tar().entry(b'5', "taken-dir", 0o755, 0, "", b""),
        ),
    ]
    .map(|(name, tar)| (name, tar.end()));
    let bytes = [
        ("nothing", Vec::new()),
        ("an end marker alone", tar().end()),
        ("no end marker", whole.0.clone()),
        ("half an end marker", [&whole.0[..], &[0; 512]].concat()),
        ("a cut file", cut(600)),
        ("a cut padding", cut(10)),
        ("a cut header", cut(1024 + 100)),
        ("a header without its file", cut(1024)),
        (
            "no tar",
            b"no tar at all, but quite a few bytes of text".repeat(40),
        ),
        ("a tar, then none", [&whole.0[..], &[b'x'; 1024]].concat()),
        (
            "bytes after the end",
            [&whole.end()[..], &[b'x'; 70_000]].concat(),
        ),
        ("gzip", gzip.finish().unwrap()),
    ];
    tars.into_iter()
        .chain(bytes)
        .map(|(name, bytes)| (name, bytes, differences(name)))
        .collect()
}

/// Where Vellum differs on purpose.
fn differences(name: &str) -> &'static [&'static str] {
    match name {
        // A link gives a file one more name and changes nothing else; Docker changes its owner to
        // the link's.
        "a hard link to what was there" | "a hard link to an absolute name" => &[
            r#""dir/old": owner: (7, 8) / (0, 0)"#,
            r#""dir/two": owner: (7, 8) / (0, 0)"#,
        ],
        "a hard link called like a whiteout" => &[
            r#""dir/.wh.two": owner: (7, 8) / (0, 0)"#,
            r#""dir/old": owner: (7, 8) / (0, 0)"#,
        ],
        "a hard link over a file" => &[
            r#""dir/old": owner: (7, 8) / (0, 0)"#,
            r#""dir/taken-file": owner: (7, 8) / (0, 0)"#,
        ],
        "a hard link through a link" => &[
            r#""dir/taken-dir/inner": owner: (5, 6) / (0, 0)"#,
            r#""dir/two": owner: (5, 6) / (0, 0)"#,
        ],
        "a hard link to itself" => &[
            "exit: true / false",
            r#""dir": mtime: (1500000000, 0) / (9223372036854775807, 0)"#,
            r#""dir/old": only in the first: File / "-""#,
        ],
        // The destination itself stays as it is, however it is spelled, and nothing above it is
        // touched.
        "the target as the root" => &[
            r#""dir": mode: "0750" / "0700""#,
            r#""dir": owner: (7, 8) / (9, 4)"#,
            r#""dir": mtime: (9223372036854775807, 0) / (1400000000, 0)"#,
        ],
        "the target's parent" => &[
            "exit: false / true",
            r#""": mode: "0755" / "0700""#,
            r#""": owner: (0, 0) / (9, 4)"#,
            r#""": mtime: (1500000000, 0) / (1400000000, 0)"#,
        ],
        // A link is a text; where it leads is decided when it is followed. Docker refuses what
        // points above the target.
        "a symbolic link that climbs" => &[
            "exit: true / false",
            r#""dir": mtime: (9223372036854775807, 0) / (1500000000, 0)"#,
            r#""dir/l": only in the first: Symlink / "-""#,
        ],
        // Both fail; Docker has then removed the link without replacing it.
        "through a link that makes way for itself" => {
            &[r#""dir/l": only in the first: File / "-""#]
        }
        // An old kind of regular file that every tar knows.
        "a contiguous file" => &[
            "exit: true / false",
            r#""dir": mtime: (9223372036854775807, 0) / (1500000000, 0)"#,
            r#""dir/x": only in the first: File / "-""#,
        ],
        _ => &[],
    }
}
