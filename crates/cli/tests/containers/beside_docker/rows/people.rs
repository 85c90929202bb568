//! `User`, and the files that name users and groups.

use super::*;

pub fn user() -> Vec<Row> {
    let users = users(PASSWD, GROUP);
    let image = |user: &str| {
        row(
            format!("User {user:?}"),
            json!({ "User": user, "Cmd": ["sh", "-c", WHO] }),
            &users,
        )
    };
    let mut rows: Vec<Row> = [
        "",
        "app",
        "1000",
        "app:",
        "app:team",
        "1000:12",
        "1000:team",
        "4242",
        "4242:4243",
        "7",
        "7:8",
        "7:12",
        "+5",
        "010",
        "2147483647",
        "2147483648",
        "4294967294",
        "4294967295",
        "4294967296",
        "-1",
        "1e3",
        "0x10",
        "1_000",
        "1000.5",
        "99999999999999999999",
        ":",
        ":g",
        ":500",
        ":team",
        "u:",
        "nobody",
        "app:nogroup",
        "app ",
        " app",
        "app\t",
        "1000 ",
        "app:team:x",
        "app:5:6",
        "root",
        "0",
        "0:0",
        "0:team",
        "app:-1",
        "app:4294967295",
        "app:2147483648",
        "app: 50",
        "٣",
        "a\0b",
    ]
    .map(image)
    .into();
    for user in [
        "1000",
        "7:500",
        "app",
        "",
        "4294967296",
        "-1",
        " 5",
        "app ",
        ":",
        ":5",
        "app:",
    ] {
        let config = json!({ "User": "app", "Cmd": ["sh", "-c", WHO] });
        rows.push(
            row(format!("--user {user:?}"), config, &users).flags(&[&format!("--user={user}")]),
        );
    }
    // Docker with a runc before 1.3 gives it the group root, since a group is *called* 500.
    let named = self::users(PASSWD, format!("{GROUP}500:x:0:\n"));
    let config = json!({ "User": "7:500", "Cmd": ["sh", "-c", WHO] });
    rows.push(
        row("a group called 500", config, &named)
            .instead(0, "Uid: 7\t7\t7\t7\nGid: 500\t500\t500\t500\nGroups: \n/"),
    );
    rows
}

