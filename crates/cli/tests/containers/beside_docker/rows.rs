//! The rows: one function a field.

mod people;
mod places;

use serde_json::{Value, json};
use vellum_image::TarKind;

use super::{BOUND, Expect, Row};
use crate::support::{LayerTar, layer};

const PASSWD: &str = "root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/srv/app:/bin/sh\n1000:x:0:0::/:/bin/sh\n\
    7:x:8:8::/seven:/bin/sh\n4294967296:x:0:0::/:/bin/sh\n+5:x:0:0::/:\n";
const GROUP: &str = "root:x:0:\nteam:x:50:app,other\nextra:x:60:other,app\napp:x:1001:app\n";

/// Prints who the process is, one field a line.
const WHO: &str = "while read a b; do case $a in Uid:|Gid:|Groups:) echo \"$a $b\";; esac; done </proc/self/status; echo $HOME";
/// Prints the directory the process is in, and whose it is.
const WHERE: &str = "pwd; stat -c '%A %u %g' . ; ls -d /made/by/* /nowhere 2>/dev/null; true";
/// Prints for each path what it is, whether something is mounted there, and what is in it.
const LOOK: &str = "for p in \"$@\"; do stat -c '%n %F %A %u %g' \"$p\"; grep -qF \" $p \" /proc/self/mountinfo && echo mounted; \
    ls -1 \"$p\"; done 2>&1 | grep -v -e hostname -e hosts -e mtab -e resolv.conf";

/// The layer with the shell.
pub fn base(busybox: &[u8]) -> Vec<u8> {
    let mut tar = layer().dir("bin").program("bin/busybox", busybox);
    for name in [
        "cat", "echo", "env", "grep", "id", "ls", "sh", "stat", "touch",
    ] {
        tar = tar.symlink(&format!("bin/{name}"), "busybox");
    }
    tar.done()
}

fn users(passwd: impl AsRef<[u8]>, group: impl AsRef<[u8]>) -> Vec<u8> {
    layer()
        .dir("etc")
        .file("etc/group", group)
        .file("etc/passwd", passwd)
        .done()
}

fn dir(tar: LayerTar, path: &str, attributes: (u32, u32, u32)) -> LayerTar {
    tar.owned(path, TarKind::Directory, attributes, &[])
}

fn file(tar: LayerTar, path: &str, attributes: (u32, u32, u32), data: &[u8]) -> LayerTar {
    let size_bytes = data.len() as u64;
    tar.owned(path, TarKind::File { size_bytes }, attributes, data)
}

/// Directories, links and files for paths to lead to.
fn tree_of_places() -> Vec<u8> {
    let tar = layer()
        .symlink("abs", "/data/sub")
        .symlink("dangling", "/made/by/link");
    let tar = dir(tar, "data", (0o750, 1000, 50));
    let tar = file(tar, "data/a", (0o640, 7, 8), b"A").symlink("data/l", "/etc/passwd");
    let tar = dir(tar, "data/sub", (0o1777, 0, 0));
    let tar = file(tar, "data/sub/b", (0o4755, 0, 0), b"B");
    let tar = dir(tar, "empty", (0o700, 1000, 0)).dir("etc");
    let tar = tar
        .file("etc/group", GROUP)
        .file("etc/passwd", PASSWD)
        .file("file", "x");
    let tar = tar
        .symlink("link", "/data")
        .symlink("loop", "loop")
        .symlink("nolast", "nowhere");
    tar.symlink("out", "../../../../tmp")
        .symlink("tofile", "file")
        .done()
}

/// Things to be executed, or not.
fn programs() -> Vec<u8> {
    let script: &[u8] = b"#!/bin/sh\nexit 3\n";
    let tar = layer()
        .dir("bin")
        .dir("bin/directory")
        .symlink("dangling", "/nowhere")
        .dir("dir")
        .dir("etc");
    let tar = tar
        .file("etc/passwd", PASSWD)
        .file("file", "x")
        .symlink("link", "/script");
    let tar = file(tar, "own", (0o700, 0, 0), script);
    let tar = dir(tar, "private", (0o700, 0, 0)).program("private/script", script);
    tar.program("script", script)
        .file("unmarked", script)
        .done()
}

fn row(name: impl Into<String>, config: Value, layer: &[u8]) -> Row {
    Row {
        name: name.into(),
        config,
        layer: layer.to_vec(),
        flags: Vec::new(),
        command: Vec::new(),
        expect: Expect::AsDocker,
    }
}

impl Row {
    fn flags(mut self, flags: &[&str]) -> Self {
        self.flags = flags.iter().map(|f| (*f).to_owned()).collect();
        self
    }

    fn command(mut self, words: &[&str]) -> Self {
        self.command = words.iter().map(|w| (*w).to_owned()).collect();
        self
    }

    /// Refused by Vellum, whatever Docker does.
    fn refused(mut self) -> Self {
        self.expect = Expect::Instead(125, String::new());
        self
    }

    fn instead(mut self, code: i32, out: &str) -> Self {
        self.expect = Expect::Instead(code, out.to_owned());
        self
    }
}

