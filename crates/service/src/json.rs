//! Small helpers for stable JSON.

use std::path::Path;

use serde::Serializer;

/// Writes a path as text. Bytes that are no UTF-8 become U+FFFD: JSON has no better; `--tar` and the plain listing have the bytes.
pub fn path<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}
