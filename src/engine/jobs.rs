//! What workers do: one function for each [`Task`]. Each ends in the state it reports, and leaves
//! nothing behind when it fails.

mod follow;

use super::kernel::{Hold, Kernel};
use super::maps::{MountSpec, Replica, Resolved, What};
use super::mount::MountError;
use super::served::Served;
use super::task::*;
use crate::discover::facts::MountType;
use crate::sys::{DevNum, Errno};
use std::collections::HashSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Tells the kernel how a lookup ended, through its mount.
pub type Tell<'a> = &'a dyn Fn(&dyn Hold, Result<(), Errno>);

/// Run a task to its end. A lookup is answered as long as its mount is held: somebody may have taken the mount out of the
/// namespace meanwhile.
pub fn run(kernel: &dyn Kernel, task: &Task, tell: Tell<'_>) -> Outcome {
    match task {
        Task::Mount(task) => mount(kernel, task, tell),
        Task::Unmount(task) => unmount(kernel, task),
        Task::Follow(task) => Outcome::Followed(follow::follow(kernel, task)),
        Task::Master(master, served) => Outcome::Master(master.read(served).ok()),
        Task::Reread(served, root, list) => reread(kernel, served, root.as_deref(), *list),
        Task::Sync(task) => Outcome::Synced(sync(kernel, task)),
        Task::TearDown(places) => {
            tear_down(kernel, places);
            Outcome::TornDown
        }
    }
}

// Mounting

fn mount(kernel: &dyn Kernel, task: &MountTask, tell: Tell<'_>) -> Outcome {
    // Nobody takes the trigger away under the job, even when its visitor has been answered and gone.
    let held = match kernel.hold(&task.place) {
        Ok(held) => held,
        Err(errno) => return refused(errno),
    };
    let outcome = mount_held(kernel, task);
    tell(&*held, outcome.result());
    outcome
}

fn refused(errno: Errno) -> Outcome {
    Outcome::Mounted { result: Err(errno), children: Vec::new(), left: false }
}

fn mount_held(kernel: &dyn Kernel, task: &MountTask) -> Outcome {
    let target = task.place.target(&task.key);
    if task.check && is_mounted(kernel, task, &target) {
        return Outcome::Mounted { result: Ok(()), children: task.known.clone(), left: false };
    }
    let (at, mut entry) = match look_up(task, &target) {
        Ok(found) => found,
        Err(errno) => return refused(errno),
    };
    loop {
        let mut made = Made::new(kernel, task, &target);
        let result = made.entry(&at, &entry);
        match result {
            Ok(()) => tracing::debug!(target = %target.display(), "mounted"),
            Err(errno) => tracing::debug!(target = %target.display(), %errno, "not mounted"),
        }
        let left = result.is_err() && !made.undo();
        if result.is_err()
            && !left
            && let Some(other) = &entry.otherwise
        {
            entry = Arc::new(Resolved::clone(other));
            continue;
        }
        return Outcome::Mounted { result, children: made.children, left };
    }
}

/// Which part of which entry belongs on the trigger.
fn look_up(task: &MountTask, target: &Path) -> Result<(Offset, Arc<Resolved>), Errno> {
    let at = match &task.offset {
        Some(offset) => offset.as_ref().clone(),
        None => Offset::root(&task.key, target),
    };
    let entry = match &at.entry {
        Some(entry) => entry.clone(),
        None => {
            let found = task.served.source.lookup(&at.key, task.asker.who)?;
            Arc::new(found.ok_or(Errno::NOENT)?)
        }
    };
    Ok((at, entry))
}

/// Mounted already: covered, or a multi-mount without root whose triggers are all there.
fn is_mounted(kernel: &dyn Kernel, task: &MountTask, target: &Path) -> bool {
    kernel.is_covered(&task.place, target).unwrap_or(false)
        || !task.known.is_empty() && task.known.iter().all(|child| kernel.exists(&child.place))
}

/// What a mount job has made so far.
struct Made<'a> {
    kernel: &'a dyn Kernel,
    task: &'a MountTask,
    target: &'a Path,
    /// Something is mounted on the target.
    covered: bool,
    children: Vec<Child>,
}

impl<'a> Made<'a> {
    fn new(kernel: &'a dyn Kernel, task: &'a MountTask, target: &'a Path) -> Self {
        Self { kernel, task, target, covered: false, children: Vec::new() }
    }