pub fn rows() -> Vec<Row> {
    let mut all = Vec::new();
    all.extend(people::user());
    all.extend(people::user_files());
    all.extend(env());
    all.extend(entrypoint_and_cmd());
    all.extend(codes());
    all.extend(places::working_dir());
    all.extend(places::volumes());
    all.extend(others());
    all
}

fn env() -> Vec<Row> {
    let users = users(PASSWD, GROUP);
    // The shell passes its variables on in its own order.
    let show = "env; true";
    let image = |env: Value| {
        let config = json!({ "Env": env, "Cmd": ["/bin/sh", "-c", show] });
        row(
            format!(
                "Env {}",
                &env.to_string().chars().take(60).collect::<String>()
            ),
            config,
            &users,
        )
    };
    let mut rows: Vec<Row> = [
        json!(null),
        json!([]),
        json!(["A=1"]),
        json!(["A"]),
        json!(["PATH"]),
        json!(["HOSTNAME"]),
        json!(["HOME"]),
        json!(["A=1", "A"]),
        json!(["A", "A=1"]),
        json!(["=x"]),
        json!(["="]),
        json!([""]),
        json!(["A=1", "A=2"]),
        json!(["PATH=/x", "PATH=/y:/bin"]),
        json!(["A=1", "B=2", "A=3", "B=4"]),
        json!(["HOME=/h"]),
        json!(["HOME="]),
        json!(["HOSTNAME=other"]),
        json!(["TERM=foo"]),
        json!(["A=a\nb"]),
        json!(["A=a\0b"]),
        json!(["A B=1"]),
        json!(["A=b=c"]),
        json!(["Ä=ö"]),
        json!(["A=$PATH", "B=${A}"]),
        json!(["path=/x"]),
        json!(["A=1", null]),
        json!([format!("A={}", "x".repeat(100_000))]),
    ]
    .map(image)
    .into();
    // Only busybox itself is found without a path.
    rows.push(row(
        "Env PATH=",
        json!({ "Env": ["PATH="], "Cmd": ["/bin/busybox", "env"] }),
        &users,
    ));
    let asked: [(&[&str], &[&str]); 11] = [
        (&["A=1", "B=2"], &["--env", "A=9"]),
        (&["A=1"], &["--env", "A="]),
        (&["A=1"], &["--env", "NOT_SET_HERE"]),
        (&["NOT_SET_HERE=1"], &["--env", "NOT_SET_HERE"]),
        (&["A=1"], &["--env", "=x"]),
        (&["A=1"], &["--env", ""]),
        (&[], &["--env", "A=1", "--env", "A=2"]),
        (&["A=1", "A=2"], &["--env", "A=3"]),
        (&[], &["--env", "HOME="]),
        (&["A=1"], &["--env", "PATH=/bin:/x"]),
        (&[], &["--user", "app"]),
    ];
    for (env, flags) in asked {
        let config = json!({ "Env": env, "Cmd": ["/bin/sh", "-c", show] });
        rows.push(row(format!("Env {env:?} and {flags:?}"), config, &users).flags(flags));
    }
    rows
}

fn entrypoint_and_cmd() -> Vec<Row> {
    let users = users(PASSWD, GROUP);
    let image = |config: Value| row(config.to_string(), config, &users);
    let ok = ["/bin/echo", "ok"];
    let mut rows: Vec<Row> = [
        json!({ "Entrypoint": [""], "Cmd": ok }),
        json!({ "Entrypoint": [""] }),
        json!({ "Entrypoint": [], "Cmd": ok }),
        json!({ "Entrypoint": null, "Cmd": ok }),
        json!({ "Entrypoint": [null], "Cmd": ok }),
        json!({ "Entrypoint": ["", "/bin/echo"], "Cmd": ["ok"] }),
        json!({ "Entrypoint": ["", ""], "Cmd": ok }),
        json!({ "Entrypoint": ok, "Cmd": null }),
        json!({ "Entrypoint": ok, "Cmd": [""] }),
        json!({ "Entrypoint": "/bin/echo", "Cmd": ["ok"] }),
        json!({ "Entrypoint": "", "Cmd": ok }),
        json!({ "Cmd": "/bin/ls" , "WorkingDir": "/bin" }),
        json!({ "Cmd": [""] }),
        json!({ "Cmd": [null] }),
        json!({ "Cmd": ["", "/bin/echo"] }),
        json!({ "Cmd": [] }),
        json!({ "Cmd": null, "Entrypoint": null }),
        json!({}),
        json!(null),
        json!({ "Cmd": [" "] }),
        json!({ "Cmd": ["/bin/echo ok"] }),
        json!({ "Cmd": ["/bin/echo", "a\nb"] }),
        json!({ "Cmd": ["/bin/echo", "a b"], "ArgsEscaped": true }),
        json!({ "Cmd": ["/bin/echo", "a b"], "Shell": ["/bin/nosuch", "-c"] }),
        json!({ "Cmd": ["bin/echo", "ok"] }),
        json!({ "Cmd": ["./busybox", "echo", "ok"], "WorkingDir": "/bin" }),
        json!({ "Cmd": ["busybox", "echo", "ok"], "WorkingDir": "/bin", "Env": ["PATH=/nowhere"] }),
        json!({ "cmd": ["/bin/echo", "lower"] }),
        json!({ "CMD": ["/bin/echo", "upper"], "workingdir": "/bin" }),
    ]
    .map(image)
    .into();
    // Docker starts it, and the kernel refuses.
    rows.push(image(json!({ "Cmd": ["/bin/echo", "a\0b"] })).refused());
    let asked: [(&[&str], &[&str]); 6] = [
        (&["--entrypoint", ""], &[]),
        (&["--entrypoint", ""], &["/bin/echo", "b"]),
        (&["--entrypoint", "/bin/echo"], &[]),
        (&["--entrypoint", "/bin/echo"], &["b"]),
        (&[], &["b"]),
        (&[], &[]),
    ];
    for (flags, command) in asked {
        for config in [
            json!({ "Entrypoint": ["/bin/echo", "ok"], "Cmd": ["a"] }),
            json!({ "Cmd": ["/bin/echo", "a"] }),
        ] {
            rows.push(
                row(
                    format!("{config} and {flags:?} {command:?}"),
                    config,
                    &users,
                )
                .flags(flags)
                .command(command),
            );
        }
    }
    rows
}

