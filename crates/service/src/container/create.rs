//! `create`: creates a container, that is, one writable layer over an image's layers or any
//! directory.
//!
//! Nothing of the image is copied. A copy of a directory has an empty layer of the store below it;
//! the directory itself takes that layer's place whenever the tree is mounted or read. The store
//! never writes into it.

use std::path::{Path, PathBuf};

use serde::Serialize;
use vellum_store::{Labels, NewContainer, PrepareOptions, SnapshotKey, StoreError};
use vellum_union::engine::Limit;

use crate::base;
use crate::container_record::{BytesPath, Settings};
use crate::context::Context;
use crate::error::{Error, ObjectKind, Result};
use crate::mount::facts;
use crate::mount::limit;
use crate::{names, plan, stack};

/// What a container is created from.
#[derive(Clone, Debug)]
pub enum Origin {
    /// An image, as the user names it.
    Image(String),
    /// A directory.
    Directory(PathBuf),
}

/// A container to create.
#[derive(Clone, Debug)]
pub struct CreateRequest {
    /// What the container is created from.
    pub origin: Origin,
    /// Its name; `None`: one is generated.
    pub name: Option<String>,
    /// Limit of its own layer in bytes; `None`: the configured one.
    pub size_bytes: Option<Option<u64>>,
    /// Limit of its own layer in inodes.
    pub inodes: Option<u64>,
    /// Labels.
    pub labels: Labels,
    /// Named volumes it will use.
    pub volumes: Vec<String>,
}

/// A created container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Created {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
}

/// Creates a container. Durable on return; after an error there is none.
pub fn create(ctx: &Context, request: &CreateRequest) -> Result<Created> {
    if let Some(name) = &request.name {
        names::check_container_name(name)?;
    }
    let store = ctx.store()?;
    let mut settings = Settings {
        from: None,
        labels: request.labels.clone(),
        size_bytes: None,
        inodes: request.inodes,
    };
    let mut options = PrepareOptions {
        size_limit_bytes: request.size_bytes.unwrap_or(ctx.config.size.value.0),
        ..PrepareOptions::default()
    };
    let (mut image, mut image_name, mut origin) = (None, None, None);
    // An image is kept by its own record; the lease keeps the empty layer until the container's
    // record does.
    let mut lease = None;
    let stem = match &request.origin {
        Origin::Image(text) => {
            let record = names::image(ctx, text)?;
            options.parent = record.top().cloned();
            image = Some(record.id);
            origin = Some((text.as_str(), record));
            image_name = Some(text.clone());
            stem_of_image(text)
        }
        Origin::Directory(dir) => {
            let dir = copied_directory(ctx, dir)?;
            let held = lease.insert(store.lease("create a container")?);
            options.parent = Some(base::empty_base(ctx, held.id())?);
            let stem = stem_of_directory(&dir);
            settings.from = Some(BytesPath(dir));
            stem
        }
    };
    if let (Some(bytes), Some(parent)) = (options.size_limit_bytes, &options.parent)
        && (settings.inodes.is_some() || limit::kept_by_engine(ctx, parent)?)
    {
        // One that enforces both is enough.
        settings.size_bytes = Some(bytes);
        options.size_limit_bytes = None;
    }
    let shown = |parent| limit::engine_shows(ctx, parent);
    if settings.limit() != Limit::default() && !options.parent.as_ref().map_or(Ok(false), shown)? {
        return Err(Error::Unsupported {
            what: "only Vellum's engine can enforce this limit, and it can't mount the container here".into(),
            hint: "it needs /dev/fuse, the driver overlay2 or overlay, and no --engine kernel; a project quota can also enforce `--size` \
                   (xfs or ext4 mounted with prjquota)".into(),
        });
    }
    let config = settings.to_json()?;
    let id = vellum_sys::random::hex(64);
    // A generated name may be taken; another one won't be.
    for _ in 0..16 {
        let name = match &request.name {
            Some(name) => name.clone(),
            None => format!("{stem}-{}", vellum_sys::random::hex(6)),
        };
        let container = NewContainer {
            id: id.clone(),
            name: name.clone(),
            image,
            image_name: image_name.clone(),
            config: config.clone(),
            volumes: request.volumes.clone(),
        };
        match store.create_container(&container, &SnapshotKey::from(id.as_str()), &options) {
            Ok((_, parts)) => {
                let from = settings.from.as_ref().map(|from| from.0.as_path());
                if let Err(e) = stack::adopt_root(ctx.process, &parts, from) {
                    // Without the root's attributes it would not be what was asked for.
                    store.remove_container(&id, vellum_store::Sweep::Now)?;
                    return Err(e);
                }
                return Ok(Created { id, name });
            }
            Err(StoreError::AlreadyExists { .. }) if request.name.is_none() => {}
            Err(StoreError::AlreadyExists { .. }) => {
                return Err(Error::NameTaken {
                    kind: ObjectKind::Container,
                    name,
                });
            }
            Err(e) => {
                return Err(match &origin {
                    Some((text, record)) => names::unless_image_gone(ctx, record, text, e.into()),
                    None => e.into(),
                });
            }
        }
    }
    Err(Error::NameTaken {
        kind: ObjectKind::Container,
        name: stem,
    })
}

/// Checks the directory to copy, and returns its path as it will be recorded: absolute, links
/// resolved.
fn copied_directory(ctx: &Context, dir: &Path) -> Result<PathBuf> {
    let path = std::fs::canonicalize(dir).map_err(Error::io("find", dir))?;
    let found = std::fs::metadata(&path).map_err(Error::io("stat", &path))?;
    if !found.is_dir() {
        return Err(Error::Invalid {
            what: format!("{} is not a directory", dir.display()),
            hint: Some("--from takes a directory; `vellum import` takes archives".into()),
        });
    }
    let root = std::fs::canonicalize(ctx.store()?.root()).map_err(Error::io("find", ctx.root()))?;
    if root.starts_with(&path) || path.starts_with(&root) {
        return Err(Error::Invalid {
            what: format!(
                "one of {} and the store {} contains the other",
                path.display(),
                root.display()
            ),
            hint: Some("keep the store elsewhere with --root".into()),
        });
    }
    // Refused now rather than at the first mount.
    let facts = facts::facts(ctx)?;
    if !facts.trusted && !facts.userxattr {
        return Err(plan::PlanRefusal::NoOverlay {
            fs_name: facts.fs_name,
            said: facts.refusal,
        }
        .into());
    }
    Ok(path)
}

/// `registry/path/debian:12` gives `debian`.
fn stem_of_image(text: &str) -> String {
    let last = text.rsplit('/').next().unwrap_or(text);
    stem(last.split([':', '@']).next().unwrap_or(last))
}

fn stem_of_directory(dir: &Path) -> String {
    stem(&dir.file_name().unwrap_or_default().to_string_lossy())
}

/// Keeps the characters that a container's name may have, at most 40 bytes of them.
fn stem(text: &str) -> String {
    let kept: String = text
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || "_.-".contains(*c))
        .take(40)
        .collect();
    let kept = kept.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
    if kept.is_empty() {
        "container".to_owned()
    } else {
        kept.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_made_from_images_and_directories() {
        for (text, expect) in [
            ("debian:12", "debian"),
            ("localhost:5000/a/my-app@sha256:00", "my-app"),
            ("0123abcd", "0123abcd"),
            ("...", "container"),
        ] {
            assert_eq!(stem_of_image(text), expect, "{text}");
        }
        assert_eq!(stem_of_directory(Path::new("/srv/Büro")), "Bro");
        assert_eq!(stem_of_directory(Path::new("/")), "container");
    }
}
