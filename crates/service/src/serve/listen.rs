//! The socket that a server listens on: one from systemd, or one of its own.
//!
//! Its own is for root only, from the first moment on. A socket that no process answers is a dead
//! server's, and is replaced; if a process answers, nothing is touched.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// A listening socket. Dropping it removes it if it is our own.
#[derive(Debug)]
pub struct Listening {
    listener: UnixListener,
    ours: Option<PathBuf>,
}

impl Listening {
    /// Returns a second descriptor of the socket.
    pub fn listener(&self) -> Result<UnixListener> {
        let path = self.ours.clone().unwrap_or_default();
        self.listener
            .try_clone()
            .map_err(failed("listen on", &path))
    }

    /// Returns whether it came from systemd.
    pub fn is_inherited(&self) -> bool {
        self.ours.is_none()
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        if let Some(path) = &self.ours {
            // The next server replaces a dead socket.
            let _ = fs::remove_file(path);
        }
    }
}

/// Listens on the socket from systemd, or creates one at `path`, with its directory if needed.
///
/// Errors: `Invalid` if something else is at `path`, or a process answers there.
pub fn listen(path: &Path) -> Result<Listening> {
    if let Some(fd) = vellum_sys::activation::inherited().into_iter().next() {
        return Ok(Listening {
            listener: UnixListener::from(fd),
            ours: None,
        });
    }
    listen_at(path)
}

/// Creates a socket at `path`, with its directory if needed, even if systemd has passed one.
/// Otherwise like [`listen`].
pub fn listen_at(path: &Path) -> Result<Listening> {
    make_room(path)?;
    let listener = vellum_sys::socket::listen_private(path).map_err(|error| Error::Socket {
        action: error.op,
        path: error.path,
        source: error.source,
    })?;
    Ok(Listening {
        listener,
        ours: Some(path.to_path_buf()),
    })
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::Socket {
        action,
        path,
        source,
    }
}

fn make_room(path: &Path) -> Result<()> {
    if let Some(dir) = path.parent() {
        // No other user may put another socket there, whatever the umask is.
        let mut made = fs::DirBuilder::new();
        made.recursive(true).mode(0o755);
        made.create(dir).map_err(failed("create", dir))?;
    }
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed("stat", path)(e)),
    };
    if !found.file_type().is_socket() {
        return Err(Error::Invalid {
            what: format!("{} exists, but is not a socket", path.display()),
            hint: Some("name another one with --socket".into()),
        });
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(Error::Invalid {
            what: format!("another server already listens on {}", path.display()),
            hint: Some("stop that server, or name another socket with --socket".into()),
        }),
        Err(_) => fs::remove_file(path).map_err(failed("remove", path)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn socket_errors_have_a_hint() {
        let dir = tempfile::tempdir().unwrap();
        let long = dir.path().join("s".repeat(120));
        let error = listen_at(&long).unwrap_err();
        assert!(
            error.to_string().starts_with("cannot listen on "),
            "{error}"
        );
        assert!(error.hint().unwrap().contains("107 bytes"), "{error:?}");
        fs::write(dir.path().join("file"), "x").unwrap();
        let error = listen_at(&dir.path().join("file/sub/s")).unwrap_err();
        assert!(error.to_string().starts_with("cannot create "), "{error}");
        assert!(error.hint().unwrap().contains("another path"), "{error:?}");
    }

    #[test]
    fn a_dead_socket_is_replaced_and_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/s");
        let first = listen(&path).unwrap();
        assert!(!first.is_inherited());
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(listen(&path).unwrap_err().to_string().contains("already"));
        drop(first);
        assert!(!path.exists());
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        drop(listen(&path).unwrap());
        fs::write(&path, "x").unwrap();
        assert!(
            listen(&path)
                .unwrap_err()
                .to_string()
                .contains("not a socket")
        );
    }
}
