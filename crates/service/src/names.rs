//! Resolves what a user types to a record: by name, id, or unique beginning of an id.
//!
//! A full name always wins over the beginning of an id. Several matches are an error that lists
//! some of them.

use vellum_image::Reference;
pub use vellum_overlay::values::near;
use vellum_store::{ContainerRecord, ImageRecord, Store, StoreError, Subject};

use crate::context::Context;
use crate::error::{Error, ObjectKind, Result};

/// How many hexadecimal digits of an id are shown in listings.
pub const SHORT_ID: usize = 12;

/// Returns the beginning of an id as listings show it, without the algorithm.
pub fn short(id: &str) -> &str {
    let hex = id.strip_prefix("sha256:").unwrap_or(id);
    hex.get(..SHORT_ID).unwrap_or(hex)
}

/// Returns a snapshot's key as listings show it: ids are shortened; other programs' keys are whole,
/// except for the digests in them.
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
                return found(store.image(&id), text);
            }
        }
    }
    let hex = text.strip_prefix("sha256:").unwrap_or(text);
    let mut ids = store.images_by_prefix(hex)?;
    match ids.len() {
        1 => found(store.image(&ids.remove(0)), text),
        0 => Err(missing_image(ctx, text)),
        _ => Err(ambiguous(
            ObjectKind::Image,
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
    let missing = || missing_container(ctx, text);
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
            ObjectKind::Container,
            text,
            fits.iter().map(|c| c.name.clone()),
        )),
    }
}

/// Turns the absence of an image that was there a moment ago into `NotFound`.
fn found(image: vellum_store::Result<ImageRecord>, text: &str) -> Result<ImageRecord> {
    match image {
        Err(StoreError::NotFound { .. }) => Err(Error::NotFound {
            kind: ObjectKind::Image,
            name: text.to_owned(),
            meant: None,
        }),
        other => Ok(other?),
    }
}

/// Does `work` with the container that `text` names.
///
/// Another command may remove the container during `work`, which then fails with whatever it misses
/// first: a record, a tree, a file. So after a failure this checks whether the container still
/// exists; if not, the error is `NotFound`. Nothing is damaged.
pub fn with_container<T>(
    ctx: &Context,
    text: &str,
    work: impl FnOnce(&ContainerRecord) -> Result<T>,
) -> Result<T> {
    let record = container(ctx, text)?;
    work(&record).map_err(|error| unless_gone(ctx, &record, text, error))
}

/// Returns the error for a container called `text`: `error`, unless the container is gone.
pub fn unless_gone(ctx: &Context, record: &ContainerRecord, text: &str, error: Error) -> Error {
    match is_gone(ctx, record) {
        true => not_there(error, ObjectKind::Container, text),
        false => error,
    }
}

/// Fails with `NotFound` if a container called `text` is gone: what was read of its tree may be
/// incomplete.
///
/// Call it after reading, before using what was read.
pub fn still_there(ctx: &Context, record: &ContainerRecord, text: &str) -> Result<()> {
    match is_gone(ctx, record) {
        false => Ok(()),
        true => Err(Error::NotFound {
            kind: ObjectKind::Container,
            name: text.to_owned(),
            meant: None,
        }),
    }
}

/// Tells whether a container was removed since `record` was read. If that can't be told, it counts
/// as present.
pub fn is_gone(ctx: &Context, record: &ContainerRecord) -> bool {
    let now = ctx.store().map(|store| store.container(&record.id));
    matches!(now, Ok(Err(StoreError::NotFound { .. })))
}

/// Like [`with_container`], for an image. An image that was removed and created again also counts
/// as gone, since its layers are new.
pub fn with_image<T>(
    ctx: &Context,
    text: &str,
    work: impl FnOnce(&ImageRecord) -> Result<T>,
) -> Result<T> {
    let record = image(ctx, text)?;
    work(&record).map_err(|error| unless_image_gone(ctx, &record, text, error))
}

/// Like [`with_image`], for several images and work that looks them up itself.
pub fn with_images<T>(
    ctx: &Context,
    texts: &[String],
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let found = texts
        .iter()
        .map(|text| Ok((text, image(ctx, text)?)))
        .collect::<Result<Vec<_>>>()?;
    work().map_err(|error| {
        found.iter().fold(error, |error, (text, record)| {
            unless_image_gone(ctx, record, text, error)
        })
    })
}

/// Like [`unless_gone`], for an image.
pub fn unless_image_gone(ctx: &Context, record: &ImageRecord, text: &str, error: Error) -> Error {
    match is_image_gone(ctx, record) {
        true => not_there(error, ObjectKind::Image, text),
        false => error,
    }
}

/// Like [`is_gone`], for an image.
pub fn is_image_gone(ctx: &Context, record: &ImageRecord) -> bool {
    match ctx.store().map(|store| store.image(&record.id)) {
        Ok(Ok(now)) => now.added != record.added,
        Ok(Err(StoreError::NotFound { .. })) => true,
        _ => false,
    }
}

