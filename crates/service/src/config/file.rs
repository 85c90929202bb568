//! Configuration files: TOML with the keys of [`Partial`].

use std::io::ErrorKind;
use std::path::Path;

use super::{ConfigError, Partial};

/// Reads `path`. A missing file is `None` unless it is `required`.
pub(super) fn read(path: &Path, required: bool) -> Result<Option<Partial>, ConfigError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e)
            if !required && matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
        {
            return Ok(None);
        }
        // A user without access to root's home has no file there.
        Err(e)
            if !required
                && e.kind() == ErrorKind::PermissionDenied
                && !path.starts_with("/etc") =>
        {
            return Ok(None);
        }
        Err(source) => {
            return Err(ConfigError::Read {
                path: path.into(),
                source,
            });
        }
    };
    let partial = toml::from_str(&text).map_err(|source| ConfigError::Parse {
        path: path.into(),
        source: Box::new(source),
    })?;
    Ok(Some(partial))
}
