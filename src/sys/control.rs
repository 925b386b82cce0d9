//! `/dev/autofs`: the fourteen miscellaneous-device commands, one call path for all.
//!
//! Every command sends one structure and gets it back: a header (interface version, total size,
//! descriptor of the mount), eight bytes of arguments, and for some a NUL-ended path:
//!
//! ```text
//!  0        4        8      12        16          24
//!  | major  | minor  | size | ioctlfd | arguments | path\0 ...
//! ```
//!
//! Source: `include/uapi/linux/auto_dev-ioctl.h`. What each errno means for each command is
//! [`ControlError`]; the table is in [`Call::meaning`].

use super::{DevNum, Errno};
use std::{
    ffi::OsStr,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

/// Where the device is.
pub const DEVICE: &str = "/dev/autofs";

/// The interface version we send: every kernel with `/dev/autofs` accepts it, and a minor above the
/// kernel's own would be EINVAL. What is newer shows in a mount's protocol sub-version instead.
const INTERFACE: (u32, u32) = (1, 0);

/// `sizeof(struct autofs_dev_ioctl)`.
const HEADER: usize = 24;

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

impl Command {
    /// The ioctl's number: `_IOWR(0x93, command, struct autofs_dev_ioctl)`.
    pub const fn request(self) -> u32 {
        const READ_WRITE: u32 = 3 << 30;
        READ_WRITE | (HEADER as u32) << 16 | 0x93 << 8 | self as u32
    }
}

/// The kernel's name of the command.
impl std::fmt::Display for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&format!("{self:?}").to_uppercase())
    }
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

impl ExpireHow {
    fn bits(self) -> u32 {
        u32::from(self.immediate) | u32::from(self.leaves) << 1 | u32::from(self.forced) << 2
    }
}

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

/// How a command reaches the kernel: from this process ([`Native`]) or from a held task
/// ([`super::tracee::Injected`]), because the kernel looks at the caller's process group and
/// at the caller's descriptors.
pub trait Caller {
    /// A descriptor in the caller's table.
    type Fd<'a>: Copy;
    /// The root of an autofs mount, opened in the caller's table.
    type Mount;

    /// `ioctl(/dev/autofs, command, buf)`; the kernel writes its answer into `buf`.
    fn ioctl(&self, command: Command, buf: &mut [u8]) -> Result<i32, Errno>;
    /// Several, in order and whatever their results.
    fn ioctl_all(&self, commands: &mut [(Command, Vec<u8>)]) -> Vec<Result<i32, Errno>> {
        commands.iter_mut().map(|(command, buf)| self.ioctl(*command, buf)).collect()
    }
    /// A descriptor's number.
    fn number(fd: Self::Fd<'_>) -> RawFd;
    /// Takes charge of a number that OPENMOUNT returned.
    ///
    /// # Safety
    /// `number` is open in the caller's table and nobody else owns it.
    unsafe fn own(number: RawFd) -> Self::Mount;
    /// The opposite of [`Self::own`].
    fn disown(mount: Self::Mount) -> RawFd;
}

/// Calls from this process, by an open `/dev/autofs`.
#[derive(Debug)]
pub struct Native(OwnedFd);

impl Caller for Native {
    type Fd<'a> = BorrowedFd<'a>;
    type Mount = MountFd;

    fn ioctl(&self, command: Command, buf: &mut [u8]) -> Result<i32, Errno> {
        // SAFETY: `buf` is as long as its size field says (`Call::encode`), and the kernel
        // touches no more than that.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), command.request() as _, buf.as_mut_ptr()) };
        if result < 0 {
            return Err(super::last_errno());
        }
        Ok(result)
    }

    fn number(fd: BorrowedFd<'_>) -> RawFd {
        fd.as_raw_fd()
    }

    unsafe fn own(number: RawFd) -> MountFd {
        // SAFETY: the caller's promise.
        MountFd(unsafe { OwnedFd::from_raw_fd(number) })
    }

