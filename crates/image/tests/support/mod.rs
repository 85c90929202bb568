//! Images for the tests of this crate: synthetic ones in memory, and others taken from a source.
#![allow(dead_code)] // each test program uses a part of it

use std::collections::BTreeMap;
use std::io::{Read, Write};

use vellum_format::Digest;
use vellum_image::config::chain_ids;
use vellum_image::sink::{LayerSupply, OutImage, OutLayer, SupplyError};
use vellum_image::source::ImageSource;
use vellum_image::{BlobFacts, Cancel, ImageConfig, LayerStream, Limits, Reference};
use vellum_testkit::Rng;

/// Layers kept in memory.
#[derive(Default)]
pub struct Layers(pub BTreeMap<Digest, Vec<u8>>);

impl LayerSupply for Layers {
    fn write_tar(&self, layer: &OutLayer, out: &mut dyn Write) -> Result<(), SupplyError> {
        let bytes = self.0.get(&layer.diff_id).ok_or("no such layer")?;
        Ok(out.write_all(bytes)?)
    }

    fn kept_blob(&self, _: &Digest) -> Result<Option<Box<dyn Read + Send>>, SupplyError> {
        Ok(None)
    }

    fn go_on(&self) -> Result<(), SupplyError> {
        Ok(())
    }
}

pub fn reference(text: &str) -> Reference {
    Reference::parse(text).unwrap()
}

/// A tar with one file `name` of `size` random bytes.
pub fn random_tar(rng: &mut Rng, name: &str, size: usize) -> Vec<u8> {
    let mut data = Vec::with_capacity(size);
    while data.len() < size {
        data.extend_from_slice(&rng.next().to_le_bytes());
    }
    data.truncate(size);
    let mut header = [0u8; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..107].copy_from_slice(b"0000644");
    header[108..115].copy_from_slice(b"0000000");
    header[116..123].copy_from_slice(b"0000000");
    header[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    header[136..147].copy_from_slice(b"00000000000");
    header[148..156].fill(b' ');
    header[156] = b'0';
    header[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let mut tar = header.to_vec();
    tar.extend_from_slice(&data);
    tar.resize(tar.len().next_multiple_of(512) + 1024, 0);
    tar
}

/// An image of random layers of these sizes, for the platform of this machine.
pub fn random_image(rng: &mut Rng, name: &str, sizes: &[usize]) -> (OutImage, Layers) {
    let platform = vellum_image::Platform::host();
    image_for(rng, name, sizes, &platform.architecture)
}

/// The same for a named architecture.
pub fn image_for(
    rng: &mut Rng,
    name: &str,
    sizes: &[usize],
    architecture: &str,
) -> (OutImage, Layers) {
    let mut layers = Layers::default();
    let mut diff_ids = Vec::new();
    for (at, size) in sizes.iter().enumerate() {
        let tar = random_tar(rng, &format!("file-{at}"), *size);
        let diff_id = Digest::of(&tar);
        diff_ids.push(diff_id);
        layers.0.insert(diff_id, tar);
    }
    let config = serde_json::json!({
        "architecture": architecture,
        "os": "linux",
        "created": "2026-01-02T03:04:05Z",
        "config": {"Cmd": ["/bin/sh"], "Labels": {"seed": rng.seed().to_string()}},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": diff_ids.iter().map(|d| serde_json::json!({"created_by": d.to_string()})).collect::<Vec<_>>(),
    });
    let config = ImageConfig::parse(serde_json::to_vec(&config).unwrap()).unwrap();
    let image = out_image(config, None, &[name], &layers);
    (image, layers)
}

fn out_image(
    config: ImageConfig,
    manifest: Option<vellum_image::Manifest>,
    names: &[&str],
    layers: &Layers,
) -> OutImage {
    let chain = chain_ids(&config.diff_ids);
    let outs = config
        .diff_ids
        .iter()
        .zip(chain)
        .map(|(diff_id, chain_id)| OutLayer {
            chain_id,
            diff_id: *diff_id,
            tar_bytes: layers.0[diff_id].len() as u64,
        })
        .collect();
    OutImage {
        config,
        manifest,
        names: names.iter().map(|n| reference(n)).collect(),
        layers: outs,
    }
}

/// Reads a layer like an import: decompressed, hashed, compared with the image.
pub fn read_layer(
    source: &dyn ImageSource,
    image: usize,
    at: usize,
) -> Result<(Vec<u8>, BlobFacts), vellum_image::Error> {
    let blob = source
        .open_layer(image, at)
        .map_err(|e| vellum_image::Error::Read(std::io::Error::other(e)))?;
    let mut stream = LayerStream::open(blob, &Limits::default(), &Cancel::default())?;
    let mut tar = Vec::new();
    loop {
        let chunk = stream.chunk()?;
        if chunk.is_empty() {
            break;
        }
        tar.extend_from_slice(chunk);
        let taken = chunk.len();
        std::io::BufRead::consume(&mut stream, taken);
    }
    let facts = stream.finish()?;
    source.images()[image].layers[at].check(&facts)?;
    Ok((tar, facts))
}

/// Takes the first image from `source`, with all its layers, checked.
pub fn take(source: &dyn ImageSource) -> (OutImage, Layers) {
    let image = &source.images()[0];
    let mut layers = Layers::default();
    for (at, layer) in image.layers.iter().enumerate() {
        let (tar, _) = read_layer(source, 0, at).unwrap_or_else(|e| panic!("layer {at}: {e:?}"));
        layers.0.insert(layer.diff_id, tar);
    }
    let mut out = out_image(image.config.clone(), image.manifest.clone(), &[], &layers);
    out.names = image.names.clone();
    (out, layers)
}
