//! The tree that a path is looked up in: a container's, an image's, or a list of layers.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use clap::Args;
use vellum_overlay::options::Manners;
use vellum_overlay::parse;
use vellum_service::Error;
use vellum_service::layer::look;

use crate::exit_code::Failure;

/// The layers to look at.
#[derive(Debug, Args)]
pub struct Tree {
    /// Look in these layers, given as for `vellum overlay`: lowerdir=TOP:NEXT:..., upperdir=
    #[arg(
        short = 'o',
        long = "options",
        value_name = "NAME=VALUE,...",
        conflicts_with = "image"
    )]
    pub options: Vec<OsString>,
    /// Look in the layers of this image
    #[arg(long, value_name = "IMAGE")]
    pub image: Option<String>,
}

impl Tree {
    /// Tells whether an option names the tree.
    pub fn is_named(&self) -> bool {
        self.image.is_some() || !self.options.is_empty()
    }
}

/// The layers to look at, and the path in them.
#[derive(Debug, Args)]
pub struct Look {
    /// Path in the tree; CONTAINER:PATH for a container's
    pub path: OsString,
    #[command(flatten)]
    /// Which tree
    pub tree: Tree,
}

/// Returns the tree to look at, and the path in it.
pub fn find(path: &OsStr, tree: &Tree) -> Result<(look::Tree, PathBuf), Failure> {
    if let Some(image) = &tree.image {
        return Ok((look::Tree::Image(image.clone()), path.into()));
    }
    if !tree.options.is_empty() {
        // Read-only is enough. A misspelled option is an error, as it is for a mount.
        let parsed =
            parse::parse(Manners::Own, &tree.options).map_err(vellum_overlay::Error::from)?;
        let here = std::env::current_dir().map_err(Error::io("find", "."))?;
        let options = parsed.options.made_absolute(&here);
        return Ok((look::Tree::Layers(Box::new(options)), path.into()));
    }
    let bytes = path.as_bytes();
    let colon = bytes.iter().position(|&b| b == b':');
    if let Some(at) = colon
        && let Ok(name) = std::str::from_utf8(&bytes[..at])
        && !name.is_empty()
        && !name.contains('/')
    {
        let inside = Path::new(OsStr::from_bytes(&bytes[at + 1..])).to_owned();
        return Ok((look::Tree::Container(name.to_owned()), inside));
    }
    Err(Failure::misused(format!(
        "which tree is {} in? write CONTAINER:PATH, or name a tree with --image or -o lowerdir=...",
        path.display()
    )))
}
