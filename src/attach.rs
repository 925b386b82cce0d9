//! Giving mounts a master: hold the visitors, CATATONIC, SETPIPEFD in the master's context, let go.
//!
//! Between CATATONIC and SETPIPEFD a lookup would fail, so visitors are held meanwhile; waiters ask again and
//! find the new master ([`crate::quiesce`]). Where all mounts are catatonic already nobody waits, and nobody
//! has to be held.
//!
//! An old master that lives keeps a write end of its pipe, so that it does not see a hang-up: systemd would
//! unmount. If anything fails it gets its mounts back.

mod old;
mod open;
mod remote;
pub mod take;

use crate::discover::{self, DiscoverError};
use crate::faults::{self, Fault};
use crate::quiesce::{QuiesceError, Quiesced, Scope};
use crate::sys::control::{Control, ControlError, MountFd};
use crate::sys::mount::MountError;
use crate::sys::mountns::Space;
use crate::sys::tracee::TraceeError;
use crate::sys::{DevNum, Errno, process};
pub use open::open_roots;

use old::OldMasters;
use remote::Remote;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// A mount to attach: where it is and its number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Where.
    #[serde(with = "crate::discover::escaped")]
    pub path: PathBuf,
    /// Superblock number.
    pub dev: DevNum,
}

/// Mounts whose requests another process shall read from one pipe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// Its read end of the pipe.
    pub read_fd: i32,
    /// The mounts.
    pub targets: Vec<Target>,
}

/// Attaching failed. The visitors run; mounts whose old master lives are its own again, the others are
/// catatonic.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// `/dev/autofs` cannot be used.
    #[error(transparent)]
    Device(ControlError),
    /// A command for one mount failed.
    #[error("{}: {source}", path.display())]
    Control {
        /// The mount.
        path: PathBuf,
        /// Why.
        source: ControlError,
    },
    /// The mount and the new master live in different pid namespaces.
    #[error(
        "{}: its owner lives in {}, process {master} in {}; only a process of the owner's pid namespace can \
         take it over", path.display(), namespace(.owner), namespace(.its)
    )]
    OtherPidNamespace {
        /// The mount.
        path: PathBuf,
        /// Inode of the owner's pid namespace, if the owner can be seen.
        owner: Option<u64>,
        /// The new master.
        master: i32,
        /// Inode of its pid namespace.
        its: Option<u64>,
    },
    /// No path leads to the mount.
    #[error("{}: hidden by what is mounted on {}; unmount that, then try again", path.display(), by.display())]
    Hidden {
        /// The mount.
        path: PathBuf,
        /// Where the other one is.
        by: PathBuf,
    },
    /// Nothing could be mounted on the trigger, in a mount namespace of our own, to open it from there.
    #[error("{}: {source}", path.display())]
    Lid {
        /// The mount.
        path: PathBuf,
        /// Why.
        source: MountError,
    },
    /// Its master is dead, a request waits for it, and there is no way to open it without waiting as well.
    #[error(
        "{}: a program waits for it and nobody answers; end that program (autofs-cr list names it) and try \
         again", .0.display()
    )]
    Waits(PathBuf),
    /// The namespace of the mounts cannot be entered.
    #[error("the mount namespace cannot be entered: {0}")]
    Namespace(Errno),
    /// The pipe's write end cannot be had.
    #[error(
        "descriptor {fd} of process {pid} cannot be opened as a pipe for writing: {errno}; the process must be the one that \
         read it when the mounts were dumped"
    )]
    Pipe {
        /// The master.
        pid: i32,
        /// Its read end.
        fd: i32,
        /// The kernel's answer.
        errno: Errno,
    },
    /// A master cannot be stopped to act in its place.
    #[error("process {pid} cannot be held to act in its place: {source}")]
    Master {
        /// It.
        pid: i32,
        /// Why.
        source: TraceeError,
    },
    /// The facts about the mounts are missing.
    #[error(transparent)]
    Discover(#[from] DiscoverError),
    /// Visitors cannot be held.
    #[error(transparent)]
    Quiesce(#[from] QuiesceError),
    /// Stopped by a test.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// It failed, and it could not all be taken back: some mounts of a living master are catatonic.
    #[error("{causal}\nand the old master could not get its mounts back: {rollback}")]
    NotGivenBack {
        /// Why it failed.
        causal: Box<AttachError>,
        /// Why it was not taken back.
        rollback: Box<AttachError>,
    },
}

fn namespace(inode: &Option<u64>) -> String {
    inode.map_or("another pid namespace".into(), |inode| format!("pid namespace {inode}"))
}

/// A mount and its root.
type Opened<'a> = (&'a Target, &'a MountFd);

/// Make this process (its group) the owner of every target, requests written to `pipe`. The paths are those
/// of this process. Mounts that it owns already stay as they are. Returns how many visitors waited for an old
/// master, and wait for this one now.
pub fn attach_here(targets: &[Target], pipe: BorrowedFd<'_>) -> Result<usize, AttachError> {
    let control = Control::open().map_err(AttachError::Device)?;
    let space = discover::Target::Own;
    let roots = open_roots(&space, targets)?;
    let me = rustix::process::getpid().as_raw_pid();
    let set = |(target, root): Opened<'_>| {
        let set = control.set_pipe(root.as_fd(), pipe);
        set.map_err(|error| AttachError::of(error, target, me, &space))
    };
    // The kernel itself tells which are catatonic, ours, or somebody else's.
    let mut done = Vec::new();
    let mut live = Vec::new();
    for (target, root) in targets.iter().zip(&roots) {
        match set((target, root)) {
            Ok(()) => done.push((target, root)),
            Err(AttachError::Control { source: ControlError::AlreadyHasPipe, .. }) => {}
            Err(AttachError::Control { source: ControlError::NotOwner(_), .. }) => live.push((target, root)),
            Err(error) => return Err(detach(&control, &done, error)),
        }
    }
    if live.is_empty() {
        return Ok(0);
    }
    HandOver { control: &control, space: &space, live: &live, spare: &[] }
        .run(|| live.iter().copied().try_for_each(set))
        .map_err(|error| detach(&control, &done, error))
}

