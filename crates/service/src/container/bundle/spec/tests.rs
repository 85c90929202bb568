//! The rules of the runtime configuration, as rows.

use super::*;

fn around() -> Around {
    Around {
        id: "0123456789abcdef".into(),
        root: "/tree".into(),
        in_user_namespace: false,
        thermal: vec!["/sys/devices/system/cpu/cpu0/thermal_throttle".into()],
    }
}

fn image() -> RunConfig {
    RunConfig {
        entrypoint: own(&["/entry"]),
        cmd: own(&["a", "b"]),
        env: own(&["PATH=/own", "X=1"]),
        working_dir: "/work".into(),
        ..RunConfig::default()
    }
}

fn own(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

/// The image's entrypoint and command, the user's entrypoint and command, and what runs; `None`:
/// nothing to run.
type Words<'a> = (
    &'a [&'a str],
    &'a [&'a str],
    Option<&'a str>,
    &'a [&'a str],
    Option<&'a [&'a str]>,
);

#[test]
fn entrypoint_and_command_follow_dockers_rule() {
    let rows: [Words; 22] = [
        (&["/e"], &["a", "b"], None, &[], Some(&["/e", "a", "b"])),
        (&["/e"], &["a", "b"], None, &["c"], Some(&["/e", "c"])),
        (
            &["/e"],
            &["a"],
            Some("/mine"),
            &["c"],
            Some(&["/mine", "c"]),
        ),
        (&["/e"], &["a"], Some("/mine"), &[], Some(&["/mine"])),
        (&["/e"], &["a"], Some(""), &["sh"], Some(&["sh"])),
        (&["/e"], &["a"], Some(""), &[], None),
        (&[], &["a"], Some(""), &[], None),
        (&[], &["a"], Some("/mine"), &[], Some(&["/mine"])),
        (&[], &[], None, &[], None),
        (&[], &[], None, &["c"], Some(&["c"])),
        (&[], &["a"], None, &[], Some(&["a"])),
        (&["/e"], &[], None, &[], Some(&["/e"])),
        (&[""], &["a"], None, &[], Some(&["a"])),
        (&[""], &["a"], None, &["c"], Some(&["c"])),
        (&[""], &[], None, &[], None),
        (&["", "x"], &["a"], None, &[], Some(&["", "x", "a"])),
        (&["", ""], &["a"], None, &[], Some(&["", "", "a"])),
        (&[], &[""], None, &[], Some(&[""])),
        (&["/e"], &[""], None, &[], Some(&["/e", ""])),
        (&[" "], &["a"], None, &[], Some(&[" ", "a"])),
        (&["/e x"], &["a\nb"], None, &[], Some(&["/e x", "a\nb"])),
        (&["/e"], &["a\0b"], None, &[], None),
    ];
    for (entrypoint, cmd, asked, command, expect) in rows {
        let image = RunConfig {
            entrypoint: own(entrypoint),
            cmd: own(cmd),
            ..RunConfig::default()
        };
        let request = ProcessRequest {
            entrypoint: asked.map(OsString::from),
            command: words(command),
            ..ProcessRequest::default()
        };
        let got = arguments(&image, &request).ok();
        assert_eq!(
            got,
            expect.map(own),
            "{entrypoint:?} {cmd:?} {asked:?} {command:?}"
        );
    }
}

