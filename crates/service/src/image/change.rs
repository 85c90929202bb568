//! Changes of an image's configuration, written as in a Dockerfile: `CMD ["sh"]`, `ENV A=b`,
//! `USER 1000`.
//!
//! Pure: JSON in, JSON out. It works on the configuration's JSON rather than on typed fields, so
//! fields that Vellum doesn't know (health checks, for example) stay as they were. The instructions
//! are Docker's (`docker import --change`), the fields those of the image specification.

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};

const KNOWN: &str = "CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME and WORKDIR";

/// Applies `changes` in order to the `config` object of an image configuration; creates it if it is
/// missing.
///
/// Errors: `Invalid`, naming the instruction; `configuration` may then have some of the changes.
pub fn apply_changes(configuration: &mut Value, changes: &[String]) -> Result<()> {
    for change in changes {
        apply(configuration, change).map_err(|why| Error::Invalid {
            what: format!("`{change}` can't be applied: {why}"),
            hint: Some(format!("the instructions are {KNOWN}")),
        })?;
    }
    Ok(())
}

fn apply(configuration: &mut Value, change: &str) -> Result<(), String> {
    let change = change.trim();
    let (word, rest) = change
        .split_once(char::is_whitespace)
        .unwrap_or((change, ""));
    let rest = rest.trim();
    let config = object(configuration, "config")?;
    match word.to_ascii_uppercase().as_str() {
        "CMD" => drop(config.insert("Cmd".into(), command(rest)?)),
        "ENTRYPOINT" => drop(config.insert("Entrypoint".into(), command(rest)?)),
        "ENV" => {
            for (name, value) in pairs(rest)? {
                set_variable(config, &name, &value);
            }
        }
        "LABEL" => {
            let labels = entry(config, "Labels")?;
            for (name, value) in pairs(rest)? {
                labels.insert(name, value.into());
            }
        }
        "EXPOSE" => {
            let ports = entry(config, "ExposedPorts")?;
            for port in words(rest)? {
                let port = if port.contains('/') {
                    port
                } else {
                    format!("{port}/tcp")
                };
                ports.insert(port, json!({}));
            }
        }
        "VOLUME" => {
            let list = match rest.starts_with('[') {
                true => strings(rest)?,
                false => words(rest)?,
            };
            let volumes = entry(config, "Volumes")?;
            for volume in list {
                volumes.insert(volume, json!({}));
            }
        }
        "STOPSIGNAL" => drop(config.insert("StopSignal".into(), one(rest)?.into())),
        "USER" => drop(config.insert("User".into(), one(rest)?.into())),
        "WORKDIR" => {
            let directory = one(rest)?;
            let directory = if directory.starts_with('/') {
                directory
            } else {
                let base = config
                    .get("WorkingDir")
                    .and_then(Value::as_str)
                    .unwrap_or("");
                format!("{}/{directory}", base.trim_end_matches('/'))
            };
            config.insert("WorkingDir".into(), directory.into());
        }
        _ => return Err("it is not an instruction that a commit knows".to_owned()),
    }
    Ok(())
}

fn object<'a>(value: &'a mut Value, field: &str) -> Result<&'a mut Map<String, Value>, String> {
    let map = value
        .as_object_mut()
        .ok_or("the configuration is not an object")?;
    entry(map, field)
}

fn entry<'a>(
    map: &'a mut Map<String, Value>,
    field: &str,
) -> Result<&'a mut Map<String, Value>, String> {
    let value = map.entry(field).or_insert(Value::Null);
    if value.is_null() {
        *value = json!({});
    }
    value
        .as_object_mut()
        .ok_or_else(|| format!("the configuration's {field} is not an object"))
}

/// A JSON list as it is; anything else is a line for the shell.
fn command(text: &str) -> Result<Value, String> {
    if text.starts_with('[') {
        return Ok(strings(text)?.into());
    }
    if text.is_empty() {
        return Ok(Value::Null);
    }
    Ok(json!(["/bin/sh", "-c", text]))
}

fn strings(text: &str) -> Result<Vec<String>, String> {
    serde_json::from_str(text).map_err(|_| "write a list as [\"a\", \"b\"]".to_owned())
}

fn one(text: &str) -> Result<String, String> {
    match words(text)?.as_slice() {
        [word] => Ok(word.clone()),
        _ => Err("it takes one word".to_owned()),
    }
}

