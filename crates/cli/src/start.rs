//! From the process's start to its exit code.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::{CommandFactory, FromArgMatches};
use vellum_overlay::names::Name;
use vellum_overlay::program::{self, Started, logging};
use vellum_service::config::{self, MountPartial, Partial, Size, Surroundings};
use vellum_service::progress::{Progress, Silent};
use vellum_service::{Cancel, Context, rootless};

use crate::args::{Cli, Command, Global, LogFormat, Serve};
use crate::bars::Bars;
use crate::commands::Quiet;
use crate::exit_code::{self, Failure};
use crate::{commands, complete, help, other_words, report};

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
    let code_of = match &cli.command {
        Command::Run(_) => exit_code::of_run,
        _ => exit_code::of,
    };
    match verb(cli, &started) {
        Ok(code) => code,
        Err(failure) => {
            report::failure(&failure);
            code_of(&failure)
        }
    }
}

fn parse(arguments: Vec<OsString>) -> Result<Cli, i32> {
    // Texts for people (help, errors) come from the dressed command. Without them it parses the same and is built in
    // a third of the time, which shows in verbs that take a millisecond.
    let matches = Cli::command()
        .try_get_matches_from(&arguments)
        .or_else(|_| help::command().try_get_matches_from(&arguments))
        .map_err(|e| {
            // Help and version are results; a closed pipe is nobody's fault.
            let _ = e.print();
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

/// Returns the exit code of arguments that can't be understood; those of `run` have their own.
fn misused(arguments: &[OsString]) -> i32 {
    let lenient = Cli::command().ignore_errors(true);
    let verb = lenient.try_get_matches_from(arguments).ok();
    match verb.as_ref().and_then(|matches| matches.subcommand_name()) {
        Some("run") => exit_code::NOT_RUN,
        _ => exit_code::MISUSED,
    }
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

fn verb(cli: Cli, started: &Started) -> Result<i32, Failure> {
    // These need neither store nor settings.
    let cli = match cli.command {
        Command::Completions(c) => return commands::shell::completions(&c),
        Command::Man(m) => return commands::shell::man(&m),
        Command::Help(h) => return commands::shell::help(&h),
        Command::Version => return commands::shell::version(),
        Command::Other(words) => return Err(Failure::misused(other_words::told(&words))),
        Command::Node(n) => return commands::node::node(n),
        Command::Overlay(o) => return commands::overlay::overlay(o, started),
        command => Cli { command, ..cli },
    };
    let identity = rootless::identity();
    let around = surroundings(&identity);
    let flags = flags(&cli)?;
    let file = cli.global.config.clone();
    let config = config::resolve(&around, file.as_deref(), flags.clone())
        .map_err(|e| Failure::from(vellum_service::Error::from(e)))?;
    let needs_store = match &cli.command {
        Command::Config(_) | Command::Layer(_) => false,
        Command::Settle(s) => s.work.is_none(),
        Command::Cat(c) => c.look.tree.options.is_empty(),
        Command::Explain(e) => e.look.tree.options.is_empty(),
        Command::Ls(l) => l.tree.options.is_empty(),
        _ => true,
    };
    if identity.needs_namespace && needs_store {
        rootless::enter(&config.run_dir.value)?;
    }
    if let Command::Unshare(u) = &cli.command {
        return commands::shell::unshare(u, &config);
    }
    let cli = match cli.command {
        // Servers end by their own rules and take the context with them.
        Command::Serve(serve) => {
            match &serve {
                Serve::Containerd(args) if args.log_format == LogFormat::Json => {
                    logging_json("info");
                }
                _ => logging("info"),
            }
            let ctx = Context::new(config, Cancel::new(), Arc::new(Silent));
            return match serve {
                Serve::Containerd(containerd) => {
                    let reload = move || config::resolve(&around, file.as_deref(), flags.clone());
                    commands::serve::containerd(ctx, containerd, Box::new(reload))
                }
                Serve::Docker(docker) => commands::serve::docker(ctx, docker),
            };
        }
        command => Cli { command, ..cli },
    };
    logging("warn");
    let cancel = signals(&cli.command)?;
    let progress: Arc<dyn Progress> = if cli.global.quiet {
        Arc::new(Silent)
    } else {
        Arc::new(Bars::new())
    };
    let ctx = Context::new(config, cancel, progress);
    let quiet = Quiet {
        talk: cli.global.quiet,
        listing: is_quiet_behind_the_verb(&started.arguments),
    };
    commands::run(&ctx, cli.command, quiet)
}

/// Tells whether `-q` stands behind the verb, where Docker and Podman have a listing print ids by it. Before the verb it is what it is for
/// all of them, and scripts have it there.
fn is_quiet_behind_the_verb(arguments: &[OsString]) -> bool {
    let mut words = arguments.iter().filter_map(|word| word.to_str());
    let is_listing = |word: &str| matches!(word, "images" | "ls" | "ps");
    // A value of a flag before the verb may be called as a verb: then the verb still comes.
    let quiet = |word: &str| {
        let shorts = word.strip_prefix('-').filter(|rest| !rest.starts_with('-'));
        word == "--quiet" || shorts.is_some_and(|shorts| shorts.contains('q'))
    };
    words.by_ref().any(is_listing) && words.take_while(|word| *word != "--").any(quiet)
}

/// Returns what the flags say about settings; those of the verb count, too.
fn flags(cli: &Cli) -> Result<Partial, Failure> {
    let Global {
        root,
        run_dir,
        storage_driver,
        engine,
        docker_compatible,
        mount_method,
        mount_options,
        ..
    } = &cli.global;
    let mut mount = MountPartial {
        mount_method: *mount_method,
        ..MountPartial::default()
    };
    for option in mount_options {
        mount
            .set(option)
            .map_err(|why| Failure::misused(format!("--mount-opt {option}: {why}")))?;
    }
    let mut flags = Partial {
        root: root.as_deref().map(absolute).transpose()?,
        run_dir: run_dir.as_deref().map(absolute).transpose()?,
        storage_driver: *storage_driver,
        engine: *engine,
        docker_compatible: docker_compatible.then_some(true),
        mount,
        ..Partial::default()
    };
    match &cli.command {
        Command::Load(l) => {
            flags.keep_blobs = l.keep_blobs.then_some(true);
            flags.jobs = l.jobs;
        }
        Command::Pull(p) => {
            flags.keep_blobs = p.keep_blobs.then_some(true);
            flags.jobs = p.jobs;
            flags.auth_file = p.auth_file.as_deref().map(absolute).transpose()?.map(Some);
        }
        Command::Push(p) => {
            flags.auth_file = p.auth_file.as_deref().map(absolute).transpose()?.map(Some)
        }
        Command::Run(r) => {
            flags.runtime = r.runtime.clone().map(Some);
            flags.size = r.size.map(size);
        }
        Command::Create(c) => flags.size = c.size.map(size),
        _ => {}
    }
    Ok(flags)
}

fn size(bytes: u64) -> Size {
    Size((bytes != 0).then_some(bytes))
}

fn absolute(path: &std::path::Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path)
        .map_err(|e| Failure::other(format!("cannot find {}: {e}", path.display())))
}

/// As [`logging`], for programs that read it.
fn logging_json(usual: &str) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("VELLUM_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(usual));
    // As above.
    let _ = tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .try_init();
}

/// The first Ctrl-C asks every loop to stop; the second ends the process where it stands, which is safe too, only less tidy.
///
/// During a `run` Ctrl-C belongs to the command in the container: the terminal sends it there, and whether that ends it is its own affair.
fn signals(command: &Command) -> Result<Cancel, Failure> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let flag = Arc::new(AtomicBool::new(false));
    let set = |signal| -> std::io::Result<()> {
        if signal == SIGINT && matches!(command, Command::Run(_)) {
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