fn codes() -> Vec<Row> {
    let programs = programs();
    let image = |words: &[&str], user: &str| {
        row(
            format!("{words:?} as {user:?}"),
            json!({ "Cmd": words, "User": user }),
            &programs,
        )
    };
    let mut rows: Vec<Row> = [
        "nosuch",
        "/nosuch",
        "./nosuch",
        "/file",
        "/script",
        "/dir",
        "/dangling",
        "/link",
        "directory",
        "/unmarked",
        "/dev/null",
        "/",
        ".",
        "..",
        "/etc",
    ]
    .map(|word| image(&[word], ""))
    .into();
    rows.push(image(&["/private/script"], "5"));
    rows.push(image(&["/private/script"], ""));
    rows.push(image(&["/own"], "5"));
    for script in [
        "exit 7",
        "exit 125",
        "exit 126",
        "exit 300",
        "nosuch",
        "sh -c 'kill -9 $$'",
        "sh -c 'kill -TERM $$'; exit $?",
    ] {
        rows.push(image(&["sh", "-c", script], ""));
    }
    // For some failures Docker returns 125 where shells return 126 or 127.
    rows.push(image(&["/file/below"], "").instead(127, ""));
    rows.push(image(&[&format!("/{}", "x".repeat(300))], "").instead(126, ""));
    rows
}

/// Fields that change nothing, whatever is in them.
fn others() -> Vec<Row> {
    let users = users(PASSWD, GROUP);
    let fields = [
        (
            "StopSignal",
            vec![
                json!("SIGTERM"),
                json!("15"),
                json!("0"),
                json!("-1"),
                json!("SIGRTMIN+3"),
                json!("SIGFOO"),
                json!(""),
            ],
        ),
        (
            "ExposedPorts",
            vec![
                json!({ "80/tcp": {} }),
                json!({ "x": {} }),
                json!({ "": null }),
                json!({ "70000/foo": {} }),
                json!(null),
            ],
        ),
        (
            "Labels",
            vec![
                json!({ "": "" }),
                json!({ "a": null }),
                json!({ "a\nb": "c\0d" }),
                json!(null),
            ],
        ),
        (
            "Healthcheck",
            vec![
                json!({ "Test": ["NONE"] }),
                json!({ "Test": ["FOO"], "Interval": -5 }),
                json!(null),
            ],
        ),
        ("OnBuild", vec![json!(["RUN x"]), json!(null)]),
        ("Shell", vec![json!([]), json!("sh"), json!(["/x", "-c"])]),
        ("ArgsEscaped", vec![json!(true), json!(null)]),
        ("Domainname", vec![json!("example.org")]),
        ("Hostname", vec![json!("other"), json!("bad host!")]),
        ("Tty", vec![json!(true)]),
        ("OpenStdin", vec![json!(true)]),
        ("AttachStdout", vec![json!(false)]),
        ("NetworkDisabled", vec![json!(true)]),
        ("MacAddress", vec![json!("x")]),
        ("StopTimeout", vec![json!(1), json!(-1)]),
        ("Image", vec![json!("other")]),
        ("Memory", vec![json!(1_048_576)]),
        ("Unknown", vec![json!({ "a": [1] })]),
    ];
    let mut rows = Vec::new();
    for (field, values) in fields {
        for value in values {
            let script = "cat /proc/sys/kernel/hostname /proc/sys/kernel/domainname; [ -t 1 ] || echo no terminal";
            let config = json!({ field: value, "Cmd": ["sh", "-c", script] });
            rows.push(row(format!("{field} {value}"), config, &users));
        }
    }
    rows
}
