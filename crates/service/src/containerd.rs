//! What containerd asks over the socket: snapshots whose accounts it keeps, and layers into and out
//! of mounted trees.

pub mod differ;
pub mod snapshots;
