//! The ids a process runs with, as rows: the request and the content of the files.

use super::*;

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:,,,:/srv/app:/bin/sh\n\
    1000:x:0:0::/:/bin/sh\n7:x:8:8::/seven:\n4294967296:x:0:0::/:/bin/sh\n+5:x:0:0::/:\n";
const GROUP: &str =
    "root:x:0:\nteam:x:50:app,other\nextra:x:60:other,app\napp:x:1001:app\nodd:x:70:xapp\n";

/// `uid gid groups home`, the groups with commas between; `-` for no home. `None` where it is
/// refused.
#[track_caller]
fn check(text: &str, passwd: impl AsRef<[u8]>, group: impl AsRef<[u8]>, expect: Option<&str>) {
    let shown = resolve(text, passwd.as_ref(), group.as_ref()).map(|user| {
        let gids: Vec<String> = user.additional_gids.iter().map(u32::to_string).collect();
        let home = user.home.as_deref().map(String::from_utf8_lossy);
        let home = home.unwrap_or("-".into());
        format!("{} {} {} {home}", user.uid, user.gid, gids.join(","))
    });
    assert_eq!(
        shown.as_deref().ok(),
        expect,
        "{text:?} with {:?} and {:?}: {shown:?}",
        String::from_utf8_lossy(&passwd.as_ref()[..passwd.as_ref().len().min(80)]),
        String::from_utf8_lossy(&group.as_ref()[..group.as_ref().len().min(80)])
    );
}

#[test]
fn a_number_is_an_id_and_never_a_name() {
    let of = |text, expect| check(text, PASSWD, GROUP, expect);
    of("1000", Some("1000 1001 50,60,1001 /srv/app"));
    of("7", Some("7 0 0 -"));
    of("8", Some("8 8 8 /seven"));
    of("+5", Some("5 0 0 -"));
    of("010", Some("10 0 0 -"));
    of("2147483647", Some("2147483647 0 0 -"));
    for refused in [
        "2147483648",
        "4294967294",
        "4294967295",
        "4294967296",
        "4294968296",
        "99999999999999999999",
        "-1",
        "-4294966296",
        "app:-1",
        "app:2147483648",
        "app:4294967295",
        "app:4294967296",
        "app:99999999999999999999",
    ] {
        of(refused, None);
    }
    // Anything not written as a number is a name, and no user has one of these names.
    for unknown in [
        "1e3", "0x3e8", "1_000", "1000.0", " 1000", "1000 ", "٣", "+", "-", "١٠",
    ] {
        of(unknown, None);
    }
    // Groups are no different.
    check("7:500", PASSWD, "500:x:0:\nfive:x:500:\n", Some("7 500  -"));
    check("app:50", PASSWD, GROUP, Some("1000 50 50 /srv/app"));
}

#[test]
fn names_and_numbers() {
    let of = |text, expect| check(text, PASSWD, GROUP, expect);
    of("", Some("0 0 0 /root"));
    of(":", Some("0 0 0 /root"));
    of(":500", Some("0 500 500 /root"));
    of(":team", Some("0 50 50 /root"));
    of("app", Some("1000 1001 50,60,1001 /srv/app"));
    of("app:", Some("1000 1001 50,60,1001 /srv/app"));
    of("app:team", Some("1000 50 50 /srv/app"));
    of("app:team:x", Some("1000 50 50 /srv/app"));
    of("1000:12", Some("1000 12 12 /srv/app"));
    of("1000:team", Some("1000 50 50 /srv/app"));
    of("4242", Some("4242 0 0 -"));
    of("4242:4243", Some("4242 4243 4243 -"));
    for unknown in [
        "nobody",
        "u:",
        ":g",
        "app:nogroup",
        "app:1e3",
        "app ",
        " app",
        "app\t",
        "app: 50",
        "App",
        "a\0b",
    ] {
        of(unknown, None);
    }
    // Without the files, numbers stand for themselves.
    check("5", "", "", Some("5 0 0 -"));
    check("5:6", "", "", Some("5 6 6 -"));
    check("", "", "", Some("0 0 0 -"));
    check("root", "", "", None);
}

#[test]
fn the_primary_group_is_among_the_supplementary_ones() {
    for text in [
        "",
        "app",
        "1000",
        "app:team",
        "1000:12",
        "4242",
        "4242:4243",
        ":500",
    ] {
        let user = resolve(text, PASSWD.as_bytes(), GROUP.as_bytes()).unwrap();
        assert!(user.additional_gids.contains(&user.gid), "{text}: {user:?}");
    }
}

