//! Images and their names: records only. What a manifest or a configuration says is none of this room's business.

use std::iter;

use jiff::Timestamp;
use rusqlite::{OptionalExtension, Transaction, params};
use vellum_format::Digest;

use crate::{
    error::{DbContext, Result, StoreError, Subject},
    following::{self, Follower},
    lease::{self, LeaseId},
    records,
    rows::{self, now_ns, parse, time},
    sidecar,
    snapshot::SnapshotKey,
    store::Store,
    turn::Turn,
};

/// The blob that a layer came as or was written as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerBlob {
    /// Media type of its descriptor.
    pub media_type: String,
    /// Digest of the blob (compressed or not).
    pub digest: Digest,
    /// Its length.
    pub size_bytes: u64,
}

/// One layer of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageLayer {
    /// The committed snapshot that holds its tree.
    pub snapshot: SnapshotKey,
    /// Digest of its uncompressed tar.
    pub diff_id: Digest,
    /// The blob it came as, where known. Whether the store has it is another question: [`Store::blob`].
    pub blob: Option<LayerBlob>,
}

/// An image to be recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewImage {
    /// Digest of its configuration, which must be a blob of the store.
    pub id: Digest,
    /// Digest of its manifest, which must be a blob of the store.
    pub manifest: Digest,
    /// Media type of the manifest.
    pub media_type: String,
    /// Its layers, base first; all committed.
    pub layers: Vec<ImageLayer>,
    /// Names it gets. A name that another image had moves.
    pub tags: Vec<String>,
}

/// A recorded image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRecord {
    /// Digest of its configuration.
    pub id: Digest,
    /// Digest of its manifest.
    pub manifest: Digest,
    /// Media type of the manifest.
    pub media_type: String,
    /// Its layers, base first.
    pub layers: Vec<ImageLayer>,
    /// Its names, sorted; may be empty.
    pub tags: Vec<String>,
    /// When it came into this store.
    pub added: Timestamp,
}

impl ImageRecord {
    /// Returns the snapshot that a container of this image stands on; `None` for an image without layers.
    pub fn top(&self) -> Option<&SnapshotKey> {
        self.layers.last().map(|layer| &layer.snapshot)
    }
}

/// A name that moved from one image to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MovedTag {
    /// The name.
    pub name: String,
    /// The image that had it.
    pub from: Digest,
}

impl Store {
    /// Records an image and its names in one transaction, and returns the names that moved away from other images.
    ///
    /// Durable on return. An image of the same id is replaced (its manifest may differ), names it has stay. Its layers and
    /// blobs need no lease any more then. Errors: `NotFound` if a layer or blob is not there, `ParentNotCommitted` if a
    /// layer is not committed.
    pub fn put_image(&self, image: &NewImage) -> Result<Vec<MovedTag>> {
        let _turn = Turn::at_sidecars(self)?;
        let moved = self.write(|tx| put(tx, image))?;
        self.follow_images(image, &moved);
        Ok(moved)
    }

    /// Records an image and ends `lease`, all in one transaction. As [`Store::put_image`] otherwise.
    pub fn put_image_and_end(&self, image: &NewImage, lease: &LeaseId) -> Result<Vec<MovedTag>> {
        let _turn = Turn::at_sidecars(self)?;
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
        self.read(|tx| load(tx, id)?.ok_or_else(|| StoreError::not_found(Subject::Image, id)))
    }

    /// Returns all images, newest first.
    pub fn images(&self) -> Result<Vec<ImageRecord>> {
        self.read(all)
    }

