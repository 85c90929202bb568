//! Decides once how a snapshot is mounted: what mounts it, with which options, and what maps its
//! ids.
//!
//! [`decide`] is pure: the labels' requests ([`Asked`]), the tree's parts, the machine's abilities
//! and the configuration come in as values, so each rule is a row of a table in the tests. The
//! decision is then laid out, recorded and printed (`mounts.rs`); nothing is decided there.
//!
//! The client's own differ may read the upper directory without knowing redirects, metacopies or an
//! index, so those are turned off explicitly, whatever the kernel module's defaults are. Only
//! redirects can be turned on (`mount.redirect-dir = on`), where Vellum makes the diffs.
//!
//! Three programs can show a tree's owners as the labels for mapped ids ask: the kernel, by an
//! id-mapped mount that the client makes; Vellum's engine; and the client itself beforehand, by a
//! copy of the tree with other owners. A client does the last if it does not know that this server
//! maps ids, and still sends the labels. So the first question is whose ids are on disk: if the
//! root directory already belongs to the container's root on the host, nothing is left to map. The
//! upper's files have the host's ids under the kernel, and the container's under the engine. So the
//! choice is made once, when the snapshot is created, and kept in a label: settings may change, and
//! a container may change the owner of its root directory.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use vellum_store::{MountFeatures, Overlay, Shape, TreeParts};
use vellum_sys::mount::{Method, OverlayMount, OverlayOptions, RedirectDir};

use crate::config::{Engine, MountMethod, Toggle};
use crate::error::{Error, Result};
use crate::plan::{self, Facts, OPTION_PAGE_BYTES, Plan, PlanRefusal, Wishes};

use super::asked::{Asked, Mapper, Mapping};

/// The owner of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// Directories that a mount needs, with their modes.
pub(super) type Dirs = Vec<(PathBuf, u32)>;

/// The decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shown {
    /// How it is mounted.
    pub(super) plan: Plan,
    /// The directories to create for it.
    pub(super) dirs: Dirs,
    /// The owner that the upper's root directory must get, if it was created with another.
    pub(super) upper_owner: Option<Owner>,
    /// What maps ids, if that was decided now and must be recorded.
    pub(super) new_mapper: Option<Mapper>,
    /// The mapping that the mounting program must apply.
    pub(super) mapping: Option<Mapping>,
    /// How much may be written, if the file system can't enforce it.
    pub(super) limit_bytes: Option<u64>,
}

impl Shown {
    /// The features of the upper's mount that may leave marks in it.
    pub(super) fn marking_features(&self) -> Option<MountFeatures> {
        match self.plan {
            Plan::Overlay { features, .. } | Plan::Engine { features, .. } => {
                features.filter(|features| features.redirect_dir || features.engine)
            }
            Plan::Bind { .. } => None,
        }
    }
}

/// Decides how a tree is mounted. `owner` is the owner of its root directory [`below`], given if
/// [`Asked::is_mapper_open`]; `remap_ids`: the client knows that this server maps ids.
///
/// Errors: `Unsupported` if nothing can do what is asked; `Invalid` if the mapping leaves out the
/// root directory's owner; [`Error::Plan`].
pub(super) fn decide(
    asked: &Asked,
    parts: &TreeParts,
    owner: Option<Owner>,
    facts: &Facts,
    wishes: &Wishes,
    remap_ids: bool,
) -> Result<Shown> {
    let tree = Tree {
        asked,
        parts,
        facts,
        wishes,
    };
    let new_mapper = match (&asked.mapping, owner) {
        (Some(mapping), Some(owner)) if asked.is_mapper_open() => {
            Some(tree.mapper(mapping, owner, remap_ids)?)
        }
        _ => None,
    };
    let mapper = new_mapper.or(asked.mapper).unwrap_or(Mapper::Nobody);
    let mapping = asked.mapping.as_ref().filter(|_| mapper != Mapper::Nobody);
    let upper_owner = match (new_mapper, mapping, owner) {
        // The mount maps lower layers, but not the upper; a tree that is one directory is mapped as
        // a whole.
        (Some(Mapper::Kernel), Some(mapping), Some(owner)) if tree.upper().is_some() => {
            Some(Owner {
                uid: mapping.uids.of_root(owner.uid)?,
                gid: mapping.gids.of_root(owner.gid)?,
            })
        }
        _ => None,
    };
    if let Some((plan, dirs)) = tree.on_nothing()? {
        return Ok(Shown {
            plan,
            dirs,
            upper_owner,
            new_mapper,
            mapping: None,
            limit_bytes: None,
        });
    }
    let engine = match mapper {
        // The upper's ids are right under one of the two only, whatever the current settings are.
        Mapper::Kernel => Some(Engine::Kernel),
        Mapper::Engine => Some(Engine::Vellum),
        Mapper::Nobody => tree.engine_keeps_limit().then_some(Engine::Vellum),
    };
    let mut plan = tree.plan(engine)?;
    // Short names lead out of the single directory that the client maps.
    if let (Mapper::Kernel, Plan::Overlay { mount, .. }, Shape::Overlay(overlay)) =
        (mapper, &mut plan, &parts.shape)
    {
        mount.lowers = overlay.lowers.iter().map(|l| l.dir.clone()).collect();
    }
    Ok(Shown {
        plan,
        dirs: Vec::new(),
        upper_owner,
        new_mapper,
        mapping: mapping.cloned(),
        limit_bytes: asked
            .limit_bytes
            .filter(|_| parts.size_limit_bytes.is_none()),
    })
}

