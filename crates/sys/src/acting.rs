//! Creates things as another user, from the first moment.
//!
//! New files belong to the thread's file system ids. So a thread that takes a caller's ids before
//! it creates a file needs no second step, and a crash never leaves a file with the wrong owner.
//! The capabilities stay: a securebit keeps the kernel from dropping them when the id is not
//! root's, so the thread may still write where the caller may not. Whether the caller may was
//! decided elsewhere. The umask is the thread's own, too.
//!
//! All of this is per thread. A thread that was ever here has its own working directory and umask
//! (`unshare(CLONE_FS)`), and the securebit `NO_SETUID_FIXUP`; its children inherit that.

use std::cell::Cell;
use std::marker::PhantomData;

use rustix::io::Errno;

use crate::{Error, Result};

/// The user that creates things.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Maker {
    /// Owner of what is created, in this process's user namespace.
    pub uid: u32,
    /// Group, unless the directory sets its own.
    pub gid: u32,
    /// Bits to leave out of modes, unless the directory has a default ACL.
    pub umask: u32,
}

/// What is known about this thread.
#[derive(Debug, Clone, Copy)]
struct Thread {
    own_uid: u32,
    own_gid: u32,
    /// Whether other ids can be taken.
    free: bool,
}

thread_local! {
    static THREAD: Cell<Option<Thread>> = const { Cell::new(None) };
}

/// While it lives, this thread creates things as another user. Don't nest.
#[derive(Debug)]
pub struct Acting {
    uid_changed: bool,
    gid_changed: bool,
    /// The umask before.
    umask: Option<u32>,
    /// Ids belong to the thread they were taken in.
    not_send: PhantomData<*const ()>,
}

/// Returns whether [`act`] would work with these ids, without switching to them: they are this
/// thread's own, or it has the privilege to switch.
pub fn possible(uid: u32, gid: u32) -> Result<bool> {
    let thread = thread()?;
    Ok(thread.free || (uid, gid) == (thread.own_uid, thread.own_gid))
}

/// Lets this thread create things as `maker` until the value is dropped.
///
/// Errors: EPERM without CAP_SETUID, CAP_SETGID or CAP_SETPCAP in this user namespace, or if an id
/// is not mapped in it; then nothing has changed.
pub fn act(maker: Maker) -> Result<Acting> {
    let thread = thread()?;
    let refused = || Error::new("act as another user in", "this thread", Errno::PERM);
    let mut acting = Acting {
        uid_changed: false,
        gid_changed: false,
        umask: None,
        not_send: PhantomData,
    };
    if (maker.uid, maker.gid) != (thread.own_uid, thread.own_gid) {
        if !thread.free {
            return Err(refused());
        }
        // The group first, as with setgid and setuid; on failure `acting` restores what was
        // changed.
        if maker.gid != thread.own_gid {
            acting.gid_changed = true;
            if set_fs_gid(maker.gid) != maker.gid {
                return Err(refused());
            }
        }
        if maker.uid != thread.own_uid {
            acting.uid_changed = true;
            if set_fs_uid(maker.uid) != maker.uid {
                return Err(refused());
            }
        }
    }
    acting.umask = Some(set_umask(maker.umask));
    Ok(acting)
}

impl Drop for Acting {
    fn drop(&mut self) {
        if let Some(umask) = self.umask {
            set_umask(umask);
        }
        if let Some(thread) = THREAD.get() {
            if self.uid_changed {
                set_fs_uid(thread.own_uid);
            }
            if self.gid_changed {
                set_fs_gid(thread.own_gid);
            }
        }
    }
}

/// Learns about this thread and gives it its own umask, once.
fn thread() -> Result<Thread> {
    if let Some(thread) = THREAD.get() {
        return Ok(thread);
    }
    // SAFETY: unshare takes a number. CLONE_FS gives this thread a copy of root, working directory
    // and umask, which no memory refers to; no thread of this process relies on sharing them
    // (module documentation).
    if unsafe { libc::unshare(libc::CLONE_FS) } != 0 {
        let source = std::io::Error::last_os_error();
        return Err(Error::new("unshare the umask of", "this thread", source));
    }
    let thread = Thread {
        own_uid: set_fs_uid(u32::MAX),
        own_gid: set_fs_gid(u32::MAX),
        free: keep_capabilities(),
    };
    THREAD.set(Some(thread));
    Ok(thread)
}

