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
use crate::discover::facts::{AutofsOptions, MountType, Pipe};
use crate::discover::mountinfo::{self, Entry};
use crate::sys::control::{Control, ControlError, MountFd};
use crate::sys::mount::{self, DetachedMount, MountError, MountFlags};
use crate::sys::{DevNum, mountns, uncovered::uncovered};
use rustix::fs::{CWD, Mode, OFlags};
use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// How long OPENMOUNT may take where it cannot be kept from waiting.
const LIMIT: Duration = Duration::from_millis(500);

/// Open the roots of mounts of another master, for CATATONIC and SETPIPEFD. (Some are roots of copies in another
/// mount namespace: of no use for EXPIRE.)
pub fn open_roots(space: &discover::Target, targets: &[Target]) -> Result<Vec<MountFd>, AttachError> {
    let control = Arc::new(Control::open().map_err(AttachError::Device)?);
    let triggers = live_triggers(space);
    let entered = space_of(space).map_err(AttachError::Namespace)?;
    let opened = entered.run(|| {
        let lid = match targets.iter().any(|target| triggers.contains(&target.dev)) {
            true => Some(lid()?),
            false => None,
        };
        let open = |target: &Target| match &lid {
            Some(lid) if triggers.contains(&target.dev) => open_trigger(&control, lid, target).transpose(),
            _ => Some(control.open_mount(&target.path, target.dev).map_err(failed(target))),
        };
        targets.iter().map(|target| open(target).transpose()).collect::<Result<Vec<_>, _>>()
    });
    let opened = opened.map_err(AttachError::Namespace)??;
    let rest = targets.iter().zip(opened);
    rest.map(|(target, root)| root.map_or_else(|| open_otherwise(&control, space, target), Ok)).collect()
}

fn failed(target: &Target) -> impl FnOnce(ControlError) -> AttachError {
    let path = target.path.clone();
    |source| AttachError::Control { path, source }
}

/// Direct and offset mounts that have a pipe.
fn live_triggers(space: &discover::Target) -> HashSet<DevNum> {
    let Ok((_, file)) = discover::survey::read(space) else { return HashSet::new() };
    let autofs = mountinfo::parse(&file).unwrap_or_default().into_iter().filter(Entry::is_autofs);
    let live = autofs.filter(|entry| {
        let options = AutofsOptions::parse(entry.super_options);
        options.mount_type != MountType::Indirect && options.pipe() != Pipe::Catatonic
    });
    live.map(|entry| entry.dev).collect()
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

/// Open the root of a trigger from above. `None`: what it is mounted on has no handles.
fn open_trigger(
    control: &Control,
    lid: &DetachedMount,
    target: &Target,
) -> Result<Option<MountFd>, AttachError> {
    let path = || target.path.clone();
    let failed_lid = |source| AttachError::Lid { path: path(), source };
    let (Some(above), Some(name)) = (target.path.parent(), target.path.file_name()) else { return Ok(None) };
    let parent = rustix::fs::open(above, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let parent =
        parent.map_err(|errno| failed_lid(MountError::At { what: "open", path: above.to_owned(), errno }))?;
    let Ok(place) = uncovered(&parent, name) else { return Ok(None) };
    let lid = mount::bind(lid, Path::new(""), false).map_err(failed_lid)?;
    lid.attach(&place, Path::new("")).map_err(|source| AttachError::Lid { path: path(), source })?;
    // By the working directory, which is this thread's own: the `/proc` of the namespace may not show us. (OPENMOUNT
    // wants a slash in its path.)
    rustix::process::fchdir(&lid)
        .map_err(|errno| failed_lid(MountError::At { what: "enter what covers", path: path(), errno }))?;
    control.open_mount(Path::new("./."), target.dev).map(Some).map_err(failed(target))
}

/// By the master, who never waits; or by a thread that is left behind if it has to wait.
fn open_otherwise(
    control: &Arc<Control>,
    space: &discover::Target,
    target: &Target,
) -> Result<MountFd, AttachError> {
    let survey = discover::survey(space)?;
    let mount = survey.mounts.iter().find(|mount| mount.dev == target.dev);
    if let Some(master) = mount.and_then(|mount| mount.master.process()) {
        if master.pid == rustix::process::getpid().as_raw_pid() {
            // We are the owner, who never waits.
            return control.open_mount(&target.path, target.dev).map_err(failed(target));
        }
        return Remote::hold(master.pid, space)?.open(target);
    }
    let entered = space_of(space).map_err(AttachError::Namespace)?;
    let (send, receive) = mpsc::channel();
    let (control, wanted) = (control.clone(), target.clone());
    std::thread::spawn(move || {
        let opened = entered.run(|| control.open_mount(&wanted.path, wanted.dev));
        // Nobody listens any more: it came too late.
        let _ = send.send(opened);
    });
    match receive.recv_timeout(LIMIT) {
        Ok(opened) => opened.map_err(AttachError::Namespace)?.map_err(failed(target)),
        Err(_) => Err(AttachError::Waits(target.path.clone())),
    }
}