    fn entry(&mut self, at: &Offset, entry: &Arc<Resolved>) -> Result<(), Errno> {
        let here = entry.mounts.iter().find(|spec| spec.offset == at.below);
        let offsets = level(entry, &at.below);
        if here.is_none() && offsets.is_empty() {
            return Err(Errno::NOENT);
        }
        let what = match here.map(|spec| &spec.what) {
            Some(What::External { place, mount, then }) => {
                let entered = self.kernel.enter(place, mount, self.target, &self.task.served);
                entered.map_err(|error| self.refused(&error))?;
                Some(&**then)
            }
            what => what,
        };
        match what {
            Some(What::Symlink(to)) => return self.symlink(to),
            Some(what) => self.root(what)?,
            None => self.root(&self.skeleton())?,
        }
        let mut failed = None;
        for spec in &offsets {
            let path = at.top.join(&spec.offset);
            let offset = Offset { below: spec.offset.clone(), entry: Some(entry.clone()), ..at.clone() };
            if let Err(errno) = self.offset(&path, offset) {
                tracing::warn!(path = %path.display(), %errno, "no trigger for an offset");
                failed = Some(errno);
            }
        }
        match failed {
            Some(errno) if entry.strict || (here.is_none() && self.children.is_empty()) => Err(errno),
            _ => Ok(()),
        }
    }

    fn directory(&mut self) -> Result<(), Errno> {
        if !self.task.key.is_empty() {
            self.kernel.make_dir(self.target, self.task.served.options.mode)?;
        }
        Ok(())
    }

    /// What the triggers of an entry without a root of its own are mounted on. Not on directories of the autofs mount: these
    /// have no handles, and a trigger on which a program waits when its engine is killed can only be opened by the handle
    /// of its directory ([`crate::sys::uncovered`]).
    fn skeleton(&self) -> What {
        What::Mount {
            fstype: "tmpfs".into(),
            options: format!("mode={:04o},size=4k", self.task.served.options.mode).into(),
            sources: vec![Replica::plain("autofs-cr")],
            use_weight_only: false,
        }
    }

    fn symlink(&mut self, to: &Path) -> Result<(), Errno> {
        // A directory for browsing may be in its place, and a reload may make it once more in between.
        let link = || {
            let _ = self.kernel.remove(self.target);
            self.kernel.symlink(to, self.target)
        };
        match link() {
            Err(Errno::EXIST) => link(),
            linked => linked,
        }
    }

    fn root(&mut self, what: &What) -> Result<(), Errno> {
        self.directory()?;
        let served = &self.task.served;
        match what {
            What::Submount { map, options } => {
                let served = Arc::new(served.opener.submount(served, self.target, map, options)?);
                let place = self.kernel.make_trigger(self.target, MountType::Indirect, &served)?;
                self.child(place, Duty::Map(served));
            }
            _ => {
                let mounted = self.kernel.mount(what, self.target, served);
                mounted.map_err(|error| self.refused(&error))?;
            }
        }
        self.covered = true;
        Ok(())
    }

    fn refused(&self, error: &MountError) -> Errno {
        tracing::warn!(target = %self.target.display(), %error, "mount failed");
        error.errno()
    }

    fn offset(&mut self, path: &Path, offset: Offset) -> Result<(), Errno> {
        let known = self.task.known.iter().find(|child| *child.place.path == *path);
        if let Some(known) = known.filter(|child| self.kernel.exists(&child.place)) {
            self.children.push(known.clone());
            return Ok(());
        }
        let served = &self.task.served;
        self.kernel.make_dir(path, served.options.mode)?;
        let place = self.kernel.make_trigger(path, MountType::Offset, served)?;
        self.child(place, Duty::Offset(Arc::new(offset)));
        Ok(())
    }

    fn child(&mut self, place: Place, duty: Duty) {
        let (under, born) = (self.task.place.dev, birth());
        self.children.push(Child { place: Arc::new(place), under, duty, born });
    }

    /// Take away what was made; what cannot be taken away stays reported. `true`: nothing is left.
    fn undo(&mut self) -> bool {
        let kernel = self.kernel;
        let mut below = Vec::new();
        self.children.retain(|child| {
            let submount = matches!(child.duty, Duty::Map(_));
            let stays = kernel.unmount(&child.place.path).is_err();
            if !stays && !submount {
                below.push(child.place.path.to_path_buf());
            }
            stays
        });
        // A helper that was killed may have mounted all the same.
        let covered = kernel.is_covered(&self.task.place, self.target).unwrap_or(self.covered);
        if covered && (!self.children.is_empty() || kernel.unmount(self.target).is_err()) {
            // what is left expires later
            return false;
        }
        remove_dirs(kernel, self.target, &below);
        remove_key_dir(kernel, &self.task.served, &self.task.key, self.target, false);
        kernel.leave(self.target, &self.task.served);
        self.children.is_empty()
    }
}

