//! Explains what the union has at one path: what each layer says about it, in the order in which
//! they were asked.

use std::cell::RefCell;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Component, Path, PathBuf};

use vellum_format::Redirect;

use crate::marks::{DirAt, FileAt};
use crate::resolve::{Answer, Ask, Data, Stop, Whiteout};
use crate::stack::{Layers, Stack};
use crate::{Error, Node, Result};

/// What one layer said when it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// The layer's number, 0 for the top one; data-only layers come after all others.
    pub layer: usize,
    /// The layer's name.
    pub layer_name: String,
    /// The path inside the layer that it was asked about.
    pub path: PathBuf,
    /// What it said, as a phrase.
    pub says: String,
}

/// Why a path is, or is not, there.
#[derive(Debug)]
pub struct Explanation {
    /// What the union has, or the error that prevents an answer.
    pub outcome: Result<Option<Node>>,
    /// The path the statements are about: as far as the path asked for could be followed.
    pub path: PathBuf,
    /// The layers' statements, in order. A layer that was not asked could not have changed the
    /// outcome.
    pub statements: Vec<Statement>,
}

impl fmt::Display for Statement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "layer {} ({}): /{}: {}",
            self.layer,
            self.layer_name,
            self.path.display(),
            self.says
        )
    }
}

impl Stack {
    /// Returns why the union has what it has at `path`.
    ///
    /// Errors only if the way to the path can't be read; what is wrong with the path itself is part
    /// of the answer.
    pub fn explain(&self, path: &Path) -> Result<Explanation> {
        let mut node = self.root()?;
        let mut last = Explanation {
            outcome: Ok(Some(node.clone())),
            path: PathBuf::new(),
            statements: Vec::new(),
        };
        for component in path.components() {
            let Component::Normal(name) = component else {
                continue;
            };
            let heard = Heard::of(self);
            // Once for the statements, once for the node: an explanation need not be fast.
            let outcome = self
                .merge_with(&heard, &node, name)
                .and_then(|_| self.child(&node, name));
            last = Explanation {
                outcome,
                path: node.path().join(name),
                statements: heard.statements(),
            };
            match &last.outcome {
                Ok(Some(child)) => node = child.clone(),
                _ => break,
            }
        }
        Ok(last)
    }
}

/// Forwards questions to the layers and records the answers.
pub(crate) struct Heard<'a> {
    layers: Layers<'a>,
    statements: RefCell<Vec<Statement>>,
}

impl<'a> Heard<'a> {
    pub fn of(stack: &'a Stack) -> Heard<'a> {
        Heard {
            layers: Layers::of(stack),
            statements: RefCell::new(Vec::new()),
        }
    }

    /// Returns what the layers said, in order.
    pub fn statements(self) -> Vec<Statement> {
        self.statements.into_inner()
    }
}

impl Ask for Heard<'_> {
    type Dir = DirAt;
    type File = FileAt;
    type Error = Error;

    fn ask(&self, layer: usize, dir: &DirAt, name: &OsStr) -> Result<Answer<DirAt, FileAt>> {
        let answer = self.layers.ask(layer, dir, name);
        let says = match &answer {
            Ok(answer) => phrase(answer),
            Err(error) => format!("an error: {error}"),
        };
        self.statements.borrow_mut().push(Statement {
            layer,
            layer_name: self.layers.stack.layers()[layer].name(),
            path: dir.dir.path().join(name),
            says,
        });
        answer
    }

    fn ask_data(&self, path: &[OsString]) -> Result<Option<(usize, FileAt)>> {
        let answer = self.layers.ask_data(path);
        if let Ok(Some((layer, _))) = &answer {
            self.statements.borrow_mut().push(Statement {
                layer: *layer,
                layer_name: "data only".into(),
                path: path.iter().collect(),
                says: "has the data".into(),
            });
        }
        answer
    }
}

fn phrase(answer: &Answer<DirAt, FileAt>) -> String {
    let to = |redirect: &Redirect| match redirect {
        Redirect::Sibling(name) => format!("as {name:?} in the same directory"),
        Redirect::FromRoot(path) => format!("at {:?}", Path::new("/").join(path)),
    };
    match answer {
        Answer::Silent => "does not exist".into(),
        Answer::Hidden(Whiteout::Device) => "hidden by a whiteout (device 0:0)".into(),
        Answer::Hidden(Whiteout::Xattr) => "hidden by a whiteout (xattr)".into(),
        Answer::Hidden(Whiteout::Name) => "hidden by a whiteout (.wh. file)".into(),
        Answer::File {
            data: Data::Here,
            file,
            ..
        } => format!("a {:?}", file.stat.kind).to_lowercase(),
        Answer::File {
            data: Data::Below(None),
            ..
        } => "attributes of a file whose data is below".into(),
        Answer::File {
            data: Data::Below(Some(redirect)),
            ..
        } => {
            format!("attributes of a file whose data is below, {}", to(redirect))
        }
        Answer::Dir { opaque: true, .. } => {
            "a directory that hides all layers below (opaque)".into()
        }
        Answer::Dir { redirect: None, .. } => "a directory".into(),
        Answer::Dir {
            redirect: Some(redirect),
            ..
        } => {
            format!(
                "a renamed directory; the layers below have it {}",
                to(redirect)
            )
        }
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stop::Whiteout(_) => "a whiteout",
            Stop::Opaque => "an opaque directory",
            Stop::Found => "a file",
            Stop::OtherKind => "an entry of another type",
        })
    }
}
