//! `umount`: unmounts, by container name or by directory.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Args;
use vellum_service::error::ObjectKind;
use vellum_service::mount::umount;
use vellum_service::{Error, names};

use super::{Examples, Group, Outcome, Verb, for_all};
use crate::complete;
use crate::exit_code::DONE;
use crate::start::Start;

/// Unmount containers or directories
#[derive(Debug, Args)]
pub struct Umount {
    /// Containers, or directories where Vellum has mounted something
    #[arg(add = complete::containers(), required_unless_present = "all")]
    pub names: Vec<OsString>,
    /// Unmount everything of this store
    #[arg(long, short, conflicts_with = "names")]
    pub all: bool,
    /// Detach mounts even while a process uses them
    #[arg(long, short)]
    pub force: bool,
}

impl Verb for Umount {
    const GROUP: Group = Group::Containers;
    const EXAMPLES: Examples = &[(
        "",
        "  vellum umount box
  vellum umount /mnt
  vellum umount --all",
    )];

    fn run(self, start: Start<'_>) -> Outcome {
        let ctx = &start.context()?;
        let quiet = start.quiet;
        let tell = |places: Vec<PathBuf>, if_none: &str| {
            if quiet {
                return;
            }
            if places.is_empty() {
                ctx.progress.say(if_none);
            }
            for place in places {
                ctx.progress.say(&format!("unmounted {}", place.display()));
            }
        };
        if self.all {
            tell(umount::umount_all(ctx, self.force)?, "nothing is mounted");
            return Ok(DONE);
        }
        for_all(&self.names, |name| {
            let record = name.to_str().map(|text| names::container(ctx, text));
            let places = match record {
                Some(Ok(record)) => umount::umount_container(ctx, &record, self.force)?,
                // If it is not a container, it may be a directory.
                Some(Err(
                    missing @ Error::NotFound {
                        kind: ObjectKind::Container,
                        ..
                    },
                )) => {
                    let path = Path::new(name);
                    if path.components().count() < 2 && !path.exists() {
                        return Err(missing.into());
                    }
                    umount::umount_path(ctx, path, self.force)?
                }
                Some(Err(e)) => return Err(e.into()),
                None => umount::umount_path(ctx, Path::new(name), self.force)?,
            };
            tell(places, &format!("{} is not mounted", name.display()));
            Ok(())
        })
    }
}
