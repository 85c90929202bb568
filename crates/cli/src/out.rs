//! Results on stdout: lines, tables, JSON. If the pipe is closed, the command exits with code 0.

use std::io::{self, BufWriter, IsTerminal, Write};

use jiff::Timestamp;
use serde::Serialize;

use crate::exit_code::Failure;

/// Buffered stdout.
pub struct Out(BufWriter<io::StdoutLock<'static>>);

/// Returns stdout for a command's result.
pub fn stdout() -> Out {
    Out(BufWriter::new(io::stdout().lock()))
}

impl Out {
    /// Writes one line.
    pub fn line(&mut self, text: impl AsRef<[u8]>) -> Result<(), Failure> {
        self.bytes(text.as_ref())?;
        self.bytes(b"\n")
    }

    /// Writes bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.0.write_all(bytes).map_err(Failure::Output)
    }

    /// Writes JSON, indented, with a newline.
    pub fn json(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        serde_json::to_writer_pretty(&mut self.0, value).map_err(|e| Failure::Output(e.into()))?;
        self.bytes(b"\n")
    }

    /// Writes rows under a header, with at least two spaces between columns. The last column is not
    /// padded.
    pub fn table(&mut self, head: &[&str], rows: &[Vec<String>]) -> Result<(), Failure> {
        let width = |text: &str| text.chars().count();
        let mut widths: Vec<usize> = head.iter().map(|h| width(h)).collect();
        for row in rows {
            for (at, cell) in row.iter().enumerate() {
                widths[at] = widths[at].max(width(cell));
            }
        }
        let head: Vec<String> = head.iter().map(|h| (*h).to_owned()).collect();
        for row in std::iter::once(&head).chain(rows) {
            let mut text = String::new();
            for (at, cell) in row.iter().enumerate() {
                text.push_str(cell);
                if at + 1 < row.len() {
                    text.extend(std::iter::repeat_n(' ', widths[at] - width(cell) + 2));
                }
            }
            self.line(text.trim_end())?;
        }
        Ok(())
    }

    /// Writes what is buffered, for a result that comes bit by bit.
    pub fn flush(&mut self) -> Result<(), Failure> {
        self.0.flush().map_err(Failure::Output)
    }

    /// Flushes the buffer.
    pub fn done(mut self) -> Result<(), Failure> {
        self.0.flush().map_err(Failure::Output)
    }
}

/// Errors if stdout is a terminal, because archives are not text.
pub fn refuse_terminal(what: &str) -> Result<(), Failure> {
    if io::stdout().is_terminal() {
        return Err(Failure::misused(format!(
            "not writing {what} to the terminal; redirect stdout or name a file"
        )));
    }
    Ok(())
}

/// Asks on the terminal; without one the answer is no.
pub fn confirm(question: &str) -> bool {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return false;
    }
    let _ = write!(io::stderr(), "{question} [y/N] ");
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).is_ok() && matches!(answer.trim(), "y" | "Y" | "yes")
}

/// Formats bytes for people: `0B`, `512B`, `1.5KiB`, `3GiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 || value >= 99.95 {
        format!("{value:.0}{}", UNITS[unit])
    } else {
        format!("{value:.1}{}", UNITS[unit])
    }
}

/// Formats a number of things for people: `1 layer`, `2 layers`.
pub fn counted<N: std::fmt::Display + PartialEq + From<u8>>(number: N, noun: &str) -> String {
    let ending = if number == N::from(1) { "" } else { "s" };
    format!("{number} {noun}{ending}")
}

/// Formats how long ago a time was, for people: `3 minutes ago`.
pub fn ago(then: Timestamp) -> String {
    ago_from(then, Timestamp::now())
}

fn ago_from(then: Timestamp, now: Timestamp) -> String {
    let seconds = (now.as_second() - then.as_second()).max(0);
    let (count, unit) = match seconds {
        0..60 => (seconds, "second"),
        60..3600 => (seconds / 60, "minute"),
        3600..86_400 => (seconds / 3600, "hour"),
        86_400..1_209_600 => (seconds / 86_400, "day"),
        1_209_600..5_184_000 => (seconds / 604_800, "week"),
        5_184_000..63_072_000 => (seconds / 2_592_000, "month"),
        _ => (seconds / 31_536_000, "year"),
    };
    format!("{count} {unit}{} ago", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_for_people() {
        for (count, expect) in [
            (0, "0B"),
            (1023, "1023B"),
            (1024, "1.0KiB"),
            (1536, "1.5KiB"),
            (100 << 20, "100MiB"),
            ((1 << 30) - 1, "1.0GiB"),
            (u64::MAX, "16.0EiB"),
        ] {
            assert_eq!(bytes(count), expect);
        }
    }

    #[test]
    fn times_for_people() {
        let at = |s| Timestamp::from_second(s).unwrap();
        for (seconds, expect) in [
            (0, "0 seconds ago"),
            (61, "1 minute ago"),
            (7200, "2 hours ago"),
            (86_400 * 20, "2 weeks ago"),
            (86_400 * 800, "2 years ago"),
        ] {
            assert_eq!(ago_from(at(0), at(seconds)), expect);
        }
        assert_eq!(ago_from(at(10), at(0)), "0 seconds ago");
    }
}