/// The offsets directly below `top`: those with no other offset in between.
fn level<'a>(entry: &'a Resolved, top: &Path) -> Vec<&'a MountSpec> {
    let all: HashSet<&Path> = entry.mounts.iter().map(|spec| spec.offset.as_path()).collect();
    let nested = |spec: &MountSpec| {
        let mut between = spec.offset.ancestors().skip(1).take_while(|dir| is_below(dir, top));
        between.any(|dir| all.contains(dir))
    };
    entry.mounts.iter().filter(|spec| is_below(&spec.offset, top) && !nested(spec)).collect()
}

// Unmounting

fn unmount(kernel: &dyn Kernel, task: &UnmountTask) -> Outcome {
    let target = task.place.target(&task.key);
    let _held = match kernel.hold(&task.place) {
        Ok(held) => held,
        // it is gone, with all that was below
        Err(errno) => return Outcome::Unmounted { result: Err(errno), below: Vec::new() },
    };
    let mut tree = Tree { kernel, task, left: Vec::new() };
    let result = tree.clear_slot(&task.place, &target);
    match result {
        Ok(()) => {
            tracing::debug!(target = %target.display(), "unmounted");
            let below: Vec<_> = task.below.iter().map(|child| child.place.path.to_path_buf()).collect();
            remove_dirs(kernel, &target, &below);
            remove_key_dir(kernel, &task.served, &task.key, &target, task.linger);
            kernel.leave(&target, &task.served);
        }
        Err(errno) => tracing::debug!(target = %target.display(), %errno, "not unmounted"),
    }
    Outcome::Unmounted { result, below: tree.left }
}

/// Takes a tree of triggers away, leaf first; where that fails, its siblings are made again, so that
/// no directory is left without its trigger.
struct Tree<'a> {
    kernel: &'a dyn Kernel,
    task: &'a UnmountTask,
    /// What exists afterwards, parents before children.
    left: Vec<Child>,
}

impl Tree<'_> {
    /// Everything on one trigger: the triggers below, then the mounts on it.
    fn clear_slot(&mut self, place: &Place, target: &Path) -> Result<(), Errno> {
        let children: Vec<&Child> = self.task.below.iter().filter(|child| child.under == place.dev).collect();
        for (done, child) in children.iter().enumerate() {
            if let Err(errno) = self.clear_child(child) {
                self.keep(&children[done + 1..]);
                self.make_again(&children[..done]);
                return Err(errno);
            }
        }
        if let Err(errno) = self.uncover(place, target) {
            self.make_again(&children);
            return Err(errno);
        }
        Ok(())
    }

    fn clear_child(&mut self, child: &Child) -> Result<(), Errno> {
        // the keys of a submount keep it busy; an offset's own mounts go first
        let offset = matches!(child.duty, Duty::Offset(_));
        let mark = self.left.len();
        let cleared = if offset { self.clear_slot(&child.place, &child.place.path) } else { Ok(()) };
        match cleared.and_then(|()| self.kernel.unmount(&child.place.path)) {
            Err(errno) if self.kernel.exists(&child.place) => {
                if offset {
                    self.left.insert(mark, (*child).clone());
                } else {
                    self.keep(&[child]);
                }
                Err(errno)
            }
            // gone, by us or by somebody else
            _ => Ok(()),
        }
    }

    fn uncover(&self, place: &Place, target: &Path) -> Result<(), Errno> {
        while self.kernel.is_covered(place, target)? {
            self.kernel.unmount(target)?;
        }
        Ok(())
    }

    /// Not touched: they and what is below them stay.
    fn keep(&mut self, children: &[&Child]) {
        let mut devs: HashSet<DevNum> = children.iter().map(|child| child.place.dev).collect();
        for child in &self.task.below {
            if devs.contains(&child.place.dev) || devs.contains(&child.under) {
                devs.insert(child.place.dev);
                self.left.push(child.clone());
            }
        }
    }

    fn make_again(&mut self, children: &[&Child]) {
        for child in children {
            let path = &child.place.path;
            let served = match &child.duty {
                Duty::Map(served) => served,
                Duty::Offset(_) => &self.task.served,
            };
            match self.kernel.make_trigger(path, child.place.kind, served) {
                Ok(place) => {
                    self.left.push(Child { place: Arc::new(place), born: birth(), ..(*child).clone() })
                }
                Err(errno) => tracing::error!(path = %path.display(), %errno, "a trigger is lost"),
            }
        }
    }
}

