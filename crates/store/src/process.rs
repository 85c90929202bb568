//! Whether a process still runs. It is identified by pid, start time and boot, so that a process
//! with a reused pid is another one.

use crate::error::Result;

/// A process that can't be confused with another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub pid: i64,
    /// Start time in clock ticks since boot, field 22 of `/proc/PID/stat`.
    pub start: i64,
    pub boot: String,
}

impl Process {
    /// This process.
    pub fn this() -> Result<Self> {
        let pid = i64::from(std::process::id());
        Ok(Self {
            pid,
            start: start_of(pid).unwrap_or(0),
            boot: boot_id(),
        })
    }

    /// Returns whether this very process still runs.
    pub fn lives(&self) -> bool {
        self.boot == boot_id() && start_of(self.pid) == Some(self.start)
    }
}

fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

fn start_of(pid: i64) -> Option<i64> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The command is in parentheses and may contain anything: fields are counted after the last
    // one.
    let rest = &stat[stat.iter().rposition(|&b| b == b')')? + 1..];
    let mut fields = std::str::from_utf8(rest).ok()?.split_ascii_whitespace();
    let state = fields.next()?;
    if state == "Z" || state == "X" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reused_pid_is_another_process() {
        let this = Process::this().unwrap();
        assert!(this.lives());
        assert!(
            !Process {
                start: this.start + 1,
                ..this.clone()
            }
            .lives()
        );
        assert!(
            !Process {
                boot: "another".into(),
                ..this
            }
            .lives()
        );
    }
}
