//! Progress on stderr: messages always, progress bars only on a terminal.
//!
//! A running task has one line, redrawn for the current width of the terminal ([`running`]); a
//! finished task leaves a line that stays ([`finished`]).

use std::fmt::Write;
use std::io::IsTerminal;

use console::Term;
use indicatif::{
    BinaryBytes, HumanBytes, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState,
    ProgressStyle,
};
use vellum_service::progress::{Meter, Progress, Unit};

use crate::report;

/// Draws on stderr.
pub struct Bars {
    bars: MultiProgress,
    terminal: bool,
}

impl Bars {
    /// Returns a drawer for this process's stderr.
    pub fn new() -> Self {
        let terminal = std::io::stderr().is_terminal();
        let target = if terminal {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        Self {
            bars: MultiProgress::with_draw_target(target),
            terminal,
        }
    }

    fn line(&self, text: &str) {
        if self.terminal {
            // Suspended, so that the line doesn't tear the bars. It may fail if the terminal is
            // gone.
            self.bars.suspend(|| report::line(text));
        } else {
            report::line(text);
        }
    }
}

struct Bar {
    bar: ProgressBar,
    what: String,
    unit: Unit,
    terminal: Option<MultiProgress>,
}

impl Progress for Bars {
    fn meter(&self, what: &str, unit: Unit, total: Option<u64>) -> Box<dyn Meter> {
        let bar = match total {
            Some(total) => ProgressBar::new(total),
            None => ProgressBar::no_length(),
        };
        let bar = self.bars.add(bar);
        if let Ok(style) = ProgressStyle::with_template("{line}") {
            let what = what.to_owned();
            let draw = move |state: &ProgressState, out: &mut dyn Write| {
                // Ask for the width each time: users resize windows.
                let width = Term::stderr().size().1.into();
                let amount = Amount {
                    unit,
                    done: state.pos(),
                    total: state.len(),
                    rate: state.per_sec(),
                };
                // A line that can't be drawn now is drawn with the next change.
                let _ = out.write_str(&running(&what, &amount, width));
            };
            bar.set_style(style.with_key("line", draw));
        }
        Box::new(Bar {
            bar,
            what: what.to_owned(),
            unit,
            terminal: self.terminal.then(|| self.bars.clone()),
        })
    }

    fn say(&self, line: &str) {
        self.line(line);
    }

    fn warn(&self, line: &str) {
        let word = if report::colours() {
            "\x1b[1;33mwarning:\x1b[0m"
        } else {
            "warning:"
        };
        self.line(&format!("{word} {line}"));
    }
}

impl Meter for Bar {
    fn advance(&self, amount: u64) {
        self.bar.inc(amount);
    }

    fn set_total(&self, total: u64) {
        self.bar.set_length(total);
    }

