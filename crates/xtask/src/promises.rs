//! Checks the promises in `docs/semantics/`: each has a number on its page and a row of tests in
//! the table at the end of the page, and each of these tests exists.
//!
//! A promise is an item that begins `* **7.** `; its row is `| 7 | tests in backticks |`.

use anyhow::Context;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

const PAGES: &str = "docs/semantics";

/// The promises on the pages of a tree.
pub struct Promises {
    pub count: usize,
    /// The problems found, each with its page.
    pub wrong: Vec<String>,
}

/// Reads the pages among `files` and compares them with the names of all tests.
pub fn check(root: &Path, files: &[PathBuf], tests: &BTreeSet<String>) -> anyhow::Result<Promises> {
    let mut all = Promises {
        count: 0,
        wrong: Vec::new(),
    };
    for file in files.iter().filter(|file| file.starts_with(PAGES)) {
        let text =
            std::fs::read_to_string(root.join(file)).with_context(|| file.display().to_string())?;
        let page = Page::of(&text);
        all.count += page.promises.len();
        let wrong = page.wrong(tests).into_iter();
        all.wrong
            .extend(wrong.map(|what| format!("{}: {what}", file.display())));
    }
    Ok(all)
}

/// The numbers of the promises on a page, in order, and the tests in the rows of its table.
struct Page {
    promises: Vec<u32>,
    rows: Vec<(u32, Vec<String>)>,
    /// Lines with items that have no number.
    unnumbered: Vec<usize>,
}

impl Page {
    fn of(text: &str) -> Self {
        let mut page = Self {
            promises: Vec::new(),
            rows: Vec::new(),
            unnumbered: Vec::new(),
        };
        for (line, text) in text.lines().enumerate() {
            if let Some(item) = text.strip_prefix("* ") {
                let number = item
                    .strip_prefix("**")
                    .and_then(|item| item.split_once(".** "));
                match number.and_then(|(number, _)| number.parse().ok()) {
                    Some(number) => page.promises.push(number),
                    None => page.unnumbered.push(line + 1),
                }
            } else if let Some(row) = text.strip_prefix("| ")
                && let Some((number, names)) = row.split_once(" | ")
                && let Ok(number) = number.parse()
            {
                let names = names.split('`').skip(1).step_by(2);
                let names = names.filter_map(|name| name.rsplit("::").next());
                page.rows.push((number, names.map(str::to_owned).collect()));
            }
        }
        page
    }

    fn wrong(&self, tests: &BTreeSet<String>) -> Vec<String> {
        let mut wrong: Vec<String> = (self.unnumbered.iter())
            .map(|line| format!("line {line}: a promise without a number"))
            .collect();
        let mut rows = BTreeMap::new();
        for (number, names) in &self.rows {
            if rows.insert(number, names).is_some() {
                wrong.push(format!("two rows of tests for promise {number}"));
            }
            for name in names.iter().filter(|name| !tests.contains(*name)) {
                wrong.push(format!("promise {number}: no test is called {name}"));
            }
        }
        let mut seen = BTreeSet::new();
        for number in &self.promises {
            if !seen.insert(number) {
                wrong.push(format!("two promises have the number {number}"));
            }
            if rows.remove(number).is_none_or(Vec::is_empty) {
                wrong.push(format!("promise {number} has no test"));
            }
        }
        let left = rows.keys();
        wrong.extend(
            left.map(|number| format!("a row of tests for promise {number}, which doesn't exist")),
        );
        wrong
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(text: &str) -> Vec<String> {
        let tests = ["one", "two", "three"].map(str::to_owned);
        Page::of(text).wrong(&BTreeSet::from(tests))
    }

    #[test]
    fn a_promise_has_a_number_and_a_row_of_tests_that_exist() {
        let text = "* **1.** One `x`\n  goes on.\n* **3.** Three.\n\n| promise | tests |\n|---|---|\n\
                    | 3 | `a::two`, `three` (four times) |\n| 1 | `one` |\n";
        assert_eq!(wrong(text), [""; 0]);
    }

    #[test]
    fn a_missing_number_row_or_test_is_reported() {
        let text = "* None.\n* **1.** One.\n* **2.** Two.\n* **2.** Two.\n\n\
                    | 2 | `four` |\n| 2 | `two` |\n| 3 | `three` |\n";
        let named = [
            "line 1: a promise without a number",
            "promise 2: no test is called four",
            "two rows of tests for promise 2",
            "promise 1 has no test",
            "two promises have the number 2",
            "promise 2 has no test",
            "a row of tests for promise 3, which doesn't exist",
        ];
        assert_eq!(wrong(text), named);
    }
}
