//! Every rule of the decision as a row.

use vellum_store::{DriverKind, Labels};

use super::super::{GID_MAPPING, MAX_SIZE, PARENT_CHAIN, SNAPSHOT_REF, UID_MAPPING};
use super::*;
use crate::plan::tests::{facts, overlay, parts, wishes};

const ROOT: Owner = Owner { uid: 0, gid: 0 };

/// A requested snapshot: on two layers, writable, without labels, in a store with the default
/// settings, where everything is available.
struct Case {
    labels: Labels,
    parts: TreeParts,
    owner: Owner,
    facts: Facts,
    wishes: Wishes,
    remap_ids: bool,
}

fn case() -> Case {
    Case {
        labels: Labels::new(),
        parts: parts(2),
        owner: ROOT,
        facts: facts(),
        wishes: Wishes {
            engine: Engine::Auto,
            ..wishes()
        },
        remap_ids: false,
    }
}

impl Case {
    fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    fn label(self, label: &str, text: &str) -> Self {
        self.with(|case| drop(case.labels.insert(label.into(), text.into())))
    }

    fn mapped(self) -> Self {
        self.label(UID_MAPPING, "0:100000:65536")
            .label(GID_MAPPING, "0:200000:65536")
    }

    fn recorded(self, mapper: Mapper) -> Self {
        let (label, name) = mapper.label();
        self.mapped().label(&label, &name)
    }

    /// One directory, as for a tree without a parent.
    fn plain(self) -> Self {
        self.with(|case| {
            case.parts.shape = Shape::Plain {
                root: "/store/overlay2/0/diff".into(),
                read_only: false,
                base: None,
            }
        })
    }

    fn unpacked_before_its_parent(self) -> Self {
        self.plain()
            .label(SNAPSHOT_REF, "sha256:1")
            .label(PARENT_CHAIN, "sha256:0")
    }

    fn decided(&self) -> Result<Shown> {
        let asked = Asked::of(&self.labels)?;
        decide(
            &asked,
            &self.parts,
            Some(self.owner),
            &self.facts,
            &self.wishes,
            self.remap_ids,
        )
    }
}

/// What mounts it, and with what, on one line.
fn line(shown: &Shown) -> String {
    let mut words = vec![match &shown.plan {
        Plan::Bind { read_only, .. } => format!("bind read_only={read_only}"),
        Plan::Overlay { mount, .. } => format!(
            "kernel redirect_dir={}",
            mount.options.redirect_dir.map_or("-", RedirectDir::as_str)
        ),
        Plan::Engine { mount, .. } => format!("engine redirect_dir={}", mount.redirect_dir),
    }];
    let mapped = shown.mapping.is_some();
    words.extend(mapped.then(|| "mapped".to_owned()));
    words.extend(shown.new_mapper.map(|mapper| format!("record={mapper:?}")));
    let owner = |owner: Owner| format!("upper={}:{}", owner.uid, owner.gid);
    words.extend(shown.upper_owner.map(owner));
    words.extend(shown.limit_bytes.map(|bytes| format!("limit={bytes}")));
    words.extend(shown.dirs.iter().map(|(dir, mode)| {
        let name = dir.file_name().unwrap().to_string_lossy();
        format!("{name}={mode:o}")
    }));
    words.join(" ")
}

