//! The tables as one list: searched by name, and shown by the help.

use std::fmt::Write;

use super::SHOWN;
use super::entry::MountOption;
use super::others::NOTHING_TO_CHOOSE;

/// Returns every entry.
pub(crate) fn all() -> impl Iterator<Item = &'static MountOption> {
    let shown = SHOWN.iter().flat_map(|(_, options)| *options);
    shown.chain(NOTHING_TO_CHOOSE)
}

/// Returns the entry for a name.
pub(crate) fn find(name: &str) -> Option<&'static MountOption> {
    all().find(|option| option.names().any(|known| known == name))
}

/// Returns the list in the help: the groups, and a line for each option.
pub fn listed() -> String {
    let mut text = String::new();
    for (title, options) in SHOWN {
        // Writing to a string can't fail.
        let _ = writeln!(text, "\n  {title}");
        for option in *options {
            let spelled = option.spelled.replace(' ', ", ");
            let _ = match spelled.len() {
                0..=COLUMN => writeln!(text, "    {spelled:COLUMN$}  {}", option.doc),
                _ => writeln!(text, "    {spelled}\n    {:COLUMN$}  {}", "", option.doc),
            };
        }
    }
    text
}

/// The width of the spellings in the help.
const COLUMN: usize = 36;