    fn disown(mount: MountFd) -> RawFd {
        mount.0.into_raw_fd()
    }
}

/// The root of an autofs mount, opened by OPENMOUNT (CLOEXEC): reaches covered mounts, triggers
/// nothing.
#[derive(Debug)]
pub struct MountFd(OwnedFd);

impl AsFd for MountFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<MountFd> for OwnedFd {
    fn from(mount: MountFd) -> Self {
        mount.0
    }
}

/// For a descriptor of an autofs root that came from elsewhere; the kernel checks it at each command.
impl From<OwnedFd> for MountFd {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

/// The control device. `C` says whose process group and descriptors the kernel sees.
#[derive(Debug)]
pub struct Control<C = Native> {
    caller: C,
}

impl Control<Native> {
    /// Open `/dev/autofs`.
    pub fn open() -> Result<Self, ControlError> {
        use rustix::fs::{Mode, OFlags};
        rustix::fs::open(DEVICE, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map(Self::from)
            .map_err(ControlError::Unavailable)
    }
}

/// From an open `/dev/autofs`.
impl From<OwnedFd> for Control<Native> {
    fn from(device: OwnedFd) -> Self {
        Self::with_caller(Native(device))
    }
}

/// The open device, to be sent elsewhere.
impl AsFd for Control<Native> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.caller.0.as_fd()
    }
}

/// The commands about no mount in particular.
impl<C: Caller> Control<C> {
    /// With a caller of one's own.
    pub fn with_caller(caller: C) -> Self {
        Self { caller }
    }

    /// The caller.
    pub fn caller(&self) -> &C {
        &self.caller
    }

    /// VERSION: major and minor of the kernel's interface (1.1 today).
    pub fn version(&self) -> Result<(u32, u32), ControlError> {
        let answer = self.run(Call::new(Command::Version))?;
        Ok(answer.version)
    }

    /// OPENMOUNT: the root of the autofs mount with number `dev`, mounted at `path` or covered there.
    /// Triggers nothing at `path` itself, and needs no ownership.
    pub fn open_mount(&self, path: &Path, dev: DevNum) -> Result<C::Mount, ControlError> {
        let call = Call::new(Command::OpenMount).path(path).words(dev.to_kernel(), 0);
        let answer = self.run(call)?;
        // SAFETY: the kernel has just made this descriptor for the caller, and nobody else knows it.
        Ok(unsafe { C::own(answer.fd) })
    }

    /// CLOSEMOUNT: what dropping does for a [`MountFd`]; a mount opened in another process needs it.
    pub fn close_mount(&self, mount: C::Mount) -> Result<(), ControlError> {
        let mut call = Call::new(Command::CloseMount);
        call.fd = C::disown(mount);
        self.run(call).map(drop)
    }

    /// ISMOUNTPOINT by path: what is mounted on top at `path`; `None` where it is no mount point.
    /// Triggers nothing at `path` itself, and needs neither privilege nor ownership.
    pub fn is_mount_point(&self, path: &Path) -> Result<Option<MountPointInfo>, ControlError> {
        let answer = self.run(Call::new(Command::IsMountPoint).path(path))?;
        let (dev, magic) = answer.words();
        Ok((answer.value != 0).then(|| MountPointInfo { dev: DevNum::from_kernel(dev), magic }))
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

/// What [`Control::covered`] found on an autofs mount.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Covered {
    /// Nothing.
    No,
    /// A mount on the root itself, of a file system with this magic.
    Root(u32),
    /// Mounts somewhere below the root, none on it.
    Below,
}

/// The commands about one mount, by a descriptor of it in the caller's table.
///
/// All but CATATONIC fail with [`ControlError::NotOwner`] unless the mount is catatonic or the
/// caller's process group owns it.
impl<C: Caller> Control<C> {
    /// PROTOVER and PROTOSUBVER: protocol version and sub-version of the mount.
    pub fn protocol(&self, fd: C::Fd<'_>) -> Result<(u32, u32), ControlError> {
        let ask = |command| Ok(self.run(Call::new(command).fd::<C>(fd))?.words().0);
        Ok((ask(Command::ProtoVer)?, ask(Command::ProtoSubVer)?))
    }

    /// READY: the request is done, its waiters go on.
    pub fn ready(&self, fd: C::Fd<'_>, token: Token) -> Result<(), ControlError> {
        let call = Call::new(Command::Ready).fd::<C>(fd).words(token.0, 0);
        self.run(call).map(drop)
    }

    /// FAIL: the waiters get `errno` (sent negated; a positive status would become ENOENT).
    pub fn fail(&self, fd: C::Fd<'_>, token: Token, errno: Errno) -> Result<(), ControlError> {
        let status = -errno.raw_os_error();
        let call = Call::new(Command::Fail).fd::<C>(fd).words(token.0, status as u32);
        self.run(call).map(drop)
    }

    /// SETPIPEFD: attach `pipe` (a write end) to a catatonic mount; the caller's process group owns
    /// it from now on. The kernel puts the pipe into packet mode and clears O_NONBLOCK.
    pub fn set_pipe(&self, fd: C::Fd<'_>, pipe: C::Fd<'_>) -> Result<(), ControlError> {
        self.run(Call::set_pipe::<C>(fd, pipe)).map(drop)
    }

