//! Who must be held: the process table, judged task by task.

use super::turn::Rival;
use super::{QuiesceError, Scope};
use crate::discover::escaped::escape;
use crate::discover::mountinfo;
use crate::discover::proc::{self, Stat, TaskDir};
use crate::discover::waiters::waits_in_autofs;
use crate::sys::DevNum;
use std::collections::{HashMap, HashSet};

/// Flags of `/proc/PID/stat` (`include/linux/sched.h`).
const PF_IO_WORKER: u32 = 0x10;
const PF_KTHREAD: u32 = 0x20_0000;

/// What is known of a task when it is judged.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Facts {
    stat: Stat,
    /// One of the mounts is in its namespace.
    sees: bool,
    /// It is in one of the groups.
    wanted: bool,
    /// It sleeps in autofs. Where the kernel does not tell: no.
    waits: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    Hold,
    Leave,
    RefuseIoUring,
    RefuseKernel,
}

/// A waiter outside these namespaces is held, too: it may have come through `/proc/PID/root`, or by a descriptor.
fn judge(facts: &Facts) -> Verdict {
    let flag = |bit| facts.stat.flags & bit != 0;
    let blocks = facts.sees && facts.waits;
    if flag(PF_IO_WORKER) {
        return if blocks { Verdict::RefuseIoUring } else { Verdict::Leave };
    }
    if flag(PF_KTHREAD) {
        return if blocks { Verdict::RefuseKernel } else { Verdict::Leave };
    }
    if facts.stat.is_ending() {
        return Verdict::Leave;
    }
    if facts.sees || facts.wanted || facts.waits { Verdict::Hold } else { Verdict::Leave }
}

/// A task to hold.
#[derive(Debug)]
pub(super) struct Visitor {
    pub pid: i32,
    pub tid: i32,
    pub comm: String,
    /// One of the mounts is in its namespace.
    pub sees: bool,
}

/// Reads the process table, again and again.
pub(super) struct Scanner {
    us: i32,
    mounts: HashSet<DevNum>,
    spare: HashSet<i32>,
    groups: HashSet<i32>,
    /// Mount namespaces seen so far: do they contain one of the mounts?
    namespaces: HashMap<u64, bool>,
    /// Others that hold visitors or want to, seen by the first scan.
    pub(super) rivals: Vec<Rival>,
}

impl Scanner {
    pub(super) fn new(scope: &Scope) -> Self {
        Self {
            us: rustix::process::getpid().as_raw_nonzero().get(),
            mounts: scope.mounts.iter().copied().collect(),
            spare: scope.spare.iter().copied().collect(),
            groups: scope.groups.iter().copied().collect(),
            namespaces: HashMap::new(),
            rivals: Vec::new(),
        }
    }

    /// Every visitor whose task is not in `known`. The first scan looks for rivals, too.
    pub(super) fn scan(&mut self, known: &HashSet<i32>) -> Result<Vec<Visitor>, QuiesceError> {
        let mut visitors = Vec::new();
        for pid in proc::pids().map_err(QuiesceError::Proc)? {
            // what has ended since is no visitor
            let Ok(process) = TaskDir::process(pid) else { continue };
            let spared = pid == self.us || self.spare.contains(&pid);
            if spared && !known.is_empty() {
                continue;
            }
            for task in process.tasks().into_iter().flatten().filter(|task| !known.contains(&task.id)) {
                let Some(facts) = self.facts(&task) else { continue };
                let tid = task.id;
                let comm = escape(&facts.stat.name);
                if known.is_empty() {
                    self.rivals.extend(Rival::of(pid, tid, &comm));
                }
                match judge(&facts) {
                    _ if spared => {}
                    Verdict::Hold => visitors.push(Visitor { pid, tid, comm, sees: facts.sees }),
                    Verdict::Leave => {}
                    Verdict::RefuseIoUring => return Err(QuiesceError::IoUring { tid, comm }),
                    Verdict::RefuseKernel => return Err(QuiesceError::Kernel { tid, comm }),
                }
            }
        }
        Ok(visitors)
    }

    fn facts(&mut self, task: &TaskDir) -> Option<Facts> {
        let stat = task.stat()?;
        let sees = self.sees(task);
        let wanted = self.groups.contains(&stat.pgrp);
        let concerned = wanted || !self.mounts.is_empty();
        let waits = concerned && stat.state == b'D' && waits_in_autofs(task).unwrap_or(false);
        Some(Facts { stat, sees, wanted, waits })
    }

    /// Threads may live in different namespaces. One that cannot be read is taken to contain the mounts.
    fn sees(&mut self, task: &TaskDir) -> bool {
        if self.mounts.is_empty() {
            return false;
        }
        // a task that is ending has no namespaces any more
        let Some(namespace) = task.namespace("mnt") else { return false };
        let Self { namespaces, mounts, .. } = self;
        *namespaces.entry(namespace).or_insert_with(|| {
            let Ok(file) = task.read("mountinfo") else { return true };
            mountinfo::parse(&file)
                .map_or(true, |entries| entries.iter().any(|entry| mounts.contains(&entry.dev)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(state: u8, flags: u32, sees: bool, waits: bool) -> Facts {
        let stat = Stat { name: b"x".to_vec(), state, parent: 1, pgrp: 1, flags, start_time: 1 };
        Facts { stat, sees, wanted: false, waits }
    }

    #[test]
    fn who_sees_the_mounts_is_held() {
        for state in *b"RSDTt" {
            assert_eq!(judge(&facts(state, 0, true, false)), Verdict::Hold);
            assert_eq!(judge(&facts(state, 0, false, false)), Verdict::Leave);
        }
        assert_eq!(judge(&facts(b'D', 0, false, true)), Verdict::Hold);
        assert_eq!(judge(&Facts { wanted: true, ..facts(b'S', 0, false, false) }), Verdict::Hold);
    }

    #[test]
    fn who_has_ended_is_left() {
        assert_eq!(judge(&facts(b'Z', 0, true, false)), Verdict::Leave);
        assert_eq!(judge(&facts(b'R', 0x4, true, false)), Verdict::Leave);
    }

    #[test]
    fn who_waits_and_cannot_be_stopped_is_refused() {
        assert_eq!(judge(&facts(b'S', PF_IO_WORKER, true, false)), Verdict::Leave);
        assert_eq!(judge(&facts(b'D', PF_IO_WORKER, true, true)), Verdict::RefuseIoUring);
        assert_eq!(judge(&facts(b'D', PF_KTHREAD, true, true)), Verdict::RefuseKernel);
        // of another namespace's mounts
        assert_eq!(judge(&facts(b'D', PF_KTHREAD, false, true)), Verdict::Leave);
    }
}
