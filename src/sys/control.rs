//! `/dev/autofs`: the fourteen miscellaneous-device commands, one call path for all.
//!
//! Facts: `include/uapi/linux/auto_dev-ioctl.h`, `fs/autofs/dev-ioctl.c`, and docs/kernel-notes.md.

use super::{DevNum, Errno};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

/// One of the fourteen commands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum Command {
    /// Version of the interface.
    Version = 0x71,
    /// Protocol version of a mount.
    ProtoVer,
    /// Protocol sub-version of a mount.
    ProtoSubVer,
    /// Open the root of an autofs mount, even a covered one.
    OpenMount,
    /// Close what OpenMount opened.
    CloseMount,
    /// Answer a request with success.
    Ready,
    /// Answer a request with an error.
    Fail,
    /// Attach a pipe to a catatonic mount and own it.
    SetPipeFd,
    /// Detach the pipe and release every waiter with ENOENT.
    Catatonic,
    /// Set the idle timeout of the mount or of one directory.
    Timeout,
    /// Who last triggered the mount at a path.
    Requester,
    /// Ask the kernel to choose something idle and send an expire request.
    Expire,
    /// Could the mount be unmounted now?
    AskUmount,
    /// Is a path a mount point, and of what?
    IsMountPoint,
}

/// A request's token (`autofs_wqt_t`), unique over all mounts of the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, serde::Serialize, serde::Deserialize)]
pub struct Token(pub u32);

/// Who triggered a mount last, in the caller's user namespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Requester {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// How [`Control::expire`] chooses (flags of `AUTOFS_EXP_*`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ExpireHow {
    /// Ignore the timeout, take anything that is not busy.
    pub immediate: bool,
    /// Choose leaves of a tree rather than whole trees.
    pub leaves: bool,
    /// Even what is in use (protocol sub-version 5 has it).
    pub forced: bool,
}

/// A command failed. The variants say what the kernel meant by the errno for that command.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    // the sys helper completes: one variant for each meaning, each with the command (and path)
    /// Anything that has no meaning of its own for that command.
    #[error("autofs command {command:?} failed: {errno}")]
    Other {
        /// Which command.
        command: Command,
        /// The kernel's answer.
        errno: Errno,
    },
}

/// How a command reaches the kernel: from this process ([`Native`]) or from a held tracee
/// ([`super::tracee`]), because the kernel looks at the caller's process group.
pub trait Caller {
    /// `ioctl(/dev/autofs, command, buf)`; the kernel writes its answer into `buf`.
    fn ioctl(&self, command: Command, buf: &mut [u8]) -> Result<(), Errno>;
}

/// Calls from this process, by an open `/dev/autofs`.
#[derive(Debug)]
pub struct Native(OwnedFd);

/// The control device. `C` says whose process group the kernel sees.
#[derive(Debug)]
pub struct Control<C = Native> {
    caller: C,
}

/// The root of an autofs mount, opened by OPENMOUNT: reaches covered mounts, triggers nothing.
#[derive(Debug)]
pub struct MountFd(OwnedFd);
