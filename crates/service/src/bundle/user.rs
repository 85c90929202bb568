//! From `USER[:GROUP]` and a tree's `passwd` and `group` files to numbers. Pure.
//!
//! As Docker does it: names are looked up, numbers stand for themselves and need no entry; the groups that list the user's name are added,
//! unless a group is given.

/// Who a process runs as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct User {
    pub uid: u32,
    pub gid: u32,
    pub additional_gids: Vec<u32>,
    /// Home directory, if the tree knows the user.
    pub home: Option<String>,
}

struct Entry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// Errors with one line if a name is in neither file.
pub(crate) fn resolve(text: &str, passwd: &[u8], group: &[u8]) -> Result<User, String> {
    let passwd = String::from_utf8_lossy(passwd);
    let group = String::from_utf8_lossy(group);
    let (user, wanted_group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|g| !g.is_empty())),
        None => (text, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number = user.parse::<u32>().ok();
    let entry = users(&passwd)
        .find(|e| e.name == user)
        .or_else(|| users(&passwd).find(|e| Some(e.uid) == number));
    let mut found = match (&entry, number) {
        (Some(entry), _) => User {
            uid: entry.uid,
            gid: entry.gid,
            home: (!entry.home.is_empty()).then(|| entry.home.to_owned()),
            additional_gids: Vec::new(),
        },
        (None, Some(uid)) => User {
            uid,
            ..User::default()
        },
        (None, None) => {
            return Err(format!(
                "there is no user `{user}` in the container's /etc/passwd"
            ));
        }
    };
    match wanted_group {
        Some(name) => {
            found.gid = groups(&group)
                .find(|(group, ..)| *group == name)
                .map(|(_, gid, _)| gid)
                .or_else(|| name.parse().ok())
                .ok_or_else(|| {
                    format!("there is no group `{name}` in the container's /etc/group")
                })?;
        }
        None => {
            if let Some(entry) = entry {
                found.additional_gids = groups(&group)
                    .filter(|(_, gid, members)| {
                        *gid != found.gid && members.split(',').any(|m| m == entry.name)
                    })
                    .map(|(_, gid, _)| gid)
                    .collect();
            }
        }
    }
    Ok(found)
}

fn users(text: &str) -> impl Iterator<Item = Entry<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
        Some(Entry {
            name,
            uid,
            gid,
            home: fields.nth(1).unwrap_or_default(),
        })
    })
}

fn groups(text: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some((name, gid, fields.next().unwrap_or_default()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:,,,:/srv/app:/bin/sh\nbroken\n7:x:8:8::/seven:\n\xff:x:1:1::/:\n";
    const GROUP: &[u8] =
        b"root:x:0:\nteam:x:50:app,other\nextra:x:60:other,app\napp:x:1001:app\nodd:x:70:xapp\n";

    #[track_caller]
    fn check(text: &str, expect: (u32, u32, &[u32], Option<&str>)) {
        let user = resolve(text, PASSWD, GROUP).unwrap();
        assert_eq!(
            (
                user.uid,
                user.gid,
                &user.additional_gids[..],
                user.home.as_deref()
            ),
            expect,
            "{text}"
        );
    }

    #[test]
    fn names_and_numbers() {
        check("", (0, 0, &[], Some("/root")));
        check("app", (1000, 1001, &[50, 60], Some("/srv/app")));
        check("1000", (1000, 1001, &[50, 60], Some("/srv/app")));
        check("app:", (1000, 1001, &[50, 60], Some("/srv/app")));
        check("app:team", (1000, 50, &[], Some("/srv/app")));
        check("1000:12", (1000, 12, &[], Some("/srv/app")));
        check("4242", (4242, 0, &[], None));
        check("4242:4243", (4242, 4243, &[], None));
        // A name made of digits is a name first.
        check("7", (8, 8, &[], Some("/seven")));
        assert!(resolve("nobody", PASSWD, GROUP).is_err());
        assert!(resolve("app:nogroup", PASSWD, GROUP).is_err());
        assert_eq!(resolve("5", b"", b"").unwrap().uid, 5);
    }
}
