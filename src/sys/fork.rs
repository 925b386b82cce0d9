//! Child processes that run this program's own code, without exec.

use super::process::{open_pidfd, runs};
use super::{Errno, io_errno, nix_errno};
use rustix::fs::{Mode, OFlags};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};
use rustix::process::{Pid, Signal, WaitOptions};
use serde::{Serialize, de::DeserializeOwned};
use std::ffi::c_void;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr;

/// A child that was forked. Dropping it kills and reaps it.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    pidfd: OwnedFd,
    reaped: bool,
}

/// Run `body` in a copy of this process, which ends with its result as exit code; 101 after a panic.
///
/// EDEADLK when this process has several threads: the copy has only one, and a lock that another thread
/// holds would never be released in it.
pub fn fork(body: impl FnOnce() -> u8) -> Result<Child, Errno> {
    if !has_one_thread()? {
        return Err(Errno::DEADLK);
    }
    let pid = copy(body)?;
    // Our own child that was not reaped: the number is its.
    Ok(Child { pid, pidfd: open_pidfd(pid.as_raw_nonzero().get())?, reaped: false })
}

/// [`fork`], in a process that has one thread: the number of the copy.
fn copy(body: impl FnOnce() -> u8) -> Result<Pid, Errno> {
    // SAFETY: this is the only thread, so no lock or other state is half changed in the copy.
    match unsafe { libc::fork() } {
        -1 => Err(super::last_errno()),
        0 => {
            let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).unwrap_or(101);
            // SAFETY: always sound. No exit handlers: they belong to the parent.
            unsafe { libc::_exit(code.into()) }
        }
        number => Pid::from_raw(number).ok_or(Errno::SRCH),
    }
}

/// Run `body` in a copy of this process that is nobody's child of ours; returns its number. Errors are those of [`fork`].
///
/// A child in between forks it and ends: memory is copied once.
pub fn fork_away(body: impl FnOnce()) -> Result<Pid, Errno> {
    let copied = lend(|| {
        copy(|| {
            body();
            0
        })
    })?;
    copied.unwrap_or(Err(Errno::SRCH))
}

/// Run `body` in a child that uses our own memory and descriptors, while we sleep (as in vfork(2)): it has a number, namespaces, a
/// session and a working directory of its own. `None` when it was killed, or `body` panicked: what it was about to change is half changed,
/// and so may the allocator be. It sends no signal when it ends: no handler waits for it before we do. Errors are those of [`fork`].
pub fn lend<T>(body: impl FnOnce() -> T) -> Result<Option<T>, Errno> {
    use nix::sys::wait::{WaitPidFlag, waitpid};
    if !has_one_thread()? {
        return Err(Errno::DEADLK);
    }
    let mut body = Some(body);
    let mut result = None;
    let mut lent = || result = body.take().map(|body| body());
    let mut lent: &mut dyn FnMut() = &mut lent;
    let stack = Stack::new()?;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_FILES;
    // SAFETY: the child has a stack of its own, and nobody else uses the memory that it shares: our only thread sleeps. What it is given
    // lives longer than that.
    let child = unsafe { libc::clone(run_lent, stack.top(), flags, (&raw mut lent).cast()) };
    if child < 0 {
        return Err(super::last_errno());
    }
    let child = nix::unistd::Pid::from_raw(child);
    rustix::io::retry_on_intr(|| waitpid(child, Some(WaitPidFlag::__WALL)).map_err(nix_errno))?;
    Ok(result)
}

/// In the child of [`lend`]. A panic ends it: none leaves a function of C.
extern "C" fn run_lent(lent: *mut c_void) -> libc::c_int {
    // SAFETY: `lend` gives a pointer to this, and sleeps.
    let lent = unsafe { &mut *lent.cast::<&mut dyn FnMut()>() };
    lent();
    0
}

/// Memory for a stack. It ends at pages that nobody may touch.
struct Stack(*mut c_void);

impl Stack {
    /// As much as programs have. What is not used is never there.
    const SIZE: usize = 8 << 20;
    /// Of any architecture's pages at least one.
    const GUARD: usize = 64 << 10;

    fn new() -> Result<Self, Errno> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, which nobody knows.
        let start = unsafe { mmap_anonymous(ptr::null_mut(), Self::SIZE, access, MapFlags::PRIVATE) }?;
        let stack = Self(start);
        // SAFETY: nobody has used it yet.
        unsafe { mprotect(start, Self::GUARD, MprotectFlags::empty()) }?;
        Ok(stack)
    }

    /// Where it begins: it grows down.
    fn top(&self) -> *mut c_void {
        // SAFETY: the end of the mapping.
        unsafe { self.0.byte_add(Self::SIZE) }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: nobody uses it any more: whoever ran on it has ended, or has a copy.
        let _ = unsafe { munmap(self.0, Self::SIZE) };
    }
}

