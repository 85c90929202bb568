//! The volumes that an image declares: each container has its own, created at its first run.
//!
//! As with Docker, what is written there bypasses the container's layers: neither `diff` nor
//! `commit` sees it. A volume starts with the container's content at its place. Unlike Docker's, it
//! is removed with its container.
//!
//! A volume's name tells its container and its place, so nothing else has to be recorded. Its
//! content is copied next to it, synced, and renamed into place; then a mark says that it is
//! filled. After a crash before the mark, the next run fills it again, starting with an empty
//! volume, since nothing ran in it. The caller holds the container's lock.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use vellum_format::Digest;
use vellum_image::RunConfig;
use vellum_store::{ContainerRecord, StoreError, Subject};
use vellum_sys::in_root::{self, Last};
use vellum_sys::stat::stat_fd;
use vellum_sys::{Dir, FileKind, RenameFlags, publish};

use super::spec::{Bind, clean};
use crate::container::cp;
use crate::context::Context;
use crate::error::{Error, Result};

/// Next to a volume's data: it has been filled.
const FILLED: &str = "_filled";
/// Next to a volume's data: the copy in progress.
const FILLING: &str = "_filling";

/// Characters of a path's digest in a volume's name.
const PATH_DIGITS: usize = 16;

/// Returns the image's volumes as binds, outer ones first, except those at places where the user
/// binds something else.
///
/// Errors: `Invalid` for a place that can't be a volume.
pub(super) fn volumes(
    ctx: &Context,
    record: &ContainerRecord,
    tree: &Dir,
    image: &RunConfig,
    binds: &[Bind],
) -> Result<Vec<Bind>> {
    let taken: BTreeSet<PathBuf> = binds.iter().map(|bind| clean(&bind.destination)).collect();
    let mut places: Vec<PathBuf> = Vec::new();
    for declared in &image.volumes {
        let place = clean(Path::new(declared));
        if taken.contains(&place) || places.contains(&place) {
            continue;
        }
        if place == Path::new("/") || place == Path::new("/dev") || place.starts_with("/proc") {
            return Err(impossible(
                declared,
                "it would hide what every container needs",
            ));
        }
        if let Some(found) = in_root::find(tree, &place, Last::Follow)?
            && stat_fd(&found)?.kind != FileKind::Dir
        {
            return Err(impossible(declared, "it is not a directory"));
        }
        places.push(place);
    }
    places.sort_by_key(|place| place.components().count());
    let made = places.into_iter().map(|place| {
        let name = name(&record.id, &place);
        let volume = ctx.store()?.create_volume(&name, &Default::default())?;
        fill(ctx, tree, &place, &volume.path)?;
        Ok(Bind {
            source: volume.path,
            destination: place,
            read_only: false,
            volume: Some(name),
        })
    });
    made.collect()
}

fn impossible(declared: &str, why: &str) -> Error {
    Error::Invalid {
        what: format!(
            "the image declares a volume at `{}`, which can't be one: {why}",
            declared.escape_debug()
        ),
        hint: Some("bind something to that place with --volume, or change the image: `vellum commit --change`".into()),
    }
}

/// Returns the name of the volume at `place` of container `id`.
fn name(id: &str, place: &Path) -> String {
    let digest = Digest::of(place.as_os_str().as_encoded_bytes()).to_string();
    let hex = digest.rsplit(':').next().unwrap_or_default();
    format!("{id}-{}", &hex[..PATH_DIGITS.min(hex.len())])
}

/// Returns the id of the container whose declared volume is called `name`; `None` for every other
/// volume.
pub(crate) fn owner(name: &str) -> Option<&str> {
    let (id, place) = name.split_once('-')?;
    let hex = |text: &str| text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    (id.len() == 64 && place.len() == PATH_DIGITS && hex(id) && hex(place)).then_some(id)
}

/// Removes the declared volumes of a container that no longer exists, with their content.
pub(crate) fn remove(ctx: &Context, id: &str) -> Result<()> {
    for volume in ctx.store()?.volumes()? {
        if owner(&volume.name) != Some(id) {
            continue;
        }
        match ctx.store()?.remove_volume(&volume.name) {
            Ok(()) => {}
            // Another command removed it first.
            Err(StoreError::NotFound {
                subject: Subject::Volume,
                ..
            }) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Fills a new volume with the tree's content at `place`, including the directory's attributes.
fn fill(ctx: &Context, tree: &Dir, place: &Path, data: &Path) -> Result<()> {
    let (Some(home), Some(data)) = (data.parent(), data.file_name()) else {
        return Ok(());
    };
    let home = Dir::open(home)?;
    if home.stat_opt(FILLED)?.is_some() {
        return Ok(());
    }
    if home.stat_opt(FILLING)?.is_some() {
        home.remove_tree(FILLING)?;
    }
    if let Some(from) = in_root::dir(tree, place)? {
        home.mkdir(FILLING, 0o700)?;
        let into = home.open_dir(FILLING)?;
        cp::whole_tree(ctx, &from, &into)?;
        publish::sync_fs(&into)?;
        match home.rename(FILLING, &home, data, RenameFlags::empty()) {
            // Left by an earlier run that stopped here.
            Err(e) if e.is_not_empty() => drop(home.remove_tree(FILLING)?),
            other => other?,
        }
    }
    home.create_file(FILLED, 0o600)?;
    home.sync()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volumes_name_tells_its_container() {
        let id = "0123456789abcdef".repeat(4);
        let name = name(&id, Path::new("/data"));
        assert_eq!(owner(&name), Some(id.as_str()));
        for other in [
            "cache",
            "a-b",
            &id,
            &format!("{id}-"),
            &format!("{id}-cache"),
            &format!("{id}-0123456789abcdeg"),
            &name[1..],
        ] {
            assert_eq!(owner(other), None, "{other}");
        }
    }
}
