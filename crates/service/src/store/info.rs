//! `info`: driver, file system, kernel, limits and settings of a store, as `docker info` reports
//! storage and a little more.

use std::path::PathBuf;

use serde::Serialize;
use vellum_store::Store;
use vellum_sys::mount::KERNEL_LAYER_LIMIT;
use vellum_sys::quota::ProjectQuota;
use vellum_sys::{probe, userns};

use crate::config::SettingLine;
use crate::context::Context;
use crate::error::Result;
use crate::mount::facts;
use crate::plan::Facts;

/// Something that can't be done here, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Limit {
    /// The feature.
    pub what: &'static str,
    /// Why, and what happens instead.
    pub why: String,
}

/// Everything that `info` reports. The JSON field names are stable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Info {
    /// Vellum's version.
    pub version: &'static str,
    /// Driver of new layers and containers.
    pub driver: String,
    /// Layers and containers of each driver.
    pub snapshots: Vec<(String, u64)>,
    /// The store.
    #[serde(serialize_with = "crate::json::path")]
    pub root: PathBuf,
    /// The run directory, for files that live until the next boot.
    #[serde(serialize_with = "crate::json::path")]
    pub run_dir: PathBuf,
    /// File system under the store.
    pub backing_filesystem: String,
    /// Whether listings report file types.
    pub supports_d_type: bool,
    /// How a union of Vellum's engine hides names on this file system: `devices 0:0`, as the kernel
    /// reads them, or `.wh. files`.
    pub whiteouts: &'static str,
    /// Whether diffs read only a container's own layer.
    pub native_diff: bool,
    /// Marks are `user.overlay.*`.
    pub userxattr: bool,
    /// Project quotas: `enforced`, `counted`, `off` or `denied`.
    pub project_quota: &'static str,
    /// Files can share blocks.
    pub reflink: bool,
    /// Version of the store's schema.
    pub schema: i64,
    /// Images, containers, volumes.
    pub images: usize,
    /// Containers.
    pub containers: usize,
    /// Volumes.
    pub volumes: usize,
    /// The kernel.
    pub kernel: Facts,
    /// Whether the kernel offers FUSE over io_uring to unions of Vellum's engine: `on`, `off`, or
    /// `none` if the kernel does not know it.
    pub fuse_io_uring: &'static str,
    /// How layers are mounted by default here: `layer-fds`, `lowerdir-plus` or `option-page`.
    pub mount_method: &'static str,
    /// Most layers of one mount.
    pub max_layers: usize,
    /// A plain user's store.
    pub rootless: bool,
    /// What can't be done here.
    pub limits: Vec<Limit>,
    /// Settings.
    pub settings: Vec<SettingLine>,
}

/// Collects the information.
pub fn info(ctx: &Context) -> Result<Info> {
    let store = ctx.store()?;
    let (facts, dir) = facts::probe_or_look(ctx)?;
    let rootless = !ctx.process.in_first_namespace;
    let quota = match dir.project_quota {
        ProjectQuota::Enforced => "enforced",
        ProjectQuota::Counted => "counted",
        ProjectQuota::Off => "off",
        ProjectQuota::Denied => "denied",
    };
    Ok(Info {
        version: env!("CARGO_PKG_VERSION"),
        driver: store.default_driver().to_string(),
        snapshots: store
            .drivers_in_use()?
            .into_iter()
            .map(|(driver, count)| (driver.to_string(), count))
            .collect(),
        root: ctx.root().to_path_buf(),
        run_dir: ctx.run_dir().to_path_buf(),
        backing_filesystem: dir.fs_name,
        supports_d_type: dir.d_type,
        whiteouts: if dir.whiteouts {
            "devices 0:0"
        } else {
            ".wh. files"
        },
        native_diff: store.default_driver().makes_overlays(),
        userxattr: !facts.trusted && facts.userxattr,
        project_quota: quota,
        reflink: dir.reflink,
        schema: Store::schema_version(),
        images: store.images()?.len(),
        containers: store.containers()?.len(),
        volumes: store.volumes()?.len(),
        fuse_io_uring: fuse_io_uring(),
        mount_method: match (facts.layer_fds, facts.lowerdir_plus) {
            (true, _) => "layer-fds",
            (false, true) => "lowerdir-plus",
            (false, false) => "option-page",
        },
        max_layers: KERNEL_LAYER_LIMIT,
        limits: rolled_back(store)
            .into_iter()
            .chain(limits(&facts, rootless, quota))
            .collect(),
        kernel: facts,
        rootless,
        settings: ctx.config.lines(),
    })
}

