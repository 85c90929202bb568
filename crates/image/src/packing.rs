//! The names of compressions, without their code.

use std::fmt;

/// The compression of a blob that is written here, or that an image describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Uncompressed.
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

/// The compression of bytes that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Packing {
    /// One that a layer may have.
    Layer(Compression),
    /// bzip2, version 1.
    Bzip2,
    /// xz, with any of its filters for machine code.
    Xz,
}

impl Packing {
    /// Uncompressed.
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
