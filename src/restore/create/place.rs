//! Mount points: found, or made, beneath the root that the user gave.
//!
//! The paths come from the image. A path that leads through a symbolic link is refused, wherever the link
//! leads: the kernel prints paths of mounts without links, so one on the way means another layout here,
//! or an image that wants to get out of the root.

use super::{CreateError, StepError};
use crate::restore::rollback::UndoStack;
use crate::sys::Errno;
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// The root below which everything happens.
#[derive(Clone, Debug)]
pub struct Root {
    fd: Rc<OwnedFd>,
    /// As the user named it, for messages and to strip it from paths.
    path: PathBuf,
}

impl Root {
    /// The user's own choice of a directory, so links on the way to it are followed.
    pub fn open(path: &Path) -> Result<Self, CreateError> {
        let fd = rustix::fs::open(path, DIRECTORY, Mode::empty()).map_err(|errno| failed(path, errno))?;
        Ok(Self { fd: Rc::new(fd), path: path.to_owned() })
    }

    /// The directory at `path`, which begins with the root's. Missing ones are made when `make` is set;
    /// `None`: it is missing.
    pub fn directory(
        &self,
        path: &Path,
        make: bool,
        undo: &mut UndoStack<'_>,
    ) -> Result<Option<OwnedFd>, CreateError> {
        let inside = path.strip_prefix(&self.path).unwrap_or(path);
        match self.resolve(inside) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT) if !make => Ok(None),
            Err(Errno::NOENT) => {
                let name = inside.file_name().ok_or_else(|| failed(path, Errno::NOENT))?;
                let above = path.parent().unwrap_or(&self.path);
                let Some(parent) = self.directory(above, true, undo)? else { return Ok(None) };
                self.make(&parent, name, path, undo)?;
                self.resolve(inside).map(Some).map_err(|errno| failed(path, errno))
            }
            Err(errno) => Err(failed(path, errno)),
        }
    }

    fn make(
        &self,
        parent: &OwnedFd,
        name: &OsStr,
        path: &Path,
        undo: &mut UndoStack<'_>,
    ) -> Result<(), CreateError> {
        match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Ok(()),
            Err(errno) => return Err(StepError::at(path)(StepError::call("make the directory")(errno))),
        }
        let (root, name) = (self.clone(), name.to_owned());
        let above = path.parent().and_then(|path| path.strip_prefix(&self.path).ok());
        let above = above.unwrap_or(Path::new("")).to_owned();
        undo.push("remove the directory", path, move || {
            // Found again rather than kept open: there may be ten thousand.
            rustix::fs::unlinkat(root.resolve(&above)?, &name, AtFlags::REMOVEDIR)
        });
        Ok(())
    }

    fn resolve(&self, inside: &Path) -> Result<OwnedFd, Errno> {
        if inside.as_os_str().is_empty() {
            return rustix::io::fcntl_dupfd_cloexec(&*self.fd, 0);
        }
        resolve(&self.fd, inside)
    }
}

const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// A directory strictly beneath another (O_PATH). ELOOP when a link is on the way, EXDEV when it leads out.
pub fn resolve(root: impl AsFd, inside: &Path) -> Result<OwnedFd, Errno> {
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    // EAGAIN: something on the way was renamed meanwhile, and the kernel cannot be sure.
    loop {
        match rustix::fs::openat2(&root, inside, DIRECTORY, Mode::empty(), how) {
            Err(Errno::AGAIN) => continue,
            result => return result,
        }
    }
}

fn failed(path: &Path, errno: Errno) -> CreateError {
    match errno {
        Errno::LOOP | Errno::XDEV => CreateError::Link(path.to_owned()),
        Errno::NOTDIR => CreateError::NotADirectory(path.to_owned()),
        errno => StepError::at(path)(StepError::call("open the directory")(errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn root() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        (dir, root)
    }

    #[test]
    fn directories_are_made_and_removed_again() {
        let (dir, root) = root();
        fs::create_dir(dir.path().join("a")).unwrap();
        let mut undo = UndoStack::new();
        let path = dir.path().join("a/b/c");
        assert!(root.directory(&path, false, &mut undo).unwrap().is_none());
        assert!(root.directory(&path, true, &mut undo).unwrap().is_some());
        assert!(path.is_dir());
        assert!(undo.roll_back().is_empty());
        assert!(dir.path().join("a").is_dir() && !dir.path().join("a/b").exists());
    }

    #[test]
    fn no_path_leads_out_of_the_root() {
        let (dir, root) = root();
        let outside = tempfile::tempdir().unwrap();
        symlink(outside.path(), dir.path().join("absolute")).unwrap();
        symlink("../../etc", dir.path().join("relative")).unwrap();
        symlink("real", dir.path().join("inside")).unwrap();
        fs::create_dir(dir.path().join("real")).unwrap();
        let mut undo = UndoStack::new();
        for path in ["absolute", "absolute/x", "relative", "relative/x", "inside/x"] {
            let result = root.directory(&dir.path().join(path), true, &mut undo);
            assert!(matches!(result, Err(CreateError::Link(_))), "{path}: {result:?}");
        }
        assert!(matches!(resolve(&*root.fd, Path::new("../x")), Err(Errno::XDEV)));
        fs::write(dir.path().join("file"), "").unwrap();
        let result = root.directory(&dir.path().join("file/x"), true, &mut undo);
        assert!(matches!(result, Err(CreateError::NotADirectory(_))), "{result:?}");
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }
}
