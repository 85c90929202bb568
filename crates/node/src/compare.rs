//! A line-by-line diff of two texts, for people: `-` for removed lines, `+` for added ones, three
//! lines of context. Pure.

/// Lines of context around a change.
const AROUND: usize = 3;

/// Returns the changes from `old` to `new`, empty if there are none. Meant for configuration files:
/// time and memory grow with the product of both lengths.
pub fn changes(old: &str, new: &str) -> String {
    let (a, b): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    // common[i][j]: the number of lines that a[i..] and b[j..] have in common, in order.
    let mut common = vec![vec![0usize; b.len() + 1]; a.len() + 1];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            common[i][j] = if a[i] == b[j] {
                common[i + 1][j + 1] + 1
            } else {
                common[i + 1][j].max(common[i][j + 1])
            };
        }
    }
    let (mut i, mut j) = (0, 0);
    let mut lines: Vec<(char, &str)> = Vec::new();
    while i < a.len() || j < b.len() {
        if i < a.len() && j < b.len() && a[i] == b[j] {
            lines.push((' ', a[i]));
            (i, j) = (i + 1, j + 1);
        } else if j == b.len() || i < a.len() && common[i + 1][j] >= common[i][j + 1] {
            lines.push(('-', a[i]));
            i += 1;
        } else {
            lines.push(('+', b[j]));
            j += 1;
        }
    }
    let changed: Vec<usize> = (0..lines.len()).filter(|&at| lines[at].0 != ' ').collect();
    let near = |at: usize| changed.iter().any(|&c| c.abs_diff(at) <= AROUND);
    let mut text = String::new();
    let mut skipped = false;
    for (at, (sign, line)) in lines.iter().enumerate() {
        if !near(at) {
            skipped = true;
            continue;
        }
        if std::mem::take(&mut skipped) {
            text.push_str("@@\n");
        }
        text.push_str(format!("{sign} {line}").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_changes_and_their_context_are_shown() {
        let old = "1\n2\n3\n4\n5\n6\n7\n8\n";
        let new = "1\n2\n3\n4\n5\nsix\n7\n8\n9\n";
        assert_eq!(
            changes(old, new),
            "@@\n  3\n  4\n  5\n- 6\n+ six\n  7\n  8\n+ 9\n"
        );
        assert_eq!(changes(old, old), "");
        assert_eq!(changes("", "a\n"), "+ a\n");
    }
}
