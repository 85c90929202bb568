//! Every rule of the plan as a row.

use vellum_store::{DriverKind, LayerDir, SnapshotKind, TreeId};

use super::*;

/// A machine that can do everything.
pub(crate) fn facts() -> Facts {
    Facts {
        release: "6.18.0".into(),
        layer_fds: true,
        lowerdir_plus: true,
        trusted: true,
        userxattr: true,
        refusal: String::new(),
        redirect_dir: true,
        metacopy: true,
        index: true,
        xino: true,
        d_type: true,
        fs_name: "extfs".into(),
        root: true,
        fuse: true,
    }
}

fn plain_user() -> Facts {
    Facts {
        trusted: false,
        root: false,
        redirect_dir: false,
        metacopy: false,
        index: false,
        ..facts()
    }
}

pub(crate) fn wishes() -> Wishes {
    Wishes {
        engine: Engine::Kernel,
        method: MountMethod::Auto,
        redirect_dir: Toggle::Auto,
        metacopy: Toggle::Auto,
        xino: Toggle::Auto,
        docker_compatible: false,
        volatile: false,
        read_only: false,
        limit: Limit::default(),
    }
}

fn tree(n: usize) -> TreeId {
    TreeId::try_from(format!("{n:064x}")).unwrap()
}

fn layer(n: usize) -> LayerDir {
    LayerDir {
        tree: tree(n),
        dir: format!("/store/overlay2/{n:064x}/diff").into(),
        link: Some(format!("l/{n:0>26}").into()),
        diff_id: None,
        features: None,
    }
}

pub(crate) fn parts(lowers: usize) -> TreeParts {
    TreeParts {
        tree: tree(0),
        driver: DriverKind::Overlay2,
        kind: SnapshotKind::Active,
        shape: Shape::Overlay(Overlay {
            home: "/store/overlay2".into(),
            lowers: (1..=lowers).map(layer).collect(),
            upper: Some(layer(0)),
            work: Some("/store/overlay2/work".into()),
            merged: "/store/overlay2/merged".into(),
        }),
        features: None,
        size_limit_bytes: None,
    }
}

pub(crate) fn overlay(parts: &mut TreeParts) -> &mut Overlay {
    match &mut parts.shape {
        Shape::Overlay(overlay) => overlay,
        Shape::Plain { .. } => panic!("a stacked tree was made"),
    }
}

