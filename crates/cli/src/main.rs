//! The `vellum` command.
#![forbid(unsafe_code)]

fn main() {}