/// `A=1 B="two words"`, or Docker's old `A one value with spaces`.
fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let list = words(text)?;
    if let Some(first) = list.first()
        && !first.contains('=')
    {
        let value = text[text.find(char::is_whitespace).unwrap_or(text.len())..].trim();
        return if value.is_empty() {
            Err(format!("{first} has no value"))
        } else {
            Ok(vec![(first.clone(), value.to_owned())])
        };
    }
    list.iter()
        .map(|word| match word.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
            _ => Err(format!("{word} is not NAME=VALUE")),
        })
        .collect::<Result<Vec<_>, String>>()
        .and_then(|pairs| {
            if pairs.is_empty() {
                Err("it needs NAME=VALUE".to_owned())
            } else {
                Ok(pairs)
            }
        })
}

/// Splits at white space outside quotes; removes quotes and backslashes as a shell does.
fn words(text: &str) -> Result<Vec<String>, String> {
    let mut found = Vec::new();
    let mut current: Option<String> = None;
    let mut quote = None;
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some('\''), c) => current.get_or_insert_default().push(c),
            (_, '\\') => match characters.next() {
                Some(escaped) => current.get_or_insert_default().push(escaped),
                None => return Err("it ends with a backslash".to_owned()),
            },
            (None, '"' | '\'') => {
                quote = Some(c);
                current.get_or_insert_default();
            }
            (None, c) if c.is_whitespace() => found.extend(current.take()),
            (_, c) => current.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err("a quote is not closed".to_owned());
    }
    found.extend(current);
    if found.is_empty() {
        return Err("something must follow".to_owned());
    }
    Ok(found)
}

fn set_variable(config: &mut Map<String, Value>, name: &str, value: &str) {
    let line = format!("{name}={value}");
    let list = config.entry("Env").or_insert(Value::Null);
    if !list.is_array() {
        *list = json!([]);
    }
    if let Some(list) = list.as_array_mut() {
        let prefix = format!("{name}=");
        match list
            .iter_mut()
            .find(|v| v.as_str().is_some_and(|v| v.starts_with(&prefix)))
        {
            Some(known) => *known = line.into(),
            None => list.push(line.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(changes: &[&str], expect: Value) {
        let mut value = json!({"config": {"Env": ["PATH=/bin"], "WorkingDir": "/srv", "Healthcheck": {"Test": ["NONE"]}}});
        let changes: Vec<String> = changes.iter().map(|c| (*c).to_owned()).collect();
        apply_changes(&mut value, &changes).unwrap();
        let mut expected =
            json!({"Env": ["PATH=/bin"], "WorkingDir": "/srv", "Healthcheck": {"Test": ["NONE"]}});
        for (key, value) in expect.as_object().unwrap() {
            expected[key] = value.clone();
        }
        assert_eq!(value["config"], expected);
    }

    #[test]
    fn instructions_change_their_fields_and_nothing_else() {
        check(&["CMD [\"a\", \"b c\"]"], json!({"Cmd": ["a", "b c"]}));
        check(
            &["cmd echo $HOME"],
            json!({"Cmd": ["/bin/sh", "-c", "echo $HOME"]}),
        );
        check(&["ENTRYPOINT [\"/x\"]"], json!({"Entrypoint": ["/x"]}));
        check(
            &["ENV A=1 B=\"two words\" PATH=/usr/bin"],
            json!({"Env": ["PATH=/usr/bin", "A=1", "B=two words"]}),
        );
        check(
            &["ENV OLD form of it"],
            json!({"Env": ["PATH=/bin", "OLD=form of it"]}),
        );
        check(
            &["LABEL a=b", "LABEL c='d e'"],
            json!({"Labels": {"a": "b", "c": "d e"}}),
        );
        check(
            &["EXPOSE 80 53/udp"],
            json!({"ExposedPorts": {"80/tcp": {}, "53/udp": {}}}),
        );
        check(
            &["VOLUME /a /b", "VOLUME [\"/c d\"]"],
            json!({"Volumes": {"/a": {}, "/b": {}, "/c d": {}}}),
        );
        check(
            &["WORKDIR sub", "WORKDIR x"],
            json!({"WorkingDir": "/srv/sub/x"}),
        );
        check(
            &["USER 1:2", "STOPSIGNAL SIGINT"],
            json!({"User": "1:2", "StopSignal": "SIGINT"}),
        );
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for bad in [
            "RUN x",
            "",
            "CMD [a",
            "ENV",
            "ENV =x",
            "USER a b",
            "LABEL a=\"b",
            "ENV A",
        ] {
            let mut value = json!({});
            assert!(
                apply_changes(&mut value, &[bad.to_owned()]).is_err(),
                "{bad:?}"
            );
        }
    }
}
