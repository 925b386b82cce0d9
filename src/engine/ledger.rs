//! Who triggers mounts: programs, with counts and times, so that a scanner behind a storm of mounts is found.
//!
//! Programs are told apart by user and name, not by process: what scans is often a tree of processes that live for
//! a moment each.

use crate::discover::escaped::escape;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Programs that are remembered; the one that was quiet longest goes first.
const PROGRAMS: usize = 256;
/// Triggers that are remembered for each; what goes beyond is counted without a name.
const TRIGGERS: usize = 64;
/// A process is not looked at again for so long: what it executes meanwhile counts as what it was.
const KNOWN: Duration = Duration::from_millis(100);
/// The name of a process that cannot be seen.
const UNSEEN: &str = "?";
/// So many processes are known.
const PROCESSES: usize = 64;
/// Programs that wait to be met; what comes beyond is met at another lookup of its own.
const STRANGERS: usize = 64;

/// A program, and what it looked up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// User id.
    pub uid: u32,
    /// Its name (`comm`).
    pub comm: String,
    /// The process that was seen last, in the engine's pid namespace.
    pub pid: u32,
    /// The command line of the first one that could be asked; empty when none could.
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
#[derive(Debug)]
pub struct Ledger {
    book: Arc<Mutex<Book>>,
    strangers: SyncSender<Stranger>,
}

/// A program of which only the name is known.
#[derive(Debug, PartialEq, Eq)]
struct Stranger {
    pid: u32,
    uid: u32,
    comm: String,
}

impl Ledger {
    /// An empty one. Programs are met in a thread of its own: to ask for a command line waits as long as another thread of the program
    /// has its memory locked, in a page fault on a dead server for example.
    pub fn start() -> Self {
        let book = Arc::<Mutex<Book>>::default();
        let (strangers, met) = sync_channel(STRANGERS);
        let known = book.clone();
        let meet = move || met.iter().for_each(|stranger| meet(&known, stranger));
        if let Err(error) = std::thread::Builder::new().name("ledger".into()).spawn(meet) {
            tracing::warn!(%error, "no thread that asks for command lines");
        }
        Self { book, strangers }
    }

    /// Process `pid` of user `uid` looks a trigger up. Its name is read, which never blocks; while it waits for the trigger
    /// it has one.
    pub fn note(&self, pid: u32, uid: u32, path: &Path) {
        let known = self.lock().comm(pid);
        let comm = known.unwrap_or_else(|| {
            let comm = comm(pid);
            self.lock().know(pid, &comm);
            comm
        });
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let stranger = self.lock().note(pid, uid, comm, path, now);
        if let Some(stranger) = stranger {
            // When many wait already, at another time.
            let _ = self.strangers.try_send(stranger);
        }
    }

    /// All programs, the one with most lookups first.
    pub fn programs(&self) -> Vec<Program> {
        self.lock().programs()
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        lock(&self.book)
    }
}

/// Read what else there is to know, where nobody has: of one that looks up much there are several in the queue.
fn meet(book: &Mutex<Book>, Stranger { pid, uid, comm }: Stranger) {
    let key = (uid, comm);
    if lock(book).programs.get(&key).is_none_or(|program| !program.command.is_empty()) {
        return;
    }
    let (command, cgroup) = (command(pid), cgroup(pid));
    // It may have ended since, and another one may have its number.
    if !command.is_empty()
        && self::comm(pid) == key.1
        && let Some(program) = lock(book).programs.get_mut(&key)
    {
        (program.command, program.cgroup) = (command, cgroup);
    }
}

fn lock(book: &Mutex<Book>) -> MutexGuard<'_, Book> {
    // It is whole between any two lookups.
    book.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug, Default)]
struct Book {
    programs: HashMap<(u32, String), Program>,
    /// The names of processes, and when they were looked at.
    known: HashMap<u32, (String, Instant)>,
}

