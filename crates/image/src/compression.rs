//! The compressions of layers: recognised by their first bytes, never by a name or a media type.
//!
//! gzip with any number of members, and zstd with any number of frames, including skippable ones
//! (zstd:chunked stores its index in those). bzip2 and xz, likewise with any number of streams, are
//! read because `docker load` reads them, and never written. This module knows nothing of tar or
//! digests; threads are the business of `stream`.

use std::io::{self, BufRead, Read, Write};

use crate::packing::{Compression, Packing};

/// The maximum memory that an xz stream may ask for: four times what `xz -9` needs.
const XZ_MEMORY_KIB: u32 = 256 << 10;

/// How many bytes `detect` needs, unless the blob is shorter: a whole tar header.
pub const DETECT_BYTES: usize = 512;

/// Returns the compression of a blob that starts with `head`.
///
/// `head` should hold [`DETECT_BYTES`] bytes or the whole blob.
pub fn detect(head: &[u8]) -> Packing {
    const XZ: &[u8] = &[0xfd, b'7', b'z', b'X', b'Z', 0];
    // The first bytes of a plain tar are a file's name, which may be `BZh1` or worse. Its checksum
    // identifies it.
    if crate::tar::is_header(head) {
        return Packing::NONE;
    }
    match head {
        [0x1f, 0x8b, ..] => Packing::Layer(Compression::Gzip),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Packing::Layer(Compression::Zstd),
        // A skippable frame, 0x184D2A50 to 0x184D2A5F in little-endian order.
        [low, 0x2a, 0x4d, 0x18, ..] if low & 0xf0 == 0x50 => Packing::Layer(Compression::Zstd),
        [b'B', b'Z', b'h', b'1'..=b'9', ..] => Packing::Bzip2,
        _ if head.starts_with(XZ) => Packing::Xz,
        _ => Packing::NONE,
    }
}

/// Reads the uncompressed bytes of a blob. Ends with an error if the blob is cut short.
#[allow(
    clippy::large_enum_variant,
    reason = "one a layer, and it is never moved once it reads"
)]
pub enum Decoder<R: BufRead> {
    /// The bytes as they are.
    None(R),
    /// All members of a gzip file.
    Gzip(flate2::bufread::MultiGzDecoder<R>),
    /// All frames of a zstd file.
    Zstd(zstd::stream::read::Decoder<'static, R>),
    /// All streams of a bzip2 file.
    Bzip2(bzip2::bufread::MultiBzDecoder<R>),
    /// All streams of an xz file.
    Xz(lzma_rust2::XzReader<R>),
}

impl<R: BufRead> Decoder<R> {
    /// Starts decoding; the compression is known, see [`detect`].
    pub fn new(packing: Packing, inner: R) -> io::Result<Self> {
        Ok(match packing {
            Packing::NONE => Decoder::None(inner),
            Packing::Layer(Compression::Gzip) => {
                Decoder::Gzip(flate2::bufread::MultiGzDecoder::new(inner))
            }
            Packing::Layer(Compression::Zstd) => {
                Decoder::Zstd(zstd::stream::read::Decoder::with_buffer(inner)?)
            }
            Packing::Bzip2 => Decoder::Bzip2(bzip2::bufread::MultiBzDecoder::new(inner)),
            Packing::Xz => Decoder::Xz(lzma_rust2::XzReader::new_mem_limit(
                inner,
                true,
                XZ_MEMORY_KIB,
            )),
        })
    }

    /// Returns the reader of the compressed bytes.
    pub fn get_ref(&self) -> &R {
        match self {
            Decoder::None(inner) => inner,
            Decoder::Gzip(inner) => inner.get_ref(),
            Decoder::Zstd(inner) => inner.get_ref(),
            Decoder::Bzip2(inner) => inner.get_ref(),
            Decoder::Xz(inner) => inner.inner(),
        }
    }

    /// Returns the reader of the compressed bytes, at its current position.
    pub fn into_inner(self) -> R {
        match self {
            Decoder::None(inner) => inner,
            Decoder::Gzip(inner) => inner.into_inner(),
            Decoder::Zstd(inner) => inner.finish(),
            Decoder::Bzip2(inner) => inner.into_inner(),
            Decoder::Xz(inner) => inner.into_inner(),
        }
    }
}

impl<R: BufRead> Read for Decoder<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Decoder::None(inner) => inner.read(buf),
            Decoder::Gzip(inner) => inner.read(buf),
            Decoder::Zstd(inner) => inner.read(buf),
            Decoder::Bzip2(inner) => inner.read(buf),
            Decoder::Xz(inner) => inner.read(buf),
        }
    }
}

/// Compresses what is written to it. Nothing is complete before [`Encoder::finish`].
pub enum Encoder<W: Write> {
    /// The bytes as they are.
    None(W),
    /// One gzip member, level 6, without a name or a time: the same input gives the same bytes.
    Gzip(flate2::write::GzEncoder<W>),
    /// One zstd frame, level 3, with a checksum.
    Zstd(zstd::stream::write::Encoder<'static, W>),
}

impl<W: Write> Encoder<W> {
    /// Starts a compressed stream into `out`.
    pub fn new(compression: Compression, out: W) -> io::Result<Self> {
        Ok(match compression {
            Compression::None => Encoder::None(out),
            Compression::Gzip => {
                Encoder::Gzip(flate2::GzBuilder::new().write(out, flate2::Compression::new(6)))
            }
            Compression::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(out, 3)?;
                encoder.include_checksum(true)?;
                Encoder::Zstd(encoder)
            }
        })
    }

