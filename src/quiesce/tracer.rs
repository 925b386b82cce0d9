//! The thread that holds visitors.
//!
//! ptrace knows threads, not processes, as tracers; and a task that was seized but sleeps uninterruptibly can only be let go by the
//! end of its tracer. So one thread holds everyone, and ends when they are to run again. When this process
//! dies the kernel lets them go in the same way.

use super::again::{self, Call, Cause};
use super::task::{self, Status};
use super::turn;
use super::visitors::{Scanner, Visitor};
use super::{NotHeld, QuiesceError, Scope, Waiting};
use crate::sys::Errno;
use crate::sys::tracee::{Held, Seized, TraceeError};
use std::collections::HashSet;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a running task may take to its stop: the longest call that does not sleep, and on a busy machine it has to get
/// a processor first.
const RUNNING: Duration = Duration::from_secs(2);
/// After CATATONIC waiters wake one after the other. (One that waits for the end of an expiry wakes after the task that
/// expires.) When none has woken for this time, the others are waiters of other mounts, which do not wake.
const WAKING: Duration = Duration::from_millis(50);
/// How long new tasks may keep appearing.
const RESTLESS: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_micros(100);

/// What the thread is asked for. Releasing ends it.
pub(super) enum Command {
    Restart,
    /// With a task of this process.
    Act(i32, Box<dyn FnOnce(&mut Held) + Send>),
    Release,
    ReleaseWaitersStopped,
}

/// Whose calls will be made again.
type Answer = Result<Vec<Waiting>, QuiesceError>;

/// Handle of the thread; dropping it lets everyone go.
#[derive(Debug)]
pub(super) struct Tracer {
    commands: Option<Sender<Command>>,
    answers: Receiver<Answer>,
    thread: Option<JoinHandle<()>>,
}

/// The outcome of seizing.
pub(super) struct Report {
    pub waiting: Vec<Waiting>,
    pub not_held: Vec<NotHeld>,
}

impl Tracer {
    /// Start it and have everyone held.
    pub(super) fn start(scope: Scope) -> Result<(Self, Report), QuiesceError> {
        let (commands, to_do) = channel();
        let (answer, answers) = channel();
        let (report, reports) = channel();
        let thread = std::thread::Builder::new()
            .spawn(move || run(&scope, &report, &to_do, &answer))
            .map_err(|error| QuiesceError::Thread(Errno::from_io_error(&error).unwrap_or(Errno::AGAIN)))?;
        let tracer = Self { commands: Some(commands), answers, thread: Some(thread) };
        // on an error the drop waits until everyone runs again
        let report = reports.recv().map_err(|_| QuiesceError::Thread(Errno::SRCH))??;
        Ok((tracer, report))
    }

    /// Have it done.
    pub(super) fn ask(&self, command: Command) -> Answer {
        let sent = self.commands.as_ref().is_some_and(|commands| commands.send(command).is_ok());
        let answer = sent.then(|| self.answers.recv().ok()).flatten();
        // without an answer the thread has died, and with it every hold
        answer.unwrap_or(Err(QuiesceError::Thread(Errno::SRCH)))
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // no sender any more: the thread lets everyone go and ends
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            // it only fails by a panic, and then the kernel has let everyone go
            let _ = thread.join();
        }
    }
}

fn run(
    scope: &Scope,
    report: &Sender<Result<Report, QuiesceError>>,
    commands: &Receiver<Command>,
    answers: &Sender<Answer>,
) {
    let mut holding = Holding::default();
    let held = holding.hold(scope);
    let failed = held.is_err();
    // nobody receives: nobody wants it any more
    if report.send(held).is_err() || failed {
        return;
    }
    for command in commands {
        let answer = match command {
            Command::Restart => holding.restart(),
            Command::Act(pid, act) => holding.act(pid, act),
            Command::Release => return drop(answers.send(holding.release(false))),
            Command::ReleaseWaitersStopped => return drop(answers.send(holding.release(true))),
        };
        if answers.send(answer).is_err() {
            break;
        }
    }
    // the error could be told to nobody
    let _ = holding.release(false);
}

