//! Who triggers mounts: programs, with counts and times, so that a scanner behind a storm of mounts is found.
//!
//! Programs are told apart by user and name, not by process: what scans is often a tree of processes that live for
//! a moment each.

use crate::discover::escaped::escape;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Programs that are remembered; the one that was quiet longest goes first.
const PROGRAMS: usize = 256;
/// Triggers that are remembered for each; what goes beyond is counted without a name.
const TRIGGERS: usize = 64;
/// A process is not looked at again for so long: what it executes meanwhile counts as what it was.
const KNOWN: Duration = Duration::from_millis(100);
/// So many processes are known.
const PROCESSES: usize = 64;

/// A program, and what it looked up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// User id.
    pub uid: u32,
    /// Its name (`comm`).
    pub comm: String,
    /// The process that was seen last, in the engine's pid namespace.
    pub pid: u32,
    /// The command line of the first one that was seen; empty when it had ended.
    pub command: String,
    /// The control group of that one: tells the unit or the session.
    pub cgroup: String,
    /// Lookups that had to wait for the engine.
    pub lookups: u64,
    /// The first and the last one: seconds since 1970.
    pub first: u64,
    /// See `first`.
    pub last: u64,
    /// Which triggers, the one with most lookups first.
    pub triggers: Vec<Looked>,
    /// Lookups of triggers beyond those.
    pub others: u64,
}

/// Lookups of one trigger by one program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Looked {
    /// The trigger.
    #[serde(with = "crate::discover::escaped")]
    pub path: PathBuf,
    /// How many.
    pub lookups: u64,
    /// The last one: seconds since 1970.
    pub last: u64,
}

/// All programs.
#[derive(Debug, Default)]
pub struct Ledger {
    programs: HashMap<(u32, String), Program>,
    /// The names of processes, and when they were looked at.
    known: HashMap<u32, (String, Instant)>,
}

impl Ledger {
    /// Process `pid` of user `uid` looks a trigger up. While it waits for that it can be looked at.
    pub fn note(&mut self, pid: u32, uid: u32, path: &Path) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let comm = self.comm(pid);
        self.note_at(pid, uid, comm, path, now);
    }

    fn comm(&mut self, pid: u32) -> String {
        let now = Instant::now();
        if let Some((comm, _)) = self.known.get(&pid).filter(|(_, at)| now - *at < KNOWN) {
            return comm.clone();
        }
        if self.known.len() >= PROCESSES {
            self.known.clear();
        }
        let comm = comm(pid);
        self.known.insert(pid, (comm.clone(), now));
        comm
    }

    fn note_at(&mut self, pid: u32, uid: u32, comm: String, path: &Path, now: u64) {
        let key = (uid, comm);
        if !self.programs.contains_key(&key) && self.programs.len() >= PROGRAMS {
            let quiet = self.programs.iter().min_by_key(|(_, program)| program.last);
            if let Some(quiet) = quiet.map(|(key, _)| key.clone()) {
                self.programs.remove(&quiet);
            }
        }
        let comm = key.1.clone();
        let program = self.programs.entry(key).or_insert_with(|| Program {
            uid,
            comm,
            pid,
            command: command(pid),
            cgroup: cgroup(pid),
            lookups: 0,
            first: now,
            last: now,
            triggers: Vec::new(),
            others: 0,
        });
        program.pid = pid;
        program.lookups += 1;
        program.last = now;
        let room = program.triggers.len() < TRIGGERS;
        match program.triggers.iter_mut().find(|looked| looked.path == path) {
            Some(looked) => {
                looked.lookups += 1;
                looked.last = now;
            }
            None if room => {
                program.triggers.push(Looked { path: path.to_owned(), lookups: 1, last: now });
            }
            None => program.others += 1,
        }
    }

    /// All programs, the one with most lookups first.
    pub fn programs(&self) -> Vec<Program> {
        let mut programs: Vec<Program> = self.programs.values().cloned().collect();
        programs
            .sort_by(|a, b| b.lookups.cmp(&a.lookups).then_with(|| (a.uid, &a.comm).cmp(&(b.uid, &b.comm))));
        for program in &mut programs {
            program.triggers.sort_by(|a, b| b.lookups.cmp(&a.lookups).then_with(|| a.path.cmp(&b.path)));
        }
        programs
    }
}

/// The name of a process; `?` when it has ended or is not seen from here.
pub fn comm(pid: u32) -> String {
    let comm = std::fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    if comm.is_empty() { "?".into() } else { escape(comm.strip_suffix(b"\n").unwrap_or(&comm)) }
}

fn command(pid: u32) -> String {
    const LONGEST: usize = 200;
    let mut line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.truncate(LONGEST);
    let words: Vec<String> = line.split(|byte| *byte == 0).map(escape).collect();
    words.join(" ").trim_end().to_owned()
}

/// Of the unified hierarchy.
fn cgroup(pid: u32) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_busiest_comes_first() {
        let mut ledger = Ledger::default();
        for (at, name) in ["cat", "find", "find", "find"].into_iter().enumerate() {
            let path = format!("/net/{}", at % 2);
            ledger.note_at(100 + at as u32, 0, name.into(), Path::new(&path), at as u64);
        }
        ledger.note_at(7, 1000, "find".into(), Path::new("/net/0"), 9);
        let programs = ledger.programs();
        let told: Vec<_> =
            programs.iter().map(|p| (p.uid, p.comm.as_str(), p.lookups, p.first, p.last, p.pid)).collect();
        assert_eq!(told, [(0, "find", 3, 1, 3, 103), (0, "cat", 1, 0, 0, 100), (1000, "find", 1, 9, 9, 7)]);
        let looked = |path: &str, lookups, last| Looked { path: path.into(), lookups, last };
        assert_eq!(programs[0].triggers, [looked("/net/1", 2, 3), looked("/net/0", 1, 2)]);
    }

    #[test]
    fn memory_is_bounded() {
        let mut ledger = Ledger::default();
        for n in 0..PROGRAMS as u64 + 10 {
            ledger.note_at(1, 0, format!("p{n}"), Path::new("/a"), n);
        }
        for n in 0..TRIGGERS + 5 {
            ledger.note_at(1, 0, "scanner".into(), Path::new(&format!("/a/{n}")), 1000);
        }
        let programs = ledger.programs();
        assert_eq!(programs.len(), PROGRAMS);
        let scanner = &programs[0];
        assert_eq!((scanner.comm.as_str(), scanner.triggers.len(), scanner.others), ("scanner", TRIGGERS, 5));
        assert!(programs.iter().all(|program| program.comm != "p0"));
    }

    #[test]
    fn a_process_has_a_name() {
        assert_ne!(comm(std::process::id()), "?");
        assert!(!command(std::process::id()).is_empty());
        assert_eq!(comm(u32::MAX), "?");
    }
}