#[track_caller]
fn planned(
    parts: &TreeParts,
    facts: &Facts,
    wishes: &Wishes,
) -> (Method, OverlayMount, Option<MountFeatures>) {
    match plan(parts, facts, wishes).unwrap() {
        Plan::Overlay {
            method,
            mount,
            features,
        } => (method, mount, features),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn options_of(parts: &TreeParts, facts: &Facts, wishes: &Wishes) -> String {
    plan(parts, facts, wishes)
        .unwrap()
        .printed()
        .options
        .join(",")
}

#[test]
fn the_best_method_is_chosen_unless_one_is_forced() {
    #[track_caller]
    fn check(forced: MountMethod, fds: bool, plus: bool, expect: Result<&str, &str>) {
        let facts = Facts {
            layer_fds: fds,
            lowerdir_plus: plus,
            ..facts()
        };
        let got = plan(
            &parts(2),
            &facts,
            &Wishes {
                method: forced,
                ..wishes()
            },
        );
        match (got, expect) {
            (Ok(Plan::Overlay { method, .. }), Ok(expect)) => {
                assert_eq!(method_name(&method), expect)
            }
            (Err(PlanRefusal::NoMethod { needs, .. }), Err(expect)) => assert_eq!(needs, expect),
            (got, expect) => panic!("{got:?}, not {expect:?}"),
        }
    }
    check(MountMethod::Auto, true, true, Ok("layer-fds"));
    check(MountMethod::Auto, false, true, Ok("lowerdir-plus"));
    check(MountMethod::Auto, false, false, Ok("option-page"));
    check(MountMethod::OptionPage, true, true, Ok("option-page"));
    check(MountMethod::LowerdirPlus, true, true, Ok("lowerdir-plus"));
    check(MountMethod::LayerFds, false, true, Err("6.13"));
    check(MountMethod::LowerdirPlus, false, false, Err("6.8"));
}

#[test]
fn the_kernels_limits_are_refused_by_name() {
    assert!(plan(&parts(500), &facts(), &wishes()).is_ok());
    assert_eq!(
        plan(&parts(501), &facts(), &wishes()).unwrap_err(),
        PlanRefusal::TooDeep {
            layers: 501,
            limit: 500
        }
    );
    let page = Wishes {
        method: MountMethod::OptionPage,
        ..wishes()
    };
    // Docker's limit of 128 comes from its short names.
    let (_, mount, _) = planned(&parts(128), &facts(), &page);
    assert_eq!(
        mount.lowers[0],
        PathBuf::from(format!("/store/overlay2/l/{:0>26}", 1))
    );
    assert!(matches!(
        plan(&parts(150), &facts(), &page).unwrap_err(),
        PlanRefusal::PageFull { layers: 150, bytes } if bytes > OPTION_PAGE_BYTES
    ));
}

#[test]
fn features_follow_settings_and_the_machine() {
    let w = wishes();
    assert_eq!(
        options_of(&parts(2), &facts(), &w),
        "index=off,redirect_dir=on,metacopy=on,xino=auto"
    );
    let compatible = Wishes {
        docker_compatible: true,
        ..w
    };
    assert_eq!(
        options_of(&parts(2), &facts(), &compatible),
        "index=off,redirect_dir=nofollow,metacopy=off,xino=off"
    );
    assert_eq!(
        options_of(&parts(2), &plain_user(), &w),
        "xino=auto,userxattr"
    );
    let off = Wishes {
        redirect_dir: Toggle::Off,
        metacopy: Toggle::Off,
        xino: Toggle::On,
        volatile: true,
        ..w
    };
    assert_eq!(
        options_of(&parts(2), &facts(), &off),
        "index=off,redirect_dir=nofollow,metacopy=off,xino=on,volatile"
    );
    let old = Facts {
        metacopy: false,
        ..facts()
    };
    assert_eq!(
        options_of(&parts(2), &old, &w),
        "index=off,redirect_dir=on,metacopy=off,xino=auto"
    );
}

#[test]
fn required_features_that_are_missing_are_refused() {
    #[track_caller]
    fn check(facts: &Facts, wishes: &Wishes, expect: &str) {
        let refusal = plan(&parts(2), facts, wishes).unwrap_err();
        assert!(refusal.to_string().contains(expect), "{refusal}");
        assert!(!refusal.hint().is_empty());
    }
    let on = Wishes {
        metacopy: Toggle::On,
        ..wishes()
    };
    check(&plain_user(), &on, "user.overlay.*");
    check(
        &Facts {
            metacopy: false,
            ..facts()
        },
        &on,
        "does not have it",
    );
    check(
        &facts(),
        &Wishes {
            docker_compatible: true,
            ..on
        },
        "docker-compatible",
    );
    let none = Facts {
        trusted: false,
        userxattr: false,
        fs_name: "overlayfs".into(),
        refusal: "EINVAL".into(),
        ..facts()
    };
    check(&none, &wishes(), "overlayfs: EINVAL");
    let network = Facts {
        fs_name: "nfs".into(),
        ..none
    };
    check(&network, &wishes(), "on nfs");
    let refusal = plan(&parts(2), &network, &wishes()).unwrap_err();
    assert!(refusal.hint().contains("a local file system"), "{refusal}");
    let auto = Wishes {
        engine: Engine::Auto,
        ..wishes()
    };
    let planned = plan(&parts(2), &network, &auto).unwrap();
    assert!(matches!(planned, Plan::Engine { .. }), "{planned:?}");
    check(
        &Facts {
            d_type: false,
            ..facts()
        },
        &wishes(),
        "d_type",
    );
}

#[test]
fn the_first_features_win_over_changed_settings() {
    let first = MountFeatures {
        redirect_dir: true,
        metacopy: true,
        xino: true,
        ..MountFeatures::default()
    };
    let mut tree = parts(2);
    tree.features = Some(first);
    let compatible = Wishes {
        docker_compatible: true,
        ..wishes()
    };
    let (_, mount, features) = planned(&tree, &facts(), &compatible);
    assert_eq!(features, Some(first));
    assert_eq!(mount.options.redirect_dir, Some(RedirectDir::On));
    assert_eq!(mount.options.metacopy, Some(true));

    tree.features = Some(MountFeatures::default());
    let (_, mount, features) = planned(&tree, &facts(), &wishes());
    assert_eq!(features, Some(MountFeatures::default()));
    assert_eq!(mount.options.redirect_dir, Some(RedirectDir::NoFollow));

    tree.features = Some(first);
    assert!(matches!(
        plan(
            &tree,
            &Facts {
                metacopy: false,
                ..facts()
            },
            &wishes()
        )
        .unwrap_err(),
        PlanRefusal::UpperNeeds {
            feature: "metacopy",
            ..
        }
    ));
    assert!(matches!(
        plan(&tree, &plain_user(), &wishes()).unwrap_err(),
        PlanRefusal::Prefix { .. }
    ));
    // An existing index must be used: without it, its hard links come apart.
    tree.features = Some(MountFeatures {
        index: true,
        ..first
    });
    let (_, mount, _) = planned(&tree, &facts(), &wishes());
    assert_eq!(mount.options.index, Some(true));
}

#[test]
fn marks_of_a_layer_are_followed_or_refused_by_name() {
    let marked = |features: MountFeatures| {
        let mut tree = parts(3);
        overlay(&mut tree).lowers[1].features = Some(features);
        tree
    };
    let redirects = marked(MountFeatures {
        redirect_dir: true,
        ..MountFeatures::default()
    });
    let compatible = Wishes {
        docker_compatible: true,
        ..wishes()
    };
    let (_, mount, _) = planned(&redirects, &facts(), &compatible);
    assert_eq!(mount.options.redirect_dir, Some(RedirectDir::Follow));

    let metacopies = marked(MountFeatures {
        metacopy: true,
        ..MountFeatures::default()
    });
    assert!(plan(&metacopies, &facts(), &wishes()).is_ok());
    match plan(&metacopies, &facts(), &compatible).unwrap_err() {
        PlanRefusal::LayerNeeds {
            layer,
            mark: "metacopy",
            why,
        } => {
            assert_eq!(layer, tree(2).to_string());
            assert_eq!(why, COMPATIBLE);
        }
        other => panic!("{other:?}"),
    }
    let users = marked(MountFeatures {
        userxattr: true,
        ..MountFeatures::default()
    });
    assert!(matches!(
        plan(&users, &facts(), &wishes()).unwrap_err(),
        PlanRefusal::Prefix { .. }
    ));
    assert!(plan(&users, &plain_user(), &wishes()).is_ok());
}

#[test]
fn plain_trees_and_single_layers_are_bound() {
    let mut tree = parts(1);
    tree.shape = Shape::Plain {
        root: "/store/native/x".into(),
        read_only: false,
        base: None,
    };
    let bare = Facts {
        trusted: false,
        userxattr: false,
        d_type: false,
        ..facts()
    };
    assert_eq!(
        plan(&tree, &bare, &wishes()).unwrap(),
        Plan::Bind {
            source: "/store/native/x".into(),
            read_only: false
        }
    );
    assert_eq!(
        plan(
            &tree,
            &bare,
            &Wishes {
                read_only: true,
                ..wishes()
            }
        )
        .unwrap(),
        Plan::Bind {
            source: "/store/native/x".into(),
            read_only: true
        }
    );
    let mut single = parts(1);
    overlay(&mut single).upper = None;
    overlay(&mut single).work = None;
    assert!(matches!(
        plan(&single, &facts(), &wishes()).unwrap(),
        Plan::Bind {
            read_only: true,
            ..
        }
    ));
    let mut view = parts(2);
    overlay(&mut view).upper = None;
    overlay(&mut view).work = None;
    let (_, mount, features) = planned(&view, &facts(), &wishes());
    assert!(mount.read_only && features.is_none());
}

#[test]
fn a_plan_prints_all_it_would_do() {
    let text = plan(&parts(2), &facts(), &wishes())
        .unwrap()
        .printed()
        .to_string();
    assert_eq!(
        text,
        format!(
            "overlay by layer-fds\noptions  index=off,redirect_dir=on,metacopy=on,xino=auto\n\
             upper    /store/overlay2/{:064x}/diff\nwork     /store/overlay2/work\n\
             lower    /store/overlay2/{:064x}/diff\nlower    /store/overlay2/{:064x}/diff\n",
            0, 1, 2
        )
    );
}

#[test]
fn the_engine_mounts_what_the_kernel_cant() {
    let auto = Wishes {
        engine: Engine::Auto,
        ..wishes()
    };
    let deep = parts(501);
    let no_overlay = Facts {
        trusted: false,
        userxattr: false,
        refusal: "no".into(),
        ..facts()
    };
    let no_d_type = Facts {
        d_type: false,
        ..facts()
    };
    for (parts, facts, because) in [
        (&deep, facts(), "501 layers"),
        (&parts(2), no_overlay, "no overlay"),
        (&parts(2), no_d_type, "d_type"),
    ] {
        match plan(parts, &facts, &auto) {
            Ok(Plan::Engine {
                because: why,
                mount,
                ..
            }) => {
                assert!(why.contains(because), "{why}");
                assert!(!mount.userxattr, "root's marks stay root's");
            }
            other => panic!("{because}: {other:?}"),
        }
        // If the kernel was asked for, or there is no FUSE, the error is the kernel's.
        assert!(plan(parts, &facts, &wishes()).is_err());
        let no_fuse = Facts {
            fuse: false,
            ..facts
        };
        assert!(plan(parts, &no_fuse, &auto).is_err());
    }
    assert!(matches!(
        plan(&parts(2), &facts(), &auto),
        Ok(Plan::Overlay { .. })
    ));
}

#[test]
fn a_size_limit_of_a_writable_mount_is_enforced_by_the_engine() {
    let limited = Wishes {
        limit: Limit {
            size_bytes: Some(5 << 20),
            inodes: Some(7),
        },
        ..wishes()
    };
    match plan(&parts(2), &facts(), &limited) {
        Ok(Plan::Engine { mount, because, .. }) => {
            assert!(mount.options().contains(&"size=5242880".to_owned()));
            assert!(mount.options().contains(&"inodes=7".to_owned()));
            assert!(because.contains("size limit"), "{because}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_kernel_never_mounts_an_upper_that_the_engine_wrote_to() {
    let mut made = parts(2);
    made.features = Some(MountFeatures {
        engine: true,
        redirect_dir: true,
        ..MountFeatures::default()
    });
    assert_eq!(
        plan(&made, &facts(), &wishes()),
        Err(PlanRefusal::EngineMade)
    );
    for engine in [Engine::Auto, Engine::Vellum] {
        let wishes = Wishes { engine, ..wishes() };
        match plan(&made, &facts(), &wishes) {
            Ok(Plan::Engine {
                features: Some(features),
                mount,
                ..
            }) => {
                assert!(features.engine && mount.redirect_dir && !mount.metacopy);
            }
            other => panic!("{other:?}"),
        }
        let no_fuse = Facts {
            fuse: false,
            ..facts()
        };
        assert!(matches!(
            plan(&made, &no_fuse, &wishes),
            Err(PlanRefusal::NoFuse { .. })
        ));
        assert!(matches!(
            plan(&made, &plain_user(), &wishes),
            Err(PlanRefusal::Prefix { .. })
        ));
    }
}
