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
//!
//! | module | part of the machine |
//! |---|---|
//! | `requests` | packets of the kernel, and the jobs that they start |
//! | `outcomes` | what the ends of jobs mean for slots and requests |
//! | `tree` | mounts, their slots, and what depends on what |
//! | `clock` | runs over idle mounts, and jobs that take too long |
//! | `reload` | maps that are read again, and triggers that follow them |
//! | `leave` | becoming another program |
//! | `stop` | the end |
//! | `report` | what it is doing, for people and for counters |

mod clock;
mod leave;
mod outcomes;
mod reload;
mod report;
mod requests;
mod stop;
mod tree;

pub use report::{Counts, JobReport, MapReport};

use super::reconnect::Found;
use super::served::{Master, Served};
use super::task::*;
use crate::sys::control::Token;
use crate::sys::packet::Packet;
use crate::sys::{DevNum, Errno};
use reload::Reload;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
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
    /// A run over the idle mounts of a map ended. In these mounts it could not go on: the kernel chooses a key first that
    /// cannot be unmounted.
    ExpireEnded(GroupId, Vec<Arc<Place>>),
    /// A mount that could not be attached at the start is ours now, or gone.
    Attached(PathBuf, Option<Found>),
    /// Time went by ([`State::deadline`]).
    Timer,
    /// Read the maps again.
    Reload,
    /// Unmount what is idle, whatever its timeout: everywhere, or of the map that has a mount at this path.
    ExpireNow(Option<PathBuf>),
    /// Prepare to become another program.
    Leave,
    /// That was not possible: go on, with what [`Action::Leave`] carried.
    Stay(Vec<Packet>),
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
    Answer(Answer),
    /// A request of a mount that nobody knows. If it is one that we know under another number, tell
    /// ([`State::moved`]), and take the packet again; else it fails.
    Unknown(Packet),
    /// Answer a request of a mount that nobody knows: find it by its number.
    Orphan(DevNum, Token, Errno),
    /// Start a run over idle mounts.
    Expire(GroupId, ExpireRun),
    /// Become another program, which gets these requests; else [`Event::Stay`].
    Leave(Vec<Packet>),
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
    /// Boxed: the table is mostly twice as large as what it holds.
    mounts: HashMap<MountId, Box<Mount>>,
    by_dev: HashMap<DevNum, MountId>,
    groups: BTreeMap<GroupId, Group>,
    jobs: HashMap<JobId, Job>,
    alarms: BTreeMap<(Instant, u64), Alarm>,
    /// The master map, to be read again.
    master: Option<Arc<dyn Master>>,
    reload: Option<Reload>,
    /// Mounts that need another timeout.
    retime: Vec<(Arc<Place>, Arc<Served>)>,
    /// Directories of keys that are not mounted any more, and until when they stay.
    lingering: HashMap<(MountId, Key), Instant>,
    /// Something was unmounted since the last round of the stop.
    progress: bool,
    /// Mounts that exist and could not be attached yet.
    late: BTreeMap<PathBuf, LateMount>,
    /// Packets of mounts that no job has reported yet, and when they are given up.
    early: Vec<(Instant, Packet)>,
    /// Requests for the program that this one becomes.
    carried: Vec<Packet>,
    next: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
enum Phase {
    Serving,
    Leaving,
    Left,
    Expiring,
    TearingDown,
    Ended,
}

#[derive(Debug)]
struct Mount {
    place: Arc<Place>,
    served: Arc<Served>,
    group: GroupId,
    /// Set for what comes and goes with a mounted key.
    below: Option<Box<Below>>,
    /// [`birth`].
    born: u64,
    /// The map has no such key any more: to be removed when it is idle.
    retired: bool,
    /// Mostly none: that of a trigger, while it is mounted. (An empty tree takes half of an empty hash table.)
    slots: BTreeMap<Key, Slot>,
    /// Slots that are not [`Slot::Failed`].
    held: u32,
}

/// An offset or a submount.
#[derive(Debug)]
struct Below {
    /// The slot that it depends on.
    parent: (MountId, Key),
    depth: usize,
    offset: Option<Arc<Offset>>,
}

#[derive(Debug)]
enum Slot {
    Busy {
        job: JobId,
        kept: Vec<Asker>,
        children: Vec<MountId>,
        /// As in [`Slot::Mounted`], where it was.
        since: Option<Instant>,
    },
    /// `since`: when it was mounted, or found mounted.
    Mounted {
        children: Vec<MountId>,
        since: Instant,
    },
    Failed {
        errno: Errno,
        until: Instant,
    },
}

#[derive(Debug)]
struct Group {
    served: Arc<Served>,
    /// Mounts with held slots.
    active: BTreeSet<MountId>,
    /// A run is under way; `Some(true)`: an immediate one must follow.
    run: Option<bool>,
    armed: bool,
    /// Mount points that it wants and that could not be made yet.
    missing: BTreeSet<PathBuf>,
    /// It is not in the master map any more.
    gone: bool,
    /// A submount: removed when nothing is mounted in it.
    submount: Option<MountId>,
}

