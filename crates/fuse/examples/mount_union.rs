//! Mounts a union and serves it until it is unmounted: for experiments, and for this crate's tests.
//!
//! ```text
//! mount_union LOWER[:LOWER...] UPPER WORK TARGET [OPTION...]
//! mount_union LOWER[:LOWER...] - - TARGET [OPTION...]          (read-only)
//! ```
//!
//! Prints `mounted` when the mount is served, and at the end the number of each request. Options:
//! `userxattr`, `passthrough`, `checked`, `noacl`, `writeback`, `volatile`, `allow_other`, `ro`,
//! `wh`, `noindex`, `noredirect`, `nometacopy`, `timeout=SECONDS`, `blocks=BYTES`, `only=UID`,
//! `size=BYTES`, `inodes=COUNT`, `fusermount`, `nouring`, `strict`, `workers=COUNT`, `data=LOWER`.
//! SIGUSR1 prints the counts so far.
//!
//! `hand-over=SOCKET` hands the mount over to the first process that connects there, instead of
//! serving it until it is unmounted; `take-over=SOCKET` is that process.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use vellum_format::Prefix;
use vellum_fuse::{Caught, DataMode, Handover, MountOptions, Mounter, OpenMode};
use vellum_union::engine::{Durability, Engine, EngineOptions, UpperOptions};
use vellum_union::{Dialect, DirLayer, Layer, WhNames};

type Failure = Box<dyn std::error::Error>;

fn main() {
    if let Err(error) = run() {
        eprint!("mount_union: {error}");
        let mut cause = error.source();
        while let Some(error) = cause {
            eprint!(": {error}");
            cause = error.source();
        }
        eprintln!();
        std::process::exit(1);
    }
}

fn run() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [lowers, upper, work, target, options @ ..] = &arguments[..] else {
        return Err("usage: mount_union LOWER[:LOWER...] UPPER WORK TARGET [OPTION...]".into());
    };
    let user = options.iter().any(|option| option == "userxattr");
    let prefix = match user {
        true => Prefix::User,
        false => Prefix::Trusted,
    };
    let open = |path: &str| -> Result<Arc<dyn Layer>, Failure> {
        let layer = DirLayer::open(Path::new(path), Dialect::kernel(prefix))?;
        Ok(Arc::new(layer))
    };
    let lowers: Vec<_> = lowers.split(':').map(open).collect::<Result<_, _>>()?;
    let mut engine = EngineOptions::new(lowers);
    if upper != "-" {
        engine.upper = Some(UpperOptions::new(upper.into(), work.into(), prefix));
    }
    let mut mount = MountOptions::default();
    let (mut hand_over, mut take_over) = (None, None);
    for option in options {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        match name {
            "userxattr" => {}
            "hand-over" => hand_over = Some(PathBuf::from(value)),
            "take-over" => take_over = Some(PathBuf::from(value)),
            "passthrough" => mount.data = DataMode::Passthrough,
            "checked" => mount.open = OpenMode::Checked,
            "noacl" => mount.acl = false,
            "writeback" => mount.writeback = true,
            "nouring" => mount.io_uring = false,
            "allow_other" => mount.allow_other = true,
            "workers" => mount.workers = Some(value.parse()?),
            "only" => mount.only = Some(value.parse()?),
            "ro" => mount.flags.read_only = true,
            "fusermount" => mount.mounter = Mounter::Fusermount,
            "timeout" => mount.timeout = Duration::from_secs_f64(value.parse()?),
            "data" => engine.data_lowers.push(open(value)?),
            _ => {
                let upper = engine.upper.as_mut().ok_or("that needs an upper layer")?;
                match name {
                    "volatile" => {
                        upper.durability = Durability::Volatile;
                        mount.no_fsync = true;
                    }
                    "strict" => upper.durability = Durability::Full,
                    "wh" => upper.wh_names = WhNames::Whiteouts,
                    "noindex" => upper.index = false,
                    "noredirect" => upper.redirect_dir = false,
                    "nometacopy" => upper.metacopy = false,
                    "blocks" => upper.blocks_from_bytes = Some(value.parse()?),
                    "size" => upper.limit.size_bytes = Some(value.parse()?),
                    "inodes" => upper.limit.inodes = Some(value.parse()?),
                    _ => return Err(format!("there is no option {option}").into()),
                }
            }
        }
    }
    let caught = Caught::new()?;
    let mut session = match take_over {
        Some(socket) => {
            let handover = Handover::receive(UnixStream::connect(socket)?)?;
            vellum_fuse::take_over(engine, handover, &mount)?
        }
        None => vellum_fuse::mount(Engine::open(engine)?, Path::new(target), &mount)?,
    };
    session.take_signals(caught)?;
    if let Some(socket) = hand_over {
        let listener = UnixListener::bind(socket)?;
        println!("mounted");
        let (successor, _) = listener.accept()?;
        let handover = session.hand_over().map_err(|not| not.error)?;
        return Ok(handover.send(successor)?);
    }
    println!("mounted");
    let counters = session.counters();
    let engine = session.outlast();
    println!("{}", counters.now());
    Ok(engine.close()?)
}
