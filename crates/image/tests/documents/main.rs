//! Documents of images, however odd: read as Go reads them, and loaded where Docker, Podman and
//! containerd load them.

mod archives;
mod reader;
#[path = "../support/mod.rs"]
mod support;
