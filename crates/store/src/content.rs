//! Content by digest: blobs under `content/`, recipes under `recipes/`.
//!
//! A blob is hashed while it is written. It appears under its digest whole, synced and verified, or
//! not at all. Because a blob is named by its content, two processes may publish the same one, and
//! one may collect what another is just adding. So a collector removes a file only inside a
//! transaction that finds no record of it, and an adder's transaction checks that the file is still
//! there.

use std::{
    fs::File,
    io::{self, Read, Seek, Write},
};

use rusqlite::Transaction;
use sha2::{Digest as _, Sha256};
use vellum_format::Digest;

use crate::{
    driver::TreeId,
    error::{IoContext, Result, StoreError, Subject},
    layers::StagedFile,
    layout::{self, sync_dir},
    lease::{self, LeaseId},
    located::Located,
    rows,
    store::Store,
    tx::Staged,
};

/// A blob that the store has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    /// Its digest.
    pub digest: Digest,
    /// Its length.
    pub size_bytes: u64,
}

/// A blob being written. Dropping it uncommitted removes it.
pub struct BlobWriter {
    store: Store,
    staged: Staged,
    file: File,
    hasher: Sha256,
    expected: Option<Digest>,
    size_bytes: u64,
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.size_bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl BlobWriter {
    /// Publishes the blob, held by `lease` if one is given. Durable on return.
    ///
    /// Errors: `DigestMismatch` if it is not what was announced; nothing is published then.
    pub fn commit(mut self, lease: Option<&LeaseId>) -> Result<Blob> {
        let digest = Digest::from_bytes(self.hasher.finalize().into());
        if let Some(expected) = self.expected
            && expected != digest
        {
            return Err(StoreError::DigestMismatch {
                what: "blob".into(),
                expected,
                actual: digest,
            });
        }
        let layout = self.store.layout();
        let target = layout.blob(&digest);
        self.staged.sync()?;
        self.staged.publish_shared(&target)?;
        sync_dir(&layout.blobs())?;
        self.store.write(|tx| {
            if !layout::exists(&target)? {
                // A collector took it before this lock. That is rare enough to let the caller try
                // again.
                return Err(StoreError::not_found(Subject::Blob, digest));
            }
            rows::blobs::insert(tx, &digest, self.size_bytes)?;
            if let Some(lease) = lease {
                lease::hold_digest(tx, lease, &digest)?;
            }
            Ok(())
        })?;
        Ok(Blob {
            digest,
            size_bytes: self.size_bytes,
        })
    }
}

/// What is recorded about a recipe's file.
#[derive(Clone, Debug)]
pub(crate) struct RecipeFacts {
    bytes: u64,
    digest: Digest,
}

impl RecipeFacts {
    /// Reads a recipe that was just written, from the start.
    pub fn of(recipe: &mut StagedFile) -> Result<Self> {
        let path = recipe.staged.path().to_owned();
        let file = recipe.file();
        let (digest, bytes) = file
            .flush()
            .and_then(|()| file.rewind())
            .and_then(|()| hash(file))
            .on("read", path)?;
        Ok(Self { bytes, digest })
    }
}

/// Hashes the rest of a file. Returns the digest and the length.
pub(crate) fn hash(file: &mut File) -> io::Result<(Digest, u64)> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    let mut bytes = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((Digest::from_bytes(hasher.finalize().into()), bytes)),
            n => {
                hasher.update(&buffer[..n]);
                bytes += n as u64;
            }
        }
    }
}

pub(crate) fn record_recipe(
    store: &Store,
    tx: &Transaction<'_>,
    diff_id: &Digest,
    facts: &RecipeFacts,
) -> Result<()> {
    if !layout::exists(&store.layout().recipe(diff_id))? {
        return Err(StoreError::not_found(Subject::Recipe, diff_id));
    }
    rows::recipes::put(tx, diff_id, facts.bytes, &facts.digest)
}

