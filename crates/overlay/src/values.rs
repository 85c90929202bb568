//! Values as text: switches, sizes in options and settings, paths in JSON; and suggestions for
//! misspelled words.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Whether a kernel feature is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Toggle {
    /// Used where available, unless something prevents it.
    Auto,
    /// Required: a mount that can't have it is refused.
    On,
    /// Never.
    Off,
}

impl FromStr for Toggle {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "on" | "true" | "yes" | "1" => Ok(Self::On),
            "off" | "false" | "no" | "0" => Ok(Self::Off),
            other => Err(format!("`{other}` is not one of auto, on and off")),
        }
    }
}

impl fmt::Display for Toggle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::On => "on",
            Self::Off => "off",
        })
    }
}

/// Reads a number of bytes: digits, optionally with a fraction, then optionally B, K, M, G, T or P,
/// each with an optional `i` and `B` (all powers of 1024, as Docker's).
pub fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let wrong = || format!("`{text}` is not a size; write 512M, 10G or a number of bytes");
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let power = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 1,
        "m" | "mb" | "mib" => 2,
        "g" | "gb" | "gib" => 3,
        "t" | "tb" | "tib" => 4,
        "p" | "pb" | "pib" => 5,
        _ => return Err(wrong()),
    };
    let factor = 1024u64.pow(power);
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor).ok_or_else(wrong);
    }
    let fraction: f64 = number.parse().map_err(|_| wrong())?;
    let bytes = fraction * factor as f64;
    // 2^63 is far above any file system and far below where f64 loses the order of magnitude.
    if bytes.is_finite() && (0.0..9.2e18).contains(&bytes) {
        Ok(bytes as u64)
    } else {
        Err(wrong())
    }
}

/// A path in JSON: text if it is UTF-8, else hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "PathForm", into = "PathForm")]
pub struct BytesPath(pub PathBuf);

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum PathForm {
    Text(String),
    Bytes { hex: String },
}

impl From<PathForm> for BytesPath {
    fn from(form: PathForm) -> Self {
        match form {
            PathForm::Text(text) => Self(text.into()),
            // If it isn't hexadecimal, Vellum didn't write it. The empty path is refused where it
            // is used.
            PathForm::Bytes { hex } => {
                Self(OsString::from_vec(hex::decode(hex).unwrap_or_default()).into())
            }
        }
    }
}

impl From<BytesPath> for PathForm {
    fn from(path: BytesPath) -> Self {
        match path.0.to_str() {
            Some(text) => Self::Text(text.to_owned()),
            None => Self::Bytes {
                hex: hex::encode(path.0.as_os_str().as_bytes()),
            },
        }
    }
}

/// Returns the one of `words` that `text` most likely stands for: one typing error away, or two in
/// longer words. A wrong suggestion is worse than none.
pub fn near<W: AsRef<str> + Ord>(text: &str, words: impl IntoIterator<Item = W>) -> Option<W> {
    let slips = match text.chars().count() {
        0..=2 => return None,
        3..=5 => 1,
        _ => 2,
    };
    words
        .into_iter()
        .map(|word| (strsim::damerau_levenshtein(text, word.as_ref()), word))
        .filter(|(distance, _)| *distance <= slips)
        .min()
        .map(|(_, word)| word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_suggested() {
        let verbs = ["load", "node", "settle", "history", "run"];
        for (text, meant) in [
            ("lod", Some("load")),
            ("laod", Some("load")),
            ("histroy", Some("history")),
            ("start", None),
            ("stop", None),
            ("prune", None),
            ("rn", None),
            ("", None),
        ] {
            assert_eq!(near(text, verbs), meant, "{text}");
        }
    }

    #[test]
    fn sizes() {
        #[track_caller]
        fn check(text: &str, expect: Option<u64>) {
            assert_eq!(parse_size(text).ok(), expect, "{text}");
        }
        check("1500", Some(1500));
        check("10G", Some(10 << 30));
        check("512MiB", Some(512 << 20));
        check("1.5k", Some(1536));
        check("1 GB", Some(1 << 30));
        check("", None);
        check("G", None);
        check("-1", None);
        check("99999999999999T", None);
    }
}
