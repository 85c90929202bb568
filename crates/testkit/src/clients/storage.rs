//! Tools that need no daemon: podman, buildah, skopeo, umoci.

use super::{Home, run};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A policy that accepts every image: the tests' images are not signed.
fn policy(home: &Home) -> anyhow::Result<PathBuf> {
    let path = home.join("policy.json");
    std::fs::write(&path, r#"{"default":[{"type":"insecureAcceptAnything"}]}"#)?;
    Ok(path)
}

/// podman with a store of its own (overlay driver), shared with [`Buildah`] of the same [`Home`].
#[derive(Debug)]
pub struct Podman {
    root: PathBuf,
    run_root: PathBuf,
    policy: PathBuf,
    temporary: PathBuf,
}

impl Podman {
    /// Chooses the store's path in `home`; nothing runs yet.
    pub fn new(home: &Home) -> anyhow::Result<Self> {
        Ok(Self {
            root: home.join("storage/root"),
            run_root: home.join("storage/run"),
            policy: policy(home)?,
            temporary: home.dir("storage/tmp")?,
        })
    }

    /// A `podman` command on this store. The store is chosen by flags: if it were chosen by the
    /// environment, conmon's clean-up would look at another one and wait for it.
    pub fn command(&self) -> Command {
        let mut command = Command::new("podman");
        command
            .arg("--root")
            .arg(&self.root)
            .arg("--runroot")
            .arg(&self.run_root)
            .arg("--tmpdir")
            .arg(&self.temporary)
            .args([
                "--storage-driver",
                "overlay",
                "--cgroup-manager",
                "cgroupfs",
            ])
            .args(["--events-backend", "file", "--runtime", "runc"]);
        command
    }

    /// Runs `podman` with `arguments` and returns what it prints.
    pub fn podman(&self, arguments: &[&str]) -> anyhow::Result<String> {
        run(self.command().args(arguments))
    }

    /// Loads an archive (docker-archive, oci-archive or an OCI layout directory).
    pub fn load(&self, archive: &Path) -> anyhow::Result<String> {
        run(self
            .command()
            .args(["load", "--quiet", "--signature-policy"])
            .arg(&self.policy)
            .arg("--input")
            .arg(archive))
    }

    /// Runs `command` in a new container of `image`, without network, and returns what it prints.
    pub fn run_image(&self, image: &str, command: &[&str]) -> anyhow::Result<String> {
        run(self
            .command()
            .args(["run", "--rm", "--network", "none"])
            .args([
                "--ulimit",
                "nofile=20000:20000",
                "--ulimit",
                "nproc=10000:10000",
            ])
            .arg(image)
            .args(command))
    }

    /// Mounts `image` read-only and returns where.
    pub fn mount_image(&self, image: &str) -> anyhow::Result<PathBuf> {
        Ok(self.podman(&["image", "mount", image])?.into())
    }

    /// skopeo's name for this store: `containers-storage:` with its roots.
    pub fn skopeo_name(&self, image: &str) -> String {
        format!(
            "containers-storage:[overlay@{}+{}]{image}",
            self.root.display(),
            self.run_root.display()
        )
    }
}

/// buildah on the same type of store as [`Podman`].
#[derive(Debug)]
pub struct Buildah {
    root: PathBuf,
    run_root: PathBuf,
    policy: PathBuf,
}

impl Buildah {
    /// Chooses the store's path in `home`; nothing runs yet.
    pub fn new(home: &Home) -> anyhow::Result<Self> {
        Ok(Self {
            root: home.join("storage/root"),
            run_root: home.join("storage/run"),
            policy: policy(home)?,
        })
    }

    /// Creates a working container from `image` and returns its name.
    pub fn from(&self, image: &str) -> anyhow::Result<String> {
        run(self
            .command()
            .args(["from", "--quiet", "--signature-policy"])
            .arg(&self.policy)
            .arg(image))
    }

    /// Runs a shell line in the working container, in a chroot.
    pub fn shell(&self, container: &str, line: &str) -> anyhow::Result<String> {
        run(self.command().args([
            "run",
            "--isolation",
            "chroot",
            container,
            "--",
            "sh",
            "-ec",
            line,
        ]))
    }

    /// Commits the working container to `target`, for example `oci-archive:FILE:NAME`.
    pub fn commit(&self, container: &str, target: &str) -> anyhow::Result<()> {
        run(self
            .command()
            .args(["commit", "--quiet", "--signature-policy"])
            .arg(&self.policy)
            .args([container, target]))?;
        Ok(())
    }

    /// Mounts the working container and returns where.
    pub fn mount(&self, container: &str) -> anyhow::Result<PathBuf> {
        Ok(run(self.command().args(["mount", container]))?.into())
    }

    fn command(&self) -> Command {
        let mut command = Command::new("buildah");
        command
            .arg("--root")
            .arg(&self.root)
            .arg("--runroot")
            .arg(&self.run_root)
            .args(["--storage-driver", "overlay"]);
        command
    }
}

/// skopeo: copies images between formats.
#[derive(Debug)]
pub struct Skopeo {
    policy: PathBuf,
}

impl Skopeo {
    /// Prepares a policy in `home`; nothing runs yet.
    pub fn new(home: &Home) -> anyhow::Result<Self> {
        Ok(Self {
            policy: policy(home)?,
        })
    }

    /// Copies `from` to `to`, both as skopeo names them (`docker-archive:FILE:NAME`, `oci:DIR:TAG`,
    /// ...).
    pub fn copy(&self, from: &str, to: &str) -> anyhow::Result<()> {
        self.copy_with(from, to, &[])
    }

    /// Like [`Skopeo::copy`] with more options, such as `--dest-compress-format zstd`.
    pub fn copy_with(&self, from: &str, to: &str, options: &[&str]) -> anyhow::Result<()> {
        run(self
            .command()
            .args(["copy", "--quiet"])
            .args(options)
            .args([from, to]))?;
        Ok(())
    }

    /// Returns the JSON that `skopeo inspect` prints for `image`.
    pub fn inspect(&self, image: &str) -> anyhow::Result<String> {
        run(self.command().args(["inspect", image]))
    }

    fn command(&self) -> Command {
        let mut command = Command::new("skopeo");
        command.arg("--policy").arg(&self.policy);
        command
    }
}

/// umoci: unpacks an image of an OCI layout to a bundle, and packs changes as a new layer.
#[derive(Debug, Default)]
pub struct Umoci;

impl Umoci {
    /// Unpacks `layout:tag` to `bundle`; the tree is `bundle/rootfs`.
    pub fn unpack(&self, layout: &Path, tag: &str, bundle: &Path) -> anyhow::Result<PathBuf> {
        let image = format!("{}:{tag}", layout.display());
        run(Command::new("umoci")
            .args(["unpack", "--image", &image])
            .arg(bundle))?;
        Ok(bundle.join("rootfs"))
    }

    /// Packs what changed in `bundle` as one more layer of `layout:tag`.
    pub fn repack(&self, layout: &Path, tag: &str, bundle: &Path) -> anyhow::Result<()> {
        let image = format!("{}:{tag}", layout.display());
        run(Command::new("umoci")
            .args(["repack", "--image", &image])
            .arg(bundle))?;
        Ok(())
    }
}
