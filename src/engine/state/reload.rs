//! Maps that are read again, and mounts that follow them.
//!
//! A reload reads the master map, then all maps side by side, and then follows them in one job: removals before
//! additions, over all maps, so that a key may move from one map to another, or become a directory of other keys. A
//! mount that is still wanted, by whichever map, stays where it is with what is mounted in it. One that is not, but is in use, is
//! *retired*: it answers, and goes when it is idle; what is wanted at, above or below its place waits for that.
//!
//! A map that takes long to read holds up the others for a moment only, and is followed when it has been read.

use super::*;
use std::collections::HashSet;
use std::path::Path;

/// How long maps wait for each other, so that keys can move between them.
const TOGETHER: Duration = Duration::from_secs(5);

/// A reload that is under way.
#[derive(Debug, Default)]
pub(super) struct Reload {
    /// Somebody asked meanwhile: once more.
    again: bool,
    /// Maps that are being read.
    reading: BTreeSet<GroupId>,
    /// Mount points that maps want, of those that have been read and not yet followed.
    wanted: BTreeMap<GroupId, Vec<PathBuf>>,
    /// Others are not waited for any more.
    apart: bool,
    /// The mounts are following.
    following: bool,
}

impl State {
    pub(super) fn reload(&mut self, now: Instant, out: &mut Out) {
        match self.phase {
            Phase::Serving if self.reload.is_none() => {}
            // Where the next program does not come about, later.
            Phase::Serving | Phase::Leaving | Phase::Left => {
                self.reload.get_or_insert_default().again = true;
                return;
            }
            _ => return,
        }
        self.reload = Some(Reload::default());
        match &self.master {
            Some(master) => {
                let own = self.groups.values().filter(|group| group.submount.is_none() && !group.gone);
                let served = own.map(|group| group.served.clone()).collect();
                let task = Task::Master(master.clone(), served);
                self.run(Work::Master, task, self.limits.mount, now, out);
            }
            None => self.read_all(&BTreeSet::new(), now, out),
        }
    }

    /// Is this map being read?
    pub(super) fn reads(&self, id: GroupId) -> bool {
        self.reload.as_ref().is_some_and(|reload| reload.reading.contains(&id))
    }

    /// The master map was read: these maps are to be served. `None`: it cannot be read, and things stay as they are.
    pub(super) fn master_read(&mut self, served: Option<Vec<Arc<Served>>>, now: Instant, out: &mut Out) {
        let mut list = BTreeSet::new();
        if let Some(served) = served {
            let own = self.groups.iter().filter(|(_, group)| group.submount.is_none());
            let mut left: BTreeMap<GroupId, Arc<Served>> =
                own.map(|(id, group)| (*id, group.served.clone())).collect();
            let (mut same, mut others) = (Vec::new(), Vec::new());
            for served in served {
                match left.iter().find(|(_, old)| Arc::ptr_eq(old, &served)).map(|(id, _)| *id) {
                    Some(id) => {
                        left.remove(&id);
                        same.push(id);
                    }
                    None => others.push(served),
                }
            }
            for served in others {
                let alike = |old: &Served| match &served.point {
                    Some(point) => old.point.as_ref() == Some(point),
                    None => old.point.is_none() && old.name == served.name,
                };
                let id = match left.iter().find(|(_, old)| alike(old)).map(|(id, _)| *id) {
                    Some(id) => {
                        left.remove(&id);
                        self.change_map(id, served);
                        id
                    }
                    None => self.add_group(served),
                };
                list.insert(id);
            }
            for id in left.into_keys() {
                self.set_gone(id, true);
            }
            for id in same.into_iter().chain(list.clone()) {
                if self.set_gone(id, false) {
                    list.insert(id);
                }
            }
        }
        self.read_all(&list, now, out);
    }

    /// True when that is new.
    fn set_gone(&mut self, id: GroupId, gone: bool) -> bool {
        let Some(group) = self.groups.get_mut(&id) else { return false };
        std::mem::replace(&mut group.gone, gone) != gone
    }

