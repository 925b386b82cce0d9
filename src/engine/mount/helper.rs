//! Other programs, each with a limit: mount(8) for types that have a helper of their own (nfs, cifs, fuse ...) and for
//! what it looks up (labels, loop devices); fsck(8); a visitor.

use super::MountError;
use crate::discover::proc;
use crate::sys::process::{ProcessId, clean_start, open_pidfd};
use crate::sys::{Errno, io_errno};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::process::Signal;
use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::num::NonZero;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Condvar, LazyLock, Mutex, PoisonError};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

/// How much of a program's output is kept.
const SAID: usize = 4096;
/// How long a killed program may take to end.
const LAST: Duration = Duration::from_secs(1);
/// A program that has not ended by now waits for somebody else, and the next one may begin.
const BUSY: Duration = Duration::from_millis(20);

/// How a program ended: its status, `None` when it took too long; and what it wrote to stderr.
pub(super) struct Ended {
    pub(super) status: Option<ExitStatus>,
    pub(super) said: String,
}

/// Run `mount -t TYPE -o OPTIONS SOURCE TARGET`.
///
/// It stays in our process group: the kernel takes anybody else who looks at the trigger for a visitor,
/// who would wait for the very request that this answers.
pub(super) fn mount(
    fstype: &str,
    options: &OsStr,
    source: &OsStr,
    target: &Path,
    limit: Duration,
) -> Result<(), MountError> {
    let mut command = Command::new("mount");
    command.args(["-t", fstype]);
    if fstype.starts_with("nfs") {
        // sloppy: options of other systems' maps are ignored
        command.arg("-s");
    }
    if !options.is_empty() {
        command.arg("-o").arg(options);
    }
    let ended = run(command.arg(source).arg(target), limit).map_err(MountError::NoHelper)?;
    let (fstype, source_name) = (fstype.to_owned(), source.to_owned());
    match ended.status {
        Some(status) if status.success() => Ok(()),
        Some(_) => Err(MountError::Refused { fstype, source_name, said: ended.said }),
        None => Err(MountError::TooLong { fstype, source_name, limit }),
    }
}

/// Check a file system of a type that has `fsck.TYPE`, as at boot; `repair`: and mend what can be mended safely.
pub(super) fn fsck(fstype: &str, device: &Path, repair: bool, limit: Duration) -> Result<(), MountError> {
    /// "Errors left", "operational error" and beyond; 1 is "errors corrected", 2 "corrected, reboot" (of the root).
    const BAD: i32 = !3;
    let mut command = Command::new(format!("fsck.{fstype}"));
    let ended = match run(command.arg(if repair { "-p" } else { "-n" }).arg(device), limit) {
        // Without the program the kernel decides.
        Err(Errno::NOENT) => return Ok(()),
        ran => ran.map_err(MountError::NoHelper)?,
    };
    let good = ended.status.and_then(|status| status.code()).is_some_and(|code| code & BAD == 0);
    if good { Ok(()) } else { Err(MountError::Unclean { device: device.to_owned(), said: ended.said }) }
}

/// Look at a path as anybody else would: in a group of its own, so that triggers of ours on the way are mounted.
pub(super) fn visit(path: &Path, limit: Duration) -> Result<(), MountError> {
    let mut command = Command::new("stat");
    let ended = run(command.arg("--").arg(path.join(".")).process_group(0), limit);
    let ended = ended.map_err(MountError::NoHelper)?;
    if ended.status.is_some_and(|status| status.success()) {
        return Ok(());
    }
    Err(MountError::Unreachable { source_name: path.to_owned(), said: ended.said })
}

/// A command as an amd map has it: program, its name for itself, arguments. `None` for an empty one.
pub(super) fn command(words: &[OsString]) -> Option<Command> {
    let (program, arguments) = words.split_first()?;
    let mut command = Command::new(program);
    if let Some((name, rest)) = arguments.split_first() {
        command.arg0(name).args(rest);
    }
    Some(command)
}

