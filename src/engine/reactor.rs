//! The reactor: one thread that reads the pipe, the signals, the workers' results and the clock, and has the machine
//! decide. It never blocks.

use super::kernel::Kernel;
use super::state::{Action, Event, Limits, State};
use super::workers::{Pool, answer};
use crate::sys::Errno;
use crate::sys::packet::{PacketError, read_packet};
use calloop::channel::{Channel, Event as Message, Sender, channel};
use calloop::generic::Generic;
use calloop::signals::{Signal, Signals};
use calloop::{EventLoop, Interest, LoopSignal, Mode, PostAction};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

/// TERM and INT: stop. HUP: read the maps again. USR1: unmount what is idle.
const SIGNALS: [Signal; 4] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1];

/// The event loop cannot go on.
#[derive(Debug, thiserror::Error)]
#[error("the event loop failed: {0}")]
pub struct ReactorError(#[from] calloop::Error);

/// A reactor whose signals are blocked but that does not run yet.
pub struct Reactor<'l> {
    events: EventLoop<'l, Engine>,
    sender: Sender<Event>,
}

/// What the event loop works on.
struct Engine {
    state: State,
    kernel: Arc<dyn Kernel>,
    pool: Pool,
    actions: Vec<Action>,
    end: LoopSignal,
    ended: bool,
}

impl Reactor<'_> {
    /// Blocks the signals in this thread, and so in every thread that it starts from now on.
    pub fn new(read: OwnedFd) -> Result<Self, ReactorError> {
        let events = EventLoop::try_new()?;
        let (sender, results): (_, Channel<Event>) = channel();
        let handle = events.handle();
        let source = |error: calloop::Error| ReactorError(error);
        handle
            .insert_source(Signals::new(&SIGNALS)?, |signal, (), engine: &mut Engine| {
                engine.signal(signal.signal())
            })
            .map_err(|error| source(error.error))?;
        handle
            .insert_source(results, |message, (), engine| {
                if let Message::Msg(event) = message {
                    engine.step(event);
                }
            })
            .map_err(|error| source(error.error))?;
        handle
            .insert_source(Generic::new(read, Interest::READ, Mode::Level), |_, pipe, engine| {
                engine.packets(pipe.as_fd());
                Ok(PostAction::Continue)
            })
            .map_err(|error| source(error.error))?;
        Ok(Self { events, sender })
    }

    /// Serve until a signal ends it.
    pub fn run(mut self, state: State, kernel: Arc<dyn Kernel>) -> Result<(), ReactorError> {
        let pool = Pool::new(kernel.clone(), self.sender.clone());
        let end = self.events.get_signal();
        let mut engine = Engine { state, kernel, pool, actions: Vec::new(), end, ended: false };
        while !engine.ended {
            let wait = engine.state.deadline().map(|at| at.saturating_duration_since(Instant::now()));
            self.events.dispatch(wait, &mut engine)?;
            if engine.state.deadline().is_some_and(|at| at <= Instant::now()) {
                engine.step(Event::Timer);
            }
        }
        Ok(())
    }
}

impl Engine {
    fn signal(&mut self, signal: Signal) {
        tracing::info!(?signal, "signal");
        match signal {
            Signal::SIGHUP => self.step(Event::Reload),
            Signal::SIGUSR1 => self.step(Event::ExpireNow),
            _ => self.step(Event::Stop),
        }
    }

    /// Every packet that is there.
    fn packets(&mut self, pipe: std::os::fd::BorrowedFd<'_>) {
        loop {
            match read_packet(pipe) {
                Ok(Some(packet)) => {
                    tracing::debug!(?packet, "request");
                    self.step(Event::Packet(packet));
                }
                Ok(None) => return,
                // The engine holds a write end itself, so there is no hang-up; whatever else was in the pipe is
                // gone with the read.
                Err(PacketError::Read(errno)) => return tracing::error!(%errno, "the pipe cannot be read"),
                Err(error) => tracing::error!(%error, "not a request"),
            }
        }
    }

    fn step(&mut self, event: Event) {
        if let Event::Done(job, _) = &event {
            self.pool.ended(*job);
        }
        let mut actions = std::mem::take(&mut self.actions);
        self.state.step(event, Instant::now(), &mut actions);
        for action in actions.drain(..) {
            self.act(action);
        }
        self.actions = actions;
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Run(job, task) => self.pool.run(job, task),
            Action::GiveUp(job) => {
                if let Some(ticket) = self.pool.give_up(job) {
                    tracing::warn!(path = %ticket.place.path.display(), "a job takes too long; its request is answered without it");
                    answer(&*self.kernel, &ticket.place, ticket.token, Err(Errno::TIMEDOUT));
                }
            }
            Action::Answer(place, token, result) => answer(&*self.kernel, &place, token, result),
            Action::Unknown(packet) => match self.kernel.find(packet.dev) {
                Ok(place) if place.ino == Some(packet.ino) && self.state.moved(place.clone()) => {
                    tracing::info!(path = %place.path.display(), dev = %place.dev, "a mount was made again under us");
                    self.step(Event::Packet(packet));
                }
                _ => self.act(Action::Orphan(packet.dev, packet.token, Errno::NOENT)),
            },
            Action::Orphan(dev, token, errno) => match self.kernel.find(dev) {
                Ok(place) => answer(&*self.kernel, &place, token, Err(errno)),
                Err(error) => tracing::warn!(%dev, %error, "a request of a mount that cannot be found"),
            },
            Action::Expire(group, run) => self.pool.expire(group, run),
            Action::Exit => {
                self.ended = true;
                self.end.stop();
            }
        }
    }
}

/// A machine with the usual limits.
pub fn machine() -> State {
    State::new(Limits::default())
}
