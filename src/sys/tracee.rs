//! ptrace: holding tasks, and calling system calls in their place.
//!
//! A hold is invisible to its task: it is seized (never attached, which would send a SIGSTOP), stopped by
//! PTRACE_INTERRUPT, and let go with its registers, signal mask and pending signals as they were. A
//! task that its user had stopped stays stopped.
//!
//! ptrace knows threads: only the thread that seized a task can use it, and when that thread ends the
//! kernel lets its tasks go. The types here cannot be sent to another thread.

mod descriptors;
mod exec;
mod injected;
mod memory;
mod session;
mod sleeper;
mod timers;

#[cfg_attr(target_arch = "x86_64", path = "tracee/x86_64.rs")]
#[cfg_attr(target_arch = "aarch64", path = "tracee/aarch64.rs")]
mod arch;

pub use descriptors::{MOST as FDS_AT_ONCE, RemoteFd};
pub use injected::Injected;
pub use session::RemoteCall;
pub use sleeper::Sleeper;

use super::{Errno, last_errno, nix_errno, process};
use libc::user_regs_struct;
use nix::{sys::ptrace, unistd::Pid};
use std::{
    marker::PhantomData,
    time::{Duration, Instant},
};

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
    /// It is in no system call whose start is known.
    #[error("task {0} is in no system call that could be made again")]
    NoCall(i32),
    /// A 32-bit program can be held, but not be called in.
    #[error("task {0} is a 32-bit program; no system calls can be made in its place")]
    Compat(i32),
    /// No executable mapping of it contains a system call instruction.
    #[error("task {0} has no system call instruction mapped")]
    NoInstruction(i32),
    /// A ptrace or memory call on a held task, or a system call in its place, failed.
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

/// A task seized with an interrupt pending: it stops when its current wait ends. Dropping lets it go,
/// unless it sleeps uninterruptibly: that one goes when this thread ends.
#[derive(Debug)]
pub struct Seized {
    tid: i32,
    before: arch::Before,
    /// Tied to the thread.
    not_send: PhantomData<*const ()>,
}

/// A task that has stopped. Dropping lets it go.
#[derive(Debug)]
pub struct Held {
    tid: i32,
    before: arch::Before,
    /// While system calls are made in its place.
    session: Option<session::Session>,
    /// It stays stopped and traced when this is dropped.
    adopted: bool,
    not_send: PhantomData<*const ()>,
}

impl Seized {
    /// PTRACE_SEIZE and PTRACE_INTERRUPT. Works on a task that sleeps in an autofs wait: the stop
    /// happens as soon as that wait ends, before the program sees its result.
    pub fn new(tid: i32) -> Result<Self, TraceeError> {
        ptrace(libc::PTRACE_SEIZE, tid, 0, libc::PTRACE_O_TRACESYSGOOD as usize).map_err(
            |errno| match errno {
                // A zombie gives EPERM, as a task with a tracer does.
                Errno::SRCH | Errno::PERM if process::stat(tid).map_or(true, |stat| stat.has_ended()) => {
                    TraceeError::Gone(tid)
                }
                errno => TraceeError::Refused { tid, errno },
            },
        )?;
        let before = arch::Before::of(tid);
        let seized = Self { tid, before, not_send: PhantomData };
        interrupt(tid)?;
        Ok(seized)
    }

    /// The task.
    pub fn tid(&self) -> i32 {
        self.tid
    }

    /// Wait for the stop, at most `limit`. Gives the seized task back on timeout.
    ///
    /// A signal that was on its way is delivered first, as if nobody looked.
    pub fn stop(self, limit: Duration) -> Result<Held, (Option<Self>, TraceeError)> {
        match wait_for_event(self.tid, limit) {
            Ok(()) => {
                let tid = self.tid;
                let before = self.before.clone();
                std::mem::forget(self);
                Ok(Held { tid, before, session: None, adopted: false, not_send: PhantomData })
            }
            Err(error @ TraceeError::Timeout(_)) => Err((Some(self), error)),
            Err(error) => Err((None, error)),
        }
    }
}

