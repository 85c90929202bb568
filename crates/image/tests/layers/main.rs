//! Layers as whole programs see them: made elsewhere, taken apart here, given back, and large.

mod common;
mod memory;
mod producers;
mod roundtrip;
