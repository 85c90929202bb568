//! Messages the kernel did not ask for: it is told that what it keeps is not true any more.

use super::reply::HEADER_BYTES;

/// The notification about an inode (`FUSE_NOTIFY_INVAL_INODE`). It stands where replies have their error.
const INVAL_INODE: i32 = 2;
/// Length of one about an inode.
const INODE_BYTES: usize = HEADER_BYTES + 24;

/// What the kernel is to drop of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dropped {
    /// Attributes and ACLs alone. It waits for nothing.
    Attributes,
    /// Those, and the cached pages of these bytes. It waits for pages that are being read or written: whoever says so answers no
    /// requests.
    Bytes {
        /// The first byte.
        offset: u64,
        /// How many; 0 is all from there on.
        length: u64,
    },
}

/// Returns the message that the kernel is to drop something of `node`.
pub fn inval_inode(node: u64, dropped: Dropped) -> [u8; INODE_BYTES] {
    let (offset, length) = match dropped {
        // The kernel looks at pages from an offset on that is not negative.
        Dropped::Attributes => (-1, 0),
        Dropped::Bytes { offset, length } => (clamp(offset), clamp(length)),
    };
    let mut message = [0; INODE_BYTES];
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        message[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    put(&(INODE_BYTES as u32).to_ne_bytes());
    put(&INVAL_INODE.to_ne_bytes());
    // No request has this number.
    put(&0u64.to_ne_bytes());
    put(&node.to_ne_bytes());
    put(&i64::to_ne_bytes(offset));
    put(&i64::to_ne_bytes(length));
    message
}

fn clamp(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(message: &[u8]) -> Vec<i64> {
        let chunks = message.chunks_exact(8);
        chunks
            .map(|chunk| i64::from_ne_bytes(chunk.try_into().unwrap()))
            .collect()
    }

    #[test]
    fn notifications_are_laid_out_as_the_kernel_reads_them() {
        let attributes = numbers(&inval_inode(7, Dropped::Attributes));
        assert_eq!(attributes, [2 << 32 | 40, 0, 7, -1, 0]);
        let bytes = Dropped::Bytes {
            offset: 5,
            length: u64::MAX,
        };
        assert_eq!(numbers(&inval_inode(7, bytes))[3..], [5, i64::MAX]);
    }
}
