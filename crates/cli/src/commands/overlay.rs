//! `overlay`: arguments to a mount of Vellum's own engine.

use std::ffi::OsString;

use vellum_overlay::names::Call;
use vellum_overlay::options::Manners;
use vellum_overlay::program::{self, Started};

use super::Outcome;
use crate::args;

/// `overlay`
pub fn overlay(args: args::Overlay, started: &Started) -> Outcome {
    let mut places = args.places;
    let target = places.pop().unwrap_or_default();
    let mut options = args.options;
    if let Some(source) = places.pop() {
        let mut text = OsString::from("fsname=");
        text.push(source);
        options.insert(0, text);
    }
    if args.debug {
        options.push("debug".into());
    }
    let call = Call {
        target,
        options,
        foreground: args.foreground,
        ignored: Vec::new(),
    };
    Ok(program::mount(Manners::Own, "vellum", call, started)?)
}
