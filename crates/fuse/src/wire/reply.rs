//! Replies: written into one buffer, header included, so that one write(2) sends them.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

/// Length of what every reply begins with.
pub const HEADER_BYTES: usize = 16;
/// Length of an entry: what LOOKUP answers.
const ENTRY_BYTES: usize = 128;
/// Length of a name in a listing, without the name.
const DIRENT_BYTES: usize = 24;

/// A file's attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct Attr {
    pub ino: u64,
    pub size_bytes: u64,
    pub blocks_512: u64,
    pub atime: (i64, u32),
    pub mtime: (i64, u32),
    pub ctime: (i64, u32),
    /// With the file type.
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    pub block_bytes: u32,
}

/// A looked-up name, and how long the kernel may cache it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Entry {
    /// 0: there is no such name, which may be cached, too.
    pub node: u64,
    pub generation: u64,
    pub entry_valid: Duration,
    pub attr_valid: Duration,
    pub attr: Attr,
}

/// The answer to INIT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct Init {
    pub minor: u32,
    pub max_readahead_bytes: u32,
    pub flags: u64,
    pub max_background: u16,
    pub congestion_threshold: u16,
    pub max_write_bytes: u32,
    pub time_granularity_ns: u32,
    pub max_pages: u16,
    pub max_stack_depth: u32,
}

/// A file system's space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct StatFs {
    pub blocks: u64,
    pub blocks_free: u64,
    pub blocks_available: u64,
    pub inodes: u64,
    pub inodes_free: u64,
    pub block_bytes: u32,
    pub name_max_bytes: u32,
}

/// A reply being built. The caller knows the buffer's size, so bytes that don't fit are its bug:
/// they are left out and [`Reply::finish`] turns the reply into an EIO.
#[derive(Debug)]
pub struct Reply<'b> {
    buffer: &'b mut [u8],
    used: usize,
    overflow: bool,
}

impl<'b> Reply<'b> {
    /// Begins an empty reply. `buffer` has at least [`HEADER_BYTES`].
    pub fn new(buffer: &'b mut [u8]) -> Reply<'b> {
        Reply {
            buffer,
            used: HEADER_BYTES,
            overflow: false,
        }
    }

    /// Discards what was put.
    pub fn clear(&mut self) {
        self.used = HEADER_BYTES;
        self.overflow = false;
    }

    /// Returns the bytes put so far.
    pub fn body(&self) -> &[u8] {
        &self.buffer[HEADER_BYTES..self.used]
    }

    /// Returns space for at most `length` bytes, to read data into; [`Reply::took`] says how many
    /// came.
    pub fn room(&mut self, length: usize) -> &mut [u8] {
        let end = self.buffer.len().min(self.used.saturating_add(length));
        &mut self.buffer[self.used..end]
    }

    /// Keeps the first `length` bytes of [`Reply::room`].
    pub fn took(&mut self, length: usize) {
        self.used = self.buffer.len().min(self.used + length);
    }

    /// Puts bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) {
        let end = self.used + bytes.len();
        match self.buffer.get_mut(self.used..end) {
            Some(place) => {
                place.copy_from_slice(bytes);
                self.used = end;
            }
            None => self.overflow = true,
        }
    }

    fn u16(&mut self, value: u16) {
        self.bytes(&value.to_ne_bytes());
    }

    /// Puts a number of 32 bits.
    pub fn u32(&mut self, value: u32) {
        self.bytes(&value.to_ne_bytes());
    }

    /// Puts a number of 64 bits.
    pub fn u64(&mut self, value: u64) {
        self.bytes(&value.to_ne_bytes());
    }

    fn zeros(&mut self, count: usize) {
        const ZEROS: [u8; 64] = [0; 64];
        self.bytes(&ZEROS[..count]);
    }

    /// Puts attributes.
    pub fn attr(&mut self, attr: &Attr) {
        for value in [attr.ino, attr.size_bytes, attr.blocks_512] {
            self.u64(value);
        }
        for (sec, _) in [attr.atime, attr.mtime, attr.ctime] {
            self.u64(sec as u64);
        }
        for (_, nsec) in [attr.atime, attr.mtime, attr.ctime] {
            self.u32(nsec);
        }
        for value in [attr.mode, attr.nlink, attr.uid, attr.gid, attr.rdev] {
            self.u32(value);
        }
        self.u32(attr.block_bytes);
        self.u32(0);
    }

    /// Puts the answer to GETATTR and SETATTR.
    pub fn attr_for(&mut self, valid: Duration, attr: &Attr) {
        self.u64(valid.as_secs());
        self.u32(valid.subsec_nanos());
        self.u32(0);
        self.attr(attr);
    }

    /// Puts the answer to LOOKUP and to everything that creates a name.
    pub fn entry(&mut self, entry: &Entry) {
        self.u64(entry.node);
        self.u64(entry.generation);
        self.u64(entry.entry_valid.as_secs());
        self.u64(entry.attr_valid.as_secs());
        self.u32(entry.entry_valid.subsec_nanos());
        self.u32(entry.attr_valid.subsec_nanos());
        self.attr(&entry.attr);
    }