    /// Another map, or other options, at the same place.
    fn change_map(&mut self, id: GroupId, served: Arc<Served>) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let timeout = group.served.options.timeout != served.options.timeout;
        group.served = served.clone();
        for mount in self.mounts.values_mut().filter(|mount| mount.group == id) {
            mount.served = served.clone();
            if timeout {
                self.retime.push((mount.place.clone(), served.clone()));
            }
        }
    }

    /// Read every map; of those in `list` all keys are wanted, also when they did not change.
    fn read_all(&mut self, list: &BTreeSet<GroupId>, now: Instant, out: &mut Out) {
        for id in self.groups.keys().copied().collect::<Vec<_>>() {
            let Some(group) = self.groups.get(&id) else { continue };
            let served = group.served.clone();
            if group.gone || list.contains(&id) && served.point.is_some() {
                let wanted = served.point.iter().filter(|_| !group.gone).cloned().collect();
                // A map of an earlier reload that was read late may have ended this one already.
                self.reload.get_or_insert_default().wanted.insert(id, wanted);
            }
            if group.gone {
                continue;
            }
            let root = self.root(id, &served).and_then(|root| self.mounts.get(&root));
            let task = Task::Reread(served, root.map(|mount| mount.place.clone()), list.contains(&id));
            self.run(Work::Read(id), task, self.limits.mount, now, out);
            self.reload.get_or_insert_default().reading.insert(id);
        }
        self.alarm(now + TOGETHER, Alarm::Apart);
        self.follow(now, out);
    }

    /// A map was read. `wanted`: mount points of its direct triggers; `None` when nothing changes.
    pub(super) fn reread(&mut self, id: GroupId, wanted: Option<Vec<PathBuf>>, now: Instant, out: &mut Out) {
        for mount in self.mounts.values_mut().filter(|mount| mount.group == id) {
            mount.slots.retain(|_, slot| !matches!(slot, Slot::Failed { .. }));
        }
        // One that was given up is read after all.
        let reload = self.reload.get_or_insert_default();
        reload.reading.remove(&id);
        if let Some(wanted) = wanted {
            reload.wanted.insert(id, wanted);
        }
        self.follow(now, out);
    }

    /// Directories for browsing, of keys that an indirect map does not have any more. Jobs on their slots remove them, so
    /// that none goes while another job mounts on it; what is mounted stays until it is idle.
    pub(super) fn remove_stale(&mut self, id: GroupId, stale: Vec<Key>, now: Instant, out: &mut Out) {
        let root = self.groups.get(&id).and_then(|group| self.root(id, &group.served));
        let Some(root) = root.filter(|_| self.phase == Phase::Serving) else { return };
        for key in stale {
            let slot = self.mounts.get(&root).and_then(|mount| mount.slots.get(&key));
            if matches!(slot, None | Some(Slot::Failed { .. })) {
                self.idle(root, key, None, now, out);
            }
        }
    }

    /// The entries of a map may have changed: the offsets of what is mounted follow, the deepest first, as a job above keeps
    /// one below from starting.
    pub(super) fn follow_offsets(&mut self, id: GroupId, now: Instant, out: &mut Out) {
        if self.phase != Phase::Serving {
            return;
        }
        let is_offset =
            |child: &MountId| self.mounts.get(child).is_some_and(|child| child.offset().is_some());
        let mut slots = Vec::new();
        for (mount, own) in self.mounts.iter().filter(|(_, own)| own.group == id && own.held > 0) {
            for (key, slot) in &own.slots {
                if matches!(slot, Slot::Mounted { children, .. } if children.iter().any(is_offset)) {
                    slots.push((std::cmp::Reverse(own.depth()), *mount, key.clone()));
                }
            }
        }
        slots.sort();
        for (_, mount, key) in slots {
            self.follow_slot(mount, key, now, out);
        }
    }

    fn follow_slot(&mut self, id: MountId, key: Key, now: Instant, out: &mut Out) {
        let Some(mount) = self.mounts.get(&id).filter(|_| self.busy_above(id).is_none()) else { return };
        let Some(Slot::Mounted { children, since }) = mount.slots.get(&key) else { return };
        let (children, since) = (children.clone(), Some(*since));
        let task = FollowTask {
            place: mount.place.clone(),
            key: key.clone(),
            served: mount.served.clone(),
            offset: mount.offset().cloned(),
            known: children.iter().filter_map(|child| self.as_child(*child)).collect(),
        };
        let limit = self.limits.mount;
        self.start(id, key, Task::Follow(task), (Vec::new(), children, since), limit, now, out);
    }

    /// The job on the offsets of a slot ended.
    pub(super) fn followed(
        &mut self,
        job: JobId,
        id: MountId,
        key: Key,
        children: Vec<Child>,
        now: Instant,
        out: &mut Out,
    ) {
        let Some((kept, since)) = self.take_kept(job, id, &key) else { return };
        self.reconcile(id, &key, children, false, now, out);
        let children = self.children(id, &key);
        let slot = Slot::Mounted { children, since: since.unwrap_or(now) };
        self.set_slot(id, &key, Some(slot), now);
        self.go_on(id, key, kept, now, out);
    }

    /// The mount of an indirect map.
    fn root(&self, id: GroupId, served: &Served) -> Option<MountId> {
        let point = served.point.as_ref()?;
        let mut mounts = self.mounts.iter();
        mounts.find(|(_, mount)| mount.group == id && *mount.place.path == **point).map(|(id, _)| *id)
    }

    /// A map is not waited for any more.
    pub(super) fn read_late(&mut self, id: GroupId, now: Instant, out: &mut Out) {
        if let Some(reload) = &mut self.reload {
            reload.reading.remove(&id);
            self.follow(now, out);
        }
    }

    /// Maps have had time to be read together.
    pub(super) fn follow_apart(&mut self, now: Instant, out: &mut Out) {
        if let Some(reload) = &mut self.reload {
            reload.apart = true;
            self.follow(now, out);
        }
    }

    /// What did not follow while this program was to become another one.
    pub(super) fn follow_again(&mut self, now: Instant, out: &mut Out) {
        for id in self.groups.keys().copied().collect::<Vec<_>>() {
            self.remove_retired(id, now, out);
        }
        self.sync_missing(None, now, out);
        self.follow(now, out);
    }

    /// Have the mounts follow what has been read.
    fn follow(&mut self, now: Instant, out: &mut Out) {
        let Some(reload) = &mut self.reload else { return };
        let leaving = matches!(self.phase, Phase::Leaving | Phase::Left);
        if leaving || reload.following || !(reload.reading.is_empty() || reload.apart) {
            return;
        }
        let wanted = std::mem::take(&mut reload.wanted);
        if self.phase == Phase::Serving && self.sync(wanted, now, out) {
            if let Some(reload) = &mut self.reload {
                reload.following = true;
            }
            return;
        }
        let over = self.reload.take_if(|reload| reload.reading.is_empty());
        if over.is_some_and(|reload| reload.again) {
            self.reload(now, out);
        }
    }

    /// Start the job that makes and removes mounts, if there is anything to do.
    fn sync(&mut self, wanted: BTreeMap<GroupId, Vec<PathBuf>>, now: Instant, out: &mut Out) -> bool {
        let (remove, mut make) = self.judge(&wanted);
        for (id, group) in &mut self.groups {
            if wanted.contains_key(id) {
                group.missing.clear();
            }
            make.extend(std::mem::take(&mut group.missing).into_iter().map(|path| (*id, path)));
        }
        let retime = std::mem::take(&mut self.retime);
        let make = self.possible(make, &remove);
        let task = SyncTask { remove, make, retime };
        if task.is_empty() {
            self.drop_gone();
            return false;
        }
        self.run(Work::Sync(true), Task::Sync(task), self.limits.mount, now, out);
        true
    }

    /// Which mounts go (now, because they are idle), and which come. A mount that another map wants becomes that one's.
    fn judge(
        &mut self,
        wanted: &BTreeMap<GroupId, Vec<PathBuf>>,
    ) -> (Vec<Arc<Place>>, Vec<(GroupId, PathBuf)>) {
        if wanted.is_empty() {
            return (Vec::new(), Vec::new());
        }
        let tops: HashMap<&Path, MountId> = self
            .mounts
            .iter()
            .filter(|(_, mount)| mount.below.is_none())
            .map(|(id, mount)| (&*mount.place.path, *id))
            .collect();
        for late in self.late.values_mut().filter(|late| wanted.contains_key(&late.group)) {
            late.retired = true;
        }
        let mut claims: HashMap<MountId, GroupId> = HashMap::new();
        let mut make = Vec::new();
        let mut new = HashSet::new();
        for (&group, paths) in wanted {
            let direct = self.groups.get(&group).is_some_and(|group| group.served.point.is_none());
            for path in paths {
                // Not another one on top of it.
                if let Some(late) = self.late.get_mut(path) {
                    *late = LateMount { group, retired: false };
                    continue;
                }
                let Some(id) = tops.get(path.as_path()) else {
                    if new.insert(path) {
                        make.push((group, path.clone()));
                    }
                    continue;
                };
                let own = self.mounts.get(id).is_some_and(|mount| mount.group == group);
                let claim = claims.entry(*id).or_insert(group);
                if own {
                    *claim = group;
                } else if !direct {
                    // an indirect map where a trigger was: that has to go first
                    make.push((group, path.clone()));
                }
            }
        }
        let kind = |group: &Group| group.served.point.is_none();
        let mut remove = Vec::new();
        let mut moved = Vec::new();
        for (id, mount) in self.mounts.iter_mut().filter(|(_, mount)| mount.below.is_none()) {
            if !wanted.contains_key(&mount.group) {
                continue;
            }
            let claim = claims.get(id).filter(|claim| {
                let kinds = [**claim, mount.group].map(|group| self.groups.get(&group).map(kind));
                kinds[0] == kinds[1]
            });
            mount.retired = claim.is_none();
            match claim {
                Some(group) if *group != mount.group => moved.push((*id, *group)),
                None if mount.held == 0 => remove.push(mount.place.clone()),
                _ => {}
            }
        }
        for (id, group) in moved {
            self.move_to(id, group);
        }
        (remove, make)
    }

    /// A mount becomes another map's, with what belongs to it.
    fn move_to(&mut self, id: MountId, group: GroupId) {
        let Some(served) = self.groups.get(&group).map(|group| group.served.clone()) else { return };
        let Some(mount) = self.mounts.get_mut(&id) else { return };
        let old = std::mem::replace(&mut mount.group, group);
        if mount.served.options.timeout != served.options.timeout {
            self.retime.push((mount.place.clone(), served.clone()));
        }
        mount.served = served;
        let active = self.groups.get_mut(&old).is_some_and(|old| old.active.remove(&id));
        if let Some(group) = self.groups.get_mut(&group).filter(|_| active) {
            group.active.insert(id);
        }
        // Submounts have groups of their own.
        for child in self.children(id, b"") {
            if self.mounts.get(&child).is_some_and(|child| child.group == old) {
                self.move_to(child, group);
            }
        }
    }

    /// Those that can be made once `remove` is gone; the others wait for the mounts in their way, also for those that another
    /// job is removing.
    fn possible(&mut self, make: Vec<(GroupId, PathBuf)>, remove: &[Arc<Place>]) -> Vec<Make> {
        let gone: HashSet<&Path> = remove.iter().map(|place| &*place.path).collect();
        let retired = self.mounts.values().filter(|mount| mount.retired).map(|mount| &mount.place.path);
        let in_the_way: Vec<PathBuf> =
            retired.filter(|path| !gone.contains(&***path)).map(|path| path.to_path_buf()).collect();
        let mut possible = Vec::with_capacity(make.len());
        for (id, path) in make {
            let Some(group) = self.groups.get_mut(&id) else { continue };
            if in_the_way.iter().any(|busy| are_related(busy, &path)) {
                group.missing.insert(path);
            } else {
                possible.push(Make { group: id, served: group.served.clone(), path });
            }
        }
        possible
    }

    /// The job has ended: what it removed and made is so.
    pub(super) fn synced(&mut self, reload: bool, outcome: Synced, now: Instant, out: &mut Out) {
        let Synced { removed, stay, made, failed } = outcome;
        // What waited for these may come now.
        let mut again = !removed.is_empty() && self.groups.values().any(|group| !group.missing.is_empty());
        for place in removed {
            // the number may have been used again
            let known =
                self.find(place.dev).filter(|id| self.mounts.get(id).is_some_and(|m| m.place == place));
            let Some(id) = known else { continue };
            let Some(mount) = self.mounts.get(&id) else { continue };
            if !mount.retired
                && let Some(group) = self.groups.get_mut(&mount.group)
            {
                // wanted again since the job began
                group.missing.insert(place.path.to_path_buf());
                again = true;
            }
            self.forget(id, out);
        }
        for (group, place) in made {
            self.insert(group, place, None, birth(), out);
        }
        for (group, path) in failed {
            if let Some(group) = self.groups.get_mut(&group) {
                group.missing.insert(path);
            }
        }
        // Another job may have removed meanwhile what was in the way of this one.
        let known = |place: &Arc<Place>| self.mounts.values().any(|mount| mount.place == *place);
        again |= stay.iter().any(|place| !known(place));
        if again && self.phase == Phase::Serving && self.sync_missing(None, now, out) {
            return self.still_follows(reload);
        }
        self.drop_gone();
        if reload {
            if let Some(reload) = &mut self.reload {
                reload.following = false;
            }
            self.follow_rest(now, out);
        }
    }

    fn still_follows(&mut self, reload: bool) {
        // The new job is none of the reload's: that is over.
        if reload && let Some(reload) = &mut self.reload {
            reload.following = false;
        }
    }

    /// What was read while the mounts were following, or the end.
    fn follow_rest(&mut self, now: Instant, out: &mut Out) {
        let Some(reload) = &self.reload else { return };
        if !reload.wanted.is_empty() {
            return self.follow(now, out);
        }
        let over = self.reload.take_if(|reload| reload.reading.is_empty());
        if over.is_some_and(|reload| reload.again) {
            self.reload(now, out);
        }
    }

    /// Remove a mount, and make what waits for a place.
    fn sync_missing(&mut self, remove: Option<Arc<Place>>, now: Instant, out: &mut Out) -> bool {
        let mut make = Vec::new();
        for (id, group) in &mut self.groups {
            make.extend(std::mem::take(&mut group.missing).into_iter().map(|path| (*id, path)));
        }
        let remove: Vec<_> = remove.into_iter().collect();
        let make = self.possible(make, &remove);
        let task = SyncTask { remove, make, retime: Vec::new() };
        if task.is_empty() {
            return false;
        }
        self.run(Work::Sync(false), Task::Sync(task), self.limits.mount, now, out);
        true
    }

    /// A mount that was there is gone: make it.
    pub(super) fn make_missing(&mut self, group: GroupId, path: &Path, now: Instant, out: &mut Out) {
        if let Some(group) = self.groups.get_mut(&group) {
            group.missing.insert(path.to_path_buf());
            self.sync_missing(None, now, out);
        }
    }

    pub(super) fn remove_if_retired(&mut self, id: MountId, now: Instant, out: &mut Out) {
        let Some(mount) = self.mounts.get(&id) else { return };
        if mount.retired && mount.held == 0 && self.phase == Phase::Serving {
            let place = mount.place.clone();
            self.sync_missing(Some(place), now, out);
        }
    }

    /// Idle mounts that no map wants: the run that has ended may have kept them busy when they were to be removed.
    pub(super) fn remove_retired(&mut self, group: GroupId, now: Instant, out: &mut Out) {
        let idle = |mount: &Mount| mount.group == group && mount.retired && mount.held == 0;
        let ids: Vec<MountId> =
            self.mounts.iter().filter(|(_, mount)| idle(mount)).map(|(id, _)| *id).collect();
        for id in ids {
            self.remove_if_retired(id, now, out);
        }
    }

    /// Maps that are not served any more, once nothing is left of them.
    fn drop_gone(&mut self) {
        if self.groups.values().any(|group| group.gone) {
            let mut used: BTreeSet<GroupId> = self.mounts.values().map(|mount| mount.group).collect();
            used.extend(self.late.values().map(|late| late.group));
            self.groups.retain(|id, group| !group.gone || used.contains(id));
        }
    }
}
