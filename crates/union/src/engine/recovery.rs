//! Opening an engine: locks, checks, what a crash left; and letting go of it.

use std::path::Path;
use std::sync::Arc;

use vellum_format::workdir;
use vellum_sys::Dir;
use vellum_sys::lock::{Lock, Sharing};

use crate::dir_layer::{DirHandle, DirLayer};
use crate::engine::blocks::BlockStore;
use crate::engine::identity::Numbers;
use crate::engine::limit::Usage;
use crate::engine::nodes::{DirBody, NodeTable};
use crate::engine::options::{Durability, EngineOptions, UpperOptions};
use crate::engine::staging::Staging;
use crate::engine::{Engine, Upper};
use crate::layer::{Dialect, Records};
use crate::marks::DirAt;
use crate::resolve::Part;
use crate::stack::Stack;
use crate::{Error, Layer, Result};

impl Engine {
    /// Opens a union for use: locks the upper and the work directory, refuses them if they can't be used, and removes
    /// what a crash left.
    ///
    /// Errors: [`Error::BadUpper`] says which directory it is about, and why; `Io`; what a mark in a root says.
    pub fn open(options: EngineOptions) -> Result<Engine> {
        let EngineOptions {
            lowers,
            data_lowers,
            upper,
            ids,
            static_nlink,
            ino_32_bits,
            no_xattrs,
        } = options;
        let below: Vec<_> = data_lowers
            .iter()
            .rev()
            .chain(lowers.iter().rev())
            .cloned()
            .collect();
        let upper = upper.map(|upper| open_upper(upper, below)).transpose()?;
        let mut layers = lowers;
        if let Some(upper) = &upper {
            layers.insert(0, Arc::clone(&upper.layer) as Arc<dyn Layer>);
        }
        let stack = Stack::with_data_layers(layers, data_lowers)?;
        let parts = stack.roots().to_vec();
        let known = |part: &Part<DirAt>| {
            // A layer that can't say gives handles without a file system, as the kernel's do.
            let root = part.dir.dir.open_path(None).ok();
            let uuid = root.and_then(vellum_sys::handle::file_system_uuid);
            (part.dir.stat.dev, uuid.unwrap_or_default())
        };
        let numbers = Numbers::new(parts.iter().map(known), ino_32_bits);
        // As of every merged directory, the number of the topmost lower layer's share.
        let lowest = usize::from(upper.is_some()).min(parts.len() - 1);
        let ino = numbers.show(parts[lowest].dir.stat.identity());
        let body = DirBody {
            parts,
            upper: upper.as_ref().map(|upper| Arc::clone(&upper.root)),
            impure: None,
        };
        let (table, root) = NodeTable::new(ino, body);
        Ok(Engine {
            stack,
            upper,
            ids,
            static_nlink,
            no_xattrs,
            numbers,
            table,
            root,
            files: Default::default(),
            names: Default::default(),
        })
    }

    pub(crate) fn release(self) -> Result<()> {
        let Some(upper) = &self.upper else {
            return Ok(());
        };
        if upper.options.durability == Durability::Full {
            let dir = upper.root.dir().map_err(|e| upper.io(e))?;
            vellum_sys::publish::sync_fs(&*dir).map_err(|e| upper.io(e))?;
        }
        upper.blocks.close()?;
        upper.usage.close().map_err(|e| upper.io(e))
    }
}

fn open_upper(options: UpperOptions, below: Vec<Arc<dyn Layer>>) -> Result<Upper> {
    let bad = |path: &Path, why: String| Error::BadUpper {
        path: path.to_owned(),
        why,
    };
    let open = |path: &Path| {
        let dir = Dir::open(path).map_err(|error| bad(path, reason(&error)))?;
        let dup = dir.dup().map_err(|error| bad(path, reason(&error)))?;
        match Lock::try_now(dup, Sharing::Exclusive) {
            Ok(Some(lock)) => Ok((dir, lock)),
            Ok(None) => Err(bad(
                path,
                "another union has it open; unmount that first".into(),
            )),
            Err(error) => Err(bad(path, reason(&error))),
        }
    };
    let (upper, upper_lock) = open(&options.upper)?;
    let (work, work_lock) = open(&options.work)?;
    let stat = |dir: &Dir| {
        dir.stat_self()
            .map_err(|error| bad(&options.work, reason(&error)))
    };
    if stat(&upper)?.dev != stat(&work)?.dev {
        let why = "the work directory has to be on the upper's file system".into();
        return Err(bad(&options.work, why));
    }
    let make = |name: &str| {
        let made = work.create_dir_all(name, 0o700);
        made.map_err(|error| bad(&options.work, reason(&error)))
    };
    let staging = make(workdir::STAGING)?;
    let unnamed = staging.create_unnamed(0o600).is_ok();
    let index = match options.index {
        true => Some(DirHandle::pinned(Arc::new(make(workdir::INDEX)?))),
        false => None,
    };
    let name = options.upper.display().to_string();
    let maps = BlockStore::make_dir(&work).map_err(|error| bad(&options.work, reason(&error)))?;
    let maps = Arc::new(maps);
    let usage = Usage::open(options.limit, &upper, &work);
    let usage = usage.map_err(|error| bad(&options.work, reason(&error)))?;
    let durable = options.durability == Durability::Full;
    let of_maps = Arc::clone(&maps);
    let blocks = BlockStore::open(work, of_maps, name.clone(), options.prefix, durable, below)?;
    let mut dialect = Dialect::kernel(options.prefix);
    if options.records == Records::Read {
        dialect = dialect.with_records();
    }
    let layer = DirLayer::new(upper, name, dialect).with_block_maps(Some(maps));
    Ok(Upper {
        root: layer.root_handle(),
        layer: Arc::new(layer),
        staging: Staging::new(Arc::new(staging)),
        index,
        blocks,
        usage,
        options,
        unnamed,
        locks: [upper_lock, work_lock],
    })
}

/// The whole chain of an error in one line.
fn reason(error: &vellum_sys::Error) -> String {
    format!("{error}: {}", error.source)
}
