//! Docker's graph driver plugin protocol: HTTP in, verbs of `service` out. It translates and never
//! decides.
//!
//! The daemon finds the plugin by its socket, asks what it implements, says once where its data
//! lies and from then on calls the driver by the ids of layers. [`wire`] has the shapes of
//! questions and answers, [`calls`] one function per call, [`bodies`] the two that carry tars,
//! [`server`] what is listened on. What a call means is told at [`vellum_service::docker::Graph`].
//!
//! What is peculiar to this protocol, and holds here:
//! * The daemon says `Init` to the plugin it finds when it starts, and never again: a plugin
//!   started anew goes on from what was kept.
//! * It tries a call again when the connection breaks, so every call may come twice.
//! * An error of `Diff` must not come with status 200: the daemon takes it for a tar. Here no error
//!   does.
//! * Ids in the address of `ApplyDiff` are not escaped, so nothing in them is unescaped.
//! * A body comes in chunks or with its length told beforehand; it is read to its end also when it
//!   is refused, since the daemon can't send it twice.
#![forbid(unsafe_code)]

mod answers;
mod bodies;
mod calls;
mod server;
mod wire;

pub use server::serve;
