//! Other processes: pidfds, copies of their descriptors, start times.

use super::Errno;
use std::os::fd::{OwnedFd, RawFd};

/// A process that cannot be mistaken for another with the same number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize, serde::Deserialize)]
pub struct ProcessId {
    /// Thread group id, in our pid namespace.
    pub pid: i32,
    /// Field 22 of `/proc/PID/stat`: clock ticks after boot.
    pub start_time: u64,
}

/// A copy of descriptor `fd` of process `pid` (pidfd_getfd: same open file description), CLOEXEC.
pub fn copy_fd(pid: i32, fd: RawFd) -> Result<OwnedFd, Errno> {
    let _ = (pid, fd);
    todo!()
}

/// A write end of the pipe whose read end is `fd` of process `pid` (reopens `/proc/PID/fd/FD`).
pub fn reopen_write_end(pid: i32, fd: RawFd) -> Result<OwnedFd, Errno> {
    let _ = (pid, fd);
    todo!()
}