    /// Returns the ids that begin with these hexadecimal digits (of SHA-256, without the colon), sorted.
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
            strings(
                tx,
                "SELECT id FROM images WHERE id >= ?1 AND id < ?2 ORDER BY id",
                [from, to],
            )?
            .iter()
            .map(|id| parse(id))
            .collect()
        })
    }

    /// Returns the image that has the name `tag`, or `None`.
    pub fn resolve_tag(&self, tag: &str) -> Result<Option<Digest>> {
        self.read(|tx| holder(tx, tag))
    }

    /// Returns all names and their images, sorted by name.
    pub fn tags(&self) -> Result<Vec<(String, Digest)>> {
        self.read(|tx| {
            let mut statement = tx
                .prepare_cached("SELECT name, image FROM tags ORDER BY name")
                .db("list names")?;
            let rows = statement
                .query_map([], |row| {
                    Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
                })
                .db("list names")?;
            rows.map(|row| {
                let (name, image) = row.db("list names")?;
                Ok((name, parse(&image)?))
            })
            .collect()
        })
    }

    /// Gives `image` the name `tag` and returns the image that had it before. Durable on return. Errors: `NotFound`.
    pub fn tag(&self, tag: &str, image: &Digest) -> Result<Option<Digest>> {
        let _turn = Turn::at_sidecars(self)?;
        let before = self.write(|tx| {
            let before = holder(tx, tag)?;
            if load(tx, image)?.is_none() {
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

    /// Takes a name away and returns the image that had it. The image stays. Errors: `NotFound`.
    pub fn untag(&self, tag: &str) -> Result<Digest> {
        let _turn = Turn::at_sidecars(self)?;
        let image = self.write_freeing(|tx| {
            let image = holder(tx, tag)?.ok_or_else(|| StoreError::not_found(Subject::Tag, tag))?;
            tx.execute("DELETE FROM tags WHERE name = ?1", [tag])
                .db("remove a name")?;
            is_due(tx, &image)?;
            Ok(image)
        })?;
        self.follow(&[Follower::Image(image)]);
        Ok(image)
    }

    /// Removes an image and all its names; its layers and blobs go with the next gc unless others need them.
    ///
    /// Errors: `NotFound`; `InUse` while a container was made from it.
    pub fn remove_image(&self, id: &Digest) -> Result<ImageRecord> {
        let _turn = Turn::at_sidecars(self)?;
        let image = self.write_freeing(|tx| {
            let image = load(tx, id)?.ok_or_else(|| StoreError::not_found(Subject::Image, id))?;
            let users = strings(
                tx,
                "SELECT name FROM containers WHERE image = ?1 ORDER BY name",
                [id.to_string()],
            )?;
            if !users.is_empty() {
                return Err(StoreError::InUse {
                    subject: Subject::Image,
                    name: id.to_string(),
                    by: format!("container {}", users.join(", ")),
                });
            }
            tx.execute("DELETE FROM images WHERE id = ?1", [id.to_string()])
                .db("remove an image")?;
            Ok(image)
        })?;
        records::remove(&self.layout().records().join(sidecar::image_name(id)))?;
        Ok(image)
    }
}

fn is_due(tx: &Transaction<'_>, id: &Digest) -> Result<()> {
    following::due(tx, &Follower::Image(*id))
}

/// Returns all images, newest first.
pub(crate) fn all(tx: &Transaction<'_>) -> Result<Vec<ImageRecord>> {
    let ids = strings(tx, "SELECT id FROM images ORDER BY created_ns DESC, id", [])?;
    ids.iter()
        .filter_map(|id| parse(id).and_then(|id| load(tx, &id)).transpose())
        .collect()
}

fn strings<P: rusqlite::Params>(tx: &Transaction<'_>, sql: &str, params: P) -> Result<Vec<String>> {
    let mut statement = tx.prepare_cached(sql).db("list")?;
    let rows = statement.query_map(params, |row| row.get(0)).db("list")?;
    rows.map(|row| row.db("list")).collect()
}

fn holder(tx: &Transaction<'_>, tag: &str) -> Result<Option<Digest>> {
    let image: Option<String> = tx
        .query_row("SELECT image FROM tags WHERE name = ?1", [tag], |row| {
            row.get(0)
        })
        .optional()
        .db("look a name up")?;
    image.as_deref().map(parse).transpose()
}

fn set_tag(tx: &Transaction<'_>, tag: &str, image: &Digest) -> Result<()> {
    if tag.is_empty() {
        return Err(StoreError::Invalid(
            "an image name must not be empty".into(),
        ));
    }
    tx.execute(
        "INSERT OR REPLACE INTO tags (name, image, updated_ns) VALUES (?1, ?2, ?3)",
        params![tag, image.to_string(), now_ns()],
    )
    .db("set a name")?;
    Ok(())
}

pub(crate) fn put(tx: &Transaction<'_>, image: &NewImage) -> Result<Vec<MovedTag>> {
    for blob in [&image.id, &image.manifest] {
        if !rows::has_blob(tx, blob)? {
            return Err(StoreError::not_found(Subject::Blob, blob));
        }
    }
    let id = image.id.to_string();
    tx.execute(
        "INSERT INTO images (id, manifest, media_type, created_ns) VALUES (?1, ?2, ?3, ?4) \
         ON CONFLICT (id) DO UPDATE SET manifest = ?2, media_type = ?3",
        params![id, image.manifest.to_string(), image.media_type, now_ns()],
    )
    .db("record an image")?;
    tx.execute("DELETE FROM image_layers WHERE image = ?1", [&id])
        .db("record an image")?;
    for (position, layer) in image.layers.iter().enumerate() {
        let row = rows::get(tx, &layer.snapshot)?;
        crate::snapshot::policy_create(
            &layer.snapshot,
            false,
            Some((&layer.snapshot, Some(row.record.kind))),
        )?;
        tx.execute(
            "INSERT INTO image_layers (image, position, snapshot, diff_id, media_type, blob, blob_size) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            params![
                id,
                position as i64,
                row.id,
                layer.diff_id.to_string(),
                layer.blob.as_ref().map(|blob| &blob.media_type),
                layer.blob.as_ref().map(|blob| blob.digest.to_string()),
                layer.blob.as_ref().map(|blob| blob.size_bytes as i64),
            ],
        )
        .db("record an image's layer")?;
    }
    let mut moved = Vec::new();
    for tag in &image.tags {
        if let Some(from) = holder(tx, tag)?
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

pub(crate) fn load(tx: &Transaction<'_>, id: &Digest) -> Result<Option<ImageRecord>> {
    let text = id.to_string();
    let head: Option<(String, String, i64)> = tx
        .query_row(
            "SELECT manifest, media_type, created_ns FROM images WHERE id = ?1",
            [&text],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )
        .optional()
        .db("look an image up")?;
    let Some((manifest, media_type, added)) = head else {
        return Ok(None);
    };
    let mut statement = tx
        .prepare_cached(
            "SELECT s.key, l.diff_id, l.media_type, l.blob, l.blob_size FROM image_layers l \
             JOIN snapshots s ON s.id = l.snapshot WHERE l.image = ?1 ORDER BY l.position",
        )
        .db("look an image up")?;
    type Row = (Vec<u8>, String, Option<String>, Option<String>, Option<i64>);
    let rows = statement
        .query_map([&text], |row| -> rusqlite::Result<Row> {
            Ok((
                row.get(0)?,
                row.get(1)?,
                row.get(2)?,
                row.get(3)?,
                row.get(4)?,
            ))
        })
        .db("look an image up")?;
    let layers = rows
        .map(|row| {
            let (key, diff_id, media_type, blob, size) = row.db("look an image up")?;
            let blob = match (media_type, blob, size) {
                (Some(media_type), Some(blob), Some(size)) => Some(LayerBlob {
                    media_type,
                    digest: parse(&blob)?,
                    size_bytes: size as u64,
                }),
                _ => None,
            };
            Ok(ImageLayer {
                snapshot: SnapshotKey::new(key),
                diff_id: parse(&diff_id)?,
                blob,
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let tags = strings(
        tx,
        "SELECT name FROM tags WHERE image = ?1 ORDER BY name",
        [&text],
    )?;
    Ok(Some(ImageRecord {
        id: *id,
        manifest: parse(&manifest)?,
        media_type,
        layers,
        tags,
        added: time(added),
    }))
}
