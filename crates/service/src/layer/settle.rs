//! `settle`: an upper whose files are partly in lower layers is made plain.

use std::path::Path;

use vellum_overlay::options::MountOptions;
use vellum_overlay::{dialect, layers};
use vellum_store::Shape;
use vellum_sys::Cancel;
use vellum_union::engine::{SettleOptions, SettleProgress, Settled, settle as run};

use crate::context::Context;
use crate::error::{Error, Result};
use crate::{container_record, names, run_dir};

/// As [`settle`], of a container that is not mounted.
pub fn settle_container(
    ctx: &Context,
    name: &str,
    progress: &mut dyn FnMut(SettleProgress),
) -> Result<Settled> {
    names::with_container(ctx, name, |record| {
        let _lock = run_dir::lock_container(ctx, &record.id)?;
        let whole = Settled {
            done: SettleProgress::default(),
            complete: true,
        };
        match container_record::parts(ctx, record)?.shape {
            Shape::Overlay(overlay) => match (&overlay.upper, &overlay.work) {
                // What the engine never mounted has nothing to settle.
                (Some(upper), Some(work)) if layers::last_mounted(&upper.dir, work)?.is_some() => {
                    settle(&upper.dir, work, None, progress, &ctx.cancel)
                }
                _ => Ok(whole),
            },
            Shape::Plain { .. } => Ok(whole),
        }
    })
}

/// Copies into `upper` what its files still read from lower layers. Durable on return; what was
/// done before an error stays done.
///
/// `options` says what lies below it; without, the work directory remembers the last mount. Errors
/// also if it is mounted.
pub fn settle(
    upper: &Path,
    work: &Path,
    options: Option<&MountOptions>,
    progress: &mut dyn FnMut(SettleProgress),
    cancel: &Cancel,
) -> Result<Settled> {
    let remembered;
    let options = match options {
        Some(options) => options,
        None => {
            remembered = layers::last_mounted(upper, work)?.ok_or_else(|| Error::Invalid {
                what: format!(
                    "{} does not know what {} was mounted on",
                    work.display(),
                    upper.display()
                ),
                hint: Some(
                    "if it was used with Vellum at all, name its layers: -o lowerdir=TOP:NEXT:..."
                        .into(),
                ),
            })?;
            &remembered
        }
    };
    let (lowers, data_lowers) = layers::lowers(options)?;
    let settling = SettleOptions {
        upper: upper.to_owned(),
        work: work.to_owned(),
        prefix: dialect::prefix(options)?,
        lowers,
        data_lowers,
    };
    let settled = run(&settling, progress, cancel)?;
    match settled.complete {
        true => Ok(settled),
        false => Err(Error::Cancelled),
    }
}
