//! The settings, and where each one comes from.
//!
//! Settings come from built-in defaults, the system's file (`/etc/vellum/vellum.toml`), the user's
//! file (`$XDG_CONFIG_HOME/vellum/vellum.toml`), environment variables (`VELLUM_*`) and
//! command-line flags; later ones win. [`resolve`] is pure: it gets the [`Surroundings`] and reads
//! no environment itself, so the whole precedence is tested as a table. Every value keeps its
//! [`Source`], which `vellum info` and `vellum config show` print.
//!
//! Nothing is skipped silently: an unknown key, a value that doesn't parse or a file that can't be
//! read is an error that names the place. The settings are one table, in `config/settings.rs`;
//! `docs/configuration.md` describes them for users.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub mod docker;
mod file;
mod settings;
mod value;

pub use settings::{Config, MountPartial, Partial, SettingLine};
pub use value::Size;
pub use vellum_overlay::values::{Toggle, parse_size};
pub use vellum_store::DriverKind as Driver;

/// How the layers of a mount are passed to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MountMethod {
    /// The best one the kernel has.
    Auto,
    /// Open descriptors, Linux 6.13.
    LayerFds,
    /// Paths, one `lowerdir+` each, Linux 6.8.
    LowerdirPlus,
    /// mount(2) with one page of options and relative links, any Linux.
    OptionPage,
}

impl FromStr for MountMethod {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "layer-fds" => Ok(Self::LayerFds),
            "lowerdir-plus" => Ok(Self::LowerdirPlus),
            "option-page" => Ok(Self::OptionPage),
            other => Err(format!(
                "`{other}` is not a mount method; use auto, layer-fds, lowerdir-plus or option-page"
            )),
        }
    }
}

impl fmt::Display for MountMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::LayerFds => "layer-fds",
            Self::LowerdirPlus => "lowerdir-plus",
            Self::OptionPage => "option-page",
        })
    }
}

/// What mounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// The kernel if it can, else Vellum's own engine.
    Auto,
    /// The kernel's overlay only.
    Kernel,
    /// Vellum's own engine, through FUSE.
    Vellum,
}

impl FromStr for Engine {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "kernel" => Ok(Self::Kernel),
            "vellum" => Ok(Self::Vellum),
            other => Err(format!(
                "`{other}` is not an engine; use auto, kernel or vellum"
            )),
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Kernel => "kernel",
            Self::Vellum => "vellum",
        })
    }
}

/// How one registry is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct RegistrySettings {
    /// Addresses asked first, in order, before the registry itself (`http://127.0.0.1:5000`).
    pub mirrors: Vec<String>,
    /// Use plain HTTP.
    pub insecure: bool,
    /// A PEM file with a certificate authority to trust for it, in addition to the system's.
    pub ca_file: Option<PathBuf>,
}

/// Where a setting comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The built-in default.
    Default,
    /// A configuration file.
    File(PathBuf),
    /// An environment variable.
    Environment(&'static str),
    /// A command-line flag.
    Flag(&'static str),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// A value and its source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting<T> {
    /// The value.
    pub value: T,
    /// Its source.
    pub source: Source,
}

/// What [`resolve`] uses besides flags: collected once, by the front.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// Whether the process is a plain user's (also inside the user's own namespace).
    pub rootless: bool,
    /// The user's id outside any namespace, for paths below `/run/user` and `/tmp`.
    pub uid: u32,
    /// The environment.
    pub environment: BTreeMap<OsString, OsString>,
    /// The system's configuration file.
    pub system_file: PathBuf,
}

impl Surroundings {
    /// The system's file.
    pub const SYSTEM_FILE: &'static str = "/etc/vellum/vellum.toml";
    /// Root's store, unless a setting says otherwise.
    pub const SYSTEM_ROOT: &'static str = "/var/lib/vellum";

    fn get(&self, name: &str) -> Option<&OsStr> {
        self.environment
            .get(OsStr::new(name))
            .map(OsString::as_os_str)
            .filter(|v| !v.is_empty())
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        // The XDG rules: a relative path is ignored.
        self.get(name)
            .map(PathBuf::from)
            .filter(|p| p.is_absolute())
    }

    fn home(&self) -> PathBuf {
        self.path("HOME").unwrap_or_else(|| PathBuf::from("/"))
    }

    /// Returns the path of the user's file.
    pub fn user_file(&self) -> PathBuf {
        self.path("XDG_CONFIG_HOME")
            .unwrap_or_else(|| self.home().join(".config"))
            .join("vellum/vellum.toml")
    }

    fn default_root(&self) -> PathBuf {
        if self.rootless {
            self.path("XDG_DATA_HOME")
                .unwrap_or_else(|| self.home().join(".local/share"))
                .join("vellum")
        } else {
            PathBuf::from(Self::SYSTEM_ROOT)
        }
    }

