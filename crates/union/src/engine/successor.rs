//! What a successor needs to continue where an engine stops, so that processes with open files
//! notice nothing.
//!
//! The front knows nodes by number and relies on what it has been told about them. So a successor
//! must have the same nodes with the same numbers, inode numbers and reference counts; places in
//! listings must stay valid; and nodes without a name are reachable only through descriptors.
//! [`Engine::hand_over`] puts all that into a [`Legacy`]: a record, and descriptors along with it.
//! A new engine on the same layers takes it with [`Engine::inherit`], before its first use.
//! Everything else is on disk, or is found again by a lookup.
//!
//! Call these between requests, never during one. A file copied up block by block that has lost its
//! last name is made whole, since its map is only in memory. The record is for a process of the
//! same build: it names its version and is refused otherwise. It is written at a handover; a killed
//! engine leaves none (see `docs/decisions/0032-a-successor.md`).

mod bytes;

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vellum_sys::{Dir, FileKind, sync};

use crate::dir_layer::DirHandle;
use crate::engine::nodes::list::Listings;
use crate::engine::nodes::table::{HeldNode, Numbered};
use crate::engine::nodes::{Body, DataAt, DirBody, FileBody, LiveNode, LowerFile, UpperFile};
use crate::engine::request::NodeId;
use crate::engine::{Engine, EngineOptions};
use crate::error::On;
use crate::layer::{Layer, LayerDir};
use crate::marks::DirAt;
use crate::resolve::Part;
use crate::{Error, Refusal, Result};

use bytes::{Damaged, Reader, Writer};

/// The first bytes of a record.
const MAGIC: &[u8] = b"vellum nodes 1\n";

/// What an engine leaves to its successor.
#[derive(Debug)]
pub struct Legacy {
    /// The nodes.
    pub record: Vec<u8>,
    /// Descriptors of nodes without a name, in the record's order.
    pub files: Vec<OwnedFd>,
}

impl From<Damaged> for Error {
    fn from(_: Damaged) -> Error {
        lost("the record is damaged")
    }
}

fn lost(why: impl Into<String>) -> Error {
    Error::Successor { why: why.into() }
}

impl Engine {
    /// Returns what a successor needs. No other call may run at the same time or afterwards: next,
    /// the caller drops this engine with [`Engine::let_go`] and opens the successor.
    ///
    /// Errors: `Io`; files copied by then stay copied. After an error the engine can still be used.
    pub fn hand_over(&self) -> Result<Legacy> {
        self.sweep();
        let mut giver = Giver {
            engine: self,
            out: Writer::default(),
            files: Vec::new(),
        };
        giver.out.0.extend(MAGIC);
        for identity in self.identities()? {
            giver.out.u64(identity.0);
            giver.out.u64(identity.1);
        }
        let nodes = in_order(self.table.all());
        giver.out.u32(self.table.generation() as u32);
        giver.out.u64(self.table.next_id());
        giver.out.count(nodes.len());
        for node in &nodes {
            giver.node(node)?;
        }
        Ok(Legacy {
            record: giver.out.0,
            files: giver.files,
        })
    }

    /// Releases the upper layer without closing it: the successor continues with it, and until then
    /// it looks as after a kill.
    pub fn let_go(self) -> Result<()> {
        let Some(upper) = &self.upper else {
            return Ok(());
        };
        upper.usage.close().on(upper)?;
        upper.unlock()
    }

    /// Opens a union as [`Engine::open`] does and takes over what its predecessor left.
    ///
    /// Errors: those of opening; [`Error::Successor`] if the layers are not the same or the record
    /// is not valid.
    pub fn inherit(options: EngineOptions, legacy: Legacy) -> Result<Engine> {
        let engine = Engine::open(options)?;
        let mut taker = Taker {
            engine: &engine,
            known: HashMap::new(),
            files: legacy.files.into_iter().map(Some).collect(),
        };
        let mut record = Reader(&legacy.record);
        for byte in MAGIC {
            if record.u8()? != *byte {
                return Err(lost("the record has another version"));
            }
        }
        for (number, identity) in engine.identities()?.into_iter().enumerate() {
            if identity != (record.u64()?, record.u64()?) {
                return Err(lost(match number.checked_sub(1) {
                    None => String::from("there are more or fewer layers now"),
                    Some(layer) => format!("layer {layer} is a different directory"),
                }));
            }
        }
        engine.table.set_generation(record.u32()?);
        let next = record.u64()?;
        for _ in 0..record.count()? {
            taker.node(&mut record)?;
        }
        // Drop no node before all are there: some are referenced only by nodes further down.
        drop(taker);
        engine.table.continue_numbering(next);
        engine.sweep();
        Ok(engine)
    }