impl Book {
    fn comm(&self, pid: u32) -> Option<String> {
        let (comm, at) = self.known.get(&pid)?;
        (at.elapsed() < KNOWN).then(|| comm.clone())
    }

    fn know(&mut self, pid: u32, comm: &str) {
        if self.known.len() >= PROCESSES {
            self.known.retain(|_, (_, at)| at.elapsed() < KNOWN);
        }
        if self.known.len() < PROCESSES {
            self.known.insert(pid, (comm.to_owned(), Instant::now()));
        }
    }

    fn note(&mut self, pid: u32, uid: u32, comm: String, path: &Path, now: u64) -> Option<Stranger> {
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
            command: String::new(),
            cgroup: String::new(),
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
        let stranger = program.command.is_empty() && program.comm != UNSEEN;
        stranger.then(|| Stranger { pid, uid, comm: program.comm.clone() })
    }

    fn programs(&self) -> Vec<Program> {
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
    if comm.is_empty() { UNSEEN.into() } else { escape(comm.strip_suffix(b"\n").unwrap_or(&comm)) }
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
        let mut ledger = Book::default();
        for (at, name) in ["cat", "find", "find", "find"].into_iter().enumerate() {
            let path = format!("/net/{}", at % 2);
            ledger.note(100 + at as u32, 0, name.into(), Path::new(&path), at as u64);
        }
        ledger.note(7, 1000, "find".into(), Path::new("/net/0"), 9);
        let programs = ledger.programs();
        let told: Vec<_> =
            programs.iter().map(|p| (p.uid, p.comm.as_str(), p.lookups, p.first, p.last, p.pid)).collect();
        assert_eq!(told, [(0, "find", 3, 1, 3, 103), (0, "cat", 1, 0, 0, 100), (1000, "find", 1, 9, 9, 7)]);
        let looked = |path: &str, lookups, last| Looked { path: path.into(), lookups, last };
        assert_eq!(programs[0].triggers, [looked("/net/1", 2, 3), looked("/net/0", 1, 2)]);
    }

    #[test]
    fn memory_is_bounded() {
        let mut ledger = Book::default();
        for n in 0..PROGRAMS as u64 + 10 {
            ledger.note(1, 0, format!("p{n}"), Path::new("/a"), n);
        }
        for n in 0..TRIGGERS + 5 {
            ledger.note(1, 0, "scanner".into(), Path::new(&format!("/a/{n}")), 1000);
        }
        let programs = ledger.programs();
        assert_eq!(programs.len(), PROGRAMS);
        let scanner = &programs[0];
        assert_eq!((scanner.comm.as_str(), scanner.triggers.len(), scanner.others), ("scanner", TRIGGERS, 5));
        assert!(programs.iter().all(|program| program.comm != "p0"));
    }

    #[test]
    fn who_is_new_is_asked_once() {
        let own = std::process::id();
        let note = |book: &mut Book| book.note(own, 0, comm(own), Path::new("/a"), 1);
        let book = Mutex::<Book>::default();
        let stranger = note(&mut lock(&book)).unwrap();
        assert_eq!(lock(&book).programs()[0].command, "");
        meet(&book, stranger);
        assert_eq!(note(&mut lock(&book)), None);
        let programs = lock(&book).programs();
        assert_eq!((programs[0].lookups, programs[0].command.is_empty()), (2, false));
    }

    #[test]
    fn who_asks_is_met() {
        let ledger = Ledger::start();
        ledger.note(std::process::id(), 0, Path::new("/a"));
        let begin = Instant::now();
        while ledger.programs()[0].command.is_empty() {
            assert!(begin.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn who_cannot_be_seen_is_not_asked() {
        assert_eq!(Book::default().note(u32::MAX, 0, comm(u32::MAX), Path::new("/a"), 1), None);
    }

    #[test]
    fn a_process_has_a_name() {
        assert_ne!(comm(std::process::id()), "?");
        assert!(!command(std::process::id()).is_empty());
        assert_eq!(comm(u32::MAX), "?");
    }
}
