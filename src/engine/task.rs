//! What the machine asks of the workers, and what they report back. Plain data.

use super::maps::{Credentials, Resolved};
use super::served::{Master, Served};
use super::state::GroupId;
use crate::discover::facts::MountType;
use crate::sys::control::Token;
use crate::sys::packet::{Kind, Packet};
use crate::sys::{DevNum, Errno};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// A map key: one path component (indirect), or empty for the root of a direct or offset mount.
pub type Key = Vec<u8>;

/// Where an autofs mount is. No descriptor of it is kept: an open root would count as a use and keep
/// the trees above from expiring, and opening one costs 2 µs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its mount point.
    pub path: Box<Path>,
    /// Number of its superblock. It is used again as soon as the mount is gone.
    pub dev: DevNum,
    /// Inode of its root, which is not used again soon; requests carry it. `None`: not known.
    pub ino: Option<NonZeroU64>,
    /// Its type.
    pub kind: MountType,
    /// How many directories were made for it, its mount point and above.
    pub dirs: u32,
}

impl Place {
    /// The trigger of `key`: the root itself for the empty key.
    pub fn target(&self, key: &[u8]) -> PathBuf {
        use std::os::unix::ffi::OsStrExt;
        if key.is_empty() {
            self.path.to_path_buf()
        } else {
            self.path.join(std::ffi::OsStr::from_bytes(key))
        }
    }
}

/// The part of a map entry that an offset trigger stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offset {
    /// Key of the entry in its map.
    pub key: Key,
    /// Where the entry's root is.
    pub top: PathBuf,
    /// The offset, below `top`.
    pub below: PathBuf,
    /// The entry as it was when its root was mounted; `None` after a restart, or when it has changed: it is looked up again.
    pub entry: Option<Arc<Resolved>>,
}

impl Offset {
    /// The whole entry of a key, whose trigger is `target`.
    pub fn root(key: &[u8], target: &Path) -> Self {
        use std::os::unix::ffi::OsStrExt;
        let key = if key.is_empty() { target.as_os_str().as_bytes() } else { key };
        Self { key: key.to_vec(), top: target.to_owned(), below: PathBuf::new(), entry: None }
    }
}

/// An autofs mount that belongs to a mounted key: it comes and goes with it.
#[derive(Clone, Debug)]
pub struct Child {
    /// It.
    pub place: Arc<Place>,
    /// Number of the autofs mount on whose trigger it depends.
    pub under: DevNum,
    /// What it serves.
    pub duty: Duty,
    /// When it was made ([`birth`]).
    pub born: u64,
}

/// A number that only grows. The number of a superblock is used again as soon as its mount is gone, and reports of
/// jobs overtake each other: of two mounts that are reported with one number the younger one exists.
pub fn birth() -> u64 {
    static BIRTHS: AtomicU64 = AtomicU64::new(0);
    BIRTHS.fetch_add(1, Ordering::Relaxed)
}

/// What an autofs mount serves.
#[derive(Clone, Debug)]
pub enum Duty {
    /// The keys of a map of its own.
    Map(Arc<Served>),
    /// A part of an entry.
    Offset(Arc<Offset>),
}

/// A job of the work pool.
#[derive(Debug)]
pub enum Task {
    /// Look a key up and mount it.
    Mount(MountTask),
    /// Unmount a key.
    Unmount(UnmountTask),
    /// Have the offsets of a mounted key follow its entry.
    Follow(FollowTask),
    /// Read the master map again; these maps are served now.
    Master(Arc<dyn Master>, Vec<Arc<Served>>),
    /// Read a map again; its mount, if it is an indirect one. With `true` all keys are wanted, also when it did not
    /// change.
    Reread(Arc<Served>, Option<Arc<Place>>, bool),
    /// Remove and make mounts, removals first.
    Sync(SyncTask),
    /// Unmount every autofs mount that is not busy, make the others catatonic. Deepest first.
    TearDown(Vec<Arc<Place>>),
}

