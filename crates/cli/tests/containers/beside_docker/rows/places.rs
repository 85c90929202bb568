//! `WorkingDir` and `Volumes`: paths that lead somewhere, out, or nowhere.

use super::*;

pub fn working_dir() -> Vec<Row> {
    let places = tree_of_places();
    let image = |dir: Value| {
        let config = json!({ "WorkingDir": dir, "Cmd": ["sh", "-c", WHERE] });
        row(
            format!(
                "WorkingDir {}",
                dir.to_string().chars().take(60).collect::<String>()
            ),
            config,
            &places,
        )
    };
    let mut rows: Vec<Row> = [
        json!(null),
        json!(""),
        json!("/"),
        json!("data"),
        json!("new/x"),
        json!("."),
        json!(".."),
        json!("/.."),
        json!("/data/../data"),
        json!("/data/sub/.."),
        json!("/nosuch/../data"),
        json!("/data/"),
        json!("//data//sub"),
        json!("/abs"),
        json!("/abs/.."),
        json!("/out"),
        json!("/out/x"),
        json!("/dangling"),
        json!("/dangling/x"),
        json!("/nolast"),
        json!("/loop"),
        json!("/file"),
        json!("/file/x"),
        json!("/tofile"),
        json!("/new"),
        json!("/new/a/b"),
        json!("/abs/new"),
        json!("/proc"),
        json!("/proc/1"),
        json!("/sys"),
        json!("/dev"),
        json!("/dev/new"),
        json!("/dev/shm"),
        json!(" "),
        json!("/ x "),
        json!("/a\nb"),
        json!("/a\0b"),
        json!("/ä"),
        json!(format!("/{}", "x".repeat(255))),
        json!(format!("/{}", "x".repeat(256))),
        json!("/..."),
        json!("C:\\x"),
        json!("/link/sub/../new"),
    ]
    .map(image)
    .into();
    for magic in [
        "/proc/self/fd/7",
        "/proc/self/fd/8",
        "/proc/self/cwd",
        "/proc/1/root",
    ] {
        rows.push(image(json!(magic)).refused());
    }
    for dir in ["relative", "/new", "/data/../data", "/file", "", "/abs"] {
        rows.push(image(json!("/data")).flags(&["--workdir", dir]));
    }
    let as_user = json!({ "WorkingDir": "/new/x", "User": "1000", "Cmd": ["sh", "-c", WHERE] });
    rows.push(row("a new WorkingDir of a user", as_user, &places));
    let script = json!({ "WorkingDir": "/data/sub", "User": "7:50", "Cmd": ["sh", "-c", WHERE] });
    rows.push(row("a WorkingDir of another user", script, &places));
    rows
}

pub fn volumes() -> Vec<Row> {
    let places = tree_of_places();
    let declare = |volumes: Value, look: &[&str]| {
        let config =
            json!({ "Volumes": volumes, "Entrypoint": ["sh", "-c", LOOK, "sh"], "Cmd": look });
        row(
            format!(
                "Volumes {}",
                volumes.to_string().chars().take(60).collect::<String>()
            ),
            config,
            &places,
        )
    };
    let one = |place: &str, look: &[&str]| declare(json!({ place: {} }), look);
    let at = |place: &str| one(place, &[place]);
    let mut rows = vec![
        declare(json!(null), &["/data"]),
        declare(json!({}), &["/data"]),
        declare(json!({ "/new": null }), &["/new"]),
        declare(json!({ "/new": { "a": 1 } }), &["/new"]),
        at("/new"),
        at("/new/deep"),
        one(
            "/data",
            &["/data", "/data/a", "/data/sub", "/data/sub/b", "/data/l"],
        ),
        at("/empty"),
        one("/data/", &["/data"]),
        declare(json!({ "/data/": {}, "/data": {} }), &["/data"]),
        one("/x/../data", &["/data"]),
        one("data", &["/data"]),
        one("new/deep", &["/new/deep"]),
        at("/sys"),
        at("/dev/shm"),
        at("/dev/new"),
        at("/etc"),
        at("/bin"),
        at("/file"),
        at("/tofile"),
        at("/file/x"),
        at("/bin/busybox"),
        at("/loop"),
        one("/link", &["/link", "/data", "/data/sub"]),
        one("/link/sub", &["/data/sub"]),
        one("/out", &["/tmp"]),
        one("/out/x", &["/tmp/x"]),
        one("/dangling", &["/made/by/link"]),
        declare(
            json!({ "/n": {}, "/n/a": {}, "/n/a/b": {} }),
            &["/n", "/n/a", "/n/a/b"],
        ),
        declare(
            json!({ "/data": {}, "/data/sub": {} }),
            &["/data", "/data/sub", "/data/sub/b"],
        ),
        at("/a:b"),
        at("/a,b"),
        at("/ä"),
        one("/a\nb", &[]),
        one("/a\0b", &[]),
        at(&format!("/{}", "x".repeat(255))),
        at(&format!("/{}", "x".repeat(256))),
        // Docker tries, and something else fails inside.
        at("/").refused(),
        one("", &[]).refused(),
        one(".", &[]).refused(),
        one("..", &[]).refused(),
        at("/proc").refused(),
        at("/proc/x").refused(),
        at("/dev").refused(),
    ];
    let over = |destination: &str| ["--volume".to_owned(), format!("{BOUND}:{destination}")];
    for (place, destination, look) in [
        ("/data", "/data", &["/data"][..]),
        ("/data/", "/data", &["/data"]),
        ("/data", "/data/", &["/data"]),
        ("/data", "/data/in", &["/data", "/data/in"]),
        ("/data/sub", "/data", &["/data", "/data/sub"]),
        ("/file", "/file", &[]),
    ] {
        let [flag, value] = over(destination);
        let mut row = one(place, look).flags(&[&flag, &value]);
        row.name.push_str(&format!(", bound {destination}"));
        // A directory over a file is the runtime's to refuse, with words of its own.
        rows.push(if place == "/file" { row.refused() } else { row });
    }
    let script = |name: &str, fields: Value, script: &str, flags: &[&str]| {
        let mut config = json!({ "Cmd": ["sh", "-c", script] });
        config
            .as_object_mut()
            .unwrap()
            .extend(fields.as_object().unwrap().clone());
        row(name, config, &places).flags(flags)
    };
    rows.extend([
        script(
            "its user writes",
            json!({ "Volumes": { "/data": {} }, "User": "1000" }),
            "echo x >/data/n; cat /data/n",
            &[],
        ),
        script(
            "another user does not",
            json!({ "Volumes": { "/new": {} }, "User": "1000" }),
            "echo x 2>&1 >/new/n",
            &[],
        ),
        script(
            "it is the WorkingDir",
            json!({ "Volumes": { "/data": {} }, "WorkingDir": "/data" }),
            "pwd; ls",
            &[],
        ),
        script(
            "it holds the WorkingDir",
            json!({ "Volumes": { "/vol": {} }, "WorkingDir": "/vol/w" }),
            WHERE,
            &[],
        ),
        script(
            "the root is read-only",
            json!({ "Volumes": { "/data": {} } }),
            "touch /x 2>/dev/null || touch /data/x && ls /data",
            &["--read-only"],
        ),
    ]);
    rows
}
