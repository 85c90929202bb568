//! Image names as Docker's archives list them.

use crate::reference::Reference;

/// Returns the references of an entry's tags, and the tags that are not references. Docker's
/// `<none>:<none>` counts as no tag, and no archive can claim a digest.
pub(super) fn parse_tags(tags: Vec<String>) -> (Vec<Reference>, Vec<String>) {
    let mut names = Vec::new();
    let mut odd = Vec::new();
    for tag in tags {
        match Reference::parse(&tag) {
            Ok(name) if names.contains(&name) => {}
            Ok(name) if name.digest().is_none() => names.push(name),
            Err(_) if tag.is_empty() || tag.contains("<none>") => {}
            _ => odd.push(tag),
        }
    }
    (names, odd)
}