/// Make process `master` the owner of every mount, requests written to its pipes. The paths are those of
/// `space`. Returns how many waiters were handed on.
pub fn attach_to(master: i32, space: &discover::Target, shares: &[Share]) -> Result<usize, AttachError> {
    let control = Control::open().map_err(AttachError::Device)?;
    let targets: Vec<_> = shares.iter().flat_map(|share| share.targets.iter().cloned()).collect();
    let roots = open_roots(space, &targets)?;
    let pipes = shares.iter().map(|share| write_end(master, share.read_fd)).collect::<Result<Vec<_>, _>>()?;
    let survey = discover::survey(space)?;
    let live: HashSet<_> = survey.mounts.iter().filter(|m| !m.catatonic).map(|m| m.dev).collect();

    // For each pipe: the mounts that have one already, and those that are catatonic.
    let mut rest = roots.iter();
    let parts: Vec<(_, Vec<_>, Vec<_>)> = shares
        .iter()
        .zip(&pipes)
        .map(|(share, pipe)| {
            let opened = share.targets.iter().zip(rest.by_ref());
            let (live, idle) = opened.partition(|(target, _)| live.contains(&target.dev));
            (pipe.as_fd(), live, idle)
        })
        .collect();
    let live: Vec<_> = parts.iter().flat_map(|(_, live, _)| live.iter().copied()).collect();
    let idle: Vec<_> = parts.iter().flat_map(|(_, _, idle)| idle.iter().copied()).collect();

    let mut remote = Remote::hold(master, space)?;
    let set = parts.iter().try_for_each(|(pipe, _, idle)| remote.set_pipes(idle, *pipe));
    set.map_err(|error| detach(&control, &idle, error))?;
    if live.is_empty() {
        return Ok(0);
    }
    HandOver { control: &control, space, live: &live, spare: &[master] }
        .run(|| parts.iter().try_for_each(|(pipe, live, _)| remote.set_pipes(live, *pipe)))
        .map_err(|error| detach(&control, &idle, error))
}

fn write_end(pid: i32, fd: i32) -> Result<OwnedFd, AttachError> {
    process::reopen_write_end(pid, fd).map_err(|errno| AttachError::Pipe { pid, fd, errno })
}

/// Make mounts catatonic: whoever waits on them is told that there is nothing (ENOENT).
pub fn abandon(space: &discover::Target, targets: &[Target]) -> Result<(), AttachError> {
    let control = Control::open().map_err(AttachError::Device)?;
    let roots = open_roots(space, targets)?;
    targets.iter().zip(&roots).try_for_each(|(target, root)| {
        let failed = |source| AttachError::Control { path: target.path.clone(), source };
        control.make_catatonic(root.as_fd()).map_err(failed)
    })
}

