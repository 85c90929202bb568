//! Layers of Vellum's own images under a client of the snapshotter: it learns that they exist and
//! unpacks nothing, and neither side loses anything when the other removes.

#[path = "support/snapshotter.rs"]
mod server;

use std::fs;
use std::path::Path;

use server::{Client, Labels, Server, labels, mount_at, refused, unmount, upper, value};
use tonic::Code;
use vellum_testkit::clients::run;

/// An image of two layers, `own:2`, and the chains of both.
fn two_layers(server: &Server) -> [String; 2] {
    let source = server.home.dir("source").unwrap();
    fs::create_dir(source.join("dir")).unwrap();
    fs::write(source.join("dir/kept"), "kept").unwrap();
    fs::write(source.join("dir/gone"), "gone").unwrap();
    let vellum = |arguments: &[&str]| run(server.vellum().arg("--quiet").args(arguments)).unwrap();
    vellum(&["import", source.to_str().unwrap(), "own:1"]);
    vellum(&["create", "--name", "box", "own:1"]);
    let tree = vellum(&["mount", "box"]);
    let tree = Path::new(tree.lines().last().unwrap());
    fs::remove_file(tree.join("dir/gone")).unwrap();
    fs::write(tree.join("dir/new"), "new").unwrap();
    vellum(&["umount", "box"]);
    vellum(&["commit", "box", "own:2"]);
    vellum(&["rm", "box"]);
    let said = vellum(&["inspect", "own:2"]);
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    [0, 1].map(|at| said[0]["layers"][at]["chain_id"].as_str().unwrap().into())
}

const REF: &str = "containerd.io/snapshot.ref";

fn target(chain: &str) -> Labels {
    labels(&[(REF, chain)])
}

/// Requests an extraction of `chain` as containerd does, and returns the layer found after that.
fn adopt(c: &Client, namespace: &str, chain: &str, parent: &str) -> String {
    let key = format!("{namespace}/extract {chain}");
    let answer = c.prepare_with(&key, parent, target(chain));
    refused(answer, Code::AlreadyExists, chain);
    refused(c.stat(&key), Code::NotFound, "extract");
    let filter = format!("labels.\"containerd.io/snapshot.ref\"=={chain},parent==\"{parent}\"");
    let [found] = c.names(&[&filter]).try_into().unwrap();
    found
}

