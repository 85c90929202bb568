//! `adopt`: imports the images of a Docker data root, reading them in place.
//!
//! Each layer is turned back into the tar it came as, and then loaded: its digest is compared with
//! the image's before anything is recorded. So a layer that was changed in the data root behind
//! Docker's back never becomes a layer here. The data root is never written to.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use vellum_image::source::docker_root::DockerRoot;
use vellum_image::source::{ImageSource, SourceImage};
use vellum_image::{LayerStream, Limits, Platform, Reference};
use vellum_sys::with_causes;

use super::parse_name;
use super::record::bring_in;
use crate::context::Context;
use crate::error::{Error, ObjectKind, Result};
use crate::progress::Unit;

/// What to adopt.
#[derive(Clone, Debug)]
pub struct AdoptRequest {
    /// The data root, such as `/var/lib/docker`.
    pub root: PathBuf,
    /// The images, by name or id; empty: those with names.
    pub images: Vec<String>,
    /// Include images without a name, such as the steps of a build.
    pub all: bool,
    /// What to do with them.
    pub how: AdoptHow,
}

/// What to do with the images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdoptHow {
    /// Store them.
    Store,
    /// Read their layers and compare them with their digests; store nothing.
    InPlace,
    /// List them.
    List,
}

/// The images found, and their outcomes. The JSON field names are stable.
#[derive(Clone, Debug, Serialize)]
pub struct Adopted {
    /// The data root.
    #[serde(serialize_with = "crate::json::path")]
    pub root: PathBuf,
    /// The process id of a daemon that runs on it.
    pub daemon: Option<u32>,
    /// The requested images.
    pub images: Vec<AdoptedImage>,
    /// How many images without a name were left out.
    pub unnamed: usize,
    /// The containers; none is adopted.
    pub containers: Vec<SeenContainer>,
    /// Directories that nothing needs.
    pub orphans: Vec<SeenOrphan>,
}

/// One image.
#[derive(Clone, Debug, Serialize)]
pub struct AdoptedImage {
    /// Its id; its name in the request, if it can't be read at all.
    pub id: String,
    /// Its names, in their short form.
    pub names: Vec<String>,
    /// How many layers it has.
    pub layers: usize,
    /// Of those, how many are new in the store.
    pub new_layers: usize,
    /// Its outcome.
    pub outcome: Outcome,
    /// Why it was not adopted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// The outcome for an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It is in the store.
    Adopted,
    /// Every layer has the digest that the image promises.
    Whole,
    /// It would be adopted.
    Planned,
    /// It can't be read completely.
    Damaged,
}

/// One container.
#[derive(Clone, Debug, Serialize)]
pub struct SeenContainer {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its image's id.
    pub image: String,
}

/// One orphan.
#[derive(Clone, Debug, Serialize)]
pub struct SeenOrphan {
    /// Its path in the data root.
    #[serde(serialize_with = "crate::json::path")]
    pub path: PathBuf,
    /// Why it counts as an orphan.
    pub why: String,
}

/// Adopts the images of a data root.
///
/// An image that can't be adopted is reported in the result, and the others still are. Durable on
/// return. Errors: the directory is not a data root of overlay2; a requested image is not there;
/// failures of the store; `Cancelled`, and then the current image has left nothing.
pub fn adopt(context: &Context, request: &AdoptRequest) -> Result<Adopted> {
    super::or_cancelled(context, run(context, request))
}

fn run(context: &Context, request: &AdoptRequest) -> Result<Adopted> {
    let path = fs::canonicalize(&request.root).map_err(Error::io("find", &request.root))?;
    let source = DockerRoot::open(&path)?;
    let daemon = daemon_on(&path);
    if let Some(pid) = daemon {
        context.progress.warn(&format!(
            "dockerd (process {pid}) runs on {}: images that it creates or removes now may be reported wrongly; every layer is still verified",
            path.display()
        ));
    }
    let wanted = choose(&source, request)?;
    let mut images = Vec::new();
    for at in wanted.images {
        context.go_on()?;
        images.push(one(context, &source, at, request.how)?);
    }
    for (called, why) in wanted.broken {
        images.push(AdoptedImage {
            id: called,
            names: Vec::new(),
            layers: 0,
            new_layers: 0,
            outcome: Outcome::Damaged,
            why: Some(why),
        });
    }
    let containers = source.containers().into_iter().map(|c| SeenContainer {
        id: c.id,
        name: c.name,
        image: c.image,
    });
    let orphans = source.orphans().into_iter().map(|o| SeenOrphan {
        path: o.path,
        why: o.why,
    });
    Ok(Adopted {
        daemon,
        images,
        unnamed: wanted.unnamed,
        containers: containers.collect(),
        orphans: orphans.collect(),
        root: path,
    })
}

