//! The directories and symlinks that a master made inside its mounts, also where something is mounted on them.
//!
//! Nothing here triggers a mount. The root is opened by OPENMOUNT; what is inside is looked at in a detached copy of the
//! mount alone, where nothing is mounted on anything. A name is first opened with RESOLVE_CACHED, which neither waits nor
//! triggers: it finds symlinks, and directories that hold something. What it refuses (EAGAIN) is a trigger, and statx
//! with AT_NO_AUTOMOUNT tells about that. Two dangers are left, and both are the kernel's:
//!
//! - statx *waits* on a key whose request is not answered yet. So a thread of its own walks, and is left behind
//!   where it waits; another one goes on without that key.
//! - statx triggers a key whose directory was removed since the list was read. `ls -l` does that, too.

use crate::attach::{AttachError, Target, open_roots, space_of};
use crate::discover;
use crate::discover::facts::TreeEntry;
use crate::discover::proc::Worker;
use crate::sys::control::{Control, ControlError, MountFd};
use crate::sys::mount::{Change, Propagation, bind};
use crate::sys::{DevNum, Errno};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, SeekFrom, Statx, StatxFlags, openat2, readlinkat,
    seek, statx,
};
use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A walk that makes no step for this long, and sleeps, waits for an answer.
const STALLED: Duration = Duration::from_millis(250);
/// After so many stalls in a mount no trigger of it is looked at any more.
const PATIENCE: usize = 3;
/// What a directory is taken to be that could not be looked at: masters make them so.
const GUESS: Inode = Inode { dev: DevNum::anonymous(0), ino: 0, is_link: false, mode: 0o755, uid: 0, gid: 0 };

/// What a mount holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    /// Number of the root directory.
    pub ino: u64,
    /// Its mode.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Everything inside, parents first; without timeouts and requesters, which only the owner may ask.
    pub entries: Vec<TreeEntry>,
    /// Directories whose mode and owner are guesses: to look would have been to wait.
    pub guessed: Vec<PathBuf>,
}

