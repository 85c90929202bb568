//! Plays the kubelet: its interface to containers and images (CRI), with the calls in a pod's life,
//! and the configuration of a node's containerd.
#![allow(dead_code)]

#[path = "cri_messages.rs"]
pub mod api;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use api::mode;
use vellum_testkit::clients::{Home, run};

/// The image of the pods' own containers.
pub const PAUSE: &str = "example.org/pause:1";

/// A client of containerd's CRI plugin.
pub struct Kubelet {
    runtime: tokio::runtime::Runtime,
    channel: tonic::transport::Channel,
}

impl Kubelet {
    pub fn of(socket: &Path) -> Self {
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
    fn told(&self, method: &str, id: &str) -> Result<(), tonic::Status> {
        let request = api::Id { id: id.into() };
        let api::Nothing {} = self.call("RuntimeService", method, request)?;
        Ok(())
    }

    /// Repeats a call until it returns what is expected.
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

    /// Pulls an image as soon as the plugin is up, which is later than containerd's first answer.
    pub fn pull(&self, image: &str) {
        let _id: api::Id = self.patiently("pull", || {
            self.call("ImageService", "PullImage", of_image(image))
        });
    }

    /// Returns what is known about an image.
    pub fn image(&self, name: &str) -> Option<api::Image> {
        let status = self.call("ImageService", "ImageStatus", of_image(name));
        let status: api::ImageStatus = status.unwrap();
        status.image
    }

    pub fn remove_image(&self, name: &str) {
        let done = self.call("ImageService", "RemoveImage", of_image(name));
        let api::Nothing {} = done.unwrap();
    }

    /// Returns the space of images for each file system.
    pub fn image_file_systems(&self) -> Vec<api::FsUsage> {
        let info = self.call("ImageService", "ImageFsInfo", api::Nothing {});
        let info: api::FsInfo = info.unwrap();
        info.images
    }

    /// Starts a pod and returns its id. The plugin learns of a newly imported image by an event, so
    /// this retries.
    pub fn begin_pod(&self, config: &api::PodConfig) -> String {
        let begun: api::Id = self.patiently("pod", || {
            let config = Some(config.clone());
            self.call("RuntimeService", "RunPodSandbox", api::RunPod { config })
        });
        begun.id
    }

    /// Starts a container in a pod that was started with `config`, and returns its id. It runs a
    /// line of shell.
    pub fn begin(
        &self,
        pod: &str,
        config: &api::PodConfig,
        name: &str,
        image: &str,
        line: &str,
    ) -> String {
        self.begin_with(pod, config, name, image, line, Vec::new())
    }

    /// Like [`Kubelet::begin`], with volumes.
    pub fn begin_with(
        &self,
        pod: &str,
        config: &api::PodConfig,
        name: &str,
        image: &str,
        line: &str,
        mounts: Vec<api::Mount>,
    ) -> String {
        let image = Some(api::ImageSpec {
            image: image.into(),
        });
        let container = api::ContainerConfig {
            metadata: Some(api::ContainerMetadata { name: name.into() }),
            image,
            command: ["/bin/sh", "-c", line].map(str::to_owned).to_vec(),
            mounts,
            // Without a directory it would be relative to containerd's own.
            log_path: match config.log_directory.as_str() {
                "" => String::new(),
                _ => format!("{name}.log"),
            },
            linux: Some(api::ContainerLinux {
                security: Some(api::ContainerSecurity {
                    namespaces: namespaces(config).cloned(),
                }),
            }),
        };
        let request = api::CreateContainer {
            pod: pod.into(),
            config: Some(container),
            pod_config: Some(config.clone()),
        };
        let made: api::Id = self.patiently("container", || {
            self.call("RuntimeService", "CreateContainer", request.clone())
        });
        self.told("StartContainer", &made.id).unwrap();
        made.id
    }

    /// Runs a line of shell in a container and returns what it prints.
    pub fn shell(&self, container: &str, line: &str) -> String {
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

    /// Returns the bytes and inodes of a container's own layer, once the plugin (which counts every
    /// ten seconds) has found at least `bytes`.
    pub fn written(&self, container: &str, bytes: u64) -> (u64, u64) {
        self.patiently("statistics", || {
            let request = api::Id {
                id: container.into(),
            };
            let answer = self.call("RuntimeService", "ContainerStats", request)?;
            let answer: api::ContainerStats = answer;
            let usage = answer.stats.and_then(|stats| stats.writable);
            usage
                .and_then(|usage| Some((usage.bytes?.value, usage.inodes?.value)))
                .filter(|found| found.0 >= bytes)
                .ok_or_else(|| tonic::Status::not_found("not counted yet"))
        })
    }

    /// Ends a pod with all its containers.
    pub fn end_pod(&self, id: &str) {
        self.told("StopPodSandbox", id).unwrap();
        self.told("RemovePodSandbox", id).unwrap();
    }
}

/// An image as a volume at `/volume` of a container in a pod with `config`, mapped to the pod's
/// ids.
pub fn volume_of(image: &str, config: &api::PodConfig) -> api::Mount {
    let user = namespaces(config).and_then(|namespaces| namespaces.user.clone());
    let user = user.unwrap_or_default();
    api::Mount {
        container_path: "/volume".into(),
        readonly: true,
        uids: user.uids,
        gids: user.gids,
        image: Some(api::ImageSpec {
            image: image.into(),
        }),
    }
}

fn of_image(name: &str) -> api::OfImage {
    let image = Some(api::ImageSpec { image: name.into() });
    api::OfImage { image }
}

fn namespaces(config: &api::PodConfig) -> Option<&api::NamespaceOption> {
    config
        .linux
        .as_ref()?
        .security
        .as_ref()?
        .namespaces
        .as_ref()
}

fn pod_in(name: &str, namespaces: api::NamespaceOption) -> api::PodConfig {
    let security = api::SecurityContext {
        namespaces: Some(namespaces),
    };
    api::PodConfig {
        metadata: Some(api::PodMetadata {
            name: name.into(),
            uid: format!("uid-{name}"),
            namespace: "default".into(),
        }),
        log_directory: String::new(),
        linux: Some(api::PodLinux {
            security: Some(security),
        }),
    }
}

/// A pod in the node's network, as those of a control plane are.
pub fn pod(name: &str) -> api::PodConfig {
    let namespaces = api::NamespaceOption {
        network: mode::NODE,
        pid: mode::CONTAINER,
        user: None,
    };
    pod_in(name, namespaces)
}

/// A pod with its own ids: `length` of them, from `host` on. Such a pod has its own network.
pub fn pod_with_ids(name: &str, host: u32, length: u32) -> api::PodConfig {
    let ids = || {
        vec![api::IdMapping {
            host,
            container: 0,
            length,
        }]
    };
    let namespaces = api::NamespaceOption {
        network: mode::POD,
        pid: mode::CONTAINER,
        user: Some(api::UserNamespace {
            mode: mode::POD,
            uids: ids(),
            gids: ids(),
        }),
    };
    pod_in(name, namespaces)
}

/// An image whose command only waits, as a pod's own container does.
pub fn pause_archive(home: &Home, program: &str) -> PathBuf {
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
    vellum(&["import", tree.to_str().unwrap(), PAUSE, "--change", entry]);
    vellum(&["save", PAUSE, "--output", archive.to_str().unwrap()]);
    archive
}

/// Returns the configuration after `vellum node install` on a node with the store `root`, with the
/// socket replaced by the test's own.
pub fn installed(home: &Home, program: &str, config: &str, root: &Path, socket: &Path) -> String {
    let node = home.dir("node").unwrap();
    let settings = home.dir("node/etc/vellum").unwrap().join("vellum.toml");
    std::fs::write(settings, format!("root = {root:?}\n")).unwrap();
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