pub fn user_files() -> Vec<Row> {
    let passwd = "root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/srv/app:/bin/sh\n";
    let group = "root:x:0:\nteam:x:50:app,other\napp:x:1001:app\n";
    let as_user = |name: &str, user: &str, layer: &[u8]| {
        row(
            format!("{name}, as {user:?}"),
            json!({ "User": user, "Cmd": ["sh", "-c", WHO] }),
            layer,
        )
    };
    let with = |name: &str, user: &str, passwd: &str, group: &str| {
        as_user(name, user, &users(passwd, group))
    };
    let bare = || layer().dir("etc");
    let mut rows = vec![
        with(
            "CRLF",
            "app",
            &passwd.replace('\n', "\r\n"),
            &group.replace('\n', "\r\n"),
        ),
        with(
            "no last newline",
            "app",
            passwd.trim_end(),
            group.trim_end(),
        ),
        with(
            "blanks",
            "app",
            &format!("  {passwd}"),
            &format!("\t{group}"),
        ),
        with(
            "comments",
            "app",
            &format!("# app:x:0:0\n{passwd}"),
            &format!("#team:x:0:app\n{group}"),
        ),
        with(
            "NIS",
            "app",
            &format!("+::::::\n{passwd}+::::::\n"),
            &format!("{group}+:::\n"),
        ),
        with(
            "two of one id",
            "1000",
            "x:x:1000:5::/x:\napp:x:1000:6::/y:\n",
            "g:x:50:x\nh:x:60:app\n",
        ),
        with(
            "two of one name",
            "app",
            "app:x:1000:5::/x:\napp:x:1001:6::/y:\n",
            "",
        ),
        with(
            "another root",
            "",
            "toor:x:0:7::/toor:\nroot:x:0:0::/root:\n",
            "g:x:50:toor\n",
        ),
        with(
            "twice in a group",
            "app",
            passwd,
            "a:x:50:app,app\nb:x:50:app\nc:x:1001:app\n",
        ),
        with("blanks in members", "app", passwd, "a:x:50: app , other\n"),
        with(
            "a number among the members",
            "1000",
            passwd,
            "a:x:50:1000\n",
        ),
        with("no home", "app", "app:x:1000:1001\n", group),
        with("an empty home", "app", "app:x:1000:1001:::\n", group),
        with("a relative home", "app", "app:x:1000:1001::srv:\n", group),
        with("leading zeros", "app", "app:x:010:1001::/:\n", group),
        with("leading plus", "app", "app:x:+1000:1001::/:\n", group),
        with(
            "large ids",
            "app",
            "app:x:4294967294:2147483648::/:\n",
            group,
        ),
        as_user(
            "bytes",
            "app",
            &users(
                b"\xff:x:1:1::/:\napp:x:1000:1001::/h\xff:\n",
                b"\xff:x:2:app\n",
            ),
        ),
        as_user("no files", "", &bare().done()),
        as_user("no files", "root", &bare().done()),
        as_user("no files", "5:6", &bare().done()),
        as_user(
            "no passwd",
            "5:team",
            &bare().file("etc/group", group).done(),
        ),
        as_user("no group", "app", &bare().file("etc/passwd", passwd).done()),
        as_user(
            "no group",
            "app:team",
            &bare().file("etc/passwd", passwd).done(),
        ),
        as_user(
            "a link",
            "app",
            &bare()
                .symlink("etc/passwd", "/etc/pw")
                .file("etc/pw", passwd)
                .done(),
        ),
        as_user(
            "a link out",
            "app",
            &bare()
                .symlink("etc/passwd", "../../../../pw")
                .file("pw", passwd)
                .done(),
        ),
        as_user(
            "a dangling link",
            "app",
            &bare().symlink("etc/passwd", "/nowhere").done(),
        ),
        as_user(
            "a dangling link",
            "5",
            &bare().symlink("etc/passwd", "/nowhere").done(),
        ),
        as_user(
            "a loop",
            "5",
            &bare().symlink("etc/passwd", "passwd").done(),
        ),
        as_user(
            "a loop of groups",
            "app",
            &bare()
                .symlink("etc/group", "group")
                .file("etc/passwd", passwd)
                .done(),
        ),
        // Docker's reader, or runc's, waits for its other end.
        as_user(
            "a FIFO",
            "app",
            &bare()
                .owned("etc/passwd", TarKind::Fifo, (0o644, 0, 0), &[])
                .done(),
        )
        .refused(),
        as_user(
            "a FIFO",
            "5:6",
            &bare()
                .owned("etc/passwd", TarKind::Fifo, (0o644, 0, 0), &[])
                .done(),
        )
        .refused(),
        as_user(
            "a FIFO of groups",
            "app",
            &bare()
                .owned("etc/group", TarKind::Fifo, (0o644, 0, 0), &[])
                .file("etc/passwd", passwd)
                .done(),
        )
        .refused(),
        // Docker returns 126, as if it came from the command.
        as_user("a directory", "app", &bare().dir("etc/passwd").done()).refused(),
        // The container's own input, or random bytes without end.
        as_user(
            "a link to its input",
            "5:6",
            &bare().symlink("etc/passwd", "/proc/self/fd/0").done(),
        )
        .refused(),
        as_user(
            "a link to a device",
            "5:6",
            &bare().symlink("etc/group", "/dev/urandom").done(),
        )
        .refused(),
        // More than today's Docker accepts, and more than a runtime can read quickly.
        with(
            "a huge file",
            "5",
            &format!("#{}\n", "x".repeat(1000)).repeat(11_000),
            group,
        )
        .refused(),
        as_user(
            "very many groups",
            "app",
            &users(
                passwd,
                (0..65_600)
                    .map(|n| format!("g{n}:x:{n}:app\n"))
                    .collect::<String>(),
            ),
        )
        .refused(),
        // A runc that reads it, too, stops at 64 KiB.
        with(
            "a long line",
            "app",
            &format!("long:x:5:5:{}:/:\n{passwd}", "x".repeat(70_000)),
            group,
        ),
    ];
    // Docker takes each for root.
    for line in [
        "app",
        "app:x",
        "app:x:1000",
        "app:x::1001::/:",
        "app:x:abc:1001::/:",
        "app:x:1000:::/:",
        "app:x:4294967296:1001::/:",
        "app:x:-1:1::/:",
    ] {
        rows.push(with(line, "app", line, group).refused());
    }
    rows.push(with("a NIS entry", "+", "+::::::\n", group).refused());
    for line in ["bad:x:zz:", "bad:x::", "bad:x:4294967296:", "bad:x:-1:"] {
        rows.push(with(line, "app:bad", passwd, line).refused());
    }
    rows
}
