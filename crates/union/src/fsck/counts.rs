//! Inodes with several names: how many of them a layer has.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use vellum_format::Nlink;
use vellum_sys::Stat;

use crate::fsck::{Check, Finding, Place};

/// One inode with more than one link.
#[derive(Debug)]
pub(super) struct Linked {
    /// The links it has.
    pub nlink: u32,
    /// The names found in the layer.
    pub seen: u32,
    /// One of them.
    pub first: PathBuf,
    /// The mark with the union's count.
    pub mark: Option<Nlink>,
}

/// The inodes of one layer that have several links, by device and number.
#[derive(Debug, Default)]
pub(super) struct Names(BTreeMap<(u64, u64), Linked>);

impl Names {
    /// Notes one name of an inode.
    pub fn saw(&mut self, path: &Path, stat: &Stat, mark: Option<Nlink>) {
        if stat.nlink < 2 || stat.is_dir() || stat.is_null_device() {
            return;
        }
        let linked = self.0.entry(stat.identity()).or_insert_with(|| Linked {
            nlink: stat.nlink,
            seen: 0,
            first: path.to_owned(),
            mark,
        });
        linked.seen += 1;
    }

    /// Returns what was seen of an inode.
    pub fn of(&self, stat: &Stat) -> Option<&Linked> {
        self.0.get(&stat.identity())
    }

    /// Reports inodes that have more links than names in the layer. In an upper, one link may be
    /// that of the index.
    pub fn report(&self, check: &mut Check<'_>, layer: usize) {
        for (identity, linked) in &self.0 {
            let in_index = match (check.is_upper(layer), &check.index) {
                (true, Some(index)) => index.has(*identity),
                // Without the work directory it may have one name there.
                (true, None) if linked.mark.is_some() => true,
                _ => false,
            };
            let wanted = linked.seen + u32::from(in_index);
            if linked.nlink != wanted {
                let why = "the inode has other names outside this layer, which see its changes";
                check.sink.report(
                    Finding::remark(Place::Layer(layer), &linked.first, "link", why)
                        .differing(format!("{wanted} links"), format!("{} links", linked.nlink)),
                );
            }
        }
    }
}
