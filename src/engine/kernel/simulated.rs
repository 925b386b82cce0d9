//! A kernel in memory: mounts, directories, requests, and visitors that walk paths.
//!
//! It keeps the promises that the engine relies on: a visitor waits at an uncovered trigger, later
//! visitors join its request, a mount in use or with mounts on it is EBUSY, an answer for an unknown token
//! is EINVAL, numbers of mounts that are gone come again. It counts what must never happen: answers to
//! requests that are not pending.
//!
//! A job that runs in a thread with a [`Baton`] stops before each of its calls, so that a test decides
//! what happens in between.

use super::{Hold, Kernel};
use crate::discover::facts::MountType;
use crate::engine::maps::What;
use crate::engine::mount::MountError;
use crate::engine::served::Served;
use crate::engine::task::{Key, Place};
use crate::sys::control::Token;
use crate::sys::packet::{Kind, Packet};
use crate::sys::{DevNum, Errno};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::num::NonZeroU64;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The pretended kernel.
#[derive(Debug, Default)]
pub struct Simulated(Mutex<World>);

/// What it is made of.
#[derive(Debug, Default)]
pub struct World {
    /// In the order of mounting.
    pub mounts: Vec<SimMount>,
    /// Directories and symbolic links, with the mount in which they are.
    pub names: BTreeMap<(DevNum, PathBuf), Name>,
    /// Requests without an answer.
    pub pending: BTreeMap<Token, Request>,
    /// Answers given.
    pub answers: BTreeMap<Token, Result<(), Errno>>,
    /// Answers to requests that were not pending.
    pub wrong: Vec<Token>,
    /// Mount points in use.
    pub used: BTreeSet<PathBuf>,
    /// Mount points in use where EXPIRE does not look: in another mount namespace.
    pub used_elsewhere: BTreeSet<PathBuf>,
    /// Paths where nothing can be made or mounted.
    pub broken: BTreeSet<PathBuf>,
    /// What the engine would read from its pipe.
    pub packets: Vec<Packet>,
    expires: BTreeSet<Token>,
    /// Inodes of mounts that are held, as often as they are.
    held: Vec<u64>,
    next: u32,
}

