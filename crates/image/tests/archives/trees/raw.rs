//! Entries of archives, written byte by byte.

const BLOCK: usize = 512;

/// A ustar header.
#[derive(Clone)]
pub struct Raw([u8; BLOCK]);

impl Raw {
    pub fn new(name: &str, typeflag: u8) -> Self {
        let mut header = Raw([0; BLOCK]);
        header.0[156] = typeflag;
        header
            .put(0, name)
            .put(257, "ustar\x0000")
            .put(329, "0000000\x000000000\0")
            .put(136, "14000000000\0")
            .mode(0o644)
            .owner(0, 0)
            .size(0)
    }

    /// Writes `text` at this offset of the header.
    pub fn put(mut self, at: usize, text: impl AsRef<[u8]>) -> Self {
        let text = text.as_ref();
        self.0[at..at + text.len()].copy_from_slice(text);
        self
    }

    pub fn mode(self, mode: u32) -> Self {
        self.put(100, format!("{mode:07o}\0"))
    }

    pub fn owner(self, uid: u32, gid: u32) -> Self {
        self.put(108, format!("{uid:07o}\0{gid:07o}\0"))
    }

    pub fn size(self, size: usize) -> Self {
        self.put(124, format!("{size:011o}\0"))
    }

    pub fn link(self, target: &str) -> Self {
        self.put(157, target)
    }

    pub fn device(self, major: u32, minor: u32) -> Self {
        self.put(329, format!("{major:07o}\0{minor:07o}\0"))
    }

    /// The header alone.
    pub fn block(mut self) -> Vec<u8> {
        self.0[148..156].fill(b' ');
        let sum: u32 = self.0.iter().map(|&byte| u32::from(byte)).sum();
        self.put(148, format!("{sum:06o}\0 ")).0.to_vec()
    }

    /// The header, with the size of `content`, and that.
    pub fn data(self, content: &[u8]) -> Vec<u8> {
        let mut bytes = self.size(content.len()).block();
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        bytes
    }
}

/// An extended header with these records.
pub fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut data = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while rest + length.to_string().len() != length {
            length = rest + length.to_string().len();
        }
        data.extend_from_slice(format!("{length} {key}=").as_bytes());
        data.extend_from_slice(value);
        data.push(b'\n');
    }
    Raw::new("pax", b'x').data(&data)
}

/// The parts with an end marker.
pub fn archive(parts: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = parts.concat();
    bytes.resize(bytes.len() + 2 * BLOCK, 0);
    bytes
}
