//! What a long run did and when, so that what a program saw can be explained.

use super::LOG;
use anyhow::Result;
use std::fmt::Write;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A program that does nothing for so long is looked at.
const STUCK: Duration = Duration::from_secs(4);
/// How often.
const PAUSE: Duration = Duration::from_millis(100);
/// A machine that keeps a thread which only sleeps for so long is busy.
const MACHINE: Duration = Duration::from_millis(500);
/// What is told of the time before and after a mishap.
const AROUND: Duration = Duration::from_secs(3);

/// Time of day (UTC), as the engine's log has it.
pub fn clock(at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs() % 86_400;
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02}.{:06}", seconds % 60, since.subsec_micros())
}

/// Who did what, when. Every copy writes the same one.
#[derive(Clone, Default)]
pub struct Diary(Arc<Mutex<Pages>>);

#[derive(Default)]
struct Pages {
    notes: Vec<(SystemTime, String)>,
    /// How long the engine's log was; its lines carry no time.
    log: Vec<(SystemTime, u64)>,
}

impl Diary {
    /// This begins now.
    pub fn note(&self, what: impl Into<String>) {
        self.pages().notes.push((SystemTime::now(), what.into()));
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was noted, and what the engine's log says of `path`, from shortly before `begin` until shortly after `end`.
    pub fn between(&self, begin: SystemTime, end: SystemTime, path: &str) -> String {
        let times = begin - AROUND..end + AROUND;
        let pages = self.pages();
        let mut text = String::new();
        for (when, what) in pages.notes.iter().filter(|(when, _)| times.contains(when)) {
            let _ = writeln!(text, "    {} {what}", clock(*when));
        }
        let log = fs::read(LOG).unwrap_or_default();
        let mut before = 0;
        for (when, length) in &pages.log {
            let part = String::from_utf8_lossy(log.get(before..*length as usize).unwrap_or_default());
            before = *length as usize;
            for line in part.lines().filter(|line| times.contains(when) && speaks_of(line, path)) {
                let _ = writeln!(text, "    {} log: {line}", clock(*when));
            }
        }
        text
    }
}

fn speaks_of(line: &str, path: &str) -> bool {
    let at = line.find(path).and_then(|at| line.as_bytes().get(at + path.len()));
    line.contains("ERROR") || line.ends_with(path) || at.is_some_and(|next| !next.is_ascii_alphanumeric())
}

/// Looks at programs from outside, and tells where those hang that do nothing.
pub struct Watch {
    end: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Watch {
    /// Watch these processes.
    pub fn start(pids: Vec<i32>, diary: Diary) -> Self {
        let end = Arc::new(AtomicBool::new(false));
        let stop = end.clone();
        let thread = std::thread::spawn(move || {
            let mut seen: Vec<_> = pids.iter().map(|_| (String::new(), Instant::now(), false)).collect();
            while !stop.load(Ordering::Relaxed) {
                let asleep = Instant::now();
                std::thread::sleep(PAUSE);
                diary.pages().log.push((SystemTime::now(), fs::metadata(LOG).map_or(0, |log| log.len())));
                let late = asleep.elapsed().saturating_sub(PAUSE);
                if late > MACHINE {
                    // Whoever waited meanwhile may have waited for the machine, not for the engine.
                    diary.note(format!("the watch itself did not run for {late:.1?}"));
                }
                for (pid, (switches, since, told)) in pids.iter().zip(&mut seen) {
                    let now = line(&format!("/proc/{pid}/status"), "voluntary_ctxt_switches");
                    if now != *switches {
                        (*switches, *since, *told) = (now, Instant::now(), false);
                    } else if since.elapsed() > STUCK && !*told {
                        *told = true;
                        diary.note(format!("program {pid} has done nothing for {STUCK:?}{}", tasks()));
                    }
                }
            }
        });
        Self { end, thread }
    }

    /// Not any more.
    pub fn stop(self) {
        self.end.store(true, Ordering::Relaxed);
        let _ = self.thread.join();
    }
}

fn line(file: &str, begins: &str) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().find(|line| line.starts_with(begins)).unwrap_or_default().to_owned()
}

/// Where every thread is.
fn tasks() -> String {
    let mut text = String::new();
    for task in all_tasks().unwrap_or_default() {
        let read = |name: &str| fs::read_to_string(task.join(name)).unwrap_or_default().trim().to_owned();
        let (name, wchan, state) =
            (read("comm"), read("wchan"), line(&task.join("status").to_string_lossy(), "State"));
        let _ = write!(text, "\n      {} {name} {state} {wchan} {}", task.display(), read("syscall"));
    }
    text
}

fn all_tasks() -> Result<Vec<PathBuf>> {
    let mut tasks = Vec::new();
    for process in fs::read_dir("/proc")? {
        let process = process?;
        if process.file_name().to_string_lossy().parse::<i32>().is_ok() {
            tasks.extend(fs::read_dir(process.path().join("task"))?.flatten().map(|task| task.path()));
        }
    }
    Ok(tasks)
}
