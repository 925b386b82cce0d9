//! A checkpoint as domain types; the wire messages of `proto/` are converted to and from these.

use crate::discover::facts::{AutofsMount, TreeEntry, Waiter};
use crate::sys::control::{Requester, Token};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Everything that a dump recorded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// When, where and by what it was made.
    pub origin: Origin,
    /// Parents before children.
    pub mounts: Vec<DumpedMount>,
    /// Map state; [`DumpedMount::served_by`] points into it.
    pub services: Vec<Service>,
}

/// Where a checkpoint comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    /// Seconds since 1970.
    pub created: u64,
    /// `autofs-cr` version.
    pub tool: String,
    /// Kernel release.
    pub kernel: String,
    /// `/proc/sys/kernel/random/boot_id`: pids in the image mean something on this boot only.
    pub boot_id: String,
    /// Inode of the mount namespace.
    pub mount_namespace: u64,
    /// How the mounts were left.
    pub left: Left,
}

/// How a dump left the mounts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Left {
    /// As they were.
    Running,
    /// As they were, and a holder keeps the read ends open.
    Held {
        /// The holder.
        holder: crate::sys::process::ProcessId,
    },
    /// Catatonic; the waiters listed in each mount are stopped.
    Catatonic,
}

/// One mount.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DumpedMount {
    /// The facts at dump time, waiters included.
    pub facts: AutofsMount,
    /// Mode of the root directory.
    pub root_mode: u32,
    /// Owner of the root directory.
    pub root_uid: u32,
    /// Group of the root directory.
    pub root_gid: u32,
    /// Who triggered the root last (direct, offset).
    pub root_requester: Option<Requester>,
    /// Directories and symlinks inside, parents first.
    pub tree: Vec<TreeEntry>,
    /// Requests that were not answered.
    pub in_flight: Vec<InFlight>,
    /// Index into [`Checkpoint::services`].
    pub served_by: Option<usize>,
    /// What each mounted key was mounted from.
    pub active: Vec<ActiveKey>,
}

impl DumpedMount {
    /// One of which nothing but the facts is known.
    pub fn of(facts: AutofsMount) -> Self {
        Self {
            facts,
            root_mode: 0,
            root_uid: 0,
            root_gid: 0,
            root_requester: None,
            tree: Vec::new(),
            in_flight: Vec::new(),
            served_by: None,
            active: Vec::new(),
        }
    }
}

/// A request that had no answer yet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InFlight {
    /// Token and key, when its packet was still in the pipe.
    #[serde(with = "crate::discover::escaped")]
    pub packet: Option<(Token, Vec<u8>)>,
    /// Who sleeps on it.
    pub waiter: Option<Waiter>,
    /// Was the waiter stopped already by its user?
    pub was_stopped: bool,
}

/// A mounted key and the map entry it came from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ActiveKey {
    /// The key: one component (indirect), or the absolute path (direct).
    #[serde(with = "crate::discover::escaped")]
    pub key: Vec<u8>,
    /// Its entry text in the map, when that could be found.
    #[serde(with = "crate::discover::escaped")]
    pub entry: Option<Vec<u8>>,
}

/// What serves a mount: enough to go on without its daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Service {
    /// A master-map entry of automount or of our engine.
    MasterEntry {
        /// `/-` or the indirect mount point, without a slash at its end.
        #[serde(with = "crate::discover::escaped")]
        mount_point: PathBuf,
        /// As written: `/etc/auto.data`, `program:/etc/auto.sh`, `-hosts` ...
        #[serde(with = "crate::discover::escaped")]
        map: Vec<u8>,
        /// Options of the master-map entry as written.
        #[serde(with = "crate::discover::escaped")]
        options: Vec<u8>,
        /// The whole map where it is a file: key and entry, in file order.
        #[serde(with = "crate::discover::escaped")]
        entries: Vec<(Vec<u8>, Vec<u8>)>,
    },
    /// A systemd automount unit and its mount unit.
    Unit {
        /// `mnt-data.automount`.
        unit: String,
        /// Where=.
        #[serde(with = "crate::discover::escaped")]
        mount_point: PathBuf,
        /// What=.
        #[serde(with = "crate::discover::escaped")]
        what: Vec<u8>,
        /// Type= (empty: by content).
        fstype: String,
        /// Options=.
        #[serde(with = "crate::discover::escaped")]
        options: Vec<u8>,
        /// TimeoutIdleSec=, seconds; 0: never.
        timeout: u64,
    },
}

impl Service {
    /// Where it serves; `/-` for a direct map.
    pub fn mount_point(&self) -> &std::path::Path {
        match self {
            Self::MasterEntry { mount_point, .. } | Self::Unit { mount_point, .. } => mount_point,
        }
    }
}
