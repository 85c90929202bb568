//! What is copied: sources by destinations, conflicts, tars.

use super::Cell;
use super::tars::tars;

/// From the host into the container; with those that are tried onto every destination.
const SOURCES: &[(&str, bool)] = &[
    ("SRC/file", true),
    ("SRC/tree", true),
    ("SRC/tree/.", false),
    ("SRC/link-tree", false),
    ("SRC/empty", false),
    ("SRC/tree/", false),
    ("SRC/none", false),
    ("SRC/none/.", false),
    ("SRC/link-file", false),
    ("SRC/link-tree/", false),
    ("SRC/link-tree/.", false),
    ("SRC/dangling", false),
    ("SRC/fifo", false),
    ("SRC/socket", false),
    ("SRC/null", false),
    ("SRC/absent", false),
    ("SRC/file/", false),
    ("SRC/file/.", false),
    ("SRC/owned", false),
    ("SRC/set-uid", false),
    ("SRC/cap", false),
    ("SRC/.wh.file", false),
    ("SRC/tree/../file", false),
    ("-L SRC/link-file", false),
    ("-L SRC/link-tree", false),
    ("-L SRC/link-tree/", false),
    ("-L SRC/link-tree/.", false),
    ("-L SRC/dangling", false),
    ("-L SRC/file", false),
    ("-a SRC/owned", false),
    ("-a SRC/tree", false),
];

/// In the container; with those that every source is tried on.
const TARGETS: &[(&str, bool)] = &[
    ("dir", true),
    ("file", false),
    ("link-dir", false),
    ("absent", true),
    ("absent/", false),
    ("", false),
    (".", false),
    ("dir/", false),
    ("dir/.", false),
    ("dir/../empty", false),
    ("sticky", false),
    ("set-gid", false),
    ("file/", false),
    ("file/below", false),
    ("link-file", false),
    ("link-file/", false),
    ("link-dir/", false),
    ("link-dir/.", false),
    ("link-link", false),
    ("link-dir/new", false),
    ("link-dir/old", false),
    ("absolute", false),
    ("absolute/new", false),
    ("climbing", false),
    ("climbing/new", false),
    ("dangling", false),
    ("dangling/", false),
    ("deep-dangling", false),
    ("loop/x", false),
    ("fifo", false),
    ("null", false),
    ("absent/.", false),
    ("absent/deep", false),
];

/// In the container; with those that are tried onto every place on the host.
const INNER_SOURCES: &[(&str, bool)] = &[
    ("BOX:HERE/out", true),
    ("BOX:HERE/out/.", false),
    ("BOX:HERE/file", true),
    ("BOX:HERE/out/", false),
    ("BOX:HERE/empty", false),
    ("BOX:HERE/dir", false),
    ("BOX:HERE/link-file", false),
    ("BOX:HERE/link-dir", false),
    ("BOX:HERE/link-dir/", false),
    ("BOX:HERE/link-dir/.", false),
    ("BOX:HERE/link-dir/old", false),
    ("BOX:HERE/absolute/", false),
    ("BOX:HERE/climbing/", false),
    ("BOX:HERE/climbing/old", false),
    ("BOX:HERE/dangling", false),
    ("BOX:HERE/dangling/", false),
    ("BOX:HERE/loop/", false),
    ("BOX:HERE/fifo", false),
    ("BOX:HERE/null", false),
    ("BOX:HERE/set-uid-root", false),
    ("BOX:HERE/out/cap", false),
    ("BOX:HERE/absent", false),
    ("BOX:HERE/file/", false),
    ("-L BOX:HERE/link-file", false),
    ("-L BOX:HERE/link-dir", false),
    ("-L BOX:HERE/absolute", false),
    ("-L BOX:HERE/file", false),
];

/// On the host; with those that every source is tried on.
const OUTER_TARGETS: &[(&str, bool)] = &[
    ("dir", true),
    ("absent", false),
    ("file", false),
    ("dir/", false),
    ("dir/.", false),
    ("empty", false),
    ("file/", false),
    ("file/x", false),
    ("link-file", false),
    ("link-dir", false),
    ("dangling", false),
    ("deep-dangling", false),
    ("absent/", false),
    ("absent/.", false),
    ("absent/deep", false),
];

/// Things that are in the way of each other.
const CONFLICTS: &[&str] = &[
    "SRC/f/taken-dir",
    "SRC/f/taken-file",
    "SRC/f/taken-link",
    "SRC/f/taken-file-link",
    "SRC/f/taken-dangling",
    "SRC/f/twin-a",
    "SRC/d/taken-dir",
    "SRC/d/taken-file",
    "SRC/d/taken-link",
    "SRC/d/taken-dangling",
    "SRC/l/taken-dir",
    "SRC/l/taken-file",
    "SRC/l/taken-link",
    "SRC/f/.",
    "SRC/d/.",
    "SRC/l/.",
    "SRC/mixed/.",
    "SRC/mixed-dir/.",
];

