//! Notifies the kernel that attributes it has cached are no longer true.
//!
//! The kernel keeps attributes without a time limit. So a change it can't know of is reported here
//! before the request that caused it is answered: the caller must not see the old state afterwards.
//! Only attributes are dropped: that never blocks, so a thread may do it in the middle of a
//! request. (Dropping cached pages can block, so it needs a thread that answers no requests: a READ
//! that this very thread should answer may hold them.)

use std::sync::Arc;

use rustix::io::Errno;

use crate::channel::Channel;
use crate::counters::Counters;
use crate::wire::notify::attributes_changed;

/// Where notifications go.
#[derive(Debug)]
pub struct Notifier {
    device: Arc<Channel>,
    counters: Arc<Counters>,
}

impl Notifier {
    /// `device` is any descriptor of the connection.
    pub fn new(device: Arc<Channel>, counters: Arc<Counters>) -> Notifier {
        Notifier { device, counters }
    }

    /// Notifies the kernel that attributes of `node`, by its number on the wire, changed.
    pub fn attributes(&self, node: u64) {
        self.counters.count_notification();
        match self.device.notify(&attributes_changed(node)) {
            // The kernel has forgotten the node, or the mount is gone: nothing is cached then.
            Ok(()) | Err(Errno::NOENT | Errno::NODEV | Errno::NOTCONN | Errno::CONNABORTED) => {}
            Err(error) => {
                tracing::error!(node, %error, "the kernel may keep showing stale attributes");
            }
        }
    }
}
