//! At start: mounts that exist are attached where they are, the others are made.
//!
//! What exists, what is mounted in it and what belongs to what is asked of the kernel; no file of an earlier engine is
//! believed.

use super::config::Wanted;
use super::jobs;
use super::kernel::Kernel;
use super::maps::{Credentials, Resolved, What};
use super::served::{Opener, ServeOptions, Served, Source};
use super::state::{GroupId, MountId, State};
use super::task::{Child, Duty, Key, Offset, Place, birth};
use crate::attach::{AttachError, Target, attach_here};
use crate::discover::facts::{AutofsMount, MountType, Survey};
use crate::discover::{self, DiscoverError};
use crate::sys::process::own_group;
use crate::sys::{DevNum, Errno};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsStr;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The engine could not connect to its mounts.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// What exists is not known.
    #[error(transparent)]
    Discover(#[from] DiscoverError),
    /// Mounts that exist could not be attached.
    #[error(transparent)]
    Attach(#[from] AttachError),
}

/// How often a mount that could not be attached is tried again.
const AGAIN: Duration = Duration::from_secs(3);

/// How mounts become an engine's.
#[derive(Debug)]
pub struct Connected {
    /// Waiters that were handed on.
    pub waiters: usize,
    /// Mounts that exist and cannot be attached now; [`attach_late`] tries again.
    pub late: Vec<Late>,
    /// Some were the program's that this one was before, and no map has them any more: a reload takes them away when they
    /// are idle.
    pub unwanted: bool,
}

/// A mount that exists and cannot be attached now.
#[derive(Debug)]
pub struct Late {
    /// Where it is.
    pub path: PathBuf,
    /// Its map.
    pub served: Arc<Served>,
}

/// A mount that was found, and what is mounted in it.
#[derive(Debug)]
pub struct Found {
    /// It.
    pub place: Arc<Place>,
    keys: Vec<FoundKey>,
    /// Directories of keys that are not mounted, and in which mount.
    left: Vec<(DevNum, Key)>,
}

/// A key that is mounted.
#[derive(Debug)]
struct FoundKey {
    /// In which mount.
    dev: DevNum,
    key: Key,
    /// Autofs mounts below, parents before children.
    below: Vec<Child>,
}

impl Found {
    /// Tell the machine.
    pub fn enter(self, state: &mut State, group: GroupId, now: Instant) -> Option<MountId> {
        let id = state.add_mount(group, self.place)?;
        for FoundKey { dev, key, below } in self.keys {
            if let Some(mount) = state.find(dev) {
                state.add_mounted(mount, key, below, now);
            }
        }
        for (dev, key) in self.left {
            if let Some(mount) = state.find(dev) {
                state.add_left(mount, key, now);
            }
        }
        Some(id)
    }
}

/// Attach or make every mount that is wanted (`dirs` of them were made for each of these), and tell the machine about them.
/// `patient`: one that exists and cannot be attached is left for later; nothing else has to wait for it.
pub fn connect(
    state: &mut State,
    kernel: &dyn Kernel,
    wanted: &[Wanted],
    pipe: BorrowedFd<'_>,
    dirs: &[(Vec<u8>, u32)],
    patient: bool,
) -> Result<Connected, ConnectError> {
    let survey = discover::survey(&discover::Target::Own)?;
    let dirs: HashMap<&[u8], u32> = dirs.iter().map(|(path, dirs)| (path.as_slice(), *dirs)).collect();
    let existing = Existing::new(&survey);
    let tops: Vec<_> =
        wanted.iter().flat_map(|map| &map.paths).filter_map(|path| existing.at(path)).collect();
    let unwanted = existing.unwanted(&tops, pipe);
    let (waiters, absent) = existing.attach(tops, pipe, patient)?;
    let made = |mount: &AutofsMount| dirs.get(mount.path.as_os_str().as_bytes()).copied().unwrap_or(0);
    let mut late = Vec::new();
    let now = Instant::now();
    for map in wanted {
        let group = state.add_group(map.served.clone());
        for path in &map.paths {
            let Some(mount) = existing.at(path) else {
                match jobs::make(kernel, path, &map.served) {
                    Ok(place) => _ = state.add_mount(group, Arc::new(place)),
                    Err(errno) => tracing::error!(path = %path.display(), %errno, "no autofs mount"),
                }
                continue;
            };
            if absent.contains(&mount.dev) {
                state.add_late(group, path.clone());
                late.push(Late { path: path.clone(), served: map.served.clone() });
                continue;
            }
            existing.find(kernel, mount, &map.served, made(mount)).enter(state, group, now);
        }
    }
    for mount in &unwanted {
        let served = Arc::new(no_map(mount));
        let group = state.add_group(served.clone());
        existing.find(kernel, mount, &served, made(mount)).enter(state, group, now);
    }
    Ok(Connected { waiters, late, unwanted: !unwanted.is_empty() })
}

/// Attach mounts when that has become possible, and report each. Ends when none is left, or nobody listens.
pub fn attach_late(
    kernel: &dyn Kernel,
    mut late: Vec<Late>,
    pipe: BorrowedFd<'_>,
    report: &dyn Fn(PathBuf, Option<Found>) -> bool,
) {
    while !late.is_empty() {
        std::thread::sleep(AGAIN);
        let Ok(survey) = discover::survey(&discover::Target::Own) else { continue };
        let existing = Existing::new(&survey);
        for Late { path, served } in std::mem::take(&mut late) {
            let found = match existing.at(&path) {
                // Somebody unmounted it.
                None => None,
                Some(mount) => {
                    let attached = !waits(mount) && existing.attach(vec![mount], pipe, false).is_ok();
                    if !attached {
                        late.push(Late { path, served });
                        continue;
                    }
                    tracing::info!(path = %path.display(), "an autofs mount that could not be attached at the start is");
                    Some(existing.find(kernel, mount, &served, 0))
                }
            };
            if !report(path, found) {
                return;
            }
        }
    }
}

/// Does another program wait for it? Then opening it waits as well.
fn waits(mount: &AutofsMount) -> bool {
    mount.waiters.iter().any(|waiter| waiter.process.pid != rustix::process::getpid().as_raw_pid())
}

/// The mounts of the program that this one was before have this pipe and this owner.
fn is_ours(pipe: BorrowedFd<'_>) -> impl Fn(&AutofsMount) -> bool {
    let own_pipe = rustix::fs::fstat(pipe).map(|meta| meta.st_ino).ok();
    let group = own_group();
    move |mount| {
        let options = &mount.options;
        let piped = options.pipe_ino.is_some() && options.pipe_ino == own_pipe;
        piped && !mount.catatonic && options.pgrp == group
    }
}

/// What serves a mount that no map has: it answers that there is nothing, until it is idle and goes.
fn no_map(mount: &AutofsMount) -> Served {
    let options =
        ServeOptions { timeout: Duration::from_secs(mount.options.timeout), ..ServeOptions::default() };
    Served {
        point: (mount.options.mount_type == MountType::Indirect).then(|| mount.path.clone()),
        name: mount.source.clone().into(),
        source: Box::new(NoMap),
        options,
        opener: Arc::new(NoMap),
    }
}

#[derive(Debug)]
struct NoMap;

impl Source for NoMap {
    fn lookup(&self, _key: &[u8], _who: Credentials) -> Result<Option<Resolved>, Errno> {
        Ok(None)
    }
    fn keys(&self) -> Result<Option<Vec<Key>>, Errno> {
        Ok(None)
    }
}

impl Opener for NoMap {
    fn submount(&self, _: &Served, _: &Path, _: &OsStr, _: &OsStr) -> Result<Served, Errno> {
        Err(Errno::NOENT)
    }
}

fn place_of(mount: &AutofsMount) -> Place {
    Place {
        path: mount.path.as_path().into(),
        dev: mount.dev,
        ino: None,
        kind: mount.options.mount_type,
        dirs: 0,
    }
}

/// The autofs mounts that exist.
struct Existing<'a> {
    by_path: HashMap<&'a Path, &'a AutofsMount>,
    by_id: HashMap<u64, &'a AutofsMount>,
}

