//! Workers: threads that do what may block, one job at a time each.
//!
//! A job that hangs holds its thread and its own key, nothing else: more threads are started as long as all are
//! at work. Each answers the request of its job itself, and tells the machine what came of it.

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
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Most threads at once. Jobs beyond that wait; their requests are answered in time all the same.
const THREADS: usize = 256;
/// A thread without work ends after this time,
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

/// Tells the machine that something has happened.
pub type Report = Box<dyn Fn(Event) + Send + Sync>;

/// Something for a worker to do.
pub struct Job {
    id: JobId,
    task: Task,
    ticket: Option<Arc<Ticket>>,
}

/// The pool. Its threads are not waited for: the process may end while one hangs.
pub struct Pool {
    hands: Arc<Hands>,
    /// Of running jobs.
    tickets: HashMap<JobId, Arc<Ticket>>,
}

/// What a thread needs to carry out jobs.
pub struct Hands {
    kernel: Arc<dyn Kernel>,
    answers: Answers,
    report: Report,
    queue: Mutex<Queue>,
    wake: Condvar,
    /// Runs end as soon as they can.
    leaving: AtomicBool,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    idle: usize,
    threads: usize,
}

impl Pool {
    /// Without threads.
    pub fn new(kernel: Arc<dyn Kernel>, answers: Answers, report: Report) -> Self {
        let hands = Hands {
            kernel,
            answers,
            report,
            queue: Mutex::default(),
            wake: Condvar::new(),
            leaving: AtomicBool::new(false),
        };
        Self { hands: Arc::new(hands), tickets: HashMap::new() }
    }

    /// For a thread that carries out jobs beside those of the pool.
    pub fn hands(&self) -> Arc<Hands> {
        self.hands.clone()
    }

    /// A job, for [`Pool::run`] or [`Hands::carry_out`].
    pub fn job(&mut self, id: JobId, task: Task) -> Job {
        let ticket = Ticket::of(&task).map(Arc::new);
        if let Some(ticket) = &ticket {
            self.tickets.insert(id, ticket.clone());
        }
        Job { id, task, ticket }
    }

    /// Have a job carried out.
    pub fn run(&self, job: Job) {
        let mut queue = self.hands.lock();
        queue.jobs.push_back(job);
        if queue.jobs.len() <= queue.idle {
            // Whom it wakes needs the lock.
            drop(queue);
            self.hands.wake.notify_one();
        } else if queue.threads < THREADS {
            let hands = self.hands.clone();
            match std::thread::Builder::new().name("worker".into()).spawn(move || hands.work()) {
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

    /// Answer the request of a running job in its place, if nobody has. Where that cannot be (no path leads to the mount any
    /// more) it is left to the job.
    pub fn give_up(&mut self, id: JobId) {
        let Some(ticket) = self.tickets.remove(&id) else { return };
        let Some(answer) = ticket.claim(Err(Errno::TIMEDOUT)) else { return };
        let path = answer.place.target(&answer.key);
        tracing::warn!(path = %path.display(), "a job takes too long; its request is answered without it");
        let kernel = &self.hands.kernel;
        let call = || kernel.answer(&answer.place, answer.token, answer.result);
        if self.hands.answers.give_by(&answer, call).is_err() {
            ticket.answered.store(false, Ordering::Relaxed);
        }
    }

    /// Runs over idle mounts end before the next mount, or go on as ever.
    pub fn set_leaving(&self, leaving: bool) {
        self.hands.leaving.store(leaving, Ordering::Relaxed);
    }

    /// Requests of running jobs that nobody has answered; from now on their jobs will not.
    pub fn take_requests(&mut self) -> Vec<Packet> {
        let tickets = self.tickets.drain().filter_map(|(_, ticket)| ticket.claim(Err(Errno::TIMEDOUT)));
        tickets.map(|answer| answer.packet()).collect()
    }

    /// Start a run over idle mounts. In a thread of its own: it sleeps in the kernel while workers carry out what the kernel
    /// chooses.
    pub fn expire(&self, group: GroupId, run: ExpireRun) -> std::io::Result<()> {
        let hands = self.hands.clone();
        let expire = move || {
            let stuck = hands.expire(&run);
            (hands.report)(Event::ExpireEnded(group, stuck));
        };
        std::thread::Builder::new().name("expire".into()).spawn(expire).map(drop)
    }
}

impl Hands {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // A queue is whole between any two operations on it.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        while let Some(job) = self.next() {
            self.carry_out(&job, &|| ());
        }
    }

    /// Do a job, answer its request, and tell what came of it. `done` is called before the answer of a lookup: nothing is left to do
    /// then that may block.
    pub fn carry_out(&self, Job { id, task, ticket }: &Job, done: &dyn Fn()) {
        let about = log::about(task.place().map_or(Path::new("/"), |place| &place.path));
        let begin = Instant::now();
        let claim = |result| ticket.as_ref().and_then(|ticket| ticket.claim(result));
        let outcome = jobs::run(&*self.kernel, task, &|held, result| {
            done();
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
        drop(about);
        (self.report)(Event::Done(*id, outcome));
    }

    fn next(&self) -> Option<Job> {
        let mut queue = self.lock();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                return Some(job);
            }
            if queue.idle >= SPARE {
                queue.threads -= 1;
                return None;
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

    #[test]
    fn threads_of_a_storm_end_when_it_is_over() {
        const JOBS: usize = 100;
        let kernel: Arc<dyn Kernel> = Arc::new(Simulated::default());
        let mut state = State::new(Limits::default());
        let together = Arc::new(Together(Barrier::new(JOBS + 1)));
        state.set_master(together.clone());
        let mut pool = Pool::new(kernel.clone(), Answers::new(kernel), Box::new(drop));
        let mut actions = Vec::new();
        state.step(Event::Reload, Instant::now(), &mut actions);
        let Some(Action::Run(id, Task::Master(master, _))) = actions.pop() else { panic!("no job") };
        for _ in 0..JOBS {
            let job = pool.job(id, Task::Master(master.clone(), Vec::new()));
            pool.run(job);
        }
        let threads = || pool.hands.lock().threads;
        assert_eq!(threads(), JOBS);
        together.0.wait();
        let begin = Instant::now();
        while threads() > SPARE {
            assert!(begin.elapsed() < IDLE / 2, "{} threads have nothing to do", threads());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