impl Drop for Seized {
    fn drop(&mut self) {
        // Only a stopped task can be detached. All stop at once but those that sleep uninterruptibly.
        let asleep = process::stat(self.tid).is_ok_and(|stat| stat.state == b'D');
        let limit = if asleep { Duration::ZERO } else { Duration::from_millis(50) };
        if wait_for_event(self.tid, limit).is_ok() {
            let _ = ptrace(libc::PTRACE_DETACH, self.tid, 0, 0);
        }
    }
}

impl Held {
    /// A task that this thread traces already, by other means, and that has stopped: CRIU's main process
    /// traces every task of a container. Letting it go puts its state back, and leaves it stopped and traced.
    pub fn adopt(tid: i32) -> Self {
        Self { tid, before: arch::Before::of(tid), session: None, adopted: true, not_send: PhantomData }
    }

    /// The task.
    pub fn tid(&self) -> i32 {
        self.tid
    }

    /// The system call that the task was in and its result so far: `None` when it was in none.
    pub fn syscall(&self) -> Result<Option<(u64, i64)>, TraceeError> {
        Ok(arch::current_call(&self.registers()?, &self.before))
    }

    /// Is it a 64-bit program? Those of 32 bits have system call numbers of their own.
    pub fn is_native(&self) -> Result<bool, TraceeError> {
        Ok(arch::is_native(&self.registers()?))
    }

    /// Make the interrupted system call run again from its start when the task is let go
    /// (ERESTARTNOINTR). Only for a call that failed without effect.
    pub fn restart_syscall(&mut self) -> Result<(), TraceeError> {
        let mut registers = self.registers()?;
        if !arch::restart(&mut registers, &self.before) {
            return Err(TraceeError::NoCall(self.tid));
        }
        match &mut self.session {
            Some(session) => session.set_saved(registers),
            None => set_registers(self.tid, registers)?,
        }
        Ok(())
    }

    /// Let it go, with SIGSTOP pending so that its process stops (`T`) until somebody continues it.
    pub fn release_stopped(mut self) -> Result<(), TraceeError> {
        let tid = self.tid;
        let process = process::thread_group(tid).map_err(|_| TraceeError::Gone(tid))?;
        // SAFETY: sends a signal, touches no memory.
        let sent = unsafe { libc::syscall(libc::SYS_tgkill, process, tid, libc::SIGSTOP) };
        if sent != 0 {
            return call("stopping", tid, Err(last_errno()));
        }
        self.detach()
    }

    /// Let it go.
    pub fn release(mut self) -> Result<(), TraceeError> {
        self.detach()
    }

    /// As the program left them.
    fn registers(&self) -> Result<user_regs_struct, TraceeError> {
        match &self.session {
            Some(session) => Ok(*session.saved()),
            None => registers(self.tid),
        }
    }

    fn detach(&mut self) -> Result<(), TraceeError> {
        let restored = self.end_session();
        if self.adopted {
            return restored;
        }
        let detached = ptrace(libc::PTRACE_DETACH, self.tid, 0, 0);
        restored.and(call("letting go", self.tid, detached))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // After `release` it is detached already, and this fails.
        let _ = self.detach();
    }
}

/// What a traced task stopped for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stop {
    /// PTRACE_EVENT_STOP: our interrupt, or its user's stop signal.
    Event,
    /// Entry or exit of a system call.
    Syscall,
    /// It has executed a program, which was asked for.
    Exec,
    /// A signal is about to be delivered.
    Signal(i32),
}

impl Stop {
    /// What the task must be resumed with, so that the signal is not lost.
    fn signal(self) -> usize {
        match self {
            Self::Signal(signal) => signal as usize,
            Self::Event | Self::Syscall | Self::Exec => 0,
        }
    }
}

