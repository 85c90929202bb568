//! The merge: what a union has under one name, from each layer's answer about it.
//!
//! [`merge`] is pure. It is given the directories that make up the parent, one per layer, top
//! first, and asks them one after the other through [`Ask`], never one whose answer can no longer
//! matter. What it must not know: files, xattrs, dialects. If this file is wrong, everything above
//! is: lookup, listing, changes and (for an engine that writes) copy-up all rest on it. The model
//! in the testkit is an independent implementation to check it against.
//!
//! The rules are the kernel's (`fs/overlayfs/namei.c`), in short:
//!
//! * The first layer that knows the name decides. A whiteout says there is no such name, and ends
//!   the search.
//! * A file ends the search, unless its data is below: then the search continues for a regular
//!   file.
//! * A directory is merged with directories of that name below, until one is opaque, or a layer has
//!   a whiteout or a file there.
//! * A redirect changes where the layers *below* are asked: another name in the same directory, or
//!   a path from the root. On that path, directories may again be hidden, opaque, or redirected;
//!   each counts for the layers below it. A redirect from the root asks all layers below, also
//!   those in which the parent directory has no share.
//!
//! Stricter than the kernel: a directory's redirect that finds no directory is an error, not an
//! empty directory.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use vellum_format::Redirect;

/// How a name is hidden.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Whiteout {
    /// A character device 0:0.
    Device,
    /// An empty file with a `whiteout` xattr.
    Xattr,
    /// A file called `.wh.` and the name.
    Name,
}

/// Where a file's data is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// In this layer (also for every other type of file).
    Here,
    /// Below, under the same name or where the redirect says.
    Below(Option<Redirect>),
}

/// What one layer says about one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer<D, F> {
    /// Nothing.
    Silent,
    /// There is no such name, whatever is below.
    Hidden(Whiteout),
    /// It is not a directory.
    File {
        /// The file, in the layer's own type.
        file: F,
        /// Whether it is a regular file; only a regular file can have another's data.
        regular: bool,
        /// Where the data is.
        data: Data,
    },
    /// It is a directory.
    Dir {
        /// The directory, in the layer's own type.
        dir: D,
        /// Nothing below shows through. An opaque directory's redirect is ignored.
        opaque: bool,
        /// Where to ask the layers below; `None` for the same path.
        redirect: Option<Redirect>,
    },
}

/// Answers for the layers.
pub trait Ask {
    /// A directory of one layer.
    type Dir: Clone;
    /// A file of one layer.
    type File;
    /// Why there is no answer.
    type Error;

    /// Returns what layer `layer` says about `name` in its directory `dir`.
    fn ask(
        &self,
        layer: usize,
        dir: &Self::Dir,
        name: &OsStr,
    ) -> Result<Answer<Self::Dir, Self::File>, Self::Error>;

    /// Returns the regular file at `path` in the topmost data-only layer that has one, with that
    /// layer's number.
    fn ask_data(&self, path: &[OsString]) -> Result<Option<(usize, Self::File)>, Self::Error>;
}

/// A directory's share in one layer. Layers are counted from the top, 0 first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part<D> {
    /// The layer.
    pub layer: usize,
    /// The directory in it.
    pub dir: D,
}

/// What ended the search before the last layer was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stop {
    /// A whiteout, on the name or on the way to it.
    Whiteout(Whiteout),
    /// An opaque directory: the one found, or one on the way.
    Opaque,
    /// A file with its data: the search was successful.
    Found,
    /// An entry of another type than the one above: a file under a directory, or a directory under
    /// a file.
    OtherKind,
}

/// What the union has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Merged<D, F> {
    /// Nothing. If a whiteout hides the name, it comes with its layer.
    Absent(Option<(usize, Stop)>),
    /// A file.
    File {
        /// The layer whose attributes it has.
        layer: usize,
        /// The file in that layer.
        file: F,
        /// The layer and file that have its data, if not these.
        data: Option<(usize, F)>,
    },
    /// A directory.
    Dir {
        /// Its shares, top first, at least one. The first has its attributes.
        parts: Vec<Part<D>>,
        /// Whether a share was found through a redirect.
        redirected: bool,
        /// What ended the search, and in which layer.
        stop: Option<(usize, Stop)>,
    },
}

