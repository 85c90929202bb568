//! Programs that make trees of layers: Docker, Podman and containerd, each with a store of its own,
//! and Vellum.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Cursor;
use std::path::Path;
use std::process::Command;

use vellum_format::Digest;
use vellum_image::apply::{ApplyTarget, Privilege, TargetMarks, apply};
use vellum_image::{Cancel, LayerStream, Limits, Platform};
use vellum_sys::Dir;
use vellum_testkit::clients::{Containerd, Dockerd, Home, Podman, run};
use vellum_testkit::{Scratch, Tree};

use super::raw::{self, Raw};

/// The result for a layer.
pub enum Made {
    /// A tree.
    Tree(Tree),
    /// Nothing, for this reason.
    Refused(String),
    /// A tree that can't be read: it lists names that are not there.
    Broken,
}

impl Made {
    fn read(root: &Path) -> Self {
        match Tree::read(root) {
            Ok(tree) => Made::Tree(tree),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Made::Broken,
            Err(error) => panic!("{}: {error}", root.display()),
        }
    }
}

/// The layer below each compared one.
pub fn below() -> Vec<u8> {
    let dir = |name| Raw::new(name, b'5').mode(0o755).block();
    let file = |name: &str| Raw::new(name, b'0').data(name.as_bytes());
    let parts = [
        dir("./"),
        file("a"),
        dir("b/"),
        file("b/x"),
        Raw::new("c", b'2').link("b").block(),
        Raw::new("dir/", b'5').mode(0o750).owner(5, 6).block(),
        file("dir/x"),
        file("hidden"),
    ];
    raw::archive(&parts)
}

/// What Vellum makes of `layer` above [`below`].
pub fn ours(layer: &[u8]) -> Made {
    let scratch = Scratch::new();
    let (limits, cancel) = (Limits::default(), Cancel::new());
    for bytes in [below(), layer.to_vec()] {
        let target = ApplyTarget {
            root: Dir::open(scratch.path()).unwrap(),
            marks: TargetMarks::Plain,
            privilege: Privilege::Full,
            donor: None,
        };
        let stream = LayerStream::open(Box::new(Cursor::new(bytes)), &limits, &cancel);
        let applied = stream.and_then(|stream| apply(stream, &target, None, &limits, &cancel));
        if let Err(error) = applied {
            return Made::Refused(chain(&error));
        }
    }
    Made::read(scratch.path())
}

/// The error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {}", chain(cause)),
        None => error.to_string(),
    }
}

/// An image archive as Docker writes it; image `t:N` has the layer of that number.
fn image_archive<'a>(layers: impl Iterator<Item = (usize, &'a [u8])>) -> Vec<u8> {
    let base = below();
    let mut files = vec![("below.tar".to_owned(), base.clone())];
    let mut manifest = Vec::new();
    let mut names = BTreeSet::new();
    for (number, layer) in layers {
        let digests = [Digest::of(&base), Digest::of(layer)];
        let config = serde_json::json!({
            "architecture": Platform::host().architecture,
            "os": "linux",
            "config": {"Labels": {"number": number.to_string()}},
            "rootfs": {"type": "layers", "diff_ids": digests},
        });
        let (config_name, name) = (
            format!("{number}.json"),
            format!("{}.tar", digests[1].hex()),
        );
        files.push((config_name.clone(), config.to_string().into_bytes()));
        if names.insert(name.clone()) {
            files.push((name.clone(), layer.to_vec()));
        }
        manifest.push(serde_json::json!({
            "Config": config_name, "RepoTags": [format!("t:{number}")], "Layers": ["below.tar", name],
        }));
    }
    let manifest = serde_json::Value::from(manifest).to_string();
    files.push(("manifest.json".to_owned(), manifest.into_bytes()));
    let entries = files
        .iter()
        .map(|(name, bytes)| Raw::new(name, b'0').data(bytes));
    raw::archive(&entries.collect::<Vec<_>>())
}

/// One of the three.
pub enum Peer {
    Docker(Dockerd, Home),
    Podman(Podman, Home),
    Containerd(Containerd, Home),
}

pub const PEERS: [&str; 3] = ["docker", "podman", "containerd"];

impl Peer {
    /// Starts the one with this name.
    pub fn start(name: &str) -> Self {
        let home = Home::new().unwrap();
        match name {
            "docker" => Peer::Docker(Dockerd::start(&home, &[]).unwrap(), home),
            "podman" => Peer::Podman(Podman::new(&home).unwrap(), home),
            _ => {
                let nothing = home.join("no-snapshotter");
                Peer::Containerd(Containerd::start(&home, &nothing).unwrap(), home)
            }
        }
    }

    fn home(&self) -> &Home {
        match self {
            Peer::Docker(_, home) | Peer::Podman(_, home) | Peer::Containerd(_, home) => home,
        }
    }

    /// The trees it makes of these layers above [`below`], in their order.
    pub fn trees(&self, layers: &[Vec<u8>]) -> Vec<Made> {
        let mut made = BTreeMap::new();
        let numbers: Vec<usize> = (0..layers.len()).collect();
        for chunk in numbers.chunks(16) {
            self.load(layers, chunk, &mut made);
        }
        made.into_values().collect()
    }

    /// Loads these together and, if that fails, each half separately: what one can't accept is not
    /// the others' fault.
    fn load(&self, layers: &[Vec<u8>], numbers: &[usize], made: &mut BTreeMap<usize, Made>) {
        let archive = self.home().join("images.tar");
        let chosen = numbers
            .iter()
            .map(|&number| (number, layers[number].as_slice()));
        fs::write(&archive, image_archive(chosen)).unwrap();
        let loaded = match self {
            Peer::Docker(docker, _) => docker.load(&archive),
            Peer::Podman(podman, _) => podman.load(&archive),
            Peer::Containerd(containerd, _) => {
                containerd.ctr(&["images", "import", archive.to_str().unwrap()])
            }
        };
        match (loaded, numbers) {
            (Ok(_), _) => {
                for &number in numbers {
                    made.insert(number, self.tree(number));
                }
            }
            (Err(error), &[number]) => {
                made.insert(number, Made::Refused(format!("{error:#}")));
            }
            (Err(_), _) => {
                let (first, second) = numbers.split_at(numbers.len() / 2);
                self.load(layers, first, made);
                self.load(layers, second, made);
            }
        }
    }

    /// The tree of image `t:NUMBER`.
    fn tree(&self, number: usize) -> Made {
        let at = self.home().dir("tree").unwrap();
        match self {
            Peer::Docker(docker, _) => {
                docker.mount_image(&format!("t:{number}"), &at).unwrap();
            }
            Peer::Podman(podman, _) => {
                let name = format!("localhost/t:{number}");
                return Made::read(&podman.mount_image(&name).unwrap());
            }
            Peer::Containerd(containerd, _) => {
                let name = format!("docker.io/library/t:{number}");
                containerd
                    .ctr(&["images", "mount", &name, at.to_str().unwrap()])
                    .unwrap();
            }
        }
        let tree = Made::read(&at);
        run(Command::new("umount").arg(&at)).unwrap();
        if let Peer::Containerd(containerd, _) = self {
            let at = at.to_str().unwrap();
            containerd.ctr(&["snapshots", "remove", at]).unwrap();
        }
        tree
    }
}
