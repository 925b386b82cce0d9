//! What `/proc` tells of one task that is seized.

use super::Waiting;
use crate::discover::proc::TaskDir;
use crate::discover::waiters::{waiter, waits_in_autofs};

/// Does it sleep so that no stop can wake it?
pub(super) fn is_asleep(tid: i32) -> bool {
    let stat = TaskDir::process(tid).ok().and_then(|task| task.stat());
    // nobody waits for one that has ended, or for its other threads
    stat.is_none_or(|stat| stat.state == b'D' || stat.has_ended())
}

/// Does it sleep in autofs?
pub(super) fn waits(tid: i32) -> bool {
    TaskDir::process(tid).is_ok_and(|task| waits_in_autofs(&task) == Some(true))
}

/// Who it is; `None` when it has ended.
pub(super) fn describe(pid: i32, tid: i32) -> Option<Waiting> {
    let waiter = waiter(&TaskDir::process(pid).ok()?, &TaskDir::process(tid).ok()?)?;
    Some(Waiting { waiter, was_stopped: Status::of(tid)?.stop_waits() })
}

/// From `/proc/TID/status`; the signals are bit masks (bit 0: signal 1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Status {
    /// Who traces it; 0: nobody, or nobody that this `/proc` shows.
    pub tracer: i32,
    pending: u64,
    /// In a call that brings its own mask, as `epoll_pwait` does: that one.
    blocked: u64,
}

impl Status {
    pub(super) fn of(tid: i32) -> Option<Self> {
        TaskDir::process(tid).ok()?.read("status").ok().map(|status| Self::parse(&status))
    }

    fn parse(status: &[u8]) -> Self {
        let mut parsed = Self::default();
        for line in String::from_utf8_lossy(status).lines() {
            let Some((name, value)) = line.split_once(":\t") else { continue };
            let mask = || u64::from_str_radix(value, 16).unwrap_or(0);
            match name {
                "TracerPid" => parsed.tracer = value.parse().unwrap_or(0),
                // of the task, and of its process
                "SigPnd" | "ShdPnd" => parsed.pending |= mask(),
                "SigBlk" => parsed.blocked = mask(),
                _ => {}
            }
        }
        parsed
    }

    /// Is a signal about to be delivered?
    pub(super) fn signal_waits(self) -> bool {
        self.pending & !self.blocked != 0
    }

    /// Is it about to be stopped by its user?
    fn stop_waits(self) -> bool {
        let stops = [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];
        let mask = stops.iter().fold(0, |mask, signal| mask | 1 << (signal - 1));
        self.pending & !self.blocked & mask != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_is_read() {
        let text = b"Name:\tx\xff\nTracerPid:\t77\nSigPnd:\t0000000000000000\nShdPnd:\t0000000000040000\n\
            SigBlk:\t0000000000000001\n";
        let status = Status::parse(text);
        assert_eq!(status, Status { tracer: 77, pending: 1 << 18, blocked: 1 });
        assert!(status.signal_waits() && status.stop_waits());
        assert!(!Status { pending: 1, blocked: 1, tracer: 0 }.signal_waits());
        assert!(!Status { pending: 1, blocked: 0, tracer: 0 }.stop_waits());
        assert_eq!(Status::parse(b"SigPnd:\tx\n\xff"), Status::default());
    }

    #[test]
    fn a_task_that_is_gone() {
        assert!(is_asleep(i32::MAX));
        assert!(!waits(i32::MAX));
        assert_eq!(describe(i32::MAX, i32::MAX), None);
    }
}
