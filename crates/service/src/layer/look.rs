//! `ls`, `cat` and `explain` of a path in a stack of layers: what a mount would show, and why,
//! without mounting.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use vellum_overlay::layers;
use vellum_overlay::options::MountOptions;
use vellum_store::Shape;
use vellum_sys::FileKind;
use vellum_union::{Node, Stack, WhNames};

use crate::base;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::{container_record, names, stack};

/// The layers to look at.
#[derive(Debug, Clone, PartialEq)]
pub enum Tree {
    /// Layers named one by one.
    Layers(Box<MountOptions>),
    /// A container's, by name or id.
    Container(String),
    /// An image's.
    Image(String),
}

/// Opens the layers of `tree` as one union.
pub fn stack(ctx: &Context, tree: &Tree) -> Result<Stack> {
    let parts = match tree {
        Tree::Layers(options) => return Ok(layers::stack(options)?),
        Tree::Container(name) => {
            names::with_container(ctx, name, |record| container_record::parts(ctx, record))?
        }
        Tree::Image(name) => names::with_image(ctx, name, |image| base::tree_of_image(ctx, image))?,
    };
    match &parts.shape {
        Shape::Plain { root, .. } => stack::plain(ctx.process, root),
        Shape::Overlay(_) => stack::of_tree(ctx.process, &parts),
    }
}

/// One name in a listing. The JSON field names are stable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    /// The name.
    #[serde(serialize_with = "crate::json::path")]
    pub name: PathBuf,
    /// `file`, `dir`, `symlink`, `char`, `block`, `fifo` or `socket`.
    pub kind: &'static str,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Last change of content, seconds since 1970.
    pub mtime: i64,
    /// The layer its attributes come from, 0 for the top one.
    pub layer: usize,
    /// That layer's directory.
    pub layer_name: String,
}

impl Line {
    fn of(node: &Node, name: &Path) -> Line {
        let stat = node.stat();
        Line {
            name: name.to_owned(),
            kind: kind_name(stat.kind),
            mode: stat.mode,
            uid: stat.uid,
            gid: stat.gid,
            size_bytes: stat.size_bytes,
            mtime: stat.mtime.sec,
            layer: node.layer(),
            layer_name: node.layer_name(),
        }
    }
}

fn kind_name(kind: FileKind) -> &'static str {
    match kind {
        FileKind::File => "file",
        FileKind::Dir => "dir",
        FileKind::Symlink => "symlink",
        FileKind::Char => "char",
        FileKind::Block => "block",
        FileKind::Fifo => "fifo",
        FileKind::Socket => "socket",
    }
}

fn find(union: &Stack, path: &Path) -> Result<Node> {
    union.lookup(path)?.ok_or_else(|| Error::Invalid {
        what: format!("there is no {} in these layers", path.display()),
        hint: Some("`vellum explain` says which layer hides it, if one does".into()),
    })
}

/// Lists a directory, sorted by name, or a single other file.
pub fn list(union: &Stack, path: &Path) -> Result<Vec<Line>> {
    let node = find(union, path)?;
    if !node.is_dir() {
        return Ok(vec![Line::of(&node, path)]);
    }
    let nodes = union.list(path)?;
    let name = |node: &Node| PathBuf::from(node.path().file_name().unwrap_or_default());
    Ok(nodes.iter().map(|n| Line::of(n, &name(n))).collect())
}

/// Writes the content of a regular file to `out`.
pub fn cat(union: &Stack, path: &Path, out: &mut impl Write) -> Result<()> {
    let mut data = find(union, path)?.open_data()?;
    std::io::copy(&mut data, out).map_err(Error::io("copy", path))?;
    Ok(())
}

/// Why a path exists or not. The JSON field names are stable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explained {
    /// How far the path could be followed.
    #[serde(serialize_with = "crate::json::path")]
    pub path: PathBuf,
    /// What is there, as a phrase; or why that is unknown.
    pub outcome: String,
    /// The layer that its attributes come from, if it exists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attributes_from: Option<String>,
    /// Where its data is: the layers of a directory, the layer of a file.
    pub data_from: Vec<String>,
    /// What each layer has, top first.
    pub layers: Vec<Said>,
    /// The form in which a union's upper hides names, if there is an upper.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upper_hides_with: Option<&'static str>,
}

/// What one layer has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Said {
    /// Its number, 0 for the top one.
    pub layer: usize,
    /// Its directory.
    pub name: String,
    /// The path in it.
    #[serde(serialize_with = "crate::json::path")]
    pub path: PathBuf,
    /// What it is, as a phrase.
    pub says: String,
    /// Whether the layer takes part in the result.
    pub counts: bool,
}

/// Explains which layer a path, its attributes and its data come from, and why other layers' are
/// hidden.
pub fn explain(ctx: &Context, tree: &Tree, path: &Path) -> Result<Explained> {
    let union = &stack(ctx, tree)?;
    let has_upper = matches!(tree, Tree::Layers(options) if options.upper.is_some());
    let upper = union.layers().first().filter(|_| has_upper);
    let upper_hides_with = upper.map(|upper| match upper.dialect().wh_names {
        WhNames::Plain => "devices 0:0",
        WhNames::Whiteouts => ".wh. files",
    });
    let explanation = union.explain(path)?;
    let mut layers: Vec<Said> = explanation
        .statements
        .iter()
        .map(|s| Said {
            layer: s.layer,
            name: s.layer_name.clone(),
            path: s.path.clone(),
            says: s.says.clone(),
            counts: true,
        })
        .collect();
    let speaker = layers
        .iter()
        .rev()
        .find(|said| said.says != "does not exist")
        .map(|said| said.layer);
    for (number, layer) in union.layers().iter().enumerate() {
        if layers.iter().any(|said| said.layer == number) || explanation.path.as_os_str().is_empty()
        {
            continue;
        }
        // A layer that takes no part may be broken: then its content is left out.
        let alone = Stack::new(vec![layer.clone()]).and_then(|s| s.lookup(&explanation.path));
        let Ok(Some(node)) = alone else { continue };
        layers.push(Said {
            layer: number,
            name: layer.name(),
            path: explanation.path.clone(),
            says: format!(
                "a {}, hidden by layer {}",
                kind_name(node.kind()),
                speaker.unwrap_or(0)
            ),
            counts: false,
        });
    }
    layers.sort_by_key(|said| said.layer);
    let (outcome, node) = match explanation.outcome {
        Ok(Some(node)) => (format!("a {}", kind_name(node.kind())), Some(node)),
        Ok(None) => ("does not exist".to_owned(), None),
        Err(error) => (format!("an error: {error}"), None),
    };
    let data_from = match &node {
        None => Vec::new(),
        // The lowest layer that takes part has a file's data.
        Some(node) if node.kind() == FileKind::File => layers
            .iter()
            .rfind(|said| said.counts && said.says != "does not exist")
            .map(|said| said.name.clone())
            .into_iter()
            .collect(),
        Some(node) if node.is_dir() => layers
            .iter()
            .filter(|said| said.counts && said.says.starts_with("a directory"))
            .map(|said| said.name.clone())
            .collect(),
        Some(_) => Vec::new(),
    };
    Ok(Explained {
        path: explanation.path,
        outcome,
        attributes_from: node.as_ref().map(Node::layer_name),
        data_from,
        layers,
        upper_hides_with,
    })
}
