//! Directories and symbolic links inside a mount, as its master made them.

use super::StepError;
use crate::discover::facts::TreeEntry;
use crate::image::checkpoint::DumpedMount;
use crate::sys::Errno;
use crate::sys::control::{Control, ControlError};
use rustix::fs::{AtFlags, Gid, Mode, Uid};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The mode of a root directory that nobody has changed.
const ROOT_MODE: u32 = 0o755;

/// Make everything inside the mount with root directory `root`. The caller is its owner.
pub(super) fn fill(dumped: &DumpedMount, root: BorrowedFd<'_>, control: &Control) -> Result<(), StepError> {
    if dumped.root_mode != ROOT_MODE {
        rustix::fs::fchmod(root, Mode::from_raw_mode(dumped.root_mode))
            .map_err(StepError::call("set the mode of the root directory"))?;
    }
    for entry in &dumped.tree {
        make(entry, root)?;
        // What is made belongs to the owner of the root directory.
        if (entry.uid, entry.gid) != (dumped.root_uid, dumped.root_gid) {
            let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
            rustix::fs::chownat(root, &entry.path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(StepError::call("set the owner of a directory inside"))?;
        }
        if let Some(seconds) = entry.timeout {
            match control.set_dentry_timeout(root, entry.path.as_os_str().as_bytes(), Some(seconds)) {
                // An older kernel: the mount's timeout applies.
                Err(ControlError::NoKeyTimeouts) => {}
                result => drop(result?),
            }
        }
    }
    Ok(())
}

/// A directory that is there already (a key with a requester) gets its mode. The paths were checked: they
/// lead through no link (`image::check`).
fn make(entry: &TreeEntry, root: BorrowedFd<'_>) -> Result<(), StepError> {
    let mode = Mode::from_raw_mode(entry.mode);
    match &entry.symlink {
        Some(target) => rustix::fs::symlinkat(target, root, &entry.path)
            .map_err(StepError::call("make a symbolic link inside")),
        None => match rustix::fs::mkdirat(root, &entry.path, mode) {
            Err(Errno::EXIST) => chmod(&entry.path, root, mode),
            // mkdir does not set these.
            Ok(()) if entry.mode & 0o6000 != 0 => chmod(&entry.path, root, mode),
            result => result,
        }
        .map_err(StepError::call("make a directory inside")),
    }
}

fn chmod(path: &Path, root: BorrowedFd<'_>, mode: Mode) -> Result<(), Errno> {
    rustix::fs::chmodat(root, path, mode, AtFlags::empty())
}
