//! Owners inside the union and outside, on disk. Pure.
//!
//! A mapping is strict: an id has its counterpart, or the request fails with
//! [`Refusal::UnmappedId`]. No id is ever replaced by the daemon's own, or by "nobody". Squashing
//! comes last when owners are shown (every file shows the one owner), and alone when they are
//! stored (every new file belongs to that owner).

use vellum_format::{IdRun, ids};

use crate::engine::options::{Holds, IdRules, ReaderIds};
use crate::{Refusal, Result};

impl IdRules {
    /// Returns whether ids are the same on both sides.
    pub fn are_plain(&self) -> bool {
        *self == IdRules::default()
    }

    /// Returns the user to show for one on disk.
    pub fn uid_shown(&self, stored: u32) -> Result<u32> {
        shown(&self.uids, self.squash_uid, stored)
    }

    /// Returns the group to show for one on disk.
    pub fn gid_shown(&self, stored: u32) -> Result<u32> {
        shown(&self.gids, self.squash_gid, stored)
    }

    /// As the two above, but an id without a counterpart shows as it is if other ids are mapped to
    /// it. This is for the union's root directory: Podman creates the upper directory with the
    /// inside owner, not the one on disk, and changes its owner through the mount afterwards.
    pub fn shown_or_itself(&self, uid: u32, gid: u32) -> Result<(u32, u32)> {
        let or_itself = |shown: Result<u32>, runs: &[IdRun], id| match shown {
            Err(_) if stored(runs, None, id).is_ok() => Ok(id),
            shown => shown,
        };
        Ok((
            or_itself(self.uid_shown(uid), &self.uids, uid)?,
            or_itself(self.gid_shown(gid), &self.gids, gid)?,
        ))
    }

    /// Returns user and group to show to a reader that maps them back by these rules, and takes an
    /// id without a counterpart as the one on disk.
    ///
    /// An unmapped id shows as it is. If it would be mapped back to another id, it shows as an id
    /// that has no counterpart.
    pub fn shown_to_reader(&self, uid: u32, gid: u32) -> (u32, u32) {
        let show = |runs: &[IdRun], id| match shown(runs, None, id) {
            Ok(shown) => shown,
            Err(_) if stored(runs, None, id).is_err() => id,
            Err(_) => unmapped_id(runs),
        };
        (show(&self.uids, uid), show(&self.gids, gid))
    }

    /// Returns the user to store for one given by a user of the union.
    pub fn uid_stored(&self, inside: u32) -> Result<u32> {
        stored(&self.uids, self.squash_uid, inside)
    }

    /// Returns the group to store for one given by a user of the union.
    pub fn gid_stored(&self, inside: u32) -> Result<u32> {
        stored(&self.gids, self.squash_gid, inside)
    }

    /// Returns user and group to store for files that these create; for unmapped ids see
    /// [`IdRules::strangers`].
    pub fn maker_stored(&self, uid: u32, gid: u32) -> Result<(u32, u32)> {
        let or_nobody = |own: Result<u32>, runs: &[IdRun]| match (own, self.strangers) {
            (Err(error), Some(nobody)) => match shown(runs, None, nobody) {
                Ok(_) => Ok(nobody),
                Err(_) => last_stored(runs).ok_or(error),
            },
            (own, _) => own,
        };
        Ok((
            or_nobody(self.uid_stored(uid), &self.uids)?,
            or_nobody(self.gid_stored(gid), &self.gids)?,
        ))
    }

    /// Returns the user to store for one in an ACL: squashing does not apply.
    pub fn acl_uid_stored(&self, inside: u32) -> Result<u32> {
        stored(&self.uids, None, inside)
    }

    /// Returns the group to store for one in an ACL.
    pub fn acl_gid_stored(&self, inside: u32) -> Result<u32> {
        stored(&self.gids, None, inside)
    }

    /// Returns the user to show for one in a stored ACL.
    pub fn acl_uid_shown(&self, outside: u32) -> Result<u32> {
        shown(&self.uids, None, outside)
    }

