//! Who shows a tree's owners as the labels for mapped ids ask.
//!
//! Three can: the kernel by an id-mapped mount that the client makes, Vellum's engine, and the client itself beforehand, by a copy of the tree with other
//! owners; a client that was not told that this server maps ids does that, and sends the labels all the same. So the first question is whose ids are
//! on the disk: where the root directory belongs to the container's root on the host already, nothing is left to be mapped.
//!
//! The upper's files have the host's ids under the kernel, and the container's under the engine. So the choice is made once, when the snapshot is made, and
//! kept in a label of our own: settings may change, and a container may give its root directory to somebody else.

use std::path::{Path, PathBuf};

use vellum_format::{IdRun, ids};
use vellum_store::{Labels, LayerDir, Overlay, Shape, TreeParts};
use vellum_sys::{Dir, rooted};

use crate::config::Engine;
use crate::context::Context;
use crate::error::{Error, Result};

use crate::plan::{Facts, OPTION_PAGE_BYTES, Plan};

use super::{GID_MAPPING, Terms, UID_MAPPING, mounts, own_labels};

/// The label with who maps ids. On disk.
pub(super) const MAPPED_BY: &str = concat!(own_labels::prefix!(), "ids-mapped-by");

/// Who maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mapper {
    /// Nobody: none is asked for, or the ids on the disk are the host's already.
    Nobody,
    /// The kernel: options of the mount.
    Kernel,
    /// Vellum's engine.
    Engine,
}

impl Mapper {
    /// How the label says it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Nobody => "nobody",
            Self::Kernel => "kernel",
            Self::Engine => "engine",
        }
    }

    /// What the label says; `None` where it says nothing.
    pub(super) fn recorded(labels: &Labels) -> Option<Self> {
        let said = labels.get(MAPPED_BY)?;
        [Self::Nobody, Self::Kernel, Self::Engine]
            .into_iter()
            .find(|mapper| mapper.name() == said)
    }
}

/// What the two labels ask for.
#[derive(Debug)]
pub(super) struct Mapping<'a> {
    uids: Runs<'a>,
    gids: Runs<'a>,
}

impl<'a> Mapping<'a> {
    /// Returns what the labels ask for, `None` if they ask for nothing.
    ///
    /// Errors: `Invalid` if one of both is missing or can't be understood.
    pub(super) fn of(labels: &'a Labels) -> Result<Option<Self>> {
        if !labels.contains_key(UID_MAPPING) && !labels.contains_key(GID_MAPPING) {
            return Ok(None);
        }
        Ok(Some(Self {
            uids: Runs::parse(labels, UID_MAPPING)?,
            gids: Runs::parse(labels, GID_MAPPING)?,
        }))
    }

    /// The labels' texts, each with the letter of its kind.
    pub(super) fn texts(&self) -> [(&'static str, &'a str); 2] {
        [("uid", self.uids.text), ("gid", self.gids.text)]
    }
}

/// What one of the labels says.
#[derive(Debug)]
struct Runs<'a> {
    label: &'static str,
    text: &'a str,
    runs: Vec<IdRun>,
}

impl<'a> Runs<'a> {
    fn parse(labels: &'a Labels, label: &'static str) -> Result<Self> {
        let text = labels.get(label).map(String::as_str).unwrap_or_default();
        match ids::parse_list(text) {
            Some(runs) => Ok(Self { label, text, runs }),
            None => Err(Error::Invalid {
                what: format!("the label {label} is {text:?}, and not container:host:count"),
                hint: None,
            }),
        }
    }

    /// What an id is on the host.
    fn outside(&self, id: u32) -> Option<u32> {
        ids::outside_of(&self.runs, id)
    }

    /// Whether the root directory's owner `id` was mapped before. Ranges that overlap are told apart by the root user, whose directory it is nearly always.
    fn is_done(&self, id: u32) -> bool {
        self.outside(0) == Some(id)
            || self.outside(id).is_none() && ids::inside_of(&self.runs, id).is_some()
    }

    fn of_root(&self, id: u32) -> Result<u32> {
        self.outside(id).ok_or_else(|| Error::Invalid {
            what: format!(
                "the label {} is {:?}, and has nothing for {id}, whose the root directory is",
                self.label, self.text
            ),
            hint: None,
        })
    }
}

