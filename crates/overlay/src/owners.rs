//! Whose ids a container's layer holds when containers/storage (Podman, Buildah) mounts it for
//! reading.
//!
//! A mount with `uidmapping=` keeps an image's ids on disk, the ids inside the container, as
//! fuse-overlayfs does. To find out what a container changed, Podman mounts its layer once more,
//! with the image's layers below it, read-only and without any mapping, and compares that with the
//! image. Podman 5.4 takes the ids that it finds for the container's. Podman 5.8 expects the
//! host's, as the kernel would have written them: it maps each back to the container's, in whatever
//! layer it is, and leaves files with unmapped ids out of the image. Its list of layers tells which
//! of the two it expects: a layer with `uidmap` has the host's ids. So if a mount has no upper and
//! no mapping of its own, all its layers are shown with the ids that this list promises for the top
//! one. The layers below hold an image's ids, unless the list gives them a `uidmap` too (copies
//! with other owners).
//!
//! Only the list decides, never the tree. The list, its directory and the layer's record are
//! ignored unless root or the mounting user owns them, and the directory must not be a symbolic
//! link.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use vellum_format::{IdRun, ids};
use vellum_sys::rooted::Dir;
use vellum_union::engine::{Holds, IdRules, ReaderIds};

use crate::options::MountOptions;
use crate::record::{Recorded, RecordsBeside, believed};

/// More than a store of many thousand layers needs.
const LIST_MAX_BYTES: u64 = 256 << 20;

/// The lists of layers, next to the driver's own directory. The second has those of containers with
/// `--rm`.
const LISTS: [&str; 2] = ["layers.json", "volatile-layers.json"];

#[derive(Deserialize)]
struct LayerEntry {
    id: String,
    #[serde(default)]
    uidmap: Vec<Mapped>,
    #[serde(default)]
    gidmap: Vec<Mapped>,
}

#[derive(Deserialize)]
struct Mapped {
    container_id: u32,
    host_id: u32,
    size: u32,
}

/// Returns how to show owners, if the list promises other ids for the top lower layer than it
/// holds.
pub(super) fn for_reader(options: &MountOptions, beside: &mut RecordsBeside) -> Option<ReaderIds> {
    if options.upper.is_some() || !options.ids.are_plain() {
        return None;
    }
    let mut lists = LayerLists::default();
    let top = std::fs::canonicalize(options.lowers.first()?).ok()?;
    let rules = lists.promised(&top)?;
    let mut written = |layer: &Path| beside.find(layer)?.ids;
    let holds = |path: &PathBuf| {
        let Ok(layer) = std::fs::canonicalize(path) else {
            return Holds::Outside;
        };
        match lists.promised(&layer) {
            // A layer of the image.
            None => Holds::Outside,
            Some(promised) if written(&layer) == Some(Recorded::of(&promised)) => Holds::Both,
            // Without a record of how it was written, only ids that can't belong to the other side
            // are changed.
            Some(promised) if ids::are_apart(&promised.uids) && ids::are_apart(&promised.gids) => {
                Holds::Both
            }
            Some(_) => Holds::Inside,
        }
    };
    Some(ReaderIds {
        layers: options.lowers.iter().map(holds).collect(),
        rules,
    })
}

/// The lists of layers read so far, by the driver's directory: a mount may have hundreds of layers,
/// all in one list.
#[derive(Default)]
struct LayerLists(BTreeMap<PathBuf, BTreeMap<String, LayerEntry>>);

impl LayerLists {
    /// Returns what the list promises for the layer `diff`, which is `DRIVER/ID/diff`.
    fn promised(&mut self, diff: &Path) -> Option<IdRules> {
        let layer = diff
            .parent()
            .filter(|_| diff.file_name() == Some("diff".as_ref()))?;
        let driver = layer.parent()?;
        if !self.0.contains_key(driver) {
            let list = read(driver).unwrap_or_default();
            self.0.insert(driver.to_owned(), list);
        }
        let listed = self.0.get(driver)?.get(layer.file_name()?.to_str()?)?;
        let runs = |all: &[Mapped]| -> Vec<IdRun> {
            let run = |one: &Mapped| IdRun {
                inside: one.host_id,
                outside: one.container_id,
                count: one.size,
            };
            all.iter().map(run).collect()
        };
        let rules = IdRules {
            uids: runs(&listed.uidmap),
            gids: runs(&listed.gidmap),
            ..IdRules::default()
        };
        (!rules.are_plain()).then_some(rules)
    }
}

