//! The facts, as plain data. Dump, restore and `list` all speak in these types.

pub use crate::sys::mount::MountType;
use crate::sys::{DevNum, control::Requester, process::ProcessId};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::path::PathBuf;

/// Everything about the autofs mounts of one mount namespace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Survey {
    /// Inode of the mount namespace (`/proc/PID/ns/mnt`).
    pub mount_namespace: u64,
    /// Parents before children, else in the order of mountinfo. One superblock may be at several
    /// places (binds, propagation): the same [`AutofsMount::dev`] then appears more than once.
    pub mounts: Vec<AutofsMount>,
    /// Tasks that sleep on a request, but it cannot be told of which mount (perhaps of one in
    /// another namespace).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unplaced_waiters: Vec<Waiter>,
    /// What could not be read, so that the facts may lack something.
    #[serde(default, skip_serializing_if = "Blind::is_empty")]
    pub blind: Blind,
}

/// What a survey could not see, for want of privilege or of a kernel facility.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blind {
    /// Processes whose descriptors could not be read.
    pub descriptors: usize,
    /// Tasks in uninterruptible sleep of which the kernel does not tell where they sleep.
    pub sleepers: usize,
}

impl Blind {
    /// Was everything seen?
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Mount options of autofs as the kernel shows them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AutofsOptions {
    /// Number of the pipe's write end at mount time in the mounter; -1 when catatonic. Means little.
    pub fd: i32,
    /// Owner group, in the pid namespace of the reader of mountinfo; 0 when not visible there.
    pub pgrp: i32,
    /// Idle timeout, seconds; 0: never.
    pub timeout: u64,
    /// Lowest protocol version.
    pub min_proto: u32,
    /// Highest protocol version.
    pub max_proto: u32,
    /// Type.
    pub mount_type: MountType,
    /// Path walks do not count as use.
    pub strict_expire: bool,
    /// Hidden from df and mount listings.
    pub ignore: bool,
    /// Owner of the root directory; `None` when not shown (0).
    pub uid: Option<u32>,
    /// Group of the root directory.
    pub gid: Option<u32>,
    /// The pipe's inode; `None` when catatonic (-1), or when the kernel does not show it.
    pub pipe_ino: Option<u64>,
    /// Options that this version does not know, as the kernel prints them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unknown: Vec<String>,
}

/// What the options tell about the pipe.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pipe {
    /// There is one, with this inode.
    Inode(u64),
    /// There is none: the mount is catatonic.
    Catatonic,
    /// There is one, but the kernel does not say which (built without CONFIG_CHECKPOINT_RESTORE).
    NotShown,
}

impl AutofsOptions {
    /// The pipe, as far as the kernel shows it.
    pub fn pipe(&self) -> Pipe {
        match self.pipe_ino {
            Some(ino) => Pipe::Inode(ino),
            None if self.fd == -1 => Pipe::Catatonic,
            None => Pipe::NotShown,
        }
    }
}

/// One autofs superblock at one place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AutofsMount {
    /// Mount id of mountinfo.
    pub mount_id: u64,
    /// Its parent's.
    pub parent_id: u64,
    /// Number of the superblock.
    pub dev: DevNum,
    /// Where it is attached, in the namespace (unescaped bytes; may be not UTF-8).
    #[serde(with = "super::escaped")]
    pub path: PathBuf,
    /// Which directory of the file system is attached there: `/`, but for bind mounts of a part.
    #[serde(with = "super::escaped")]
    pub root: PathBuf,
    /// The source field: automount writes the map's name here.
    #[serde(with = "super::escaped")]
    pub source: PathBuf,
    /// Options of the superblock.
    pub options: AutofsOptions,
    /// Per-mount flags as text (`rw`, `relatime`, `nosuid` ...).
    pub mount_flags: Vec<String>,
    /// Propagation.
    pub propagation: Propagation,
    /// Is the pipe gone?
    pub catatonic: bool,
    /// Who holds which end of the pipe.
    pub pipe_ends: Vec<PipeEnd>,
    /// Who answers.
    pub master: Master,
    /// What is mounted on its triggers, bottom first: on the root (direct, offset) or on key
    /// directories (indirect), and what is stacked on those; autofs children excluded.
    pub covering: Vec<CoveringMount>,
    /// Mount ids of the autofs mounts below this one with no other autofs mount in between
    /// (offsets, submounts).
    pub autofs_children: Vec<u64>,
    /// Tasks that sleep on a request of this mount, as far as it can be told.
    pub waiters: Vec<Waiter>,
    /// Where a mount is that keeps every path walk from this one: one that came later, above it. (What is mounted on
    /// the root of an autofs mount hides nothing: from that mount's own root one gets below.)
    #[serde(default, with = "super::escaped", skip_serializing_if = "Option::is_none")]
    pub hidden_by: Option<PathBuf>,
}

