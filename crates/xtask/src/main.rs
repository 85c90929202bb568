//! Chores of development.
#![forbid(unsafe_code)]

fn main() {}
