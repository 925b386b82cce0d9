//! Mounting what an entry says: by system call for what the kernel mounts itself, by mount(8) for the rest.
//!
//! | module | what it does |
//! |---|---|
//! | [`options`] | option text → flags of the mount, parameters of the file system |
//! | `helper` | mount(8), with a limit |
//!
//! No fork and no look at the mount table for bind mounts and the kernel's own file systems: that is most of what an
//! automounter mounts, and the forked pair costs two hundred times the calls.

mod helper;
pub mod options;

use super::maps::Replica;
use crate::sys::Errno;
use crate::sys::mount::{self as kernel, Change, Propagation};
use options::Options;
use rustix::fs::CWD;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::time::Duration;

/// A file system could not be mounted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MountError {
    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] kernel::MountError),
    /// An entry without a source.
    #[error("the map entry names nothing to mount")]
    NoSource,
    /// mount(8) could not be started, or watched.
    #[error("mount(8) cannot be run: {0}; is util-linux installed?")]
    NoHelper(Errno),
    /// mount(8) said no.
    #[error("mount -t {fstype} {}: {}", source_name.display(), said.trim())]
    Refused {
        /// File-system type.
        fstype: String,
        /// What was to be mounted.
        source_name: OsString,
        /// What it wrote.
        said: String,
    },
    /// mount(8) took longer than it may, and was ended.
    #[error("mount -t {fstype} {}: no result within {} s", source_name.display(), limit.as_secs())]
    TooLong {
        /// File-system type.
        fstype: String,
        /// What was to be mounted.
        source_name: OsString,
        /// How long it was given.
        limit: Duration,
    },
}

impl MountError {
    /// What the visitor is told.
    pub fn errno(&self) -> Errno {
        use kernel::MountError as Kernel;
        match self {
            Self::Kernel(
                Kernel::Create { errno, .. } | Kernel::Option { errno, .. } | Kernel::At { errno, .. },
            ) => *errno,
            Self::TooLong { .. } => Errno::TIMEDOUT,
            Self::Kernel(_) | Self::NoSource | Self::NoHelper(_) | Self::Refused { .. } => Errno::NOENT,
        }
    }
}

/// How mounts are made that an entry does not say.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// Propagation of the new mount; `None`: as its place gives it.
    pub propagation: Option<Propagation>,
    /// How long mount(8) may take.
    pub limit: Duration,
}

/// Mount one file system on the directory `target`: the first of its sources that can be had.
///
/// The caller's process group must own the trigger at `target`.
pub fn mount(
    fstype: &str,
    text: &OsStr,
    sources: &[Replica],
    target: &Path,
    manner: Manner,
) -> Result<(), MountError> {
    let mut last = MountError::NoSource;
    for replica in sources {
        match replica_on(fstype, text, replica, target, manner) {
            Ok(()) => return propagate(target, manner),
            Err(error) => {
                tracing::debug!(target: "autofs_cr::mount", at = %target.display(), %error, "not mounted");
                last = error;
            }
        }
    }
    Err(last)
}

/// A source on this machine is bound; over the network only when that fails.
fn replica_on(
    fstype: &str,
    text: &OsStr,
    replica: &Replica,
    target: &Path,
    manner: Manner,
) -> Result<(), MountError> {
    if let Some(local) = &replica.local {
        let bound = bind(local, &Options::parse(&super::maps::options::for_bind(text)), target);
        if bound.is_ok() {
            return bound;
        }
    }
    let options = Options::parse(text);
    if fstype == "bind" || options.bind || options.recursive {
        return bind(Path::new(&replica.source), &options, target);
    }
    if is_kernels_own(fstype, &options) {
        return superblock(fstype, Path::new(&replica.source), &options, target);
    }
    helper::mount(fstype, text, &replica.source, target, manner.limit)
}

fn bind(source: &Path, options: &Options, target: &Path) -> Result<(), MountError> {
    let detached = kernel::bind(CWD, source, options.recursive)?;
    // Before it is attached, so that nobody ever sees the mount without its flags.
    if !(options.set.is_empty() && options.clear.is_empty()) {
        let change = Change {
            set: options.set,
            clear: options.clear,
            propagation: None,
            recursive: options.recursive,
        };
        change.apply(&detached, Path::new(""))?;
    }
    Ok(detached.attach(CWD, target)?)
}

fn superblock(fstype: &str, source: &Path, options: &Options, target: &Path) -> Result<(), MountError> {
    Ok(kernel::new_superblock(fstype, source, &options.parameters(), options.set)?.attach(CWD, target)?)
}

fn propagate(target: &Path, manner: Manner) -> Result<(), MountError> {
    // After it is attached: a mount on a shared one becomes shared there.
    match manner.propagation {
        Some(to) => Ok(Change::propagation(to, false).apply(CWD, target)?),
        None => Ok(()),
    }
}

/// File systems that need nothing of mount(8): no helper of their own, no loop device, no label to be looked up.
const KERNELS_OWN: &[&str] = &[
    "btrfs", "erofs", "ext2", "ext3", "ext4", "f2fs", "iso9660", "overlay", "proc", "ramfs", "squashfs",
    "sysfs", "tmpfs", "udf", "vfat", "xfs",
];

/// Types whose source is no device.
const WITHOUT_DEVICE: &[&str] = &["overlay", "proc", "ramfs", "sysfs", "tmpfs"];

fn is_kernels_own(fstype: &str, options: &Options) -> bool {
    KERNELS_OWN.contains(&fstype) && !options.needs_helper
}

/// Does the trigger latency allow to mount this without a worker? True for what cannot block on a device, a server or
/// another program.
pub fn is_immediate(fstype: &str, text: &OsStr, sources: &[Replica]) -> bool {
    let options = Options::parse(text);
    let bound = fstype == "bind" || options.bind || options.recursive;
    let local = |replica: &Replica| replica.host.is_none() && replica.local.is_none();
    (bound || WITHOUT_DEVICE.contains(&fstype) && is_kernels_own(fstype, &options))
        && sources.iter().all(local)
}
