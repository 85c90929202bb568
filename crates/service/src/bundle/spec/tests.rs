//! The rules of the runtime configuration, as rows.

use oci_spec::image::ConfigBuilder;

use super::*;

fn around() -> Around {
    Around {
        id: "0123456789abcdef".into(),
        root: "/tree".into(),
        in_user_namespace: false,
        thermal: vec!["/sys/devices/system/cpu/cpu0/thermal_throttle".into()],
    }
}

fn image() -> ImageRun {
    ConfigBuilder::default()
        .entrypoint(vec!["/entry".to_owned()])
        .cmd(vec!["a".to_owned(), "b".to_owned()])
        .env(vec!["PATH=/own".to_owned(), "X=1".to_owned()])
        .working_dir("/work".to_owned())
        .build()
        .unwrap()
}

fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

#[test]
fn entrypoint_and_command_follow_dockers_rule() {
    #[track_caller]
    fn check(entrypoint: Option<&str>, command: &[&str], expect: &[&str]) {
        let request = ProcessRequest {
            entrypoint: entrypoint.map(OsString::from),
            command: words(command),
            ..ProcessRequest::default()
        };
        assert_eq!(arguments(Some(&image()), &request).unwrap(), expect);
    }
    check(None, &[], &["/entry", "a", "b"]);
    check(None, &["c"], &["/entry", "c"]);
    check(Some("/mine"), &["c"], &["/mine", "c"]);
    check(Some("/mine"), &[], &["/mine"]);
    check(Some(""), &["sh"], &["sh"]);
    let nothing = ProcessRequest {
        entrypoint: Some(OsString::new()),
        ..ProcessRequest::default()
    };
    assert!(arguments(Some(&image()), &nothing).is_err());
    assert!(arguments(None, &ProcessRequest::default()).is_err());
}

#[test]
fn the_environment_has_defaults_and_the_users_word_counts() {
    let request = ProcessRequest {
        env: words(&["X=2", "Y=3"]),
        tty: true,
        ..ProcessRequest::default()
    };
    let user = User {
        home: Some("/home/a".into()),
        ..User::default()
    };
    let all = environment(Some(&image()), &user, &request, "0123456789abcdef").unwrap();
    assert_eq!(
        all,
        [
            "PATH=/own",
            "X=2",
            "Y=3",
            "HOSTNAME=0123456789ab",
            "HOME=/home/a",
            "TERM=xterm"
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
fn what_tells_of_the_machine_is_hidden() {
    let request = ProcessRequest {
        command: words(&["sh"]),
        ..ProcessRequest::default()
    };
    let spec = spec(&around(), Some(&image()), &User::default(), &request).unwrap();
    let linux = spec.linux().as_ref().unwrap();
    let masked = linux.masked_paths().as_ref().unwrap();
    for path in MASKED {
        assert!(masked.contains(&path.to_owned()), "{path}");
    }
    // What the library knows is not lost by a list of our own.
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
fn only_root_has_capabilities_before_the_command_runs() {
    let request = ProcessRequest {
        command: words(&["sh"]),
        cap_add: vec!["SYS_ADMIN".to_owned()],
        ..ProcessRequest::default()
    };
    for uid in [0, 1, 1000] {
        let user = User {
            uid,
            ..User::default()
        };
        let made = spec(&around(), Some(&image()), &user, &request).unwrap();
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
fn binds_and_volumes_are_told_apart() {
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
        spec(&around, Some(&image()), &User::default(), &request).unwrap()
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
