//! `rm`: removes containers, and asks before removing one in use.

use clap::Args;
use vellum_service::Error;
use vellum_service::container::remove;

use super::{Examples, Group, Outcome, Verb, for_all};
use crate::out::stdout;
use crate::start::Start;
use crate::{complete, out};

/// Remove containers
#[derive(Debug, Args)]
pub struct Rm {
    /// Containers to remove
    #[arg(add = complete::containers(), required = true)]
    pub containers: Vec<String>,
    /// Unmount and remove mounted containers too
    #[arg(long, short)]
    pub force: bool,
}

impl Verb for Rm {
    const GROUP: Group = Group::Containers;
    const EXAMPLES: Examples = &[(
        "",
        "  vellum rm box
  vellum rm --force box",
    )];

    fn run(self, start: Start<'_>) -> Outcome {
        let ctx = &start.context()?;
        for_all(&self.containers, |name| {
            let removed = match remove::remove(ctx, name, self.force) {
                Err(Error::InUse { by, .. })
                    if !self.force
                        && out::confirm(&format!(
                            "`{name}` is in use ({by}); remove it anyway?"
                        )) =>
                {
                    remove::remove(ctx, name, true)?
                }
                other => other?,
            };
            let mut out = stdout();
            out.line(&removed.name)?;
            out.done()
        })
    }
}