/// Decides who maps the ids of a new snapshot.
///
/// Errors: `Invalid` if the labels can't be understood; `Unsupported` if nobody can.
pub(super) fn decide(
    ctx: &Context,
    facts: &Facts,
    terms: Terms,
    parts: &TreeParts,
    labels: &Labels,
) -> Result<Mapper> {
    let Some(mapping) = Mapping::of(labels)? else {
        return Ok(Mapper::Nobody);
    };
    let owner = Dir::open(below(parts))?.stat_self()?;
    if mapping.uids.is_done(owner.uid) && mapping.gids.is_done(owner.gid) {
        return Ok(Mapper::Nobody);
    }
    let engine = match &parts.shape {
        Shape::Overlay(overlay) => {
            ctx.config.engine.value == Engine::Vellum
                || parts.features.is_some_and(|features| features.engine)
                || mounts::engine_keeps_limit(parts, labels)?
                || page_bytes(overlay) > OPTION_PAGE_BYTES
                || matches!(
                    mounts::planned(ctx, facts, parts, labels, None)?,
                    Plan::Engine { .. }
                )
        }
        Shape::Plain { .. } => false,
    };
    match &parts.shape {
        _ if terms.remap_ids && !engine => Ok(Mapper::Kernel),
        Shape::Overlay(_) if facts.fuse => Ok(Mapper::Engine),
        Shape::Overlay(_) => Err(Error::Unsupported {
            what: "mapped ids need Vellum's engine here, and there is no FUSE".into(),
            hint: "load the kernel's module fuse; or use --remap-ids with capabilities = [\"remap-ids\"] in containerd's configuration".into(),
        }),
        Shape::Plain { .. } => Err(Error::Unsupported {
            what: format!("a tree of the driver {} that is one directory can't be shown with mapped ids", parts.driver),
            hint: "use --remap-ids with capabilities = [\"remap-ids\"] in containerd's configuration, where the kernel maps; or --storage-driver overlay2".into(),
        }),
    }
}

/// Lays out what a tree needs, durably, so that `mapper` can do it.
pub(super) fn prepare(parts: &TreeParts, labels: &Labels, mapper: Mapper) -> Result<()> {
    let Some(mapping) = Mapping::of(labels)?.filter(|_| mapper == Mapper::Kernel) else {
        return Ok(());
    };
    // Lower layers are mapped by the mount, the upper holds what it holds; a tree that is one directory is mapped whole.
    if let Shape::Overlay(overlay) = &parts.shape
        && let Some(upper) = &overlay.upper
    {
        let dir = Dir::open(&upper.dir)?;
        // Not the upper's own: this may be done twice.
        let owner = Dir::open(below(parts))?.stat_self()?;
        let (uid, gid) = (
            mapping.uids.of_root(owner.uid)?,
            mapping.gids.of_root(owner.gid)?,
        );
        let now = dir.stat_self()?;
        rooted::set_owner_fd(&dir, uid, gid)?;
        rooted::set_mode_fd(&dir, now.mode)?;
        dir.sync()?;
    }
    Ok(())
}

/// The root directory as it was before anybody could write to it.
fn below(parts: &TreeParts) -> &Path {
    match &parts.shape {
        Shape::Plain { root, .. } => root,
        Shape::Overlay(overlay) => match overlay.lowers.first() {
            Some(layer) => &layer.dir,
            // Never so: an overlay stands on something.
            None => &overlay.home,
        },
    }
}

/// The directories of the layers: their short names lead out of the one directory that the client maps.
pub(super) fn real_layers(overlay: &Overlay) -> Vec<PathBuf> {
    let dir = |layer: &LayerDir| layer.dir.clone();
    overlay.lowers.iter().map(dir).collect()
}

/// How long the options get when the client names layers by their directories, relative to the one that it maps.
fn page_bytes(overlay: &Overlay) -> usize {
    // Where it maps that directory to, upper and work, and names and values of the features that are switched off.
    const REST: usize = 128;
    let all = overlay.upper.iter().map(|layer| &layer.dir);
    let whole: usize = all
        .chain(&overlay.work)
        .map(|dir| dir.as_os_str().len() + 10)
        .sum();
    let lowers = real_layers(overlay);
    let relative = |dir: &PathBuf| match dir.strip_prefix(&overlay.home) {
        Ok(relative) => relative.as_os_str().len(),
        Err(_) => dir.as_os_str().len(),
    };
    let lowers: usize = lowers.iter().map(|dir| relative(dir) + 1).sum();
    lowers + whole + REST
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, id: u32, outside: Option<u32>, done: bool) {
        let labels: Labels = [(UID_MAPPING.to_owned(), text.to_owned())].into();
        let runs = Runs::parse(&labels, UID_MAPPING).unwrap();
        assert_eq!(
            (runs.outside(id), runs.is_done(id)),
            (outside, done),
            "{text} {id}"
        );
    }

    #[test]
    fn owners_tell_whether_ids_are_mapped_already() {
        check("0:100000:65536", 0, Some(100_000), false);
        check("0:100000:65536", 100_000, None, true);
        // Somebody else's root directory, before and after.
        check("0:100000:65536", 1000, Some(101_000), false);
        check("0:100000:65536", 101_000, None, true);
        check("0:1000:1,1:100000:65535", 65_535, Some(165_534), false);
        // Nothing changes by these.
        check("0:0:4294967295", 0, Some(0), true);
        // Overlapping ranges: the root user decides.
        check("0:1000:65536", 0, Some(1000), false);
        check("0:1000:65536", 1000, Some(2000), true);
        check("0:100000:65536", 70_000, None, false);
    }

    #[test]
    fn labels_that_map_nothing_are_refused() {
        for text in [
            "",
            "0",
            "0:1",
            "0:1:2:3",
            "a:1:1",
            "0:1:1,",
            "0:4294967295:2",
        ] {
            let labels: Labels = [(GID_MAPPING.to_owned(), text.to_owned())].into();
            let error = Runs::parse(&labels, GID_MAPPING).unwrap_err();
            assert!(error.to_string().contains("gidmapping"), "{error}");
        }
    }
}