/// Run a command that must succeed.
pub(super) fn succeed(command: &mut Command, limit: Duration) -> Result<(), MountError> {
    let ended = run(command, limit).map_err(MountError::NoHelper)?;
    let program = || command.get_program().to_owned();
    match ended.status {
        Some(status) if status.success() => Ok(()),
        Some(_) => Err(MountError::Command { command: program(), said: ended.said }),
        None => Err(MountError::TooLong { fstype: "program".into(), source_name: program(), limit }),
    }
}

/// Run a program; at the limit it and what it started are killed.
pub(super) fn run(command: &mut Command, limit: Duration) -> Result<Ended, Errno> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    // Of the engine's own some are blocked; a FUSE server would go on with that.
    let begin = Instant::now();
    let turn = TURNS.take();
    let mut child = clean_start(command).spawn().map_err(io_errno)?;
    let mut status = wait(&mut child, BUSY.min(limit))?;
    drop(turn);
    if status.is_none() {
        status = wait(&mut child, limit.saturating_sub(begin.elapsed()))?;
    }
    if status.is_none() {
        end_tree(child.id() as i32);
        // Just now it may have ended by itself.
        status = wait(&mut child, LAST)?.filter(ExitStatus::success);
    }
    let mut said = said(&mut child);
    if said.is_empty()
        && let Some(status) = status
    {
        said = status.to_string();
    }
    if child.try_wait().is_ok_and(|ended| ended.is_none()) {
        // It sleeps in the kernel: somebody has to take it away when that is over.
        std::thread::spawn(move || child.wait());
    }
    Ok(Ended { status, said })
}

/// Programs begin as many at a time as there are CPUs: a hundred mounts of a dead server must not take the CPUs from
/// lookups that need no program. Each has its turn for [`BUSY`] at most, so that none waits for a server but its own.
static TURNS: Turns = Turns { taken: Mutex::new(0), given: Condvar::new() };

struct Turns {
    taken: Mutex<usize>,
    given: Condvar,
}

struct Turn;

impl Turns {
    fn take(&self) -> Turn {
        static CPUS: LazyLock<usize> = LazyLock::new(|| available_parallelism().map_or(1, NonZero::get));
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = self.given.wait_while(taken, |taken| *taken >= *CPUS);
        *taken.unwrap_or_else(PoisonError::into_inner) += 1;
        Turn
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *TURNS.taken.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        TURNS.given.notify_one();
    }
}

/// Its exit status; `None` when the time is over.
fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>, Errno> {
    let pidfd = open_pidfd(child.id() as i32)?;
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(|_| Errno::INVAL)?;
        match poll(&mut [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)], Some(&left)) {
            Ok(0) => return Ok(None),
            Ok(_) => return child.wait().map(Some).map_err(io_errno),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Kill a child and all that descend from it (mount.nfs, say). They are in our own group, which cannot be killed; and
/// each is stopped before its children are looked for, so that none is missed.
fn end_tree(root: i32) {
    let mut known = HashSet::new();
    loop {
        let tree = proc::tree(root).unwrap_or_default();
        let new: Vec<_> = tree.into_iter().filter_map(|pid| ProcessId::of(pid).ok()).collect();
        let before = known.len();
        for process in new {
            if known.insert(process) {
                // One that has ended needs no signal.
                let _ = process.signal(Signal::STOP);
            }
        }
        if known.len() == before {
            break;
        }
    }
    for process in known {
        let _ = process.signal(Signal::KILL);
    }
}

/// What it wrote. A server that it left behind may hold the pipe open for ever.
fn said(child: &mut Child) -> String {
    let mut text = vec![0; SAID];
    let length = child.stderr.take().and_then(|mut stderr| {
        fcntl_setfl(&stderr, OFlags::NONBLOCK).ok()?;
        stderr.read(&mut text).ok()
    });
    text.truncate(length.unwrap_or(0));
    String::from_utf8_lossy(&text).into_owned()
}
