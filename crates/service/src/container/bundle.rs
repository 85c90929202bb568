//! `bundle`: a container as an OCI runtime bundle, for runc, crun and other programs that read
//! `config.json`.
//!
//! [`spec`](mod@spec) is pure: image configuration, request and the user's ids in, the runtime
//! configuration out. What must be looked up inside the tree (`/etc/passwd`, `/etc/group`) is
//! resolved inside the tree only. What the configuration needs is created beforehand: the working
//! directory ([`workdir`]) and the volumes that the image declares ([`declared`]).

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use vellum_image::{ImageConfig, RunConfig};
use vellum_store::ContainerRecord;
use vellum_sys::Dir;
use vellum_sys::mount::{self as mounts, BindOptions};

use crate::context::Context;
use crate::error::{Error, Result};
use crate::{mount, names, run_dir};

mod accounts;
pub(crate) mod declared;
pub mod spec;
mod user;
mod workdir;

pub use spec::{Bind, Network};

/// What to run, as far as the user specified it.
#[derive(Clone, Debug, Default)]
pub struct ProcessRequest {
    /// Command and arguments; empty: the image's.
    pub command: Vec<OsString>,
    /// Replaces the image's entrypoint; `Some("")` drops it.
    pub entrypoint: Option<OsString>,
    /// Variables: `NAME=VALUE`; a bare `NAME` removes the image's variable or a default.
    pub env: Vec<OsString>,
    /// The working directory; an empty one means the image's.
    pub workdir: Option<PathBuf>,
    /// `USER[:GROUP]`; an empty one means the image's.
    pub user: Option<String>,
    /// Directories and volumes bound into it; sources are resolved.
    pub binds: Vec<Bind>,
    /// Host name.
    pub hostname: Option<String>,
    /// Network.
    pub network: Network,
    /// Whether it has a terminal.
    pub tty: bool,
    /// Whether the root is read-only.
    pub read_only: bool,
    /// Added capabilities.
    pub cap_add: Vec<String>,
    /// Dropped capabilities.
    pub cap_drop: Vec<String>,
}

/// The name of the configuration in a bundle; the runtime specification fixes it.
const CONFIG: &str = "config.json";
/// The kernel's directory of facts about each processor.
const CPUS: &str = "/sys/devices/system/cpu";

/// Makes `dir` a bundle of the container: mounts it at `dir/rootfs` and writes `dir/config.json`.
/// Returns the path of the configuration.
pub fn bundle(ctx: &Context, name: &str, dir: &Path, request: &ProcessRequest) -> Result<PathBuf> {
    names::with_container(ctx, name, |record| {
        fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        let dir = fs::canonicalize(dir).map_err(Error::io("find", dir))?;
        let config = dir.join(CONFIG);
        let rootfs = dir.join("rootfs");
        if config.exists()
            || fs::read_dir(&rootfs).is_ok_and(|mut entries| entries.next().is_some())
        {
            return Err(Error::Invalid {
                what: format!("{} already holds a bundle", dir.display()),
                hint: Some("name an empty directory".into()),
            });
        }
        fs::create_dir_all(&rootfs).map_err(Error::io("create", &rootfs))?;
        let _lock = run_dir::lock_container(ctx, &record.id)?;
        let mounted = mount::mount_locked(ctx, record, None, false)?;
        let text = compose(ctx, record, &mounted.path, Path::new("rootfs"), request)?;
        mounts::bind(&mounted.path, &rootfs, BindOptions::default())?;
        fs::write(&config, text).map_err(Error::io("write", &config))?;
        Ok(config)
    })
}

/// Returns the text of `config.json` for a container mounted at `tree`; `root` is its name in the
/// configuration.
///
/// Creates in the tree what the command needs: its working directory, and the image's volumes.
pub(crate) fn compose(
    ctx: &Context,
    record: &ContainerRecord,
    tree: &Path,
    root: &Path,
    request: &ProcessRequest,
) -> Result<Vec<u8>> {
    let image = image_config(ctx, record)?.map_or_else(RunConfig::default, |image| image.run);
    let root_dir = Dir::open(tree)?;
    // As with the working directory, an empty value counts as not given.
    let asked = request.user.as_deref().filter(|user| !user.is_empty());
    let user = user::resolve(
        asked.unwrap_or(&image.user),
        &accounts::read(&root_dir, "etc/passwd")?,
        &accounts::read(&root_dir, "etc/group")?,
    )
    .map_err(|what| Error::Invalid {
        what,
        hint: Some("--user takes numbers too, such as 1000:1000".into()),
    })?;
    let around = spec::Around {
        id: record.id.clone(),
        root: root.to_path_buf(),
        in_user_namespace: !ctx.process.in_first_namespace,
        thermal: thermal(Path::new(CPUS)),
    };
    // First without volumes: a configuration that can't run must not create any.
    spec::spec(&around, &image, &user, request, &[])?;
    workdir::make(&root_dir, &spec::workdir(&image, request)?, &request.binds)?;
    let volumes = declared::volumes(ctx, record, &root_dir, &image, &request.binds)?;
    let spec = spec::spec(&around, &image, &user, request, &volumes)?;
    serde_json::to_vec_pretty(&spec).map_err(|e| Error::Damaged {
        what: "the runtime configuration".into(),
        why: e.to_string(),
    })
}

/// Returns the directories that count how often each processor was too hot, which reveals its load.
fn thermal(cpus: &Path) -> Vec<PathBuf> {
    // Without such a directory there is nothing to hide.
    let entries = fs::read_dir(cpus).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries
        .map(|entry| entry.path().join("thermal_throttle"))
        .filter(|path| path.is_dir())
        .collect();
    found.sort();
    found
}

/// Returns the configuration of the image that a container was created from.
pub(crate) fn image_config(ctx: &Context, record: &ContainerRecord) -> Result<Option<ImageConfig>> {
    let Some(id) = &record.image else {
        return Ok(None);
    };
    let raw = ctx
        .store()?
        .read_blob(id, vellum_image::manifest::MAX_CONFIG_BYTES)?;
    let config = ImageConfig::parse(raw).map_err(|e| Error::Damaged {
        what: format!("image {id}"),
        why: e.to_string(),
    })?;
    Ok(Some(config))
}

/// Parses `SOURCE:PATH[:ro]`: a source with a slash is a directory or file of the host, any other
/// one is a named volume.
///
/// Missing volumes are created. Errors: `Invalid`.
pub fn bind(ctx: &Context, text: &std::ffi::OsStr) -> Result<Bind> {
    let parsed = spec::parse_bind(text).map_err(|what| Error::Invalid {
        what,
        hint: Some("write SOURCE:PATH or SOURCE:PATH:ro; SOURCE is a path with a slash, or a volume's name".into()),
    })?;
    let source = match &parsed.volume {
        Some(name) => ctx.store()?.create_volume(name, &Default::default())?.path,
        None => fs::canonicalize(&parsed.source).map_err(Error::io("find", &parsed.source))?,
    };
    Ok(Bind { source, ..parsed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_processor_with_thermal_counters_is_found() {
        let cpus = tempfile::tempdir().unwrap();
        for dir in ["cpu0/thermal_throttle", "cpu1", "cpu10/thermal_throttle"] {
            fs::create_dir_all(cpus.path().join(dir)).unwrap();
        }
        fs::write(cpus.path().join("online"), "0-10").unwrap();
        let expect = ["cpu0", "cpu10"].map(|cpu| cpus.path().join(cpu).join("thermal_throttle"));
        assert_eq!(thermal(cpus.path()), expect);
        assert!(thermal(Path::new("/no/such/directory")).is_empty());
    }
}
