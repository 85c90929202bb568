//! The store as a whole: `df`, `gc`, `check`, `why`, in forms that scripts can rely on.

use std::path::Path;

use serde::Serialize;
use vellum_store::{DiskUse, Fate, Finding, Garbage, Reason, Store, Thing, Usage};

use crate::context::Context;
use crate::error::Result;
use crate::names::short;

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

/// One thing that takes space. The JSON field names are stable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Used {
    /// `image`, `layer`, `container`, `workspace` or `volume`.
    pub kind: &'static str,
    /// Its id or key.
    pub id: String,
    /// Its names; may be empty.
    pub names: Vec<String>,
    /// What would go with it.
    pub exclusive: Size,
    /// What others have too.
    pub shared: Size,
    /// How many use it: containers of an image, images of a layer, or snapshots on it if it is no image's.
    pub users: u64,
}

/// What uses the disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Disk {
    /// Each thing.
    pub items: Vec<Used>,
    /// Manifests, configurations, kept blobs.
    pub content: Size,
    /// What is kept so that layers come out byte for byte.
    pub recipes: Size,
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
        unused_layers: used.unused_layers().into(),
        total: used.total().into(),
    })
}

/// One thing that a collection took away, or would. The JSON field names are stable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Collected {
    /// `snapshot`, `blob`, `recipe`, `lease` or `path`.
    pub kind: &'static str,
    /// Which.
    pub what: String,
    /// Why nobody needs it.
    pub why: String,
    /// What it took, where known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<Size>,
    /// `gone`, `would go` or `stuck`.
    pub fate: &'static str,
    /// What keeps it from going.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
}

/// Lets go of what a rebuild of the database found and holds, so that the next collection takes what nothing else needs. Returns whether something was held.
pub fn let_go_of_rebuilt(ctx: &Context) -> Result<bool> {
    Ok(ctx.store()?.end_rebuilt_lease()?)
}

/// Removes what nothing needs; with `dry_run` only tells.
pub fn gc(ctx: &Context, dry_run: bool) -> Result<Vec<Collected>> {
    Ok(ctx
        .store()?
        .gc(dry_run)?
        .into_iter()
        .map(collected)
        .collect())
}

fn collected(garbage: Garbage) -> Collected {
    let (kind, what) = match garbage.thing {
        Thing::Snapshot(key) => ("snapshot", key.to_string()),
        Thing::Blob(digest) => ("blob", digest.to_string()),
        Thing::Recipe(digest) => ("recipe", digest.to_string()),
        Thing::Lease(purpose) => ("lease", purpose),
        Thing::Path(path) => ("path", path.display().to_string()),
    };
    let (fate, cause) = match garbage.fate {
        Fate::Gone => ("gone", None),
        Fate::Would => ("would go", None),
        Fate::Stuck(cause) => ("stuck", Some(cause)),
    };
    Collected {
        kind,
        what,
        why: garbage.why,
        size: garbage.usage.map(Size::from),
        fate,
        cause,
    }
}

/// One thing that is wrong. The JSON field names are stable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Wrong {
    /// A path or a record.
    pub what: String,
    /// What is wrong with it.
    pub why: String,
    /// It was put right.
    pub healed: bool,
}

impl From<Finding> for Wrong {
    fn from(finding: Finding) -> Self {
        Self {
            what: finding.what,
            why: finding.why,
            healed: finding.healed,
        }
    }
}

/// What a rebuild brought back. The JSON field names are stable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rebuilt {
    /// Snapshots.
    pub snapshots: u64,
    /// Images.
    pub images: u64,
    /// Containers.
    pub containers: u64,
    /// Volumes.
    pub volumes: u64,
    /// Where the old database went.
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "crate::json::some_path"
    )]
    pub old_database: Option<std::path::PathBuf>,
    /// What could not be brought back.
    pub lost: Vec<Wrong>,
}

/// Makes the database anew from what lies beside it. The old one is kept under another name.
pub fn rebuild(ctx: &Context) -> Result<Rebuilt> {
    let (_, rebuilt) = Store::rebuild(&ctx.store_options())?;
    Ok(Rebuilt {
        snapshots: rebuilt.snapshots,
        images: rebuilt.images,
        containers: rebuilt.containers,
        volumes: rebuilt.volumes,
        old_database: rebuilt.old_database,
        lost: rebuilt.lost.into_iter().map(Wrong::from).collect(),
    })
}

/// What a path in the store is, and what keeps it. The JSON field names are stable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explained {
    /// What it is.
    pub what: String,
    /// What keeps it, one line each; empty: the next gc takes it.
    pub kept_by: Vec<String>,
}

/// Says what keeps a path, a tree or a layer.
pub fn why(ctx: &Context, path: &Path) -> Result<Explained> {
    let why = ctx.store()?.why(path)?;
    Ok(Explained {
        what: why.what,
        kept_by: why.reasons.iter().map(reason).collect(),
    })
}

fn reason(reason: &Reason) -> String {
    match reason {
        Reason::Container { name, id } => format!("container {name} ({})", short(id)),
        Reason::Image { id, tags } if tags.is_empty() => {
            format!("image {}", short(&id.to_string()))
        }
        Reason::Image { id, tags } => {
            format!("image {} ({})", tags.join(", "), short(&id.to_string()))
        }
        Reason::Lease { id, purpose } => {
            format!("a command under way: {purpose} (lease {})", short(id))
        }
        Reason::Kept(key) => format!("snapshot {key}, which only an explicit removal ends"),
        Reason::Volume(name) => format!("volume {name}"),
        Reason::Store => "the store itself".to_owned(),
        Reason::Stranger => "whoever made it: Vellum leaves it alone".to_owned(),
    }
}
