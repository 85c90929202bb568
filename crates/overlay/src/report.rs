//! How failures look: what failed, its causes, and a hint on a line of its own, all on stderr.

use std::error::Error;
use std::io::{self, IsTerminal, Write};

use vellum_sys::causes;

/// Tells whether colours are welcome on stderr: it is a terminal, and there is no `NO_COLOR`.
pub fn colours() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

/// Writes one message line to stderr.
pub fn line(text: &str) {
    // If stderr is closed, there is no other place for the message.
    let _ = writeln!(io::stderr(), "{text}");
}

/// Returns the whole text of a failure.
pub fn text(error: &dyn Error, hint: Option<&str>, colours: bool) -> String {
    let said = causes(error).join("\n  caused by: ");
    let mut text = format!("{} {said}", error_word(colours));
    if let Some(hint) = hint {
        let word = if colours {
            "\x1b[1;36mhint:\x1b[0m"
        } else {
            "hint:"
        };
        text.push_str(&format!("\n{word} {hint}"));
    }
    text
}

/// `error:`, in colour if colours are welcome.
pub fn error_word(colours: bool) -> &'static str {
    if colours {
        "\x1b[1;31merror:\x1b[0m"
    } else {
        "error:"
    }
}