/// Sets the file system user id, and returns the one in force afterwards. All ones changes nothing.
fn set_fs_uid(uid: u32) -> u32 {
    if uid != u32::MAX {
        // SAFETY: takes a number and changes the calling thread's credentials only (glibc does not
        // spread this one).
        unsafe { libc::setfsuid(uid) };
    }
    // SAFETY: as above; an invalid id changes nothing and returns the one in force. The call has no
    // other way to fail.
    unsafe { libc::setfsuid(u32::MAX) as u32 }
}

/// As [`set_fs_uid`], for the group.
fn set_fs_gid(gid: u32) -> u32 {
    if gid != u32::MAX {
        // SAFETY: takes a number and changes the calling thread's credentials only (glibc does not
        // spread this one).
        unsafe { libc::setfsgid(gid) };
    }
    // SAFETY: as above; an invalid id changes nothing and returns the one in force. The call has no
    // other way to fail.
    unsafe { libc::setfsgid(u32::MAX) as u32 }
}

/// Sets the umask and returns the one before.
fn set_umask(mask: u32) -> u32 {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(mask & 0o777)).as_raw_mode()
}

/// Makes this thread keep its capabilities when its ids change. False if it may not, or has none to
/// keep.
fn keep_capabilities() -> bool {
    use rustix::thread::{
        CapabilitiesSecureBits, CapabilitySet, capabilities, capabilities_secure_bits,
        set_capabilities_secure_bits,
    };
    let needed = CapabilitySet::SETUID
        | CapabilitySet::SETGID
        | CapabilitySet::DAC_OVERRIDE
        | CapabilitySet::FOWNER;
    let Ok(sets) = capabilities(None) else {
        return false;
    };
    if !sets.effective.contains(needed) {
        return false;
    }
    let Ok(bits) = capabilities_secure_bits() else {
        return false;
    };
    let kept = CapabilitiesSecureBits::NO_SETUID_FIXUP;
    bits.contains(kept) || set_capabilities_secure_bits(bits | kept).is_ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    /// In a separate thread, so that its changes don't spread.
    fn aside(what: impl FnOnce() + Send + 'static) {
        std::thread::spawn(what).join().unwrap();
    }

    #[test]
    fn new_files_belong_to_the_caller_at_once() {
        if !vellum_testkit::needs_root("acting as another user") {
            return;
        }
        aside(|| {
            let tmp = tempfile::tempdir().unwrap();
            let dir = crate::Dir::open(tmp.path()).unwrap();
            let maker = Maker {
                uid: 61_001,
                gid: 61_002,
                umask: 0o027,
            };
            let acting = act(maker).unwrap();
            // A directory that only root may write to: the capabilities are still there.
            let file = dir.create_file("f", 0o666).unwrap();
            dir.mkdir("d", 0o777).unwrap();
            drop(acting);
            let made = file.metadata().unwrap();
            assert_eq!(
                (made.uid(), made.gid(), made.mode() & 0o7777),
                (61_001, 61_002, 0o640)
            );
            assert_eq!(dir.stat("d").unwrap().mode, 0o750);
            dir.create_file("root's", 0o666).unwrap();
            let stat = dir.stat("root's").unwrap();
            assert_eq!((stat.uid, stat.gid), (0, 0));
            assert_ne!(stat.mode, 0o640);
        });
    }

    #[test]
    fn other_threads_notice_nothing() {
        aside(|| {
            let before = std::fs::read_to_string("/proc/self/status").unwrap();
            let own = thread().unwrap();
            let maker = Maker {
                uid: own.own_uid,
                gid: own.own_gid,
                umask: 0o777,
            };
            assert!(possible(maker.uid, maker.gid).unwrap());
            let acting = act(maker).unwrap();
            let after = std::fs::read_to_string("/proc/self/status").unwrap();
            let mask = |text: &str| {
                let line = text.lines().find(|line| line.starts_with("Umask"));
                line.map(str::to_owned)
            };
            assert_eq!(mask(&before), mask(&after));
            drop(acting);
        });
    }

    #[test]
    fn an_invalid_id_is_refused() {
        aside(|| {
            let maker = Maker {
                uid: u32::MAX,
                gid: u32::MAX,
                umask: 0,
            };
            assert!(act(maker).is_err());
            let own = thread().unwrap();
            assert_eq!(set_fs_uid(u32::MAX), own.own_uid);
        });
    }
}