/// Returns the root directory as it was before anything was written to the tree.
pub(super) fn below(parts: &TreeParts) -> &Path {
    match &parts.shape {
        Shape::Plain { root, .. } => root,
        Shape::Overlay(overlay) => match overlay.lowers.first() {
            Some(layer) => &layer.dir,
            // Never: an overlay has lower layers.
            None => &overlay.home,
        },
    }
}

/// A tree and everything that affects how it is mounted.
struct Tree<'a> {
    asked: &'a Asked,
    parts: &'a TreeParts,
    facts: &'a Facts,
    wishes: &'a Wishes,
}

impl Tree<'_> {
    fn upper(&self) -> Option<&Path> {
        match &self.parts.shape {
            Shape::Overlay(overlay) => overlay.upper.as_ref().map(|upper| upper.dir.as_path()),
            Shape::Plain { .. } => None,
        }
    }

    fn engine_keeps_limit(&self) -> bool {
        self.upper().is_some()
            && self.parts.size_limit_bytes.is_none()
            && self.asked.limit_bytes.is_some()
    }

    /// Decides what maps the ids of a new snapshot.
    fn mapper(&self, mapping: &Mapping, owner: Owner, remap_ids: bool) -> Result<Mapper> {
        if mapping.is_done(owner.uid, owner.gid) {
            return Ok(Mapper::Nobody);
        }
        let engine = match &self.parts.shape {
            Shape::Overlay(overlay) => {
                self.wishes.engine == Engine::Vellum
                    || self.parts.features.is_some_and(|features| features.engine)
                    || self.engine_keeps_limit()
                    || mapped_page_bytes(overlay) > OPTION_PAGE_BYTES
                    || matches!(self.plan(None)?, Plan::Engine { .. })
            }
            Shape::Plain { .. } => false,
        };
        match &self.parts.shape {
            _ if remap_ids && !engine => Ok(Mapper::Kernel),
            Shape::Overlay(_) if self.facts.fuse => Ok(Mapper::Engine),
            Shape::Overlay(_) => Err(Error::Unsupported {
                what: "mapped ids need Vellum's engine here, but there is no FUSE".into(),
                hint: "load the kernel's module fuse; or use --remap-ids with capabilities = [\"remap-ids\"] in containerd's configuration".into(),
            }),
            Shape::Plain { .. } => Err(Error::Unsupported {
                what: format!("a tree of the driver {} that is one directory can't be mounted with mapped ids", self.parts.driver),
                hint: "use --remap-ids with capabilities = [\"remap-ids\"] in containerd's configuration, where the kernel maps; or --storage-driver overlay2".into(),
            }),
        }
    }

    /// Returns the mount of a tree that gets its parent at its commit, with its directories; `None`
    /// for all other trees.
    ///
    /// It is an overlay on nothing: an unpacker then writes marks for the files that the layer
    /// hides, which it would not do in a plain directory.
    ///
    /// Errors: `Unsupported` if its driver keeps whole trees, which can't get a parent afterwards.
    fn on_nothing(&self) -> Result<Option<(Plan, Dirs)>> {
        let Shape::Plain {
            root,
            read_only: false,
            base: None,
        } = &self.parts.shape
        else {
            return Ok(None);
        };
        if self.asked.chain.is_none() || self.asked.parent_chain.is_none() {
            return Ok(None);
        }
        let dir = root.parent().filter(|_| self.parts.driver.stacks());
        let Some(dir) = dir else {
            return Err(Error::Unsupported {
                what: format!("layers of the driver {} can't be unpacked before their parent", self.parts.driver),
                hint: "remove `rebase` from the capabilities in containerd's configuration, or use --storage-driver overlay2".into(),
            });
        };
        let (work, empty) = (dir.join("work"), dir.join("empty"));
        let mount = OverlayMount {
            lowers: vec![empty.clone()],
            data_lowers: Vec::new(),
            upper: Some(root.clone()),
            work: Some(work.clone()),
            options: OverlayOptions {
                index: Some(false),
                metacopy: Some(false),
                redirect_dir: Some(RedirectDir::NoFollow),
                userxattr: !self.facts.trusted,
                ..OverlayOptions::default()
            },
            read_only: false,
        };
        let plan = Plan::Overlay {
            method: Method::OptionPage { home: dir.into() },
            mount,
            features: None,
        };
        Ok(Some((plan, vec![(work, 0o700), (empty, 0o755)])))
    }

    /// Plans the mount of a tree; `engine` is the one that must mount it, if the settings don't
    /// decide.
    ///
    /// Errors: [`Error::Plan`] if it can't be planned.
    fn plan(&self, engine: Option<Engine>) -> Result<Plan> {
        let redirects = self.wishes.redirect_dir == Toggle::On;
        let mut wishes = Wishes {
            method: MountMethod::OptionPage,
            metacopy: Toggle::Off,
            redirect_dir: match redirects {
                true => Toggle::On,
                false => Toggle::Off,
            },
            docker_compatible: !redirects,
            ..*self.wishes
        };
        if let Some(engine) = engine {
            wishes.engine = engine;
        } else if self.asked.chain.is_some() && self.facts.trusted && self.parts.features.is_none()
        {
            // Unpackers fill the upper of an overlay without mounting it, so another engine's mount
            // has no benefit.
            wishes.engine = Engine::Auto;
            wishes.redirect_dir = Toggle::Off;
            wishes.docker_compatible = true;
        }
        let refusal = match plan::plan(self.parts, self.facts, &wishes) {
            Ok(Plan::Overlay { mount, .. }) if short_page_bytes(&mount) > OPTION_PAGE_BYTES => {
                PlanRefusal::PageFull {
                    layers: mount.lowers.len(),
                    bytes: short_page_bytes(&mount),
                }
            }
            Ok(planned) => return Ok(planned),
            Err(refusal) => refusal,
        };
        // The plan itself falls back to the other engine only if no mount method was configured.
        if wishes.engine == Engine::Auto && refusal.is_the_kernels() && self.facts.fuse {
            wishes.engine = Engine::Vellum;
            return Ok(plan::plan(self.parts, self.facts, &wishes)?);
        }
        Err(refusal.into())
    }
}

