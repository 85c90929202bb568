//! Notifications: what the kernel is sent without a request, because attributes it has cached are
//! no longer true.
//!
//! There is no message about cached pages. Dropping them waits for pages that are being read or
//! written, so only a thread that answers no requests could send it.

use super::reply::HEADER_BYTES;

/// The notification about an inode (`FUSE_NOTIFY_INVAL_INODE`). It takes the place of a reply's
/// error.
const INVAL_INODE: i32 = 2;
const MESSAGE_BYTES: usize = HEADER_BYTES + 24;
/// The kernel drops pages from an offset on only if it is not negative.
const NO_PAGES: i64 = -1;

/// Returns the message that makes the kernel drop the attributes, and ACLs, of `node`.
pub fn attributes_changed(node: u64) -> [u8; MESSAGE_BYTES] {
    let mut message = [0; MESSAGE_BYTES];
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        message[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    put(&(MESSAGE_BYTES as u32).to_ne_bytes());
    put(&INVAL_INODE.to_ne_bytes());
    // No request has this number.
    put(&0u64.to_ne_bytes());
    put(&node.to_ne_bytes());
    put(&NO_PAGES.to_ne_bytes());
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notifications_are_laid_out_as_the_kernel_reads_them() {
        let message = attributes_changed(7);
        let numbers = message.chunks_exact(8);
        let numbers: Vec<_> = numbers
            .map(|chunk| i64::from_ne_bytes(chunk.try_into().unwrap()))
            .collect();
        assert_eq!(numbers, [2 << 32 | 40, 0, 7, -1, 0]);
    }
}
