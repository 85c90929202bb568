//! Plans one mount from a tree's parts, the machine's abilities and the configuration. Pure and
//! printable; every refusal is named.
//!
//! [`plan`] never asks the kernel: facts come in as values, so each rule is a row of a table in the
//! tests. Its decision is exactly what `vellum mount --dry-run` prints and what `sys` then
//! executes; nothing is left to the kernel's EPERM or EINVAL. The rules:
//!
//! * An upper keeps the features it was first mounted with; settings count for uppers that were
//!   never mounted.
//! * The mount must understand the marks that a layer carries (redirects, metacopies, the `user.`
//!   prefix), or it is refused with the mark's name.
//! * Where only `userxattr` mounts are possible (a plain user's namespace), the kernel allows
//!   neither redirect_dir nor metacopy.
//! * `docker-compatible` writes no mark that a walking diff misreads.
//! * At most 500 layers; with a single page of options, as many as fit it.
//!
//! It must not touch files, and does not know containers or images.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vellum_store::{MountFeatures, Overlay, Shape, TreeParts};
use vellum_sys::mount::{
    KERNEL_LAYER_LIMIT, Method, OverlayMount, OverlayOptions, RedirectDir, Xino, option_page_bytes,
};
use vellum_union::engine::Limit;

use crate::config::{Config, Engine, MountMethod, Toggle};

mod printed;
mod refusal;

pub use printed::Printed;
pub use refusal::PlanRefusal;

/// Bytes of options that mount(2) passes: a page of 4096 without the closing NUL.
pub const OPTION_PAGE_BYTES: usize = 4095;

/// What the machine can do that matters for mounting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// `uname -r`, for messages.
    pub release: String,
    /// Layers can be given as descriptors.
    pub layer_fds: bool,
    /// Layers can be given one by one as paths.
    pub lowerdir_plus: bool,
    /// Overlays with `trusted.overlay.*` marks can be mounted in the store.
    pub trusted: bool,
    /// Overlays with `user.overlay.*` marks can be mounted in the store.
    pub userxattr: bool,
    /// The kernel's error if neither is possible; else empty.
    pub refusal: String,
    /// `redirect_dir=on` works.
    pub redirect_dir: bool,
    /// `metacopy=on` works.
    pub metacopy: bool,
    /// `index=on` works.
    pub index: bool,
    /// `xino=on` works.
    pub xino: bool,
    /// The store's file system reports each entry's type in listings.
    pub d_type: bool,
    /// The file system's name.
    pub fs_name: String,
    /// The process is root outside any user namespace: marks are `trusted.overlay.*`.
    pub root: bool,
    /// FUSE is available.
    pub fuse: bool,
}

/// The configuration that matters for mounting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wishes {
    /// What mounts.
    pub engine: Engine,
    /// How layers are passed to the kernel.
    pub method: MountMethod,
    /// Directories of lower layers can be renamed.
    pub redirect_dir: Toggle,
    /// Attributes change without copying data.
    pub metacopy: Toggle,
    /// Unique inode numbers over several file systems.
    pub xino: Toggle,
    /// No mark that Docker's diff misreads is written.
    pub docker_compatible: bool,
    /// No syncs.
    pub volatile: bool,
    /// Refuse writing.
    pub read_only: bool,
    /// Limit of what is written, if the file system can't enforce it.
    pub limit: Limit,
}

impl Wishes {
    /// Returns what `config` asks for, for a writable mount.
    pub fn of(config: &Config) -> Self {
        Self {
            engine: config.engine.value,
            method: config.mount_method.value,
            redirect_dir: config.redirect_dir.value,
            metacopy: config.metacopy.value,
            xino: config.xino.value,
            docker_compatible: config.docker_compatible.value,
            volatile: config.volatile.value,
            read_only: false,
            limit: Limit::default(),
        }
    }
}

/// How a tree will be mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// A directory as it is.
    Bind {
        /// The directory.
        source: PathBuf,
        /// Refuse writing.
        read_only: bool,
    },
    /// An overlay by the kernel.
    Overlay {
        /// How layers are passed to the kernel.
        method: Method,
        /// The mount.
        mount: OverlayMount,
        /// The upper's features, recorded before its first mount. `None` without an upper.
        features: Option<MountFeatures>,
    },
    /// A union by Vellum's own engine, served by a process of its own.
    Engine {
        /// The mount.
        mount: EngineMount,
        /// The upper's features, recorded before its first mount. `None` without an upper.
        features: Option<MountFeatures>,
        /// Why the kernel doesn't mount it.
        because: String,
    },
}

