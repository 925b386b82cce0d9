//! Other processes: pidfds, copies of their descriptors, start times.

use super::{Errno, nix_errno};
use rustix::{
    fs::{FileType, Mode, OFlags},
    process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal},
};
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// A process that cannot be mistaken for another with the same number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize, serde::Deserialize)]
pub struct ProcessId {
    /// Thread group id, in our pid namespace.
    pub pid: i32,
    /// Field 22 of `/proc/PID/stat`: clock ticks after boot.
    pub start_time: u64,
}

impl ProcessId {
    /// The process that has number `pid` now; ESRCH when there is none.
    pub fn of(pid: i32) -> Result<Self, Errno> {
        stat(pid).map(|stat| Self { pid, start_time: stat.start_time })
    }

    /// Has it not ended? (A zombie has.)
    pub fn is_alive(self) -> bool {
        stat(self.pid).is_ok_and(|stat| stat.start_time == self.start_time && !stat.has_ended())
    }

    /// A pidfd of this very process; ESRCH when its number went to another.
    pub fn open(self) -> Result<OwnedFd, Errno> {
        let pidfd = open_pidfd(self.pid)?;
        // Only now: while the pidfd shows this process alive, the number is its own.
        if self.is_alive() { Ok(pidfd) } else { Err(Errno::SRCH) }
    }

    /// Send a signal to this very process; ESRCH as for [`ProcessId::open`].
    pub fn signal(self, signal: Signal) -> Result<(), Errno> {
        rustix::process::pidfd_send_signal(self.open()?, signal)
    }

    /// Its process group, in our pid namespace; 0 when it has none there. ESRCH when there is no process of its
    /// number; whether it is this very one is not looked at.
    pub fn group(self) -> Result<i32, Errno> {
        nix::unistd::getpgid(Some(nix::unistd::Pid::from_raw(self.pid)))
            .map(|group| group.as_raw())
            .map_err(nix_errno)
    }
}

/// Our process group; 0 where it lies outside of our pid namespace (`nsenter --pid`), which rustix takes for impossible.
pub fn own_group() -> i32 {
    nix::unistd::getpgrp().as_raw()
}

/// End this process, without the exit handlers of libraries: threads of theirs and of ours may still be at work in them, and for that
/// a Kerberos library which has taken its locks down ends the process by SIGABRT.
pub fn end(code: u8) -> ! {
    let _ = std::io::stdout().flush();
    // SAFETY: always sound.
    unsafe { libc::_exit(code.into()) }
}

/// A copy of descriptor `fd` of process `pid` (pidfd_getfd: same open file description), CLOEXEC.
/// ESRCH when there is no such process, EBADF no such descriptor; EPERM where ptrace is not allowed.
pub fn copy_fd(pid: i32, fd: RawFd) -> Result<OwnedFd, Errno> {
    rustix::process::pidfd_getfd(open_pidfd(pid)?, fd, PidfdGetfdFlags::empty())
}

/// A write end of the pipe of which process `pid` holds an end as `fd`; EPIPE when that is no pipe.
///
/// A pipe has no owner of its ends: whoever has one can open the other through `/proc`.
pub fn reopen_write_end(pid: i32, fd: RawFd) -> Result<OwnedFd, Errno> {
    // Opening anything else for writing could do harm, and so could a race with the process; a copy
    // of its own cannot change under us, and as a reader it keeps the open from waiting for one.
    let end = copy_fd(pid, fd)?;
    if FileType::from_raw_mode(rustix::fs::fstat(&end)?.st_mode) != FileType::Fifo {
        return Err(Errno::PIPE);
    }
    rustix::fs::open(
        format!("/proc/self/fd/{}", end.as_raw_fd()),
        OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NONBLOCK,
        Mode::empty(),
    )
}

/// Takes over a descriptor that the program which became this one left open for it; EBADF when there is none.
///
/// Each number once, and only numbers that were left for this.
pub fn inherit(number: RawFd) -> Result<OwnedFd, Errno> {
    if std::fs::symlink_metadata(format!("/proc/self/fd/{number}")).is_err() {
        return Err(Errno::BADF);
    }
    // SAFETY: it is open, and nothing else in this program has it: it comes from the program before.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
    Ok(fd)
}

/// A pidfd of the process that has this number now; ESRCH when there is none, EINVAL for the number of a mere thread.
pub fn open_pidfd(number: i32) -> Result<OwnedFd, Errno> {
    rustix::process::pidfd_open(pid(number)?, PidfdFlags::empty())
}

/// Have a program start with no signal blocked, whatever this thread blocks, and without descriptors that we got from whoever
/// started us: it would inherit both.
pub fn clean_start(command: &mut Command) -> &mut Command {
    let clean = || {
        nix::sys::signal::SigSet::empty().thread_set_mask()?;
        let flags = libc::CLOSE_RANGE_CLOEXEC as libc::c_int;
        // SAFETY: only marks descriptors; std's own, which tells that exec failed, is marked already.
        // An old kernel that cannot (before 5.11) leaves them open.
        unsafe { libc::close_range(3, libc::c_uint::MAX, flags) };
        Ok(())
    };
    // SAFETY: between fork and exec, where only async-signal-safe calls are sound: both are, and nothing is allocated.
    unsafe { command.pre_exec(clean) }
}

