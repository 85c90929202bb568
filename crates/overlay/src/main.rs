//! `vellum-fuse-overlayfs`: the mount program alone, for Podman, Buildah and mount(8).
//!
//! Called `mount.fuse.vellum` it is mount(8)'s helper; under any other name it is called as fuse-overlayfs is.
#![forbid(unsafe_code)]

use std::ffi::OsString;

use vellum_overlay::names::Name;
use vellum_overlay::{daemon, program, report};

fn main() {
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    let first = arguments.get(1);
    if first.is_some_and(|a| a == daemon::ASSIST_ARGUMENT) {
        report::line(&daemon::assist().to_string());
        std::process::exit(program::FAILED);
    }
    let serves = first.is_some_and(|a| a == daemon::SERVE_ARGUMENT);
    if serves {
        arguments.remove(1);
    }
    let called_as = arguments.first().cloned().unwrap_or_default();
    let started = program::Started {
        called_as: &called_as,
        arguments: arguments.get(1..).unwrap_or_default(),
        serves,
    };
    let name = Name::of(&called_as).unwrap_or(Name::FuseOverlayfs);
    std::process::exit(program::by_name(name, started));
}
