//! Files copied up block by block, as an engine writes them.

/// One such file, by the name of its map.
#[derive(Debug)]
pub(crate) struct BlockFile {
    map: Box<str>,
}

impl BlockFile {
    pub fn named(map: Box<str>) -> BlockFile {
        BlockFile { map }
    }
}
