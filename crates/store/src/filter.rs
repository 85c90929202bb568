//! The filters of a walk: containerd's grammar (its `pkg/filters`), parsed once.
//!
//! A filter is a list of selectors joined by `,`, all of which must match; several filters are
//! alternatives. A selector is a field (`name`, `parent`, `kind`, `labels.K`, `labels."K"`), alone
//! (is it present?) or with an operator and a value: `==`, `!=` or `~=` (a regular expression found
//! anywhere in the value). Values and label names may be quoted with `"`, with Go's backslash
//! escapes; `~=` also takes `/.../` and `|...|`. `==` and `~=` need the field to be present; `!=`
//! also matches where it is absent. `name` and `parent` are bytes, so they are compared as bytes.

use crate::{
    error::{Result, StoreError},
    snapshot::Info,
};

/// One filter: all its selectors must match.
#[derive(Clone, Debug)]
pub struct Filter(Vec<Selector>);

#[derive(Clone, Debug)]
struct Selector {
    field: Field,
    test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Field {
    Name,
    Parent,
    Kind,
    Label(String),
    /// An unknown field: never present.
    Unknown,
}

#[derive(Clone, Debug)]
enum Test {
    Present,
    Equal(Vec<u8>),
    NotEqual(Vec<u8>),
    Matches(regex::bytes::Regex),
}

impl Filter {
    /// Parses one filter. The empty text matches everything.
    ///
    /// Errors: `BadFilter`, with the position.
    pub fn parse(text: &str) -> Result<Self> {
        let mut parser = Parser { text, at: 0 };
        let mut selectors = Vec::new();
        if text.is_empty() {
            return Ok(Self(selectors));
        }
        loop {
            selectors.push(parser.selector()?);
            match parser.peek() {
                None => return Ok(Self(selectors)),
                Some(',') => parser.bump(','),
                Some(other) => return Err(parser.bad(format!("expected `,`, found {other:?}"))),
            }
        }
    }

    /// Parses alternatives; an empty list matches everything.
    pub fn parse_all<S: AsRef<str>>(texts: &[S]) -> Result<Vec<Self>> {
        texts
            .iter()
            .map(|text| Self::parse(text.as_ref()))
            .collect()
    }

    /// Returns whether `info` passes.
    pub fn matches(&self, info: &Info) -> bool {
        self.0.iter().all(|selector| selector.matches(info))
    }

    /// Returns whether `info` passes any of `filters`, or there are none.
    pub fn any(filters: &[Self], info: &Info) -> bool {
        filters.is_empty() || filters.iter().any(|filter| filter.matches(info))
    }
}

impl Selector {
    fn matches(&self, info: &Info) -> bool {
        let value: Option<&[u8]> = match &self.field {
            Field::Name => Some(info.key.as_bytes()),
            Field::Parent => Some(
                info.parent
                    .as_ref()
                    .map_or(b"".as_slice(), |key| key.as_bytes()),
            ),
            Field::Kind => Some(info.kind.as_str().as_bytes()),
            Field::Label(key) => info.labels.get(key).map(String::as_bytes),
            Field::Unknown => None,
        };
        match &self.test {
            Test::Present => value.is_some(),
            Test::Equal(expect) => value.is_some_and(|value| value == expect),
            Test::NotEqual(expect) => value.unwrap_or_default() != expect,
            Test::Matches(regex) => value.is_some_and(|value| regex.is_match(value)),
        }
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl Parser<'_> {
    fn bad(&self, why: impl Into<String>) -> StoreError {
        StoreError::BadFilter {
            filter: self.text.to_owned(),
            why: format!("{} at byte {}", why.into(), self.at),
        }
    }

    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn bump(&mut self, c: char) {
        self.at += c.len_utf8();
    }

    fn selector(&mut self) -> Result<Selector> {
        let mut parts = vec![self.name()?];
        while self.peek() == Some('.') {
            self.bump('.');
            parts.push(self.name()?);
        }
        let field = match parts
            .iter()
            .map(String::as_str)
            .collect::<Vec<_>>()
            .as_slice()
        {
            ["name"] => Field::Name,
            ["parent"] => Field::Parent,
            ["kind"] => Field::Kind,
            ["labels", rest @ ..] if !rest.is_empty() => Field::Label(rest.join(".")),
            _ => Field::Unknown,
        };
        let rest = &self.text[self.at..];
        let test = if rest.is_empty() || rest.starts_with(',') {
            Test::Present
        } else if rest.starts_with("==") {
            self.at += 2;
            Test::Equal(self.value(false)?.into_bytes())
        } else if rest.starts_with("!=") {
            self.at += 2;
            Test::NotEqual(self.value(false)?.into_bytes())
        } else if rest.starts_with("~=") {
            self.at += 2;
            let pattern = self.value(true)?;
            Test::Matches(regex::bytes::Regex::new(&pattern).map_err(|e| self.bad(e.to_string()))?)
        } else {
            return Err(self.bad("expected `==`, `!=`, `~=`, `,` or the end"));
        };
        Ok(Selector { field, test })
    }

    fn name(&mut self) -> Result<String> {
        if self.peek() == Some('"') {
            return self.quoted('"');
        }
        let rest = &self.text[self.at..];
        let len = rest
            .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '-' || c == '/'))
            .unwrap_or(rest.len());
        if len == 0 {
            return Err(self.bad("expected a field"));
        }
        self.at += len;
        Ok(rest[..len].to_owned())
    }