/// A mount could not be looked at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TreeError {
    /// OPENMOUNT.
    #[error(transparent)]
    Open(#[from] ControlError),
    /// Another call.
    #[error("cannot {what} {}: {errno}", path.display())]
    Call {
        /// Which.
        what: &'static str,
        /// Where, below the mount's root.
        path: PathBuf,
        /// The kernel's answer.
        errno: Errno,
    },
    /// OPENMOUNT waits, and there was no other way to the root.
    #[error("its root cannot be reached: {0}")]
    Unreachable(#[source] Box<AttachError>),
    /// The walker could not be started, or it died.
    #[error("the thread that reads mounts failed")]
    Thread,
}

/// Where to look would be to wait.
#[derive(Clone, Debug, Default)]
pub struct Avoid {
    roots: HashSet<DevNum>,
    keys: HashMap<DevNum, HashSet<PathBuf>>,
    stalls: HashMap<DevNum, usize>,
}

impl Avoid {
    /// A request for the root is open (a direct mount, an offset).
    pub fn root(&mut self, dev: DevNum) {
        self.roots.insert(dev);
    }

    /// A request for a key is open.
    pub fn key(&mut self, dev: DevNum, key: PathBuf) {
        self.keys.entry(dev).or_default().insert(key);
    }

    fn stalled(&mut self, dev: DevNum, key: PathBuf) {
        *self.stalls.entry(dev).or_default() += 1;
        self.key(dev, key);
    }

    fn contains(&self, dev: DevNum, key: &Path) -> bool {
        self.stalls.get(&dev).is_some_and(|&stalls| stalls >= PATIENCE)
            || self.keys.get(&dev).is_some_and(|keys| keys.contains(key))
    }
}

/// Look at every mount that `space` sees; the results are in their order.
pub fn read_all(
    control: &Arc<Control>,
    space: &discover::Target,
    mounts: &[Target],
    mut avoid: Avoid,
) -> Vec<Result<Tree, TreeError>> {
    let mut roots = HashMap::new();
    let mut results = Vec::with_capacity(mounts.len());
    while let Some(next) = mounts.get(results.len()) {
        if avoid.roots.contains(&next.dev) && !roots.contains_key(&next.dev) {
            match open_roots(space, std::slice::from_ref(next)) {
                Ok(opened) => roots.extend(opened.into_iter().map(|root| (next.dev, Arc::new(root)))),
                Err(error) => {
                    results.push(Err(TreeError::Unreachable(Box::new(error))));
                    continue;
                }
            }
        }
        let walker = Walker {
            control: control.clone(),
            roots: roots.clone(),
            avoid: avoid.clone(),
            progress: Arc::new(Progress::new()),
        };
        let before = results.len();
        let stalled = walk(walker, space, &mounts[before..], &mut results);
        match (stalled, mounts.get(results.len())) {
            (Some(key), Some(mount)) if key.as_os_str().is_empty() => avoid.root(mount.dev),
            (Some(key), Some(mount)) => avoid.stalled(mount.dev, key),
            _ if results.len() == before => {
                results.push(Err(TreeError::Thread));
            }
            _ => {}
        }
    }
    results
}

/// Have a thread of its own look, until all is done, or it comes to a root that is to be avoided and was not opened
/// otherwise. Returns the key that it waits on, if it came to wait: empty for the root.
fn walk(
    walker: Walker,
    space: &discover::Target,
    mounts: &[Target],
    results: &mut Vec<Result<Tree, TreeError>>,
) -> Option<PathBuf> {
    let progress = walker.progress.clone();
    let known =
        |mount: &&Target| !walker.avoid.roots.contains(&mount.dev) || walker.roots.contains_key(&mount.dev);
    let mounts: Vec<_> = mounts.iter().take_while(known).cloned().collect();
    let entered = space_of(space).ok()?;
    // Nothing is sent: its end is the message.
    let (alive, ended) = channel::<()>();
    // a thread that waits cannot be ended, but by the end of this process
    let _left_alone = std::thread::Builder::new()
        .name("tree".into())
        .spawn(move || {
            let _alive = alive;
            entered.run(|| walker.run(&mounts))
        })
        .ok()?;
    loop {
        let before = progress.steps.load(Ordering::Relaxed);
        let end = ended.recv_timeout(STALLED);
        let stalled = end == Err(RecvTimeoutError::Timeout)
            && progress.steps.load(Ordering::Relaxed) == before
            && progress.worker.sleeps();
        if stalled || end == Err(RecvTimeoutError::Disconnected) {
            results.extend(lock(&progress.found).take().into_iter().flatten());
            return stalled.then(|| lock(&progress.place).clone());
        }
    }
}

/// Where a walker is, for the one who waits for it.
struct Progress {
    worker: Worker,
    steps: AtomicU64,
    place: Mutex<PathBuf>,
    /// `None`: nobody waits for it any more.
    found: Mutex<Option<Vec<Result<Tree, TreeError>>>>,
}

impl Progress {
    fn new() -> Self {
        Self {
            worker: Worker::default(),
            steps: AtomicU64::new(0),
            place: Mutex::default(),
            found: Mutex::new(Some(Vec::new())),
        }
    }

    /// Something follows that may wait.
    fn step(&self, place: &Path) {
        *lock(&self.place) = place.to_owned();
        self.steps.fetch_add(1, Ordering::Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Walker {
    control: Arc<Control>,
    /// Roots that were opened otherwise.
    roots: HashMap<DevNum, Arc<MountFd>>,
    avoid: Avoid,
    progress: Arc<Progress>,
}

impl Walker {
    fn run(&self, mounts: &[Target]) {
        self.progress.worker.begin();
        for mount in mounts {
            let tree = self.tree(mount);
            // when nobody wants it we were left behind
            let Some(found) = &mut *lock(&self.progress.found) else { return };
            found.push(tree);
        }
    }

    fn tree(&self, mount: &Target) -> Result<Tree, TreeError> {
        self.progress.step(Path::new(""));
        let root = match self.roots.get(&mount.dev) {
            Some(root) => root.clone(),
            None => Arc::new(self.control.open_mount(&mount.path, mount.dev)?),
        };
        // A walker that was left behind may have read it.
        seek(&root, SeekFrom::Start(0)).map_err(call("rewind", Path::new("")))?;
        let Inode { ino, mode, uid, gid, .. } = stat_of(&root, Path::new(""))?;
        let mut tree = Tree { ino, mode, uid, gid, ..Tree::default() };
        if names(&root, Path::new(""))?.is_empty() {
            return Ok(tree);
        }
        let mut directories = vec![(self.inside(&root)?, PathBuf::new())];
        while let Some((directory, path)) = directories.pop() {
            for name in names(&directory, &path)? {
                let path = path.join(&name);
                directories.extend(self.entry(&directory, &name, path, mount.dev, &mut tree)?);
            }
        }
        tree.entries.sort_by(|a, b| a.path.cmp(&b.path));
        tree.guessed.sort();
        Ok(tree)
    }

    /// The root as a directory to read, in a copy of the mount; where no copy may be made (an unbindable mount) in
    /// the mount itself, whose covered directories are not seen then.
    fn inside(&self, root: &MountFd) -> Result<OwnedFd, TreeError> {
        let dot = Path::new(".");
        let copy = bind(root, Path::new(""), false).and_then(|copy| {
            // as a peer it would take part in what is mounted meanwhile
            Change::propagation(Propagation::Private, false).apply(&copy, Path::new(""))?;
            Ok(copy)
        });
        let opened = match copy {
            Ok(copy) => open(&copy, dot, READ, ResolveFlags::empty()),
            Err(_) => open(root, dot, READ, ResolveFlags::empty()),
        };
        opened.map_err(call("open", dot))
    }

    /// Add one name; returns it opened when it is a directory that holds something.
    fn entry(
        &self,
        directory: &OwnedFd,
        name: &OsStr,
        path: PathBuf,
        dev: DevNum,
        tree: &mut Tree,
    ) -> Result<Option<(OwnedFd, PathBuf)>, TreeError> {
        let name = Path::new(name);
        let inode = match self.look(directory, name, &path, dev)? {
            Look::Gone => return Ok(None),
            Look::Found(inode) if inode.dev == dev => inode,
            // avoided, or what covers it
            Look::Found(_) | Look::Unknown => {
                tree.guessed.push(path.clone());
                tree.entries.push(entry(path, &GUESS, None));
                return Ok(None);
            }
        };
        if inode.is_link {
            let target = readlinkat(directory, name, Vec::new()).map_err(call("read", &path))?;
            let target = OsString::from_vec(target.into_bytes()).into();
            tree.entries.push(entry(path, &inode, Some(target)));
            return Ok(None);
        }
        tree.entries.push(entry(path.clone(), &inode, None));
        // an empty directory is a trigger and is refused, as is a covered one when this is no copy
        Ok(open_cached(directory, name, READ).map(|fd| (fd, path)))
    }

    fn look(&self, directory: &OwnedFd, name: &Path, path: &Path, dev: DevNum) -> Result<Look, TreeError> {
        if let Some(fd) = open_cached(directory, name, OFlags::PATH) {
            return stat_of(&fd, path).map(Look::Found);
        }
        if self.avoid.contains(dev, path) {
            return Ok(Look::Unknown);
        }
        self.progress.step(path);
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        match statx(directory, name, flags, StatxFlags::BASIC_STATS) {
            Ok(stat) => Ok(Look::Found(stat.into())),
            Err(errno @ Errno::NOMEM) => Err(call("look at", path)(errno)),
            // Removed since; or it had an open request, and this is the master's answer to that: the directory goes.
            Err(_) => Ok(Look::Gone),
        }
    }
}

/// What statx tells.
struct Inode {
    dev: DevNum,
    ino: u64,
    is_link: bool,
    mode: u32,
    uid: u32,
    gid: u32,
}

impl From<Statx> for Inode {
    fn from(stat: Statx) -> Self {
        Self {
            dev: DevNum { major: stat.stx_dev_major, minor: stat.stx_dev_minor },
            ino: stat.stx_ino,
            is_link: FileType::from_raw_mode(stat.stx_mode.into()) == FileType::Symlink,
            mode: u32::from(stat.stx_mode) & 0o7777,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
        }
    }
}

enum Look {
    Found(Inode),
    Gone,
    /// To look would be to wait.
    Unknown,
}

const READ: OFlags = OFlags::DIRECTORY;

/// Open what is there without a wait. The kernel may refuse for passing reasons, too.
fn open_cached(directory: &OwnedFd, name: &Path, flags: OFlags) -> Option<OwnedFd> {
    (0..3).find_map(|_| open(directory, name, flags | OFlags::NOFOLLOW, ResolveFlags::CACHED).ok())
}

fn open(at: impl AsFd, name: &Path, flags: OFlags, resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
    openat2(at, name, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

fn stat_of(fd: impl AsFd, path: &Path) -> Result<Inode, TreeError> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT;
    statx(fd, c"", flags, StatxFlags::BASIC_STATS).map(Inode::from).map_err(call("look at", path))
}

fn entry(path: PathBuf, inode: &Inode, symlink: Option<PathBuf>) -> TreeEntry {
    let &Inode { mode, uid, gid, .. } = inode;
    TreeEntry { path, mode, uid, gid, symlink, timeout: None, requester: None }
}

/// The names in a directory, by a descriptor that nobody else reads.
fn names(directory: impl AsFd, path: &Path) -> Result<Vec<OsString>, TreeError> {
    let mut buffer = [MaybeUninit::uninit(); 8192];
    let mut list = RawDir::new(directory, &mut buffer);
    let mut names = Vec::new();
    while let Some(entry) = list.next() {
        let entry = entry.map_err(call("list", path))?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            names.push(OsStr::from_bytes(name).to_owned());
        }
    }
    Ok(names)
}

fn call(what: &'static str, path: &Path) -> impl FnOnce(Errno) -> TreeError {
    move |errno| TreeError::Call { what, path: path.to_owned(), errno }
}
