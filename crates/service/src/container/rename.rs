//! `rename` of a container.

use vellum_store::ContainerRecord;

use crate::context::Context;
use crate::error::{Error, ObjectKind, Result};
use crate::names;

/// Gives a container another name. Durable on return.
pub fn rename(ctx: &Context, name: &str, new_name: &str) -> Result<ContainerRecord> {
    names::check_container_name(new_name)?;
    names::with_container(ctx, name, |record| {
        match ctx.store()?.rename_container(&record.id, new_name) {
            Ok(()) => Ok(ContainerRecord {
                name: new_name.to_owned(),
                ..record.clone()
            }),
            Err(vellum_store::StoreError::AlreadyExists { .. }) => Err(Error::NameTaken {
                kind: ObjectKind::Container,
                name: new_name.to_owned(),
            }),
            Err(e) => Err(e.into()),
        }
    })
}
