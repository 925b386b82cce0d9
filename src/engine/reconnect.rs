//! At start: mounts that exist are attached where they are, the others are made.
//!
//! What exists, what is mounted in it and what belongs to what is asked of the kernel; no file of an earlier engine is
//! believed.

use super::config::Wanted;
use super::jobs;
use super::kernel::Kernel;
use super::maps::{Credentials, What};
use super::served::Served;
use super::state::{MountId, State};
use super::task::{Child, Duty, Key, Offset, Place, birth};
use crate::attach::{AttachError, Target, attach_here};
use crate::discover::facts::{AutofsMount, MountType, Survey};
use crate::discover::{self, DiscoverError};
use std::collections::{BTreeMap, HashMap};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

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

/// Attach or make every mount that is wanted (`dirs` of them were made for each of these), and tell the machine about them. Returns how many waiters were handed on.
pub fn connect(
    state: &mut State,
    kernel: &dyn Kernel,
    wanted: &[Wanted],
    pipe: BorrowedFd<'_>,
    dirs: &[(Vec<u8>, u32)],
) -> Result<usize, ConnectError> {
    let survey = discover::survey(&discover::Target::Own)?;
    // Of the program that this one was before: its mounts have this pipe and this owner already.
    let own_pipe = rustix::fs::fstat(pipe).map(|meta| meta.st_ino).ok();
    let group = rustix::process::getpgrp().as_raw_nonzero().get();
    let is_ours = |mount: &AutofsMount| {
        let options = &mount.options;
        !mount.catatonic
            && options.pipe_ino.is_some()
            && options.pipe_ino == own_pipe
            && options.pgrp == group
    };
    let dirs: HashMap<&[u8], u32> = dirs.iter().map(|(path, dirs)| (path.as_slice(), *dirs)).collect();
    let existing = Existing::new(&survey);
    let targets: Vec<Target> = wanted
        .iter()
        .flat_map(|map| &map.paths)
        .filter_map(|path| existing.at(path))
        .flat_map(|mount| existing.tree(mount))
        .filter(|mount| !is_ours(mount))
        .map(|mount| Target { path: mount.path.clone(), dev: mount.dev })
        .collect();
    let waiters = if targets.is_empty() { 0 } else { attach_here(&targets, pipe)? };
    let now = Instant::now();
    for map in wanted {
        let group = state.add_group(map.served.clone());
        for path in &map.paths {
            let found = existing.at(path);
            let place = match found {
                Some(mount) => {
                    let dirs = dirs.get(path.as_os_str().as_bytes()).copied().unwrap_or(0);
                    Place { dirs, ..place_of(mount) }
                }
                None => match jobs::make(kernel, path, &map.served) {
                    Ok(place) => place,
                    Err(errno) => {
                        tracing::error!(path = %path.display(), %errno, "no autofs mount");
                        continue;
                    }
                },
            };
            let place = Arc::new(place);
            if found.is_some() && map.served.point.is_some() && map.served.options.browse {
                let keys = map.served.source.keys().ok().flatten().unwrap_or_default();
                jobs::browse(kernel, &map.served, &place, &keys);
            }
            if let (Some(id), Some(mount)) = (state.add_mount(group, place), found) {
                Adoption { state, kernel, existing: &existing, now }.keys(id, mount, &map.served, None);
            }
        }
    }
    Ok(waiters)
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

/// Tells the machine what is mounted.
struct Adoption<'s, 'e> {
    state: &'s mut State,
    kernel: &'s dyn Kernel,
    existing: &'s Existing<'e>,
    now: Instant,
}

impl Adoption<'_, '_> {
    /// Every key of a mount that has something mounted, and everything below. `part`: for an offset, its entry.
    fn keys(&mut self, id: MountId, mount: &AutofsMount, served: &Arc<Served>, part: Option<&Offset>) {
        let mut keys: BTreeMap<Key, Vec<Child>> = BTreeMap::new();
        for covering in &mount.covering {
            keys.entry(key_of(mount, &covering.path)).or_default();
        }
        for name in links(mount) {
            keys.entry(name).or_default();
        }
        for child in self.existing.children(mount) {
            let key = key_of(mount, &child.path);
            if let Some(duty) = duty(mount, &key, child, served, part) {
                let child = Child { place: Arc::new(place_of(child)), under: mount.dev, duty, born: birth() };
                keys.entry(key).or_default().push(child);
            }
        }
        for (key, below) in keys {
            if part.is_none() && served.source.has_places() {
                self.place(mount, &key, served);
            }
            self.state.add_mounted(id, key, below.clone(), self.now);
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
        let mount = self.existing.by_path.get(&*child.place.path).copied();
        let (Some(id), Some(mount)) = (self.state.find(child.place.dev), mount) else { return };
        match &child.duty {
            Duty::Map(own) => self.keys(id, mount, own, None),
            Duty::Offset(offset) => self.keys(id, mount, served, Some(offset)),
        }
    }
}

/// Keys of an indirect mount that are symbolic links.
fn links(mount: &AutofsMount) -> Vec<Key> {
    if mount.options.mount_type != MountType::Indirect {
        return Vec::new();
    }
    let names = std::fs::read_dir(&mount.path).into_iter().flatten().flatten();
    let links = names.filter(|name| name.file_type().is_ok_and(|kind| kind.is_symlink()));
    links.map(|name| name.file_name().as_bytes().to_vec()).collect()
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
