//! Which of an index's images runs here.
//!
//! An index (a manifest list, in Docker's older term) offers one manifest for each platform.
//! [`choose`] is pure: offers and a wish in, a position out. It must not fetch anything. The names
//! are Go's (`amd64`, `arm64`), as the OCI specification requires.

use std::fmt;
use std::str::FromStr;

/// An operating system, an architecture and, for some, a variant: `linux/arm/v7`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    /// Go's name of the operating system, `linux`.
    pub os: String,
    /// Go's name of the architecture, `amd64`.
    pub architecture: String,
    /// The variant of the architecture, `v7`; `None` if it doesn't matter or isn't known.
    pub variant: Option<String>,
}

/// A text that isn't `os/architecture[/variant]`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a platform: write os/architecture[/variant], such as linux/arm64")]
pub struct PlatformError(String);

impl Platform {
    /// Returns the platform this program was built for.
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "x86" => ("386", None),
            "aarch64" => ("arm64", Some("v8")),
            "arm" => ("arm", Some("v7")),
            "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", None),
            "powerpc64" => ("ppc64", None),
            "loongarch64" => ("loong64", None),
            other => (other, None),
        };
        Self {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.map(str::to_owned),
        }
    }

    /// Returns how well `offer` suits a request for `self`: smaller is better, `None` not at all.
    fn distance(&self, offer: &Platform) -> Option<u32> {
        if self.os != offer.os || self.architecture != offer.architecture {
            return None;
        }
        let wanted = self.variant_number();
        match (wanted, offer.variant_number()) {
            (Some(wanted), Some(offered)) if offered <= wanted => Some(wanted - offered),
            // A newer variant's code may not run on an older processor.
            (Some(_), Some(_)) => None,
            (None, None) => (self.variant == offer.variant).then_some(0).or(Some(1000)),
            // An offer without a variant means the plain one, and an unknown one is better than
            // none.
            (Some(_), None) => Some(1000),
            (None, Some(offered)) => Some(1000 + offered),
        }
    }

    /// `v8` of arm64 and no variant are the same thing.
    fn variant_number(&self) -> Option<u32> {
        match (&self.variant, self.architecture.as_str()) {
            (Some(variant), _) => variant.strip_prefix('v')?.parse().ok(),
            (None, "arm64") => Some(8),
            (None, "arm") => Some(7),
            (None, "amd64") => Some(1),
            (None, _) => None,
        }
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts: Vec<&str> = text.split('/').collect();
        let (os, architecture, variant) = match parts[..] {
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant)),
            _ => return Err(PlatformError(text.to_owned())),
        };
        if parts
            .iter()
            .any(|p| p.is_empty() || !p.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'))
        {
            return Err(PlatformError(text.to_owned()));
        }
        let architecture = match architecture {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Ok(Self {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.map(str::to_owned),
        })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

/// Returns the position of the offer that suits `wanted` best, or `None` if none does.
///
/// An offer that names no platform (`None`) is chosen only if it is the sole one. Of equally good
/// offers the first is chosen, as the specification asks.
pub fn choose(wanted: &Platform, offers: &[Option<Platform>]) -> Option<usize> {
    if let [None] = offers {
        return Some(0);
    }
    offers
        .iter()
        .enumerate()
        .filter_map(|(at, offer)| Some((wanted.distance(offer.as_ref()?)?, at)))
        .min()
        .map(|(_, at)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(wanted: &str, offers: &[&str], expect: Option<usize>) {
        let offers: Vec<_> = offers.iter().map(|o| o.parse().ok()).collect();
        assert_eq!(choose(&wanted.parse().unwrap(), &offers), expect);
    }

    #[test]
    fn the_best_variant_that_runs_is_chosen() {
        check(
            "linux/amd64",
            &["linux/arm64", "linux/amd64", "windows/amd64"],
            Some(1),
        );
        check(
            "linux/arm/v7",
            &["linux/arm/v5", "linux/arm/v6", "linux/arm/v8"],
            Some(1),
        );
        check("linux/arm/v7", &["linux/arm/v6", "linux/arm/v7"], Some(1));
        check("linux/arm64", &["linux/arm64/v8", "linux/arm/v7"], Some(0));
        check("linux/arm64/v8", &["linux/arm64"], Some(0));
        check("linux/s390x", &["linux/amd64"], None);
        check(
            "linux/amd64/v2",
            &["linux/amd64/v3", "linux/amd64"],
            Some(1),
        );
        check("linux/amd64", &["unknown", "linux/amd64"], Some(1));
        check("linux/amd64", &["unknown"], Some(0));
        check("linux/amd64", &["unknown", "unknown"], None);
        check("linux/amd64", &[], None);
    }

    #[test]
    fn platforms_are_parsed_strictly() {
        for bad in [
            "",
            "linux",
            "linux/",
            "/amd64",
            "linux/amd64/v1/x",
            "linux/am d64",
        ] {
            assert!(bad.parse::<Platform>().is_err(), "{bad:?}");
        }
        assert_eq!(
            "linux/x86_64".parse::<Platform>().unwrap().to_string(),
            "linux/amd64"
        );
    }
}
