//! The kubelet's interface: containerd's own CRI plugin, configured by `vellum node install`, keeps pods on Vellum's snapshotter.
//!
//! There is no kubelet and no network here: pods are in the node's network, as those of a control plane are, and the kubelet's part is a client with
//! the few messages that it takes.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use vellum_testkit::clients::{
    Access, Containerd, Home, Registry, Skopeo, SnapshotServer, available, run, small_image,
};

/// Messages of `runtime.v1`, as far as they are needed; the numbers are the contract's.
mod api {
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct PodMetadata {
        #[prost(string, tag = "1")]
        pub name: String,
        #[prost(string, tag = "2")]
        pub uid: String,
        #[prost(string, tag = "3")]
        pub namespace: String,
    }

    /// 0 pod, 1 container, 2 node.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct NamespaceOption {
        #[prost(int32, tag = "1")]
        pub network: i32,
        #[prost(int32, tag = "2")]
        pub pid: i32,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct SecurityContext {
        #[prost(message, optional, tag = "1")]
        pub namespaces: Option<NamespaceOption>,
    }

    /// Of a pod: its second field. Of a container: see [`ContainerLinux`].
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct PodLinux {
        #[prost(message, optional, tag = "2")]
        pub security: Option<SecurityContext>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct PodConfig {
        #[prost(message, optional, tag = "1")]
        pub metadata: Option<PodMetadata>,
        #[prost(message, optional, tag = "8")]
        pub linux: Option<PodLinux>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct RunPod {
        #[prost(message, optional, tag = "1")]
        pub config: Option<PodConfig>,
    }

    /// Many requests and answers have one string, the first field.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Id {
        #[prost(string, tag = "1")]
        pub id: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct ImageSpec {
        #[prost(string, tag = "1")]
        pub image: String,
    }

    /// PullImage, ImageStatus and RemoveImage.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct OfImage {
        #[prost(message, optional, tag = "1")]
        pub image: Option<ImageSpec>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Image {
        #[prost(string, tag = "1")]
        pub id: String,
        #[prost(uint64, tag = "4")]
        pub size: u64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct ImageStatus {
        #[prost(message, optional, tag = "1")]
        pub image: Option<Image>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct ContainerMetadata {
        #[prost(string, tag = "1")]
        pub name: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct ContainerLinux {
        #[prost(message, optional, tag = "2")]
        pub security: Option<ContainerSecurity>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct ContainerSecurity {
        #[prost(message, optional, tag = "3")]
        pub namespaces: Option<NamespaceOption>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct ContainerConfig {
        #[prost(message, optional, tag = "1")]
        pub metadata: Option<ContainerMetadata>,
        #[prost(message, optional, tag = "2")]
        pub image: Option<ImageSpec>,
        #[prost(string, repeated, tag = "3")]
        pub command: Vec<String>,
        #[prost(message, optional, tag = "15")]
        pub linux: Option<ContainerLinux>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct CreateContainer {
        #[prost(string, tag = "1")]
        pub pod: String,
        #[prost(message, optional, tag = "2")]
        pub config: Option<ContainerConfig>,
        #[prost(message, optional, tag = "3")]
        pub pod_config: Option<PodConfig>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct ExecSync {
        #[prost(string, tag = "1")]
        pub id: String,
        #[prost(string, repeated, tag = "2")]
        pub command: Vec<String>,
        #[prost(int64, tag = "3")]
        pub timeout_seconds: i64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct ExecDone {
        #[prost(bytes = "vec", tag = "1")]
        pub out: Vec<u8>,
        #[prost(bytes = "vec", tag = "2")]
        pub err: Vec<u8>,
        #[prost(int32, tag = "3")]
        pub code: i32,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Nothing {}

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Number {
        #[prost(uint64, tag = "1")]
        pub value: u64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct FsUsage {
        #[prost(message, optional, tag = "3")]
        pub bytes: Option<Number>,
        #[prost(message, optional, tag = "4")]
        pub inodes: Option<Number>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct FsInfo {
        #[prost(message, repeated, tag = "1")]
        pub images: Vec<FsUsage>,
    }
}

/// The kubelet's part.
struct Kubelet {
    runtime: tokio::runtime::Runtime,
    channel: tonic::transport::Channel,
}

impl Kubelet {
    fn of(socket: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let address = format!("unix://{}", socket.display());
        let endpoint = tonic::transport::Endpoint::from_shared(address).unwrap();
        let channel = runtime.block_on(async { endpoint.connect_lazy() });
        Self { runtime, channel }
    }

    fn call<Q, A>(&self, service: &str, method: &str, request: Q) -> Result<A, tonic::Status>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let path = format!("/runtime.v1.{service}/{method}");
        let path = tonic::codegen::http::uri::PathAndQuery::try_from(path).unwrap();
        self.runtime.block_on(async {
            let mut client = tonic::client::Grpc::new(self.channel.clone());
            client
                .ready()
                .await
                .map_err(|e| tonic::Status::unavailable(e.to_string()))?;
            let mut request = tonic::Request::new(request);
            request.set_timeout(Duration::from_secs(120));
            let codec = tonic_prost::ProstCodec::<Q, A>::default();
            Ok(client.unary(request, path, codec).await?.into_inner())
        })
    }

    /// A call of `RuntimeService` that takes one id.
    fn told(&self, method: &str, id: &str) {
        let request = api::Id { id: id.into() };
        let api::Nothing {} = self.call("RuntimeService", method, request).unwrap();
    }

    /// A call that is made again until it does what is expected of it.
    fn patiently<A>(&self, what: &str, mut call: impl FnMut() -> Result<A, tonic::Status>) -> A {
        let deadline = Instant::now() + Duration::from_secs(90);
        loop {
            match call() {
                Ok(answer) => return answer,
                Err(status) => assert!(Instant::now() < deadline, "{what}: {status}"),
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn image(&self, name: &str) -> api::OfImage {
        let image = Some(api::ImageSpec { image: name.into() });
        api::OfImage { image }
    }

    fn shell(&self, container: &str, line: &str) -> String {
        let request = api::ExecSync {
            id: container.into(),
            command: ["/bin/sh", "-c", line].map(str::to_owned).to_vec(),
            timeout_seconds: 60,
        };
        let done: api::ExecDone = self.call("RuntimeService", "ExecSync", request).unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert_eq!(
            done.code,
            0,
            "{line}: {}{}",
            text(&done.out),
            text(&done.err)
        );
        text(&done.out)
    }
}

fn on_the_node() -> api::NamespaceOption {
    api::NamespaceOption { network: 2, pid: 1 }
}

/// A pod in the node's network.
fn pod(name: &str) -> api::PodConfig {
    let security = api::SecurityContext {
        namespaces: Some(on_the_node()),
    };
    api::PodConfig {
        metadata: Some(api::PodMetadata {
            name: name.into(),
            uid: format!("uid-{name}"),
            namespace: "default".into(),
        }),
        linux: Some(api::PodLinux {
            security: Some(security),
        }),
    }
}

/// An image whose command waits, which is what a pod's own container is for.
fn pause_archive(home: &Home, program: &str) -> PathBuf {
    let tree = home.dir("pause").unwrap();
    std::fs::copy("/bin/busybox", tree.join("busybox")).unwrap();
    let archive = home.join("pause.tar");
    let store = home.join("pause-store");
    let vellum = |arguments: &[&str]| {
        let mut command = Command::new(program);
        command.args(["--root"]).arg(&store).arg("--run-dir");
        run(command.arg(home.join("pause-run")).args(arguments)).unwrap()
    };
    let entry = r#"ENTRYPOINT ["/busybox","sleep","86400"]"#;
    vellum(&[
        "import",
        tree.to_str().unwrap(),
        "example.org/pause:1",
        "--change",
        entry,
    ]);
    vellum(&[
        "save",
        "example.org/pause:1",
        "--output",
        archive.to_str().unwrap(),
    ]);
    archive
}

/// The configuration of a node's containerd before anybody installed something, with everything of its own inside `home`.
fn node_config(home: &Home) -> String {
    let dir = home.join("ctd");
    format!(
        r#"version = 2
root = "{dir}/root"
state = "{dir}/state"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
  address = "{dir}/sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "{dir}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "example.org/pause:1"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{dir}/cni-bin"
    conf_dir = "{dir}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      Root = "{dir}/runc"
"#,
        dir = dir.display()
    )
}

/// What `vellum node install` makes of a configuration; its socket becomes the test's own.
fn installed(home: &Home, program: &str, config: &str, socket: &Path) -> String {
    let node = home.dir("node").unwrap();
    let path = node.join("etc/containerd/config.toml");
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, config).unwrap();
    run(Command::new(program)
        .args(["node", "install", "--host-root"])
        .arg(&node))
    .unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    assert_ne!(text, config);
    text.replace("/run/vellum/containerd.sock", &socket.display().to_string())
}

/// A program that is `vellum` with the capabilities that its unit leaves it, and no way to more.
fn under_the_units_limits(home: &Home, program: &str) -> String {
    let unit = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../contrib/systemd/vellum-containerd.service"
    );
    let unit = std::fs::read_to_string(unit).unwrap();
    let line = unit
        .lines()
        .find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let names = line
        .unwrap()
        .split(' ')
        .map(|name| name.trim_start_matches("CAP_").to_lowercase());
    let set = names.fold("-all".to_owned(), |set, name| format!("{set},+{name}"));
    let path = home.join("confined");
    // The last process is the server itself, so that what ends it ends that.
    let script =
        format!("#!/bin/sh\nexec setpriv --no-new-privs --bounding-set {set} {program} \"$@\"\n");
    std::fs::write(&path, script).unwrap();
    run(Command::new("chmod").arg("755").arg(&path)).unwrap();
    path.display().to_string()
}

#[test]
fn pods_run_on_a_node_that_was_installed() {
    let programs = [
        "containerd",
        "ctr",
        "runc",
        "python3",
        "busybox",
        "setpriv",
        "docker-registry",
        "skopeo",
    ];
    if !available(&programs) {
        return;
    }
    let home = Home::new().unwrap();
    let program = env!("CARGO_BIN_EXE_vellum");
    let registry = Registry::start(&home, "registry", Access::Open).unwrap();
    let image = format!("{}/demo:small", registry.host());
    let archive = small_image(&home).unwrap();
    Skopeo::new(&home)
        .unwrap()
        .copy_with(
            &format!("docker-archive:{}", archive.display()),
            &format!("docker://{image}"),
            &["--dest-tls-verify=false"],
        )
        .unwrap();
    let socket = Containerd::socket_in(&home);
    let confined = under_the_units_limits(&home, program);
    let mut server = SnapshotServer::start(&confined, &home, "v", &socket, &[]).unwrap();
    let config = installed(&home, program, &node_config(&home), server.socket());
    let containerd = Containerd::start_with(&home, &config).unwrap();
    let plugins = containerd.ctr(&["plugins", "ls"]).unwrap();
    let listed = |line: &str| line.contains("vellum") && line.trim_end().ends_with("ok");
    assert!(plugins.lines().any(listed), "{plugins}");
    let pause = pause_archive(&home, program);
    let mut import = containerd.command("k8s.io");
    run(import.args(["image", "import", "--no-unpack"]).arg(&pause)).unwrap();

    let kubelet = Kubelet::of(&socket);
    let pull = || -> Result<api::Id, _> {
        kubelet.call("ImageService", "PullImage", kubelet.image(&image))
    };
    // The plugin comes up after containerd itself answers, and learns of imported images by an event.
    kubelet.patiently("pull", pull);
    let known = |name: &str| -> Option<api::Image> {
        let status = kubelet.call("ImageService", "ImageStatus", kubelet.image(name));
        let status: api::ImageStatus = status.unwrap();
        status.image
    };
    assert!(known(&image).is_some_and(|image| image.size > 0));
    let begun: api::Id = kubelet.patiently("pod", || {
        let config = Some(pod("web"));
        kubelet.call("RuntimeService", "RunPodSandbox", api::RunPod { config })
    });
    let create = |name: &str| -> String {
        let config = api::ContainerConfig {
            metadata: Some(api::ContainerMetadata { name: name.into() }),
            image: Some(api::ImageSpec {
                image: image.clone(),
            }),
            command: ["/bin/sh", "-c", "while :; do sleep 1; done"]
                .map(str::to_owned)
                .to_vec(),
            linux: Some(api::ContainerLinux {
                security: Some(api::ContainerSecurity {
                    namespaces: Some(on_the_node()),
                }),
            }),
        };
        let request = api::CreateContainer {
            pod: begun.id.clone(),
            config: Some(config),
            pod_config: Some(pod("web")),
        };
        let made: api::Id = kubelet.patiently("container", || {
            kubelet.call("RuntimeService", "CreateContainer", request.clone())
        });
        kubelet.told("StartContainer", &made.id);
        made.id
    };
    let first = create("first");
    assert_eq!(kubelet.shell(&first, "cat /app/version"), "version 2\n");
    kubelet.shell(
        &first,
        "echo mine > /app/version; grep ' / overlay ' /proc/mounts",
    );

    // The server is exchanged under a running pod.
    server.daemon.kill();
    assert_eq!(kubelet.shell(&first, "cat /app/version"), "mine\n");
    server.start_again().unwrap();
    let second = create("second");
    assert_eq!(kubelet.shell(&second, "cat /app/version"), "version 2\n");

    let info = kubelet.call("ImageService", "ImageFsInfo", api::Nothing {});
    let info: api::FsInfo = info.unwrap();
    assert_eq!(info.images.len(), 1, "{info:?}");

    kubelet.told("StopPodSandbox", &begun.id);
    kubelet.told("RemovePodSandbox", &begun.id);
    for name in [image.as_str(), "example.org/pause:1"] {
        let api::Nothing {} = kubelet
            .call("ImageService", "RemoveImage", kubelet.image(name))
            .unwrap();
    }
    assert!(known(&image).is_none());
    let deadline = Instant::now() + Duration::from_secs(90);
    loop {
        // Whatever is collected is collected by the next garbage collection that containerd sees reason for.
        let mut collect = containerd.command("k8s.io");
        collect.args(["content", "prune", "references"]);
        let _ = run(&mut collect);
        let left = (
            containerd.snapshots("k8s.io").unwrap(),
            server.trees().unwrap(),
        );
        if left.0.is_empty() && left.1.is_empty() {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "left behind: {left:?}\n{}",
            server.daemon.said()
        );
        std::thread::sleep(Duration::from_millis(300));
    }
}

#[test]
fn a_pull_for_pods_adopts_what_vellum_loaded() {
    let programs = [
        "containerd",
        "ctr",
        "runc",
        "python3",
        "busybox",
        "setpriv",
        "docker-registry",
        "skopeo",
    ];
    if !available(&programs) {
        return;
    }
    let home = Home::new().unwrap();
    let program = env!("CARGO_BIN_EXE_vellum");
    let registry = Registry::start(&home, "registry", Access::Open).unwrap();
    let image = format!("{}/demo:small", registry.host());
    let archive = small_image(&home).unwrap();
    Skopeo::new(&home)
        .unwrap()
        .copy_with(
            &format!("docker-archive:{}", archive.display()),
            &format!("docker://{image}"),
            &["--dest-tls-verify=false"],
        )
        .unwrap();
    let socket = Containerd::socket_in(&home);
    let server = SnapshotServer::start(program, &home, "v", &socket, &[]).unwrap();
    let vellum = |arguments: &[&str]| {
        let mut command = Command::new(program);
        command.env_remove("VELLUM_ROOT");
        command.arg("--root").arg(server.root());
        command.arg("--run-dir").arg(home.join("v/run"));
        command.arg("--config").arg(home.join("v/vellum.toml"));
        run(command.args(arguments)).unwrap()
    };
    vellum(&["--quiet", "load", archive.to_str().unwrap()]);
    let trees = server.trees().unwrap().len();
    let config = installed(&home, program, &node_config(&home), server.socket());
    let containerd = Containerd::start_with(&home, &config).unwrap();
    let kubelet = Kubelet::of(&socket);
    let pull = || -> Result<api::Id, _> {
        kubelet.call("ImageService", "PullImage", kubelet.image(&image))
    };
    kubelet.patiently("pull", pull);
    // Ten layers came, and none of them was unpacked: what is new in the store has nothing in it.
    assert_eq!(containerd.snapshots("k8s.io").unwrap().len(), trees);
    assert_eq!(server.trees().unwrap().len(), 2 * trees);
    let filled = std::fs::read_dir(server.root().join("overlay2"))
        .unwrap()
        .filter_map(|tree| {
            let diff = tree.unwrap().path().join("diff");
            std::fs::read_dir(diff).ok()?.next()
        });
    assert_eq!(filled.count(), trees);

    // Vellum lets go of its image, and what containerd has of it works.
    vellum(&["rmi", "vellum-demo-small:latest"]);
    vellum(&["gc", "--quiet"]);
    let mut command = containerd.run_command("k8s.io");
    let hello = run(command.args(["--rm", &image, "hello"])).unwrap();
    assert_eq!(hello, "hello from version 2, 13 entries at the root");
    vellum(&["check"]);
    let mut remove = containerd.command("k8s.io");
    run(remove.args(["image", "rm", "--sync", &image])).unwrap();
    let deadline = Instant::now() + Duration::from_secs(90);
    loop {
        // The plugin keeps the image under a second name, its configuration's digest.
        let mut images = containerd.command("k8s.io");
        for name in run(images.args(["image", "ls", "--quiet"]))
            .unwrap()
            .lines()
        {
            let mut remove = containerd.command("k8s.io");
            // Gone by the plugin's own doing, perhaps.
            let _ = run(remove.args(["image", "rm", "--sync", name]));
        }
        vellum(&["gc", "--quiet"]);
        let left = (
            containerd.snapshots("k8s.io").unwrap(),
            server.trees().unwrap(),
        );
        if left.0.is_empty() && left.1.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "left behind: {left:?}");
        std::thread::sleep(Duration::from_millis(300));
    }
}
