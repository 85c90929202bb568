//! The verbs of Vellum: each composes the rooms below into one thing a user asks for, and owns no
//! format of its own.
//!
//! One file per verb, in a folder for what it is about: [`container`], [`image`], [`layer`],
//! [`mount`], [`store`]; what servers are asked is in [`containerd`] and [`docker`]. Beside the
//! folders stands what they share: [`plan`] holds the decisions of mounting as a pure function,
//! [`config`] says what is configured and by whom, [`context`] is what every verb is handed,
//! [`serve`] is the life of a server. The fronts (command line, sockets) translate arguments into
//! the request types here and results back, and decide nothing.
//!
//! This room must not know byte formats of layers or wire types of the fronts, and prints nothing:
//! it talks through [`progress::Progress`].
#![forbid(unsafe_code)]

mod base;
pub mod config;
pub mod container;
mod container_record;
pub mod containerd;
pub mod context;
pub mod cover;
pub mod docker;
pub mod error;
pub mod home;
pub mod image;
mod json;
pub mod layer;
pub mod mount;
pub mod names;
pub mod plan;
pub mod progress;
pub mod rootless;
pub mod run_dir;
pub mod serve;
mod stack;
pub mod store;

pub use context::Context;
pub use error::{Error, Result};
pub use vellum_sys::Cancel;
