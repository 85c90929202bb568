//! A layer's bytes as a [`TarSource`].

use std::io::BufRead;

use super::LayerStream;
use crate::error::Result;
use crate::tar::TarSource;

impl TarSource for LayerStream {
    fn chunk(&mut self) -> Result<&[u8]> {
        LayerStream::chunk(self)
    }

    fn consume(&mut self, n: usize) {
        BufRead::consume(self, n);
    }

    fn offset(&self) -> u64 {
        LayerStream::offset(self)
    }
}
