//! Shared test code of all crates.
//!
//! * [`scratch`]: temporary directories and whole file systems (loop-mounted or in memory) that are
//!   gone after the test, also after a panic.
//! * [`tree`]: a picture of a directory tree with everything a user can see of it, and a comparison
//!   entry by entry.
//! * [`kernel`]: overlay mounts by the kernel, made without Vellum's own mount code, to compare
//!   with.
//! * [`caching`]: every operation with every attribute, for cached mounts.
//! * [`clients`]: real container tools (dockerd, podman, buildah, skopeo, umoci) with stores of
//!   their own.
//! * [`model`]: the merge of layers, written a second time, in memory and without looking at the
//!   first.
//! * [`seam`]: faults and power cuts at every system call that a piece of code makes, in this
//!   process and without root.
//! * [`fault`]: the same for a whole program, by strace: kills of a real process.
//! * [`churn`]: random trees, and random changes of every kind.
//! * [`user`]: a plain user with subordinate ids, for what must work without root.
//! * [`rng`]: random choices with a printed seed. `VELLUM_SEED=N` repeats a run.
//! * [`script`]: random steps that are recorded, and shrink when they fail.
//! * [`untested`](untested()): reports and counts what could not be tested here. Nothing is ever
//!   skipped silently.
//!
//! Nothing in a product may depend on this crate. It may panic: a test that can't be set up has
//! failed.
#![deny(unsafe_code)]

pub mod caching;
pub mod churn;
pub mod clients;
pub mod fault;
pub mod kernel;
pub mod model;
pub mod rng;
pub mod scratch;
pub mod script;
pub mod seam;
pub mod tree;
mod untested;
pub mod user;

pub use rng::Rng;
pub use scratch::{FsKind, Scratch};
pub use tree::Tree;
pub use untested::{is_root, needs_root, untested};
pub use user::PlainUser;
