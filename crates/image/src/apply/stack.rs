//! The open directories from the root down to the applier's current one.
//!
//! Archives list a directory's entries together, so the directory of the next entry is nearly
//! always open already. Only the descriptors of one path are held. A directory's own time is
//! restored when it is left, for whatever reason it was entered: so nothing about directories has
//! to be remembered until the end, and memory doesn't grow with their number.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use vellum_sys::{Dir, Timespec, xattr};

use super::attributes::{DEFAULT_ACL, Object};

/// One open directory.
pub(super) struct Frame {
    pub dir: Dir,
    /// How many bytes of the path name this directory.
    path_bytes: usize,
    /// The time to restore.
    pub mtime: Timespec,
    /// Something in it was created or removed.
    pub dirty: bool,
    /// New objects in it get its group.
    pub set_gid: bool,
    /// New objects in it get an ACL.
    pub default_acl: bool,
    /// The applier has noted that this layer has something in it.
    pub noted: bool,
}

/// From the root (first) to the current directory (last). Never empty.
pub(super) struct Stack {
    frames: Vec<Frame>,
    /// The current directory's path, without a leading slash.
    path: Vec<u8>,
}

impl Stack {
    pub fn new(root: Dir) -> vellum_sys::Result<Self> {
        let mut stack = Self {
            frames: Vec::new(),
            path: Vec::new(),
        };
        stack.push_opened(root, 0, true)?;
        Ok(stack)
    }

    pub fn top(&self) -> &Frame {
        self.frames.last().expect("the root is never popped")
    }

    pub fn top_mut(&mut self) -> &mut Frame {
        self.frames.last_mut().expect("the root is never popped")
    }

    pub fn root(&self) -> &Dir {
        &self.frames[0].dir
    }

    /// Returns the path of `name` in the current directory.
    pub fn path_of(&self, name: &OsStr) -> Vec<u8> {
        let mut path = Vec::with_capacity(self.path.len() + 1 + name.len());
        path.extend_from_slice(&self.path);
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name.as_bytes());
        path
    }

    /// Returns the current directory's path.
    pub fn path(&self) -> &[u8] {
        &self.path
    }

    /// Returns true if the current directory has exactly these components.
    pub fn is_at(&self, components: &[&OsStr]) -> bool {
        self.common(components) == components.len() && self.frames.len() == components.len() + 1
    }

    /// Returns how many of `components` are open already.
    pub fn common(&self, components: &[&OsStr]) -> usize {
        let names = self.frames.windows(2).map(|pair| {
            let start = match pair[0].path_bytes {
                0 => 0,
                end => end + 1,
            };
            &self.path[start..pair[1].path_bytes]
        });
        names
            .zip(components)
            .take_while(|(open, wanted)| *open == wanted.as_bytes())
            .count()
    }

    /// Enters the open directory `dir`, called `name` in the current one, looking up what must be
    /// known about it.
    ///
    /// `acl_possible` says whether it can have a default ACL at all.
    pub fn push(&mut self, name: &OsStr, dir: Dir, acl_possible: bool) -> vellum_sys::Result<()> {
        let path = self.path_of(name);
        let path_bytes = path.len();
        self.push_opened(dir, path_bytes, acl_possible)?;
        self.path = path;
        Ok(())
    }

    fn push_opened(
        &mut self,
        dir: Dir,
        path_bytes: usize,
        acl_possible: bool,
    ) -> vellum_sys::Result<()> {
        let stat = dir.stat_self()?;
        let default_acl = acl_possible
            && xattr::get_fd(&dir, OsStr::new(DEFAULT_ACL)).is_ok_and(|acl| acl.is_some());
        self.frames.push(Frame {
            dir,
            path_bytes,
            mtime: stat.mtime,
            dirty: false,
            set_gid: stat.mode & 0o2000 != 0,
            default_acl,
            noted: false,
        });
        Ok(())
    }

    /// Leaves directories until `depth` components are open, restoring their times.
    pub fn pop_to(&mut self, depth: usize) -> vellum_sys::Result<()> {
        while self.frames.len() > depth + 1 {
            let Some(frame) = self.frames.pop() else {
                break;
            };
            self.path
                .truncate(self.frames.last().map_or(0, |parent| parent.path_bytes));
            if frame.dirty {
                Object::Dir(&frame.dir).set_times(frame.mtime)?;
            }
        }
        Ok(())
    }

    /// Leaves every directory, and restores the root's times too.
    pub fn finish(&mut self) -> vellum_sys::Result<()> {
        self.pop_to(0)?;
        let root = self.top();
        match root.dirty {
            true => Object::Dir(&root.dir).set_times(root.mtime),
            false => Ok(()),
        }
    }

    /// Calls `note` with the path of each open directory that was not noted yet, and notes it.
    pub fn note(&mut self, mut note: impl FnMut(&[u8])) {
        for frame in self.frames.iter_mut().rev() {
            if frame.noted {
                break;
            }
            frame.noted = true;
            note(&self.path[..frame.path_bytes]);
        }
    }
}