impl Plan {
    /// Returns the writable directory that is mounted over others.
    pub fn upper(&self) -> Option<&Path> {
        match self {
            Self::Bind { .. } => None,
            Self::Overlay { mount, .. } => mount.upper.as_deref(),
            Self::Engine { mount, .. } => mount.upper.as_deref(),
        }
    }
}

/// A mount by Vellum's engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineMount {
    /// Read-only directories, top first.
    pub lowers: Vec<PathBuf>,
    /// Which of them an engine wrote, by number; their marks are followed.
    pub trusted: Vec<usize>,
    /// The writable directory.
    pub upper: Option<PathBuf>,
    /// The work directory that goes with it.
    pub work: Option<PathBuf>,
    /// Marks are `user.overlay.*`, and owners and devices that a plain user can't create are
    /// recorded.
    pub userxattr: bool,
    /// Directories of lower layers can be renamed.
    pub redirect_dir: bool,
    /// Attributes change without copying data.
    pub metacopy: bool,
    /// No syncs.
    pub volatile: bool,
    /// Refuse writing.
    pub read_only: bool,
    /// Limit of what is written.
    pub limit: Limit,
}

const IN_USERNS: &str = "the kernel refuses it if marks are user.overlay.* (a plain user's mount)";
const NOT_HERE: &str = "this kernel does not have it";
const COMPATIBLE: &str = "docker-compatible turns it off";

/// Decides how `parts` are mounted.
pub fn plan(parts: &TreeParts, facts: &Facts, wishes: &Wishes) -> Result<Plan, PlanRefusal> {
    match &parts.shape {
        Shape::Plain {
            root, read_only, ..
        } => Ok(Plan::Bind {
            source: root.clone(),
            read_only: *read_only || wishes.read_only,
        }),
        Shape::Overlay(overlay) => {
            let made = overlay.upper.is_some() && parts.features.is_some_and(|f| f.engine);
            if wishes.limit != Limit::default() && overlay.upper.is_some() {
                let because = "of its size limit, which the file system can't enforce".into();
                return plan_engine(overlay, parts, facts, wishes, because);
            }
            match wishes.engine {
                Engine::Vellum => {
                    plan_engine(overlay, parts, facts, wishes, "engine = vellum".into())
                }
                Engine::Kernel if made => Err(PlanRefusal::EngineMade),
                Engine::Kernel => plan_overlay(overlay, parts, facts, wishes),
                Engine::Auto if made => {
                    let because = "Vellum's engine has mounted it before".into();
                    plan_engine(overlay, parts, facts, wishes, because)
                }
                Engine::Auto => match plan_overlay(overlay, parts, facts, wishes) {
                    // If the user names a mount method, it is that or nothing.
                    Err(refusal)
                        if refusal.is_the_kernels()
                            && facts.fuse
                            && wishes.method == MountMethod::Auto =>
                    {
                        plan_engine(overlay, parts, facts, wishes, refusal.to_string())
                    }
                    planned => planned,
                },
            }
        }
    }
}

/// Plans a mount by Vellum's engine.
fn plan_engine(
    overlay: &Overlay,
    parts: &TreeParts,
    facts: &Facts,
    wishes: &Wishes,
    because: String,
) -> Result<Plan, PlanRefusal> {
    if !facts.fuse {
        return Err(PlanRefusal::NoFuse { because });
    }
    let userxattr = !facts.root;
    for layer in &overlay.lowers {
        if let Some(marks) = layer.features
            && marks.userxattr != userxattr
        {
            return Err(prefix(format!("layer {}", layer.tree), marks.userxattr));
        }
    }
    let wanted = |wish: Toggle| wish != Toggle::Off && !wishes.docker_compatible;
    let features = match parts.features {
        Some(recorded) if recorded.userxattr != userxattr => {
            return Err(prefix(
                "the container's own layer".into(),
                recorded.userxattr,
            ));
        }
        Some(recorded) => MountFeatures {
            engine: true,
            ..recorded
        },
        None => MountFeatures {
            userxattr,
            redirect_dir: wanted(wishes.redirect_dir),
            metacopy: wanted(wishes.metacopy),
            index: false,
            xino: true,
            engine: true,
        },
    };
    let trusted = (0..overlay.lowers.len()).filter(|&at| overlay.lowers[at].features.is_some());
    Ok(Plan::Engine {
        mount: EngineMount {
            lowers: overlay.lowers.iter().map(|l| l.dir.clone()).collect(),
            trusted: trusted.collect(),
            upper: overlay.upper.as_ref().map(|upper| upper.dir.clone()),
            work: overlay.work.clone().filter(|_| overlay.upper.is_some()),
            userxattr,
            redirect_dir: features.redirect_dir,
            metacopy: features.metacopy,
            volatile: wishes.volatile,
            read_only: wishes.read_only || overlay.upper.is_none(),
            limit: match overlay.upper {
                Some(_) => wishes.limit,
                None => Limit::default(),
            },
        },
        features: overlay.upper.as_ref().map(|_| features),
        because,
    })
}

