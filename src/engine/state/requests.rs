//! Requests: packets of the kernel, and the jobs that they start.

use super::*;
use crate::engine::maps::Credentials;
use crate::sys::packet::Kind;

impl State {
    /// `until`: set for a packet that has waited already.
    pub(super) fn packet(&mut self, packet: Packet, until: Option<Instant>, now: Instant, out: &mut Out) {
        let missing = matches!(packet.kind, Kind::MissingIndirect | Kind::MissingDirect);
        if missing && self.phase == Phase::Leaving {
            return self.carried.push(packet);
        }
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
            None => return out.push(Action::Unknown(packet)),
        };
        let key = match packet.kind {
            Kind::MissingIndirect | Kind::ExpireIndirect => packet.name,
            // the name of a direct request is an address
            Kind::MissingDirect | Kind::ExpireDirect => Key::new(),
        };
        if missing {
            let since = until.map_or(now, |until| until - self.limits.mount);
            let who = Credentials { uid: packet.uid, gid: packet.gid };
            let asker = Asker { token: packet.token, who, pid: packet.tgid, since };
            self.missing(id, key, asker, now, out);
        } else {
            self.idle(id, key, Some(packet.token), now, out);
        }
    }

    /// The trigger that a packet is about, where it is known.
    pub fn trigger(&self, packet: &Packet) -> Option<PathBuf> {
        let place = &self.mounts.get(&self.asks(packet)?)?.place;
        let direct = matches!(packet.kind, Kind::MissingDirect | Kind::ExpireDirect);
        Some(if direct { place.path.to_path_buf() } else { place.target(&packet.name) })
    }

    /// The mount that a packet comes from. One with the same number and another root is gone, though the job that
    /// unmounted it has not reported yet.
    fn asks(&self, packet: &Packet) -> Option<MountId> {
        let id = self.find(packet.dev)?;
        let ino = self.mounts.get(&id)?.place.ino;
        ino.is_none_or(|ino| ino.get() == packet.ino).then_some(id)
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
    pub(super) fn busy_above(&self, id: MountId) -> Option<JobId> {
        let mut at = self.mounts.get(&id)?;
        while let Some(Below { parent: (parent, key), .. }) = at.below.as_deref() {
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
        self.phase < Phase::TearingDown && (!self.late.is_empty() || self.jobs.values().any(makes))
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
            Some(errno) => out.push(mount.answer(&key, asker, Err(errno))),
            None => self.mount(id, key, vec![asker], now, out),
        }
    }

    /// Start a job that answers the first of `askers`; the others are kept.
    pub(super) fn mount(
        &mut self,
        id: MountId,
        key: Key,
        mut askers: Vec<Asker>,
        now: Instant,
        out: &mut Out,
    ) {
        let Some(mount) = self.mounts.get(&id) else { return };
        if self.phase == Phase::Leaving {
            let packets = askers.drain(..).map(|asker| mount.request(&key, asker, Ok(())).packet());
            return self.carried.extend(packets);
        }
        if self.phase != Phase::Serving {
            return mount.answer_all(&key, &askers, Err(Errno::HOSTDOWN), out);
        }
        let (check, children, since) = match mount.slots.get(&key) {
            Some(Slot::Mounted { children, since }) => (true, children.clone(), Some(*since)),
            _ => (false, Vec::new(), None),
        };
        let task = MountTask {
            place: mount.place.clone(),
            key: key.clone(),
            served: mount.served.clone(),
            offset: mount.offset().cloned(),
            asker: askers.remove(0),
            check,
            known: children.iter().filter_map(|child| self.as_child(*child)).collect(),
        };
        let limit = self.limits.mount;
        self.start(id, key, Task::Mount(task), (askers, children, since), limit, now, out);
    }

    /// The kernel says that a slot is idle (or a submount has nothing mounted): unmount it.
    pub(super) fn idle(&mut self, id: MountId, key: Key, token: Option<Token>, now: Instant, out: &mut Out) {
        let Some(mount) = self.mounts.get(&id) else { return };
        let mut since = None;
        let children = match mount.slots.get(&key) {
            Some(Slot::Busy { .. }) => None,
            Some(Slot::Mounted { children, since: mounted }) => {
                since = Some(*mounted);
                Some(children.clone())
            }
            Some(Slot::Failed { .. }) | None => Some(Vec::new()),
        };
        // a job that the kernel does not see (its visitor has gone, it has not begun) is a use as well
        let free = |children: &Vec<_>| {
            self.phase < Phase::TearingDown && self.busy_above(id).is_none() && !self.busy_below(children)
        };
        let Some(children) = children.filter(free) else {
            let (place, served) = (mount.place.clone(), mount.served.clone());
            let result = Err(Errno::BUSY);
            out.extend(
                token.map(|token| Action::Answer(Answer { place, served, key, token, asker: None, result })),
            );
            return;
        };
        let task = UnmountTask {
            place: mount.place.clone(),
            key: key.clone(),
            served: mount.served.clone(),
            token,
            linger: since.is_some_and(|since| now < since + LINGER),
            below: self.descendants(&children),
        };
        let limit = self.limits.unmount;
        self.start(id, key, Task::Unmount(task), (Vec::new(), children, since), limit, now, out);
    }

    #[allow(clippy::too_many_arguments)] // the one place where a slot becomes busy
    pub(super) fn start(
        &mut self,
        id: MountId,
        key: Key,
        task: Task,
        (kept, children, since): (Vec<Asker>, Vec<MountId>, Option<Instant>),
        limit: Duration,
        now: Instant,
        out: &mut Out,
    ) {
        let job = self.run(Work::Slot(id, key.clone()), task, limit, now, out);
        let slot = Slot::Busy { job, kept, children, since };
        self.set_slot(id, &key, Some(slot), now);
    }
}
