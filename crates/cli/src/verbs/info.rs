//! `info`: shows the machine, the store, the limits here, and the settings.

use clap::Args;
use vellum_service::config::Driver;
use vellum_service::store::info as infos;

use super::{Examples, Group, Outcome, Verb};
use crate::args::Output;
use crate::exit_code::DONE;
use crate::out::stdout;
use crate::start::Start;

/// Show driver, file system, kernel features, limits and settings
#[derive(Debug, Args)]
pub struct Info {
    #[command(flatten)]
    /// How results are printed
    pub output: Output,
}

impl Verb for Info {
    const GROUP: Group = Group::Store;
    const CREATES_A_STORE: bool = true;
    const EXAMPLES: Examples = &[(
        "",
        "  vellum info
  vellum info --json",
    )];

    fn run(self, start: Start<'_>) -> Outcome {
        let ctx = &start.context()?;
        let info = infos::info(ctx)?;
        let mut out = stdout();
        if self.output.json {
            out.json(&info)?;
            out.done()?;
            return Ok(DONE);
        }
        let yes = |b: bool| if b { "true" } else { "false" };
        let kernel = &info.kernel;
        let mut line = |name: &str, value: &str| out.line(format!("{name}: {value}"));
        line("Vellum", info.version)?;
        line("Storage Driver", &info.driver)?;
        line(" Backing Filesystem", &info.backing_filesystem)?;
        line(" Supports d_type", yes(info.supports_d_type))?;
        line(" Whiteouts", info.whiteouts)?;
        line(" Native Overlay Diff", yes(info.native_diff))?;
        line(" userxattr", yes(info.userxattr))?;
        line(" Project Quota", info.project_quota)?;
        line(" Reflink", yes(info.reflink))?;
        line("Store", &info.root.display().to_string())?;
        line(" Schema", &info.schema.to_string())?;
        line(" Images", &info.images.to_string())?;
        line(" Containers", &info.containers.to_string())?;
        line(" Volumes", &info.volumes.to_string())?;
        for driver in Driver::ALL.map(Driver::as_str) {
            for (_, count) in info.snapshots.iter().filter(|(of, _)| of == driver) {
                line(&format!(" Trees of {driver}"), &count.to_string())?;
            }
        }
        line("Run Directory", &info.run_dir.display().to_string())?;
        line("Kernel", &kernel.release)?;
        line(" Layers as Descriptors (6.13)", yes(kernel.layer_fds))?;
        line(
            " Layers One by One, lowerdir+ (6.8)",
            yes(kernel.lowerdir_plus),
        )?;
        line(" redirect_dir", yes(kernel.redirect_dir))?;
        line(" metacopy", yes(kernel.metacopy))?;
        line(" index", yes(kernel.index))?;
        line(" xino", yes(kernel.xino))?;
        line(" FUSE over io_uring", info.fuse_io_uring)?;
        line("Mount Method", info.mount_method)?;
        line("Most Layers", &info.max_layers.to_string())?;
        line("Rootless", yes(info.rootless))?;
        out.line("Limits:")?;
        for limit in &info.limits {
            out.line(format!(" {}: {}", limit.what, limit.why))?;
        }
        out.line("Settings:")?;
        for setting in &info.settings {
            out.line(format!(
                " {} = {} ({})",
                setting.name, setting.value, setting.source
            ))?;
        }
        out.done()?;
        Ok(DONE)
    }
}