    /// Writes the end of the stream and returns the writer below; nothing is synced.
    pub fn finish(self) -> io::Result<W> {
        match self {
            Encoder::None(out) => Ok(out),
            Encoder::Gzip(encoder) => encoder.finish(),
            Encoder::Zstd(encoder) => encoder.finish(),
        }
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Encoder::None(out) => out.write(buf),
            Encoder::Gzip(encoder) => encoder.write(buf),
            Encoder::Zstd(encoder) => encoder.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Encoder::None(out) => out.flush(),
            Encoder::Gzip(encoder) => encoder.flush(),
            Encoder::Zstd(encoder) => encoder.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(compression: Compression, bytes: &[u8]) -> Vec<u8> {
        let mut encoder = Encoder::new(compression, Vec::new()).unwrap();
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn decode(blob: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        Decoder::new(detect(blob), blob)?.read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn every_compression_round_trips_and_is_recognised() {
        let bytes: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            let blob = encode(compression, &bytes);
            assert_eq!(detect(&blob), Packing::Layer(compression));
            assert_eq!(decode(&blob).unwrap(), bytes, "{compression}");
            assert_eq!(
                blob,
                encode(compression, &bytes),
                "{compression} is deterministic"
            );
        }
    }

    #[test]
    fn members_and_frames_are_read_one_after_the_other() {
        for compression in [Compression::Gzip, Compression::Zstd] {
            let blob = [
                encode(compression, b"first, "),
                encode(compression, b"second"),
            ]
            .concat();
            assert_eq!(decode(&blob).unwrap(), b"first, second", "{compression}");
        }
    }

    #[test]
    fn skippable_zstd_frames_are_skipped_anywhere() {
        let skippable = [&[0x5e, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
        let frame = encode(Compression::Zstd, b"data");
        for blob in [
            [skippable.clone(), frame.clone()].concat(),
            [frame.clone(), skippable.clone()].concat(),
            [frame.clone(), skippable, frame].concat(),
        ] {
            let out = decode(&blob).unwrap();
            assert!(out == b"data" || out == b"datadata");
        }
    }

    #[test]
    fn a_cut_blob_is_an_error() {
        let bytes: Vec<u8> = (0..50_000u32)
            .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
            .collect();
        for compression in [Compression::Gzip, Compression::Zstd] {
            let blob = encode(compression, &bytes);
            for keep in [blob.len() - 1, blob.len() - 7, blob.len() / 2, 7] {
                assert!(
                    decode(&blob[..keep]).is_err(),
                    "{compression} cut to {keep}"
                );
            }
        }
    }

    fn packed(packing: Packing, bytes: &[u8]) -> Vec<u8> {
        match packing {
            Packing::Layer(compression) => encode(compression, bytes),
            Packing::Bzip2 => {
                let level = bzip2::Compression::best();
                let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), level);
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap()
            }
            Packing::Xz => {
                let options = lzma_rust2::XzOptions::with_preset(3);
                let mut encoder = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap()
            }
        }
    }

    #[test]
    fn bzip2_and_xz_are_read_whole_or_not_at_all() {
        let bytes: Vec<u8> = (0..100_000u32)
            .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
            .collect();
        for packing in [Packing::Bzip2, Packing::Xz] {
            let blob = packed(packing, &bytes);
            assert_eq!(detect(&blob), packing);
            assert_eq!(decode(&blob).unwrap(), bytes, "{packing}");
            let twice = [blob.clone(), packed(packing, b"second")].concat();
            assert_eq!(decode(&twice).unwrap().len(), bytes.len() + 6, "{packing}");
            for keep in [blob.len() - 1, blob.len() - 7, blob.len() / 2, 7] {
                assert!(decode(&blob[..keep]).is_err(), "{packing} cut to {keep}");
            }
            let mut damaged = blob.clone();
            damaged[blob.len() / 2] ^= 1;
            assert!(decode(&damaged).is_err(), "{packing} damaged");
        }
    }

    #[test]
    fn an_xz_stream_that_asks_for_too_much_memory_is_refused() {
        let mut options = lzma_rust2::XzOptions::with_preset(0);
        options.lzma_options.dict_size = 512 << 20;
        let mut encoder = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
        encoder.write_all(b"little").unwrap();
        let error = decode(&encoder.finish().unwrap()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::OutOfMemory, "{error}");
    }

    #[test]
    fn a_tar_is_recognised_whatever_the_name_of_its_first_file() {
        for name in [
            &b"BZh91"[..],
            b"\x1f\x8b",
            b"\x28\xb5\x2f\xfd",
            b"\xfd7zXZ\0",
        ] {
            let tar = crate::tar::reader::tests::Raw::new("", b'0')
                .put(crate::tar::header::field::NAME, name)
                .block();
            assert_eq!(detect(&tar), Packing::NONE);
        }
        assert_eq!(detect(b""), Packing::NONE);
        assert_eq!(detect(b"\x1f"), Packing::NONE);
    }
}
