//! The socket that a server listens on: one that systemd hands over, or one of our own making.
//!
//! Ours is for root alone. One that nobody answers is a dead server's, and is replaced; where somebody answers, nothing is touched.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// A socket that is listened on. Dropped, it is removed if it is our own.
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
            .map_err(Error::io("listen on", path))
    }

    /// Returns whether systemd handed it over.
    pub fn is_inherited(&self) -> bool {
        self.ours.is_none()
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        if let Some(path) = &self.ours {
            // A dead socket is replaced by the next server.
            let _ = fs::remove_file(path);
        }
    }
}

/// Listens on the socket that systemd hands over, or makes one at `path`, with its directory if need be.
///
/// Errors: `Invalid` if something else is at `path`, or somebody answers there.
pub fn listen(path: &Path) -> Result<Listening> {
    if let Some(fd) = vellum_sys::activation::inherited().into_iter().next() {
        return Ok(Listening {
            listener: UnixListener::from(fd),
            ours: None,
        });
    }
    listen_at(path)
}

/// Makes a socket at `path`, with its directory if need be, whatever systemd hands over. As [`listen`] otherwise.
pub fn listen_at(path: &Path) -> Result<Listening> {
    make_room(path)?;
    let listener = UnixListener::bind(path).map_err(Error::io("listen on", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
        .map_err(Error::io("protect", path))?;
    Ok(Listening {
        listener,
        ours: Some(path.to_path_buf()),
    })
}

fn make_room(path: &Path) -> Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
    }
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io("look at", path)(e)),
    };
    if !found.file_type().is_socket() {
        return Err(Error::Invalid {
            what: format!("{} is there and is no socket", path.display()),
            hint: Some("name another one with --socket".into()),
        });
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(Error::Invalid {
            what: format!("somebody serves {} already", path.display()),
            hint: Some("end that server, or name another socket with --socket".into()),
        }),
        Err(_) => fs::remove_file(path).map_err(Error::io("remove", path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert!(listen(&path).unwrap_err().to_string().contains("no socket"));
    }
}
