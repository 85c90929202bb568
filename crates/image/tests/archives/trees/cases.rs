//! Layers in which one thing is odd. Each is applied above [`super::peers::below`]: files `a`,
//! `b/x`, `dir/x` and `hidden`, a link `c` to `b`.

use super::raw::{Raw, archive, pax};

fn file(name: &str) -> Vec<u8> {
    Raw::new(name, b'0').data(b"new")
}

fn dir(name: &str) -> Vec<u8> {
    Raw::new(name, b'5').mode(0o711).block()
}

fn link(name: &str, to: &str) -> Vec<u8> {
    Raw::new(name, b'2').link(to).block()
}

fn hard(name: &str, to: &str) -> Vec<u8> {
    Raw::new(name, b'1').link(to).block()
}

/// A file whose extended header says this.
fn with(records: &[(&str, &[u8])]) -> Vec<u8> {
    [pax(records), file("f")].concat()
}

fn attr(name: &str, value: &[u8]) -> Vec<u8> {
    pax(&[(&format!("SCHILY.xattr.{name}"), value)])
}

/// A capability as the kernel stores it: `cap_net_raw=ep`.
const CAPABILITY: &[u8] = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
/// An ACL as the kernel stores it: one more user may read.
const ACL: &[u8] = b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x02\0\x04\0\x05\0\0\0\x04\0\x04\0\xff\xff\xff\xff\x10\0\x04\0\xff\xff\xff\xff\x20\0\x04\0\xff\xff\xff\xff";

/// All of them by name.
pub fn cases() -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    names(&mut all);
    links(&mut all);
    hard_links(&mut all);
    kinds(&mut all);
    attributes(&mut all);
    whiteouts(&mut all);
    ends(&mut all);
    all
}

type Cases = Vec<(String, Vec<u8>)>;

fn put(all: &mut Cases, name: &str, parts: &[Vec<u8>]) {
    all.push((name.to_owned(), archive(parts)));
}

fn names(all: &mut Cases) {
    let long = "n".repeat(255);
    let longer = "n".repeat(256);
    let deep = "d/".repeat(1000) + "f";
    let path = ["p".repeat(250).as_str(); 16].join("/");
    for (name, path) in [
        ("dot", "./f"),
        ("dot-twice", "././f"),
        ("dot-within", "b/./f"),
        ("absolute", "/f"),
        ("absolute-twice", "//f"),
        ("slashes-within", "b//f"),
        ("slash-at-the-end", "f/"),
        ("up-and-down", "b/../f"),
        ("up-through-nothing", "none/../f"),
        ("up-through-a-file", "a/../f"),
        ("up-through-a-link", "c/../f"),
        ("above-the-root", "../f"),
        ("above-the-root-late", "b/../../f"),
        ("above-an-absolute-root", "/../f"),
        ("up-alone", ".."),
        ("dots", "..."),
        ("file-at-the-root", "."),
        ("file-at-the-root-absolute", "/"),
        ("no-name", ""),
        ("new-line", "n\nl"),
        ("backslash", "b\\f"),
        ("spaces", " f "),
        ("tilde", "~f"),
        ("colon", "c:f"),
        ("under-a-file-below", "a/f"),
        ("under-a-link-below", "c/f"),
        ("in-a-directory-below", "dir/f"),
        ("over-a-directory-below", "b"),
        ("over-a-link-below", "c"),
        ("implied", "new/er/f"),
    ] {
        put(all, &format!("name/{name}"), &[file(path)]);
    }
    put(
        all,
        "name/no-utf-8",
        &[Raw::new("", b'0').put(0, b"f\xff\xfe").data(b"new")],
    );
    for (name, path) in [
        ("255", long.as_str()),
        ("256", &longer),
        ("thousand-deep", &deep),
        ("path-of-4015", &path),
        ("pax-slash-at-the-end", "f/"),
        ("pax-empty", ""),
    ] {
        put(
            all,
            &format!("name/{name}"),
            &[pax(&[("path", path.as_bytes())]), file("short")],
        );
    }
    put(
        all,
        "name/prefix",
        &[Raw::new("f", b'0').put(345, "b").data(b"new")],
    );
    put(
        all,
        "name/twice",
        &[file("f"), Raw::new("f", b'0').mode(0o600).data(b"other")],
    );
    put(
        all,
        "name/file-then-directory",
        &[file("f"), dir("f"), file("f/g")],
    );
    put(
        all,
        "name/directory-then-file",
        &[dir("f"), file("f/g"), file("f")],
    );
    put(
        all,
        "name/directory-then-link",
        &[dir("f"), file("f/g"), link("f", "b")],
    );
    put(
        all,
        "name/directory-twice",
        &[
            dir("f"),
            file("f/g"),
            Raw::new("f/", b'5').mode(0o700).owner(7, 8).block(),
        ],
    );
    put(
        all,
        "name/directory-last",
        &[file("new/f"), Raw::new("new/", b'5').mode(0o700).block()],
    );
    put(all, "name/under-a-file", &[file("f"), file("f/g")]);
    put(all, "name/directory-over-a-file-below", &[dir("a")]);
    put(all, "name/directory-over-a-link-below", &[dir("c")]);
    put(
        all,
        "name/directory-below-again",
        &[Raw::new("dir/", b'5').mode(0o1777).owner(9, 9).block()],
    );
    for (name, path) in [
        ("dot", "."),
        ("dot-slash", "./"),
        ("slash", "/"),
        ("empty", ""),
        ("up", "b/.."),
    ] {
        let root = Raw::new(path, b'5').mode(0o1770).owner(3, 4).block();
        put(all, &format!("root/{name}"), &[root, file("f")]);
    }
    put(
        all,
        "root/late",
        &[file("f"), Raw::new("./", b'5').mode(0o700).block()],
    );
    put(all, "root/attribute", &[attr("user.x", b"1"), dir("./")]);
    put(all, "root/link", &[link("./", "b")]);
    put(all, "root/fifo", &[Raw::new("./", b'6').block()]);
}

