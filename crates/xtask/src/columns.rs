//! Documents and comments end by column 100, so that they can be read side by side and in a diff.
//! Table rows, code blocks and lines without a space to break at may be longer.

use std::path::Path;

const COLUMNS: usize = 100;

/// Returns the numbers of the lines that are too long.
pub fn long_lines(file: &Path, text: &str) -> Vec<usize> {
    let is_prose: fn(&str) -> bool = match file.extension().and_then(|extension| extension.to_str())
    {
        Some("md") => |line| !line.starts_with("    "),
        Some("rs" | "go" | "proto") => |line| line.trim_start().starts_with("//"),
        Some("sh" | "py" | "toml" | "yaml" | "conf" | "service" | "socket") => {
            |line| line.trim_start().starts_with("# ")
        }
        _ => return Vec::new(),
    };
    let mut fenced = false;
    let mut long = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let prose = line.trim_start_matches([' ', '/', '!']);
        if prose.starts_with("```") {
            fenced = !fenced && !line.trim_start().starts_with("//");
        }
        let free = fenced || prose.starts_with('|') || !prose.contains(' ');
        if !free && is_prose(line) && line.chars().count() > COLUMNS {
            long.push(number + 1);
        }
    }
    long
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prose_is_measured_and_tables_and_code_are_not() {
        let long = format!("word {}", "x".repeat(COLUMNS));
        let text = format!("{long}\n| {long}\n    {long}\n```\n{long}\n```\n{long}\n");
        assert_eq!(long_lines(Path::new("a.md"), &text), [1, 7]);
        let text = format!("let a = \"{long}\";\n    // {long}\n//! | {long}\n");
        assert_eq!(long_lines(Path::new("a.rs"), &text), [2]);
        assert!(long_lines(Path::new("a.txt"), &long).is_empty());
    }
}
