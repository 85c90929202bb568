//! Shell completion: verbs and options from the command definition, names from the store.
//!
//! The shell runs this program with [`VARIABLE`] set and the words typed so far, and offers what it
//! prints. If the store can't be read, for example for lack of permission, nothing is offered and
//! no error is printed.

use std::sync::Arc;

use clap_complete::env::{CompleteEnv, Shells};
use clap_complete::{ArgValueCandidates, CompletionCandidate};
use vellum_service::config::{self, Partial};
use vellum_service::container::list;
use vellum_service::container::volumes;
use vellum_service::progress::Silent;
use vellum_service::{Cancel, Context, image, rootless};

use crate::{help, start};

/// Set by the scripts that [`script`] writes.
const VARIABLE: &str = "VELLUM_COMPLETE";

/// If a shell asks for completions, answers it and exits.
pub fn answer() {
    if std::env::var_os(VARIABLE).is_some() {
        CompleteEnv::with_factory(help::command)
            .var(VARIABLE)
            .complete();
    }
}

/// Returns the completion script for a shell; `None` for an unknown shell.
pub fn script(shell: &str) -> Option<std::io::Result<Vec<u8>>> {
    let shells = Shells::builtins();
    let completer = shells.completer(shell)?;
    let mut script = Vec::new();
    let written = completer.write_registration(VARIABLE, "vellum", "vellum", "vellum", &mut script);
    if shell == "zsh" {
        // As a file on the function path, the script defines the function at its first use, and
        // must answer that first use as well.
        script.extend_from_slice(
            b"if [ \"$funcstack[1]\" = \"_vellum\" ]; then\n    _clap_dynamic_completer_vellum \"$@\"\nfi\n",
        );
    }
    Some(written.map(|()| script))
}

/// Names of containers.
pub fn containers() -> ArgValueCandidates {
    ArgValueCandidates::new(|| offered(&[names_of_containers]))
}

/// Names of images.
pub fn images() -> ArgValueCandidates {
    ArgValueCandidates::new(|| offered(&[names_of_images]))
}

/// Names of volumes.
pub fn volumes() -> ArgValueCandidates {
    ArgValueCandidates::new(|| offered(&[names_of_volumes]))
}

/// Names of containers, images and volumes.
pub fn anything() -> ArgValueCandidates {
    ArgValueCandidates::new(|| offered(&[names_of_containers, names_of_images, names_of_volumes]))
}

type Names = vellum_service::Result<Vec<String>>;

fn names_of_containers(ctx: &Context) -> Names {
    let all = list::list(ctx, None, false)?;
    Ok(all.into_iter().map(|found| found.name).collect())
}

fn names_of_images(ctx: &Context) -> Names {
    let all = image::images(ctx, None)?;
    Ok(all.into_iter().flat_map(|found| found.names).collect())
}

fn names_of_volumes(ctx: &Context) -> Names {
    let all = volumes::list(ctx)?;
    Ok(all.into_iter().map(|found| found.name).collect())
}

/// Returns candidates from the store that the environment and the configuration files name. Flags
/// typed earlier on the command line are ignored.
fn offered(kinds: &[fn(&Context) -> Names]) -> Vec<CompletionCandidate> {
    let around = start::surroundings(&rootless::identity());
    let Ok(config) = config::resolve(&around, None, Partial::default()) else {
        return Vec::new();
    };
    let ctx = Context::new(config, Cancel::new(), Arc::new(Silent)).on_an_existing_store();
    let names = kinds
        .iter()
        .flat_map(|names| names(&ctx).unwrap_or_default());
    names.map(CompletionCandidate::new).collect()
}
