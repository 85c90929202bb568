//! From the start of the process to its exit code.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, FromArgMatches};
use vellum_overlay::names::Name;
use vellum_overlay::program::{self, Started, logging};
use vellum_service::config::{self, Config, ConfigError, MountPartial, Partial, Surroundings};
use vellum_service::progress::{Progress, Silent};
use vellum_service::{Cancel, Context, rootless};

use crate::args::{Global, absolute};
use crate::bars::Bars;
use crate::exit_code::{self, Failure};
use crate::verbs::Cli;
use crate::{complete, help, other_words, report};

/// Runs the command line of this process and returns its exit code.
pub fn run() -> i32 {
    let started = match Started::take() {
        Ok(started) => started,
        Err(code) => return code,
    };
    let first = started.arguments.first();
    if first.is_some_and(|word| word == rootless::HOLD_ARGUMENT) {
        report::line(&rootless::hold().to_string());
        return exit_code::FAILED;
    }
    complete::answer();
    if let Some(name) = Name::of(&started.called_as) {
        return program::by_name(name, &started);
    }
    let words = std::iter::once(&started.called_as).chain(&started.arguments);
    let cli = match parse(words.cloned().collect()) {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    match cli.command.run(Start::new(cli.global, &started)) {
        Ok(code) => code,
        Err(failure) => {
            report::failure(&failure);
            exit_code::of(&failure)
        }
    }
}

fn parse(arguments: Vec<OsString>) -> Result<Cli, i32> {
    // The plain command parses the same as the one with texts for help and errors, and is built in
    // a third of the time, which matters for verbs that take a millisecond.
    let matches = Cli::command()
        .try_get_matches_from(&arguments)
        .or_else(|_| help::command().try_get_matches_from(&arguments))
        .map_err(|e| {
            match foreign_option(&e, &arguments) {
                Some(text) => report::failure(&Failure::misused(text)),
                // Help and version are results; a closed pipe is not an error.
                None => drop(e.print()),
            }
            if e.use_stderr() {
                misused(&arguments)
            } else {
                exit_code::DONE
            }
        })?;
    Cli::from_arg_matches(&matches).map_err(|e| {
        let _ = e.print();
        misused(&arguments)
    })
}

/// Returns the error for an option of another program, if that is what clap doesn't know.
fn foreign_option(error: &clap::Error, arguments: &[OsString]) -> Option<String> {
    match (error.kind(), error.get(ContextKind::InvalidArg)?) {
        (ErrorKind::UnknownArgument, ContextValue::String(name)) => {
            other_words::foreign_option(&verb_of(arguments)?, name)
        }
        _ => None,
    }
}

/// Returns the exit code for arguments that can't be parsed; `run` has its own.
fn misused(arguments: &[OsString]) -> i32 {
    match verb_of(arguments).as_deref() {
        Some("run") => exit_code::NOT_RUN,
        _ => exit_code::MISUSED,
    }
}

/// Returns the verb of arguments that can't be parsed, if it can be told.
fn verb_of(arguments: &[OsString]) -> Option<String> {
    let lenient = Cli::command().ignore_errors(true);
    let matches = lenient.try_get_matches_from(arguments).ok()?;
    matches.subcommand_name().map(str::to_owned)
}

/// Where this process looks for settings.
pub fn surroundings(identity: &rootless::Identity) -> Surroundings {
    Surroundings {
        rootless: identity.rootless,
        uid: identity.uid,
        environment: std::env::vars_os().collect(),
        system_file: PathBuf::from(Surroundings::SYSTEM_FILE),
    }
}

/// What a verb is started with. Settings are read only when the verb asks for them.
pub struct Start<'a> {
    /// How this process was started.
    pub started: &'a Started,
    /// Settings given by the verb's own flags.
    pub settings: Partial,
    /// Whether the verb uses the store, for which a plain user's process enters a namespace.
    pub needs_store: bool,
    /// Whether the store is created if it is missing.
    creates_a_store: bool,
    /// Whether Ctrl-C is left to a command that the verb runs, and doesn't stop this process.
    pub leaves_ctrl_c: bool,
    /// Whether only results and errors are printed, and no messages.
    pub quiet: bool,
    /// Whether a listing prints only ids.
    pub lists_ids: bool,
    global: Global,
}

/// Resolves the settings of a command line again.
type Reload = Box<dyn Fn() -> Result<Config, ConfigError> + Send + Sync>;