fn plan_overlay(
    overlay: &Overlay,
    parts: &TreeParts,
    facts: &Facts,
    wishes: &Wishes,
) -> Result<Plan, PlanRefusal> {
    let layers = overlay.lowers.len();
    if layers > KERNEL_LAYER_LIMIT {
        return Err(PlanRefusal::TooDeep {
            layers,
            limit: KERNEL_LAYER_LIMIT,
        });
    }
    if overlay.upper.is_none() && layers == 1 {
        return Ok(Plan::Bind {
            source: overlay.lowers[0].dir.clone(),
            read_only: true,
        });
    }
    // Checked before the kernel's error from the probe, which says less.
    if !facts.d_type {
        return Err(PlanRefusal::NoDType {
            fs_name: facts.fs_name.clone(),
        });
    }
    if !facts.trusted && !facts.userxattr {
        return Err(PlanRefusal::NoOverlay {
            fs_name: facts.fs_name.clone(),
            said: facts.refusal.clone(),
        });
    }
    let features = policy_features(parts.features, facts, wishes)?;
    check_layers(overlay, features, facts, wishes)?;
    let options = options(features, overlay, wishes);
    let paths = |home: bool| -> OverlayMount {
        let short = |dir: &vellum_store::LayerDir| match (&dir.link, home) {
            (Some(link), true) => overlay.home.join(link),
            _ => dir.dir.clone(),
        };
        OverlayMount {
            lowers: overlay.lowers.iter().map(short).collect(),
            data_lowers: Vec::new(),
            upper: overlay.upper.as_ref().map(|upper| upper.dir.clone()),
            work: overlay.work.clone(),
            options: options.clone(),
            read_only: wishes.read_only || overlay.upper.is_none(),
        }
    };
    let method = policy_method(overlay, facts, wishes)?;
    let mount = paths(matches!(method, Method::OptionPage { .. }));
    if let Method::OptionPage { home } = &method {
        let bytes = option_page_bytes(&mount, home);
        if bytes > OPTION_PAGE_BYTES {
            return Err(PlanRefusal::PageFull { layers, bytes });
        }
    }
    Ok(Plan::Overlay {
        method,
        mount,
        features: overlay.upper.as_ref().map(|_| features),
    })
}

/// Chooses how layers are passed: by the forced method, or the best available.
fn policy_method(overlay: &Overlay, facts: &Facts, wishes: &Wishes) -> Result<Method, PlanRefusal> {
    let page = || Method::OptionPage {
        home: overlay.home.clone(),
    };
    let missing = |needs| PlanRefusal::NoMethod {
        method: wishes.method,
        needs,
        release: facts.release.clone(),
    };
    match wishes.method {
        MountMethod::Auto if facts.layer_fds => Ok(Method::LayerFds),
        MountMethod::Auto if facts.lowerdir_plus => Ok(Method::LowerdirPaths),
        MountMethod::Auto | MountMethod::OptionPage => Ok(page()),
        MountMethod::LayerFds if facts.layer_fds => Ok(Method::LayerFds),
        MountMethod::LayerFds => Err(missing("6.13")),
        MountMethod::LowerdirPlus if facts.lowerdir_plus => Ok(Method::LowerdirPaths),
        MountMethod::LowerdirPlus => Err(missing("6.8")),
    }
}

