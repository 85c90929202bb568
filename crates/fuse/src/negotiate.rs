//! What a connection will be like: the kernel's offer and our wishes go in, the answer to INIT
//! comes out. Pure.
//!
//! Every flag we accept is accepted here, with its reason. Combinations that must never occur are
//! refused here, too: truncation by OPEN with opens that are never sent (the truncation would be
//! lost), and a write-back cache with a size limit (a full file system would be noticed only after
//! write(2) succeeded).

use std::fmt;

use crate::options::{DataMode, MountOptions, OpenMode};
use crate::wire::flags::init;
use crate::wire::{self, Dialect, reply, request};

/// The most bytes of one READ or WRITE: 256 pages, the kernel's own limit.
pub const MAX_TRANSFER_BYTES: u32 = 1 << 20;
/// How many requests the kernel sends on its own account (readahead, write-back, RELEASE) at a
/// time.
const MAX_BACKGROUND: u16 = 64;
const PAGE_BYTES: u32 = 4096;

/// What we would like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wishes {
    /// ACLs are enforced by the kernel and inherited by the engine.
    pub acl: bool,
    /// Where data goes.
    pub data: DataMode,
    /// How opens are answered.
    pub open: OpenMode,
    /// Keep written data in the kernel for a while.
    pub writeback: bool,
    /// The most bytes of one WRITE; see [`MountOptions::max_write_bytes`].
    pub max_write_bytes: Option<u32>,
    /// The upper has a size limit.
    pub limited: bool,
    /// Requests may come over io_uring: rings are available here.
    pub rings: bool,
}

impl Wishes {
    /// Returns what `options` ask for; `limited` says whether the upper has a size limit, `rings`
    /// whether rings are available.
    pub fn of(options: &MountOptions, limited: bool, rings: bool) -> Wishes {
        Wishes {
            acl: options.acl,
            data: options.data,
            open: options.open,
            writeback: options.writeback,
            max_write_bytes: options.max_write_bytes,
            limited,
            rings,
        }
    }
}

/// What was agreed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreed {
    /// The reply to INIT.
    pub reply: reply::Init,
    /// How requests are laid out.
    pub dialect: Dialect,
    /// OPEN is answered ENOSYS once, and never sent again.
    pub no_open: bool,
    /// The same for OPENDIR.
    pub no_opendir: bool,
    /// Opens may name a backing file.
    pub passthrough: bool,
    /// Clearing setuid, setgid and capabilities is left to us.
    pub kill_privileges: bool,
    /// ACLs are enforced by the kernel.
    pub acl: bool,
    /// The kernel keeps written data for a while.
    pub writeback: bool,
    /// Requests come over io_uring, except for those that take no reply.
    pub rings: bool,
}

/// Why a connection is impossible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The kernel speaks another protocol, or an old one.
    #[error(
        "the kernel speaks FUSE {major}.{minor}; {}.{} or newer is needed (Linux 5.1)",
        wire::MAJOR,
        wire::OLDEST_MINOR
    )]
    Version {
        /// Its major version.
        major: u32,
        /// Its minor version.
        minor: u32,
    },
    /// Passthrough was requested and the kernel lacks it.
    #[error("the kernel lacks FUSE passthrough (Linux 6.9 with CONFIG_FUSE_PASSTHROUGH)")]
    NoPassthrough,
}

