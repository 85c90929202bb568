//! How failures look: what failed, the causes, and a hint on its own line. All goes to stderr.

use std::io;

pub use vellum_overlay::report::{colours, line};
use vellum_overlay::report::{error_word, text};

use crate::exit_code::Failure;

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

/// Returns the whole text of a verb's failure.
pub fn verb(error: &vellum_service::Error, colours: bool) -> String {
    text(error, error.hint().as_deref(), colours)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vellum_service::error::ObjectKind;

    #[test]
    fn causes_and_hints_have_their_own_lines() {
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
            kind: ObjectKind::Container,
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
