//! The clock: runs over idle mounts, and jobs that take too long.

use super::*;
use std::path::Path;

impl State {
    pub(super) fn arm(&mut self, id: GroupId, now: Instant) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let Some(every) = group.served.options.check_every() else { return };
        let needed = !group.active.is_empty() || group.submount.is_some();
        if needed && !group.armed && group.run.is_none() && self.phase == Phase::Serving {
            group.armed = true;
            self.alarm(now + every, Alarm::Check(id));
        }
    }

    pub(super) fn expire(&mut self, id: GroupId, immediate: bool, out: &mut Out) {
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
            let level = levels.entry(std::cmp::Reverse(mount.depth())).or_default();
            level.push(mount.place.clone());
        }
        let run = ExpireRun { immediate, levels: levels.into_values().collect() };
        out.push(Action::Expire(id, run));
    }

    /// Is one of our autofs mounts at a path?
    pub fn serves(&self, path: &Path) -> bool {
        self.mounts.values().any(|mount| *mount.place.path == *path)
    }

    /// The map of the mount at a path.
    pub(super) fn expire_at(&mut self, path: &Path, out: &mut Out) {
        let group = self.mounts.values().find(|mount| *mount.place.path == *path).map(|mount| mount.group);
        if let Some(group) = group {
            self.expire(group, true, out);
        }
    }

    pub(super) fn expire_ended(&mut self, id: GroupId, stuck: &[Arc<Place>], now: Instant, out: &mut Out) {
        for place in stuck {
            self.unmount_all(place, now, out);
        }
        let Some(group) = self.groups.get_mut(&id) else { return };
        let again = group.run.take();
        if again == Some(true) {
            return self.expire(id, true, out);
        }
        // Whether something is mounted in a submount the kernel knows best: if so, it is busy.
        if let Some(mount) = group.submount
            && let Some(below) = self.mounts.get(&mount).and_then(|mount| mount.below.as_ref())
        {
            let (parent, key) = below.parent.clone();
            self.idle(parent, key, None, now, out);
        }
        self.remove_retired(id, now, out);
        self.arm(id, now);
    }

    /// Try every key, without the kernel's choice: what is in use says EBUSY.
    fn unmount_all(&mut self, place: &Place, now: Instant, out: &mut Out) {
        let known = |id: &MountId| self.mounts.get(id).is_some_and(|mount| *mount.place == *place);
        let Some(id) = self.find(place.dev).filter(known) else { return };
        let slots = self.mounts.get(&id).into_iter().flat_map(|mount| &mount.slots);
        let mounted = slots.filter(|(_, slot)| matches!(slot, Slot::Mounted { .. }));
        for key in mounted.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            self.idle(id, key, None, now, out);
        }
    }

    pub(super) fn alarm(&mut self, at: Instant, alarm: Alarm) -> (Instant, u64) {
        let key = (at, self.number());
        self.alarms.insert(key, alarm);
        key
    }

    pub(super) fn timer(&mut self, now: Instant, out: &mut Out) {
        while let Some(entry) = self.alarms.first_entry()
            && entry.key().0 <= now
        {
            match entry.remove() {
                Alarm::Job(job) => self.late(job, now, out),
                Alarm::Tidy(mount, key) => self.tidy(mount, key, now, out),
                Alarm::Leave => self.leave_when_quiet(true, out),
                Alarm::Apart => self.follow_apart(now, out),
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

    /// The directory of a key stays until then.
    pub(super) fn linger(&mut self, id: MountId, key: Key, until: Instant) {
        self.lingering.insert((id, key.clone()), until);
        self.alarm(until, Alarm::Tidy(id, key));
    }

    /// Remove the directory of a key, unless it was mounted again meanwhile.
    fn tidy(&mut self, id: MountId, key: Key, now: Instant, out: &mut Out) {
        let slot = (id, key);
        if self.lingering.get(&slot).is_none_or(|until| *until > now) {
            return;
        }
        self.lingering.remove(&slot);
        let (id, key) = slot;
        let free = self.mounts.get(&id).is_some_and(|mount| !mount.slots.contains_key(&key));
        if free && self.phase == Phase::Serving {
            self.idle(id, key, None, now, out);
        }
    }

    /// A job takes too long: answer for it.
    fn late(&mut self, id: JobId, now: Instant, out: &mut Out) {
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
                    mount.answer_all(&key, &kept, Err(Errno::TIMEDOUT), out);
                }
            }
            Work::Master => self.master_read(None, now, out),
            Work::Read(group) => self.read_late(group, now, out),
            // nobody waits for it
            Work::Sync(_) => {}
            Work::TearDown => self.end(out),
        }
    }
}
