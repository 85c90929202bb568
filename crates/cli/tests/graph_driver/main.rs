//! The graph driver plugin, tested through its protocol: what Docker's own suite for graph drivers
//! checks, and what it leaves out.
//!
//! Each test runs with every storage driver and both engines.

mod diffs;
mod driver;
mod mounts;
mod protocol;
mod trees;
