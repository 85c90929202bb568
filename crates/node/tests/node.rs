//! Nodes are copied trees: their containerd configuration is edited, and restored.

use std::fs;
use std::path::{Path, PathBuf};

use vellum_node::containerd::{Wanted, apply, revert};
use vellum_node::{self as node, Action, InstallOptions, State};

/// A configuration of containerd 2 as people write it: comments, an indented table, other settings.
const SMALL_THREE: &str = r#"# Ours.
version = 3
root = "/data/containerd" # a disk of its own

[plugins]
  # Private mirror.
  [plugins.'io.containerd.cri.v1.images']
    snapshotter = 'overlayfs' # the usual
    max_concurrent_downloads = 5

    [plugins.'io.containerd.cri.v1.images'.registry]
      config_path = '/etc/containerd/certs.d'

  [plugins.'io.containerd.service.v1.diff-service']
    default = ['walking']

[debug]
  level = 'info'
"#;

fn wanted() -> Wanted {
    Wanted {
        socket: "/run/vellum/containerd.sock".into(),
        root: Some("/var/lib/vellum".into()),
        cri: true,
        differ: None,
        replace: false,
    }
}

fn config() -> &'static Path {
    Path::new("/etc/containerd/config.toml")
}

fn edited(text: &str) -> String {
    apply(text, config(), &wanted()).unwrap()
}

/// The output of `containerd config default` on this machine.
fn installed_default() -> Option<String> {
    let printed = std::process::Command::new("containerd")
        .args(["config", "default"])
        .output();
    let text = printed.ok().filter(|output| output.status.success());
    if text.is_none() {
        vellum_testkit::untested("containerd config default", "containerd is not installed");
    }
    String::from_utf8(text?.stdout).ok()
}

#[track_caller]
fn value<'a>(document: &'a toml::Value, keys: &[&str]) -> &'a toml::Value {
    keys.iter().fold(document, |at, key| {
        at.get(key)
            .unwrap_or_else(|| panic!("no {key} in {keys:?}"))
    })
}

#[test]
fn a_version_3_configuration_gets_snapshotter_differ_and_transfer() {
    let text = edited(SMALL_THREE);
    let doc: toml::Value = toml::from_str(&text).unwrap();
    let at = |keys: &[&str]| value(&doc, keys).clone();
    assert_eq!(at(&["proxy_plugins", "vellum", "type"]), "snapshot".into());
    assert_eq!(
        at(&["proxy_plugins", "vellum", "exports", "root"]),
        "/var/lib/vellum".into()
    );
    assert_eq!(at(&["proxy_plugins", "vellum-diff", "type"]), "diff".into());
    let images = ["plugins", "io.containerd.cri.v1.images"];
    assert_eq!(at(&[images[0], images[1], "snapshotter"]), "vellum".into());
    assert_eq!(
        at(&[images[0], images[1], "max_concurrent_downloads"]),
        5.into()
    );
    let order = at(&[
        "plugins",
        "io.containerd.service.v1.diff-service",
        "default",
    ]);
    assert_eq!(order, vec!["vellum-diff", "walking"].into());
    let unpack = at(&[
        "plugins",
        "io.containerd.transfer.v1.local",
        "unpack_config",
    ]);
    let names: Vec<_> = unpack
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["snapshotter"].as_str())
        .collect();
    assert_eq!(names, [Some("vellum"), Some("overlayfs")]);
    for kept in [
        "# Ours.",
        "# a disk of its own",
        "# Private mirror.",
        "# the usual",
    ] {
        assert!(text.contains(kept), "{kept} is gone:\n{text}");
    }
    assert_eq!(edited(&text), text, "twice is once");
}

#[test]
fn the_edit_of_a_default_configuration_is_small_and_reversible() {
    let Some(text) = installed_default() else {
        return;
    };
    let new = edited(&text);
    let changes = node::compare::changes(&text, &new);
    let lines = |sign: char| changes.lines().filter(|l| l.starts_with(sign)).count();
    let (gone, come) = (lines('-'), lines('+'));
    assert!(gone <= 3 && come <= 27, "{changes}");
    assert_eq!(revert(&new, &text, config(), &wanted()).unwrap(), text);
}