/// A mount.
#[derive(Debug)]
pub struct SimMount {
    /// Where.
    pub path: PathBuf,
    /// Set for an autofs mount.
    pub autofs: Option<MountType>,
    dev: DevNum,
    ino: u64,
    catatonic: bool,
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
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

/// The file system in which everything else is mounted.
const ROOT: DevNum = DevNum::anonymous(1);

impl World {
    /// Walk `path`. Whoever comes to a trigger while it is mounted or expires waits for that.
    pub fn visit(&mut self, path: &Path) -> Visit {
        let prefixes: Vec<_> = path.ancestors().map(Path::to_path_buf).collect();
        let mut indirect = None;
        for prefix in prefixes.into_iter().rev() {
            let mounted = self.top(&prefix).is_some() || self.mounted_below(&prefix);
            if let Some(dev) = indirect.take() {
                let key = prefix.file_name().map(|name| name.as_bytes().to_vec()).unwrap_or_default();
                if !mounted && self.name(&prefix) != Some(Name::Link) || self.asked(dev, &key) {
                    return self.ask(dev, key);
                }
            }
            let here = self.mounts.iter().filter(|mount| mount.path == prefix && mount.autofs.is_some());
            let here: Vec<_> = here.map(|mount| (mount.dev, mount.autofs)).collect();
            let top = self.top(&prefix).map(|mount| mount.dev);
            for (dev, kind) in here {
                if kind == Some(MountType::Indirect) {
                    indirect = Some(dev);
                } else if top == Some(dev) && !self.mounted_below(&prefix) || self.asked(dev, b"") {
                    return self.ask(dev, Key::new());
                }
            }
        }
        Visit::Arrived
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
        let ino = self.mounts.iter().find(|mount| mount.dev == dev).map_or(0, |mount| mount.ino);
        self.packets.push(Packet {
            kind,
            token,
            dev,
            ino,
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

    /// The start of an EXPIRE call: `None` when nothing is idle. A trigger is chosen even when nothing is
    /// mounted on it.
    pub fn begin_expire(&mut self, place: &Place) -> Option<Token> {
        let at = self.find(place).filter(|at| !self.mounts[*at].catatonic)?;
        if place.kind != MountType::Indirect {
            let free = !self.asked(place.dev, b"")
                && !self.is_held(self.mounts[at].ino)
                && self.is_idle(&place.path, false);
            return free.then(|| self.send(place.dev, Key::new(), true));
        }
        let keys: BTreeSet<Key> = self
            .mounts
            .iter()
            .filter_map(|mount| mount.path.strip_prefix(&place.path).ok()?.iter().next())
            .map(|name| name.as_bytes().to_vec())
            .collect();
        let links = self.names.iter().filter(|((dev, _), name)| *dev == place.dev && **name == Name::Link);
        let links = links.filter_map(|((_, path), _)| path.file_name()).map(|name| name.as_bytes().to_vec());
        let keys: BTreeSet<Key> = keys.into_iter().chain(links).collect();
        let idle = |key: &Key| !self.asked(place.dev, key) && self.is_idle(&place.target(key), true);
        let key = keys.into_iter().find(idle)?;
        Some(self.send(place.dev, key, true))
    }

    fn asked(&self, dev: DevNum, key: &[u8]) -> bool {
        self.pending.values().any(|request| request.dev == dev && request.key == key)
    }

    fn is_held(&self, ino: u64) -> bool {
        self.held.contains(&ino)
    }

    /// Nobody uses what is mounted at and below `top`.
    fn is_idle(&self, top: &Path, with_top: bool) -> bool {
        let submount = self.top(top).is_some_and(|mount| mount.autofs == Some(MountType::Indirect));
        let used = self.used.iter().any(|path| path.starts_with(top) && self.top(path).is_some());
        let mut below = self.mounts.iter().filter(|mount| mount.path.starts_with(top));
        let in_use = below.any(|mount| {
            let asked = self.pending.values().any(|request| request.dev == mount.dev);
            (with_top || mount.path != top) && (asked || self.is_held(mount.ino))
        });
        !submount && !used && !in_use
    }

    /// All autofs mounts.
    pub fn autofs_places(&self) -> Vec<Place> {
        let place = |mount: &SimMount| {
            let SimMount { path, dev, ino, .. } = mount;
            Some(Place {
                path: path.as_path().into(),
                dev: *dev,
                ino: NonZeroU64::new(*ino),
                kind: mount.autofs?,
                dirs: 0,
            })
        };
        self.mounts.iter().filter_map(place).collect()
    }

    /// Was it an expire request?
    pub fn was_expire(&self, token: Token) -> bool {
        self.expires.contains(&token)
    }

    /// Unmount the topmost mount at a path.
    pub fn unmount(&mut self, path: &Path) -> Result<(), Errno> {
        let at = self.mounts.iter().rposition(|mount| mount.path == path).ok_or(Errno::INVAL)?;
        let SimMount { dev, ino, .. } = self.mounts[at];
        let asked = self.pending.values().any(|request| request.dev == dev);
        let used = self.used.contains(path) || self.used_elsewhere.contains(path);
        if asked || used || self.is_held(ino) || self.mounted_below(path) {
            return Err(Errno::BUSY);
        }
        self.mounts.remove(at);
        self.names.retain(|(inside, _), _| *inside != dev);
        Ok(())
    }

    fn find(&self, place: &Place) -> Option<usize> {
        self.mounts.iter().position(|mount| mount.dev == place.dev && mount.path == *place.path)
    }

    /// The topmost mount at a path.
    pub fn top(&self, path: &Path) -> Option<&SimMount> {
        self.mounts.iter().rev().find(|mount| mount.path == path)
    }

    fn mounted_below(&self, path: &Path) -> bool {
        self.mounts.iter().any(|mount| mount.path != path && mount.path.starts_with(path))
    }

    /// The mount in which the name of `path` is.
    fn holder(&self, path: &Path) -> DevNum {
        path.ancestors().skip(1).find_map(|dir| self.top(dir)).map_or(ROOT, |mount| mount.dev)
    }

    fn name(&self, path: &Path) -> Option<Name> {
        self.names.get(&(self.holder(path), path.to_path_buf())).copied()
    }

    fn add_name(&mut self, path: &Path, name: Name) -> Result<(), Errno> {
        if self.name(path).is_some() || path == Path::new("/") {
            return Err(Errno::EXIST);
        }
        if self.broken.contains(path) {
            return Err(Errno::NOSPC);
        }
        match path.parent() {
            Some(parent) if parent != Path::new("/") && self.name(parent) != Some(Name::Directory) => {
                Err(Errno::NOENT)
            }
            _ => {
                self.names.insert((self.holder(path), path.to_path_buf()), name);
                Ok(())
            }
        }
    }

    fn number(&mut self) -> u32 {
        self.next += 1;
        self.next
    }

    fn add(&mut self, path: &Path, autofs: Option<MountType>) -> Result<&SimMount, Errno> {
        if self.name(path) != Some(Name::Directory) {
            return Err(Errno::NOENT);
        }
        if self.broken.contains(path) {
            return Err(Errno::NOMEM);
        }
        // the lowest free number is used first, as in the kernel: old ones come again
        let taken = |minor: &u32| self.mounts.iter().any(|mount| mount.dev == DevNum::anonymous(*minor));
        let minor = (30..).find(|minor| !taken(minor)).unwrap_or_default();
        let ino = u64::from(self.number());
        let dev = DevNum::anonymous(minor);
        self.mounts.push(SimMount { path: path.to_path_buf(), dev, ino, autofs, catatonic: false });
        self.mounts.last().ok_or(Errno::NOMEM)
    }
}

/// Lets a job make one call at a time.
pub struct Baton {
    /// Told when the job is about to make a call.
    pub stopped: Sender<()>,
    /// One message, one call. When the other end is gone, the job's thread ends.
    pub go: Receiver<()>,
}

thread_local! {
    static BATON: RefCell<Option<Baton>> = const { RefCell::new(None) };
}

impl Baton {
    /// For this thread, from now on.
    pub fn take(self) {
        BATON.set(Some(self));
    }
}

impl Simulated {
    /// The world, to look at and to change. Only one at a time: a second one waits for the first.
    pub fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The world for a call of the engine.
    fn call(&self) -> MutexGuard<'_, World> {
        BATON.with_borrow(|baton| {
            if let Some(baton) = baton
                && (baton.stopped.send(()).is_err() || baton.go.recv().is_err())
            {
                // the test is over
                std::panic::resume_unwind(Box::new(()));
            }
        });
        self.world()
    }
}

/// A held mount.
struct Held<'a>(&'a Simulated, u64, Place);

impl Hold for Held<'_> {
    fn answer(&self, token: Token, result: Result<(), Errno>) -> Result<(), Errno> {
        self.0.answer(&self.2, token, result)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let held = &mut self.0.world().held;
        if let Some(at) = held.iter().position(|ino| *ino == self.1) {
            held.swap_remove(at);
        }
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
        let places = self.call().autofs_places();
        places.into_iter().find(|place| place.dev == dev).ok_or(Errno::NOENT)
    }

