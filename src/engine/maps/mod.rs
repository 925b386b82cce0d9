//! Maps: from a key to what must be mounted. Nothing here mounts; parsers are pure.

use std::path::PathBuf;

/// Who asks: feeds `$USER`, `$UID`, `$HOME` and friends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// What a key stands for, in the order of mounting (parents before children).
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Resolved {
    /// One for a plain entry (with an empty offset); several for a multi-mount.
    pub mounts: Vec<MountSpec>,
}

/// One mount of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountSpec {
    /// Below the key; empty for the root itself.
    pub offset: PathBuf,
    /// What to do.
    pub what: What,
}

/// What to do at an offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Mount a file system.
    Mount {
        /// `nfs`, `bind`, `tmpfs` ...
        fstype: String,
        /// Options as mount(8) takes them, comma-separated; empty for none.
        options: String,
        /// One or more sources; more than one are replicas, best chosen at mount time.
        sources: Vec<Replica>,
    },
    /// Make a symbolic link (option `symlink`).
    Symlink(PathBuf),
    /// Start an automount below (fstype=autofs).
    Submount {
        /// As in the master map: `file:/etc/auto.sub`, `-hosts` ...
        map: String,
        /// Its options.
        options: String,
    },
}

/// One place a file system can come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    /// Host; `None` for a local source.
    pub host: Option<String>,
    /// Weight as in `host(5)`.
    pub weight: u32,
    /// The source as mount(8) takes it: `srv1:/export`, `/dev/sdb1`, `/usr`.
    pub source: String,
}
