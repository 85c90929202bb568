//! What a runtime gets from the process that starts it.
#![allow(clippy::result_large_err)] // the verbs' own error

mod support;

use support::context_with;
use vellum_service::config::Partial;
use vellum_service::container::bundle::ProcessRequest;
use vellum_service::container::create::{CreateRequest, Origin, create};
use vellum_service::container::run::{RunRequest, run};
use vellum_testkit::{Scratch, needs_root};

/// A descriptor of the store, the tree or a lock would lead out of the container (CVE-2024-21626).
#[test]
fn a_runtime_inherits_no_descriptor_of_the_store() {
    if !needs_root("mounts of containers") {
        return;
    }
    let scratch = Scratch::new();
    let seen = scratch.join("seen");
    let script = format!(
        "#!/bin/sh\n[ \"$3\" = --log ] || exit 0\nls -l /proc/self/fd >'{}'\n",
        seen.display()
    );
    let settings = Partial {
        runtime: Some(Some(scratch.script("runtime.sh", &script))),
        ..Partial::default()
    };
    let ctx = context_with(&scratch, "one", settings);
    let request = CreateRequest {
        origin: Origin::Directory(scratch.dir("model")),
        name: Some("box".into()),
        size_bytes: None,
        inodes: None,
        labels: Default::default(),
        volumes: Vec::new(),
    };
    create(&ctx, &request).unwrap();
    let request = RunRequest {
        container: "box".into(),
        process: ProcessRequest {
            command: vec!["/command".into()],
            ..ProcessRequest::default()
        },
        interactive: false,
    };
    run(&ctx, &request).unwrap();
    let listing = std::fs::read_to_string(&seen).unwrap();
    let links: Vec<&str> = listing
        .lines()
        .filter_map(|line| Some(line.split_once(" -> ")?.1))
        .collect();
    assert!(links.contains(&seen.to_str().unwrap()), "{listing}");
    let ours = scratch.path().to_str().unwrap();
    let leaked: Vec<_> = links
        .iter()
        .filter(|link| link.starts_with(ours) && **link != seen.to_str().unwrap())
        .collect();
    assert!(leaked.is_empty(), "{leaked:?}");
}
