//! The server's life: killed at any point, used by many clients at once, reloaded, monitored.

#[path = "support/snapshotter.rs"]
mod server;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use server::{Labels, PATIENCE, Server, labels, upper, wait_for};
use tonic::Code;
use tonic::transport::Endpoint;
use vellum_snapshotter::api::services::snapshots::v1::Kind;
use vellum_testkit::clients::run;

#[test]
fn a_server_killed_at_any_point_loses_nothing_it_answered() {
    let Some(mut server) = Server::start(&[], &[]) else {
        return;
    };
    server.client().layer("base", "");
    let mut committed = vec!["base".to_owned()];
    for round in 0..8 {
        let stop = AtomicBool::new(false);
        let under_way = AtomicUsize::new(0);
        let (tx, rx) = std::sync::mpsc::channel();
        let (begun, first) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            for task in 0..3 {
                let (c, tx, begun) = (server.client(), tx.clone(), begun.clone());
                let (stop, under_way) = (&stop, &under_way);
                scope.spawn(move || {
                    for n in 0.. {
                        let key = format!("k/{round}/{task}/{n}");
                        let name = format!("l/{round}/{task}/{n}");
                        under_way.fetch_add(1, Ordering::SeqCst);
                        // Any call may fail once the server is gone; answers that arrived must
                        // hold.
                        let done = (|| {
                            let tree = upper(&c.prepare(&key, "base").ok()?);
                            fs::write(tree.join("file"), &name).ok()?;
                            match n % 3 {
                                0 => c.remove(&key).ok()?,
                                _ => {
                                    c.commit(&name, &key).ok()?;
                                    tx.send(name.clone()).unwrap();
                                    // Only the first is waited for.
                                    let _ = begun.send(());
                                }
                            }
                            c.cleanup().ok()
                        })();
                        under_way.fetch_sub(1, Ordering::SeqCst);
                        if done.is_none() || stop.load(Ordering::SeqCst) {
                            return;
                        }
                    }
                });
            }
            // Another moment in each round, never while the server is idle.
            std::thread::sleep(Duration::from_millis(60 + 35 * round));
            if round == 0 {
                // On a slow disk nothing may be finished by then.
                first.recv_timeout(PATIENCE).unwrap();
            }
            wait_for("requests under way", || {
                under_way.load(Ordering::SeqCst) > 0
            });
            server.kill();
            stop.store(true, Ordering::SeqCst);
        });
        drop(tx);
        committed.extend(rx);
        server.spawn();
        let c = server.client();
        for name in &committed {
            let info = c.stat(name).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(info.kind, Kind::Committed as i32);
        }
        for info in c.list(&[]).unwrap() {
            if info.kind == Kind::Committed as i32 {
                c.view("look", &info.name).unwrap();
                let tree = c.mounts("look").unwrap();
                let layer = match tree[0].r#type.as_str() {
                    "bind" => tree[0].source.clone(),
                    _ => server::value(&tree[0], "lowerdir=")
                        .split(':')
                        .next()
                        .unwrap()
                        .to_owned(),
                };
                if info.name != "base" {
                    let held = fs::read_to_string(format!("{layer}/file")).unwrap();
                    assert_eq!(held, info.name);
                }
                c.remove("look").unwrap();
            } else {
                assert!(upper(&c.mounts(&info.name).unwrap()).is_dir());
            }
        }
        // A record's file may be one step ahead of the database; the database counts.
        let healed = server.vellum().args(["check", "--heal"]).output().unwrap();
        let said = String::from_utf8_lossy(&healed.stdout).into_owned();
        let other =
            |line: &&str| !(line.contains("differs from the database") || line.contains("found"));
        assert_eq!(said.lines().find(other), None, "{said}");
        server.assert_sound();
    }
    assert!(committed.len() > 1, "nothing was ever committed");
    // Everything can be removed, and nothing is left.
    let c = server.client();
    let mut names = c.names(&[]);
    names.sort_by_key(|name| name == "base");
    names.iter().for_each(|name| c.remove(name).unwrap());
    c.cleanup().unwrap();
    run(server.vellum().args(["gc", "--quiet"])).unwrap();
    for dir in ["trash", "staging", "records", "overlay2/l"] {
        let left = fs::read_dir(server.root().join(dir)).unwrap().count();
        assert_eq!(left, 0, "{dir}");
    }
}

