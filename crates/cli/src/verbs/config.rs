//! `config`: shows the settings, and converts Docker's.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueHint};
use vellum_service::config::docker;
use vellum_service::{Context, Error};

use super::{Examples, Group, Outcome, Verb};
use crate::args::Output;
use crate::exit_code::{DONE, Failure};
use crate::out::stdout;
use crate::start::Start;

/// Show settings, or convert Docker's
#[derive(Debug, Subcommand)]
pub enum Config {
    /// Show every setting and where it comes from
    Show(ConfigShow),
    /// Convert Docker's storage settings to Vellum's
    Import(ConfigImport),
}

/// `config show`
#[derive(Debug, Args)]
pub struct ConfigShow {
    #[command(flatten)]
    /// How results are printed
    pub output: Output,
}

/// `config import`
#[derive(Debug, Args)]
pub struct ConfigImport {
    /// daemon.json or docker-storage file, or - for stdin [default: /etc/docker/daemon.json]
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: Option<PathBuf>,
    /// Convert these storage options of Docker: "--storage-driver overlay2 --storage-opt
    /// overlay2.size=10G"
    #[arg(
        long,
        value_name = "TEXT",
        conflicts_with = "file",
        allow_hyphen_values = true
    )]
    pub options: Option<String>,
    /// File to write [default: stdout]
    #[arg(long, short, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub output: Option<PathBuf>,
    /// Replace the file if it exists
    #[arg(long, short)]
    pub force: bool,
}

impl Verb for Config {
    const GROUP: Group = Group::Store;
    const EXAMPLES: Examples = &[
        (
            "",
            "  vellum config show
  vellum config import",
        ),
        ("show", "  vellum config show --json"),
        (
            "import",
            "  vellum config import /etc/docker/daemon.json -o /etc/vellum/vellum.toml
  vellum config import --options \"$DOCKER_STORAGE_OPTIONS\"",
        ),
    ];

    fn run(self, mut start: Start<'_>) -> Outcome {
        start.needs_store = false;
        let ctx = &start.context()?;
        match self {
            Config::Show(a) => show(ctx, a),
            Config::Import(a) => import(ctx, a),
        }
    }
}

fn show(ctx: &Context, args: ConfigShow) -> Outcome {
    let lines = ctx.config.lines();
    let mut out = stdout();
    if args.output.json {
        out.json(&lines)?;
    } else {
        let rows: Vec<_> = lines
            .iter()
            .map(|l| vec![l.name.to_owned(), l.value.clone(), l.source.clone()])
            .collect();
        out.table(&["SETTING", "VALUE", "FROM"], &rows)?;
    }
    out.done()?;
    Ok(DONE)
}

fn import(ctx: &Context, args: ConfigImport) -> Outcome {
    let imported = match (&args.options, args.file) {
        (Some(options), _) => {
            docker::storage_options(options, Path::new("--options")).map_err(Error::from)?
        }
        (None, file) => {
            let file = file.unwrap_or_else(|| PathBuf::from("/etc/docker/daemon.json"));
            let text = read(&file)?;
            // JSON begins with a brace; a docker-storage file never does.
            if text.trim_start().starts_with('{') || text.trim().is_empty() {
                docker::daemon_json(&text, &file).map_err(Error::from)?
            } else {
                docker::storage_options(&text, &file).map_err(Error::from)?
            }
        }
    };
    for remark in &imported.remarks {
        ctx.progress.say(&format!("note: {remark}"));
    }
    let text = toml::to_string(&imported.partial)
        .map_err(|e| Failure::other(format!("cannot write the settings as TOML: {e}")))?;
    match args.output {
        None => {
            let mut out = stdout();
            out.bytes(text.as_bytes())?;
            out.done()?;
        }
        Some(path) => {
            write(&path, &text, args.force)?;
            ctx.progress.say(&format!(
                "wrote {}; `vellum config show` shows the settings in effect",
                path.display()
            ));
        }
    }
    Ok(DONE)
}

fn read(file: &Path) -> Result<String, Failure> {
    if file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .map_err(Error::io("read", "standard input"))?;
        return Ok(text);
    }
    Ok(std::fs::read_to_string(file).map_err(Error::io("read", file))?)
}

fn write(path: &Path, text: &str, force: bool) -> Result<(), Failure> {
    if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
        std::fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
    }
    let mut options = std::fs::OpenOptions::new();
    options.write(true);
    if force {
        options.create(true).truncate(true)
    } else {
        options.create_new(true)
    };
    let mut file = match options.open(path) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(Failure::other(format!(
                "{} already exists\nhint: --force replaces it",
                path.display()
            )));
        }
        other => other.map_err(Error::io("create", path))?,
    };
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(Error::io("write", path))?;
    Ok(())
}
