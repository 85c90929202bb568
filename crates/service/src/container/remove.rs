//! `rm` of a container.

use vellum_store::{ContainerRecord, Sweep};
use vellum_sys::mount::Detach;
use vellum_sys::mountinfo;

use crate::container::bundle::declared;
use crate::context::Context;
use crate::error::{Error, ObjectKind, Result};
use crate::mount::{place, shown};
use crate::{container_record, names, run_dir};

/// Removes a container, its changes, and the volumes that its image declares. Durable on return.
///
/// A crash in between may leave such a volume; `volume ls` shows it, without a container.
///
/// Without `force`, fails with [`Error::InUse`] while it is mounted or running.
pub fn remove(ctx: &Context, name: &str, force: bool) -> Result<ContainerRecord> {
    names::with_container(ctx, name, |record| {
        let _lock = run_dir::lock_container(ctx, &record.id)?;
        if run_dir::is_running(ctx, &record.id)? {
            return Err(Error::InUse {
                kind: ObjectKind::Container,
                name: record.name.clone(),
                by: "a `vellum run` is using it".into(),
                hint: "stop it first".into(),
            });
        }
        let mut elsewhere = Vec::new();
        let parts = match container_record::parts(ctx, record) {
            Err(Error::Covered { covers, .. }) if force => {
                for cover in &covers {
                    vellum_sys::mount::unmount(&cover.mount_point, Detach::Yes)?;
                }
                container_record::parts(ctx, record)
            }
            Err(covered @ Error::Covered { .. }) => return Err(covered),
            found => found,
        };
        // A damaged tree must not keep its record from being removed.
        if let Ok(parts) = parts {
            let table = mountinfo::read()?;
            let places = place::places(&parts, &table);
            if !places.is_empty() {
                if !force {
                    return Err(Error::InUse {
                        kind: ObjectKind::Container,
                        name: record.name.clone(),
                        by: match shown::is_tree_dead(&parts, &table) {
                            false => format!("it is mounted at {}", places[0].display()),
                            true => format!(
                                "it is mounted at {} by a process that has ended",
                                places[0].display()
                            ),
                        },
                        hint: "unmount it first (`vellum umount`), or use --force".into(),
                    });
                }
                elsewhere = places;
            }
        }
        let info = ctx.store()?.stat(&record.snapshot)?;
        let dir = ctx
            .store()?
            .driver_home(info.driver)
            .join(info.tree.as_str());
        // The removal must succeed even if a process is in the tree, another mount namespace holds
        // it, or something foreign is mounted over it.
        vellum_sys::mount::unmount_all(&dir)?;
        for place in elsewhere.iter().filter(|place| !place.starts_with(&dir)) {
            vellum_sys::mount::unmount(place, Detach::Yes)?;
        }
        let removed = ctx.store()?.remove_container(&record.id, Sweep::Now)?;
        run_dir::forget(ctx, &record.id);
        declared::remove(ctx, &record.id)?;
        Ok(removed)
    })
}