/// The process of a task.
pub(super) fn thread_group(tid: i32) -> Result<i32, Errno> {
    let status = std::fs::read(format!("/proc/{tid}/status")).map_err(|_| Errno::SRCH)?;
    let status = String::from_utf8_lossy(&status);
    let line = status.lines().find_map(|line| line.strip_prefix("Tgid:\t"));
    line.and_then(|number| number.parse().ok()).ok_or(Errno::SRCH)
}

fn pid(number: i32) -> Result<Pid, Errno> {
    Pid::from_raw(number).ok_or(Errno::SRCH)
}

/// What `/proc/PID/stat` tells of a process, or `/proc/PID/task/TID/stat` of a thread.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stat {
    /// Its name (`comm`): any bytes.
    pub name: Vec<u8>,
    /// `R`, `S`, `D`, `Z` ...
    pub state: u8,
    /// The process that waits for its end.
    pub parent: i32,
    /// Process group, in the pid namespace of this `/proc`.
    pub pgrp: i32,
    /// What kind of task it is (`PF_*`).
    pub flags: u32,
    /// Clock ticks after boot.
    pub start_time: u64,
}

impl Stat {
    /// The name is in parentheses and may itself contain `) ` and newlines, so it ends at the last
    /// one: nothing behind it contains a parenthesis.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let open = text.iter().position(|&b| b == b'(')?;
        let close = text.iter().rposition(|&b| b == b')')?;
        let name = text.get(open + 1..close)?.to_vec();
        let mut fields = std::str::from_utf8(&text[close + 1..]).ok()?.split_ascii_whitespace();
        Some(Self {
            name,
            state: *fields.next()?.as_bytes().first()?,
            parent: fields.next()?.parse().ok()?,
            pgrp: fields.next()?.parse().ok()?,
            flags: fields.nth(3)?.parse().ok()?,
            start_time: fields.nth(12)?.parse().ok()?,
        })
    }

    /// A zombie has, too.
    pub fn has_ended(&self) -> bool {
        matches!(self.state, b'Z' | b'X')
    }

    /// It has left its program for good, and the kernel takes it away.
    pub fn is_ending(&self) -> bool {
        const PF_EXITING: u32 = 0x4; // include/linux/sched.h
        self.flags & PF_EXITING != 0 || self.has_ended()
    }
}

/// Does this process, or any task by its number, run its program? Not one that the kernel takes away already.
pub fn runs(pid: i32) -> bool {
    stat(pid).is_ok_and(|stat| !stat.is_ending())
}

/// Of a process, or of any task by its number.
pub(super) fn stat(pid: i32) -> Result<Stat, Errno> {
    let text =
        std::fs::read(format!("/proc/{pid}/stat")).map_err(|error| match Errno::from_io_error(&error) {
            None | Some(Errno::NOENT) => Errno::SRCH,
            Some(errno) => errno,
        })?;
    Stat::parse(&text).ok_or(Errno::SRCH)
}

/// How long this process has been on a processor.
pub fn processor_time() -> std::time::Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    std::time::Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_confuse() {
        let tail = "S 1 812 812 0 -1 4194560 1 0 0 0 1 2 3 4 20 0 1 0 555 9 9\n";
        let stat = Stat::parse(format!("7 (a) R 1 (b)\n) {tail}").as_bytes());
        let name = b"a) R 1 (b)\n".to_vec();
        assert_eq!(
            stat,
            Some(Stat { name, state: b'S', parent: 1, pgrp: 812, flags: 4_194_560, start_time: 555 })
        );
        for text in ["", "7 ()", "7 )(", "7 (a) ", "7 (x) S 1 2"] {
            assert_eq!(Stat::parse(text.as_bytes()), None);
        }
    }

    #[test]
    fn tells_the_living_from_the_dead() -> Result<(), Box<dyn std::error::Error>> {
        let me = ProcessId::of(std::process::id() as i32)?;
        assert!(me.is_alive());
        me.open()?;
        let namesake = ProcessId { start_time: me.start_time + 1, ..me };
        assert!(!namesake.is_alive());
        assert_eq!(namesake.open().err(), Some(Errno::SRCH));
        let mut child = std::process::Command::new("true").spawn()?;
        let id = ProcessId::of(child.id() as i32)?;
        child.wait()?;
        assert!(!id.is_alive());
        assert_eq!(ProcessId::of(0).err(), Some(Errno::SRCH));
        Ok(())
    }

    #[test]
    fn a_pipe_can_be_written_by_who_has_its_read_end() -> Result<(), Box<dyn std::error::Error>> {
        let (read, write) = rustix::pipe::pipe()?;
        let me = std::process::id() as i32;
        drop(write);
        let write = reopen_write_end(me, read.as_raw_fd())?;
        rustix::io::write(&write, b"x")?;
        let mut buf = [0];
        assert_eq!(rustix::io::read(&read, &mut buf)?, 1);
        let file = tempfile::tempfile()?;
        assert_eq!(reopen_write_end(me, file.as_raw_fd()).err(), Some(Errno::PIPE));
        Ok(())
    }
}