fn links(all: &mut Cases) {
    for (name, to) in [
        ("dangling", "none"),
        ("absolute", "/b"),
        ("above-the-root", "../../../etc"),
        ("itself", "l"),
        ("directory", "b"),
        ("slash", "/"),
        ("with-dots", "b/./../b//x"),
    ] {
        put(all, &format!("link/{name}"), &[link("l", to)]);
    }
    put(all, "link/empty", &[link("l", "")]);
    put(
        all,
        "link/mode-and-owner",
        &[Raw::new("l", b'2')
            .link("b")
            .mode(0o600)
            .owner(5, 6)
            .block()],
    );
    put(all, "link/slash-at-the-end", &[link("l/", "b")]);
    put(all, "link/over-a-directory-below", &[link("b", "dir")]);
    for (name, to) in [
        ("own", "d"),
        ("own-absolute", "/d"),
        ("own-to-nothing", "none"),
        ("own-to-one-below", "b"),
        ("own-to-the-root", "/"),
        ("own-above-the-root", "../../d"),
        ("own-to-a-file", "d/g"),
        ("own-to-itself", "l"),
    ] {
        put(
            all,
            &format!("link/through/{name}"),
            &[dir("d"), file("d/g"), link("l", to), file("l/f")],
        );
    }
    put(
        all,
        "link/through/two",
        &[dir("d"), link("l", "d"), link("m", "l"), file("m/f")],
    );
    put(
        all,
        "link/through/directory",
        &[dir("d"), link("l", "d"), dir("l"), file("l/f")],
    );
    put(
        all,
        "link/through/whiteout",
        &[dir("d"), file("d/f"), link("l", "d"), file("l/.wh.f")],
    );
    put(
        all,
        "link/file-over-own",
        &[file("g"), link("l", "g"), file("l")],
    );
}

