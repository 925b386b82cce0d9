//! `/dev/autofs`: the fourteen miscellaneous-device commands, one call path for all.
//!
//! | command | method | mount | path | errors of its own |
//! |---|---|---|---|---|
//! | VERSION | [`Control::version`] | | | |
//! | PROTOVER, PROTOSUBVER | [`Control::protocol`] | yes | | |
//! | OPENMOUNT | [`Control::open_mount`] | | where it is mounted | [`NoSuchMount`](ControlError::NoSuchMount) |
//! | CLOSEMOUNT | [`Control::close_mount`] | yes | | |
//! | READY, FAIL | [`Control::ready`], [`Control::fail`] | yes | | [`UnknownToken`](ControlError::UnknownToken) |
//! | SETPIPEFD | [`Control::set_pipe`] | yes | | [`AlreadyHasPipe`](ControlError::AlreadyHasPipe), [`NotAPipe`](ControlError::NotAPipe), [`OtherPidNamespace`](ControlError::OtherPidNamespace) |
//! | CATATONIC | [`Control::make_catatonic`] | yes | | |
//! | TIMEOUT | [`Control::set_timeout`] | yes | | |
//! | | [`Control::set_dentry_timeout`] | yes | a key, without slash | [`NoSuchKey`](ControlError::NoSuchKey), [`NoKeyTimeouts`](ControlError::NoKeyTimeouts) |
//! | REQUESTER | [`Control::requester`] | yes | where it is mounted | [`NoSuchMount`](ControlError::NoSuchMount) |
//! | EXPIRE | [`Control::expire`] | yes | | the master's FAIL |
//! | ASKUMOUNT | [`Control::may_umount`] | yes | | |
//! | ISMOUNTPOINT | [`Control::is_mount_point`] | | any | [`NoSuchMount`](ControlError::NoSuchMount) |
//! | | [`Control::covered`] | yes | where it is mounted | [`NoSuchMount`](ControlError::NoSuchMount) |
//!
//! All need CAP_SYS_ADMIN in the initial user namespace but VERSION and ISMOUNTPOINT. Those that take a mount
//! need its ownership ([`ControlError::NotOwner`]) but CATATONIC and CLOSEMOUNT. All have been there since the first
//! version of the interface; only timeouts of keys came later (protocol sub-version 6).
//!
//! Source: `include/uapi/linux/auto_dev-ioctl.h`.

mod call;
mod error;

pub use error::ControlError;

use super::{DevNum, Errno};
use call::{Answer, Call};
use std::{
    ffi::OsStr,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

/// Where the device is.
pub const DEVICE: &str = "/dev/autofs";

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
        READ_WRITE | (call::HEADER as u32) << 16 | 0x93 << 8 | self as u32
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

impl From<Answer> for Requester {
    fn from(answer: Answer) -> Self {
        let (uid, gid) = answer.arguments.words();
        Self { uid, gid }
    }
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
    /// Its descriptor.
    fn borrow(mount: &Self::Mount) -> Self::Fd<'_>;
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

    fn borrow(mount: &MountFd) -> BorrowedFd<'_> {
        mount.as_fd()
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
        let (dev, magic) = answer.arguments.words();
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
        let ask = |command| Ok(self.run(Call::new(command).fd::<C>(fd))?.arguments.words().0);
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
        let call = Call::new(Command::SetPipeFd).fd::<C>(fd).words(C::number(pipe) as u32, 0);
        self.run(call).map(drop)
    }

    /// SETPIPEFD of many mounts to one pipe: by an injected caller much faster than one after the other.
    pub fn set_pipe_all(&self, fds: &[C::Fd<'_>], pipe: C::Fd<'_>) -> Vec<Result<(), ControlError>> {
        let number = C::number(pipe) as u32;
        let call = |fd: &C::Fd<'_>| Call::new(Command::SetPipeFd).fd::<C>(*fd).words(number, 0);
        let calls: Vec<_> = fds.iter().map(call).collect();
        self.run_all(&calls).into_iter().map(|answer| answer.map(drop)).collect()
    }

    /// CATATONIC: detach the pipe; every waiter wakes with ENOENT.
    pub fn make_catatonic(&self, fd: C::Fd<'_>) -> Result<(), ControlError> {
        self.run(Call::new(Command::Catatonic).fd::<C>(fd)).map(drop)
    }

    /// TIMEOUT: set the mount's idle timeout in seconds (0: never); returns the old one.
    pub fn set_timeout(&self, fd: C::Fd<'_>, seconds: u64) -> Result<u64, ControlError> {
        let call = Call::new(Command::Timeout).fd::<C>(fd).long(seconds);
        Ok(self.run(call)?.arguments.long())
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
        Ok(self.run(call)?.arguments.long())
    }

    /// REQUESTER: who triggered the mount last. `path` must be a root of a mount of this superblock. For a key
    /// directory of an indirect mount that is `/proc/self/fd/N/.`, where N is a detached bind mount of it
    /// ([`super::mount::bind`]). Waits while the mount is being expired.
    pub fn requester(&self, fd: C::Fd<'_>, path: &Path) -> Result<Requester, ControlError> {
        Ok(self.run(Call::new(Command::Requester).fd::<C>(fd).path(path))?.into())
    }

    /// REQUESTER of many mounts, each with its place.
    pub fn requester_all(&self, mounts: &[(C::Fd<'_>, &Path)]) -> Vec<Result<Requester, ControlError>> {
        let calls: Vec<_> =
            mounts.iter().map(|(fd, path)| Call::new(Command::Requester).fd::<C>(*fd).path(path)).collect();
        let requester = |answer: Result<Answer, _>| answer.map(|answer| answer.into());
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
        Ok(answer.arguments.words().0 != 0)
    }

    /// ISMOUNTPOINT by descriptor: what covers the mount, whose place is `path`?
    pub fn covered(&self, fd: C::Fd<'_>, path: &Path) -> Result<Covered, ControlError> {
        let answer = self.run(Call::new(Command::IsMountPoint).fd::<C>(fd).path(path))?;
        let (_, magic) = answer.arguments.words();
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
