//! Mount namespaces: entering them.

use super::{Errno, nix_errno};
use nix::sched::{CloneFlags, setns, unshare};
use rustix::fs::{Mode, OFlags};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// A mount namespace and the root directory that its paths begin at.
#[derive(Debug)]
pub struct Space {
    namespace: OwnedFd,
    /// `None`: the namespace's own root.
    root: Option<OwnedFd>,
}

impl Space {
    /// The one that the calling thread lives in.
    pub fn own() -> Result<Self, Errno> {
        Self::of("/proc/thread-self")
    }

    /// That of a process; ENOENT when there is none.
    pub fn of_process(pid: i32) -> Result<Self, Errno> {
        Self::of(&format!("/proc/{pid}"))
    }

    fn of(task: &str) -> Result<Self, Errno> {
        let root = open(format!("{task}/root").as_ref(), OFlags::PATH | OFlags::DIRECTORY)?;
        let namespace = open(format!("{task}/ns/mnt").as_ref(), OFlags::RDONLY)?;
        Ok(Self { namespace, root: Some(root) })
    }

    /// That of a namespace file. Whether it is one shows when it is entered: EINVAL.
    pub fn of_file(path: &Path) -> Result<Self, Errno> {
        Ok(Self { namespace: open(path, OFlags::RDONLY)?, root: None })
    }

    /// Move the calling thread there: namespace, root and working directory. Its process must have no other
    /// thread, or the thread must not share these with the others (EINVAL). EPERM without CAP_SYS_ADMIN and CAP_SYS_CHROOT.
    pub fn enter(&self) -> Result<(), Errno> {
        setns(&self.namespace, CloneFlags::CLONE_NEWNS).map_err(nix_errno)?;
        // setns went to the namespace's root.
        if let Some(root) = &self.root {
            rustix::process::fchdir(root)?;
            rustix::process::chroot(".")?;
        }
        Ok(())
    }

    /// Run `act` there, in a thread of its own. Descriptors that it opens are this process's. Errors are those of
    /// [`Space::enter`]; `act` has not run then.
    pub fn run<T: Send>(&self, act: impl FnOnce() -> T + Send) -> Result<T, Errno> {
        run_apart(|| {
            unshare(CloneFlags::CLONE_FS).map_err(nix_errno)?;
            self.enter()?;
            Ok(act())
        })
    }
}

/// Run `act` in a copy of this thread's mount namespace that ends with it, in a thread of its own.
pub(super) fn run_in_copy<T: Send>(act: impl FnOnce() -> T + Send) -> Result<T, Errno> {
    run_apart(|| {
        unshare_private()?;
        Ok(act())
    })
}

/// A thread can leave the file-system context that it shares with the others; it never returns to it.
fn run_apart<T: Send>(act: impl FnOnce() -> Result<T, Errno> + Send) -> Result<T, Errno> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, act);
        let thread = thread.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::AGAIN))?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Give the calling thread a copy of its mount namespace; nothing that happens in one shows in the other. (CLONE_NEWNS
/// unshares root and working directory, too.) EPERM without CAP_SYS_ADMIN.
pub fn unshare_private() -> Result<(), Errno> {
    unshare_as(super::mount::Propagation::Private)
}

/// The same, but what is mounted in the old one later shows in the copy, too.
pub fn unshare_slave() -> Result<(), Errno> {
    unshare_as(super::mount::Propagation::Slave)
}

fn unshare_as(propagation: super::mount::Propagation) -> Result<(), Errno> {
    use super::mount::{Change, MountError};
    unshare(CloneFlags::CLONE_NEWNS).map_err(nix_errno)?;
    Change::propagation(propagation, true).apply(rustix::fs::CWD, Path::new("/")).map_err(|error| match error
    {
        MountError::At { errno, .. } => errno,
        _ => Errno::INVAL,
    })
}

fn open(path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())
}

impl AsFd for Space {
    /// The namespace file.
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.namespace.as_fd()
    }
}
