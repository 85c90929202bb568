//! Tables `containers` and `container_volumes`.

use rusqlite::{OptionalExtension, Params, Row, Transaction, params};
use vellum_format::Digest;

use super::{exists, list, parse, time};
use crate::{
    container::{ContainerRecord, NewContainer},
    error::{DbContext, Result},
    snapshot::SnapshotKey,
};

const COLUMNS: &str = "SELECT c.id, c.name, s.key, c.image, c.image_name, c.created_ns, c.config \
     FROM containers c JOIN snapshots s ON s.id = c.snapshot";

/// Reads a row, without its volumes.
fn read(row: &Row<'_>) -> rusqlite::Result<Result<ContainerRecord>> {
    let image: Option<String> = row.get(3)?;
    let image = match image.as_deref().map(parse).transpose() {
        Ok(image) => image,
        Err(error) => return Ok(Err(error)),
    };
    Ok(Ok(ContainerRecord {
        id: row.get(0)?,
        name: row.get(1)?,
        snapshot: SnapshotKey::new(row.get::<_, Vec<u8>>(2)?),
        image,
        image_name: row.get(4)?,
        created: time(row.get(5)?),
        config: row.get(6)?,
        volumes: Vec::new(),
    }))
}

fn select(
    tx: &Transaction<'_>,
    op: &'static str,
    rest: &str,
    params: impl Params,
) -> Result<Vec<ContainerRecord>> {
    let found = list(tx, op, &format!("{COLUMNS} {rest}"), params, read)?;
    let with_volumes = |container: Result<ContainerRecord>| {
        let mut container = container?;
        let sql = "SELECT volume FROM container_volumes WHERE container = ?1 ORDER BY volume";
        container.volumes = list(tx, op, sql, [&container.id], |row| row.get(0))?;
        Ok(container)
    };
    found.into_iter().map(with_volumes).collect()
}

/// Finds a container by id.
pub(crate) fn find(tx: &Transaction<'_>, id: &str) -> Result<Option<ContainerRecord>> {
    Ok(select(tx, "look up a container", "WHERE c.id = ?1", [id])?.pop())
}

/// Finds a container by name or id; an id takes precedence over a name.
pub(crate) fn find_any(tx: &Transaction<'_>, name_or_id: &str) -> Result<Option<ContainerRecord>> {
    let rest = "WHERE c.name = ?1 OR c.id = ?1 ORDER BY c.id = ?1 DESC LIMIT 1";
    Ok(select(tx, "look up a container", rest, [name_or_id])?.pop())
}

/// Returns all containers, newest first.
pub(crate) fn all(tx: &Transaction<'_>) -> Result<Vec<ContainerRecord>> {
    select(
        tx,
        "list containers",
        "ORDER BY c.created_ns DESC, c.id",
        [],
    )
}

/// Returns the ids of all containers.
pub(crate) fn ids(tx: &Transaction<'_>) -> Result<Vec<String>> {
    let sql = "SELECT id FROM containers";
    list(tx, "list containers", sql, [], |row| row.get(0))
}

/// Finds the container whose id has this digest.
pub(crate) fn by_digest(tx: &Transaction<'_>, digest: &Digest) -> Result<Option<String>> {
    let ids = ids(tx)?;
    Ok(ids
        .into_iter()
        .find(|id| Digest::of(id.as_bytes()) == *digest))
}

/// Returns the names of the containers created from an image, sorted.
pub(crate) fn of_image(tx: &Transaction<'_>, image: &Digest) -> Result<Vec<String>> {
    let sql = "SELECT name FROM containers WHERE image = ?1 ORDER BY name";
    list(tx, "look for users", sql, [image.to_string()], |row| {
        row.get(0)
    })
}

/// Returns the name of the container that owns the snapshot with this row number.
pub(crate) fn on_snapshot(tx: &Transaction<'_>, snapshot: i64) -> Result<Option<String>> {
    let sql = "SELECT name FROM containers WHERE snapshot = ?1";
    Ok(list(tx, "look for users", sql, [snapshot], |row| row.get(0))?.pop())
}

/// Returns the name of a container that uses a volume.
pub(crate) fn of_volume(tx: &Transaction<'_>, volume: &str) -> Result<Option<String>> {
    tx.query_row(
        "SELECT c.name FROM container_volumes v JOIN containers c ON c.id = v.container \
         WHERE v.volume = ?1",
        [volume],
        |row| row.get(0),
    )
    .optional()
    .db("look for users")
}

/// Returns whether a container has this name or id.
pub(crate) fn has_name(tx: &Transaction<'_>, name: &str) -> Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM containers WHERE name = ?1 OR id = ?1)";
    exists(tx, sql, name)
}

/// Records a container on the snapshot with this row number.
pub(crate) fn insert(
    tx: &Transaction<'_>,
    container: &NewContainer,
    snapshot: i64,
    created_ns: i64,
) -> Result<()> {
    tx.execute(
        "INSERT INTO containers (id, name, snapshot, image, image_name, created_ns, config) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        params![
            container.id,
            container.name,
            snapshot,
            container.image.as_ref().map(Digest::to_string),
            container.image_name,
            created_ns,
            container.config
        ],
    )
    .db("record a container")?;
    for volume in &container.volumes {
        tx.execute(
            "INSERT OR IGNORE INTO container_volumes (container, volume) VALUES (?1, ?2)",
            [&container.id, volume],
        )
        .db("record a container's volume")?;
    }
    Ok(())
}

/// Gives a container another name.
pub(crate) fn rename(tx: &Transaction<'_>, id: &str, name: &str) -> Result<()> {
    tx.execute("UPDATE containers SET name = ?2 WHERE id = ?1", [id, name])
        .map(drop)
        .db("rename a container")
}

/// Replaces the caller's JSON.
pub(crate) fn set_config(tx: &Transaction<'_>, id: &str, config: &str) -> Result<()> {
    tx.execute(
        "UPDATE containers SET config = ?2 WHERE id = ?1",
        [id, config],
    )
    .map(drop)
    .db("update a container")
}

/// Removes a container; its snapshot stays.
pub(crate) fn remove(tx: &Transaction<'_>, id: &str) -> Result<()> {
    tx.execute("DELETE FROM containers WHERE id = ?1", [id])
        .map(drop)
        .db("remove a container")
}
