//! Before CRIU seizes anybody: requests end, and every task sleeps without its knowledge until CRIU has it.
//!
//! CRIU stops one task after the other. A program that waits for a mount whose master has been stopped can neither be
//! stopped nor frozen, and the dump fails. So a process apart holds all tasks first, the masters last, when nobody
//! waits any more. Where a master does not answer in time its mounts are catatonic for a moment, which wakes the waiters: their calls
//! are made again after the dump or the restore, and the program sees nothing.
//!
//! ptrace cannot hand a task over: between two tracers it runs. So each is put to sleep ([`Held::put_to_sleep`]) and
//! let go, and CRIU's process wakes it when it has everybody. If CRIU does not get that far, the process apart does.

use super::apart::{receive_value, send_value};
use super::attendant::Attendant;
use super::owner::Owner;
use super::relay;
use super::tree::{self, Tree};
use crate::attach::{self, AttachError};
use crate::discover::facts::{AutofsMount, AutofsOptions, End, PipeEnd};
use crate::discover::proc::TaskDir;
use crate::discover::waiters::waits_in_autofs;
use crate::discover::{DiscoverError, Target, mountinfo, survey};
use crate::faults;
use crate::quiesce::{Holding, QuiesceError};
use crate::sys::control::{Control, ControlError, MountFd};
use crate::sys::process::reopen_write_end;
use crate::sys::tracee::{Held, Seized, Sleeper, TraceeError};
use crate::sys::{DevNum, Errno};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// How long the masters may take to answer what they were asked.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long new tasks may keep appearing, or sleep in something that cannot be interrupted.
const RESTLESS: Duration = Duration::from_secs(10);
/// How long CRIU may trace a task after it has failed.
const CRIU_ENDS: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(1);

