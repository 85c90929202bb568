//! The merge compared with the model: random layers in memory, every path of the union.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ffi::{OsStr, OsString};

use vellum_format::Redirect;
use vellum_testkit::Rng;
use vellum_testkit::model::{self, Object, Seen};
use vellum_union::resolve::{Answer, Ask, Data, Fault, MergeError, Merged, Part, Whiteout, merge};

/// Layers in memory.
struct Memory;

impl Ask for Memory {
    type Dir = model::Dir;
    type File = u32;
    type Error = Infallible;

    fn ask(
        &self,
        _: usize,
        dir: &model::Dir,
        name: &OsStr,
    ) -> Result<Answer<model::Dir, u32>, Infallible> {
        Ok(match dir.names.get(name.to_str().unwrap()) {
            None => Answer::Silent,
            Some(Object::Whiteout) => Answer::Hidden(Whiteout::Device),
            Some(Object::Special(id)) => Answer::File {
                file: *id,
                regular: false,
                data: Data::Here,
            },
            Some(Object::File(id)) => Answer::File {
                file: *id,
                regular: true,
                data: Data::Here,
            },
            Some(Object::Metacopy(id, redirect)) => Answer::File {
                file: *id,
                regular: true,
                data: Data::Below(convert(redirect)),
            },
            Some(Object::Dir(sub)) => Answer::Dir {
                dir: sub.clone(),
                opaque: sub.opaque,
                redirect: convert(&sub.redirect),
            },
        })
    }

    fn ask_data(&self, _: &[OsString]) -> Result<Option<(usize, u32)>, Infallible> {
        Ok(None)
    }
}

fn convert(redirect: &Option<model::Redirect>) -> Option<Redirect> {
    redirect.as_ref().map(|redirect| match redirect {
        model::Redirect::Sibling(name) => Redirect::Sibling(name.into()),
        model::Redirect::FromRoot(path) => Redirect::FromRoot(path.iter().collect()),
    })
}

/// The same view, by asking `merge` for every name that any layer has.
fn view(parts: &[Part<model::Dir>], roots: &[Part<model::Dir>]) -> BTreeMap<String, Seen> {
    let names = parts.iter().flat_map(|part| part.dir.names.keys());
    let mut seen = BTreeMap::new();
    for name in names {
        let found = match merge(&Memory, parts, roots, OsStr::new(name)) {
            Ok(Merged::Absent(_)) => continue,
            Ok(Merged::Dir { parts, .. }) => Seen::Dir(parts[0].dir.id, view(&parts, roots)),
            // The model tells special files from regular ones by their type; a merge leaves that to
            // the layer.
            Ok(Merged::File {
                layer,
                file,
                data: None,
            }) => match find(parts.iter().find(|part| part.layer == layer), name) {
                Some(Object::Special(_)) => Seen::Special(file),
                _ => Seen::File(file, file),
            },
            Ok(Merged::File {
                file,
                data: Some((_, data)),
                ..
            }) => Seen::File(file, data),
            Err(MergeError::Fault(Fault::NoData { .. })) => Seen::NoData,
            Err(MergeError::Fault(Fault::Dangling { .. })) => Seen::Dangling(BTreeMap::new()),
            Err(MergeError::Ask(never)) => match never {},
        };
        seen.insert(name.clone(), found);
    }
    seen
}

fn find<'a>(part: Option<&'a Part<model::Dir>>, name: &str) -> Option<&'a Object> {
    part.and_then(|part| part.dir.names.get(name))
}

#[test]
fn merge_agrees_with_the_model() {
    let mut rng = Rng::for_test("merge_agrees_with_the_model");
    let mut kinds = [0; 5];
    for _ in 0..30_000 {
        let layers: Vec<_> = (0..1 + rng.below(5))
            .map(|_| model::random_layer(&mut rng))
            .collect();
        let roots: Vec<_> = layers
            .iter()
            .enumerate()
            .map(|(layer, dir)| Part {
                layer,
                dir: dir.clone(),
            })
            .collect();
        let Seen::Dir(_, mut expect) = model::view(&layers) else {
            panic!("the root is a directory")
        };
        forget(&mut expect);
        let found = view(&roots, &roots);
        assert_eq!(found, expect, "layers, top first: {layers:#?}");
        count(&found, &mut kinds);
    }
    // A run without metacopies with data elsewhere, or without faults, proves little.
    assert!(kinds.iter().all(|&count| count > 1000), "{kinds:?}");
}

fn count(seen: &BTreeMap<String, Seen>, kinds: &mut [usize; 5]) {
    for object in seen.values() {
        match object {
            Seen::Special(_) => kinds[0] += 1,
            Seen::File(attributes, data) => kinds[1] += usize::from(attributes != data),
            Seen::NoData => kinds[2] += 1,
            Seen::Dangling(_) => kinds[4] += 1,
            Seen::Dir(_, names) => {
                kinds[3] += 1;
                count(names, kinds);
            }
        }
    }
}

/// Drops the content of unusable directories, which only the model has.
fn forget(seen: &mut BTreeMap<String, Seen>) {
    for object in seen.values_mut() {
        match object {
            Seen::Dangling(names) => names.clear(),
            Seen::Dir(_, names) => forget(names),
            _ => {}
        }
    }
}
