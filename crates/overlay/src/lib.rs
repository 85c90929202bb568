//! Mounts a union of given layers by Vellum's own engine.
//!
//! * [`options`]: what can be asked for, and the tables of `-o` options; [`parse`]: how `-o`
//!   strings are read; [`values`]: switches, sizes and paths as text, and suggestions for
//!   misspelled words;
//! * [`layers`]: turns directories into layers with dialects, and decides whose marks are followed;
//!   [`dialect`]: how an upper writes its own;
//! * [`fsck`]: checks the directories of a union that is not mounted;
//! * `record`: what a work directory remembers of its upper; `owners`: whose ids a container's
//!   layer holds;
//! * [`daemon`]: the process that serves; [`serve`]: what it does;
//! * [`names`] and [`program`]: the command line, under the names of other mount programs;
//!   [`report`]: how failures are printed.
//!
//! `vellum overlay`, the mount program `vellum-fuse-overlayfs` and the store's own mounts all end
//! here. This crate must not know the store, images or networks: a build of the mount program alone
//! contains none of them.
#![forbid(unsafe_code)]

pub mod daemon;
pub mod dialect;
pub mod error;
pub mod fsck;
pub mod layers;
pub mod names;
pub mod options;
mod owners;
pub mod parse;
pub mod program;
mod record;
pub mod report;
pub mod serve;
pub mod values;

pub use error::{Error, Result};
