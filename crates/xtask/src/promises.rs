//! Checks the promises in `docs/semantics/`: each has a number on its page and a row of tests in
//! the table at the end of the page, and each of these tests exists. The rules of
//! `docs/security.md` have a row each, too, and the tests that its text names exist.
//!
//! A promise is an item that begins `* **7.** `; its row is `| 7 | tests in backticks |`. What a
//! table of tests is, and what is wrong with one, is decided here for other pages too ([`Claims`]).

use anyhow::Context;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

const PAGES: &str = "docs/semantics";
const SECURITY: &str = "docs/security.md";
/// The head of the table of rules there.
const RULES: &str = "\n| rule | tests |\n|---|---|\n";

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
        all.count += page.promises.claims.len();
        let wrong = page.wrong(tests).into_iter();
        all.wrong
            .extend(wrong.map(|what| format!("{}: {what}", file.display())));
    }
    let text = std::fs::read_to_string(root.join(SECURITY)).context(SECURITY)?;
    let mut wrong = rules_of(&text).wrong("rule", tests);
    let unknown = proofs_in(&text).filter(|name| !tests.contains(*name));
    wrong.extend(unknown.map(|name| format!("no test is called {name}")));
    let wrong = wrong.into_iter();
    all.wrong
        .extend(wrong.map(|what| format!("{SECURITY}: {what}")));
    Ok(all)
}

/// Returns the rows of the table of rules.
fn rules_of(text: &str) -> Claims<&str> {
    let (_, table) = text.split_once(RULES).unwrap_or_default();
    let rows: Vec<_> = table.lines().map_while(row_of).collect();
    Claims {
        claims: rows.iter().map(|(rule, _)| *rule).collect(),
        rows,
    }
}

/// Returns the tests that follow the word "Tests" in a paragraph: what looks like their names.
fn proofs_in(text: &str) -> impl Iterator<Item = &str> {
    let named = text.split("\n\n").filter_map(|paragraph| {
        let at = ["**Tests.**", "* Tests:", "* Test:"].map(|word| paragraph.find(word));
        paragraph.get(at.into_iter().flatten().min()?..)
    });
    let names = named.flat_map(|tests| tests.split('`').skip(1).step_by(2));
    let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    names.filter(move |name| name.matches('_').count() > 2 && name.chars().all(is_name))
}

/// What a page claims, in order, and the tests in the rows of its table.
pub struct Claims<T> {
    /// What is claimed. Twice the same is an error.
    pub claims: Vec<T>,
    /// The claim of each row, and the names of its tests, without their modules.
    pub rows: Vec<(T, Vec<String>)>,
}

/// Returns the first cell of a row of a table of tests, and the names of the tests in the second.
/// `None` if the line is not such a row.
pub fn row_of(line: &str) -> Option<(&str, Vec<String>)> {
    let (claim, names) = line.strip_prefix("| ")?.split_once(" | ")?;
    let names = names.split('`').skip(1).step_by(2);
    let names = names.filter_map(|name| name.rsplit("::").next());
    Some((claim, names.map(str::to_owned).collect()))
}

impl<T: Ord + std::fmt::Display> Claims<T> {
    /// Returns the problems: rows without a claim or with a test that doesn't exist, and claims
    /// without a row. `what` is a claim in words ("promise").
    pub fn wrong(&self, what: &str, tests: &BTreeSet<String>) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut rows = BTreeMap::new();
        for (claim, names) in &self.rows {
            if rows.insert(claim, names).is_some() {
                wrong.push(format!("two rows of tests for {what} {claim}"));
            }
            for name in names.iter().filter(|name| !tests.contains(*name)) {
                wrong.push(format!("{what} {claim}: no test is called {name}"));
            }
        }
        let mut seen = BTreeSet::new();
        for claim in &self.claims {
            if !seen.insert(claim) {
                wrong.push(format!("{what} {claim} is there twice"));
            }
            if rows.remove(claim).is_none_or(Vec::is_empty) {
                wrong.push(format!("{what} {claim} has no test"));
            }
        }
        let left = rows.keys();
        wrong.extend(
            left.map(|claim| format!("a row of tests for {what} {claim}, which doesn't exist")),
        );
        wrong
    }
}

/// The promises of a page.
struct Page {
    promises: Claims<u32>,
    /// Lines with items that have no number.
    unnumbered: Vec<usize>,
}

impl Page {
    fn of(text: &str) -> Self {
        let mut promises = Claims {
            claims: Vec::new(),
            rows: Vec::new(),
        };
        let mut unnumbered = Vec::new();
        for (line, text) in text.lines().enumerate() {
            if let Some(item) = text.strip_prefix("* ") {
                let number = item
                    .strip_prefix("**")
                    .and_then(|item| item.split_once(".** "));
                match number.and_then(|(number, _)| number.parse().ok()) {
                    Some(number) => promises.claims.push(number),
                    None => unnumbered.push(line + 1),
                }
            } else if let Some((number, names)) = row_of(text)
                && let Ok(number) = number.parse()
            {
                promises.rows.push((number, names));
            }
        }
        Self {
            promises,
            unnumbered,
        }
    }

    fn wrong(&self, tests: &BTreeSet<String>) -> Vec<String> {
        let wrong = self.unnumbered.iter();
        let mut wrong: Vec<String> = wrong
            .map(|line| format!("line {line}: a promise without a number"))
            .collect();
        wrong.extend(self.promises.wrong("promise", tests));
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
            "promise 2 is there twice",
            "promise 2 has no test",
            "a row of tests for promise 3, which doesn't exist",
        ];
        assert_eq!(wrong(text), named);
    }

    #[test]
    fn rules_and_named_tests_are_found() {
        let text = format!(
            "| who | what |\n{RULES}| A rule | `one` |\n| Another | `m::two`, `four` |\n\n| x | `y` |\n\n\
             **Tests.** `a_b_c_d` (twice), `-o x`,\n`e_f_g_h`.\n\n* `not_one_of_them`\n* Test:\n  `i_j_k_l`\n"
        );
        let tests = ["one", "two", "three"].map(str::to_owned);
        let wrong = rules_of(&text).wrong("rule", &BTreeSet::from(tests));
        assert_eq!(wrong, ["rule Another: no test is called four"]);
        let named: Vec<_> = proofs_in(&text).collect();
        assert_eq!(named, ["a_b_c_d", "e_f_g_h", "i_j_k_l"]);
    }
}
