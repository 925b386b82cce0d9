//! From a checkpoint to an image directory: all of it, or nothing.
//!
//! The files are made in `.NAME.partial` beside the directory NAME, synced, and the whole directory is
//! renamed. What a killed dump left there is removed by the next one to the same place.

use super::checkpoint::Checkpoint;
use super::error::{ImageError, io};
use super::read::trust;
use super::{files, pack};
use rustix::fs::{
    AtFlags, CWD, Dir, FlockOperation, Mode, OFlags, RenameFlags, Stat, flock, fstat, fsync, mkdirat, openat,
    renameat, renameat_with, statat, syncfs, unlinkat,
};
use rustix::io::Errno;
use rustix::path::Arg;
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Up to this number of files each is synced by itself; more are synced with their file system, at
/// the cost of one journal commit instead of thousands.
const SYNC_ONE_BY_ONE: usize = 32;

/// What to do where the directory exists already. An empty directory is always taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Existing {
    /// Leave it alone and fail.
    #[default]
    Refuse,
    /// Replace it, if it holds an image and nothing else.
    Replace,
}

/// Write `checkpoint` to the directory `dir`, which appears complete and synced, or not at all.
pub fn write(dir: &Path, checkpoint: &Checkpoint, existing: Existing) -> Result<(), ImageError> {
    Draft::begin(dir, existing)?.commit(checkpoint)
}

/// An image that will be written: the place is known to be good and is held. Dropping it leaves
/// nothing.
#[derive(Debug)]
pub struct Draft {
    /// The directory that holds the image directory.
    parent: OwnedFd,
    parent_path: PathBuf,
    /// The image directory.
    name: OsString,
    existing: Existing,
    /// The directory that becomes the image; locked.
    fd: OwnedFd,
    partial: OsString,
    /// `partial` has become `name`.
    published: bool,
}

impl Draft {
    /// Claim the place `dir`. Fails where [`Draft::commit`] would not be able to put an image, so
    /// that this is known before anything else is done that would have to be undone.
    pub fn begin(dir: &Path, existing: Existing) -> Result<Self, ImageError> {
        let name = dir.file_name().ok_or_else(|| ImageError::BadDirectory { dir: dir.to_owned() })?;
        let parent_path = dir.parent().filter(|path| *path != "").unwrap_or(Path::new(".")).to_owned();
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent = openat(CWD, &parent_path, flags, Mode::empty()).map_err(io("open", &parent_path))?;
        let partial: OsString = [OsStr::new("."), name, OsStr::new(".partial")].into_iter().collect();
        let fd = claim(&parent, &partial, &parent_path.join(&partial), dir)?;
        let name = name.to_owned();
        let draft = Self { parent, parent_path, name, existing, fd, partial, published: false };
        draft.old_image()?;
        Ok(draft)
    }

    /// Write the image and put it in its place.
    pub fn commit(mut self, checkpoint: &Checkpoint) -> Result<(), ImageError> {
        let files = pack::pack(checkpoint)?;
        let one_by_one = files.len() <= SYNC_ONE_BY_ONE;
        for file in &files {
            self.write_file(file, one_by_one)?;
        }
        match one_by_one {
            true => fsync(&self.fd),
            false => syncfs(&self.fd),
        }
        .map_err(io("sync", &self.path_of(&self.partial)))?;
        self.publish()?;
        fsync(&self.parent).map_err(io("sync", &self.parent_path))
    }

    fn write_file(&self, file: &pack::File, sync: bool) -> Result<(), ImageError> {
        let path = &self.path_of(&self.partial).join(&file.name);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let mut fd = File::from(openat(&self.fd, &file.name, flags, mode).map_err(io("create", path))?);
        fd.write_all(&file.bytes).map_err(io("write", path))?;
        match sync {
            true => fd.sync_all().map_err(io("sync", path)),
            false => Ok(()),
        }
    }