impl Task {
    /// The autofs mount that it is about, if it is about one.
    pub fn place(&self) -> Option<&Place> {
        match self {
            Self::Mount(task) => Some(&task.place),
            Self::Unmount(task) => Some(&task.place),
            Self::Follow(task) => Some(&task.place),
            Self::Reread(_, place, _) => place.as_deref(),
            Self::Master(..) | Self::Sync(_) | Self::TearDown(_) => None,
        }
    }

    /// What it does, for people.
    pub fn what(&self) -> &'static str {
        match self {
            Self::Mount(_) => "mount",
            Self::Unmount(_) => "unmount",
            Self::Follow(_) => "follow",
            Self::Master(..) => "read the master map",
            Self::Reread(..) => "read",
            Self::Sync(_) => "sync",
            Self::TearDown(_) => "tear down",
        }
    }
}

/// Mount a key and answer its request.
#[derive(Debug)]
pub struct MountTask {
    /// The autofs mount.
    pub place: Arc<Place>,
    /// Its key.
    pub key: Key,
    /// The map.
    pub served: Arc<Served>,
    /// Set for an offset trigger.
    pub offset: Option<Arc<Offset>>,
    /// The request.
    pub asker: Asker,
    /// The key may be mounted already: ask the kernel first.
    pub check: bool,
    /// Autofs mounts that were made below when it was last mounted.
    pub known: Vec<Child>,
}

/// Unmount a key with everything below and answer the kernel's expire request.
#[derive(Debug)]
pub struct UnmountTask {
    /// The autofs mount.
    pub place: Arc<Place>,
    /// Its key.
    pub key: Key,
    /// The map.
    pub served: Arc<Served>,
    /// The expire request; none for a submount that is given up because nothing is mounted in it.
    pub token: Option<Token>,
    /// It was mounted a moment ago: its directory stays for now.
    pub linger: bool,
    /// Autofs mounts below, parents before children.
    pub below: Vec<Child>,
}

/// The entry of a mounted key may have changed: make the triggers of new offsets, and remove those that are idle of offsets
/// that it does not have any more.
#[derive(Debug)]
pub struct FollowTask {
    /// The autofs mount.
    pub place: Arc<Place>,
    /// Its key.
    pub key: Key,
    /// The map.
    pub served: Arc<Served>,
    /// Set for an offset trigger.
    pub offset: Option<Arc<Offset>>,
    /// Autofs mounts directly below.
    pub known: Vec<Child>,
}

/// Mounts of maps that go and come.
#[derive(Debug)]
pub struct SyncTask {
    /// To be removed, if nothing uses them.
    pub remove: Vec<Arc<Place>>,
    /// New ones.
    pub make: Vec<Make>,
    /// Those that get the timeout of a map.
    pub retime: Vec<(Arc<Place>, Arc<Served>)>,
}

impl SyncTask {
    /// Nothing to do?
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.make.is_empty() && self.retime.is_empty()
    }
}

/// A mount to be made for a map.
#[derive(Debug)]
pub struct Make {
    /// The map's name in the machine.
    pub group: GroupId,
    /// The map.
    pub served: Arc<Served>,
    /// Its mount point, or one of them.
    pub path: PathBuf,
}

/// A request and who made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asker {
    /// To be named in the answer.
    pub token: Token,
    /// For the map's variables.
    pub who: Credentials,
    /// Its process, in the engine's pid namespace.
    pub pid: u32,
    /// When the machine got the request.
    pub since: Instant,
}

/// What is told the kernel about a request, and the log.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The autofs mount.
    pub place: Arc<Place>,
    /// The map.
    pub served: Arc<Served>,
    /// Its key.
    pub key: Key,
    /// The request.
    pub token: Token,
    /// Who made it; nobody made an expire request.
    pub asker: Option<Asker>,
    /// The answer.
    pub result: Result<(), Errno>,
}