/// Decides everything that INIT decides.
pub fn negotiate(offer: &request::Init, wishes: Wishes) -> Result<Agreed, Refused> {
    if offer.major != wire::MAJOR || offer.minor < wire::OLDEST_MINOR {
        return Err(Refused::Version {
            major: offer.major,
            minor: offer.minor,
        });
    }
    let passthrough = wishes.data == DataMode::Passthrough;
    if passthrough && offer.flags & init::PASSTHROUGH == 0 {
        return Err(Refused::NoPassthrough);
    }
    // Not ASYNC_DIO: the kernel drops neither cached pages nor cached times when an asynchronous
    // direct write has ended, so a concurrent read through the cache would leave old bytes in it
    // for ever. Dropping them from here before the reply would take a thread that may wait for
    // READs, and a reply sent by another thread, which io_uring does not allow. The cost is in
    // docs/overlay.md.
    let mut want = init::ASYNC_READ
        | init::BIG_WRITES
        | init::MAX_PAGES
        | init::INIT_EXT
        // Lookups and listings in parallel: the engine has its own locks.
        | init::PARALLEL_DIROPS
        // Always, not only when the kernel guesses so (READDIRPLUS_AUTO): then it asks only for the
        // first names of a directory, and looks up each of the others by itself, which takes ten
        // times as long as sending them together.
        | init::DO_READDIRPLUS
        | init::CACHE_SYMLINKS
        // The umask and a default ACL are applied by the engine, in one place.
        | init::DONT_MASK
        // No other process writes the upper, so what is cached stays true.
        | init::EXPLICIT_INVAL_DATA
        // Without it every write is preceded by a GETXATTR of security.capability.
        | init::HANDLE_KILLPRIV_V2
        | init::SETXATTR_EXT
        | init::HAS_IOCTL_DIR
        | init::DIRECT_IO_ALLOW_MMAP
        | init::ABORT_ERROR
        | init::NO_OPENDIR_SUPPORT;
    if wishes.acl {
        want |= init::POSIX_ACL;
    }
    // A connection-wide promise never to send OPEN rules out looking at each one.
    if !passthrough && wishes.open == OpenMode::Free {
        want |= init::NO_OPEN_SUPPORT;
    }
    if passthrough {
        want |= init::PASSTHROUGH;
    }
    if wishes.writeback && !wishes.limited && !passthrough {
        want |= init::WRITEBACK_CACHE;
    }
    // The kernel offers it only where its administrator allows it (module parameter enable_uring).
    if wishes.rings {
        want |= init::OVER_IO_URING;
    }
    let flags = want & offer.flags;
    let has = |flag: u64| flags & flag != 0;
    Ok(Agreed::of(reply::Init {
        minor: offer.minor.min(wire::MINOR),
        max_readahead_bytes: offer.max_readahead_bytes.max(128 << 10),
        flags,
        max_background: MAX_BACKGROUND,
        congestion_threshold: MAX_BACKGROUND / 4 * 3,
        max_write_bytes: max_write(wishes, has(init::MAX_PAGES)),
        time_granularity_ns: 1,
        max_pages: (MAX_TRANSFER_BYTES / PAGE_BYTES) as u16,
        max_stack_depth: u32::from(has(init::PASSTHROUGH)),
    }))
}

/// Returns the most bytes of one WRITE. A kernel that can't be told a number of pages takes 32.
fn max_write(wishes: Wishes, many_pages: bool) -> u32 {
    let most = match many_pages {
        true => MAX_TRANSFER_BYTES,
        false => 32 * PAGE_BYTES,
    };
    let wished = wishes.max_write_bytes.unwrap_or(most);
    (wished / PAGE_BYTES * PAGE_BYTES).clamp(PAGE_BYTES, most)
}

impl Agreed {
    /// Returns what this reply to INIT means: everything agreed follows from it.
    pub fn of(reply: reply::Init) -> Agreed {
        let has = |flag: u64| reply.flags & flag != 0;
        Agreed {
            reply,
            dialect: Dialect {
                setxattr_ext: has(init::SETXATTR_EXT),
            },
            no_open: has(init::NO_OPEN_SUPPORT),
            no_opendir: has(init::NO_OPENDIR_SUPPORT),
            passthrough: has(init::PASSTHROUGH),
            kill_privileges: has(init::HANDLE_KILLPRIV_V2),
            acl: has(init::POSIX_ACL),
            writeback: has(init::WRITEBACK_CACHE),
            rings: has(init::OVER_IO_URING),
        }
    }
}

