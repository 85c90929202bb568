//! Telling the kernel, unasked, that attributes it keeps are not true any more.
//!
//! It keeps attributes without end, so whatever changes some that the kernel can't know of is told
//! here, before the request that changed them is answered: who asked for the change must not see
//! what was before it. Only attributes are dropped: that waits for nothing, so a thread may do it
//! in the middle of a request. (Cached pages can be waited for only by a thread that answers
//! nothing: a READ that this very thread is to answer may hold them.)

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

    /// Tells the kernel that attributes of `node`, by its number on the wire, changed.
    pub fn attributes(&self, node: u64) {
        self.counters.count_notification();
        match self.device.notify(&attributes_changed(node)) {
            // It has forgotten the node, or the mount is gone: then it keeps nothing of it.
            Ok(()) | Err(Errno::NOENT | Errno::NODEV | Errno::NOTCONN | Errno::CONNABORTED) => {}
            Err(error) => {
                tracing::error!(node, %error, "the kernel may go on showing old attributes");
            }
        }
    }
}
