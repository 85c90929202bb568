//! The table of settings: the name of each in the file, the environment and the flags, its type,
//! and its default.
//!
//! `settings!` generates from the table the struct of one place's settings, the struct of the
//! resolved settings, and all code that goes through every setting. A new setting needs an entry
//! here and a row in docs/configuration.md; a test compares the two. Keys are only ever added:
//! removing one breaks users' files.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::value::{Size, Value};
use super::{
    ConfigError, Driver, Engine, Layer, MountMethod, RegistrySettings, Setting, Surroundings,
    Toggle, pick,
};

/// One setting as it is listed. The JSON field names are stable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SettingLine {
    /// Its key in the configuration file.
    pub name: &'static str,
    /// Its value.
    pub value: String,
    /// Its source.
    pub source: String,
}

/// The flag that sets kernel options by name.
const MOUNT_OPTION: &str = "--mount-opt";

/// Reads `key, variable, flag => field: type = default;`. The keys after `[mount]` are in that
/// table of the file.
macro_rules! settings {
    (
        $($(#[$doc:meta])+ $key:literal, $variable:literal, $flag:expr
            => $field:ident: $type:ty = $default:expr;)+
        [mount]
        $($(#[$mount_doc:meta])+ $mount_key:literal, $mount_variable:literal, $mount_flag:expr
            => $mount_field:ident: $mount_type:ty = $mount_default:expr;)+
    ) => {
        /// All settings, resolved.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct Config {
            $($(#[$doc])+ pub $field: Setting<$type>,)+
            $($(#[$mount_doc])+ pub $mount_field: Setting<$mount_type>,)+
            /// How registries are reached, by host (and port).
            pub registries: Setting<BTreeMap<String, RegistrySettings>>,
            /// The files that were read, in order.
            pub files: Vec<PathBuf>,
        }

        /// The settings of one place (a file, the environment, the flags). Absent means: not set
        /// there.
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct Partial {
            $($(#[$doc])+
            #[serde(rename = $key, skip_serializing_if = "Option::is_none")]
            pub $field: Option<$type>,)+
            /// Kernel mount options.
            #[serde(skip_serializing_if = "MountPartial::is_empty")]
            pub mount: MountPartial,
            /// How registries are reached, by host.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub registry: Option<BTreeMap<String, RegistrySettings>>,
        }

        /// The `[mount]` table.
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct MountPartial {
            $($(#[$mount_doc])+
            #[serde(rename = $mount_key, skip_serializing_if = "Option::is_none")]
            pub $mount_field: Option<$mount_type>,)+
        }

        /// Key, variable and flag of every setting.
        pub(super) const NAMES: &[(&str, &str, &str)] = &[
            $(($key, $variable, $flag),)+
            $((concat!("mount.", $mount_key), $mount_variable, $mount_flag),)+
        ];

        impl Partial {
            /// Reads the `VELLUM_*` variables through `get`.
            ///
            /// Variables that Vellum doesn't know are ignored: they may belong to other programs.
            pub(super) fn from_environment<'a>(
                get: impl Fn(&str) -> Option<&'a OsStr>,
            ) -> Result<Partial, ConfigError> {
                Ok(Partial {
                    $($field: read($variable, get($variable))?,)+
                    mount: MountPartial {
                        $($mount_field: read($mount_variable, get($mount_variable))?,)+
                    },
                    registry: None,
                })
            }
        }

        impl MountPartial {
            /// Sets one option of [`MOUNT_OPTION`]. Returns `false` if there is none of that name.
            fn take(&mut self, name: &str, value: &OsStr) -> Result<bool, String> {
                let field = name.replace('-', "_");
                $(if $mount_flag == MOUNT_OPTION && field == stringify!($mount_field) {
                    self.$mount_field = Some(Value::read(value)?);
                    return Ok(true);
                })+
                Ok(false)
            }
        }

        impl Config {
            /// Takes each setting from the last place that has it.
            pub(super) fn merged(
                around: &Surroundings,
                layers: &[Layer],
                files: Vec<PathBuf>,
            ) -> Config {
                Config {
                    $($field: pick(layers, $variable, $flag, |said| said.$field.clone(), || {
                        let default: fn(&Surroundings) -> $type = $default;
                        default(around)
                    }),)+
                    $($mount_field: pick(
                        layers,
                        $mount_variable,
                        $mount_flag,
                        |said| said.mount.$mount_field.clone(),
                        || {
                            let default: fn(&Surroundings) -> $mount_type = $mount_default;
                            default(around)
                        },
                    ),)+
                    // Registries are configured in files only.
                    registries: pick(layers, "", "", |said| said.registry.clone(), BTreeMap::new),
                    files,
                }
            }

            /// Returns every setting with its source, in the order of the table.
            pub fn lines(&self) -> Vec<SettingLine> {
                vec![
                    $(line($key, &self.$field),)+
                    $(line(concat!("mount.", $mount_key), &self.$mount_field),)+
                    line("registry", &self.registries),
                ]
            }
        }
    };
}

settings! {
    /// The store's directory. Absolute.
    "root", "VELLUM_ROOT", "--root"
        => root: PathBuf = Surroundings::default_root;
    /// The directory for files that live until the next boot: mount points, locks, the holder of
    /// the user namespace. Absolute.
    "run-dir", "VELLUM_RUN_DIR", "--run-dir"
        => run_dir: PathBuf = Surroundings::default_run_dir;
    /// The driver of new layers and containers.
    "storage-driver", "VELLUM_STORAGE_DRIVER", "--storage-driver"
        => storage_driver: Driver = |_| Driver::Overlay2;
    /// Write no mark that Docker's or containerd's own diff would misread.
    "docker-compatible", "VELLUM_DOCKER_COMPATIBLE", "--docker-compatible"
        => docker_compatible: bool = |_| false;
    /// What mounts containers and images.
    "engine", "VELLUM_ENGINE", "--engine"
        => engine: Engine = |_| Engine::Auto;
    /// Size limit of each new container's own layer; `"0"` removes a limit set elsewhere.
    "size", "VELLUM_SIZE", "--size"
        => size: Size = |_| Size(None);
    /// OCI runtime program. `None`: runc, else crun.
    "runtime", "VELLUM_RUNTIME", "--runtime"
        => runtime: Option<PathBuf> = |_| None;
    /// Keep the compressed layer blobs of loaded and pulled images.
    "keep-blobs", "VELLUM_KEEP_BLOBS", "--keep-blobs"
        => keep_blobs: bool = |_| false;
    /// How many layers are unpacked at once, at least 1.
    "jobs", "VELLUM_JOBS", "--jobs"
        => jobs: usize = |_| std::thread::available_parallelism().map_or(2, |n| n.get().min(8));
    /// File with registry logins. `None`: the usual ones.
    "auth-file", "VELLUM_AUTH_FILE", "--auth-file"
        => auth_file: Option<PathBuf> = |_| None;

    [mount]
    /// How layers are passed to the kernel.
    "method", "VELLUM_MOUNT_METHOD", "--mount-method"
        => mount_method: MountMethod = |_| MountMethod::Auto;
    /// Kernel option `redirect_dir`: directories of lower layers can be renamed.
    "redirect-dir", "VELLUM_REDIRECT_DIR", MOUNT_OPTION
        => redirect_dir: Toggle = |_| Toggle::Auto;
    /// Kernel option `metacopy`: chmod and chown copy no data.
    "metacopy", "VELLUM_METACOPY", MOUNT_OPTION
        => metacopy: Toggle = |_| Toggle::Auto;
    /// Kernel option `xino`: inode numbers are unique over layers of several file systems.
    "xino", "VELLUM_XINO", MOUNT_OPTION
        => xino: Toggle = |_| Toggle::Auto;
    /// Skip the syncs of copy-up; such a container is lost if the machine crashes (kernel option
    /// `volatile`).
    "volatile", "VELLUM_VOLATILE", MOUNT_OPTION
        => volatile: bool = |_| false;
}

impl MountPartial {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Sets one `NAME=VALUE` (or bare `volatile`), as given to `--mount-opt` or in Docker's
    /// `storage-opts`.
    pub fn set(&mut self, option: &str) -> Result<(), String> {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        if name == "index" {
            return match value.parse()? {
                Toggle::On => Err(
                    "index=on is not supported yet: commit can't handle its marks; leave it off"
                        .into(),
                ),
                Toggle::Auto | Toggle::Off => Ok(()),
            };
        }
        if self.take(name, OsStr::new(value))? {
            return Ok(());
        }
        let known = NAMES.iter().filter(|(_, _, flag)| *flag == MOUNT_OPTION);
        let known: Vec<String> = known
            .map(|(key, _, _)| key.trim_start_matches("mount.").replace('-', "_"))
            .collect();
        let (last, first) = known.split_last().ok_or("there are no mount options")?;
        Err(format!(
            "`{name}` is not a mount option of Vellum; use {} or {last}",
            first.join(", ")
        ))
    }
}

fn read<T: Value>(variable: &str, text: Option<&OsStr>) -> Result<Option<T>, ConfigError> {
    let value = text.map(T::read).transpose();
    value.map_err(|why| ConfigError::Value {
        place: variable.into(),
        why,
    })
}

fn line<T: Value>(name: &'static str, setting: &Setting<T>) -> SettingLine {
    SettingLine {
        name,
        value: setting.value.shown(),
        source: setting.source.to_string(),
    }
}
