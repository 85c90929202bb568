//! Sockets in the file system that are private from the first moment.
//!
//! bind(2) creates the name with the mode of the socket itself, less the umask (unix(7) mentions
//! only the umask). So the mode is set before the name exists, and not afterwards: a process that
//! connects in between would stay connected.

use std::os::unix::net::UnixListener;
use std::path::Path;

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::error::{Error, Result};

/// The backlog of connections: the standard library's number.
const BACKLOG: i32 = 128;

/// Listens on a new socket at `path` that only its owner may connect to (mode 0600), whatever the
/// umask is.
///
/// The descriptor is close-on-exec. Nothing is durable. Errors: `EADDRINUSE` if the name exists,
/// `ENAMETOOLONG` from 108 bytes on; the name does not exist then, unless it did before.
pub fn listen_private(path: &Path) -> Result<UnixListener> {
    let failed = |errno: Errno| Error::new("listen on", path, errno);
    let address = SocketAddrUnix::new(path).map_err(failed)?;
    let socket = net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(failed)?;
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(failed)?;
    net::bind(&socket, &address).map_err(failed)?;
    if let Err(errno) = net::listen(&socket, BACKLOG) {
        // Nothing could connect: what stays is a dead socket.
        let _ = std::fs::remove_file(path);
        return Err(failed(errno));
    }
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::testing::Scratch;

    /// The mode of a socket that is created under `umask`, and what comes through it. In a thread
    /// with its own umask.
    fn made_under(umask: u32) -> (u32, Vec<u8>) {
        use std::io::{Read, Write};
        let make = move || {
            // SAFETY: only this thread's working directory, root and umask are no longer shared;
            // descriptors stay as they are.
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS) }.unwrap();
            rustix::process::umask(Mode::from_raw_mode(umask));
            let scratch = Scratch::new();
            let path = scratch.path().join("s");
            let listener = listen_private(&path).unwrap();
            let mode = std::fs::metadata(&path).unwrap().permissions().mode();
            let mut client = UnixStream::connect(&path).unwrap();
            client.write_all(b"hello").unwrap();
            drop(client);
            let mut said = Vec::new();
            listener.accept().unwrap().0.read_to_end(&mut said).unwrap();
            (mode & 0o7777, said)
        };
        std::thread::spawn(make).join().unwrap()
    }

    #[test]
    fn a_socket_is_private_whatever_the_umask_is() {
        for umask in [0, 0o022, 0o077] {
            assert_eq!(made_under(umask), (0o600, b"hello".to_vec()), "{umask:o}");
        }
    }

    #[test]
    fn a_name_that_exists_or_is_too_long_is_reported() {
        let scratch = Scratch::new();
        let path = scratch.path().join("s");
        let first = listen_private(&path).unwrap();
        assert!(listen_private(&path).unwrap_err().is(Errno::ADDRINUSE));
        drop(first);
        assert!(path.exists());
        let long = scratch.path().join("s".repeat(108));
        let error = listen_private(&long).unwrap_err();
        assert!(error.is(Errno::NAMETOOLONG), "{error:?}");
        assert!(!long.exists());
    }
}
