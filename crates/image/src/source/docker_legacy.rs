//! What `docker save` wrote before Docker 1.10: directories named by an image's old ID, each with
//! one layer (`layer.tar`) and what was known then (`json`).
//!
//! A file `repositories` names images; each has its parent's layers below its own. There were no
//! diff IDs and no configuration in today's sense. So the layers are read once to be hashed, and a
//! configuration is composed from the topmost `json`, as Docker 20.10 does when it loads such an
//! archive. The result is always the same, but its ID is not the one that Docker computes. The
//! format is Docker's `image/spec/v1.md`.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use vellum_format::Digest;
use vellum_sys::Cancel;

use super::archive::Archive;
use super::tags::parse_tags;
use super::{SourceError, SourceImage};
use crate::config::ImageConfig;
use crate::json::{self, Words};
use crate::limits::Limits;
use crate::manifest::{MAX_CONFIG_BYTES, MAX_LAYERS, MAX_MANIFEST_BYTES, read, read_first};
use crate::stream::LayerStream;

/// An image of such an archive, and the files of its layers, bottom first.
pub(super) type LegacyImage = (SourceImage, Vec<String>);

/// The content of one directory's `json`.
#[derive(Clone, Debug, Default)]
struct Old {
    parent: String,
    created: Option<String>,
    author: String,
    comment: String,
    container_config: Made,
}

json::fields!(Old {
    "parent" => parent,
    "created" => created,
    "author" => author,
    "comment" => comment,
    "container_config" => container_config,
});

#[derive(Clone, Debug, Default)]
struct Made {
    cmd: Words,
}

json::fields!(Made { "Cmd" => cmd });

/// Returns the images that the archive's `repositories` names.
///
/// Errors if it names something missing, an image is its own ancestor, or a layer can't be read.
pub(super) fn images(archive: &Archive) -> Result<Vec<LegacyImage>, SourceError> {
    let raw = archive.read("repositories", "repositories", MAX_MANIFEST_BYTES)?;
    let repositories: BTreeMap<String, BTreeMap<String, String>> =
        read_first("repositories", &raw)?;
    let mut tags: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, of_name) in repositories {
        for (tag, id) in of_name {
            tags.entry(id).or_default().push(format!("{name}:{tag}"));
        }
    }
    let mut diff_ids = BTreeMap::new();
    let named = tags.into_iter();
    named
        .map(|(id, tags)| image(archive, &id, tags, &mut diff_ids))
        .collect()
}

/// Returns one image; `diff_ids` are those of the layers known so far, by the names of their files.
fn image(
    archive: &Archive,
    id: &str,
    tags: Vec<String>,
    diff_ids: &mut BTreeMap<String, Digest>,
) -> Result<LegacyImage, SourceError> {
    let mut chain = Vec::new();
    let mut next = id.to_owned();
    while !next.is_empty() {
        if chain.len() == MAX_LAYERS {
            let why = format!("image {id} has itself or thousands of others as ancestors");
            return Err(SourceError::Malformed(why));
        }
        let what = "the image's old configuration";
        let raw = archive.read(&format!("{next}/json"), what, MAX_CONFIG_BYTES)?;
        let old: Old = read(what, &raw)?;
        let parent = old.parent.clone();
        chain.push((next, old, raw));
        next = parent;
    }
    let top: Value = match chain.first() {
        Some((_, _, raw)) => read("the image's old configuration", raw)?,
        None => return Err(SourceError::Malformed("repositories names no image".into())),
    };
    let (mut layers, mut history, mut of_layers) = (Vec::new(), Vec::new(), Vec::new());
    for (id, old, _) in chain.into_iter().rev() {
        let file = format!("{id}/layer.tar");
        let diff_id = match diff_ids.get(&file) {
            Some(known) => *known,
            None => hashed(archive, &file)?,
        };
        diff_ids.insert(file.clone(), diff_id);
        of_layers.push(diff_id);
        layers.push(file);
        history.push(old.step());
    }
    let mut fields = match top {
        Value::Object(fields) => fields,
        _ => Map::new(),
    };
    for stale in ["id", "parent", "Size", "parent_id", "layer_id", "throwaway"] {
        fields.retain(|name, _| !json::same_but_for_case(stale, name));
    }
    fields.insert(
        "rootfs".into(),
        json!({"type": "layers", "diff_ids": of_layers}),
    );
    fields.insert("history".into(), history.into());
    let config = ImageConfig::parse(Value::Object(fields).to_string().into_bytes())?;
    let (names, odd_names) = parse_tags(tags);
    let image = SourceImage {
        odd_names,
        ..SourceImage::new(config, None, names)?
    };
    Ok((image, layers))
}

impl Old {
    fn step(self) -> Value {
        let mut step = Map::new();
        let said = [
            ("created", self.created.unwrap_or_default()),
            ("author", self.author),
            ("created_by", self.container_config.cmd.0.join(" ")),
            ("comment", self.comment),
        ];
        step.extend(
            said.into_iter()
                .filter(|(_, text)| !text.is_empty())
                .map(|(name, text)| (name.to_owned(), text.into())),
        );
        Value::Object(step)
    }
}

fn hashed(archive: &Archive, file: &str) -> Result<Digest, SourceError> {
    let blob = Box::new(archive.open(file)?);
    let mut stream = LayerStream::open(blob, &Limits::default(), &Cancel::default())?;
    loop {
        let taken = stream.chunk()?.len();
        if taken == 0 {
            return Ok(stream.finish()?.diff_id);
        }
        std::io::BufRead::consume(&mut stream, taken);
    }
}
