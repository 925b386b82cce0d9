//! The holder: a small process that keeps copies of read ends, so that lookups wait in the pipe when a master dies.
//!
//! It ends when its limit passes, when no kernel writes into its pipes any more (the mounts were given another pipe, or are gone),
//! or when `restore` ends it. It reads nothing, so that a new master finds every request.

use super::plan::ReadEnd;
use crate::discover::master::HOLDER_COMM;
use crate::sys::Errno;
use crate::sys::privilege::{self, Role};
use crate::sys::process::{ProcessId, copy_fd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, fstat};
use rustix::process::{Resource, Signal, getrlimit, setrlimit};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The word of the command line that makes this program a holder.
pub const COMMAND: &str = "hold-pipes";
/// What the holder says when it holds everything.
const READY: &[u8] = b"ready\n";

/// A holder could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HoldError {
    /// The process itself.
    #[error("the holder cannot be started: {0}")]
    Start(#[source] std::io::Error),
    /// It gave up.
    #[error("the holder did not get hold of the pipes: {0}")]
    Failed(String),
    /// One of its arguments.
    #[error("{0:?} names no pipe")]
    Argument(String),
    /// A read end is not what it was.
    #[error("descriptor {fd} of process {pid} is not the read end any more: {errno}")]
    ReadEnd {
        /// Whose.
        pid: i32,
        /// Which.
        fd: i32,
        /// The kernel's answer.
        errno: Errno,
    },
    /// Something else that it needs.
    #[error("the holder cannot {0}: {1}")]
    Call(&'static str, Errno),
}

/// A holder that was started. Dropping it ends it.
#[derive(Debug)]
pub struct Holder {
    child: Child,
    process: ProcessId,
    stays: bool,
}

impl Holder {
    /// Start `program` (this one) as a holder of the read ends, by the inodes of their pipes. When this returns it holds all.
    pub fn start(program: &Path, ends: &BTreeMap<u64, ReadEnd>, limit: Duration) -> Result<Self, HoldError> {
        let mut child = Command::new(program)
            .args([COMMAND, &limit.as_secs().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(HoldError::Start)?;
        // its child until it is reaped: the number is its own
        let process =
            ProcessId::of(child.id().cast_signed()).map_err(|errno| HoldError::Start(errno.into()))?;
        let lines: String =
            ends.iter().map(|(ino, end)| format!("{ino} {} {}\n", end.process.pid, end.fd)).collect();
        let said = talk(&mut child, &lines);
        let holder = Self { child, process, stays: false };
        match said.map_err(HoldError::Start)? {
            (said, _) if said == READY => Ok(holder),
            (_, complaint) => Err(HoldError::Failed(complaint.trim().to_owned())),
        }
    }

    /// Who it is.
    pub fn process(&self) -> ProcessId {
        self.process
    }

    /// Leave it running.
    pub fn leave(mut self) -> ProcessId {
        self.stays = true;
        self.process
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        if !self.stays {
            // it may have ended by itself
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// What it answers to these lines: on its standard output, and on its standard error.
fn talk(child: &mut Child, lines: &str) -> std::io::Result<(Vec<u8>, String)> {
    let (mut said, mut complaint) = (Vec::new(), String::new());
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(lines.as_bytes())?;
    }
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_end(&mut said)?;
    }
    if let Some(mut stderr) = child.stderr.take() {
        stderr.read_to_string(&mut complaint)?;
    }
    Ok((said, complaint))
}

/// End a holder that an earlier run left; one that has ended is no error. EPERM when it is somebody else's.
pub fn end(process: ProcessId) -> Result<(), Errno> {
    match process.signal(Signal::TERM) {
        Err(Errno::SRCH) => Ok(()),
        other => other,
    }
}

/// Be the holder: get the read ends that standard input names, say so, and wait.
pub fn run(limit: Duration) -> Result<(), HoldError> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).map_err(HoldError::Start)?;
    raise_descriptor_limit();
    let held = text.lines().map(copy).collect::<Result<Vec<_>, _>>()?;
    if let Err(error) = privilege::keep(Role::Holder) {
        tracing::warn!("the holder keeps its capabilities: {error}");
    }
    become_a_daemon()?;
    wait(held, Instant::now() + limit);
    Ok(())
}

/// `INODE PID FD`.
fn copy(line: &str) -> Result<OwnedFd, HoldError> {
    let mut words = line.split(' ');
    let mut number = || words.next().and_then(|word| word.parse::<u64>().ok());
    let (Some(ino), Some(pid), Some(fd)) = (number(), number(), number()) else {
        return Err(HoldError::Argument(line.to_owned()));
    };
    let (Ok(pid), Ok(fd)) = (i32::try_from(pid), i32::try_from(fd)) else {
        return Err(HoldError::Argument(line.to_owned()));
    };
    let failed = |errno| HoldError::ReadEnd { pid, fd, errno };
    let end = copy_fd(pid, fd).map_err(failed)?;
    // the process may have closed it and opened something else
    match fstat(&end).map_err(failed)?.st_ino == ino {
        true => Ok(end),
        false => Err(failed(Errno::BADF)),
    }
}

/// One descriptor for each pipe. As far as it goes: too few is an error of their own.
fn raise_descriptor_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
}

/// A session and a name of its own, no directory, no standard files: those of whoever started it may go.
fn become_a_daemon() -> Result<(), HoldError> {
    let failed = |what| move |errno| HoldError::Call(what, errno);
    let name = CString::new(HOLDER_COMM).map_err(|_| HoldError::Call("be named", Errno::INVAL))?;
    rustix::thread::set_name(&name).map_err(failed("be named"))?;
    rustix::process::setsid().map_err(failed("begin a session"))?;
    rustix::process::chdir("/").map_err(failed("leave its directory"))?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    let null = null.map_err(failed("open /dev/null"))?;
    let mut stdout = std::io::stdout();
    stdout.write_all(READY).and_then(|()| stdout.flush()).map_err(HoldError::Start)?;
    rustix::stdio::dup2_stdin(&null).map_err(failed("close its standard input"))?;
    rustix::stdio::dup2_stderr(&null).map_err(failed("close its standard error"))?;
    rustix::stdio::dup2_stdout(&null).map_err(failed("close its standard output"))
}

/// Until the limit, or until nobody can write into any of them.
fn wait(mut held: Vec<OwnedFd>, limit: Instant) {
    while !held.is_empty() {
        let left = limit.saturating_duration_since(Instant::now());
        let Ok(timeout) = Timespec::try_from(left) else { return };
        let mut polled: Vec<_> =
            held.iter().map(|end| PollFd::from_borrowed_fd(end.as_fd(), PollFlags::empty())).collect();
        match poll(&mut polled, Some(&timeout)) {
            Ok(0) => return,
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return,
        }
        let has_writers: Vec<_> = polled.iter().map(|end| end.revents().is_empty()).collect();
        let mut has_writers = has_writers.into_iter();
        held.retain(|_| has_writers.next().unwrap_or(false));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn it_ends_when_nobody_writes_or_at_its_limit() -> Result<(), Box<dyn std::error::Error>> {
        let (read, write) = rustix::pipe::pipe()?;
        let (other, gone) = rustix::pipe::pipe()?;
        drop(gone);
        let start = Instant::now();
        wait(vec![read.try_clone()?, other], start + Duration::from_millis(50));
        assert!(start.elapsed() >= Duration::from_millis(50));
        drop(write);
        wait(vec![read], start + Duration::from_secs(60));
        assert!(start.elapsed() < Duration::from_secs(50));
        Ok(())
    }

    #[test]
    fn only_the_pipe_that_was_meant_is_taken() -> Result<(), Box<dyn std::error::Error>> {
        let (read, _write) = rustix::pipe::pipe()?;
        let ino = fstat(&read)?.st_ino;
        let line = |ino| format!("{ino} {} {}", std::process::id(), read.as_raw_fd());
        assert_eq!(fstat(copy(&line(ino))?)?.st_ino, ino);
        assert!(matches!(copy(&line(ino + 1)), Err(HoldError::ReadEnd { .. })));
        for line in ["", "1 2", "x 1 2", "1 -2 3", "1 99999999999 3"] {
            assert!(matches!(copy(line), Err(HoldError::Argument(_))), "{line}");
        }
        Ok(())
    }
}
