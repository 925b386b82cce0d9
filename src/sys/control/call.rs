//! The structure that every command sends and gets back.
//!
//! ```text
//!  0        4        8      12        16          24
//!  | major  | minor  | size | ioctlfd | arguments | path\0 ...
//! ```

use super::{Caller, Command, ControlError};
use crate::sys::Errno;
use std::{
    os::{fd::RawFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

/// The interface version we send: every kernel with `/dev/autofs` accepts it, and a minor above the
/// kernel's own would be EINVAL.
const INTERFACE: (u32, u32) = (1, 0);

/// `sizeof(struct autofs_dev_ioctl)`.
pub(super) const HEADER: usize = 24;

/// A command with what it is given.
pub(super) struct Call<'a> {
    pub command: Command,
    pub fd: RawFd,
    pub arguments: Arguments,
    pub path: Option<&'a Path>,
}

impl<'a> Call<'a> {
    pub(super) fn new(command: Command) -> Self {
        Self { command, fd: -1, arguments: Arguments::default(), path: None }
    }

    pub(super) fn fd<C: Caller>(mut self, fd: C::Fd<'_>) -> Self {
        self.fd = C::number(fd);
        self
    }

    pub(super) fn path(mut self, path: &'a Path) -> Self {
        self.path = Some(path);
        self
    }

    pub(super) fn words(mut self, first: u32, second: u32) -> Self {
        self.arguments.0[..4].copy_from_slice(&first.to_ne_bytes());
        self.arguments.0[4..].copy_from_slice(&second.to_ne_bytes());
        self
    }

    pub(super) fn long(mut self, value: u64) -> Self {
        self.arguments = Arguments(value.to_ne_bytes());
        self
    }

    /// The structure as the kernel reads it. The size counts the path and its NUL, no padding:
    /// TIMEOUT takes the name's length from it.
    pub(super) fn encode(&self) -> Result<Vec<u8>, ControlError> {
        let path = self.path.map(|p| p.as_os_str().as_bytes());
        let size = HEADER + path.map_or(0, |p| p.len() + 1);
        if !path.is_none_or(|path| self.can_take(path)) {
            return Err(ControlError::BadPath { command: self.command, path: self.owned_path() });
        }
        let mut buf = Vec::with_capacity(size);
        for word in [INTERFACE.0, INTERFACE.1, size as u32, self.fd as u32] {
            buf.extend(word.to_ne_bytes());
        }
        buf.extend(self.arguments.0);
        buf.extend(path.unwrap_or_default());
        buf.resize(size, 0);
        Ok(buf)
    }

    /// The kernel's conditions: TIMEOUT takes a name, the others a path with at least one slash.
    fn can_take(&self, path: &[u8]) -> bool {
        path.len() < libc::PATH_MAX as usize
            && !path.contains(&0)
            && !path.is_empty()
            && path.contains(&b'/') == (self.command != Command::Timeout)
    }

    pub(super) fn owned_path(&self) -> PathBuf {
        self.path.map(PathBuf::from).unwrap_or_default()
    }

    pub(super) fn answer(&self, result: Result<i32, Errno>, buf: &[u8]) -> Result<Answer, ControlError> {
        result.map(|value| Answer::decode(value, buf)).map_err(|errno| self.meaning(errno))
    }
}

/// What came back.
pub(super) struct Answer {
    /// The result of the ioctl; only ISMOUNTPOINT has one.
    pub value: i32,
    /// Of the kernel's interface.
    pub version: (u32, u32),
    /// What OPENMOUNT has opened.
    pub fd: RawFd,
    pub arguments: Arguments,
}

impl Answer {
    fn decode(value: i32, buf: &[u8]) -> Self {
        let word = |at: usize| u32::from_ne_bytes([0, 1, 2, 3].map(|i| buf[at + i]));
        Self {
            value,
            version: (word(0), word(4)),
            fd: word(12) as RawFd,
            arguments: Arguments([0, 1, 2, 3, 4, 5, 6, 7].map(|i| buf[16 + i])),
        }
    }
}

/// The union: one or two 32-bit words, or one of 64 bits.
#[derive(Clone, Copy, Default)]
pub(super) struct Arguments([u8; 8]);

impl Arguments {
    pub(super) fn words(self) -> (u32, u32) {
        let [a, b, c, d, e, f, g, h] = self.0;
        (u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h]))
    }

    pub(super) fn long(self) -> u64 {
        u64::from_ne_bytes(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::control::Control;

    #[test]
    fn numbers_are_those_of_the_header() {
        assert_eq!(Command::Version.request(), 0xc018_9371);
        assert_eq!(Command::IsMountPoint.request(), 0xc018_937e);
        assert_eq!(Command::SetPipeFd.to_string(), "SETPIPEFD");
    }

    #[test]
    fn size_counts_the_path_and_its_nul() -> Result<(), ControlError> {
        let call = Call::new(Command::OpenMount).path(Path::new("/a")).words(7, 0);
        let buf = call.encode()?;
        assert_eq!(buf.len(), 27);
        assert_eq!(buf[8..12], 27u32.to_ne_bytes());
        assert_eq!(buf[12..16], (-1i32).to_ne_bytes());
        assert_eq!(buf[16..20], 7u32.to_ne_bytes());
        assert_eq!(&buf[24..], b"/a\0");
        Ok(())
    }

    #[test]
    fn paths_the_kernel_would_refuse_are_not_sent() {
        let bad = |command: Command, path: &str| {
            matches!(Call::new(command).path(Path::new(path)).encode(), Err(ControlError::BadPath { .. }))
        };
        assert!(bad(Command::OpenMount, "no-slash"));
        assert!(bad(Command::OpenMount, "/nul\0inside"));
        assert!(bad(Command::OpenMount, ""));
        assert!(bad(Command::OpenMount, &"/x".repeat(2048)));
        assert!(bad(Command::Timeout, "a/b"));
        assert!(!bad(Command::Timeout, "a"));
    }

    #[test]
    fn a_newer_interface_than_the_kernels_is_refused() -> Result<(), ControlError> {
        let control = Control::open()?;
        let mut buf = Call::new(Command::Version).encode()?;
        buf[4..8].copy_from_slice(&99u32.to_ne_bytes());
        let sent = buf.clone();
        assert_eq!(control.caller().ioctl(Command::Version, &mut buf), Err(Errno::INVAL));
        assert_eq!(buf, sent, "the kernel's own version is not told with the error");
        Ok(())
    }
}
