//! Containers: one writable layer over an image's layers or over any directory. One file per verb.

pub mod bundle;
pub mod cp;
pub mod create;
pub mod diff;
pub mod inspect;
pub mod list;
pub mod remove;
pub mod rename;
pub mod run;
pub mod volumes;
