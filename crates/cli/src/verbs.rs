//! The verbs, one file each: arguments, examples, and the code that turns them into a request to
//! the service crate and prints the answer.
//!
//! To add a verb, add its file, its `mod`, and its line in the list here. Parsing, help, man pages,
//! completions and dispatch follow from that. Verbs make no decisions.

#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "the comments are help texts: [:TAG] is not a link"
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

/// The exit code that a verb returns to the shell.
pub type Outcome = Result<i32, Failure>;

/// The examples that open help pages, by the words after the verb: "" for the verb's own page, else
/// the subcommand.
pub type Examples = &'static [(&'static str, &'static str)];

/// A verb. The type holds its arguments; the comment on the type is its line in help.
pub trait Verb: Sized {
    /// The group in which `vellum --help` lists it.
    const GROUP: Group;
    /// The examples that open its help pages.
    const EXAMPLES: Examples;
    /// Whether it can be the first on a store, which it then creates: the verbs that put something
    /// in. For others, a missing store is probably a typing error, or a disk that isn't mounted.
    const CREATES_A_STORE: bool = false;
    /// A note on its exit codes, if it has its own.
    const CODES: &'static str = "";

    /// Returns the notes that follow the examples on its help page.
    fn notes() -> String {
        String::new()
    }

    /// Runs the verb. `start` has the rest of the command line, and creates the context.
    fn run(self, start: Start<'_>) -> Outcome;
}

/// Groups of verbs, in the order of `vellum --help`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Verbs on images.
    Images,
    /// Verbs on containers and volumes.
    Containers,
    /// Verbs that serve other programs.
    OtherPrograms,
    /// Verbs on unions and layers.
    Unions,
    /// Verbs on the store as a whole, and on this program.
    Store,
}

impl Group {
    /// All groups, with their titles.
    pub const ALL: [(Group, &'static str); 5] = [
        (Group::Images, "Images"),
        (Group::Containers, "Containers"),
        (Group::OtherPrograms, "Other programs"),
        (Group::Unions, "Unions"),
        (Group::Store, "Store"),
    ];
}

/// A verb's help, apart from its arguments.
#[derive(Debug)]
pub struct Page {
    /// The verb.
    pub name: &'static str,
    /// The group in which it is listed.
    pub group: Group,
    /// The examples that open its pages.
    pub examples: Examples,
    /// The text that ends its page; may be empty.
    pub codes: &'static str,
    /// The notes after the examples.
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
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// The verb.
    #[command(subcommand)]
    pub command: Command,
}

/// Defines the parser's enum, the dispatch to each verb and the help pages. A verb's file is named
/// after the verb; `if` names the feature that a verb needs.
macro_rules! verbs {
    ($($(#[$attribute:meta])* $file:ident::$Verb:ident $(if $built:meta)?,)+) => {
        /// The verbs.
        #[derive(Debug, Subcommand)]
        pub enum Command {
            $($(#[cfg($built)])? $(#[$attribute])* $Verb($file::$Verb),)+
            /// A word that is not a verb.
            #[command(external_subcommand)]
            Other(Vec<OsString>),
        }

        impl Command {
            /// Runs the verb.
            pub fn run(self, start: Start<'_>) -> Outcome {
                match self {
                    $($(#[cfg($built)])? Self::$Verb(verb) => {
                        verb.run(start.on_a_store(<$file::$Verb as Verb>::CREATES_A_STORE))
                    })+
                    Self::Other(words) => Err(Failure::misused(other_words::told(&words))),
                }
            }
        }

        /// The help pages of all verbs.
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

/// Calls `each` for every name and reports each failure; fails at the end if any call failed.
fn for_all<T>(names: &[T], mut each: impl FnMut(&T) -> Result<(), Failure>) -> Outcome {
    let mut worst = DONE;
    for name in names {
        match each(name) {
            Ok(()) => {}
            // The reader is gone, or the user stopped the command.
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
