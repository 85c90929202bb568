//! Containers and volumes: records, and the snapshot that each container owns.

use std::path::PathBuf;

use jiff::Timestamp;
use rusqlite::Transaction;

use crate::{
    container::{ContainerRecord, NewContainer},
    driver::TreeParts,
    error::{Result, StoreError, Subject},
    following::{self, Follower},
    generation,
    layout::{Layout, make_dir, sync_dir},
    record_lock::RecordLock,
    records,
    rows::{self, now_ns, time, volumes::VolumeRow},
    sidecar::{self, ContainerFile},
    snapshot::{Labels, SnapshotKey, SnapshotKind},
    snapshots::{PrepareOptions, Sweep},
    store::Store,
    tx::{self, Staged},
};

/// A recorded volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeRecord {
    /// Its name.
    pub name: String,
    /// Its data, absolute.
    pub path: PathBuf,
    /// When it was created.
    pub created: Timestamp,
    /// Its labels.
    pub labels: Labels,
}

/// Records a container whose snapshot exists already, for a rebuild.
pub(crate) fn put_back(layout: &Layout, tx: &Transaction<'_>, file: &ContainerFile) -> Result<()> {
    let container = NewContainer {
        id: file.id.clone(),
        name: file.name.clone(),
        image: file.image,
        image_name: file.image_name.clone(),
        config: file.config.clone(),
        volumes: file.volumes.clone(),
    };
    check_new(layout, tx, &container)?;
    let snapshot = rows::snapshots::get(tx, &file.snapshot)?.id;
    let created_ns = i64::try_from(file.created.as_nanosecond()).unwrap_or(i64::MAX);
    rows::containers::insert(tx, &container, snapshot, created_ns)
}

fn get_container(tx: &Transaction<'_>, id: &str) -> Result<ContainerRecord> {
    rows::containers::find(tx, id)?.ok_or_else(|| StoreError::not_found(Subject::Container, id))
}

fn volume_path(layout: &Layout, name: &str) -> PathBuf {
    layout.volumes().join(name).join("_data")
}

fn find_volume(layout: &Layout, tx: &Transaction<'_>, name: &str) -> Result<Option<VolumeRecord>> {
    let found = rows::volumes::find(tx, name)?;
    Ok(found.map(|row| volume(layout, row)))
}

fn volume(layout: &Layout, row: VolumeRow) -> VolumeRecord {
    VolumeRecord {
        path: volume_path(layout, &row.name),
        name: row.name,
        created: time(row.created_ns),
        labels: row.labels,
    }
}

/// Volume names become directory names, so only what Docker allows is allowed.
fn check_volume_name(name: &str) -> Result<()> {
    let mut bytes = name.bytes();
    let good = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
        && bytes.all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
        && name.len() <= 255;
    if good {
        Ok(())
    } else {
        Err(StoreError::Invalid(format!(
            "{name:?} is not a valid volume name: use up to 255 letters, digits, `_`, `.`, `-`, starting with a letter or digit"
        )))
    }
}

impl Store {
    /// Creates a container and its writable snapshot (`key`) in one transaction, and returns both.
    ///
    /// Durable on return. Errors: `AlreadyExists` (container name or id, or key), `NotFound`
    /// (parent, image, volume).
    pub fn create_container(
        &self,
        container: &NewContainer,
        key: &SnapshotKey,
        options: &PrepareOptions,
    ) -> Result<(ContainerRecord, TreeParts)> {
        if container.id.is_empty() || container.name.is_empty() {
            return Err(StoreError::Invalid(
                "a container needs an id and a name".into(),
            ));
        }
        self.inner.database.refuse_if_rolled_back()?;
        let stamp = self.read(|tx| {
            check_new(self.layout(), tx, container)?;
            generation::stamp(tx)
        })?;
        // Its record file is written before the sync of the tree's, which makes both durable. It
        // stays locked until the row exists.
        let created_ns = now_ns();
        let file = ContainerFile::of_new(container, key, time(created_ns));
        let path = sidecar::path(self.layout(), &file);
        let _lock = records::replace(self.layout(), &path, &file, &stamp.next())?;
        let made = self.place_container(container, key, options, created_ns);
        if let Err(error) = &made
            && !matches!(error, StoreError::Uncertain { .. })
        {
            self.follow(&[Follower::Container(container.id.clone())]);
        }
        made
    }