fn hard_links(all: &mut Cases) {
    put(all, "hard/plain", &[file("f"), hard("h", "f")]);
    put(all, "hard/dot", &[file("f"), hard("h", "./f")]);
    put(all, "hard/absolute", &[file("f"), hard("h", "/f")]);
    put(
        all,
        "hard/up",
        &[dir("d"), file("d/f"), hard("h", "d/../d/f")],
    );
    put(all, "hard/above-the-root", &[file("f"), hard("h", "../f")]);
    put(
        all,
        "hard/above-the-root-far",
        &[file("f"), hard("h", "../../../f")],
    );
    put(all, "hard/to-nothing", &[hard("h", "none")]);
    put(all, "hard/no-target", &[hard("h", "")]);
    put(all, "hard/to-later", &[hard("h", "f"), file("f")]);
    put(all, "hard/to-one-below", &[hard("h", "a")]);
    put(all, "hard/to-itself", &[file("f"), hard("f", "f")]);
    put(all, "hard/to-a-directory", &[dir("d"), hard("h", "d")]);
    put(
        all,
        "hard/to-a-link",
        &[file("f"), link("l", "f"), hard("h", "l")],
    );
    put(
        all,
        "hard/to-a-dangling-link",
        &[link("l", "none"), hard("h", "l")],
    );
    put(
        all,
        "hard/to-a-fifo",
        &[Raw::new("p", b'6').block(), hard("h", "p")],
    );
    put(
        all,
        "hard/to-a-device",
        &[Raw::new("n", b'3').device(1, 3).block(), hard("h", "n")],
    );
    put(
        all,
        "hard/to-a-whiteout",
        &[file(".wh.hidden"), hard("h", "hidden")],
    );
    put(
        all,
        "hard/through-an-own-link",
        &[dir("d"), file("d/f"), link("l", "d"), hard("h", "l/f")],
    );
    put(all, "hard/through-a-link-below", &[hard("h", "c/x")]);
    put(
        all,
        "hard/in-a-directory-below",
        &[file("f"), hard("b/h", "f")],
    );
    put(
        all,
        "hard/over-a-file",
        &[file("f"), file("h"), hard("h", "f")],
    );
    put(
        all,
        "hard/over-a-directory",
        &[file("f"), dir("h"), file("h/g"), hard("h", "f")],
    );
    put(all, "hard/over-a-file-below", &[file("f"), hard("a", "f")]);
    put(
        all,
        "hard/file-over-the-first",
        &[
            file("f"),
            hard("h", "f"),
            Raw::new("f", b'0').data(b"other"),
        ],
    );
    put(
        all,
        "hard/file-over-the-second",
        &[
            file("f"),
            hard("h", "f"),
            Raw::new("h", b'0').data(b"other"),
        ],
    );
    put(
        all,
        "hard/whiteout-of-the-first",
        &[file("f"), hard("h", "f"), file(".wh.f")],
    );
    put(
        all,
        "hard/with-content",
        &[
            file("f"),
            Raw::new("h", b'1').link("f").data(b"other"),
            file("g"),
        ],
    );
    let later = |raw: Raw| [file("f"), raw.link("f").block()];
    put(
        all,
        "hard/other-mode",
        &later(Raw::new("h", b'1').mode(0o600)),
    );
    put(
        all,
        "hard/other-owner",
        &later(Raw::new("h", b'1').owner(5, 6)),
    );
    put(
        all,
        "hard/other-time",
        &later(Raw::new("h", b'1').put(136, "10000000000\0")),
    );
    put(
        all,
        "hard/set-uid",
        &[
            Raw::new("f", b'0').mode(0o4755).owner(5, 6).data(b"new"),
            Raw::new("h", b'1')
                .mode(0o4755)
                .owner(5, 6)
                .link("f")
                .block(),
        ],
    );
    put(
        all,
        "hard/set-uid-unsaid",
        &[
            Raw::new("f", b'0').mode(0o4755).owner(5, 6).data(b"new"),
            Raw::new("h", b'1')
                .mode(0o755)
                .owner(5, 6)
                .link("f")
                .block(),
        ],
    );
    put(
        all,
        "hard/attribute-on-both",
        &[
            attr("user.x", b"1"),
            file("f"),
            attr("user.x", b"1"),
            hard("h", "f"),
        ],
    );
    put(
        all,
        "hard/attribute-on-the-first",
        &[attr("user.x", b"1"), file("f"), hard("h", "f")],
    );
    put(
        all,
        "hard/attribute-on-the-second",
        &[file("f"), attr("user.x", b"1"), hard("h", "f")],
    );
    put(
        all,
        "hard/capability-on-the-first",
        &[
            attr("security.capability", CAPABILITY),
            file("f"),
            hard("h", "f"),
        ],
    );
    put(
        all,
        "hard/capability-on-both",
        &[
            attr("security.capability", CAPABILITY),
            file("f"),
            attr("security.capability", CAPABILITY),
            hard("h", "f"),
        ],
    );
}

