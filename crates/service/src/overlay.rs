//! `overlay`: a union mounted by Vellum's own engine, of layers that are named one by one.
//!
//! * [`options`]: what can be asked for; [`parse`]: how it is spelled in `-o` strings.
//!
//! The command line's names (`vellum overlay`, `mount.fuse.vellum`, `fuse-overlayfs`) and the store's own mounts both end here.

pub mod layers;
pub mod options;
pub mod parse;