#[test]
fn the_environment_has_defaults_and_the_last_word_counts() {
    const DEFAULT: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let make = |image: &[&str], asked: &[&str], tty: bool, home: Option<&[u8]>| {
        let image = RunConfig {
            env: own(image),
            ..RunConfig::default()
        };
        let request = ProcessRequest {
            env: words(asked),
            tty,
            ..ProcessRequest::default()
        };
        let user = User {
            home: home.map(<[u8]>::to_vec),
            ..User::default()
        };
        environment(&image, &user, &request, "0123456789abcdef")
    };
    // What is there in addition to the default PATH, HOSTNAME and HOME, in any order.
    let check = |image: &[&str], asked: &[&str], expect: &[&str]| {
        let mut got = make(image, asked, false, Some(b"/root")).unwrap();
        let mut expect = own(expect);
        got.sort();
        expect.sort();
        let usual = [DEFAULT, "HOSTNAME=0123456789ab", "HOME=/root"];
        let names: Vec<&str> = got.iter().map(|v| name_of(v)).collect();
        let mut unique = names.clone();
        unique.dedup();
        assert_eq!(names, unique, "no name comes twice");
        for gone in usual
            .iter()
            .filter(|usual| !got.iter().any(|v| v == *usual))
        {
            let said =
                |v: &String| v == &format!("-{}", name_of(gone)) || name_of(v) == name_of(gone);
            assert!(expect.iter().any(said), "{gone} is missing from {got:?}");
        }
        expect.retain(|v| !v.starts_with('-'));
        got.retain(|v| !usual.contains(&v.as_str()));
        assert_eq!(got, expect, "{image:?} {asked:?}");
    };
    check(&[], &[], &[]);
    check(&["A=1"], &[], &["A=1"]);
    check(&["A=1", "A=2"], &[], &["A=2"]);
    check(&["A=1", "B=2", "A=3"], &[], &["A=3", "B=2"]);
    check(&["A"], &[], &[]);
    check(&["A=1", "A"], &[], &["A=1"]);
    check(&["A", "A=1"], &[], &["A=1"]);
    check(&[""], &[], &[]);
    check(&["A="], &[], &["A="]);
    check(&["A=b=c"], &[], &["A=b=c"]);
    check(
        &["A=a\nb", " B = 1 ", "Ä=ö", "1=3", "a-b.c=d"],
        &[],
        &["A=a\nb", " B = 1 ", "Ä=ö", "1=3", "a-b.c=d"],
    );
    check(&["A=$PATH"], &[], &["A=$PATH"]);
    check(&["PATH=/own"], &[], &["PATH=/own"]);
    check(&["PATH=/x", "PATH=/y"], &[], &["PATH=/y"]);
    check(&["PATH="], &[], &["PATH="]);
    check(&["path=/x"], &[], &["path=/x"]);
    check(&["PATH"], &[], &["-PATH"]);
    check(&["HOSTNAME"], &[], &["-HOSTNAME"]);
    check(&["HOSTNAME=other"], &[], &["HOSTNAME=other"]);
    check(&["HOME=/h"], &[], &["HOME=/h"]);
    check(&["HOME="], &[], &[]);
    check(&["HOME"], &[], &[]);
    check(&["TERM=foo"], &[], &["TERM=foo"]);
    check(&["X=1"], &["X=2", "Y=3"], &["X=2", "Y=3"]);
    check(&["X=1"], &["X="], &["X="]);
    check(&["X=1"], &["X"], &[]);
    check(&["X=1", "X=2"], &["X=3"], &["X=3"]);
    check(&[], &["X=1", "X=2"], &["X=2"]);
    check(&["PATH=/own"], &["PATH"], &["-PATH"]);
    for refused in ["=x", "=", "A=a\0b", "A\0=b"] {
        assert!(
            make(&[refused], &[], false, None).is_err(),
            "{refused:?} of the image"
        );
        assert!(
            make(&[], &[refused], false, None).is_err(),
            "{refused:?} of the user"
        );
    }
    let with = |tty, home| make(&[], &[], tty, home).unwrap();
    assert!(with(true, None).contains(&"TERM=xterm".to_owned()));
    assert!(with(false, None).contains(&"HOME=/".to_owned()));
    assert!(with(false, Some(b"")).contains(&"HOME=".to_owned()));
    let odd = with(false, Some(b"/h\xff"));
    assert!(
        !odd.iter().any(|v| name_of(v) == "HOME"),
        "the runtime sets it: {odd:?}"
    );
}