#[test]
fn layers_of_vellums_own_images_are_adopted() {
    let Some(server) = Server::start(&[], &[]) else {
        return;
    };
    let c = server.client();
    let [below, above] = two_layers(&server);
    let one = adopt(&c, "one", &below, "");
    let two = adopt(&c, "one", &above, &one);
    // Another request, and one in another namespace, gives the same layer.
    assert_eq!(adopt(&c, "two", &below, ""), one);
    assert_eq!(adopt(&c, "two", &above, &one), two);
    let mut names = c.names(&[]);
    names.sort();
    let mut both = vec![one.clone(), two.clone()];
    both.sort();
    assert_eq!(names, both);
    let info = c.stat(&two).unwrap();
    assert_eq!(
        (info.parent.as_str(), &info.labels),
        (one.as_str(), &target(&above))
    );
    // Its usage is that of Vellum's layer.
    assert!(c.usage(&one).unwrap().1 >= 4);

    // Labels may be changed as usual, and don't reveal what else uses the layer.
    let mut changed = info.clone();
    changed.labels = labels(&[
        ("containerd.io/snapshot.ref", &above),
        ("vellum.containerd/stands-on", "x"),
    ]);
    c.update(changed.clone(), None).unwrap();
    changed
        .labels
        .insert("vellum.containerd/stands-on".into(), String::new());
    c.update(changed, Some(&["labels.vellum.containerd/stands-on"]))
        .unwrap();
    let info = c.stat(&two).unwrap();
    assert_eq!(
        (info.parent.as_str(), &info.labels),
        (one.as_str(), &target(&above))
    );

    // Clients can't change the chain by which the layer is found.
    let mut changed = info.clone();
    changed.labels = labels(&[("mine", "x")]);
    c.update(changed.clone(), None).unwrap();
    let chain = "containerd.io/snapshot.ref";
    changed.labels = labels(&[(chain, "sha256:other")]);
    c.update(changed, Some(&["labels.containerd.io/snapshot.ref"]))
        .unwrap();
    assert_eq!(
        c.stat(&two).unwrap().labels,
        labels(&[(chain, &above), ("mine", "x")])
    );
    assert_eq!(adopt(&c, "three", &above, &one), two);
    c.update(info, None).unwrap();

    // The trees are those of the image; a container on them writes to its own layer.
    let at = server.home.dir("at").unwrap();
    let shows = |mounts: &[_], entries: &[&str]| {
        mount_at(mounts, &at);
        let mut names: Vec<_> = fs::read_dir(at.join("dir"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        unmount(&at);
        assert_eq!(names, entries);
    };
    shows(&c.view("look", &one).unwrap(), &["gone", "kept"]);
    let mounts = c.prepare("box", &two).unwrap();
    shows(&mounts, &["kept", "new"]);
    // However many layers were adopted, there is one more snapshot.
    assert_eq!(value(&mounts[0], "lowerdir").split(':').count(), 3);

    // A parent stays as long as it has a child, even one that only the client sees.
    refused(c.remove(&two), Code::FailedPrecondition, "remove");
    refused(c.remove(&one), Code::FailedPrecondition, "remove");
    c.remove("look").unwrap();
    refused(c.remove(&one), Code::FailedPrecondition, "remove");

    // Vellum's image is removed; its layers stay while they are needed.
    run(server.vellum().args(["rmi", "own:2", "own:1"])).unwrap();
    run(server.vellum().args(["gc", "--quiet"])).unwrap();
    shows(&c.mounts("box").unwrap(), &["kept", "new"]);
    server.assert_sound();
    for key in ["box", &two, &one] {
        c.remove(key).unwrap();
    }
    run(server.vellum().args(["gc", "--quiet"])).unwrap();
    let left: Vec<_> = fs::read_dir(server.root().join("overlay2"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["l"]);
    server.assert_sound();
}

/// How containerd's unpacker of a version behaves (`core/unpack/unpacker.go`).
#[derive(Clone, Copy, Debug)]
struct Unpacker {
    /// 2.3 and later: layers are prepared without their parents, which the commits name.
    parallel: bool,
    /// 2.4 and later: an answer whose last mount is read-only means that the layer exists. In
    /// earlier versions the apply fails there.
    knows_staged: bool,
}

impl Unpacker {
    /// Unpacks an image whose layers each add a file named after them. Returns the image's top, and
    /// which layers were fetched and applied.
    fn unpack(self, c: &Client, namespace: &str, chains: &[String]) -> (String, Vec<usize>) {
        let mut applied = Vec::new();
        let mut waiting = Vec::new();
        let mut names: Vec<String> = Vec::new();
        for (at, chain) in chains.iter().enumerate() {
            let parent = match at {
                0 => "",
                _ if self.parallel => "",
                _ => &names[at - 1],
            };
            let mut wanted = target(chain);
            if at > 0 {
                let label = "containerd.io/snapshot/parent-chain-id";
                wanted.insert(label.into(), chains[at - 1].clone());
            }
            let key = format!("{namespace}/extract {chain}");
            let name = match c.prepare_with(&key, parent, wanted.clone()) {
                Err(status) => {
                    assert_eq!(status.code(), Code::AlreadyExists, "{status}");
                    // With these, containerd finds the snapshot that it regards as the chain's
                    // layer.
                    let filter = format!(
                        "labels.\"containerd.io/snapshot.ref\"=={chain},parent==\"{parent}\""
                    );
                    let [found] = c.names(&[&filter]).try_into().unwrap();
                    found
                }
                Ok(mounts) => {
                    let staged = mounts.last().unwrap().options.iter().any(|o| o == "ro");
                    assert!(
                        !staged || self.knows_staged,
                        "{self:?} can't apply: {mounts:?}"
                    );
                    if !staged {
                        fs::write(upper(&mounts).join(format!("layer-{at}")), chain).unwrap();
                        applied.push(at);
                    }
                    let name = format!("{namespace}/{chain}");
                    match self.parallel {
                        true => waiting.push((at, key, wanted)),
                        false => c.commit_on(&name, &key, wanted, "").unwrap(),
                    }
                    name
                }
            };
            names.push(name);
        }
        for (at, key, wanted) in waiting {
            let parent = if at > 0 { names[at - 1].as_str() } else { "" };
            c.commit_on(&names[at], &key, wanted, parent).unwrap();
        }
        (names.pop().unwrap(), applied)
    }
}

/// Unless `--staged-layers` is set, a parallel unpack adopts only the lowest layer; it always gets
/// the whole image.
#[test]
fn every_unpacker_gets_the_whole_image_and_nothing_read_only_by_accident() {
    unpack_with(&[]);
}

#[test]
fn a_parallel_unpacker_that_knows_staged_layers_adopts_them_all() {
    unpack_with(&["--staged-layers"]);
}

#[test]
fn a_staged_layer_is_committed_on_its_own_parent_only_and_outlives_vellums_image() {
    let Some(server) = Server::start(&[], &["--staged-layers"]) else {
        return;
    };
    let c = server.client();
    let [below, above] = two_layers(&server);
    let wanted = labels(&[
        (REF, &above),
        ("containerd.io/snapshot/parent-chain-id", &below),
    ]);
    let mounts = c.prepare_with("extract", "", wanted.clone()).unwrap();
    assert!(mounts.last().unwrap().options.contains(&"ro".to_owned()));
    assert_eq!(c.mounts("extract").unwrap(), mounts);
    let info = c.stat("extract").unwrap();
    assert_eq!((info.parent.as_str(), &info.labels), ("", &wanted));
    // On another layer, or on none, it would be another tree.
    c.layer("strange", "");
    for parent in ["strange", ""] {
        let answer = c.commit_on("top", "extract", wanted.clone(), parent);
        refused(answer, Code::InvalidArgument, "whose parent is not");
    }
    let one = adopt(&c, "one", &below, "");
    // With any labels on the commit.
    c.commit_on("top", "extract", Labels::new(), &one).unwrap();
    let info = c.stat("top").unwrap();
    assert_eq!(
        (info.parent.as_str(), &info.labels),
        (one.as_str(), &target(&above))
    );
    // A chain on another than Vellum's, a parent that is named, a chain that Vellum lacks: these
    // are unpacked.
    let on_other = labels(&[
        (REF, above.as_str()),
        ("containerd.io/snapshot/parent-chain-id", above.as_str()),
    ]);
    let unknown = labels(&[
        (REF, "sha256:12"),
        ("containerd.io/snapshot/parent-chain-id", &below),
    ]);
    for (key, asked) in [("other", on_other), ("unknown", unknown)] {
        let mounts = c.prepare_with(key, "", asked).unwrap();
        assert!(!mounts[0].options.contains(&"ro".to_owned()), "{mounts:?}");
        c.remove(key).unwrap();
    }
    // A staged layer that is never committed is removed.
    c.prepare_with("given up", "", wanted).unwrap();
    c.remove("given up").unwrap();
    run(server.vellum().args(["rmi", "own:2", "own:1"])).unwrap();
    run(server.vellum().args(["gc", "--quiet"])).unwrap();
    let at = server.home.dir("staged").unwrap();
    mount_at(&c.prepare("box", "top").unwrap(), &at);
    let seen = ["dir/kept", "dir/new", "dir/gone"].map(|name| at.join(name).exists());
    unmount(&at);
    assert_eq!(seen, [true, true, false]);
    server.assert_sound();
    for key in ["box", "top", &one, "strange"] {
        c.remove(key).unwrap();
    }
    assert!(c.names(&[]).is_empty());
    server.assert_sound();
}

fn unpack_with(flags: &[&str]) {
    let Some(server) = Server::start(&[], flags) else {
        return;
    };
    let staged = !flags.is_empty();
    let c = server.client();
    let own = two_layers(&server);
    let strange = [0, 1, 2].map(|at| format!("sha256:{at:064}"));
    let at = server.home.dir("whole").unwrap();
    for (number, (parallel, knows_staged)) in
        [(false, false), (false, true), (true, false), (true, true)]
            .into_iter()
            .enumerate()
    {
        // With the setting, a client that doesn't know staged layers is a configuration error.
        if staged && !knows_staged {
            continue;
        }
        let unpacker = Unpacker {
            parallel,
            knows_staged,
        };
        let namespace = format!("{number}");
        let shows = |top: &str, names: &[&str]| {
            let key = format!("look {top}");
            mount_at(&c.view(&key, top).unwrap(), &at);
            let found: Vec<bool> = names.iter().map(|name| at.join(name).exists()).collect();
            let is_empty_dir =
                fs::read_dir(at.join("dir")).is_ok_and(|mut dir| dir.next().is_none());
            unmount(&at);
            c.remove(&key).unwrap();
            assert!(
                found.iter().all(|&there| there),
                "{unpacker:?} {names:?}: {found:?}"
            );
            assert!(!is_empty_dir);
        };
        // Vellum's own image.
        let (top, applied) = unpacker.unpack(&c, &namespace, &own);
        match parallel {
            false => assert_eq!(applied, [0_usize; 0], "{unpacker:?}"),
            true if staged => assert_eq!(applied, [0_usize; 0], "{unpacker:?}"),
            true => assert_eq!(applied, [1], "{unpacker:?}"),
        }
        shows(&top, &["dir/kept"]);
        // The client sees its own layers, each on the one below, and nothing of Vellum's.
        let info = c.stat(&top).unwrap();
        let below = c.stat(&info.parent).unwrap();
        assert_eq!(below.labels[REF], own[0]);
        assert_eq!(info.labels[REF], own[1]);
        assert!(!info.labels.keys().any(|label| label.starts_with("vellum")));
        assert_eq!(below.parent, "");
        // It stays, whichever side removes what.
        server.assert_sound();
        // A layer that doesn't exist yet is unpacked; later requests adopt it.
        let chains = strange
            .clone()
            .map(|chain| chain.replace("sha256:0", &format!("sha256:{number}")));
        let (top, applied) = unpacker.unpack(&c, &format!("{namespace}a"), &chains);
        assert_eq!(applied, [0, 1, 2], "{unpacker:?}");
        shows(&top, &["layer-0", "layer-1", "layer-2"]);
        let (again, applied) = unpacker.unpack(&c, &format!("{namespace}b"), &chains);
        match parallel {
            false => assert_eq!(applied, [0_usize; 0], "{unpacker:?}"),
            true => assert_eq!(applied, [1, 2], "{unpacker:?}"),
        }
        shows(&again, &["layer-0", "layer-1", "layer-2"]);
    }
    server.assert_sound();
}

#[test]
fn only_the_same_chain_on_the_same_chain_is_adopted() {
    let Some(server) = Server::start(&[], &[]) else {
        return;
    };
    let c = server.client();
    let [below, above] = two_layers(&server);
    // On nothing, on a layer that says nothing, and on another chain the same changes are another
    // layer.
    c.prepare_with("a", "", target(&above)).unwrap();
    c.layer("silent", "");
    c.prepare_with("b", "silent", target(&above)).unwrap();
    c.prepare_with("other", "", target(&above)).unwrap();
    c.commit_on("another", "other", target("sha256:another"), "")
        .unwrap();
    c.prepare_with("c", "another", target(&above)).unwrap();
    // A key that is not a chain is not an image layer, and not every chain exists.
    c.prepare_with("d", "", target("containerd/silent"))
        .unwrap();
    c.prepare_with("e", "", target(&format!("sha256:{}", "0".repeat(64))))
        .unwrap();
    // A container's snapshot is prepared as usual.
    c.prepare("f", "").unwrap();

    // The chain below may also have been unpacked by the client.
    c.prepare_with("g", "silent", target(&below)).unwrap();
    c.commit_on("theirs", "g", target(&below), "").unwrap();
    let two = adopt(&c, "one", &above, "theirs");
    assert_eq!(c.stat(&two).unwrap().parent, "theirs");
    refused(c.remove("theirs"), Code::FailedPrecondition, "remove");
    c.remove(&two).unwrap();
    c.remove("theirs").unwrap();

    // While it is being unpacked, it can't be a parent.
    c.prepare_with("h", "silent", target(&below)).unwrap();
    let answer = c.prepare_with("i", "h", target(&above));
    refused(answer, Code::InvalidArgument, "only a committed snapshot");
    server.assert_sound();
}

#[test]
fn where_layers_are_copies_they_are_not_adopted() {
    let Some(server) = Server::start(&["--storage-driver", "native"], &[]) else {
        return;
    };
    let c = server.client();
    let [below, _] = two_layers(&server);
    c.prepare_with("a", "", target(&below)).unwrap();
    server.assert_sound();
}
