//! What happens, brought to the machine. The reactor is one thread, for signals, the clock, those who ask over the control socket,
//! and requests; the front thread takes requests, too, when all is quiet ([`super::pipe`]), and workers tell what came of
//! their jobs.
//!
//! | thread | brings |
//! |---|---|
//! | reactor | signals, time, questions; requests while the front thread is at work |
//! | front | requests; the outcome of the job that it carries out |
//! | workers, expire | outcomes |
//!
//! Each holds the lock of the engine while the machine decides and its decision is carried out, in which nothing waits but
//! answers to the kernel, and no lock is held while a job is carried out.

use super::answers::Answers;
use super::control::server::{Ask, Listener};
use super::control::{Reply, Request, Status, Who};
use super::kernel::Kernel;
use super::ledger::Ledger;
use super::pipe::Requests;
use super::reconnect::{self, Late};
use super::state::{Action, Event, Limits, State};
use super::upgrade::{Before, Luggage};
use super::workers::{Hands, Job, Pool};
use crate::sys::Errno;
use crate::sys::packet::{Kind, Packet, PacketError};
use calloop::channel::{Channel, Event as Message, Sender, channel};
use calloop::generic::Generic;
use calloop::signals::{Signal, Signals};
use calloop::{EventLoop, Interest, LoopSignal, Mode, PostAction};
use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, UNIX_EPOCH};

/// TERM and INT: stop. HUP: read the maps again. USR1: unmount what is idle.
const SIGNALS: [Signal; 4] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1];

/// Block the signals of an engine in this thread and those it starts: one that comes before the engine serves is carried
/// out then, and does not end the process.
pub fn block_signals() {
    let signals = SIGNALS.iter().filter_map(|signal| nix::sys::signal::Signal::try_from(*signal as i32).ok());
    let mask: nix::sys::signal::SigSet = signals.collect();
    if let Err(error) = mask.thread_block() {
        tracing::warn!(%error, "signals are not blocked");
    }
}

/// The event loop cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReactorError {
    /// The event loop.
    #[error("the event loop failed: {0}")]
    Loop(#[from] calloop::Error),
    /// A descriptor.
    #[error("no descriptor for requests: {0}")]
    Descriptor(#[from] std::io::Error),
}

/// A reactor whose signals are blocked but that does not run yet.
pub struct Reactor<'l> {
    events: EventLoop<'l, Arc<Core>>,
    sender: Sender<Event>,
    asks: Sender<Ask>,
    pipe: OwnedFd,
}

/// What the threads share.
struct Core {
    engine: Mutex<Engine>,
    requests: Requests,
    ledger: Arc<Ledger>,
}

/// A process and its user, and what it looks up.
type Seen = (u32, u32, PathBuf);

struct Engine {
    state: State,
    answers: Answers,
    ledger: Arc<Ledger>,
    pool: Pool,
    /// Decided on and not begun.
    jobs: VecDeque<Job>,
    /// Who waits until maps are read, or idle mounts gone.
    waiting: Vec<(Until, SyncSender<Reply>)>,
    actions: Vec<Action>,
    /// `None`: it cannot become another program.
    luggage: Option<Luggage>,
    /// The program to become.
    next: PathBuf,
    reactor: LoopSignal,
    /// When the reactor looks at the clock at the latest; `None`: never.
    alarm: Option<Instant>,
    ended: bool,
}

#[derive(Clone, Copy)]
enum Until {
    Read,
    Expired,
}

