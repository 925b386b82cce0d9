//! Device numbers: superblocks that have the numbers they had.
//!
//! The kernel gives an anonymous superblock the lowest free minor. So throw-away tmpfs superblocks
//! (*fillers*) take the free ones below the wanted minor until it is next. As autofs superblocks can be
//! made before they are attached anywhere, nothing has to be reserved: each is made when its number is
//! next, lowest first.
//!
//! Fillers would need a descriptor each, and wanted minors go up to 2^20. They are mounted in the caller's
//! private mount namespace instead. (Side by side: a stack of them would cost the kernel a walk along the whole
//! stack for each.)
//!
//! While there are fillers whoever else mounts gets high numbers, which may be those of another container that is restored next. So
//! the numbers that the restored container's other mounts had make way, and the lowest few.

use crate::sys::control::DEVICE;
use crate::sys::mount::{self, DetachedMount, MountError, MountFlags, Placeholder};
use crate::sys::{DevNum, Errno};
use rustix::fs::{CWD, FlockOperation, Mode, OFlags};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

/// How many fillers are made at most: each costs memory in the kernel (a few KiB), and an image can ask
/// for any number.
pub const REACH: usize = 1 << 16;

/// How many of them can make way for others, each of which needs a descriptor.
pub const ASIDE: usize = 1000;

/// How many placeholders are made before the number of the last is looked at.
const BATCH: usize = 100;

/// File systems of a restore that no table of mounts has: the message queues of a new IPC namespace, and three that CRIU (4.1 to 4.3) has
/// while it mounts.
const UNLISTED: usize = 4;

/// How often a number that seems taken is tried again (another program may hold it for a moment), and
/// how long between.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(1);
/// How long to wait for other restores.
const TURN: Duration = Duration::from_secs(60);
/// The tries of all numbers together.
const PATIENCE: u32 = 500;

/// Gives superblocks their numbers, lowest first. Must live until all are made: it holds what is below.
#[derive(Debug)]
pub struct Claims {
    /// Placeholders, by the numbers that they hold.
    held: BTreeMap<DevNum, Placeholder>,
    /// Fillers that make way for others.
    aside: Vec<DetachedMount>,
    /// The first of those that do not: a tmpfs with a directory for each of the others. (A tmpfs made for this alone might take a
    /// number that is wanted.)
    shelf: Option<DetachedMount>,
    fillers: usize,
    /// Keeps other restores from filling numbers at the same time: each would take what the other wants. Opened before all else: of a
    /// process that is killed the kernel ends fillers first, then descriptors from the highest down, so others have their turn when all
    /// is free.
    _turn: Option<OwnedFd>,
    /// Numbers of what else is mounted meanwhile.
    others: BTreeSet<DevNum>,
    /// How many fillers have made way beside those.
    unlisted: usize,
    /// The last number that the kernel gave.
    last: Option<u32>,
    patience: u32,
}

/// A number cannot be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NoClaim {
    /// Something has it.
    #[error("it is taken by a file system that is mounted in another namespace, or nowhere")]
    Taken,
    /// Too many free ones lie below.
    #[error("too many free numbers lie below it (more than {REACH})")]
    OutOfReach,
}

impl Default for Claims {
    fn default() -> Self {
        Self::new()
    }
}

impl Claims {
    /// To be used in a mount namespace that nobody else sees, and that goes away afterwards. Dropping it sets the working directory
    /// to `/`.
    pub fn new() -> Self {
        Self {
            held: BTreeMap::new(),
            aside: Vec::new(),
            shelf: None,
            fillers: 0,
            _turn: turn(),
            others: BTreeSet::new(),
            unlisted: 0,
            last: None,
            patience: PATIENCE,
        }
    }

    /// Hold each of these numbers until its superblock is made. Returns those that cannot be held, and why.
    pub fn hold(
        &mut self,
        devs: impl IntoIterator<Item = DevNum>,
    ) -> Result<Vec<(DevNum, NoClaim)>, MountError> {
        let mut devs: Vec<_> = devs.into_iter().collect();
        devs.sort();
        let mut not_held = Vec::new();
        let mut devs = &devs[..];
        // After somebody has interfered as many are looked at one by one.
        let mut one_by_one = 0_usize;
        while let [dev, rest @ ..] = devs {
            devs = rest;
            let new = || -> Result<_, MountError> {
                let placeholder = Placeholder::new()?;
                Ok((placeholder.mount()?, placeholder))
            };
            match self.superblock(*dev, new)? {
                Ok((_, placeholder)) => {
                    self.held.insert(*dev, placeholder);
                    one_by_one = one_by_one.saturating_sub(1);
                    if one_by_one == 0 {
                        let (held, all) = self.hold_next(*dev, rest)?;
                        devs = &rest[held..];
                        one_by_one = if all { 0 } else { BATCH };
                    }
                }
                Err(why) => not_held.push((*dev, why)),
            }
        }
        self.last = None;
        Ok(not_held)
    }

    /// The numbers that follow `first` without a gap, as many as `devs` begins with: the kernel gives them one after the other, so
    /// only the last of many is looked at. (A mount that only tells a number costs a grace period of the kernel's when it ends.)
    /// Returns how many are held, and whether these are all: not where somebody else has taken or given back a number.
    fn hold_next(&mut self, first: DevNum, devs: &[DevNum]) -> Result<(usize, bool), MountError> {
        let next = (1..).map(|more| DevNum { minor: first.minor + more, ..first });
        let run = devs.iter().zip(next).take_while(|(dev, next)| *dev == next).count();
        let mut held = 0;
        for devs in devs[..run].chunks(BATCH) {
            let placeholders = devs.iter().map(|_| Placeholder::new()).collect::<Result<Vec<_>, _>>()?;
            let (Some(last), Some(dev)) = (placeholders.last(), devs.last()) else { break };
            if self.note(&last.mount()?)? != dev.minor {
                self.last = None;
                break;
            }
            self.held.extend(devs.iter().copied().zip(placeholders));
            held += devs.len();
        }
        Ok((held, held == run))
    }