impl Answer {
    /// The request again, as it came from the kernel.
    pub fn packet(&self) -> Packet {
        let direct = self.place.kind != MountType::Indirect;
        let kind = match (direct, self.asker.is_some()) {
            (true, true) => Kind::MissingDirect,
            (true, false) => Kind::ExpireDirect,
            (false, true) => Kind::MissingIndirect,
            (false, false) => Kind::ExpireIndirect,
        };
        let (uid, gid) = self.asker.map_or((0, 0), |asker| (asker.who.uid, asker.who.gid));
        let pid = self.asker.map_or(0, |asker| asker.pid);
        let (token, dev, name) = (self.token, self.place.dev, self.key.clone());
        Packet {
            kind,
            token,
            dev,
            ino: self.place.ino.map_or(0, NonZeroU64::get),
            uid,
            gid,
            pid,
            tgid: pid,
            name,
        }
    }
}

/// How a [`Task`] ended.
#[derive(Debug)]
pub enum Outcome {
    /// Of [`Task::Mount`].
    Mounted {
        /// What was answered.
        result: Result<(), Errno>,
        /// Autofs mounts that exist directly below now.
        children: Vec<Child>,
        /// It failed, and what was mounted could not all be taken away.
        left: bool,
    },
    /// Of [`Task::Unmount`].
    Unmounted {
        /// What was answered.
        result: Result<(), Errno>,
        /// Autofs mounts that still exist, or exist again, below; parents before children.
        below: Vec<Child>,
    },
    /// Of [`Task::Follow`]: autofs mounts that exist directly below now.
    Followed(Vec<Child>),
    /// Of [`Task::Master`]: the maps to be served; those that are served already and did not change are the same ones.
    /// `None`: it cannot be read.
    Master(Option<Vec<Arc<Served>>>),
    /// Of [`Task::Reread`].
    Reread {
        /// Mount points of the direct triggers wanted; `None` for an indirect map, for one that did not change, or when
        /// the source failed (then nothing changes).
        wanted: Option<Vec<PathBuf>>,
        /// Names in the mount of an indirect map that are no keys of it, and that nothing is mounted on.
        stale: Vec<Key>,
        /// The map may have other entries than before.
        changed: bool,
    },
    /// Of [`Task::Sync`].
    Synced(Synced),
    /// Of [`Task::TearDown`].
    TornDown,
}

/// What became of a [`SyncTask`].
#[derive(Debug, Default)]
pub struct Synced {
    /// Gone.
    pub removed: Vec<Arc<Place>>,
    /// In use, so that they stay.
    pub stay: Vec<Arc<Place>>,
    /// New.
    pub made: Vec<(GroupId, Arc<Place>)>,
    /// Could not be made.
    pub failed: Vec<(GroupId, PathBuf)>,
}

impl Outcome {
    /// The answer to the task's request.
    pub fn result(&self) -> Result<(), Errno> {
        match self {
            Self::Mounted { result, .. } | Self::Unmounted { result, .. } => *result,
            Self::Followed(_) | Self::Master(_) | Self::Reread { .. } | Self::Synced(_) | Self::TornDown => {
                Ok(())
            }
        }
    }
}

/// One run over the idle mounts of a map.
#[derive(Debug)]
pub struct ExpireRun {
    /// Ignore the timeout.
    pub immediate: bool,
    /// Autofs mounts with something mounted; those deepest in offset trees first. The members of one
    /// level do not depend on each other.
    pub levels: Vec<Vec<Arc<Place>>>,
}

/// Is `path` strictly below `top`?
pub fn is_below(path: &Path, top: &Path) -> bool {
    path != top && path.starts_with(top)
}

/// Would a mount at one be in the way of one at the other?
pub fn are_related(one: &Path, other: &Path) -> bool {
    one.starts_with(other) || other.starts_with(one)
}
