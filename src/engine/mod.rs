//! The automounter.
//!
//! | module | what it does |
//! |---|---|
//! | [`maps`] | from a key to what must be mounted |
//! | [`background`] | what a process in the background does without |
//! | [`config`] | which maps are served where |
//! | [`served`] | one of them, and how |
//! | [`explain`] | what a lookup would mount, without mounting it |
//! | [`state`] | the machine: events in, actions out; pure |
//! | [`task`] | what it asks of workers, and what they report; plain data |
//! | [`jobs`] | what a worker does for one action: mount a key, unmount it, read a map |
//! | [`kernel`] | what jobs ask of the kernel, as a trait: linux and simulated |
//! | [`mount`] | mounts by system call, mount(8) for the rest |
//! | [`workers`] | the threads that jobs run in |
//! | [`answers`] | answers: told the kernel, counted, logged |
//! | [`metrics`] | counters and histograms |
//! | [`control`] | asking a running engine |
//! | [`ledger`] | which programs trigger mounts |
//! | [`pipe`] | the pipe of requests, and which thread waits at it |
//! | [`reactor`] | the threads that bring requests, signals, results and time to the machine |
//! | [`reconnect`] | attaching the mounts that exist when it starts |
//! | [`rpc`] | ONC RPC calls with a limit |
//! | [`upgrade`] | becoming another program |
//! | [`takeover`] | stopping the automounter that served them until now |
//!
//! A request's way: pipe → front thread → machine → front thread, which mounts and answers the kernel itself; while that is at
//! work, pipe → reactor → machine → worker.

pub mod answers;
pub mod background;
pub mod config;
pub mod control;
pub mod explain;
pub mod jobs;
pub mod kernel;
pub mod ledger;
pub mod maps;
pub mod metrics;
pub mod mount;
pub mod pipe;
pub mod reactor;
pub mod reconnect;
pub mod rpc;
pub mod served;
pub mod state;
pub mod takeover;
pub mod task;
pub mod upgrade;
pub mod workers;

use crate::sys::control::{Control, ControlError};
use crate::sys::memory;
use crate::sys::packet::PacketPipe;
use config::Wanted;
use control::server::Listener;
use kernel::linux::Linux;
use reactor::{Reactor, ReactorError};
use reconnect::ConnectError;
use served::Master;
use state::Event;
use std::os::fd::AsFd;
use std::sync::Arc;
use upgrade::{Before, Luggage};

/// An engine could not start, or not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// `/dev/autofs` cannot be used.
    #[error(transparent)]
    Device(#[from] ControlError),
    /// A descriptor could not be copied.
    #[error("cannot copy the pipe's write end: {0}")]
    Pipe(crate::sys::Errno),
    /// It cannot connect to its mounts.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The event loop.
    #[error(transparent)]
    Reactor(#[from] ReactorError),
}

/// What an engine starts with.
#[derive(Debug)]
pub struct Start {
    /// The maps, and where they are served.
    pub wanted: Vec<Wanted>,
    /// All requests come through it.
    pub pipe: PacketPipe,
    /// What a reload follows besides the maps. Only with it can the engine become another program.
    pub master: Option<Arc<dyn Master>>,
    /// Whoever connects to one is answered.
    pub listeners: Vec<Listener>,
    /// What it knows from the program that it was before.
    pub before: Before,
}

/// Serve maps until TERM or INT. `ready` is called when every mount that is wanted exists and belongs to this process's
/// group, with the number of waiters that were handed on.
///
/// On return idle mounts are gone, and busy ones stay, catatonic: the next engine attaches them.
pub fn serve(start: Start, ready: &mut dyn FnMut(usize)) -> Result<(), EngineError> {
    let Start { wanted, pipe, master, listeners, before } = start;
    let no_copy = |_| EngineError::Pipe(crate::sys::Errno::MFILE);
    let luggage = Luggage::pack(&pipe, &listeners, before.times).map_err(no_copy)?;
    let luggage = master.is_some().then_some(luggage);
    let PacketPipe { read, write } = pipe;
    memory::few_arenas();
    // Signals are blocked before any thread is started.
    let reactor = Reactor::new(read)?;
    let own_write = write.try_clone().map_err(no_copy)?;
    let kernel = Arc::new(Linux::new(Control::open()?, write));
    let mut state = reactor::machine();
    if let Some(master) = master {
        state.set_master(master);
    }
    // A restore tells what it cannot do; an engine serves what it can.
    let patient = luggage.is_some();
    let connected =
        reconnect::connect(&mut state, &*kernel, &wanted, own_write.as_fd(), &before.dirs, patient)?;
    if !connected.late.is_empty() {
        reactor.attach_late(kernel.clone(), connected.late, own_write);
    }
    if connected.unwanted {
        reactor.post(Event::Reload);
    }
    let packets = before.packets;
    drop((wanted, before.dirs));
    memory::give_back();
    for listener in listeners {
        reactor.listen(listener)?;
    }
    ready(connected.waiters);
    reactor.run(state, kernel, packets, luggage)?;
    Ok(())
}
