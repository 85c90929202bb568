//! Progress on stderr: bars on a terminal, plain lines of talk anywhere, and no bars elsewhere.

use std::io::IsTerminal;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
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
            // Between the bars, not through them; a terminal that is gone needs no lines.
            self.bars.suspend(|| report::line(text));
        } else {
            report::line(text);
        }
    }
}

struct Bar(ProgressBar);

impl Progress for Bars {
    fn meter(&self, what: &str, unit: Unit, total: Option<u64>) -> Box<dyn Meter> {
        let bar = match total {
            Some(total) => ProgressBar::new(total),
            None => ProgressBar::no_length(),
        };
        let bar = self.bars.add(bar);
        let template = match unit {
            Unit::Bytes => {
                "{msg:28!} {wide_bar} {bytes:>10}/{total_bytes:10} {binary_bytes_per_sec:>12}"
            }
            Unit::Items => "{msg:28!} {wide_bar} {pos:>7}/{len:7}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(what.to_owned());
        Box::new(Bar(bar))
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
        self.0.inc(amount);
    }

    fn set_total(&self, total: u64) {
        self.0.set_length(total);
    }

    fn finish(&self, outcome: &str) {
        if outcome.is_empty() {
            self.0.finish_and_clear();
        } else {
            self.0
                .finish_with_message(format!("{} {outcome}", self.0.message()));
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if !self.0.is_finished() {
            self.0.finish_and_clear();
        }
    }
}
