use super::*;

use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::time::Duration;

use vellum_format::IdRun;
use vellum_union::engine::{IdRules, Limit};

use crate::options::{Access, DataMode, OpenMode, Settle, WhFiles};
use crate::values::Toggle;

fn parsed(manners: Manners, text: &str) -> Result<Parsed, BadOption> {
    parse(manners, &[OsString::from(text)])
}

/// Options in addition to the layers that every union needs.
#[track_caller]
fn own(text: &str) -> MountOptions {
    parsed(Manners::Own, &format!("lowerdir=/l,{text}"))
        .unwrap_or_else(|bad| panic!("{text}: {bad}"))
        .options
}

fn parsed_own(text: &str) -> Parsed {
    parsed(Manners::Own, &format!("lowerdir=/l,{text}")).unwrap()
}

#[track_caller]
fn refused(manners: Manners, text: &str) -> BadOption {
    match parsed(manners, text) {
        Err(bad) => bad,
        Ok(parsed) => panic!("{text} was taken for {parsed:?}"),
    }
}

fn paths(names: &[&str]) -> Vec<PathBuf> {
    names.iter().map(PathBuf::from).collect()
}

#[test]
fn lists_of_layers_are_split() {
    for (text, lowers, data) in [
        ("lowerdir=/a", &["/a"][..], &[][..]),
        ("lowerdir=/a:/b:/c", &["/a", "/b", "/c"], &[]),
        (r"lowerdir=/a\:b:/c", &["/a:b", "/c"], &[]),
        (r"lowerdir=/a\,b:/c", &["/a,b", "/c"], &[]),
        (r"lowerdir=/a\\b", &[r"/a\b"], &[]),
        (r"lowerdir=/a\b", &[r"/a\b"], &[]),
        (r"lowerdir=/a\", &[r"/a\"], &[]),
        (r#"lowerdir="/a,b:/c""#, &["/a,b", "/c"], &[]),
        ("lowerdir=/a::/b", &["/a"], &["/b"]),
        ("lowerdir=/a:/b::/c::/d", &["/a", "/b"], &["/c", "/d"]),
        (
            "lowerdir+=/a,lowerdir+=/b:c,datadir+=/d",
            &["/a", "/b:c"],
            &["/d"],
        ),
        ("lowerdir=/a,lowerdir=/b", &["/b"], &[]),
        ("lowerdir=a:b", &["a", "b"], &[]),
    ] {
        for manners in [Manners::Own, Manners::FuseOverlayfs] {
            let options = parsed(manners, text).unwrap().options;
            assert_eq!(options.lowers, paths(lowers), "{text}");
            assert_eq!(options.data_lowers, paths(data), "{text}");
        }
    }
}

#[test]
fn an_upper_may_have_any_name() {
    for (text, upper, work) in [
        ("upperdir=/u,workdir=/w", "/u", "/w"),
        (r"upperdir=/u\:x\,y\\z,workdir=/\w", r"/u:x,y\z", "/w"),
        (r#"workdir="/w, x",upperdir=/u:y"#, "/u:y", "/w, x"),
    ] {
        let options = own(text);
        assert_eq!(options.upper, Some(upper.into()), "{text}");
        assert_eq!(options.work, Some(work.into()), "{text}");
        assert!(!options.flags.read_only);
    }
    assert!(
        own("rw").flags.read_only,
        "nothing can be written without an upper"
    );
    let odd = OsString::from_vec(b"lowerdir=/\xff,upperdir=/\xfe,workdir=/\xfd".to_vec());
    let options = parse(Manners::Own, &[odd]).unwrap().options;
    assert_eq!(options.lowers[0].as_os_str().as_bytes(), b"/\xff");
    assert_eq!(options.upper.unwrap().as_os_str().as_bytes(), b"/\xfe");
}

#[test]
fn relative_paths_begin_where_the_caller_was() {
    let text = "lowerdir=l/A:/b,upperdir=u,workdir=../w";
    let options = parsed(Manners::Own, text).unwrap().options;
    let options = options.made_absolute(std::path::Path::new("/home/overlay"));
    assert_eq!(options.lowers, paths(&["/home/overlay/l/A", "/b"]));
    assert_eq!(options.upper, Some("/home/overlay/u".into()));
    assert_eq!(options.work, Some("/home/overlay/../w".into()));
}

#[test]
fn invalid_layers_are_refused() {
    for (text, says) in [
        ("", "no lower layer"),
        ("upperdir=/u,workdir=/w", "no lower layer"),
        ("lowerdir=", "needs a directory"),
        ("lowerdir", "needs a directory"),
        ("lowerdir=/a,upperdir=/u", "without workdir"),
        ("lowerdir=/a,workdir=/w", "without upperdir"),
        ("lowerdir=/a:", "empty layer name"),
        ("lowerdir=:/a", "empty layer name"),
        ("lowerdir=/a::/b:/c", "below a data-only one"),
        ("lowerdir=//zip/x//a:/b", "plugin"),
        ("lowerdir=//a", "plugin"),
        (r#"lowerdir="/a"#, "quote"),
    ] {
        let bad = refused(Manners::Own, text);
        assert!(bad.what.contains(says), "{text}: {bad}");
    }
    // fuse-overlayfs ignores empty ones and skipped plugins silently: a layer would be missing.
    let options = parsed(Manners::FuseOverlayfs, "lowerdir=:/a:,,")
        .unwrap()
        .options;
    assert_eq!(options.lowers, paths(&["/a"]));
    assert!(
        refused(Manners::FuseOverlayfs, "lowerdir=/a://zip/x//b")
            .what
            .contains("plugin")
    );
}

#[test]
fn owners_are_mapped_and_squashed() {
    let run = |outside, inside, count| IdRun {
        inside,
        outside,
        count,
    };
    for (text, ids) in [
        (
            "uidmapping=0:1000:1",
            IdRules {
                uids: vec![run(0, 1000, 1)],
                ..IdRules::default()
            },
        ),
        (
            "uidmapping=0:1000:1:1:110000:65536,gidmapping=:5:6:7",
            IdRules {
                uids: vec![run(0, 1000, 1), run(1, 110_000, 65_536)],
                gids: vec![run(5, 6, 7)],
                ..IdRules::default()
            },
        ),
        (
            "squash_to_root",
            IdRules {
                squash_uid: Some(0),
                squash_gid: Some(0),
                ..IdRules::default()
            },
        ),
        (
            "squash_to_root,squash_to_uid=1000",
            IdRules {
                squash_uid: Some(1000),
                squash_gid: Some(0),
                ..IdRules::default()
            },
        ),
        (
            "squash_to_gid=7",
            IdRules {
                squash_gid: Some(7),
                ..IdRules::default()
            },
        ),
    ] {
        assert_eq!(own(text).ids, ids, "{text}");
    }
    for text in [
        "uidmapping=",
        "uidmapping=0:1000",
        "uidmapping=a:1:1",
        "uidmapping=0:0:0",
        "gidmapping=4294967295:0:1",
        "gidmapping=0:4294967000:1000",
        "squash_to_uid=-1",
        "squash_to_gid=",
    ] {
        refused(Manners::FuseOverlayfs, &format!("lowerdir=/l,{text}"));
    }
}

/// Every option, with what it changes. Everything else keeps its default.
#[test]
fn each_option_does_one_thing() {
    type Change = fn(&mut MountOptions);
    let table: &[(&str, Change)] = &[
        ("", |_| {}),
        ("xattr_permissions=0", |_| {}),
        ("xattr_permissions=1", |o| o.records = true),
        ("xattr_permissions=2", |o| o.records = true),
        ("static_nlink", |o| o.static_nlink = true),
        ("static_nlink=0", |_| {}),
        ("ino32_t", |o| o.ino_32_bits = true),
        ("noxattrs=1", |o| o.no_xattrs = true),
        ("noxattrs=0", |_| {}),
        ("noacl", |o| o.no_acl = true),
        ("xino=on", |o| o.xino = Toggle::On),
        ("xino=off", |o| o.xino = Toggle::Off),
        ("xino=auto", |_| {}),
        ("timeout=0", |o| o.cache_for = Duration::ZERO),
        ("timeout=1.5", |o| o.cache_for = Duration::from_millis(1500)),
        ("timeout=1e30", |_| {}),
        ("threaded=1", |_| {}),
        ("threaded=0", |o| o.threads = Some(1)),
        ("threads=3", |o| o.threads = Some(3)),
        ("fsync=0", |o| o.is_volatile = true),
        ("fsync=1", |_| {}),
        ("fsync=auto", |_| {}),
        ("fsync=strict", |o| o.sync_copies = true),
        ("fsync=volatile", |o| o.is_volatile = true),
        ("sync=0", |o| o.is_volatile = true),
        ("sync", |o| o.flags.sync = true),
        ("volatile", |o| o.is_volatile = true),
        ("writeback=0", |_| {}),
        ("writeback=1", |o| o.writeback = true),
        ("io_uring=auto", |_| {}),
        ("io_uring=off", |o| o.io_uring = false),
        ("fast_ino=1", |_| {}),
        ("fast_ino_check=1", |_| {}),
        ("plugins=/a.so:/b.so", |_| {}),
        (r#"context="system_u:object_r:x:s0:c1,c2""#, |o| {
            o.context = Some("system_u:object_r:x:s0:c1,c2".into());
        }),
        ("redirect_dir=on", |o| o.trust = Trust::Engine),
        ("redirect_dir=follow", |o| {
            (o.redirects, o.trust) = (Redirects::Follow, Trust::Engine);
        }),
        ("redirect_dir=off", |o| o.redirects = Redirects::Follow),
        ("redirect_dir=nofollow,metacopy=off", |o| {
            (o.redirects, o.metacopy, o.trust) = (Redirects::NoFollow, false, Trust::Archive);
        }),
        ("metacopy=on", |o| o.trust = Trust::Engine),
        ("metacopy=off", |o| o.metacopy = false),
        ("metacopy=on,trust=archive", |o| o.trust = Trust::Archive),
        ("trust=engine", |o| o.trust = Trust::Engine),
        ("trust=archive", |o| o.trust = Trust::Archive),
        ("trusted=0", |o| o.trusted = vec![0]),
        ("index=off", |o| o.index = false),
        ("index=on", |_| {}),
        ("userxattr", |o| o.user_xattr = Some(true)),
        ("uuid=null", |_| {}),
        ("uuid=on", |_| {}),
        ("nfs_export=off", |_| {}),
        ("verity=off", |_| {}),
        ("default_permissions", |_| {}),
        ("open=checked", |o| o.open = OpenMode::Checked),
        ("open=deferred", |_| {}),
        ("passthrough", |o| o.data = DataMode::Passthrough),
        ("passthrough=0", |_| {}),
        ("size=1G", |o| {
            o.limit = Limit {
                size_bytes: Some(1 << 30),
                inodes: None,
            }
        }),
        ("inodes=1000", |o| {
            o.limit = Limit {
                size_bytes: None,
                inodes: Some(1000),
            }
        }),
        ("size=0,inodes=0", |_| {}),
        ("settle=unmount", |o| o.settle = Settle::Unmount),
        ("settle=manual", |o| o.settle = Settle::Manual),
        ("blocks=off", |o| o.blocks_from_bytes = None),
        ("blocks=64K", |o| o.blocks_from_bytes = Some(65_536)),
        ("wh=plain", |o| o.wh_files = WhFiles::Plain),
        ("wh=whiteouts", |o| o.wh_files = WhFiles::Whiteouts),
        ("ro", |_| {}),
        ("nosuid", |o| o.flags.nosuid = true),
        ("nodev", |o| o.flags.nodev = true),
        ("noexec", |o| o.flags.noexec = true),
        ("nosuid,suid,nodev,dev,noexec,exec", |_| {}),
        ("atime", |o| o.flags.noatime = false),
        ("nodiratime", |o| o.flags.nodiratime = true),
        ("allow_other", |o| o.access = Some(Access::All)),
        ("allow_root", |o| o.access = Some(Access::Root)),
        ("max_write=65536", |o| o.max_write_bytes = Some(65_536)),
        ("splice_read,splice_write,splice_move,kernel_cache", |_| {}),
        ("fsname=store", |o| o.source = Some("store".into())),
        ("debug", |o| o.debug = true),
        ("x-systemd.requires=/a,comment=mine", |_| {}),
    ];
    for manners in [Manners::Own, Manners::FuseOverlayfs] {
        for (text, change) in table {
            let mut expect = MountOptions::new(manners);
            expect.lowers = paths(&["/l"]);
            expect.flags.read_only = true;
            // Where the default is already off, only `on` changes something.
            expect.metacopy |= text.starts_with("metacopy=on");
            change(&mut expect);
            let parsed = parsed(manners, &format!("lowerdir=/l,{text}")).unwrap();
            assert_eq!(parsed.options, expect, "{text} ({manners:?})");
            assert_eq!(parsed.unknown, [] as [OsString; 0], "{text}");
        }
    }
}

#[test]
fn invalid_values_are_refused_under_every_name() {
    for text in [
        "timeout=-1",
        "timeout=soon",
        "timeout=NaN",
        "xino=maybe",
        "redirect_dir=maybe",
        "index=maybe",
        "metacopy=maybe",
        "xattr_permissions=3",
        "fsync=maybe",
        "threads=0",
        "size=big",
        "inodes=-1",
        "settle=later",
        "blocks=many",
        "wh=maybe",
        "trust=me",
        "trusted=1",
        "trusted=",
        "open=maybe",
        "nfs_export=on",
        "verity=require",
        "verity=on",
        "uuid=maybe",
        "nooverride_creds",
        "max_write=x",
    ] {
        for manners in [Manners::Own, Manners::FuseOverlayfs] {
            refused(manners, &format!("lowerdir=/l,{text}"));
        }
    }
    let bad = refused(Manners::Own, "lowerdir=/l,nfs_export=on");
    assert!(bad.hint.is_some_and(|hint| hint.contains("-t overlay")));
}

#[test]
fn unknown_options_are_tolerated_for_fuse_overlayfs_only() {
    let text = "lowerdir=/l,,lazytime,shiny=1,volatile,";
    let parsed = parsed(Manners::FuseOverlayfs, text).unwrap();
    assert_eq!(parsed.unknown, ["lazytime", "shiny=1"]);
    assert!(parsed.options.is_volatile);
    let bad = refused(Manners::Own, "lowerdir=/l,shiny=1");
    assert_eq!(bad.what, "there is no mount option `shiny=1`");
    for (text, near) in [
        ("uperdir=/u", "upperdir"),
        ("metacpy=on", "metacopy"),
        ("setle=manual", "settle"),
    ] {
        let bad = refused(Manners::Own, &format!("lowerdir=/l,{text}"));
        let hint = bad.hint.unwrap_or_default();
        assert!(
            hint.contains(&format!("did you mean {near}?")),
            "{text}: {hint}"
        );
    }
    // Words that an fstab line has for mount(8) are not mistakes.
    let parsed = parsed_own("sloppy,shiny=1");
    assert_eq!(parsed.unknown, ["shiny=1"]);
    own("defaults,noauto,nofail,_netdev,users,x-systemd.automount");
}

#[test]
fn several_strings_are_one() {
    let texts = ["lowerdir=/l", "noacl", "lowerdir=/m,timeout=0"].map(OsString::from);
    let options = parse(Manners::Own, &texts).unwrap().options;
    assert_eq!(options.lowers, paths(&["/m"]));
    assert!(options.no_acl && options.cache_for.is_zero());
}

#[test]
fn any_text_is_an_answer() {
    let mut rng = vellum_testkit::Rng::for_test("any_text_is_an_answer");
    let letters = b"lowerdir=upk,:\\\"/+x0";
    for _ in 0..20_000 {
        let length = rng.below(40);
        let text: Vec<u8> = (0..length).map(|_| *rng.pick(letters)).collect();
        for manners in [Manners::Own, Manners::FuseOverlayfs] {
            // Either way is fine; a panic is not.
            let _ = parse(manners, &[OsString::from_vec(text.clone())]);
        }
    }
}

/// Returns the first value that a spelling offers, as in `index=on|off`; placeholders are replaced
/// by an example.
fn sample(spelled: &str) -> String {
    let Some((name, values)) = spelled.split_once('=') else {
        return spelled.to_owned();
    };
    let value = match values.split(['|', '[', ':']).next().unwrap_or_default() {
        "TOP" | "DIR" => "/l",
        "DISK" => "0:0:1",
        "N" | "UID" | "GID" | "SECONDS" | "SIZE" | "BYTES" => "1",
        "LABEL" | "NAME" | "LIST" => "x",
        word => word,
    };
    format!("{name}={value}")
}

#[test]
fn each_option_of_the_table_is_read_and_documented_and_suggested() {
    const DOCUMENT: &str = include_str!("../../../../docs/overlay.md");
    let document = DOCUMENT.replace("\\|", "|");
    let mut seen = Vec::new();
    for option in list::all() {
        assert!(!option.doc.is_empty(), "{}", option.spelled);
        for (spelled, name) in option.spelled.split(' ').zip(option.names()) {
            assert!(!seen.contains(&name), "{name} has two entries");
            seen.push(name);
            assert!(
                document.contains(&format!("`{spelled}`")),
                "docs/overlay.md does not explain `{spelled}`"
            );
            let slip = format!("{name}q");
            assert_eq!(near(&slip, list::all().flat_map(|o| o.names())), Some(name));
            // An option that is refused with every value is still understood.
            if name == "nooverride_creds" {
                continue;
            }
            let text = format!(
                "lowerdir=/l:/l:/l,upperdir=/u,workdir=/w,{}",
                sample(spelled)
            );
            let parsed = parsed(Manners::Own, &text).unwrap_or_else(|bad| panic!("{text}: {bad}"));
            assert_eq!(parsed.unknown, [] as [OsString; 0], "{text}");
        }
    }
    // And the page explains no unknown option.
    let table = document
        .split("| option | meaning | built in |")
        .nth(1)
        .unwrap_or_default();
    let rows = table
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'));
    for row in rows {
        let cell = row[1..].split(" | ").next().unwrap_or_default();
        for word in cell
            .split('`')
            .skip(1)
            .step_by(2)
            .filter(|word| !word.starts_with('-'))
        {
            let name = word.split('=').next().unwrap_or_default();
            assert!(seen.contains(&name), "docs/overlay.md explains `{word}`");
        }
    }
}
