//! Why there is no plan, and what to do about it.

use crate::config::MountMethod;
use crate::plan::OPTION_PAGE_BYTES;

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanRefusal {
    /// More layers than any kernel takes.
    #[error("{layers} layers are more than the {limit} the kernel mounts")]
    TooDeep {
        /// Lower layers.
        layers: usize,
        /// The limit.
        limit: usize,
    },
    /// The layers don't fit one page of options.
    #[error(
        "the options for {layers} layers take {bytes} bytes and mount(2) passes {OPTION_PAGE_BYTES}"
    )]
    PageFull {
        /// Lower layers.
        layers: usize,
        /// Bytes they would take.
        bytes: usize,
    },
    /// A method was forced that this kernel doesn't have.
    #[error("the mount method {method} needs Linux {needs}, and this is {release}")]
    NoMethod {
        /// The method.
        method: MountMethod,
        /// The first kernel that has it.
        needs: &'static str,
        /// This kernel.
        release: String,
    },
    /// The kernel mounts no overlay there at all.
    #[error("the kernel mounts no overlay in the store, which is on {fs_name}: {said}")]
    NoOverlay {
        /// The file system.
        fs_name: String,
        /// What the kernel said.
        said: String,
    },
    /// Listings without kinds: whiteouts would show.
    #[error(
        "the store's file system ({fs_name}) does not say in listings what each entry is (d_type)"
    )]
    NoDType {
        /// The file system.
        fs_name: String,
    },
    /// Vellum's engine was chosen, or was needed, and there is no FUSE.
    #[error(
        "Vellum's own engine needs FUSE, and /dev/fuse can't be used; it was to mount because {because}"
    )]
    NoFuse {
        /// Why the engine.
        because: String,
    },
    /// The kernel is asked for, and the upper was written to by Vellum's engine.
    #[error(
        "this container was mounted by Vellum's own engine, which may have left files the kernel can't read"
    )]
    EngineMade,
    /// A feature is required that can't be had.
    #[error("{feature}=on is asked for, and {why}")]
    NoFeature {
        /// The feature.
        feature: &'static str,
        /// Why it can't be had.
        why: &'static str,
    },
    /// The upper was first mounted with a feature that can't be had now.
    #[error("this container was first mounted with {feature}, and {why}")]
    UpperNeeds {
        /// The feature.
        feature: &'static str,
        /// Why it can't be had.
        why: &'static str,
    },
    /// A lower layer carries marks that the mount wouldn't follow.
    #[error("layer {layer} carries {mark} marks, and {why}")]
    LayerNeeds {
        /// The layer's tree.
        layer: String,
        /// The mark.
        mark: &'static str,
        /// Why the mount doesn't follow it.
        why: &'static str,
    },
    /// Marks of the other kind of user.
    #[error("the marks in {what} were written {written}, and this mount reads {reads}")]
    Prefix {
        /// The layer's tree, or "the container's own layer".
        what: String,
        /// Who wrote them.
        written: &'static str,
        /// What the mount reads.
        reads: &'static str,
    },
}

impl PlanRefusal {
    /// Tells whether another engine than the kernel's could do it.
    pub(crate) fn is_the_kernels(&self) -> bool {
        match self {
            Self::TooDeep { .. }
            | Self::PageFull { .. }
            | Self::NoOverlay { .. }
            | Self::NoDType { .. }
            | Self::NoFeature { .. }
            | Self::UpperNeeds { .. }
            | Self::LayerNeeds { .. } => true,
            Self::NoMethod { .. }
            | Self::NoFuse { .. }
            | Self::EngineMade
            | Self::Prefix { .. } => false,
        }
    }

    /// What the user could do.
    pub fn hint(&self) -> String {
        match self {
            Self::TooDeep { .. } => {
                "make an image of fewer layers: mount the one below and `vellum import` its tree".into()
            }
            Self::PageFull { .. } => {
                "use --mount-method auto on Linux 6.8 or newer, a store with a shorter path, or fewer layers".into()
            }
            Self::NoMethod { .. } => "--mount-method auto takes the best one there is".into(),
            Self::NoOverlay { fs_name, .. } if fs_name == "overlayfs" => {
                "the store lies on an overlay already: give --root a directory on a real file system or a volume, or use --storage-driver native".into()
            }
            Self::NoOverlay { fs_name, .. } if vellum_sys::probe::is_network(fs_name) => {
                "give --root a directory on a local file system, use --storage-driver native, or leave engine at auto with /dev/fuse there: the kernel's overlay has no writable layers on a network file system".into()
            }
            Self::NoOverlay { .. } => {
                "give --root a directory on ext4, xfs, btrfs or tmpfs, load the kernel's `overlay` module, or use --storage-driver native".into()
            }
            Self::NoDType { .. } => "xfs needs ftype=1, ext4 the filetype feature; reformat, use --storage-driver native, or leave engine at auto".into(),
            Self::NoFuse { .. } => "load the kernel's `fuse` module, or pass /dev/fuse into this container".into(),
            Self::EngineMade => "leave engine at auto or vellum, or commit it and create a new container from the image".into(),
            Self::NoFeature { feature, .. } => format!("set {feature} to auto or off"),
            Self::UpperNeeds { .. } => {
                "mount it where it was made, or commit it there and create a new container from the image".into()
            }
            Self::LayerNeeds { .. } => {
                "mount without docker-compatible, or commit a container of it there: that writes plain layers".into()
            }
            Self::Prefix { .. } => "a store belongs to root or to one plain user; save the image and load it in the other's store".into(),
        }
    }
}
