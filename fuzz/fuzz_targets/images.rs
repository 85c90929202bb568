//! The documents of images: names, platforms, manifests, indexes, configurations.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vellum_image::manifest::Document;
use vellum_image::{ImageConfig, Platform, Reference};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        if let Ok(reference) = Reference::parse(text) {
            assert_eq!(Reference::parse(&reference.to_string()), Ok(reference.clone()));
            assert_eq!(Reference::parse(&reference.familiar()), Ok(reference));
        }
        if let Ok(platform) = text.parse::<Platform>() {
            assert_eq!(platform.to_string().parse(), Ok(platform));
        }
    }
    match Document::parse(bytes.to_vec(), None) {
        Ok(Document::Manifest(manifest)) => assert_eq!(manifest.raw, bytes),
        Ok(Document::Index(index)) => {
            let _ = index.choose(&Platform::host());
        }
        Err(_) => {}
    }
    if let Ok(config) = ImageConfig::parse(bytes.to_vec()) {
        assert_eq!(config.chain_ids().len(), config.diff_ids.len());
    }
});