impl Reactor<'_> {
    /// Blocks the signals in this thread, and so in every thread that it starts from now on.
    pub fn new(read: OwnedFd) -> Result<Self, ReactorError> {
        let events = EventLoop::try_new()?;
        let (sender, posts): (_, Channel<Event>) = channel();
        let handle = events.handle();
        handle
            .insert_source(Signals::new(&SIGNALS)?, |signal, (), core: &mut Arc<Core>| {
                core.lock().signal(signal.signal());
            })
            .map_err(|error| error.error)?;
        handle
            .insert_source(posts, |message, (), core| {
                if let Message::Msg(event) = message {
                    core.lock().step(event);
                }
            })
            .map_err(|error| error.error)?;
        let (asks, questions): (_, Channel<Ask>) = channel();
        handle
            .insert_source(questions, |message, (), core| {
                if let Message::Msg(ask) = message {
                    core.lock().ask(ask);
                }
            })
            .map_err(|error| error.error)?;
        Ok(Self { events, sender, asks, pipe: read })
    }

    /// Answer whoever connects.
    pub fn listen(&self, listener: Listener) -> Result<(), ReactorError> {
        let asks = self.asks.clone();
        let source = Generic::new(listener, Interest::READ, Mode::Level);
        let accept = move |_, listener: &mut calloop::generic::NoIoDrop<Listener>, _: &mut Arc<Core>| {
            listener.accept(&asks);
            Ok(PostAction::Continue)
        };
        self.events.handle().insert_source(source, accept).map_err(|error| error.error)?;
        Ok(())
    }

    /// The first thing to happen when it runs.
    pub fn post(&self, event: Event) {
        // The receiver is ours.
        let _ = self.sender.send(event);
    }

    /// Go on trying to attach mounts, requests written to `pipe`, in a thread of its own: opening one may wait.
    pub fn attach_late(&self, kernel: Arc<dyn Kernel>, late: Vec<Late>, pipe: OwnedFd) {
        let sender = self.sender.clone();
        let report = move |path, found| sender.send(Event::Attached(path, found)).is_ok();
        let attach = move || reconnect::attach_late(&*kernel, late, pipe.as_fd(), &report);
        if let Err(error) = std::thread::Builder::new().name("attach".into()).spawn(attach) {
            tracing::error!(%error, "no thread to attach mounts later");
        }
    }

    /// Serve until a signal ends it. `packets` have been read already. With luggage it can become another program.
    pub fn run(
        mut self,
        state: State,
        kernel: Arc<dyn Kernel>,
        packets: Vec<Packet>,
        luggage: Option<Luggage>,
    ) -> Result<(), ReactorError> {
        let answers = Answers::new(kernel.clone());
        let ledger = Arc::new(Ledger::start());
        let requests = Requests::new(self.pipe).map_err(std::io::Error::from)?;
        let watch = Generic::new(requests.watch()?, Interest::READ, Mode::Level);
        let watched = |_, _: &mut _, core: &mut Arc<Core>| {
            core.take_requests();
            Ok(PostAction::Continue)
        };
        self.events.handle().insert_source(watch, watched).map_err(|error| error.error)?;
        let mut core = Arc::new_cyclic(|core: &Weak<Core>| {
            let core = core.clone();
            let report = move |event| {
                if let Some(core) = core.upgrade() {
                    core.lock().step(event);
                }
            };
            let engine = Engine {
                state,
                pool: Pool::new(kernel, answers.clone(), Box::new(report)),
                answers,
                waiting: Vec::new(),
                actions: Vec::new(),
                jobs: VecDeque::new(),
                ledger: ledger.clone(),
                luggage,
                next: PathBuf::new(),
                reactor: self.events.get_signal(),
                alarm: None,
                ended: false,
            };
            Core { engine: Mutex::new(engine), requests, ledger }
        });
        for packet in packets {
            core.lock().step(Event::Packet(packet));
        }
        core.start_front();
        let mut served = Ok(());
        while let (Ok(()), Some(wait)) = (&served, core.tick()) {
            served = self.events.dispatch(wait, &mut core);
        }
        core.end();
        Ok(served?)
    }
}

/// A machine that has panicked must not go on: the service starts another engine, which attaches the mounts.
struct EndsByPanic;

impl Drop for EndsByPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

impl Core {
    fn lock(&self) -> MutexGuard<'_, Engine> {
        // Not poisoned: see `EndsByPanic`.
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For the reactor: look at the clock; how long to wait until the next time. `None`: it is over.
    fn tick(&self) -> Option<Option<Duration>> {
        let mut engine = self.lock();
        if engine.state.deadline().is_some_and(|at| at <= Instant::now()) {
            engine.step(Event::Timer);
        }
        engine.alarm = engine.state.deadline();
        let wait = engine.alarm.map(|at| at.saturating_duration_since(Instant::now()));
        (!engine.ended).then_some(wait)
    }

    /// For the reactor: all that are there.
    fn take_requests(&self) {
        let seen = self.lock().take_requests(&self.requests);
        // Now that workers are at work on them: the requesters wait, so they are still there to be looked at.
        self.note(seen);
    }

