//! Small helpers for stable JSON.
//!
//! Paths are written as text. Bytes that are not UTF-8 become U+FFFD: JSON has nothing better, and
//! failing because of a name would be worse; the plain listings have the bytes as they are.

use std::path::{Path, PathBuf};

use serde::Serializer;

/// Writes a path.
pub fn path<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

/// Writes a path that may be absent.
pub fn some_path<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    match path {
        Some(path) => serializer.serialize_some(&path.to_string_lossy()),
        None => serializer.serialize_none(),
    }
}

/// Writes a list of paths.
pub fn paths<S: Serializer>(paths: &[PathBuf], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(paths.iter().map(|p| p.to_string_lossy()))
}
