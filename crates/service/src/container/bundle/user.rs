//! Resolves `USER[:GROUP]` to ids, with a tree's `passwd` and `group` files. Pure.
//!
//! As Docker does it: a number is an id and never a name, whatever `passwd` calls its users
//! (CVE-2016-3697); a name is looked up; the groups that list the user are added, unless a group is
//! given; and the primary group is one of the supplementary ones, so that a file that its group may
//! *not* read stays closed (CVE-2022-36109).
//!
//! Docker reads a malformed number in `passwd` or `group` as 0, which is root; here such a line is
//! ignored.

use std::collections::BTreeSet;

/// The ids that a process runs with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct User {
    pub uid: u32,
    pub gid: u32,
    /// Sorted, without duplicates.
    pub additional_gids: Vec<u32>,
    /// Home directory as bytes, if the tree knows the user; may be empty.
    pub home: Option<Vec<u8>>,
}

/// The largest id that Docker, containerd and runc accept; beyond it, programs disagree on the
/// sign.
const MAX_ID: u32 = i32::MAX as u32;
/// No honest user is in more. Old runtimes compare each one with each line of `group`.
const MAX_GROUPS: usize = 4096;

/// A user or group as requested.
enum Wanted<'a> {
    Id(u32),
    Name(&'a [u8]),
}

impl<'a> Wanted<'a> {
    /// A text that looks like a number is an id or an error: it is never looked up as a name.
    fn parse(text: &'a str) -> Result<Option<Self>, String> {
        if text.is_empty() {
            return Ok(None);
        }
        let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Ok(Some(Self::Name(text.as_bytes())));
        }
        match text.parse::<i64>().map(u32::try_from) {
            Ok(Ok(id)) if id <= MAX_ID => Ok(Some(Self::Id(id))),
            _ => Err(format!(
                "`{text}` is not a user or group id: they go from 0 to {MAX_ID}"
            )),
        }
    }
}

struct Entry<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: &'a [u8],
}

struct Group<'a> {
    name: &'a [u8],
    gid: u32,
    members: &'a [u8],
}

/// Fails with one line: for a number that is not an id, a name that is in neither file, or too many
/// groups.
///
/// Anything after a second colon is ignored, as in other programs.
pub(crate) fn resolve(text: &str, passwd: &[u8], group: &[u8]) -> Result<User, String> {
    let mut words = text.split(':');
    let wanted_user = Wanted::parse(words.next().unwrap_or_default())?;
    let wanted_group = Wanted::parse(words.next().unwrap_or_default())?;
    let entry = match &wanted_user {
        None => users(passwd).find(|e| e.uid == 0),
        Some(Wanted::Id(id)) => users(passwd).find(|e| e.uid == *id),
        Some(Wanted::Name(name)) => {
            let found = users(passwd).find(|e| e.name == *name);
            Some(found.ok_or_else(|| missing("user", name, "/etc/passwd"))?)
        }
    };
    let mut found = match (&entry, &wanted_user) {
        (Some(entry), _) => User {
            uid: entry.uid,
            gid: entry.gid,
            home: Some(entry.home.to_vec()),
            additional_gids: Vec::new(),
        },
        (None, Some(Wanted::Id(uid))) => User {
            uid: *uid,
            ..User::default()
        },
        (None, _) => User::default(),
    };
    let mut gids = BTreeSet::new();
    match (&wanted_group, &entry) {
        (Some(Wanted::Id(id)), _) => found.gid = *id,
        (Some(Wanted::Name(name)), _) => {
            found.gid = groups(group)
                .find(|g| g.name == *name)
                .ok_or_else(|| missing("group", name, "/etc/group"))?
                .gid;
        }
        (None, Some(entry)) if !entry.name.is_empty() => {
            gids.extend(
                groups(group)
                    .filter(|g| g.members.split(|b| *b == b',').any(|m| m == entry.name))
                    .map(|g| g.gid),
            );
        }
        (None, _) => {}
    }
    gids.insert(found.gid);
    if gids.len() > MAX_GROUPS {
        return Err(format!(
            "the user `{text}` is in {} groups of the container's /etc/group; at most {MAX_GROUPS} are allowed",
            gids.len()
        ));
    }
    leave_out_named(&mut gids, group);
    found.additional_gids = gids.into_iter().collect();
    Ok(found)
}

/// Removes the ids that are also the *name* of a group with another id.
///
/// runc before 1.3 looks up each supplementary id in the container's `group`, also by name: a group
/// called `500` with the id 0 would put root's group in the place of group 500.
fn leave_out_named(gids: &mut BTreeSet<u32>, group: &[u8]) {
    for entry in groups(group) {
        let number = std::str::from_utf8(entry.name).ok().and_then(|name| {
            let id = name.parse::<u32>().ok()?;
            (id.to_string() == name).then_some(id)
        });
        if number.is_some_and(|id| id != entry.gid) {
            gids.retain(|gid| Some(*gid) != number);
        }
    }
}

fn missing(kind: &str, name: &[u8], file: &str) -> String {
    let name = String::from_utf8_lossy(name);
    let name = name.escape_debug();
    format!("there is no {kind} `{name}` in the container's {file}")
}

/// The lines with content, without the surrounding blanks; a `\r` at the end is a blank.
fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|b| *b == b'\n')
        .map(|line| line.trim_ascii())
        .filter(|line| !line.is_empty() && line[0] != b'#')
}

/// Parses an id in a file; it may be larger than a user can ask for, but not -1, which means
/// "unchanged".
fn id(field: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(field).ok()?;
    text.parse().ok().filter(|id| *id != u32::MAX)
}

fn users(text: &[u8]) -> impl Iterator<Item = Entry<'_>> {
    lines(text).filter_map(|line| {
        let mut fields = line.split(|b| *b == b':');
        let name = fields.next()?;
        let (uid, gid) = (id(fields.nth(1)?)?, id(fields.next()?)?);
        Some(Entry {
            name,
            uid,
            gid,
            home: fields.nth(1).unwrap_or_default(),
        })
    })
}

fn groups(text: &[u8]) -> impl Iterator<Item = Group<'_>> {
    lines(text).filter_map(|line| {
        let mut fields = line.split(|b| *b == b':');
        let name = fields.next()?;
        let gid = id(fields.nth(1)?)?;
        Some(Group {
            name,
            gid,
            members: fields.next().unwrap_or_default(),
        })
    })
}

#[cfg(test)]
mod tests;
