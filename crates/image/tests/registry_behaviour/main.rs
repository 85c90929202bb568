//! Registries as they are: a matrix of odd behaviours. Vellum pulls from or pushes to each, and so
//! does skopeo.
//!
//! Each row is a small server that is odd in one way, Vellum's result, and that of Debian's skopeo
//! 1.9, which runs too if it is installed. Refusals are tested as much as successes: a response
//! must never fill the memory or hold a command forever.

mod peers;
mod rows;
#[path = "../support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use rows::Outcome::{self, Denied, Done, Failed, NotFound, RateLimited};
use rows::Skopeo19::{NotAsked, Takes};
use rows::{
    LOGIN, SIZE, TOKEN, always, basic, foreign, hook, is_layer, manifest_first, rows, usual,
};
use support::{Layers, random_image, read_layer, reference};
use vellum_image::registry::{
    ExchangeError, HostOptions, RegistryError, RegistryOptions, RegistrySource, Retry, push,
};
use vellum_image::sink::{OutImage, SinkOptions};
use vellum_image::source::{ImageSource, SourceError};
use vellum_image::{Cancel, Compression, Platform};
use vellum_testkit::Rng;
use vellum_testkit::clients::{Body, Home, Hook, OddRegistry, Reply, Skopeo, available};

fn options(home: &Home, registry: &OddRegistry, login: bool) -> RegistryOptions {
    let path = home.join("auth.json");
    let logins = if login {
        serde_json::json!({"auths": {registry.host(): {"auth": LOGIN}}})
    } else {
        serde_json::json!({})
    };
    std::fs::write(&path, logins.to_string()).unwrap();
    RegistryOptions {
        auth_file: Some(path),
        retry: Retry {
            attempts: 3,
            first_pause: Duration::from_millis(10),
            silence: Duration::from_secs(1),
            ..Retry::default()
        },
        ..RegistryOptions::default()
    }
}

/// Pulls `name` and returns its layers, checked against the image.
fn pull_from(name: &str, options: &RegistryOptions) -> Result<Vec<Vec<u8>>, SourceError> {
    let source = RegistrySource::open(
        &reference(name),
        &Platform::host(),
        options,
        &Cancel::default(),
    )?;
    let layers = 0..source.images()[0].layers.len();
    let read = |at| read_layer(&source, 0, at).map(|(tar, _)| tar);
    Ok(layers.map(read).collect::<Result<_, _>>()?)
}

fn push_to(
    home: &Home,
    registry: &OddRegistry,
    image: &(OutImage, Layers),
    options: &RegistryOptions,
) -> Result<(), SourceError> {
    let sink = SinkOptions {
        compression: Compression::None,
        spool_dir: home.path().to_owned(),
        jobs: 2,
    };
    let to = reference(&format!("{}/t:1", registry.host()));
    push(
        &image.0,
        &to,
        &image.1,
        options,
        &sink,
        &Cancel::default(),
        &|_, _| {},
    )
    .map(drop)
}

/// Any other failure than those that [`Outcome`] names is `Failed("")`.
fn outcome_of<T>(result: &Result<T, SourceError>) -> Outcome {
    match result {
        Ok(_) => Done,
        Err(SourceError::Registry(RegistryError::Denied { .. })) => Denied,
        Err(SourceError::Registry(RegistryError::NotFound { .. })) => NotFound,
        Err(SourceError::Registry(RegistryError::RateLimited { .. })) => RateLimited,
        Err(_) => Failed(""),
    }
}

