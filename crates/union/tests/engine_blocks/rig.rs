//! An engine that copies large files block by block, its files on disk, and settling.

use std::ffi::OsStr;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vellum_format::Prefix;
use vellum_sys::{Cancel, xattr};
use vellum_union::engine::{
    Durability, Engine, EngineOptions, NodeId, SetAttr, SettleOptions, Settled, settle,
};
use vellum_union::{BlockMaps, Dialect, DirLayer, Layer, Result, Stack};

use crate::engine_support::{Rig, options};

pub const MIB: u64 = 1 << 20;

pub fn block_options(rig: &Rig) -> EngineOptions {
    of(&rig.lowers, &rig.upper, &rig.work)
}

pub fn of(lowers: &[PathBuf], upper: &Path, work: &Path) -> EngineOptions {
    let mut options = options(lowers, upper, work);
    let upper = options.upper.as_mut().unwrap();
    upper.blocks_from_bytes = Some(64 * 1024);
    upper.durability = Durability::Full;
    options
}

pub fn open(rig: &Rig) -> Engine {
    Engine::open(block_options(rig)).unwrap()
}

pub fn find(engine: &Engine, name: &str) -> NodeId {
    let entry = engine.lookup(NodeId::ROOT, OsStr::new(name)).unwrap();
    entry.expect("it is there").node
}

pub fn read(engine: &Engine, node: NodeId, offset: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0xee; length];
    let count = engine.read(node, offset, &mut bytes).unwrap();
    bytes.truncate(count);
    bytes
}

pub fn resize(engine: &Engine, node: NodeId, size: u64) {
    let change = SetAttr {
        size_bytes: Some(size),
        ..SetAttr::default()
    };
    engine.privileged().set_attr(node, &change).unwrap();
}

/// A lower file of `size` bytes, none of them zero.
pub fn lower(rig: &Rig, name: &str, size: usize) -> Vec<u8> {
    let bytes: Vec<u8> = (0..size).map(|i| (i / 3 % 251) as u8 + 1).collect();
    std::fs::write(rig.lowers[0].join(name), &bytes).unwrap();
    bytes
}

pub fn layer(path: &Path) -> Arc<dyn Layer> {
    Arc::new(DirLayer::open(path, Dialect::kernel(Prefix::Trusted)).unwrap())
}

/// The union as a reader without a mount sees it, with the maps of its work directory.
pub fn stack(rig: &Rig) -> Stack {
    let maps = BlockMaps::open(&rig.work).unwrap().map(Arc::new);
    let upper = DirLayer::open(&rig.upper, Dialect::kernel(Prefix::Trusted)).unwrap();
    let mut layers: Vec<Arc<dyn Layer>> = vec![Arc::new(upper.with_block_maps(maps))];
    layers.extend(rig.lowers.iter().map(|path| layer(path)));
    Stack::new(layers).unwrap()
}

pub fn settle_options(rig: &Rig) -> SettleOptions {
    SettleOptions {
        upper: rig.upper.clone(),
        work: rig.work.clone(),
        prefix: Prefix::Trusted,
        lowers: rig.lowers.iter().map(|path| layer(path)).collect(),
        data_lowers: Vec::new(),
    }
}

pub fn settle_now(rig: &Rig) -> Result<Settled> {
    settle(&settle_options(rig), &mut |_| {}, &Cancel::new())
}

pub fn mark(path: &Path, name: &str) -> Option<Vec<u8>> {
    let file = std::fs::File::open(path).unwrap();
    xattr::get_fd(&file, OsStr::new(name)).unwrap()
}

pub fn is_unsettled(path: &Path) -> bool {
    let metacopy = mark(path, "trusted.overlay.metacopy");
    assert_eq!(
        metacopy.is_some(),
        mark(path, "trusted.overlay.vellum.blocks").is_some()
    );
    metacopy.is_some_and(|value| value.len() == 1)
}

pub fn maps(rig: &Rig) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(rig.work.join("vellum/blocks")).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// Reads a file through a mount; errors are those that a program sees.
pub fn content(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}
