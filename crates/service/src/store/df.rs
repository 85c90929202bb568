//! `df`: what uses the disk.

use serde::Serialize;
use vellum_store::{DiskUse, Usage};

use crate::context::Context;
use crate::error::Result;

/// Bytes of disk and inodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Size {
    /// Bytes of disk.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

impl From<Usage> for Size {
    fn from(usage: Usage) -> Self {
        Self {
            bytes: usage.bytes,
            inodes: usage.inodes,
        }
    }
}

/// One thing that uses space. The JSON field names are stable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Used {
    /// `image`, `layer`, `container`, `workspace` or `volume`.
    pub kind: &'static str,
    /// Its id or key.
    pub id: String,
    /// Its names; may be empty.
    pub names: Vec<String>,
    /// What removing it would free.
    pub exclusive: Size,
    /// What others use too.
    pub shared: Size,
    /// How many use it: containers of an image, images of a layer, or, for a layer of no image, the
    /// snapshots on it.
    pub users: u64,
}

/// What uses the disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Disk {
    /// Each thing.
    pub items: Vec<Used>,
    /// Manifests, configurations, kept blobs.
    pub content: Size,
    /// The recipes with which layers come out byte for byte.
    pub recipes: Size,
    /// What repairs took out of layers, for an operator to look at and remove.
    pub lost_found: Size,
    /// Layers that nothing needs: the next collection frees them.
    pub unused_layers: Size,
    /// Everything, each thing once.
    pub total: Size,
}

/// Counts what uses the disk.
pub fn df(ctx: &Context) -> Result<Disk> {
    let used: DiskUse = ctx.store()?.df()?;
    let none = Size::default();
    let mut items = Vec::new();
    for image in &used.images {
        items.push(Used {
            kind: "image",
            id: image.id.to_string(),
            names: image.tags.clone(),
            exclusive: image.exclusive.into(),
            shared: image.shared.into(),
            users: image.containers,
        });
    }
    for layer in &used.layers {
        let (exclusive, shared) = if layer.images > 1 {
            (none, layer.usage.into())
        } else {
            (layer.usage.into(), none)
        };
        items.push(Used {
            kind: "layer",
            id: layer.key.to_string(),
            names: Vec::new(),
            exclusive,
            shared,
            users: match layer.images {
                0 => layer.children,
                images => images,
            },
        });
    }
    for container in &used.containers {
        items.push(Used {
            kind: "container",
            id: container.id.clone(),
            names: vec![container.name.clone()],
            exclusive: container.exclusive.into(),
            shared: container.shared.into(),
            users: 0,
        });
    }
    for (key, usage) in &used.workspaces {
        items.push(Used {
            kind: "workspace",
            id: key.to_string(),
            names: Vec::new(),
            exclusive: (*usage).into(),
            shared: none,
            users: 0,
        });
    }
    for (name, usage) in &used.volumes {
        items.push(Used {
            kind: "volume",
            id: name.clone(),
            names: vec![name.clone()],
            exclusive: (*usage).into(),
            shared: none,
            users: 0,
        });
    }
    Ok(Disk {
        items,
        content: used.content.into(),
        recipes: used.recipes.into(),
        lost_found: used.lost_found.into(),
        unused_layers: used.unused_layers().into(),
        total: used.total().into(),
    })
}