#[derive(Clone, Copy, Debug)]
struct LateMount {
    group: GroupId,
    /// As in [`Mount`].
    retired: bool,
}

#[derive(Debug)]
struct Job {
    work: Work,
    /// For people.
    what: &'static str,
    /// It unmounts.
    unmounts: bool,
    began: Instant,
    alarm: (Instant, u64),
    /// It took too long; its requests are answered.
    late: bool,
}

#[derive(Clone, Debug)]
enum Work {
    Slot(MountId, Key),
    Master,
    Read(GroupId),
    /// With `true` the second half of a reload.
    Sync(bool),
    TearDown,
}

#[derive(Clone, Debug)]
enum Alarm {
    Job(JobId),
    Check(GroupId),
    /// Maps that are read wait no longer for each other.
    Apart,
    /// See [`State::lingering`].
    Tidy(MountId, Key),
    /// Running jobs are not waited for any more.
    Leave,
    Early,
}

/// How long the directory of a key stays after it was mounted, whether or not it still is. Whoever waited while an earlier one
/// was unmounted looks for the new one when it gets a processor, and where there is none by then the kernel says ENOENT.
const LINGER: Duration = Duration::from_secs(5);

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
            master: None,
            reload: None,
            retime: Vec::new(),
            lingering: HashMap::new(),
            progress: false,
            late: BTreeMap::new(),
            early: Vec::new(),
            carried: Vec::new(),
            next: 0,
        }
    }

    /// When [`Event::Timer`] is due.
    pub fn deadline(&self) -> Option<Instant> {
        self.alarms.first_key_value().map(|(&(at, _), _)| at)
    }

    /// Reload follows this master map, too.
    pub fn set_master(&mut self, master: Arc<dyn Master>) {
        self.master = Some(master);
    }

    /// Serve one more map.
    pub fn add_group(&mut self, served: Arc<Served>) -> GroupId {
        let id = GroupId(self.number() as u32);
        let group = Group {
            served,
            active: BTreeSet::new(),
            run: None,
            armed: false,
            missing: BTreeSet::new(),
            gone: false,
            submount: None,
        };
        self.groups.insert(id, group);
        id
    }

    /// One more autofs mount of a map; `None` when the map is not served.
    pub fn add_mount(&mut self, group: GroupId, place: Arc<Place>) -> Option<MountId> {
        self.insert(group, place, None, birth(), &mut Vec::new())
    }

    /// A key that was found mounted, with the autofs mounts below it (parents before children).
    pub fn add_mounted(&mut self, mount: MountId, key: Key, below: Vec<Child>, now: Instant) {
        self.set_slot(mount, &key, Some(Slot::Mounted { children: Vec::new(), since: now }), now);
        self.reconcile(mount, &key, below, true, now, &mut Vec::new());
    }

    /// A key directory on which nothing is mounted: an earlier engine left it.
    pub fn add_left(&mut self, mount: MountId, key: Key, now: Instant) {
        self.linger(mount, key, now + LINGER);
    }

    /// A mount that exists and cannot be attached now.
    pub fn add_late(&mut self, group: GroupId, path: PathBuf) {
        self.late.insert(path, LateMount { group, retired: false });
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
            Event::ExpireEnded(group, stuck) => self.expire_ended(group, &stuck, now, out),
            Event::Attached(path, found) => self.attached(&path, found, now, out),
            Event::Timer => self.timer(now, out),
            Event::Reload => self.reload(now, out),
            Event::ExpireNow(None) => self.expire_all(out),
            Event::ExpireNow(Some(path)) => self.expire_at(&path, out),
            Event::Leave => self.leave(now),
            Event::Stay(packets) => self.stay(packets, now, out),
            Event::Stop => self.stop(now, out),
        }
        self.leave_when_quiet(false, out);
        self.tear_down_when_quiet(now, out);
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

fn is_late(jobs: &HashMap<JobId, Job>, job: JobId) -> bool {
    jobs.get(&job).is_some_and(|job| job.late)
}

impl Mount {
    fn offset(&self) -> Option<&Arc<Offset>> {
        self.below.as_ref()?.offset.as_ref()
    }

    /// How many mounts it is below.
    fn depth(&self) -> usize {
        self.below.as_ref().map_or(0, |below| below.depth)
    }

    /// The answer to a request for one of its keys.
    fn request(&self, key: &[u8], asker: Asker, result: Result<(), Errno>) -> Answer {
        Answer {
            place: self.place.clone(),
            served: self.served.clone(),
            key: key.to_vec(),
            token: asker.token,
            asker: Some(asker),
            result,
        }
    }

    fn answer(&self, key: &[u8], asker: Asker, result: Result<(), Errno>) -> Action {
        Action::Answer(self.request(key, asker, result))
    }

    fn answer_all(&self, key: &[u8], askers: &[Asker], result: Result<(), Errno>, out: &mut Out) {
        out.extend(askers.iter().map(|asker| self.answer(key, *asker, result)));
    }
}

#[cfg(test)]
mod tests;
