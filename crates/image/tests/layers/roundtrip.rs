//! Random trees through the writer and back, here and through GNU tar.

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::common::{apply_to, assert_comes_back, gnu_extract};
use vellum_image::{LayerWriter, TarEntry, TarKind, TargetMarks};
use vellum_sys::Timespec;
use vellum_testkit::churn::{self, Churn};
use vellum_testkit::tree::{Ignore, Kind};
use vellum_testkit::{Rng, Scratch, Tree, needs_root};

/// Writes the whole tree below `root` as a layer.
fn write(root: &Path, out: &Path) {
    let tree = Tree::read(root).unwrap();
    let mut writer = LayerWriter::new(std::io::BufWriter::new(File::create(out).unwrap()));
    let mut paths: Vec<&PathBuf> = tree.entries.keys().collect();
    paths.sort_by_key(|path| {
        path.components()
            .map(|part| part.as_os_str().to_owned())
            .collect::<Vec<_>>()
    });
    for path in paths {
        let entry = &tree.entries[path];
        if path.as_os_str().is_empty() || entry.kind == Kind::Socket {
            continue;
        }
        let first = entry.linked_with.as_ref().filter(|first| *first != path);
        let kind = match (first, entry.kind) {
            (Some(first), _) => TarKind::HardLink {
                target: first.clone(),
            },
            (None, Kind::Directory) => TarKind::Directory,
            (None, Kind::File) => TarKind::File {
                size_bytes: entry.size,
            },
            (None, Kind::Symlink) => TarKind::Symlink {
                target: entry.target.clone().unwrap(),
            },
            (None, Kind::Fifo) => TarKind::Fifo,
            (None, Kind::Character) => TarKind::Character {
                major: entry.rdev.0,
                minor: entry.rdev.1,
            },
            (None, Kind::Block) => TarKind::Block {
                major: entry.rdev.0,
                minor: entry.rdev.1,
            },
            (None, Kind::Socket) => continue,
        };
        let described = TarEntry {
            path: path.clone(),
            kind,
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: Timespec::new(entry.mtime.0, entry.mtime.1),
            xattrs: entry
                .xattrs
                .iter()
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect(),
        };
        match &described.kind {
            TarKind::File { .. } => {
                let mut file = File::open(root.join(path)).unwrap();
                writer.append(&described, &mut file).unwrap();
            }
            _ => writer.append(&described, &mut std::io::empty()).unwrap(),
        }
    }
    use std::io::Write as _;
    writer.finish().unwrap().flush().unwrap();
}

/// Removes what no layer can hold: names that mean deletions, and the device that does.
fn make_fit(root: &Path) {
    let tree = Tree::read(root).unwrap();
    for (path, entry) in tree.entries.iter().rev() {
        let taken = path
            .components()
            .any(|part| part.as_os_str().as_bytes().starts_with(b".wh."));
        let deletion = entry.kind == Kind::Character && entry.rdev == (0, 0);
        if taken || deletion || entry.kind == Kind::Socket {
            let path = root.join(path);
            let _ = fs::remove_file(&path);
            let _ = fs::remove_dir_all(&path);
        }
    }
}

#[test]
fn random_trees_come_through_a_layer_unchanged() {
    if !needs_root("random trees with devices and owners") {
        return;
    }
    let mut rng = Rng::for_test("random trees through a layer");
    for round in 0..6 {
        let scratch = Scratch::new();
        let source = scratch.dir("source");
        churn::grow(&mut rng, &source, 80);
        Churn::ALL.run(&mut rng, &source, 300);
        make_fit(&source);
        let layer = scratch.join("layer.tar");
        write(&source, &layer);
        let (ours, theirs) = (scratch.dir("ours"), scratch.dir("theirs"));
        let (_, recipe) = apply_to(&layer, &ours, TargetMarks::Plain);
        gnu_extract(&layer, &theirs);
        let ignore = Ignore {
            root: true,
            ..Ignore::default()
        };
        let mut source_tree = Tree::read(&source).unwrap();
        source_tree.group_links();
        let mut theirs_tree = Tree::read(&theirs).unwrap();
        theirs_tree.group_links();
        source_tree.assert_same(&theirs_tree, ignore);
        // Overlay's own attributes in an archive are escaped here; other names are unchanged.
        let ours_tree = Tree::read(&ours).unwrap();
        let mut differences = source_tree.differences(&ours_tree, ignore);
        differences.retain(|difference| !format!("{difference}").contains("overlay."));
        assert!(differences.is_empty(), "round {round}: {differences:#?}");
        assert_comes_back(&layer, &ours, &recipe);
        // The writer's form is canonical: the applied tree gives the same layer again, unless names
        // were escaped.
        let overlay_names = source_tree.entries.values().any(|entry| {
            entry
                .xattrs
                .keys()
                .any(|name| name.to_string_lossy().contains("overlay."))
        });
        if !overlay_names {
            let again = scratch.join("again.tar");
            write(&ours, &again);
            assert!(
                fs::read(&layer).unwrap() == fs::read(&again).unwrap(),
                "round {round}"
            );
        }
    }
}