impl<'a> Start<'a> {
    fn new(global: Global, started: &'a Started) -> Start<'a> {
        Start {
            started,
            settings: Partial::default(),
            needs_store: true,
            creates_a_store: false,
            leaves_ctrl_c: false,
            quiet: global.quiet,
            lists_ids: is_quiet_after_the_verb(&started.arguments),
            global,
        }
    }

    /// Says whether the verb creates a missing store.
    pub fn on_a_store(self, creates_a_store: bool) -> Start<'a> {
        Start {
            creates_a_store,
            ..self
        }
    }

    /// Returns a function that resolves the settings of this command line again.
    #[cfg(feature = "containerd")]
    pub fn reload(&self) -> Result<Reload, Failure> {
        self.resolver(&rootless::identity())
    }

    fn resolver(&self, identity: &rootless::Identity) -> Result<Reload, Failure> {
        let around = surroundings(identity);
        let (file, flags) = (self.global.config.clone(), self.flags()?);
        Ok(Box::new(move || {
            config::resolve(&around, file.as_deref(), flags.clone())
        }))
    }

    /// Returns the settings. Enters the store's namespace first, if the verb uses the store and the
    /// process needs one.
    pub fn config(&self) -> Result<Config, Failure> {
        let identity = rootless::identity();
        let config = self.resolver(&identity)?().map_err(vellum_service::Error::from)?;
        if self.needs_store && identity.needs_namespace {
            rootless::enter(&config.run_dir.value)?;
        }
        Ok(config)
    }

    /// Returns the context for verbs: settings, progress, and handlers for signals.
    pub fn context(&self) -> Result<Context, Failure> {
        let config = self.config()?;
        logging("warn");
        let cancel = signals(self.leaves_ctrl_c)?;
        let progress: Arc<dyn Progress> = if self.quiet {
            Arc::new(Silent)
        } else {
            Arc::new(Bars::new())
        };
        let context = Context::new(config, cancel, progress);
        Ok(match self.creates_a_store {
            true => context,
            false => context.on_an_existing_store(),
        })
    }

    /// Returns the settings given by flags, both the global ones and the verb's own.
    fn flags(&self) -> Result<Partial, Failure> {
        let global = &self.global;
        let mut mount = MountPartial {
            mount_method: global.mount_method,
            ..MountPartial::default()
        };
        for option in &global.mount_options {
            mount
                .set(option)
                .map_err(|why| Failure::misused(format!("--mount-opt {option}: {why}")))?;
        }
        Ok(Partial {
            root: global.root.as_deref().map(absolute).transpose()?,
            run_dir: global.run_dir.as_deref().map(absolute).transpose()?,
            storage_driver: global.storage_driver,
            engine: global.engine,
            docker_compatible: global.docker_compatible.then_some(true),
            mount,
            ..self.settings.clone()
        })
    }
}

/// Tells whether `-q` comes after the verb, where it prints only ids in Docker and Podman. Before
/// the verb it is the global flag, and scripts use it there.
fn is_quiet_after_the_verb(arguments: &[OsString]) -> bool {
    let mut words = arguments.iter().filter_map(|word| word.to_str());
    let is_listing = |word: &str| matches!(word, "images" | "ls" | "ps");
    // The value of a flag before the verb may look like a verb; then the verb is still to come.
    let quiet = |word: &str| {
        let shorts = word.strip_prefix('-').filter(|rest| !rest.starts_with('-'));
        word == "--quiet" || shorts.is_some_and(|shorts| shorts.contains('q'))
    };
    words.by_ref().any(is_listing) && words.take_while(|word| *word != "--").any(quiet)
}

/// The first Ctrl-C asks every loop to stop; the second ends the process at once, which is safe
/// too, but less tidy.
///
/// During a `run` Ctrl-C is left to the command in the container: the terminal sends it there, and
/// the command decides whether it ends.
fn signals(leaves_ctrl_c: bool) -> Result<Cancel, Failure> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let flag = Arc::new(AtomicBool::new(false));
    let set = |signal| -> std::io::Result<()> {
        if signal == SIGINT && leaves_ctrl_c {
            signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)))?;
            return Ok(());
        }
        signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&flag))?;
        signal_hook::flag::register(signal, Arc::clone(&flag))?;
        Ok(())
    };
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        set(signal).map_err(|e| Failure::other(format!("cannot watch for signals: {e}")))?;
    }
    Ok(Cancel::from_flag(flag))
}
