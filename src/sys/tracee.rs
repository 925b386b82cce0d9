//! ptrace: holding tasks, and calling system calls in their place.
//!
//! A hold is invisible to its task: it is seized (never attached), stopped by PTRACE_INTERRUPT, and
//! let go with its registers, signal mask and pending signals as they were.

use super::{
    Errno,
    control::{Caller, Command},
};
use std::os::fd::{OwnedFd, RawFd};

/// Why a task could not be held or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TraceeError {
    /// The task has ended.
    #[error("task {0} has ended")]
    Gone(i32),
    /// Another tracer has it, or it may not be traced.
    #[error("task {tid} cannot be traced: {errno}; is a debugger attached?")]
    Refused {
        /// The task.
        tid: i32,
        /// The kernel's answer.
        errno: Errno,
    },
    /// It did not stop in time (it sleeps uninterruptibly).
    #[error("task {0} did not stop in time")]
    Timeout(i32),
    /// A ptrace or memory call on a held task failed.
    #[error("{what} of task {tid} failed: {errno}")]
    Call {
        /// The task.
        tid: i32,
        /// Which step.
        what: &'static str,
        /// The kernel's answer.
        errno: Errno,
    },
}

/// A task seized with an interrupt pending: it stops when its current wait ends. Dropping lets it go.
#[derive(Debug)]
pub struct Seized {
    tid: i32,
}

/// A task that has stopped. Dropping lets it go unchanged.
#[derive(Debug)]
pub struct Held {
    tid: i32,
}

impl Seized {
    /// PTRACE_SEIZE and PTRACE_INTERRUPT. Works on a task that sleeps in an autofs wait: the stop
    /// happens as soon as that wait ends.
    pub fn new(tid: i32) -> Result<Self, TraceeError> {
        let _ = tid;
        todo!()
    }
    /// The task.
    pub fn tid(&self) -> i32 {
        self.tid
    }
    /// Wait for the stop, at most `limit`. Gives the seized task back on timeout.
    pub fn stop(self, limit: std::time::Duration) -> Result<Held, (Option<Self>, TraceeError)> {
        let _ = limit;
        todo!()
    }
}

impl Held {
    /// The task.
    pub fn tid(&self) -> i32 {
        self.tid
    }
    /// The system call that the task was in and its result so far: `None` when it was in none.
    pub fn syscall(&self) -> Result<Option<(u64, i64)>, TraceeError> {
        todo!()
    }
    /// Make the interrupted system call run again from its start when the task is let go
    /// (ERESTARTNOINTR). Only for a call that failed without effect.
    pub fn restart_syscall(&mut self) -> Result<(), TraceeError> {
        todo!()
    }
    /// Run one system call in the task; its own state is untouched.
    pub fn call(&mut self, nr: i64, args: [u64; 6]) -> Result<i64, TraceeError> {
        let _ = (nr, args);
        todo!()
    }
    /// Give the task a descriptor of ours; returns it as the task numbers it (CLOEXEC set).
    pub fn send_fd(&mut self, fd: std::os::fd::BorrowedFd<'_>) -> Result<RemoteFd, TraceeError> {
        let _ = fd;
        todo!()
    }
    /// Close one of the task's descriptors.
    pub fn close_fd(&mut self, fd: RemoteFd) -> Result<(), TraceeError> {
        let _ = fd;
        todo!()
    }
    /// Let it go, with SIGSTOP pending so that it stays stopped for its user to see (`T`).
    pub fn release_stopped(self) -> Result<(), TraceeError> {
        todo!()
    }
    /// Let it go.
    pub fn release(self) -> Result<(), TraceeError> {
        todo!()
    }
}

/// Issues /dev/autofs commands from inside a held task: the kernel sees *its* process group.
#[derive(Debug)]
pub struct Injected<'a> {
    held: std::cell::RefCell<&'a mut Held>,
    /// `/dev/autofs` in the task's table.
    device: RawFd,
}

impl<'a> Injected<'a> {
    /// `device`: ours; it is sent into the task and closed there on drop.
    pub fn new(held: &'a mut Held, device: &OwnedFd) -> Result<Self, TraceeError> {
        let _ = (held, device);
        todo!()
    }
}

/// A descriptor in the held task's table: a number that means nothing here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RemoteFd(pub RawFd);

impl Caller for Injected<'_> {
    type Fd<'a> = RemoteFd;
    /// Not closed on drop: that needs the held task. Use [`super::control::Control::close_mount`].
    type Mount = RemoteFd;

    fn ioctl(&self, command: Command, buf: &mut [u8]) -> Result<i32, Errno> {
        let _ = (command, buf, &self.held, self.device);
        todo!()
    }

    fn number(fd: RemoteFd) -> RawFd {
        fd.0
    }

    unsafe fn own(number: RawFd) -> RemoteFd {
        RemoteFd(number)
    }

    fn disown(mount: RemoteFd) -> RawFd {
        mount.0
    }
}
