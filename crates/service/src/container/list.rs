//! `ls`: the listing of containers.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::Serialize;
use vellum_store::{ContainerRecord, Labels};
use vellum_sys::mountinfo;

use crate::container_record::Settings;
use crate::context::Context;
use crate::error::Result;
use crate::mount::{place, shown};
use crate::{container_record, names, run_dir};

/// One container in a listing. The JSON field names are stable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ListedContainer {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The image's name as it was written; absent for a copy of a directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The image's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_id: Option<String>,
    /// The directory it is a copy of.
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "crate::json::some_path"
    )]
    pub from: Option<PathBuf>,
    /// When it was created.
    pub created: Timestamp,
    /// `created`, `mounted`, `running`, or `dead`: mounted by a process that has ended.
    pub state: &'static str,
    /// Where it is mounted.
    #[serde(serialize_with = "crate::json::paths")]
    pub mounts: Vec<PathBuf>,
    /// Its driver.
    pub driver: String,
    /// Labels.
    pub labels: Labels,
    /// The size of its own layer, in bytes of disk; absent unless asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// The same in inodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_inodes: Option<u64>,
}

/// Returns all containers whose name matches `filter` (see [`names::fits`]), newest first.
/// `measure` walks each one's own layer.
pub fn list(ctx: &Context, filter: Option<&str>, measure: bool) -> Result<Vec<ListedContainer>> {
    let store = ctx.store()?;
    let table = mountinfo::read()?;
    let mut all = Vec::new();
    for record in store.containers()? {
        if filter.is_some_and(|f| !names::fits(f, &record.name)) {
            continue;
        }
        ctx.go_on()?;
        match listed(ctx, &record, &table, measure) {
            Ok(listed) => all.push(listed),
            // Removed since the list was read.
            Err(_) if names::is_gone(ctx, &record) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(all)
}

fn listed(
    ctx: &Context,
    record: &ContainerRecord,
    table: &mountinfo::Table,
    measure: bool,
) -> Result<ListedContainer> {
    let store = ctx.store()?;
    let settings = Settings::of(record)?;
    let info = store.stat(&record.snapshot)?;
    // One damaged tree must not hide the others; `check` reports it.
    let (mounts, dead) = container_record::parts(ctx, record)
        .map(|parts| {
            (
                place::places(&parts, table),
                shown::is_tree_dead(&parts, table),
            )
        })
        .unwrap_or_default();
    let running = run_dir::is_running(ctx, &record.id)?;
    let usage = if measure {
        Some(store.usage(&record.snapshot)?)
    } else {
        None
    };
    let record = record.clone();
    Ok(ListedContainer {
        state: match (running, mounts.is_empty()) {
            (_, false) if dead => "dead",
            (true, _) => "running",
            (false, false) => "mounted",
            (false, true) => "created",
        },
        id: record.id,
        name: record.name,
        image: record.image_name,
        image_id: record.image.map(|id| id.to_string()),
        from: settings.from.map(|path| path.0),
        created: record.created,
        mounts,
        driver: info.driver.to_string(),
        labels: settings.labels,
        size_bytes: usage.map(|u| u.bytes),
        size_inodes: usage.map(|u| u.inodes),
    })
}
