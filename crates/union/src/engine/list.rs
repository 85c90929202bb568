//! Listing a directory, with cookies that stay valid whatever happens meanwhile.

/// What was listed of one directory.
#[derive(Debug, Default)]
pub(crate) struct Listings {}
