//! Opening roots without waiting.
//!
//! OPENMOUNT by anybody but the owner waits while a request for that very trigger is open: the kernel makes every
//! walk that enters the mount wait. But the waiters can only be handed on by who has opened the mount. OPENMOUNT goes
//! upwards from what is on top, though, and to enter a mount through a descriptor is no walk: so in a mount
//! namespace of our own something is mounted on the trigger, without a walk ([`crate::sys::uncovered`]), and
//! OPENMOUNT starts there.

use super::remote::Remote;
use super::{AttachError, Target, space_of};
use crate::discover;
use crate::discover::facts::{AutofsMount, MountType, Survey};
use crate::discover::{mountinfo, proc::Worker, survey};
use crate::sys::control::{Command, Control, ControlError, MountFd};
use crate::sys::mount::{self, DetachedMount, MountError, MountFlags};
use crate::sys::process::own_group;
use crate::sys::{DevNum, Errno, mountns, uncovered::uncovered};
use rustix::fs::{CWD, Mode, OFlags};
use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

/// How long OPENMOUNT may take where it cannot be kept from waiting.
const LIMIT: Duration = Duration::from_millis(500);

/// Open the roots of mounts of another master, for CATATONIC and SETPIPEFD. (Some are roots of copies in another
/// mount namespace: of no use for EXPIRE.)
pub fn open_roots(space: &discover::Target, targets: &[Target]) -> Result<Vec<MountFd>, AttachError> {
    let control = Arc::new(Control::open().map_err(AttachError::Device)?);
    let mounts = mounts(space);
    refuse_hidden(&mounts, targets)?;
    let triggers = live_triggers(&mounts);
    let entered = space_of(space).map_err(AttachError::Namespace)?;
    let opened = entered.run(|| {
        let lid = match targets.iter().any(|target| triggers.contains(&target.dev)) {
            true => Some(lid()?),
            false => None,
        };
        let mut opener =
            Opener { control: &control, lid, triggers, roots: Vec::new(), by_path: HashMap::new() };
        for (index, target) in targets.iter().enumerate() {
            let root = opener.open(target)?;
            opener.roots.push(root);
            opener.by_path.insert(&target.path, index);
        }
        Ok(opener.finish(targets))
    });
    let opened: Result<Vec<_>, AttachError> = opened.map_err(AttachError::Namespace)?;
    let mut others = Others { control, space, facts: None };
    let opened = targets.iter().zip(opened?);
    opened.map(|(target, root)| root.or_else(|way| others.open(target, way))).collect()
}

/// A mount above, and the path from there.
type Way = (Target, PathBuf);

fn failed(target: &Target) -> impl FnOnce(ControlError) -> AttachError {
    let path = target.path.clone();
    |source| AttachError::Control { path, source }
}

/// What mountinfo tells; nothing where it cannot be read.
fn mounts(space: &discover::Target) -> Vec<AutofsMount> {
    let Ok((_, file)) = survey::read(space) else { return Vec::new() };
    mountinfo::parse(&file).map(|entries| survey::assemble(&entries)).unwrap_or_default()
}

/// A walk to a hidden mount goes to what is at its path now, and may trigger that.
fn refuse_hidden(mounts: &[AutofsMount], targets: &[Target]) -> Result<(), AttachError> {
    let reached: HashSet<_> =
        mounts.iter().filter(|m| m.hidden_by.is_none()).map(|m| (m.dev, &m.path)).collect();
    let hidden: HashMap<_, _> =
        mounts.iter().filter_map(|m| Some(((m.dev, &m.path), m.hidden_by.as_ref()?))).collect();
    let of = |target: &Target| {
        let key = (target.dev, &target.path);
        let by = hidden.get(&key).filter(|_| !reached.contains(&key))?;
        Some(AttachError::Hidden { path: target.path.clone(), by: by.to_path_buf() })
    };
    targets.iter().find_map(of).map_or(Ok(()), Err)
}

