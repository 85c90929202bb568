//! Registries: Debian's docker-registry on loopback, open, with a password, with TLS, and behind a
//! proxy that breaks connections.

mod support;

use std::path::Path;
use std::time::Duration;

use support::{random_image, read_layer, reference, take};
use vellum_image::registry::{
    HostOptions, RegistryError, RegistryOptions, RegistrySource, Retry, push,
};
use vellum_image::sink::{LayerSupply, OutImage, SinkOptions};
use vellum_image::source::{ImageSource, SourceError};
use vellum_image::{Cancel, Compression, Error, Platform};
use vellum_testkit::Rng;
use vellum_testkit::clients::{Access, CuttingProxy, Home, Registry, Skopeo, TokenGate, available};

fn quick() -> RegistryOptions {
    RegistryOptions {
        retry: Retry {
            first_pause: Duration::from_millis(10),
            ..Retry::default()
        },
        ..RegistryOptions::default()
    }
}

fn sink(home: &Home) -> SinkOptions {
    SinkOptions {
        compression: Compression::Gzip,
        spool_dir: home.path().to_owned(),
        jobs: 3,
    }
}

fn push_to(
    home: &Home,
    image: &OutImage,
    layers: &dyn LayerSupply,
    to: &str,
    options: &RegistryOptions,
) -> Result<(usize, usize), SourceError> {
    let pushed = push(
        image,
        &reference(to),
        layers,
        options,
        &sink(home),
        &Cancel::default(),
        &|_, _| {},
    )?;
    Ok((pushed.sent, pushed.present))
}

fn open(name: &str, options: &RegistryOptions) -> Result<RegistrySource, SourceError> {
    RegistrySource::open(
        &reference(name),
        &Platform::host(),
        options,
        &Cancel::default(),
    )
}

#[track_caller]
fn same_image(source: &dyn ImageSource, image: &OutImage) {
    let (found, layers) = take(source);
    assert_eq!(found.config.id, image.config.id);
    assert_eq!(found.config.raw, image.config.raw);
    assert_eq!(layers.0.len(), image.layers.len());
}

#[test]
fn pushed_images_can_be_pulled_and_read_by_skopeo() {
    if !available(&["docker-registry", "skopeo"]) {
        return;
    }
    let home = Home::new().unwrap();
    let registry = Registry::start(&home, "registry", Access::Open).unwrap();
    let mut rng = Rng::for_test("registry");
    let name = format!("{}/some/image:1", registry.host());
    let (image, layers) = random_image(&mut rng, &name, &[300_000, 10, 70_000]);
    // A loopback registry needs no configuration: HTTPS is tried first, then HTTP.
    assert_eq!(
        push_to(&home, &image, &layers, &name, &quick()).unwrap(),
        (3, 0)
    );
    let source = open(&name, &quick()).unwrap();
    same_image(&source, &image);
    let manifest = source.images()[0].manifest.clone().unwrap();

    // By digest, exactly that manifest.
    let by_digest = format!("{}/some/image@{}", registry.host(), manifest.digest);
    same_image(&open(&by_digest, &quick()).unwrap(), &image);

    // What the registry has is not sent again; with the manifest known, it isn't even compressed
    // again.
    let known = OutImage {
        manifest: Some(manifest),
        ..image.clone()
    };
    let again = format!("{}/some/image:2", registry.host());
    assert_eq!(
        push_to(&home, &known, &support::Layers::default(), &again, &quick()).unwrap(),
        (0, 3)
    );

    // In another repository of the same registry, blobs are mounted from one in which the image has
    // a name.
    let other = format!("{}/other/image:1", registry.host());
    assert_eq!(
        push_to(&home, &known, &support::Layers::default(), &other, &quick()).unwrap(),
        (0, 3)
    );
    same_image(&open(&other, &quick()).unwrap(), &image);

    // Skopeo reads what we pushed, and we read what it pushes, zstd included.
    let skopeo = Skopeo::new(&home).unwrap();
    let layout = home.join("layout");
    skopeo
        .copy_with(
            &format!("docker://{other}"),
            &format!("oci:{}:x", layout.display()),
            &["--src-tls-verify=false"],
        )
        .unwrap();
    for format in ["gzip", "zstd"] {
        let theirs = format!("{}/theirs/{format}:1", registry.host());
        skopeo
            .copy_with(
                &format!("oci:{}:x", layout.display()),
                &format!("docker://{theirs}"),
                &[
                    "--dest-tls-verify=false",
                    "--dest-compress-format",
                    format,
                    "--dest-force-compress-format",
                ],
            )
            .or_else(|_| {
                skopeo.copy_with(
                    &format!("oci:{}:x", layout.display()),
                    &format!("docker://{theirs}"),
                    &[
                        "--dest-tls-verify=false",
                        "--dest-compress",
                        "--dest-compress-format",
                        format,
                    ],
                )
            })
            .unwrap();
        same_image(&open(&theirs, &quick()).unwrap(), &image);
    }
}

