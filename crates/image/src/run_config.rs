//! The part of an image's configuration that says how it runs: user, variables, command,
//! directories.
//!
//! Read as Docker reads it ([`crate::json`]), since the image's author tested it with that reader.
//! A field that Docker's reader refuses is refused here, by name. Fields that don't affect a run
//! (health checks, build triggers) are ignored and stay in the raw bytes.
//!
//! This module checks only types: code that has the tree decides whether a user or directory makes
//! sense.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::json::{self, Empty, List, Words};

/// How an image runs, where it says so. Everything may be empty; only types have been checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunConfig {
    /// `USER[:GROUP]`, names or numbers.
    pub user: String,
    /// Variables, each `NAME=VALUE` unless the image is malformed.
    pub env: Vec<String>,
    /// The program and its first arguments.
    pub entrypoint: Vec<String>,
    /// Further arguments, or the command if there is no entrypoint.
    pub cmd: Vec<String>,
    /// The directory to start in.
    pub working_dir: String,
    /// Directories whose content is not part of what the container changes. Sorted.
    pub volumes: Vec<String>,
    /// Ports that the program listens on, as in `80/tcp`. Not used by a run. Sorted.
    pub exposed_ports: Vec<String>,
    /// Labels. Not used by a run.
    pub labels: BTreeMap<String, String>,
    /// The signal that asks the program to end. Not used by a run.
    pub stop_signal: String,
}

/// The section as it is parsed.
#[derive(Debug, Default)]
pub(crate) struct RunFields {
    user: String,
    env: List<String>,
    entrypoint: Words,
    cmd: Words,
    working_dir: String,
    volumes: BTreeMap<String, Empty>,
    exposed_ports: BTreeMap<String, Empty>,
    labels: BTreeMap<String, String>,
    stop_signal: String,
}

json::fields!(RunFields {
    "User" => user,
    "Env" => env,
    "Entrypoint" => entrypoint,
    "Cmd" => cmd,
    "WorkingDir" => working_dir,
    "Volumes" => volumes,
    "ExposedPorts" => exposed_ports,
    "Labels" => labels,
    "StopSignal" => stop_signal,
});

impl From<RunFields> for RunConfig {
    fn from(fields: RunFields) -> Self {
        Self {
            user: fields.user,
            env: fields.env.into_vec(),
            entrypoint: fields.entrypoint.0,
            cmd: fields.cmd.0,
            working_dir: fields.working_dir,
            volumes: fields.volumes.into_keys().collect(),
            exposed_ports: fields.exposed_ports.into_keys().collect(),
            labels: fields.labels,
            stop_signal: fields.stop_signal,
        }
    }
}

impl RunConfig {
    /// Sets the fields in `section`, replacing its values for them in any spelling.
    pub(crate) fn tidy(&self, section: &mut Map<String, Value>) {
        let set = |keys: &[String]| -> Value {
            let entries = keys.iter().map(|key| (key.clone(), json!({})));
            Value::Object(entries.collect())
        };
        section.retain(|name, _| json::choose(RunFields::NAMES, name).is_none());
        let fields = [
            ("User", json!(self.user)),
            ("Env", json!(self.env)),
            ("Entrypoint", json!(self.entrypoint)),
            ("Cmd", json!(self.cmd)),
            ("WorkingDir", json!(self.working_dir)),
            ("Volumes", set(&self.volumes)),
            ("ExposedPorts", set(&self.exposed_ports)),
            ("Labels", json!(self.labels)),
            ("StopSignal", json!(self.stop_signal)),
        ];
        for (name, value) in fields {
            let empty = [json!(""), json!([]), json!({})].contains(&value);
            if !empty {
                section.insert(name.to_owned(), value);
            }
        }
    }
}
#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;
    use crate::ImageConfig;
    use crate::manifest::ManifestError;

    fn parse(section: &str) -> Result<RunConfig, String> {
        let rootfs = r#""rootfs": {"type": "layers", "diff_ids": []}"#;
        let raw = format!(r#"{{"architecture": "amd64", "os": "linux", {rootfs}{section}}}"#);
        let said = |e: ManifestError| e.source().map(ToString::to_string).unwrap_or_default();
        ImageConfig::parse(raw.into_bytes())
            .map(|config| config.run)
            .map_err(said)
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
            r#"{"Healthcheck": {"Test": "x"}, "OnBuild": "x", "Tty": "x", "Shell": 5, "StopTimeout": [], "Other": 1}"#,
        ] {
            check(nothing, none());
        }
        assert_eq!(parse(""), Ok(none()), "without a section");
        check(
            r#"{"ExposedPorts": {"80/tcp": null, "x": {}}, "Labels": {"a": null, "b": ""}, "StopSignal": "SIGFOO"}"#,
            RunConfig {
                exposed_ports: own(&["80/tcp", "x"]),
                labels: [("a", ""), ("b", "")]
                    .map(|(k, v)| (k.into(), v.into()))
                    .into(),
                stop_signal: "SIGFOO".into(),
                ..none()
            },
        );
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
        check(r#"{"Cmd": ["exact"], "CMD": ["upper"]}"#, cmd(&["upper"]));
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
    fn a_field_of_the_wrong_type_is_refused_by_name() {
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
