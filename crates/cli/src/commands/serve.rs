//! `serve`: what goes on until it is told to end. Everything it says is a log, on stderr.

use vellum_service::Context;
use vellum_service::serve::ServeError;
use vellum_service::snapshots::Terms;
use vellum_snapshotter::server::{self, Reload, ServeOptions};
use vellum_sys::with_causes;

use super::Outcome;
use crate::args;
use crate::exit_code::{DONE, Failure};

/// `serve containerd`. `reload` resolves the settings of this command line anew.
pub fn containerd(ctx: Context, args: args::ServeContainerd, reload: Reload) -> Outcome {
    let options = ServeOptions {
        terms: Terms {
            upperdir_label: args.upperdir_label,
            remap_ids: args.remap_ids,
            sync_remove: args.sync_remove,
            staged_layers: args.staged_layers,
        },
        metrics: args.metrics,
        socket: args.socket,
        containerd: args.containerd,
        reload,
    };
    ended(server::serve(ctx, options))
}

/// `serve docker`
pub fn docker(ctx: Context, args: args::ServeDocker) -> Outcome {
    ended(vellum_graphdriver::serve(ctx, &args.socket))
}

fn ended(served: Result<(), ServeError>) -> Outcome {
    match served {
        Ok(()) => Ok(DONE),
        Err(ServeError::Verb(error)) => Err(error.into()),
        Err(error) => Err(Failure::other(with_causes(&error))),
    }
}
