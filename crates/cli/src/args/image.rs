//! Arguments of the verbs on images.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum, ValueHint};

use super::{Compression, Output};
use crate::complete;

/// `load`
#[derive(Debug, Args)]
pub struct Load {
    /// Archive (docker save's or OCI, however compressed) or OCI layout directory; - is stdin
    #[arg(value_hint = ValueHint::AnyPath, default_value = "-")]
    pub archive: PathBuf,
    /// The same, as Docker spells it
    #[arg(long, short, value_name = "FILE", conflicts_with = "archive", value_hint = ValueHint::AnyPath)]
    pub input: Option<PathBuf>,
    /// Name the image so, where the archive holds one image
    #[arg(long, short, value_name = "NAME")]
    pub tag: Option<String>,
    /// Take this platform of a multi-platform image [default: the machine's]
    #[arg(long, value_name = "OS/ARCH")]
    pub platform: Option<String>,
    /// Keep the compressed layers too, for pushing them on unchanged
    #[arg(long)]
    pub keep_blobs: bool,
    /// Layers unpacked at once
    #[arg(long, value_name = "N")]
    pub jobs: Option<usize>,
    #[command(flatten)]
    /// How results are printed
    pub output: Output,
}

/// What `save` writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SaveFormat {
    /// One tar as `docker save` writes, also readable as OCI
    DockerArchive,
    /// One tar with an OCI layout
    OciArchive,
    /// A directory with an OCI layout
    OciDir,
}

/// `save`
#[derive(Debug, Args)]
pub struct Save {
    /// The images
    #[arg(add = complete::images(), required = true)]
    pub images: Vec<String>,
    /// File or directory to write [default: stdout]
    #[arg(long, short, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub output: Option<PathBuf>,
    /// What to write
    #[arg(
        long,
        value_name = "FORMAT",
        value_enum,
        default_value = "docker-archive"
    )]
    pub format: SaveFormat,
    /// How layers are compressed [default: none for docker-archive, gzip for OCI]
    #[arg(long, value_name = "HOW", value_enum)]
    pub compress: Option<Compression>,
}

/// `export`
#[derive(Debug, Subcommand)]
pub enum Export {
    /// Make a directory that Podman, Buildah and CRI-O read as an additional image store; its layers are the store's own
    #[command(name = "containers-storage")]
    ContainersStorage(ContainersStorage),
}

/// `export containers-storage`
#[derive(Debug, Args)]
pub struct ContainersStorage {
    /// The directory; made, or replaced if it is such an export already
    #[arg(value_hint = ValueHint::DirPath)]
    pub dir: PathBuf,
    /// The images [default: all that have a name]
    #[arg(add = complete::images())]
    pub images: Vec<String>,
    /// Say what would be written
    #[arg(long)]
    pub dry_run: bool,
    /// Take the export away again
    #[arg(long, conflicts_with_all = ["images", "dry_run", "json"])]
    pub remove: bool,
    #[command(flatten)]
    pub output: Output,
}

/// `pull`
#[derive(Debug, Args)]
pub struct Pull {
    /// The image: [HOST[:PORT]/]NAME[:TAG][@DIGEST]
    pub image: String,
    /// Take this platform of a multi-platform image [default: the machine's]
    #[arg(long, value_name = "OS/ARCH")]
    pub platform: Option<String>,
    /// Keep the compressed layers too, for pushing them on unchanged
    #[arg(long)]
    pub keep_blobs: bool,
    /// Layers fetched and unpacked at once
    #[arg(long, value_name = "N")]
    pub jobs: Option<usize>,
    /// Speak plain HTTP with the registry
    #[arg(long)]
    pub insecure: bool,
    /// File with registry logins [default: Docker's and Podman's]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub auth_file: Option<PathBuf>,
    #[command(flatten)]
    /// How results are printed
    pub output: Output,
}

/// `push`
#[derive(Debug, Args)]
pub struct Push {
    /// The image in the store
    #[arg(add = complete::images())]
    pub image: String,
    /// Where to, if not where its name says: [HOST[:PORT]/]NAME[:TAG]
    pub destination: Option<String>,
    /// How layers are compressed that aren't kept compressed
    #[arg(long, value_name = "HOW", value_enum, default_value = "gzip")]
    pub compress: Compression,
    /// Speak plain HTTP with the registry
    #[arg(long)]
    pub insecure: bool,
    /// File with registry logins [default: Docker's and Podman's]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub auth_file: Option<PathBuf>,
    #[command(flatten)]
    /// How results are printed
    pub output: Output,
}

/// `import`
#[derive(Debug, Args)]
pub struct Import {
    /// Directory, tar (however compressed), or - for a tar on stdin
    #[arg(value_hint = ValueHint::AnyPath)]
    pub source: PathBuf,
    /// The new image's name
    pub image: Option<String>,
    /// Set a field of the configuration, as in a Dockerfile: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME, WORKDIR
    #[arg(long, short, value_name = "INSTRUCTION")]
    pub change: Vec<String>,
    /// What the history says
    #[arg(long, short, value_name = "TEXT")]
    pub message: Option<String>,
    /// The platform it is for [default: the machine's]
    #[arg(long, value_name = "OS/ARCH")]
    pub platform: Option<String>,
    #[command(flatten)]
    /// How results are printed
    pub output: Output,
}

/// `tag`
#[derive(Debug, Args)]
pub struct Tag {
    /// The image
    #[arg(add = complete::images())]
    pub image: String,
    /// Its other name
    pub name: String,
}

/// `images`
#[derive(Debug, Args)]
pub struct Images {
    /// Only those whose name holds this, or fits a pattern such as 'debian:1?'
    #[arg(add = complete::images())]
    pub filter: Option<String>,
    /// Print ids only, one a line
    #[arg(long, conflicts_with = "json")]
    pub ids: bool,
    /// Print full ids
    #[arg(long)]
    pub no_trunc: bool,
    #[command(flatten)]
    /// How results are printed
    pub output: Output,
}

/// `inspect`
#[derive(Debug, Args)]
pub struct Inspect {
    /// Images, containers or volumes, by name or unique beginning of the id
    #[arg(add = complete::anything(), required = true)]
    pub names: Vec<String>,
}

/// `history`
#[derive(Debug, Args)]
pub struct History {
    /// The image
    #[arg(add = complete::images())]
    pub image: String,
    /// Print full texts
    #[arg(long)]
    pub no_trunc: bool,
    #[command(flatten)]
    /// How results are printed
    pub output: Output,
}

/// `rmi`
#[derive(Debug, Args)]
pub struct Rmi {
    /// The images
    #[arg(add = complete::images(), required = true)]
    pub images: Vec<String>,
    /// Remove all names of an image; containers keep the layers they stand on
    #[arg(long, short)]
    pub force: bool,
}
