//! A union of layers, to look up, list and walk.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use vellum_sys::FileKind;

use crate::error::On;
use crate::layer::{Layer, LayerDir};
use crate::marks::{DirAt, FileAt, Reader};
use crate::node::Node;
use crate::resolve::{Answer, Ask, Fault, MergeError, Merged, Part, merge};
use crate::{Error, Result};

/// The longest path that is read. A walk holds one path per directory on its way, so this bounds
/// its memory (64 MiB for names of one byte), whatever a container has created. The kernel takes
/// paths of up to 4096 bytes at a time.
const PATH_LIMIT_BYTES: usize = 16 * 1024;

/// Layers read as one tree. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Stack {
    layers: Arc<[Arc<dyn Layer>]>,
    data_layers: Arc<[Arc<dyn Layer>]>,
    roots: Arc<[Part<DirAt>]>,
}

impl Stack {
    /// Creates a union of `layers`, the top one first. Errors if there is none, or a root can't be
    /// read.
    pub fn new(layers: Vec<Arc<dyn Layer>>) -> Result<Stack> {
        Stack::with_data_layers(layers, Vec::new())
    }

    /// Creates a union with data-only layers below the others: their names don't show, but
    /// metacopies with a redirect from the root find their data in them.
    pub fn with_data_layers(
        layers: Vec<Arc<dyn Layer>>,
        data_layers: Vec<Arc<dyn Layer>>,
    ) -> Result<Stack> {
        Stack::rooted(layers, data_layers, |reader| reader.root())
    }

    /// As [`Stack::with_data_layers`], for a check: a malformed mark on a root, which a reader
    /// refuses, counts as none here.
    pub(crate) fn to_check(
        layers: Vec<Arc<dyn Layer>>,
        data_layers: Vec<Arc<dyn Layer>>,
    ) -> Result<Stack> {
        Stack::rooted(layers, data_layers, |reader| match reader.root() {
            Err(Error::Mark { .. }) => reader.unmarked_root(),
            read => read,
        })
    }

