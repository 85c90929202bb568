//! What a data root contains that is not needed, and why: Docker itself never looks for it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use vellum_sys::FileKind;

use super::{DockerRoot, is_hex_id};

/// Something that is not needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Orphan {
    /// Where it is, in the data root.
    pub path: PathBuf,
    /// Why it is not needed.
    pub why: String,
}

/// A container of the data root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DockerContainer {
    /// Its id.
    pub id: String,
    /// Its name without the slash; empty if the daemon's own file about it can't be read.
    pub name: String,
    /// The id of its image; empty likewise.
    pub image: String,
}

impl DockerRoot {
    /// Returns the containers that have a writable layer here, by id.
    pub fn containers(&self) -> Vec<DockerContainer> {
        let ids = self.names_in(&self.layerdb("mounts"));
        ids.into_iter()
            .filter(|id| is_hex_id(id))
            .map(|id| {
                let about = self
                    .read(&Path::new("containers").join(&id).join("config.v2.json"))
                    .ok()
                    .and_then(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).ok())
                    .unwrap_or_default();
                let text = |name: &str| about[name].as_str().unwrap_or_default().to_owned();
                DockerContainer {
                    name: text("Name").trim_start_matches('/').to_owned(),
                    image: text("Image"),
                    id,
                }
            })
            .collect()
    }

    /// Returns what is not needed, by path. Nothing is changed. A running daemon's work in progress
    /// may be listed too.
    pub fn orphans(&self) -> Vec<Orphan> {
        let mut found = Vec::new();
        let mut say = |path: PathBuf, why: &str| {
            found.push(Orphan {
                path,
                why: why.to_owned(),
            });
        };
        for (path, why) in &self.bad_layers {
            say(path.clone(), why);
        }
        for name in self.names_in(&self.layerdb("tmp")) {
            let path = self.layerdb("tmp").join(&name);
            match name.starts_with("write-set-") {
                true => say(path, "a layer that was being stored when the daemon ended"),
                false => say(path, "unknown to Docker"),
            }
        }
        let wanted = self.wanted_chains();
        for chain in self.layers.keys().filter(|chain| !wanted.contains(*chain)) {
            let path = self.layerdb("sha256").join(chain);
            say(path, "a layer that no image or container uses");
        }
        let mut known: BTreeMap<String, PathBuf> = BTreeMap::new();
        for (chain, layer) in &self.layers {
            known.insert(layer.cache_id.clone(), self.layerdb("sha256").join(chain));
        }
        for id in self.names_in(&self.layerdb("mounts")) {
            let path = self.layerdb("mounts").join(&id);
            for file in ["mount-id", "init-id"] {
                if let Ok(tree) = self.read_text(&path.join(file)) {
                    known.insert(tree, path.clone());
                }
            }
            if self.kind(&Path::new("containers").join(&id)) != Some(FileKind::Dir) {
                say(path, "the writable layer of a container that is gone");
            }
        }
        let home = Path::new("overlay2");
        let trees: BTreeSet<String> = self.names_in(home).into_iter().collect();
        for tree in trees.iter().filter(|tree| *tree != "l") {
            let path = home.join(tree);
            match (known.contains_key(tree), tree.ends_with("-removing")) {
                (true, _) => {}
                (false, true) => say(path, "a removal that was cut short"),
                (false, false) => say(path, "a tree that no layer or container uses"),
            }
        }
        for (tree, owner) in &known {
            if !trees.contains(tree) {
                say(
                    owner.clone(),
                    &format!("its tree overlay2/{tree} is missing"),
                );
            }
        }
        self.find_odd_links(&mut say);
        found.sort_by(|a, b| a.path.cmp(&b.path));
        found
    }

    /// Names under `l/` that point to nothing, or to a tree with another short name.
    fn find_odd_links(&self, say: &mut impl FnMut(PathBuf, &str)) {
        let links = Path::new("overlay2/l");
        let Ok(dir) = self.dir.open_dir(links) else {
            return;
        };
        for name in self.names_in(links) {
            let path = links.join(&name);
            let Ok(target) = dir.read_link(&name) else {
                say(path, "not a symbolic link");
                continue;
            };
            let tree = Path::new(&target)
                .strip_prefix("..")
                .ok()
                .and_then(|rest| rest.strip_suffix_component("diff"));
            let Some(tree) = tree else {
                say(path, "a short name that does not point to a tree");
                continue;
            };
            let own = Path::new("overlay2").join(&tree);
            if self.kind(&own.join("diff")) != Some(FileKind::Dir) {
                say(path, "a short name whose tree is gone");
            } else if self.read_text(&own.join("link")).ok().as_deref() != Some(&name) {
                say(path, "a short name that its tree does not have");
            }
        }
    }

    /// Returns the chains that images and containers use, with all chains below them.
    fn wanted_chains(&self) -> BTreeSet<String> {
        let mut wanted = BTreeSet::new();
        let mut waiting: Vec<String> = self.image_chains.clone();
        for id in self.names_in(&self.layerdb("mounts")) {
            let parent = self.read_text(&self.layerdb("mounts").join(id).join("parent"));
            waiting.extend(
                parent
                    .ok()
                    .and_then(|p| Some(p.strip_prefix("sha256:")?.to_owned())),
            );
        }
        while let Some(chain) = waiting.pop() {
            if wanted.insert(chain.clone())
                && let Some(layer) = self.layers.get(&chain)
            {
                waiting.extend(layer.parent.clone());
            }
        }
        wanted
    }

    /// Returns the type of the file at `path`, not following links; `None` if nothing can be seen
    /// there.
    fn kind(&self, path: &Path) -> Option<FileKind> {
        let above = path.parent().filter(|above| !above.as_os_str().is_empty());
        let dir = match above {
            Some(above) => self.dir.open_dir(above).ok()?,
            None => self.dir.dup().ok()?,
        };
        Some(dir.stat(path.file_name()?).ok()?.kind)
    }
}

trait WithoutLast {
    /// Returns what is before `last`, if that is one component.
    fn strip_suffix_component(&self, last: &str) -> Option<String>;
}

impl WithoutLast for Path {
    fn strip_suffix_component(&self, last: &str) -> Option<String> {
        let parts: Vec<&OsStr> = self.iter().collect();
        match parts.as_slice() {
            [tree, end] if *end == OsStr::new(last) => Some(tree.to_str()?.to_owned()),
            _ => None,
        }
    }
}
