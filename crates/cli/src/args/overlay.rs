//! Arguments of the verbs on unions: mounts of our own engine, and layers that are named one by one.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum, ValueHint};

use super::Output;

/// `overlay`
#[derive(Debug, Args)]
pub struct Overlay {
    /// Where the union shows; mount(8) writes a source before it
    #[arg(required = true, num_args = 1..=2, value_name = "MERGED", value_hint = ValueHint::DirPath)]
    pub places: Vec<PathBuf>,
    /// Layers and how they are mounted, separated by commas; may be given again
    #[arg(
        short = 'o',
        long = "options",
        value_name = "NAME=VALUE,...",
        required = true
    )]
    pub options: Vec<OsString>,
    /// Stay in the foreground
    #[arg(short, long)]
    pub foreground: bool,
    /// Stay in the foreground and tell every request
    #[arg(short, long)]
    pub debug: bool,
}

/// `settle`
#[derive(Debug, Args)]
pub struct Settle {
    /// The upper directory of a union that is not mounted; or, without WORK, a container
    #[arg(value_hint = ValueHint::DirPath)]
    pub upper: PathBuf,
    /// Its work directory
    #[arg(value_hint = ValueHint::DirPath)]
    pub work: Option<PathBuf>,
    /// The mount options it was used with: lowerdir= and userxattr count
    #[arg(
        short = 'o',
        long = "options",
        value_name = "NAME=VALUE,...",
        requires = "work"
    )]
    pub options: Vec<OsString>,
}

/// Which layers are looked at, and where.
#[derive(Debug, Args)]
pub struct Look {
    /// The path in the tree; CONTAINER:PATH for a container's
    pub path: OsString,
    #[command(flatten)]
    /// Which tree
    pub tree: Tree,
}

/// Which layers are looked at.
#[derive(Debug, Args)]
pub struct Tree {
    /// Layers as for `vellum overlay`: lowerdir=TOP:NEXT:..., and upperdir= on top
    #[arg(
        short = 'o',
        long = "options",
        value_name = "NAME=VALUE,...",
        conflicts_with = "image"
    )]
    pub options: Vec<OsString>,
    /// The layers of an image
    #[arg(long, value_name = "IMAGE")]
    pub image: Option<String>,
}

impl Tree {
    /// Tells whether it is named by an option.
    pub fn is_named(&self) -> bool {
        self.image.is_some() || !self.options.is_empty()
    }
}

/// `cat`
#[derive(Debug, Args)]
pub struct Cat {
    #[command(flatten)]
    /// What is read
    pub look: Look,
}

/// `explain`
#[derive(Debug, Args)]
pub struct Explain {
    #[command(flatten)]
    /// What is explained
    pub look: Look,
    #[command(flatten)]
    /// How results are printed
    pub output: Output,
}

/// `layer`
#[derive(Debug, Subcommand)]
pub enum Layer {
    /// Fold an upper into the layer below it, which then shows what both showed
    Merge(LayerMerge),
    /// Make one layer that shows what several show
    Squash(LayerSquash),
    /// Write a layer's marks anew, in another dialect
    Convert(LayerConvert),
}

/// How marks are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Marks {
    /// As root's kernel mounts: devices 0:0 and trusted.overlay.*
    Trusted,
    /// As mounts in a user namespace: devices 0:0 and user.overlay.*
    User,
    /// As archives, AUFS and fuse-overlayfs without privilege: .wh. files
    Wh,
}

/// `layer merge`
#[derive(Debug, Args)]
pub struct LayerMerge {
    /// The upper directory
    #[arg(value_hint = ValueHint::DirPath)]
    pub upper: PathBuf,
    /// The layer below it; it is replaced in one step
    #[arg(value_hint = ValueHint::DirPath)]
    pub lower: PathBuf,
    #[command(flatten)]
    /// How layers are read and written
    pub how: LayerHow,
}

/// `layer squash`
#[derive(Debug, Args)]
pub struct LayerSquash {
    /// The layers, top first
    #[arg(required = true, value_hint = ValueHint::DirPath)]
    pub layers: Vec<PathBuf>,
    /// The new layer; there must be nothing yet
    #[arg(short = 'O', long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub output: PathBuf,
    /// Nothing lies below: the result is a whole tree without marks
    #[arg(long, conflicts_with = "marks")]
    pub whole: bool,
    #[command(flatten)]
    /// How layers are read and written
    pub how: LayerHow,
}

/// `layer convert`
#[derive(Debug, Args)]
pub struct LayerConvert {
    /// The layer; it is replaced in one step, unless --output names another place
    #[arg(value_hint = ValueHint::DirPath)]
    pub layer: PathBuf,
    /// The new layer; there must be nothing yet
    #[arg(short = 'O', long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub output: Option<PathBuf>,
    #[command(flatten)]
    /// How layers are read and written
    pub how: LayerHow,
}

/// How layers are read and written.
#[derive(Clone, Debug, Args)]
pub struct LayerHow {
    /// How the result's marks are written [default: as this user's mounts write them]
    #[arg(long, value_name = "DIALECT")]
    pub marks: Option<Marks>,
    /// A layer below those; again for the next. To convert: where renamed directories and files without data have their content. Else: what need not be hidden
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub below: Vec<PathBuf>,
    /// Leave only marks that every reader understands; this is always so
    #[arg(long)]
    pub plain: bool,
    /// The work directory that goes with the (top) layer, if it was an upper: for files copied up block by block
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub work: Option<PathBuf>,
    /// Read marks of user.overlay.* (as root: instead of trusted.overlay.*)
    #[arg(long)]
    pub userxattr: bool,
}