fn kinds(all: &mut Cases) {
    for (name, kind) in [
        ("nul", b'\0'),
        ("7", b'7'),
        ("8", b'8'),
        ("A", b'A'),
        ("D", b'D'),
        ("M", b'M'),
        ("N", b'N'),
        ("V", b'V'),
        ("X", b'X'),
        ("Z", b'Z'),
    ] {
        put(
            all,
            &format!("kind/{name}"),
            &[Raw::new("f", kind).data(b"new"), file("g")],
        );
    }
    put(
        all,
        "kind/old-directory",
        &[Raw::new("f/", b'\0').mode(0o711).block()],
    );
    put(
        all,
        "kind/old-directory-with-size",
        &[
            Raw::new("f/", b'\0').mode(0o711).size(700).block(),
            file("g"),
        ],
    );
    for (name, kind) in [
        ("link", b'2'),
        ("character", b'3'),
        ("block", b'4'),
        ("directory", b'5'),
        ("fifo", b'6'),
    ] {
        let raw = Raw::new("f", kind).device(1, 3).link("b");
        put(
            all,
            &format!("size/{name}"),
            &[raw.clone().size(700).block(), file("g")],
        );
        put(
            all,
            &format!("content/{name}"),
            &[raw.data(b"content"), file("g")],
        );
    }
    for (name, kind, major, minor) in [
        ("character", b'3', 1, 3),
        ("block", b'4', 8, 1),
        ("zero", b'3', 0, 0),
        ("block-zero", b'4', 0, 0),
        ("minor-255-and-more", b'3', 5, 300),
        ("minor-of-20-bits", b'3', 5, 0xf_ffff),
        ("minor-of-21-bits", b'3', 5, 0x10_0003),
        ("major-of-12-bits", b'3', 0xfff, 1),
        ("major-of-13-bits", b'3', 0x1001, 1),
        ("zero-in-the-end", b'3', 0x1000, 0x10_0000),
    ] {
        put(
            all,
            &format!("device/{name}"),
            &[Raw::new("n", kind)
                .device(major, minor)
                .mode(0o666)
                .owner(0, 5)
                .block()],
        );
    }
    put(
        all,
        "device/over-a-file-below",
        &[Raw::new("a", b'3').device(1, 3).block()],
    );
    put(
        all,
        "device/under-a-name-below",
        &[Raw::new("a", b'3').device(0, 0).block()],
    );
    put(
        all,
        "fifo/plain",
        &[Raw::new("p", b'6').mode(0o620).owner(5, 6).block()],
    );
    let sparse = |records: &[(&str, &[u8])], data: &[u8]| {
        [pax(records), Raw::new("f", b'0').data(data), file("g")]
    };
    put(
        all,
        "sparse/0.0",
        &sparse(
            &[
                ("GNU.sparse.size", b"5000"),
                ("GNU.sparse.numblocks", b"1"),
                ("GNU.sparse.offset", b"4096"),
                ("GNU.sparse.numbytes", b"4"),
            ],
            b"data",
        ),
    );
    put(
        all,
        "sparse/0.1",
        &sparse(
            &[
                ("GNU.sparse.major", b"0"),
                ("GNU.sparse.minor", b"1"),
                ("GNU.sparse.size", b"5000"),
                ("GNU.sparse.numblocks", b"1"),
                ("GNU.sparse.map", b"4096,4"),
                ("GNU.sparse.name", b"named"),
            ],
            b"data",
        ),
    );
    let mut map = b"1\n4096\n4\n".to_vec();
    map.resize(512, 0);
    map.extend_from_slice(b"data");
    put(
        all,
        "sparse/1.0",
        &sparse(
            &[
                ("GNU.sparse.major", b"1"),
                ("GNU.sparse.minor", b"0"),
                ("GNU.sparse.realsize", b"5000"),
                ("GNU.sparse.name", b"named"),
            ],
            &map,
        ),
    );
    put(
        all,
        "sparse/unknown-version",
        &sparse(
            &[
                ("GNU.sparse.major", b"2"),
                ("GNU.sparse.minor", b"0"),
                ("GNU.sparse.size", b"5000"),
            ],
            b"data",
        ),
    );
    let old = Raw::new("f", b'S')
        .put(257, "ustar  \0")
        .put(345, [0; 155])
        .put(386, "00000010000\x0000000000004\0")
        .put(483, "00000011610\0");
    put(all, "sparse/old", &[old.data(b"data"), file("g")]);
    put(
        all,
        "sparse/holes-alone",
        &sparse(
            &[
                ("GNU.sparse.size", b"1000000"),
                ("GNU.sparse.numblocks", b"1"),
                ("GNU.sparse.offset", b"1000000"),
                ("GNU.sparse.numbytes", b"0"),
            ],
            b"",
        ),
    );
}

