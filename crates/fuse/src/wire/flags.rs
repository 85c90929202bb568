//! The protocol's bits, each with the name the kernel gives it (without `FUSE_`).

/// Capabilities in INIT, both words as one: the second is the upper half.
pub mod init {
    /// Several concurrent reads of one file.
    pub const ASYNC_READ: u64 = 1 << 0;
    /// An open with O_TRUNC also truncates. Never together with [`NO_OPEN_SUPPORT`]: the truncation
    /// would be lost.
    pub const ATOMIC_O_TRUNC: u64 = 1 << 3;
    /// Nodes can be found by number alone, with a lookup of `.`.
    pub const EXPORT_SUPPORT: u64 = 1 << 4;
    /// Writes of more than a page.
    pub const BIG_WRITES: u64 = 1 << 5;
    /// The umask is left to us.
    pub const DONT_MASK: u64 = 1 << 6;
    /// Ioctls on directories.
    pub const HAS_IOCTL_DIR: u64 = 1 << 11;
    /// Cached data is dropped when attributes say that the file changed.
    pub const AUTO_INVAL_DATA: u64 = 1 << 12;
    /// READDIRPLUS.
    pub const DO_READDIRPLUS: u64 = 1 << 13;
    /// READDIRPLUS only where it seems useful.
    pub const READDIRPLUS_AUTO: u64 = 1 << 14;
    /// Concurrent direct transfers, without cache invalidation by the kernel.
    pub const ASYNC_DIO: u64 = 1 << 15;
    /// The kernel keeps written data and sends it later.
    pub const WRITEBACK_CACHE: u64 = 1 << 16;
    /// ENOSYS to OPEN: no further open is sent.
    pub const NO_OPEN_SUPPORT: u64 = 1 << 17;
    /// Lookups and listings of one directory in parallel.
    pub const PARALLEL_DIROPS: u64 = 1 << 18;
    /// ACLs are enforced.
    pub const POSIX_ACL: u64 = 1 << 20;
    /// Requests to an aborted connection fail with ECONNABORTED.
    pub const ABORT_ERROR: u64 = 1 << 21;
    /// `max_pages` is valid.
    pub const MAX_PAGES: u64 = 1 << 22;
    /// Targets of symbolic links are cached.
    pub const CACHE_SYMLINKS: u64 = 1 << 23;
    /// ENOSYS to OPENDIR: no further opendir is sent.
    pub const NO_OPENDIR_SUPPORT: u64 = 1 << 24;
    /// Cached data is dropped only when we say so.
    pub const EXPLICIT_INVAL_DATA: u64 = 1 << 25;
    /// setuid, setgid and capabilities are cleared by us.
    pub const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    /// SETXATTR carries flags.
    pub const SETXATTR_EXT: u64 = 1 << 29;
    /// The second word of flags is valid.
    pub const INIT_EXT: u64 = 1 << 30;
    /// Direct I/O and shared mappings together.
    pub const DIRECT_IO_ALLOW_MMAP: u64 = 1 << 36;
    /// Opens may be answered with a backing file.
    pub const PASSTHROUGH: u64 = 1 << 37;
    /// Requests come over io_uring once every queue has a slot for one.
    pub const OVER_IO_URING: u64 = 1 << 41;
}

/// Which fields of a SETATTR are valid.
pub mod setattr {
    #![allow(missing_docs)]
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
    pub const CTIME: u32 = 1 << 10;
    pub const KILL_SUIDGID: u32 = 1 << 11;
    /// Those that change something.
    pub const FIELDS: u32 = MODE | UID | GID | SIZE | ATIME | MTIME | ATIME_NOW | MTIME_NOW | CTIME;
}

/// The writer may not keep setuid and setgid.
pub const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// Open flag of the writer (O_APPEND): it writes at the end.
pub const OPENED_TO_APPEND: u32 = 0o2000;
/// Only the data must be synced.
pub const FSYNC_DATA_ONLY: u32 = 1 << 0;
/// Setting this ACL clears setgid.
pub const SETXATTR_ACL_KILL_SGID: u32 = 1 << 0;

/// How an open is answered.
pub mod open {
    /// The page cache is bypassed.
    pub const DIRECT_IO: u32 = 1 << 0;
    /// Cached data stays.
    pub const KEEP_CACHE: u32 = 1 << 1;
    /// Listings are cached.
    pub const CACHE_DIR: u32 = 1 << 3;
    /// No FLUSH at close.
    pub const NOFLUSH: u32 = 1 << 5;
    /// Concurrent direct writes.
    pub const PARALLEL_DIRECT_WRITES: u32 = 1 << 6;
    /// Reads and writes go to the backing file.
    pub const PASSTHROUGH: u32 = 1 << 7;
}
