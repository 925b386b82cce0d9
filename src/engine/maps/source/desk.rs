//! A client of a service on a thread of its own, so that who asks can go away when no answer comes.
//!
//! Libraries wait for servers as long as they like: minutes, when a server is frozen. No worker of the engine waits with them.

use super::remote::ServiceError;
use nix::sys::signal::{SigSet, SigmaskHow};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A service that did not answer, or not soon, is not asked again for this time.
const PAUSE: Duration = Duration::from_secs(10);
/// An error that comes sooner is no reason for a pause.
const SOON: Duration = Duration::from_secs(1);
/// A client without work is dropped after this time, and with it its connection.
const IDLE: Duration = Duration::from_secs(60);
/// As many threads may be left behind in calls that do not come back before the service is given up.
const THREADS_MAX: usize = 8;

/// Something to do with the client.
type Job<C> = Box<dyn FnOnce(&mut C) + Send>;

/// Where a service is asked; one question at a time.
pub struct Desk<C> {
    make: Arc<dyn Fn() -> C + Send + Sync>,
    limit: Duration,
    state: Arc<Mutex<State<C>>>,
}

struct State<C> {
    /// The way to the thread that has the client.
    jobs: Option<Sender<Job<C>>>,
    /// Nobody asks before then.
    paused: Option<Instant>,
    /// Each thread holds a count, and so do we.
    threads: Arc<()>,
}

impl<C> State<C> {
    fn is_paused(&self) -> bool {
        self.paused.is_some_and(|until| Instant::now() < until)
    }

    fn pause(&mut self) {
        self.paused = Some(Instant::now() + PAUSE);
    }
}

/// The state is whole between any two operations on it.
fn lock<C>(state: &Mutex<State<C>>) -> MutexGuard<'_, State<C>> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<C> std::fmt::Debug for Desk<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desk").field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl<C: 'static> Desk<C> {
    /// A desk whose client is made, on its thread, when something is asked. No question takes longer than `limit`.
    pub fn new(limit: Duration, make: impl Fn() -> C + Send + Sync + 'static) -> Self {
        let state = State { jobs: None, paused: None, threads: Arc::new(()) };
        Self { make: Arc::new(make), limit, state: Arc::new(Mutex::new(state)) }
    }

    /// Ask the client. An answer after the limit is lost.
    pub fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut C) -> Result<T, ServiceError> + Send + 'static,
    ) -> Result<T, ServiceError> {
        let deadline = Instant::now() + self.limit;
        let (sender, answer) = channel();
        let state = self.state.clone();
        let job = move |client: &mut C| {
            // Nobody waits for this any more, or the question before it has shown that there is no answer.
            if Instant::now() >= deadline || lock(&state).is_paused() {
                return;
            }
            let start = Instant::now();
            let result = question(client);
            if matches!(result, Err(ServiceError::Unavailable(_))) && start.elapsed() > SOON {
                lock(&state).pause();
            }
            let _ = sender.send(result);
        };
        self.send(Box::new(job))?;
        match answer.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(result) => result,
            Err(RecvTimeoutError::Disconnected) if Instant::now() < deadline => Err(no_answer()),
            // Or the thread came to the question too late.
            Err(_) => {
                let mut state = lock(&self.state);
                // The thread is left behind. It ends when its call comes back.
                state.jobs = None;
                state.pause();
                Err(ServiceError::TimeLimit(self.limit))
            }
        }
    }

    /// Hand a job to the thread; one is started when there is none.
    fn send(&self, job: Job<C>) -> Result<(), ServiceError> {
        let mut state = lock(&self.state);
        if state.is_paused() {
            return Err(no_answer());
        }
        let job = match &state.jobs {
            None => job,
            Some(jobs) => match jobs.send(job) {
                Ok(()) => return Ok(()),
                // A panic has ended the thread.
                Err(unsent) => unsent.0,
            },
        };
        if Arc::strong_count(&state.threads) > THREADS_MAX {
            let text = format!("{THREADS_MAX} calls to it have not come back");
            return Err(ServiceError::Unavailable(text));
        }
        let (sender, jobs) = channel();
        let (make, alive) = (self.make.clone(), state.threads.clone());
        let thread = std::thread::Builder::new().name("maps".into());
        // The engine takes its signals from a descriptor. A thread that was started before, when the master map was read,
        // must not get them: they would end the process.
        let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK);
        let spawned = thread.spawn(move || {
            serve(&*make, &jobs);
            drop(alive);
        });
        let _ = mask.and_then(|mask| mask.thread_set_mask());
        spawned.map_err(|error| ServiceError::Unavailable(format!("no thread to ask it: {error}")))?;
        let _ = sender.send(job);
        state.jobs = Some(sender);
        Ok(())
    }
}

fn no_answer() -> ServiceError {
    ServiceError::Unavailable("it did not answer a moment ago".into())
}

/// The thread: until nobody can ask any more.
fn serve<C>(make: &dyn Fn() -> C, jobs: &Receiver<Job<C>>) {
    let mut client = None;
    loop {
        let job = match (&client, jobs.recv_timeout(IDLE)) {
            (_, Ok(job)) => job,
            (_, Err(RecvTimeoutError::Timeout)) => {
                client = None;
                let Ok(job) = jobs.recv() else { return };
                job
            }
            (_, Err(RecvTimeoutError::Disconnected)) => return,
        };
        job(client.get_or_insert_with(make));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_stays_between_questions() {
        let desk = Desk::new(Duration::from_secs(10), || 0);
        let count = || {
            desk.ask(|count| {
                *count += 1;
                Ok(*count)
            })
        };
        assert_eq!(count().unwrap(), 1);
        assert_eq!(count().unwrap(), 2);
    }

    #[test]
    fn nobody_waits_longer_than_the_limit() {
        let desk = Desk::new(Duration::from_millis(100), || ());
        let start = Instant::now();
        let result = desk.ask(|()| {
            std::thread::sleep(Duration::from_secs(100));
            Ok(())
        });
        assert!(matches!(result, Err(ServiceError::TimeLimit(_))), "{result:?}");
        // And the next ones do not wait at all.
        let result = desk.ask(|()| Ok(()));
        assert!(matches!(result, Err(ServiceError::Unavailable(_))), "{result:?}");
        assert!(start.elapsed() < Duration::from_secs(50));
    }

    #[test]
    fn a_client_that_panics_is_made_again() {
        let desk = Desk::new(Duration::from_secs(10), || ());
        let result: Result<(), _> = desk.ask(|()| panic!("a bug"));
        assert!(matches!(result, Err(ServiceError::Unavailable(_))), "{result:?}");
        let again = (0..100).find_map(|_| {
            std::thread::sleep(Duration::from_millis(10));
            desk.ask(|()| Ok(7)).ok()
        });
        assert_eq!(again, Some(7));
    }
}
