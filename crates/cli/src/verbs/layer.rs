//! `layer`: creates layers from other layers, given as directories.

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

/// Create layers from other layers: merge, squash, convert
#[derive(Debug, Subcommand)]
pub enum Layer {
    /// Merge an upper into the layer below it, which then shows what both showed together
    Merge(LayerMerge),
    /// Combine several layers into one that shows the same
    Squash(LayerSquash),
    /// Rewrite a layer's marks in another dialect
    Convert(LayerConvert),
}

/// The dialect in which marks are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Marks {
    /// Like kernel mounts by root: devices 0:0 and trusted.overlay.*
    Trusted,
    /// Like mounts in a user namespace: devices 0:0 and user.overlay.*
    User,
    /// Like archives, AUFS and unprivileged fuse-overlayfs: .wh. files
    Wh,
}

/// `layer merge`
#[derive(Debug, Args)]
pub struct LayerMerge {
    /// Upper directory to merge
    #[arg(value_hint = ValueHint::DirPath)]
    pub upper: PathBuf,
    /// Layer below it; replaced in one step
    #[arg(value_hint = ValueHint::DirPath)]
    pub lower: PathBuf,
    #[command(flatten)]
    /// How layers are read and written
    pub how: LayerHow,
}

/// `layer squash`
#[derive(Debug, Args)]
pub struct LayerSquash {
    /// Layers to combine, top first
    #[arg(required = true, value_hint = ValueHint::DirPath)]
    pub layers: Vec<PathBuf>,
    /// Directory for the new layer; must not exist yet
    #[arg(short = 'O', long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub output: PathBuf,
    /// Write a whole tree without marks, since nothing lies below the layers
    #[arg(long, conflicts_with = "marks")]
    pub whole: bool,
    #[command(flatten)]
    /// How layers are read and written
    pub how: LayerHow,
}

/// `layer convert`
#[derive(Debug, Args)]
pub struct LayerConvert {
    /// Layer to convert; replaced in one step, unless --output names another place
    #[arg(value_hint = ValueHint::DirPath)]
    pub layer: PathBuf,
    /// Directory for the new layer; must not exist yet
    #[arg(short = 'O', long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub output: Option<PathBuf>,
    #[command(flatten)]
    /// How layers are read and written
    pub how: LayerHow,
}

/// How layers are read and written.
#[derive(Clone, Debug, Args)]
pub struct LayerHow {
    /// How to write the result's marks [default: as this user's mounts do]
    #[arg(long, value_name = "DIALECT")]
    pub marks: Option<Marks>,
    /// Layer below the given ones (repeatable, top first). `convert` reads the content of renamed
    /// directories and metacopy files from it; `merge` and `squash` drop whiteouts that it doesn't
    /// need
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub below: Vec<PathBuf>,
    /// Accepted without effect: marks are always written so that every reader understands them
    #[arg(long)]
    pub plain: bool,
    /// Work directory of the (top) layer, if that was an upper; needed for files copied up block by
    /// block
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub work: Option<PathBuf>,
    /// Read marks in user.overlay.*, whatever the records next to the layers say
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
        read: args.userxattr.then_some(Prefix::User),
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
            "left out, because a layer can't hold sockets: {}",
            path.display()
        ));
    }
    let mut out = stdout();
    out.line(made.layer.as_os_str().as_bytes())?;
    out.done()?;
    Ok(DONE)
}
