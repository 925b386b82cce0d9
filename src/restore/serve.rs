//! The helper becomes the engine.

use super::helper::Job;
use crate::engine::control::server::Listener;
use crate::engine::upgrade::Before;
use crate::engine::{self, Start, config};
use crate::sys::packet::PacketPipe;

/// Serve the mounts of a job; `ready` is told how many waiters were handed on.
pub(super) fn serve(job: &Job<'_>, pipe: PacketPipe, ready: &mut dyn FnMut(usize)) -> Result<(), String> {
    let wanted = config::of_checkpoint(job.image, &job.root);
    let listeners = Listener::usual().into_iter().collect();
    let start = Start { wanted, pipe, master: None, listeners, before: Before::default() };
    engine::serve(start, ready).map_err(|error| error.to_string())
}