fn attributes(all: &mut Cases) {
    for (name, mode) in [
        ("none", 0),
        ("all", 0o7777),
        ("set-uid", 0o4711),
        ("set-gid", 0o2711),
        ("sticky", 0o1666),
        ("with-the-kind-of-a-file", 0o100_644),
        ("with-the-kind-of-a-directory", 0o040_755),
        ("more-bits", 0o7_770_644),
    ] {
        put(
            all,
            &format!("mode/file/{name}"),
            &[Raw::new("f", b'0').mode(mode).owner(5, 6).data(b"new")],
        );
        put(
            all,
            &format!("mode/directory/{name}"),
            &[
                Raw::new("d", b'5').mode(mode).owner(5, 6).block(),
                file("d/f"),
            ],
        );
    }
    for (name, field) in [
        ("minus-1", b"\xff\xff\xff\xff\xff\xff\xff\xff"),
        ("minus-2", b"\xff\xff\xff\xff\xff\xff\xff\xfe"),
        ("2-to-the-32-less-1", b"\x80\0\0\0\xff\xff\xff\xff"),
        ("2-to-the-32-and-5", b"\x80\0\0\x01\0\0\0\x05"),
        ("3000000000", b"\x80\0\0\0\xb2\xd0\x5e\0"),
        ("spaces", b"        "),
        ("nothing", b"\0\0\0\0\0\0\0\0"),
    ] {
        put(
            all,
            &format!("owner/{name}"),
            &[
                Raw::new("f", b'0')
                    .put(108, field)
                    .put(116, field)
                    .data(b"new"),
                Raw::new("d", b'5').put(108, field).block(),
            ],
        );
    }
    put(
        all,
        "owner/named",
        &[Raw::new("f", b'0')
            .owner(5, 6)
            .put(265, "root")
            .put(297, "root")
            .data(b"new")],
    );
    for id in [
        "-1",
        "-2",
        "4294967295",
        "4294967297",
        "9223372036854775807",
        "007",
    ] {
        put(
            all,
            &format!("owner/pax/{id}"),
            &[with(&[("uid", id.as_bytes()), ("gid", id.as_bytes())])],
        );
    }
    for time in [
        "0",
        "0.5",
        "-1",
        "-1.5",
        "-0.25",
        "1.123456789",
        "1.9999999999",
        "4294967296",
        "17179869183",
        "99999999999",
        "9223372036854775807",
        "-9223372036854775808",
    ] {
        put(
            all,
            &format!("time/{time}"),
            &[
                with(&[("mtime", time.as_bytes())]),
                pax(&[("mtime", time.as_bytes())]),
                dir("d"),
                pax(&[("mtime", time.as_bytes())]),
                link("l", "f"),
            ],
        );
    }
    put(
        all,
        "time/header-minus-1",
        &[Raw::new("f", b'0')
            .put(136, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")
            .data(b"new")],
    );
    put(
        all,
        "time/header-large",
        &[Raw::new("f", b'0')
            .put(136, b"\x80\0\0\0\0\0\0\x10\0\0\0\0")
            .data(b"new")],
    );
    put(
        all,
        "time/with-atime-and-ctime",
        &[with(&[("mtime", b"5"), ("atime", b"7"), ("ctime", b"9")])],
    );
    put(
        all,
        "time/directory-filled-later",
        &[dir("d"), file("d/f"), file("e"), file("d/g")],
    );
    let wide = vec![b'v'; 3000];
    let wider = vec![b'v'; 70_000];
    for (name, attribute, value) in [
        ("user", "user.x", &b"1"[..]),
        ("user-empty-value", "user.x", b""),
        ("user-binary", "user.x", b"\0\n=\xff"),
        ("user-no-name", "user.", b"1"),
        ("no-name", "", b"1"),
        ("trusted", "trusted.x", b"1"),
        ("security", "security.x", b"1"),
        ("capability", "security.capability", CAPABILITY),
        ("capability-malformed", "security.capability", b"x"),
        ("acl", "system.posix_acl_access", ACL),
        ("acl-malformed", "system.posix_acl_access", b"x"),
        ("apple", "com.apple.quarantine", b"x"),
        ("nfs4", "system.nfs4_acl", b"x"),
        ("selinux", "security.selinux", b"x"),
        ("ima", "security.ima", b"x"),
        ("equals-escaped", "user.a%3Db", b"1"),
        ("wide", "user.x", &wide),
        ("wider", "user.x", &wider),
        ("overlay-opaque", "trusted.overlay.opaque", b"y"),
        ("overlay-redirect", "trusted.overlay.redirect", b"/b"),
        ("overlay-user-opaque", "user.overlay.opaque", b"y"),
        ("overlay-escaped", "trusted.overlay.overlay.opaque", b"y"),
        (
            "override-stat",
            "user.containers.override_stat",
            b"1:2:0644",
        ),
    ] {
        put(
            all,
            &format!("xattr/{name}"),
            &[attr(attribute, value), file("f")],
        );
    }
    put(all, "xattr/directory", &[attr("user.x", b"1"), dir("d")]);
    put(
        all,
        "xattr/directory-below",
        &[attr("user.x", b"1"), dir("b")],
    );
    put(
        all,
        "xattr/default-acl",
        &[
            attr("system.posix_acl_default", ACL),
            dir("d"),
            file("d/f"),
            dir("d/e"),
        ],
    );
    put(
        all,
        "xattr/opaque-directory",
        &[attr("trusted.overlay.opaque", b"y"), dir("b")],
    );
    for (name, kind) in [
        ("link", b'2'),
        ("character", b'3'),
        ("block", b'4'),
        ("fifo", b'6'),
    ] {
        let entry = Raw::new("n", kind).link("b").device(1, 3).block();
        put(
            all,
            &format!("xattr/user-on-{name}"),
            &[attr("user.x", b"1"), entry.clone()],
        );
        put(
            all,
            &format!("xattr/trusted-on-{name}"),
            &[attr("trusted.x", b"1"), entry],
        );
    }
    put(
        all,
        "xattr/libarchive",
        &[with(&[("LIBARCHIVE.xattr.user.x", b"MQ")])],
    );
    put(
        all,
        "xattr/textual-acl",
        &[with(&[(
            "SCHILY.acl.access",
            b"user::rw-,group::r--,other::---",
        )])],
    );
    put(
        all,
        "xattr/twice",
        &[with(&[
            ("SCHILY.xattr.user.x", b"1"),
            ("SCHILY.xattr.user.x", b"2"),
        ])],
    );
    put(
        all,
        "xattr/taken-back",
        &[with(&[
            ("SCHILY.xattr.user.x", b"1"),
            ("SCHILY.xattr.user.x", b""),
        ])],
    );
    put(
        all,
        "xattr/capability-and-owner",
        &[
            attr("security.capability", CAPABILITY),
            Raw::new("f", b'0').mode(0o4755).owner(5, 6).data(b"new"),
        ],
    );
    put(
        all,
        "pax/charset",
        &[with(&[("hdrcharset", b"BINARY"), ("path", b"p\xff")])],
    );
    put(
        all,
        "pax/unknown",
        &[with(&[("VENDOR.thing", b"x"), ("comment", b"y")])],
    );
    put(
        all,
        "pax/size",
        &[
            pax(&[("size", b"3")]),
            Raw::new("f", b'0').size(0).block(),
            {
                let mut data = b"new".to_vec();
                data.resize(512, 0);
                data
            },
        ],
    );
    put(
        all,
        "pax/global",
        &[Raw::new("g", b'g').data(b"12 path=all\n"), file("f")],
    );
    put(
        all,
        "pax/global-attribute",
        &[
            Raw::new("g", b'g').data(b"25 SCHILY.xattr.user.x=1\n"),
            file("f"),
        ],
    );
    put(
        all,
        "pax/two-headers",
        &[
            pax(&[("path", b"first")]),
            pax(&[("path", b"second")]),
            file("f"),
        ],
    );
    put(
        all,
        "pax/before-nothing",
        &[file("f"), pax(&[("path", b"first")])],
    );
    put(
        all,
        "gnu/long-name-and-path",
        &[
            pax(&[("path", b"pax")]),
            Raw::new("././@LongLink", b'L').data(b"gnu\0"),
            file("f"),
        ],
    );
}

fn whiteouts(all: &mut Cases) {
    for (name, path) in [
        ("file", ".wh.hidden"),
        ("directory", ".wh.b"),
        ("link", ".wh.c"),
        ("nothing", ".wh.none"),
        ("within", "b/.wh.x"),
        ("within-nothing", "none/.wh.x"),
        ("through-a-link-below", "c/.wh.x"),
        ("opaque", "b/.wh..wh..opq"),
        ("opaque-root", ".wh..wh..opq"),
        ("opaque-nothing", "none/.wh..wh..opq"),
        ("of-a-dot-file", ".wh..f"),
        ("empty", ".wh."),
        ("dot", ".wh.."),
        ("up", ".wh..."),
        ("empty-within", "b/.wh."),
        ("dot-within", "b/.wh.."),
        ("up-within", "b/.wh..."),
        ("aufs", ".wh..wh.aufs"),
        ("aufs-within", "b/.wh..wh.aufs"),
        ("plnk", ".wh..wh.plnk/1.2"),
        ("orph-beneath", ".wh..wh.orph/f"),
        ("aufs-beneath", "b/.wh..wh.orph/f"),
        ("opaque-beneath", "b/.wh..wh..opq/f"),
        ("beneath", ".wh.foo/bar"),
        ("beneath-deep", ".wh.foo/bar/baz"),
        ("beneath-one-that-hides", ".wh.b/bar"),
        ("beneath-within", "b/.wh.foo/bar"),
        ("beneath-and-whiteout", ".wh.foo/.wh.bar"),
        ("beneath-and-up", ".wh.b/../f"),
        ("beneath-empty", ".wh./bar"),
        ("beneath-dot", ".wh../bar"),
        ("absolute", "/.wh.hidden"),
        ("dot-slash", "./.wh.hidden"),
        ("slash-at-the-end", ".wh.hidden/"),
        ("small", ".WH.hidden"),
    ] {
        put(
            all,
            &format!("whiteout/{name}"),
            &[Raw::new(path, b'0').block()],
        );
    }
    for (name, kind) in [
        ("hard-link", b'1'),
        ("symbolic-link", b'2'),
        ("character", b'3'),
        ("directory", b'5'),
        ("fifo", b'6'),
        ("Z", b'Z'),
    ] {
        put(
            all,
            &format!("whiteout/kind/{name}"),
            &[Raw::new(".wh.hidden", kind).link("a").device(1, 3).block()],
        );
        put(
            all,
            &format!("whiteout/opaque/{name}"),
            &[Raw::new("b/.wh..wh..opq", kind)
                .link("a")
                .device(1, 3)
                .block()],
        );
    }
    put(all, "whiteout/content", &[file(".wh.hidden")]);
    put(
        all,
        "whiteout/beneath-a-listed-one",
        &[dir(".wh.foo"), file(".wh.foo/bar")],
    );
    put(
        all,
        "whiteout/beneath-one-that-follows",
        &[file(".wh.foo/bar"), Raw::new(".wh.foo", b'0').block()],
    );
    put(
        all,
        "whiteout/beneath-and-what-it-hides",
        &[file("foo"), file(".wh.foo/bar")],
    );
    put(
        all,
        "whiteout/then-file",
        &[file(".wh.hidden"), file("hidden")],
    );
    put(
        all,
        "whiteout/after-file",
        &[file("hidden"), file(".wh.hidden")],
    );
    put(
        all,
        "whiteout/then-directory",
        &[file(".wh.b"), dir("b"), file("b/f")],
    );
    put(
        all,
        "whiteout/after-directory",
        &[dir("b"), file("b/f"), file(".wh.b")],
    );
    put(
        all,
        "whiteout/twice",
        &[file(".wh.hidden"), file(".wh.hidden")],
    );
    put(all, "whiteout/of-its-own", &[file("f"), file(".wh.f")]);
    put(
        all,
        "whiteout/of-an-own-directory",
        &[dir("d"), file("d/f"), file(".wh.d")],
    );
    put(
        all,
        "whiteout/opaque-first",
        &[dir("b"), file("b/.wh..wh..opq"), file("b/f")],
    );
    put(
        all,
        "whiteout/opaque-last",
        &[dir("b"), file("b/f"), file("b/.wh..wh..opq")],
    );
    put(
        all,
        "whiteout/opaque-unlisted",
        &[file("b/f"), file("b/.wh..wh..opq")],
    );
    put(
        all,
        "whiteout/opaque-root-last",
        &[file("f"), file(".wh..wh..opq")],
    );
    put(
        all,
        "whiteout/opaque-and-whiteout",
        &[dir("b"), file("b/.wh..wh..opq"), file("b/.wh.x")],
    );
    put(
        all,
        "whiteout/plnk-linked",
        &[file(".wh..wh.plnk/1.2"), hard("f", ".wh..wh.plnk/1.2")],
    );
}

fn ends(all: &mut Cases) {
    let f = file("f");
    all.push(("end/none".into(), f.clone()));
    all.push(("end/one-block".into(), [f.clone(), vec![0; 512]].concat()));
    all.push(("end/nothing-at-all".into(), Vec::new()));
    all.push(("end/marker-alone".into(), vec![0; 1024]));
    all.push(("end/in-padding".into(), f[..600].to_vec()));
    all.push(("end/in-content".into(), f[..514].to_vec()));
    all.push((
        "end/in-a-header".into(),
        [f.clone(), f[..100].to_vec()].concat(),
    ));
    all.push((
        "end/more-entries-behind".into(),
        [archive(std::slice::from_ref(&f)), file("g")].concat(),
    ));
    all.push((
        "end/junk-behind".into(),
        [archive(std::slice::from_ref(&f)), vec![b'j'; 700]].concat(),
    ));
    all.push((
        "end/one-block-then-entry".into(),
        [f.clone(), vec![0; 512], file("g")].concat(),
    ));
    let mut bad = file("g");
    bad[148] ^= 1;
    all.push(("end/bad-checksum".into(), archive(&[f, bad])));
}