    /// The rename. A plain one takes an absent or empty target and no other, in one step.
    fn publish(&mut self) -> Result<(), ImageError> {
        let target = &self.path_of(&self.name);
        if let Some(old) = self.old_image()? {
            renameat_with(&self.parent, &self.partial, &self.parent, &self.name, RenameFlags::EXCHANGE)
                .map_err(io("replace", target))?;
            // From here on `partial` is the old image, which the drop removes.
            self.fd = old;
            return Ok(());
        }
        renameat(&self.parent, &self.partial, &self.parent, &self.name).map_err(|errno| match errno {
            Errno::EXIST | Errno::NOTEMPTY => ImageError::Exists { dir: target.clone() },
            Errno::BUSY => ImageError::BadDirectory { dir: target.clone() },
            errno => io("create", target)(errno),
        })?;
        self.published = true;
        Ok(())
    }

    /// The image that is to be replaced: `None` where the target is absent or empty.
    fn old_image(&self) -> Result<Option<OwnedFd>, ImageError> {
        let target = &self.path_of(&self.name);
        let old = match open_dir(&self.parent, &self.name) {
            Ok(old) => old,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(io("open", target)(errno)),
        };
        let device = |fd| fstat(fd).map(|stat| stat.st_dev).map_err(io("look at", target));
        if device(&old)? != device(&self.parent)? {
            return Err(ImageError::BadDirectory { dir: target.clone() });
        }
        let names = names(&old).map_err(io("list", target))?;
        if names.is_empty() {
            return Ok(None);
        }
        let is_image = |name: &CString| name.to_str().is_ok_and(files::is_ours);
        match self.existing == Existing::Replace && names.iter().all(is_image) {
            true => Ok(Some(old)),
            false => Err(ImageError::Exists { dir: target.clone() }),
        }
    }

    fn path_of(&self, name: &OsStr) -> PathBuf {
        self.parent_path.join(name)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.published {
            // Nobody can be told here; the next dump to this place tries again.
            let _ = remove_files(&self.fd)
                .and_then(|()| unlinkat(&self.parent, &self.partial, AtFlags::REMOVEDIR));
        }
    }
}

/// Make the directory `partial` and lock it, or take over what a killed dump left.
fn claim(parent: &OwnedFd, partial: &OsStr, path: &Path, dir: &Path) -> Result<OwnedFd, ImageError> {
    match mkdirat(parent, partial, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(io("create", path)(errno)),
    }
    let busy = |_| ImageError::Busy { dir: dir.to_owned() };
    // Gone again: another dump has just published it.
    let fd = open_dir(parent, partial).map_err(|errno| match errno {
        Errno::NOENT => busy(errno),
        errno => io("open", path)(errno),
    })?;
    flock(&fd, FlockOperation::NonBlockingLockExclusive).map_err(busy)?;
    let stat = fstat(&fd).map_err(io("look at", path))?;
    let same = |other: Stat| (other.st_dev, other.st_ino) == (stat.st_dev, stat.st_ino);
    if !statat(parent, partial, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(same) {
        return Err(busy(Errno::AGAIN));
    }
    trust(path, &stat)?;
    remove_files(&fd).map_err(io("clear", path))?;
    Ok(fd)
}

fn open_dir(at: impl AsFd, path: impl Arg) -> rustix::io::Result<OwnedFd> {
    openat(at, path, OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

fn remove_files(dir: &OwnedFd) -> rustix::io::Result<()> {
    names(dir)?.iter().try_for_each(|name| unlinkat(dir, name, AtFlags::empty()))
}

/// What is in a directory, but `.` and `..`.
fn names(dir: &OwnedFd) -> rustix::io::Result<Vec<CString>> {
    let names = Dir::read_from(dir)?.map(|entry| Ok(entry?.file_name().to_owned()));
    let dots = |name: &CString| matches!(name.as_bytes(), b"." | b"..");
    names.filter(|name| !name.as_ref().is_ok_and(dots)).collect()
}
