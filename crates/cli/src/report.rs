//! How failures look: what failed, what caused it, and a hint on a line of its own. All of it on stderr.

use std::error::Error;
use std::io::{self, IsTerminal, Write};

use crate::exit_code::Failure;

/// Tells whether colours are welcome on stderr: a terminal, and no `NO_COLOR`.
pub fn colours() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

/// Writes one line of talk to stderr.
pub fn line(text: &str) {
    // There is nobody left to tell if stderr is gone.
    let _ = writeln!(io::stderr(), "{text}");
}

/// Reports a failure.
pub fn failure(failure: &Failure) {
    match failure {
        Failure::Verb(e) => line(&verb(e, colours())),
        Failure::Misused(text) | Failure::Other(text) => {
            line(&format!("{} {text}", error_word(colours())))
        }
        Failure::Output(e) if e.kind() == io::ErrorKind::BrokenPipe => {}
        Failure::Output(e) => line(&format!(
            "{} cannot write the result: {e}",
            error_word(colours())
        )),
        Failure::Said(_) => {}
    }
}

fn error_word(colours: bool) -> &'static str {
    if colours {
        "\x1b[1;31merror:\x1b[0m"
    } else {
        "error:"
    }
}

/// Returns the whole text of a verb's failure.
pub fn verb(error: &vellum_service::Error, colours: bool) -> String {
    let mut text = format!("{} {error}", error_word(colours));
    let mut said = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        // A transparent error shows its cause's words as its own.
        if !said.ends_with(&words) {
            text.push_str(&format!("\n  caused by: {words}"));
        }
        said = words;
        source = cause.source();
    }
    if let Some(hint) = error.hint() {
        let word = if colours {
            "\x1b[1;36mhint:\x1b[0m"
        } else {
            "hint:"
        };
        text.push_str(&format!("\n{word} {hint}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use vellum_service::error::Kind;

    #[test]
    fn a_failure_has_a_cause_and_a_hint_on_lines_of_their_own() {
        let error = vellum_service::Error::io("read", "/x")(io::Error::from_raw_os_error(28));
        let text = verb(&error, false);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "error: cannot read /x");
        assert_eq!(
            lines[1],
            "  caused by: No space left on device (os error 28)"
        );
        assert!(lines[2].starts_with("hint: the disk is full"), "{text}");
        let error = vellum_service::Error::NotFound {
            kind: Kind::Container,
            name: "box".into(),
            meant: None,
        };
        assert_eq!(
            verb(&error, false),
            "error: there is no container `box`\nhint: `vellum ls` lists them"
        );
        assert!(verb(&error, true).contains("\x1b["));
    }
}