/// Direct and offset mounts that have a pipe and are not ours: an owner never waits.
fn live_triggers(mounts: &[AutofsMount]) -> HashSet<DevNum> {
    let own = own_group();
    let live = mounts.iter().filter(|mount| {
        mount.options.mount_type != MountType::Indirect && !mount.catatonic && mount.options.pgrp != own
    });
    live.map(|mount| mount.dev).collect()
}

/// Something to put on triggers, in a mount namespace of this thread's own.
fn lid() -> Result<DetachedMount, AttachError> {
    mountns::unshare_private().map_err(AttachError::Namespace)?;
    let root = Path::new("/");
    let new = mount::new_superblock::<&str>("tmpfs", Path::new("autofs-cr"), &[], MountFlags::empty());
    // Kernels before 6.15 copy only what is attached.
    new.and_then(|lid| lid.attach(CWD, root).map(|()| lid))
        .map_err(|source| AttachError::Lid { path: root.to_owned(), source })
}

/// Opens roots, in a thread whose working directory is its own.
struct Opener<'a> {
    control: &'a Control,
    lid: Option<DetachedMount>,
    triggers: HashSet<DevNum>,
    roots: Vec<Option<MountFd>>,
    /// Indexes of roots.
    by_path: HashMap<&'a Path, usize>,
}

impl Opener<'_> {
    /// `None`: only by a walk that may wait.
    fn open(&self, target: &Target) -> Result<Option<MountFd>, AttachError> {
        let lid = self.lid.as_ref().filter(|_| self.triggers.contains(&target.dev));
        let from = |base: Option<&MountFd>, path: &Path| match lid {
            Some(lid) => self.open_trigger(lid, base, path, target),
            None => open_by_walk(self.control, base.map(AsFd::as_fd), path, target.dev)
                .map(Some)
                .map_err(failed(target)),
        };
        match (from(None, &target.path), self.above(target)) {
            // Something may hide it that is mounted on the mount above it.
            (Err(error), Some((above, rest))) if is_absent(&error) => from(self.roots[above].as_ref(), &rest),
            (result, _) => result,
        }
    }

    /// The nearest mount above that is open, and the path from there.
    fn above(&self, target: &Target) -> Option<(usize, PathBuf)> {
        let mut paths = target.path.ancestors().skip(1);
        paths.find_map(|path| {
            let rest = target.path.strip_prefix(path).ok()?;
            let index = *self.by_path.get(path)?;
            self.roots.get(index)?.as_ref()?;
            Some((index, Path::new(".").join(rest)))
        })
    }

    /// All roots; for what is not open, the way from what is above it.
    fn finish(mut self, targets: &[Target]) -> Vec<Result<MountFd, Option<Way>>> {
        // What is open here goes with this thread's namespace: it has to be opened once more.
        let way = |target| {
            let (index, rest) = self.above(target)?;
            Some((targets[index].clone(), rest))
        };
        let closed = targets.iter().zip(&self.roots).filter(|(_, root)| root.is_none());
        let mut ways: Vec<_> = closed.map(|(target, _)| way(target)).collect();
        let roots = std::mem::take(&mut self.roots).into_iter().rev();
        let mut all: Vec<_> = roots.map(|root| root.ok_or_else(|| ways.pop().flatten())).collect();
        all.reverse();
        all
    }

    /// Open the root of a trigger from what is put on it. `None`: what it is mounted on has no handles.
    fn open_trigger(
        &self,
        lid: &DetachedMount,
        base: Option<&MountFd>,
        path: &Path,
        target: &Target,
    ) -> Result<Option<MountFd>, AttachError> {
        let failed_lid = |source| AttachError::Lid { path: target.path.clone(), source };
        let call = |what: &'static str| {
            let path = target.path.clone();
            move |errno| failed_lid(MountError::At { what, path, errno })
        };
        let (Some(above), Some(name)) = (path.parent(), path.file_name()) else { return Ok(None) };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let base = base.map_or(CWD, AsFd::as_fd);
        let parent = rustix::fs::openat(base, above, flags, Mode::empty()).map_err(call("find"))?;
        let Ok(place) = uncovered(&parent, name) else { return Ok(None) };
        let lid = mount::bind(lid, Path::new(""), false).map_err(failed_lid)?;
        lid.attach(&place, Path::new("")).map_err(failed_lid)?;
        open_by_walk(self.control, Some(lid.as_fd()), Path::new("./."), target.dev)
            .map(Some)
            .map_err(failed(target))
    }
}

