//! The verbs of Vellum: each composes the rooms below into one thing a user asks for, and owns no format of its own.
//!
//! One file per verb (`create.rs`, `commit.rs`, ...). [`plan`] holds the decisions of mounting as a pure function; [`config`] says what is
//! configured and by whom; [`context`] is what every verb is handed; [`serve`] is the life of a server. The fronts (command line, sockets) translate arguments into the
//! request types here and results back, and decide nothing.
//!
//! This room must not know byte formats of layers or wire types of the fronts, and prints nothing: it talks through [`progress::Progress`].
#![forbid(unsafe_code)]

mod base;
pub mod bundle;
pub mod check;
pub mod config;
pub mod container;
pub mod containers;
pub mod context;
pub mod cover;
pub mod cp;
pub mod create;
pub mod diff;
pub mod differ;
pub mod error;
pub mod export;
pub mod facts;
pub mod graph;
pub mod home;
pub mod image;
pub mod info;
pub mod inspect;
mod json;
pub mod keep;
pub mod layer;
pub mod layer_tar;
mod limit;
pub mod listen;
pub mod look;
pub mod mount;
pub mod names;
mod on_parents;
pub mod plan;
pub mod progress;
pub mod rootless;
pub mod run;
pub mod run_dir;
pub mod serve;
pub mod settle;
pub mod snapshots;
pub mod umount;
pub mod volumes;

pub use context::Context;
pub use error::{Error, Result};
pub use vellum_sys::Cancel;