/// Everyone who was seized, by the thread that has it.
#[derive(Default)]
pub(crate) struct Holding {
    stopped: Vec<Stopped>,
    /// Not stopped yet.
    pending: Vec<Pending>,
    not_held: Vec<NotHeld>,
    /// Everyone is seized: what stops from now on may have met a catatonic mount.
    complete: bool,
}

struct Pending {
    visitor: Visitor,
    seized: Seized,
}

struct Stopped {
    pid: i32,
    held: Held,
    /// Its call will be made again because of CATATONIC.
    waiting: Option<Waiting>,
}

impl Holding {
    fn hold(&mut self, scope: &Scope) -> Result<Report, QuiesceError> {
        let mut known = HashSet::new();
        let (mut scanner, mut visitors) = turn::take(|| {
            let mut scanner = Scanner::new(scope);
            let visitors = scanner.scan(&known)?;
            Ok((scanner.rivals.clone(), (scanner, visitors)))
        })?;
        let deadline = Instant::now() + RESTLESS;
        while !visitors.is_empty() {
            if Instant::now() > deadline {
                return Err(QuiesceError::Restless);
            }
            for visitor in visitors {
                known.insert(visitor.tid);
                self.seize(visitor)?;
            }
            self.settle()?;
            visitors = scanner.scan(&known)?;
        }
        self.complete = true;
        let waiting = self.pending.iter().filter(|pending| pending.waits()).filter_map(Pending::describe);
        Ok(Report { waiting: waiting.collect(), not_held: std::mem::take(&mut self.not_held) })
    }

    /// Seize one task of process `pid`, whether or not it sees the mounts.
    pub(crate) fn seize_task(&mut self, pid: i32, tid: i32, comm: String) -> Result<(), QuiesceError> {
        self.seize(Visitor { pid, tid, comm, sees: true })
    }

    /// Does anybody who was seized still wait for an answer?
    pub(crate) fn waits(&self) -> bool {
        self.pending.iter().any(Pending::waits)
    }

    /// From now on whoever stops may have met a catatonic mount.
    pub(crate) fn complete(&mut self) {
        self.complete = true;
    }

    /// How many sleep uninterruptibly, for whatever reason.
    pub(crate) fn asleep(&self) -> usize {
        self.pending.len()
    }

    /// A stopped task of process `pid`.
    pub(crate) fn stopped(&mut self, pid: i32) -> Option<&mut Held> {
        self.stopped.iter_mut().find(|stopped| stopped.pid == pid).map(|stopped| &mut stopped.held)
    }

    /// The stopped tasks of these processes are no longer ours to let go.
    pub(crate) fn take(&mut self, which: impl Fn(i32) -> bool) -> Vec<Held> {
        self.stopped.extract_if(.., |stopped| which(stopped.pid)).map(|stopped| stopped.held).collect()
    }

    fn seize(&mut self, visitor: Visitor) -> Result<(), QuiesceError> {
        match Seized::new(visitor.tid) {
            Ok(seized) => self.pending.push(Pending { visitor, seized }),
            Err(TraceeError::Gone(_)) => {}
            Err(TraceeError::Refused { errno, .. }) => self.not_held.extend(refused(&visitor, errno)?),
            Err(other) => return Err(other.into()),
        }
        Ok(())
    }