    fn note(&self, seen: Vec<Seen>) {
        seen.into_iter().for_each(|(pid, uid, trigger)| self.ledger.note(pid, uid, &trigger));
    }

    fn start_front(self: &Arc<Self>) {
        let (core, hands) = (self.clone(), self.lock().pool.hands());
        let front = std::thread::Builder::new().name("front".into());
        if let Err(error) = front.spawn(move || core.serve_front(&hands)) {
            tracing::warn!(%error, "no thread that waits for requests; the reactor takes them all");
        }
    }

    fn serve_front(&self, hands: &Hands) {
        // Without this thread nobody might look at the pipe.
        let _ends = EndsByPanic;
        let watched = |watched| self.requests.set_watched(watched);
        watched(false);
        while self.requests.wait() {
            let (job, seen) = self.lock().take_for_front(&self.requests);
            watched(true);
            self.note(seen);
            if let Some(job) = job {
                // Before its answer: who gets it may ask again at once.
                hands.carry_out(&job, &|| watched(false));
            }
            watched(false);
        }
    }

    /// Nobody takes requests from now on. A front thread that hangs in a job keeps nothing open.
    fn end(&self) {
        self.requests.close();
        self.lock().luggage = None;
    }
}

impl Engine {
    fn signal(&mut self, signal: Signal) {
        tracing::info!(?signal, "signal");
        match signal {
            Signal::SIGHUP => self.step(Event::Reload),
            Signal::SIGUSR1 => self.step(Event::ExpireNow(None)),
            _ => self.step(Event::Stop),
        }
    }

    /// Take requests up to the first of which a job comes, which is for the caller; who asks for what.
    fn take_for_front(&mut self, requests: &Requests) -> (Option<Job>, Vec<Seen>) {
        let (mut job, mut seen) = (None, Vec::new());
        while job.is_none()
            && let Some(packet) = self.next_request(requests, &mut seen)
        {
            self.decide(Event::Packet(packet));
            job = self.jobs.pop_front();
            self.begin_jobs();
        }
        (job, seen)
    }

    /// Every request that is there; who asks for what.
    fn take_requests(&mut self, requests: &Requests) -> Vec<Seen> {
        let mut seen = Vec::new();
        while let Some(packet) = self.next_request(requests, &mut seen) {
            self.step(Event::Packet(packet));
        }
        seen
    }

    fn next_request(&mut self, requests: &Requests, seen: &mut Vec<Seen>) -> Option<Packet> {
        if self.ended {
            return None;
        }
        loop {
            match requests.take() {
                Ok(Some(packet)) => {
                    tracing::debug!(?packet, "request");
                    if let Kind::MissingIndirect | Kind::MissingDirect = packet.kind {
                        let trigger = self.state.trigger(&packet);
                        seen.extend(trigger.map(|trigger| (packet.tgid, packet.uid, trigger)));
                    }
                    return Some(packet);
                }
                Ok(None) => return None,
                // The engine holds a write end itself, so there is no hang-up; whatever else was in the pipe is
                // gone with the read.
                Err(PacketError::Read(errno)) => {
                    tracing::error!(%errno, "the pipe cannot be read");
                    return None;
                }
                Err(error) => tracing::error!(%error, "not a request"),
            }
        }
    }

    fn step(&mut self, event: Event) {
        self.decide(event);
        self.begin_jobs();
    }

    fn begin_jobs(&mut self) {
        self.jobs.drain(..).for_each(|job| self.pool.run(job));
    }

    /// Have the machine decide, and do what it decides; jobs are only made ready.
    fn decide(&mut self, event: Event) {
        let _whole = EndsByPanic;
        if let Event::Done(job, _) = &event {
            self.pool.ended(*job);
        }
        let mut actions = std::mem::take(&mut self.actions);
        self.state.step(event, Instant::now(), &mut actions);
        for action in actions.drain(..) {
            self.act(action);
        }
        self.actions = actions;
        self.tell_waiting();
        if let Some(at) = self.state.deadline()
            && self.alarm.is_none_or(|alarm| at < alarm)
        {
            self.alarm = Some(at);
            self.reactor.wakeup();
        }
    }

