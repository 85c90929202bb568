//! The credentials of a thread that sent a request, as /proc shows them.
//!
//! For rare questions only: each one reads files of /proc. Sound while the thread waits for its
//! answer, since then it keeps its number and its rights.

use std::fs;
use std::os::unix::fs::MetadataExt;

/// CAP_SYS_ADMIN.
const SYS_ADMIN: u64 = 1 << 21;
/// CAP_FSETID: what it changes keeps setuid and setgid.
const FSETID: u64 = 1 << 4;
/// The number of the first user namespace, the same on every Linux (`PROC_USER_INIT_INO`).
const FIRST_USER_NAMESPACE: u64 = 0xefff_fffd;

/// Rights of a thread.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Credentials {
    /// Its groups, the one for files first, as this process's user namespace numbers them.
    groups: Vec<u32>,
    /// Effective capabilities, in its own user namespace.
    capabilities: u64,
    in_first_namespace: bool,
}

impl Credentials {
    /// Returns those of the thread `tid`, as numbered in this process's pid namespace; `None` if
    /// they can't be read.
    pub fn of_thread(tid: u32) -> Option<Credentials> {
        match tid {
            0 => None,
            _ => Credentials::read(&tid.to_string()),
        }
    }

    /// Returns this thread's own, if /proc is mounted.
    pub fn own() -> Option<Credentials> {
        Credentials::read("thread-self")
    }

    fn read(thread: &str) -> Option<Credentials> {
        let status = fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
        let mut credentials = Credentials::parse(&status)?;
        // Refused for threads with more rights than this process: they are assumed to have none.
        let namespace = fs::metadata(format!("/proc/{thread}/ns/user"));
        credentials.in_first_namespace =
            namespace.is_ok_and(|namespace| namespace.ino() == FIRST_USER_NAMESPACE);
        Some(credentials)
    }

    fn parse(status: &str) -> Option<Credentials> {
        let field = |name: &str| {
            let mut lines = status.lines();
            lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        };
        // Real, effective, saved, and the one for files.
        let own = field("Gid")?.split_whitespace().nth(3)?.parse().ok()?;
        let more = field("Groups")?.split_whitespace();
        let more = more.map(str::parse).collect::<Result<Vec<u32>, _>>().ok()?;
        Some(Credentials {
            groups: std::iter::once(own).chain(more).collect(),
            capabilities: u64::from_str_radix(field("CapEff")?.trim(), 16).ok()?,
            in_first_namespace: false,
        })
    }

    /// Returns whether its changes keep setuid and setgid: it has CAP_FSETID, which counts only in
    /// the first user namespace.
    pub fn keeps_privileges(&self) -> bool {
        self.in_first_namespace && self.capabilities & FSETID != 0
    }

    /// Returns whether it sees `trusted.*` attributes: it has CAP_SYS_ADMIN in the first user
    /// namespace.
    pub fn sees_trusted(&self) -> bool {
        self.in_first_namespace && self.capabilities & SYS_ADMIN != 0
    }

    /// Returns whether it may keep setgid on a file of this group that the group may not execute:
    /// as a member, or by CAP_FSETID.
    pub fn is_in_group(&self, gid: u32) -> bool {
        self.capabilities & FSETID != 0 || self.groups.contains(&gid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str =
        "Name:\tx Gid: 9\nGid:\t1\t2\t3\t4\nGroups:\t7 8 \nCapEff:\t0000000000000000\n";

    #[test]
    fn a_threads_groups_and_capabilities_are_read() {
        let plain = Credentials::parse(STATUS).unwrap();
        assert_eq!(plain.groups, [4, 7, 8]);
        assert!(plain.is_in_group(7) && !plain.is_in_group(2));
        let root = STATUS.replace("00000000\n", "00000010\n");
        let mut root = Credentials::parse(&root).unwrap();
        assert!(root.is_in_group(2) && !root.keeps_privileges());
        root.in_first_namespace = true;
        assert!(root.keeps_privileges() && !root.sees_trusted());
        let admin = STATUS.replace("0000000000000000\n", "0000000000200000\n");
        let mut admin = Credentials::parse(&admin).unwrap();
        assert!(!admin.sees_trusted());
        admin.in_first_namespace = true;
        assert!(admin.sees_trusted());
        assert_eq!(Credentials::parse("Gid:\t1\n"), None);
    }

    #[test]
    fn this_thread_is_known_and_no_thread_has_number_0() {
        let own = Credentials::own().unwrap();
        assert!(own.is_in_group(rustix::process::getegid().as_raw()));
        assert_eq!(Credentials::of_thread(0), None);
    }
}
