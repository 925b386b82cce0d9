//! Jobs: started, and what their ends mean for slots and requests.

use super::*;

impl State {
    pub(super) fn run(
        &mut self,
        work: Work,
        task: Task,
        limit: Duration,
        now: Instant,
        out: &mut Out,
    ) -> JobId {
        let job = JobId(self.number());
        let alarm = self.alarm(now + limit, Alarm::Job(job));
        let (what, unmounts) = (task.what(), matches!(task, Task::Unmount(_)));
        self.jobs.insert(job, Job { work, what, unmounts, began: now, alarm, late: false });
        out.push(Action::Run(job, task));
        job
    }

    pub(super) fn done(&mut self, job: JobId, outcome: Outcome, now: Instant, out: &mut Out) {
        let Some(Job { work, alarm, late, began, .. }) = self.jobs.remove(&job) else { return };
        self.alarms.remove(&alarm);
        match (work, outcome) {
            (Work::Slot(id, key), Outcome::Mounted { result, children, left }) => {
                self.mounted(job, id, key, result, (children, left), now, out);
            }
            (Work::Slot(id, key), Outcome::Unmounted { result, below }) => {
                self.unmounted((job, began), id, key, result, below, now, out);
            }
            (Work::Slot(id, key), Outcome::Followed(children)) => {
                self.followed(job, id, key, children, now, out);
            }
            (Work::Read(group), Outcome::Reread { wanted, stale, changed }) => {
                self.reread(group, wanted, now, out);
                self.remove_stale(group, stale, now, out);
                if changed {
                    self.follow_offsets(group, now, out);
                }
            }
            (Work::Master, Outcome::Master(_)) if late => {}
            (Work::Master, Outcome::Master(served)) => self.master_read(served, now, out),
            (Work::Sync(reload), Outcome::Synced(synced)) => self.synced(reload, synced, now, out),
            (Work::TearDown, _) => self.end(out),
            // a worker reports the outcome of its own task, so this does not happen; nothing waits on it
            (Work::Slot(..) | Work::Master | Work::Read(_) | Work::Sync(_), _) => {}
        }
        self.take_early(now, out);
    }

    /// Packets whose mounts may be known now.
    pub(super) fn take_early(&mut self, now: Instant, out: &mut Out) {
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
        (children, left): (Vec<Child>, bool),
        now: Instant,
        out: &mut Out,
    ) {
        let Some((kept, _)) = self.take_kept(job, id, &key) else { return };
        self.reconcile(id, &key, children, false, now, out);
        if let Some(mount) = self.mounts.get(&id) {
            mount.answer_all(&key, &kept, result, out);
        }
        let children = self.children(id, &key);
        let slot = match result {
            Err(errno) if children.is_empty() && !left => self.failed(id, errno, now),
            // what could not be cleaned up expires later
            _ => Some(Slot::Mounted { children, since: now }),
        };
        self.set_slot(id, &key, slot, now);
        self.remove_if_retired(id, now, out);
    }

    #[allow(clippy::too_many_arguments)]
    fn unmounted(
        &mut self,
        (job, began): (JobId, Instant),
        id: MountId,
        key: Key,
        result: Result<(), Errno>,
        below: Vec<Child>,
        now: Instant,
        out: &mut Out,
    ) {
        let Some((kept, since)) = self.take_kept(job, id, &key) else { return };
        self.reconcile(id, &key, below, true, now, out);
        let children = self.children(id, &key);
        let gone = result.is_ok() && children.is_empty();
        self.progress |= gone;
        let slot = (!gone).then_some(Slot::Mounted { children, since: since.unwrap_or(now) });
        if let Some(until) = since.map(|since| since + LINGER).filter(|until| gone && began < *until) {
            self.linger(id, key.clone(), until.max(now));
        }
        self.set_slot(id, &key, slot, now);
        self.go_on(id, key, kept, now, out);
    }

    /// A slot is free again: those who asked meanwhile are answered by a job of their own.
    pub(super) fn go_on(&mut self, id: MountId, key: Key, kept: Vec<Asker>, now: Instant, out: &mut Out) {
        if kept.is_empty() {
            self.remove_if_retired(id, now, out);
        } else {
            self.mount(id, key, kept, now, out);
        }
    }

    /// The job on a slot ended: who else asked meanwhile, and since when it was mounted. `None` when the slot is not that job's any more.
    pub(super) fn take_kept(
        &mut self,
        job: JobId,
        id: MountId,
        key: &[u8],
    ) -> Option<(Vec<Asker>, Option<Instant>)> {
        let mount = self.mounts.get_mut(&id)?;
        match mount.slots.get_mut(key) {
            Some(Slot::Busy { job: running, kept, since, .. }) if *running == job => {
                Some((std::mem::take(kept), *since))
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
        if mount.slots.len() - mount.held as usize >= self.limits.failures {
            mount.slots.retain(|_, slot| !matches!(slot, Slot::Failed { .. }));
        }
        Some(Slot::Failed { errno, until: now + memory })
    }
}
