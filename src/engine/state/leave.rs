//! Leaving for another program ([`crate::engine::upgrade`]): what is running ends, what comes is carried.

use super::*;

/// How long running jobs may take; then their requests are carried as well.
const LEAVE: Duration = Duration::from_secs(5);

impl State {
    /// New lookups are kept from now on. What the kernel asks to be unmounted is, because a run waits for it.
    pub(super) fn leave(&mut self, now: Instant) {
        if self.phase == Phase::Serving {
            self.phase = Phase::Leaving;
            self.alarm(now + LEAVE, Alarm::Leave);
        }
    }

    pub(super) fn leave_when_quiet(&mut self, whatever: bool, out: &mut Out) {
        // The next program reads the maps itself.
        let over = |job: &Job| job.late || matches!(job.work, Work::Master | Work::Read(_));
        let quiet = || self.groups.values().all(|group| group.run.is_none()) && self.jobs.values().all(over);
        if self.phase != Phase::Leaving || !(whatever || quiet()) {
            return;
        }
        self.phase = Phase::Left;
        let mut packets = std::mem::take(&mut self.carried);
        packets.extend(std::mem::take(&mut self.early).into_iter().map(|(_, packet)| packet));
        for mount in self.mounts.values_mut() {
            let mut kept = Vec::new();
            for (key, slot) in &mut mount.slots {
                if let Slot::Busy { kept: askers, .. } = slot {
                    kept.extend(std::mem::take(askers).into_iter().map(|asker| (key.clone(), asker)));
                }
            }
            packets.extend(kept.into_iter().map(|(key, asker)| mount.request(&key, asker, Ok(())).packet()));
        }
        out.push(Action::Leave(packets));
    }

    /// It could not leave: all goes on.
    pub(super) fn stay(&mut self, packets: Vec<Packet>, now: Instant, out: &mut Out) {
        if matches!(self.phase, Phase::Leaving | Phase::Left) {
            self.phase = Phase::Serving;
        }
        for packet in packets {
            self.packet(packet, None, now, out);
        }
        for id in self.groups.keys().copied().collect::<Vec<_>>() {
            self.arm(id, now);
        }
        self.follow_again(now, out);
    }

    /// Directories that were made for mounts: mount point and how many.
    pub fn made_dirs(&self) -> Vec<(PathBuf, u32)> {
        let places = self.mounts.values().map(|mount| &mount.place);
        places.filter(|place| place.dirs > 0).map(|place| (place.path.to_path_buf(), place.dirs)).collect()
    }
}
