//! Holding visitors while a mount changes hands.
//!
//! | module | what it does |
//! |---|---|
//! | `visitors` | who must be held: the process table, judged task by task |
//! | `tracer` | the thread that holds them |
//! | `task` | what `/proc` tells of one that is seized |
//! | `turn` | only one holds at a time |
//! | `again` | which interrupted calls must be made again so that no program notices |
//!
//! Between [`Quiesced::hold`] and its release half of the system may be stopped: whoever reads our output, serves a FUSE
//! mount or answers a name look-up, too. Print nothing there, and touch nothing but `/proc`, `/dev/autofs` and the
//! mounts themselves.

mod again;
mod task;
mod tracer;
mod turn;
mod visitors;

use crate::discover::facts::Waiter;
use crate::sys::tracee::{Held, TraceeError};
use crate::sys::{DevNum, Errno};
use std::sync::mpsc::channel;
pub(crate) use tracer::Holding;
use tracer::{Command, Tracer};

/// What to hold.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// The mounts; every task of every mount namespace that contains one is a visitor.
    pub mounts: Vec<DevNum>,
    /// Processes that are never held: the masters, who never wait, and whoever must act meanwhile.
    /// (Our own need not be named.)
    pub spare: Vec<i32>,
    /// Process groups that are held besides: owners, while something is asked in their place.
    pub groups: Vec<i32>,
}

/// Every visitor of some mounts, held. Dropping lets all go.
#[derive(Debug)]
pub struct Quiesced {
    tracer: Tracer,
    waiting: Vec<Waiting>,
    not_held: Vec<NotHeld>,
    restarting: Vec<Waiting>,
}

/// A visitor that slept on a request when it was seized.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Waiting {
    /// It.
    pub waiter: Waiter,
    /// A stop signal of its user's was pending: it stops by itself once its wait ends.
    pub was_stopped: bool,
}

/// A visitor that goes on: a debugger has it. What it looks up before the mounts have their new master may
/// fail.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NotHeld {
    /// The task.
    pub tid: i32,
    /// Its name.
    pub comm: String,
    /// Who traces it.
    pub tracer: i32,
}

/// Visitors could not be held. Whoever was held runs again; before [`Quiesced::hold`] succeeds nothing is changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuiesceError {
    /// `/proc` is not readable.
    #[error("the list of processes cannot be read: {0}; is /proc mounted?")]
    Proc(Errno),
    /// io_uring's workers cannot be stopped, and their look-up cannot be made again.
    #[error(
        "task {tid} ({comm}) is waiting for an automount inside io_uring and cannot be held; try again when its request is answered"
    )]
    IoUring {
        /// The worker.
        tid: i32,
        /// Its name.
        comm: String,
    },
    /// A kernel thread (an NFS server's, a loop device's) waits.
    #[error(
        "kernel thread {tid} ({comm}) is waiting for an automount and cannot be held; try again when its request is answered"
    )]
    Kernel {
        /// The thread.
        tid: i32,
        /// Its name.
        comm: String,
    },
    /// A waiter has another tracer.
    #[error(
        "task {tid} ({comm}) is waiting for an automount but is traced by process {tracer}: detach the debugger and try again"
    )]
    Traced {
        /// The waiter.
        tid: i32,
        /// Its name.
        comm: String,
        /// Who traces it.
        tracer: i32,
    },
    /// ptrace was refused, though no other tracer has the task.
    #[error("task {tid} ({comm}) cannot be held: {errno}; holding visitors needs CAP_SYS_PTRACE")]
    Refused {
        /// The task.
        tid: i32,
        /// Its name.
        comm: String,
        /// The kernel's answer.
        errno: Errno,
    },
    /// New tasks appeared faster than they could be held.
    #[error("new processes kept appearing; try again when the system is less busy")]
    Restless,
    /// Another autofs-cr is holding visitors.
    #[error("process {0} is holding visitors, too; try again when it has ended")]
    Busy(i32),
    /// The thread that holds could not be started, or it died.
    #[error("the thread that holds visitors failed: {0}")]
    Thread(Errno),
    /// A ptrace call on a task that was held.
    #[error(transparent)]
    Tracee(#[from] TraceeError),
}

impl Quiesced {
    /// Seize and interrupt every visitor, until no new one appears.
    ///
    /// When this returns, each is stopped or asleep in the kernel; the sleepers (waiters among them) stop before
    /// their programs see the end of that sleep.
    pub fn hold(scope: &Scope) -> Result<Self, QuiesceError> {
        let (tracer, held) = Tracer::start(scope.clone())?;
        Ok(Self { tracer, waiting: held.waiting, not_held: held.not_held, restarting: Vec::new() })
    }

    /// Who slept in autofs when held: on one of the mounts, or on another autofs mount of the same namespaces (the
    /// kernel does not tell).
    pub fn waiting(&self) -> &[Waiting] {
        &self.waiting
    }

    /// Who could not be held.
    pub fn not_held(&self) -> &[NotHeld] {
        &self.not_held
    }

    /// After CATATONIC: wait for the waiters to stop, set their calls to be made again. Returns how many.
    pub fn restart_waiters(&mut self) -> Result<usize, QuiesceError> {
        self.restarting = self.tracer.ask(Command::Restart)?;
        Ok(self.restarting.len())
    }

    /// Whose calls will be made again, as [`Self::restart_waiters`] found them.
    pub fn restarting(&self) -> &[Waiting] {
        &self.restarting
    }

    /// Do something with a held task of process `pid`, in the thread that holds it.
    pub fn act<T: Send + 'static>(
        &self,
        pid: i32,
        act: impl FnOnce(&mut Held) -> T + Send + 'static,
    ) -> Result<T, QuiesceError> {
        let (result, results) = channel();
        // nobody receives only when we are gone, too
        let act = Box::new(move |held: &mut Held| drop(result.send(act(held))));
        self.tracer.ask(Command::Act(pid, act))?;
        results.recv().map_err(|_| QuiesceError::Thread(Errno::SRCH))
    }

    /// Let everyone go.
    pub fn release(self) -> Result<(), QuiesceError> {
        self.tracer.ask(Command::Release).map(drop)
    }

    /// Let everyone go but those whose calls will be made again: they stay stopped (SIGSTOP) until someone continues
    /// them (SIGCONT). Returns who they are.
    pub fn release_waiters_stopped(self) -> Result<Vec<Waiting>, QuiesceError> {
        self.tracer.ask(Command::ReleaseWaitersStopped)
    }
}
