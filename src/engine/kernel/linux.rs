//! The real kernel.
//!
//! The process group of this process owns every mount that is made here, so none of its own path walks
//! triggers or waits. Plain paths are therefore safe everywhere.

use super::{Hold, Kernel};
use crate::discover::facts::AutofsOptions;
use crate::discover::mountinfo;
use crate::engine::maps::What;
use crate::engine::mount::external::Places;
use crate::engine::mount::{self, Manner, MountError};
use crate::engine::served::{PropagationType, Served};
use crate::engine::task::Place;
use crate::sys::control::{Control, ControlError, ExpireHow, MountFd, Token};
use crate::sys::mount::{self as mounts, AutofsParams, Change, MountFlags, MountType, Propagation, Unmount};
use crate::sys::{DevNum, Errno, io_errno};
use rustix::fs::{AtFlags, CWD, Mode, StatxAttributes, StatxFlags};
use std::ffi::OsString;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

/// The kernel, through `/dev/autofs` and the mount API.
#[derive(Debug)]
pub struct Linux {
    control: Control,
    pipe: OwnedFd,
    places: Places,
}

impl Linux {
    /// All mounts it makes write their requests to `pipe`, the write end.
    pub fn new(control: Control, pipe: OwnedFd) -> Self {
        Self { control, pipe, places: Places::default() }
    }

    /// The root of an autofs mount, for one command: an open one counts as a use.
    fn open(&self, place: &Place) -> Result<MountFd, Errno> {
        self.control.open_mount(&place.path, place.dev).map_err(errno_of)
    }

    fn set_up(&self, place: &Place, mount: impl AsFd, served: &Served) -> Result<(), Errno> {
        // After it is attached: a mount on a shared one becomes shared there.
        if let Some(to) = propagation(served) {
            Change::propagation(to, false).apply(mount, Path::new("")).map_err(mount_errno)?;
        }
        let root = self.open(place)?;
        let seconds = served.options.timeout.as_secs();
        self.control.set_timeout(root.as_fd(), seconds).map(drop).map_err(errno_of)
    }
}

/// A mount's root.
struct Held<'a> {
    control: &'a Control,
    root: MountFd,
}

impl Hold for Held<'_> {
    fn answer(&self, token: Token, result: Result<(), Errno>) -> Result<(), Errno> {
        match result {
            Ok(()) => self.control.ready(self.root.as_fd(), token),
            Err(errno) => self.control.fail(self.root.as_fd(), token, errno),
        }
        .map_err(errno_of)
    }
}

impl Kernel for Linux {
    fn answer(&self, place: &Place, token: Token, result: Result<(), Errno>) -> Result<(), Errno> {
        let root = match self.open(place) {
            // Somebody moved it, or a directory above it has another name now.
            Err(Errno::NOENT) => self.open(&self.find(place.dev)?)?,
            opened => opened?,
        };
        Held { control: &self.control, root }.answer(token, result)
    }

    fn find(&self, dev: DevNum) -> Result<Place, Errno> {
        let table = std::fs::read("/proc/thread-self/mountinfo").map_err(io_errno)?;
        let entries = mountinfo::parse(&table).map_err(|_| Errno::BADMSG)?;
        let found = entries.iter().filter(|entry| entry.is_autofs() && entry.dev == dev);
        // A bind of a part of it is enough to answer through.
        let entry = found.min_by_key(|entry| entry.root != b"/").ok_or(Errno::NOENT)?;
        let kind = AutofsOptions::parse(entry.super_options).mount_type;
        let mut place =
            Place { path: mountinfo::path(entry.mount_point).into(), dev, ino: None, kind, dirs: 0 };
        place.ino =
            self.open(&place).ok().and_then(|root| NonZeroU64::new(rustix::fs::fstat(&root).ok()?.st_ino));
        Ok(place)
    }

