//! Giving mounts a master: hold the visitors, CATATONIC, SETPIPEFD in the master's context, let go.

use crate::sys::{DevNum, control::MountFd};
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

/// A mount to attach: where it is and its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Where.
    pub path: PathBuf,
    /// Superblock number.
    pub dev: DevNum,
}

/// Attaching failed; the mounts that were attached before are catatonic again, the visitors run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {}

/// Make this process (its group) the owner of every target, requests written to `pipe`.
/// Returns the opened roots in the order of `targets`.
pub fn attach_here(targets: &[Target], pipe: BorrowedFd<'_>) -> Result<Vec<MountFd>, AttachError> {
    let _ = (targets, pipe);
    todo!()
}

/// Make process `master` the owner; its read end of the pipe is its descriptor `read_fd`.
pub fn attach_to(master: i32, read_fd: i32, targets: &[Target]) -> Result<(), AttachError> {
    let _ = (master, read_fd, targets);
    todo!()
}
