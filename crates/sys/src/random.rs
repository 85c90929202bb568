//! Unguessable names, from the system's cryptographic generator.

use rand::Rng;

/// Returns `digits` random lower-case hexadecimal digits.
pub fn hex(digits: usize) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    text(digits, DIGITS)
}

/// Returns `len` characters drawn evenly from `alphabet` (its length must divide 256, or the draw
/// is uneven).
pub fn text(len: usize, alphabet: &[u8]) -> String {
    bytes(len)
        .into_iter()
        .map(|b| char::from(alphabet[usize::from(b) % alphabet.len()]))
        .collect()
}

/// Returns `len` random bytes.
pub fn bytes(len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    rand::rng().fill_bytes(&mut out);
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn hex_has_the_length_and_digits_asked_for() {
        for digits in [0, 1, 7, 64] {
            let s = super::hex(digits);
            assert_eq!(s.len(), digits);
            assert!(
                s.bytes()
                    .all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase())
            );
        }
        assert_ne!(super::hex(32), super::hex(32));
    }
}
