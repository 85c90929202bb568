//! The same matrix for Docker and containerd, each a daemon of the test's own.
//!
//! `verdicts.txt` says for each row what they do (20.10 and 1.6), and why, where Vellum or skopeo
//! does something else. The slow tier asks them again; with `VELLUM_VERDICTS=file` it writes down
//! their results.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use vellum_image::registry::RegistrySource;
use vellum_image::{Cancel, Platform};
use vellum_testkit::Rng;
use vellum_testkit::clients::{
    Containerd, Dockerd, Home, Hook, OddRegistry, Skopeo, available, run,
};

use super::rows::{LOGIN, Outcome, SIZE, Skopeo19, foreign, hook, rows};
use super::support::{random_image, reference, take};
use super::{options, push_to};

const TABLE: &str = include_str!("verdicts.txt");
/// dockerd dereferences a null pointer when a session that it opens is answered as a mount.
const ENDS_DOCKERD: [&str; 1] = ["a session answered with 201"];
/// Docker retries a broken transfer for minutes.
const PATIENCE: &str = "40";

/// A line of the table.
struct Verdict {
    docker: &'static str,
    containerd: &'static str,
    why: &'static str,
}

/// By type and name of the row.
fn table() -> BTreeMap<&'static str, Verdict> {
    let lines = TABLE
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty());
    let line = |line: &'static str| match line.split('\t').collect::<Vec<_>>()[..] {
        [name, docker, containerd, why] => (
            name,
            Verdict {
                docker,
                containerd,
                why,
            },
        ),
        _ => panic!("{line:?} is not a line of the table"),
    };
    lines.map(line).collect()
}

fn called(push: bool, name: &str) -> String {
    format!("{}: {name}", if push { "push" } else { "pull" })
}

/// What all that were asked do is what Vellum does; otherwise there is a reason.
#[test]
fn every_difference_of_the_matrix_has_a_reason_that_its_head_explains() {
    let table = table();
    let head: BTreeSet<&str> = TABLE
        .lines()
        .filter_map(|line| line.strip_prefix("# ")?.split_once(": "))
        .map(|(word, _)| word)
        .collect();
    let rows = rows();
    let mut used = BTreeSet::new();
    for row in &rows {
        let name = called(row.push, row.name);
        let verdict = table
            .get(name.as_str())
            .unwrap_or_else(|| panic!("{name}: not in the table"));
        let skopeo = match row.skopeo {
            Skopeo19::Takes => "+",
            Skopeo19::Refuses => "-",
            Skopeo19::NotAsked => ".",
        };
        let ours = if row.outcome == Outcome::Done {
            "+"
        } else {
            "-"
        };
        let theirs = [skopeo, verdict.docker, verdict.containerd];
        let differs = theirs.iter().any(|other| ![".", ours].contains(other));
        assert_eq!(
            differs,
            !verdict.why.is_empty(),
            "{name}: is there a difference to explain?"
        );
        if differs {
            assert!(
                head.contains(verdict.why),
                "{name}: {:?} is not explained",
                verdict.why
            );
            used.insert(verdict.why);
        }
    }
    assert_eq!(table.len(), rows.len(), "the table has others, too");
    assert_eq!(used, head, "every explanation is used");
}

/// The two with an image to push, which they have pulled from `plain`.
struct Peers {
    docker: Dockerd,
    containerd: Containerd,
    image: String,
    /// Dropped last.
    home: Home,
}

impl Peers {
    fn start(plain: &OddRegistry) -> Self {
        let home = Home::new().unwrap();
        let docker = Dockerd::start(&home, &[]).unwrap();
        let dir = home.dir("ctd").unwrap();
        // What one row fetched must be gone for the next one.
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = {:?}\n\
             [plugins.\"io.containerd.metadata.v1.bolt\"]\ncontent_sharing_policy = \"isolated\"\n",
            dir.join("root"),
            dir.join("state"),
            Containerd::socket_in(&home),
        );
        let containerd = Containerd::start_with(&home, &config).unwrap();
        let image = format!("{}/t:1", plain.host());
        run(containerd
            .command("push")
            .args(["images", "pull", "--plain-http", &image]))
        .unwrap();
        Self {
            docker,
            containerd,
            image,
            home,
        }
    }

    /// A command that is stopped when it takes too long, with the login for `host` if there is one.
    fn docker(&self, host: &str, login: bool) -> Command {
        let config = self.home.dir("config").unwrap();
        let logins = match login {
            true => serde_json::json!({"auths": {host: {"auth": LOGIN}}}),
            false => serde_json::json!({}),
        };
        std::fs::write(config.join("config.json"), logins.to_string()).unwrap();
        let inner = self.docker.command();
        let mut command = Command::new("timeout");
        command.args(["--kill-after", "5", PATIENCE]);
        command.arg(inner.get_program()).args(inner.get_args());
        command.arg("--config").arg(config);
        command
    }

    fn ask_docker(&self, push: bool, host: &str, login: bool) -> &'static str {
        let name = format!("{host}/t:1");
        let verb = if push { "push" } else { "pull" };
        if push {
            run(self
                .docker(host, false)
                .args(["pull", "--quiet", &self.image]))
            .unwrap();
            run(self.docker(host, false).args(["tag", &self.image, &name])).unwrap();
        }
        let done = run(self.docker(host, login).args([verb, &name]));
        let ids = run(self
            .docker(host, false)
            .args(["images", "--all", "--quiet"]))
        .unwrap();
        for id in ids.lines().collect::<BTreeSet<_>>() {
            run(self.docker(host, false).args(["rmi", "--force", id])).unwrap();
        }
        if done.is_ok() { "+" } else { "-" }
    }

    fn ask_containerd(&self, push: bool, at: usize, host: &str, login: bool) -> &'static str {
        let name = format!("{host}/t:1");
        let own = format!("row-{at}");
        let (verb, namespace) = match push {
            true => ("push", "push"),
            false => ("pull", own.as_str()),
        };
        if push {
            let tag = ["images", "tag", &self.image, &name];
            run(self.containerd.command(namespace).args(tag)).unwrap();
        }
        let inner = self.containerd.command(namespace);
        let mut command = Command::new("timeout");
        command.args(["--kill-after", "5", PATIENCE]);
        command.arg(inner.get_program()).args(inner.get_args());
        command.args(["images", verb, "--plain-http"]);
        if login {
            command.args(["--user", "u:p"]);
        }
        if run(command.arg(&name)).is_ok() {
            "+"
        } else {
            "-"
        }
    }
}