#[test]
fn each_request_is_mounted_as_the_table_says() {
    let no_fuse = |case: &mut Case| case.facts.fuse = false;
    let deep = |case: &mut Case| case.parts = parts(200);
    let view = |case: &mut Case| overlay(&mut case.parts).upper = None;
    let quota = |case: &mut Case| case.parts.size_limit_bytes = Some(4096);
    let engine = |case: &mut Case| case.wishes.engine = Engine::Vellum;
    let redirects = |case: &mut Case| case.wishes.redirect_dir = Toggle::On;
    let remap = |case: &mut Case| case.remap_ids = true;
    let copied = |case: &mut Case| {
        case.owner = Owner {
            uid: 100_000,
            gid: 200_000,
        }
    };
    let user_1000 = |case: &mut Case| {
        case.owner = Owner {
            uid: 1000,
            gid: 1000,
        }
    };
    let by_engine = |case: &mut Case| {
        case.parts.features = Some(MountFeatures {
            engine: true,
            xino: true,
            ..MountFeatures::default()
        })
    };
    let kernel = "kernel redirect_dir=nofollow";
    let ours = "engine redirect_dir=false";
    for (name, case, expected) in [
        ("nothing asked", case(), kernel.to_owned()),
        (
            "one directory",
            case().plain(),
            "bind read_only=false".into(),
        ),
        ("a view", case().with(view), kernel.into()),
        (
            "settings: redirects",
            case().with(redirects),
            "kernel redirect_dir=on".into(),
        ),
        ("settings: the engine", case().with(engine), ours.into()),
        (
            "mounted by the engine before",
            case().with(by_engine),
            ours.into(),
        ),
        // Layers are unpacked into the upper without a mount: settings of engine and redirects
        // don't matter.
        (
            "a layer unpacked, the engine set",
            case()
                .label(SNAPSHOT_REF, "sha256:1")
                .with(engine)
                .with(redirects),
            kernel.into(),
        ),
        (
            "a layer unpacked before its parent",
            case().unpacked_before_its_parent(),
            format!("{kernel} work=700 empty=755"),
        ),
        (
            "the same with a limit, which layers have not",
            case().unpacked_before_its_parent().label(MAX_SIZE, "4096"),
            format!("{kernel} work=700 empty=755"),
        ),
        (
            "a limit",
            case().label(MAX_SIZE, "4096"),
            format!("{ours} limit=4096"),
        ),
        (
            "a limit by quota",
            case().label(MAX_SIZE, "4096").with(quota),
            kernel.into(),
        ),
        (
            "a limit of a view",
            case().label(MAX_SIZE, "4096").with(view),
            format!("{kernel} limit=4096"),
        ),
        (
            "a limit of one directory",
            case().label(MAX_SIZE, "4096").plain(),
            "bind read_only=false limit=4096".into(),
        ),
        // Ids: mapped by the kernel if the client knows it, else by the engine, which shows owners
        // itself.
        (
            "ids",
            case().mapped(),
            format!("{ours} mapped record=Engine"),
        ),
        (
            "ids, the kernel may",
            case().mapped().with(remap),
            format!("{kernel} mapped record=Kernel upper=100000:200000"),
        ),
        (
            "ids of another user's root, the kernel may",
            case().mapped().with(remap).with(user_1000),
            format!("{kernel} mapped record=Kernel upper=101000:201000"),
        ),
        (
            "ids of a view, the kernel may",
            case().mapped().with(remap).with(view),
            format!("{kernel} mapped record=Kernel"),
        ),
        (
            "ids of one directory, the kernel may",
            case().mapped().with(remap).plain(),
            "bind read_only=false mapped record=Kernel".into(),
        ),
        (
            "ids mapped by a copy before",
            case().mapped().with(copied),
            format!("{kernel} record=Nobody"),
        ),
        (
            "ids and a limit, the kernel may",
            case().mapped().with(remap).label(MAX_SIZE, "4096"),
            format!("{ours} mapped record=Engine limit=4096"),
        ),
        (
            "ids of a chain whose options fill the page",
            case().mapped().with(remap).with(deep),
            format!("{ours} mapped record=Engine"),
        ),
        (
            "ids, the engine set",
            case().mapped().with(remap).with(engine),
            format!("{ours} mapped record=Engine"),
        ),
        // Recorded: whatever the current settings are.
        (
            "recorded: the kernel",
            case().recorded(Mapper::Kernel).with(engine),
            format!("{kernel} mapped"),
        ),
        (
            "recorded: the engine",
            case().recorded(Mapper::Engine).with(remap),
            format!("{ours} mapped"),
        ),
        (
            "recorded: nobody",
            case().recorded(Mapper::Nobody).with(remap),
            kernel.into(),
        ),
        (
            "no FUSE, the kernel may",
            case().mapped().with(remap).with(no_fuse),
            format!("{kernel} mapped record=Kernel upper=100000:200000"),
        ),
    ] {
        let shown = case
            .decided()
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(line(&shown), expected, "{name}");
    }
}

#[test]
fn snapshots_that_cant_be_mounted_are_refused_with_a_reason() {
    for (name, case, expected) in [
        (
            "ids without FUSE",
            case().mapped().with(|c| c.facts.fuse = false),
            "no FUSE",
        ),
        (
            "ids of one directory",
            case().mapped().plain(),
            "one directory",
        ),
        (
            "an owner that the mapping leaves out",
            case().mapped().with(|case| {
                case.remap_ids = true;
                case.owner.uid = 70_000;
            }),
            "70000",
        ),
        (
            "a whole copy before its parent",
            case()
                .unpacked_before_its_parent()
                .with(|case| case.parts.driver = DriverKind::Native),
            "before their parent",
        ),
        (
            "too deep for the kernel, which was named",
            case().with(|case| {
                case.parts = parts(501);
                case.wishes.engine = Engine::Kernel;
            }),
            "501",
        ),
    ] {
        let error = case.decided().expect_err(name).to_string();
        assert!(error.contains(expected), "{name}: {error}");
    }
}

#[test]
fn features_that_leave_marks_are_recorded_and_the_kernel_gets_real_directories() {
    let marks = |case: Case| case.decided().unwrap().marking_features().is_some();
    assert!(!marks(case()));
    assert!(!marks(case().plain()));
    assert!(marks(
        case().with(|case| case.wishes.redirect_dir = Toggle::On)
    ));
    assert!(marks(
        case().with(|case| case.wishes.engine = Engine::Vellum)
    ));
    let lowers = |case: Case| match case.decided().unwrap().plan {
        Plan::Overlay { mount, .. } => mount.lowers,
        other => panic!("{other:?}"),
    };
    assert!(lowers(case())[0].starts_with("/store/overlay2/l"));
    let mapped = case().mapped().with(|case| case.remap_ids = true);
    assert!(lowers(mapped)[0].ends_with("diff"));
}
