//! Mounting and unmounting through libfuse's helper, for users who may not mount themselves.
//!
//! The helper opens the device, mounts, and sends the descriptor over the socket that
//! `_FUSE_COMMFD` names: its standard input.

use std::ffi::{OsStr, OsString};
use std::io::IoSliceMut;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
};

use crate::options::MountOptions;
use crate::{Error, Result};

const HELPER: &str = "fusermount3";

/// Mounts on `target` and returns the device.
pub(super) fn mount(target: &Path, options: &MountOptions) -> Result<OwnedFd> {
    let failed = |said: String| Error::Fusermount {
        target: target.to_owned(),
        said,
    };
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|error| failed(error.to_string()))?;
    let output = Command::new(HELPER)
        .arg("-o")
        .arg(option_string(options))
        .arg("--")
        .arg(target)
        .env("_FUSE_COMMFD", "0")
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .output()
        .map_err(|error| failed(format!("it can't be run: {error}")))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(failed(said));
    }
    receive(&ours).ok_or_else(|| failed(String::from("it sent no descriptor")))
}

fn receive(socket: &OwnedFd) -> Option<OwnedFd> {
    let mut byte = [0];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut messages = RecvAncillaryBuffer::new(&mut space);
    let mut data = [IoSliceMut::new(&mut byte)];
    rustix::net::recvmsg(socket, &mut data, &mut messages, RecvFlags::CMSG_CLOEXEC).ok()?;
    messages.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    })
}

/// Unmounts `target`.
pub(super) fn unmount(target: &Path) -> Result<()> {
    let failed = |said: String| Error::Fusermount {
        target: target.to_owned(),
        said,
    };
    let output = Command::new(HELPER)
        .args(["-u", "-z", "--"])
        .arg(target)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| failed(format!("it can't be run: {error}")))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(failed(
            String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        )),
    }
}

/// Returns the options as the helper expects them: commas and backslashes in values are escaped.
fn option_string(options: &MountOptions) -> OsString {
    let mut all: Vec<Vec<u8>> = vec![[b"fsname=", &*escaped(&options.source)].concat()];
    if let Some(subtype) = &options.subtype {
        all.push([b"subtype=", &*escaped(subtype.as_ref())].concat());
    }
    let flags = options.flags;
    for (name, wanted) in [
        ("allow_other", options.allow_other),
        ("default_permissions", options.default_permissions),
        ("ro", flags.read_only),
        ("nosuid", flags.nosuid),
        ("nodev", flags.nodev),
        ("noexec", flags.noexec),
        ("noatime", flags.noatime),
        ("nodiratime", flags.nodiratime),
        ("sync", flags.sync),
        ("dirsync", flags.dirsync),
    ] {
        if wanted {
            all.push(name.into());
        }
    }
    all.extend(options.extra.iter().map(|option| escaped(option)));
    OsString::from_vec(all.join(&b','))
}

fn escaped(value: &OsStr) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len());
    for &byte in value.as_bytes() {
        if byte == b',' || byte == b'\\' {
            out.push(b'\\');
        }
        out.push(byte);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::MountFlags;

    #[test]
    fn options_are_escaped_for_the_helper() {
        let options = MountOptions {
            source: OsString::from("a,b\\c"),
            allow_other: true,
            flags: MountFlags {
                noatime: true,
                ..MountFlags::default()
            },
            ..MountOptions::default()
        };
        assert_eq!(
            option_string(&options),
            r"fsname=a\,b\\c,subtype=vellum,allow_other,default_permissions,noatime"
        );
    }
}
