//! The store as a whole: what it holds and why, whether it is whole, and what it can do on this
//! machine.

pub mod check;
pub mod df;
pub mod gc;
pub mod info;
pub mod rebuild;
pub mod why;
