//! `overlay`: mounts directories with Vellum's own engine. It needs neither store nor settings.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueHint};
use vellum_overlay::names::Call;
use vellum_overlay::options::{Manners, listed};
use vellum_overlay::program;

use super::{Examples, Group, Outcome, Verb};
use crate::start::Start;

/// Mount a union of directories with Vellum's own engine
#[derive(Debug, Args)]
pub struct Overlay {
    /// Mount point; mount(8) passes a source first, which only the mount table shows
    #[arg(required = true, num_args = 1..=2, value_name = "MERGED", value_hint = ValueHint::DirPath)]
    pub places: Vec<PathBuf>,
    /// Layers and mount options, separated by commas (repeatable)
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
    /// Stay in the foreground and log every request
    #[arg(short, long)]
    pub debug: bool,
}

impl Verb for Overlay {
    const GROUP: Group = Group::Unions;
    const EXAMPLES: Examples = &[(
        "",
        "  vellum overlay -o lowerdir=/layers/top:/layers/base,upperdir=/up,workdir=/work /merged
  vellum overlay -o lowerdir=/layers/a:/layers/b /merged                 read-only
  vellum overlay -o lowerdir=/a,upperdir=/u,workdir=/w,size=2G,settle=unmount /merged
  umount /merged                                   as a plain user: fusermount3 -u /merged",
    )];

    fn notes() -> String {
        format!(
            "All options of fuse-overlayfs and of the kernel's overlayfs are accepted; docs/overlay.md explains each.\n{}",
            listed()
        )
    }

    fn run(self, start: Start<'_>) -> Outcome {
        let started = start.started;
        let mut places = self.places;
        let target = places.pop().unwrap_or_default();
        let mut options = self.options;
        if let Some(source) = places.pop() {
            let mut text = OsString::from("fsname=");
            text.push(source);
            options.insert(0, text);
        }
        if self.debug {
            options.push("debug".into());
        }
        let call = Call {
            target,
            options,
            foreground: self.foreground,
            ignored: Vec::new(),
        };
        Ok(program::mount(Manners::Own, "vellum", call, started)?)
    }
}
