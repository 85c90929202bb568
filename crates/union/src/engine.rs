//! The changing side: a union that is written to, as a table of live nodes.
//!
//! [`Engine`] is what a front (a FUSE session, a test, a tool) calls: one method for each thing a program can do to a
//! file, in terms of nodes, names and bytes. It never hears of FUSE, errno or sockets. What a name means is decided by
//! [`crate::resolve`]; what is written follows the kernel's overlayfs format, so that either can mount the other's work.
//!
//! Where things are:
//!
//! * `request.rs`: what is asked and answered; `options.rs`: what an engine is made of;
//! * `nodes.rs`: the live nodes and their table; `lookup.rs`, `list.rs`, `attr.rs`, `xattrs.rs`: reading;
//! * `copy_up.rs`: from a lower layer to the upper; `create.rs`, `hide.rs`, `rename.rs`: names;
//! * `data.rs`, `blocks.rs`: bytes, and files whose bytes are partly above and partly below; `limit.rs`: how many;
//! * `identity.rs`: inode numbers, origins, the index of hard links; `recovery.rs`: opening, locks, what a crash left.
//!
//! Lock order, outermost first: rename gate (shared by everything that uses names, alone for moving directories) >
//! a directory's names, parent before child > a node's gate (copying up, changing where its data is) > a node's state >
//! the node table > the cache of descriptors. Nothing is held while a reply is written. The copy-up of one file delays
//! only those who want that file.

pub(crate) mod acl;
pub(crate) mod at;
mod ids;
pub(crate) mod nodes;
pub mod options;
pub(crate) mod records;
pub mod request;
pub(crate) mod staging;

pub use options::{Durability, EngineOptions, IdRules, IdRun, Limit, UpperOptions};
pub use request::{
    Attr, Caller, Entry, Listing, NewNode, NodeId, RenameMode, Room, SetAttr, SetTime,
};
