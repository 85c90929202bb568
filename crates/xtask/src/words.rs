//! Words that make a reader stumble are refused in everything that is read: documents, comments,
//! messages and help.
//!
//! "is no file" for "is not a file" ("there is no" and "is no longer" are right), "whoever" and
//! "somebody", and "he", "his" or "him" for a process or a user, which are "it" and "they".

use std::path::Path;

const REFUSED: [&str; 5] = ["whoever", "somebody", "he", "his", "him"];
/// What may follow "is no".
const AFTER_NO: [&str; 6] = ["longer", "more", "less", "different", "better", "reason"];

/// Returns the lines that have such words, each with what is wrong.
pub fn stumbles(file: &Path, text: &str) -> Vec<(usize, String)> {
    let read = matches!(
        file.extension().and_then(|extension| extension.to_str()),
        Some("rs" | "md" | "sh" | "py" | "toml" | "yaml" | "conf" | "service" | "socket")
    );
    // This file names them.
    if !read || file.ends_with("xtask/src/words.rs") {
        return Vec::new();
    }
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let words: Vec<String> = line
            .split(|c: char| !c.is_alphanumeric() && c != '_')
            .filter(|word| !word.is_empty())
            .map(str::to_lowercase)
            .collect();
        let refused = words.iter().find(|word| REFUSED.contains(&word.as_str()));
        if let Some(word) = refused {
            found.push((number + 1, format!("\"{word}\"")));
        }
        for at in words.windows(4) {
            let [before, is, no, after] = at else {
                continue;
            };
            if (is == "is" || is == "are")
                && no == "no"
                && before != "there"
                && !AFTER_NO.contains(&after.as_str())
            {
                found.push((number + 1, format!("\"{is} no {after}\"")));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stumbles_of(text: &str) -> Vec<String> {
        let found = stumbles(Path::new("a.md"), text).into_iter();
        found
            .map(|(line, what)| format!("{line}: {what}"))
            .collect()
    }

    #[test]
    fn the_worst_words_are_refused() {
        let text =
            "Whoever asks.\nfor somebody\nThe caller and his group.\nif it is no directory, say";
        let found = [
            "1: \"whoever\"",
            "2: \"somebody\"",
            "3: \"his\"",
            "4: \"is no directory\"",
        ];
        assert_eq!(stumbles_of(text), found);
    }

    #[test]
    fn right_words_pass() {
        let text = "f'there is no file', and it is no longer there.\nThis, the history, shim.\nthere are no layers";
        assert_eq!(stumbles_of(text), [""; 0]);
        assert!(stumbles(Path::new("table.txt"), "somebody").is_empty());
    }
}
