//! POSIX ACLs in xattr form: reading, writing, inheriting, and mapping their ids. Pure.
//!
//! A file created directly in its directory inherits the directory's default ACL from the file
//! system. A file staged in the work directory and moved into place gets it from here, by the same
//! rules (`posix_acl_create` in the kernel's `fs/posix_acl.c`; acl(5)).

use crate::{Refusal, Result};

/// The xattr of a file's own ACL.
pub const ACCESS: &str = "system.posix_acl_access";

/// The xattr of the ACL that new entries of a directory inherit.
pub const DEFAULT: &str = "system.posix_acl_default";

/// The number the kernel shows for an id that is not mapped in the user namespace.
const NOBODY: u32 = u32::MAX;

/// The only version.
const VERSION: u32 = 2;

/// The subject of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// The owner.
    Owner,
    /// This user.
    User(u32),
    /// The file's group.
    OwningGroup,
    /// This group.
    Group(u32),
    /// The most that users and groups get.
    Mask,
    /// All others.
    Others,
}

/// One entry: a subject and three permission bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AclEntry {
    /// The subject.
    pub who: Who,
    /// Read 4, write 2, execute 1.
    pub allowed: u32,
}

impl AclEntry {
    fn is_strange(&self) -> bool {
        matches!(self.who, Who::User(NOBODY) | Who::Group(NOBODY))
    }
}

/// An ACL: entries in the order of the xattr.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acl(pub Vec<AclEntry>);

/// What a new file inherits from its directory's default ACL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inherited {
    /// The mode, 12 bits.
    pub mode: u32,
    /// The ACL, if it says more than the mode.
    pub access: Option<Acl>,
}

impl Acl {
    /// Parses the value of an ACL xattr. Errors: [`Refusal::Invalid`] if it is malformed.
    pub fn parse(value: &[u8]) -> Result<Acl> {
        let (version, entries) = value.split_first_chunk::<4>().ok_or(Refusal::Invalid)?;
        if u32::from_le_bytes(*version) != VERSION || !entries.len().is_multiple_of(8) {
            return Err(Refusal::Invalid.into());
        }
        let entry = |bytes: &[u8]| {
            let tag = u16::from_le_bytes([bytes[0], bytes[1]]);
            let allowed = u32::from(u16::from_le_bytes([bytes[2], bytes[3]]));
            let id = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
            let who = match tag {
                0x01 => Who::Owner,
                0x02 => Who::User(id),
                0x04 => Who::OwningGroup,
                0x08 => Who::Group(id),
                0x10 => Who::Mask,
                0x20 => Who::Others,
                _ => return Err(Refusal::Invalid.into()),
            };
            match allowed {
                0..=7 => Ok(AclEntry { who, allowed }),
                _ => Err(Refusal::Invalid.into()),
            }
        };
        entries
            .chunks_exact(8)
            .map(entry)
            .collect::<Result<_>>()
            .map(Acl)
    }

    /// Returns the xattr's value.
    pub fn encode(&self) -> Vec<u8> {
        let mut value = VERSION.to_le_bytes().to_vec();
        for entry in &self.0 {
            let (tag, id): (u16, u32) = match entry.who {
                Who::Owner => (0x01, u32::MAX),
                Who::User(id) => (0x02, id),
                Who::OwningGroup => (0x04, u32::MAX),
                Who::Group(id) => (0x08, id),
                Who::Mask => (0x10, u32::MAX),
                Who::Others => (0x20, u32::MAX),
            };
            value.extend_from_slice(&tag.to_le_bytes());
            value.extend_from_slice(&(entry.allowed as u16).to_le_bytes());
            value.extend_from_slice(&id.to_le_bytes());
        }
        value
    }

    /// Returns the ACL with the ids of users and groups mapped. Errors as the functions do.
    pub fn map_ids(
        &self,
        user: impl Fn(u32) -> Result<u32>,
        group: impl Fn(u32) -> Result<u32>,
    ) -> Result<Acl> {
        let map = |entry: &AclEntry| {
            let who = match entry.who {
                Who::User(id) => Who::User(user(id)?),
                Who::Group(id) => Who::Group(group(id)?),
                other => other,
            };
            Ok(AclEntry { who, ..*entry })
        };
        self.0.iter().map(map).collect::<Result<_>>().map(Acl)
    }

    /// Returns what a file created with `mode` inherits in a directory with this default ACL. The
    /// umask doesn't apply.
    pub fn inherit(&self, mode: u32) -> Inherited {
        let has_mask = self.0.iter().any(|entry| entry.who == Who::Mask);
        let mut shown = mode & 0o777;
        let mut says_more = has_mask;
        let mut entries = self.0.clone();
        for entry in &mut entries {
            // The three bits of the mode that correspond to the entry.
            let shift = match entry.who {
                Who::Owner => 6,
                Who::Mask => 3,
                Who::OwningGroup if !has_mask => 3,
                Who::Others => 0,
                Who::OwningGroup => continue,
                Who::User(_) | Who::Group(_) => {
                    says_more = true;
                    continue;
                }
            };
            entry.allowed &= mode >> shift;
            shown &= entry.allowed << shift | !(7 << shift);
        }
        Inherited {
            mode: mode & !0o777 | shown,
            access: says_more.then_some(Acl(entries)),
        }
    }

