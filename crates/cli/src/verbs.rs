//! The verbs, one file each: arguments, examples, and what makes a request to the service room of
//! them and prints its answer.
//!
//! A new verb is its file, its `mod` and its line in the list here; parsing, help, man pages,
//! completions and the way from the command line to the verb follow. A verb decides nothing.

#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "the comments are help texts: [:TAG] is no link"
)]

use std::ffi::OsString;

use clap::{Parser, Subcommand};

use crate::args::Global;
use crate::exit_code::{DONE, Failure};
use crate::start::Start;
use crate::{other_words, report};

mod adopt;
mod bundle;
mod cat;
mod check;
mod commit;
mod completions;
mod config;
mod cp;
mod create;
mod df;
mod diff;
mod explain;
mod export;
mod gc;
mod help;
mod history;
mod images;
mod import;
mod info;
mod inspect;
mod layer;
mod load;
mod ls;
mod man;
mod mount;
mod node;
mod overlay;
#[cfg(feature = "registry")]
mod pull;
#[cfg(feature = "registry")]
mod push;
mod rename;
mod rm;
mod rmi;
mod run;
mod save;
#[cfg(any(feature = "containerd", feature = "docker"))]
mod serve;
mod settle;
mod tag;
mod umount;
mod unshare;
mod version;
mod volume;
mod why;

/// What a verb gives back to the shell.
pub type Outcome = Result<i32, Failure>;

/// Lines that open a help page: those of the verb itself, whose words are none, and those of the
/// verbs below it.
pub type Examples = &'static [(&'static str, &'static str)];

/// A verb: its arguments are the type, and the comment on it is its line in help.
pub trait Verb: Sized {
    /// Where `vellum --help` lists it.
    const GROUP: Group;
    /// What opens its help pages.
    const EXAMPLES: Examples;
    /// Its exit codes, if it has some of its own.
    const CODES: &'static str = "";

    /// Returns what its help page says behind the examples.
    fn notes() -> String {
        String::new()
    }

    /// Does it. `start` has what else the command line says, and makes the context.
    fn run(self, start: Start<'_>) -> Outcome;
}

/// Groups of verbs, in the order of `vellum --help`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Verbs on images.
    Images,
    /// Verbs on containers and volumes.
    Containers,
    /// What serves other programs.
    OtherPrograms,
    /// Verbs on unions and layers.
    Unions,
    /// Verbs on the store as a whole, and those on this program.
    Store,
}

impl Group {
    /// All of them, with their titles.
    pub const ALL: [(Group, &'static str); 5] = [
        (Group::Images, "Images"),
        (Group::Containers, "Containers"),
        (Group::OtherPrograms, "Other programs"),
        (Group::Unions, "Unions"),
        (Group::Store, "Store"),
    ];
}

/// What help knows of a verb besides its arguments.
#[derive(Debug)]
pub struct Page {
    /// The verb.
    pub name: &'static str,
    /// Where it is listed.
    pub group: Group,
    /// What opens its pages.
    pub examples: Examples,
    /// What ends its page, if there is something.
    pub codes: &'static str,
    /// What stands behind the examples.
    pub notes: fn() -> String,
}

impl Page {
    const fn of<V: Verb>(name: &'static str) -> Page {
        Page {
            name,
            group: V::GROUP,
            examples: V::EXAMPLES,
            codes: V::CODES,
            notes: V::notes,
        }
    }
}

/// Layered storage for containers: images in, writable root file systems out.
#[derive(Debug, Parser)]
#[command(
    name = "vellum",
    version,
    propagate_version = true,
    disable_help_subcommand = true,
    arg_required_else_help = true,
    max_term_width = 110
)]
pub struct Cli {
    /// What holds for every command.
    #[command(flatten)]
    pub global: Global,
    /// The verb.
    #[command(subcommand)]
    pub command: Command,
}

/// Makes the parser's enum, the way to each verb and the pages of help. A file has the name of its
/// verb, whose line in help is the comment on its type; `if` names what it is built with.
macro_rules! verbs {
    ($($(#[$attribute:meta])* $file:ident::$Verb:ident $(if $built:meta)?,)+) => {
        /// The verbs.
        #[derive(Debug, Subcommand)]
        pub enum Command {
            $($(#[cfg($built)])? $(#[$attribute])* $Verb($file::$Verb),)+
            /// A word that is none of these.
            #[command(external_subcommand)]
            Other(Vec<OsString>),
        }

        impl Command {
            /// Runs the verb.
            pub fn run(self, start: Start<'_>) -> Outcome {
                match self {
                    $($(#[cfg($built)])? Self::$Verb(verb) => verb.run(start),)+
                    Self::Other(words) => Err(Failure::misused(other_words::told(&words))),
                }
            }
        }

        /// Help's pages of all verbs.
        pub const PAGES: &[Page] = &[
            $($(#[cfg($built)])? Page::of::<$file::$Verb>(stringify!($file)),)+
        ];
    };
}

verbs! {
    load::Load,
    save::Save,
    pull::Pull if feature = "registry",
    push::Push if feature = "registry",
    import::Import,
    adopt::Adopt,
    tag::Tag,
    images::Images,
    inspect::Inspect,
    history::History,
    rmi::Rmi,
    create::Create,
    mount::Mount,
    umount::Umount,
    diff::Diff,
    commit::Commit,
    cp::Cp,
    rename::Rename,
    rm::Rm,
    #[command(visible_alias = "ps")]
    ls::Ls,
    run::Run,
    bundle::Bundle,
    #[command(subcommand)]
    volume::Volume,
    overlay::Overlay,
    settle::Settle,
    cat::Cat,
    explain::Explain,
    #[command(subcommand)]
    layer::Layer,
    #[command(subcommand)]
    serve::Serve if any(feature = "containerd", feature = "docker"),
    #[command(subcommand)]
    export::Export,
    #[command(subcommand)]
    node::Node,
    info::Info,
    df::Df,
    #[command(visible_alias = "prune")]
    gc::Gc,
    check::Check,
    why::Why,
    #[command(subcommand)]
    config::Config,
    unshare::Unshare,
    completions::Completions,
    man::Man,
    help::Help,
    version::Version,
}

/// Does `each` for all, reports every failure, and fails at the end if one did.
fn for_all<T>(names: &[T], mut each: impl FnMut(&T) -> Result<(), Failure>) -> Outcome {
    let mut worst = DONE;
    for name in names {
        match each(name) {
            Ok(()) => {}
            // Nobody reads any more, or nobody wants more.
            Err(f @ Failure::Output(_)) => return Err(f),
            Err(f) if f.is_cancelled() => return Err(f),
            Err(failure) => {
                report::failure(&failure);
                worst = crate::exit_code::of(&failure).max(worst);
            }
        }
    }
    if worst == DONE {
        Ok(DONE)
    } else {
        Err(Failure::Said(worst))
    }
}
