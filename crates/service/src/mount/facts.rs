//! What the machine can do for a store, probed once per boot and cached in the run directory.
//!
//! A probe takes some milliseconds (it mounts and unmounts overlays); a mount should be faster. The
//! result is valid as long as kernel, user namespace and store directory stay the same, so those
//! are the key. The file is only a cache: it may be deleted at any time, and a failure to write it
//! is not an error.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vellum_sys::plain::{self, Links};
use vellum_sys::probe::{self, DirFacts};

use crate::context::Context;
use crate::error::Result;
use crate::plan::Facts;

/// Far more than the facts need.
const CACHE_MAX_BYTES: u64 = 1 << 20;

/// What the cached facts apply to.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Key {
    boot: String,
    user_namespace: u64,
    privileged: bool,
    store: (u64, u64),
    program: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Cached {
    key: Key,
    facts: Facts,
}

/// Returns the facts for the store's directory, which must exist.
pub fn facts(ctx: &Context) -> Result<Facts> {
    if let Some(facts) = remembered(ctx) {
        return Ok(facts);
    }
    let (facts, _) = probe_now(ctx)?;
    if let Some(key) = key(ctx) {
        remember(
            &cache_path(ctx),
            &Cached {
                key,
                facts: facts.clone(),
            },
        );
    }
    Ok(facts)
}

fn remembered(ctx: &Context) -> Option<Facts> {
    let key = key(ctx)?;
    // It is a cache: if it can't be read or understood, it counts as missing.
    let bytes = plain::read(&cache_path(ctx), CACHE_MAX_BYTES, Links::InParents).ok()?;
    let cached: Cached = serde_json::from_slice(&bytes).ok()?;
    (cached.key == key).then_some(cached.facts)
}

/// Probes everything, whatever is cached.
pub fn probe_now(ctx: &Context) -> Result<(Facts, DirFacts)> {
    let dir = probe::directory(ctx.root())?;
    Ok((from(&dir), dir))
}

/// Like [`probe_now`]; on a read-only disk it returns what is cached, or can be seen.
pub fn probe_or_look(ctx: &Context) -> Result<(Facts, DirFacts)> {
    match probe::directory(ctx.root()) {
        Err(why) if why.is_no_space() || why.is_read_only() => {
            let dir = probe::directory_untried(ctx.root(), &why)?;
            Ok((remembered(ctx).unwrap_or_else(|| from(&dir)), dir))
        }
        tried => tried.map(|dir| (from(&dir), dir)).map_err(Into::into),
    }
}

fn from(dir: &DirFacts) -> Facts {
    let kernel = probe::kernel();
    Facts {
        release: kernel.release,
        layer_fds: kernel.has_layer_fds,
        lowerdir_plus: kernel.has_lowerdir_plus,
        // In a user namespace `trusted.*` can't be set, and a mount that can't write marks is
        // useless.
        trusted: dir.overlay.trusted && !kernel.in_user_namespace,
        userxattr: dir.overlay.userxattr,
        refusal: dir.overlay.refusal.clone(),
        redirect_dir: dir.overlay.redirect_dir,
        metacopy: dir.overlay.metacopy,
        index: dir.overlay.index,
        xino: dir.overlay.xino,
        d_type: dir.d_type,
        fs_name: dir.fs_name.clone(),
        root: kernel.may_mount && !kernel.in_user_namespace,
        fuse: probe::has_fuse(),
    }
}

fn cache_path(ctx: &Context) -> PathBuf {
    ctx.run_dir().join("facts.json")
}

/// Returns the cache's key; `None` if a part of it is unknown: then nothing is cached.
fn key(ctx: &Context) -> Option<Key> {
    let store = fs::metadata(ctx.root()).ok()?;
    Some(Key {
        boot: fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .ok()?
            .trim()
            .to_owned(),
        user_namespace: fs::metadata("/proc/self/ns/user").ok()?.ino(),
        privileged: probe::may_mount(),
        store: (store.dev(), store.ino()),
        program: env!("CARGO_PKG_VERSION").to_owned(),
    })
}

fn remember(path: &std::path::Path, cached: &Cached) {
    let Ok(bytes) = serde_json::to_vec(cached) else {
        return;
    };
    let fresh = path.with_extension(format!("json-{}", vellum_sys::random::hex(8)));
    // It is a cache: the next command tries again.
    if fs::write(&fresh, bytes)
        .and_then(|()| fs::rename(&fresh, path))
        .is_err()
    {
        let _ = fs::remove_file(&fresh);
    }
}