/// Returns the length of the options after the client has shortened them: layers relative to their
/// common directory.
fn short_page_bytes(mount: &OverlayMount) -> usize {
    let lowers = mount.lowers.iter().filter_map(|dir| dir.file_name());
    // Names and values of the features that are turned off.
    page_bytes(lowers, mount.upper.iter().chain(&mount.work), 64)
}

/// Returns their length when layers are named by their directories, relative to the one that is
/// mapped.
fn mapped_page_bytes(overlay: &Overlay) -> usize {
    let relative = |dir: &'_ Path| match dir.strip_prefix(&overlay.home) {
        Ok(relative) => relative.as_os_str().to_owned(),
        Err(_) => dir.as_os_str().to_owned(),
    };
    let lowers: Vec<_> = overlay.lowers.iter().map(|l| relative(&l.dir)).collect();
    let upper = overlay.upper.iter().map(|layer| &layer.dir);
    // The same, and the target of the mapped directory.
    page_bytes(
        lowers.iter().map(|dir| dir.as_os_str()),
        upper.chain(&overlay.work),
        128,
    )
}

/// Returns the length of options that name `lowers`, an upper and a work directory, with `rest`
/// bytes of others.
fn page_bytes<'a>(
    lowers: impl Iterator<Item = &'a OsStr>,
    upper_and_work: impl Iterator<Item = &'a PathBuf>,
    rest: usize,
) -> usize {
    let lowers: usize = lowers.map(|name| name.len() + 1).sum();
    // Each with the name of its option.
    let whole: usize = upper_and_work.map(|dir| dir.as_os_str().len() + 10).sum();
    lowers + whole + rest
}

#[cfg(test)]
mod tests;
