//! Why there is no plan, and what to do about it.

use crate::config::MountMethod;
use crate::plan::OPTION_PAGE_BYTES;

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanRefusal {
    /// More layers than any kernel mounts.
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
        /// The bytes they would need.
        bytes: usize,
    },
    /// The forced method needs another kernel.
    #[error("the mount method {method} needs Linux {needs}, but this is {release}")]
    NoMethod {
        /// The method.
        method: MountMethod,
        /// The first kernel that has it.
        needs: &'static str,
        /// This kernel.
        release: String,
    },
    /// The kernel can't mount an overlay there at all.
    #[error("the kernel mounts no overlay in the store, which is on {fs_name}: {said}")]
    NoOverlay {
        /// The file system.
        fs_name: String,
        /// The kernel's error.
        said: String,
    },
    /// Listings without file types: whiteouts would show.
    #[error("the store's file system ({fs_name}) does not report file types in listings (d_type)")]
    NoDType {
        /// The file system.
        fs_name: String,
    },
    /// Vellum's engine was chosen or needed, but there is no FUSE.
    #[error(
        "Vellum's own engine needs FUSE, and /dev/fuse can't be used; it was chosen because {because}"
    )]
    NoFuse {
        /// Why the engine was chosen.
        because: String,
    },
    /// The kernel was asked for, but Vellum's engine has written to the upper.
    #[error(
        "this container was mounted by Vellum's own engine, which may have left files the kernel can't read"
    )]
    EngineMade,
    /// A required feature is not available.
    #[error("{feature}=on is required, but {why}")]
    NoFeature {
        /// The feature.
        feature: &'static str,
        /// Why it isn't available.
        why: &'static str,
    },
    /// The upper was first mounted with a feature that is not available now.
    #[error("this container was first mounted with {feature}, but {why}")]
    UpperNeeds {
        /// The feature.
        feature: &'static str,
        /// Why it isn't available.
        why: &'static str,
    },
    /// A lower layer carries marks that the mount would not follow.
    #[error("layer {layer} carries {mark} marks, but {why}")]
    LayerNeeds {
        /// The layer's tree.
        layer: String,
        /// The mark.
        mark: &'static str,
        /// Why the mount doesn't follow it.
        why: &'static str,
    },
    /// Marks that the other class of user (root or plain) wrote.
    #[error("the marks in {what} were written {written}, but this mount reads them {reads}")]
    Prefix {
        /// The layer's tree, or "the container's own layer".
        what: String,
        /// How they were written.
        written: &'static str,
        /// How the mount reads them.
        reads: &'static str,
    },
}

impl PlanRefusal {
    /// Tells whether another engine could mount it.
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

    /// Returns what the user can do.
    pub fn hint(&self) -> String {
        match self {
            Self::TooDeep { .. } => {
                "leave engine at auto and make /dev/fuse available, or build an image with fewer layers: mount the one below it and `vellum import` the tree".into()
            }
            Self::PageFull { .. } => {
                "use --mount-method auto on Linux 6.8 or later, leave engine at auto and make /dev/fuse available, or give --root a shorter path".into()
            }
            Self::NoMethod { .. } => "--mount-method auto uses the best one that this kernel has".into(),
            Self::NoOverlay { fs_name, .. } if fs_name == "overlayfs" => {
                "the store is itself on an overlay: give --root a directory on a real file system or a volume, or use --storage-driver native".into()
            }
            Self::NoOverlay { fs_name, .. } if vellum_sys::probe::is_network(fs_name) => {
                "give --root a directory on a local file system, use --storage-driver native, or leave engine at auto and make /dev/fuse available: the kernel's overlay has no writable layers on a network file system".into()
            }
            Self::NoOverlay { .. } => {
                "give --root a directory on ext4, xfs, btrfs or tmpfs, load the kernel's `overlay` module, leave engine at auto and make /dev/fuse available, or use --storage-driver native".into()
            }
            Self::NoDType { .. } => "xfs needs ftype=1, ext4 the filetype feature; reformat, use --storage-driver native, or leave engine at auto".into(),
            Self::NoFuse { .. } => "load the kernel's `fuse` module, or pass /dev/fuse into this container".into(),
            Self::EngineMade => "leave engine at auto or vellum, or commit it and create a new container from the image".into(),
            Self::NoFeature { feature, .. } => format!("set {feature} to auto or off"),
            Self::UpperNeeds { .. } => {
                "mount it where it was created, or commit it there and create a new container from the image".into()
            }
            Self::LayerNeeds { .. } => {
                "mount without docker-compatible, or commit a container of it there: a commit writes plain layers".into()
            }
            Self::Prefix { .. } => "a store belongs to root or to one plain user; save the image and load it in the other's store".into(),
        }
    }
}
