//! What containerd asks for over the socket: snapshots that it keeps account of, and layers into
//! and out of mounted trees.

pub mod differ;
pub mod snapshots;