    fn place_container(
        &self,
        container: &NewContainer,
        key: &SnapshotKey,
        options: &PrepareOptions,
        created_ns: i64,
    ) -> Result<(ContainerRecord, TreeParts)> {
        let (placed, parents) = self.place(key, SnapshotKind::Active, options)?;
        let recorded = self.write(|tx| {
            check_new(self.layout(), tx, container)?;
            let snapshot = self.record_placed(tx, &placed.record, options)?;
            rows::containers::insert(tx, container, snapshot, created_ns)?;
            get_container(tx, &container.id)
        });
        let parts = self.placed_parts(&placed, &parents);
        Ok((placed.settle(recorded)?, parts))
    }

    /// Returns the container with exactly this name or id. Errors: `NotFound`.
    pub fn container(&self, name_or_id: &str) -> Result<ContainerRecord> {
        self.read(|tx| {
            rows::containers::find_any(tx, name_or_id)?
                .ok_or_else(|| StoreError::not_found(Subject::Container, name_or_id))
        })
    }

    /// Returns all containers, newest first.
    pub fn containers(&self) -> Result<Vec<ContainerRecord>> {
        self.read(rows::containers::all)
    }

    /// Gives a container another name. Durable on return. Errors: `NotFound`, `AlreadyExists`.
    pub fn rename_container(&self, id: &str, name: &str) -> Result<()> {
        let _lock = RecordLock::of_sidecars(self)?;
        self.write(|tx| {
            let container = get_container(tx, id)?;
            if container.name == name {
                return Ok(());
            }
            if name.is_empty() {
                return Err(StoreError::Invalid("a container needs a name".into()));
            }
            if rows::containers::has_name(tx, name)? {
                return Err(StoreError::exists(Subject::Container, name));
            }
            rows::containers::rename(tx, id, name)?;
            following::due(tx, &Follower::Container(id.to_owned()))
        })?;
        self.follow(&[Follower::Container(id.to_owned())]);
        Ok(())
    }

    /// Replaces the caller's JSON. Durable on return. Errors: `NotFound`.
    pub fn set_container_config(&self, id: &str, config: &str) -> Result<()> {
        let _lock = RecordLock::of_sidecars(self)?;
        self.write(|tx| {
            get_container(tx, id)?;
            rows::containers::set_config(tx, id, config)?;
            following::due(tx, &Follower::Container(id.to_owned()))
        })?;
        self.follow(&[Follower::Container(id.to_owned())]);
        Ok(())
    }

    /// Removes a container and its snapshot in one transaction, then the tree. Its volumes stay.
    ///
    /// Durable on return; see [`Store::remove`] for what is swept when. Errors: `NotFound`,
    /// `HasChildren`.
    pub fn remove_container(&self, id: &str, sweep: Sweep) -> Result<ContainerRecord> {
        let lock = RecordLock::of_sidecars(self)?;
        let (container, row) = self.write_freeing(|tx| {
            let container = get_container(tx, id)?;
            let row = rows::snapshots::get(tx, &container.snapshot)?;
            let (count, child) = rows::snapshots::children(tx, row.id)?;
            crate::snapshot::policy_remove(&container.snapshot, count, child)?;
            rows::containers::remove(tx, id)?;
            rows::snapshots::remove(tx, row.id)?;
            Ok((container, row))
        })?;
        records::remove(&self.layout().records().join(sidecar::container_name(id)))?;
        drop(lock);
        self.discard_or_leave(&row.record, sweep);
        Ok(container)
    }