    /// Returns the group to show for one in a stored ACL.
    pub fn acl_gid_shown(&self, outside: u32) -> Result<u32> {
        shown(&self.gids, None, outside)
    }
}

impl ReaderIds {
    /// Returns user and group to show for these in the layer with this number.
    pub fn shown(&self, layer: usize, uid: u32, gid: u32) -> Result<(u32, u32)> {
        match self.layers.get(layer).unwrap_or(&Holds::Outside) {
            Holds::Inside => Ok((uid, gid)),
            Holds::Outside => Ok(self.rules.shown_to_reader(uid, gid)),
            Holds::Both => self.rules.shown_or_itself(uid, gid),
        }
    }
}

/// The xattr with a program's capabilities.
pub(crate) const CAPABILITY: &str = "security.capability";

/// Returns a capability xattr with its root user mapped. Only version 3 has one.
pub(crate) fn map_capability(value: &[u8], map: impl Fn(u32) -> Result<u32>) -> Result<Vec<u8>> {
    let mut mapped = value.to_vec();
    // Magic and version, two pairs of bit sets, then the user; all numbers least significant byte
    // first.
    if let Ok(parts) = <&mut [u8; 24]>::try_from(&mut mapped[..])
        && parts[3] == 3
    {
        let [.., a, b, c, d] = *parts;
        parts[20..].copy_from_slice(&map(u32::from_le_bytes([a, b, c, d]))?.to_le_bytes());
    }
    Ok(mapped)
}

fn shown(runs: &[IdRun], squash: Option<u32>, id: u32) -> Result<u32> {
    match squash {
        Some(squash) => Ok(squash),
        None => map(runs, id, ids::inside_of),
    }
}

fn stored(runs: &[IdRun], squash: Option<u32>, id: u32) -> Result<u32> {
    match squash {
        Some(squash) => Ok(squash),
        None => map(runs, id, ids::outside_of),
    }
}

/// Returns the last mapped id on disk.
fn last_stored(runs: &[IdRun]) -> Option<u32> {
    let ends = runs
        .iter()
        .filter_map(|run| run.outside.checked_add(run.count.saturating_sub(1)));
    ends.filter(|&id| shown(runs, None, id).is_ok()).max()
}

/// Returns an id on the inside that has no counterpart.
fn unmapped_id(runs: &[IdRun]) -> u32 {
    const NOBODY: u32 = 65_534;
    let ends = runs.iter().map(|run| run.inside.saturating_add(run.count));
    let free = |id: &u32| *id != u32::MAX && stored(runs, None, *id).is_err();
    // If all ids are mapped, no unmapped one can be mistaken for another's.
    [NOBODY]
        .into_iter()
        .chain(ends)
        .find(free)
        .unwrap_or(NOBODY)
}