/// Is there one thread that runs this process's program? One that was joined is listed for a moment more.
fn has_one_thread() -> Result<bool, Errno> {
    const DIR: &str = "/proc/self/task";
    // The links of a directory are its own, its parent's, and one of each directory in it.
    if rustix::fs::stat(DIR).map_err(|_| Errno::NOSYS)?.st_nlink == 3 {
        return Ok(true);
    }
    let tasks = std::fs::read_dir(DIR).map_err(|_| Errno::NOSYS)?;
    let number = |task: std::fs::DirEntry| task.file_name().to_str()?.parse().ok();
    Ok(tasks.filter_map(Result::ok).filter_map(number).filter(|tid| runs(*tid)).count() == 1)
}

/// Have a copy of this process find something out: it may enter other namespaces and have threads. EIO when it ends without
/// an answer; other errors are those of [`fork`], pipe(2) and `body`.
pub fn ask<T: Serialize + DeserializeOwned>(body: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
    let (mut receive, send) = std::io::pipe().map_err(io_errno)?;
    let child = fork(|| {
        let found = body().map_err(Errno::raw_os_error);
        let bytes = postcard::to_allocvec(&found).unwrap_or_default();
        (&send).write_all(&bytes).map_or(1, |()| 0)
    })?;
    drop(send);
    let mut bytes = Vec::new();
    receive.read_to_end(&mut bytes).map_err(io_errno)?;
    let _ = child.wait();
    let found: Result<T, i32> = postcard::from_bytes(&bytes).map_err(|_| Errno::IO)?;
    found.map_err(Errno::from_raw_os_error)
}

/// Close every descriptor but one. Only for a process that has just been forked and gives up what it inherited.
pub fn close_all_but(keep: BorrowedFd<'_>) {
    let keep = std::os::fd::AsRawFd::as_raw_fd(&keep) as libc::c_uint;
    let below = keep.checked_sub(1).map(|last| (0, last));
    for (first, last) in below.into_iter().chain([(keep + 1, libc::c_uint::MAX)]) {
        // SAFETY: touches no memory. Owners of these descriptors in this copy of the program are abandoned.
        unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    }
}

/// Every signal gets its default action and none is blocked: handlers were those of the program that was forked.
pub fn reset_signals() {
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for signal in Signal::iterator() {
        // SAFETY: the default action runs no code of ours.
        let _ = unsafe { sigaction(signal, &default) };
    }
    let _ = SigSet::empty().thread_set_mask();
}

/// [`fork`], with the child in another pid namespace: a descendant of ours, else EINVAL.
pub fn fork_into(pid_namespace: impl AsFd, body: impl FnOnce() -> u8) -> Result<Child, Errno> {
    use nix::sched::{CloneFlags, setns};
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    // Only children go there; this process stays where it is.
    let own = rustix::fs::open("/proc/self/ns/pid", flags, Mode::empty())?;
    setns(pid_namespace, CloneFlags::CLONE_NEWPID).map_err(nix_errno)?;
    let child = fork(body);
    setns(own, CloneFlags::CLONE_NEWPID).map_err(nix_errno)?;
    child
}

impl Child {
    /// Its number in our pid namespace.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Send it a signal; ESRCH when it has ended and was waited for.
    pub fn signal(&self, signal: Signal) -> Result<(), Errno> {
        rustix::process::pidfd_send_signal(&self.pidfd, signal)
    }

    /// Wait until it has ended: its exit code, or 128 and the signal that killed it. ECHILD when somebody else has waited
    /// for it (a handler of SIGCHLD, as CRIU's).
    pub fn wait(mut self) -> Result<i32, Errno> {
        self.reap()
    }

    /// Leave it running, as a daemon.
    pub fn leave(mut self) {
        self.reaped = true;
    }

    fn reap(&mut self) -> Result<i32, Errno> {
        self.reaped = true;
        let ended =
            rustix::io::retry_on_intr(|| rustix::process::waitpid(Some(self.pid), WaitOptions::empty()))?;
        let status = ended.map(|(_, status)| status).ok_or(Errno::CHILD)?;
        Ok(status.exit_status().or(status.terminating_signal().map(|signal| 128 + signal)).unwrap_or(-1))
    }
}

/// Readable when it has ended.
impl AsFd for Child {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.reaped {
            let _ = self.signal(Signal::KILL);
            let _ = self.reap();
        }
    }
}
