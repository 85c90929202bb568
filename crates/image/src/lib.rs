//! Images: layers as tar in and out, blobs with digests, manifests, sources and sinks.
//!
//! | question | file |
//! |---|---|
//! | how are bytes hashed as they pass | `hash.rs` |
//! | how is a blob compressed | `compression.rs` |
//! | reading, inflating and hashing at once | `stream.rs` |
//! | what does a layer's tar do to a tree | `apply.rs` |
//! | what do a tar's headers say | `tar/reader.rs` |
//! | how is a layer written again byte for byte | `recipe.rs` |
//! | is a tree what its layer's tar says | `verify.rs` |
//! | how is a new layer's tar written | `writer.rs` |
//! | what are the records of Podman's stores | `containers_storage.rs` |
//! | how do Docker and Podman keep what a tree can't say about its tar | `tar_split.rs` |
//! | how is an image named | `reference.rs` |
//! | what is an image made of, and what is its identity | `manifest.rs`, `config.rs` |
//! | how does an image run | `run_config.rs` |
//! | how is an image's JSON read | `json.rs` |
//! | which image of an index runs here | `platform.rs` |
//! | where do images come from | `source.rs` (archives, layouts), `registry.rs` |
//! | where do images go | `sink.rs` (archives, layouts), `registry.rs` |
//! | how much may an untrusted layer ask for | `limits.rs` |
//!
//! This crate never knows where trees and blobs are kept, and syncs nothing: the owner of the tree
//! does.
#![forbid(unsafe_code)]

pub mod apply;
pub mod compression;
pub mod config;
pub mod containers_storage;
mod error;
pub mod hash;
pub mod json;
pub mod limits;
pub mod manifest;
pub mod packing;
pub mod platform;
pub mod recipe;
pub mod reference;
#[cfg(feature = "registry")]
pub mod registry;
pub mod run_config;
pub mod sink;
pub mod source;
pub mod stream;
pub mod tar;
pub mod tar_split;
pub mod verify;
pub mod writer;

pub use apply::{Applied, ApplyTarget, Privilege, TargetMarks, apply};
pub use config::{ChainId, ImageConfig};
pub use error::{Error, Result};
pub use limits::Limits;
pub use manifest::Manifest;
pub use packing::Compression;
pub use platform::Platform;
pub use reference::Reference;
pub use run_config::RunConfig;
pub use stream::{BlobFacts, LayerStream, Progress};
pub use vellum_sys::Cancel;
pub use writer::{LayerWriter, TarEntry, TarKind};
