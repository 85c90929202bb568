//! The shapes of requests and answers, as Go's JSON writes and reads them: an absent or null field
//! means empty.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vellum_format::IdRun;
use vellum_service::Error;
use vellum_service::docker::{Creation, GraphChange};
use vellum_sys::with_causes;

/// The type of every JSON answer.
pub const CONTENT_TYPE: &str = "application/vnd.docker.plugins.v1.2+json";

/// The request of most calls.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Request {
    /// The layer.
    #[serde(rename = "ID")]
    pub id: String,
    /// The layer below it, or the one to compare it with.
    pub parent: String,
    /// SELinux label.
    pub mount_label: String,
    /// Storage options.
    pub storage_opt: Option<BTreeMap<String, String>>,
}

impl Request {
    /// Returns how to create the layer.
    pub fn creation(&self, read_write: bool) -> Creation {
        Creation {
            read_write,
            mount_label: self.mount_label.clone(),
            storage: self.storage_opt.clone().unwrap_or_default(),
        }
    }
}

/// What the daemon sends when it starts.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Init {
    /// The driver's directory in its data root.
    pub home: PathBuf,
    /// Storage options, `name=value`.
    pub opts: Option<Vec<String>>,
    /// The uid mappings of the user namespace.
    #[serde(rename = "UIDMaps")]
    pub uid_maps: Option<Vec<IdMap>>,
    /// The gid mappings of the user namespace.
    #[serde(rename = "GIDMaps")]
    pub gid_maps: Option<Vec<IdMap>>,
}

/// One range of ids.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct IdMap {
    container_id: u32,
    host_id: u32,
    size: u32,
}

impl Init {
    /// Returns all runs of ids, users' and groups'.
    pub fn ids(&self) -> Vec<IdRun> {
        let users = self.uid_maps.iter().flatten();
        let all = users.chain(self.gid_maps.iter().flatten());
        all.map(|map| IdRun {
            inside: map.container_id,
            outside: map.host_id,
            count: map.size,
        })
        .collect()
    }
}

/// The answer to any call. Fields that a call doesn't return are left out.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Reply {
    /// The error; empty if there is none.
    pub err: String,
    /// Where a tree is mounted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dir: Option<PathBuf>,
    /// Whether the layer exists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exists: Option<bool>,
    /// What `docker info` shows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<Vec<(String, String)>>,
    /// What `docker inspect` shows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<BTreeMap<String, String>>,
    /// A list of changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changes: Option<Vec<Change>>,
    /// Bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// What the driver can do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Capabilities>,
}

/// What the driver can do.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Capabilities {
    /// A layer's diff is bit for bit the tar that it was made from, so the daemon needn't keep a
    /// record of its own.
    pub reproduces_exact_diffs: bool,
}

/// One change.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Change {
    /// With a leading slash. JSON can't carry arbitrary bytes, so what is not UTF-8 is replaced, as
    /// in Docker's own drivers.
    pub path: String,
    /// 0 modified, 1 added, 2 deleted.
    pub kind: u8,
}

impl From<GraphChange> for Change {
    fn from(change: GraphChange) -> Self {
        Self {
            path: change.path.to_string_lossy().into_owned(),
            kind: match change.kind.letter() {
                'A' => 1,
                'D' => 2,
                _ => 0,
            },
        }
    }
}

/// What the plugin is.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Activation {
    /// The plugin interfaces that it implements.
    pub implements: &'static [&'static str],
}

/// Returns an error with its causes and hint in one line, because the daemon passes on one line.
pub fn text_of(error: &Error) -> String {
    let mut text = with_causes(error);
    if let Some(hint) = error.hint() {
        text.push_str(&format!(" (hint: {hint})"));
    }
    text
}

/// Returns the id and the parent from the query of an `ApplyDiff`. Nothing is unescaped, because
/// the daemon doesn't escape.
pub fn ids_of(query: &str) -> (String, String) {
    let value = |name: &str| {
        query
            .split('&')
            .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
            .unwrap_or_default()
            .to_owned()
    };
    (value("id"), value("parent"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_and_null_are_empty() {
        let request: Request = serde_json::from_str("{}").unwrap();
        assert_eq!(request.id, "");
        let request: Request =
            serde_json::from_str(r#"{"ID":"a","Parent":"b","StorageOpt":null,"Other":1}"#).unwrap();
        assert_eq!((request.id.as_str(), request.parent.as_str()), ("a", "b"));
        assert!(request.creation(true).storage.is_empty());
        let init: Init =
            serde_json::from_str(r#"{"Home":"/x","Opts":null,"UIDMaps":[{"container_id":0,"host_id":5,"size":9}],"GIDMaps":null}"#)
                .unwrap();
        let run = IdRun {
            inside: 0,
            outside: 5,
            count: 9,
        };
        assert_eq!(init.ids(), [run]);
    }

    #[test]
    fn ids_in_a_query_are_not_unescaped() {
        let check = |query: &str, id: &str, parent: &str| {
            assert_eq!(ids_of(query), (id.to_owned(), parent.to_owned()), "{query}");
        };
        check("id=a&parent=b", "a", "b");
        check("id=a%2fb+c&parent=", "a%2fb+c", "");
        check("", "", "");
    }

    #[test]
    fn absent_fields_are_left_out_of_answers() {
        let text = serde_json::to_string(&Reply::default()).unwrap();
        assert_eq!(text, r#"{"Err":""}"#);
        let reply = Reply {
            changes: Some(vec![Change {
                path: "/a".into(),
                kind: 2,
            }]),
            ..Reply::default()
        };
        let text = serde_json::to_string(&reply).unwrap();
        assert_eq!(text, r#"{"Err":"","Changes":[{"Path":"/a","Kind":2}]}"#);
    }
}