#[test]
fn a_broken_transfer_continues_where_it_stopped() {
    if !available(&["docker-registry"]) {
        return;
    }
    let home = Home::new().unwrap();
    let registry = Registry::start(&home, "registry", Access::Open).unwrap();
    let mut rng = Rng::for_test("broken");
    let size = 3_000_000;
    let (image, layers) = random_image(&mut rng, "x/y", &[size]);
    push_to(
        &home,
        &image,
        &layers,
        &format!("{}/x/y", registry.host()),
        &quick(),
    )
    .unwrap();
    // Each of six connections ends after 400,000 bytes: less than the layer, more than the rest.
    let proxy = CuttingProxy::start(&registry.host(), 6, 400_000).unwrap();
    let source = open(&format!("{}/x/y", proxy.host()), &quick()).unwrap();
    same_image(&source, &image);
    assert_eq!(proxy.cuts_left(), 0, "the connections were cut");
    let resumed = proxy
        .ranges()
        .iter()
        .filter(|r| r.as_str() != "bytes=0-")
        .count();
    assert!(resumed >= 6, "{:?}", proxy.ranges());
    let carried = proxy.to_client_bytes();
    // Cut connections count what they carried, so anything sent twice would show here.
    assert!(
        carried < (size + size / 4) as u64,
        "{carried} bytes for a layer of {size}"
    );
}

#[test]
fn a_connection_that_never_works_ends_in_an_error() {
    if !available(&["docker-registry"]) {
        return;
    }
    let home = Home::new().unwrap();
    let registry = Registry::start(&home, "registry", Access::Open).unwrap();
    let mut rng = Rng::for_test("hopeless");
    let (image, layers) = random_image(&mut rng, "x/y", &[900_000]);
    push_to(
        &home,
        &image,
        &layers,
        &format!("{}/x/y", registry.host()),
        &quick(),
    )
    .unwrap();
    let source = open(&format!("{}/x/y", registry.host()), &quick()).unwrap();
    drop(registry);
    let error = read_layer(&source, 0, 0).unwrap_err();
    let text = format!("{error:?}");
    assert!(matches!(error, Error::Read(_)), "{text}");
    assert!(
        text.contains("127.0.0.1"),
        "the error names the registry: {text}"
    );
}

#[test]
fn a_push_is_tried_again_when_the_connection_breaks() {
    if !available(&["docker-registry"]) {
        return;
    }
    let home = Home::new().unwrap();
    let registry = Registry::start(&home, "registry", Access::Open).unwrap();
    let mut rng = Rng::for_test("push");
    let (image, layers) = random_image(&mut rng, "x/y", &[1_000_000, 50_000]);
    // Little is sent to the client: the first responses already break.
    let proxy = CuttingProxy::start(&registry.host(), 2, 600).unwrap();
    let mut options = quick();
    let host = HostOptions {
        insecure: true,
        ..HostOptions::default()
    };
    options.hosts.insert(proxy.host(), host);
    let pushed = push_to(
        &home,
        &image,
        &layers,
        &format!("{}/x/y", proxy.host()),
        &options,
    );
    assert_eq!(pushed.unwrap(), (2, 0));
    assert_eq!(proxy.cuts_left(), 0, "connections were cut");
    same_image(
        &open(&format!("{}/x/y", registry.host()), &quick()).unwrap(),
        &image,
    );
}