    fn hold<'a>(&'a self, place: &Place) -> Result<Box<dyn Hold + 'a>, Errno> {
        let mut world = self.call();
        let at = world.find(place).ok_or(Errno::NOENT)?;
        let ino = world.mounts[at].ino;
        world.held.push(ino);
        Ok(Box::new(Held(self, ino, place.clone())))
    }

    fn expire(&self, place: &Place, _immediate: bool) -> Result<bool, Errno> {
        // tests begin the call and answer it in two steps
        Ok(self.call().begin_expire(place).is_some())
    }

    fn is_covered(&self, place: &Place, target: &Path) -> Result<bool, Errno> {
        let world = self.call();
        world.find(place).ok_or(Errno::NOENT)?;
        Ok(world.top(target).is_some_and(|top| top.dev != place.dev))
    }

    fn make_trigger(&self, path: &Path, kind: MountType, _served: &Served) -> Result<Place, Errno> {
        let mut world = self.call();
        let mount = world.add(path, Some(kind))?;
        Ok(Place { path: path.into(), dev: mount.dev, ino: NonZeroU64::new(mount.ino), kind, dirs: 0 })
    }

    fn mount(&self, _what: &What, target: &Path, _served: &Served) -> Result<(), MountError> {
        self.call().add(target, None).map(drop).map_err(MountError::NoHelper)
    }

    fn enter(&self, _: &Path, _: &What, _: &Path, _: &Served) -> Result<(), MountError> {
        Err(MountError::NoSource)
    }

    fn adopt(&self, _: &Path, _: &What, _: &Path) {}

    fn leave(&self, _: &Path, _: &Served) {}

    fn unmount(&self, path: &Path) -> Result<(), Errno> {
        self.call().unmount(path)
    }

    fn make_catatonic(&self, place: &Place) -> Result<(), Errno> {
        let mut world = self.call();
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

    fn set_timeout(&self, place: &Place, _timeout: Duration) -> Result<(), Errno> {
        self.call().find(place).map(drop).ok_or(Errno::NOENT)
    }

    fn make_dir(&self, path: &Path, _mode: u32) -> Result<usize, Errno> {
        let mut world = self.call();
        let mut new = 0;
        let paths: Vec<&Path> = path.ancestors().collect();
        for path in paths.into_iter().rev() {
            match world.add_name(path, Name::Directory) {
                Ok(()) => new += 1,
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(new)
    }

    fn remove(&self, path: &Path) -> Result<(), Errno> {
        let mut world = self.call();
        if world.top(path).is_some() {
            return Err(Errno::BUSY);
        }
        let holder = world.holder(path);
        let inside = |name: &Path| name != path && name.starts_with(path);
        if world.names.keys().any(|(dev, name)| *dev == holder && inside(name)) {
            return Err(Errno::NOTEMPTY);
        }
        world.names.remove(&(holder, path.to_path_buf())).map(drop).ok_or(Errno::NOENT)
    }

    fn remove_link(&self, path: &Path) -> Result<(), Errno> {
        let mut world = self.call();
        if world.name(path) != Some(Name::Link) {
            return Err(Errno::ISDIR);
        }
        let holder = world.holder(path);
        world.names.remove(&(holder, path.to_path_buf())).map(drop).ok_or(Errno::NOENT)
    }

    fn symlink(&self, _target: &Path, path: &Path) -> Result<(), Errno> {
        self.call().add_name(path, Name::Link)
    }

    fn names(&self, dir: &Path) -> Result<Vec<OsString>, Errno> {
        let world = self.call();
        let dev = world.top(dir).map_or_else(|| world.holder(dir), |top| top.dev);
        let inside = world.names.keys().filter(|(holder, path)| *holder == dev && path.parent() == Some(dir));
        Ok(inside.filter_map(|(_, path)| path.file_name()).map(Into::into).collect())
    }
}
