//! Images and their names: records only. This crate doesn't read manifests or configurations.

use std::iter;

use rusqlite::Transaction;
use vellum_format::Digest;

use crate::{
    error::{Result, StoreError, Subject},
    following::{self, Follower},
    image::{ImageRecord, NewImage},
    lease::{self, LeaseId},
    record_lock::RecordLock,
    records, rows, sidecar,
    store::Store,
};

/// A name that moved from one image to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MovedTag {
    /// The name.
    pub name: String,
    /// The image that had it.
    pub from: Digest,
}

impl Store {
    /// Records an image and its names in one transaction, and returns the names that other images
    /// lost to it.
    ///
    /// Durable on return. An image of the same id is replaced (its manifest may differ), and the
    /// names it has stay. Its layers and blobs then need no lease any more. Errors: `NotFound` if a
    /// layer or blob is missing, `ParentNotCommitted` if a layer is not committed.
    pub fn put_image(&self, image: &NewImage) -> Result<Vec<MovedTag>> {
        let _lock = RecordLock::of_sidecars(self)?;
        let moved = self.write(|tx| put(tx, image))?;
        self.follow_images(image, &moved);
        Ok(moved)
    }

    /// Records an image and ends `lease`, all in one transaction. Otherwise like
    /// [`Store::put_image`].
    pub fn put_image_and_end(&self, image: &NewImage, lease: &LeaseId) -> Result<Vec<MovedTag>> {
        let _lock = RecordLock::of_sidecars(self)?;
        let moved = self.write(|tx| {
            let moved = put(tx, image)?;
            lease::end(tx, lease)?;
            Ok(moved)
        })?;
        self.follow_images(image, &moved);
        Ok(moved)
    }

    fn follow_images(&self, image: &NewImage, moved: &[MovedTag]) {
        let ids = iter::once(&image.id).chain(moved.iter().map(|moved| &moved.from));
        self.follow(&ids.cloned().map(Follower::Image).collect::<Vec<_>>());
    }

    /// Returns an image by id. Errors: `NotFound`.
    pub fn image(&self, id: &Digest) -> Result<ImageRecord> {
        self.read(|tx| {
            rows::images::find(tx, id)?.ok_or_else(|| StoreError::not_found(Subject::Image, id))
        })
    }

    /// Returns all images, newest first.
    pub fn images(&self) -> Result<Vec<ImageRecord>> {
        self.read(rows::images::all)
    }

    /// Returns the ids that begin with these hexadecimal digits (of the SHA-256, after the colon),
    /// sorted.
    pub fn images_by_prefix(&self, hex: &str) -> Result<Vec<Digest>> {
        if hex.is_empty()
            || !hex
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        {
            return Ok(Vec::new());
        }
        self.read(|tx| {
            let from = format!("sha256:{hex}");
            let to = format!("sha256:{hex}g"); // `g` sorts right after every hexadecimal digit
            rows::images::ids_between(tx, &from, &to)
        })
    }

    /// Returns the image that has the name `tag`, or `None`.
    pub fn resolve_tag(&self, tag: &str) -> Result<Option<Digest>> {
        self.read(|tx| rows::images::by_tag(tx, tag))
    }

    /// Returns all names and their images, sorted by name.
    pub fn tags(&self) -> Result<Vec<(String, Digest)>> {
        self.read(rows::images::tags)
    }

    /// Gives `image` the name `tag` and returns the image that had it before. Durable on return.
    /// Errors: `NotFound`.
    pub fn tag(&self, tag: &str, image: &Digest) -> Result<Option<Digest>> {
        let _lock = RecordLock::of_sidecars(self)?;
        let before = self.write(|tx| {
            let before = rows::images::by_tag(tx, tag)?;
            if !rows::images::has(tx, image)? {
                return Err(StoreError::not_found(Subject::Image, image));
            }
            set_tag(tx, tag, image)?;
            before
                .iter()
                .chain([image])
                .try_for_each(|id| is_due(tx, id))?;
            Ok(before)
        })?;
        let ids = before.iter().chain([image]);
        self.follow(&ids.cloned().map(Follower::Image).collect::<Vec<_>>());
        Ok(before)
    }

    /// Removes a name and returns the image that had it. The image stays. Errors: `NotFound`.
    pub fn untag(&self, tag: &str) -> Result<Digest> {
        let _lock = RecordLock::of_sidecars(self)?;
        let image = self.write_freeing(|tx| {
            let image = rows::images::by_tag(tx, tag)?
                .ok_or_else(|| StoreError::not_found(Subject::Tag, tag))?;
            rows::images::remove_tag(tx, tag)?;
            is_due(tx, &image)?;
            Ok(image)
        })?;
        self.follow(&[Follower::Image(image)]);
        Ok(image)
    }

    /// Removes an image and all its names. The next gc removes its layers and blobs unless others
    /// need them.
    ///
    /// Errors: `NotFound`; `InUse` while a container created from it exists.
    pub fn remove_image(&self, id: &Digest) -> Result<ImageRecord> {
        let _lock = RecordLock::of_sidecars(self)?;
        let image = self.write_freeing(|tx| {
            let image = rows::images::find(tx, id)?
                .ok_or_else(|| StoreError::not_found(Subject::Image, id))?;
            let users = rows::containers::of_image(tx, id)?;
            if !users.is_empty() {
                return Err(StoreError::InUse {
                    subject: Subject::Image,
                    name: id.to_string(),
                    by: format!(
                        "container{} {}",
                        if users.len() == 1 { "" } else { "s" },
                        users.join(", ")
                    ),
                });
            }
            rows::images::remove(tx, id)?;
            Ok(image)
        })?;
        records::remove(&self.layout().records().join(sidecar::image_name(id)))?;
        Ok(image)
    }
}

fn is_due(tx: &Transaction<'_>, id: &Digest) -> Result<()> {
    following::due(tx, &Follower::Image(*id))
}

fn set_tag(tx: &Transaction<'_>, tag: &str, image: &Digest) -> Result<()> {
    if tag.is_empty() {
        return Err(StoreError::Invalid(
            "an image name must not be empty".into(),
        ));
    }
    rows::images::set_tag(tx, tag, image)
}

pub(crate) fn put(tx: &Transaction<'_>, image: &NewImage) -> Result<Vec<MovedTag>> {
    for blob in [&image.id, &image.manifest] {
        if !rows::blobs::has(tx, blob)? {
            return Err(StoreError::not_found(Subject::Blob, blob));
        }
    }
    rows::images::put(tx, image)?;
    for (position, layer) in image.layers.iter().enumerate() {
        let row = rows::snapshots::get(tx, &layer.snapshot)?;
        crate::snapshot::policy_create(
            &layer.snapshot,
            false,
            Some((&layer.snapshot, Some(row.record.kind))),
        )?;
        rows::images::put_layer(tx, &image.id, position, row.id, layer)?;
    }
    let mut moved = Vec::new();
    for tag in &image.tags {
        if let Some(from) = rows::images::by_tag(tx, tag)?
            && from != image.id
        {
            moved.push(MovedTag {
                name: tag.clone(),
                from,
            });
        }
        set_tag(tx, tag, &image.id)?;
    }
    is_due(tx, &image.id)?;
    moved.iter().try_for_each(|moved| is_due(tx, &moved.from))?;
    Ok(moved)
}
