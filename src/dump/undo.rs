//! What must be undone if a dump is killed while mounts are without master: written down before, done by the next run.
//!
//! The notes are files in `/run/autofs-cr`, one for each dump, which are removed when it ends. They mean nothing after a
//! reboot, and neither does `/run`.

use crate::attach::take::go_on;
use crate::attach::{Share, Target, attach_to};
use crate::discover::{self, proc, proc::TaskDir, survey};
use crate::quiesce::Waiting;
use crate::sys::{DevNum, Errno, io_errno, process::ProcessId};
use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock, fstat, ftruncate, mkdirat, openat, unlinkat};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const DIRECTORY: &str = "/run/autofs-cr";
/// How long another run may take to undo, and how often we look.
const TURN: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(2);

/// The notes could not be kept.
#[derive(Debug, thiserror::Error)]
#[error("{}: {errno}; a dump that takes mounts away needs it, to undo what a killed one did", path.display())]
pub struct UndoError {
    path: PathBuf,
    errno: Errno,
}

impl UndoError {
    fn at(path: impl Into<PathBuf>) -> impl FnOnce(Errno) -> Self {
        let path = path.into();
        move |errno| Self { path, errno }
    }

    fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |error| Self { path, errno: io_errno(error) }
    }
}

/// What was taken away.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notes {
    /// Inode of the mount namespace.
    pub mount_namespace: u64,
    /// What each master had.
    pub taken: Vec<Taken>,
    /// Who is left stopped.
    pub stopped: Vec<Waiting>,
}

/// The mounts of one pipe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// Whose they were.
    pub master: ProcessId,
    /// Its read end.
    pub read_fd: i32,
    /// Which.
    pub mounts: Vec<DevNum>,
}

/// Notes on disk. While it lives it is locked, so that no other run takes it for a dead one's. Dropping it removes them:
/// whatever had to be undone has been.
#[derive(Debug)]
pub struct Undo {
    file: File,
    directory: OwnedFd,
    name: String,
}

impl Undo {
    /// Write them down.
    pub fn begin(notes: &Notes) -> Result<Self, UndoError> {
        let directory = open_directory().map_err(UndoError::at(DIRECTORY))?;
        let name = format!("{}.undo", std::process::id());
        let path = Path::new(DIRECTORY).join(&name);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(&directory, &name, flags, Mode::RUSR | Mode::WUSR).map_err(UndoError::at(&path))?;
        // nobody else has a file of our number, but who is just removing it
        flock(&fd, FlockOperation::NonBlockingLockExclusive).map_err(UndoError::at(&path))?;
        let mut undo = Self { file: fd.into(), directory, name };
        undo.update(notes)?;
        Ok(undo)
    }

    /// Write down something else. Safe while visitors are held: no path is looked up.
    pub fn update(&mut self, notes: &Notes) -> Result<(), UndoError> {
        let path = Path::new(DIRECTORY).join(&self.name);
        let text = serde_json::to_vec(notes).map_err(|error| UndoError::io(&path)(error.into()))?;
        ftruncate(&self.file, 0).map_err(UndoError::at(&path))?;
        self.file.rewind().and_then(|()| self.file.write_all(&text)).map_err(UndoError::io(&path))
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        let _ = unlinkat(&self.directory, &self.name, rustix::fs::AtFlags::empty());
    }
}

/// Root's alone: what stands here is believed.
fn open_directory() -> Result<OwnedFd, Errno> {
    match mkdirat(CWD, DIRECTORY, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno),
    }
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = openat(CWD, DIRECTORY, flags, Mode::empty())?;
    let stat = fstat(&directory)?;
    match stat.st_uid == 0 && stat.st_mode & 0o022 == 0 {
        true => Ok(directory),
        false => Err(Errno::PERM),
    }
}

/// Undo what runs that were killed have left. Returns a line for each of them.
pub fn repair() -> Vec<String> {
    let Ok(directory) = open_directory() else { return Vec::new() };
    take_turn(&directory);
    let mut lines = Vec::new();
    for file in std::fs::read_dir(DIRECTORY).into_iter().flatten().flatten() {
        let name = file.file_name();
        if !name.as_encoded_bytes().ends_with(b".undo") {
            continue;
        }
        if let Some(notes) = abandoned(&directory, Path::new(&name)) {
            lines.push(match undo(&notes) {
                Ok(given) => format!(
                    "a dump that was killed had taken mounts away: {given} given back, {} waiters continued",
                    notes.stopped.len()
                ),
                Err(error) => {
                    format!(
                        "a dump that was killed had taken mounts away, and they cannot be given back: {error}"
                    )
                }
            });
        }
    }
    lines
}

/// Another run that undoes something must have done so before we look at the mounts. (Its notes are gone when it begins.)
fn take_turn(directory: &OwnedFd) {
    let start = Instant::now();
    while flock(directory, FlockOperation::NonBlockingLockExclusive) == Err(Errno::AGAIN)
        && start.elapsed() < TURN
    {
        std::thread::sleep(PAUSE);
    }
}

/// Take the notes of a run that has died; `None` when it lives, or somebody else has taken them.
fn abandoned(directory: &OwnedFd, name: &Path) -> Option<Notes> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(openat(directory, name, flags, Mode::empty()).ok()?);
    flock(file.as_fd(), FlockOperation::NonBlockingLockExclusive).ok()?;
    // removed between our open and our lock?
    if file.metadata().ok()?.nlink() == 0 {
        return None;
    }
    let mut text = Vec::new();
    let read = file.read_to_end(&mut text);
    unlinkat(directory, name, rustix::fs::AtFlags::empty()).ok()?;
    // killed while it wrote the first of them: nothing had been done
    read.ok().and_then(|_| serde_json::from_slice(&text).ok())
}

fn undo(notes: &Notes) -> Result<usize, Box<dyn std::error::Error>> {
    let mut given = 0;
    let mut result = Ok(());
    for taken in notes.taken.iter().filter(|taken| taken.master.is_alive()) {
        match give_back(notes.mount_namespace, taken) {
            Ok(mounts) => given += mounts,
            Err(error) => result = result.and(Err(error)),
        }
    }
    notes.stopped.iter().for_each(go_on);
    result.map(|()| given)
}

/// What is still catatonic of what this master had.
fn give_back(mount_namespace: u64, taken: &Taken) -> Result<usize, Box<dyn std::error::Error>> {
    let Some(space) = space(mount_namespace, taken.master.pid) else {
        return Err("the mount namespace is gone".into());
    };
    let survey = survey(&space)?;
    let mut targets: Vec<Target> = Vec::new();
    for mount in survey.mounts.iter().filter(|mount| mount.catatonic && mount.root == Path::new("/")) {
        if taken.mounts.contains(&mount.dev) && !targets.iter().any(|target| target.dev == mount.dev) {
            targets.push(Target { path: mount.path.clone(), dev: mount.dev });
        }
    }
    let given = targets.len();
    attach_to(taken.master.pid, &space, &[Share { read_fd: taken.read_fd, targets }])?;
    Ok(given)
}

/// Somebody who lives there; the master itself, if it does.
fn space(mount_namespace: u64, master: i32) -> Option<discover::Target> {
    let lives_there = |pid: &i32| {
        TaskDir::process(*pid).ok().and_then(|process| process.namespace("mnt")) == Some(mount_namespace)
    };
    let mut candidates = std::iter::once(master).chain(proc::pids().ok()?);
    candidates.find(lives_there).map(discover::Target::Process)
}
