//! The `vellum` command: parses arguments, calls a verb of the service crate, prints results.
//!
//! It makes no decisions. [`verbs`] lists the verbs, with one small file for each: its arguments,
//! its examples, its output. [`args`] has the arguments that verbs share, [`exit_code`] the one
//! match from errors to codes, [`report`] how errors look, [`bars`] how progress looks.
//!
//! Order at startup: a plain user's namespace is entered first, because a process with threads
//! can't enter it; then come arguments, settings, signals and the verb.
#![forbid(unsafe_code)]

mod args;
mod bars;
mod complete;
mod exit_code;
mod help;
mod other_words;
mod out;
mod report;
mod start;
mod verbs;

fn main() {
    std::process::exit(start::run());
}
