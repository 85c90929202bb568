//! OCI layouts and archives as others write them, and as an attacker might.

mod support;

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use support::{image_for, random_image, reference, take};
use vellum_format::Digest;
use vellum_image::manifest::{Document, ManifestError};
use vellum_image::sink::{self, OutImage, SinkOptions};
use vellum_image::source::oci_layout::OciLayout;
use vellum_image::source::{ImageSource, SourceError, open_archive, open_seekable};
use vellum_image::{Compression, Platform};
use vellum_testkit::{Rng, Scratch};

fn options(scratch: &Scratch, compression: Compression) -> SinkOptions {
    SinkOptions {
        compression,
        spool_dir: scratch.path().to_owned(),
        jobs: 3,
    }
}

fn platform(text: &str) -> Platform {
    text.parse().unwrap()
}

fn put_blob(layout: &Path, bytes: &[u8]) -> String {
    let digest = Digest::of(bytes);
    std::fs::write(layout.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
    digest.to_string()
}

fn write_index(layout: &Path, entries: Value) {
    let index = json!({"schemaVersion": 2, "manifests": entries});
    std::fs::write(layout.join("index.json"), index.to_string()).unwrap();
}

/// A layout with an image for amd64 and one for arm64/v8 below one index, and a statement about the
/// first.
fn two_platforms(scratch: &Scratch) -> (PathBuf, OutImage, OutImage) {
    let mut rng = Rng::for_test("platforms");
    let (first, first_layers) = image_for(&mut rng, "x/y:1", &[1000], "amd64");
    let (second, second_layers) = image_for(&mut rng, "x/y:1", &[2000], "arm64");
    let layout = scratch.join("layout");
    let how = options(scratch, Compression::Gzip);
    let one = sink::oci_layout::write_directory(
        std::slice::from_ref(&first),
        &first_layers,
        &layout,
        &how,
    )
    .unwrap();
    let two = sink::oci_layout::write_directory(
        std::slice::from_ref(&second),
        &second_layers,
        &layout,
        &how,
    )
    .unwrap();
    let entry = |m: &vellum_image::Manifest, architecture: &str, annotations: Value| {
        json!({"mediaType": m.media_type, "digest": m.digest.to_string(), "size": m.raw.len(),
            "platform": {"os": if architecture == "unknown" { "unknown" } else { "linux" }, "architecture": architecture},
            "annotations": annotations})
    };
    let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [
        entry(&one[0], "unknown", json!({"vnd.docker.reference.type": "attestation-manifest"})),
        entry(&one[0], "amd64", json!({})),
        entry(&two[0], "arm64", json!({})),
    ]});
    let bytes = index.to_string().into_bytes();
    let digest = put_blob(&layout, &bytes);
    write_index(
        &layout,
        json!([{"mediaType": "application/vnd.oci.image.index.v1+json", "digest": digest, "size": bytes.len(),
            "annotations": {"io.containerd.image.name": "docker.io/x/y:1", "org.opencontainers.image.ref.name": "1"}}]),
    );
    (layout, first, second)
}

#[test]
fn the_wanted_platform_is_chosen_from_an_index() {
    let scratch = Scratch::new();
    let (layout, amd64, arm64) = two_platforms(&scratch);
    for (wanted, expect) in [
        ("linux/amd64", &amd64),
        ("linux/arm64", &arm64),
        ("linux/arm64/v8", &arm64),
    ] {
        let source = OciLayout::from_directory(&layout, &platform(wanted)).unwrap();
        let (found, _) = take(&source);
        assert_eq!(found.config.id, expect.config.id, "{wanted}");
        assert_eq!(found.names, [reference("x/y:1")]);
    }
    let error = OciLayout::from_directory(&layout, &platform("linux/s390x"))
        .map(drop)
        .unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("linux/amd64, linux/arm64"),
        "what there is is told: {text}"
    );
}

#[test]
fn an_archive_with_one_of_many_platforms_gives_that_one() {
    let scratch = Scratch::new();
    let (layout, amd64, arm64) = two_platforms(&scratch);
    // Docker saves one platform and leaves the index unchanged.
    let gone = OciLayout::from_directory(&layout, &platform("linux/arm64")).unwrap();
    let manifest = gone.images()[0].manifest.clone().unwrap();
    for digest in [manifest.digest, arm64.config.id] {
        std::fs::remove_file(layout.join("blobs/sha256").join(digest.hex())).unwrap();
    }
    let source = OciLayout::from_directory(&layout, &platform("linux/arm64")).unwrap();
    assert_eq!(source.images()[0].config.id, amd64.config.id);
}

