//! What the labels of a snapshot ask for, parsed once.
//!
//! Labels are text from a client. They are parsed and refused here; later code gets values.
//! Vellum's own labels, which record decisions about an existing snapshot, are parsed here too.

use vellum_format::{IdRun, ids};
use vellum_store::Labels;

use crate::error::{Error, Result};

use super::{GID_MAPPING, MAX_SIZE, PARENT_CHAIN, SNAPSHOT_REF, UID_MAPPING, own_labels};

/// The label that records what maps the ids. On disk.
const MAPPED_BY: &str = concat!(own_labels::prefix!(), "ids-mapped-by");

/// What the labels ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Asked {
    /// The chain ID of the layer to unpack into it.
    pub(super) chain: Option<String>,
    /// The chain ID of the layer that becomes its parent at the commit.
    pub(super) parent_chain: Option<String>,
    /// How much may be written. There is no limit for unpacking.
    pub(super) limit_bytes: Option<u64>,
    /// The ids as which its owners are shown.
    pub(super) mapping: Option<Mapping>,
    /// What maps the ids, decided when the snapshot was created.
    pub(super) mapper: Option<Mapper>,
}

impl Asked {
    /// Parses the labels. Errors: `Invalid`, with the label that can't be understood.
    pub(super) fn of(labels: &Labels) -> Result<Self> {
        let text = |label| labels.get(label).cloned();
        let chain = text(SNAPSHOT_REF);
        let limit_bytes = match chain {
            Some(_) => None,
            None => limit(labels)?,
        };
        Ok(Self {
            chain,
            parent_chain: text(PARENT_CHAIN).filter(|chain| !chain.is_empty()),
            limit_bytes,
            mapping: Mapping::of(labels)?,
            mapper: labels.get(MAPPED_BY).and_then(|name| Mapper::named(name)),
        })
    }

    /// Tells whether a mapping is asked for, but it is not decided yet what does it.
    pub(super) fn is_mapper_open(&self) -> bool {
        self.mapping.is_some() && self.mapper.is_none()
    }
}

fn limit(labels: &Labels) -> Result<Option<u64>> {
    let Some(text) = labels.get(MAX_SIZE) else {
        return Ok(None);
    };
    match text.parse::<u64>() {
        Ok(0) => Ok(None),
        Ok(bytes) => Ok(Some(bytes)),
        Err(_) => Err(Error::Invalid {
            what: format!("the label {MAX_SIZE} is {text:?}, which is not a number of bytes"),
            hint: None,
        }),
    }
}

/// What shows a tree's owners as the labels ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mapper {
    /// Nothing: no mapping is asked for, or the ids on disk are already the host's.
    Nobody,
    /// The kernel, by mount options.
    Kernel,
    /// Vellum's engine.
    Engine,
}

impl Mapper {
    fn name(self) -> &'static str {
        match self {
            Self::Nobody => "nobody",
            Self::Kernel => "kernel",
            Self::Engine => "engine",
        }
    }

    fn named(name: &str) -> Option<Self> {
        [Self::Nobody, Self::Kernel, Self::Engine]
            .into_iter()
            .find(|mapper| mapper.name() == name)
    }

    /// The label that records it, and its value.
    pub(super) fn label(self) -> (String, String) {
        (MAPPED_BY.to_owned(), self.name().to_owned())
    }
}

/// The mapping that the two labels ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    pub(super) uids: Runs,
    pub(super) gids: Runs,
}

impl Mapping {
    /// Errors: `Invalid` if one of the two is missing or can't be understood.
    fn of(labels: &Labels) -> Result<Option<Self>> {
        if !labels.contains_key(UID_MAPPING) && !labels.contains_key(GID_MAPPING) {
            return Ok(None);
        }
        Ok(Some(Self {
            uids: Runs::of(labels, UID_MAPPING)?,
            gids: Runs::of(labels, GID_MAPPING)?,
        }))
    }

    /// The labels' texts, each with the name of its id type.
    pub(super) fn texts(&self) -> [(&'static str, &str); 2] {
        [("uid", &self.uids.text), ("gid", &self.gids.text)]
    }

    /// Tells whether the root directory's owner, `uid` and `gid`, is mapped already.
    pub(super) fn is_done(&self, uid: u32, gid: u32) -> bool {
        self.uids.is_done(uid) && self.gids.is_done(gid)
    }
}

/// The content of one of the labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Runs {
    label: &'static str,
    text: String,
    runs: Vec<IdRun>,
}

