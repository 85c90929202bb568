//! What takes how much space: by image, layer, container and volume, shared and exclusive.
//!
//! Layers' sizes were fixed at commit. Writable trees and volumes are counted now, so the cost is
//! walking what can change, never walking layers.

use std::collections::{HashMap, HashSet};

use vellum_format::Digest;

use crate::{
    driver::TreeRef,
    error::{Class, Result},
    image::ImageRecord,
    located::LOST_FOUND,
    rows::{self, alive::Alive},
    snapshot::{Info, SnapshotKey, SnapshotKind, Usage},
    store::Store,
    walk,
};

/// All disk usage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskUse {
    /// Images, newest first.
    pub images: Vec<ImageUse>,
    /// Committed snapshots, by key.
    pub layers: Vec<LayerUse>,
    /// Containers, newest first.
    pub containers: Vec<ContainerUse>,
    /// Active snapshots that no container owns, by key, with their usage.
    pub workspaces: Vec<(SnapshotKey, Usage)>,
    /// Volumes, by name, with their usage.
    pub volumes: Vec<(String, Usage)>,
    /// Blobs: manifests, configurations, kept layers.
    pub content: Usage,
    /// Recipes.
    pub recipes: Usage,
    /// What repairs took out of layers.
    pub lost_found: Usage,
}

/// What one image takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageUse {
    /// Its id.
    pub id: Digest,
    /// Its names.
    pub tags: Vec<String>,
    /// Layers that no other image has.
    pub exclusive: Usage,
    /// Layers that other images have too.
    pub shared: Usage,
    /// Containers created from it.
    pub containers: u64,
}

/// What one layer takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerUse {
    /// Its name.
    pub key: SnapshotKey,
    /// What it takes by itself.
    pub usage: Usage,
    /// Images it is part of.
    pub images: u64,
    /// Snapshots whose parent it is.
    pub children: u64,
    /// Something needs it, so gc leaves it.
    pub needed: bool,
}

/// What one container takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerUse {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its own changes.
    pub exclusive: Usage,
    /// The layers beneath.
    pub shared: Usage,
}

impl DiskUse {
    /// Returns the total, counting each thing once.
    pub fn total(&self) -> Usage {
        let mut total = Usage::default();
        self.layers.iter().for_each(|layer| total += layer.usage);
        self.containers
            .iter()
            .for_each(|container| total += container.exclusive);
        self.workspaces
            .iter()
            .for_each(|(_, usage)| total += *usage);
        self.volumes.iter().for_each(|(_, usage)| total += *usage);
        total += self.content;
        total += self.recipes;
        total += self.lost_found;
        total
    }

    /// Returns the layers that nothing needs: what the next gc frees.
    pub fn unused_layers(&self) -> Usage {
        let mut unused = Usage::default();
        self.layers
            .iter()
            .filter(|layer| !layer.needed)
            .for_each(|layer| unused += layer.usage);
        unused
    }
}

impl Store {
    /// Counts what everything takes. Things that are removed during the count are left out.
    pub fn df(&self) -> Result<DiskUse> {
        let mut infos: HashMap<SnapshotKey, Info> = HashMap::new();
        self.walk::<crate::StoreError>(&[], |info| {
            infos.insert(info.key.clone(), info);
            Ok(())
        })?;
        let images = self.images()?;
        let containers = self.containers()?;
        // After the walk, so that what was recorded during it is already referenced.
        let needed = self.read(|tx| Alive::now(tx)?.held_keys(tx))?;
        let needed: HashSet<SnapshotKey> = needed.into_iter().collect();
        let mut of_image: HashMap<&SnapshotKey, u64> = HashMap::new();
        for image in &images {
            for key in distinct(image) {
                *of_image.entry(key).or_default() += 1;
            }
        }
        let mut children: HashMap<&SnapshotKey, u64> = HashMap::new();
        for parent in infos.values().filter_map(|info| info.parent.as_ref()) {
            *children.entry(parent).or_default() += 1;
        }
        let own = |key: &SnapshotKey| {
            infos
                .get(key)
                .and_then(|info| info.usage)
                .unwrap_or_default()
        };
        let of_tree: HashMap<_, _> = infos
            .values()
            .map(|info| (&info.tree, info.usage.unwrap_or_default()))
            .collect();

        let mut use_ = DiskUse::default();
        for image in &images {
            let (mut exclusive, mut shared) = (Usage::default(), Usage::default());
            for key in distinct(image) {
                if of_image.get(key) == Some(&1) {
                    exclusive += own(key)
                } else {
                    shared += own(key)
                }
            }
            use_.images.push(ImageUse {
                id: image.id,
                tags: image.tags.clone(),
                exclusive,
                shared,
                containers: containers
                    .iter()
                    .filter(|c| c.image.as_ref() == Some(&image.id))
                    .count() as u64,
            });
        }
        let mut owned = HashSet::new();
        for container in &containers {
            owned.insert(&container.snapshot);
            let Some(exclusive) = self.usage_now(&container.snapshot)? else {
                continue;
            };
            let mut shared = Usage::default();
            for tree in self.ancestors_now(&container.snapshot)? {
                shared += of_tree.get(&tree.id).copied().unwrap_or_default();
            }
            use_.containers.push(ContainerUse {
                id: container.id.clone(),
                name: container.name.clone(),
                exclusive,
                shared,
            });
        }
        let mut sorted: Vec<&Info> = infos.values().collect();
        sorted.sort_unstable_by_key(|info| &info.key);
        for info in sorted {
            match info.kind {
                SnapshotKind::Committed => use_.layers.push(LayerUse {
                    key: info.key.clone(),
                    usage: own(&info.key),
                    images: of_image.get(&info.key).copied().unwrap_or_default(),
                    children: children.get(&info.key).copied().unwrap_or_default(),
                    needed: needed.contains(&info.key),
                }),
                SnapshotKind::Active if !owned.contains(&info.key) => {
                    if let Some(usage) = self.usage_now(&info.key)? {
                        use_.workspaces.push((info.key.clone(), usage));
                    }
                }
                SnapshotKind::Active | SnapshotKind::View => {}
            }
        }
        for volume in self.volumes()? {
            match self.volume_usage(&volume.name) {
                Ok(usage) => use_.volumes.push((volume.name, usage)),
                Err(e) if e.class() == Class::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        use_.content = self.read(rows::blobs::usage)?;
        use_.recipes = self.read(rows::recipes::usage)?;
        // It may be missing, or be a file system's own, which only root can list.
        let lost_found = self.layout().root().join(LOST_FOUND);
        use_.lost_found = walk::usage(&lost_found, None).unwrap_or_default();
        Ok(use_)
    }

    /// The ancestors of a snapshot that may be gone by now.
    fn ancestors_now(&self, key: &SnapshotKey) -> Result<Vec<TreeRef>> {
        self.read(|tx| match rows::snapshots::find(tx, key)? {
            Some(row) => rows::snapshots::ancestors(tx, row.id),
            None => Ok(Vec::new()),
        })
    }

    /// Counts a snapshot that may be gone by now.
    fn usage_now(&self, key: &SnapshotKey) -> Result<Option<Usage>> {
        match self.usage(key) {
            Ok(usage) => Ok(Some(usage)),
            Err(_) if !self.exists(key)? => Ok(None),
            Err(e) => Err(e),
        }
    }
}

fn distinct(image: &ImageRecord) -> HashSet<&SnapshotKey> {
    image.layers.iter().map(|layer| &layer.snapshot).collect()
}