    /// SETPIPEFD of many mounts to one pipe: by an injected caller much faster than one after the other.
    pub fn set_pipe_all(&self, fds: &[C::Fd<'_>], pipe: C::Fd<'_>) -> Vec<Result<(), ControlError>> {
        let calls: Vec<_> = fds.iter().map(|fd| Call::set_pipe::<C>(*fd, pipe)).collect();
        self.run_all(&calls).into_iter().map(|answer| answer.map(drop)).collect()
    }

    /// CATATONIC: detach the pipe; every waiter wakes with ENOENT.
    pub fn make_catatonic(&self, fd: C::Fd<'_>) -> Result<(), ControlError> {
        self.run(Call::new(Command::Catatonic).fd::<C>(fd)).map(drop)
    }

    /// TIMEOUT: set the mount's idle timeout in seconds (0: never); returns the old one.
    pub fn set_timeout(&self, fd: C::Fd<'_>, seconds: u64) -> Result<u64, ControlError> {
        let call = Call::new(Command::Timeout).fd::<C>(fd).long(seconds);
        Ok(self.run(call)?.long())
    }

    /// TIMEOUT with a path: set the idle timeout of key directory `name` (0: never; `None`: the
    /// mount's own). Returns the one in force before; the kernel does not tell whose it was, and
    /// gives the mount's own for a key that never expires.
    pub fn set_dentry_timeout(
        &self,
        fd: C::Fd<'_>,
        name: &[u8],
        seconds: Option<u64>,
    ) -> Result<u64, ControlError> {
        let call = Call::new(Command::Timeout)
            .fd::<C>(fd)
            .path(Path::new(OsStr::from_bytes(name)))
            .long(seconds.unwrap_or(u64::MAX));
        Ok(self.run(call)?.long())
    }

    /// REQUESTER: who triggered the mount last. `path` is a place where this superblock is mounted
    /// (directories inside an indirect mount are none). Waits while the mount is being expired.
    pub fn requester(&self, fd: C::Fd<'_>, path: &Path) -> Result<Requester, ControlError> {
        Ok(self.run(Call::new(Command::Requester).fd::<C>(fd).path(path))?.requester())
    }

    /// REQUESTER of many mounts, each with its place.
    pub fn requester_all(&self, mounts: &[(C::Fd<'_>, &Path)]) -> Vec<Result<Requester, ControlError>> {
        let calls: Vec<_> =
            mounts.iter().map(|(fd, path)| Call::new(Command::Requester).fd::<C>(*fd).path(path)).collect();
        let requester = |answer: Result<Answer, _>| answer.map(|answer| answer.requester());
        self.run_all(&calls).into_iter().map(requester).collect()
    }

    /// EXPIRE: the kernel sends one expire request and this call waits for its answer. `false`:
    /// nothing is idle. An answer of FAIL comes back as [`ControlError::Other`].
    pub fn expire(&self, fd: C::Fd<'_>, how: ExpireHow) -> Result<bool, ControlError> {
        let call = Call::new(Command::Expire).fd::<C>(fd).words(how.bits(), 0);
        match self.run(call) {
            Ok(_) => Ok(true),
            Err(ControlError::Other { errno, .. }) if errno == Errno::AGAIN => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// ASKUMOUNT: is nothing using the mount?
    pub fn may_umount(&self, fd: C::Fd<'_>) -> Result<bool, ControlError> {
        let answer = self.run(Call::new(Command::AskUmount).fd::<C>(fd))?;
        Ok(answer.words().0 != 0)
    }

    /// ISMOUNTPOINT by descriptor: what covers the mount, whose place is `path`?
    pub fn covered(&self, fd: C::Fd<'_>, path: &Path) -> Result<Covered, ControlError> {
        let answer = self.run(Call::new(Command::IsMountPoint).fd::<C>(fd).path(path))?;
        let (_, magic) = answer.words();
        Ok(match (answer.value, magic) {
            (0, _) => Covered::No,
            (_, 0) => Covered::Below,
            (_, magic) => Covered::Root(magic),
        })
    }

    /// The one call path.
    fn run(&self, call: Call<'_>) -> Result<Answer, ControlError> {
        let mut buf = call.encode()?;
        let result = self.caller.ioctl(call.command, &mut buf);
        call.answer(result, &buf)
    }

    /// The same for many at once. What cannot be encoded is not sent.
    fn run_all(&self, calls: &[Call<'_>]) -> Vec<Result<Answer, ControlError>> {
        let mut commands = Vec::with_capacity(calls.len());
        let encoded: Vec<_> =
            calls.iter().map(|call| call.encode().map(|buf| commands.push((call.command, buf)))).collect();
        let results = self.caller.ioctl_all(&mut commands);
        let mut answers = results.into_iter().zip(commands);
        let answer = |(call, encoded): (&Call<'_>, Result<(), _>)| {
            encoded?;
            // There is one for each command; a caller that gives fewer was cut off.
            let (result, (_, buf)) = answers.next().unwrap_or((Err(Errno::SRCH), (call.command, Vec::new())));
            call.answer(result, &buf)
        };
        calls.iter().zip(encoded).map(answer).collect()
    }
}

/// A command with what it is given.
struct Call<'a> {
    command: Command,
    fd: RawFd,
    arguments: [u8; 8],
    path: Option<&'a Path>,
}

impl<'a> Call<'a> {
    fn new(command: Command) -> Self {
        Self { command, fd: -1, arguments: [0; 8], path: None }
    }

    fn set_pipe<C: Caller>(fd: C::Fd<'_>, pipe: C::Fd<'_>) -> Self {
        Self::new(Command::SetPipeFd).fd::<C>(fd).words(C::number(pipe) as u32, 0)
    }

    fn fd<C: Caller>(mut self, fd: C::Fd<'_>) -> Self {
        self.fd = C::number(fd);
        self
    }

    fn path(mut self, path: &'a Path) -> Self {
        self.path = Some(path);
        self
    }

    fn words(mut self, first: u32, second: u32) -> Self {
        self.arguments[..4].copy_from_slice(&first.to_ne_bytes());
        self.arguments[4..].copy_from_slice(&second.to_ne_bytes());
        self
    }

    fn long(mut self, value: u64) -> Self {
        self.arguments = value.to_ne_bytes();
        self
    }

    /// The structure as the kernel reads it. The size counts the path and its NUL, no padding:
    /// TIMEOUT takes the name's length from it.
    fn encode(&self) -> Result<Vec<u8>, ControlError> {
        let path = self.path.map(|p| p.as_os_str().as_bytes());
        let size = HEADER + path.map_or(0, |p| p.len() + 1);
        if !path.is_none_or(|path| self.can_take(path)) {
            return Err(ControlError::BadPath { command: self.command, path: self.owned_path() });
        }
        let mut buf = Vec::with_capacity(size);
        for word in [INTERFACE.0, INTERFACE.1, size as u32, self.fd as u32] {
            buf.extend(word.to_ne_bytes());
        }
        buf.extend(self.arguments);
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

    fn owned_path(&self) -> PathBuf {
        self.path.map(PathBuf::from).unwrap_or_default()
    }

    fn answer(&self, result: Result<i32, Errno>, buf: &[u8]) -> Result<Answer, ControlError> {
        result.map(|value| Answer::decode(value, buf)).map_err(|errno| self.meaning(errno))
    }

    /// What an errno means for this command. EINVAL could also mean that the descriptor is not on
    /// autofs; where it has a meaning of its own, that one is told.
    fn meaning(&self, errno: Errno) -> ControlError {
        use Command::*;
        let command = self.command;
        match (command, errno) {
            (_, Errno::PERM) => ControlError::NoPrivilege(command),
            (_, Errno::BADF) => ControlError::BadDescriptor(command),
            (_, Errno::ACCESS) if self.fd >= 0 => ControlError::NotOwner(command),
            (Ready | Fail, Errno::INVAL) => {
                ControlError::UnknownToken(Token(u32::from_ne_bytes([0, 1, 2, 3].map(|i| self.arguments[i]))))
            }
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

/// What came back.
struct Answer {
    value: i32,
    version: (u32, u32),
    fd: RawFd,
    arguments: [u8; 8],
}

impl Answer {
    fn decode(value: i32, buf: &[u8]) -> Self {
        let word = |at: usize| u32::from_ne_bytes([0, 1, 2, 3].map(|i| buf[at + i]));
        Self {
            value,
            version: (word(0), word(4)),
            fd: word(12) as RawFd,
            arguments: [0, 1, 2, 3, 4, 5, 6, 7].map(|i| buf[16 + i]),
        }
    }

    fn requester(&self) -> Requester {
        let (uid, gid) = self.words();
        Requester { uid, gid }
    }

    fn long(&self) -> u64 {
        u64::from_ne_bytes(self.arguments)
    }

    fn words(&self) -> (u32, u32) {
        let [a, b, c, d, e, f, g, h] = self.arguments;
        (u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let refused = control.caller.ioctl(Command::Version, &mut buf);
        assert_eq!(refused, Err(Errno::INVAL));
        Ok(())
    }

    #[test]
    fn an_errno_means_different_things() {
        let meaning = |command, errno| Call::new(command).words(9, 0).meaning(errno);
        assert_eq!(meaning(Command::Ready, Errno::INVAL), ControlError::UnknownToken(Token(9)));
        assert_eq!(meaning(Command::SetPipeFd, Errno::INVAL), ControlError::OtherPidNamespace);
    }
}
