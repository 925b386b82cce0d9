//! Workers: threads that take the requests of the kernel and do what may block, one job at a time each.
//!
//! One that has nothing else to do *leads*: it waits for a request, has it decided, and carries out itself what comes of it,
//! while the next one leads. So the program that waits does not wait for one thread to wake another, which takes longer
//! than a mount does.
//!
//! A job that hangs holds its thread and its own key, nothing else: more threads are started as long as all are
//! at work, and the last one that may be started only leads: requests whose time is over are answered without it.

use super::answers::Answers;
use super::jobs;
use super::kernel::Kernel;
use super::state::{Event, GroupId, JobId};
use super::task::{Answer, ExpireRun, Outcome, Place, Task};
use crate::discover::facts::MountType;
use crate::log;
use crate::sys::Errno;
use crate::sys::packet::Packet;
use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Most threads at once. Jobs beyond that wait; their requests are answered in time all the same.
const THREADS: usize = 256;
/// A thread without work ends after this time, but for one: who leads finds another to lead without starting it,
const IDLE: Duration = Duration::from_secs(if cfg!(test) { 120 } else { 10 });
/// or at once when so many others have none: they take turns, so that with little to do none of the many that a storm needed
/// would ever be without work for long.
const SPARE: usize = 16;
/// Most expire requests of one run on one mount, so that a forced run ends although visitors mount again what it
/// unmounts.
const EXPIRES: usize = 1 << 16;
/// Most keys of one mount that a run over idle mounts fails to unmount before it gives up.
const FAILURES: usize = 64;
/// How many mounts a run over idle mounts asks for at a time.
const SIDE_BY_SIDE: usize = 32;

/// The right to answer a request: the worker and the machine that gives it up may both want it.
#[derive(Debug)]
pub struct Ticket {
    /// The answer, but for its result.
    to: Answer,
    answered: AtomicBool,
}

impl Ticket {
    /// The request that a task answers.
    pub fn of(task: &Task) -> Option<Self> {
        let (place, served, key, token, asker) = match task {
            Task::Mount(task) => (&task.place, &task.served, &task.key, task.asker.token, Some(task.asker)),
            Task::Unmount(task) => (&task.place, &task.served, &task.key, task.token?, None),
            Task::Follow(_) | Task::Master(..) | Task::Reread(..) | Task::Sync(_) | Task::TearDown(_) => {
                return None;
            }
        };
        let (place, served, key) = (place.clone(), served.clone(), key.clone());
        let to = Answer { place, served, key, token, asker, result: Ok(()) };
        Some(Self { to, answered: AtomicBool::new(false) })
    }

    /// The answer, for the first who asks: it gives it.
    pub fn claim(&self, result: Result<(), Errno>) -> Option<Answer> {
        let first = !self.answered.swap(true, Ordering::Relaxed);
        first.then(|| Answer { result, ..self.to.clone() })
    }
}

/// Who decides what is to be done.
pub trait Decider: Send + Sync {
    /// Wait for a request of the kernel, and take it: its job may be in the pool then. `false`: none comes any more.
    fn take_request(&self) -> bool;
    /// Something has happened.
    fn tell(&self, event: Event);
}

/// The pool. Its threads are not waited for: the process may end while one hangs.
pub struct Pool {
    shared: Arc<Shared>,
    /// Of running jobs.
    tickets: HashMap<JobId, Arc<Ticket>>,
}

struct Shared {
    kernel: Arc<dyn Kernel>,
    answers: Answers,
    /// Gone when nobody serves any more.
    decider: Weak<dyn Decider>,
    queue: Mutex<Queue>,
    wake: Condvar,
    /// Runs end as soon as they can.
    leaving: AtomicBool,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<(JobId, Task, Option<Arc<Ticket>>)>,
    /// Threads.
    all: usize,
    /// Those that wait for work.
    idle: usize,
    /// Those that carry out a job.
    busy: usize,
    /// One waits for a request of the kernel.
    led: bool,
}

/// What a thread does next.
enum Next {
    Lead,
    Job(JobId, Task, Option<Arc<Ticket>>),
}

impl Queue {
    /// For a thread that has nothing to do; `None`: to wait.
    fn next(&mut self) -> Option<Next> {
        // Somebody has to be left to lead.
        if !self.led && (self.jobs.is_empty() || self.all - self.busy < 2) {
            self.led = true;
            return Some(Next::Lead);
        }
        let (id, task, ticket) = self.jobs.pop_front()?;
        self.busy += 1;
        Some(Next::Job(id, task, ticket))
    }
}

impl Pool {
    /// Requests are taken from when it is started on.
    pub fn new(kernel: Arc<dyn Kernel>, answers: Answers, decider: Weak<dyn Decider>) -> Self {
        let shared = Shared {
            kernel,
            answers,
            decider,
            queue: Mutex::default(),
            wake: Condvar::new(),
            leaving: AtomicBool::new(false),
        };
        Self { shared: Arc::new(shared), tickets: HashMap::new() }
    }

