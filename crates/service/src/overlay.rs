//! `overlay`: a union mounted by Vellum's own engine, of layers that are named one by one.
//!
//! * [`options`]: what can be asked for; [`parse`]: how it is spelled in `-o` strings;
//! * [`layers`]: from directories to layers with dialects: whose marks are followed; `dialect`: how an upper writes its own;
//! * `record`: what a work directory remembers of its upper; `owners`: whose ids a container's layer holds;
//! * [`daemon`]: the process that serves; [`serve`]: what it does;
//! * [`settle`]: files that are partly in lower layers are made whole.
//!
//! The command line's names (`vellum overlay`, `mount.fuse.vellum`, `fuse-overlayfs`) and the store's own mounts both end here.

pub mod daemon;
mod dialect;
pub mod layers;
pub mod options;
mod owners;
pub mod parse;
mod record;
pub mod serve;
pub mod settle;
