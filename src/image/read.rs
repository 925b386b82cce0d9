//! From an image directory to a checkpoint.

use super::checkpoint::Checkpoint;
use super::error::{Distrust, ImageError, io};
use super::{files, pack};
use rustix::fs::{CWD, FileType, Mode, OFlags, Stat, fstat, openat};
use rustix::io::Errno;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;

/// Read and check the image in `dir`. Other files in that directory are ignored.
///
/// Refused, before anything is parsed: files and directories that a third user owns or can write,
/// symlinks and everything else that is not a regular file.
pub fn read(dir: &Path) -> Result<Checkpoint, ImageError> {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = openat(CWD, dir, flags, Mode::empty()).map_err(io("open", dir))?;
    trust(dir, &fstat(&fd).map_err(io("look at", dir))?)?;
    pack::unpack(|name, limit| read_file(dir, &fd, name, limit))
}

fn read_file(dir: &Path, fd: &OwnedFd, name: &str, limit: u64) -> Result<Vec<u8>, ImageError> {
    let path = &dir.join(name);
    // NONBLOCK: a FIFO in the place of a file is refused below, not waited for.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = openat(fd, name, flags, Mode::empty()).map_err(|errno| match errno {
        Errno::NOENT if name == files::INVENTORY => {
            ImageError::NotAnImage { dir: dir.to_owned(), file: files::INVENTORY }
        }
        Errno::NOENT => ImageError::Missing { file: name.to_owned() },
        Errno::LOOP => ImageError::Untrusted { path: path.clone(), why: Distrust::NotRegular },
        errno => io("open", path)(errno),
    })?;
    let stat = fstat(&file).map_err(io("look at", path))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(ImageError::Untrusted { path: path.clone(), why: Distrust::NotRegular });
    }
    trust(path, &stat)?;
    let size = stat.st_size as u64;
    if size > limit {
        return Err(match name {
            files::INVENTORY => ImageError::TooLarge { file: name.to_owned(), size, limit },
            _ => ImageError::Length { file: name.to_owned(), found: size, expected: limit },
        });
    }
    let mut bytes = Vec::with_capacity(size as usize);
    // A file that grows meanwhile is not followed beyond its limit.
    File::from(file).take(limit).read_to_end(&mut bytes).map_err(io("read", path))?;
    Ok(bytes)
}

/// Only root and the caller may have written it.
pub(super) fn trust(path: &Path, stat: &Stat) -> Result<(), ImageError> {
    let distrust = |why| Err(ImageError::Untrusted { path: path.to_owned(), why });
    if stat.st_uid != 0 && stat.st_uid != rustix::process::geteuid().as_raw() {
        return distrust(Distrust::Owner(stat.st_uid));
    }
    match stat.st_mode & 0o7777 {
        mode if mode & 0o022 != 0 => distrust(Distrust::Mode(mode)),
        _ => Ok(()),
    }
}