impl<'a> Existing<'a> {
    fn new(survey: &'a Survey) -> Self {
        // Of several at a path the last is on top.
        let by_path = survey.mounts.iter().map(|mount| (mount.path.as_path(), mount)).collect();
        let by_id = survey.mounts.iter().map(|mount| (mount.mount_id, mount)).collect();
        Self { by_path, by_id }
    }

    fn at(&self, path: &Path) -> Option<&'a AutofsMount> {
        // An offset at the place of a map belongs to another map's key.
        self.by_path.get(path).copied().filter(|mount| mount.options.mount_type != MountType::Offset)
    }

    /// Its offsets and submounts. A direct mount below is another map's, or another daemon's.
    fn children(&self, mount: &AutofsMount) -> impl Iterator<Item = &'a AutofsMount> {
        let children: Vec<&'a AutofsMount> =
            mount.autofs_children.iter().filter_map(|id| self.by_id.get(id).copied()).collect();
        children.into_iter().filter(|child| child.options.mount_type != MountType::Direct)
    }

    /// Attach mounts with what belongs to them, but for those that are ours already. Returns the number of waiters, and which of `tops` were left out, because they
    /// or something that belongs to them cannot be attached (only if `patient`).
    fn attach(
        &self,
        mut tops: Vec<&'a AutofsMount>,
        pipe: BorrowedFd<'_>,
        patient: bool,
    ) -> Result<(usize, HashSet<DevNum>), ConnectError> {
        let is_ours = is_ours(pipe);
        let mut absent = HashSet::new();
        loop {
            let members = tops.iter().flat_map(|top| self.tree(top)).filter(|mount| !is_ours(mount));
            let targets: Vec<Target> =
                members.map(|mount| Target { path: mount.path.clone(), dev: mount.dev }).collect();
            if targets.is_empty() {
                return Ok((0, absent));
            }
            let error = match attach_here(&targets, pipe) {
                Ok(waiters) => return Ok((waiters, absent)),
                Err(error) => error,
            };
            let at_fault = error.mount().filter(|_| patient).and_then(|path| {
                tops.iter().position(|top| self.tree(top).iter().any(|mount| mount.path == path))
            });
            let Some(at) = at_fault else { return Err(error.into()) };
            let top = tops.remove(at);
            tracing::error!(path = %top.path.display(), "not served until it can be attached: {error}");
            absent.insert(top.dev);
        }
    }

    /// Mounts that are ours already, and belong to none of `tops`.
    fn unwanted(&self, tops: &[&'a AutofsMount], pipe: BorrowedFd<'_>) -> Vec<&'a AutofsMount> {
        let is_ours = is_ours(pipe);
        let mut members: HashSet<DevNum> =
            tops.iter().flat_map(|top| self.tree(top)).map(|mount| mount.dev).collect();
        let mut ours: Vec<_> = self.by_id.values().copied().filter(|mount| is_ours(mount)).collect();
        ours.sort_by_key(|mount| mount.path.components().count());
        ours.retain(|mount| {
            let top = mount.options.mount_type != MountType::Offset && !members.contains(&mount.dev);
            if top {
                members.extend(self.tree(mount).iter().map(|member| member.dev));
            }
            top
        });
        ours
    }

    /// What is mounted in a mount that is ours. `dirs`: how many directories were made for it.
    fn find(&self, kernel: &dyn Kernel, mount: &AutofsMount, served: &Arc<Served>, dirs: u32) -> Found {
        let place = Arc::new(Place { dirs, ..place_of(mount) });
        if served.point.is_some() && served.options.browse {
            let keys = served.source.keys().ok().flatten().unwrap_or_default();
            jobs::browse(kernel, served, &place, &keys);
        }
        let mut adoption = Adoption { kernel, existing: self, keys: Vec::new(), left: Vec::new() };
        adoption.keys(mount, served, None);
        Found { place, keys: adoption.keys, left: adoption.left }
    }

    /// A mount and what belongs to it, parents first.
    fn tree(&self, mount: &'a AutofsMount) -> Vec<&'a AutofsMount> {
        let mut tree = vec![mount];
        let mut next = 0;
        while let Some(mount) = tree.get(next).copied() {
            tree.extend(self.children(mount));
            next += 1;
        }
        tree
    }
}