#[test]
fn the_undo_keeps_what_others_have_changed_since() {
    for before in [SMALL_THREE, "", "version = 2\n", "version = 3\n[plugins]\n"] {
        let theirs = "\n[metrics]\n  address = \"127.0.0.1:1338\"\n";
        let now = format!("{}{theirs}", edited(before));
        let after = revert(&now, before, config(), &wanted()).unwrap();
        assert!(!after.contains("vellum"), "{after}");
        let doc: toml::Value = toml::from_str(&after).unwrap();
        assert_eq!(
            *value(&doc, &["metrics", "address"]),
            "127.0.0.1:1338".into()
        );
        if before == SMALL_THREE {
            assert_eq!(after, format!("{before}{theirs}"));
        }
        // A setting that another program has changed since stays.
        let taken = now.replace(
            "address = \"/run/vellum/containerd.sock\"",
            "address = \"/run/other.sock\"",
        );
        let after = revert(&taken, before, config(), &wanted()).unwrap();
        assert!(after.contains("/run/other.sock"), "{after}");
    }
}

#[test]
fn lists_of_others_are_extended_and_get_their_form_back() {
    let text = "version = 3\n[plugins.'io.containerd.service.v1.diff-service']\ndefault = ['erofs', 'walking']\n\
                [[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\nplatform = 'linux/arm64'\nsnapshotter = 'erofs'\n";
    let new = edited(text);
    let doc: toml::Value = toml::from_str(&new).unwrap();
    let order = value(
        &doc,
        &[
            "plugins",
            "io.containerd.service.v1.diff-service",
            "default",
        ],
    );
    assert_eq!(*order, vec!["vellum-diff", "erofs", "walking"].into());
    let unpack = value(
        &doc,
        &[
            "plugins",
            "io.containerd.transfer.v1.local",
            "unpack_config",
        ],
    );
    assert_eq!(unpack.as_array().unwrap().len(), 2);
    assert_eq!(revert(&new, text, config(), &wanted()).unwrap(), text);
}

#[test]
fn configurations_that_are_not_understood_are_refused_with_a_hint() {
    for (text, says) in [
        ("disabled_plugins = ['cri']\n", "version 1"),
        ("version = '3'\n", "is not a number"),
        ("version = -4\n", "is -4"),
        ("version = \n", "not TOML"),
        ("{{ template \"base\" . }}\n", "template"),
        ("version = 3\nproxy_plugins = 4\n", "not a table"),
        (
            "version = 3\n[plugins.'io.containerd.cri.v1.images']\nsnapshotter = 'stargz'\n",
            "stargz",
        ),
        (
            "version = 2\n[proxy_plugins.vellum]\ntype = 'snapshot'\naddress = '/elsewhere'\n",
            "/elsewhere",
        ),
    ] {
        let error = apply(text, config(), &wanted()).unwrap_err();
        assert!(error.to_string().contains(says), "{says}: {error}");
        assert!(error.hint().is_some(), "{says}: no hint");
    }
    let replace = Wanted {
        replace: true,
        ..wanted()
    };
    let stargz =
        "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.containerd]\nsnapshotter = 'stargz'\n";
    let new = apply(stargz, config(), &replace).unwrap();
    assert!(!new.contains("stargz"));
    assert_eq!(revert(&new, stargz, config(), &replace).unwrap(), stargz);
}

/// What `containerd config migrate` of 2.4 makes of [`SMALL_THREE`] without the comment: every key
/// of a table, and the server's keys below `plugins`.
const MIGRATED_FOUR: &str = r#"version = 4
root = '/data/containerd'
state = '/run/containerd'
temp = ''
disabled_plugins = []
required_plugins = []
oom_score = 0
imports = []

[debug]
  level = 'info'
  format = ''
  log_trace_id = false

[plugins]
  [plugins.'io.containerd.cri.v1.images']
    snapshotter = 'overlayfs'
    max_concurrent_downloads = 5

    [plugins.'io.containerd.cri.v1.images'.registry]
      config_path = '/etc/containerd/certs.d'

  [plugins.'io.containerd.server.v1.grpc']
    address = '/run/containerd/containerd.sock'
    uid = 0
    gid = 0

  [plugins.'io.containerd.service.v1.diff-service']
    default = ['walking']
    sync_fs = false

[cgroup]
  path = ''

[proxy_plugins]

[timeouts]
  'io.containerd.timeout.shim.cleanup' = '5s'
"#;

/// What `containerd config migrate` makes of Vellum's settings: the same, in its own form.
fn as_migrated(text: &str) -> String {
    let mut doc: toml::Table = toml::from_str(text).unwrap();
    for (_, plugin) in doc["proxy_plugins"].as_table_mut().unwrap() {
        let plugin = plugin.as_table_mut().unwrap();
        plugin.insert("platform".into(), "".into());
        plugin.insert("capabilities".into(), toml::Value::Array(vec![]));
        let exports = toml::Value::Table(toml::Table::new());
        plugin.entry("exports").or_insert(exports);
    }
    doc.insert("version".into(), 4.into());
    toml::to_string(&doc).unwrap()
}