#[test]
fn the_working_directory_is_absolute_and_clean() {
    let check = |image: &str, asked: Option<&str>, expect: Option<&str>| {
        let image = RunConfig {
            working_dir: image.into(),
            ..RunConfig::default()
        };
        let request = ProcessRequest {
            workdir: asked.map(PathBuf::from),
            ..ProcessRequest::default()
        };
        let got = workdir(&image, &request).ok();
        // As text: paths compare without regard to doubled slashes.
        assert_eq!(
            got.as_deref().and_then(Path::to_str),
            expect,
            "{image:?} {asked:?}"
        );
    };
    check("", None, Some("/"));
    check("/", None, Some("/"));
    check("/d", None, Some("/d"));
    check("/d/", None, Some("/d"));
    check("//d//sub/.", None, Some("/d/sub"));
    check("/..", None, Some("/"));
    check("/no/../d", None, Some("/d"));
    check("/...", None, Some("/..."));
    check("/ a\nb", None, Some("/ a\nb"));
    check("/d", Some("/own/"), Some("/own"));
    check("/d", Some(""), Some("/d"));
    check("d", Some("/own"), Some("/own"));
    for relative in ["d", ".", "..", "./d", " ", " /d", "C:\\x"] {
        check(relative, None, None);
        check("/d", Some(relative), None);
    }
}

#[test]
fn files_that_reveal_the_machine_are_hidden() {
    let request = ProcessRequest {
        command: words(&["sh"]),
        ..ProcessRequest::default()
    };
    let spec = spec(&around(), &image(), &User::default(), &request, &[]).unwrap();
    let linux = spec.linux().as_ref().unwrap();
    let masked = linux.masked_paths().as_ref().unwrap();
    for path in MASKED {
        assert!(masked.contains(&path.to_owned()), "{path}");
    }
    // Paths in the library's list are not missing from ours.
    for path in oci_spec::runtime::get_default_maskedpaths() {
        assert!(masked.contains(&path), "{path}");
    }
    for path in oci_spec::runtime::get_default_readonly_paths() {
        assert!(
            linux.readonly_paths().as_ref().unwrap().contains(&path),
            "{path}"
        );
    }
    assert!(masked.contains(&"/sys/devices/system/cpu/cpu0/thermal_throttle".to_owned()));
}

#[test]
fn no_bind_hides_another_and_the_users_bind_wins_over_the_images() {
    let bind = |source: &str, destination: &str| Bind {
        source: source.into(),
        destination: destination.into(),
        read_only: false,
        volume: None,
    };
    let request = ProcessRequest {
        network: Network::Host,
        binds: vec![
            bind("u1", "/data/in/deep"),
            bind("u2", "/data"),
            bind("u3", "/etc/../etc/hosts"),
        ],
        ..ProcessRequest::default()
    };
    let volumes = [bind("v1", "/data/in"), bind("v2", "/data")];
    let made = binds(&request, &volumes).unwrap();
    let sources: Vec<_> = made
        .iter()
        .map(|m| m.source().as_ref().unwrap().display().to_string())
        .collect();
    assert_eq!(
        sources,
        [
            "v2",
            "u2",
            "/etc/resolv.conf",
            "/etc/hosts",
            "v1",
            "u3",
            "u1"
        ]
    );
}

#[test]
fn capabilities_are_added_and_dropped() {
    let set = |add: &[&str], drop: &[&str]| {
        let own = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        capabilities(&ProcessRequest {
            cap_add: own(add),
            cap_drop: own(drop),
            ..ProcessRequest::default()
        })
    };
    assert_eq!(set(&[], &[]).unwrap().len(), 14);
    assert!(
        set(&["CAP_SYS_ADMIN"], &[])
            .unwrap()
            .contains(&Capability::SysAdmin)
    );
    assert!(set(&["sys_admin"], &["all"]).unwrap() == [Capability::SysAdmin].into_iter().collect());
    assert!(
        !set(&["ALL"], &["chown"])
            .unwrap()
            .contains(&Capability::Chown)
    );
    assert_eq!(all_capabilities().len(), 41);
    assert!(set(&["FLY"], &[]).is_err());
}

