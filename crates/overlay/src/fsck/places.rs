//! Where the directories are: what a mount refuses before it looks at any mark.

use std::path::{Path, PathBuf};

use vellum_sys::stat::Stat;
use vellum_union::fsck::{Finding, Place};

use crate::error::{Error, Result};
use crate::fsck::Directories;
use crate::layers::open_dir;

/// The most layers the kernel mounts.
const LAYERS_MAX: usize = 500;

/// One of the directories.
struct Spot<'a> {
    place: Place,
    given: &'a Path,
    real: PathBuf,
    stat: Stat,
}

impl Spot<'_> {
    fn is_in(&self, other: &Spot<'_>) -> bool {
        self.real != other.real && self.real.starts_with(&other.real)
    }

    fn error(&self, why: String) -> Finding {
        Finding::error(self.place, Path::new(""), "layer", why)
    }
}

/// Returns what is wrong with the places of the directories.
pub(super) fn check(directories: &Directories) -> Result<Vec<Finding>> {
    let spot = |place: Place, path: &'_ PathBuf| -> Result<(Place, PathBuf, Stat)> {
        let real = std::fs::canonicalize(path).map_err(Error::io("find", path))?;
        Ok((place, real, open_dir(path)?.stat_self()?))
    };
    let mut layers = Vec::new();
    for (number, path) in directories
        .layers()
        .chain(&directories.data_lowers)
        .enumerate()
    {
        let (place, real, stat) = spot(Place::Layer(number), path)?;
        layers.push(Spot {
            place,
            given: path,
            real,
            stat,
        });
    }
    let mut found = Vec::new();
    let lowers = directories.lowers.len() + directories.data_lowers.len();
    if lowers > LAYERS_MAX {
        let why = format!("{lowers} lower layers: the kernel mounts {LAYERS_MAX}");
        let finding = Finding::error(Place::Layer(0), Path::new(""), "layer", why);
        found.push(finding.differing(LAYERS_MAX.to_string(), lowers.to_string()));
    }
    let first_lower = usize::from(directories.upper.is_some());
    for (at, layer) in layers.iter().enumerate() {
        let others = layers.iter().enumerate().filter(|(other, _)| *other != at);
        for (other_at, other) in others {
            let twice = layer.stat.identity() == other.stat.identity();
            if twice && other_at < at {
                let why = format!("it is the same directory as {}", other.given.display());
                found.push(layer.error(why));
            } else if !twice && layer.is_in(other) {
                let why = format!("it lies in another layer, {}", other.given.display());
                found.push(match at < first_lower {
                    // The kernel mounts that, and refuses the names that lead to the upper.
                    true => Finding::remark(layer.place, Path::new(""), "layer", why),
                    false => layer.error(why),
                });
            }
        }
    }
    if let (Some(_), Some(work)) = (&directories.upper, &directories.work) {
        let (place, real, stat) = spot(Place::Work, work)?;
        let work = Spot {
            place,
            given: work,
            real,
            stat,
        };
        found.extend(work_beside(&layers[0], &work));
        for lower in &layers[first_lower..] {
            if lower.stat.identity() == work.stat.identity() {
                let why = "it is the work directory, too".to_owned();
                found.push(lower.error(why));
            } else if lower.is_in(&work) {
                let why = "it lies in the work directory, which a mount empties".to_owned();
                found.push(lower.error(why));
            }
        }
    }
    Ok(found)
}

fn work_beside(upper: &Spot<'_>, work: &Spot<'_>) -> Option<Finding> {
    if upper.stat.identity() == work.stat.identity() || upper.is_in(work) || work.is_in(upper) {
        let why = "upper and work directory must not contain each other";
        return Some(work.error(why.to_owned()));
    }
    if upper.stat.dev != work.stat.dev {
        let why = "the work directory must be on the upper's file system";
        return Some(work.error(why.to_owned()));
    }
    if !upper.stat.same_mount(&work.stat) {
        let why = "the kernel refuses a work directory that is reached through another mount";
        return Some(work.error(why.to_owned()));
    }
    None
}