#[test]
fn a_line_whose_numbers_are_not_ids_is_ignored() {
    // Docker's own parser reads each of them as root, or as root's group.
    for line in [
        "app",
        "app:x",
        "app:x:1000",
        "app:x::1001::/:",
        "app:x:1000:::/:",
        "app:x:abc:1001::/:",
        "app:x:1000:zz::/:",
        "app:x:-1:1001::/:",
        "app:x: 1000:1001::/:",
        "app:x:0x10:1001::/:",
        "app:x:4294967295:1001::/:",
        "app:x:4294967296:1001::/:",
        "app:x:99999999999999999999:1001::/:",
        "app:x:1000:4294967296::/:",
        "+app::::::",
        "#app:x:1000:1001::/:",
    ] {
        check("app", line, GROUP, None);
        check("1000", line, GROUP, Some("1000 0 0 -"));
        // A good line further down counts.
        let both = format!("{line}\napp:x:1000:1001::/srv:\n");
        check("app", both, "", Some("1000 1001 1001 /srv"));
    }
    check("+", "+::::::\n", "+:::\n", None);
    for line in [
        "bad",
        "bad:x",
        "bad:x::app",
        "bad:x:zz:app",
        "bad:x:-1:app",
        "bad:x:4294967295:app",
        "bad:x:4294967296:app",
        "#bad:x:70:app",
    ] {
        check("app:bad", PASSWD, line, None);
        check("app", PASSWD, line, Some("1000 1001 1001 /srv/app"));
    }
}

#[test]
fn files_are_read_as_they_come() {
    let app = Some("1000 1001 50,60,1001 /srv/app");
    check(
        "app",
        PASSWD.replace('\n', "\r\n"),
        GROUP.replace('\n', "\r\n"),
        app,
    );
    check("app", PASSWD.trim_end(), GROUP.trim_end(), app);
    check(
        "app",
        PASSWD.replace('\n', "\n\n \n"),
        GROUP.replace('\n', "\n\n#team:x:0:app\n"),
        app,
    );
    check(
        "app",
        format!("+::::::\n{PASSWD}+::::::\n"),
        format!("{GROUP}+:::\n"),
        app,
    );
    check(
        "app",
        format!("  {}", PASSWD.replace('\n', "\n\t")),
        format!(" {GROUP}"),
        app,
    );
    let long = format!("long:x:5:5:{}:/:\n{PASSWD}", "x".repeat(1 << 20));
    check(
        "app",
        long,
        format!("{GROUP}long:x:80:{}app\n", "u,".repeat(1 << 20)),
        Some("1000 1001 50,60,80,1001 /srv/app"),
    );
    check(
        "app",
        b"\xff:x:1:1::/:\napp:x:1000:1001::/srv/app:\n",
        b"\xff:x:2:app\n",
        Some("1000 1001 2,1001 /srv/app"),
    );
    check(
        "app",
        b"a\0b:x:1:1::/:\napp:x:1000:1001::/h\0:\n",
        "",
        Some("1000 1001 1001 /h\0"),
    );
    check(
        "bürger",
        "bürger:x:1:2::/h:\n",
        "ä:x:50:bürger\n",
        Some("1 2 2,50 /h"),
    );
    // The first of several counts, and it is its name that groups list.
    check(
        "1000",
        "x:x:1000:5::/x:\napp:x:1000:6::/app:\n",
        "g:x:50:x\nh:x:60:app\n",
        Some("1000 5 5,50 /x"),
    );
    check(
        "app",
        "app:x:1000:5::/x:\napp:x:1001:6::/y:\n",
        "",
        Some("1000 5 5 /x"),
    );
    check(
        "",
        "toor:x:0:7::/toor:\nroot:x:0:0::/root:\n",
        "g:x:50:toor\n",
        Some("0 7 7,50 /toor"),
    );
    check(
        "app",
        PASSWD,
        "a:x:50:app,app\nb:x:50:app\nc:x:1001:app\n",
        Some("1000 1001 50,1001 /srv/app"),
    );
    check(
        "app",
        PASSWD,
        "a:x:50: app , other\n",
        Some("1000 1001 1001 /srv/app"),
    );
    check(
        "1000",
        PASSWD,
        "a:x:50:1000\n",
        Some("1000 1001 1001 /srv/app"),
    );
    // Homes.
    check("app", "app:x:1:2:::/bin/sh\n", "", Some("1 2 2 "));
    check("app", "app:x:1:2\n", "", Some("1 2 2 "));
    check("app", "app:x:1:2::srv:\n", "", Some("1 2 2 srv"));
    // Ids that Docker accepts from the file, but not from the user.
    check(
        "app",
        "app:x:4294967294:2147483648::/:\n",
        "",
        Some("4294967294 2147483648 2147483648 /"),
    );
}

#[test]
fn a_user_in_too_many_groups_is_refused() {
    let group = |count: usize| -> String {
        (0..count)
            .map(|n| format!("g{n}:x:{}:app\n", n + 2000))
            .collect()
    };
    assert!(resolve("app", PASSWD.as_bytes(), group(MAX_GROUPS).as_bytes()).is_err());
    let most = resolve("app", PASSWD.as_bytes(), group(MAX_GROUPS - 1).as_bytes()).unwrap();
    assert_eq!(most.additional_gids.len(), MAX_GROUPS);
}
