//! Listings, with and without attributes.
//!
//! The kernel's positions are the engine's cookies shifted by two: `.` and `..` come first and are
//! created here.

use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::time::Duration;

use rustix::io::Errno;
use vellum_sys::FileKind;
use vellum_union::engine::NodeId;

use super::{Answer, Ops, kind_bits};
use crate::wire::reply::{self, Reply};
use crate::wire::request::Range;

/// The positions of `.` and `..`.
const DOTS: u64 = 2;

impl Ops {
    pub(super) fn read_dir(&self, dir: NodeId, range: Range, reply: &mut Reply<'_>) -> Answer {
        let mut left = range.size_bytes as usize;
        for (place, name) in (range.offset..DOTS).map(|place| (place, dot(place))) {
            left = match left.checked_sub(Reply::dirent_bytes(name)) {
                Some(left) => left,
                None => return Ok(()),
            };
            let ino = self.dot_number(dir, place)?;
            reply.dirent(name, ino, kind_bits(FileKind::Dir), place + 1);
        }
        let cookie = range.offset.saturating_sub(DOTS);
        self.engine.list(dir, cookie, &mut |listing| {
            let Some(rest) = left.checked_sub(Reply::dirent_bytes(&listing.name)) else {
                return ControlFlow::Break(());
            };
            left = rest;
            let kind = kind_bits(listing.kind);
            reply.dirent(&listing.name, listing.ino, kind, listing.next + DOTS);
            ControlFlow::Continue(())
        })?;
        Ok(())
    }

    pub(super) fn read_dir_plus(&self, dir: NodeId, range: Range, reply: &mut Reply<'_>) -> Answer {
        let mut left = range.size_bytes as usize;
        for (place, name) in (range.offset..DOTS).map(|place| (place, dot(place))) {
            left = match left.checked_sub(Reply::dirent_plus_bytes(name)) {
                Some(left) => left,
                None => return Ok(()),
            };
            reply.entry(&NO_ENTRY);
            let ino = self.dot_number(dir, place)?;
            reply.dirent(name, ino, kind_bits(FileKind::Dir), place + 1);
        }
        let cookie = range.offset.saturating_sub(DOTS);
        self.engine.list(dir, cookie, &mut |listing| {
            let Some(rest) = left.checked_sub(Reply::dirent_plus_bytes(&listing.name)) else {
                return ControlFlow::Break(());
            };
            left = rest;
            // A name that can't be looked up is still listed: opening it reports why.
            let entry = match self.engine.lookup(dir, &listing.name) {
                Ok(Some(entry)) => self.entry(&entry),
                Ok(None) | Err(_) => NO_ENTRY,
            };
            reply.entry(&entry);
            let kind = kind_bits(listing.kind);
            reply.dirent(&listing.name, listing.ino, kind, listing.next + DOTS);
            ControlFlow::Continue(())
        })?;
        Ok(())
    }

    fn dot_number(&self, dir: NodeId, place: u64) -> Answer<u64> {
        Ok(match place {
            0 => self.engine.attr(dir)?.ino,
            1 => self.engine.parent_number(dir)?,
            _ => return Err(Errno::INVAL.into()),
        })
    }
}

/// What precedes a name whose attributes are not sent.
const NO_ENTRY: reply::Entry = reply::Entry {
    node: 0,
    generation: 0,
    entry_valid: Duration::ZERO,
    attr_valid: Duration::ZERO,
    attr: reply::Attr {
        ino: 0,
        size_bytes: 0,
        blocks_512: 0,
        atime: (0, 0),
        mtime: (0, 0),
        ctime: (0, 0),
        mode: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        block_bytes: 0,
    },
};

fn dot(place: u64) -> &'static OsStr {
    match place {
        0 => OsStr::new("."),
        _ => OsStr::new(".."),
    }
}
