//! Mounts, their slots, and what depends on what.

use super::*;
use std::path::Path;

impl State {
    pub(super) fn insert(
        &mut self,
        group: GroupId,
        place: Arc<Place>,
        below: Option<Below>,
        born: u64,
        out: &mut Out,
    ) -> Option<MountId> {
        let served = self.groups.get(&group)?.served.clone();
        if let Some(old) = self.find(place.dev) {
            // its number was used again: it is gone
            self.forget(old, out);
        }
        let id = MountId(self.number() as u32);
        self.by_dev.insert(place.dev, id);
        let below = below.map(Box::new);
        let slots = BTreeMap::new();
        let mount = Mount { place, served, group, below, born, retired: false, slots, held: 0 };
        self.mounts.insert(id, Box::new(mount));
        Some(id)
    }

    /// A mount of ours was made again, with another number or another root: the engine was checkpointed and restored
    /// together with it. `false`: we have none at this place.
    pub fn moved(&mut self, place: Place) -> bool {
        let same = |mount: &Mount| mount.place.path == place.path && mount.place.kind == place.kind;
        let Some((&id, mount)) = self.mounts.iter_mut().find(|(_, mount)| same(mount)) else { return false };
        if self.by_dev.get(&mount.place.dev) == Some(&id) {
            self.by_dev.remove(&mount.place.dev);
        }
        self.by_dev.insert(place.dev, id);
        mount.place = Arc::new(place);
        true
    }

    /// A mount that could not be attached before.
    pub(super) fn attached(&mut self, path: &Path, found: Option<Found>, now: Instant, out: &mut Out) {
        let Some(LateMount { group, retired }) = self.late.remove(path) else { return };
        match found {
            Some(found) => {
                let id = found.enter(self, group, now);
                if let Some(mount) = id.and_then(|id| self.mounts.get_mut(&id)) {
                    mount.retired = retired;
                }
                self.remove_retired(group, now, out);
            }
            None if !retired => self.make_missing(group, path, now, out),
            None => {}
        }
        self.take_early(now, out);
    }

    pub(super) fn set_slot(&mut self, id: MountId, key: &[u8], slot: Option<Slot>, now: Instant) {
        let Some(mount) = self.mounts.get_mut(&id) else { return };
        let holds = |slot: &Option<Slot>| !matches!(slot, None | Some(Slot::Failed { .. }));
        let after = holds(&slot);
        let before = match slot {
            Some(slot) => mount.slots.insert(key.to_vec(), slot),
            None => mount.slots.remove(key),
        };
        mount.held = mount.held + u32::from(after) - u32::from(holds(&before));
        let Some(group) = self.groups.get_mut(&mount.group) else { return };
        if mount.held > 0 {
            group.active.insert(id);
        } else {
            group.active.remove(&id);
        }
        let group = mount.group;
        self.arm(group, now);
    }

    pub(super) fn children(&self, id: MountId, key: &[u8]) -> Vec<MountId> {
        match self.mounts.get(&id).and_then(|mount| mount.slots.get(key)) {
            Some(Slot::Busy { children, .. } | Slot::Mounted { children, .. }) => children.clone(),
            _ => Vec::new(),
        }
    }

    pub(super) fn as_child(&self, id: MountId) -> Option<Child> {
        let mount = self.mounts.get(&id)?;
        let (parent, _) = &mount.below.as_ref()?.parent;
        let duty = match mount.offset() {
            Some(offset) => Duty::Offset(offset.clone()),
            None => Duty::Map(mount.served.clone()),
        };
        let under = self.mounts.get(parent)?.place.dev;
        Some(Child { place: mount.place.clone(), under, duty, born: mount.born })
    }

    /// All autofs mounts that depend on `children`, and these, parents before children.
    pub(super) fn descendants(&self, children: &[MountId]) -> Vec<Child> {
        let mut ids = children.to_vec();
        let mut all = Vec::new();
        let mut at = 0;
        while let Some(&id) = ids.get(at) {
            at += 1;
            all.extend(self.as_child(id));
            let slots = self.mounts.get(&id).into_iter().flat_map(|mount| mount.slots.values());
            for slot in slots {
                if let Slot::Busy { children, .. } | Slot::Mounted { children, .. } = slot {
                    ids.extend(children);
                }
            }
        }
        all
    }

    /// Is there a job on `mounts` or on anything that depends on them?
    pub(super) fn busy_below(&self, mounts: &[MountId]) -> bool {
        let mounts = mounts.iter().filter_map(|id| self.mounts.get(id));
        mounts.flat_map(|mount| mount.slots.values()).any(|slot| match slot {
            Slot::Busy { .. } => true,
            Slot::Mounted { children, .. } => self.busy_below(children),
            Slot::Failed { .. } => false,
        })
    }

    /// Below a slot exist exactly `below` (parents before children): keep, add, forget. Not `deep`: only those
    /// directly below are listed, and what depends on them is as it was.
    pub(super) fn reconcile(
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
        let known = self.by_dev.get(&child.place.dev).and_then(|known| self.mounts.get_mut(known));
        if let Some(known) = known.filter(|known| known.place == child.place || known.born > child.born) {
            // Its entry may have changed.
            if let (Some(below), Duty::Offset(offset)) = (&mut known.below, &child.duty)
                && known.place == child.place
            {
                below.offset = Some(offset.clone());
            }
            return;
        }
        let Some(mount) = self.mounts.get(&owner) else { return };
        let mut below = Below { parent: (owner, key.clone()), depth: mount.depth() + 1, offset: None };
        let id = match child.duty {
            Duty::Offset(offset) => {
                let group = mount.group;
                below.offset = Some(offset);
                self.insert(group, child.place, Some(below), child.born, out)
            }
            Duty::Map(served) => {
                let group = self.add_group(served);
                let id = self.insert(group, child.place, Some(below), child.born, out);
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
            Some(Slot::Busy { children, .. } | Slot::Mounted { children, .. }) => children.push(id),
            _ => {
                let children = vec![id];
                self.set_slot(owner, &key, Some(Slot::Mounted { children, since: now }), now);
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
    pub(super) fn forget(&mut self, id: MountId, out: &mut Out) {
        let Some(mount) = self.mounts.remove(&id) else { return };
        if self.by_dev.get(&mount.place.dev) == Some(&id) {
            self.by_dev.remove(&mount.place.dev);
        }
        for (key, slot) in &mount.slots {
            let children = match slot {
                Slot::Busy { kept, children, .. } => {
                    mount.answer_all(key, kept, Err(Errno::NOENT), out);
                    children
                }
                Slot::Mounted { children, .. } => children,
                Slot::Failed { .. } => continue,
            };
            for child in children {
                self.forget(*child, out);
            }
        }
        if let Some(Below { parent: (parent, key), .. }) = mount.below.as_deref()
            && let Some(parent) = self.mounts.get_mut(parent)
            && let Some(Slot::Busy { children, .. } | Slot::Mounted { children, .. }) =
                parent.slots.get_mut(key)
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
}
