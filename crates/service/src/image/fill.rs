//! Unpacks one layer's tar into a staged tree whose parent is known, for clients that send layers
//! one by one.
//!
//! Like [`super::unpack`], for a single layer without an image: there is no digest to compare with.

use std::io::{BufWriter, Read, Write};

use crate::layer::on_parents::settle_on;
use vellum_image::apply::apply;
use vellum_image::{Applied, ApplyTarget, LayerStream, Limits, TargetMarks};
use vellum_store::{LayerMarks, SnapshotKey, StagedFile, StagedLayer, Store};
use vellum_sys::{Cancel, Dir, Process};

use crate::error::{Error, Result};
use crate::stack;

/// A layer that has been applied but not committed. Dropping it removes it.
pub(crate) struct FilledLayer {
    /// The tree.
    pub(crate) staged: StagedLayer,
    /// The recipe that turns the tree back into the same tar.
    pub(crate) recipe: StagedFile,
    /// Digests, sizes and remarks.
    pub(crate) applied: Applied,
}

/// Stages a layer on `parent` and applies `tar`, which is read to its end.
pub(crate) fn fill_on(
    process: Process,
    store: &Store,
    parent: Option<&SnapshotKey>,
    tar: Box<dyn Read + Send>,
    cancel: &Cancel,
) -> Result<FilledLayer> {
    let staged = store.stage_layer_on(parent)?;
    let (recipe, applied) = apply_to(process, store, &staged, tar, cancel)?;
    if !target(process, &staged)?.marks.is_whole() {
        let below = match parent {
            Some(parent) => stack::of_tree(process, &store.tree(parent)?)?
                .layers()
                .to_vec(),
            None => Vec::new(),
        };
        settle_on(process, &Dir::open(staged.root())?, &applied, &below)?;
    }
    Ok(FilledLayer {
        staged,
        recipe,
        applied,
    })
}

/// Applies `tar`, which is read to its end, to a staged layer, and keeps the recipe for the same
/// tar.
pub(crate) fn apply_to(
    process: Process,
    store: &Store,
    staged: &StagedLayer,
    tar: Box<dyn Read + Send>,
    cancel: &Cancel,
) -> Result<(StagedFile, Applied)> {
    let mut recipe = store.stage_file()?;
    let limits = Limits::default();
    let stream = LayerStream::open(tar, &limits, cancel)?;
    let mut out = BufWriter::new(&mut recipe);
    let applied = apply(
        stream,
        &target(process, staged)?,
        Some(&mut out),
        &limits,
        cancel,
    )?;
    out.flush()
        .map_err(Error::io("write a recipe below", store.root()))?;
    drop(out);
    Ok((recipe, applied))
}

/// Returns how and where this process fills a staged layer.
pub(crate) fn target(process: Process, staged: &StagedLayer) -> Result<ApplyTarget> {
    let prefix = process.prefix();
    Ok(ApplyTarget {
        root: Dir::open(staged.root())?,
        marks: match staged.marks() {
            LayerMarks::Overlay => TargetMarks::Overlay(prefix),
            LayerMarks::Whole => TargetMarks::Whole(prefix),
            LayerMarks::Plain => TargetMarks::Plain,
        },
        privilege: stack::privilege(process),
        donor: None,
    })
}
