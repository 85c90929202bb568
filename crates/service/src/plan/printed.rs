//! A plan as printed, for people and for scripts.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use crate::plan::{EngineMount, Plan, method_name};

/// A plan in a form that scripts can rely on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Printed {
    /// `overlay`, `engine` or `bind`.
    pub kind: &'static str,
    /// Why Vellum's engine was chosen; absent otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub because: Option<String>,
    /// How layers are passed to the kernel; absent for a bind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<&'static str>,
    /// Read-only directories, top first.
    #[serde(serialize_with = "crate::json::paths")]
    pub lowers: Vec<PathBuf>,
    /// The writable directory.
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "crate::json::some_path"
    )]
    pub upper: Option<PathBuf>,
    /// The kernel's work directory.
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "crate::json::some_path"
    )]
    pub work: Option<PathBuf>,
    /// The mount options.
    pub options: Vec<String>,
    /// Whether writing is refused.
    pub read_only: bool,
}

impl Plan {
    /// Returns the plan for printing.
    pub fn printed(&self) -> Printed {
        match self {
            Self::Bind { source, read_only } => Printed {
                kind: "bind",
                because: None,
                method: None,
                lowers: vec![source.clone()],
                upper: None,
                work: None,
                options: Vec::new(),
                read_only: *read_only,
            },
            Self::Overlay { method, mount, .. } => Printed {
                kind: "overlay",
                because: None,
                method: Some(method_name(method)),
                lowers: mount.lowers.clone(),
                upper: mount.upper.clone(),
                work: mount.work.clone(),
                options: mount
                    .options
                    .pairs()
                    .into_iter()
                    .map(|(name, value)| match value {
                        Some(value) => format!("{name}={value}"),
                        None => name,
                    })
                    .collect(),
                read_only: mount.read_only,
            },
            Self::Engine { mount, because, .. } => Printed {
                kind: "engine",
                because: Some(because.clone()),
                method: Some("fuse"),
                lowers: mount.lowers.clone(),
                upper: mount.upper.clone(),
                work: mount.work.clone(),
                options: mount.options(),
                read_only: mount.read_only,
            },
        }
    }
}

impl EngineMount {
    /// Returns its options as `vellum overlay` takes them, without the layers.
    pub fn options(&self) -> Vec<String> {
        let on = |on: bool| if on { "on" } else { "off" };
        let mut options = vec![
            format!("redirect_dir={}", on(self.redirect_dir)),
            format!("metacopy={}", on(self.metacopy)),
            "index=off".to_owned(),
            "wh=plain".to_owned(),
            "trust=archive".to_owned(),
        ];
        if !self.trusted.is_empty() {
            let numbers: Vec<_> = self.trusted.iter().map(ToString::to_string).collect();
            options.push(format!("trusted={}", numbers.join(":")));
        }
        if self.userxattr {
            options.push("userxattr".to_owned());
            options.push("xattr_permissions=2".to_owned());
        }
        if self.volatile && self.upper.is_some() {
            options.push("volatile".to_owned());
        }
        if self.read_only {
            options.push("ro".to_owned());
        }
        if let Some(bytes) = self.limit.size_bytes {
            options.push(format!("size={bytes}"));
        }
        if let Some(inodes) = self.limit.inodes {
            options.push(format!("inodes={inodes}"));
        }
        options
    }
}

impl fmt::Display for Printed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.method {
            Some(method) => writeln!(f, "{} by {method}", self.kind)?,
            None => writeln!(f, "{}", self.kind)?,
        }
        if let Some(because) = &self.because {
            writeln!(f, "because {because}")?;
        }
        if self.read_only {
            writeln!(f, "read-only")?;
        }
        if !self.options.is_empty() {
            writeln!(f, "options  {}", self.options.join(","))?;
        }
        if let Some(upper) = &self.upper {
            writeln!(f, "upper    {}", upper.display())?;
        }
        if let Some(work) = &self.work {
            writeln!(f, "work     {}", work.display())?;
        }
        for (at, lower) in self.lowers.iter().enumerate() {
            let word = if self.kind == "bind" {
                "source "
            } else {
                "lower  "
            };
            writeln!(f, "{word}  {}", lower.display())?;
            if at == 0 && self.kind == "bind" {
                break;
            }
        }
        Ok(())
    }
}