    fn rooted(
        layers: Vec<Arc<dyn Layer>>,
        data_layers: Vec<Arc<dyn Layer>>,
        root: impl Fn(Reader<'_>) -> Result<DirAt>,
    ) -> Result<Stack> {
        if layers.is_empty() {
            return Err(Error::NoLayers);
        }
        let part = |(layer, tree): (usize, &Arc<dyn Layer>)| {
            root(Reader::new(&**tree)).map(|dir| Part { layer, dir })
        };
        let roots = layers
            .iter()
            .enumerate()
            .map(part)
            .collect::<Result<Vec<_>>>()?;
        Ok(Stack {
            layers: layers.into(),
            data_layers: data_layers.into(),
            roots: roots.into(),
        })
    }

    /// Returns the union without its top layer, or `None` if it has only one.
    pub fn below(&self) -> Option<Stack> {
        let roots: Vec<_> = self.roots[1..]
            .iter()
            .map(|part| Part {
                layer: part.layer - 1,
                dir: part.dir.clone(),
            })
            .collect();
        (!roots.is_empty()).then(|| Stack {
            layers: self.layers[1..].into(),
            data_layers: Arc::clone(&self.data_layers),
            roots: roots.into(),
        })
    }

    /// Returns the layers, the top one first, without data-only ones.
    pub fn layers(&self) -> &[Arc<dyn Layer>] {
        &self.layers
    }

    /// Returns the shares of the root directory.
    pub(crate) fn roots(&self) -> &Arc<[Part<DirAt>]> {
        &self.roots
    }

    /// Returns the data-only layers, the top one first.
    pub(crate) fn data_layers(&self) -> &[Arc<dyn Layer>] {
        &self.data_layers
    }

    /// Returns all layers below the top one, from the bottom, data-only ones first.
    pub(crate) fn below_from_bottom(&self) -> Vec<Arc<dyn Layer>> {
        let data = self.data_layers.iter().rev();
        data.chain(self.layers[1..].iter().rev()).cloned().collect()
    }

    /// Returns the root directory.
    pub fn root(&self) -> Result<Node> {
        Node::directory(
            PathBuf::new(),
            Arc::clone(&self.layers[0]),
            self.roots.to_vec(),
            None,
        )
    }

    /// Returns what is at `path`, or `None` if there is nothing (also if a parent is not a
    /// directory).
    ///
    /// The path is from the root, a leading slash makes no difference, and symbolic links are not
    /// followed. Errors on `..`, on marks that can't be followed, and if a layer can't be read.
    pub fn lookup(&self, path: &Path) -> Result<Option<Node>> {
        if path
            .components()
            .any(|component| component == Component::ParentDir)
        {
            return Err(Error::BadPath {
                path: path.to_owned(),
            });
        }
        let mut node = self.root()?;
        for component in path.components() {
            let Component::Normal(name) = component else {
                continue;
            };
            match self.child(&node, name)? {
                Some(child) => node = child,
                None => return Ok(None),
            }
        }
        Ok(Some(node))
    }

    /// Looks up `name` in a directory of this union; `None` if it is absent or `dir` is not a
    /// directory.
    ///
    /// Errors as [`Stack::lookup`], and if the path would be over 16 KiB long.
    pub fn child(&self, dir: &Node, name: &OsStr) -> Result<Option<Node>> {
        let path = dir.path().join(name);
        if path.as_os_str().len() > PATH_LIMIT_BYTES {
            let start = path.components().take(8).collect();
            return Err(Error::TooDeep {
                start,
                length_bytes: path.as_os_str().len(),
            });
        }
        match self.merge_with(&Layers::of(self), dir, name)? {
            Merged::Absent(_) => Ok(None),
            Merged::Dir { parts, stop, .. } => {
                let layer = Arc::clone(&self.layers[parts[0].layer]);
                Node::directory(path, layer, parts, stop).map(Some)
            }
            Merged::File { layer, file, data } => {
                let data = data.map(|(_, data)| data);
                let below = match data.as_ref().unwrap_or(&file).blocks {
                    Some(_) => self.below_from_bottom(),
                    None => Vec::new(),
                };
                let tree = Arc::clone(&self.layers[layer]);
                Node::file(path, layer, tree, file, data, below).map(Some)
            }
        }
    }

    /// Merges one name, asking through `ask`; turns contradictions into errors with layer names and
    /// paths.
    pub(crate) fn merge_with<A>(
        &self,
        ask: &A,
        dir: &Node,
        name: &OsStr,
    ) -> Result<Merged<DirAt, FileAt>>
    where
        A: Ask<Dir = DirAt, File = FileAt, Error = Error>,
    {
        self.merge_parts(ask, dir.parts(), name, || dir.path().join(name))
    }

    /// As [`Stack::merge_with`], for a directory made up of `parts`; `path` is for messages.
    pub(crate) fn merge_parts<A>(
        &self,
        ask: &A,
        parts: &[Part<DirAt>],
        name: &OsStr,
        path: impl Fn() -> PathBuf,
    ) -> Result<Merged<DirAt, FileAt>>
    where
        A: Ask<Dir = DirAt, File = FileAt, Error = Error>,
    {
        merge(ask, parts, &self.roots, name).map_err(|error| match error {
            MergeError::Ask(error) => error,
            MergeError::Fault(Fault::NoData { layer, obstructed }) => Error::NoData {
                layer: self.layers[layer].name(),
                path: path(),
                obstructed,
            },
            MergeError::Fault(Fault::Dangling { layer, to }) => Error::Dangling {
                layer: self.layers[layer].name(),
                path: path(),
                to,
            },
        })
    }

    /// Returns the names in a directory of this union, sorted by their bytes. Errors if it is not a
    /// directory.
    ///
    /// Holds all names of that one directory. A listed name may turn out to be absent, if the
    /// layers have changed since or hide it in a way that only a lookup sees; [`Stack::list`]
    /// leaves such names out.
    pub fn names(&self, dir: &Node) -> Result<Vec<OsString>> {
        Ok(self
            .names_and_whiteouts(dir)?
            .into_iter()
            .filter(|(_, hidden)| !hidden)
            .map(|(name, _)| name)
            .collect())
    }

    /// As [`Stack::names`], plus the hidden names, which are `true`: the topmost layer with the
    /// name or its whiteout decides.
    pub(crate) fn names_and_whiteouts(&self, dir: &Node) -> Result<Vec<(OsString, bool)>> {
        if !dir.is_dir() {
            return Err(Error::NotADirectory {
                path: dir.path().to_owned(),
            });
        }
        let mut hidden = BTreeMap::new();
        for part in dir.parts() {
            let mut own = Reader::new(&*self.layers[part.layer]).names(&part.dir)?;
            // A layer may have both a name and its whiteout: the name shows and hides those below.
            own.sort();
            for (name, hides) in own {
                hidden.entry(name).or_insert(hides);
            }
        }
        Ok(hidden.into_iter().collect())
    }

    /// Returns the content of the directory at `path`, sorted by name. Errors if it is not a
    /// directory.
    pub fn list(&self, path: &Path) -> Result<Vec<Node>> {
        let Some(dir) = self.lookup(path)? else {
            return Err(Error::NotADirectory {
                path: path.to_owned(),
            });
        };
        let nodes = self
            .names(&dir)?
            .into_iter()
            .map(|name| self.child(&dir, &name));
        nodes.filter_map(Result::transpose).collect()
    }

    /// Walks the whole union: the root first, then everything in it, each directory before its
    /// content, names sorted.
    ///
    /// Memory: the names of the directories on the way to the current one. The walk ends after an
    /// error.
    pub fn walk(&self) -> Walk {
        Walk {
            stack: self.clone(),
            frames: Vec::new(),
            begun: false,
            failed: false,
        }
    }
}

/// Answers for the layers of a stack.
pub(crate) struct Layers<'a> {
    pub stack: &'a Stack,
    /// Replaces the directory's share in the top layer. Redirects lead down, so the top layer is
    /// asked about this directory only.
    top: Option<Arc<dyn LayerDir>>,
}

