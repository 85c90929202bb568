//! The part of an image's configuration that says how it runs: user, variables, command,
//! directories.
//!
//! Read as Docker reads it, which is as Go's JSON does: names of fields are compared without case,
//! null is the same as absent, of two fields with one name the last counts, and a list of words may
//! be a single text. The image's author tested it with that reader. A field that Docker's reader
//! refuses is refused here, by its name; fields that mean nothing to a run (health checks, build
//! triggers) are not looked at and stay in the raw bytes as they are.
//!
//! This module knows shapes alone: whether a user or directory makes sense is decided where the
//! tree is at hand.

use serde_json::{Map, Value};

use crate::manifest::ManifestError;

/// How an image runs, as far as it says so. Everything may be empty; nothing is checked beyond its
/// shape.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunConfig {
    /// `USER[:GROUP]`, names or numbers.
    pub user: String,
    /// Variables, `NAME=VALUE` each if the image is an honest one.
    pub env: Vec<String>,
    /// The program and its first arguments.
    pub entrypoint: Vec<String>,
    /// Further arguments, or the command if there is no entrypoint.
    pub cmd: Vec<String>,
    /// The directory to start in.
    pub working_dir: String,
    /// Directories whose content is not part of what the container changes. Sorted.
    pub volumes: Vec<String>,
}

impl RunConfig {
    /// Takes the `config` object out of an image configuration, and reads it. None, or null: all
    /// empty.
    ///
    /// Errors: [`ManifestError::Field`].
    pub(crate) fn take(configuration: &mut Value) -> Result<Self, ManifestError> {
        let mut section = None;
        if let Value::Object(fields) = configuration {
            // The exact name last, so that it wins.
            let mut names: Vec<String> = fields
                .keys()
                .filter(|name| name.eq_ignore_ascii_case("config"))
                .cloned()
                .collect();
            names.sort_by_key(|name| name == "config");
            for name in names {
                section = fields
                    .remove(&name)
                    .filter(|value| !value.is_null())
                    .or(section);
            }
        }
        match section {
            None => Ok(Self::default()),
            Some(Value::Object(fields)) => Self::read(&fields),
            Some(_) => Err(wrong("config", "an object")),
        }
    }

    fn read(fields: &Map<String, Value>) -> Result<Self, ManifestError> {
        // Of no use to a run, but Docker loads no image where they have another shape, and neither
        // did Vellum ever.
        keys(fields, "ExposedPorts")?;
        texts(fields, "Labels")?;
        text(fields, "StopSignal")?;
        Ok(Self {
            user: text(fields, "User")?,
            env: list(fields, "Env")?,
            entrypoint: words(fields, "Entrypoint")?,
            cmd: words(fields, "Cmd")?,
            working_dir: text(fields, "WorkingDir")?,
            volumes: keys(fields, "Volumes")?,
        })
    }
}

fn wrong(field: &'static str, expected: &'static str) -> ManifestError {
    ManifestError::Field { field, expected }
}

/// The value of a field, if it has one; the exact name before one in another case.
fn value<'a>(fields: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    fields
        .get(name)
        .or_else(|| {
            let other = fields
                .iter()
                .find(|(key, _)| key.eq_ignore_ascii_case(name));
            other.map(|(_, value)| value)
        })
        .filter(|value| !value.is_null())
}

fn text(fields: &Map<String, Value>, name: &'static str) -> Result<String, ManifestError> {
    match value(fields, name) {
        None => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(wrong(name, "a string")),
    }
}

/// Strings, null among them being an empty one.
fn strings(
    items: &[Value],
    name: &'static str,
    expected: &'static str,
) -> Result<Vec<String>, ManifestError> {
    items
        .iter()
        .map(|item| match item {
            Value::String(text) => Ok(text.clone()),
            Value::Null => Ok(String::new()),
            _ => Err(wrong(name, expected)),
        })
        .collect()
}

fn list(fields: &Map<String, Value>, name: &'static str) -> Result<Vec<String>, ManifestError> {
    const EXPECTED: &str = "a list of strings";
    match value(fields, name) {
        None => Ok(Vec::new()),
        Some(Value::Array(items)) => strings(items, name, EXPECTED),
        Some(_) => Err(wrong(name, EXPECTED)),
    }
}

/// A list, or a single word: images of the first Dockers have that.
fn words(fields: &Map<String, Value>, name: &'static str) -> Result<Vec<String>, ManifestError> {
    const EXPECTED: &str = "a string or a list of them";
    match value(fields, name) {
        None => Ok(Vec::new()),
        Some(Value::String(word)) => Ok(vec![word.clone()]),
        Some(Value::Array(items)) => strings(items, name, EXPECTED),
        Some(_) => Err(wrong(name, EXPECTED)),
    }
}

/// A set in Go's JSON: an object whose values say nothing.
fn keys(fields: &Map<String, Value>, name: &'static str) -> Result<Vec<String>, ManifestError> {
    match value(fields, name) {
        None => Ok(Vec::new()),
        Some(Value::Object(set)) if set.values().all(|v| v.is_null() || v.is_object()) => {
            let mut keys: Vec<String> = set.keys().cloned().collect();
            keys.sort();
            Ok(keys)
        }
        Some(_) => Err(wrong(name, "an object of empty objects")),
    }
}

