//! A held task that becomes another program.

use super::{Held, Stop, TraceeError, arch, call, interrupt, ptrace, resume, wait, wait_for_event};
use std::time::{Duration, Instant};

/// How long stopping may take.
const STOP: Duration = Duration::from_secs(10);

impl Held {
    /// Let it run until it has executed another program, and hold that before its first instruction. Who calls has seen to
    /// it that it will (by a signal). After an error it is held as well, wherever it is.
    pub fn run_to_exec(&mut self, limit: Duration) -> Result<(), TraceeError> {
        self.end_session()?;
        let tid = self.tid;
        let options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACEEXEC;
        call("setting the options", tid, ptrace(libc::PTRACE_SETOPTIONS, tid, 0, options as usize))?;
        let deadline = Instant::now() + limit;
        let mut stop = Stop::Event;
        let executed = loop {
            resume(libc::PTRACE_CONT, tid, stop)?;
            match wait(tid, deadline.saturating_duration_since(Instant::now())) {
                Ok(Stop::Exec) => break Ok(()),
                Ok(other) => stop = other,
                Err(error) => break Err(error),
            }
        };
        // Not inside execve, but after it, like any other task that is held.
        interrupt(tid)?;
        if executed.is_ok() {
            resume(libc::PTRACE_CONT, tid, Stop::Exec)?;
        }
        wait_for_event(tid, STOP)?;
        self.before = arch::Before::of(tid);
        executed
    }
}