    fn default_run_dir(&self) -> PathBuf {
        if self.rootless {
            match self.path("XDG_RUNTIME_DIR") {
                Some(dir) => dir.join("vellum"),
                None => PathBuf::from(format!("/tmp/vellum-{}", self.uid)),
            }
        } else {
            PathBuf::from("/run/vellum")
        }
    }
}

/// Why the configuration can't be resolved.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file that must be there can't be read.
    #[error("cannot read the configuration file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file is not TOML, or has a key or value that Vellum doesn't know.
    #[error("cannot understand the configuration file {}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// The value of an environment variable or flag can't be understood.
    #[error("{place} cannot be understood: {why}")]
    Value {
        /// The variable, flag or key.
        place: String,
        /// What is wrong with it.
        why: String,
    },
    /// A setting of Docker's has no meaning here.
    #[error("{place} has no counterpart in Vellum: {why}")]
    Foreign {
        /// The key in Docker's spelling.
        place: String,
        /// What to do about it.
        why: String,
    },
    /// Two settings contradict each other.
    #[error("{0}")]
    Contradiction(String),
}

impl ConfigError {
    /// Returns what the user can do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Parse { .. } => {
                Some("docs/configuration.md lists every key with its values".into())
            }
            Self::Read { path, .. } => Some(format!(
                "correct the path in --config or VELLUM_CONFIG, or make {} readable",
                path.display()
            )),
            _ => None,
        }
    }
}

/// The settings from one place.
struct Layer {
    partial: Partial,
    origin: Origin,
}

enum Origin {
    File(PathBuf),
    Environment,
    Flags,
}

/// Resolves all settings: defaults, system file, user file, environment, flags; later ones win.
///
/// The flag `--config` (`config_file`) or `VELLUM_CONFIG` replaces both files and must then be
/// readable. Reads those files and nothing else.
pub fn resolve(
    around: &Surroundings,
    config_file: Option<&Path>,
    flags: Partial,
) -> Result<Config, ConfigError> {
    let mut layers = Vec::new();
    let mut files = Vec::new();
    let named = config_file
        .map(Path::to_path_buf)
        .or_else(|| around.get("VELLUM_CONFIG").map(PathBuf::from));
    let candidates = match named {
        Some(path) => vec![(path, true)],
        None => vec![
            (around.system_file.clone(), false),
            (around.user_file(), false),
        ],
    };
    for (path, required) in candidates {
        if let Some(partial) = file::read(&path, required)? {
            files.push(path.clone());
            layers.push(Layer {
                partial,
                origin: Origin::File(path),
            });
        }
    }
    layers.push(Layer {
        partial: Partial::from_environment(|name| around.get(name))?,
        origin: Origin::Environment,
    });
    layers.push(Layer {
        partial: flags,
        origin: Origin::Flags,
    });
    let config = Config::merged(around, &layers, files);
    check(&config)?;
    Ok(config)
}

/// Picks the value of one setting from the last place that has it.
fn pick<T: Clone>(
    layers: &[Layer],
    variable: &'static str,
    flag: &'static str,
    get: impl Fn(&Partial) -> Option<T>,
    default: impl FnOnce() -> T,
) -> Setting<T> {
    for layer in layers.iter().rev() {
        if let Some(value) = get(&layer.partial) {
            let source = match &layer.origin {
                Origin::File(path) => Source::File(path.clone()),
                Origin::Environment => Source::Environment(variable),
                Origin::Flags => Source::Flag(flag),
            };
            return Setting { value, source };
        }
    }
    Setting {
        value: default(),
        source: Source::Default,
    }
}

/// Refuses settings that contradict each other.
fn check(config: &Config) -> Result<(), ConfigError> {
    for (name, setting) in [("root", &config.root), ("run-dir", &config.run_dir)] {
        if !setting.value.is_absolute() {
            return Err(ConfigError::Value {
                place: format!("`{name}` ({})", setting.source),
                why: format!("`{}` is not absolute", setting.value.display()),
            });
        }
    }
    if config.jobs.value == 0 {
        return Err(ConfigError::Value {
            place: format!("`jobs` ({})", config.jobs.source),
            why: "at least one is needed".into(),
        });
    }
    if config.docker_compatible.value {
        for (name, setting) in [
            ("redirect-dir", &config.redirect_dir),
            ("metacopy", &config.metacopy),
        ] {
            if setting.value == Toggle::On {
                return Err(ConfigError::Contradiction(format!(
                    "docker-compatible ({}) and mount.{name} = on ({}) exclude each other: Docker's diff misreads what {name} writes",
                    config.docker_compatible.source, setting.source
                )));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
