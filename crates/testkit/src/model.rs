//! The merge of layers, written a second time: in memory, eager, from the bottom up.
//!
//! The union crate reads layers one by one from the top and stops as soon as it can. This model
//! does the opposite: it begins with the lowest layer as the whole view, and lays each layer over
//! the finished view of those below it. A redirect is then a plain lookup in that view. The two
//! share no code and no idea but the format's meaning, so a mistake in one shows as a difference.

use std::collections::BTreeMap;

use crate::Rng;

/// Where a layer says that content is found below.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Redirect {
    /// Another name in the same directory.
    Sibling(String),
    /// A path from the root.
    FromRoot(Vec<String>),
}

/// One object of a layer, as an engine would have written it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Object {
    /// Hides the name.
    Whiteout,
    /// Something that is neither directory nor regular file.
    Special(u32),
    /// A file with its data. The numbers stand for attributes and data.
    File(u32),
    /// A file with attributes only.
    Metacopy(u32, Option<Redirect>),
    /// A directory.
    Dir(Dir),
}

/// A directory of a layer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Dir {
    /// Stands for attributes.
    pub id: u32,
    /// Hides what is below.
    pub opaque: bool,
    /// Where to look below.
    pub redirect: Option<Redirect>,
    /// What is in it.
    pub names: BTreeMap<String, Object>,
}

/// One object of the finished view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// Neither directory nor regular file.
    Special(u32),
    /// A regular file: the layers of its attributes and its data.
    File(u32, u32),
    /// A directory: the layer of its attributes, and its content.
    Dir(u32, BTreeMap<String, Seen>),
    /// A file whose data is not where its mark says. Using the name is an error.
    NoData,
    /// A directory that was renamed, and whose old content is not where its mark says. Using the
    /// name is an error; its own content is still found by a redirect that leads through it.
    Dangling(BTreeMap<String, Seen>),
}

/// Returns the view of a union of `layers`, the top one first; there must be at least one.
pub fn view(layers: &[Dir]) -> Seen {
    let (lowest, above) = layers.split_last().expect("a union has a layer");
    let empty = Seen::Dir(0, BTreeMap::new());
    above
        .iter()
        .rev()
        .fold(over(lowest, None, &empty), |below, layer| {
            over(layer, Some(&below), &below)
        })
}

/// Lays the directory `dir` of one layer over what is below it; `root` is the whole view below.
fn over(dir: &Dir, below: Option<&Seen>, root: &Seen) -> Seen {
    let lower = match below {
        Some(Seen::Dir(_, names) | Seen::Dangling(names)) => names.clone(),
        _ => BTreeMap::new(),
    };
    let mut names = lower.clone();
    let find = |name: &String, redirect: &Option<Redirect>| match redirect {
        None => lower.get(name),
        Some(Redirect::Sibling(other)) => lower.get(other),
        Some(Redirect::FromRoot(path)) => path.iter().try_fold(root, |at, name| match at {
            Seen::Dir(_, names) | Seen::Dangling(names) => names.get(name),
            _ => None,
        }),
    };
    for (name, object) in &dir.names {
        let seen = match object {
            Object::Whiteout => {
                names.remove(name);
                continue;
            }
            Object::Special(id) => Seen::Special(*id),
            Object::File(id) => Seen::File(*id, *id),
            Object::Metacopy(id, redirect) => match find(name, redirect) {
                Some(Seen::File(_, data)) => Seen::File(*id, *data),
                _ => Seen::NoData,
            },
            Object::Dir(sub) if sub.opaque => over(sub, None, root),
            Object::Dir(sub) => match (&sub.redirect, find(name, &sub.redirect)) {
                (_, found @ Some(Seen::Dangling(_))) => dangling(over(sub, found, root)),
                (_, found @ Some(Seen::Dir(..))) => over(sub, found, root),
                (Some(_), _) => dangling(over(sub, None, root)),
                (None, _) => over(sub, None, root),
            },
        };
        names.insert(name.clone(), seen);
    }
    Seen::Dir(dir.id, names)
}

fn dangling(seen: Seen) -> Seen {
    match seen {
        Seen::Dir(_, names) => Seen::Dangling(names),
        other => other,
    }
}

/// Returns a random layer over few names, so that layers meet often. Most redirects point at
/// something plausible.
pub fn random_layer(rng: &mut Rng) -> Dir {
    let mut next = rng.next() as u32;
    random_dir(rng, 3, &mut next)
}

fn random_dir(rng: &mut Rng, depth: usize, next: &mut u32) -> Dir {
    *next = next.wrapping_add(1);
    let mut dir = Dir {
        id: *next,
        opaque: rng.chance(15),
        ..Dir::default()
    };
    for name in NAMES {
        if !rng.chance(55) {
            continue;
        }
        *next = next.wrapping_add(1);
        let object = match rng.below(10) {
            0 | 1 => Object::Whiteout,
            2 => Object::Special(*next),
            3 | 4 => Object::File(*next),
            5 => Object::Metacopy(*next, random_redirect(rng)),
            _ if depth == 0 => Object::File(*next),
            _ => {
                let mut sub = random_dir(rng, depth - 1, next);
                sub.redirect = random_redirect(rng);
                Object::Dir(sub)
            }
        };
        dir.names.insert(name.to_string(), object);
    }
    dir
}

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

fn random_redirect(rng: &mut Rng) -> Option<Redirect> {
    match rng.below(6) {
        0 => Some(Redirect::Sibling(rng.pick(&NAMES).to_string())),
        1 | 2 => {
            let depth = 1 + rng.below(3);
            Some(Redirect::FromRoot(
                (0..depth).map(|_| rng.pick(&NAMES).to_string()).collect(),
            ))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir(id: u32, names: &[(&str, Object)]) -> Dir {
        let names = names
            .iter()
            .map(|(name, object)| (name.to_string(), object.clone()))
            .collect();
        Dir {
            id,
            names,
            ..Dir::default()
        }
    }

    fn seen(id: u32, names: &[(&str, Seen)]) -> Seen {
        Seen::Dir(
            id,
            names
                .iter()
                .map(|(name, seen)| (name.to_string(), seen.clone()))
                .collect(),
        )
    }

    #[test]
    fn a_renamed_directory_keeps_its_content() {
        let lower = dir(
            1,
            &[(
                "a",
                Object::Dir(dir(2, &[("x", Object::File(3)), ("y", Object::File(4))])),
            )],
        );
        let moved = Dir {
            redirect: Some(Redirect::FromRoot(vec!["a".into()])),
            ..dir(
                6,
                &[("y", Object::Whiteout), ("x", Object::Metacopy(7, None))],
            )
        };
        let upper = dir(5, &[("a", Object::Whiteout), ("b", Object::Dir(moved))]);
        assert_eq!(
            view(&[upper, lower]),
            seen(5, &[("b", seen(6, &[("x", Seen::File(7, 3))]))])
        );
    }

    #[test]
    fn contradictions_are_broken() {
        let upper = dir(
            5,
            &[
                ("a", Object::Metacopy(6, None)),
                ("b", Object::Metacopy(7, None)),
            ],
        );
        let lower = dir(1, &[("a", Object::Dir(dir(2, &[])))]);
        assert_eq!(
            view(&[upper, lower]),
            seen(5, &[("a", Seen::NoData), ("b", Seen::NoData)])
        );
    }
}