impl<'a> Layers<'a> {
    pub fn of(stack: &'a Stack) -> Layers<'a> {
        Layers { stack, top: None }
    }

    /// As [`Layers::of`], with another handle of the directory's share in the top layer.
    pub fn by(stack: &'a Stack, top: Option<Arc<dyn LayerDir>>) -> Layers<'a> {
        Layers { stack, top }
    }
}

impl Ask for Layers<'_> {
    type Dir = DirAt;
    type File = FileAt;
    type Error = Error;

    fn ask(&self, layer: usize, dir: &DirAt, name: &OsStr) -> Result<Answer<DirAt, FileAt>> {
        let dir = match (&self.top, layer) {
            (Some(top), 0) => top,
            _ => &dir.dir,
        };
        Reader::new(&*self.stack.layers[layer]).ask(dir, name)
    }

    fn ask_data(&self, path: &[OsString]) -> Result<Option<(usize, FileAt)>> {
        let Some((name, above)) = path.split_last() else {
            return Ok(None);
        };
        for (index, layer) in self.stack.data_layers.iter().enumerate() {
            let reader = Reader::new(&**layer);
            let mut dir = layer.root();
            let mut there = true;
            for name in above {
                // Marks have no meaning in a data-only layer: directories are plain directories.
                let stat = dir.stat(Some(name)).on(&reader)?;
                there = stat.is_some_and(|stat| stat.is_dir());
                if !there {
                    break;
                }
                dir = dir.subdir(name);
            }
            if !there {
                continue;
            }
            if let Some(stat) = dir.stat(Some(name)).on(&reader)?
                && stat.kind == FileKind::File
            {
                let number = self.stack.layers.len() + index;
                return Ok(Some((
                    number,
                    FileAt {
                        dir,
                        name: name.clone(),
                        stat,
                        blocks: None,
                    },
                )));
            }
        }
        Ok(None)
    }
}

/// The deepest directories that keep their descriptors while a walk is below them.
pub(crate) const OPEN_LEVELS: usize = 3;

/// An iterator over a whole union; see [`Stack::walk`].
#[derive(Debug)]
pub struct Walk {
    stack: Stack,
    frames: Vec<(Node, std::vec::IntoIter<OsString>)>,
    begun: bool,
    failed: bool,
}

impl Walk {
    fn enter(&mut self, node: &Node) -> Result<()> {
        if node.is_dir() {
            let names = self.stack.names(node)?;
            self.frames.push((node.clone(), names.into_iter()));
            if let Some(far) = self.frames.len().checked_sub(OPEN_LEVELS + 1) {
                self.frames[far].0.release();
            }
        }
        Ok(())
    }

    fn step(&mut self) -> Result<Option<Node>> {
        if !self.begun {
            self.begun = true;
            let root = self.stack.root()?;
            self.enter(&root)?;
            return Ok(Some(root));
        }
        while let Some((dir, names)) = self.frames.last_mut() {
            let Some(name) = names.next() else {
                dir.release();
                self.frames.pop();
                continue;
            };
            if let Some(node) = self.stack.child(dir, &name)? {
                self.enter(&node)?;
                return Ok(Some(node));
            }
        }
        Ok(None)
    }
}

impl Iterator for Walk {
    type Item = Result<Node>;

    fn next(&mut self) -> Option<Result<Node>> {
        if self.failed {
            return None;
        }
        let step = self.step();
        self.failed = step.is_err();
        step.transpose()
    }
}