#[test]
fn docker_and_containerd_do_what_the_table_says() {
    if std::env::var_os("VELLUM_SLOW").is_none() || !available(&["dockerd", "containerd"]) {
        return;
    }
    let home = Home::new().unwrap();
    let mut rng = Rng::for_test("odd registries for others");
    let image = random_image(&mut rng, "x/t", &[SIZE, 700]);
    let plain = OddRegistry::start(hook(|_, _| None)).unwrap();
    push_to(&home, &plain, &image, &options(&home, &plain, false)).unwrap();
    let peers = Peers::start(&plain);
    let start = |push: bool, hook: Hook| {
        let registry = OddRegistry::start(hook).unwrap();
        if !push {
            registry.copy_from(&plain);
        }
        registry
    };
    let table = table();
    let (mut wrong, mut lines) = (Vec::new(), Vec::new());
    for (at, (row, again)) in rows().into_iter().zip(rows()).enumerate() {
        let name = called(row.push, row.name);
        // An endless response fills dockerd's memory, 20 GB in half a minute.
        if row.skopeo == Skopeo19::NotAsked {
            lines.push(format!("{name}\t.\t.\t\n"));
            continue;
        }
        let registry = start(row.push, row.hook);
        let docker = match ENDS_DOCKERD.contains(&row.name) {
            true => ".",
            false => peers.ask_docker(row.push, &registry.host(), row.login),
        };
        let registry = start(row.push, again.hook);
        let containerd = peers.ask_containerd(row.push, at, &registry.host(), row.login);
        let known = table.get(name.as_str());
        let why = known.map_or("", |verdict| verdict.why);
        eprintln!("{name}: {docker} {containerd}");
        lines.push(format!("{name}\t{docker}\t{containerd}\t{why}\n"));
        let expected = known.map(|verdict| [verdict.docker, verdict.containerd]);
        if expected.is_none_or(|expected| expected != [docker, containerd]) {
            wrong.push(format!(
                "{name}: {docker} {containerd} instead of {expected:?}"
            ));
        }
    }
    if let Some(path) = std::env::var_os("VELLUM_VERDICTS") {
        std::fs::write(path, lines.concat()).unwrap();
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Docker sends a foreign layer like any other, and so does Vellum: a client that pulls it needs no
/// URL. containerd and skopeo leave it where it is.
#[test]
fn a_push_sends_foreign_layers_as_docker_does() {
    let home = Home::new().unwrap();
    let mut rng = Rng::for_test("pushes of foreign layers");
    let image = random_image(&mut rng, "x/t", &[SIZE, 700]);
    let layer = image.0.layers[0].diff_id.to_string();
    let plain = OddRegistry::start(hook(|_, _| None)).unwrap();
    push_to(&home, &plain, &image, &options(&home, &plain, false)).unwrap();
    let from = OddRegistry::start(foreign(&["http://HOST/elsewhere/{}"], true)).unwrap();
    from.copy_from(&plain);
    let source = format!("{}/t:1", from.host());
    let target = || OddRegistry::start(hook(|_, _| None)).unwrap();

    let to = target();
    let pulled = RegistrySource::open(
        &reference(&source),
        &Platform::host(),
        &options(&home, &from, false),
        &Cancel::default(),
    )
    .unwrap();
    push_to(&home, &to, &take(&pulled), &options(&home, &to, false)).unwrap();
    assert!(to.blob(&layer).is_some());
    let manifest = String::from_utf8(to.manifest("1").unwrap()).unwrap();
    assert!(manifest.contains("/elsewhere/"), "{manifest}");

    if std::env::var_os("VELLUM_SLOW").is_none() || !available(&["dockerd", "containerd", "skopeo"])
    {
        return;
    }
    let peers = Peers::start(&from);
    let to = target();
    let name = format!("{}/t:1", to.host());
    run(peers.docker(&to.host(), false).args(["pull", &source])).unwrap();
    run(peers
        .docker(&to.host(), false)
        .args(["tag", &source, &name]))
    .unwrap();
    run(peers.docker(&to.host(), false).args(["push", &name])).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&to.manifest("1").unwrap()).unwrap();
    let sent = manifest["layers"][0]["digest"].as_str().unwrap();
    assert!(to.blob(sent).is_some() && manifest["layers"][0]["urls"].is_null());

    let to = target();
    let name = format!("{}/t:1", to.host());
    let ctr = |arguments: &[&str]| run(peers.containerd.command("push").args(arguments)).unwrap();
    ctr(&["images", "tag", &source, &name]);
    ctr(&["images", "push", "--plain-http", &name]);
    assert!(to.blob(&layer).is_none());

    let to = target();
    let (source, name) = (
        format!("docker://{source}"),
        format!("docker://{}/t:1", to.host()),
    );
    let insecure = ["--src-tls-verify=false", "--dest-tls-verify=false"];
    Skopeo::new(&home)
        .unwrap()
        .copy_with(&source, &name, &insecure)
        .unwrap();
    assert!(to.blob(&layer).is_none());
}