    /// Returns what identifies the layers: how many there are of each type, then their roots.
    fn identities(&self) -> Result<Vec<(u64, u64)>> {
        let (layers, data) = (self.stack.layers(), self.stack.data_layers());
        let mut found = vec![(layers.len() as u64, data.len() as u64)];
        for (number, layer) in layers.iter().chain(data).enumerate() {
            let stat = layer.root().stat(None).on(self.layer(number))?;
            found.push(stat.ok_or(Refusal::Stale)?.identity());
        }
        Ok(found)
    }

    fn layer_numbered(&self, number: usize) -> Option<&Arc<dyn Layer>> {
        let layers = self.stack.layers();
        match number.checked_sub(layers.len()) {
            Some(data) => self.stack.data_layers().get(data),
            None => layers.get(number),
        }
    }
}

/// Puts parents before their children, and adds parents that are referenced only by children.
fn in_order(nodes: Vec<Arc<LiveNode>>) -> Vec<Arc<LiveNode>> {
    let mut ordered = Vec::with_capacity(nodes.len());
    let mut done = HashSet::new();
    let mut pending = nodes;
    while let Some(node) = pending.pop() {
        if done.contains(&node.id) {
            continue;
        }
        let missing: Vec<_> = {
            let state = node.state();
            let parents = state.places().map(|place| &place.parent);
            parents
                .filter(|parent| !done.contains(&parent.id))
                .cloned()
                .collect()
        };
        if missing.is_empty() {
            done.insert(node.id);
            ordered.push(node);
        } else {
            pending.push(node);
            pending.extend(missing);
        }
    }
    ordered
}

fn kind_byte(kind: FileKind) -> u8 {
    // The type bits of a mode, as directories have them.
    (kind.raw_mode() >> 12) as u8
}

struct Giver<'a> {
    engine: &'a Engine,
    out: Writer,
    files: Vec<OwnedFd>,
}

