//! The verbs on images: load, pull, import, save, push, tag, list, inspect, history, rmi.
//!
//! There is one path for incoming images, whatever their source: a source is opened, [`unpack`]
//! turns the layers that the store lacks into committed snapshots, and [`record`] joins them with
//! manifest, configuration and names in one transaction. The outgoing path is its mirror image:
//! [`supply`] passes layers to a sink byte for byte as they came.
//!
//! This module only composes: the image crate knows what a manifest means, the store knows where
//! trees are.

use crate::context::Context;
use crate::error::{Error, Result};
use vellum_format::Digest;
use vellum_image::Reference;

mod adopt;
mod change;
mod commit;
pub mod export;
pub(crate) mod exported;
mod fill;
mod history;
mod import;
mod inspect;
mod list;
mod load;
mod names;
pub(crate) mod offered;
mod pack;
#[cfg(feature = "registry")]
mod pull;
#[cfg(feature = "registry")]
mod push;
mod record;
mod save;
mod stored;
mod supply;
mod unpack;

pub use adopt::{
    AdoptHow, AdoptRequest, Adopted, AdoptedImage, Outcome as AdoptedOutcome, SeenContainer,
    SeenOrphan, adopt,
};
pub use change::apply_changes;
pub use commit::{CommitRequest, commit, tar as changes_tar};
pub(crate) use fill::{apply_to, fill_on, target};
pub use history::{HistoryEntry, history};
pub use import::{ImportRequest, ImportSource, import};
pub use inspect::inspect_image;
pub use list::{ImageSummary, NO_NAME, images};
pub use load::{LoadRequest, LoadSource, load};
pub use names::{Removed, rmi, tag};
#[cfg(feature = "registry")]
pub use pull::{PullRequest, pull};
#[cfg(feature = "registry")]
pub use push::{PushRequest, PushedImage, push};
pub use record::BroughtIn;
pub use save::{SaveFormat, SaveRequest, SaveTarget, SavedImage, save};
pub(crate) use unpack::{left_out, unmarked};

/// Any failure after the user asked to stop counts as `Cancelled`.
fn or_cancelled<T>(context: &Context, outcome: Result<T>) -> Result<T> {
    match outcome {
        Err(_) if context.cancel.is_cancelled() => Err(Error::Cancelled),
        outcome => outcome,
    }
}

fn parse_name(text: &str) -> Option<Reference> {
    // `sha256:…` is an id, although it is also a valid name with a tag.
    if text.starts_with("sha256:") {
        return None;
    }
    Reference::parse(text).ok()
}

/// Parses a name from the user; an error is the user's.
fn reference(text: &str) -> Result<Reference> {
    Reference::parse(text).map_err(|e| Error::Invalid {
        what: e.to_string(),
        hint: Some("write [HOST[:PORT]/]NAME[:TAG][@DIGEST], such as debian:12".to_owned()),
    })
}

/// Parses a name that the user chooses for an image. `sha256:abc` is refused, as Docker does: it
/// would be taken for the beginning of an id.
fn chosen_name(text: &str) -> Result<Reference> {
    let name = reference(text)?;
    if name.digest().is_some() {
        return Err(Error::Invalid {
            what: format!("{name} has a digest, which can't be chosen"),
            hint: Some("write NAME[:TAG]".to_owned()),
        });
    }
    if name.familiar_name() == Digest::ALGORITHM {
        return Err(Error::Invalid {
            what: format!("{text:?} would be taken for an image's id"),
            hint: Some("choose a name other than sha256".to_owned()),
        });
    }
    Ok(name)
}

/// Parses a platform from the user; the default is this machine's.
fn platform(text: Option<&str>) -> Result<vellum_image::Platform> {
    match text {
        None => Ok(vellum_image::Platform::host()),
        Some(text) => text
            .parse()
            .map_err(|e: vellum_image::platform::PlatformError| Error::Invalid {
                what: e.to_string(),
                hint: None,
            }),
    }
}

/// Returns the snapshot key of a chain.
pub(crate) fn key(chain_id: &vellum_image::ChainId) -> vellum_store::SnapshotKey {
    vellum_store::SnapshotKey::from(chain_id.to_string())
}
