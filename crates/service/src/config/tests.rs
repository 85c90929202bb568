//! Precedence and spellings, as tables.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::*;

struct Desk {
    dir: tempfile::TempDir,
    around: Surroundings,
}

fn desk(rootless: bool) -> Desk {
    let dir = tempfile::tempdir().unwrap();
    let mut environment = BTreeMap::new();
    environment.insert(
        OsString::from("HOME"),
        dir.path().join("home").into_os_string(),
    );
    let around = Surroundings {
        rootless,
        uid: 1234,
        environment,
        system_file: dir.path().join("etc/vellum.toml"),
    };
    Desk { dir, around }
}

impl Desk {
    fn write(&self, path: &Path, text: &str) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    fn set(&mut self, name: &str, value: &str) {
        self.around.environment.insert(name.into(), value.into());
    }
    fn resolve(&self, flags: Partial) -> Result<Config, ConfigError> {
        resolve(&self.around, None, flags)
    }
}

#[test]
fn later_places_win_and_are_named() {
    let mut desk = desk(false);
    let config = desk.resolve(Partial::default()).unwrap();
    assert_eq!(
        config.storage_driver,
        Setting {
            value: Driver::Overlay2,
            source: Source::Default
        }
    );
    assert_eq!(config.root.value, Path::new("/var/lib/vellum"));

    let system = desk.around.system_file.clone();
    desk.write(
        &system,
        "storage-driver = \"overlay\"\nsize = \"10G\"\n[mount]\nmetacopy = \"off\"\n",
    );
    let config = desk.resolve(Partial::default()).unwrap();
    assert_eq!(
        config.storage_driver,
        Setting {
            value: Driver::Overlay,
            source: Source::File(system.clone())
        }
    );
    assert_eq!(config.size.value, Size(Some(10 << 30)));

    let user = desk.around.user_file();
    desk.write(&user, "storage-driver = \"native\"\n");
    let config = desk.resolve(Partial::default()).unwrap();
    assert_eq!(
        config.storage_driver,
        Setting {
            value: Driver::Native,
            source: Source::File(user)
        }
    );
    assert_eq!(
        config.metacopy,
        Setting {
            value: Toggle::Off,
            source: Source::File(system)
        }
    );

    desk.set("VELLUM_STORAGE_DRIVER", "overlay2");
    desk.set("VELLUM_SIZE", "0");
    let config = desk.resolve(Partial::default()).unwrap();
    assert_eq!(
        config.storage_driver.source,
        Source::Environment("VELLUM_STORAGE_DRIVER")
    );
    assert_eq!(
        config.size,
        Setting {
            value: Size(None),
            source: Source::Environment("VELLUM_SIZE")
        }
    );

    let flags = Partial {
        storage_driver: Some(Driver::Overlay),
        ..Partial::default()
    };
    let config = desk.resolve(flags).unwrap();
    assert_eq!(
        config.storage_driver,
        Setting {
            value: Driver::Overlay,
            source: Source::Flag("--storage-driver")
        }
    );
    assert_eq!(config.files.len(), 2);
}

#[test]
fn a_named_file_replaces_both() {
    let mut desk = desk(false);
    let system = desk.around.system_file.clone();
    desk.write(&system, "storage-driver = \"overlay\"\n");
    let named = desk.dir.path().join("own.toml");
    desk.write(&named, "jobs = 3\n");
    desk.set("VELLUM_CONFIG", named.to_str().unwrap());
    let config = desk.resolve(Partial::default()).unwrap();
    assert_eq!(config.storage_driver.source, Source::Default);
    assert_eq!(config.jobs.value, 3);
    assert_eq!(config.files, [named]);

    desk.set("VELLUM_CONFIG", "/nowhere/at/all.toml");
    assert!(matches!(
        desk.resolve(Partial::default()),
        Err(ConfigError::Read { .. })
    ));
}

#[test]
fn a_plain_user_has_directories_of_its_own() {
    let mut desk = desk(true);
    let config = desk.resolve(Partial::default()).unwrap();
    assert_eq!(
        config.root.value,
        desk.dir.path().join("home/.local/share/vellum")
    );
    assert_eq!(config.run_dir.value, Path::new("/tmp/vellum-1234"));
    desk.set("XDG_RUNTIME_DIR", "/run/user/1234");
    desk.set("XDG_DATA_HOME", "/data");
    let config = desk.resolve(Partial::default()).unwrap();
    assert_eq!(config.root.value, Path::new("/data/vellum"));
    assert_eq!(config.run_dir.value, Path::new("/run/user/1234/vellum"));
}

