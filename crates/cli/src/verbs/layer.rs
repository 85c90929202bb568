//! `layer`: layers of layers, in directories that are named one by one.

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum, ValueHint};
use vellum_format::Prefix;
use vellum_service::layer::{How, Input, Made, Marks as Written};
use vellum_service::{Context, layer};

use super::{Examples, Group, Outcome, Verb};
use crate::exit_code::DONE;
use crate::out::stdout;
use crate::start::Start;

/// Make layers of layers: merge, squash, convert
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
    /// A layer below those; again for the next. To convert: where renamed directories and files
    /// without data have their content. Else: what need not be hidden
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub below: Vec<PathBuf>,
    /// Leave only marks that every reader understands; this is always so
    #[arg(long)]
    pub plain: bool,
    /// The work directory that goes with the (top) layer, if it was an upper: for files copied up
    /// block by block
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub work: Option<PathBuf>,
    /// Read marks of user.overlay.* (as root: instead of trusted.overlay.*)
    #[arg(long)]
    pub userxattr: bool,
}

impl Verb for Layer {
    const GROUP: Group = Group::Unions;
    const EXAMPLES: Examples = &[
        (
            "",
            "  vellum layer merge ./upper ./lower
  vellum layer squash ./top ./next ./base --output ./one
  vellum layer convert ./upper --below ./lower --marks wh --output ./plain",
        ),
        (
            "merge",
            "  vellum layer merge ./upper ./lower --work ./work",
        ),
        (
            "squash",
            "  vellum layer squash ./top ./next --below ./base --output ./both
  vellum layer squash ./top ./next ./base --whole --output ./tree",
        ),
        (
            "convert",
            "  vellum layer convert ./upper --marks user
  vellum layer convert ./upper --work ./work --below ./lower --plain
  vellum layer convert ./layer --marks wh --output ./for-aufs",
        ),
    ];

    fn run(self, mut start: Start<'_>) -> Outcome {
        start.needs_store = false;
        let ctx = &start.context()?;
        let made = match self {
            Layer::Merge(a) => {
                let upper = Input {
                    dir: a.upper,
                    work: a.how.work.clone(),
                };
                layer::merge(
                    &upper,
                    &a.lower,
                    &a.how.below,
                    how(ctx, &a.how, false),
                    &ctx.cancel,
                )?
            }
            Layer::Squash(a) => {
                let mut layers: Vec<Input> = a
                    .layers
                    .into_iter()
                    .map(|dir| Input { dir, work: None })
                    .collect();
                if let Some(top) = layers.first_mut() {
                    top.work = a.how.work.clone();
                }
                layer::squash(
                    &layers,
                    &a.how.below,
                    &a.output,
                    how(ctx, &a.how, a.whole),
                    &ctx.cancel,
                )?
            }
            Layer::Convert(a) => {
                let input = Input {
                    dir: a.layer,
                    work: a.how.work.clone(),
                };
                layer::convert(
                    &input,
                    &a.how.below,
                    a.output.as_deref(),
                    how(ctx, &a.how, false),
                    &ctx.cancel,
                )?
            }
        };
        tell(ctx, &made)
    }
}

fn how(ctx: &Context, args: &LayerHow, whole: bool) -> How {
    let usual = How::usual(ctx.process);
    How {
        read: match args.userxattr {
            true => Prefix::User,
            false => usual.read,
        },
        write: match (whole, args.marks) {
            (true, _) => Written::Whole,
            (false, None) => usual.write,
            (false, Some(Marks::Trusted)) => Written::Kernel(Prefix::Trusted),
            (false, Some(Marks::User)) => Written::Kernel(Prefix::User),
            (false, Some(Marks::Wh)) => Written::WhNames,
        },
        process: ctx.process,
    }
}

fn tell(ctx: &Context, made: &Made) -> Outcome {
    for path in &made.left_out {
        ctx.progress.say(&format!(
            "left out, since a layer holds no sockets: {}",
            path.display()
        ));
    }
    let mut out = stdout();
    out.line(made.layer.as_os_str().as_bytes())?;
    out.done()?;
    Ok(DONE)
}
