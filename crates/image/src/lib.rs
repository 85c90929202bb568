//! Images: layers as tar in and out, blobs with digests, manifests, sources and sinks.
//!
//! | question | file |
//! |---|---|
//! | what is a digest, who hashes | `digest.rs` |
//! | how is a blob compressed | `compression.rs` |
//! | reading, inflating and hashing at once | `stream.rs` |
//! | what does a layer's tar do to a tree | `apply.rs` |
//! | how does a layer come out again byte for byte | `recipe.rs` |
//! | how is a new layer's tar written | `writer.rs` |
//! | how much may a stranger's layer ask for | `limits.rs` |
//!
//! This room never knows where trees and blobs are kept, and syncs nothing: whoever owns the tree does.
#![forbid(unsafe_code)]

pub mod compression;
pub mod digest;
mod error;
pub mod limits;
pub mod stream;

pub use compression::Compression;
pub use digest::Digest;
pub use error::{Error, Result};
pub use limits::Limits;
pub use stream::{BlobFacts, LayerStream, Progress};
