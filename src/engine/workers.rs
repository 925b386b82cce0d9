//! Workers: threads that do what may block, one job at a time each.
//!
//! A job that hangs holds its thread and its own key, nothing else: more threads are started as long as all are
//! at work. Each answers the request of its job itself, so that the program that waits does not wait for the
//! reactor, too.

use super::jobs;
use super::kernel::Kernel;
use super::state::{Event, GroupId, JobId};
use super::task::{ExpireRun, Place, Task};
use crate::discover::facts::MountType;
use crate::sys::control::Token;
use calloop::channel::Sender;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Most threads at once. Jobs beyond that wait; their requests are answered in time all the same.
const THREADS: usize = 256;
/// A thread without work ends after this time.
const IDLE: Duration = Duration::from_secs(10);
/// Most expire requests of one run on one mount, so that a forced run ends although visitors mount again what it
/// unmounts.
const EXPIRES: usize = 1 << 16;

/// The right to answer a request: the worker and the machine that gives it up may both want it.
#[derive(Debug)]
pub struct Ticket {
    /// The mount.
    pub place: Arc<Place>,
    /// The request.
    pub token: Token,
    answered: AtomicBool,
}

impl Ticket {
    /// The request that a task answers.
    pub fn of(task: &Task) -> Option<Self> {
        let (place, token) = match task {
            Task::Mount(task) => (&task.place, task.asker.token),
            Task::Unmount(task) => (&task.place, task.token?),
            Task::Reread(..) | Task::Sync(_) | Task::TearDown(_) => return None,
        };
        Some(Self { place: place.clone(), token, answered: AtomicBool::new(false) })
    }

    /// `true` for the first who asks: it answers.
    pub fn claim(&self) -> bool {
        !self.answered.swap(true, Ordering::Relaxed)
    }
}

/// The pool. Its threads are not waited for: the process may end while one hangs.
pub struct Pool {
    shared: Arc<Shared>,
    /// Of running jobs.
    tickets: HashMap<JobId, Arc<Ticket>>,
}

struct Shared {
    kernel: Arc<dyn Kernel>,
    results: Sender<Event>,
    queue: Mutex<Queue>,
    wake: Condvar,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<(JobId, Task, Option<Arc<Ticket>>)>,
    idle: usize,
    threads: usize,
}

impl Pool {
    /// Results are sent as events.
    pub fn new(kernel: Arc<dyn Kernel>, results: Sender<Event>) -> Self {
        let shared = Shared { kernel, results, queue: Mutex::default(), wake: Condvar::new() };
        Self { shared: Arc::new(shared), tickets: HashMap::new() }
    }

    /// Start a job.
    pub fn run(&mut self, id: JobId, task: Task) {
        let ticket = Ticket::of(&task).map(Arc::new);
        if let Some(ticket) = &ticket {
            self.tickets.insert(id, ticket.clone());
        }
        let mut queue = self.shared.lock();
        queue.jobs.push_back((id, task, ticket));
        if queue.jobs.len() <= queue.idle {
            self.shared.wake.notify_one();
        } else if queue.threads < THREADS {
            let shared = self.shared.clone();
            match std::thread::Builder::new().name("worker".into()).spawn(move || shared.work()) {
                Ok(_) => queue.threads += 1,
                Err(error) => {
                    tracing::error!(%error, "no more worker threads; the job waits for one that is free")
                }
            }
        }
    }

    /// The job has ended.
    pub fn ended(&mut self, id: JobId) {
        self.tickets.remove(&id);
    }

    /// Answer the request of a running job in its place, if nobody has.
    pub fn give_up(&mut self, id: JobId) -> Option<Arc<Ticket>> {
        self.tickets.remove(&id).filter(|ticket| ticket.claim())
    }

    /// Start a run over idle mounts. In a thread of its own: it sleeps in the kernel while workers carry out what the kernel
    /// chooses.
    pub fn expire(&self, group: GroupId, run: ExpireRun) {
        let shared = self.shared.clone();
        let spawned = std::thread::Builder::new().name("expire".into()).spawn(move || {
            shared.expire(&run);
            shared.report(Event::ExpireEnded(group));
        });
        if let Err(error) = spawned {
            tracing::error!(%error, "no thread for an expire run");
            self.shared.report(Event::ExpireEnded(group));
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // A queue is whole between any two operations on it.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report(&self, event: Event) {
        // Nobody receives once the reactor has ended.
        let _ = self.results.send(event);
    }

    fn work(&self) {
        while let Some((id, task, ticket)) = self.next() {
            let outcome = jobs::run(&*self.kernel, &task);
            if let Some(ticket) = ticket.filter(|ticket| ticket.claim()) {
                answer(&*self.kernel, &ticket.place, ticket.token, outcome.result());
            }
            self.report(Event::Done(id, outcome));
        }
    }

    fn next(&self) -> Option<(JobId, Task, Option<Arc<Ticket>>)> {
        let mut queue = self.lock();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                return Some(job);
            }
            queue.idle += 1;
            let (guard, timeout) =
                self.wake.wait_timeout(queue, IDLE).unwrap_or_else(PoisonError::into_inner);
            queue = guard;
            queue.idle -= 1;
            if timeout.timed_out() && queue.jobs.is_empty() {
                queue.threads -= 1;
                return None;
            }
        }
    }

    fn expire(&self, run: &ExpireRun) {
        for place in run.levels.iter().flatten() {
            // The kernel finds a trigger idle again and again, also when nothing is mounted on it any more.
            let most = if place.kind == MountType::Indirect { EXPIRES } else { 1 };
            // An error means that something is in use after all, or that the mount is gone.
            let expired = || self.kernel.expire(place, run.immediate).unwrap_or(false);
            let _ = (0..most).take_while(|_| expired()).count();
        }
    }
}

/// Answer a request. The kernel does not know it any more when its visitors were killed; nothing else can be wrong
/// that could be mended here.
pub fn answer(kernel: &dyn Kernel, place: &Place, token: Token, result: Result<(), crate::sys::Errno>) {
    if let Err(errno) = kernel.answer(place, token, result) {
        tracing::debug!(path = %place.path.display(), token = token.0, %errno, "an answer was not wanted any more");
    }
}