/// All cells.
pub fn cells() -> Vec<Cell> {
    let mut cells = Vec::new();
    let mut cell = |args: String,
                    slow: bool,
                    input: Vec<u8>,
                    name: &str,
                    listed: Option<&'static [&'static str]>| {
        let args: Vec<String> = args.split(' ').map(str::to_owned).collect();
        cells.push(Cell {
            name: name.to_owned(),
            differences: listed.unwrap_or(&[]),
            whole: args.iter().any(|arg| arg.starts_with("BOX:/")),
            args,
            input,
            slow,
        });
    };
    for (from, much) in SOURCES {
        for (to, many) in TARGETS {
            let slow = !much && !many;
            cell(
                format!("{from} BOX:HERE/{to}"),
                slow,
                Vec::new(),
                "in",
                None,
            );
        }
    }
    for (from, much) in INNER_SOURCES {
        for (to, many) in OUTER_TARGETS {
            let slow = !much && !many;
            cell(format!("{from} OUT/{to}"), slow, Vec::new(), "out", None);
        }
        if !from.ends_with("/.") {
            cell(format!("{from} -"), !much, Vec::new(), "tar out", None);
        }
    }
    for from in CONFLICTS {
        for (to, slow) in [("dir", false), ("link-dir/", true)] {
            cell(
                format!("{from} BOX:HERE/{to}"),
                slow,
                Vec::new(),
                "conflict",
                None,
            );
        }
    }
    for (name, bytes, differences) in tars() {
        cell(
            "- BOX:HERE/dir".to_owned(),
            false,
            bytes.clone(),
            name,
            Some(differences),
        );
        for to in ["link-dir/", "absolute"] {
            cell(
                format!("- BOX:HERE/{to}"),
                true,
                bytes.clone(),
                name,
                Some(differences),
            );
        }
    }
    let plain = super::tars::Tar::default().file("x", "x").dir("d");
    for (at, (to, many)) in TARGETS.iter().enumerate() {
        cell(
            format!("- BOX:HERE/{to}"),
            !many && at % 3 > 0,
            plain.end(),
            "tar in",
            None,
        );
    }
    for (args, differences) in LISTED {
        cell(
            (*args).to_owned(),
            false,
            Vec::new(),
            "listed",
            Some(differences),
        );
    }
    // The container's root itself.
    for args in [
        "SRC/file BOX:/",
        "SRC/tree BOX:/",
        "SRC/tree/. BOX:/",
        "SRC/tree/. BOX:/.",
    ] {
        cell(args.to_owned(), false, Vec::new(), "root", None);
    }
    let climbs = super::tars::Tar::default()
        .entry(b'5', "./", 0o700, 9, "", b"")
        .file("c0000/link-dir/x", "x")
        .file("c0000/absolute/y", "y")
        .file("c0000/climbing/z", "z")
        .file("../../above", "x")
        .symlink("top", "/c0000/../..")
        .file("top/planted", "x")
        .dir("c0000");
    for to in ["/", "/.", "/c0000/.."] {
        cell(format!("- BOX:{to}"), false, climbs.end(), "root", None);
    }
    cells
}

/// Where Vellum differs on purpose. (Differences of tars are in `tars.rs`.)
const LISTED: &[(&str, &[&str])] = &[
    // A link that leads in circles leads nowhere; Docker removes it.
    (
        "SRC/file BOX:HERE/loop",
        &[
            "exit: false / true",
            r#""": mtime: (1500000000, 0) / (9223372036854775807, 0)"#,
            r#""loop": type: Symlink / File"#,
        ],
    ),
    // And can be copied, as any link.
    (
        "BOX:HERE/loop OUT/dir",
        &[
            "exit: true / false",
            r#""dir/loop": only in the first: Symlink / "-""#,
        ],
    ),
    // So can one that points above what is copied.
    (
        "BOX:HERE/ups OUT/absent",
        &[
            "exit: true / false",
            r#""absent/up": only in the first: Symlink / "-""#,
        ],
    ),
    // A set-user-id program must not run with the rights of the user who copied it out.
    (
        "BOX:HERE/set-uid OUT/dir",
        &[r#""dir/set-uid": mode: "0755" / "4755""#],
    ),
    // Owners come out if asked for: that is what Docker's documentation says of `-a`, and it does
    // not.
    (
        "-a BOX:HERE/set-uid OUT/dir",
        &[r#""dir/set-uid": owner: (1234, 55) / (0, 0)"#],
    ),
    // What a user may set on a file of theirs comes along.
    (
        "SRC/attribute BOX:HERE/dir",
        &[r#""dir/attribute": xattr "user.a": Some("b") / None"#],
    ),
    // A tar of what is in a directory has no entry for the directory: where it is unpacked stays as
    // it is.
    (
        "BOX:HERE/out/. -",
        &[
            r#""": mode: "0755" / "0750""#,
            r#""": owner: (0, 0) / (33, 44)"#,
            r#""": mtime: (9223372036854775807, 0) / (1500000000, 0)"#,
        ],
    ),
];
