//! `vellum-fuse-overlayfs`: the mount program alone, for Podman, Buildah and mount(8).
//!
//! Called `mount.fuse.vellum` it is mount(8)'s helper; under any other name it behaves like
//! fuse-overlayfs.
#![forbid(unsafe_code)]

use vellum_overlay::names::Name;
use vellum_overlay::program::{self, Started};

fn main() {
    let code = match Started::take() {
        Ok(started) => {
            let name = Name::of(&started.called_as).unwrap_or(Name::FuseOverlayfs);
            program::by_name(name, &started)
        }
        Err(code) => code,
    };
    std::process::exit(code);
}