impl fmt::Display for Agreed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "FUSE {}.{} flags {:#x}",
            wire::MAJOR,
            self.reply.minor,
            self.reply.flags
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERYTHING: request::Init = request::Init {
        major: 7,
        minor: 45,
        max_readahead_bytes: 128 << 10,
        flags: u64::MAX,
    };

    fn wishes() -> Wishes {
        Wishes {
            acl: true,
            data: DataMode::Coherent,
            open: OpenMode::Free,
            writeback: false,
            max_write_bytes: None,
            limited: false,
            rings: true,
        }
    }

    fn every_wish() -> Vec<Wishes> {
        let mut all = Vec::new();
        for data in [DataMode::Coherent, DataMode::Passthrough] {
            for open in [OpenMode::Free, OpenMode::Checked] {
                for bits in 0..16 {
                    all.push(Wishes {
                        acl: bits & 1 != 0,
                        data,
                        open,
                        writeback: bits & 2 != 0,
                        max_write_bytes: None,
                        limited: bits & 4 != 0,
                        rings: bits & 8 != 0,
                    });
                }
            }
        }
        all
    }

    #[test]
    fn zero_message_open_never_goes_with_truncation_by_open() {
        for wishes in every_wish() {
            let flags = negotiate(&EVERYTHING, wishes).unwrap().reply.flags;
            assert_eq!(flags & init::ATOMIC_O_TRUNC, 0, "{wishes:?}");
        }
    }

    #[test]
    fn with_a_size_limit_there_is_no_writeback_cache() {
        for wishes in every_wish() {
            let flags = negotiate(&EVERYTHING, wishes).unwrap().reply.flags;
            if wishes.limited || !wishes.writeback {
                assert_eq!(flags & init::WRITEBACK_CACHE, 0, "{wishes:?}");
            }
        }
    }

    #[test]
    fn passthrough_looks_at_every_open() {
        for wishes in every_wish() {
            let agreed = negotiate(&EVERYTHING, wishes).unwrap();
            assert!(!(agreed.passthrough && agreed.no_open), "{wishes:?}");
            assert_eq!(agreed.passthrough, agreed.reply.max_stack_depth > 0);
        }
    }

    #[test]
    fn a_direct_write_is_complete_when_it_is_answered() {
        for wishes in every_wish() {
            let flags = negotiate(&EVERYTHING, wishes).unwrap().reply.flags;
            assert_eq!(flags & init::ASYNC_DIO, 0, "{wishes:?}");
        }
    }

    #[test]
    fn locks_are_left_to_the_kernel() {
        const POSIX_LOCKS: u64 = 1 << 1;
        const FLOCK_LOCKS: u64 = 1 << 10;
        for wishes in every_wish() {
            let flags = negotiate(&EVERYTHING, wishes).unwrap().reply.flags;
            assert_eq!(flags & (POSIX_LOCKS | FLOCK_LOCKS), 0);
        }
    }

    #[test]
    fn the_usual_connection_has_these_flags() {
        let agreed = negotiate(&EVERYTHING, wishes()).unwrap();
        for flag in [
            init::ASYNC_READ,
            init::PARALLEL_DIROPS,
            init::DO_READDIRPLUS,
            init::POSIX_ACL,
            init::DONT_MASK,
            init::CACHE_SYMLINKS,
            init::NO_OPEN_SUPPORT,
            init::NO_OPENDIR_SUPPORT,
            init::HANDLE_KILLPRIV_V2,
            init::SETXATTR_EXT,
        ] {
            assert_ne!(agreed.reply.flags & flag, 0, "{flag:#x}");
        }
        assert_eq!(agreed.reply.max_write_bytes, 1 << 20);
        let noacl = Wishes {
            acl: false,
            ..wishes()
        };
        let agreed = negotiate(&EVERYTHING, noacl).unwrap();
        assert_eq!(agreed.reply.flags & init::POSIX_ACL, 0);
    }

    #[test]
    fn the_write_size_is_clamped_to_the_limits() {
        let few_pages = request::Init {
            flags: !init::MAX_PAGES,
            ..EVERYTHING
        };
        for (wished, agreed, with_few) in [
            (None, 1 << 20, 128 << 10),
            (Some(0), 4096, 4096),
            (Some(4095), 4096, 4096),
            (Some(10_000), 8192, 8192),
            (Some(65_536), 65_536, 65_536),
            (Some(u32::MAX), 1 << 20, 128 << 10),
        ] {
            let wishes = Wishes {
                max_write_bytes: wished,
                ..wishes()
            };
            for (offer, bytes) in [(&EVERYTHING, agreed), (&few_pages, with_few)] {
                let reply = negotiate(offer, wishes).unwrap().reply;
                assert_eq!(reply.max_write_bytes, bytes, "{wished:?}");
            }
        }
    }

    #[test]
    fn only_offered_flags_are_accepted() {
        for wishes in every_wish() {
            for flags in [0, init::PASSTHROUGH, init::NO_OPEN_SUPPORT] {
                let offer = request::Init {
                    flags,
                    ..EVERYTHING
                };
                match negotiate(&offer, wishes) {
                    Ok(agreed) => assert_eq!(agreed.reply.flags & !flags, 0),
                    Err(refused) => assert_eq!(refused, Refused::NoPassthrough),
                }
            }
        }
        let old = request::Init {
            minor: 12,
            ..EVERYTHING
        };
        let refused = negotiate(&old, wishes()).unwrap_err();
        assert!(matches!(refused, Refused::Version { minor: 12, .. }));
    }
}
