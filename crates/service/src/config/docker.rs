//! Reads Docker's spellings: `daemon.json`, and the `DOCKER_STORAGE_OPTIONS` in
//! `/etc/sysconfig/docker-storage`.
//!
//! Only storage settings are imported: driver, storage options, mirrors and insecure registries;
//! the data root is reported but not imported, because Vellum's store is its own. A storage setting
//! without a counterpart here is an error that says what to do; all other settings are Docker's own
//! affair and are ignored. Pure: text in, [`Partial`] and remarks out.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::{ConfigError, Driver, Partial, RegistrySettings};

/// The imported settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// The settings, ready to be written as TOML.
    pub partial: Partial,
    /// One line for each setting that was read but not imported, and why.
    pub remarks: Vec<String>,
}

/// Reads a `daemon.json`. `place` names it in errors.
pub fn daemon_json(text: &str, place: &Path) -> Result<Imported, ConfigError> {
    let wrong = |why: String| ConfigError::Value {
        place: place.display().to_string(),
        why,
    };
    // dockerd reads an empty file as an empty object.
    let text = if text.trim().is_empty() { "{}" } else { text };
    let value: Value = serde_json::from_str(text).map_err(|e| wrong(e.to_string()))?;
    let Value::Object(object) = value else {
        return Err(wrong("it is not a JSON object".into()));
    };
    let mut imported = Imported::default();
    let strings = |key: &str| -> Result<Vec<String>, ConfigError> {
        match object.get(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => items
                .iter()
                .map(|v| {
                    v.as_str()
                        .map(str::to_owned)
                        .ok_or_else(|| wrong(format!("`{key}` is not text")))
                })
                .collect(),
            Some(_) => Err(wrong(format!("`{key}` is not a list"))),
        }
    };
    match object.get("storage-driver") {
        None => {}
        Some(Value::String(name)) => imported.driver(name)?,
        Some(_) => return Err(wrong("`storage-driver` is not text".into())),
    }
    for option in strings("storage-opts")? {
        imported.option(&option)?;
    }
    for key in ["data-root", "graph"] {
        if let Some(Value::String(root)) = object.get(key) {
            imported.remarks.push(format!(
                "{key} = {root} was not imported: Vellum has a store of its own; transfer images with `docker save | vellum load`"
            ));
        }
    }
    let mirrors = strings("registry-mirrors")?;
    let insecure = strings("insecure-registries")?;
    if !mirrors.is_empty() || !insecure.is_empty() {
        let registries = imported.partial.registry.get_or_insert_with(BTreeMap::new);
        if !mirrors.is_empty() {
            // Docker uses its mirrors for Docker Hub only.
            registries.entry("docker.io".into()).or_default().mirrors = mirrors;
        }
        for host in insecure {
            if host.contains('/') {
                imported.remarks.push(format!(
                    "insecure-registries {host} was not imported: list hosts, not address ranges"
                ));
            } else {
                registries.insert(
                    host,
                    RegistrySettings {
                        insecure: true,
                        ..RegistrySettings::default()
                    },
                );
            }
        }
    }
    Ok(imported)
}

/// Reads the value of `DOCKER_STORAGE_OPTIONS`, which is a piece of a command line, or a whole file
/// of such assignments.
pub fn storage_options(text: &str, place: &Path) -> Result<Imported, ConfigError> {
    let mut imported = Imported::default();
    for line in text.lines() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line = match line.split_once('=') {
            Some((name, value))
                if name.trim_start_matches("export ").trim() == "DOCKER_STORAGE_OPTIONS" =>
            {
                value
            }
            Some((name, _))
                if !name.starts_with('-')
                    && name.chars().all(|c| c.is_ascii_uppercase() || c == '_') =>
            {
                continue;
            }
            _ => line,
        };
        let line = line.trim().trim_matches(|c| c == '"' || c == '\'');
        let mut words = line
            .split_whitespace()
            .map(|w| w.trim_matches(|c| c == '"' || c == '\''));
        while let Some(word) = words.next() {
            let (flag, inline) = match word.split_once('=') {
                Some((flag, value)) if flag.starts_with('-') => (flag, Some(value)),
                _ => (word, None),
            };
            let mut value = || {
                inline
                    .or_else(|| words.next())
                    .ok_or_else(|| ConfigError::Value {
                        place: place.display().to_string(),
                        why: format!("{flag} needs a value"),
                    })
            };
            match flag {
                "-s" | "--storage-driver" | "-storage-driver" => imported.driver(value()?)?,
                "--storage-opt" | "-storage-opt" => {
                    let option = value()?.to_owned();
                    imported.option(&option)?;
                }
                other => {
                    return Err(ConfigError::Foreign {
                        place: format!("`{other}` in {}", place.display()),
                        why: "only -s/--storage-driver and --storage-opt are storage options"
                            .into(),
                    });
                }
            }
        }
    }
    Ok(imported)
}

impl Imported {
    fn driver(&mut self, name: &str) -> Result<(), ConfigError> {
        let driver: Driver = match name {
            "overlay2" | "overlay" | "vfs" => {
                name.parse()
                    .map_err(|why: vellum_store::StoreError| ConfigError::Value {
                        place: "storage-driver".into(),
                        why: why.to_string(),
                    })?
            }
            "aufs" | "btrfs" | "devicemapper" | "zfs" | "fuse-overlayfs" | "overlayfs"
            | "windowsfilter" => {
                return Err(ConfigError::Foreign {
                    place: format!("storage-driver {name}"),
                    why: format!("use {}", Driver::all_names("or")),
                });
            }
            other => {
                return Err(ConfigError::Value {
                    place: "storage-driver".into(),
                    why: format!("`{other}` is not a driver of Docker or Vellum"),
                });
            }
        };
        if name == "vfs" {
            self.remarks
                .push("storage-driver vfs is called native here".into());
        }
        self.partial.storage_driver = Some(driver);
        Ok(())
    }

    fn option(&mut self, option: &str) -> Result<(), ConfigError> {
        let (key, value) = option.split_once('=').ok_or_else(|| ConfigError::Value {
            place: format!("storage-opt `{option}`"),
            why: "it has no `=`".into(),
        })?;
        let key = key.trim().to_ascii_lowercase();
        let value = value.trim();
        match key.as_str() {
            "overlay2.size" | "size" => {
                self.partial.size = Some(
                    value
                        .parse()
                        .map_err(|why| ConfigError::Value { place: key, why })?,
                );
            }
            "overlay2.override_kernel_check" | "overlay.override_kernel_check" => {
                self.remarks.push(format!("{key} was not imported: Vellum probes the kernel instead of checking its version"));
            }
            "overlay.mountopt" | "overlay2.mountopt" | ".mountopt" => {
                for part in value.split(',').filter(|p| !p.is_empty()) {
                    match part {
                        "nodev" | "nosuid" | "noexec" => self.remarks.push(format!(
                            "mount option {part} was not imported: the container runtime sets it where it is wanted"
                        )),
                        _ => self.partial.mount.set(part).map_err(|why| ConfigError::Value { place: key.clone(), why })?,
                    }
                }
            }
            _ => {
                return Err(ConfigError::Foreign {
                    place: format!("storage-opt {key}"),
                    why: "Vellum knows overlay2.size, overlay2.override_kernel_check and overlay.mountopt".into(),
                });
            }
        }
        Ok(())
    }
}
