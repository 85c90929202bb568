//! Listing a directory, with cookies that stay valid while the directory changes.
//!
//! A listed directory keeps its names in the order in which it returned them. A cookie is a place
//! in that order. New names are appended, and removed names leave their place empty. So a reader in
//! the middle, or one that returns to a place, sees each name that was there all along exactly
//! once, with any number of readers. When most places are empty, a new order begins after the end
//! of the old one, which is kept for readers that are still in it.
//!
//! The names are read again when a reader starts over and the directory has changed. Everything is
//! dropped with the node. Lock order: the listing of a directory comes before every other lock. It
//! is held while the names are read, which every reader of the directory needs, but not while they
//! are returned: the receiver looks them up, and a layer may be slow to answer.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vellum_sys::{FileKind, sync};

use crate::engine::Engine;
use crate::engine::nodes::{Body, LiveNode};
use crate::engine::request::{Listing, NodeId};
use crate::error::On;
use crate::layer::{LayerDir, Records};
use crate::marks::{DirAt, Named, Reader};
use crate::resolve::Part;
use crate::{Refusal, Result, node};

/// The listings of one directory.
#[derive(Debug)]
pub(crate) struct Listings {
    /// The order in use.
    pub(in crate::engine) now: Order,
    /// The one before, for readers that are still in it.
    pub(in crate::engine) before: Option<Order>,
    /// The directory's change count when it was read.
    pub(in crate::engine) changes: u64,
}

/// Names in the order in which they are returned.
#[derive(Debug, Default)]
pub(in crate::engine) struct Order {
    /// The cookie of the first place.
    pub base: u64,
    pub places: Vec<Option<ListingEntry>>,
    pub empty: usize,
}

#[derive(Debug)]
pub(in crate::engine) struct ListingEntry {
    pub name: Box<OsStr>,
    pub ino: u64,
    pub kind: FileKind,
}

/// How many names are returned before the listing is locked again.
const BATCH: usize = 128;

/// How many more places may be empty than are in use.
const EMPTY_MAX: usize = 1024;

/// Some names of an order, and the cookie where the order begins.
struct Batch {
    base: u64,
    listings: Vec<Listing>,
}

impl Order {
    fn end(&self) -> u64 {
        self.base + self.places.len() as u64
    }
}

impl Listings {
    /// Returns the next names from `cookie` on, a few at a time.
    fn batch(&self, cookie: u64) -> Batch {
        let order = self.order(cookie);
        let start = cookie.max(order.base);
        let places = usize::try_from(start - order.base)
            .ok()
            .and_then(|start| order.places.get(start..));
        let numbered = (start..).zip(places.unwrap_or_default());
        let listed = numbered.filter_map(|(place, listed)| {
            let listed = listed.as_ref()?;
            Some(Listing {
                name: listed.name.to_os_string(),
                ino: listed.ino,
                kind: listed.kind,
                next: place + 1,
            })
        });
        Batch {
            base: order.base,
            listings: listed.take(BATCH).collect(),
        }
    }

    fn order(&self, cookie: u64) -> &Order {
        match &self.before {
            Some(before) if cookie != 0 && cookie < self.now.base => before,
            _ => &self.now,
        }
    }

    /// Updates the order with what the directory has now.
    fn renew(&mut self, found: Vec<ListingEntry>, changes: u64) {
        self.changes = changes;
        let mut new: HashMap<Box<OsStr>, (u64, FileKind)> = found
            .into_iter()
            .map(|listed| (listed.name, (listed.ino, listed.kind)))
            .collect();
        for place in &mut self.now.places {
            let Some(listed) = place else { continue };
            match new.remove(&listed.name) {
                Some((ino, kind)) => (listed.ino, listed.kind) = (ino, kind),
                None => {
                    *place = None;
                    self.now.empty += 1;
                }
            }
        }
        let live = self.now.places.len() - self.now.empty;
        if self.now.empty > live + EMPTY_MAX {
            let base = self.now.end();
            let old = std::mem::take(&mut self.now);
            // Readers of the old order stay in it; the new one begins with the same names.
            let copy = |listed: &ListingEntry| ListingEntry {
                name: listed.name.clone(),
                ..*listed
            };
            self.now.places = old.places.iter().flatten().map(copy).map(Some).collect();
            self.now.base = base;
            self.before = Some(old);
        }
        let appended = new
            .into_iter()
            .map(|(name, (ino, kind))| Some(ListingEntry { name, ino, kind }));
        self.now.places.extend(appended);
    }
}