impl Giver<'_> {
    fn node(&mut self, node: &Arc<LiveNode>) -> Result<()> {
        self.out.u64(node.id.0);
        self.out.u64(node.lookups.load(Ordering::Relaxed));
        self.out.u64(node.ino);
        self.out.u8(kind_byte(node.kind));
        self.listings(node);
        {
            let state = node.state();
            let places: Vec<_> = state.places().collect();
            self.out.count(places.len());
            for place in &places {
                self.out.u64(place.parent.id.0);
                self.out.bytes(place.name.as_bytes());
            }
            if !places.is_empty() || node.id == NodeId::ROOT {
                return Ok(());
            }
        }
        self.engine.make_whole(node)?;
        let state = node.state();
        match &state.body {
            Body::Dir(dir) => {
                self.out.count(dir.parts.len());
                for part in &*dir.parts {
                    let path = match (&dir.upper, part.layer) {
                        (Some(upper), 0) => {
                            let open = upper.dir().on(self.engine.layer(0))?;
                            self.file(&*open)?;
                            continue;
                        }
                        _ => part.dir.dir.path(),
                    };
                    self.out.u8(0);
                    self.out.count(part.layer);
                    self.out.bytes(path.as_os_str().as_bytes());
                }
            }
            Body::File(file) => {
                match &file.upper {
                    Some(UpperFile::Pinned(fd)) => self.file(fd)?,
                    Some(UpperFile::Named { dir, name }) => {
                        let open = dir.dir().and_then(|dir| dir.open_path(name));
                        self.file(open.on(self.engine.layer(0))?)?;
                    }
                    None => self.out.u8(0),
                }
                self.lower(file.lower.as_deref());
                match &file.data {
                    DataAt::Upper => self.lower(None),
                    DataAt::Lower(lower) => self.lower(Some(lower)),
                    // It was made whole before.
                    DataAt::Blocks(_) => return Err(Refusal::Stale.into()),
                }
            }
        }
        Ok(())
    }

    fn file(&mut self, fd: impl AsFd) -> Result<()> {
        let copy = rustix::io::fcntl_dupfd_cloexec(fd, 3);
        let copy = copy.map_err(|e| vellum_sys::Error::new("duplicate", "", e));
        self.out.u8(1);
        self.out.count(self.files.len());
        self.files.push(copy.on(self.engine.layer(0))?);
        Ok(())
    }

    fn lower(&mut self, lower: Option<&LowerFile>) {
        let Some(lower) = lower else {
            return self.out.u8(0);
        };
        self.out.u8(1);
        self.out.count(lower.layer);
        self.out.bytes(lower.dir.path().as_os_str().as_bytes());
        self.out.bytes(lower.name.as_bytes());
        self.out.u32(lower.nlink);
    }

    fn listings(&mut self, node: &LiveNode) {
        if !node.is_dir() {
            return;
        }
        let side = node.dir();
        self.out.u64(side.changes.load(Ordering::Acquire));
        let slot = sync::lock(&side.listings);
        match &*slot {
            None => self.out.u8(0),
            Some(listings) => {
                self.out.u8(1);
                self.out.u64(listings.changes);
                let orders = [Some(&listings.now), listings.before.as_ref()];
                for order in orders {
                    let Some(order) = order else {
                        self.out.u8(0);
                        continue;
                    };
                    self.out.u8(1);
                    self.out.u64(order.base);
                    self.out.count(order.places.len());
                    for place in &order.places {
                        // No name is empty.
                        let name = place.as_ref().map_or(&b""[..], |at| at.name.as_bytes());
                        self.out.bytes(name);
                        if let Some(listed) = place {
                            self.out.u64(listed.ino);
                            self.out.u8(kind_byte(listed.kind));
                        }
                    }
                }
            }
        }
    }
}

struct Taker<'a> {
    engine: &'a Engine,
    known: HashMap<u64, HeldNode<'a>>,
    files: Vec<Option<OwnedFd>>,
}

impl<'a> Taker<'a> {
    fn node(&mut self, record: &mut Reader<'_>) -> Result<()> {
        let engine = self.engine;
        let id = record.u64()?;
        let lookups = record.u64()?;
        let ino = record.u64()?;
        let id = NodeId(id);
        let numbers = Numbered { id, ino };
        let kind = kind_of(record)?;
        let listed = match kind {
            FileKind::Dir => Some(listings(record)?),
            _ => None,
        };
        let mut found: Option<HeldNode<'a>> = None;
        let places = record.count()?;
        for _ in 0..places {
            let (parent, name) = (record.u64()?, OsStr::from_bytes(record.bytes()?));
            let parent = self.known.get(&parent);
            let parent = parent.ok_or_else(|| lost("a directory is missing from the record"))?;
            if !parent.is_dir() {
                return Err(lost("the record has names in a file"));
            }
            let child = engine.find(parent, name, Some(numbers))?;
            let (child, _) = child.ok_or_else(|| lost(format!("{name:?} is gone")))?;
            let same = found
                .as_ref()
                .is_none_or(|found| Arc::ptr_eq(found, &child));
            if !same || child.kind != kind || child.id != id {
                return Err(lost(format!("{name:?} has been replaced")));
            }
            found = Some(child);
        }
        let node = match found {
            Some(node) => node,
            None if id == NodeId::ROOT => engine.table.hold(&engine.root),
            None => {
                let body = match kind {
                    FileKind::Dir => Body::Dir(self.dir(record)?),
                    _ => Body::File(self.file(record)?),
                };
                engine.table.add_nameless(numbers, kind, body)
            }
        };
        if id != NodeId::ROOT {
            node.lookups.fetch_add(lookups, Ordering::Relaxed);
        }
        if let Some((changes, listings)) = listed {
            let side = node.dir();
            side.changes.store(changes, Ordering::Release);
            *sync::lock(&side.listings) = listings;
        }
        self.known.insert(id.0, node);
        Ok(())
    }