/// A path from a directory goes through the working directory: the `/proc` of the namespace may not show us.
/// (OPENMOUNT wants a slash in its path.)
fn open_by_walk(
    control: &Control,
    base: Option<BorrowedFd<'_>>,
    path: &Path,
    dev: DevNum,
) -> Result<MountFd, ControlError> {
    if let Some(base) = base {
        let no_way =
            |errno| ControlError::Other { command: Command::OpenMount, path: Some(path.to_owned()), errno };
        rustix::process::fchdir(base).map_err(no_way)?;
    }
    control.open_mount(path, dev)
}

/// Is nothing of that name there, or something else?
fn is_absent(error: &AttachError) -> bool {
    match error {
        AttachError::Control { source: ControlError::NoSuchMount { .. }, .. } => true,
        AttachError::Lid { source: MountError::At { errno, .. }, .. } => {
            matches!(*errno, Errno::NOENT | Errno::NOTDIR)
        }
        _ => false,
    }
}

/// What can only be opened by a walk that may wait.
struct Others<'a> {
    control: Arc<Control>,
    space: &'a discover::Target,
    facts: Option<Survey>,
}

impl Others<'_> {
    /// By the master, who never waits; or by a thread that is left behind if it has to wait.
    fn open(&mut self, target: &Target, way: Option<Way>) -> Result<MountFd, AttachError> {
        if let Some(root) = self.by_master(target)? {
            return Ok(root);
        }
        let entered = space_of(self.space).map_err(AttachError::Namespace)?;
        let (send, receive) = mpsc::channel();
        let (control, wanted) = (self.control.clone(), target.clone());
        let worker = Arc::new(Worker::default());
        let its = worker.clone();
        std::thread::spawn(move || {
            let opened = entered.run(|| {
                its.begin();
                match (open_by_walk(&control, None, &wanted.path, wanted.dev), way) {
                    (Err(ControlError::NoSuchMount { .. }), Some((above, rest))) => {
                        let base = control.open_mount(&above.path, above.dev)?;
                        open_by_walk(&control, Some(base.as_fd()), &rest, wanted.dev)
                    }
                    (result, _) => result,
                }
            });
            // Nobody listens any more when it comes too late.
            let _ = send.send(opened);
        });
        loop {
            match receive.recv_timeout(LIMIT) {
                Ok(opened) => return opened.map_err(AttachError::Namespace)?.map_err(failed(target)),
                Err(RecvTimeoutError::Timeout) if !worker.sleeps() => {}
                Err(_) => return Err(AttachError::Waits(target.path.clone())),
            }
        }
    }

    fn by_master(&mut self, target: &Target) -> Result<Option<MountFd>, AttachError> {
        let facts = match &self.facts {
            Some(facts) => facts,
            None => self.facts.insert(discover::survey(self.space)?),
        };
        let mount = facts.mounts.iter().find(|mount| mount.dev == target.dev);
        // It may see the mount elsewhere, or not at all.
        let master = mount.and_then(|mount| mount.master.process());
        let master = master.filter(|master| master.pid != rustix::process::getpid().as_raw_pid());
        Ok(master.and_then(|master| Remote::hold(master.pid, self.space).ok()?.open(target).ok()))
    }
}
