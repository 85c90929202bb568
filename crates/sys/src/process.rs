//! What this process may do to a tree, as far as its user and user namespace decide.
//!
//! Read once, after the process has entered the namespaces it works in, and passed on as a value.
//! Two readings in one command could not differ, but each is a system call, and a function that
//! reads it by itself can't be tested with another answer.

use vellum_format::Prefix;

use crate::userns;

/// This process, or an invented one in a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// The effective user id in its user namespace.
    pub uid: u32,
    /// Its user namespace is the first, where ids are not mapped, and devices and `trusted.*`
    /// attributes are available.
    pub in_first_namespace: bool,
}

impl Process {
    /// Asks the kernel.
    pub fn read() -> Process {
        Process {
            uid: rustix::process::geteuid().as_raw(),
            in_first_namespace: userns::is_initial(),
        }
    }

    /// Returns whether this is the machine's root, and not only root in a user namespace.
    pub fn is_root(self) -> bool {
        self.uid == 0 && self.in_first_namespace
    }

    /// Returns the namespace of the marks that this process's mounts write. `trusted.*` exists for
    /// root only: to any other user such an attribute isn't there.
    pub fn prefix(self) -> Prefix {
        match self.is_root() {
            true => Prefix::Trusted,
            false => Prefix::User,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_namespaces_root_is_root_and_only_its_marks_are_trusted() {
        let check = |uid, in_first_namespace, is_root, prefix| {
            let process = Process {
                uid,
                in_first_namespace,
            };
            assert_eq!((process.is_root(), process.prefix()), (is_root, prefix));
        };
        check(0, true, true, Prefix::Trusted);
        check(1000, true, false, Prefix::User);
        check(0, false, false, Prefix::User);
        check(1000, false, false, Prefix::User);
    }
}