    /// Replaces the bar by a line. Finished bars would stay only as long as all of them fit the
    /// terminal's height.
    fn finish(&self, outcome: &str) {
        self.bar.finish_and_clear();
        let Some(bars) = self.terminal.as_ref().filter(|_| !outcome.is_empty()) else {
            return;
        };
        let width = Term::stderr().size().1.into();
        let line = finished(&self.what, outcome, self.unit, self.bar.position(), width);
        bars.suspend(|| report::line(&line));
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if !self.bar.is_finished() {
            self.bar.finish_and_clear();
        }
    }
}

/// How far a task has come.
struct Amount {
    unit: Unit,
    done: u64,
    total: Option<u64>,
    rate: f64,
}

fn said(unit: Unit, amount: u64) -> String {
    match unit {
        Unit::Bytes => HumanBytes(amount).to_string(),
        Unit::Items => amount.to_string(),
    }
}

/// Returns the line of a running task: as many whole parts as fit into `width` columns.
fn running(what: &str, amount: &Amount, width: usize) -> String {
    let done = said(amount.unit, amount.done);
    let share = amount.total.filter(|&total| total > 0);
    let share = share.map(|total| (amount.done as f64 / total as f64).min(1.0));
    let numbers = match amount.total {
        Some(total) => format!("{done:>10}/{:10}", said(amount.unit, total)),
        None => format!("{done:>10}"),
    };
    let percent = share.map_or(done, |share| format!("{:.0}%", share * 100.0));
    let rate = match amount.unit {
        Unit::Bytes => format!(" {:>12}", format!("{}/s", BinaryBytes(amount.rate as u64))),
        Unit::Items => String::new(),
    };
    for tail in [format!("{numbers}{rate}"), numbers] {
        let around = columns(what).max(WHAT_COLUMNS) + columns(&tail) + 2;
        if width >= around + BAR_COLUMNS {
            let bar = width - around;
            let full = (share.unwrap_or_default() * bar as f64) as usize;
            let (full, empty) = ("\u{2588}".repeat(full), "\u{2591}".repeat(bar - full));
            return format!("{what:WHAT_COLUMNS$} {full}{empty} {tail}");
        }
    }
    // Too narrow for a bar: the number, and those words of the name that fit.
    let mut line = String::new();
    for word in what.split(' ') {
        if columns(&line) + columns(word) + 1 + columns(&percent) > width {
            break;
        }
        line.push_str(word);
        line.push(' ');
    }
    line + &percent
}

/// Returns the line that a finished task leaves. If even the words don't fit, the terminal wraps
/// them.
fn finished(what: &str, outcome: &str, unit: Unit, done: u64, width: usize) -> String {
    let words = format!("{what} {outcome}");
    let line = format!("{words:OUTCOME_COLUMNS$} {:>10}", said(unit, done));
    match done > 0 && columns(&line) <= width {
        true => line,
        false => words,
    }
}

/// Room for a task's name, with its number and a dozen digits of its digest.
const WHAT_COLUMNS: usize = 28;
/// Room for the name and the outcome.
const OUTCOME_COLUMNS: usize = 42;
/// A shorter bar says less than the numbers next to it.
const BAR_COLUMNS: usize = 8;

fn columns(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 4] = [
        "layer 1/3 65090fcba6b1",
        "layer 127/127 65090fcba6b1",
        "pushing registry.example/a/b:1",
        "x",
    ];

    #[test]
    fn progress_lines_are_whole_at_any_width() {
        for what in NAMES {
            for unit in [Unit::Bytes, Unit::Items] {
                for (done, total) in [
                    (0, Some(10)),
                    (1 << 40, Some(3 << 41)),
                    (7, None),
                    (0, Some(0)),
                ] {
                    let amount = Amount {
                        unit,
                        done,
                        total,
                        rate: 123_456_789.0,
                    };
                    for width in 12..200 {
                        let line = running(what, &amount, width);
                        assert!(columns(&line) <= width, "{width}: {line:?}");
                        let words: Vec<&str> = line.split_whitespace().collect();
                        let whole = |word: &&str| what.split(' ').any(|part| part == *word);
                        let named = words.iter().take_while(|word| whole(word)).count();
                        if width > 80 {
                            assert!(line.starts_with(what), "{width}: {line:?}");
                        }
                        // The name's whole words are followed by a bar or a number, never by part
                        // of a word.
                        let next = words[named].chars().next().unwrap();
                        let fine = next.is_ascii_digit() || "\u{2588}\u{2591}".contains(next);
                        assert!(fine, "{width}: {line:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_finished_task_shows_its_whole_outcome() {
        for what in NAMES {
            for outcome in ["unpacked", "already there", "written"] {
                for width in 1..200 {
                    let line = finished(what, outcome, Unit::Bytes, 12_345_678, width);
                    let words = format!("{what} {outcome}");
                    assert!(line.starts_with(&words), "{line:?}");
                    let with_size = columns(&words).max(OUTCOME_COLUMNS) + 11;
                    assert_eq!(line != words, width >= with_size, "{width}: {line:?}");
                    assert!(line == words || columns(&line) <= width);
                }
            }
        }
        let nothing = finished(
            "layer 1/1 65090fcba6b1",
            "already there",
            Unit::Bytes,
            0,
            80,
        );
        assert_eq!(nothing, "layer 1/1 65090fcba6b1 already there");
    }
}
