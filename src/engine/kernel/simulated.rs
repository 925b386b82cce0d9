//! A kernel in memory: mounts, directories, requests, and visitors that walk paths.
//!
//! It keeps the promises that the engine relies on: a visitor waits at an uncovered trigger, later
//! visitors join its request, a mount in use or with mounts on it is EBUSY, an answer for an unknown token
//! is EINVAL. It counts what must never happen: answers to requests that are not pending.

use super::Kernel;
use crate::discover::facts::MountType;
use crate::engine::maps::What;
use crate::engine::mount::MountError;
use crate::engine::served::Served;
use crate::engine::task::{Key, Place};
use crate::sys::control::Token;
use crate::sys::packet::{Kind, Packet};
use crate::sys::{DevNum, Errno};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The pretended kernel.
#[derive(Debug, Default)]
pub struct Simulated(Mutex<World>);

/// What it is made of.
#[derive(Debug, Default)]
pub struct World {
    /// In the order of mounting.
    pub mounts: Vec<SimMount>,
    /// Directories and symlinks.
    pub names: BTreeSet<PathBuf>,
    /// Requests without an answer.
    pub pending: BTreeMap<Token, Request>,
    /// Answers given.
    pub answers: BTreeMap<Token, Result<(), Errno>>,
    /// Answers to requests that were not pending.
    pub wrong: Vec<Token>,
    /// Mount points in use.
    pub used: BTreeSet<PathBuf>,
    /// Mount points where mounting fails.
    pub broken: BTreeSet<PathBuf>,
    /// What the engine would read from its pipe.
    pub packets: Vec<Packet>,
    expires: BTreeSet<Token>,
    next: u32,
}

/// A mount.
#[derive(Debug)]
pub struct SimMount {
    path: PathBuf,
    dev: DevNum,
    autofs: Option<MountType>,
    catatonic: bool,
}

/// A request without an answer.
#[derive(Debug, PartialEq)]
pub struct Request {
    dev: DevNum,
    key: Key,
}

/// How far a visitor came.
#[derive(Debug, PartialEq)]
pub enum Visit {
    /// To the end of its path.
    Arrived,
    /// It sleeps on this request.
    Waits(Token),
    /// A mount without master.
    Failed,
}

impl World {
    /// Walk `path`.
    pub fn visit(&mut self, path: &Path) -> Visit {
        let prefixes: Vec<_> = path.ancestors().map(Path::to_path_buf).collect();
        let mut autofs = None;
        for prefix in prefixes.into_iter().rev() {
            if let Some((dev, MountType::Indirect)) = autofs
                && self.top(&prefix).is_none()
                && !self.mounted_below(&prefix)
                && !self.is_symlink(&prefix)
            {
                let key = prefix.file_name().map(|name| name.as_bytes().to_vec()).unwrap_or_default();
                return self.ask(dev, key);
            }
            autofs = None;
            if let Some(top) = self.top(&prefix)
                && let Some(kind) = top.autofs
            {
                let dev = top.dev;
                if kind == MountType::Indirect {
                    autofs = Some((dev, kind));
                } else if !self.mounted_below(&prefix) {
                    return self.ask(dev, Key::new());
                }
            }
        }
        Visit::Arrived
    }

    fn is_symlink(&self, path: &Path) -> bool {
        self.names.contains(&path.join("->"))
    }

    fn ask(&mut self, dev: DevNum, key: Key) -> Visit {
        let same = |request: &Request| request.dev == dev && request.key == key;
        if let Some((token, _)) = self.pending.iter().find(|(_, request)| same(request)) {
            return Visit::Waits(*token);
        }
        if self.mounts.iter().any(|mount| mount.dev == dev && mount.catatonic) {
            return Visit::Failed;
        }
        Visit::Waits(self.send(dev, key, false))
    }

    fn send(&mut self, dev: DevNum, key: Key, expire: bool) -> Token {
        let token = Token(self.number());
        let kind = match (key.is_empty(), expire) {
            (true, false) => Kind::MissingDirect,
            (true, true) => Kind::ExpireDirect,
            (false, false) => Kind::MissingIndirect,
            (false, true) => Kind::ExpireIndirect,
        };
        self.packets.push(Packet {
            kind,
            token,
            dev,
            ino: 1,
            uid: 0,
            gid: 0,
            pid: 1,
            tgid: 1,
            name: if key.is_empty() { b"ffff8881".to_vec() } else { key.clone() },
        });
        self.pending.insert(token, Request { dev, key });
        if expire {
            self.expires.insert(token);
        }
        token
    }

    /// The start of an EXPIRE call: `None` when nothing is idle.
    pub fn begin_expire(&mut self, place: &Place) -> Option<Token> {
        self.mounts.iter().find(|mount| mount.dev == place.dev && !mount.catatonic)?;
        let busy_with = |world: &Self, key: &Key| {
            world.pending.values().any(|request| request.dev == place.dev && request.key == *key)
        };
        let idle = |world: &Self, top: &Path| {
            let submount = world.top(top).is_some_and(|mount| mount.autofs == Some(MountType::Indirect));
            let used = world.used.iter().any(|path| path.starts_with(top));
            let waited = world.mounts.iter().any(|mount| {
                mount.path.starts_with(top) && world.pending.values().any(|request| request.dev == mount.dev)
            });
            !submount && !used && !waited
        };
        if place.kind != MountType::Indirect {
            let free = !busy_with(self, &Key::new()) && idle(self, &place.path);
            return free.then(|| self.send(place.dev, Key::new(), true));
        }
        let keys: BTreeSet<Key> = self
            .mounts
            .iter()
            .filter_map(|mount| mount.path.strip_prefix(&place.path).ok()?.iter().next())
            .map(|name| name.as_bytes().to_vec())
            .collect();
        let key = keys.into_iter().find(|key| !busy_with(self, key) && idle(self, &place.target(key)))?;
        Some(self.send(place.dev, key, true))
    }