/// Chooses the features: those of the upper's first mount, else those that are wished and
/// available.
fn policy_features(
    recorded: Option<MountFeatures>,
    facts: &Facts,
    wishes: &Wishes,
) -> Result<MountFeatures, PlanRefusal> {
    let userxattr = !facts.trusted;
    if let Some(recorded) = recorded {
        if recorded.userxattr != userxattr {
            return Err(prefix(
                "the container's own layer".into(),
                recorded.userxattr,
            ));
        }
        for (feature, needed, there) in [
            (
                "redirect_dir",
                recorded.redirect_dir,
                facts.redirect_dir && !userxattr,
            ),
            ("metacopy", recorded.metacopy, facts.metacopy && !userxattr),
            ("index", recorded.index, facts.index),
        ] {
            if needed && !there {
                let why = if userxattr { IN_USERNS } else { NOT_HERE };
                return Err(PlanRefusal::UpperNeeds { feature, why });
            }
        }
        // Inode numbers are not marks: a mount without xino reads the same tree.
        return Ok(MountFeatures {
            xino: recorded.xino && facts.xino,
            ..recorded
        });
    }
    let choose = |feature: &'static str, wish: Toggle, there: bool| -> Result<bool, PlanRefusal> {
        match wish {
            Toggle::Off => Ok(false),
            Toggle::Auto => Ok(there && !userxattr && !wishes.docker_compatible),
            Toggle::On if userxattr => Err(PlanRefusal::NoFeature {
                feature,
                why: IN_USERNS,
            }),
            Toggle::On if wishes.docker_compatible => Err(PlanRefusal::NoFeature {
                feature,
                why: COMPATIBLE,
            }),
            Toggle::On if !there => Err(PlanRefusal::NoFeature {
                feature,
                why: NOT_HERE,
            }),
            Toggle::On => Ok(true),
        }
    };
    let xino = match wishes.xino {
        Toggle::Off => false,
        Toggle::Auto => facts.xino && !wishes.docker_compatible,
        Toggle::On if !facts.xino => {
            return Err(PlanRefusal::NoFeature {
                feature: "xino",
                why: NOT_HERE,
            });
        }
        Toggle::On => true,
    };
    Ok(MountFeatures {
        userxattr,
        redirect_dir: choose("redirect_dir", wishes.redirect_dir, facts.redirect_dir)?,
        metacopy: choose("metacopy", wishes.metacopy, facts.metacopy)?,
        // Off until everything that reads layers keeps hard links together; see
        // docs/semantics/live-union.md.
        index: false,
        xino,
        engine: false,
    })
}

/// Checks that the mount understands every mark of the lower layers.
fn check_layers(
    overlay: &Overlay,
    features: MountFeatures,
    facts: &Facts,
    wishes: &Wishes,
) -> Result<(), PlanRefusal> {
    for layer in &overlay.lowers {
        let Some(marks) = layer.features else {
            continue;
        };
        if marks.userxattr != features.userxattr {
            return Err(prefix(format!("layer {}", layer.tree), marks.userxattr));
        }
        let why = match () {
            () if features.userxattr => IN_USERNS,
            () if wishes.docker_compatible => COMPATIBLE,
            () => "the container was first mounted without them, or they are turned off",
        };
        // Redirects can be followed without writing any; metacopies can't.
        if marks.redirect_dir && (features.userxattr || !facts.redirect_dir) {
            return Err(PlanRefusal::LayerNeeds {
                layer: layer.tree.to_string(),
                mark: "redirect",
                why,
            });
        }
        if marks.metacopy && !features.metacopy {
            return Err(PlanRefusal::LayerNeeds {
                layer: layer.tree.to_string(),
                mark: "metacopy",
                why,
            });
        }
    }
    Ok(())
}

fn prefix(what: String, by_user: bool) -> PlanRefusal {
    const USER: &str = "as user.overlay.*";
    const ROOT: &str = "as trusted.overlay.*";
    let (written, reads) = if by_user { (USER, ROOT) } else { (ROOT, USER) };
    PlanRefusal::Prefix {
        what,
        written,
        reads,
    }
}

/// Sets every option explicitly, so that no module default decides.
fn options(features: MountFeatures, overlay: &Overlay, wishes: &Wishes) -> OverlayOptions {
    let follows = overlay
        .lowers
        .iter()
        .any(|l| l.features.is_some_and(|f| f.redirect_dir));
    let mut options = OverlayOptions {
        userxattr: features.userxattr,
        is_volatile: wishes.volatile && overlay.upper.is_some(),
        xino: Some(match (features.xino, wishes.xino) {
            (false, _) => Xino::Off,
            (true, Toggle::On) => Xino::On,
            (true, _) => Xino::Auto,
        }),
        ..OverlayOptions::default()
    };
    if !features.userxattr {
        options.redirect_dir = Some(match (features.redirect_dir, follows) {
            (true, _) => RedirectDir::On,
            (false, true) => RedirectDir::Follow,
            (false, false) => RedirectDir::NoFollow,
        });
        options.metacopy = Some(features.metacopy);
        options.index = Some(features.index);
    }
    options
}

/// Returns the name of a method as settings spell it.
pub fn method_name(method: &Method) -> &'static str {
    match method {
        Method::LayerFds => "layer-fds",
        Method::LowerdirPaths => "lowerdir-plus",
        Method::OptionPage { .. } => "option-page",
    }
}

#[cfg(test)]
pub(crate) mod tests;