#[test]
fn many_clients_at_once_get_what_one_would() {
    let Some(server) = Server::start(&[], &[]) else {
        return;
    };
    server.client().layer("base", "");
    let won = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for task in 0..12 {
            let (c, won) = (server.client(), &won);
            scope.spawn(move || {
                for n in 0..8 {
                    // All try the same key and the same name: one gets each.
                    let key = format!("same {n}");
                    match c.prepare(&key, "base") {
                        Ok(_) => match c.commit(&format!("layer {n}"), &key) {
                            Ok(()) => drop(won.fetch_add(1, Ordering::SeqCst)),
                            // The winner's commit had freed the key when this one took it.
                            Err(status) => {
                                assert_eq!(status.code(), Code::AlreadyExists);
                                c.remove(&key).unwrap();
                            }
                        },
                        Err(status) => assert_eq!(status.code(), Code::AlreadyExists),
                    }
                    let own = format!("own {task} {n}");
                    c.prepare(&own, "base").unwrap();
                    assert_eq!(c.stat(&own).unwrap().parent, "base");
                    c.remove(&own).unwrap();
                }
            });
        }
    });
    let c = server.client();
    let layers = c.names(&["kind==committed"]);
    assert_eq!(won.load(Ordering::SeqCst), 8);
    assert_eq!(layers.len(), 9);
    server.assert_sound();
}

/// The next message that the server sends to its manager.
fn told(socket: &UnixDatagram) -> String {
    let mut text = vec![0; 4096];
    let count = socket.recv(&mut text).expect("a message to systemd");
    String::from_utf8_lossy(&text[..count]).into_owned()
}

#[test]
fn systemd_is_notified_and_settings_are_reloaded() {
    let Some(mut server) = Server::stopped(&[], &[]) else {
        return;
    };
    let at = server.home.join("notify");
    let manager = UnixDatagram::bind(&at).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let notify = at.to_str().unwrap().to_owned();
    server.environment.push(("NOTIFY_SOCKET".into(), notify));
    server.spawn();
    assert!(told(&manager).contains("READY=1"));
    let c = server.client();
    c.layer("base", "");
    c.layer("on", "base");
    assert_eq!(c.prepare("before", "on").unwrap()[0].r#type, "overlay");
    let config = server.home.join("vellum.toml");
    let reload = |text: &str| {
        fs::write(&config, text).unwrap();
        server.signal(1);
        // In one message, or units of type notify-reload wait forever.
        let said = told(&manager);
        assert!(
            said.contains("RELOADING=1") && said.contains("MONOTONIC_USEC="),
            "{said}"
        );
        assert!(told(&manager).contains("READY=1"));
    };
    reload("engine = \"vellum\"\n");
    if fs::metadata("/dev/fuse").is_ok() {
        assert_eq!(c.prepare("after", "on").unwrap()[0].r#type, "fuse3.vellum");
    }
    // Kernel mounts stay readable; an invalid setting changes nothing.
    reload("no such setting = 1\n");
    assert!(c.mounts("before").is_ok());
    let log = server.log();
    assert!(log.contains("keeping the old settings"), "{log}");
    assert!(log.contains("no such setting"), "the reason is told: {log}");
    let pid = server.pid();
    server.end();
    assert!(told(&manager).contains("STOPPING=1"));
    assert!(!server.socket().exists(), "{pid} left its socket");
}

#[test]
fn a_socket_passed_by_systemd_is_served() {
    let Some(server) = Server::stopped(&[], &[]) else {
        return;
    };
    let listener = UnixListener::bind(server.socket()).unwrap();
    let serve = server.serve_command();
    // The descriptor must be number 3, and the pid that of this process: a shell arranges both.
    let mut child = Command::new("sh")
        .args([
            "-c",
            "exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$@\"",
            "sh",
        ])
        .arg(serve.get_program())
        .args(serve.get_args())
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(listener)))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let c = server.client();
    let made = c.prepare("k", "");
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&child),
        rustix::process::Signal::TERM,
    )
    .unwrap();
    let status = child.wait().unwrap();
    made.unwrap();
    assert!(status.success(), "{status}");
    assert!(
        server.socket().exists(),
        "a socket of systemd's is not ours to remove"
    );
}

