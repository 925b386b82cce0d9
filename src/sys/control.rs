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
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, serde::Serialize, serde::Deserialize,
)]
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

impl Control<Native> {
    /// Open `/dev/autofs`.
    pub fn open() -> Result<Self, ControlError> {
        todo!()
    }

    /// OPENMOUNT: the root of the autofs mount with number `dev` at or below the top of `path`.
    pub fn open_mount(&self, path: &Path, dev: DevNum) -> Result<MountFd, ControlError> {
        let _ = (path, dev);
        todo!()
    }
}

/// The commands that take a mount's descriptor (`fd`: its number in the caller's table).
///
/// All but CATATONIC fail with [`ControlError::NotOwner`] unless the mount is catatonic or the
/// caller's process group owns it.
impl<C: Caller> Control<C> {
    /// With a caller of one's own.
    pub fn with_caller(caller: C) -> Self {
        Self { caller }
    }
    /// Major and minor of the interface (1.1 today).
    pub fn version(&self) -> Result<(u32, u32), ControlError> {
        todo!()
    }
    /// Protocol version and sub-version of the mount.
    pub fn protocol(&self, fd: BorrowedFd<'_>) -> Result<(u32, u32), ControlError> {
        let _ = fd;
        todo!()
    }
    /// READY: the request is done, its waiters go on.
    pub fn ready(&self, fd: BorrowedFd<'_>, token: Token) -> Result<(), ControlError> {
        let _ = (fd, token);
        todo!()
    }
    /// FAIL: the waiters get `errno` (sent negated; a positive status would become ENOENT).
    pub fn fail(&self, fd: BorrowedFd<'_>, token: Token, errno: Errno) -> Result<(), ControlError> {
        let _ = (fd, token, errno);
        todo!()
    }
    /// SETPIPEFD: attach `pipe` (a writable FIFO end) to a catatonic mount; the caller's group owns it.
    pub fn set_pipe(&self, fd: BorrowedFd<'_>, pipe: BorrowedFd<'_>) -> Result<(), ControlError> {
        let _ = (fd, pipe);
        todo!()
    }
    /// CATATONIC: detach the pipe; every waiter wakes with ENOENT.
    pub fn make_catatonic(&self, fd: BorrowedFd<'_>) -> Result<(), ControlError> {
        let _ = fd;
        todo!()
    }
    /// Set the mount's idle timeout in seconds (0: never); returns the old one.
    pub fn set_timeout(&self, fd: BorrowedFd<'_>, seconds: u64) -> Result<u64, ControlError> {
        let _ = (fd, seconds);
        todo!()
    }
    /// Set one key directory's idle timeout (indirect, sub-version 6); returns the old one. `None`
    /// for the mount's own timeout.
    pub fn set_dentry_timeout(
        &self,
        fd: BorrowedFd<'_>,
        name: &[u8],
        seconds: Option<u64>,
    ) -> Result<Option<u64>, ControlError> {
        let _ = (fd, name, seconds);
        todo!()
    }
    /// REQUESTER: who triggered `path` last.
    pub fn requester(&self, fd: BorrowedFd<'_>, path: &Path) -> Result<Requester, ControlError> {
        let _ = (fd, path);
        todo!()
    }
    /// EXPIRE: sends one expire request and waits for its answer. `false`: nothing is idle.
    pub fn expire(&self, fd: BorrowedFd<'_>, how: ExpireHow) -> Result<bool, ControlError> {
        let _ = (fd, how);
        todo!()
    }
    /// ASKUMOUNT: is nothing using the mount?
    pub fn may_umount(&self, fd: BorrowedFd<'_>) -> Result<bool, ControlError> {
        let _ = fd;
        todo!()
    }
}

/// What [`Control::is_mount_point`] found at a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MountPointInfo {
    /// Number of the superblock mounted there.
    pub dev: DevNum,
    /// Its magic (`statfs.f_type`).
    pub magic: u32,
}

impl<C: Caller> Control<C> {
    /// ISMOUNTPOINT by descriptor: is something mounted on this autofs root?
    pub fn is_covered(&self, fd: BorrowedFd<'_>) -> Result<bool, ControlError> {
        let _ = fd;
        todo!()
    }
    /// ISMOUNTPOINT by path: triggers nothing. `None` where nothing is mounted.
    pub fn is_mount_point(&self, path: &Path) -> Result<Option<MountPointInfo>, ControlError> {
        let _ = path;
        todo!()
    }
}

impl std::os::fd::AsFd for MountFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