/// Marks that contradict what is below.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// A file's data should be below but is not.
    NoData {
        /// The layer with the mark.
        layer: usize,
        /// Something else is in its place.
        obstructed: bool,
    },
    /// A directory's redirect finds no directory.
    Dangling {
        /// The layer with the mark.
        layer: usize,
        /// Where it points.
        to: PathBuf,
    },
}

/// Why a merge failed: the layers did not answer, or contradict each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MergeError<E> {
    /// No answer.
    Ask(E),
    /// A contradiction.
    Fault(Fault),
}

/// The result of a merge, for an implementation of [`Ask`].
pub type Outcome<A> =
    Result<Merged<<A as Ask>::Dir, <A as Ask>::File>, MergeError<<A as Ask>::Error>>;

/// Where the search asks the next layer.
enum SearchPath {
    /// Under this name in the parent's own share.
    Sibling(OsString),
    /// Under this path from the layer's root.
    FromRoot(Vec<OsString>),
}

/// Returns what the union has under `name` in the directory made up of `parent`.
///
/// `roots` are the shares of the union's root: one for every layer that is not data-only. Both are
/// sorted, top first.
pub fn merge<A: Ask>(
    ask: &A,
    parent: &[Part<A::Dir>],
    roots: &[Part<A::Dir>],
    name: &OsStr,
) -> Outcome<A> {
    let mut search = Search {
        ask,
        place: SearchPath::Sibling(name.to_owned()),
        found: FoundSoFar::Nothing,
        stop: None,
        awaiting: None,
        redirected: false,
    };
    let mut shares = parent;
    let mut next = 0;
    while let Some(share) = shares.get(next) {
        next += 1;
        search.layer(share).map_err(MergeError::Ask)?;
        if search.stop.is_some() {
            break;
        }
        if matches!(search.place, SearchPath::FromRoot(_)) && !std::ptr::eq(shares, roots) {
            shares = roots;
            next = roots.partition_point(|root| root.layer <= share.layer);
        }
    }
    search.conclude()
}

/// What the layers asked so far have under the name.
enum FoundSoFar<D, F> {
    Nothing,
    /// A file; `data` once it is found, if it is not the file's own.
    File {
        layer: usize,
        file: F,
        needs_data: bool,
        data: Option<(usize, F)>,
    },
    Dir(Vec<Part<D>>),
}

struct Search<'a, A: Ask> {
    ask: &'a A,
    place: SearchPath,
    found: FoundSoFar<A::Dir, A::File>,
    stop: Option<(usize, Stop)>,
    /// A directory's redirect that has not found anything yet.
    awaiting: Option<(usize, PathBuf)>,
    redirected: bool,
}

