//! The verbs of Vellum: each composes the crates below into one thing that a user asks for, and
//! owns no format of its own.
//!
//! One file per verb, in a folder for its subject: [`container`], [`image`], [`layer`], [`mount`],
//! [`store`]; the requests of servers are in [`containerd`] and [`docker`]. Next to the folders is
//! what they share: [`plan`] holds the decisions of mounting as a pure function, [`config`] the
//! settings and their sources, [`context`] what every verb gets, [`serve`] the life of a server.
//! The fronts (command line, sockets) translate arguments into the request types here and results
//! back, and decide nothing.
//!
//! This crate must not know byte formats of layers or wire types of the fronts, and prints nothing:
//! it reports through [`progress::Progress`].
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
