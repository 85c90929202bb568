//! Docker's graph driver plugin protocol: translates HTTP calls to verbs of `service`, and decides
//! nothing itself.
//!
//! The daemon finds the plugin by its socket, asks what it implements, says once where its data is,
//! and from then on calls the driver with the ids of layers. [`wire`] has the shapes of requests
//! and answers, [`calls`] one function per call, [`bodies`] the two calls that carry tars,
//! [`server`] the listener. What each call means is documented at
//! [`vellum_service::docker::Graph`].
//!
//! Peculiarities of this protocol, and how they are handled here:
//! * The daemon calls `Init` once, when it starts. A plugin that is restarted continues from what
//!   it has stored.
//! * The daemon retries a call when the connection breaks, so every call may come twice.
//! * An error of `Diff` must not have status 200, or the daemon takes it for a tar. Here no error
//!   has that status.
//! * The daemon doesn't escape the ids in the URL of `ApplyDiff`, so they are not unescaped here.
//! * A body comes in chunks or with a length. It is read to its end even if the call is refused,
//!   because the daemon can't send it twice.
#![forbid(unsafe_code)]

mod answers;
mod bodies;
mod calls;
mod server;
mod wire;

pub use server::serve;
