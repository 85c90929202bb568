//! `inspect`: prints an array in the order of the names. A name is looked up first as a container,
//! then as an image, then as a volume.

use clap::Args;
use serde_json::{Value, json};
use vellum_service::container::inspect as inspects;
use vellum_service::container::volumes;
use vellum_service::error::ObjectKind;
use vellum_service::{Context, Error, image};

use super::{Examples, Group, Outcome, Verb};
use crate::complete;
use crate::exit_code::{DONE, Failure};
use crate::out::stdout;
use crate::start::Start;

/// Show everything known about images, containers or volumes, as JSON
#[derive(Debug, Args)]
pub struct Inspect {
    /// Images, containers or volumes, by name or unique id prefix
    #[arg(add = complete::anything(), required = true)]
    pub names: Vec<String>,
}

impl Verb for Inspect {
    const GROUP: Group = Group::Images;
    const EXAMPLES: Examples = &[("", "  vellum inspect debian:12 box")];

    fn run(self, start: Start<'_>) -> Outcome {
        let ctx = &start.context()?;
        let mut found = Vec::new();
        for name in &self.names {
            found.push(one(ctx, name)?);
        }
        let mut out = stdout();
        out.json(&found)?;
        out.done()?;
        Ok(DONE)
    }
}

fn one(ctx: &Context, name: &str) -> Result<Value, Failure> {
    match inspects::inspect_container(ctx, name) {
        Err(Error::NotFound {
            kind: ObjectKind::Container,
            ..
        }) => {}
        other => return Ok(other?),
    }
    match image::inspect_image(ctx, name) {
        Err(Error::NotFound {
            kind: ObjectKind::Image,
            ..
        }) => {}
        other => return Ok(other?),
    }
    match volumes::find(ctx, name) {
        Ok(volume) => {
            let mut value = json!({ "kind": "volume" });
            let fields = serde_json::to_value(volume).map_err(|e| Failure::other(e.to_string()))?;
            if let (Value::Object(all), Value::Object(fields)) = (&mut value, fields) {
                all.extend(fields);
            }
            Ok(value)
        }
        Err(Error::NotFound { .. }) => Err(Failure::other(format!(
            "there is no container, image or volume `{name}`\nhint: `vellum ls`, `vellum images` and `vellum volume ls` list them"
        ))),
        Err(e) => Err(e.into()),
    }
}