#[test]
fn only_root_has_capabilities_before_the_command_runs() {
    let request = ProcessRequest {
        command: words(&["sh"]),
        cap_add: own(&["SYS_ADMIN"]),
        ..ProcessRequest::default()
    };
    for uid in [0, 1, 1000] {
        let user = User {
            uid,
            ..User::default()
        };
        let made = spec(&around(), &image(), &user, &request, &[]).unwrap();
        let process = made.process().as_ref().unwrap();
        let sets = process.capabilities().as_ref().unwrap();
        let count = |set: &Option<Capabilities>| set.as_ref().map_or(0, |set| set.len());
        let expect = if uid == 0 { 15 } else { 0 };
        assert_eq!(count(sets.bounding()), 15);
        assert_eq!(
            (count(sets.effective()), count(sets.permitted())),
            (expect, expect),
            "{uid}"
        );
        assert_eq!((count(sets.inheritable()), count(sets.ambient())), (0, 0));
    }
}

#[test]
fn binds_and_volumes_are_distinguished() {
    #[track_caller]
    fn check(text: &str, expect: Option<(&str, &str, bool, Option<&str>)>) {
        let got = parse_bind(OsStr::new(text)).ok();
        let got = got.as_ref().map(|b| {
            (
                b.source.to_str().unwrap(),
                b.destination.to_str().unwrap(),
                b.read_only,
                b.volume.as_deref(),
            )
        });
        assert_eq!(got, expect, "{text}");
    }
    check("/a:/b", Some(("/a", "/b", false, None)));
    check("./a:/b:ro", Some(("./a", "/b", true, None)));
    check(".:/b", Some((".", "/b", false, None)));
    check("cache:/b:rw", Some(("cache", "/b", false, Some("cache"))));
    check("cache:/", None);
    check("cache:b", None);
    check("cache", None);
    check(":/b", None);
    check("/a:/b:rx", None);
    check("/a:/b:ro:z", None);
}

#[test]
fn a_plain_users_container_leaves_out_what_the_kernel_refuses() {
    let request = ProcessRequest {
        command: words(&["sh"]),
        ..ProcessRequest::default()
    };
    let make = |in_user_namespace, network| {
        let around = Around {
            in_user_namespace,
            ..around()
        };
        let request = ProcessRequest {
            network,
            ..request.clone()
        };
        spec(&around, &image(), &User::default(), &request, &[]).unwrap()
    };
    let has = |spec: &Spec, path: &str, kind: &str| {
        spec.mounts()
            .as_ref()
            .unwrap()
            .iter()
            .any(|m| m.destination() == Path::new(path) && m.typ().as_deref() == Some(kind))
    };
    let root = make(false, Network::None);
    assert!(has(&root, "/sys", "sysfs") && has(&root, "/sys/fs/cgroup", "cgroup"));
    assert_eq!(
        root.linux()
            .as_ref()
            .unwrap()
            .namespaces()
            .as_ref()
            .unwrap()
            .len(),
        5
    );
    assert_eq!(root.hostname().as_deref(), Some("0123456789ab"));
    assert_eq!(root.process().as_ref().unwrap().cwd(), Path::new("/work"));
    let user = make(true, Network::Host);
    assert!(has(&user, "/sys", "none") && !has(&user, "/sys/fs/cgroup", "cgroup"));
    assert!(user.linux().as_ref().unwrap().resources().is_none());
    assert_eq!(
        user.linux()
            .as_ref()
            .unwrap()
            .namespaces()
            .as_ref()
            .unwrap()
            .len(),
        4
    );
    let text = serde_json::to_string(&user).unwrap();
    assert!(!text.contains("uidMappings"), "{text}");
}
