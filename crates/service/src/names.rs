//! From what a user types to a record: names, ids, and unique beginnings of ids.
//!
//! A full name always wins over the beginning of an id. What fits several is an error that lists some of them.

use vellum_image::Reference;
use vellum_store::{ContainerRecord, ImageRecord, StoreError, Subject};

use crate::context::Context;
use crate::error::{Error, Kind, Result};

/// How many hexadecimal digits of an id listings show.
pub const SHORT_ID: usize = 12;

/// Returns the beginning of an id as listings show it, without the algorithm.
pub fn short(id: &str) -> &str {
    let hex = id.strip_prefix("sha256:").unwrap_or(id);
    hex.get(..SHORT_ID).unwrap_or(hex)
}

/// Returns a snapshot's key as listings show it: ids shortened, other programs' own keys whole but for the digests in them.
pub fn short_key(key: &str) -> String {
    if !key.contains(['/', ' ']) {
        return short(key).to_owned();
    }
    let mut shown = String::new();
    for part in key.split_inclusive("sha256:") {
        let digits = part.bytes().take_while(u8::is_ascii_hexdigit).count();
        match digits {
            64 => {
                shown.push_str(&part[..SHORT_ID]);
                shown.push_str(&part[digits..]);
            }
            _ => shown.push_str(part),
        }
    }
    shown
}

/// Returns a stored image name as people write it.
pub fn familiar(name: &str) -> String {
    Reference::parse(name).map_or_else(|_| name.to_owned(), |reference| reference.familiar())
}

/// Returns the image that `text` names: `debian:12`, a full reference, or the beginning of its id.
pub fn image(ctx: &Context, text: &str) -> Result<ImageRecord> {
    let store = ctx.store()?;
    if let Ok(reference) = Reference::parse(text) {
        for name in [reference.to_string(), reference.familiar()] {
            if let Some(id) = store.resolve_tag(&name)? {
                return Ok(store.image(&id)?);
            }
        }
    }
    let hex = text.strip_prefix("sha256:").unwrap_or(text);
    let mut ids = store.images_by_prefix(hex)?;
    match ids.len() {
        1 => Ok(store.image(&ids.remove(0))?),
        0 => Err(Error::NotFound {
            kind: Kind::Image,
            name: text.to_owned(),
        }),
        _ => Err(ambiguous(
            Kind::Image,
            text,
            ids.iter().map(ToString::to_string),
        )),
    }
}

/// Returns the container that `text` names: its name, its id, or the beginning of its id.
pub fn container(ctx: &Context, text: &str) -> Result<ContainerRecord> {
    let store = ctx.store()?;
    match store.container(text) {
        Ok(found) => return Ok(found),
        Err(StoreError::NotFound {
            subject: Subject::Container,
            ..
        }) => {}
        Err(e) => return Err(e.into()),
    }
    let missing = || Error::NotFound {
        kind: Kind::Container,
        name: text.to_owned(),
    };
    if text.is_empty()
        || !text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    {
        return Err(missing());
    }
    let mut fits: Vec<_> = store
        .containers()?
        .into_iter()
        .filter(|c| c.id.starts_with(text))
        .collect();
    match fits.len() {
        0 => Err(missing()),
        1 => Ok(fits.remove(0)),
        _ => Err(ambiguous(
            Kind::Container,
            text,
            fits.iter().map(|c| c.name.clone()),
        )),
    }
}

fn ambiguous(kind: Kind, name: &str, matches: impl Iterator<Item = String>) -> Error {
    Error::Ambiguous {
        kind,
        name: name.to_owned(),
        matches: matches.take(5).collect(),
    }
}

/// Errors unless `name` can name a container, by Docker's rule.
pub fn check_container_name(name: &str) -> Result<()> {
    let mut bytes = name.bytes();
    let good = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
        && bytes.len() >= 1
        && bytes.all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
    if good {
        Ok(())
    } else {
        Err(Error::Invalid {
            what: format!("`{name}` can't name a container"),
            hint: Some(
                "two or more letters, digits, `_`, `.` and `-`, beginning with a letter or digit"
                    .into(),
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn container_names_follow_dockers_rule() {
        for good in ["ab", "box", "a.b_c-d", "0x"] {
            assert!(check_container_name(good).is_ok(), "{good}");
        }
        for bad in ["", "a", "-a", ".a", "a/b", "a b", "ä1"] {
            assert!(check_container_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn short_ids_lose_the_algorithm() {
        assert_eq!(short("sha256:0123456789abcdef"), "0123456789ab");
        assert_eq!(short("abc"), "abc");
    }

    #[test]
    fn keys_of_other_programs_stay_apart() {
        let digest = format!("sha256:{}", "0123456789abcdef".repeat(4));
        assert_eq!(short_key(&digest), "0123456789ab");
        assert_eq!(
            short_key("containerd/default/69/c5"),
            "containerd/default/69/c5"
        );
        let key = format!("containerd/two/1/extract-5-W2ka {digest} x");
        let shown = "containerd/two/1/extract-5-W2ka sha256:0123456789ab x";
        assert_eq!(short_key(&key), shown);
        assert_eq!(
            short_key("containerd/a/sha256:12é"),
            "containerd/a/sha256:12é"
        );
    }
}