/// The module has a parameter for it since Linux 6.14.
fn fuse_io_uring() -> &'static str {
    match std::fs::read_to_string(URING_PARAMETER) {
        Ok(value) if value.trim() == "Y" => "on",
        Ok(_) => "off",
        Err(_) => "none",
    }
}

const URING_PARAMETER: &str = "/sys/module/fuse/parameters/enable_uring";

/// Reports that nothing can be changed, if the database has gone back in time.
fn rolled_back(store: &Store) -> Option<Limit> {
    store.rolled_back().map(|why| Limit {
        what: "changes",
        why: format!("the database has gone back in time ({why}): `vellum check --rebuild`"),
    })
}

/// Names what is not available, one line each.
fn limits(facts: &Facts, rootless: bool, quota: &str) -> Vec<Limit> {
    let mut limits = Vec::new();
    let mut add = |what, why: &str| {
        limits.push(Limit {
            what,
            why: why.to_owned(),
        })
    };
    if !facts.trusted && !facts.userxattr {
        let why = format!(
            "the kernel mounts no overlay on {}: {}; the native driver works",
            facts.fs_name, facts.refusal
        );
        add("overlay2 and overlay", &why);
    } else if rootless || !facts.trusted {
        add(
            "redirect_dir",
            "refused with user.overlay.* marks: renaming a directory of the image gives EXDEV, as in Docker",
        );
        add(
            "metacopy",
            "refused with user.overlay.* marks: chmod and chown of an image's file copy its data",
        );
    } else {
        if !facts.redirect_dir {
            add(
                "redirect_dir",
                "this kernel does not have it: renaming a directory of the image gives EXDEV",
            );
        }
        if !facts.metacopy {
            add(
                "metacopy",
                "this kernel does not have it: chmod and chown of an image's file copy its data",
            );
        }
    }
    add(
        "index",
        "off: a hard link of the image is broken when one of its names is written to, as in Docker",
    );
    if rootless {
        add(
            "device nodes",
            "a plain user can't create them: kept as records and restored on save and push",
        );
        add(
            "trusted.* and other refused xattrs",
            "kept as records and restored on save and push",
        );
        if userns::IdMaps::current().is_ok_and(|maps| maps.is_single()) {
            add(
                "owners",
                "no range in /etc/subuid and /etc/subgid: all files belong to you, owners are kept as records",
            );
        }
        add(
            "mounts",
            "visible only inside your user namespace: `vellum unshare` enters it; they end with its holder or at reboot",
        );
    }
    if quota != "enforced" {
        add(
            "size limits",
            "enforced by Vellum's engine, which mounts such containers: project quotas need xfs or ext4 mounted with prjquota, and root",
        );
    }
    if probe::is_network(&facts.fs_name) {
        let why = format!(
            "{} is a network file system: locks only work within one machine, so no other machine may use the store at the same time",
            facts.fs_name
        );
        add("several machines", &why);
    }
    if fuse_io_uring() == "off" {
        let why = format!(
            "off: `echo Y > {URING_PARAMETER}` turns it on for later mounts of Vellum's engine"
        );
        add("FUSE over io_uring", &why);
    }
    if !facts.layer_fds && !facts.lowerdir_plus {
        add(
            "layers",
            "this kernel accepts one page of options: about 128 layers (Linux 6.8 accepts 500)",
        );
    }
    limits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_file_system_is_named_as_a_limit() {
        let named = |fs_name: &str| {
            let facts = Facts {
                fs_name: fs_name.into(),
                ..crate::plan::tests::facts()
            };
            let limits = limits(&facts, false, "enforced");
            limits.into_iter().find(|l| l.what == "several machines")
        };
        assert!(named("nfs").unwrap().why.contains("one machine"));
        assert_eq!(named("extfs"), None);
    }
}
