//! `settle`: an upper whose files are partly in lower layers is made plain.

use std::path::Path;

use vellum_sys::Cancel;
use vellum_union::engine::{SettleOptions, SettleProgress, Settled, settle as run};

use crate::error::{Error, Result};
use crate::overlay::layers;
use crate::overlay::options::MountOptions;

/// Copies into `upper` what its files still read from lower layers. Durable on return; what was done before an error stays done.
///
/// `options` says what lies below it; without, the work directory remembers the last mount. Errors also if it is mounted.
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
        prefix: layers::prefix(options)?,
        lowers,
        data_lowers,
    };
    let settled = run(&settling, progress, cancel)?;
    match settled.complete {
        true => Ok(settled),
        false => Err(Error::Cancelled),
    }
}