    /// Until each is stopped or asleep.
    pub(crate) fn settle(&mut self) -> Result<(), QuiesceError> {
        let deadline = Instant::now() + RUNNING;
        loop {
            self.collect()?;
            let running = |pending: &Pending| !task::is_asleep(pending.seized.tid());
            if Instant::now() > deadline || !self.pending.iter().any(running) {
                // whoever fell asleep between the two looks has not stopped
                return self.collect();
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Take in who has stopped. An error with one task keeps no other from being taken in.
    fn collect(&mut self) -> Result<(), QuiesceError> {
        let mut result = Ok(());
        for Pending { visitor, seized } in std::mem::take(&mut self.pending) {
            let outcome = match seized.stop(Duration::ZERO) {
                Ok(held) => self.take_in(&visitor, held),
                Err((Some(seized), TraceeError::Timeout(_))) => {
                    self.pending.push(Pending { visitor, seized });
                    Ok(())
                }
                Err((_, error)) => Err(error.into()),
            };
            result = result.and(unless_gone(outcome));
        }
        result
    }

    fn take_in(&mut self, visitor: &Visitor, mut held: Held) -> Result<(), QuiesceError> {
        let tid = held.tid();
        let call = Call { call: held.syscall()?, native: held.is_native()?, slept_on: self.complete };
        let cause = again::cause(call, || Status::of(tid).is_some_and(|status| status.signal_waits()));
        if cause.is_some() {
            held.restart_syscall()?;
        }
        // a waiter of another namespace is likely one of another mount: it must not be left stopped
        let ours = visitor.sees && cause == Some(Cause::Catatonic);
        let waiting = if ours { task::describe(visitor.pid, tid) } else { None };
        self.stopped.push(Stopped { pid: visitor.pid, held, waiting });
        Ok(())
    }

    /// Those whose calls will be made again because of CATATONIC.
    fn restarting(&self) -> Vec<Waiting> {
        self.stopped.iter().filter_map(|stopped| stopped.waiting.clone()).collect()
    }

    /// After CATATONIC: wait for the waiters to stop, set their calls to be made again.
    pub(crate) fn restart(&mut self) -> Answer {
        let (mut waiting, mut since) = (usize::MAX, Instant::now());
        loop {
            self.settle()?;
            let now = self.pending.iter().filter(|pending| pending.waits()).count();
            if now < waiting {
                (waiting, since) = (now, Instant::now());
            }
            if waiting == 0 || since.elapsed() > WAKING {
                return Ok(self.restarting());
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn act(&mut self, pid: i32, act: Box<dyn FnOnce(&mut Held) + Send>) -> Answer {
        match self.stopped(pid) {
            Some(held) => act(held),
            None => return Err(TraceeError::Timeout(pid).into()),
        }
        Ok(Vec::new())
    }

    /// Those still asleep are let go by the end of this thread. Whoever woke between CATATONIC and now is first
    /// taken in, so that its call is made again.
    fn release(&mut self, stop_waiters: bool) -> Answer {
        let mut result = self.settle();
        let restarting = self.restarting();
        for Stopped { held, waiting, .. } in self.stopped.drain(..) {
            let released = match waiting {
                Some(_) if stop_waiters => held.release_stopped(),
                _ => held.release(),
            };
            // the others must go all the same
            result = result.and(unless_gone(released.map_err(QuiesceError::from)));
        }
        result.map(|()| restarting)
    }
}

/// Whoever has ended needs nothing more.
fn unless_gone(outcome: Result<(), QuiesceError>) -> Result<(), QuiesceError> {
    match outcome {
        Err(QuiesceError::Tracee(TraceeError::Gone(_))) => Ok(()),
        other => other,
    }
}

impl Pending {
    fn waits(&self) -> bool {
        task::waits(self.seized.tid())
    }

    fn describe(&self) -> Option<Waiting> {
        task::describe(self.visitor.pid, self.seized.tid())
    }
}

/// ptrace was refused: by a tracer, which is tolerable unless the task waits; or for want of privilege.
fn refused(visitor: &Visitor, errno: Errno) -> Result<Option<NotHeld>, QuiesceError> {
    let tid = visitor.tid;
    let comm = visitor.comm.clone();
    match Status::of(tid).map(|status| status.tracer) {
        None => Ok(None),
        // it most likely waits on another mount
        Some(_) if !visitor.sees => Ok(None),
        Some(0) => Err(QuiesceError::Refused { tid, comm, errno }),
        Some(tracer) if task::waits(tid) => Err(QuiesceError::Traced { tid, comm, tracer }),
        Some(tracer) => Ok(Some(NotHeld { tid, comm, tracer })),
    }
}