    /// The superblock that `make` makes, with the number `dev`. To be called in ascending order, but for numbers that
    /// are held.
    ///
    /// A number that is held is free for as long as one `make` takes: what is below it is filled up before. With the mount comes what
    /// else holds its superblock: one with a wrong number has to end, else no filler gets that number.
    pub fn superblock<T, E: From<MountError>>(
        &mut self,
        dev: DevNum,
        mut make: impl FnMut() -> Result<(DetachedMount, T), E>,
    ) -> Result<Result<(DetachedMount, T), NoClaim>, E> {
        let mut tries = TRIES;
        loop {
            // Where the number must be next, the tmpfs is spared: all below the last one were taken.
            let filled = self.last.is_some_and(|last| match self.held.contains_key(&dev) {
                true => dev.minor <= last + 1,
                false => dev.minor == last + 1,
            });
            if !filled {
                let filler = tmpfs()?;
                let minor = self.note(&filler)?;
                if minor < dev.minor {
                    if !self.keep(filler, minor)? {
                        return Ok(Err(NoClaim::OutOfReach));
                    }
                    continue;
                }
                // Dropped: if it had the number, that is the lowest free one now.
                if minor > dev.minor && !self.held.contains_key(&dev) && !self.try_again(&mut tries) {
                    return Ok(Err(NoClaim::Taken));
                }
            }
            drop(self.held.remove(&dev));
            let made = make()?;
            let minor = self.note(&made.0)?;
            if minor == dev.minor {
                return Ok(Ok(made));
            }
            drop(made);
            self.last = None;
            if minor > dev.minor && !self.try_again(&mut tries) {
                return Ok(Err(NoClaim::Taken));
            }
        }
    }

    /// Let go of a number that is held and will be the lowest free one: whoever is next gets it. `false`: that is not sure.
    pub fn let_go(&mut self, dev: DevNum) -> bool {
        let next = self.last.is_some_and(|last| dev.minor <= last + 1) && self.held.remove(&dev).is_some();
        if next {
            self.last = Some(dev.minor);
        }
        next
    }

    /// A number was not what it should be: somebody makes or ends superblocks.
    pub fn look_again(&mut self) {
        self.last = None;
    }

    /// Numbers for whoever else mounts meanwhile; nobody does where it is not called.
    pub fn leave(&mut self, others: BTreeSet<DevNum>) {
        self.others = others;
    }

    /// Whoever else mounts may have the numbers that are [left](Self::leave) for others, until the next superblock is made; the
    /// first time the lowest few, too.
    pub fn make_way(&mut self) {
        self.aside.clear();
        self.last = None;
    }

    fn try_again(&mut self, tries: &mut u32) -> bool {
        let again = *tries > 0 && self.patience > 0;
        if again {
            *tries -= 1;
            self.patience -= 1;
            std::thread::sleep(PAUSE);
        }
        again
    }

    fn note(&mut self, made: &DetachedMount) -> Result<u32, MountError> {
        let minor = made.dev().map_err(|errno| failed("stat", errno))?.minor;
        self.last = Some(minor);
        Ok(minor)
    }

    /// Put a filler, with number `minor`, away; `false` when there are too many.
    fn keep(&mut self, filler: DetachedMount, minor: u32) -> Result<bool, MountError> {
        let others = self.others.contains(&DevNum::anonymous(minor));
        let unlisted = !others && !self.others.is_empty() && self.unlisted < UNLISTED;
        if (others || unlisted) && self.aside.len() < ASIDE {
            self.unlisted += usize::from(unlisted);
            self.aside.push(filler);
            return Ok(true);
        }
        let Some(shelf) = &self.shelf else {
            filler.attach(CWD, Path::new("/"))?;
            self.shelf = Some(filler);
            return Ok(true);
        };
        let name = self.fillers.to_string();
        rustix::fs::mkdirat(shelf, &name, Mode::RWXU)
            .map_err(|errno| failed("make a directory in", errno))?;
        match filler.attach(shelf, Path::new(&name)) {
            // The namespace is full (fs.mount-max).
            Err(MountError::At { errno: Errno::NOSPC, .. }) => return Ok(false),
            result => result?,
        }
        self.fillers += 1;
        Ok(self.fillers < REACH)
    }
}

/// Whoever has the next turn shall find the numbers of fillers free. They are in a namespace that others may keep for long.
impl Drop for Claims {
    fn drop(&mut self) {
        // If not now then with the namespace.
        let _ = self.shelf.as_ref().map(DetachedMount::detach);
    }
}

/// A lock on the device, which every restore has; without it if another one has it for too long.
fn turn() -> Option<OwnedFd> {
    let device = rustix::fs::open(DEVICE, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let start = Instant::now();
    while start.elapsed() < TURN {
        match rustix::fs::flock(&device, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::AGAIN) => std::thread::sleep(PAUSE),
            result => return result.ok().map(|()| device),
        }
    }
    None
}

fn tmpfs() -> Result<DetachedMount, MountError> {
    mount::new_superblock::<&str>("tmpfs", Path::new("autofs-cr"), &[], MountFlags::empty())
}

fn failed(what: &'static str, errno: Errno) -> MountError {
    MountError::At { what, path: "a new superblock".into(), errno }
}