/// Directories that were made for offsets: each path below `top`, deepest first, and its parents.
/// Those in mounted file systems went away with them; what is not empty stays.
fn remove_dirs(kernel: &dyn Kernel, top: &Path, paths: &[PathBuf]) {
    let parents = paths.iter().flat_map(|path| path.ancestors().take_while(|dir| is_below(dir, top)));
    let mut dirs: Vec<&Path> = parents.collect();
    dirs.sort_by_key(|dir| std::cmp::Reverse(dir.components().count()));
    dirs.dedup();
    for dir in dirs {
        let _ = kernel.remove(dir);
    }
}

/// The directory or symbolic link of a key is ours. For browsing a directory stays, where the map lists the key (and does
/// not know it by its wildcard only): it is a trigger, which the link is not. So it does where it is to `linger`.
fn remove_key_dir(kernel: &dyn Kernel, served: &Served, key: &[u8], target: &Path, linger: bool) {
    if key.is_empty() {
        return;
    }
    let listed = || served.source.keys().ok().flatten().is_some_and(|keys| keys.iter().any(|own| own == key));
    if linger || served.options.browse && listed() {
        let _ = kernel.remove_link(target);
        let _ = kernel.make_dir(target, served.options.mode);
    } else {
        remove_tree(kernel, target);
    }
}

/// A directory on which nothing is mounted, and all below it: an earlier master may have made some for offsets that are
/// gone. As long as one is left, the kernel finds the key idle again and again.
fn remove_tree(kernel: &dyn Kernel, dir: &Path) {
    // where something is mounted this says EBUSY
    if kernel.remove(dir) == Err(Errno::NOTEMPTY) {
        for name in kernel.names(dir).unwrap_or_default() {
            remove_tree(kernel, &dir.join(name));
        }
        let _ = kernel.remove(dir);
    }
}

// Maps

fn reread(kernel: &dyn Kernel, served: &Served, root: Option<&Place>, list: bool) -> Outcome {
    let keys = served.source.reload().and_then(|changed| match changed || list {
        true => served.source.keys().map(Some),
        false => Ok(None),
    });
    let unchanged = Outcome::Reread { wanted: None, stale: Vec::new(), changed: false };
    let keys = match keys {
        Ok(None) => return unchanged,
        Ok(Some(keys)) => keys.unwrap_or_default(),
        Err(errno) => {
            tracing::warn!(map = %served.name.display(), %errno, "a map cannot be read; it stays as it was");
            return unchanged;
        }
    };
    if served.point.is_none() {
        let paths = keys.into_iter().map(|key| OsString::from_vec(key).into());
        return Outcome::Reread { wanted: Some(paths.collect()), stale: Vec::new(), changed: true };
    }
    let Some(root) = root.filter(|_| served.options.browse) else {
        return Outcome::Reread { wanted: None, stale: Vec::new(), changed: true };
    };
    make_key_dirs(kernel, served, root, &keys);
    // Not removed here: a job may be mounting on one of them.
    let idle = |key: &Key| !kernel.is_covered(root, &root.target(key)).unwrap_or(true);
    let stale = others(kernel, root, &keys).into_iter().filter(idle).collect();
    Outcome::Reread { wanted: None, stale, changed: true }
}

/// Directories for exactly these keys, where no job is at work on one; mounted ones cannot be removed, and stay.
pub fn browse(kernel: &dyn Kernel, served: &Served, root: &Place, keys: &[Key]) {
    for key in others(kernel, root, keys) {
        let _ = kernel.remove(&root.target(&key));
    }
    make_key_dirs(kernel, served, root, keys);
}

/// Names in a mount that are not among `keys`.
fn others(kernel: &dyn Kernel, root: &Place, keys: &[Key]) -> Vec<Key> {
    let wanted: HashSet<&[u8]> = keys.iter().map(Vec::as_slice).collect();
    let names = kernel.names(&root.path).unwrap_or_default().into_iter().map(OsString::into_vec);
    names.filter(|name| !wanted.contains(name.as_slice())).collect()
}

fn make_key_dirs(kernel: &dyn Kernel, served: &Served, root: &Place, keys: &[Key]) {
    for key in keys {
        if let Err(errno) = kernel.make_dir(&root.target(key), served.options.mode) {
            tracing::warn!(root = %root.path.display(), %errno, "no directory for a key");
        }
    }
}

