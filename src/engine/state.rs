//! The engine's mind: events in, actions out, nothing else. It never blocks and never touches the
//! system, so that every order of events can be tried (`tests` below, against the simulated kernel).
//!
//! A *slot* is one trigger: a key of an indirect mount, or the root of a direct or offset one. The
//! rules that keep every request answered exactly once:
//! - one job at a time on a slot; it answers the request that started it;
//! - requests that come meanwhile are kept with the slot, and answered or started when the job ends;
//! - a job that takes too long is given up: everything kept is answered, and the slot answers at once
//!   until the job ends after all;
//! - a packet of an unknown mount waits until the jobs that may have made the mount have reported.
//!
//! What the machine believes may be stale (mounts can be made and removed by others), so jobs on a slot
//! that is believed to be mounted ask the kernel first.

use super::served::Served;
use super::task::*;
use crate::sys::control::Token;
use crate::sys::packet::{Kind, Packet};
use crate::sys::{DevNum, Errno};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Names an autofs mount of the engine; never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MountId(u32);
/// Names a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(u64);
/// Names a served map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId(u32);

/// Something happened.
#[derive(Debug)]
pub enum Event {
    /// The kernel asks.
    Packet(Packet),
    /// A job ended.
    Done(JobId, Outcome),
    /// A run over the idle mounts of a map ended.
    ExpireEnded(GroupId),
    /// Time went by ([`State::deadline`]).
    Timer,
    /// Read the maps again.
    Reload,
    /// Unmount what is idle, whatever its timeout.
    ExpireNow,
    /// Unmount what is idle, leave what is busy, and end. A second one does not wait for the idle.
    Stop,
}

/// Something to do, in this order.
#[derive(Debug)]
pub enum Action {
    /// Start a job.
    Run(JobId, Task),
    /// Answer the request of a running job in its place.
    GiveUp(JobId),
    /// Answer a request.
    Answer(Arc<Place>, Token, Result<(), Errno>),
    /// Answer a request of a mount that nobody knows: find it by its number.
    Orphan(DevNum, Token, Errno),
    /// Start a run over idle mounts.
    Expire(GroupId, ExpireRun),
    /// End.
    Exit,
}

/// Bounds that the machine keeps.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// A lookup is answered within this time.
    pub mount: Duration,
    /// An expire request is answered within this time.
    pub unmount: Duration,
    /// Tearing down ends within this time.
    pub tear_down: Duration,
    /// Failed lookups remembered per mount.
    pub failures: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            mount: Duration::from_secs(60),
            unmount: Duration::from_secs(12),
            tear_down: Duration::from_secs(10),
            failures: 4096,
        }
    }
}

