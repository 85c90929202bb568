//! Numbers in tar headers: octal text, base-256 for larger ones, decimal in PAX records.
//!
//! Pure. Every function returns `None` for what is not a number in its format; the caller knows the
//! field's name. The formats are those that Go's `archive/tar` accepts, since the tree must be the
//! one that scanners and other runtimes see.

use vellum_sys::Timespec;

/// Parses a header field: octal digits between spaces and NULs, or base-256 (two's complement,
/// first bit set).
///
/// An empty field is 0, as for every tar.
pub(crate) fn field(bytes: &[u8]) -> Option<i64> {
    match bytes.first() {
        Some(first) if first & 0x80 != 0 => base_256(bytes),
        _ => octal(bytes),
    }
}

fn base_256(bytes: &[u8]) -> Option<i64> {
    // The top bit says "binary", the next one is the sign.
    let negative = bytes[0] & 0x40 != 0;
    let mut value: i128 = if negative { -1 } else { 0 };
    for (i, &byte) in bytes.iter().enumerate() {
        let byte = match (i, negative) {
            (0, false) => byte & 0x7f,
            (0, true) => byte | 0x80,
            _ => byte,
        };
        value = (value << 8) | i128::from(byte);
        // More than 64 significant bits never come back into range.
        if i64::try_from(value >> 8).is_err() {
            return None;
        }
    }
    i64::try_from(value).ok()
}

/// Parses octal digits between spaces and NULs. A NUL within ends them, whatever follows; a space
/// within doesn't.
pub(crate) fn octal(bytes: &[u8]) -> Option<i64> {
    let blank = |b: &u8| matches!(b, b' ' | 0);
    let Some(start) = bytes.iter().position(|b| !blank(b)) else {
        return Some(0);
    };
    let end = bytes.iter().rposition(|b| !blank(b)).map_or(0, |at| at + 1);
    let digits = &bytes[start..end];
    let digits = digits.split(|&b| b == 0).next().unwrap_or_default();
    let value = digits.iter().try_fold(0u64, |value, &digit| {
        if !(b'0'..=b'7').contains(&digit) {
            return None;
        }
        value.checked_mul(8)?.checked_add(u64::from(digit - b'0'))
    })?;
    i64::try_from(value).ok()
}

/// Parses a decimal: digits, perhaps after a sign, and nothing else.
pub(crate) fn decimal(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Parses a PAX time: seconds, perhaps negative, perhaps with a fraction, of which nine digits
/// count.
pub(crate) fn time(text: &[u8]) -> Option<Timespec> {
    let (whole, fraction) = match text.iter().position(|&b| b == b'.') {
        Some(dot) => (&text[..dot], &text[dot + 1..]),
        None => (text, &b""[..]),
    };
    let sec = decimal(whole)?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let nsec = (0..9).fold(0, |nsec, at| {
        nsec * 10 + u32::from(fraction.get(at).copied().unwrap_or(b'0') - b'0')
    });
    Some(match (whole.starts_with(b"-"), nsec) {
        (true, 1..) => {
            // Nanoseconds count forwards from the second before, which the very last one doesn't
            // have.
            Timespec::new(sec.wrapping_sub(1), 1_000_000_000 - nsec)
        }
        _ => Timespec::new(sec, nsec),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields() {
        for (bytes, expect) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"00000000000", Some(0)),
            (b"77777777777\0", Some(0o77_777_777_777)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b" \0 644\0 ", Some(0o644)),
            (b"644\0junk", Some(0o644)),
            (b"644\0 64", Some(0o644)),
            (b"0000648\0", None),
            (b"644 644\0", None),
            (b"644 \0jnk", None),
            (b"-000644\0", None),
            (b"+000644\0", None),
            (b"\x80\0\0\0\0\x20\0\0", Some(2_097_152)),
            (b"\x80\0\0\0\0\0\0\x02\0\0\0\0", Some(8_589_934_592)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (
                b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
                Some(-1),
            ),
            (
                b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
                Some(-255),
            ),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (b"\x81\0\0\0\0\0\0\0\0\0\0\0", None),
        ] {
            assert_eq!(field(bytes), expect, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn times() {
        for (text, expect) in [
            (&b"0"[..], Some((0, 0))),
            (b"1350244992.023960108", Some((1_350_244_992, 23_960_108))),
            (b"1.5", Some((1, 500_000_000))),
            (b"1.", Some((1, 0))),
            (b"1.0000000009", Some((1, 0))),
            (b"-1", Some((-1, 0))),
            (b"+1", Some((1, 0))),
            (b"-1.25", Some((-2, 750_000_000))),
            (b"-0.000000001", Some((-1, 999_999_999))),
            (b"", None),
            (b".5", None),
            (b"1e9", None),
            (b"--1", None),
            (b"1.5x", None),
            (b"1.-5", None),
            (b"1.1234567890x", None),
            (b"99999999999999999999", None),
        ] {
            let expect = expect.map(|(sec, nsec)| Timespec::new(sec, nsec));
            assert_eq!(time(text), expect, "{}", text.escape_ascii());
        }
    }

    #[test]
    fn decimals() {
        assert_eq!(decimal(b"9223372036854775807"), Some(i64::MAX));
        assert_eq!(decimal(b"-9223372036854775808"), Some(i64::MIN));
        assert_eq!(decimal(b"+007"), Some(7));
        for bad in [
            &b""[..],
            b"9223372036854775808",
            b" 1",
            b"1 ",
            b"0x1",
            b"1_0",
            b"+",
            b"-",
        ] {
            assert_eq!(decimal(bad), None);
        }
    }
}