impl<A: Ask> Search<'_, A> {
    /// Asks one layer, walking the path if there is one.
    fn layer(&mut self, share: &Part<A::Dir>) -> Result<(), A::Error> {
        let path = match &self.place {
            SearchPath::Sibling(name) => vec![name.clone()],
            SearchPath::FromRoot(path) => path.clone(),
        };
        let mut dir = share.dir.clone();
        for (depth, name) in path.iter().enumerate() {
            let answer = self.ask.ask(share.layer, &dir, name)?;
            if depth + 1 == path.len() {
                self.last(share.layer, answer);
                return Ok(());
            }
            match answer {
                // An opaque directory further up may have ended the search already.
                Answer::Silent => return Ok(()),
                Answer::Hidden(whiteout) => {
                    self.stop = Some((share.layer, Stop::Whiteout(whiteout)));
                    return Ok(());
                }
                Answer::File { .. } => {
                    self.stop = Some((share.layer, Stop::OtherKind));
                    return Ok(());
                }
                Answer::Dir {
                    dir: below,
                    opaque,
                    redirect,
                } => {
                    dir = below;
                    match redirect {
                        _ if opaque => self.stop = Some((share.layer, Stop::Opaque)),
                        Some(redirect) => self.follow(&redirect, path.len() - depth - 1),
                        None => {}
                    }
                }
            }
        }
        Ok(())
    }

    /// Handles the answer about the last component, the entry itself.
    fn last(&mut self, layer: usize, answer: Answer<A::Dir, A::File>) {
        let mut stop = |why| self.stop = Some((layer, why));
        match (answer, &mut self.found) {
            (Answer::Silent, _) => {}
            (Answer::Hidden(whiteout), _) => stop(Stop::Whiteout(whiteout)),
            (Answer::File { .. }, FoundSoFar::Dir(_))
            | (Answer::Dir { .. }, FoundSoFar::File { .. }) => stop(Stop::OtherKind),
            (Answer::File { regular: false, .. }, FoundSoFar::File { .. }) => stop(Stop::OtherKind),
            (
                Answer::File {
                    file,
                    data: Data::Here,
                    ..
                },
                found,
            ) => {
                stop(Stop::Found);
                match found {
                    FoundSoFar::File {
                        data, needs_data, ..
                    } => (*data, *needs_data) = (Some((layer, file)), false),
                    _ => {
                        *found = FoundSoFar::File {
                            layer,
                            file,
                            needs_data: false,
                            data: None,
                        }
                    }
                }
            }
            (
                Answer::File {
                    file,
                    data: Data::Below(redirect),
                    ..
                },
                found,
            ) => {
                if let FoundSoFar::Nothing = found {
                    *found = FoundSoFar::File {
                        layer,
                        file,
                        needs_data: true,
                        data: None,
                    };
                }
                if let Some(redirect) = redirect {
                    self.follow(&redirect, 0);
                }
            }
            (
                Answer::Dir {
                    dir,
                    opaque,
                    redirect,
                },
                found,
            ) => {
                if opaque {
                    stop(Stop::Opaque);
                }
                let part = Part { layer, dir };
                match found {
                    FoundSoFar::Dir(parts) => parts.push(part),
                    _ => *found = FoundSoFar::Dir(vec![part]),
                }
                self.awaiting = None;
                if let (Some(redirect), false) = (redirect, opaque) {
                    self.redirected = true;
                    self.follow(&redirect, 0);
                    let to = match redirect {
                        Redirect::Sibling(name) => PathBuf::from(name),
                        Redirect::FromRoot(path) => PathBuf::from("/").join(path),
                    };
                    self.awaiting = Some((layer, to));
                }
            }
        }
    }

    /// Applies the redirect of the component that `rest` more follow: it changes where the layers
    /// below are asked.
    ///
    /// Counted from the end, because a redirect further up may already have changed the beginning.
    fn follow(&mut self, redirect: &Redirect, rest: usize) {
        let (before, behind) = match &self.place {
            SearchPath::Sibling(_) => (&[][..], &[][..]),
            SearchPath::FromRoot(path) => {
                (&path[..path.len() - rest - 1], &path[path.len() - rest..])
            }
        };
        self.place = match (redirect, &self.place) {
            (Redirect::FromRoot(to), _) => {
                // An opaque directory on the way ended the search at its own path; this is
                // another one.
                self.stop = None;
                SearchPath::FromRoot(
                    to.iter()
                        .map(OsString::from)
                        .chain(behind.iter().cloned())
                        .collect(),
                )
            }
            (Redirect::Sibling(name), SearchPath::Sibling(_)) => SearchPath::Sibling(name.clone()),
            (Redirect::Sibling(name), SearchPath::FromRoot(_)) => SearchPath::FromRoot(
                before
                    .iter()
                    .cloned()
                    .chain([name.clone()])
                    .chain(behind.iter().cloned())
                    .collect(),
            ),
        };
    }

    fn conclude(self) -> Outcome<A> {
        let stop = self.stop;
        match self.found {
            FoundSoFar::Nothing => Ok(Merged::Absent(stop)),
            FoundSoFar::Dir(parts) => match self.awaiting {
                Some((layer, to)) => Err(MergeError::Fault(Fault::Dangling { layer, to })),
                None => Ok(Merged::Dir {
                    parts,
                    redirected: self.redirected,
                    stop,
                }),
            },
            FoundSoFar::File {
                layer,
                file,
                needs_data: false,
                data,
            } => Ok(Merged::File { layer, file, data }),
            FoundSoFar::File {
                layer,
                file,
                needs_data: true,
                ..
            } => {
                // Data-only layers are not merged: what ended the search in the others does not
                // concern them.
                let data = match &self.place {
                    SearchPath::FromRoot(path) => {
                        self.ask.ask_data(path).map_err(MergeError::Ask)?
                    }
                    SearchPath::Sibling(_) => None,
                };
                match data {
                    Some(_) => Ok(Merged::File { layer, file, data }),
                    None => Err(MergeError::Fault(Fault::NoData {
                        layer,
                        obstructed: stop.is_some(),
                    })),
                }
            }
        }
    }
}
