//! Containers through the real command: from archive to archive, every method and driver, many
//! layers, copies, runs.

mod beside_docker;
mod changes;
mod copies;
mod cp_beside_docker;
mod engine;
mod images;
mod limits;
mod mounts;
mod runs;
#[path = "../support/mod.rs"]
mod support;
