//! The names of compressions, without what they do.

use std::fmt;

/// How a blob is compressed that is written here, or that an image describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Not at all.
    None,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Compression::None => "uncompressed",
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
        })
    }
}

/// How bytes are compressed that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Packing {
    /// As a layer may be.
    Layer(Compression),
    /// bzip2, version 1.
    Bzip2,
    /// xz, with any of its filters for code.
    Xz,
}

impl Packing {
    /// Not at all.
    pub const NONE: Packing = Packing::Layer(Compression::None);
}

impl fmt::Display for Packing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Packing::Layer(compression) => compression.fmt(f),
            Packing::Bzip2 => f.write_str("bzip2"),
            Packing::Xz => f.write_str("xz"),
        }
    }
}
