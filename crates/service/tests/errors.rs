//! Errors of the verbs and servers that no other test provokes. `docs/errors.md` has the remedies.
#![allow(clippy::result_large_err)] // the verbs' own error

mod support;

use std::io;
use std::process::Command;

use support::context;
use vellum_service::container::create::{CreateRequest, Origin, create};
use vellum_service::serve::{self, ServeError};
use vellum_service::{Cancel, Error, names, rootless};
use vellum_testkit::{Scratch, needs_root};

#[test]
fn a_container_whose_record_is_damaged_is_named() {
    if !needs_root("marks of the kernel") {
        return;
    }
    let scratch = Scratch::new();
    let ctx = context(&scratch, "one");
    let request = CreateRequest {
        origin: Origin::Directory(scratch.dir("model")),
        name: Some("box".into()),
        size_bytes: None,
        inodes: None,
        labels: Default::default(),
        volumes: Vec::new(),
    };
    create(&ctx, &request).unwrap();
    let record = names::container(&ctx, "box").unwrap();
    let store = ctx.store().unwrap();
    store.set_container_config(&record.id, "not JSON").unwrap();
    let error = vellum_service::container::inspect::inspect_container(&ctx, "box")
        .map(drop)
        .unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error:?}");
    assert!(
        error
            .to_string()
            .starts_with("the settings record of container box is damaged: "),
        "{error}"
    );
}

/// The holder of the namespace is this program again, which doesn't know that part.
#[test]
fn a_namespace_whose_holder_fails_is_an_error_with_the_way_out() {
    let scratch = Scratch::new();
    let run_dir = scratch.dir("run");
    let error = rootless::enter(&run_dir).unwrap_err();
    assert!(matches!(error, Error::Namespace(_)), "{error:?}");
    assert_eq!(
        error.to_string(),
        "cannot set up the user namespace that is needed to work without root"
    );
    assert!(error.hint().unwrap().contains("/etc/subuid"), "{error:?}");
}

#[test]
fn a_server_that_fails_passes_the_failure_on() {
    let error = serve::run("test", 1, async |life| {
        let server = async { Err(io::Error::other("the protocol broke")) };
        life.last(server, async || {}, &Cancel::new()).await
    })
    .unwrap_err();
    assert!(matches!(error, ServeError::Failed(_)), "{error:?}");
    assert_eq!(error.to_string(), "serving failed");
}

#[test]
fn a_server_without_descriptors_says_what_it_lacks() {
    if std::env::var_os("VELLUM_TEST_AGAIN").is_none() {
        let done = Command::new("sh")
            .args(["-c", "ulimit -n 64; exec \"$0\" --exact \"$1\" --nocapture"])
            .arg(std::env::current_exe().unwrap())
            .arg("a_server_without_descriptors_says_what_it_lacks")
            .env("VELLUM_TEST_AGAIN", "1")
            .output()
            .unwrap();
        assert!(done.status.success(), "{done:?}");
        return;
    }
    let mut all = Vec::new();
    while let Ok(one) = std::fs::File::open("/dev/null") {
        all.push(one);
    }
    let error = serve::run("test", 1, async |_| Ok(())).unwrap_err();
    drop(all);
    assert!(matches!(error, ServeError::Io { .. }), "{error:?}");
    assert_eq!(error.to_string(), "cannot start threads");
}
