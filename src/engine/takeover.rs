//! Taking mounts from an automounter that runs: it is stopped, its mounts are attached, it is killed.
//!
//! Killed, not ended with TERM: then it would unmount what is idle, under the programs that use it next.

use super::config::Wanted;
use crate::discover::facts::{AutofsMount, Master, Survey};
use crate::discover::{self, DiscoverError, proc};
use crate::sys::packet::V5_SIZE;
use crate::sys::process::{self, ProcessId};
use rustix::process::Signal;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a moment is waited for in which the old master mounts and unmounts nothing.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);
/// The old master runs this many times as long as it was stopped before it is stopped again, so that those it serves
/// hardly notice.
const RUNS: u32 = 4;

/// Masters that are stopped. They go on when this is dropped.
#[derive(Debug)]
pub struct OldMasters(Vec<ProcessId>);

/// Stop the automounters that serve mounts which are wanted: at a moment when they have nothing half done, as far as
/// there is one. Masters of other programs (systemd, for one) are left alone.
pub fn stop(wanted: &[Wanted]) -> Result<OldMasters, DiscoverError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let survey = discover::survey(&discover::Target::Own)?;
        let found = masters(&survey, wanted);
        let begin = Instant::now();
        // Those that have ended since need not be stopped.
        let stopped =
            OldMasters(found.iter().copied().filter(|master| master.signal(Signal::STOP).is_ok()).collect());
        if stopped.0.is_empty() || stopped.have_nothing_to_do(&survey)? {
            return Ok(stopped);
        }
        if Instant::now() > deadline {
            tracing::warn!("the old master is always at work; what it does just now may be left half done");
            return Ok(stopped);
        }
        drop(stopped);
        std::thread::sleep(PAUSE.max(begin.elapsed() * RUNS));
    }
}

/// An automounter that lives and serves a mount which is wanted, and that mount.
pub fn living(wanted: &[Wanted]) -> Result<Option<(ProcessId, PathBuf)>, DiscoverError> {
    let survey = discover::survey(&discover::Target::Own)?;
    let found = served(&survey, wanted).find(|(master, _)| master.is_alive());
    Ok(found.map(|(master, path)| (master, path.to_owned())))
}

fn masters(survey: &Survey, wanted: &[Wanted]) -> HashSet<ProcessId> {
    served(survey, wanted).map(|(master, _)| master).collect()
}

/// Mounts that are wanted and have an automounter.
fn served<'s>(survey: &'s Survey, wanted: &'s [Wanted]) -> impl Iterator<Item = (ProcessId, &'s Path)> {
    let paths: HashSet<&Path> = wanted.iter().flat_map(|map| &map.paths).map(AsRef::as_ref).collect();
    let mounts = survey.mounts.iter().filter(move |mount| paths.contains(mount.path.as_path()));
    mounts.filter_map(|mount| match mount.master {
        Master::Automount { process } | Master::AutofsCr { process } => Some((process, mount.path.as_path())),
        _ => None,
    })
}

impl OldMasters {
    /// Their process ids.
    pub fn pids(&self) -> impl Iterator<Item = i32> {
        self.0.iter().map(|process| process.pid)
    }

    /// Whoever waits for them does so with a request that they have not read, and none of their programs (mount(8), maps)
    /// runs. `before`: what was so before they were stopped.
    fn have_nothing_to_do(&self, before: &Survey) -> Result<bool, DiscoverError> {
        // Those that they serve come to their next request.
        std::thread::sleep(PAUSE);
        let own = |mount: &AutofsMount| self.0.iter().any(|master| mount.master.process() == Some(*master));
        let pipe = |mount: &AutofsMount| Some((mount.master.process()?.pid, mount.read_end()?));
        // Counted before those who wait: who comes in between makes this moment look busy, not free.
        let pipes: HashSet<_> = before.mounts.iter().filter(|mount| own(mount)).filter_map(pipe).collect();
        let mut unread: HashMap<_, usize> =
            pipes.into_iter().map(|(pid, fd)| ((pid, fd), unread(pid, fd))).collect();
        let survey = discover::survey(&discover::Target::Own)?;
        for mount in survey.mounts.iter().filter(|mount| own(mount) && !mount.waiters.is_empty()) {
            let Some(left) = pipe(mount).and_then(|pipe| unread.get_mut(&pipe)) else { return Ok(false) };
            match left.checked_sub(mount.waiters.len()) {
                Some(rest) => *left = rest,
                None => return Ok(false),
            }
        }
        let runs = |pid: i32| {
            ProcessId::of(pid).is_ok_and(ProcessId::is_alive) && !self.pids().any(|master| master == pid)
        };
        let programs = |master: &ProcessId| proc::tree(master.pid).unwrap_or_default().into_iter().any(runs);
        Ok(!self.0.iter().any(programs))
    }

    /// Their mounts are ours: end them. Returns how many there were.
    pub fn end(mut self) -> usize {
        let masters = std::mem::take(&mut self.0);
        for master in &masters {
            // One that is gone is what we want.
            let _ = master.signal(Signal::KILL);
        }
        masters.len()
    }
}

/// How many requests are in a pipe.
fn unread(pid: i32, fd: i32) -> usize {
    let bytes = process::copy_fd(pid, fd).and_then(rustix::io::ioctl_fionread);
    bytes.map_or(0, |bytes| usize::try_from(bytes).unwrap_or(0) / V5_SIZE)
}

impl Drop for OldMasters {
    fn drop(&mut self) {
        for master in &self.0 {
            let _ = master.signal(Signal::CONT);
        }
    }
}