#[test]
fn a_blob_of_wrong_content_is_refused() {
    if !available(&["docker-registry"]) {
        return;
    }
    let home = Home::new().unwrap();
    let registry = Registry::start(&home, "registry", Access::Open).unwrap();
    let mut rng = Rng::for_test("wrong");
    let name = format!("{}/x/y", registry.host());
    let (image, layers) = random_image(&mut rng, &name, &[200_000, 200_000]);
    push_to(&home, &image, &layers, &name, &quick()).unwrap();
    let source = open(&name, &quick()).unwrap();
    let blobs: Vec<_> = source.images()[0]
        .layers
        .iter()
        .map(|l| l.blob.clone().unwrap().blob)
        .collect();

    // The last byte of the stored blob changes; a gzip reader would not even notice all such
    // changes.
    let path = registry.blob_file(&blobs[0].digest.hex());
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let error = read_layer(&source, 0, 0).unwrap_err();
    assert!(
        matches!(
            error,
            Error::DigestMismatch { .. } | Error::Decompress { .. }
        ),
        "{error:?}"
    );

    // Bytes appended to a blob.
    let path = registry.blob_file(&blobs[1].digest.hex());
    let mut bytes = std::fs::read(&path).unwrap();
    bytes.extend_from_slice(b"more");
    std::fs::write(&path, &bytes).unwrap();
    assert!(read_layer(&source, 0, 1).is_err());

    // A manifest that is not the one asked for by digest.
    let manifest = source.images()[0].manifest.clone().unwrap();
    let path = registry.blob_file(&manifest.digest.hex());
    let mut bytes = std::fs::read(&path).unwrap();
    bytes.push(b'\n');
    std::fs::write(&path, &bytes).unwrap();
    let by_digest = format!("{}/x/y@{}", registry.host(), manifest.digest);
    let error = open(&by_digest, &quick()).map(drop).unwrap_err();
    assert!(
        matches!(
            error,
            SourceError::Layer(Error::DigestMismatch { .. }) | SourceError::Registry(_)
        ),
        "{error:?}"
    );
}

fn login(home: &Home, host: &str, encoded: &str) -> std::path::PathBuf {
    let path = home.join("auth.json");
    let text = serde_json::json!({"auths": {host: {"auth": encoded}}});
    std::fs::write(&path, text.to_string()).unwrap();
    path
}

#[test]
fn a_password_is_asked_for_and_used() {
    if !available(&["docker-registry"]) {
        return;
    }
    let home = Home::new().unwrap();
    let registry = Registry::start(&home, "registry", Access::Password).unwrap();
    let mut rng = Rng::for_test("password");
    let name = format!("{}/x/y", registry.host());
    let (image, layers) = random_image(&mut rng, &name, &[100_000]);
    let with = |path: &Path| RegistryOptions {
        auth_file: Some(path.to_owned()),
        ..quick()
    };

    // "vellum:wrong" and "vellum:secret" in base64.
    let wrong = with(&login(&home, &registry.host(), "dmVsbHVtOndyb25n"));
    let error = push_to(&home, &image, &layers, &name, &wrong).unwrap_err();
    assert!(
        matches!(error, SourceError::Registry(RegistryError::Denied { .. })),
        "{error:?}"
    );
    let text = format!("{error:?} {error}");
    assert!(!text.contains("wrong"), "the password is not told: {text}");

    let right = with(&login(&home, &registry.host(), "dmVsbHVtOnNlY3JldA=="));
    assert_eq!(
        push_to(&home, &image, &layers, &name, &right).unwrap(),
        (1, 0)
    );
    same_image(&open(&name, &right).unwrap(), &image);
    let nobody = with(&login(&home, "elsewhere.example", "dmVsbHVtOnNlY3JldA=="));
    let error = open(&name, &nobody).map(drop).unwrap_err();
    assert!(
        matches!(error, SourceError::Registry(RegistryError::Denied { .. })),
        "{error:?}"
    );
}

#[test]
fn bearer_tokens_are_fetched_with_the_login_and_the_right_scope() {
    if !available(&["docker-registry"]) {
        return;
    }
    let home = Home::new().unwrap();
    let registry = Registry::start(&home, "registry", Access::Open).unwrap();
    let gate = TokenGate::start(&registry.host()).unwrap();
    let mut rng = Rng::for_test("tokens");
    let name = format!("{}/x/y", gate.host());
    let (image, layers) = random_image(&mut rng, &name, &[100_000, 500]);
    let with = |path: &Path| RegistryOptions {
        auth_file: Some(path.to_owned()),
        ..quick()
    };
    let nobody = with(&login(&home, "elsewhere.example", "dmVsbHVtOnNlY3JldA=="));
    let error = push_to(&home, &image, &layers, &name, &nobody).unwrap_err();
    assert!(
        matches!(error, SourceError::Registry(RegistryError::Denied { .. })),
        "{error:?}"
    );
    assert!(gate.scopes().is_empty());
    let right = with(&login(&home, &gate.host(), "dmVsbHVtOnNlY3JldA=="));
    assert_eq!(
        push_to(&home, &image, &layers, &name, &right).unwrap(),
        (2, 0)
    );
    same_image(&open(&name, &right).unwrap(), &image);
    let scopes = gate.scopes();
    assert!(
        scopes.contains(&"repository:x/y:pull,push".to_owned()),
        "{scopes:?}"
    );
    assert!(
        scopes.contains(&"repository:x/y:pull".to_owned()),
        "{scopes:?}"
    );
}