#[test]
fn several_images_and_names_share_a_layout() {
    let scratch = Scratch::new();
    let mut rng = Rng::for_test("several");
    let (mut first, mut layers) = random_image(&mut rng, "a:1", &[5000, 600]);
    let (second, more) = random_image(&mut rng, "b:1", &[700]);
    first.names.push(reference("registry.example/c:2"));
    layers.0.extend(more.0);
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let how = options(&scratch, compression);
        let layout = scratch.join(format!("layout-{compression}"));
        sink::oci_layout::write_directory(&[first.clone(), second.clone()], &layers, &layout, &how)
            .unwrap();
        // Writing into an existing layout keeps its content.
        let (third, third_layers) = random_image(&mut rng, "d:1", &[800]);
        sink::oci_layout::write_directory(&[third], &third_layers, &layout, &how).unwrap();
        let source = OciLayout::from_directory(&layout, &Platform::host()).unwrap();
        let names: Vec<Vec<String>> = source
            .images()
            .iter()
            .map(|i| i.names.iter().map(|n| n.familiar()).collect())
            .collect();
        assert_eq!(
            names,
            [
                vec!["a:1", "registry.example/c:2"],
                vec!["b:1"],
                vec!["d:1"]
            ]
        );
        assert_eq!(
            source.images()[0].layers[0]
                .blob
                .as_ref()
                .unwrap()
                .compression,
            compression
        );
        take(&source);

        let mut bytes = Vec::new();
        let both = [first.clone(), second.clone()];
        sink::oci_layout::write_archive(&both, &layers, &mut bytes, "memory", &how).unwrap();
        let path = scratch.file(format!("{compression}.tar"), &bytes);
        let archive = open_archive(
            std::fs::File::open(&path).unwrap(),
            "x".to_owned(),
            &Platform::host(),
        )
        .unwrap();
        assert_eq!(archive.images().len(), 2);
        let mut again = Vec::new();
        sink::oci_layout::write_archive(&both, &layers, &mut again, "memory", &how).unwrap();
        assert!(bytes == again, "the same images give the same archive");
    }
}

#[test]
fn compressed_archives_are_read_through_one_copy() {
    let scratch = Scratch::new();
    let mut rng = Rng::for_test("compressed");
    let (image, layers) = random_image(&mut rng, "a:1", &[50_000]);
    let mut bytes = Vec::new();
    sink::docker_archive::write(std::slice::from_ref(&image), &layers, &mut bytes, "memory")
        .unwrap();
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let mut encoder = vellum_image::compression::Encoder::new(compression, Vec::new()).unwrap();
        std::io::Write::write_all(&mut encoder, &bytes).unwrap();
        let path = scratch.file("archive", encoder.finish().unwrap());
        let file = open_seekable(
            std::fs::File::open(&path).unwrap(),
            "x",
            scratch.path(),
            &vellum_image::Cancel::new(),
        )
        .unwrap();
        let source = open_archive(file, "x".to_owned(), &Platform::host()).unwrap();
        let (found, _) = take(source.as_ref());
        assert_eq!(found.config.id, image.config.id, "{compression}");
        // Both parts of the archive were read: the layout's manifest, docker-archive's name.
        assert!(found.manifest.is_some());
        assert_eq!(found.names, [reference("a:1")]);
    }
}