/// Returns what gRPC health reports for a service.
fn serves(server: &Server, service: &str) -> bool {
    let status = server.runtime.block_on(async {
        let endpoint = Endpoint::from_shared(format!("unix://{}", server.socket().display()));
        let channel = endpoint.unwrap().connect().await.unwrap();
        let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
        let service = service.into();
        let request = tonic_health::pb::HealthCheckRequest { service };
        health.check(request).await.unwrap().into_inner().status
    });
    assert!(matches!(status, 1 | 2), "neither serving nor not: {status}");
    status == 1
}

#[test]
fn a_server_whose_store_is_covered_touches_nothing_and_continues_when_it_is_back() {
    let Some(server) = Server::start(&[], &[]) else {
        return;
    };
    let c = server.client();
    c.layer("base", "");
    c.prepare("w", "base").unwrap();
    c.prepare("litter", "base").unwrap();
    c.remove("litter").unwrap();
    // Another store, created and closed earlier, like an old disk at the same place.
    let other = server.home.join("other");
    let mut make = Command::new(env!("CARGO_BIN_EXE_vellum"));
    make.arg("--root").arg(&other).arg("--run-dir");
    run(make.arg(server.home.join("r2")).arg("info")).unwrap();
    let empty = server.home.dir("empty").unwrap();
    for (cover, at, says) in [
        (&empty, server.root(), "covered by"),
        (&empty, server.root().join("staging"), "covered by"),
        (&empty, server.root().join("overlay2"), "covered by"),
        (&other, server.root(), "no longer the store"),
    ] {
        let before = names_below(cover);
        let told = server.log().len();
        run(Command::new("mount").arg("--bind").arg(cover).arg(&at)).unwrap();
        for refused in [
            c.prepare("new", "base").map(drop),
            c.prepare("new", "").map(drop),
            c.mounts("w").map(drop),
            c.commit("done", "w"),
            c.remove("w"),
            c.cleanup(),
            c.list(&[]).map(drop),
        ] {
            let status = refused.unwrap_err();
            assert_eq!(status.code(), Code::Unavailable, "{status}");
            assert!(status.message().contains(says), "{status}");
            assert!(status.message().contains("hint: "), "{status}");
        }
        if at == server.root() && cover == &empty {
            wait_for("health to tell", || !serves(&server, ""));
        }
        let said = server.log()[told..].to_owned();
        assert!(said.contains("ERROR") && said.contains(says), "{said}");
        assert_eq!(names_below(cover), before, "something was made in {at:?}");
        run(Command::new("umount").arg(&at)).unwrap();
        assert!(upper(&c.mounts("w").unwrap()).exists());
    }
    wait_for("health to be back", || serves(&server, ""));
    c.prepare("new", "base").unwrap();
    c.commit("done", "w").unwrap();
    c.cleanup().unwrap();
    server.assert_sound();
}

/// Returns all names below a directory, without the database's own files, since reading the
/// database is allowed.
fn names_below(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            names.extend(names_below(&entry.path()));
        }
        if !entry.file_name().to_string_lossy().contains(".db-") {
            names.push(entry.path());
        }
    }
    names.sort();
    names
}

