//! The working directory of a command: created in the container's tree if it is missing, as Docker
//! does.
//!
//! Its path comes from the image, so it is resolved inside the tree only. Created directories
//! belong to root, whatever user the command runs as.

use std::path::{Component, Path};

use vellum_sys::{Dir, in_root};

use super::spec::{Bind, clean};
use crate::error::{Error, Result};

/// Places that the runtime mounts: directories created below them in the tree would be hidden.
pub(super) const MOUNTED: [&str; 3] = ["proc", "sys", "dev"];

/// Names in /proc that lead out of a container while it is being created (CVE-2024-21626).
const MAGIC: [&str; 6] = ["cwd", "exe", "fd", "map_files", "ns", "root"];

/// Creates `path`, which is absolute and clean, in `tree`. Errors: `Invalid` if something else is
/// there, or it is beyond a magic link.
pub(super) fn make(tree: &Dir, path: &Path, binds: &[Bind]) -> Result<()> {
    let inside = in_root::resolve(tree, path)?;
    let mut names = inside.components();
    if let Some(Component::Normal(first)) = names.next()
        && MOUNTED.iter().any(|place| first == *place)
    {
        if first == "proc" && names.any(|name| MAGIC.iter().any(|magic| name.as_os_str() == *magic))
        {
            return Err(Error::Invalid {
                what: format!(
                    "{} can't be the working directory: it leads out of the container",
                    path.display()
                ),
                hint: Some("choose another directory with --workdir".into()),
            });
        }
        return Ok(());
    }
    // There the runtime creates it.
    if binds
        .iter()
        .any(|bind| path.starts_with(clean(&bind.destination)))
    {
        return Ok(());
    }
    match tree.create_dir_all(&inside, 0o755) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => Err(Error::Invalid {
            what: format!(
                "the working directory {} is not a directory",
                path.display()
            ),
            hint: Some("choose another one with --workdir".into()),
        }),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn the_directory_is_made_inside_the_tree_and_nowhere_else() {
        let scratch = tempfile::tempdir().unwrap();
        let top = scratch.path().join("tree");
        std::fs::create_dir_all(top.join("d/sub")).unwrap();
        std::fs::write(top.join("file"), "").unwrap();
        for (target, name) in [
            ("/d/sub", "link"),
            ("../../../../outside", "out"),
            ("/made/by/link", "dangling"),
            ("loop", "loop"),
            ("/proc/self/fd/8", "magic"),
        ] {
            symlink(target, top.join(name)).unwrap();
        }
        let tree = Dir::open(&top).unwrap();
        let bind = Bind {
            source: "/src".into(),
            destination: "/bound/".into(),
            read_only: false,
            volume: None,
        };
        let check = |path: &str, made: Option<&str>| {
            let done = make(&tree, Path::new(path), std::slice::from_ref(&bind));
            assert_eq!(done.is_ok(), made.is_some(), "{path}: {done:?}");
            if let Some(made) = made {
                assert!(top.join(made).is_dir(), "{path}");
            }
        };
        check("/", Some(""));
        check("/d/sub", Some("d/sub"));
        check("/new/deep", Some("new/deep"));
        check("/link/below", Some("d/sub/below"));
        check("/out/x", Some("outside/x"));
        check("/dangling", Some("made/by/link"));
        for refused in [
            "/file",
            "/file/x",
            "/loop",
            "/magic",
            "/proc/self/fd/7",
            "/proc/1/root/etc",
            "/proc/self/cwd",
        ] {
            check(refused, None);
        }
        for mounted in [
            "/proc/1",
            "/proc/sys/kernel",
            "/sys/x",
            "/dev/shm",
            "/bound/x",
        ] {
            check(mounted, Some(""));
        }
        assert!(!top.join("proc").exists() && !top.join("bound").exists());
        assert!(!scratch.path().join("outside").exists());
    }
}