    /// Puts the answer to OPEN.
    pub fn open(&mut self, handle: u64, flags: u32, backing: i32) {
        self.u64(handle);
        self.u32(flags);
        self.u32(backing as u32);
    }

    /// Puts the answer to WRITE, COPY_FILE_RANGE and GETXATTR (when it asks for a length).
    pub fn count(&mut self, count: u32) {
        self.u32(count);
        self.u32(0);
    }

    /// Puts the answer to STATFS.
    pub fn stat_fs(&mut self, room: &StatFs) {
        for value in [
            room.blocks,
            room.blocks_free,
            room.blocks_available,
            room.inodes,
            room.inodes_free,
        ] {
            self.u64(value);
        }
        self.u32(room.block_bytes);
        self.u32(room.name_max_bytes);
        self.u32(room.block_bytes);
        self.zeros(28);
    }

    /// Puts the answer to IOCTL, before the data that goes back.
    pub fn ioctl(&mut self, result: i32) {
        self.u32(result as u32);
        self.zeros(12);
    }

    /// Puts the answer to INIT.
    pub fn init(&mut self, init: &Init) {
        self.u32(super::MAJOR);
        self.u32(init.minor);
        self.u32(init.max_readahead_bytes);
        self.u32(init.flags as u32);
        self.u16(init.max_background);
        self.u16(init.congestion_threshold);
        self.u32(init.max_write_bytes);
        self.u32(init.time_granularity_ns);
        self.u16(init.max_pages);
        self.u16(0);
        self.u32((init.flags >> 32) as u32);
        self.u32(init.max_stack_depth);
        self.zeros(24);
    }

    /// Returns the length a name takes in a listing.
    pub fn dirent_bytes(name: &OsStr) -> usize {
        (DIRENT_BYTES + name.len()).next_multiple_of(8)
    }

    /// Returns the length a name takes in a listing with attributes.
    pub fn dirent_plus_bytes(name: &OsStr) -> usize {
        ENTRY_BYTES + Self::dirent_bytes(name)
    }

    /// Puts a name of a listing. `kind` is the file type as in a mode, shifted right by 12; `next`
    /// is the cookie after the name.
    pub fn dirent(&mut self, name: &OsStr, ino: u64, kind: u32, next: u64) {
        self.u64(ino);
        self.u64(next);
        self.u32(name.len() as u32);
        self.u32(kind);
        self.bytes(name.as_bytes());
        self.zeros(Self::dirent_bytes(name) - DIRENT_BYTES - name.len());
    }

    /// Completes the reply. `errno` is 0, or the reason for failing (then nothing that was put is
    /// sent).
    pub fn finish(&mut self, unique: u64, errno: i32) -> &[u8] {
        let errno = match self.overflow {
            true => rustix::io::Errno::IO.raw_os_error(),
            false => errno,
        };
        if errno != 0 {
            self.used = HEADER_BYTES;
        }
        self.buffer[0..4].copy_from_slice(&(self.used as u32).to_ne_bytes());
        self.buffer[4..8].copy_from_slice(&(-errno).to_ne_bytes());
        self.buffer[8..16].copy_from_slice(&unique.to_ne_bytes());
        &self.buffer[..self.used]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn length(put: impl FnOnce(&mut Reply<'_>)) -> usize {
        let mut buffer = [0; 512];
        let mut reply = Reply::new(&mut buffer);
        put(&mut reply);
        reply.body().len()
    }

    #[test]
    fn replies_have_the_lengths_of_the_kernels_structs() {
        let attr = Attr::default();
        assert_eq!(length(|r| r.attr(&attr)), 88);
        assert_eq!(length(|r| r.attr_for(Duration::ZERO, &attr)), 104);
        let entry = Entry {
            node: 1,
            generation: 0,
            entry_valid: Duration::ZERO,
            attr_valid: Duration::ZERO,
            attr,
        };
        assert_eq!(length(|r| r.entry(&entry)), ENTRY_BYTES);
        assert_eq!(length(|r| r.init(&Init::default())), 64);
        assert_eq!(length(|r| r.stat_fs(&StatFs::default())), 80);
        assert_eq!(length(|r| r.open(0, 0, 0)), 16);
        assert_eq!(length(|r| r.ioctl(0)), 16);
        for name in ["a", "12345678", "123456789"] {
            let name = OsStr::new(name);
            let got = length(|r| r.dirent(name, 1, 4, 2));
            assert_eq!(got, Reply::dirent_bytes(name));
            assert_eq!(got % 8, 0);
        }
    }

    #[test]
    fn a_reply_that_does_not_fit_is_an_error() {
        let mut buffer = [0; 20];
        let mut reply = Reply::new(&mut buffer);
        reply.u64(1);
        let sent = reply.finish(7, 0).to_vec();
        assert_eq!(sent.len(), HEADER_BYTES);
        assert_eq!(i32::from_ne_bytes(sent[4..8].try_into().unwrap()), -5);
    }
}
