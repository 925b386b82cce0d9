//! A master that is another process: what only it may do is done in its place, by ptrace.

use super::{AttachError, Opened, Target};
use crate::discover::{self, proc::TaskDir};
use crate::sys::control::{Control, DEVICE, MountFd};
use crate::sys::process;
use crate::sys::tracee::{Held, Injected, RemoteFd, Seized, TraceeError};
use rustix::fs::{Mode, OFlags};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// How long one of its threads may take to stop.
const LIMIT: Duration = Duration::from_secs(2);
/// How many roots are in its descriptor table at a time.
const BATCH: usize = 64;

/// A process of which one thread is held. Dropping lets it go.
#[derive(Debug)]
pub(super) struct Remote<'a> {
    pid: i32,
    held: Held,
    device: OwnedFd,
    space: &'a discover::Target,
}

impl<'a> Remote<'a> {
    /// Hold the first of its threads that stops. `space`: where the mounts are, for messages.
    pub(super) fn hold(pid: i32, space: &'a discover::Target) -> Result<Self, AttachError> {
        let failed = |source| AttachError::Master { pid, source };
        let device = rustix::fs::open(DEVICE, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let device = device
            .map_err(|errno| AttachError::Device(crate::sys::control::ControlError::Unavailable(errno)))?;
        let process = TaskDir::process(pid).map_err(|_| failed(TraceeError::Gone(pid)))?;
        let mut result = failed(TraceeError::Gone(pid));
        for task in process.tasks().into_iter().flatten() {
            // One that sleeps uninterruptibly would stop only later, and could not be let go before.
            if task.stat().is_none_or(|stat| matches!(stat.state, b'D' | b'Z' | b'X')) {
                continue;
            }
            match Seized::new(task.id).and_then(|seized| seized.stop(LIMIT).map_err(|(_, error)| error)) {
                Ok(held) => return Ok(Self { pid, held, device, space }),
                Err(error) => result = failed(error),
            }
        }
        Err(result)
    }

    /// SETPIPEFD of every mount, in its context. `pipe` is ours; it gets a descriptor of it for the time being.
    pub(super) fn set_pipes(
        &mut self,
        mounts: &[Opened<'_>],
        pipe: BorrowedFd<'_>,
    ) -> Result<(), AttachError> {
        for batch in mounts.chunks(BATCH) {
            let mut sent = Vec::with_capacity(batch.len() + 1);
            let result = self.set_batch(batch, pipe, &mut sent);
            let closed = sent.into_iter().try_for_each(|fd| self.close(fd));
            result.and(closed)?;
        }
        Ok(())
    }

    fn set_batch(
        &mut self,
        mounts: &[Opened<'_>],
        pipe: BorrowedFd<'_>,
        sent: &mut Vec<RemoteFd>,
    ) -> Result<(), AttachError> {
        for fd in mounts.iter().map(|(_, root)| root.as_fd()).chain([pipe]) {
            sent.push(self.send(fd)?);
        }
        let (pid, space) = (self.pid, self.space);
        let injected = Injected::new(&mut self.held, &self.device)
            .map_err(|source| AttachError::Master { pid, source })?;
        let control = Control::with_caller(injected);
        let Some((pipe, roots)) = sent.split_last() else { return Ok(()) };
        mounts.iter().zip(roots).try_for_each(|((target, _), root)| {
            control.set_pipe(*root, *pipe).map_err(|error| AttachError::of(error, target, pid, space))
        })
    }

    /// OPENMOUNT in its context; the descriptor is copied out.
    pub(super) fn open(&mut self, target: &Target) -> Result<MountFd, AttachError> {
        let pid = self.pid;
        let injected = Injected::new(&mut self.held, &self.device)
            .map_err(|source| AttachError::Master { pid, source })?;
        let opened = Control::with_caller(injected).open_mount(&target.path, target.dev);
        let its = opened.map_err(|error| AttachError::of(error, target, pid, self.space))?;
        let copy = process::copy_fd(pid, its.0);
        self.close(its)?;
        copy.map(MountFd::from).map_err(|errno| AttachError::Pipe { pid, fd: its.0, errno })
    }

    /// Give it a copy of a descriptor.
    pub(super) fn send(&mut self, fd: BorrowedFd<'_>) -> Result<RemoteFd, AttachError> {
        self.held.send_fd(fd).map_err(|source| AttachError::Master { pid: self.pid, source })
    }

    /// Close a descriptor that was sent.
    pub(super) fn close(&mut self, fd: RemoteFd) -> Result<(), AttachError> {
        self.held.close_fd(fd).map_err(|source| AttachError::Master { pid: self.pid, source })
    }
}