struct Wanted {
    images: Vec<usize>,
    broken: Vec<(String, String)>,
    unnamed: usize,
}

/// Finds the requested images.
fn choose(source: &DockerRoot, request: &AdoptRequest) -> Result<Wanted> {
    let all = source.images();
    if request.images.is_empty() {
        let named = |at: &usize| request.all || !all[*at].names.is_empty();
        let images: Vec<usize> = (0..all.len()).filter(named).collect();
        return Ok(Wanted {
            unnamed: all.len() - images.len(),
            broken: source.broken().to_vec(),
            images,
        });
    }
    let mut images = BTreeSet::new();
    let mut broken = Vec::new();
    for text in &request.images {
        let name = parse_name(text);
        let fits = |image: &SourceImage| {
            let id = image.config.id.to_string();
            let digits = id.strip_prefix("sha256:").unwrap_or(&id);
            name.as_ref().is_some_and(|name| image.names.contains(name))
                || text == &id
                || (text.len() >= 12 && digits.starts_with(text.as_str()))
        };
        let found: Vec<usize> = (0..all.len()).filter(|at| fits(&all[*at])).collect();
        let familiar = name.as_ref().map(Reference::familiar);
        let damaged = source
            .broken()
            .iter()
            .find(|(called, _)| called == text || Some(called) == familiar.as_ref());
        match (found.is_empty(), damaged) {
            (false, _) => images.extend(found),
            (true, Some(damaged)) => broken.push(damaged.clone()),
            (true, None) => {
                return Err(Error::NotFound {
                    kind: ObjectKind::Image,
                    name: format!("{text} in {}", request.root.display()),
                    meant: None,
                });
            }
        }
    }
    Ok(Wanted {
        images: images.into_iter().collect(),
        broken,
        unnamed: 0,
    })
}

fn one(context: &Context, source: &DockerRoot, at: usize, how: AdoptHow) -> Result<AdoptedImage> {
    let image = &source.images()[at];
    let mut told = AdoptedImage {
        id: image.config.id.to_string(),
        names: image.names.iter().map(Reference::familiar).collect(),
        layers: image.layers.len(),
        new_layers: 0,
        outcome: Outcome::Planned,
        why: None,
    };
    let done = match how {
        AdoptHow::List => return Ok(told),
        AdoptHow::InPlace => verify(context, source, at).map(|()| (Outcome::Whole, 0)),
        AdoptHow::Store => bring_in(context, source, at, &image.names, &Platform::host())
            .map(|brought| (Outcome::Adopted, brought.new_layers)),
    };
    match done {
        Ok((outcome, new_layers)) => {
            told.outcome = outcome;
            told.new_layers = new_layers;
        }
        // A defect of the data root is reported; a failure of the store, or a cancellation, ends
        // the run.
        Err(error @ (Error::Image(_) | Error::Source(_))) if !context.cancel.is_cancelled() => {
            told.outcome = Outcome::Damaged;
            told.why = Some(with_causes(&error));
        }
        Err(error) => return Err(error),
    }
    Ok(told)
}

/// Reads every layer of an image and compares it with its digest.
fn verify(context: &Context, source: &DockerRoot, at: usize) -> Result<()> {
    let layers = &source.images()[at].layers;
    for (layer, wanted) in layers.iter().enumerate() {
        context.go_on()?;
        let short = crate::names::short(&wanted.diff_id.to_string()).to_owned();
        let what = format!("layer {}/{} {short}", layer + 1, layers.len());
        let meter = context.progress.meter(&what, Unit::Bytes, None);
        let tar = source.open_layer(at, layer)?;
        let mut stream = LayerStream::open(tar, &Limits::default(), &context.cancel)?;
        io::copy(&mut stream, &mut io::sink())
            .map_err(|e| Error::Image(vellum_image::Error::Read(e)))?;
        let found = stream.finish()?;
        wanted.check(&found)?;
        meter.advance(found.tar_bytes);
        meter.finish("whole");
    }
    Ok(())
}

/// Returns the process id of a dockerd that has files of the data root open.
fn daemon_on(root: &Path) -> Option<u32> {
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().and_then(|n| n.parse::<u32>().ok()) else {
            continue;
        };
        let base = process.path();
        if fs::read_to_string(base.join("comm")).is_ok_and(|comm| comm.trim() == "dockerd") {
            let files = fs::read_dir(base.join("fd"))
                .into_iter()
                .flatten()
                .flatten();
            if files
                .filter_map(|file| fs::read_link(file.path()).ok())
                .any(|open| open.starts_with(root))
            {
                return Some(pid);
            }
        }
    }
    None
}
