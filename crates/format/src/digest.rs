//! The digest that names content: of a blob, a layer's tar, a configuration, a chain of layers.
//!
//! A digest from outside is used only after it was parsed here, so its hexadecimal part can serve
//! as a file name: 64 lower-case hex digits, nothing else. The text form is that of the OCI image
//! specification (descriptor.md, "Digests"); SHA-256 is the only algorithm. This module knows bytes
//! only: hashing while reading or writing is elsewhere. Changing the text form breaks the names of
//! all blobs, recipes and records on disk.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

/// A SHA-256 digest. `Display` gives `sha256:<64 hex digits>`, and so does serde.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

/// A text that is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not a digest of the form sha256:<64 hex digits>")]
pub struct BadDigest {
    /// The text's first 128 characters.
    pub text: String,
}

impl Digest {
    /// The part before the colon, and the name of the directory in blob layouts.
    pub const ALGORITHM: &'static str = "sha256";

    /// Returns the digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Wraps 32 bytes that are a SHA-256.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the digest with this hexadecimal part, as file names have it. Errors as parsing the
    /// whole text does.
    pub fn from_hex(hex_digits: &str) -> Result<Self, BadDigest> {
        format!("{}:{hex_digits}", Self::ALGORITHM).parse()
    }

    /// Returns the 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Returns the 64 lower-case hex digits without the algorithm, as used for file names.
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }

    /// Returns the ChainID of a layer with this digest as its diff ID, on the chain `parent`
    /// (`None` for a base layer).
    ///
    /// `sha256(parent + " " + diff_id)` over the text forms; a base layer's ChainID is its diff ID
    /// (image specification, config.md).
    pub fn chained_on(&self, parent: Option<&Digest>) -> Digest {
        match parent {
            None => *self,
            Some(parent) => Digest::of(format!("{parent} {self}").as_bytes()),
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", Self::ALGORITHM, self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = BadDigest;

    fn from_str(text: &str) -> Result<Self, BadDigest> {
        let bad = || BadDigest {
            text: text.chars().take(128).collect(),
        };
        let hex_digits = text.strip_prefix("sha256:").ok_or_else(bad)?;
        // Upper case is not the same text, and a second spelling would be a second file name.
        if hex_digits.len() != 64 || hex_digits.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(bad());
        }
        let mut bytes = [0; 32];
        hex::decode_to_slice(hex_digits, &mut bytes).map_err(|_| bad())?;
        Ok(Self(bytes))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn text_form_round_trips_and_is_strict() {
        let digest: Digest = EMPTY.parse().unwrap();
        assert_eq!(digest, Digest::of(b""));
        assert_eq!(digest.to_string(), EMPTY);
        assert_eq!(Digest::from_hex(&digest.hex()), Ok(digest));
        for bad in [
            "",
            "sha256",
            "sha256:",
            "sha256:../../../../etc/passwd",
            "sha512:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "SHA256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "sha256:E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855",
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b85",
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b8550",
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b85/",
            "sha256:g3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        ] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }

    #[test]
    fn chain_id_follows_the_image_specification() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        assert_eq!(a.chained_on(None), a);
        assert_eq!(
            b.chained_on(Some(&a)),
            Digest::of(format!("{a} {b}").as_bytes())
        );
    }
}
