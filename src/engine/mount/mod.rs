//! Mounting what an entry says: by system call for what the kernel mounts itself, by mount(8) for the rest.
//!
//! | module | what it does |
//! |---|---|
//! | [`options`] | option text → flags of the mount, parameters of the file system |
//! | `helper` | mount(8) and other programs, with a limit |
//! | `extfs` | whether fsck is due |
//! | [`external`] | file systems with a place of their own that keys share |
//! | `replicas` | the order in which replicated servers are tried |
//!
//! No fork and no look at the mount table for bind mounts and the kernel's own file systems: that is most of what an
//! automounter mounts, and the forked pair costs two hundred times the calls.

pub mod external;
mod extfs;
mod helper;
pub mod options;
mod replicas;

use super::maps::{Replica, What};
use crate::sys::Errno;
use crate::sys::mount::{self as kernel, Change, MountFlags, Propagation};
use options::Options;
use replicas::By;
use rustix::fs::CWD;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A file system could not be mounted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MountError {
    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] kernel::MountError),
    /// No server of a replicated file system answers.
    #[error("none of its {0} servers answers")]
    NoServer(usize),
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
    /// The command of an entry (amd type `program`) did not do what it is there for.
    #[error("{}: {}", command.display(), said.trim())]
    Command {
        /// The program.
        command: OsString,
        /// What it wrote.
        said: String,
    },
    /// A place where something is to be mounted cannot be made.
    #[error("{}: {errno}; no place to mount", place.display())]
    Place {
        /// Where.
        place: PathBuf,
        /// Why.
        errno: Errno,
    },
    /// fsck(8) could not mend it.
    #[error("{}: the file system has errors; run fsck by hand: {}", device.display(), said.trim())]
    Unclean {
        /// Where it is.
        device: PathBuf,
        /// What fsck wrote.
        said: String,
    },
    /// The source of a bind mount lies behind another trigger, which cannot be mounted.
    #[error("{}, to be bound, cannot be reached: {}", source_name.display(), said.trim())]
    Unreachable {
        /// It.
        source_name: PathBuf,
        /// What the visitor wrote.
        said: String,
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
            Self::NoServer(_) => Errno::HOSTDOWN,
            Self::Unclean { .. } => Errno::UCLEAN,
            Self::Place { errno, .. } => *errno,
            Self::Kernel(_)
            | Self::NoSource
            | Self::NoHelper(_)
            | Self::Refused { .. }
            | Self::Command { .. }
            | Self::Unreachable { .. } => Errno::NOENT,
        }
    }
}

/// How mounts are made that an entry does not say.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// Propagation of the new mount; `None`: as its place gives it.
    pub propagation: Option<Propagation>,
    /// How long mount(8), or another program, may take.
    pub limit: Duration,
    /// Choose among replicated servers by chance.
    pub random_replica: bool,
}

/// Mount one file system ([`What::Mount`]) on the directory `target`: the first of its sources that can be had. Or have a
/// command do it ([`What::Command`]).
///
/// The caller's process group must own the trigger at `target`.
pub fn mount(what: &What, target: &Path, manner: Manner) -> Result<(), MountError> {
    let (fstype, options, sources, use_weight_only) = match what {
        What::Mount { fstype, options, sources, use_weight_only } => {
            (fstype, options, sources, use_weight_only)
        }
        What::Command { mount, .. } => {
            let mut command = helper::command(mount).ok_or(MountError::NoSource)?;
            return helper::succeed(&mut command, manner.limit);
        }
        _ => return Err(MountError::NoSource),
    };
    let by = match (manner.random_replica, use_weight_only) {
        (true, _) => By::Chance,
        (false, true) => By::Weight,
        (false, false) => By::Cost,
    };
    let deadline = Instant::now() + manner.limit;
    let chosen = replicas::choose(fstype, options, sources, by, manner.limit);
    let mut last =
        if sources.is_empty() { MountError::NoSource } else { MountError::NoServer(sources.len()) };
    for replica in chosen {
        // All together have the time of one.
        let manner = Manner { limit: deadline.saturating_duration_since(Instant::now()), ..manner };
        match replica_on(fstype, options, replica, target, manner) {
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
        let options = Options::parse(&super::maps::options::for_bind(text));
        let bound = bind(local, &options, target, manner);
        if bound.is_ok() {
            return bound;
        }
    }
    let options = Options::parse(text);
    let source = Path::new(&replica.source);
    if fstype == "bind" || options.bind || options.recursive {
        return bind(source, &options, target, manner);
    }
    if is_kernels_own(fstype, source, &options) {
        return superblock(fstype, source, &options, target, manner);
    }
    helper::mount(fstype, text, &replica.source, target, manner.limit)
}

fn bind(source: &Path, options: &Options, target: &Path, manner: Manner) -> Result<(), MountError> {
    if is_behind_autofs(source) {
        helper::visit(source, manner.limit)?;
    }
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

/// Does a path end in an autofs file system, or in nothing inside one? Our own walks trigger nothing there.
fn is_behind_autofs(path: &Path) -> bool {
    const AUTOFS_SUPER_MAGIC: rustix::fs::FsWord = 0x0187;
    let exists = path.ancestors().find_map(|dir| rustix::fs::statfs(dir).ok());
    exists.is_some_and(|found| found.f_type == AUTOFS_SUPER_MAGIC)
}

fn superblock(
    fstype: &str,
    source: &Path,
    options: &Options,
    target: &Path,
    manner: Manner,
) -> Result<(), MountError> {
    // What cannot be read is the kernel's to refuse.
    if fstype.starts_with("ext") && extfs::needs_check(source).unwrap_or(false) {
        helper::fsck(fstype, source, !options.set.contains(MountFlags::MOUNT_ATTR_RDONLY), manner.limit)?;
    }
    Ok(kernel::new_superblock(fstype, source, &options.parameters(), options.set)?.attach(CWD, target)?)
}

fn propagate(target: &Path, manner: Manner) -> Result<(), MountError> {
    // After it is attached: a mount on a shared one becomes shared there.
    match manner.propagation {
        Some(to) => Ok(Change::propagation(to, false).apply(CWD, target)?),
        None => Ok(()),
    }
}

/// File systems on block devices that need nothing of mount(8): no helper of their own.
const ON_DEVICES: &[&str] =
    &["btrfs", "erofs", "ext2", "ext3", "ext4", "f2fs", "iso9660", "squashfs", "udf", "vfat", "xfs"];

/// Likewise, and their source is no device.
const WITHOUT_DEVICE: &[&str] = &["overlay", "proc", "ramfs", "sysfs", "tmpfs"];

/// May it be mounted by system call? A label has to be looked up, and a file needs a loop device: mount(8) does both.
fn is_kernels_own(fstype: &str, source: &Path, options: &Options) -> bool {
    use std::os::unix::fs::FileTypeExt;
    let device = || std::fs::metadata(source).is_ok_and(|meta| meta.file_type().is_block_device());
    !options.needs_helper && (WITHOUT_DEVICE.contains(&fstype) || ON_DEVICES.contains(&fstype) && device())
}
