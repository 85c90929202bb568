//! Tables `images`, `image_layers` and `tags`.

use rusqlite::{OptionalExtension, Params, Transaction, params};
use vellum_format::Digest;

use super::{exists, list, now_ns, parse, time};
use crate::{
    error::{DbContext, Result},
    image::{ImageLayer, ImageRecord, LayerBlob, NewImage},
    snapshot::SnapshotKey,
};

/// Returns whether there is a record of an image.
pub(crate) fn has(tx: &Transaction<'_>, id: &Digest) -> Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM images WHERE id = ?1)";
    exists(tx, sql, &id.to_string())
}

/// Returns the ids of all images, newest first.
pub(crate) fn ids(tx: &Transaction<'_>) -> Result<Vec<Digest>> {
    digests(tx, "SELECT id FROM images ORDER BY created_ns DESC, id", [])
}

/// Returns the ids from `from` up to but not including `to`, compared as text, sorted.
pub(crate) fn ids_between(tx: &Transaction<'_>, from: &str, to: &str) -> Result<Vec<Digest>> {
    let sql = "SELECT id FROM images WHERE id >= ?1 AND id < ?2 ORDER BY id";
    digests(tx, sql, [from, to])
}

fn digests(tx: &Transaction<'_>, sql: &str, params: impl Params) -> Result<Vec<Digest>> {
    let found: Vec<String> = list(tx, "list images", sql, params, |row| row.get(0))?;
    found.iter().map(|id| parse(id)).collect()
}

/// Returns all images, newest first.
pub(crate) fn all(tx: &Transaction<'_>) -> Result<Vec<ImageRecord>> {
    let ids = ids(tx)?.into_iter();
    ids.filter_map(|id| find(tx, &id).transpose()).collect()
}

/// Finds an image by id.
pub(crate) fn find(tx: &Transaction<'_>, id: &Digest) -> Result<Option<ImageRecord>> {
    const OP: &str = "look up an image";
    let text = id.to_string();
    let head: Option<(String, String, i64)> = tx
        .query_row(
            "SELECT manifest, media_type, created_ns FROM images WHERE id = ?1",
            [&text],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )
        .optional()
        .db(OP)?;
    let Some((manifest, media_type, added)) = head else {
        return Ok(None);
    };
    type Raw = (Vec<u8>, String, Option<String>, Option<String>, Option<i64>);
    let layers: Vec<Raw> = list(
        tx,
        OP,
        "SELECT s.key, l.diff_id, l.media_type, l.blob, l.blob_size FROM image_layers l \
         JOIN snapshots s ON s.id = l.snapshot WHERE l.image = ?1 ORDER BY l.position",
        [&text],
        |row| {
            Ok((
                row.get(0)?,
                row.get(1)?,
                row.get(2)?,
                row.get(3)?,
                row.get(4)?,
            ))
        },
    )?;
    let layer = |(key, diff_id, media_type, blob, size): Raw| {
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
    };
    Ok(Some(ImageRecord {
        id: *id,
        manifest: parse(&manifest)?,
        media_type,
        layers: layers.into_iter().map(layer).collect::<Result<_>>()?,
        tags: tags_of(tx, id)?,
        added: time(added),
    }))
}

/// Returns an image that has the snapshot with this row number as a layer.
pub(crate) fn with_layer(tx: &Transaction<'_>, snapshot: i64) -> Result<Option<Digest>> {
    let sql = "SELECT image FROM image_layers WHERE snapshot = ?1 LIMIT 1";
    Ok(digests(tx, sql, [snapshot])?.pop())
}

/// Records an image without its layers, or changes its manifest; its old layers are removed.
pub(crate) fn put(tx: &Transaction<'_>, image: &NewImage) -> Result<()> {
    let id = image.id.to_string();
    tx.execute(
        "INSERT INTO images (id, manifest, media_type, created_ns) VALUES (?1, ?2, ?3, ?4) \
         ON CONFLICT (id) DO UPDATE SET manifest = ?2, media_type = ?3",
        params![id, image.manifest.to_string(), image.media_type, now_ns()],
    )
    .db("record an image")?;
    tx.execute("DELETE FROM image_layers WHERE image = ?1", [&id])
        .map(drop)
        .db("record an image")
}

/// Records the layer of an image, at an index from the base, on the snapshot with this row number.
pub(crate) fn put_layer(
    tx: &Transaction<'_>,
    id: &Digest,
    position: usize,
    snapshot: i64,
    layer: &ImageLayer,
) -> Result<()> {
    let blob = layer.blob.as_ref();
    tx.execute(
        "INSERT INTO image_layers (image, position, snapshot, diff_id, media_type, blob, blob_size) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        params![
            id.to_string(),
            position as i64,
            snapshot,
            layer.diff_id.to_string(),
            blob.map(|blob| &blob.media_type),
            blob.map(|blob| blob.digest.to_string()),
            blob.map(|blob| blob.size_bytes as i64),
        ],
    )
    .map(drop)
    .db("record an image's layer")
}

/// Sets when an image came into the store.
pub(crate) fn set_added(tx: &Transaction<'_>, id: &Digest, added_ns: i64) -> Result<()> {
    tx.execute(
        "UPDATE images SET created_ns = ?2 WHERE id = ?1",
        params![id.to_string(), added_ns],
    )
    .map(drop)
    .db("rebuild")
}

/// Removes an image with its layers and names.
pub(crate) fn remove(tx: &Transaction<'_>, id: &Digest) -> Result<()> {
    tx.execute("DELETE FROM images WHERE id = ?1", [id.to_string()])
        .map(drop)
        .db("remove an image")
}

/// Returns all names and their images, sorted by name.
pub(crate) fn tags(tx: &Transaction<'_>) -> Result<Vec<(String, Digest)>> {
    let sql = "SELECT name, image FROM tags ORDER BY name";
    let found: Vec<(String, String)> = list(tx, "list names", sql, [], |row| {
        Ok((row.get(0)?, row.get(1)?))
    })?;
    let read = |(name, image): (String, String)| Ok((name, parse(&image)?));
    found.into_iter().map(read).collect()
}

/// Returns the names of an image, sorted.
pub(crate) fn tags_of(tx: &Transaction<'_>, id: &Digest) -> Result<Vec<String>> {
    let sql = "SELECT name FROM tags WHERE image = ?1 ORDER BY name";
    list(tx, "list names", sql, [id.to_string()], |row| row.get(0))
}

/// Returns the image that has a name.
pub(crate) fn by_tag(tx: &Transaction<'_>, tag: &str) -> Result<Option<Digest>> {
    let sql = "SELECT image FROM tags WHERE name = ?1";
    Ok(digests(tx, sql, [tag])?.pop())
}

/// Gives an image a name, taking it from another image that has it.
pub(crate) fn set_tag(tx: &Transaction<'_>, tag: &str, id: &Digest) -> Result<()> {
    tx.execute(
        "INSERT OR REPLACE INTO tags (name, image, updated_ns) VALUES (?1, ?2, ?3)",
        params![tag, id.to_string(), now_ns()],
    )
    .map(drop)
    .db("set a name")
}

/// Removes a name.
pub(crate) fn remove_tag(tx: &Transaction<'_>, tag: &str) -> Result<()> {
    tx.execute("DELETE FROM tags WHERE name = ?1", [tag])
        .map(drop)
        .db("remove a name")
}