    /// Creates a volume, or returns the existing one. Durable on return. Errors: `Invalid` (name).
    pub fn create_volume(&self, name: &str, labels: &Labels) -> Result<VolumeRecord> {
        check_volume_name(name)?;
        if let Some(known) = self.read(|tx| find_volume(self.layout(), tx, name))? {
            return Ok(known);
        }
        let mut staged = Staged::dir(self.layout(), crate::TreeId::random().as_str())?;
        crate::layout::set_mode(staged.path(), 0o701)?;
        make_dir(&staged.path().join("_data"), 0o755)?;
        sync_dir(staged.path())?;
        let target = self.layout().volumes().join(name);
        // The user chose the name and may use it again at once, so publishing happens under the
        // database's lock.
        self.write(|tx| {
            if let Some(known) = find_volume(self.layout(), tx, name)? {
                return Ok(known);
            }
            tx::to_trash(self.layout(), &target)?;
            staged.publish_shared(&target)?;
            sync_dir(&self.layout().volumes())?;
            rows::volumes::insert(tx, name, labels)?;
            let record = find_volume(self.layout(), tx, name)?;
            record.ok_or_else(|| StoreError::not_found(Subject::Volume, name))
        })
    }

    /// Returns a volume. Errors: `NotFound`.
    pub fn volume(&self, name: &str) -> Result<VolumeRecord> {
        self.read(|tx| {
            find_volume(self.layout(), tx, name)?
                .ok_or_else(|| StoreError::not_found(Subject::Volume, name))
        })
    }

    /// Returns all volumes, by name.
    pub fn volumes(&self) -> Result<Vec<VolumeRecord>> {
        self.read(|tx| {
            let all = rows::volumes::all(tx)?.into_iter();
            Ok(all.map(|row| volume(self.layout(), row)).collect())
        })
    }

    /// Removes a volume and its data. Errors: `NotFound`; `InUse` while a container uses it.
    pub fn remove_volume(&self, name: &str) -> Result<()> {
        check_volume_name(name)?;
        self.write_freeing(|tx| {
            find_volume(self.layout(), tx, name)?
                .ok_or_else(|| StoreError::not_found(Subject::Volume, name))?;
            if let Some(user) = rows::containers::of_volume(tx, name)? {
                return Err(StoreError::InUse {
                    subject: Subject::Volume,
                    name: name.to_owned(),
                    by: format!("container {user}"),
                });
            }
            rows::volumes::remove(tx, name)
        })?;
        let trashed = self.write(|tx| {
            if find_volume(self.layout(), tx, name)?.is_some() {
                return Ok(None); // created again since
            }
            tx::to_trash(self.layout(), &self.layout().volumes().join(name))
        })?;
        if let Some(trashed) = trashed {
            tx::remove_trashed(self.layout(), &trashed)?;
        }
        Ok(())
    }

    /// Returns the size of a volume's data on disk.
    pub fn volume_usage(&self, name: &str) -> Result<crate::Usage> {
        let record = self.volume(name)?;
        crate::walk::usage(&record.path, None)
    }
}

fn check_new(layout: &Layout, tx: &Transaction<'_>, container: &NewContainer) -> Result<()> {
    if rows::containers::has_name(tx, &container.name)? {
        return Err(StoreError::exists(Subject::Container, &container.name));
    }
    if rows::containers::has_name(tx, &container.id)? {
        return Err(StoreError::exists(Subject::Container, &container.id));
    }
    if let Some(image) = &container.image
        && !rows::images::has(tx, image)?
    {
        return Err(StoreError::not_found(Subject::Image, image));
    }
    for name in &container.volumes {
        find_volume(layout, tx, name)?
            .ok_or_else(|| StoreError::not_found(Subject::Volume, name))?;
    }
    Ok(())
}
