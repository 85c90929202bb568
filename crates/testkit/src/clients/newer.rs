//! A shell in the root file system of newer clients (`scripts/forky-root.sh`), for tests that work
//! both inside and outside of it.
//!
//! Processes inside have their own mount and pid namespace, and end with the shell, however the
//! test ends. Sockets in the exchange directory can be reached from outside.

use super::Home;
use anyhow::{Context, bail};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// Ends each piece of output.
const DONE: &str = "--- done";

/// Runs `$1`, then each piece of its input; the first command that fails ends it.
const READER: &str = r#"set -eu
eval "$PRELUDE" < /dev/null
while IFS= read -r -d '' piece; do
  eval "$piece" < /dev/null
  echo "$DONE"
done"#;

/// A shell (bash, `set -eu`) inside. Killed when dropped, with everything it started.
#[derive(Debug)]
pub struct Newer {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    log: PathBuf,
}

impl Newer {
    /// Starts it with the directory `exchange` of `home` as `/exchange`, and makes it read
    /// `prelude` first, whose `$1` is `name`.
    pub fn start(home: &Home, prelude: &str, name: &str) -> anyhow::Result<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/forky-root.sh");
        let log = home.join("newer.log");
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(script)
            .args(["run", "bash", "-c", READER, "bash", name])
            .env("EXCHANGE", home.dir("exchange")?)
            .env("PRELUDE", prelude)
            .env("DONE", DONE)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&log)?)
            .spawn()
            .context("cannot start the root of newer clients")?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("pipes were asked for");
        };
        Ok(Self {
            child,
            input,
            output: BufReader::new(output),
            log,
        })
    }

    /// Runs a piece of shell and returns its output, without the last newline. Variables and
    /// functions stay for the next one.
    ///
    /// Errors: a command in it fails; then this was the last piece, and the text contains all
    /// output.
    pub fn run(&mut self, piece: &str) -> anyhow::Result<String> {
        let sent = self.input.write_all(format!("{piece}\0").as_bytes());
        let mut said = String::new();
        let mut line = String::new();
        while sent.is_ok() && self.output.read_line(&mut line)? > 0 {
            if line.trim_end() == DONE {
                said.truncate(said.trim_end_matches('\n').len());
                return Ok(said);
            }
            said.push_str(&line);
            line.clear();
        }
        let mut rest = String::new();
        // Partial output is better than none.
        let _ = self.output.read_to_string(&mut rest);
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        bail!("{piece}\nended the shell\n-- stdout\n{said}{rest}\n-- stderr\n{log}");
    }
}

impl Drop for Newer {
    fn drop(&mut self) {
        let _ = self.child.kill(); // no effect on one that has ended
        let _ = self.child.wait();
    }
}
