//! A program that is run for each key and writes the entry.

use super::{RawEntry, Source, SourceError};
use crate::engine::maps::text::{ENTRY_MAX, Lines, Text, show};
use crate::engine::maps::vars::Variables;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// The most that a program may write, continuation lines included.
const OUTPUT_MAX: usize = 2 * ENTRY_MAX;
/// Of what it writes to stderr no more than this is logged.
const STDERR_MAX: usize = 4096;
/// Where a program finds other programs.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramSource {
    /// The program.
    pub path: PathBuf,
    /// Its working directory: the mount point; `/` where that is not there.
    pub directory: PathBuf,
    /// How long it may take; then its process group is killed.
    pub limit: Duration,
    /// Give it `USER`, `HOME` ... without the prefix `AUTOFS_`.
    pub standard_names: bool,
}

/// What a program left behind.
struct Outcome {
    status: ExitStatus,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Source for ProgramSource {
    fn lookup(&self, key: &[u8], variables: &Variables<'_>) -> Result<Option<RawEntry>, SourceError> {
        let outcome = self.run(key, variables)?;
        let (program, key) = (self.path.display(), show(key));
        for line in outcome.stderr.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
            tracing::warn!("program map {program}, key {key}: >> {}", show(line));
        }
        if !outcome.status.success() {
            tracing::debug!("program map {program}, key {key}: {}", outcome.status);
            return Ok(None);
        }
        let line = Lines::new(&outcome.stdout).next();
        Ok(line.map(|line| RawEntry { text: line.text.into_owned(), origin: self.path.clone() }))
    }

    fn visit(&self, _: &mut dyn FnMut(&[u8], &Text<'_>, &Path)) -> Result<bool, SourceError> {
        Ok(false)
    }

    /// It says something new each time.
    fn fresh(&self) -> bool {
        true
    }

    fn refresh(&self) -> Result<(), SourceError> {
        Ok(())
    }

    fn is_program(&self) -> bool {
        true
    }
}

impl ProgramSource {
    fn run(&self, key: &[u8], variables: &Variables<'_>) -> Result<Outcome, SourceError> {
        let failed = |error: io::Error| SourceError::Run { path: self.path.clone(), error };
        let directory = if self.directory.is_dir() { &self.directory } else { Path::new("/") };
        let environment = variables.program_environment(self.standard_names);
        let mut command = Command::new(&self.path);
        command
            .arg(OsStr::from_bytes(key))
            .current_dir(directory)
            .env_clear()
            .env("PATH", PATH)
            .env("PWD", directory)
            .envs(environment.iter().map(|(name, value)| (name, OsStr::from_bytes(value))))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let child = crate::sys::process::clean_start(&mut command).spawn().map_err(failed)?;
        let mut running = Running::new(child).map_err(failed)?;
        let deadline = Instant::now() + self.limit;
        while !running.step(deadline).map_err(failed)? {
            if running.stdout.bytes.len() > OUTPUT_MAX {
                return Err(SourceError::TooMuch { path: self.path.clone(), max: OUTPUT_MAX });
            }
            if Instant::now() >= deadline {
                return Err(SourceError::TimeLimit { path: self.path.clone(), limit: self.limit });
            }
        }
        running.finish().map_err(failed)
    }
}

/// A pipe from the program, and what came out of it.
struct Stream<T> {
    pipe: Option<T>,
    bytes: Vec<u8>,
    max: usize,
}

impl<T: Read + AsFd> Stream<T> {
    fn new(pipe: Option<T>, max: usize) -> io::Result<Self> {
        if let Some(pipe) = &pipe {
            rustix::fs::fcntl_setfl(pipe, rustix::fs::OFlags::NONBLOCK)?;
        }
        Ok(Self { pipe, bytes: Vec::new(), max })
    }

    /// Take what is there. More than `max` bytes and one are not kept.
    fn drain(&mut self) -> io::Result<()> {
        let mut buffer = [0; 4096];
        while let Some(pipe) = &mut self.pipe {
            match pipe.read(&mut buffer) {
                Ok(0) => self.pipe = None,
                Ok(length) => {
                    let room = (self.max + 1).saturating_sub(self.bytes.len());
                    self.bytes.extend_from_slice(&buffer[..length.min(room)]);
                    if room == 0 {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// A program that runs. Dropping it kills its process group.
struct Running {
    child: Child,
    pidfd: rustix::fd::OwnedFd,
    stdout: Stream<ChildStdout>,
    stderr: Stream<ChildStderr>,
}

impl Running {
    fn new(mut child: Child) -> io::Result<Self> {
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty());
        let stdout = Stream::new(child.stdout.take(), OUTPUT_MAX)?;
        let stderr = Stream::new(child.stderr.take(), STDERR_MAX)?;
        Ok(Self { pidfd: pidfd?, child, stdout, stderr })
    }

    /// Wait for output or the end; true when it has ended. Children that it left behind with its
    /// pipes are not waited for.
    fn step(&mut self, deadline: Instant) -> io::Result<bool> {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        let pipes = [self.stdout.pipe.as_ref().map(AsFd::as_fd), self.stderr.pipe.as_ref().map(AsFd::as_fd)];
        let watched: Vec<BorrowedFd<'_>> =
            [Some(self.pidfd.as_fd())].into_iter().chain(pipes).flatten().collect();
        let mut watched: Vec<PollFd<'_>> =
            watched.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
        match poll(&mut watched, Some(&left)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ended = watched[0].revents().contains(PollFlags::IN);
        self.stdout.drain()?;
        self.stderr.drain()?;
        Ok(ended)
    }

    fn finish(mut self) -> io::Result<Outcome> {
        let status = self.child.wait()?;
        let (stdout, stderr) =
            (std::mem::take(&mut self.stdout.bytes), std::mem::take(&mut self.stderr.bytes));
        Ok(Outcome { status, stdout, stderr })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Once it has been waited for, its number may be someone else's.
        if let Ok(None) = self.child.try_wait() {
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
            let _ = self.child.wait();
        }
    }
}
