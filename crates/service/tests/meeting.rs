//! Verbs on a container that another process removes while they read it.
#![allow(clippy::result_large_err)] // the verbs' own error

mod support;

use support::context;
use vellum_service::Error;
use vellum_service::container::create::{CreateRequest, Origin, create};
use vellum_service::container::diff;
use vellum_service::container::remove;
use vellum_service::error::ObjectKind;
use vellum_testkit::{Scratch, needs_root};

#[test]
fn reads_of_a_container_removed_meanwhile_are_discarded() {
    if !needs_root("marks of the kernel") {
        return;
    }
    let scratch = Scratch::new();
    let ctx = context(&scratch, "one");
    let model = scratch.dir("model");
    let request = CreateRequest {
        origin: Origin::Directory(model),
        name: Some("box".into()),
        size_bytes: None,
        inodes: None,
        labels: Default::default(),
        volumes: Vec::new(),
    };
    create(&ctx, &request).unwrap();
    let record = vellum_service::names::container(&ctx, "box").unwrap();
    let tree = ctx.store().unwrap().tree(&record.snapshot).unwrap();
    let upper = tree.layers()[0].dir.clone();
    for name in ["a", "b", "c"] {
        std::fs::write(upper.join(name), name).unwrap();
    }
    let mut seen = 0;
    diff::diff(&ctx, "box", |_| {
        seen += 1;
        Ok(())
    })
    .unwrap();
    assert_eq!(seen, 3);

    let mut removed = false;
    let gone = diff::diff(&ctx, "box", |_| {
        if !std::mem::replace(&mut removed, true) {
            remove::remove(&ctx, "box", true)?;
        }
        Ok(())
    });
    let kind = ObjectKind::Container;
    assert!(
        matches!(&gone, Err(Error::NotFound { kind: found, name, .. }) if *found == kind && name == "box"),
        "{gone:?}"
    );
}
