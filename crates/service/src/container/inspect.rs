//! `inspect` of a container: all that is known about it, as JSON. The field names are stable.

use serde_json::{Value, json};
use vellum_store::Shape;
use vellum_sys::mountinfo;

use crate::container_record::{self, Settings};
use crate::context::Context;
use crate::error::Result;
use crate::mount::{place, shown};
use crate::{names, run_dir};

/// Returns all that the store knows about a container.
pub fn inspect_container(ctx: &Context, name: &str) -> Result<Value> {
    names::with_container(ctx, name, |record| {
        let settings = Settings::of(record)?;
        let info = ctx.store()?.stat(&record.snapshot)?;
        let parts = container_record::parts(ctx, record)?;
        let table = mountinfo::read()?;
        let places = place::places(&parts, &table);
        let text = |path: &std::path::Path| path.to_string_lossy().into_owned();
        let tree = match &parts.shape {
            Shape::Plain { root, base, .. } => json!({
                "root": text(root),
                "base": base.as_deref().map(text),
            }),
            Shape::Overlay(overlay) => json!({
                "lowers": overlay.lowers.iter().map(|l| text(&l.dir)).collect::<Vec<_>>(),
                "upper": overlay.upper.as_ref().map(|l| text(&l.dir)),
                "work": overlay.work.as_deref().map(text),
                "merged": text(&overlay.merged),
            }),
        };
        Ok(json!({
            "kind": "container",
            "id": record.id,
            "name": record.name,
            "image": record.image_name,
            "image_id": record.image.as_ref().map(ToString::to_string),
            "from": settings.from.as_ref().map(|path| text(&path.0)),
            "created": record.created.to_string(),
            "labels": settings.labels,
            "volumes": record.volumes,
            "driver": info.driver.to_string(),
            "size_limit_bytes": info.size_limit_bytes.or(settings.size_bytes),
            "inode_limit": settings.inodes,
            "first_mounted_with": info.features.map(|f| json!({
                "userxattr": f.userxattr,
                "redirect_dir": f.redirect_dir,
                "metacopy": f.metacopy,
                "index": f.index,
                "xino": f.xino,
            })),
            "dead": shown::is_tree_dead(&parts, &table),
            "running": run_dir::is_running(ctx, &record.id)?,
            "mounts": places.iter().map(|p| text(p)).collect::<Vec<_>>(),
            "tree": tree,
        }))
    })
}
