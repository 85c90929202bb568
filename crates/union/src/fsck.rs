//! Checks the marks of a whole overlay: every layer, and the work directory.
//!
//! Each layer's own tree is walked, and each of its marks is held against the layers below it, with
//! the very functions that a union is read with: `marks.rs` recognises, `resolve.rs` follows. So a
//! mark means here what it means in a mount. What only a check looks at (origins, the index, link
//! counts, leftovers) is in `fsck/`.
//!
//! A finding is an error if a reader would show something wrong, refuse, or lose something later;
//! what is merely unusual is a remark. Nothing is changed, locked or cached here, and nothing is
//! said about whether the layers are mounted: the caller sees to that.
//!
//! Memory: the names of the directories on the way to the current one; and, for each layer while it
//! is walked, its inodes with several names, the targets of its redirects, and the names of its
//! block maps. Depth costs no stack.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vellum_format::Prefix;
use vellum_sys::{Cancel, Dir};

use crate::layer::Layer;
use crate::stack::Stack;
use crate::{Error, Result};

mod counts;
mod inode;
mod origins;
mod walk;
mod work;

use counts::Names;
use origins::FileSystem;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Unusual, but every reader shows the right thing.
    Remark,
    /// A reader shows something wrong, refuses to read, or will lose something.
    Error,
}

/// Where something was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In this layer, 0 for the top one.
    Layer(usize),
    /// In the work directory.
    Work,
}

/// One inconsistency.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The tree it is in.
    pub place: Place,
    /// The path in that tree; empty for its root.
    pub path: PathBuf,
    /// What it is about: the name of a mark without its prefix (`redirect`, `metacopy`, ...),
    /// `whiteout`, `name`, `link`, `index`, `map`, `work`, `incompat`, `layer`, `mount` or `read`.
    pub aspect: &'static str,
    /// What is wrong, as a clause about the path.
    pub why: String,
    /// What there should be, if that can be said.
    pub expected: Option<String>,
    /// What is there instead.
    pub found: Option<String>,
}

impl Finding {
    /// An error.
    pub fn error(place: Place, path: &Path, aspect: &'static str, why: impl Into<String>) -> Self {
        Finding {
            severity: Severity::Error,
            place,
            path: path.to_owned(),
            aspect,
            why: why.into(),
            expected: None,
            found: None,
        }
    }

    /// A remark.
    pub fn remark(place: Place, path: &Path, aspect: &'static str, why: impl Into<String>) -> Self {
        Finding {
            severity: Severity::Remark,
            ..Finding::error(place, path, aspect, why)
        }
    }

    /// Returns the same with what should be there and what is there.
    pub fn differing(self, expected: impl Into<String>, found: impl Into<String>) -> Self {
        Finding {
            expected: Some(expected.into()),
            found: Some(found.into()),
            ..self
        }
    }
}

/// What is checked.
#[derive(Debug)]
pub struct Overlay {
    /// All layers that show names, top first; at least one. Their dialects must follow marks
    /// ([`crate::LayerTrust::Engine`]).
    pub layers: Vec<Arc<dyn Layer>>,
    /// The data-only layers, top first.
    pub data_layers: Vec<Arc<dyn Layer>>,
    /// The first layer is an upper.
    pub has_upper: bool,
    /// The upper's work directory.
    pub work: Option<Dir>,
    /// The namespace of all marks.
    pub prefix: Prefix,
}

/// Receives findings as they are made; `Break` ends the check.
pub type Report<'a> = &'a mut dyn FnMut(Finding) -> ControlFlow<()>;

/// Checks an overlay that no process changes meanwhile.
///
/// Findings come layer by layer, top first, each directory before its content, names sorted; then
/// those of the work directory. What can't be read is a finding too. Errors: the root of a layer
/// can't be read.
pub fn check(overlay: &Overlay, cancel: &Cancel, report: Report<'_>) -> Result<()> {
    let layers = overlay.layers.clone();
    let whole = Stack::to_check(layers, overlay.data_layers.clone())?;
    let mut check = Check {
        overlay,
        file_systems: overlay.layers.iter().map(FileSystem::of).collect(),
        whole: whole.clone(),
        sink: Sink {
            report,
            cancel,
            stopped: false,
        },
        index: work::Index::open(overlay),
        maps: work::Maps::open(overlay),
        maps_named: HashSet::new(),
        names: Names::default(),
        upper_names: Names::default(),
        origins_unread: false,
        tallies: Vec::new(),
        beyond_kernels: None,
    };
    let mut stack = Some(whole);
    let mut number = 0;
    while let Some(layers) = stack {
        walk::layer(&mut check, number, &layers);
        let names = std::mem::take(&mut check.names);
        names.report(&mut check, number);
        if number == 0 && overlay.has_upper {
            check.upper_names = names;
        }
        if check.sink.is_stopped() {
            return Ok(());
        }
        stack = layers.below();
        number += 1;
    }
    if overlay.work.is_some() {
        work::check(&mut check);
    }
    if check.origins_unread {
        check.sink.report(Finding::remark(
            Place::Layer(0),
            Path::new(""),
            "origin",
            "where origins lead was not checked: file handles are opened by root only",
        ));
    }
    Ok(())
}

/// Takes findings until the receiver has had enough.
struct Sink<'a> {
    report: Report<'a>,
    cancel: &'a Cancel,
    stopped: bool,
}

impl Sink<'_> {
    fn report(&mut self, finding: Finding) {
        if !self.stopped {
            self.stopped = (self.report)(finding).is_break();
        }
    }

    fn is_stopped(&self) -> bool {
        self.stopped || self.cancel.is_cancelled()
    }
}

/// What is known during a check.
struct Check<'a> {
    overlay: &'a Overlay,
    /// Of each layer.
    file_systems: Vec<FileSystem>,
    /// All layers.
    whole: Stack,
    sink: Sink<'a>,
    index: Option<work::Index>,
    maps: Option<work::Maps>,
    /// The block maps that files of the upper name.
    maps_named: HashSet<Box<str>>,
    /// Inodes of the current layer with several names.
    names: Names,
    /// Those of the upper.
    upper_names: Names,
    /// An origin could not be opened for lack of privilege.
    origins_unread: bool,
    /// What was found on many inodes.
    tallies: Vec<walk::Tally>,
    /// A file of the upper with a mark that kernels ignore in its namespace.
    beyond_kernels: Option<PathBuf>,
}

impl Check<'_> {
    fn is_upper(&self, layer: usize) -> bool {
        layer == 0 && self.overlay.has_upper
    }

    /// Reports that something could not be read.
    fn unreadable(&mut self, place: Place, path: &Path, error: &vellum_sys::Error) {
        let why = format!("it can't be read: {}", error.source);
        self.sink.report(Finding::error(place, path, "read", why));
    }
}

/// An open directory of a layer, for calls that need any file of its file system.
fn root_of(layer: &Arc<dyn Layer>) -> Option<OwnedFd> {
    layer.root().open_path(None).ok()
}

/// Says what is wrong with a mark's value, without the words that name the mark, and with only the
/// beginning of a long value.
fn reason(error: &vellum_format::MarkError) -> String {
    const LONGEST: usize = 160;
    let text = &error.reason;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("the value is malformed: {}...", &text[..end]),
        None => format!("the value is malformed: {text}"),
    }
}

/// Tells in one line why layers could not be asked.
fn told(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

/// Claims by an identity: which path was first.
type Claims = HashMap<(usize, u64, u64), PathBuf>;
