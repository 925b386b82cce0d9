//! Directories that a mount hides.

use super::{Errno, mount};
use rustix::fs::{Mode, OFlags};
use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// `struct file_handle`, with room for the largest handle (`MAX_HANDLE_SZ`).
#[repr(C)]
struct FileHandle {
    bytes: u32,
    kind: i32,
    handle: [u8; 128],
}

/// The directory `name` in `parent`, beneath whatever is mounted on it: an O_PATH descriptor on the same mount
/// as `parent`'s. What is attached to it goes on top of the mounts there, and no mount is entered, so that nothing
/// is triggered and nothing waits.
///
/// EOPNOTSUPP where the file system has no handles (autofs, overlayfs).
pub fn uncovered(parent: impl AsFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    // A walk always goes to the top. But in a copy of the parent's mount alone nothing is mounted there, and what
    // is found in it can be opened on the mount itself by its handle.
    let alone = mount::bind(&parent, Path::new(""), false).map_err(|error| match error {
        mount::MountError::At { errno, .. } => errno,
        _ => Errno::INVAL,
    })?;
    let name = CString::new(name.as_bytes()).map_err(|_| Errno::INVAL)?;
    let mut handle = FileHandle { bytes: 128, kind: 0, handle: [0; 128] };
    let mut mount_id = 0i32;
    // SAFETY: `name` is NUL-ended, `handle` has room for as many bytes as it says, and `mount_id` is an int.
    let result = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            alone.as_fd().as_raw_fd(),
            name.as_ptr(),
            &raw mut handle,
            &raw mut mount_id,
            0,
        )
    };
    if result < 0 {
        return Err(super::last_errno());
    }
    // An O_PATH descriptor would not do.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mount = rustix::fs::openat(parent, ".", flags, Mode::empty())?;
    // SAFETY: `handle` is as the kernel filled it.
    let opened = unsafe {
        libc::syscall(
            libc::SYS_open_by_handle_at,
            mount.as_raw_fd(),
            &raw const handle,
            (OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC).bits(),
        )
    };
    match i32::try_from(opened) {
        // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(super::last_errno()),
    }
}