    /// Was it an expire request?
    pub fn was_expire(&self, token: Token) -> bool {
        self.expires.contains(&token)
    }

    fn top(&self, path: &Path) -> Option<&SimMount> {
        self.mounts.iter().rev().find(|mount| mount.path == path)
    }

    fn mounted_below(&self, path: &Path) -> bool {
        self.mounts.iter().any(|mount| mount.path != path && mount.path.starts_with(path))
    }

    fn number(&mut self) -> u32 {
        self.next += 1;
        self.next
    }

    fn add(&mut self, path: &Path, autofs: Option<MountType>) -> DevNum {
        // the lowest free number is used first, as in the kernel: old ones come again
        let taken = |minor: &u32| self.mounts.iter().any(|mount| mount.dev == DevNum::anonymous(*minor));
        let minor = (30..).find(|minor| !taken(minor)).unwrap_or_default();
        let dev = DevNum::anonymous(minor);
        self.mounts.push(SimMount { path: path.to_path_buf(), dev, autofs, catatonic: false });
        dev
    }
}

impl Simulated {
    /// The world, to look at and to change.
    pub fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kernel for Simulated {
    fn answer(&self, place: &Place, token: Token, result: Result<(), Errno>) -> Result<(), Errno> {
        let mut world = self.world();
        match world.pending.get(&token) {
            Some(request) if request.dev == place.dev => {
                world.pending.remove(&token);
                world.answers.insert(token, result);
                Ok(())
            }
            _ => {
                world.wrong.push(token);
                Err(Errno::INVAL)
            }
        }
    }

    fn find(&self, dev: DevNum) -> Result<Place, Errno> {
        let world = self.world();
        let found = world.mounts.iter().find(|mount| mount.dev == dev);
        let place =
            found.and_then(|mount| Some(Place { path: mount.path.clone(), dev, kind: mount.autofs? }));
        place.ok_or(Errno::NOENT)
    }

    fn expire(&self, place: &Place, _immediate: bool) -> Result<bool, Errno> {
        // tests begin the call and answer it in two steps
        Ok(self.world().begin_expire(place).is_some())
    }

    fn is_covered(&self, place: &Place, target: &Path) -> Result<bool, Errno> {
        Ok(self.world().top(target).is_some_and(|top| top.dev != place.dev))
    }

    fn exists(&self, place: &Place) -> bool {
        let world = self.world();
        world.mounts.iter().any(|mount| mount.dev == place.dev && mount.path == place.path)
    }

    fn make_trigger(&self, path: &Path, kind: MountType, _served: &Served) -> Result<Place, Errno> {
        let mut world = self.world();
        if world.broken.contains(path) {
            return Err(Errno::NOMEM);
        }
        let dev = world.add(path, Some(kind));
        Ok(Place { path: path.to_path_buf(), dev, kind })
    }

    fn mount(&self, _what: &What, target: &Path, _served: &Served) -> Result<(), MountError> {
        let mut world = self.world();
        if world.broken.contains(target) {
            return Err(MountError::NoHelper(Errno::IO));
        }
        world.add(target, None);
        Ok(())
    }

    fn unmount(&self, path: &Path) -> Result<(), Errno> {
        let mut world = self.world();
        let at = world.mounts.iter().rposition(|mount| mount.path == path).ok_or(Errno::INVAL)?;
        let dev = world.mounts[at].dev;
        let waited = world.pending.values().any(|request| request.dev == dev);
        if waited || world.used.contains(path) || world.mounted_below(path) {
            return Err(Errno::BUSY);
        }
        world.mounts.remove(at);
        Ok(())
    }

    fn make_catatonic(&self, place: &Place) -> Result<(), Errno> {
        let mut world = self.world();
        for mount in world.mounts.iter_mut().filter(|mount| mount.dev == place.dev) {
            mount.catatonic = true;
        }
        let freed: Vec<Token> =
            world.pending.iter().filter(|(_, r)| r.dev == place.dev).map(|(token, _)| *token).collect();
        for token in freed {
            world.pending.remove(&token);
            world.answers.insert(token, Err(Errno::NOENT));
        }
        Ok(())
    }

    fn make_dir(&self, path: &Path, _mode: u32) -> Result<bool, Errno> {
        let mut world = self.world();
        if world.broken.contains(path) && world.top(path).is_none() {
            return Err(Errno::NOSPC);
        }
        Ok(world.names.insert(path.to_path_buf()))
    }

    fn remove(&self, path: &Path) -> Result<(), Errno> {
        let mut world = self.world();
        if world.top(path).is_some() || world.mounted_below(path) {
            return Err(Errno::BUSY);
        }
        world.names.remove(&path.join("->"));
        world.names.remove(path).then_some(()).ok_or(Errno::NOENT)
    }

    fn symlink(&self, _target: &Path, path: &Path) -> Result<(), Errno> {
        let mut world = self.world();
        world.names.insert(path.join("->"));
        world.names.insert(path.to_path_buf()).then_some(()).ok_or(Errno::EXIST)
    }

    fn names(&self, dir: &Path) -> Result<Vec<OsString>, Errno> {
        let world = self.world();
        let inside = world.names.iter().filter(|path| path.parent() == Some(dir));
        Ok(inside.filter_map(|path| path.file_name()).map(Into::into).collect())
    }
}