#[test]
fn nothing_is_skipped_silently() {
    #[track_caller]
    fn refused(text: &str, expect: &str) {
        let desk = desk(false);
        desk.write(&desk.around.system_file.clone(), text);
        let error = desk.resolve(Partial::default()).unwrap_err();
        let mut told = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(e) = source {
            told = format!("{told}: {e}");
            source = e.source();
        }
        assert!(told.contains(expect), "{told}");
    }
    refused("storge-driver = \"overlay2\"\n", "storge-driver");
    refused("storage-driver = \"aufs\"\n", "aufs");
    refused("[mount]\nnosuch = 1\n", "nosuch");
    refused("size = \"ten\"\n", "ten");
    refused("jobs = 0\n", "at least one");
    refused("root = \"relative\"\n", "not absolute");
    refused(
        "docker-compatible = true\n[mount]\nmetacopy = \"on\"\n",
        "exclude each other",
    );
}

#[test]
fn docker_spellings_are_read() {
    let place = Path::new("daemon.json");
    let imported = docker::daemon_json(
        r#"{"storage-driver":"overlay2","storage-opts":["overlay2.size=10G","overlay2.override_kernel_check=true"],
            "data-root":"/srv/docker","registry-mirrors":["http://m:5000"],"insecure-registries":["r:5000"],"debug":true}"#,
        place,
    )
    .unwrap();
    assert_eq!(imported.partial.storage_driver, Some(Driver::Overlay2));
    assert_eq!(imported.partial.size.unwrap().0, Some(10 << 30));
    assert_eq!(imported.remarks.len(), 2, "{:?}", imported.remarks);
    let registries = imported.partial.registry.unwrap();
    assert_eq!(registries["docker.io"].mirrors, ["http://m:5000"]);
    assert!(registries["r:5000"].insecure);

    assert!(matches!(
        docker::daemon_json(r#"{"storage-driver":"devicemapper"}"#, place),
        Err(ConfigError::Foreign { .. })
    ));
    assert!(matches!(
        docker::daemon_json(r#"{"storage-opts":["dm.basesize=10G"]}"#, place),
        Err(ConfigError::Foreign { .. })
    ));

    for text in [
        "--storage-driver overlay2 --storage-opt overlay2.size=1G",
        "-s=overlay2 --storage-opt=overlay2.size=1G",
        "# made by docker-storage-setup\nDOCKER_STORAGE_OPTIONS=\"--storage-driver overlay2 --storage-opt overlay2.size=1G \"\n",
        "DOCKER_STORAGE_OPTIONS='-s overlay2 --storage-opt overlay2.size=1024M'\nOTHER=1\n",
    ] {
        let imported = docker::storage_options(text, Path::new("docker-storage")).unwrap();
        assert_eq!(
            imported.partial.storage_driver,
            Some(Driver::Overlay2),
            "{text}"
        );
        assert_eq!(imported.partial.size.unwrap().0, Some(1 << 30), "{text}");
    }
    assert!(docker::storage_options("--storage-driver", Path::new("x")).is_err());
    assert!(docker::storage_options("--exec-opt a=b", Path::new("x")).is_err());
}

#[test]
fn what_is_written_is_read_back() {
    let imported = docker::daemon_json(
        r#"{"storage-driver":"vfs","storage-opts":["overlay.mountopt=nodev,metacopy=off"]}"#,
        Path::new("daemon.json"),
    )
    .unwrap();
    let text = toml::to_string(&imported.partial).unwrap();
    let again: Partial = toml::from_str(&text).unwrap();
    assert_eq!(again, imported.partial);
    assert_eq!(again.mount.metacopy, Some(Toggle::Off));
    assert_eq!(again.storage_driver, Some(Driver::Native));
    let _: PathBuf = desk(false).around.user_file();
}

#[test]
fn the_page_has_a_row_for_each_setting() {
    const DOCUMENT: &str = include_str!("../../../../docs/configuration.md");
    let rows: Vec<Vec<&str>> = DOCUMENT
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.strip_suffix(" |"))
        .map(|row| row.split(" | ").collect())
        .filter(|cells: &Vec<_>| cells.len() == 5)
        .collect();
    let config = desk(false).resolve(Partial::default()).unwrap();
    let built_in = config.lines();
    let mut keys = Vec::new();
    for ((key, variable, flag), line) in settings::NAMES.iter().zip(&built_in) {
        assert_eq!(*key, line.name);
        keys.push(format!("{key}`"));
        let row = rows.iter().find(|row| row[0] == format!("{key}`"));
        let row = row.unwrap_or_else(|| panic!("docs/configuration.md has no row for `{key}`"));
        assert_eq!(row[1], format!("`{variable}`"), "{key}");
        assert!(row[2].contains(flag), "{key}: {}", row[2]);
        // A default that depends on the machine or on other files is described in words.
        if !["jobs", "runtime", "auth-file"].contains(key) {
            let value = format!("`{}`", line.value);
            assert!(
                row[4].starts_with(&value),
                "{key}: {} is not {value}",
                row[4]
            );
        }
    }
    for row in rows.iter().filter(|row| !row[0].starts_with("registry.")) {
        assert!(
            keys.iter().any(|key| key == row[0]),
            "there is no setting `{}",
            row[0]
        );
    }
}
