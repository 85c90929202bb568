//! The `vellum` command: arguments in, a verb of the service room, results out.
//!
//! It decides nothing. [`verbs`] is the list of verbs with one small file for each: its arguments,
//! its examples, its answer. [`args`] has the arguments that verbs share, [`exit_code`] the one
//! match from errors to codes, [`report`] how errors look, [`bars`] how progress looks.
//!
//! Order of a start: the namespace of a plain user is entered before anything else, because a
//! process with threads can't; then arguments, settings, signals, the verb.
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