/// Maps to the other side; without runs both sides are the same.
fn map(runs: &[IdRun], id: u32, other: fn(&[IdRun], u32) -> Option<u32>) -> Result<u32> {
    // All ones is never a valid id.
    let found = match runs.is_empty() {
        true => Some(id),
        false if id == u32::MAX => None,
        false => other(runs, id),
    };
    found
        .filter(|&id| id != u32::MAX)
        .ok_or_else(|| Refusal::UnmappedId.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    fn rules() -> IdRules {
        let runs = vec![
            IdRun {
                inside: 0,
                outside: 1000,
                count: 1,
            },
            IdRun {
                inside: 1,
                outside: 100_000,
                count: 65_535,
            },
        ];
        IdRules {
            uids: runs.clone(),
            gids: runs,
            ..IdRules::default()
        }
    }

    #[test]
    fn runs_map_both_ways() {
        let rules = rules();
        for (inside, outside) in [(0, 1000), (1, 100_000), (65_535, 165_534)] {
            assert_eq!(rules.uid_stored(inside).unwrap(), outside);
            assert_eq!(rules.gid_shown(outside).unwrap(), inside);
        }
    }

    #[test]
    fn capabilities_of_a_namespace_name_its_root() {
        let mut version_3 = vec![1, 0, 0, 3];
        version_3.resize(24, 0);
        let stored = map_capability(&version_3, |id| rules().uid_stored(id)).unwrap();
        assert_eq!(stored[20..], 1000u32.to_le_bytes());
        let shown = map_capability(&stored, |id| rules().uid_shown(id)).unwrap();
        assert_eq!(shown, version_3);
        assert!(map_capability(&version_3, |id| rules().uid_shown(id)).is_err());
        let version_2 = [&[1, 0, 0, 2][..], &[0; 16]].concat();
        let same = map_capability(&version_2, |_| unreachable!("names nobody"));
        assert_eq!(same.unwrap(), version_2);
    }

    #[test]
    fn ids_without_a_counterpart_are_refused() {
        let unmapped = |result: Result<u32>| {
            matches!(
                result,
                Err(Error::Refused {
                    refusal: Refusal::UnmappedId
                })
            )
        };
        assert!(unmapped(rules().uid_stored(65_536)));
        assert!(unmapped(rules().uid_shown(0)));
        assert!(unmapped(rules().uid_shown(999)));
        assert!(unmapped(IdRules::default().uid_stored(u32::MAX)));
        let far = IdRun {
            inside: 5,
            outside: u32::MAX - 1,
            count: 10,
        };
        let far = IdRules {
            uids: vec![far],
            ..IdRules::default()
        };
        assert_eq!(far.uid_stored(5).unwrap(), u32::MAX - 1);
        assert!(unmapped(far.uid_stored(6)));
        assert!(unmapped(far.uid_stored(7)));
    }

    #[test]
    fn the_root_may_have_the_inside_owner() {
        // On disk 1000 and 100,000 onwards; shown 0 onwards.
        assert_eq!(rules().shown_or_itself(1000, 100_000).unwrap(), (0, 1));
        assert_eq!(rules().shown_or_itself(0, 5).unwrap(), (0, 5));
        assert!(rules().shown_or_itself(70_000, 0).is_err());
        assert!(rules().shown_or_itself(0, u32::MAX).is_err());
    }

    #[test]
    fn a_reader_that_maps_back_confuses_no_ids() {
        // On disk 1000 and 100,000 onwards; shown 0 onwards.
        let rules = rules();
        assert_eq!(rules.shown_to_reader(1000, 100_000), (0, 1));
        // No id is mapped to 70,000, so the reader takes it as it is.
        assert_eq!(rules.shown_to_reader(70_000, 90_000), (70_000, 90_000));
        // 5 on disk is not mapped, and the reader would map it to 100,004.
        let (uid, gid) = rules.shown_to_reader(5, 0);
        assert!(rules.uid_stored(uid).is_err(), "{uid}");
        assert!(rules.gid_stored(gid).is_err(), "{gid}");
    }

    #[test]
    fn files_of_unmapped_users_belong_to_nobody_if_the_rules_say_so() {
        assert!(rules().maker_stored(70_000, 0).is_err());
        let mut rules = rules();
        rules.strangers = Some(165_533);
        assert_eq!(rules.maker_stored(70_000, 1).unwrap(), (165_533, 100_000));
        // 65,534 is not mapped here, so the last mapped id is used.
        rules.strangers = Some(65_534);
        assert_eq!(rules.maker_stored(70_000, 1).unwrap(), (165_534, 100_000));
    }

    #[test]
    fn without_runs_ids_stay_and_squashing_wins() {
        assert_eq!(IdRules::default().uid_stored(7).unwrap(), 7);
        let squash = IdRules {
            squash_uid: Some(0),
            ..rules()
        };
        assert_eq!(squash.uid_shown(999).unwrap(), 0);
        assert_eq!(squash.uid_stored(65_536).unwrap(), 0);
        assert_eq!(squash.acl_uid_stored(0).unwrap(), 1000);
        assert_eq!(squash.gid_stored(0).unwrap(), 1000);
    }
}
