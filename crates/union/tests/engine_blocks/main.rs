//! Files copied up block by block: what they cost, that only Vellum reads them, that they are never
//! read with another lower file or a damaged map, and that they become plain: by themselves or by
//! settling.

#[path = "../engine_support/mod.rs"]
mod engine_support;
mod reading;
mod rig;
mod settling;
mod upper;
mod writing;
