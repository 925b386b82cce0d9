//! The end.

use super::*;

impl State {
    pub(super) fn stop(&mut self, now: Instant, out: &mut Out) {
        match self.phase {
            Phase::Serving | Phase::Leaving | Phase::Left => {
                self.phase = Phase::Expiring;
                for packet in std::mem::take(&mut self.carried) {
                    self.packet(packet, None, now, out);
                }
                self.expire_all(out);
            }
            Phase::Expiring => self.tear_down(now, out),
            Phase::TearingDown => self.end(out),
            Phase::Ended => {}
        }
    }

    pub(super) fn expire_all(&mut self, out: &mut Out) {
        for group in self.groups.keys().copied().collect::<Vec<_>>() {
            self.expire(group, true, out);
        }
    }

    /// While stopping: another round as long as a round unmounts something (what lies below a submount
    /// becomes idle only when that is gone), then the end.
    pub(super) fn tear_down_when_quiet(&mut self, now: Instant, out: &mut Out) {
        let running = |job: &Job| !job.late && !matches!(job.work, Work::Master | Work::Read(_));
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
        mounts.sort_by_key(|mount| std::cmp::Reverse((mount.depth(), mount.place.path.components().count())));
        let places = mounts.iter().map(|mount| mount.place.clone()).collect();
        self.run(Work::TearDown, Task::TearDown(places), self.limits.tear_down, now, out);
    }

    pub(super) fn end(&mut self, out: &mut Out) {
        if self.phase != Phase::Ended {
            self.phase = Phase::Ended;
            out.push(Action::Exit);
        }
    }
}
