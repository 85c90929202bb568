//! Layers as whole programs see them: produced elsewhere, applied here, written again, and large.

mod common;
mod memory;
mod producers;
mod roundtrip;
