//! `settle`: makes an upper plain, so that it doesn't depend on lower files.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueHint};
use vellum_overlay::options::Manners;
use vellum_overlay::parse;
use vellum_service::Error;
use vellum_service::layer::settle;

use super::{Examples, Group, Outcome, Verb};
use crate::exit_code::{DONE, Failure};
use crate::out::{self, stdout};
use crate::start::Start;

/// Complete an upper: copy into it the file data that is still in lower layers
#[derive(Debug, Args)]
pub struct Settle {
    /// Upper directory of a union that is not mounted; or a container, if WORK is not given
    #[arg(value_hint = ValueHint::DirPath)]
    pub upper: PathBuf,
    /// Work directory of the upper
    #[arg(value_hint = ValueHint::DirPath)]
    pub work: Option<PathBuf>,
    /// Mount options that the upper was used with; only lowerdir= and userxattr matter
    #[arg(
        short = 'o',
        long = "options",
        value_name = "NAME=VALUE,...",
        requires = "work"
    )]
    pub options: Vec<OsString>,
}

impl Verb for Settle {
    const GROUP: Group = Group::Unions;
    const EXAMPLES: Examples = &[(
        "",
        "  vellum settle /up /work
  vellum settle box
  vellum settle /up /work -o lowerdir=/layers/top:/layers/base        if the layers were moved",
    )];

    fn run(self, mut start: Start<'_>) -> Outcome {
        start.needs_store = self.work.is_none();
        let ctx = &start.context()?;
        let here = std::env::current_dir().map_err(Error::io("find", "."))?;
        let options = match self.options.is_empty() {
            true => None,
            false => {
                let parsed = parse::parse(Manners::Own, &self.options)
                    .map_err(vellum_overlay::Error::from)?;
                Some(parsed.options.made_absolute(&here))
            }
        };
        let done = match &self.work {
            Some(work) => settle::settle(
                &self.upper,
                work,
                options.as_ref(),
                &mut |_| {},
                &ctx.cancel,
            )?,
            None => {
                let Some(name) = self.upper.to_str() else {
                    return Err(Failure::misused("a container's name must be UTF-8"));
                };
                settle::settle_container(ctx, name, &mut |_| {})?
            }
        };
        let mut out = stdout();
        out.line(format!(
            "settled {}, copied {}",
            out::counted(done.done.files, "file"),
            out::bytes(done.done.bytes)
        ))?;
        out.done()?;
        Ok(DONE)
    }
}
