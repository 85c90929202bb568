//! Requests about bytes.

use rustix::io::Errno;
use vellum_union::engine::NodeId;

use super::{Answer, Ops};
use crate::wire::flags::open;
use crate::wire::reply::Reply;

impl Ops {
    pub(super) fn open(&self, _node: NodeId, _flags: u32, reply: &mut Reply<'_>) -> Answer {
        if self.agreed.no_open {
            return Err(Errno::NOSYS.into());
        }
        reply.open(0, open::KEEP_CACHE | open::NOFLUSH, 0);
        Ok(())
    }
}
