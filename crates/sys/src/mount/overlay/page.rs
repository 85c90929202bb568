//! The method that works on every kernel: one page of options through mount(2).
//!
//! `:`, `,` and `\` are escaped in it, and paths beneath the home directory are given relative to
//! it, from a thread whose working directory is the home.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::MountFlags;

use super::OverlayMount;
use crate::Error;
use crate::mount::MountError;

/// Bytes of options that mount(2) passes: a page without the closing NUL.
const OPTION_PAGE: usize = 4095;

/// Puts a backslash before every byte of `special`.
pub(super) fn escape(text: &OsStr, special: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    for &byte in text.as_bytes() {
        if special.contains(&byte) {
            out.push(b'\\');
        }
        out.push(byte);
    }
    out
}

/// Returns how many bytes of mount(2)'s option page this overlay would take with paths relative to
/// `home`; the page holds 4095.
pub fn option_page_bytes(mount: &OverlayMount, home: &Path) -> usize {
    page(mount, home).len()
}

fn page(mount: &OverlayMount, home: &Path) -> Vec<u8> {
    let mut page = Vec::new();
    let mut option = |text: Vec<u8>| {
        if !page.is_empty() {
            page.push(b',');
        }
        page.extend(text);
    };
    for (name, value) in mount.options.pairs() {
        let text = match value {
            Some(value) => [name.as_bytes(), b"=", &escape(OsStr::new(&value), b",\\")].concat(),
            None => name.into_bytes(),
        };
        option(text);
    }
    let relative = |path: &Path| -> OsString {
        match path.strip_prefix(home) {
            Ok(rest) if rest.as_os_str().is_empty() => ".".into(),
            Ok(rest) => rest.into(),
            Err(_) => path.into(),
        }
    };
    let mut lowerdir = b"lowerdir=".to_vec();
    for (i, lower) in mount.lowers.iter().enumerate() {
        if i > 0 {
            lowerdir.push(b':');
        }
        lowerdir.extend(escape(&relative(lower), b":,\\"));
    }
    for lower in &mount.data_lowers {
        lowerdir.extend(b"::");
        lowerdir.extend(escape(&relative(lower), b":,\\"));
    }
    option(lowerdir);
    if let (Some(upper), Some(work)) = (&mount.upper, &mount.work) {
        option([b"upperdir=", &escape(&relative(upper), b",\\:")[..]].concat());
        option([b"workdir=", &escape(&relative(work), b",\\:")[..]].concat());
    }
    page
}

/// Mounts the overlay at `target`. Errors: `OptionsTooLong`, `Refused`.
pub(super) fn mount_by_page(
    mount: &OverlayMount,
    target: &Path,
    home: &Path,
) -> Result<(), MountError> {
    let page = page(mount, home);
    if page.len() > OPTION_PAGE {
        let layers = mount.lowers.len() + mount.data_lowers.len();
        return Err(MountError::OptionsTooLong {
            layers,
            bytes: page.len(),
            limit: OPTION_PAGE,
        });
    }
    let invalid = || Error::new("mount on", target, Errno::INVAL);
    let data = CString::new(page).map_err(|_| invalid())?;
    let mut flags = MountFlags::empty();
    for (wanted, flag) in [
        (mount.read_only || mount.upper.is_none(), MountFlags::RDONLY),
        (mount.options.nosuid, MountFlags::NOSUID),
        (mount.options.nodev, MountFlags::NODEV),
        (mount.options.noexec, MountFlags::NOEXEC),
    ] {
        if wanted {
            flags |= flag;
        }
    }
    let target_bytes = OsString::from_vec(target.as_os_str().as_bytes().to_vec());
    let in_home = || -> Result<(), (&'static str, Errno)> {
        // SAFETY: CLONE_FS unshares only the working directory, root and umask of this thread,
        // which is ours and ends right after; no descriptor table is unshared.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS) }
            .map_err(|e| ("unshare", e))?;
        rustix::process::chdir(home).map_err(|e| ("chdir to the home", e))?;
        rustix::mount::mount("overlay", &target_bytes, "overlay", flags, data.as_c_str())
            .map_err(|e| ("mount(2)", e))
    };
    let done = std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("mount-from-home".into())
            .spawn_scoped(scope, in_home)
            .map(|t| t.join())
    });
    let refused = |step: &str, source: io::Error| MountError::Refused {
        step: step.to_string(),
        target: target.to_path_buf(),
        log: Vec::new(),
        source,
    };
    match done {
        Ok(Ok(Ok(()))) => Ok(()),
        Ok(Ok(Err((step, e)))) => Err(refused(step, e.into())),
        Ok(Err(_)) => Err(refused(
            "mount(2)",
            io::Error::other("the mounting thread panicked"),
        )),
        Err(e) => Err(refused("starting a thread", e)),
    }
}