/// Collects what is mounted.
struct Adoption<'s, 'e> {
    kernel: &'s dyn Kernel,
    existing: &'s Existing<'e>,
    keys: Vec<FoundKey>,
    left: Vec<(DevNum, Key)>,
}

impl Adoption<'_, '_> {
    /// Every key of a mount that has something mounted, and everything below. `part`: for an offset, its entry.
    fn keys(&mut self, mount: &AutofsMount, served: &Arc<Served>, part: Option<&Offset>) {
        let mut keys: BTreeMap<Key, Vec<Child>> = BTreeMap::new();
        for covering in &mount.covering {
            keys.entry(key_of(mount, &covering.path)).or_default();
        }
        let (links, directories) = names(mount);
        for name in links {
            keys.entry(name).or_default();
        }
        for child in self.existing.children(mount) {
            let key = key_of(mount, &child.path);
            if let Some(duty) = duty(mount, &key, child, served, part) {
                let child = Child { place: Arc::new(place_of(child)), under: mount.dev, duty, born: birth() };
                keys.entry(key).or_default().push(child);
            }
        }
        if !served.options.browse {
            let left = directories.into_iter().filter(|name| !keys.contains_key(name));
            self.left.extend(left.map(|name| (mount.dev, name)));
        }
        for (key, below) in keys {
            if part.is_none() && served.source.has_places() {
                self.place(mount, &key, served);
            }
            self.keys.push(FoundKey { dev: mount.dev, key, below: below.clone() });
            for child in below {
                self.child(&child, served);
            }
        }
    }