/// The mount namespace that a target names. Errors are those of [`Space::of_process`] and [`Space::of_file`].
pub fn space_of(target: &discover::Target) -> Result<Space, Errno> {
    match target {
        discover::Target::Own => Space::own(),
        discover::Target::Process(pid) => Space::of_process(*pid),
        discover::Target::Namespace(path) => Space::of_file(path),
    }
}

/// Mounts that had no master have none again.
fn detach(control: &Control, mounts: &[Opened<'_>], error: AttachError) -> AttachError {
    for (target, root) in mounts {
        if let Err(error) = control.make_catatonic(root.as_fd()) {
            tracing::error!("{}: {error}", target.path.display());
        }
    }
    error
}

impl AttachError {
    /// The one mount that is in the way, where it is one.
    pub fn mount(&self) -> Option<&Path> {
        match self {
            Self::Control { path, .. }
            | Self::OtherPidNamespace { path, .. }
            | Self::Hidden { path, .. }
            | Self::Lid { path, .. }
            | Self::Waits(path) => Some(path),
            _ => None,
        }
    }

    fn of(source: ControlError, target: &Target, master: i32, space: &discover::Target) -> Self {
        let path = target.path.clone();
        match source {
            ControlError::OtherPidNamespace => Self::OtherPidNamespace {
                path,
                owner: old::owner_namespace(space, target.dev),
                master,
                its: old::pid_namespace(master),
            },
            source => Self::Control { path, source },
        }
    }
}

/// Mounts with a pipe change hands.
struct HandOver<'a> {
    control: &'a Control,
    space: &'a discover::Target,
    live: &'a [Opened<'a>],
    /// The new master, when it is another process.
    spare: &'a [i32],
}

impl HandOver<'_> {
    /// `set_pipes` gives all of them to the new master. Returns the number of waiters.
    fn run(self, set_pipes: impl FnOnce() -> Result<(), AttachError>) -> Result<usize, AttachError> {
        let survey = discover::survey(self.space)?;
        let mut old = OldMasters::find(&survey, self.live)?;
        old.keep_write_ends(self.spare, self.space)?;
        let mounts = self.live.iter().map(|(target, _)| target.dev).collect();
        let spare = [self.spare, &old.pids()].concat();
        let held = Quiesced::hold(&Scope { mounts, spare, ..Scope::default() }).map_err(AttachError::from);
        let mut held = match held.and_then(|held| Ok((held, faults::point("restore.visitors-held")?))) {
            Ok((held, ())) => held,
            Err(error) => {
                old.take_back_write_ends(self.space);
                return Err(error);
            }
        };
        match self.swap(&old, &mut held, set_pipes) {
            Ok(waiters) => {
                held.release()?;
                Ok(waiters)
            }
            Err(causal) => match self.give_back(&mut old, &mut held) {
                Ok(()) => Err(causal),
                Err(rollback) => {
                    Err(AttachError::NotGivenBack { causal: Box::new(causal), rollback: Box::new(rollback) })
                }
            },
        }
    }

    fn swap(
        &self,
        old: &OldMasters,
        held: &mut Quiesced,
        set_pipes: impl FnOnce() -> Result<(), AttachError>,
    ) -> Result<usize, AttachError> {
        for (index, (target, root)) in self.live.iter().enumerate() {
            self.control
                .make_catatonic(root.as_fd())
                .map_err(|source| AttachError::Control { path: target.path.clone(), source })?;
            if index == 0 {
                faults::point("restore.first-catatonic")?;
            }
        }
        faults::point("restore.all-catatonic")?;
        old.forget_requests();
        let waiters = held.restart_waiters()?;
        faults::point("restore.waiters-restarting")?;
        set_pipes()?;
        faults::point("restore.pipes-set")?;
        Ok(waiters)
    }

    /// After a failure: everything as before the swap, as far as the old masters live.
    fn give_back(&self, old: &mut OldMasters, held: &mut Quiesced) -> Result<(), AttachError> {
        for (target, root) in self.live {
            self.control
                .make_catatonic(root.as_fd())
                .map_err(|source| AttachError::Control { path: target.path.clone(), source })?;
        }
        // Whatever happens next: no waiter may see the error that CATATONIC gave it.
        let restarted = held.restart_waiters().map_err(AttachError::from);
        old.give_back(self.live, self.space)?;
        restarted.map(drop)
    }
}
