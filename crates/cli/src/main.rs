//! The `vellum` command: arguments in, a verb of the service room, results out.
//!
//! It decides nothing. [`args`] is the definition of the command line, [`commands`] has one small file per verb, [`exit_code`] the one match
//! from errors to codes, [`report`] how errors look.
#![forbid(unsafe_code)]

mod args;
mod help;

fn main() {
    let _ = help::command().get_matches();
}
