//! `diff`: lists a container's changes, or writes them as a tar.

use std::os::unix::ffi::OsStrExt;

use clap::Args;
use vellum_service::{Error, names};

use super::{Examples, Group, Outcome, Verb};
use crate::args::Output;
use crate::exit_code::DONE;
use crate::out::stdout;
use crate::start::Start;
use crate::{complete, out};

/// List what a container changed: A added, C changed, D deleted
#[derive(Debug, Args)]
pub struct Diff {
    /// Container to compare with what it started from
    #[arg(add = complete::containers())]
    pub container: String,
    /// Write the changes to stdout as a layer tar
    #[arg(long, conflicts_with = "json")]
    pub tar: bool,
    #[command(flatten)]
    /// How results are printed
    pub output: Output,
}

impl Verb for Diff {
    const GROUP: Group = Group::Containers;
    const EXAMPLES: Examples = &[(
        "",
        "  vellum diff box
  vellum diff box --tar | tar -tv",
    )];

    fn run(self, start: Start<'_>) -> Outcome {
        let ctx = &start.context()?;
        if self.tar {
            out::refuse_terminal("a tar")?;
            let record = names::container(ctx, &self.container)?;
            let mut tar = vellum_service::image::changes_tar(ctx, &record)
                .map_err(|error| names::unless_gone(ctx, &record, &self.container, error))?;
            let copied = copy_out(&mut tar);
            names::still_there(ctx, &record, &self.container)?;
            return copied;
        }
        let mut out = stdout();
        if self.output.json {
            let mut lines = Vec::new();
            vellum_service::container::diff::diff(ctx, &self.container, |line| {
                lines.push(line);
                Ok(())
            })?;
            out.json(&lines)?;
        } else {
            let mut written = Ok(());
            let listed = vellum_service::container::diff::diff(ctx, &self.container, |line| {
                let mut bytes = vec![line.kind as u8, b' '];
                bytes.extend_from_slice(line.path.as_os_str().as_bytes());
                written = out.line(bytes);
                // The reader is gone: stop as if cancelled.
                if written.is_err() {
                    Err(Error::Cancelled)
                } else {
                    Ok(())
                }
            });
            written?;
            listed?;
        }
        out.done()?;
        Ok(DONE)
    }
}

/// Copies a stream to stdout.
fn copy_out(from: &mut impl std::io::Read) -> Outcome {
    let mut out = stdout();
    let mut buffer = vec![0; 128 << 10];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(got) => out.bytes(&buffer[..got])?,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::io("read", "the changes")(e).into()),
        }
    }
    out.done()?;
    Ok(DONE)
}
