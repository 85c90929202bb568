//! Applying a layer's tar to a tree.

mod target;

pub use target::{Applied, ApplyTarget, Privilege, TargetMarks};
