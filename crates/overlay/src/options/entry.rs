//! What the tables of mount options consist of: an entry and its types of effect.
//!
//! An entry's spelling, such as `index=on|off`, is the one text that the parser, the help and
//! docs/overlay.md share. Its name is the part before the `=`. Several spellings in one entry,
//! separated by spaces, mean the same unless the effect says otherwise.

use std::path::PathBuf;

use super::given::{BadOption, Given, needed, path};
use super::{Manners, MountOptions};

/// Options while they are parsed.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) manners: Manners,
    pub(crate) options: MountOptions,
    /// Every file is root's, unless other options say otherwise.
    pub(crate) squash_root: bool,
    /// An option named explicitly asks to follow marks of lower layers.
    pub(crate) follows_named: bool,
    /// Options that aren't understood are reported and left out.
    pub(crate) tolerant: bool,
}

impl Draft {
    /// Returns the defaults.
    pub(crate) fn new(manners: Manners) -> Draft {
        Draft {
            manners,
            options: MountOptions::new(manners),
            squash_root: false,
            follows_named: false,
            tolerant: manners == Manners::FuseOverlayfs,
        }
    }
}

/// One mount option.
#[derive(Debug)]
pub(crate) struct MountOption {
    /// How it is written.
    pub(crate) spelled: &'static str,
    /// What it does, in one line.
    pub(crate) doc: &'static str,
    effect: Effect,
}

/// What an option does to the options read so far.
#[derive(Debug)]
pub(super) enum Effect {
    /// The value is bytes, or there is none.
    Bytes(fn(&mut Draft, Option<&[u8]>) -> Result<(), BadOption>),
    /// The value is a directory.
    Dir(fn(&mut Draft, PathBuf)),
    /// The value is text; an option without one has an empty value.
    Text(fn(&mut Draft, Given<'_>) -> Result<(), BadOption>),
    /// `on` or `off` in any spelling; without a value it is on.
    OnOff(fn(&mut Draft, bool)),
    /// A bare word. The first spelling turns something on, the others turn it off.
    Word(fn(&mut Draft, bool)),
    /// Nothing: there is no choice here. A spelling without `=` takes no value.
    Nothing,
    /// Nothing. With fuse-overlayfs's manners it is not an option: mount(8) keeps such words to
    /// itself there.
    ForMount,
}

pub(super) const fn option(
    spelled: &'static str,
    doc: &'static str,
    effect: Effect,
) -> MountOption {
    MountOption {
        spelled,
        doc,
        effect,
    }
}

impl MountOption {
    /// Returns its names, without values.
    pub(crate) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.spelled.split(' ').map(name_of)
    }

    /// Applies the option. Returns `false` if it doesn't exist with this value or in these manners.
    pub(crate) fn apply(
        &self,
        to: &mut Draft,
        name: &str,
        value: Option<&[u8]>,
    ) -> Result<bool, BadOption> {
        let text = || std::str::from_utf8(value.unwrap_or_default()).ok();
        let spelled = self.spelled.split(' ').find(|word| name_of(word) == name);
        let is_spelled_so = value.is_none_or(<[u8]>::is_empty)
            || spelled.is_some_and(|spelled| spelled.contains('='));
        match self.effect {
            Effect::Bytes(set) => set(to, value)?,
            Effect::Dir(set) => set(to, path(needed(name, value)?)),
            Effect::Text(set) => match text() {
                Some(value) => set(to, Given { name, value })?,
                None => return Ok(false),
            },
            Effect::OnOff(set) => match text() {
                Some(value) => set(to, Given { name, value }.on_off()?),
                None => return Ok(false),
            },
            Effect::Word(set) if is_spelled_so => set(to, self.names().next() == Some(name)),
            Effect::Nothing if is_spelled_so => {}
            Effect::ForMount if is_spelled_so && to.manners == Manners::Own => {}
            Effect::Word(_) | Effect::Nothing | Effect::ForMount => return Ok(false),
        }
        Ok(true)
    }
}

fn name_of(spelled: &'static str) -> &'static str {
    spelled.split_once('=').map_or(spelled, |(name, _)| name)
}
