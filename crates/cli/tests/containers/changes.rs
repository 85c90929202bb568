//! The changes that most of these tests make, and what `diff` says of them.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Makes the same changes in any mounted tree of the small image.
pub fn change(tree: &Path) {
    std::fs::write(tree.join("etc/new"), "new\n").unwrap();
    std::fs::remove_file(tree.join("etc/top")).unwrap();
    std::fs::write(tree.join("etc/hostname"), "above\n").unwrap();
    std::fs::set_permissions(
        tree.join("dir/inner"),
        std::fs::Permissions::from_mode(0o600),
    )
    .unwrap();
}

pub const CHANGED: &str = "C /dir\nC /dir/inner\nC /etc\nC /etc/hostname\nA /etc/new\nD /etc/top";