    fn hold<'a>(&'a self, place: &Place) -> Result<Box<dyn Hold + 'a>, Errno> {
        let root = self.open(place)?;
        // Any command that only the owner may give.
        self.control.protocol(root.as_fd()).map_err(errno_of)?;
        Ok(Box::new(Held { control: &self.control, root }))
    }

    fn expire(&self, place: &Place, immediate: bool) -> Result<bool, Errno> {
        let root = self.open(place)?;
        self.control.expire(root.as_fd(), ExpireHow { immediate, ..ExpireHow::default() }).map_err(errno_of)
    }

    fn is_covered(&self, place: &Place, target: &Path) -> Result<bool, Errno> {
        if *target == *place.path {
            // No file system is asked for anything on the way: a dead server cannot hold this up.
            let top = self.control.is_mount_point(target).map_err(errno_of)?;
            return Ok(top.is_some_and(|top| top.dev != place.dev));
        }
        // ISMOUNTPOINT would follow the symbolic link that a key may be.
        let key = target.file_name().ok_or(Errno::INVAL)?;
        let root = self.open(place)?;
        // No mount, and no question to a server that may be dead. (openat2 with RESOLVE_NO_XDEV is no test: on 6.18 it
        // is EXDEV for a key without a mount, too.)
        let flags = AtFlags::NO_AUTOMOUNT | AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_DONT_SYNC;
        match rustix::fs::statx(&root, key, flags, StatxFlags::empty()) {
            Ok(found) => Ok(found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    fn make_trigger(&self, path: &Path, kind: MountType, served: &Served) -> Result<Place, Errno> {
        let params = AutofsParams {
            strict_expire: served.options.strict_expire,
            ignore: served.options.ignore,
            ..AutofsParams::new(self.pipe.as_fd(), kind)
        };
        let mount =
            mounts::autofs(&params, Path::new(&served.name), MountFlags::empty()).map_err(mount_errno)?;
        let root = rustix::fs::fstat(&mount)?;
        let dev = DevNum::from_st_dev(root.st_dev);
        let place = Place { path: path.into(), dev, ino: NonZeroU64::new(root.st_ino), kind, dirs: 0 };
        mount.attach(CWD, path).map_err(mount_errno)?;
        if let Err(errno) = self.set_up(&place, mount, served) {
            if let Err(error) = mounts::unmount(path, Unmount::Idle) {
                tracing::error!(%error, "a trigger that is not complete stays");
            }
            return Err(errno);
        }
        Ok(place)
    }

    fn mount(&self, what: &What, target: &Path, served: &Served) -> Result<(), MountError> {
        // Links and submounts are made with the calls above.
        mount::mount(what, target, manner(served))
    }

    fn enter(&self, place: &Path, what: &What, key: &Path, served: &Served) -> Result<(), MountError> {
        self.places.enter(place, what, key, manner(served))
    }

    fn adopt(&self, place: &Path, what: &What, key: &Path) {
        self.places.adopt(place, what, key);
    }

    fn leave(&self, key: &Path, served: &Served) {
        self.places.leave(key, manner(served));
    }

    fn unmount(&self, path: &Path) -> Result<(), Errno> {
        mounts::unmount(path, Unmount::Idle).map_err(mount_errno)
    }

    fn make_catatonic(&self, place: &Place) -> Result<(), Errno> {
        self.control.make_catatonic(self.open(place)?.as_fd()).map_err(errno_of)
    }

    fn set_timeout(&self, place: &Place, timeout: Duration) -> Result<(), Errno> {
        let root = self.open(place)?;
        self.control.set_timeout(root.as_fd(), timeout.as_secs()).map(drop).map_err(errno_of)
    }

    fn make_dir(&self, path: &Path, mode: u32) -> Result<usize, Errno> {
        match make_one(path, mode) {
            Err(Errno::NOENT) => match path.parent() {
                Some(parent) => {
                    let above = self.make_dir(parent, mode)?;
                    Ok(above + make_one(path, mode)?)
                }
                None => Err(Errno::NOENT),
            },
            made => made,
        }
    }

    fn remove(&self, path: &Path) -> Result<(), Errno> {
        match rustix::fs::unlinkat(CWD, path, AtFlags::REMOVEDIR) {
            Err(Errno::NOTDIR) => self.remove_link(path),
            removed => removed,
        }
    }

    fn remove_link(&self, path: &Path) -> Result<(), Errno> {
        rustix::fs::unlink(path)
    }

    fn symlink(&self, target: &Path, path: &Path) -> Result<(), Errno> {
        rustix::fs::symlink(target, path)
    }

    fn names(&self, dir: &Path) -> Result<Vec<OsString>, Errno> {
        let entries = std::fs::read_dir(dir).map_err(io_errno)?;
        entries.map(|entry| Ok(entry.map_err(io_errno)?.file_name())).collect()
    }
}

/// One directory with exactly this mode, whatever the umask is; 0 when there is one.
fn make_one(path: &Path, mode: u32) -> Result<usize, Errno> {
    let mode = Mode::from_raw_mode(mode);
    match rustix::fs::mkdir(path, mode) {
        Ok(()) => rustix::fs::chmod(path, mode).map(|()| 1),
        Err(Errno::EXIST) => Ok(0),
        Err(errno) => Err(errno),
    }
}

fn manner(served: &Served) -> Manner {
    Manner {
        propagation: propagation(served),
        limit: served.options.mount_wait,
        random_replica: served.options.random_replica,
    }
}

fn propagation(served: &Served) -> Option<Propagation> {
    match served.options.propagation {
        PropagationType::Slave => Some(Propagation::Slave),
        PropagationType::Private => Some(Propagation::Private),
        PropagationType::Shared => None,
    }
}

/// The errno that a visitor or a job is told.
fn errno_of(error: ControlError) -> Errno {
    match error {
        ControlError::Unavailable(errno) | ControlError::Other { errno, .. } => errno,
        ControlError::NoPrivilege(_) => Errno::PERM,
        ControlError::NotOwner(_) => Errno::ACCESS,
        ControlError::BadDescriptor(_) => Errno::BADF,
        ControlError::NoSuchMount { .. } | ControlError::NoSuchKey(_) => Errno::NOENT,
        ControlError::AlreadyHasPipe => Errno::BUSY,
        ControlError::NotAPipe => Errno::PIPE,
        _ => Errno::INVAL,
    }
}

fn mount_errno(error: mounts::MountError) -> Errno {
    match error {
        mounts::MountError::UnknownType(_) => Errno::NODEV,
        mounts::MountError::Option { errno, .. }
        | mounts::MountError::Create { errno, .. }
        | mounts::MountError::At { errno, .. } => errno,
        mounts::MountError::Busy(_) => Errno::BUSY,
        mounts::MountError::NotMounted(_) => Errno::INVAL,
    }
}
