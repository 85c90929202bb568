//! The store as a whole: its content and what keeps it, whether it is intact, and what it can do on
//! this machine.

pub mod check;
pub mod df;
pub mod gc;
pub mod info;
pub mod rebuild;
pub mod why;