impl Engine {
    /// Passes the names in a directory to `take`, from `cookie` on: 0 for the beginning, or the
    /// `next` of a listing of this node. Stops at the end, or when `take` breaks: the name that it
    /// was passed last then counts as not taken.
    ///
    /// `.` and `..` are not included. `take` may look names up.
    pub fn list(
        &self,
        id: NodeId,
        cookie: u64,
        take: &mut dyn FnMut(Listing) -> ControlFlow<()>,
    ) -> Result<()> {
        let dir = self.dir_node(id)?;
        let side = dir.dir();
        let mut slot = sync::lock(&side.listings);
        let changes = side.changes.load(Ordering::Acquire);
        match &mut *slot {
            Some(listings) if cookie != 0 || listings.changes == changes => {}
            Some(listings) => listings.renew(self.read_names(&dir)?, changes),
            None => {
                let found = self.read_names(&dir)?;
                let now = Order {
                    // 0 is the beginning, wherever that is.
                    base: 1,
                    places: found.into_iter().map(Some).collect(),
                    empty: 0,
                };
                *slot = Some(Listings {
                    now,
                    before: None,
                    changes,
                });
            }
        }
        let listings = slot.as_ref().ok_or(Refusal::Stale)?;
        let mut batch = listings.batch(cookie);
        let base = batch.base;
        drop(slot);
        // If the order was replaced in between, the reader comes back with its cookie.
        while batch.base == base {
            let Some(last) = batch.listings.last() else {
                break;
            };
            let (next, full) = (last.next, batch.listings.len() == BATCH);
            for listing in batch.listings {
                if take(listing).is_break() {
                    return Ok(());
                }
            }
            if !full {
                break;
            }
            let slot = sync::lock(&side.listings);
            batch = slot.as_ref().ok_or(Refusal::Stale)?.batch(next);
        }
        Ok(())
    }

    /// Reads the names in a directory, merged.
    fn read_names(&self, dir: &Arc<LiveNode>) -> Result<Vec<ListingEntry>> {
        let (parts, impure) = {
            let gate = self.shared();
            if dir.is_gone() {
                return Ok(Vec::new());
            }
            let impure = self.is_impure(dir, &gate)?;
            let state = dir.state();
            let Body::Dir(body) = &state.body else {
                return Err(Refusal::NotADirectory.into());
            };
            let mut parts = body.parts.to_vec();
            if let Some(upper) = &body.upper {
                // The directory may move while it is read.
                parts[0].dir.dir = upper.held().on(self.layer(0))? as Arc<dyn LayerDir>;
            }
            (parts, impure)
        };
        let mut seen = HashSet::new();
        let mut listed = Vec::new();
        let several = parts.len() > 1;
        for part in &parts {
            let layer = &*self.stack.layers()[part.layer];
            let mut found = Reader::new(layer).entries(&part.dir)?;
            let by_name = found
                .iter()
                .any(|named| named.hides && named.kind == FileKind::File);
            if by_name {
                // A layer may have both a name and its whiteout: the name shows and hides those
                // below.
                found.sort_by_key(|named| named.hides);
            }
            for named in found {
                if (several || by_name) && !seen.insert(named.name.clone()) || named.hides {
                    continue;
                }
                let (ino, kind) = self.numbered(dir, part, &named, several, impure)?;
                listed.push(ListingEntry {
                    name: named.name.into(),
                    ino,
                    kind,
                });
            }
        }
        Ok(listed)
    }

    /// Returns the inode number and type that a lookup of this name would give, with as few
    /// questions to the layers as possible.
    fn numbered(
        &self,
        dir: &Arc<LiveNode>,
        part: &Part<DirAt>,
        named: &Named,
        merged: bool,
        impure: bool,
    ) -> Result<(u64, FileKind)> {
        let own = self.numbers.show((part.dir.stat.dev, named.ino));
        let is_upper = self.upper.is_some() && part.layer == 0;
        if is_upper && (impure || merged && named.kind == FileKind::Dir) {
            // Without adding a node for each.
            let found = self.glance(dir, &named.name)?;
            return Ok(found.unwrap_or((own, named.kind)));
        }
        let layer = &*self.stack.layers()[part.layer];
        if named.kind != FileKind::File || layer.dialect().records == Records::None {
            return Ok((own, named.kind));
        }
        let stat = part.dir.dir.stat(Some(&named.name));
        let Some(stat) = stat.on(self.layer(part.layer))? else {
            return Ok((own, named.kind));
        };
        let shown = node::shown(layer, &*part.dir.dir, Some(&named.name), &stat)?;
        Ok((own, shown.map_or(named.kind, |shown| shown.kind)))
    }
}
