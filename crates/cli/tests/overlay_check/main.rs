//! `check --layers`: no false alarm on what the kernel, fuse-overlayfs and Vellum's engine wrote,
//! every damage found by its path, and mounted overlays refused.

mod clean;
mod damage;
mod hostile;
mod refused;
mod rig;
#[path = "../support/mod.rs"]
mod support;
