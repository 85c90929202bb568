//! (room to be furnished)

pub mod cancel;

pub use cancel::Cancel;