    fn ask(&mut self, Ask { request, reply }: Ask) {
        let answer = match request {
            Request::Status => Reply::Status(self.status()),
            Request::Who => Reply::Who(Who {
                pid: std::process::id(),
                programs: self.ledger.programs(),
                mounted: self.state.mounted_triggers(),
            }),
            Request::Metrics => Reply::Metrics(self.answers.metrics.render(&self.state.counts())),
            Request::Reload => return self.begin(Event::Reload, Until::Read, reply),
            Request::Expire { mount: Some(path) } if !self.state.serves(&path) => {
                Reply::Error(format!("{}: no autofs mount of this engine is there", path.display()))
            }
            Request::Expire { mount } => return self.begin(Event::ExpireNow(mount), Until::Expired, reply),
            Request::Reexec { binary } => match (&self.luggage, binary) {
                (Some(_), Some(binary)) => {
                    // The last moment at which this program can answer.
                    let _ = reply.try_send(Reply::Done(self.state.counts()));
                    self.next = binary;
                    self.pool.set_leaving(true);
                    return self.step(Event::Leave);
                }
                _ => Reply::Error("an engine of restore cannot become another program; `autofs-cr automount --replace` takes its mounts over".into()),
            },
            Request::Log { .. } => Reply::Error("the level of the log is changed without the engine".into()),
        };
        // Whoever asked may have gone.
        let _ = reply.try_send(answer);
    }

    fn begin(&mut self, event: Event, until: Until, reply: SyncSender<Reply>) {
        self.waiting.push((until, reply));
        self.step(event);
    }

    /// Those whose time has come.
    fn tell_waiting(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let (reading, expiring) = (self.state.is_reading(), self.state.is_expiring());
        let over = |until: Until| match until {
            Until::Read => !reading,
            Until::Expired => !expiring,
        };
        for (_, reply) in self.waiting.extract_if(.., |(until, _)| over(*until)) {
            let _ = reply.try_send(Reply::Done(self.state.counts()));
        }
    }

    /// Become the next program; where that fails, go on.
    fn leave(&mut self, mut packets: Vec<Packet>) {
        packets.extend(self.pool.take_requests());
        if let Some(luggage) = &self.luggage {
            let dirs = self
                .state
                .made_dirs()
                .into_iter()
                .map(|(path, dirs)| (path.into_os_string().into_vec(), dirs));
            let state = Before { packets: packets.clone(), dirs: dirs.collect(), times: 0 };
            tracing::info!(program = %self.next.display(), requests = packets.len(), "becoming another program");
            let error = luggage.become_program(&self.next, state);
            tracing::error!(%error, "it goes on as it is");
        }
        self.pool.set_leaving(false);
        self.decide(Event::Stay(packets));
    }

    fn status(&self) -> Status {
        let began = self.answers.metrics.began.duration_since(UNIX_EPOCH).unwrap_or_default();
        Status {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").into(),
            began: began.as_secs(),
            upgrades: self.luggage.as_ref().map_or(0, |luggage| luggage.times),
            counts: self.state.counts(),
            maps: self.state.maps(),
            jobs: self.state.jobs(Instant::now()),
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Run(job, task) => {
                let job = self.pool.job(job, task);
                self.jobs.push_back(job);
            }
            Action::GiveUp(job) => self.pool.give_up(job),
            Action::Answer(answer) => self.answers.give(&answer),
            Action::Unknown(packet) => match self.answers.kernel.find(packet.dev) {
                Ok(place)
                    if place.ino.is_some_and(|ino| ino.get() == packet.ino)
                        && self.state.moved(place.clone()) =>
                {
                    tracing::info!(path = %place.path.display(), dev = %place.dev, "a mount was made again under us");
                    self.decide(Event::Packet(packet));
                }
                _ => self.act(Action::Orphan(packet.dev, packet.token, Errno::NOENT)),
            },
            Action::Orphan(dev, token, errno) => self.answers.orphan(dev, token, errno),
            Action::Leave(packets) => self.leave(packets),
            Action::Expire(group, run) => {
                if let Err(error) = self.pool.expire(group, run) {
                    tracing::error!(%error, "no thread for an expire run");
                    self.decide(Event::ExpireEnded(group, Vec::new()));
                }
            }
            Action::Exit => {
                self.ended = true;
                self.reactor.wakeup();
            }
        }
    }
}

/// A machine with the usual limits.
pub fn machine() -> State {
    State::new(Limits::default())
}