fn not_there(error: Error, kind: ObjectKind, text: &str) -> Error {
    match error {
        // Not an effect of the absence.
        Error::Cancelled => error,
        other => {
            tracing::debug!(error = %other, "{kind} {text} was removed in the meantime");
            Error::NotFound {
                kind,
                name: text.to_owned(),
                meant: None,
            }
        }
    }
}

/// Returns the error for a missing container, with what may have been meant.
fn missing_container(ctx: &Context, text: &str) -> Error {
    let meant = || {
        let store = ctx.store().ok()?;
        if is_image(store, text) {
            return Some(format!(
                "that is an image: `vellum create {text}` creates a container from it, `vellum mount --image {text} DIR` shows it, `vellum rmi {text}` removes it"
            ));
        }
        let names = store.containers().ok()?.into_iter().map(|found| found.name);
        near(text, names).map(|name| format!("did you mean `{name}`? `vellum ls` lists them"))
    };
    Error::NotFound {
        kind: ObjectKind::Container,
        name: text.to_owned(),
        meant: meant(),
    }
}

/// Returns the error for a missing image, with what may have been meant.
fn missing_image(ctx: &Context, text: &str) -> Error {
    let meant = || {
        let store = ctx.store().ok()?;
        if store.container(text).is_ok() {
            return Some(format!(
                "that is a container: `vellum run --container {text} COMMAND` runs in it, `vellum commit {text} NAME` creates an image from it, `vellum rm {text}` removes it"
            ));
        }
        let images = store.images().ok()?;
        let names = images.iter().flat_map(|image| &image.tags);
        let meant = match other_tags(text, names.clone()).as_slice() {
            [] => near(text, names.map(|name| familiar(name)))?,
            [tag] => tag.clone(),
            [some @ .., last] => {
                let some = &some[..some.len().min(2)];
                format!("{}` or `{last}", some.join("`, `"))
            }
        };
        Some(format!(
            "did you mean `{meant}`? `vellum images` lists them"
        ))
    };
    Error::NotFound {
        kind: ObjectKind::Image,
        name: text.to_owned(),
        meant: meant(),
    }
}

/// Returns the names, sorted, that differ from `text` in the tag alone.
fn other_tags<'a>(text: &str, names: impl Iterator<Item = &'a String>) -> Vec<String> {
    let parse = |text: &str| Reference::parse(text).ok();
    let Some(wanted) = parse(text).map(|wanted| wanted.familiar_name()) else {
        return Vec::new();
    };
    let mut others: Vec<_> = names
        .filter_map(|name| parse(name))
        .filter(|name| name.familiar_name() == wanted)
        .map(|name| name.familiar())
        .collect();
    others.sort_unstable();
    others
}

fn is_image(store: &Store, text: &str) -> bool {
    let Ok(reference) = Reference::parse(text) else {
        return false;
    };
    let mut names = [reference.to_string(), reference.familiar()].into_iter();
    names.any(|name| store.resolve_tag(&name).is_ok_and(|found| found.is_some()))
}

/// Tells whether a name matches a listing's filter: a part of the name, or a shell pattern.
pub fn fits(asked: &str, name: &str) -> bool {
    let is_pattern = asked.contains(['*', '?', '[']);
    match glob::Pattern::new(asked) {
        Ok(pattern) if is_pattern => pattern.matches(name),
        _ => name.contains(asked),
    }
}

fn ambiguous(kind: ObjectKind, name: &str, matches: impl Iterator<Item = String>) -> Error {
    Error::Ambiguous {
        kind,
        name: name.to_owned(),
        matches: matches.take(5).collect(),
    }
}

/// Fails unless `name` can name a container: Docker's rule, except that one letter is enough.
pub fn check_container_name(name: &str) -> Result<()> {
    let mut bytes = name.bytes();
    let good = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
        && bytes.all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
    if good {
        Ok(())
    } else {
        Err(Error::Invalid {
            what: format!("`{name}` can't name a container"),
            hint: Some(
                "letters, digits, `_`, `.` and `-`, beginning with a letter or digit".into(),
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn container_names_follow_dockers_rule() {
        for good in ["a", "7", "ab", "box", "a.b_c-d", "0x"] {
            assert!(check_container_name(good).is_ok(), "{good}");
        }
        for bad in ["", "-", "-a", ".a", "a/b", "a b", "ä1"] {
            assert!(check_container_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn listings_take_parts_and_patterns() {
        for (asked, fitting) in [
            ("eb", true),
            ("deb*", true),
            ("*:12", true),
            ("debian:1?", true),
            ("debian:[!0-9]*", false),
            ("eb*", false),
            ("[", false),
        ] {
            assert_eq!(fits(asked, "debian:12"), fitting, "{asked}");
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