#[test]
fn a_version_4_configuration_is_edited_like_version_3() {
    let new = edited(MIGRATED_FOUR);
    assert_eq!(
        revert(&new, MIGRATED_FOUR, config(), &wanted()).unwrap(),
        MIGRATED_FOUR
    );
    let [mut three, mut four]: [toml::Table; 2] =
        [edited(SMALL_THREE), new].map(|text| toml::from_str(&text).unwrap());
    assert_eq!(four.remove("proxy_plugins"), three.remove("proxy_plugins"));
    for plugin in [
        "io.containerd.transfer.v1.local",
        "io.containerd.cri.v1.images",
    ] {
        assert_eq!(four["plugins"].get(plugin), three["plugins"].get(plugin));
    }
    let order = &four["plugins"]["io.containerd.service.v1.diff-service"]["default"];
    assert_eq!(*order, vec!["vellum-diff", "walking"].into());
}

#[test]
fn a_node_whose_configuration_was_migrated_can_be_uninstalled() {
    let stargz =
        "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.containerd]\nsnapshotter = 'stargz'\n";
    for (before, snapshotter) in [
        ("version = 2\n", None),
        ("version = 3\n", None),
        (SMALL_THREE, Some("overlayfs")),
        (stargz, Some("stargz")),
    ] {
        let node = Node::with(Some(before));
        let mut options = node.options();
        options.wanted.replace = true;
        node::install(&options).unwrap();
        let path = "etc/containerd/config.toml";
        let mut migrated = as_migrated(&node.read(path).unwrap());
        if before.starts_with("version = 2") {
            migrated = migrated.replace(
                "\"io.containerd.grpc.v1.cri\".containerd",
                "\"io.containerd.cri.v1.images\"",
            );
        }
        node.write(path, &migrated);
        let status = node::status(&options).unwrap();
        let state = &status.parts.last().unwrap().state;
        if !before.starts_with("version = 2") {
            assert_eq!(*state, State::Current, "{migrated}");
        }
        node::uninstall(node.dir.path(), false, false).unwrap();
        let after = node.read(path).unwrap();
        let doc: toml::Value = toml::from_str(&after).unwrap();
        assert!(!after.contains("vellum"), "{before}: {after}");
        let plugins = doc.get("proxy_plugins").and_then(toml::Value::as_table);
        assert!(plugins.is_none_or(toml::Table::is_empty), "{after}");
        let images = doc
            .get("plugins")
            .and_then(|plugins| plugins.get("io.containerd.cri.v1.images"));
        let found = images.and_then(|images| images["snapshotter"].as_str());
        assert_eq!(found, snapshotter, "{before}: {after}");
    }
}

#[test]
fn settings_that_a_migration_copied_are_uninstalled_too() {
    let import = "imports = ['/etc/containerd/conf.d/*.toml']\n";
    let node = Node::with(Some(&format!("version = 3\n{import}")));
    node::install(&node.options()).unwrap();
    let path = "etc/containerd/config.toml";
    let own = node.read("etc/containerd/conf.d/vellum.toml").unwrap();
    let migrated = as_migrated(&own).replacen("version = 4", &format!("{import}version = 4"), 1);
    node.write(path, &migrated);
    node::uninstall(node.dir.path(), false, false).unwrap();
    assert_eq!(node.read("etc/containerd/conf.d/vellum.toml"), None);
    let after = node.read(path).unwrap();
    assert!(!after.contains("vellum"), "{after}");
    assert!(after.contains(import), "{after}");
}

#[test]
fn only_known_settings_of_a_later_configuration_are_edited_with_a_note() {
    let told = |notes: &[String], version: i64| {
        let version = format!("has version {version}");
        notes.iter().any(|note| note.contains(&version))
    };
    for (version, unknown) in [(2, false), (3, false), (4, false), (5, true), (17, true)] {
        for import in ["", "imports = ['/etc/containerd/conf.d/*.toml']\n"] {
            let text = format!(
                "version = {version}\n{import}[plugins.'io.containerd.novel.v7.thing']\nspeed = 'high'\n"
            );
            let node = Node::with(Some(&text));
            let before = node.files();
            let report = node::install(&node.options()).unwrap();
            assert_eq!(told(&report.notes, version), unknown, "{:?}", report.notes);
            let file = match import.is_empty() || version == 2 {
                true => "etc/containerd/config.toml",
                false => "etc/containerd/conf.d/vellum.toml",
            };
            let new: toml::Value = toml::from_str(&node.read(file).unwrap()).unwrap();
            assert_eq!(
                *value(&new, &["proxy_plugins", "vellum", "type"]),
                "snapshot".into()
            );
            if file.ends_with("config.toml") {
                assert_eq!(new["version"], version.into());
                let novel = ["plugins", "io.containerd.novel.v7.thing", "speed"];
                assert_eq!(*value(&new, &novel), "high".into());
            } else {
                // containerd migrates each file from the file's own version.
                assert_eq!(new["version"], 3.into());
            }
            let report = node::uninstall(node.dir.path(), false, false).unwrap();
            assert_eq!(told(&report.notes, version), unknown, "{:?}", report.notes);
            assert_eq!(node.files(), before);
        }
    }
}