    /// Have requests taken.
    pub fn start(&self) -> std::io::Result<()> {
        self.shared.start(&mut self.shared.lock())
    }

    /// Start a job.
    pub fn run(&mut self, id: JobId, task: Task) {
        let ticket = Ticket::of(&task).map(Arc::new);
        if let Some(ticket) = &ticket {
            self.tickets.insert(id, ticket.clone());
        }
        let mut queue = self.shared.lock();
        queue.jobs.push_back((id, task, ticket));
        // One for each job, and one to lead.
        if queue.jobs.len() < queue.all - queue.busy {
            // Whom it wakes needs the lock.
            drop(queue);
            self.shared.wake.notify_one();
        } else if queue.all < THREADS
            && let Err(error) = self.shared.start(&mut queue)
        {
            tracing::error!(%error, "no more worker threads; the job waits for one that is free");
        }
    }

    /// The job has ended.
    pub fn ended(&mut self, id: JobId) {
        self.tickets.remove(&id);
    }

    /// Answer the request of a running job in its place, if nobody has. Where that cannot be (no path leads to the mount any
    /// more) it is left to the job.
    pub fn give_up(&mut self, id: JobId) {
        let Some(ticket) = self.tickets.remove(&id) else { return };
        let Some(answer) = ticket.claim(Err(Errno::TIMEDOUT)) else { return };
        let path = answer.place.target(&answer.key);
        tracing::warn!(path = %path.display(), "a job takes too long; its request is answered without it");
        let kernel = &self.shared.kernel;
        let call = || kernel.answer(&answer.place, answer.token, answer.result);
        if self.shared.answers.give_by(&answer, call).is_err() {
            ticket.answered.store(false, Ordering::Relaxed);
        }
    }

    /// Runs over idle mounts end before the next mount, or go on as ever.
    pub fn set_leaving(&self, leaving: bool) {
        self.shared.leaving.store(leaving, Ordering::Relaxed);
    }

    /// Requests of running jobs that nobody has answered; from now on their jobs will not.
    pub fn take_requests(&mut self) -> Vec<Packet> {
        let tickets = self.tickets.drain().filter_map(|(_, ticket)| ticket.claim(Err(Errno::TIMEDOUT)));
        tickets.map(|answer| answer.packet()).collect()
    }

