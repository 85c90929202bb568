//! `WWW-Authenticate`: how a server asks a client to authenticate.
//!
//! A header holds several challenges, and a response several headers. Servers write them loosely
//! (values without the quotes they need, too many commas), so what can be understood is used and
//! the rest is ignored.

/// One way to authenticate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Challenge {
    /// `basic`, `bearer` or another, in lower case.
    pub(super) scheme: String,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    /// The value of a parameter, if it has one that is not empty.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let (_, value) = self.parameters.iter().find(|(n, _)| n == name)?;
        Some(value.as_str()).filter(|v| !v.is_empty())
    }
}

/// Parses the challenges in one header.
pub(super) fn parse(header: &str) -> Vec<Challenge> {
    let mut found: Vec<Challenge> = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find([' ', '\t', ',', '=']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        let after = after.trim_start_matches([' ', '\t']);
        if let Some(value) = after.strip_prefix('=') {
            let (value, after) = parse_value(value.trim_start_matches([' ', '\t']));
            // A parameter before any scheme is ignored.
            if let Some(challenge) = found.last_mut() {
                challenge
                    .parameters
                    .push((word.to_ascii_lowercase(), value));
            }
            rest = after;
        } else if word.is_empty() {
            return found;
        } else {
            found.push(Challenge {
                scheme: word.to_ascii_lowercase(),
                parameters: Vec::new(),
            });
            rest = after;
        }
    }
}

/// Parses a value, quoted or up to the next comma, and returns what follows it.
fn parse_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(',').unwrap_or(text.len());
        let (value, rest) = text.split_at(end);
        return (value.trim_end().to_owned(), rest);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The challenges as `scheme name=value|name=value`.
    fn read(header: &str) -> Vec<String> {
        let show = |c: Challenge| {
            let parameters: Vec<_> = c
                .parameters
                .iter()
                .map(|(n, v)| format!("{n}={v}"))
                .collect();
            format!("{} {}", c.scheme, parameters.join("|"))
        };
        parse(header).into_iter().map(show).collect()
    }

    #[test]
    fn challenges_are_read_as_leniently_as_servers_require() {
        for (header, expect) in [
            (r#"Basic realm="x y""#, vec!["basic realm=x y"]),
            (
                r#"Bearer realm="https://a/t",service="s",scope="repository:a/b:pull,push""#,
                vec!["bearer realm=https://a/t|service=s|scope=repository:a/b:pull,push"],
            ),
            // No quotes, where the grammar requires them.
            (
                "bearer REALM=https://a/t, Service=a.b:5000",
                vec!["bearer realm=https://a/t|service=a.b:5000"],
            ),
            // Several in one header, in both orders, and one without parameters.
            (
                r#"Basic realm="x", Bearer realm="y""#,
                vec!["basic realm=x", "bearer realm=y"],
            ),
            (
                r#"Bearer realm="y",service="s",Basic realm="x""#,
                vec!["bearer realm=y|service=s", "basic realm=x"],
            ),
            (
                r#"Negotiate, Basic realm="x""#,
                vec!["negotiate ", "basic realm=x"],
            ),
            // Spaces around everything, too many commas, escapes, an end inside a value.
            (
                r#" Basic  realm = "a\"b\\c" ,, charset=UTF-8,"#,
                vec![r#"basic realm=a"b\c|charset=UTF-8"#],
            ),
            (r#"Bearer realm="https://a"#, vec!["bearer realm=https://a"]),
            (r#"Basic realm="""#, vec!["basic realm="]),
            ("Basic", vec!["basic "]),
            ("", vec![]),
            (r#"realm="x""#, vec![]),
            ("=,=\"", vec![]),
        ] {
            assert_eq!(read(header), expect, "{header}");
        }
        assert_eq!(
            parse(r#"Bearer realm="",service="s""#)[0].get("realm"),
            None
        );
    }
}