/// Wait for PTRACE_EVENT_STOP, which an interrupt must have asked for. What else the task stops for goes on.
fn wait_for_event(tid: i32, limit: Duration) -> Result<(), TraceeError> {
    loop {
        match wait(tid, limit)? {
            Stop::Event => return Ok(()),
            stop => {
                // Any stop takes back what the interrupt has asked for.
                interrupt(tid)?;
                resume(libc::PTRACE_CONT, tid, stop)?;
            }
        }
    }
}

/// Let a stopped task go on.
fn resume(request: libc::c_uint, tid: i32, from: Stop) -> Result<(), TraceeError> {
    call("resuming", tid, ptrace(request, tid, 0, from.signal()))
}

fn interrupt(tid: i32) -> Result<(), TraceeError> {
    call("interrupting", tid, ptrace(libc::PTRACE_INTERRUPT, tid, 0, 0))
}

/// The next stop. There is no wait with a limit for tracers, so this looks again and again.
fn wait(tid: i32, limit: Duration) -> Result<Stop, TraceeError> {
    let start = Instant::now();
    loop {
        let mut status = 0;
        // SAFETY: the kernel writes one int.
        match unsafe { libc::waitpid(tid, &mut status, libc::__WALL | libc::WNOHANG) } {
            0 => {}
            stopped if stopped == tid && libc::WIFSTOPPED(status) => {
                return Ok(match (libc::WSTOPSIG(status), status >> 16) {
                    (_, libc::PTRACE_EVENT_STOP) => Stop::Event,
                    (_, libc::PTRACE_EVENT_EXEC) => Stop::Exec,
                    (signal, 0) if signal == libc::SIGTRAP | 0x80 => Stop::Syscall,
                    (signal, _) => Stop::Signal(signal),
                });
            }
            -1 if last_errno() == Errno::INTR => {}
            _ => return Err(TraceeError::Gone(tid)),
        }
        if start.elapsed() >= limit {
            return Err(TraceeError::Timeout(tid));
        }
        pause(start);
    }
}

/// Between two looks: none at first, because most of what is waited for comes within microseconds.
fn pause(start: Instant) {
    if start.elapsed() < Duration::from_micros(200) {
        std::thread::yield_now();
    } else {
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// A request whose arguments are numbers.
fn ptrace(request: libc::c_uint, tid: i32, address: usize, data: usize) -> Result<(), Errno> {
    // SAFETY: none of the requests that are used here writes to our memory; those that read
    // (PTRACE_SETSIGMASK) are given the address of a live value.
    match unsafe { libc::ptrace(request, tid, address, data) } {
        -1 => Err(last_errno()),
        _ => Ok(()),
    }
}

fn registers(tid: i32) -> Result<user_regs_struct, TraceeError> {
    let got = ptrace::getregs(Pid::from_raw(tid)).map_err(nix_errno);
    call("reading the registers", tid, got)
}

fn set_registers(tid: i32, registers: user_regs_struct) -> Result<(), TraceeError> {
    let set = ptrace::setregs(Pid::from_raw(tid), registers).map_err(nix_errno);
    call("setting the registers", tid, set)
}

/// A task that may be traced but is not there has been killed.
fn call<T>(what: &'static str, tid: i32, result: Result<T, Errno>) -> Result<T, TraceeError> {
    result.map_err(|errno| match errno {
        Errno::SRCH => TraceeError::Gone(tid),
        errno => TraceeError::Call { tid, what, errno },
    })
}

/// The program that makes many calls ([`Held::call_all`]); each architecture's file has it.
fn program() -> &'static [u8] {
    unsafe extern "C" {
        static autofs_cr_program: u8;
        static autofs_cr_program_end: u8;
    }
    let (start, end) = (&raw const autofs_cr_program, &raw const autofs_cr_program_end);
    // SAFETY: the two labels enclose bytes of this program's read-only data.
    unsafe { std::slice::from_raw_parts(start, end.addr() - start.addr()) }
}
