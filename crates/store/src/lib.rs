//! (room to be furnished)
#![forbid(unsafe_code)]