/// The machine.
#[derive(Debug)]
pub struct State {
    limits: Limits,
    phase: Phase,
    mounts: HashMap<MountId, Mount>,
    by_dev: HashMap<DevNum, MountId>,
    groups: BTreeMap<GroupId, Group>,
    jobs: HashMap<JobId, Job>,
    alarms: BTreeMap<(Instant, u64), Alarm>,
    /// Something was unmounted since the last round of the stop.
    progress: bool,
    /// Packets of mounts that no job has reported yet, and when they are given up.
    early: Vec<(Instant, Packet)>,
    next: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
enum Phase {
    Serving,
    Expiring,
    TearingDown,
    Ended,
}

#[derive(Debug)]
struct Mount {
    place: Arc<Place>,
    served: Arc<Served>,
    group: GroupId,
    offset: Option<Arc<Offset>>,
    /// The slot that it depends on.
    parent: Option<(MountId, Key)>,
    depth: usize,
    /// The map has no such key any more: to be removed when it is idle.
    retired: bool,
    slots: HashMap<Key, Slot>,
    /// Slots that are not [`Slot::Failed`].
    held: usize,
}

#[derive(Debug)]
enum Slot {
    Busy { job: JobId, kept: Vec<Asker>, children: Vec<MountId> },
    Mounted { children: Vec<MountId> },
    Failed { errno: Errno, until: Instant },
}

#[derive(Debug)]
struct Group {
    served: Arc<Served>,
    /// Mounts with held slots.
    active: BTreeSet<MountId>,
    /// A run is under way; `Some(true)`: an immediate one must follow.
    run: Option<bool>,
    armed: bool,
    /// The map is being read, or its triggers follow it; `Some(true)`: it must be read once more.
    reading: Option<bool>,
    /// A submount: removed when nothing is mounted in it.
    submount: Option<MountId>,
}

#[derive(Debug)]
struct Job {
    work: Work,
    alarm: (Instant, u64),
    /// It took too long; its requests are answered.
    late: bool,
}

#[derive(Clone, Debug)]
enum Work {
    Slot(MountId, Key),
    Read(GroupId),
    /// With `true` the second half of a reading.
    Sync(GroupId, bool),
    TearDown,
}

#[derive(Clone, Copy, Debug)]
enum Alarm {
    Job(JobId),
    Check(GroupId),
    Early,
}

/// Actions of one step.
type Out = Vec<Action>;

impl State {
    /// A machine that serves nothing yet.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            phase: Phase::Serving,
            mounts: HashMap::new(),
            by_dev: HashMap::new(),
            groups: BTreeMap::new(),
            jobs: HashMap::new(),
            alarms: BTreeMap::new(),
            progress: false,
            early: Vec::new(),
            next: 0,
        }
    }

    /// When [`Event::Timer`] is due.
    pub fn deadline(&self) -> Option<Instant> {
        self.alarms.first_key_value().map(|(&(at, _), _)| at)
    }

    /// Serve one more map.
    pub fn add_group(&mut self, served: Arc<Served>) -> GroupId {
        let id = GroupId(self.number() as u32);
        let group =
            Group { served, active: BTreeSet::new(), run: None, armed: false, reading: None, submount: None };
        self.groups.insert(id, group);
        id
    }

    /// One more autofs mount of a map; `None` when the map is not served.
    pub fn add_mount(&mut self, group: GroupId, place: Arc<Place>) -> Option<MountId> {
        self.insert(group, place, None, None, 0, &mut Vec::new())
    }

    /// A key that was found mounted, with the autofs mounts below it (parents before children).
    pub fn add_mounted(&mut self, mount: MountId, key: Key, below: Vec<Child>, now: Instant) {
        self.set_slot(mount, &key, Some(Slot::Mounted { children: Vec::new() }), now);
        self.reconcile(mount, &key, below, true, now, &mut Vec::new());
    }

    /// The mount with a number.
    pub fn find(&self, dev: DevNum) -> Option<MountId> {
        self.by_dev.get(&dev).copied()
    }

    /// The number of autofs mounts.
    pub fn mounts(&self) -> usize {
        self.mounts.len()
    }

    /// Take an event; append what is to be done to `out`.
    pub fn step(&mut self, event: Event, now: Instant, out: &mut Out) {
        match event {
            Event::Packet(packet) => self.packet(packet, None, now, out),
            Event::Done(job, outcome) => self.done(job, outcome, now, out),
            Event::ExpireEnded(group) => self.expire_ended(group, now, out),
            Event::Timer => self.timer(now, out),
            Event::Reload => self.reload(now, out),
            Event::ExpireNow => self.expire_all(out),
            Event::Stop => self.stop(now, out),
        }
        self.tear_down_when_quiet(now, out);
    }

    // Requests

    /// `until`: set for a packet that has waited already.
    fn packet(&mut self, packet: Packet, until: Option<Instant>, now: Instant, out: &mut Out) {
        let missing = matches!(packet.kind, Kind::MissingIndirect | Kind::MissingDirect);
        let id = match self.asks(&packet) {
            Some(id) if missing => match self.busy_above(id) {
                // the job may take this mount away
                Some(job) if self.phase < Phase::TearingDown && !self.is_late(job) => {
                    return self.wait(packet, until, now);
                }
                _ => id,
            },
            Some(id) => id,
            None if self.making() => return self.wait(packet, until, now),
            None => return out.push(Action::Orphan(packet.dev, packet.token, Errno::NOENT)),
        };
        let key = match packet.kind {
            Kind::MissingIndirect | Kind::ExpireIndirect => packet.name,
            // the name of a direct request is an address
            Kind::MissingDirect | Kind::ExpireDirect => Key::new(),
        };
        if missing {
            let who = super::maps::Credentials { uid: packet.uid, gid: packet.gid };
            self.missing(id, key, Asker { token: packet.token, who }, now, out);
        } else {
            self.idle(id, key, Some(packet.token), now, out);
        }
    }

    /// The mount that a packet comes from. One with the same number and another root is gone, though the job that
    /// unmounted it has not reported yet.
    fn asks(&self, packet: &Packet) -> Option<MountId> {
        let id = self.find(packet.dev)?;
        let ino = self.mounts.get(&id)?.place.ino;
        ino.is_none_or(|ino| ino == packet.ino).then_some(id)
    }

    /// Until a job ends.
    fn wait(&mut self, packet: Packet, until: Option<Instant>, now: Instant) {
        let until = until.unwrap_or_else(|| {
            let until = now + self.limits.mount;
            self.alarm(until, Alarm::Early);
            until
        });
        self.early.push((until, packet));
    }

    /// The job on a slot that a mount depends on, directly or not.
    fn busy_above(&self, id: MountId) -> Option<JobId> {
        let mut at = self.mounts.get(&id)?;
        while let Some((parent, key)) = &at.parent {
            at = self.mounts.get(parent)?;
            if let Some(Slot::Busy { job, .. }) = at.slots.get(key) {
                return Some(*job);
            }
        }
        None
    }

    fn is_late(&self, job: JobId) -> bool {
        self.jobs.get(&job).is_some_and(|job| job.late)
    }

    /// May a mount exist that its job has not reported yet?
    fn making(&self) -> bool {
        let makes = |job: &Job| matches!(job.work, Work::Slot(..) | Work::Sync(..));
        self.phase < Phase::TearingDown && self.jobs.values().any(makes)
    }

    fn missing(&mut self, id: MountId, key: Key, asker: Asker, now: Instant, out: &mut Out) {
        // a job above is late, or there is none
        let above = self.busy_above(id).is_some();
        let Some(mount) = self.mounts.get_mut(&id) else { return };
        let refusal = match mount.slots.get_mut(&key) {
            _ if above => Some(Errno::TIMEDOUT),
            Some(Slot::Busy { job, .. }) if is_late(&self.jobs, *job) => Some(Errno::TIMEDOUT),
            Some(Slot::Busy { kept, .. }) => {
                kept.push(asker);
                return;
            }
            Some(Slot::Failed { errno, until }) if now < *until => Some(*errno),
            _ => None,
        };
        match refusal {
            Some(errno) => out.push(Action::Answer(mount.place.clone(), asker.token, Err(errno))),
            None => self.mount(id, key, vec![asker], now, out),
        }
    }

    /// Start a job that answers the first of `askers`; the others are kept.
    fn mount(&mut self, id: MountId, key: Key, mut askers: Vec<Asker>, now: Instant, out: &mut Out) {
        let Some(mount) = self.mounts.get(&id) else { return };
        if self.phase != Phase::Serving {
            return refuse(&mount.place, askers, Errno::HOSTDOWN, out);
        }
        let (check, children) = match mount.slots.get(&key) {
            Some(Slot::Mounted { children }) => (true, children.clone()),
            _ => (false, Vec::new()),
        };
        let task = MountTask {
            place: mount.place.clone(),
            key: key.clone(),
            served: mount.served.clone(),
            offset: mount.offset.clone(),
            asker: askers.remove(0),
            check,
            known: children.iter().filter_map(|child| self.as_child(*child)).collect(),
        };
        let limit = self.limits.mount;
        self.start(id, key, Task::Mount(task), (askers, children), limit, now, out);
    }

    /// The kernel says that a slot is idle (or a submount has nothing mounted): unmount it.
    fn idle(&mut self, id: MountId, key: Key, token: Option<Token>, now: Instant, out: &mut Out) {
        let Some(mount) = self.mounts.get(&id) else { return };
        let children = match mount.slots.get(&key) {
            Some(Slot::Busy { .. }) => None,
            Some(Slot::Mounted { children }) => Some(children.clone()),
            Some(Slot::Failed { .. }) | None => Some(Vec::new()),
        };
        // a job that the kernel does not see (its visitor has gone, it has not begun) is a use as well
        let free = |children: &Vec<_>| {
            self.phase < Phase::TearingDown && self.busy_above(id).is_none() && !self.busy_below(children)
        };
        let Some(children) = children.filter(free) else {
            out.extend(token.map(|token| Action::Answer(mount.place.clone(), token, Err(Errno::BUSY))));
            return;
        };
        let task = UnmountTask {
            place: mount.place.clone(),
            key: key.clone(),
            served: mount.served.clone(),
            token,
            below: self.descendants(&children),
        };
        let limit = self.limits.unmount;
        self.start(id, key, Task::Unmount(task), (Vec::new(), children), limit, now, out);
    }

    #[allow(clippy::too_many_arguments)] // the one place where a slot becomes busy
    fn start(
        &mut self,
        id: MountId,
        key: Key,
        task: Task,
        (kept, children): (Vec<Asker>, Vec<MountId>),
        limit: Duration,
        now: Instant,
        out: &mut Out,
    ) {
        let job = self.run(Work::Slot(id, key.clone()), task, limit, now, out);
        let slot = Slot::Busy { job, kept, children };
        self.set_slot(id, &key, Some(slot), now);
    }

    // Jobs

    fn run(&mut self, work: Work, task: Task, limit: Duration, now: Instant, out: &mut Out) -> JobId {
        let job = JobId(self.number());
        let alarm = self.alarm(now + limit, Alarm::Job(job));
        self.jobs.insert(job, Job { work, alarm, late: false });
        out.push(Action::Run(job, task));
        job
    }

    fn done(&mut self, job: JobId, outcome: Outcome, now: Instant, out: &mut Out) {
        let Some(Job { work, alarm, .. }) = self.jobs.remove(&job) else { return };
        self.alarms.remove(&alarm);
        match (work, outcome) {
            (Work::Slot(id, key), Outcome::Mounted { result, children }) => {
                self.mounted(job, id, key, result, children, now, out);
            }
            (Work::Slot(id, key), Outcome::Unmounted { result, below }) => {
                self.unmounted(job, id, key, result, below, now, out);
            }
            (Work::Read(group), Outcome::Reread(wanted)) => self.reread(group, wanted, now, out),
            (Work::Sync(group, reading), Outcome::Synced { removed, made }) => {
                self.synced(group, removed, made, now, out);
                if reading {
                    self.read_ended(group, now, out);
                }
            }
            (Work::TearDown, _) => self.end(out),
            // a worker reports the outcome of its own task, so this does not happen; nothing waits on it
            (Work::Slot(..) | Work::Read(_) | Work::Sync(..), _) => {}
        }
        for (until, packet) in std::mem::take(&mut self.early) {
            self.packet(packet, Some(until), now, out);
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn mounted(
        &mut self,
        job: JobId,
        id: MountId,
        key: Key,
        result: Result<(), Errno>,
        children: Vec<Child>,
        now: Instant,
        out: &mut Out,
    ) {
        let Some((place, kept)) = self.take_kept(job, id, &key) else { return };
        self.reconcile(id, &key, children, false, now, out);
        out.extend(kept.iter().map(|asker| Action::Answer(place.clone(), asker.token, result)));
        let children = self.children(id, &key);
        let slot = match result {
            Err(errno) if children.is_empty() => self.failed(id, errno, now),
            // what could not be cleaned up expires later
            _ => Some(Slot::Mounted { children }),
        };
        self.set_slot(id, &key, slot, now);
        self.remove_if_retired(id, now, out);
    }

    #[allow(clippy::too_many_arguments)]
    fn unmounted(
        &mut self,
        job: JobId,
        id: MountId,
        key: Key,
        result: Result<(), Errno>,
        below: Vec<Child>,
        now: Instant,
        out: &mut Out,
    ) {
        let Some((_, kept)) = self.take_kept(job, id, &key) else { return };
        self.reconcile(id, &key, below, true, now, out);
        let children = self.children(id, &key);
        let gone = result.is_ok() && children.is_empty();
        self.progress |= gone;
        let slot = (!gone).then_some(Slot::Mounted { children });
        self.set_slot(id, &key, slot, now);
        if kept.is_empty() {
            self.remove_if_retired(id, now, out);
        } else {
            self.mount(id, key, kept, now, out);
        }
    }

    /// The job on a slot ended: who else asked meanwhile. `None` when the slot is not that job's any more.
    fn take_kept(&mut self, job: JobId, id: MountId, key: &[u8]) -> Option<(Arc<Place>, Vec<Asker>)> {
        let mount = self.mounts.get_mut(&id)?;
        match mount.slots.get_mut(key) {
            Some(Slot::Busy { job: running, kept, .. }) if *running == job => {
                Some((mount.place.clone(), std::mem::take(kept)))
            }
            _ => None,
        }
    }

    /// What a failed lookup leaves behind: a memory of it, unless memory is off or full.
    fn failed(&mut self, id: MountId, errno: Errno, now: Instant) -> Option<Slot> {
        let mount = self.mounts.get_mut(&id)?;
        let memory = mount.served.options.negative_timeout;
        if memory.is_zero() {
            return None;
        }
        if mount.slots.len() - mount.held >= self.limits.failures {
            mount.slots.retain(|_, slot| !matches!(slot, Slot::Failed { .. }));
        }
        Some(Slot::Failed { errno, until: now + memory })
    }

    // Mounts and slots

    fn insert(
        &mut self,
        group: GroupId,
        place: Arc<Place>,
        offset: Option<Arc<Offset>>,
        parent: Option<(MountId, Key)>,
        depth: usize,
        out: &mut Out,
    ) -> Option<MountId> {
        let served = self.groups.get(&group)?.served.clone();
        if let Some(old) = self.find(place.dev) {
            // its number was used again: it is gone
            self.forget(old, out);
        }
        let id = MountId(self.number() as u32);
        self.by_dev.insert(place.dev, id);
        let mount = Mount {
            place,
            served,
            group,
            offset,
            parent,
            depth,
            retired: false,
            slots: HashMap::new(),
            held: 0,
        };
        self.mounts.insert(id, mount);
        Some(id)
    }

    fn set_slot(&mut self, id: MountId, key: &[u8], slot: Option<Slot>, now: Instant) {
        let Some(mount) = self.mounts.get_mut(&id) else { return };
        let holds = |slot: &Option<Slot>| !matches!(slot, None | Some(Slot::Failed { .. }));
        let after = holds(&slot);
        let before = match slot {
            Some(slot) => mount.slots.insert(key.to_vec(), slot),
            None => mount.slots.remove(key),
        };
        mount.held = mount.held + usize::from(after) - usize::from(holds(&before));
        let Some(group) = self.groups.get_mut(&mount.group) else { return };
        if mount.held > 0 {
            group.active.insert(id);
        } else {
            group.active.remove(&id);
        }
        let group = mount.group;
        self.arm(group, now);
    }

    fn children(&self, id: MountId, key: &[u8]) -> Vec<MountId> {
        match self.mounts.get(&id).and_then(|mount| mount.slots.get(key)) {
            Some(Slot::Busy { children, .. } | Slot::Mounted { children }) => children.clone(),
            _ => Vec::new(),
        }
    }

    fn as_child(&self, id: MountId) -> Option<Child> {
        let mount = self.mounts.get(&id)?;
        let (parent, _) = mount.parent.as_ref()?;
        let duty = match &mount.offset {
            Some(offset) => Duty::Offset(offset.clone()),
            None => Duty::Map(mount.served.clone()),
        };
        Some(Child { place: mount.place.clone(), under: self.mounts.get(parent)?.place.dev, duty })
    }

    /// All autofs mounts that depend on `children`, and these, parents before children.
    fn descendants(&self, children: &[MountId]) -> Vec<Child> {
        let mut ids = children.to_vec();
        let mut all = Vec::new();
        let mut at = 0;
        while let Some(&id) = ids.get(at) {
            at += 1;
            all.extend(self.as_child(id));
            let slots = self.mounts.get(&id).into_iter().flat_map(|mount| mount.slots.values());
            for slot in slots {
                if let Slot::Busy { children, .. } | Slot::Mounted { children } = slot {
                    ids.extend(children);
                }
            }
        }
        all
    }

    /// Is there a job on `mounts` or on anything that depends on them?
    fn busy_below(&self, mounts: &[MountId]) -> bool {
        let mounts = mounts.iter().filter_map(|id| self.mounts.get(id));
        mounts.flat_map(|mount| mount.slots.values()).any(|slot| match slot {
            Slot::Busy { .. } => true,
            Slot::Mounted { children } => self.busy_below(children),
            Slot::Failed { .. } => false,
        })
    }

    /// Below a slot exist exactly `below` (parents before children): keep, add, forget. Not `deep`: only those
    /// directly below are listed, and what depends on them is as it was.
    fn reconcile(
        &mut self,
        id: MountId,
        key: &[u8],
        below: Vec<Child>,
        deep: bool,
        now: Instant,
        out: &mut Out,
    ) {
        let Some(top) = self.mounts.get(&id) else { return };
        let top_dev = top.place.dev;
        let listed: Vec<DevNum> = below.iter().map(|child| child.place.dev).collect();
        for old in self.children(id, key) {
            self.forget_unless(old, &listed, deep, out);
        }
        for child in below {
            let (owner, slot) = if child.under == top_dev {
                (id, key.to_vec())
            } else {
                match self.by_dev.get(&child.under) {
                    Some(&owner) => (owner, Key::new()),
                    None => continue,
                }
            };
            self.adopt(owner, slot, child, now, out);
        }
    }

    fn adopt(&mut self, owner: MountId, key: Key, child: Child, now: Instant, out: &mut Out) {
        if let Some(&known) = self.by_dev.get(&child.place.dev) {
            let same = self.mounts.get(&known).is_some_and(|mount| mount.place == child.place);
            if same {
                return;
            }
        }
        let Some(mount) = self.mounts.get(&owner) else { return };
        let (group, depth) = (mount.group, mount.depth + 1);
        let parent = Some((owner, key.clone()));
        let id = match child.duty {
            Duty::Offset(offset) => self.insert(group, child.place, Some(offset), parent, depth, out),
            Duty::Map(served) => {
                let group = self.add_group(served);
                let id = self.insert(group, child.place, None, parent, depth, out);
                if let Some(group) = self.groups.get_mut(&group) {
                    group.submount = id;
                }
                self.arm(group, now);
                id
            }
        };
        let Some(id) = id else { return };
        let slots = self.mounts.get_mut(&owner).map(|mount| &mut mount.slots);
        match slots.and_then(|slots| slots.get_mut(&key)) {
            Some(Slot::Busy { children, .. } | Slot::Mounted { children }) => children.push(id),
            _ => {
                let children = vec![id];
                self.set_slot(owner, &key, Some(Slot::Mounted { children }), now);
            }
        }
    }

    /// Forget what does not exist any more of a mount and its descendants.
    fn forget_unless(&mut self, id: MountId, listed: &[DevNum], deep: bool, out: &mut Out) {
        let Some(mount) = self.mounts.get(&id) else { return };
        if !listed.contains(&mount.place.dev) {
            return self.forget(id, out);
        }
        let keys: Vec<Key> = if deep { mount.slots.keys().cloned().collect() } else { Vec::new() };
        for key in keys {
            for child in self.children(id, &key) {
                self.forget_unless(child, listed, deep, out);
            }
        }
    }

    /// A mount does not exist any more, nor does what depends on it.
    fn forget(&mut self, id: MountId, out: &mut Out) {
        let Some(mount) = self.mounts.remove(&id) else { return };
        if self.by_dev.get(&mount.place.dev) == Some(&id) {
            self.by_dev.remove(&mount.place.dev);
        }
        for (_, slot) in mount.slots {
            let children = match slot {
                Slot::Busy { kept, children, .. } => {
                    refuse(&mount.place, kept, Errno::NOENT, out);
                    children
                }
                Slot::Mounted { children } => children,
                Slot::Failed { .. } => continue,
            };
            for child in children {
                self.forget(child, out);
            }
        }
        if let Some((parent, key)) = &mount.parent
            && let Some(parent) = self.mounts.get_mut(parent)
            && let Some(Slot::Busy { children, .. } | Slot::Mounted { children }) = parent.slots.get_mut(key)
        {
            children.retain(|child| *child != id);
        }
        if let Some(group) = self.groups.get_mut(&mount.group) {
            group.active.remove(&id);
            if group.submount == Some(id) {
                self.groups.remove(&mount.group);
            }
        }
    }

    // Expiry

    fn arm(&mut self, id: GroupId, now: Instant) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let Some(every) = group.served.options.check_every() else { return };
        let needed = !group.active.is_empty() || group.submount.is_some();
        if needed && !group.armed && group.run.is_none() && self.phase == Phase::Serving {
            group.armed = true;
            self.alarm(now + every, Alarm::Check(id));
        }
    }

    fn expire(&mut self, id: GroupId, immediate: bool, out: &mut Out) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        if let Some(again) = &mut group.run {
            *again |= immediate;
            return;
        }
        if group.active.is_empty() && group.submount.is_none() {
            return;
        }
        group.run = Some(false);
        let mut levels: BTreeMap<_, Vec<Arc<Place>>> = BTreeMap::new();
        for mount in group.active.iter().filter_map(|id| self.mounts.get(id)) {
            let level = levels.entry(std::cmp::Reverse(mount.depth)).or_default();
            level.push(mount.place.clone());
        }
        let run = ExpireRun { immediate, levels: levels.into_values().collect() };
        out.push(Action::Expire(id, run));
    }

    fn expire_ended(&mut self, id: GroupId, now: Instant, out: &mut Out) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let again = group.run.take();
        if again == Some(true) {
            return self.expire(id, true, out);
        }
        // Whether something is mounted in a submount the kernel knows best: if so, it is busy.
        if let Some(mount) = group.submount
            && let Some((parent, key)) = self.mounts.get(&mount).and_then(|mount| mount.parent.clone())
        {
            self.idle(parent, key, None, now, out);
        }
        self.arm(id, now);
    }

    // Time

    fn alarm(&mut self, at: Instant, alarm: Alarm) -> (Instant, u64) {
        let key = (at, self.number());
        self.alarms.insert(key, alarm);
        key
    }

    fn timer(&mut self, now: Instant, out: &mut Out) {
        while let Some(entry) = self.alarms.first_entry()
            && entry.key().0 <= now
        {
            match entry.remove() {
                Alarm::Job(job) => self.late(job, out),
                Alarm::Check(group) => {
                    if let Some(group) = self.groups.get_mut(&group) {
                        group.armed = false;
                    }
                    self.expire(group, false, out);
                }
                Alarm::Early => {
                    for (_, packet) in self.early.extract_if(.., |(until, _)| *until <= now) {
                        out.push(Action::Orphan(packet.dev, packet.token, Errno::NOENT));
                    }
                }
            }
        }
    }

    /// A job takes too long: answer for it.
    fn late(&mut self, id: JobId, out: &mut Out) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.late = true;
        match job.work.clone() {
            Work::Slot(mount, key) => {
                out.push(Action::GiveUp(id));
                let Some(mount) = self.mounts.get_mut(&mount) else { return };
                if let Some(Slot::Busy { job, kept, .. }) = mount.slots.get_mut(&key)
                    && *job == id
                {
                    let kept = std::mem::take(kept);
                    refuse(&mount.place, kept, Errno::TIMEDOUT, out);
                }
            }
            // nobody waits for these
            Work::Read(_) | Work::Sync(..) => {}
            Work::TearDown => self.end(out),
        }
    }

    // Maps

    fn reload(&mut self, now: Instant, out: &mut Out) {
        for id in self.groups.keys().copied().collect::<Vec<_>>() {
            self.read(id, now, out);
        }
    }

    fn read(&mut self, id: GroupId, now: Instant, out: &mut Out) {
        let Some(group) = self.groups.get_mut(&id).filter(|_| self.phase == Phase::Serving) else { return };
        if let Some(again) = &mut group.reading {
            *again = true;
            return;
        }
        group.reading = Some(false);
        let served = group.served.clone();
        let root = served.point.as_ref().and_then(|point| {
            let mut mounts = self.mounts.values();
            mounts.find(|mount| mount.group == id && mount.place.path == *point)
        });
        let task = Task::Reread(served, root.map(|mount| mount.place.clone()));
        self.run(Work::Read(id), task, self.limits.mount, now, out);
    }

    fn reread(&mut self, id: GroupId, wanted: Option<Vec<std::path::PathBuf>>, now: Instant, out: &mut Out) {
        let Some(group) = self.groups.get(&id) else { return };
        let served = group.served.clone();
        for mount in self.mounts.values_mut().filter(|mount| mount.group == id) {
            mount.slots.retain(|_, slot| !matches!(slot, Slot::Failed { .. }));
        }
        let Some(wanted) = wanted else { return self.read_ended(id, now, out) };
        let wanted: std::collections::HashSet<_> = wanted.into_iter().collect();
        let mut have = std::collections::HashSet::new();
        let mut remove = Vec::new();
        let tops = self.mounts.values_mut();
        for mount in tops.filter(|mount| mount.group == id && mount.parent.is_none()) {
            mount.retired = !wanted.contains(&mount.place.path);
            have.insert(mount.place.path.clone());
            if mount.retired && mount.held == 0 {
                remove.push(mount.place.clone());
            }
        }
        let make: Vec<_> = wanted.into_iter().filter(|path| !have.contains(path)).collect();
        if remove.is_empty() && make.is_empty() {
            self.read_ended(id, now, out);
        } else {
            let task = SyncTask { served, remove, make };
            self.run(Work::Sync(id, true), Task::Sync(task), self.limits.mount, now, out);
        }
    }

    fn read_ended(&mut self, id: GroupId, now: Instant, out: &mut Out) {
        let again = self.groups.get_mut(&id).and_then(|group| group.reading.take());
        if again == Some(true) {
            self.read(id, now, out);
        }
    }

    fn synced(
        &mut self,
        id: GroupId,
        removed: Vec<Arc<Place>>,
        made: Vec<Arc<Place>>,
        now: Instant,
        out: &mut Out,
    ) {
        let mut back = Vec::new();
        for place in removed {
            // the number may have been used again
            let known =
                self.find(place.dev).filter(|id| self.mounts.get(id).is_some_and(|m| m.place == place));
            let Some(mount) = known else { continue };
            if self.mounts.get(&mount).is_some_and(|mount| !mount.retired) {
                // wanted again since the job began
                back.push(place.path.clone());
            }
            self.forget(mount, out);
        }
        for place in made {
            self.insert(id, place, None, None, 0, out);
        }
        if let Some(group) = self.groups.get(&id)
            && !back.is_empty()
            && self.phase == Phase::Serving
        {
            let task = SyncTask { served: group.served.clone(), remove: Vec::new(), make: back };
            self.run(Work::Sync(id, false), Task::Sync(task), self.limits.mount, now, out);
        }
    }

    fn remove_if_retired(&mut self, id: MountId, now: Instant, out: &mut Out) {
        let Some(mount) = self.mounts.get(&id) else { return };
        if mount.retired && mount.held == 0 && self.phase == Phase::Serving {
            let task = SyncTask {
                served: mount.served.clone(),
                remove: vec![mount.place.clone()],
                make: Vec::new(),
            };
            let group = mount.group;
            self.run(Work::Sync(group, false), Task::Sync(task), self.limits.unmount, now, out);
        }
    }

    // The end

    fn stop(&mut self, now: Instant, out: &mut Out) {
        match self.phase {
            Phase::Serving => {
                self.phase = Phase::Expiring;
                self.expire_all(out);
            }
            Phase::Expiring => self.tear_down(now, out),
            Phase::TearingDown => self.end(out),
            Phase::Ended => {}
        }
    }

    fn expire_all(&mut self, out: &mut Out) {
        for group in self.groups.keys().copied().collect::<Vec<_>>() {
            self.expire(group, true, out);
        }
    }

    /// While stopping: another round as long as a round unmounts something (what lies below a submount
    /// becomes idle only when that is gone), then the end.
    fn tear_down_when_quiet(&mut self, now: Instant, out: &mut Out) {
        let running = |job: &Job| !job.late && !matches!(job.work, Work::Read(_));
        if self.phase != Phase::Expiring
            || self.groups.values().any(|group| group.run.is_some())
            || self.jobs.values().any(running)
        {
            return;
        }
        if std::mem::take(&mut self.progress) {
            self.expire_all(out);
        }
        if self.groups.values().all(|group| group.run.is_none()) {
            self.tear_down(now, out);
        }
    }

    fn tear_down(&mut self, now: Instant, out: &mut Out) {
        self.phase = Phase::TearingDown;
        for (_, packet) in std::mem::take(&mut self.early) {
            out.push(Action::Orphan(packet.dev, packet.token, Errno::HOSTDOWN));
        }
        let mut mounts: Vec<_> = self.mounts.values().collect();
        mounts.sort_by_key(|mount| std::cmp::Reverse((mount.depth, mount.place.path.components().count())));
        let places = mounts.iter().map(|mount| mount.place.clone()).collect();
        self.run(Work::TearDown, Task::TearDown(places), self.limits.tear_down, now, out);
    }

    fn end(&mut self, out: &mut Out) {
        if self.phase != Phase::Ended {
            self.phase = Phase::Ended;
            out.push(Action::Exit);
        }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

fn is_late(jobs: &HashMap<JobId, Job>, job: JobId) -> bool {
    jobs.get(&job).is_some_and(|job| job.late)
}

fn refuse(place: &Arc<Place>, askers: Vec<Asker>, errno: Errno, out: &mut Out) {
    let answers = askers.into_iter().map(|asker| Action::Answer(place.clone(), asker.token, Err(errno)));
    out.extend(answers);
}

#[cfg(test)]
mod tests;