    fn value(&mut self, regex: bool) -> Result<String> {
        match self.peek() {
            Some('"') => self.quoted('"'),
            Some(quote @ ('/' | '|')) if regex => self.quoted(quote),
            _ => {
                let rest = &self.text[self.at..];
                let len = rest.find(',').unwrap_or(rest.len());
                self.at += len;
                Ok(rest[..len].to_owned())
            }
        }
    }

    fn quoted(&mut self, quote: char) -> Result<String> {
        self.bump(quote);
        let mut out = String::new();
        loop {
            let Some(c) = self.peek() else {
                return Err(self.bad("unterminated quote"));
            };
            self.bump(c);
            if c == quote {
                return Ok(out);
            }
            if c != '\\' {
                out.push(c);
                continue;
            }
            let Some(escaped) = self.peek() else {
                return Err(self.bad("unterminated quote"));
            };
            self.bump(escaped);
            match escaped {
                c if c == quote => out.push(c),
                // Inside a pattern a backslash belongs to the pattern.
                c if quote != '"' => out.extend(['\\', c]),
                'n' => out.push('\n'),
                't' => out.push('\t'),
                'r' => out.push('\r'),
                '\\' => out.push('\\'),
                other => return Err(self.bad(format!("unknown escape \\{other}"))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::{
        driver::{DriverKind, TreeId},
        snapshot::{Keep, SnapshotKey, SnapshotKind},
    };

    fn sample() -> Info {
        Info {
            key: SnapshotKey::from("default/7/a b"),
            kind: SnapshotKind::Committed,
            parent: Some(SnapshotKey::from("p")),
            labels: [("x.y/z", "1"), ("empty", ""), ("v", "a,b")]
                .map(|(k, v)| (k.into(), v.into()))
                .into(),
            created: Timestamp::UNIX_EPOCH,
            updated: Timestamp::UNIX_EPOCH,
            keep: Keep::WhileReferenced,
            driver: DriverKind::Overlay2,
            tree: TreeId::random(),
            diff_id: None,
            tar_bytes: None,
            usage: None,
            features: None,
            size_limit_bytes: None,
        }
    }

    #[test]
    fn filters_match_as_containerd_does() {
        #[track_caller]
        fn check(text: &str, expect: bool) {
            assert_eq!(
                Filter::parse(text).unwrap().matches(&sample()),
                expect,
                "{text}"
            );
        }
        check("", true);
        check("name==default/7/a b", true);
        check("name==\"default/7/a b\"", true);
        check("name~=^default", true);
        check("name~=/7\\/a/", true);
        check("name~=|7/a|", true);
        check("kind==committed", true);
        check("kind==active", false);
        check("kind!=active", true);
        check("parent==p,kind==committed", true);
        check("parent==p,kind==view", false);
        check("labels.\"x.y/z\"==1", true);
        check("labels.x.y/z==1", true);
        check("labels.empty", true);
        check("labels.absent", false);
        check("labels.absent!=1", true);
        check("labels.absent==", false);
        check("labels.empty==", true);
        check("labels.v==\"a,b\"", true);
        check("labels", false);
        check("nonsense", false);
        check("parent", true);
    }

    #[test]
    fn alternatives_are_joined_by_or() {
        let filters = Filter::parse_all(&["kind==view", "name~=a b$"]).unwrap();
        assert!(Filter::any(&filters, &sample()));
        assert!(Filter::any(&[], &sample()));
        assert!(!Filter::any(&filters[..1], &sample()));
    }

    #[test]
    fn a_malformed_filter_is_refused_with_the_position() {
        for bad in [
            "name=x",
            "==x",
            "name==\"x",
            "name~=(",
            "name==x,",
            "labels.\"a\\q\"",
            "a b",
        ] {
            let error = Filter::parse(bad).unwrap_err();
            assert!(
                matches!(error, StoreError::BadFilter { .. }),
                "{bad}: {error}"
            );
        }
    }
}
