//! Taking mounts from an automounter that runs: it is stopped, its mounts are attached, it is killed.
//!
//! Killed, not ended with TERM: then it would unmount what is idle, under the programs that use it next.

use super::config::Wanted;
use crate::discover::facts::{Master, Survey};
use crate::discover::{self, DiscoverError, proc};
use crate::sys::process::ProcessId;
use rustix::process::Signal;
use std::collections::HashSet;
use std::path::Path;
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
        if stopped.0.is_empty() || stopped.have_nothing_to_do()? {
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

fn masters(survey: &Survey, wanted: &[Wanted]) -> HashSet<ProcessId> {
    let paths: HashSet<&Path> = wanted.iter().flat_map(|map| &map.paths).map(AsRef::as_ref).collect();
    let mounts = survey.mounts.iter().filter(|mount| paths.contains(mount.path.as_path()));
    mounts
        .filter_map(|mount| match mount.master {
            Master::Automount { process } | Master::AutofsCr { process } => Some(process),
            _ => None,
        })
        .collect()
}

impl OldMasters {
    /// Their process ids.
    pub fn pids(&self) -> impl Iterator<Item = i32> {
        self.0.iter().map(|process| process.pid)
    }

    /// Nobody waits for them, and none of their programs (mount(8), maps) runs.
    fn have_nothing_to_do(&self) -> Result<bool, DiscoverError> {
        let survey = discover::survey(&discover::Target::Own)?;
        let awaited = |process: ProcessId| {
            let own = survey.mounts.iter().filter(|mount| mount.master.process() == Some(process));
            own.into_iter().any(|mount| !mount.waiters.is_empty())
        };
        let runs = |pid: i32| {
            ProcessId::of(pid).is_ok_and(ProcessId::is_alive) && !self.pids().any(|master| master == pid)
        };
        let programs = |master: i32| proc::tree(master).unwrap_or_default().into_iter().any(runs);
        Ok(!self.0.iter().any(|master| awaited(*master) || programs(master.pid)))
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

impl Drop for OldMasters {
    fn drop(&mut self) {
        for master in &self.0 {
            let _ = master.signal(Signal::CONT);
        }
    }
}
