//! Whose turn it is: two that hold each other's threads would never go on.
//!
//! No lock is seen by every autofs-cr and by root alone: they may run in different containers. But each sees the threads of
//! the others. A thread that wants to hold says so by its name, *then* looks for others. It goes on when it finds none; one
//! that finds a holder, or another candidate with a lower number, waits. Of two candidates at least the one that
//! looked later has seen the other.

use super::QuiesceError;
use rustix::thread::{gettid, set_name};
use std::ffi::CStr;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

const CANDIDATE: &CStr = c"autofs-cr-claim";
const HOLDER: &CStr = c"autofs-cr-quiet";
const WAITING: &CStr = c"autofs-cr-queue";
/// How long the others may take.
const LIMIT: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_micros(500);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Candidate,
    Holder,
}

impl Stage {
    fn of(name: &[u8]) -> Option<Self> {
        match name {
            _ if name == CANDIDATE.to_bytes() => Some(Self::Candidate),
            _ if name == HOLDER.to_bytes() => Some(Self::Holder),
            _ => None,
        }
    }
}

/// A thread that holds, or is a candidate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Rival {
    pid: i32,
    tid: i32,
    stage: Stage,
}

impl Rival {
    /// Is this thread one? Any user may give a thread such a name, so only root's count. It is seen until the kernel has
    /// let its visitors go.
    pub(super) fn of(pid: i32, tid: i32, name: &str) -> Option<Self> {
        let stage = Stage::of(name.as_bytes()).filter(|_| tid != own_tid())?;
        let is_root = std::fs::metadata(format!("/proc/{tid}")).is_ok_and(|metadata| metadata.uid() == 0);
        is_root.then_some(Self { pid, tid, stage })
    }

    fn goes_first(&self) -> bool {
        self.stage == Stage::Holder || self.tid < own_tid()
    }

    /// Where it is now.
    fn stage_now(&self) -> Option<Stage> {
        Stage::of(std::fs::read(format!("/proc/{}/comm", self.tid)).ok()?.trim_ascii_end())
    }
}

fn own_tid() -> i32 {
    gettid().as_raw_nonzero().get()
}

/// Wait for our turn. `look` finds the rivals, and whatever else the caller wants to know at that time.
pub(super) fn take<T>(
    mut look: impl FnMut() -> Result<(Vec<Rival>, T), QuiesceError>,
) -> Result<T, QuiesceError> {
    let deadline = Instant::now() + LIMIT;
    loop {
        call_ourselves(CANDIDATE);
        let (rivals, found) = look()?;
        if rivals.is_empty() {
            call_ourselves(HOLDER);
            return Ok(found);
        }
        let (first, behind): (Vec<_>, Vec<_>) = rivals.into_iter().partition(Rival::goes_first);
        if first.is_empty() {
            // each has seen us and steps back; or it had looked before, and holds now
            wait_until(&behind, deadline, |rival| rival.stage_now() != Some(Stage::Candidate))?;
        } else {
            call_ourselves(WAITING);
            wait_until(&first, deadline, |rival| rival.stage_now().is_none())?;
        }
    }
}

fn wait_until(
    rivals: &[Rival],
    deadline: Instant,
    done: impl Fn(&Rival) -> bool,
) -> Result<(), QuiesceError> {
    while let Some(rival) = rivals.iter().find(|rival| !done(rival)) {
        if Instant::now() > deadline {
            return Err(QuiesceError::Busy(rival.pid));
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// It cannot fail for a thread of our own.
fn call_ourselves(name: &CStr) {
    let _ = set_name(name);
}