struct Node {
    dir: tempfile::TempDir,
}

impl Node {
    fn with(config: Option<&str>) -> Self {
        let node = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        if let Some(text) = config {
            node.write("etc/containerd/config.toml", text);
        }
        node
    }

    fn write(&self, path: &str, text: &str) {
        let at = self.dir.path().join(path);
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        fs::write(at, text).unwrap();
    }

    fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.dir.path().join(path)).ok()
    }

    fn options(&self) -> InstallOptions {
        InstallOptions {
            host_root: self.dir.path().into(),
            bin_dir: "/usr/local/bin".into(),
            unit_dir: "/etc/systemd/system".into(),
            config: Some(config().into()),
            wanted: wanted(),
            activate: false,
            dry_run: false,
        }
    }

    /// Every file with its content.
    fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let mut found = Vec::new();
        let mut dirs = vec![self.dir.path().to_path_buf()];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    dirs.push(path);
                } else {
                    found.push((path.clone(), fs::read(path).unwrap()));
                }
            }
        }
        found.sort();
        found
    }
}

#[test]
fn a_node_is_as_it_was_after_install_and_uninstall() {
    let commented = "# nothing but this\n";
    for text in [
        None,
        Some(""),
        Some(commented),
        Some("version = 2\n"),
        Some(SMALL_THREE),
    ] {
        let node = Node::with(text);
        let before = node.files();
        let mut options = node.options();
        options.dry_run = true;
        let shown = node::install(&options).unwrap();
        assert_eq!(node.files(), before, "a dry run changed something");
        options.dry_run = false;
        let done = node::install(&options).unwrap();
        let actions = |r: &node::Report| r.files.iter().map(|f| f.action).collect::<Vec<_>>();
        assert_eq!(actions(&shown), actions(&done));
        let status = node::status(&options).unwrap();
        assert!(
            status.parts.iter().all(|part| part.state == State::Current),
            "{status:?}"
        );
        let installed = node.files();
        let again = node::install(&options).unwrap();
        assert!(
            actions(&again).iter().all(|a| *a == Action::Keep),
            "{again:?}"
        );
        assert!(again.commands.is_empty());
        assert_eq!(node.files(), installed);
        node::uninstall(node.dir.path(), false, false).unwrap();
        assert_eq!(node.files(), before);
        assert!(!node.dir.path().join("etc/vellum").exists());
    }
}

#[test]
fn an_upgrade_leads_back_to_the_beginning_and_leaves_running_programs_alone() {
    use std::os::unix::fs::MetadataExt;
    let node = Node::with(Some(SMALL_THREE));
    let before = node.files();
    let mut options = node.options();
    options.wanted.cri = false;
    node::install(&options).unwrap();
    let program = node.dir.path().join("usr/local/bin/vellum");
    // An older one, in use.
    fs::write(&program, "old").unwrap();
    let running = fs::File::open(&program).unwrap();
    options.wanted.cri = true;
    let report = node::install(&options).unwrap();
    assert_eq!(report.files[0].action, Action::Replace);
    assert_eq!(
        running.metadata().unwrap().len(),
        3,
        "a process that runs it keeps it"
    );
    assert_ne!(
        running.metadata().unwrap().ino(),
        fs::metadata(&program).unwrap().ino()
    );
    // The administrator changes something, and then comes another upgrade.
    let path = "etc/containerd/config.toml";
    let changed = node
        .read(path)
        .unwrap()
        .replace("level = 'info'", "level = 'debug'");
    node.write(path, &changed);
    node::install(&options).unwrap();
    node::uninstall(node.dir.path(), false, false).unwrap();
    let expected = SMALL_THREE.replace("level = 'info'", "level = 'debug'");
    assert_eq!(node.read(path).unwrap(), expected);
    node.write(path, SMALL_THREE);
    assert_eq!(node.files(), before);
}