#[test]
fn tls_needs_a_trusted_authority() {
    if !available(&["docker-registry", "openssl"]) {
        return;
    }
    let home = Home::new().unwrap();
    let registry = Registry::start(&home, "registry", Access::Tls).unwrap();
    let mut rng = Rng::for_test("tls");
    let name = format!("{}/x/y", registry.host());
    let (image, layers) = random_image(&mut rng, &name, &[100_000]);
    let error = push_to(&home, &image, &layers, &name, &quick()).unwrap_err();
    assert!(
        matches!(
            error,
            SourceError::Registry(RegistryError::Unreachable { .. })
        ),
        "{error:?}"
    );
    assert!(format!("{error:?}").contains("UnknownIssuer"), "{error:?}");
    let mut trusting = quick();
    let host = HostOptions {
        ca_file: Some(registry.authority().to_owned()),
        ..HostOptions::default()
    };
    trusting.hosts.insert(registry.host(), host);
    assert_eq!(
        push_to(&home, &image, &layers, &name, &trusting).unwrap(),
        (1, 0)
    );
    same_image(&open(&name, &trusting).unwrap(), &image);
}

#[test]
fn mirrors_are_asked_first_and_may_fail() {
    if !available(&["docker-registry"]) {
        return;
    }
    let home = Home::new().unwrap();
    let mirror = Registry::start(&home, "mirror", Access::Open).unwrap();
    let empty = Registry::start(&home, "empty", Access::Open).unwrap();
    let mut rng = Rng::for_test("mirror");
    let (image, layers) = random_image(&mut rng, "x/y", &[100_000]);
    push_to(
        &home,
        &image,
        &layers,
        &format!("{}/hub/x/y", mirror.host()),
        &quick(),
    )
    .unwrap();
    let mut options = quick();
    options.hosts.insert(
        "registry.invalid".to_owned(),
        HostOptions {
            mirrors: vec![
                format!("http://{}", empty.host()),
                format!("http://{}/hub", mirror.host()),
            ],
            ..HostOptions::default()
        },
    );
    let source = open("registry.invalid/x/y", &options).unwrap();
    same_image(&source, &image);
    assert_eq!(
        source.images()[0].names[0].to_string(),
        "registry.invalid/x/y:latest"
    );

    // The registry itself is asked for what the mirror lacks, and the error names it.
    let error = open("registry.invalid/x/none", &options)
        .map(drop)
        .unwrap_err();
    assert!(error.to_string().contains("registry.invalid"), "{error}");
}

#[test]
fn missing_images_are_reported_plainly() {
    if !available(&["docker-registry"]) {
        return;
    }
    let home = Home::new().unwrap();
    let registry = Registry::start(&home, "registry", Access::Open).unwrap();
    let error = open(&format!("{}/x/none:7", registry.host()), &quick())
        .map(drop)
        .unwrap_err();
    assert!(
        matches!(error, SourceError::Registry(RegistryError::NotFound { .. })),
        "{error:?}"
    );
    assert_eq!(
        error.to_string(),
        format!("{} has no image x/none:7", registry.host())
    );
}

#[test]
fn stopping_ends_a_transfer_at_once() {
    if !available(&["docker-registry"]) {
        return;
    }
    // A server that accepts and never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = silent.local_addr().unwrap().to_string();
    let mut options = quick();
    options.hosts.insert(
        host.clone(),
        HostOptions {
            insecure: true,
            ..HostOptions::default()
        },
    );
    let cancel = Cancel::default();
    let asked = cancel.clone();
    let waiting = std::thread::spawn(move || {
        RegistrySource::open(
            &reference(&format!("{host}/x")),
            &Platform::host(),
            &options,
            &asked,
        )
        .map(drop)
    });
    std::thread::sleep(Duration::from_millis(300));
    cancel.cancel();
    // Waiting for the silent server would end too, but later and with another error.
    let outcome = waiting.join().unwrap();
    assert!(
        matches!(outcome, Err(SourceError::Registry(RegistryError::Stopped))),
        "{outcome:?}"
    );
}
