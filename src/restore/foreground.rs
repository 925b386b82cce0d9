//! Staying in the foreground while the engine, a child, serves.

use crate::sys::fork::Child;
use crate::sys::{Errno, nix_errno};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags};

/// What is passed on to the engine.
const SIGNALS: [Signal; 5] =
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2];

/// Stay until the engine ends, and pass signals on to it. Returns its exit code, 128 and the signal where one killed it.
pub fn supervise(engine: Child) -> Result<i32, Errno> {
    let mask: SigSet = SIGNALS.into_iter().collect();
    mask.thread_block().map_err(nix_errno)?;
    let signals =
        SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(nix_errno)?;
    loop {
        let mut fds = [PollFd::new(&engine, PollFlags::IN), PollFd::new(&signals, PollFlags::IN)];
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, None))?;
        if fds[0].revents().contains(PollFlags::IN) {
            return engine.wait();
        }
        while let Some(info) = signals.read_signal().map_err(nix_errno)? {
            let number = i32::try_from(info.ssi_signo).unwrap_or(0);
            if let Some(signal) = rustix::process::Signal::from_named_raw(number) {
                // It may have ended: then the next poll tells.
                let _ = engine.signal(signal);
            }
        }
    }
}
