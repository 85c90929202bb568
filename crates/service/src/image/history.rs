//! `history`: which step of a build created which layer.

use super::stored;
use crate::context::Context;
use crate::error::Result;

/// One step of an image's history.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct HistoryEntry {
    /// When (RFC 3339), if the image tells.
    pub created: Option<String>,
    /// The command or instruction.
    pub created_by: Option<String>,
    /// A remark.
    pub comment: Option<String>,
    /// The layer it created; `None` for a step that changed only the configuration.
    pub diff_id: Option<String>,
    /// That layer's size on disk.
    pub size_bytes: u64,
}

/// Returns the history, newest step first. Layers that the history doesn't mention are listed too.
pub fn history(context: &Context, image: &str) -> Result<Vec<HistoryEntry>> {
    let store = context.store()?;
    crate::names::with_image(context, image, |record| {
        let config = stored::config(store, record)?;
        let mut layers = record.layers.iter();
        let mut entries = Vec::new();
        for step in &config.history {
            let layer = if step.empty_layer {
                None
            } else {
                layers.next()
            };
            entries.push(HistoryEntry {
                created: step.created.clone(),
                created_by: said(&step.created_by),
                comment: said(&step.comment),
                diff_id: layer.map(|l| l.diff_id.to_string()),
                size_bytes: match layer {
                    Some(layer) => store.usage(&layer.snapshot)?.bytes,
                    None => 0,
                },
            });
        }
        for layer in layers {
            entries.push(HistoryEntry {
                diff_id: Some(layer.diff_id.to_string()),
                size_bytes: store.usage(&layer.snapshot)?.bytes,
                ..HistoryEntry::default()
            });
        }
        entries.reverse();
        Ok(entries)
    })
}

fn said(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}
