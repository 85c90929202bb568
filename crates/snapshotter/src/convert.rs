//! Converts messages of containerd's API to values of `service` and back. Pure functions.
//!
//! Times are sent as recorded, to the nanosecond. Times in requests are ignored, because clients
//! send zero times with an update.

use vellum_service::containerd::snapshots::{MountEntry, NewSnapshot};
use vellum_store::{Info, LabelChange, Labels, SnapshotKind};

use crate::api::services::snapshots::v1 as wire;
use crate::api::types::Mount;

/// A field mask that names something other than labels.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot update {0:?} of a snapshot: only labels can be changed")]
pub struct Unchangeable(pub String);

/// Returns the snapshot to create. An empty parent means none.
pub fn new_snapshot(
    key: String,
    parent: String,
    labels: std::collections::BTreeMap<String, String>,
) -> NewSnapshot {
    NewSnapshot {
        key,
        parent: some(parent),
        labels,
    }
}

/// Returns a text, or `None` if it is empty, which is how the API writes absence.
pub fn some(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

/// Returns the mounts as a message.
pub fn mounts(entries: Vec<MountEntry>) -> Vec<Mount> {
    entries
        .into_iter()
        .map(|entry| Mount {
            r#type: entry.kind,
            source: entry.source,
            target: entry.target,
            options: entry.options,
        })
        .collect()
}

/// Returns a snapshot's record as a message.
pub fn info(info: Info) -> wire::Info {
    wire::Info {
        // Keys came in as text, so this loses nothing.
        name: info.key.to_text(),
        parent: info
            .parent
            .map(|parent| parent.to_text())
            .unwrap_or_default(),
        kind: match info.kind {
            SnapshotKind::View => wire::Kind::View,
            SnapshotKind::Active => wire::Kind::Active,
            SnapshotKind::Committed => wire::Kind::Committed,
        } as i32,
        created_at: Some(time(info.created)),
        updated_at: Some(time(info.updated)),
        labels: info.labels,
    }
}

fn time(at: jiff::Timestamp) -> prost_types::Timestamp {
    let nanos = at.as_nanosecond();
    // Seconds round down and nanoseconds count up, before 1970 too.
    prost_types::Timestamp {
        seconds: nanos.div_euclid(1_000_000_000) as i64,
        nanos: nanos.rem_euclid(1_000_000_000) as i32,
    }
}

/// Returns what an update changes. An empty mask means all labels; an empty value deletes a
/// label.
pub fn changes(labels: Labels, mask: &[String]) -> Result<Vec<LabelChange>, Unchangeable> {
    if mask.is_empty() {
        return Ok(vec![LabelChange::Replace(labels)]);
    }
    mask.iter()
        .map(|path| match (path.as_str(), path.strip_prefix("labels.")) {
            ("labels", _) => Ok(LabelChange::Replace(labels.clone())),
            (_, Some(label)) => Ok(LabelChange::Set(
                label.to_owned(),
                labels.get(label).cloned().unwrap_or_default(),
            )),
            _ => Err(Unchangeable(path.clone())),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_keep_their_nanoseconds() {
        let check = |text: &str, seconds, nanos| {
            let expect = prost_types::Timestamp { seconds, nanos };
            assert_eq!(time(text.parse().unwrap()), expect);
        };
        check("2001-09-09T01:46:40.123456789Z", 1_000_000_000, 123_456_789);
        check("1969-12-31T23:59:59.999999999Z", -1, 999_999_999);
    }

    #[test]
    fn masks_name_labels_and_nothing_else() {
        let labels = Labels::from([("a".to_owned(), "1".to_owned())]);
        let mask = |paths: &[&str]| {
            let paths: Vec<_> = paths.iter().map(|p| p.to_string()).collect();
            changes(labels.clone(), &paths)
        };
        let all = || LabelChange::Replace(labels.clone());
        let set = |k: &str, v: &str| LabelChange::Set(k.into(), v.into());
        assert_eq!(mask(&[]), Ok(vec![all()]));
        assert_eq!(mask(&["labels"]), Ok(vec![all()]));
        assert_eq!(
            mask(&["labels.a", "labels.b.c"]),
            Ok(vec![set("a", "1"), set("b.c", "")])
        );
        assert_eq!(
            mask(&["labels.a", "parent"]),
            Err(Unchangeable("parent".into()))
        );
        assert_eq!(mask(&["labelsa"]), Err(Unchangeable("labelsa".into())));
    }
}