#[test]
fn a_forged_layout_is_refused() {
    let scratch = Scratch::new();
    let mut rng = Rng::for_test("lies");
    let (image, layers) = random_image(&mut rng, "a:1", &[3000]);
    let layout = scratch.join("layout");
    let how = options(&scratch, Compression::Gzip);
    let manifests = sink::oci_layout::write_directory(&[image], &layers, &layout, &how).unwrap();
    let manifest: Value = serde_json::from_slice(&manifests[0].raw).unwrap();
    let open = || OciLayout::from_directory(&layout, &Platform::host()).map(drop);
    let with = |manifest: &Value, media_type: &str| {
        let bytes = manifest.to_string().into_bytes();
        let digest = put_blob(&layout, &bytes);
        write_index(
            &layout,
            json!([{"mediaType": media_type, "digest": digest, "size": bytes.len()}]),
        );
        open()
    };
    const OCI: &str = "application/vnd.oci.image.manifest.v1+json";
    with(&manifest, OCI).unwrap();

    let change = |path: &str, value: Value| {
        let mut changed = manifest.clone();
        *changed.pointer_mut(path).unwrap() = value;
        changed
    };
    // A digest that would be a path.
    for bad in [
        "sha256:../../../../etc/passwd",
        "sha256:abc",
        "../x",
        "md5:d41d8cd98f00b204e9800998ecf8427e",
    ] {
        assert!(
            with(&change("/config/digest", json!(bad)), OCI).is_err(),
            "{bad}"
        );
        assert!(
            with(&change("/layers/0/digest", json!(bad)), OCI).is_err(),
            "{bad}"
        );
    }
    let other = put_blob(&layout, b"{}");
    assert!(with(&change("/config/digest", json!(other)), OCI).is_err());
    // Layers more or fewer than the configuration's.
    assert!(with(&change("/layers", json!([])), OCI).is_err());
    // The index itself.
    write_index(&layout, json!([]));
    assert!(matches!(open(), Err(SourceError::Malformed(_))));
    std::fs::write(layout.join("index.json"), "[]").unwrap();
    assert!(open().is_err());
    std::fs::remove_file(layout.join("index.json")).unwrap();
    assert!(matches!(open(), Err(SourceError::Missing { .. })));
    // A pipe in place of a file doesn't block.
    rustix::fs::mknodat(
        rustix::fs::CWD,
        layout.join("index.json"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    assert!(open().is_err());
    std::fs::write(
        layout.join("oci-layout"),
        r#"{"imageLayoutVersion":"9.0.0"}"#,
    )
    .unwrap();
    assert!(open().is_err());
}

/// Digests protect the bytes. Wrong or unknown sizes and media types load as with Podman and
/// containerd.
#[test]
fn sizes_and_media_types_in_a_layout_decide_nothing() {
    let scratch = Scratch::new();
    let mut rng = Rng::for_test("sizes");
    let (image, layers) = random_image(&mut rng, "x/y:1", &[3000, 0]);
    let layout = scratch.join("layout");
    let how = options(&scratch, Compression::Gzip);
    let written =
        sink::oci_layout::write_directory(std::slice::from_ref(&image), &layers, &layout, &how)
            .unwrap();
    let manifest: Value = serde_json::from_slice(&written[0].raw).unwrap();
    let mut cases = Vec::new();
    for size in [
        json!(0),
        json!(1),
        json!(-1),
        json!(1u64 << 40),
        Value::Null,
    ] {
        for place in ["/layers/0/size", "/layers/1/size", "/config/size"] {
            cases.push((place, size.clone()));
        }
    }
    for kind in [
        "application/x-unknown",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "",
    ] {
        for place in ["/layers/0/mediaType", "/mediaType", "/config/mediaType"] {
            cases.push((place, kind.into()));
        }
    }
    for (at, (place, value)) in cases.into_iter().enumerate() {
        let what = format!("{place} {value}");
        let mut odd = manifest.clone();
        *odd.pointer_mut(place).unwrap() = value;
        let raw = odd.to_string();
        let digest = put_blob(&layout, raw.as_bytes());
        let kind = "application/vnd.oci.image.manifest.v1+json";
        write_index(
            &layout,
            json!([{"mediaType": kind, "digest": digest, "size": 7}]),
        );
        let source = OciLayout::from_directory(&layout, &Platform::host()).unwrap();
        let (taken, layers) = take(&source);
        assert_eq!(taken.config.raw, image.config.raw, "{what}");
        // And it is written as it came, byte for byte, unless its compression is not stated.
        let saved = scratch.join(format!("saved-{at}"));
        let out = sink::oci_layout::write_directory(&[taken], &layers, &saved, &how).unwrap();
        if place != "/layers/0/mediaType" {
            assert_eq!(out[0].raw, raw.as_bytes(), "{what}");
        }
        OciLayout::from_directory(&saved, &Platform::host()).unwrap();
    }
}

#[test]
fn documents_that_are_two_things_at_once_are_refused() {
    let parse =
        |value: Value, announced| Document::parse(value.to_string().into_bytes(), announced);
    let both = json!({"schemaVersion": 2, "layers": [], "manifests": []});
    assert!(matches!(
        parse(both, None),
        Err(ManifestError::UnknownKind(_))
    ));
    for both in [
        json!({"config": {}, "manifests": []}),
        json!({"Layers": [], "MANIFESTS": []}),
        json!({"mediaType": vellum_image::manifest::OCI_INDEX, "layers": []}),
        json!({"mediaType": vellum_image::manifest::OCI_MANIFEST, "manifests": []}),
    ] {
        let said = parse(both.clone(), None);
        assert!(matches!(said, Err(ManifestError::UnknownKind(_))), "{both}");
    }
    for (own, announced) in [
        (
            vellum_image::manifest::OCI_INDEX,
            vellum_image::manifest::DOCKER_MANIFEST,
        ),
        (
            vellum_image::manifest::OCI_MANIFEST,
            vellum_image::manifest::OCI_INDEX,
        ),
    ] {
        let said = parse(json!({"mediaType": own}), Some(announced));
        assert!(
            matches!(said, Err(ManifestError::UnknownKind(_))),
            "{own} {announced}"
        );
    }
    for old in [
        json!({"schemaVersion": 1}),
        json!({"schemaVersion": 1, "fsLayers": [], "history": []}),
        json!({"mediaType": "application/vnd.docker.distribution.manifest.v1+prettyjws"}),
    ] {
        let said = parse(old.clone(), None);
        assert!(matches!(said, Err(ManifestError::Schema1)), "{old}");
    }
    let large = vec![b' '; (vellum_image::manifest::MAX_MANIFEST_BYTES + 1) as usize];
    assert!(matches!(
        Document::parse(large, None),
        Err(ManifestError::TooLarge { .. })
    ));
    let config = json!({"mediaType": "x", "size": 2, "digest": Digest::of(b"{}").to_string()});
    let layer = json!({"mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip", "size": 2, "digest": Digest::of(b"").to_string()});
    let many = json!({"schemaVersion": 2, "config": config, "layers": vec![layer; 2001]});
    assert!(matches!(
        parse(many, None),
        Err(ManifestError::TooManyLayers(2001))
    ));
}