    fn dir(&mut self, record: &mut Reader<'_>) -> Result<DirBody> {
        let (mut parts, mut own) = (Vec::new(), None);
        for _ in 0..record.count()? {
            let (layer, dir) = match self.opened(record)? {
                Some(fd) => {
                    let dir = Dir::from_fd(fd).on(self.engine.layer(0))?;
                    let handle = DirHandle::pinned(Arc::new(dir));
                    own = Some(Arc::clone(&handle));
                    (0, handle as Arc<dyn LayerDir>)
                }
                None => self.lower_dir(record)?,
            };
            let stat = dir.stat(None).on(self.engine.layer(layer))?;
            let stat = stat.ok_or(Refusal::Stale)?;
            let xattr_whiteouts = false;
            let dir = DirAt {
                dir,
                stat,
                xattr_whiteouts,
            };
            parts.push(Part { layer, dir });
        }
        if parts.is_empty() {
            return Err(Damaged.into());
        }
        Ok(DirBody {
            parts: parts.into(),
            upper: own,
            impure: Some(false),
        })
    }

    fn file(&mut self, record: &mut Reader<'_>) -> Result<FileBody> {
        let upper = self.opened(record)?;
        let lower = self.lower(record)?;
        let data = self.lower(record)?;
        if upper.is_none() && lower.is_none() {
            return Err(Damaged.into());
        }
        Ok(FileBody {
            upper: upper.map(|fd| UpperFile::Pinned(Arc::new(fd))),
            lower,
            data: data.map_or(DataAt::Upper, DataAt::Lower),
        })
    }

    fn opened(&mut self, record: &mut Reader<'_>) -> Result<Option<OwnedFd>> {
        if record.u8()? == 0 {
            return Ok(None);
        }
        let number = usize::try_from(record.u64()?).map_err(|_| Damaged)?;
        let file = self.files.get_mut(number).and_then(Option::take);
        let file = file.ok_or_else(|| lost("a descriptor is missing"))?;
        Ok(Some(file))
    }

    fn lower(&mut self, record: &mut Reader<'_>) -> Result<Option<Arc<LowerFile>>> {
        if record.u8()? == 0 {
            return Ok(None);
        }
        let (layer, dir) = self.lower_dir(record)?;
        Ok(Some(Arc::new(LowerFile {
            layer,
            dir,
            name: OsStr::from_bytes(record.bytes()?).to_owned(),
            nlink: record.u32()?,
        })))
    }

    fn lower_dir(&mut self, record: &mut Reader<'_>) -> Result<(usize, Arc<dyn LayerDir>)> {
        let number = usize::try_from(record.u64()?).map_err(|_| Damaged)?;
        let layer = self.engine.layer_numbered(number).ok_or(Damaged)?;
        let mut dir = layer.root();
        for name in Path::new(OsStr::from_bytes(record.bytes()?)) {
            dir = dir.subdir(name);
        }
        Ok((number, dir))
    }
}

fn kind_of(record: &mut Reader<'_>) -> Result<FileKind> {
    let kind = FileKind::from_raw_mode(u32::from(record.u8()?) << 12);
    kind.ok_or_else(|| Damaged.into())
}

fn listings(record: &mut Reader<'_>) -> Result<(u64, Option<Listings>)> {
    use crate::engine::nodes::list::{ListingEntry, Order};
    let changes = record.u64()?;
    if record.u8()? == 0 {
        return Ok((changes, None));
    }
    let listed_changes = record.u64()?;
    let mut orders = [None, None];
    for order in &mut orders {
        if record.u8()? == 0 {
            continue;
        }
        let mut read = Order {
            base: record.u64()?,
            ..Order::default()
        };
        for _ in 0..record.count()? {
            let name = record.bytes()?;
            if name.is_empty() {
                read.empty += 1;
                read.places.push(None);
                continue;
            }
            read.places.push(Some(ListingEntry {
                name: OsStr::from_bytes(name).into(),
                ino: record.u64()?,
                kind: kind_of(record)?,
            }));
        }
        *order = Some(read);
    }
    let [now, before] = orders;
    let listings = Listings {
        now: now.ok_or(Damaged)?,
        before,
        changes: listed_changes,
    };
    Ok((changes, Some(listings)))
}