    /// Returns the ACL after the file's mode is set: the mode decides about owner, mask and others.
    pub fn with_mode(&self, mode: u32) -> Acl {
        let has_mask = self.0.iter().any(|entry| entry.who == Who::Mask);
        let set = |entry: &AclEntry| {
            let shift = match entry.who {
                Who::Owner => 6,
                Who::Mask => 3,
                Who::OwningGroup if !has_mask => 3,
                Who::Others => 0,
                _ => return *entry,
            };
            AclEntry {
                allowed: mode >> shift & 7,
                ..*entry
            }
        };
        Acl(self.0.iter().map(set).collect())
    }

    /// Returns the ACL without entries of users and groups that are not mapped in this process's
    /// user namespace.
    pub fn of_known(&self) -> Acl {
        let known = self.0.iter().filter(|entry| !entry.is_strange());
        Acl(known.copied().collect())
    }

    /// As [`Acl::of_known`]; `None` if one of the removed would then be allowed more.
    pub fn without_unmapped(&self) -> Option<Acl> {
        let of = |who| {
            let entry = self.0.iter().find(|entry| entry.who == who);
            entry.map(|entry| entry.allowed)
        };
        let mask = of(Who::Mask).unwrap_or(7);
        // What a user without an entry gets: as a member of the file's group, or as one of all
        // others.
        let others = of(Who::Others).unwrap_or(0);
        let left = others | of(Who::OwningGroup).unwrap_or(0) & mask;
        let loses = |entry: &AclEntry| left & !(entry.allowed & mask) == 0;
        let mut strange = self.0.iter().filter(|entry| entry.is_strange());
        strange.all(loses).then(|| self.of_known())
    }

    /// Returns the nine permission bits that a file with this ACL shows.
    pub fn shown_mode(&self) -> u32 {
        let of = |who| {
            let entry = self.0.iter().find(|entry| entry.who == who);
            entry.map(|entry| entry.allowed)
        };
        let group = of(Who::Mask).or(of(Who::OwningGroup)).unwrap_or(0);
        of(Who::Owner).unwrap_or(0) << 6 | group << 3 | of(Who::Others).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(Who, u32)]) -> Acl {
        let entry = |&(who, allowed): &(Who, u32)| AclEntry { who, allowed };
        Acl(entries.iter().map(entry).collect())
    }

    #[test]
    fn unmapped_entries_are_dropped_if_that_grants_nothing() {
        let base = [
            (Who::Owner, 6),
            (Who::OwningGroup, 4),
            (Who::Mask, 6),
            (Who::Others, 4),
        ];
        let with = |strange: &[(Who, u32)]| acl(&[&base[..1], strange, &base[1..]].concat());
        let known = acl(&base);
        for granted in [4, 6, 7] {
            let user = with(&[(Who::User(NOBODY), granted), (Who::User(NOBODY), 4)]);
            assert_eq!(user.without_unmapped(), Some(known.clone()), "{granted}");
        }
        assert_eq!(
            with(&[(Who::Group(NOBODY), 4)]).without_unmapped(),
            Some(known.clone())
        );
        // The entry denies what all others may do.
        for granted in [0, 1, 2, 3] {
            assert_eq!(
                with(&[(Who::User(NOBODY), granted)]).without_unmapped(),
                None,
                "{granted}"
            );
        }
        let own = with(&[(Who::User(7), 0)]);
        assert_eq!(own.without_unmapped(), Some(own.clone()));
    }

    #[test]
    fn the_kernels_layout() {
        let acl = acl(&[
            (Who::Owner, 7),
            (Who::User(1000), 6),
            (Who::OwningGroup, 5),
            (Who::Mask, 7),
            (Who::Others, 0),
        ]);
        let value = acl.encode();
        assert_eq!(value.len(), 44);
        assert_eq!(value[..12], [2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255]);
        assert_eq!(value[12..20], [2, 0, 6, 0, 232, 3, 0, 0]);
        assert_eq!(Acl::parse(&value).unwrap(), acl);
        for bad in [
            &value[..3],
            &value[..5],
            &[1, 0, 0, 0],
            &[2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0],
        ] {
            assert!(Acl::parse(bad).is_err());
        }
    }

    #[track_caller]
    fn check(default: &[(Who, u32)], mode: u32, shown: u32, access: Option<&[(Who, u32)]>) {
        let inherited = acl(default).inherit(mode);
        assert_eq!(inherited.mode, shown, "{:o}", inherited.mode);
        assert_eq!(inherited.access, access.map(acl));
    }

    #[test]
    fn a_new_file_gets_only_what_both_the_mode_and_the_default_acl_allow() {
        use Who::*;
        let plain = [(Owner, 7), (OwningGroup, 5), (Others, 4)];
        check(&plain, 0o2666, 0o2644, None);
        check(&plain, 0o711, 0o710, None);
        let more = [
            (Owner, 7),
            (User(5), 7),
            (OwningGroup, 5),
            (Mask, 6),
            (Others, 1),
        ];
        let file = [
            (Owner, 6),
            (User(5), 7),
            (OwningGroup, 5),
            (Mask, 6),
            (Others, 0),
        ];
        check(&more, 0o666, 0o660, Some(&file));
        assert_eq!(acl(&file).shown_mode(), 0o660);
    }

    #[test]
    fn ids_are_mapped_or_refused() {
        let before = acl(&[(Who::Owner, 7), (Who::User(5), 6), (Who::Group(6), 6)]);
        let after = before
            .map_ids(|id| Ok(id + 1000), |id| Ok(id + 2000))
            .unwrap();
        assert_eq!(
            after,
            acl(&[(Who::Owner, 7), (Who::User(1005), 6), (Who::Group(2006), 6)])
        );
        assert!(
            before
                .map_ids(|_| Err(Refusal::UnmappedId.into()), Ok)
                .is_err()
        );
    }
}