    /// The place that a key shares with others.
    fn place(&self, mount: &AutofsMount, key: &Key, served: &Served) {
        let target = place_of(mount).target(key);
        let asked = if key.is_empty() { target.as_os_str().as_bytes() } else { key.as_slice() };
        let Ok(Some(entry)) = served.source.lookup(asked, Credentials { uid: 0, gid: 0 }) else { return };
        for spec in &entry.mounts {
            if let What::External { place, mount, .. } = &spec.what {
                self.kernel.adopt(place, mount, &target);
            }
        }
    }

    fn child(&mut self, child: &Child, served: &Arc<Served>) {
        let Some(mount) = self.existing.by_path.get(&*child.place.path).copied() else { return };
        match &child.duty {
            Duty::Map(own) => self.keys(mount, own, None),
            Duty::Offset(offset) => self.keys(mount, served, Some(offset)),
        }
    }
}

/// Names in an indirect mount: symbolic links, which are mounted keys, and directories.
fn names(mount: &AutofsMount) -> (Vec<Key>, Vec<Key>) {
    if mount.options.mount_type != MountType::Indirect {
        return (Vec::new(), Vec::new());
    }
    let names = std::fs::read_dir(&mount.path).into_iter().flatten().flatten();
    let (links, directories): (Vec<_>, Vec<_>) =
        names.partition(|name| name.file_type().is_ok_and(|kind| kind.is_symlink()));
    let keys = |names: Vec<std::fs::DirEntry>| {
        names.into_iter().map(|name| name.file_name().as_bytes().to_vec()).collect()
    };
    (keys(links), keys(directories))
}

/// The key of `mount` that a path in it belongs to.
fn key_of(mount: &AutofsMount, path: &Path) -> Key {
    if mount.options.mount_type != MountType::Indirect {
        return Key::new();
    }
    let first = path.strip_prefix(&mount.path).ok().and_then(|rest| rest.components().next());
    first.map(|name| name.as_os_str().as_bytes().to_vec()).unwrap_or_default()
}

/// What an autofs mount below a key is there for; `None` (with a warning): the map does not say.
fn duty(
    mount: &AutofsMount,
    key: &Key,
    child: &AutofsMount,
    served: &Arc<Served>,
    part: Option<&Offset>,
) -> Option<Duty> {
    let (key, top) = match part {
        Some(offset) => (offset.key.clone(), offset.top.clone()),
        None if key.is_empty() => (mount.path.as_os_str().as_bytes().to_vec(), mount.path.clone()),
        None => (key.clone(), mount.path.join(std::ffi::OsStr::from_bytes(key))),
    };
    let below: PathBuf = child.path.strip_prefix(&top).ok()?.into();
    if child.options.mount_type == MountType::Offset {
        return Some(Duty::Offset(Arc::new(Offset { key, top, below, entry: None })));
    }
    let submount = || {
        let entry = served.source.lookup(&key, Credentials { uid: 0, gid: 0 }).ok()??;
        let spec = entry.mounts.into_iter().find(|spec| spec.offset == below)?;
        let What::Submount { map, options } = spec.what else { return None };
        served.opener.submount(served, &child.path, &map, &options).ok()
    };
    match submount() {
        Some(map) => Some(Duty::Map(Arc::new(map))),
        None => {
            tracing::warn!(path = %child.path.display(), "the map does not say what this autofs mount is for; its keys cannot be mounted");
            None
        }
    }
}