impl Runs {
    fn of(labels: &Labels, label: &'static str) -> Result<Self> {
        let text = labels.get(label).cloned().unwrap_or_default();
        match ids::parse_list(&text) {
            Some(runs) => Ok(Self { label, text, runs }),
            None => Err(Error::Invalid {
                what: format!("the label {label} is {text:?}, not container:host:count"),
                hint: None,
            }),
        }
    }

    /// Returns the host's id for `id`.
    fn outside(&self, id: u32) -> Option<u32> {
        ids::outside_of(&self.runs, id)
    }

    /// Tells whether the root directory's owner `id` is mapped already. If the ranges overlap, the
    /// root user decides, which nearly always owns the directory.
    fn is_done(&self, id: u32) -> bool {
        self.outside(0) == Some(id)
            || self.outside(id).is_none() && ids::inside_of(&self.runs, id).is_some()
    }

    /// Returns the host's id for the root directory's owner `id`. Errors: `Invalid` if the label
    /// has none.
    pub(super) fn of_root(&self, id: u32) -> Result<u32> {
        self.outside(id).ok_or_else(|| Error::Invalid {
            what: format!(
                "the label {} is {:?}, which does not map {id}, the root directory's owner",
                self.label, self.text
            ),
            hint: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(labels: &[(&str, &str)]) -> Labels {
        let owned = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
        labels.iter().map(owned).collect()
    }

    #[test]
    fn labels_are_parsed_into_requests() {
        assert_eq!(Asked::of(&Labels::new()).unwrap(), Asked::default());
        let chain = (SNAPSHOT_REF, "sha256:00");
        let size = (MAX_SIZE, "4096");
        let asked = |given: &[(&str, &str)]| Asked::of(&labels(given)).unwrap();
        assert_eq!(asked(&[size]).limit_bytes, Some(4096));
        assert_eq!(asked(&[(MAX_SIZE, "0")]).limit_bytes, None);
        // Unpacking has no limit, whatever the label says.
        assert_eq!(asked(&[size, chain]).limit_bytes, None);
        assert_eq!(asked(&[(MAX_SIZE, "?"), chain]).limit_bytes, None);
        assert_eq!(asked(&[chain]).chain.as_deref(), Some("sha256:00"));
        assert_eq!(asked(&[(PARENT_CHAIN, "")]).parent_chain, None);
        let maps = [(UID_MAPPING, "0:1:9"), (GID_MAPPING, "0:2:9")];
        assert!(asked(&maps).is_mapper_open());
        for mapper in [Mapper::Nobody, Mapper::Kernel, Mapper::Engine] {
            let (name, value) = mapper.label();
            let asked = asked(&[maps[0], maps[1], (&name, &value)]);
            assert_eq!(
                (asked.mapper, asked.is_mapper_open()),
                (Some(mapper), false)
            );
        }
    }

    #[test]
    fn labels_that_cant_be_understood_are_refused_by_name() {
        let bad = [
            "",
            "0",
            "0:1",
            "0:1:2:3",
            "a:1:1",
            "0:1:1,",
            "0:4294967295:2",
        ];
        let bad = bad.map(|text| vec![(UID_MAPPING, "0:1:9"), (GID_MAPPING, text)]);
        for (given, label) in bad
            .iter()
            .map(|given| (given.as_slice(), GID_MAPPING))
            .chain([
                (&[(GID_MAPPING, "0:1:9")][..], UID_MAPPING),
                (&[(MAX_SIZE, "10M")][..], MAX_SIZE),
                (&[(MAX_SIZE, "-1")][..], MAX_SIZE),
            ])
        {
            let error = Asked::of(&labels(given)).unwrap_err().to_string();
            assert!(error.contains(label), "{given:?}: {error}");
        }
    }

    #[track_caller]
    fn check(text: &str, id: u32, outside: Option<u32>, done: bool) {
        let runs = Runs::of(&labels(&[(UID_MAPPING, text)]), UID_MAPPING).unwrap();
        assert_eq!(
            (runs.outside(id), runs.is_done(id)),
            (outside, done),
            "{text} {id}"
        );
    }

    #[test]
    fn the_root_owner_tells_whether_ids_are_mapped_already() {
        check("0:100000:65536", 0, Some(100_000), false);
        check("0:100000:65536", 100_000, None, true);
        // Another user's root directory, before and after.
        check("0:100000:65536", 1000, Some(101_000), false);
        check("0:100000:65536", 101_000, None, true);
        check("0:1000:1,1:100000:65535", 65_535, Some(165_534), false);
        // Mappings that change nothing.
        check("0:0:4294967295", 0, Some(0), true);
        // Overlapping ranges: the root user decides.
        check("0:1000:65536", 0, Some(1000), false);
        check("0:1000:65536", 1000, Some(2000), true);
        check("0:100000:65536", 70_000, None, false);
    }
}