/// Runs a pull or push with skopeo; returns its message if it refused.
fn ask_skopeo(
    skopeo: &Skopeo,
    home: &Home,
    push: bool,
    host: &str,
    layout: &str,
) -> Result<(), String> {
    let auth = home.join("auth.json").display().to_string();
    let into = home.join("taken").display().to_string();
    let done = if push {
        let to = format!("docker://{host}/t:1");
        skopeo.copy_with(
            layout,
            &to,
            &["--dest-tls-verify=false", "--dest-authfile", &auth],
        )
    } else {
        let from = format!("docker://{host}/t:1");
        let to = format!("dir:{into}");
        skopeo.copy_with(
            &from,
            &to,
            &["--src-tls-verify=false", "--src-authfile", &auth],
        )
    };
    done.map_err(|e| format!("{e:#}"))
}

#[test]
fn odd_registries_are_pulled_from_and_pushed_to() {
    let home = Home::new().unwrap();
    let mut rng = Rng::for_test("odd registries");
    let image = random_image(&mut rng, "x/t", &[SIZE, 700]);
    let plain = OddRegistry::start(hook(|_, _| None)).unwrap();
    push_to(&home, &plain, &image, &options(&home, &plain, false)).unwrap();
    let skopeo = available(&["skopeo"]).then(|| Skopeo::new(&home).unwrap());
    let layout = format!("oci:{}:x", home.join("layout").display());
    if let Some(skopeo) = &skopeo {
        let from = format!("docker://{}/t:1", plain.host());
        skopeo
            .copy_with(&from, &layout, &["--src-tls-verify=false"])
            .unwrap();
    }
    let mut wrong = Vec::new();
    let count = rows().len();
    // Each client has a server of its own, since some are odd only once.
    for (row, theirs) in rows().into_iter().zip(rows()) {
        let what = if row.push { "push" } else { "pull" };
        let start = |hook: Hook| {
            let registry = OddRegistry::start(hook).unwrap();
            if !row.push {
                registry.copy_from(&plain);
            }
            registry
        };
        let registry = start(row.hook);
        let chosen = options(&home, &registry, row.login);
        let outcome = if row.push {
            push_to(&home, &registry, &image, &chosen)
        } else {
            pull_from(&format!("{}/t:1", registry.host()), &chosen).map(|layers| {
                let promised = image.0.layers.iter().map(|l| &image.1.0[&l.diff_id]);
                assert!(layers.iter().eq(promised), "{}: other bytes", row.name);
            })
        };
        let actual = outcome_of(&outcome);
        let is_expected = match (row.outcome, &outcome) {
            (Failed(says), Err(error)) => {
                actual == Failed("") && vellum_sys::with_causes(error).contains(says)
            }
            (expected, _) => actual == expected,
        };
        if !is_expected || (row.push && actual == Done && registry.manifest("1").is_none()) {
            wrong.push(format!(
                "{what}: {}: {actual:?}, not {:?}: {outcome:?}",
                row.name, row.outcome
            ));
        }
        let told = format!("{outcome:?}");
        assert!(
            !told.contains("secret") && !told.contains(LOGIN),
            "{}: {told}",
            row.name
        );
        let Some(skopeo) = skopeo.as_ref().filter(|_| theirs.skopeo != NotAsked) else {
            continue;
        };
        let registry = start(theirs.hook);
        options(&home, &registry, row.login);
        let verdict = ask_skopeo(skopeo, &home, row.push, &registry.host(), &layout);
        if verdict.is_ok() != (theirs.skopeo == Takes) {
            wrong.push(format!("skopeo, {what}: {}: {verdict:?}", row.name));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {count} rows:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

#[test]
fn a_layer_that_never_comes_whole_is_an_error() {
    let home = Home::new().unwrap();
    let mut rng = Rng::for_test("layers that end early");
    let image = random_image(&mut rng, "x/t", &[SIZE]);
    let plain = OddRegistry::start(hook(|_, _| None)).unwrap();
    push_to(&home, &plain, &image, &options(&home, &plain, false)).unwrap();
    let cut: fn(Vec<u8>) -> Body = |bytes| Body::Cut(bytes, 0);
    let short: fn(Vec<u8>) -> Body = |bytes| Body::Whole(bytes[..100].to_vec());
    for (odd, says) in [
        (cut, "the connection broke"),
        (short, "the response ended early"),
    ] {
        let registry = OddRegistry::start(hook(move |registry, call| {
            let whole = registry.blob(call.path.rsplit('/').next()?)?;
            is_layer(call).then(|| Reply::new(200, "").with(odd(whole)))
        }))
        .unwrap();
        registry.copy_from(&plain);
        let chosen = options(&home, &registry, false);
        let error = pull_from(&format!("{}/t:1", registry.host()), &chosen).unwrap_err();
        let text = vellum_sys::with_causes(&error);
        assert!(text.contains(says), "{text}");
    }
}

/// Whether any request to the server carried credentials.
fn was_shown_anything(registry: &OddRegistry) -> bool {
    registry.calls().iter().any(|call| {
        !call.header("authorization").is_empty()
            || call.query.contains("account=")
            || !call.body.is_empty()
    })
}

#[test]
fn a_login_goes_to_its_registry_and_nowhere_else() {
    let home = Home::new().unwrap();
    let mut rng = Rng::for_test("logins that travel");
    let image = random_image(&mut rng, "x/t", &[5000]);
    let plain = OddRegistry::start(hook(|_, _| None)).unwrap();
    push_to(&home, &plain, &image, &options(&home, &plain, false)).unwrap();

    // A server to which the registry redirects: it gets the request, but no credentials, whatever
    // it demands.
    for challenge in [
        "",
        "Basic realm=\"x\"",
        "Bearer realm=\"http://HOST/token\"",
    ] {
        let other = OddRegistry::start(hook(move |registry, call| {
            let asks = challenge.replace("HOST", &registry.host());
            if !asks.is_empty() && call.path != "/token" {
                return Some(Reply::new(401, "").header("WWW-Authenticate", asks));
            }
            (call.path == "/token").then(|| Reply::new(200, TOKEN))
        }))
        .unwrap();
        other.copy_from(&plain);
        let to = other.host();
        let known = basic(false);
        let registry = OddRegistry::start(hook(move |registry, call| {
            known(registry, call).or_else(|| {
                is_layer(call).then(|| {
                    Reply::new(307, "").header("Location", format!("http://{to}{}", call.path))
                })
            })
        }))
        .unwrap();
        registry.copy_from(&plain);
        let outcome = pull_from(
            &format!("{}/t:1", registry.host()),
            &options(&home, &registry, true),
        );
        assert_eq!(
            outcome_of(&outcome) == Done,
            challenge.is_empty(),
            "{challenge}: {outcome:?}"
        );
        assert!(
            !other.calls().is_empty() && !was_shown_anything(&other),
            "{challenge}: {:?}",
            other.calls()
        );
    }

    // A mirror, and a token service that a mirror names: the registry's login is not for them.
    let service = OddRegistry::start(hook(|_, _| Some(Reply::new(200, TOKEN)))).unwrap();
    for challenge in ["Basic realm=\"x\"", "Bearer realm=\"http://HOST/token\""] {
        let asks = challenge.replace("HOST", &service.host());
        let mirror = OddRegistry::start(hook(move |_, _| {
            Some(Reply::new(401, "").header("WWW-Authenticate", asks.clone()))
        }))
        .unwrap();
        let registry = OddRegistry::start(basic(false)).unwrap();
        registry.copy_from(&plain);
        let mut chosen = options(&home, &registry, true);
        let host = HostOptions {
            mirrors: vec![format!("http://{}", mirror.host())],
            insecure: true,
            ..HostOptions::default()
        };
        chosen.hosts.insert(registry.host(), host);
        let outcome = pull_from(&format!("{}/t:1", registry.host()), &chosen);
        assert_eq!(outcome_of(&outcome), Done, "{outcome:?}");
        assert!(!mirror.calls().is_empty());
        assert!(
            !mirror
                .calls()
                .iter()
                .any(|call| call.header("authorization").contains(LOGIN))
        );
        assert!(!was_shown_anything(&service), "{:?}", service.calls());
    }

    // An upload session at another server.
    let other = OddRegistry::start(hook(|_, call| {
        (call.method == "PUT").then(|| Reply::new(201, ""))
    }))
    .unwrap();
    let to = other.host();
    let known = basic(false);
    let registry = OddRegistry::start(hook(move |registry, call| {
        known(registry, call).or_else(|| {
            (call.method == "POST")
                .then(|| Reply::new(202, "").header("Location", format!("http://{to}/up")))
        })
    }))
    .unwrap();
    push_to(&home, &registry, &image, &options(&home, &registry, true)).unwrap();
    assert!(!other.calls().is_empty());
    assert!(
        other
            .calls()
            .iter()
            .all(|call| call.header("authorization").is_empty())
    );
}

#[test]
fn an_identity_token_is_exchanged_for_a_token() {
    let home = Home::new().unwrap();
    let mut rng = Rng::for_test("identity token");
    let image = random_image(&mut rng, "x/t", &[5000]);
    let registry = OddRegistry::start(hook(|registry, call| {
        if call.path == "/token" {
            let form = String::from_utf8_lossy(&call.body);
            let good = call.method == "POST"
                && form.contains("grant_type=refresh_token")
                && form.contains("refresh_token=kept%2Ftoken")
                && form.contains("scope=repository%3At%3A");
            return Some(if good {
                Reply::new(200, r#"{"access_token":"T"}"#)
            } else {
                Reply::new(400, "")
            });
        }
        (call.header("authorization") != "Bearer T")
            .then(|| Reply::new(401, "").header("WWW-Authenticate", usual(registry)[0].clone()))
    }))
    .unwrap();
    let chosen = options(&home, &registry, false);
    let logins = serde_json::json!({"auths": {registry.host(): {"auth": "", "identitytoken": "kept/token"}}});
    std::fs::write(home.join("auth.json"), logins.to_string()).unwrap();
    push_to(&home, &registry, &image, &chosen).unwrap();
    let layers = pull_from(&format!("{}/t:1", registry.host()), &chosen).unwrap();
    assert_eq!(layers.len(), 1);
}

#[test]
fn an_identity_token_is_not_sent_where_a_token_service_redirects() {
    let home = Home::new().unwrap();
    let other = OddRegistry::start(hook(|_, _| Some(Reply::new(200, TOKEN)))).unwrap();
    let to = other.host();
    let registry = OddRegistry::start(hook(move |registry, call| {
        if call.path == "/token" {
            return Some(Reply::new(307, "").header("Location", format!("http://{to}/token")));
        }
        Some(Reply::new(401, "").header("WWW-Authenticate", usual(registry)[0].clone()))
    }))
    .unwrap();
    let chosen = options(&home, &registry, false);
    let logins = serde_json::json!({"auths": {registry.host(): {"identitytoken": "kept/token"}}});
    std::fs::write(home.join("auth.json"), logins.to_string()).unwrap();
    let outcome = pull_from(&format!("{}/t:1", registry.host()), &chosen);
    assert_eq!(outcome_of(&outcome), Failed(""), "{outcome:?}");
    assert!(registry.calls().iter().any(|call| call.path == "/token"));
    assert!(!was_shown_anything(&other), "{:?}", other.calls());
}

#[test]
fn a_server_that_asks_to_wait_gets_no_earlier_request() {
    let home = Home::new().unwrap();
    let mut rng = Rng::for_test("waiting");
    let image = random_image(&mut rng, "x/t", &[500]);
    let registry = OddRegistry::start(manifest_first(
        Reply::new(429, "").header("Retry-After", "1"),
    ))
    .unwrap();
    let plain = OddRegistry::start(hook(|_, _| None)).unwrap();
    push_to(&home, &plain, &image, &options(&home, &plain, false)).unwrap();
    registry.copy_from(&plain);
    let start = Instant::now();
    pull_from(
        &format!("{}/t:1", registry.host()),
        &options(&home, &registry, false),
    )
    .unwrap();
    assert!(
        start.elapsed() >= Duration::from_secs(1),
        "it asked for a second"
    );

    // One that asks for an hour is an error, which says so.
    let registry = OddRegistry::start(always(
        "GET",
        "/manifests/",
        Reply::new(429, "").header("Retry-After", "3600"),
    ))
    .unwrap();
    let error = pull_from(
        &format!("{}/t:1", registry.host()),
        &options(&home, &registry, false),
    )
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "{} allows no more requests for now: try again in 60 minutes",
            registry.host()
        )
    );
    let asked = registry
        .calls()
        .iter()
        .filter(|call| call.path.contains("/manifests/"))
        .count();
    assert_eq!(asked, 1);
}

#[test]
fn a_name_that_does_not_resolve_is_reported_as_such() {
    let chosen = RegistryOptions {
        retry: Retry {
            first_pause: Duration::from_millis(1),
            ..Retry::default()
        },
        ..RegistryOptions::default()
    };
    let error = pull_from("no-such-host.invalid/x:1", &chosen).unwrap_err();
    assert!(
        matches!(
            &error,
            SourceError::Registry(RegistryError::Unresolved {
                source: ExchangeError::Unresolved(_),
                ..
            })
        ),
        "{error:?}"
    );
    assert_eq!(
        error.to_string(),
        "no-such-host.invalid can't be reached: its name can't be resolved"
    );
}

#[test]
fn a_foreign_layer_is_fetched_from_its_urls_and_no_login_goes_there() {
    let home = Home::new().unwrap();
    let mut rng = Rng::for_test("foreign layers");
    let image = random_image(&mut rng, "x/t", &[SIZE]);
    let plain = OddRegistry::start(hook(|_, _| None)).unwrap();
    push_to(&home, &plain, &image, &options(&home, &plain, false)).unwrap();
    for challenge in [
        "",
        "Basic realm=\"x\"",
        "Bearer realm=\"http://HOST/token\"",
    ] {
        // The server with the layer, which asks for a login, and the registry, which has everything
        // else and requires a password.
        let other = OddRegistry::start(hook(move |registry, call| {
            if call.path == "/token" {
                return Some(Reply::new(200, TOKEN));
            }
            let asks = challenge.replace("HOST", &registry.host());
            if asks.is_empty() {
                return Some(Reply::new(
                    200,
                    registry.blob(call.path.rsplit('/').next()?)?,
                ));
            }
            Some(Reply::new(401, "").header("WWW-Authenticate", asks))
        }))
        .unwrap();
        other.copy_from(&plain);
        let urls = vec![
            // A login in the manifest is not used for any server.
            format!("http://u:p@{}/named/{{}}", other.host()),
            format!("http://{}/layer/{{}}", other.host()),
        ];
        let urls: Vec<&'static str> = urls.into_iter().map(|url| &*url.leak()).collect();
        let (known, foreign) = (basic(false), foreign(urls.leak(), false));
        let registry = OddRegistry::start(hook(move |registry, call| {
            known(registry, call).or_else(|| foreign(registry, call))
        }))
        .unwrap();
        registry.copy_from(&plain);
        let name = format!("{}/t:1", registry.host());
        let outcome = pull_from(&name, &options(&home, &registry, true));
        assert_eq!(
            outcome_of(&outcome) == Done,
            challenge.is_empty(),
            "{challenge}: {outcome:?}"
        );
        let calls = other.calls();
        assert!(
            !calls.is_empty() && !was_shown_anything(&other),
            "{calls:?}"
        );
        assert!(
            calls.iter().all(|call| call.path.starts_with("/layer/")),
            "{calls:?}"
        );
    }
}