impl Store {
    /// Removes a recipe's file that has no record any more, unless another process records it
    /// again. On failure the file is left to gc.
    pub(crate) fn discard_recipe_or_leave(&self, diff_id: &Digest) {
        let path = self.layout().recipe(diff_id);
        if let Err(error) = self.discard_named(&path, &Located::Recipe(Some(*diff_id))) {
            tracing::warn!(recipe = %diff_id, error = vellum_sys::with_causes(&error), "left for the next gc");
        }
    }

    /// Begins a blob. With `expected`, committing anything else fails.
    pub fn blob_writer(&self, expected: Option<&Digest>) -> Result<BlobWriter> {
        self.inner.database.refuse_if_rolled_back()?;
        let (staged, file) = Staged::file(self.layout(), TreeId::random().as_str())?;
        Ok(BlobWriter {
            store: self.clone(),
            staged,
            file,
            hasher: Sha256::new(),
            expected: expected.copied(),
            size_bytes: 0,
        })
    }

    /// Stores `bytes` and returns their SHA-256. Durable on return; costs nothing if the store has
    /// them already.
    pub fn put_blob(&self, bytes: &[u8], lease: Option<&LeaseId>) -> Result<Digest> {
        let digest = Digest::of(bytes);
        if let Some(lease) = lease
            && self.hold(lease, &lease::LeaseResource::Blob(digest))?
        {
            return Ok(digest);
        }
        let mut writer = self.blob_writer(Some(&digest))?;
        writer
            .write_all(bytes)
            .on("write", writer.staged.path().to_owned())?;
        Ok(writer.commit(lease)?.digest)
    }

    /// Returns the blob's record, or `None`.
    pub fn blob(&self, digest: &Digest) -> Result<Option<Blob>> {
        self.read(|tx| {
            let size_bytes = rows::blobs::size(tx, digest)?;
            Ok(size_bytes.map(|size_bytes| Blob {
                digest: *digest,
                size_bytes,
            }))
        })
    }

    /// Opens a blob for reading. Errors: `NotFound`; `Damaged` if it is recorded but its file is
    /// gone.
    pub fn open_blob(&self, digest: &Digest) -> Result<File> {
        let path = self.layout().blob(digest);
        match layout::open(&path)? {
            Some(file) => Ok(file),
            None => match self.blob(digest)? {
                None => Err(StoreError::not_found(Subject::Blob, digest)),
                Some(_) => Err(StoreError::Damaged {
                    what: format!("blob {digest}"),
                    why: format!(
                        "{} is missing; load or pull its image again",
                        path.display()
                    ),
                }),
            },
        }
    }

    /// Returns all of a small blob (a manifest, a configuration), verified.
    ///
    /// Errors: `NotFound`; `Invalid` if it is longer than `limit_bytes`; `DigestMismatch` if the
    /// disk returns other bytes.
    pub fn read_blob(&self, digest: &Digest, limit_bytes: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let file = self.open_blob(digest)?;
        file.take(limit_bytes + 1)
            .read_to_end(&mut bytes)
            .on("read", self.layout().blob(digest))?;
        if bytes.len() as u64 > limit_bytes {
            return Err(StoreError::Invalid(format!(
                "blob {digest} is longer than {limit_bytes} bytes"
            )));
        }
        let actual = Digest::of(&bytes);
        if actual != *digest {
            return Err(StoreError::DigestMismatch {
                what: "blob on disk".into(),
                expected: *digest,
                actual,
            });
        }
        Ok(bytes)
    }

    /// Opens the recipe of the layer with this diff id, or returns `None`: then the layer exists
    /// only as a tree.
    pub fn open_recipe(&self, diff_id: &Digest) -> Result<Option<File>> {
        layout::open(&self.layout().recipe(diff_id))
    }

    /// Stores a recipe for a layer that has none yet, or replaces a damaged one. Durable on return.
    pub fn put_recipe(&self, diff_id: &Digest, mut recipe: StagedFile) -> Result<()> {
        let facts = RecipeFacts::of(&mut recipe)?;
        recipe.staged.sync()?;
        recipe
            .staged
            .publish_shared(&self.layout().recipe(diff_id))?;
        sync_dir(&self.layout().recipes())?;
        self.write(|tx| record_recipe(self, tx, diff_id, &facts))
    }
}
