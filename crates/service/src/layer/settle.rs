//! `settle`: makes an upper plain whose files are partly in lower layers.

use std::path::Path;

use vellum_overlay::options::MountOptions;
use vellum_overlay::{dialect, layers};
use vellum_store::Shape;
use vellum_sys::Cancel;
use vellum_union::engine::{SettleOptions, SettleProgress, Settled, settle as run};

use crate::context::Context;
use crate::error::{Error, Result};
use crate::{container_record, names, run_dir};

/// Like [`settle`], for a container that is not mounted.
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
                // An upper that the engine never mounted has nothing to settle.
                (Some(upper), Some(work)) if layers::last_mounted(&upper.dir, work)?.is_some() => {
                    settle(&upper.dir, work, None, progress, &ctx.cancel)
                }
                _ => Ok(whole),
            },
            Shape::Plain { .. } => Ok(whole),
        }
    })
}

/// Copies into `upper` what its files still read from lower layers. Durable on return; after an
/// error, finished files stay finished.
///
/// `options` names the layers below it; without them, the work directory's record of the last mount
/// counts. Fails if it is mounted.
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
                    "{} does not know the lower layers of {}",
                    work.display(),
                    upper.display()
                ),
                hint: Some(
                    "if Vellum has mounted it, name its layers: -o lowerdir=TOP:NEXT:...".into(),
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