#[test]
fn containerd_is_told_where_the_store_is() {
    let root = |node: &Node| {
        node::install(&node.options()).unwrap();
        let text = node.read("etc/containerd/config.toml").unwrap();
        let text: toml::Value = toml::from_str(&text).unwrap();
        value(&text, &["proxy_plugins", "vellum", "exports", "root"]).clone()
    };
    let node = Node::with(Some(SMALL_THREE));
    assert_eq!(root(&node), "/var/lib/vellum".into());
    node.write("etc/vellum/vellum.toml", "root = \"/data/vellum\"\n");
    assert_eq!(root(&node), "/data/vellum".into());
    node.write(
        "etc/default/vellum",
        "# Ours.\nVELLUM_ROOT=\"/disk/vellum\"\n",
    );
    assert_eq!(root(&node), "/disk/vellum".into());
    node::uninstall(node.dir.path(), false, false).unwrap();
    assert_eq!(
        node.read("etc/containerd/config.toml").unwrap(),
        SMALL_THREE
    );
    node.write("etc/default/vellum", "");
    node.write("etc/vellum/vellum.toml", "root = 7\n");
    let error = node::install(&node.options()).unwrap_err();
    assert!(error.to_string().contains("vellum.toml"), "{error}");
}

#[test]
fn a_configuration_that_imports_a_directory_gets_a_file_there() {
    let text = "# File generated by k3s. DO NOT EDIT. Use config-v3.toml.tmpl instead.\nversion = 3\n\
                imports = ['/var/lib/rancher/k3s/agent/etc/containerd/config-v3.toml.d/*.toml']\n";
    let node = Node::with(None);
    let path = "var/lib/rancher/k3s/agent/etc/containerd/config.toml";
    node.write(path, text);
    let mut options = node.options();
    options.config = Some(Path::new("/").join(path));
    let before = node.files();
    node::install(&options).unwrap();
    assert_eq!(
        node.read(path).unwrap(),
        text,
        "what another program writes is left alone"
    );
    let own = "var/lib/rancher/k3s/agent/etc/containerd/config-v3.toml.d/vellum.toml";
    let own: toml::Value = toml::from_str(&node.read(own).unwrap()).unwrap();
    assert_eq!(
        *value(&own, &["proxy_plugins", "vellum", "type"]),
        "snapshot".into()
    );
    assert_eq!(
        *value(
            &own,
            &["plugins", "io.containerd.cri.v1.images", "snapshotter"]
        ),
        "vellum".into()
    );
    assert!(node::install(&options).unwrap().commands.is_empty());
    node::uninstall(node.dir.path(), false, false).unwrap();
    assert_eq!(node.files(), before);

    // Without such a directory the program's next start would overwrite the edit.
    let generated = "# DO NOT EDIT.\nversion = 2\n";
    node.write(path, generated);
    let error = node::install(&options).unwrap_err();
    assert!(error.to_string().contains("another program"), "{error}");
    assert_eq!(node.read(path).unwrap(), generated);
    assert!(
        node.read("etc/vellum/node/node.json").is_none(),
        "nothing was touched"
    );
}

#[test]
fn imports_that_may_override_an_install_are_reported() {
    for (text, told) in [
        (
            "version = 2\nimports = ['/etc/containerd/conf.d/*.toml']\n",
            true,
        ),
        ("version = 2\nimports = []\n", false),
        (
            "version = 3\nimports = ['/etc/containerd/conf.d/*.toml']\n",
            false,
        ),
    ] {
        let node = Node::with(Some(text));
        let report = node::install(&node.options()).unwrap();
        let is_told = report
            .notes
            .iter()
            .any(|note| note.contains("containerd config dump"));
        assert_eq!(is_told, told, "{text}: {:?}", report.notes);
    }
}

#[test]
fn refused_installs_touch_nothing_and_nothing_is_uninstalled_twice() {
    let node = Node::with(Some("disabled_plugins = ['cri']\n"));
    let before = node.files();
    assert!(node::install(&node.options()).is_err());
    assert_eq!(node.files(), before);
    let error = node::uninstall(node.dir.path(), false, false).unwrap_err();
    assert!(
        error.to_string().contains("nothing is installed"),
        "{error}"
    );
    let mut options = node.options();
    options.config = None;
    node::install(&options).unwrap();
    let status = node::status(&options).unwrap();
    assert!(status.installed);
    node::uninstall(node.dir.path(), false, false).unwrap();
    assert_eq!(node.files(), before);
}
