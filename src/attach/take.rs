//! Mounts are taken from their masters and get no other one: for a dump that leaves them catatonic.

use super::old::OldMasters;
use super::{AttachError, Target, open_roots};
use crate::discover;
use crate::faults;
use crate::quiesce::{Quiesced, Scope, Waiting};
use crate::sys::control::{Control, MountFd};
use rustix::process::Signal;
use std::os::fd::AsFd;

/// Mounts that are taken away. Dropping gives them back.
#[derive(Debug)]
pub struct Taken<'a> {
    control: &'a Control,
    space: &'a discover::Target,
    targets: &'a [Target],
    roots: Vec<MountFd>,
    old: OldMasters,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// Nothing is changed.
    Prepared,
    /// Some or all are catatonic, and every visitor is held.
    Held(Quiesced),
    /// All are catatonic; these waiters are stopped.
    Stopped(Vec<Waiting>),
    /// Nothing is to be given back.
    Done,
}

impl<'a> Taken<'a> {
    /// Open everything that is needed to take and to give back. Every target has a pipe.
    pub fn prepare(
        control: &'a Control,
        space: &'a discover::Target,
        targets: &'a [Target],
    ) -> Result<Self, AttachError> {
        let roots = open_roots(space, targets)?;
        let survey = discover::survey(space)?;
        let pairs: Vec<_> = targets.iter().zip(&roots).collect();
        let old = OldMasters::find(&survey, &pairs)?;
        Ok(Self { control, space, targets, roots, old, stage: Stage::Prepared })
    }

    /// Make them catatonic, all visitors held. Returns the waiters, whose calls will be made again. An old master that
    /// lives keeps a write end of its pipe, so that it sees no hang-up.
    ///
    /// Until [`Self::let_go`] the rules of [`crate::quiesce`] hold: print nothing.
    pub fn take(&mut self) -> Result<Vec<Waiting>, AttachError> {
        self.old.keep_write_ends(&[], self.space)?;
        let mounts = self.targets.iter().map(|target| target.dev).collect();
        let scope = Scope { mounts, spare: self.old.pids(), ..Scope::default() };
        let mut held = match Quiesced::hold(&scope) {
            Ok(held) => held,
            Err(error) => {
                self.old.take_back_write_ends(self.space);
                return Err(error.into());
            }
        };
        let taken = self.make_catatonic(&mut held);
        let waiting = held.restarting().to_vec();
        self.stage = Stage::Held(held);
        taken.map(|()| waiting)
    }

    fn make_catatonic(&self, held: &mut Quiesced) -> Result<(), AttachError> {
        faults::point("dump.visitors-held")?;
        for (index, (target, root)) in self.targets.iter().zip(&self.roots).enumerate() {
            self.control
                .make_catatonic(root.as_fd())
                .map_err(|source| AttachError::Control { path: target.path.clone(), source })?;
            if index == 0 {
                faults::point("dump.first-catatonic")?;
            }
        }
        faults::point("dump.all-catatonic")?;
        self.old.forget_requests();
        held.restart_waiters()?;
        Ok(faults::point("dump.waiters-restarting")?)
    }

    /// Let everyone go but the waiters, who stay stopped. Returns them.
    pub fn let_go(&mut self) -> Result<&[Waiting], AttachError> {
        match std::mem::replace(&mut self.stage, Stage::Done) {
            Stage::Held(held) => {
                self.stage = Stage::Stopped(held.restarting().to_vec());
                self.stage = Stage::Stopped(held.release_waiters_stopped()?);
            }
            other => self.stage = other,
        }
        match &self.stage {
            Stage::Stopped(waiting) => Ok(waiting),
            _ => Ok(&[]),
        }
    }

    /// They stay as they are.
    pub fn keep(mut self) {
        self.stage = Stage::Done;
    }

    /// Back to their masters, as far as those live. Who waited asks again.
    pub fn give_back(mut self) -> Result<(), AttachError> {
        self.undo()
    }

    fn undo(&mut self) -> Result<(), AttachError> {
        let pairs: Vec<_> = self.targets.iter().zip(&self.roots).collect();
        match std::mem::replace(&mut self.stage, Stage::Done) {
            Stage::Prepared | Stage::Done => Ok(()),
            Stage::Held(mut held) => {
                // what was not reached yet has to be catatonic as well, to be given a pipe
                for (target, root) in &pairs {
                    self.control
                        .make_catatonic(root.as_fd())
                        .map_err(|source| AttachError::Control { path: target.path.clone(), source })?;
                }
                // whatever happens next: no waiter may see the error that CATATONIC gave it
                let restarted = held.restart_waiters().map_err(AttachError::from);
                let given = self.old.give_back(&pairs, self.space);
                given.and(restarted.map(drop)).and(held.release().map_err(AttachError::from))
            }
            Stage::Stopped(waiting) => {
                let given = self.old.give_back(&pairs, self.space);
                waiting.iter().for_each(go_on);
                given
            }
        }
    }
}

/// Continue a waiter that we stopped, unless its user had.
pub fn go_on(waiting: &Waiting) {
    if !waiting.was_stopped {
        // it may have been killed meanwhile
        let _ = waiting.waiter.process.signal(Signal::CONT);
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.undo() {
            tracing::error!("the mounts could not all be given back: {error}");
        }
    }
}
