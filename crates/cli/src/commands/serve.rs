//! `serve`: what goes on until it is told to end. Everything it says is a log, on stderr.

use vellum_graphdriver::ServeError;
use vellum_service::Context;

use super::Outcome;
use crate::args;
use crate::exit_code::{DONE, Failure};

/// `serve docker`
pub fn docker(ctx: Context, args: args::ServeDocker) -> Outcome {
    match vellum_graphdriver::serve(ctx, &args.socket) {
        Ok(()) => Ok(DONE),
        Err(ServeError::Verb(error)) => Err(error.into()),
        Err(error @ ServeError::Io { .. }) => {
            let mut text = error.to_string();
            if let Some(cause) = std::error::Error::source(&error) {
                text.push_str(&format!(": {cause}"));
            }
            Err(Failure::other(text))
        }
    }
}
