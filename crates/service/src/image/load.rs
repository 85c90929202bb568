//! `load`: loads images from an archive or a layout.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;

use vellum_image::source::{ImageSource, oci_layout::OciLayout, open_archive, open_seekable};

use super::record::{BroughtIn, bring_in};
use super::{platform, reference};
use crate::context::Context;
use crate::error::{Error, Result};

/// Where [`load`] reads from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoadSource {
    /// Standard input.
    Stdin,
    /// An archive, or the directory of an OCI layout.
    Path(PathBuf),
}

/// What to load.
#[derive(Clone, Debug)]
pub struct LoadRequest {
    /// The source.
    pub source: LoadSource,
    /// A name for the image instead of those in the archive, which must then have a single image.
    pub name: Option<String>,
    /// The platform to choose, `os/architecture[/variant]`; `None`: this machine's.
    pub platform: Option<String>,
}

/// Loads every image of an archive or layout; returns them in its order.
///
/// If one fails, the images before it stay loaded; it leaves only what `gc` removes.
pub fn load(context: &Context, request: &LoadRequest) -> Result<Vec<BroughtIn>> {
    super::or_cancelled(context, run(context, request))
}

fn run(context: &Context, request: &LoadRequest) -> Result<Vec<BroughtIn>> {
    let wanted = platform(request.platform.as_deref())?;
    let given = request.name.as_deref().map(reference).transpose()?;
    let source: Box<dyn ImageSource> = match &request.source {
        LoadSource::Path(path) if path.is_dir() => {
            Box::new(OciLayout::from_directory(path, &wanted)?)
        }
        from => {
            let (file, name) = open(from)?;
            let spool = context.store()?.root().join("staging");
            open_archive(
                open_seekable(file, &name, &spool, &context.cancel)?,
                name,
                &wanted,
            )?
        }
    };
    let images = source.images();
    if given.is_some() && images.len() != 1 {
        return Err(Error::Invalid {
            what: format!(
                "{} has {} images, which can't share one name",
                source.describe(),
                images.len()
            ),
            hint: Some("load without --tag, then give names with `vellum tag`".to_owned()),
        });
    }
    let mut loaded = Vec::with_capacity(images.len());
    for (at, image) in images.iter().enumerate() {
        let names = match &given {
            Some(name) => vec![name.clone()],
            None => {
                for odd in &image.odd_names {
                    let what =
                        format!("{odd:?} is not an image name: loading the image without it");
                    context.progress.warn(&what);
                }
                image.names.clone()
            }
        };
        loaded.push(bring_in(context, source.as_ref(), at, &names, &wanted)?);
    }
    Ok(loaded)
}

/// Opens the source, with a name for messages.
pub(super) fn open(source: &LoadSource) -> Result<(File, String)> {
    match source {
        LoadSource::Stdin => {
            let fd = std::io::stdin()
                .as_fd()
                .try_clone_to_owned()
                .map_err(Error::io("read", "standard input"))?;
            Ok((File::from(fd), "standard input".to_owned()))
        }
        LoadSource::Path(path) => {
            let file = File::open(path).map_err(Error::io("open", path))?;
            Ok((file, path.display().to_string()))
        }
    }
}
