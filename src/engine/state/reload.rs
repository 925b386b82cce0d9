//! Maps that are read again, and triggers that follow them.

use super::*;

impl State {
    pub(super) fn reload(&mut self, now: Instant, out: &mut Out) {
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

    pub(super) fn reread(
        &mut self,
        id: GroupId,
        wanted: Option<Vec<std::path::PathBuf>>,
        now: Instant,
        out: &mut Out,
    ) {
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

    pub(super) fn read_ended(&mut self, id: GroupId, now: Instant, out: &mut Out) {
        let again = self.groups.get_mut(&id).and_then(|group| group.reading.take());
        if again == Some(true) {
            self.read(id, now, out);
        }
    }

    pub(super) fn synced(
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

    pub(super) fn remove_if_retired(&mut self, id: MountId, now: Instant, out: &mut Out) {
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
}