fn sync(kernel: &dyn Kernel, task: &SyncTask) -> Synced {
    let (removed, stay) = take_away(kernel, task.remove.iter());
    let owned = |places: Places<'_>| places.into_iter().cloned().collect();
    let mut synced = Synced { removed: owned(removed), stay: owned(stay.clone()), ..Synced::default() };
    for Make { group, served, path } in &task.make {
        let in_the_way = stay.iter().any(|stays| are_related(&stays.path, path));
        let made = if in_the_way { Err(Errno::BUSY) } else { make(kernel, path, served) };
        match made {
            Ok(place) => synced.made.push((*group, Arc::new(place))),
            Err(errno) => {
                tracing::warn!(path = %path.display(), %errno, "no autofs mount");
                synced.failed.push((*group, path.clone()));
            }
        }
    }
    for (place, served) in &task.retime {
        if let Err(errno) = kernel.set_timeout(place, served.options.timeout) {
            tracing::warn!(path = %place.path.display(), %errno, "it keeps its old timeout");
        }
    }
    synced
}

/// The mount of an indirect map, or one of a direct map, with its directory. Errors are those of [`Kernel::make_trigger`] and
/// [`Kernel::make_dir`].
pub fn make(kernel: &dyn Kernel, path: &Path, served: &Served) -> Result<Place, Errno> {
    if served.point.is_none() {
        return direct(kernel, path, served);
    }
    let dirs = kernel.make_dir(path, served.options.mode)?;
    let place = Place { dirs: dirs as u32, ..kernel.make_trigger(path, MountType::Indirect, served)? };
    if served.options.browse {
        browse(kernel, served, &place, &served.source.keys().ok().flatten().unwrap_or_default());
    }
    Ok(place)
}

/// Directories that were made for mounts go with them, unless something else is in them.
fn remove_made<'a>(kernel: &dyn Kernel, places: impl Iterator<Item = &'a Arc<Place>>) {
    let mut dirs: Vec<&Path> =
        places.flat_map(|place| place.path.ancestors().take(place.dirs as usize)).collect();
    dirs.sort_by_key(|dir| std::cmp::Reverse(dir.components().count()));
    for dir in dirs {
        let _ = kernel.remove(dir);
    }
}

/// A direct trigger, with its directory.
pub fn direct(kernel: &dyn Kernel, path: &Path, served: &Served) -> Result<Place, Errno> {
    match kernel.make_trigger(path, MountType::Direct, served) {
        Err(Errno::NOENT) => {
            let dirs = kernel.make_dir(path, served.options.mode)?;
            Ok(Place { dirs: dirs as u32, ..kernel.make_trigger(path, MountType::Direct, served)? })
        }
        made => made,
    }
}

/// How often, and after which pause, mounts that are busy with nothing mounted on them are tried again: what uses one
/// may be a program between two steps of its walk, or the end of a run over idle mounts; on a busy machine each of them
/// waits for a processor.
const TRIES: usize = 100;
const PAUSE: Duration = Duration::from_millis(if cfg!(test) { 0 } else { 10 });

type Places<'a> = Vec<&'a Arc<Place>>;

/// Unmount what is not in use, in this order, with the directories that were made for it: those that are gone, and those
/// that are left. One that another master has taken is not ours to unmount, and counts as gone.
fn take_away<'a>(
    kernel: &dyn Kernel,
    places: impl Iterator<Item = &'a Arc<Place>>,
) -> (Places<'a>, Places<'a>) {
    let (mut left, others): (Places<'a>, Places<'a>) = places.partition(|place| kernel.exists(place));
    let mut gone = Vec::new();
    for round in 0..TRIES {
        let mut free = false;
        left.retain(|place| {
            // what covers a root is in use: it was expired before if it was idle
            if kernel.is_covered(place, &place.path).unwrap_or(false) {
                return true;
            }
            let unmounted = kernel.unmount(&place.path).is_ok();
            if unmounted {
                gone.push(*place);
            }
            free |= !unmounted;
            !unmounted
        });
        if !free {
            break;
        }
        if round + 1 < TRIES {
            std::thread::sleep(PAUSE);
        }
    }
    remove_made(kernel, gone.iter().copied());
    gone.extend(others);
    (gone, left)
}

fn tear_down(kernel: &dyn Kernel, places: &[Arc<Place>]) {
    for place in take_away(kernel, places.iter()).1 {
        if let Err(errno) = kernel.make_catatonic(place) {
            tracing::warn!(path = %place.path.display(), %errno, "busy, and cannot be made catatonic");
        }
    }
}