    /// Start a run over idle mounts. In a thread of its own: it sleeps in the kernel while workers carry out what the kernel
    /// chooses.
    pub fn expire(&self, group: GroupId, run: ExpireRun) -> std::io::Result<()> {
        let shared = self.shared.clone();
        let expire = move || {
            let stuck = shared.expire(&run);
            shared.tell(Event::ExpireEnded(group, stuck));
        };
        std::thread::Builder::new().name("expire".into()).spawn(expire).map(drop)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // A queue is whole between any two operations on it.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Once nobody serves any more, nothing needs to be told.
    fn tell(&self, event: Event) {
        if let Some(decider) = self.decider.upgrade() {
            decider.tell(event);
        }
    }

    fn start(self: &Arc<Self>, queue: &mut Queue) -> std::io::Result<()> {
        let shared = self.clone();
        std::thread::Builder::new().name("worker".into()).spawn(move || shared.work())?;
        queue.all += 1;
        Ok(())
    }

    fn work(&self) {
        let mut queue = self.lock();
        loop {
            match queue.next() {
                Some(Next::Lead) => {
                    drop(queue);
                    let goes_on = self.decider.upgrade().is_some_and(|decider| decider.take_request());
                    queue = self.lock();
                    queue.led = false;
                    if !goes_on {
                        break;
                    }
                }
                Some(Next::Job(id, task, ticket)) => {
                    drop(queue);
                    self.carry_out(id, &task, ticket.as_deref());
                    queue = self.lock();
                    queue.busy -= 1;
                }
                None if queue.idle >= SPARE => break,
                None => {
                    queue.idle += 1;
                    let (guard, timeout) =
                        self.wake.wait_timeout(queue, IDLE).unwrap_or_else(PoisonError::into_inner);
                    queue = guard;
                    queue.idle -= 1;
                    if timeout.timed_out() && queue.led && queue.jobs.is_empty() && queue.idle > 0 {
                        break;
                    }
                }
            }
        }
        queue.all -= 1;
    }

    fn carry_out(&self, id: JobId, task: &Task, ticket: Option<&Ticket>) {
        let _about = log::about(task.place().map_or(Path::new("/"), |place| &place.path));
        let begin = Instant::now();
        let claim = |result| ticket.and_then(|ticket| ticket.claim(result));
        let outcome = jobs::run(&*self.kernel, task, &|held, result| {
            if let Some(answer) = claim(result) {
                let _ = self.answers.give_by(&answer, || held.answer(answer.token, result));
            }
        });
        if let Some(answer) = claim(outcome.result()) {
            self.answers.give(&answer);
        }
        if let Outcome::Unmounted { result, .. } = &outcome {
            self.answers.metrics.unmount(*result, begin.elapsed());
        }
        self.tell(Event::Done(id, outcome));
    }

    /// Returns indirect mounts in which a forced run could not go on.
    fn expire(&self, run: &ExpireRun) -> Vec<Arc<Place>> {
        run.levels.iter().flat_map(|level| self.expire_level(level, run.immediate)).collect()
    }

    /// Side by side: EXPIRE waits for an RCU grace period, which is the same for all that wait at the time.
    fn expire_level(&self, level: &[Arc<Place>], immediate: bool) -> Vec<Arc<Place>> {
        let next = AtomicUsize::new(0);
        let work = || -> Vec<Arc<Place>> {
            let places = std::iter::from_fn(|| level.get(next.fetch_add(1, Ordering::Relaxed)));
            places.filter(|place| !self.expire_mount(place, immediate)).cloned().collect()
        };
        std::thread::scope(|scope| {
            // Where there is no thread, there is one less.
            let thread = |_| std::thread::Builder::new().name("expire".into()).spawn_scoped(scope, work).ok();
            let others: Vec<_> = (1..level.len().min(SIDE_BY_SIDE)).filter_map(thread).collect();
            let mut stuck = work();
            stuck.extend(others.into_iter().flat_map(|other| other.join().unwrap_or_default()));
            stuck
        })
    }

    /// False where a forced run could not go on.
    fn expire_mount(&self, place: &Place, immediate: bool) -> bool {
        // The kernel finds a trigger idle again and again, also when nothing is mounted on it any more.
        let (most, indirect) = match place.kind {
            MountType::Indirect => (EXPIRES, true),
            _ => (1, false),
        };
        let mut failures = 0;
        for _ in 0..most {
            if self.leaving.load(Ordering::Relaxed) {
                break;
            }
            match self.kernel.expire(place, immediate) {
                Ok(true) => {}
                Ok(false) => break,
                // Not unmounted after all, or the mount is gone. The kernel leaves such a key alone for one more
                // timeout, but a forced run would get it again and again.
                Err(_) if immediate && indirect => return false,
                Err(_) if failures == FAILURES => break,
                Err(_) => failures += 1,
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::kernel::simulated::Simulated;
    use crate::engine::served::{Master, Served};
    use crate::engine::state::{Action, Limits, State};
    use std::sync::Barrier;

    /// A master map whose readers wait for each other, and for the test.
    #[derive(Debug)]
    struct Together(Barrier);

    impl Master for Together {
        fn read(&self, _: &[Arc<Served>]) -> Result<Vec<Arc<Served>>, Errno> {
            self.0.wait();
            Ok(Vec::new())
        }
    }

    /// Has no requests.
    struct Quiet;

    impl Decider for Quiet {
        fn take_request(&self) -> bool {
            loop {
                std::thread::park();
            }
        }
        fn tell(&self, _: Event) {}
    }

    fn pool(decider: &Arc<dyn Decider>) -> Pool {
        let kernel: Arc<dyn Kernel> = Arc::new(Simulated::default());
        Pool::new(kernel.clone(), Answers::new(kernel), Arc::downgrade(decider))
    }

    #[test]
    fn threads_of_a_storm_end_when_it_is_over() {
        const JOBS: usize = 100;
        let decider: Arc<dyn Decider> = Arc::new(Quiet);
        let mut pool = pool(&decider);
        pool.start().unwrap();
        let mut state = State::new(Limits::default());
        let together = Arc::new(Together(Barrier::new(JOBS + 1)));
        state.set_master(together.clone());
        let mut actions = Vec::new();
        state.step(Event::Reload, Instant::now(), &mut actions);
        let Some(Action::Run(id, Task::Master(master, _))) = actions.pop() else { panic!("no job") };
        for _ in 0..JOBS {
            pool.run(id, Task::Master(master.clone(), Vec::new()));
        }
        let threads = || pool.shared.lock().all;
        // and one that leads
        assert_eq!(threads(), JOBS + 1);
        together.0.wait();
        let begin = Instant::now();
        while threads() > SPARE + 1 {
            assert!(begin.elapsed() < IDLE / 2, "{} threads have nothing to do", threads());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn the_last_thread_leads() {
        let mut queue = Queue { all: 3, busy: 1, ..Queue::default() };
        let master = Arc::new(Together(Barrier::new(1)));
        let mut state = State::new(Limits::default());
        state.set_master(master);
        let mut actions = Vec::new();
        state.step(Event::Reload, Instant::now(), &mut actions);
        let Some(Action::Run(id, Task::Master(master, _))) = actions.pop() else { panic!("no job") };
        for _ in 0..2 {
            queue.jobs.push_back((id, Task::Master(master.clone(), Vec::new()), None));
        }
        assert!(matches!(queue.next(), Some(Next::Job(..))));
        // two jobs take long: nobody carries out the other one, but requests are taken
        assert!(matches!(queue.next(), Some(Next::Lead)));
        queue.busy -= 1;
        assert!(matches!(queue.next(), Some(Next::Job(..))));
        assert!(queue.next().is_none());
    }
}