impl AutofsMount {
    /// automount(8) finds the mount of a request by number and inode of its root, unless it is an indirect one; and it opens
    /// such mounts by number.
    pub fn known_by_inode(&self) -> bool {
        self.options.mount_type != MountType::Indirect && matches!(self.master, Master::Automount { .. })
    }

    /// The descriptor from which its master reads requests.
    pub fn read_end(&self) -> Option<i32> {
        let master = self.master.process()?;
        let own = |end: &&PipeEnd| end.end == End::Read && end.process == master;
        self.pipe_ends.iter().find(own).map(|end| end.fd)
    }
}

/// Shared, slave, private or unbindable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Propagation {
    /// Peer group when shared.
    pub shared: Option<u32>,
    /// Master peer group when slave.
    pub slave_of: Option<u32>,
    /// Unbindable.
    pub unbindable: bool,
}

/// Which end of a pipe a descriptor is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum End {
    /// The master's.
    Read,
    /// The kernel's kind.
    Write,
}

/// One process that holds an end of a mount's pipe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PipeEnd {
    /// The process.
    pub process: ProcessId,
    /// Its name (`comm`), escaped like a path.
    pub comm: String,
    /// Descriptor number there.
    pub fd: i32,
    /// Which end.
    pub end: End,
    /// Open file flags (octal in fdinfo).
    pub flags: u32,
}

/// What kind of program the master is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "program", rename_all = "kebab-case")]
pub enum Master {
    /// automount(8).
    Automount {
        /// It.
        process: ProcessId,
    },
    /// systemd, with the unit that serves this path.
    Systemd {
        /// It.
        process: ProcessId,
        /// `mnt-data.automount`.
        unit: String,
    },
    /// Our own engine.
    AutofsCr {
        /// It.
        process: ProcessId,
    },
    /// Something else that holds the read end.
    Unknown {
        /// It.
        process: ProcessId,
        /// Its name.
        comm: String,
    },
    /// Nobody holds the read end but perhaps a holder of ours (or the mount is catatonic).
    Dead,
    /// Nobody was found, but not everybody was seen: no privilege, a kernel that does not show the
    /// pipe, or an owner in a pid namespace that this `/proc` does not show.
    NotVisible,
}

impl Master {
    /// The process, where there is one that is known.
    pub fn process(&self) -> Option<ProcessId> {
        match self {
            Self::Automount { process }
            | Self::Systemd { process, .. }
            | Self::AutofsCr { process }
            | Self::Unknown { process, .. } => Some(*process),
            Self::Dead | Self::NotVisible => None,
        }
    }
}

/// A mount on a trigger.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CoveringMount {
    /// Mount id.
    pub mount_id: u64,
    /// Where.
    #[serde(with = "super::escaped")]
    pub path: PathBuf,
    /// Device of the file system.
    pub dev: DevNum,
    /// Root of the mount within its file system (not `/` for binds).
    #[serde(with = "super::escaped")]
    pub root: PathBuf,
    /// File-system type, with its subtype (`fuse.sshfs`), escaped like a path.
    pub fstype: String,
    /// Source field.
    #[serde(with = "super::escaped")]
    pub source: PathBuf,
    /// Per-mount flags.
    pub mount_flags: Vec<String>,
    /// Superblock options.
    #[serde(with = "super::escaped")]
    pub super_options: Vec<OsString>,
    /// Propagation.
    pub propagation: Propagation,
}

/// A task asleep in an autofs wait.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiter {
    /// The task.
    pub tid: i32,
    /// Its process.
    pub process: ProcessId,
    /// Its name, escaped like a path.
    pub comm: String,
    /// It sleeps inside EXPIRE: no visitor, but a master (or a child of it) that waits for its own answer.
    #[serde(default)]
    pub expiring: bool,
}

/// A directory or symbolic link that the master made inside an autofs mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeEntry {
    /// Below the mount's root, without leading slash.
    #[serde(with = "super::escaped")]
    pub path: PathBuf,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// A symlink's target; `None` for a directory.
    #[serde(with = "super::escaped")]
    pub symlink: Option<PathBuf>,
    /// Idle timeout of its own, seconds.
    pub timeout: Option<u64>,
    /// Who triggered it last.
    pub requester: Option<Requester>,
}
