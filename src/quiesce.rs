//! Holding visitors while a mount changes hands.

use crate::sys::DevNum;

/// Every visitor of some mounts, held. Dropping lets all go (waiters' calls restart).
#[derive(Debug)]
pub struct Quiesced {}

/// What to hold.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// The mounts; every task of every mount namespace that contains one is a visitor.
    pub mounts: Vec<DevNum>,
    /// Processes that are never held: the masters (they never wait), and our own.
    pub spare: Vec<i32>,
}

/// Visitors could not be held; nothing was changed and all are running again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuiesceError {}

impl Quiesced {
    /// Seize and interrupt every visitor until no new one appears.
    pub fn hold(scope: &Scope) -> Result<Self, QuiesceError> {
        let _ = scope;
        todo!()
    }
    /// After CATATONIC: wait for the waiters to stop, set their calls to restart.
    pub fn restart_waiters(&mut self) -> Result<usize, QuiesceError> {
        todo!()
    }
    /// Let everyone go.
    pub fn release(self) -> Result<(), QuiesceError> {
        todo!()
    }
    /// Let everyone go but the waiters, which stay stopped (SIGSTOP).
    pub fn release_waiters_stopped(self) -> Result<(), QuiesceError> {
        todo!()
    }
}