#[test]
fn metrics_health_and_logs_show_what_the_server_does() {
    let metrics = vellum_testkit::clients::Home::new().unwrap();
    let at = metrics.join("m");
    let address = format!("unix:{}", at.display());
    let flags = ["--metrics", address.as_str(), "--log-format", "json"];
    let Some(mut server) = Server::start(&[], &flags) else {
        return;
    };
    let c = server.client();
    let chain = || labels(&[("containerd.io/snapshot.ref", "sha256:aa")]);
    c.prepare_with("k", "", chain()).unwrap();
    c.commit_on("l", "k", chain(), "").unwrap();
    assert!(c.prepare_with("again", "", chain()).is_err());
    assert!(c.stat("gone").is_err());
    c.prepare("w", "l").unwrap();
    c.remove("w").unwrap();
    c.cleanup().unwrap();
    let ask = |request: &str| {
        // It listens for calls before it listens for metrics.
        let mut connected = None;
        wait_for("the socket of the numbers", || {
            connected = UnixStream::connect(&at).ok();
            connected.is_some()
        });
        let mut stream = connected.unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let metrics = || ask("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    wait_for("the layer to be counted, and what was removed", || {
        let said = metrics();
        said.contains("vellum_containerd_layers_inodes 1")
            && said.contains("vellum_containerd_gc_trees_deleted_total 1")
    });
    let said = metrics();
    for line in [
        "vellum_containerd_calls_total{call=\"Commit\",code=\"Ok\"} 1",
        "vellum_containerd_calls_total{call=\"Stat\",code=\"NotFound\"} 1",
        "vellum_containerd_layers_adopted_total 1",
        "vellum_containerd_gc_trees_deleted_total 1",
        "vellum_containerd_snapshots{kind=\"committed\"} 1",
        "vellum_containerd_snapshots{kind=\"active\"} 0",
        "vellum_containerd_call_duration_seconds_count{call=\"Prepare\"} 3",
        "# EOF",
    ] {
        assert!(said.contains(line), "{line} is not in\n{said}");
    }
    assert!(ask("GET /other HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404"));
    // A port that is reachable from elsewhere is refused.
    let mut elsewhere = server.serve_command();
    elsewhere.args(["--metrics", "0.0.0.0:0"]);
    assert_eq!(elsewhere.output().unwrap().status.code(), Some(2));

    for service in [
        "",
        "containerd.services.snapshots.v1.Snapshots",
        "containerd.services.diff.v1.Diff",
    ] {
        assert!(serves(&server, service), "{service}");
    }
    server.end();
    let log = server.log();
    let first = log
        .lines()
        .find(|line| line.contains("\"serving\""))
        .unwrap();
    let line: serde_json::Value = serde_json::from_str(first).unwrap();
    assert_eq!(line["message"], "serving");
    assert_eq!(line["socket"], server.socket().to_str().unwrap());
    assert!(line["timestamp"].is_string());
}

#[test]
fn containerd_and_vellum_never_see_each_others_snapshots() {
    let Some(server) = Server::start(&[], &[]) else {
        return;
    };
    let c = server.client();
    let source = server.home.dir("source").unwrap();
    fs::write(source.join("file"), "x").unwrap();
    run(server
        .vellum()
        .args(["--quiet", "import"])
        .arg(&source)
        .arg("own:1"))
    .unwrap();
    run(server.vellum().args(["create", "--name", "box", "own:1"])).unwrap();
    c.layer("theirs", "");
    c.prepare("active", "theirs").unwrap();
    let mut names = c.names(&[]);
    names.sort();
    assert_eq!(names, ["active", "theirs"]);
    let own = run(server.vellum().args(["images", "--json"])).unwrap();
    let own: serde_json::Value = serde_json::from_str(&own).unwrap();
    assert_eq!(own.as_array().unwrap().len(), 1);
    // Vellum's gc keeps snapshots that containerd manages.
    run(server.vellum().args(["gc", "--quiet"])).unwrap();
    assert!(c.mounts("active").is_ok());
    c.commit_on("more", "active", Labels::new(), "").unwrap();
    run(server.vellum().args(["rm", "box"])).unwrap();
    // `df` lists them by containerd's keys, and doesn't count them as space that gc would free.
    let text = run(server.vellum().args(["df", "--verbose"])).unwrap();
    assert!(
        text.contains("containerd/theirs") && text.contains("containerd/more"),
        "{text}"
    );
    let disk = run(server.vellum().args(["df", "--json"])).unwrap();
    let disk: serde_json::Value = serde_json::from_str(&disk).unwrap();
    assert_eq!(disk["unused_layers"]["inodes"], 0, "{disk}");
    let items = disk["items"].as_array().unwrap();
    let theirs = items
        .iter()
        .find(|i| i["id"] == "containerd/theirs")
        .unwrap();
    assert_eq!(theirs["users"], 1, "{disk}");
    server.assert_sound();
}