/// Reads the lists next to a driver's directory. For a layer in both lists, the first one counts.
fn read(driver: &Path) -> Option<BTreeMap<String, LayerEntry>> {
    let mut name = driver.file_name()?.to_owned();
    name.push("-layers");
    let lists = Dir::open(driver.parent()?).ok()?.open_dir(name).ok()?;
    if !believed(lists.stat_self().ok()?.uid) {
        tracing::debug!(driver = %driver.display(), "lists of layers ignored: owned by another user");
        return None;
    }
    let all = LISTS.iter().rev().filter_map(|name| listed(&lists, name));
    Some(
        all.flatten()
            .map(|layer| (layer.id.clone(), layer))
            .collect(),
    )
}

fn listed(lists: &Dir, name: &str) -> Option<Vec<LayerEntry>> {
    let file = lists.open_file(name).ok()?;
    if !believed(file.metadata().ok()?.uid()) {
        tracing::debug!(name, "list of layers ignored: owned by another user");
        return None;
    }
    let mut text = Vec::new();
    file.take(LIST_MAX_BYTES).read_to_end(&mut text).ok()?;
    // A list that can't be read, or has a later form, promises nothing.
    serde_json::from_slice(&text)
        .inspect_err(
            |error| tracing::debug!(name, %error, "list of layers ignored: not understood"),
        )
        .ok()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::chown;
    use std::path::PathBuf;

    use serde_json::json;
    use vellum_testkit::Scratch;

    use super::*;
    use crate::options::Manners;

    /// Creates a store as containers/storage does, with a container's layer on an image's, listed
    /// with a mapping. Returns how a mount of both shows owners.
    fn read_by(
        list: &str,
        runs: serde_json::Value,
        change: impl Fn(&Scratch, &mut MountOptions),
    ) -> Option<ReaderIds> {
        let scratch = Scratch::new();
        let layer = scratch.dir("overlay/own/diff");
        scratch.dir("overlay/own/work");
        let listed = json!([
            { "id": "image" },
            { "id": "own", "parent": "image", "uidmap": runs, "gidmap": runs },
        ]);
        scratch.file(format!("overlay-layers/{list}"), listed.to_string());
        let mut options = MountOptions::new(Manners::FuseOverlayfs);
        options.lowers = vec![layer, scratch.dir("overlay/image/diff"), PathBuf::from("/")];
        change(&scratch, &mut options);
        for_reader(&options, &mut RecordsBeside::default())
    }

    /// How owners of the top layer are mapped, if they are.
    fn shown(
        list: &str,
        runs: serde_json::Value,
        change: impl Fn(&Scratch, &mut MountOptions),
    ) -> Option<IdRules> {
        let ids = read_by(list, runs, change)?;
        assert_eq!(ids.layers[1..], [Holds::Outside, Holds::Outside]);
        (ids.layers[0] == Holds::Both).then_some(ids.rules)
    }

    #[test]
    fn an_images_layers_are_shown_with_the_mapping_of_the_layer_above() {
        let keep_id = json!([run(0, 1, 1000), run(1000, 0, 1), run(1001, 1001, 64_535)]);
        let of_both = |ids: &ReaderIds, id| {
            let of = |layer| ids.shown(layer, id, id).unwrap();
            (of(0).0, of(1).0)
        };
        // It is not known who wrote the top layer, so it stays. The image's layer is certain.
        let ids = read_by("layers.json", keep_id.clone(), |_, _| ()).unwrap();
        assert_eq!(of_both(&ids, 0), (0, 1));
        assert_eq!(of_both(&ids, 33), (33, 34));
        assert_eq!(of_both(&ids, 1000), (1000, 0));
        // A lower layer with a mapping in the list is a copy with the host's ids.
        let copied = |scratch: &Scratch, _: &mut MountOptions| {
            let listed = json!([
                { "id": "image", "uidmap": keep_id, "gidmap": keep_id },
                { "id": "own", "parent": "image", "uidmap": keep_id, "gidmap": keep_id },
            ]);
            scratch.file("overlay-layers/layers.json", listed.to_string());
        };
        let ids = read_by("layers.json", json!([]), copied).unwrap();
        let copy = [Holds::Inside, Holds::Inside, Holds::Outside];
        assert_eq!(ids.layers, copy);
        // An id that the mapping lacks is not taken for the other side's.
        let moved = json!([run(0, 1000, 5000)]);
        let ids = read_by("layers.json", moved, |_, _| ()).unwrap();
        assert_eq!(ids.shown(1, 33, 0).unwrap(), (1033, 1000));
        assert_eq!(ids.shown(1, 5500, 7000).unwrap(), (65_534, 7000));
    }

    fn run(container_id: u32, host_id: u32, size: u32) -> serde_json::Value {
        json!({ "container_id": container_id, "host_id": host_id, "size": size })
    }

    /// Makes the layer's record say that container id 0 was written as `first`, and the others from
    /// 100 on.
    fn record(scratch: &Scratch, first: u32) {
        let layer = fs::metadata(scratch.join("overlay/own/diff")).unwrap();
        let ino = layer.ino();
        let runs = json!([[0, first, 1], [1, 100, 65_536]]);
        let record =
            json!({ "version": 1, "upper_ino": ino, "ids": { "uids": runs, "gids": runs } });
        scratch.file(
            Path::new("overlay/own/work").join("vellum/layer"),
            record.to_string(),
        );
    }

    #[test]
    fn a_layer_shows_the_ids_that_its_list_promises() {
        let far = json!([run(0, 100_000, 65_536)]);
        for list in LISTS {
            let ids = shown(list, far.clone(), |_, _| ()).unwrap();
            assert_eq!(ids.shown_or_itself(3, 65_535).unwrap(), (100_003, 165_535));
            // What the kernel wrote earlier shows as it is.
            assert_eq!(ids.shown_or_itself(100_003, 0).unwrap(), (100_003, 100_000));
            assert!(ids.shown_or_itself(70_000, 0).is_err());
        }
        assert_eq!(shown("layers.json", json!([]), |_, _| ()), None);
        assert_eq!(shown("others.json", far.clone(), |_, _| ()), None);
        let with_upper = |scratch: &Scratch, options: &mut MountOptions| {
            options.upper = Some(scratch.dir("upper"));
        };
        assert_eq!(shown("layers.json", far.clone(), with_upper), None);
        let mapped = |_: &Scratch, options: &mut MountOptions| {
            options.ids.squash_uid = Some(0);
        };
        assert_eq!(shown("layers.json", far.clone(), mapped), None);
        let below = |_: &Scratch, options: &mut MountOptions| options.lowers.swap(0, 1);
        assert_eq!(shown("layers.json", far, below), None);
    }

    #[test]
    fn ambiguous_ids_are_mapped_only_if_their_writer_is_known() {
        let near = json!([run(0, 1000, 1), run(1, 100, 65_536)]);
        assert_eq!(shown("layers.json", near.clone(), |_, _| ()), None);
        let ids = shown("layers.json", near.clone(), |scratch, _| {
            record(scratch, 1000)
        });
        assert_eq!(ids.unwrap().uid_shown(1).unwrap(), 100);
        // With another mapping than the list's.
        let other = shown("layers.json", near, |scratch, _| record(scratch, 1001));
        assert_eq!(other, None);
    }

    #[test]
    fn another_users_list_is_ignored() {
        if !rustix::process::geteuid().is_root() {
            return vellum_testkit::untested("another user's list", "needs root");
        }
        let far = json!([run(0, 100_000, 65_536)]);
        for name in ["overlay-layers/layers.json", "overlay-layers"] {
            let given_away = |scratch: &Scratch, _: &mut MountOptions| {
                chown(scratch.join(name), Some(7), None).unwrap();
            };
            assert_eq!(shown("layers.json", far.clone(), given_away), None);
        }
        // A record owned by another user is ignored too.
        let near = json!([run(0, 1000, 1), run(1, 100, 65_536)]);
        for owner in [0, 7] {
            let recorded = |scratch: &Scratch, _: &mut MountOptions| {
                record(scratch, 1000);
                let record = scratch.join("overlay/own/work").join("vellum/layer");
                chown(record, Some(owner), None).unwrap();
            };
            let ids = shown("layers.json", near.clone(), recorded);
            assert_eq!(ids.is_some(), owner == 0);
        }
    }

    #[test]
    fn lists_behind_a_link_are_ignored() {
        let far = json!([run(0, 100_000, 65_536)]);
        let linked = |scratch: &Scratch, _: &mut MountOptions| {
            let lists = scratch.join("overlay-layers");
            fs::rename(&lists, scratch.join("elsewhere")).unwrap();
            std::os::unix::fs::symlink("elsewhere", lists).unwrap();
        };
        assert_eq!(shown("layers.json", far, linked), None);
    }
}
