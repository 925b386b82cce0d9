//! What a failed command means.

use super::{Command, DEVICE, Token, call::Call};
use crate::sys::Errno;
use std::path::PathBuf;

/// A command failed. The variants say what the kernel meant by the errno for that command.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// The device cannot be opened.
    #[error(
        "{DEVICE} cannot be opened: {0}; load the module (modprobe autofs4) or make the node \
         (mknod {DEVICE} c 10 235)"
    )]
    Unavailable(Errno),
    /// EPERM.
    #[error("{0} needs CAP_SYS_ADMIN in the initial user namespace")]
    NoPrivilege(Command),
    /// EACCES: the mount has a pipe, and the caller's process group is not its owner.
    #[error("{0} is for the owner's process group only, unless the mount is catatonic")]
    NotOwner(Command),
    /// EBADF: the descriptor of the mount or the pipe is not open.
    #[error("{0}: the descriptor is not open")]
    BadDescriptor(Command),
    /// EINVAL where it means nothing else: the descriptor is not on an autofs mount.
    #[error("{0}: the descriptor is not on an autofs mount")]
    NotAutofs(Command),
    /// READY, FAIL: nobody waits for this token (any longer).
    #[error("no request with token {} waits on this mount", .0.0)]
    UnknownToken(Token),
    /// SETPIPEFD on a mount that is not catatonic.
    #[error("the mount has a pipe already; make it catatonic first")]
    AlreadyHasPipe,
    /// SETPIPEFD by a process group of another pid namespace than the mount's owner group.
    #[error("the mount belongs to another pid namespace; attach it from a process in that one")]
    OtherPidNamespace,
    /// SETPIPEFD with something that is no FIFO open for writing.
    #[error("the descriptor is not the write end of a pipe")]
    NotAPipe,
    /// No mount of this kind at the path, or below what is mounted there.
    #[error("{command}: no such autofs mount at {}", path.display())]
    NoSuchMount {
        /// Which command.
        command: Command,
        /// Where it looked.
        path: PathBuf,
    },
    /// TIMEOUT of one key: there is no such directory.
    #[error("no directory {} in the mount", .0.display())]
    NoSuchKey(PathBuf),
    /// TIMEOUT of one key: the mount is not indirect, or the kernel is older than sub-version 6.
    #[error("this mount has no timeouts for single keys (indirect, sub-version 6 or newer has)")]
    NoKeyTimeouts,
    /// The path cannot be sent: a NUL inside, too long, or a slash missing or too many.
    #[error("{command} cannot take the path {}", path.display())]
    BadPath {
        /// Which command.
        command: Command,
        /// The path.
        path: PathBuf,
    },
    /// What has no meaning of its own for that command.
    #[error("{command}{} failed: {errno}", at(path))]
    Other {
        /// Which command.
        command: Command,
        /// The path, where the command takes one.
        path: Option<PathBuf>,
        /// The kernel's answer.
        errno: Errno,
    },
}

fn at(path: &Option<PathBuf>) -> String {
    path.as_ref().map(|p| format!(" at {}", p.display())).unwrap_or_default()
}

impl Call<'_> {
    /// What an errno means for this command. EINVAL could also mean that the descriptor is not on
    /// autofs; where it has a meaning of its own, that one is told.
    pub(super) fn meaning(&self, errno: Errno) -> ControlError {
        use Command::*;
        let command = self.command;
        match (command, errno) {
            (_, Errno::PERM) => ControlError::NoPrivilege(command),
            (_, Errno::BADF) => ControlError::BadDescriptor(command),
            (_, Errno::ACCESS) if self.fd >= 0 => ControlError::NotOwner(command),
            (Ready | Fail, Errno::INVAL) => ControlError::UnknownToken(Token(self.arguments.words().0)),
            (SetPipeFd, Errno::BUSY) => ControlError::AlreadyHasPipe,
            (SetPipeFd, Errno::INVAL) => ControlError::OtherPidNamespace,
            (SetPipeFd, Errno::PIPE) => ControlError::NotAPipe,
            (Timeout, Errno::NOENT) => ControlError::NoSuchKey(self.owned_path()),
            (Timeout, Errno::INVAL) if self.path.is_some() => ControlError::NoKeyTimeouts,
            (OpenMount | Requester | IsMountPoint, Errno::NOENT | Errno::NOTDIR | Errno::NXIO) => {
                ControlError::NoSuchMount { command, path: self.owned_path() }
            }
            (_, Errno::INVAL) if self.fd >= 0 => ControlError::NotAutofs(command),
            _ => ControlError::Other { command, path: self.path.map(PathBuf::from), errno },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_errno_means_different_things() {
        let meaning = |command, errno| Call::new(command).words(9, 0).meaning(errno);
        assert_eq!(meaning(Command::Ready, Errno::INVAL), ControlError::UnknownToken(Token(9)));
        assert_eq!(meaning(Command::SetPipeFd, Errno::INVAL), ControlError::OtherPidNamespace);
    }
}
