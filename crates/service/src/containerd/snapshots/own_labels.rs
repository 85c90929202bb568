//! Vellum's own labels on the client's snapshots, which no client sees, sets or changes.

use vellum_store::{Info, LabelChange, Labels};

/// The prefix of their names. On disk.
macro_rules! prefix {
    () => {
        "vellum.containerd/"
    };
}
pub(super) use prefix;

fn is_own(name: &str) -> bool {
    name.starts_with(prefix!())
}

/// Returns a client's labels without those that it must not set.
pub(super) fn strip(mut labels: Labels) -> Labels {
    labels.retain(|name, _| !is_own(name));
    labels
}

/// Removes our labels from what the client sees.
pub(super) fn hide(info: &mut Info) {
    info.labels.retain(|name, _| !is_own(name));
}

/// Returns a client's changes with our labels kept as they are now.
pub(super) fn protect(changes: &[LabelChange], now: &Info) -> Vec<LabelChange> {
    let mut changes: Vec<LabelChange> = changes
        .iter()
        .filter_map(|change| match change {
            LabelChange::Replace(labels) => Some(LabelChange::Replace(strip(labels.clone()))),
            LabelChange::Set(name, _) if is_own(name) => None,
            LabelChange::Set(..) => Some(change.clone()),
        })
        .collect();
    let ours = now.labels.iter().filter(|(name, _)| is_own(name));
    changes.extend(ours.map(|(name, value)| LabelChange::Set(name.clone(), value.clone())));
    changes
}
