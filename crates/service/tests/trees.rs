//! Which layers `check --trees` can verify, and that it says so of the others.

mod support;

use std::path::Path;

use support::context_with;
use vellum_service::Context;
use vellum_service::config::{Driver, Partial};
use vellum_service::image::{ImportRequest, ImportSource, import};
use vellum_service::store::check::{CheckRequest, Checked, check};
use vellum_store::{Commit, PrepareOptions, SnapshotKey};
use vellum_testkit::{Scratch, needs_root};

fn trees(context: &Context) -> Checked {
    let request = CheckRequest {
        trees: true,
        ..CheckRequest::default()
    };
    check(context, &request).unwrap()
}

/// Makes a layer of a writable tree, as another program does that unpacks layers itself.
fn commit(context: &Context, name: &str, parent: Option<&SnapshotKey>) -> SnapshotKey {
    let (key, name) = (SnapshotKey::from("extract"), SnapshotKey::from(name));
    let store = context.store().unwrap();
    let options = PrepareOptions {
        parent: parent.cloned(),
        ..PrepareOptions::default()
    };
    store.prepare(&key, &options).unwrap();
    store.commit(&name, &key, Commit::default()).unwrap();
    name
}

#[test]
fn a_layer_without_a_recipe_is_named_and_never_counted_as_verified() {
    if !needs_root("stores of every driver") {
        return;
    }
    for driver in ["overlay2", "overlay", "native"] {
        let scratch = Scratch::new();
        let settings = Partial {
            storage_driver: Some(driver.parse::<Driver>().unwrap()),
            ..Partial::default()
        };
        let context = context_with(&scratch, "one", settings);
        scratch.file("source/file", "content");
        import_dir(&context, &scratch.join("source"));
        let imported = vellum_service::names::image(&context, "imported:1").unwrap();
        commit(&context, "upper", imported.top());
        let base = commit(&context, "base", None);
        commit(&context, "above", Some(&base));
        let checked = trees(&context);
        assert_eq!(checked.wrong, [], "{driver}");
        assert_eq!(checked.verified, Some(1), "{driver}");
        let mut said: Vec<(&str, &str)> = checked
            .unverified
            .iter()
            .map(|one| (one.layer.as_str(), one.why.as_str()))
            .collect();
        said.sort();
        let above = match driver {
            "overlay2" => "no recipe",
            _ => "a layer below it was not, and its tree holds both",
        };
        let expected = [
            ("layer above", above),
            ("layer base", "no recipe"),
            ("layer upper", "no recipe"),
        ];
        assert_eq!(said, expected, "{driver}");
    }
}

fn import_dir(context: &Context, dir: &Path) {
    let request = ImportRequest {
        source: ImportSource::Path(dir.to_owned()),
        name: Some("imported:1".into()),
        changes: Vec::new(),
        message: None,
        platform: None,
    };
    import(context, &request).unwrap();
}
