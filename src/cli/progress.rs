//! What takes long says so, to whoever sits at a terminal.

use super::output::{harmless, width};
use super::table::cut;
use autofs_cr::sys::fork::{Child, fork};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, set_parent_process_death_signal};
use std::io::{self, IsTerminal, Write};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// Nothing is said before.
const QUIET: Duration = Duration::from_secs(1);
/// How often the time is shown anew.
const STEP: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };

/// A line on the terminal, with the time that has passed; gone when it is dropped.
///
/// A process of its own shows it: a restore must have no threads, and whatever it waits for, it does not come to show the time.
pub struct Progress {
    begin: Instant,
    shown: Option<(Child, OwnedFd)>,
}

impl Progress {
    /// From now on; nothing where stderr is no terminal.
    pub fn begin(stage: &str) -> Self {
        let shown = io::stderr().is_terminal().then(|| start(stage)).flatten();
        Self { begin: Instant::now(), shown }
    }

    /// What is done now.
    pub fn stage(&self, text: &str) {
        if let Some((_, pipe)) = &self.shown {
            // Full when the terminal is stopped: nobody looks.
            let _ = rustix::io::write(pipe, format!("{text}\n").as_bytes());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown.take().is_some() && self.begin.elapsed() >= QUIET {
            show("");
        }
    }
}

fn start(stage: &str) -> Option<(Child, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
    let child = fork(|| {
        let _ = set_parent_process_death_signal(Some(Signal::KILL));
        tell(stage.to_owned(), &read)
    });
    Some((child.ok()?, write))
}

/// Until it is killed.
fn tell(mut stage: String, stages: &OwnedFd) -> ! {
    let begin = Instant::now();
    loop {
        let _ = poll(&mut [PollFd::new(stages, PollFlags::IN)], Some(&STEP));
        let mut bytes = [0; 4096];
        if let Ok(length) = rustix::io::read(stages, &mut bytes)
            && let Some(last) = String::from_utf8_lossy(&bytes[..length]).lines().last()
        {
            last.clone_into(&mut stage);
        }
        if begin.elapsed() >= QUIET {
            show(&format!("{} s  {stage}", begin.elapsed().as_secs()));
        }
    }
}

fn show(text: &str) {
    let mut stderr = io::stderr();
    let width = width(&stderr).unwrap_or(80);
    let _ = write!(stderr, "\r\x1b[K{}", cut(&harmless(text), width - 1)).and_then(|()| stderr.flush());
}