fn texts(fields: &Map<String, Value>, name: &'static str) -> Result<(), ManifestError> {
    match value(fields, name) {
        None => Ok(()),
        Some(Value::Object(map)) if map.values().all(|v| v.is_null() || v.is_string()) => Ok(()),
        Some(_) => Err(wrong(name, "an object of strings")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ImageConfig;

    fn parse(section: &str) -> Result<RunConfig, String> {
        let rootfs = r#""rootfs": {"type": "layers", "diff_ids": []}"#;
        let raw = format!(r#"{{"architecture": "amd64", "os": "linux", {rootfs}{section}}}"#);
        ImageConfig::parse(raw.into_bytes())
            .map(|config| config.run)
            .map_err(|e| e.to_string())
    }

    #[track_caller]
    fn check(config: &str, expect: RunConfig) {
        assert_eq!(
            parse(&format!(r#", "config": {config}"#)),
            Ok(expect),
            "{config}"
        );
    }

    #[track_caller]
    fn refused(config: &str, field: &str) {
        let said = parse(&format!(r#", "config": {config}"#)).unwrap_err();
        assert!(said.contains(field), "{config}: {said}");
    }

    fn own(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn a_configuration_is_read_as_docker_reads_it() {
        let none = RunConfig::default;
        let cmd = |words: &[&str]| RunConfig {
            cmd: own(words),
            ..none()
        };
        let entrypoint = |words: &[&str]| RunConfig {
            entrypoint: own(words),
            ..none()
        };
        let env = |words: &[&str]| RunConfig {
            env: own(words),
            ..none()
        };
        let volumes = |words: &[&str]| RunConfig {
            volumes: own(words),
            ..none()
        };
        for nothing in [
            "null",
            "{}",
            r#"{"Cmd": null, "Entrypoint": null, "Env": null, "User": null, "WorkingDir": null, "Volumes": null}"#,
            r#"{"ExposedPorts": null, "Labels": null, "StopSignal": null, "Cmd": [], "Env": [], "Volumes": {}}"#,
            r#"{"ExposedPorts": {"80/tcp": null, "x": {}}, "Labels": {"a": null, "b": ""}, "StopSignal": "SIGFOO"}"#,
            r#"{"Healthcheck": {"Test": "x"}, "OnBuild": "x", "Tty": "x", "Shell": 5, "StopTimeout": [], "Other": 1}"#,
        ] {
            check(nothing, none());
        }
        assert_eq!(parse(""), Ok(none()), "without a section");
        check(r#"{"Cmd": ["a", "b"]}"#, cmd(&["a", "b"]));
        check(r#"{"Cmd": "a b"}"#, cmd(&["a b"]));
        check(r#"{"Cmd": [null]}"#, cmd(&[""]));
        check(r#"{"Entrypoint": [""]}"#, entrypoint(&[""]));
        check(r#"{"Entrypoint": "/entry"}"#, entrypoint(&["/entry"]));
        check(r#"{"Entrypoint": ""}"#, entrypoint(&[""]));
        check(
            r#"{"Env": ["A=1", null, "", "A"]}"#,
            env(&["A=1", "", "", "A"]),
        );
        check(
            r#"{"Volumes": {"/b": null, "/a": {"x": 1}}}"#,
            volumes(&["/a", "/b"]),
        );
        check(r#"{"Cmd": ["first"], "Cmd": ["second"]}"#, cmd(&["second"]));
        check(r#"{"cmd": ["lower"]}"#, cmd(&["lower"]));
        check(r#"{"CMD": ["upper"], "Cmd": ["exact"]}"#, cmd(&["exact"]));
        check(
            r#"{"user": "u", "workingdir": "/w"}"#,
            RunConfig {
                user: "u".into(),
                working_dir: "/w".into(),
                ..none()
            },
        );
        check(r#"{"working_dir": "/w"}"#, none());
        assert_eq!(parse(r#", "Config": {"Cmd": ["a"]}"#), Ok(cmd(&["a"])));
    }

    #[test]
    fn a_field_of_another_shape_is_refused_by_its_name() {
        for field in ["User", "WorkingDir", "StopSignal"] {
            for value in ["5", "true", "[]", r#"["a"]"#, "{}"] {
                refused(&format!(r#"{{"{field}": {value}}}"#), field);
            }
        }
        for field in ["Cmd", "Entrypoint"] {
            for value in ["5", "[1]", "{}", r#"["a", ["b"]]"#, "true"] {
                refused(&format!(r#"{{"{field}": {value}}}"#), field);
            }
        }
        for value in [r#""A=1""#, "[1]", r#"{"A": "1"}"#, "5"] {
            refused(&format!(r#"{{"Env": {value}}}"#), "Env");
        }
        for field in ["Volumes", "ExposedPorts"] {
            for value in [r#"["/x"]"#, r#"{"/x": "y"}"#, r#"{"/x": 1}"#, r#""/x""#] {
                refused(&format!(r#"{{"{field}": {value}}}"#), field);
            }
        }
        for value in [r#"{"a": 1}"#, r#"["a"]"#, r#""a""#] {
            refused(&format!(r#"{{"Labels": {value}}}"#), "Labels");
        }
        for section in ["[]", "5", r#""x""#] {
            refused(section, "config");
        }
    }

    #[test]
    fn bytes_that_are_not_utf8_are_read_as_docker_reads_them() {
        let raw = br#"{"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}, "config": {"Env": ["A=?x"]}}"#;
        let mut raw = raw.to_vec();
        let at = raw.iter().position(|b| *b == b'?').unwrap();
        raw[at] = 0xff;
        let config = ImageConfig::parse(raw.clone()).unwrap();
        assert_eq!(config.run.env, ["A=\u{fffd}x"]);
        assert_eq!(config.raw, raw, "what is kept stays as it came");
    }
}