/// The tasks go on, those that slept soon. Only after [`LullError::Refused`] none sleeps that CRIU might dump asleep.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LullError {
    /// The process apart could not be started, or has died.
    #[error("the process that holds the container's tasks failed: {0}")]
    Apart(#[from] Errno),
    /// The mounts could not be found.
    #[error(transparent)]
    Discover(#[from] DiscoverError),
    /// Tasks could not be held.
    #[error(transparent)]
    Hold(#[from] QuiesceError),
    /// The mounts could not be opened.
    #[error(transparent)]
    Open(#[from] AttachError),
    /// `/dev/autofs`.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// New tasks kept appearing, or one could not be stopped.
    #[error("a task of the container sleeps and cannot be stopped")]
    Restless,
    /// As the process apart says: nobody was put to sleep, and CRIU may try itself.
    #[error("{0}")]
    Refused(String),
    /// One that sleeps could not be woken.
    #[error(transparent)]
    Wake(#[from] TraceeError),
    /// Stopped by a test.
    #[error(transparent)]
    Fault(#[from] faults::Fault),
}

/// A container whose tasks sleep.
#[derive(Debug)]
pub struct Lull {
    sleepers: Vec<Sleeper>,
    warnings: Vec<String>,
}

/// What the process apart says.
#[derive(Serialize, Deserialize)]
enum Told {
    /// There is no autofs mount.
    NoMounts,
    /// They sleep, with warnings.
    Asleep(Vec<Sleeper>, Vec<String>),
    /// Why they do not.
    Refused(String),
}

/// What CRIU's process answers.
#[derive(Serialize, Deserialize)]
enum Woken {
    All,
    /// These.
    Only(Vec<i32>),
}

impl Lull {
    /// All tasks below `root` sleep, and no request is open; `None` where there is no autofs mount. To be called before
    /// anybody is stopped.
    pub fn begin(attendant: &Attendant, root: i32) -> Result<Option<Self>, LullError> {
        let lull = match attendant.lull(root)? {
            Told::NoMounts => return Ok(None),
            Told::Refused(why) => return Err(LullError::Refused(why)),
            Told::Asleep(sleepers, warnings) => Self { sleepers, warnings },
        };
        faults::point("container.asleep")?;
        Ok(Some(lull))
    }

    /// How many sleep.
    pub fn len(&self) -> usize {
        self.sleepers.len()
    }

    /// Does nobody sleep?
    pub fn is_empty(&self) -> bool {
        self.sleepers.is_empty()
    }

    /// What went wrong, though the dump can go on.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// In the process that traces all of them, stopped: each gets its own state back. Returns what failed.
    pub fn end(self, attendant: &Attendant) -> Vec<String> {
        let wake = |sleeper: &Sleeper| {
            Held::adopt(sleeper.tid).wake(sleeper)?;
            Ok(faults::point("container.waking")?)
        };
        let (woken, failed): (Vec<_>, Vec<_>) = self
            .sleepers
            .iter()
            .map(|sleeper| (sleeper.tid, wake(sleeper)))
            .partition(|(_, woken): &(i32, Result<(), LullError>)| woken.is_ok());
        let only = || Woken::Only(woken.iter().map(|(tid, _)| *tid).collect());
        // If it has died nobody needs to know.
        let _ = attendant.tell(&if failed.is_empty() { Woken::All } else { only() });
        failed.into_iter().filter_map(|(_, result)| result.err()).map(|error| error.to_string()).collect()
    }
}

/// In the process apart: hold the tasks below `root`, until CRIU has woken them. An error ends this process: they are awake, and the
/// kernel lets go of those that it could not let go itself.
pub fn serve(root: i32, socket: &OwnedFd) -> Result<(), Errno> {
    let tree = Tree::of(root);
    let tables = tree.own_mount_namespaces().into_iter().map(|member| mount_table(member.pid));
    let groups: HashSet<i32> = tables.flat_map(|table| owners(&table)).collect();
    if groups.is_empty() {
        return send_value(socket, &Told::NoMounts);
    }
    let mut settling = Settling::new(root, groups);
    if let Err(error) = settling.settle() {
        // Everybody is let go before CRIU tries itself.
        drop(settling);
        return send_value(socket, &Told::Refused(error.to_string())).and(Err(Errno::CANCELED));
    }
    let sleepers = settling.put_to_sleep();
    let told = send_value(socket, &Told::Asleep(sleepers.clone(), settling.warnings));
    let woken = told.and_then(|()| receive_value(socket));
    let left: Vec<_> = match &woken {
        Ok(Woken::All) => Vec::new(),
        Ok(Woken::Only(some)) => {
            sleepers.into_iter().filter(|sleeper| !some.contains(&sleeper.tid)).collect()
        }
        Err(_) => sleepers,
    };
    wake(left);
    woken.map(drop)
}

/// CRIU has not woken them, or not all: each is woken as soon as CRIU traces it no longer.
fn wake(mut sleepers: Vec<Sleeper>) {
    let deadline = Instant::now() + CRIU_ENDS;
    while !sleepers.is_empty() && Instant::now() < deadline {
        sleepers.retain(|sleeper| {
            let seized =
                Seized::new(sleeper.tid).and_then(|seized| seized.stop(RESTLESS).map_err(|(_, error)| error));
            match seized.and_then(|mut held| held.wake_if_asleep(sleeper).and_then(|()| held.release())) {
                Ok(()) | Err(TraceeError::Gone(_)) => false,
                Err(_) => true,
            }
        });
        std::thread::sleep(PAUSE);
    }
}

/// A process and a number there.
type Descriptor = (i32, i32);

struct Settling {
    root: i32,
    /// Owners of the mounts.
    groups: HashSet<i32>,
    /// Processes that are stopped last: masters, and helpers that one has started.
    masters: HashSet<i32>,
    /// Their tasks that were seen and are not seized.
    left: Vec<Task>,
    holding: Holding,
    known: HashSet<i32>,
    warnings: Vec<String>,
}

/// A task of a process, and its name.
type Task = (i32, i32, String);

impl Settling {
    fn new(root: i32, groups: HashSet<i32>) -> Self {
        Self {
            root,
            groups,
            masters: HashSet::new(),
            left: Vec::new(),
            holding: Holding::default(),
            known: HashSet::new(),
            warnings: Vec::new(),
        }
    }

    /// Hold everybody, at a moment at which nobody waits.
    fn settle(&mut self) -> Result<(), LullError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.seize_visitors()?;
            let late = Instant::now() > deadline;
            if !self.holding.waits() {
                self.seize_everybody()?;
                if !self.holding.waits() {
                    break;
                }
                if !late {
                    // A master waits itself, for an expiry: it must go on to answer.
                    self.release_masters();
                }
            } else if late {
                self.seize_everybody()?;
            }
            if late {
                self.end_requests()?;
                break;
            }
            std::thread::sleep(PAUSE);
        }
        let deadline = Instant::now() + RESTLESS;
        while self.holding.asleep() > 0 {
            if Instant::now() > deadline {
                return Err(LullError::Restless);
            }
            self.holding.settle()?;
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// And masters that wait. Others are remembered.
    fn seize_visitors(&mut self) -> Result<(), LullError> {
        self.left.clear();
        self.look(false)?;
        Ok(self.holding.settle()?)
    }

    /// The masters that are left, and whoever came meanwhile, until nobody does.
    fn seize_everybody(&mut self) -> Result<(), LullError> {
        let deadline = Instant::now() + RESTLESS;
        for task in std::mem::take(&mut self.left) {
            self.seize(task)?;
        }
        loop {
            self.holding.settle()?;
            let before = self.known.len();
            self.look(true)?;
            if self.known.len() == before {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(LullError::Restless);
            }
        }
    }

    /// Go through the tree, and seize who is not yet: of the masters only those who wait, unless it is `everybody`.
    fn look(&mut self, everybody: bool) -> Result<(), LullError> {
        let mut next = vec![(self.root, false)];
        while let Some((pid, helps)) = next.pop() {
            let Ok(process) = TaskDir::process(pid) else { continue };
            let owns = process.stat().is_some_and(|stat| self.groups.contains(&stat.pgrp));
            let works = owns || helps;
            if works {
                self.masters.insert(pid);
            }
            for task in process.tasks().into_iter().flatten() {
                // All processes descend from the first: were it a master, nobody would be a visitor.
                let helps = works && pid != self.root;
                next.extend(tree::children_of(&task).into_iter().map(|child| (child, helps)));
                if self.known.contains(&task.id) {
                    continue;
                }
                let Some(stat) = task.stat().filter(|stat| !matches!(stat.state, b'Z' | b'X')) else {
                    continue;
                };
                let found = (pid, task.id, String::from_utf8_lossy(&stat.name).into_owned());
                let waits = || stat.state == b'D' && waits_in_autofs(&task) == Some(true);
                match everybody || !works || waits() {
                    true => self.seize(found)?,
                    false => self.left.push(found),
                }
            }
        }
        Ok(())
    }

    fn seize(&mut self, (pid, tid, name): Task) -> Result<(), LullError> {
        self.holding.seize_task(pid, tid, name)?;
        self.known.insert(tid);
        Ok(())
    }

    fn release_masters(&mut self) {
        for held in self.holding.take(|pid| self.masters.contains(&pid)) {
            self.known.remove(&held.tid());
            self.let_go(held);
        }
    }

    fn let_go(&mut self, held: Held) {
        match held.release() {
            Ok(()) | Err(TraceeError::Gone(_)) => {}
            Err(error) => self.warnings.push(error.to_string()),
        }
    }

    /// A master does not answer: its mounts are catatonic until it has them back, and the waiters ask again.
    fn end_requests(&mut self) -> Result<(), LullError> {
        let control = Control::open()?;
        let mut seen = HashSet::new();
        let mut by_reader: BTreeMap<(i32, Descriptor), Vec<(DevNum, MountFd)>> = BTreeMap::new();
        let tree = Tree::of(self.root);
        for member in tree.mount_namespaces() {
            let space = Target::Process(member.pid);
            let mut mounts = survey(&space)?.mounts;
            mounts.retain(|mount| !mount.catatonic && seen.insert(mount.dev));
            // The pipe is the one to a relay, if there is one, and the reader the master behind it.
            let ends: Vec<_> = mounts.iter().map(|mount| mount.pipe_ends.iter().find(is_read)).collect();
            let pipes: Vec<_> = ends.iter().map(|end| end.map(|end| (end.process.pid, end.fd))).collect();
            relay::look_behind(&tree, &mut mounts);
            let mut others = Vec::new();
            for (mount, pipe) in mounts.into_iter().zip(pipes) {
                let (Some(pid), Some(pipe)) = (reader(&mount), pipe) else { continue };
                let Some(held) = self.holding.stopped(pid) else { continue };
                // A walk into a mount with an open request waits for its answer, but not its owner's.
                match Owner::new(held, &control).and_then(|owner| owner.open(pid, &mount)) {
                    Ok(Some(root)) => by_reader.entry((pid, pipe)).or_default().push((mount.dev, root)),
                    _ => others.push(((pid, pipe), attach::Target { path: mount.path, dev: mount.dev })),
                }
            }
            let (readers, targets): (Vec<_>, Vec<_>) = others.into_iter().unzip();
            let roots = attach::open_roots(&space, &targets)?;
            for ((reader, target), root) in readers.into_iter().zip(targets).zip(roots) {
                by_reader.entry(reader).or_default().push((target.dev, root));
            }
        }
        self.holding.complete();
        let mut taken = Vec::new();
        for ((pid, (holder, fd)), mounts) in by_reader {
            // Whatever would keep a mount from coming back is looked at before it is taken away.
            let Ok(pipe) = reopen_write_end(holder, fd) else { continue };
            mounts.iter().try_for_each(|(_, root)| control.make_catatonic(root.as_fd()))?;
            taken.push((pid, pipe, mounts));
        }
        self.holding.restart()?;
        for (pid, pipe, mounts) in taken {
            let (devs, roots): (Vec<_>, Vec<_>) = mounts.into_iter().unzip();
            let results = match self.holding.stopped(pid) {
                Some(held) => {
                    Owner::new(held, &control).and_then(|owner| owner.set_pipe(&roots, pipe.as_fd()))
                }
                None => Err(TraceeError::Gone(pid)),
            };
            let lost = |dev, why: String| format!("mount {dev} is catatonic now: {why}");
            match results {
                Ok(results) => {
                    let failed =
                        devs.into_iter().zip(results).filter_map(|(dev, result)| Some((dev, result.err()?)));
                    self.warnings.extend(failed.map(|(dev, error)| lost(dev, error.to_string())));
                }
                Err(error) => self.warnings.extend(devs.into_iter().map(|dev| lost(dev, error.to_string()))),
            }
        }
        Ok(())
    }

    /// Everybody but those whom their user has stopped, and those who may make fewer calls than the container's first
    /// process: such a filter might end them.
    fn put_to_sleep(&mut self) -> Vec<Sleeper> {
        let allowed = filters(self.root);
        let mut sleepers = Vec::new();
        for held in self.holding.take(|_| true) {
            if held.is_stopped() || filters(held.tid()) > allowed {
                self.let_go(held);
                continue;
            }
            match held.put_to_sleep() {
                Ok(sleeper) => sleepers.push(sleeper),
                Err(TraceeError::Gone(_)) => {}
                Err(error) => self.warnings.push(error.to_string()),
            }
        }
        sleepers
    }
}

/// Who of the owner group reads the pipe.
fn reader(mount: &AutofsMount) -> Option<i32> {
    let group = |pid| Some(TaskDir::process(pid).ok()?.stat()?.pgrp);
    let mut readers = mount.pipe_ends.iter().filter(is_read).map(|end| end.process.pid);
    readers.find(|pid| group(*pid) == Some(mount.options.pgrp))
}

fn is_read(end: &&PipeEnd) -> bool {
    end.end == End::Read
}

fn mount_table(pid: i32) -> Vec<u8> {
    TaskDir::process(pid).and_then(|dir| dir.read("mountinfo")).unwrap_or_default()
}

/// Owner groups of the autofs mounts; none where there is no mount.
fn owners(mount_table: &[u8]) -> Vec<i32> {
    let entries = mountinfo::parse(mount_table).unwrap_or_default();
    let autofs = entries.iter().filter(|entry| entry.fstype == b"autofs");
    autofs.map(|entry| AutofsOptions::parse(entry.super_options).pgrp).collect()
}

/// How many filters of system calls a task has.
fn filters(tid: i32) -> u64 {
    let status = TaskDir::process(tid).and_then(|dir| dir.read("status")).unwrap_or_default();
    let text = String::from_utf8_lossy(&status);
    let field = |name| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
    field("Seccomp_filters:").or_else(|| field("Seccomp:")).unwrap_or(0)
}
