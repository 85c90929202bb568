//! Named volumes: directories that bypass the driver, are shared between containers and outlive
//! them. The volumes that images declare are listed too, and belong to one container each.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::Serialize;
use vellum_store::{ContainerRecord, Labels, StoreError, Subject, VolumeRecord};

use crate::container::bundle::declared;
use crate::context::Context;
use crate::error::{Error, ObjectKind, Result};
use crate::names;

/// A volume. The JSON field names are stable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// Its data.
    #[serde(serialize_with = "crate::json::path")]
    pub path: PathBuf,
    /// When it was created.
    pub created: Timestamp,
    /// Labels.
    pub labels: Labels,
    /// Containers that were created with it; for a declared volume, its container.
    pub containers: Vec<String>,
}

fn volume(record: VolumeRecord, containers: Vec<String>) -> Volume {
    Volume {
        name: record.name,
        path: record.path,
        created: record.created,
        labels: record.labels,
        containers,
    }
}

/// Creates a volume, or returns the one of that name. Without a name it gets a random one. Durable
/// on return.
pub fn create(ctx: &Context, name: Option<&str>, labels: &Labels) -> Result<Volume> {
    let made;
    let name = match name {
        Some(name) => name,
        None => {
            made = vellum_sys::random::hex(32);
            &made
        }
    };
    Ok(volume(
        ctx.store()?.create_volume(name, labels)?,
        users(ctx, name)?,
    ))
}

/// Returns all volumes, by name.
pub fn list(ctx: &Context) -> Result<Vec<Volume>> {
    let containers = ctx.store()?.containers()?;
    let of = |name: &str| {
        containers
            .iter()
            .filter(|c| uses(c, name))
            .map(|c| c.name.clone())
            .collect()
    };
    Ok(ctx
        .store()?
        .volumes()?
        .into_iter()
        .map(|record| {
            let users = of(&record.name);
            volume(record, users)
        })
        .collect())
}

/// Returns one volume.
pub fn find(ctx: &Context, name: &str) -> Result<Volume> {
    match ctx.store()?.volume(name) {
        Ok(record) => Ok(volume(record, users(ctx, name)?)),
        Err(StoreError::NotFound {
            subject: Subject::Volume,
            ..
        }) => Err(Error::NotFound {
            kind: ObjectKind::Volume,
            name: name.to_owned(),
            meant: {
                let all = ctx.store()?.volumes()?.into_iter().map(|found| found.name);
                names::near(name, all)
                    .map(|near| format!("did you mean `{near}`? `vellum volume ls` lists them"))
            },
        }),
        Err(e) => Err(e.into()),
    }
}

fn users(ctx: &Context, name: &str) -> Result<Vec<String>> {
    let containers = ctx.store()?.containers()?;
    Ok(containers
        .into_iter()
        .filter(|c| uses(c, name))
        .map(|c| c.name)
        .collect())
}

fn uses(container: &ContainerRecord, volume: &str) -> bool {
    container.volumes.iter().any(|v| v == volume) || declared::owner(volume) == Some(&container.id)
}

/// Removes a volume and its content. Errors: `InUse` if a container was created with it.
pub fn remove(ctx: &Context, name: &str) -> Result<()> {
    let found = find(ctx, name)?;
    if !found.containers.is_empty() {
        return Err(Error::InUse {
            kind: ObjectKind::Volume,
            name: name.to_owned(),
            by: format!(
                "container{} {}",
                if found.containers.len() == 1 { "" } else { "s" },
                found.containers.join(", ")
            ),
            hint: "remove the container first".into(),
        });
    }
    Ok(ctx.store()?.remove_volume(name)?)
}
