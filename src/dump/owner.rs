//! What the kernel tells to a mount's owner alone: who triggered it last.
//!
//! (The idle timeout of a single key is not read. The kernel tells it only in exchange for another one, and it tells the same
//! for a key that has none of its own and for one that never expires: it could not be put back.)

use super::plan::Inquiry;
use crate::attach::Target;
use crate::quiesce::{QuiesceError, Quiesced, Scope};
use crate::sys::control::{Caller, Control, Requester};
use crate::sys::tracee::{Injected, TraceeError};
use crate::sys::{DevNum, Errno};
use std::os::fd::AsFd;

/// How many questions are asked while the master is held: about ten milliseconds.
const BATCH: usize = 64;

/// A master could not be asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OwnerError {
    /// REQUESTER waits for the end of an expiry, which the master could not answer while it is held.
    #[error("one of its mounts is being expired")]
    Expiring,
    /// It cannot be held.
    #[error(transparent)]
    Hold(#[from] QuiesceError),
    /// No call can be made in its place.
    #[error(transparent)]
    Call(#[from] TraceeError),
    /// `/dev/autofs` cannot be handed to it.
    #[error("/dev/autofs cannot be copied: {0}")]
    Device(Errno),
}

/// Who triggered a mount.
pub type Answer = (DevNum, Requester);

/// Ask through this caller, in whose place the paths are looked up. What has no answer is left out.
pub fn ask<C: Caller>(control: &Control<C>, mounts: &[Target]) -> Vec<Answer> {
    let open = |mount: &Target| control.open_mount(&mount.path, mount.dev).ok();
    let (mounts, roots): (Vec<_>, Vec<_>) =
        mounts.iter().filter_map(|mount| Some((mount, open(mount)?))).unzip();
    let questions: Vec<_> =
        mounts.iter().zip(&roots).map(|(mount, root)| (C::borrow(root), mount.path.as_path())).collect();
    let answers = control.requester_all(&questions);
    drop(questions);
    for root in roots {
        // it was opened there just now
        let _ = control.close_mount(root);
    }
    mounts.iter().zip(answers).filter_map(|(mount, answer)| Some((mount.dev, answer.ok()?))).collect()
}

/// Ask in the place of a master. Its whole group is held meanwhile, so that nobody can begin to expire; it notices nothing.
pub fn ask_master(control: &Control, inquiry: &Inquiry) -> Result<Vec<Answer>, OwnerError> {
    let mut answers = Vec::new();
    for mounts in inquiry.mounts.chunks(BATCH) {
        let held = Quiesced::hold(&Scope { groups: vec![inquiry.group], ..Scope::default() })?;
        if held.waiting().iter().any(|waiting| waiting.waiter.expiring) {
            return Err(OwnerError::Expiring);
        }
        let device = control.as_fd().try_clone_to_owned();
        let device = device
            .map_err(|error| OwnerError::Device(Errno::from_io_error(&error).unwrap_or(Errno::MFILE)))?;
        let mounts = mounts.to_vec();
        let asked = held.act(inquiry.master.pid, move |held| {
            Injected::new(held, &device).map(|injected| ask(&Control::with_caller(injected), &mounts))
        })?;
        answers.extend(asked?);
        held.release()?;
    }
    Ok(answers)
}
