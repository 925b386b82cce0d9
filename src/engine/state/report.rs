//! What the machine is doing, for people and for counters.

use super::*;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Numbers of things.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Autofs mounts.
    pub mounts: usize,
    /// Keys that are mounted.
    pub mounted: usize,
    /// Failed lookups that are remembered.
    pub failed: usize,
    /// Jobs that are running.
    pub jobs: usize,
    /// Those of them that took too long.
    pub late: usize,
    /// Requests that wait for a job.
    pub waiting: usize,
}

/// A served map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapReport {
    /// Its name.
    #[serde(with = "crate::discover::escaped")]
    pub name: PathBuf,
    /// Mount point of an indirect map; `/-` for a direct one.
    #[serde(with = "crate::discover::escaped")]
    pub point: PathBuf,
    /// Idle time after which a mount goes, seconds; 0: never.
    pub timeout: u64,
    /// Autofs mounts: triggers of a direct map, offsets and the mount itself of an indirect one.
    pub mounts: usize,
    /// Keys that are mounted.
    pub mounted: usize,
    /// Failed lookups that are remembered.
    pub failed: usize,
    /// It is being read.
    pub reading: bool,
    /// A run over its idle mounts is under way.
    pub expiring: bool,
}

/// A job that is running.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobReport {
    /// What it does: `mount`, `unmount`, `read`, `sync`, `tear down`.
    pub what: String,
    /// On which trigger, or for which map.
    #[serde(with = "crate::discover::escaped")]
    pub path: PathBuf,
    /// For how long, milliseconds.
    pub running_ms: u64,
    /// It takes too long; its request was answered without it.
    pub late: bool,
    /// More requests that wait for its end.
    pub waiting: usize,
}

impl State {
    /// Numbers of things.
    pub fn counts(&self) -> Counts {
        let late = self.jobs.values().filter(|job| job.late).count();
        let mut counts = Counts {
            mounts: self.mounts.len(),
            jobs: self.jobs.len() - late,
            late,
            waiting: self.early.len(),
            ..Counts::default()
        };
        for mount in self.mounts.values() {
            for slot in mount.slots.values() {
                match slot {
                    Slot::Busy { kept, .. } => counts.waiting += kept.len(),
                    Slot::Mounted { .. } => counts.mounted += 1,
                    Slot::Failed { .. } => counts.failed += 1,
                }
            }
        }
        counts
    }

    /// Every map, in the order of the master map.
    pub fn maps(&self) -> Vec<MapReport> {
        let report = |(id, group): (&GroupId, &Group)| {
            let served = &group.served;
            let report = MapReport {
                name: served.name.clone().into(),
                point: served.point.clone().unwrap_or_else(|| "/-".into()),
                timeout: served.options.timeout.as_secs(),
                mounts: 0,
                mounted: 0,
                failed: 0,
                reading: self.reads(*id),
                expiring: group.run.is_some(),
            };
            (*id, report)
        };
        let mut reports: BTreeMap<GroupId, MapReport> = self.groups.iter().map(report).collect();
        for mount in self.mounts.values() {
            let Some(report) = reports.get_mut(&mount.group) else { continue };
            report.mounts += 1;
            report.mounted += mount.held as usize;
            report.failed += mount.slots.len() - mount.held as usize;
        }
        reports.into_values().collect()
    }

    /// Every job that is running, the oldest first.
    pub fn jobs(&self, now: Instant) -> Vec<JobReport> {
        let mut jobs: Vec<(JobId, JobReport)> =
            self.jobs.iter().map(|(id, job)| (*id, self.job(job, now))).collect();
        jobs.sort_by_key(|(id, _)| *id);
        jobs.into_iter().map(|(_, report)| report).collect()
    }

    fn job(&self, job: &Job, now: Instant) -> JobReport {
        let map = |group: &GroupId| {
            let group = self.groups.get(group);
            group.map(|group| PathBuf::from(group.served.name.clone())).unwrap_or_default()
        };
        let (what, path, waiting) = match &job.work {
            Work::Slot(id, key) => {
                let mount = self.mounts.get(id);
                let path = mount.map(|mount| mount.place.target(key)).unwrap_or_default();
                let waiting = match mount.and_then(|mount| mount.slots.get(key)) {
                    Some(Slot::Busy { kept, .. }) => kept.len(),
                    _ => 0,
                };
                (job.what, path, waiting)
            }
            Work::Read(group) => (job.what, map(group), 0),
            Work::Master | Work::Sync(_) | Work::TearDown => (job.what, PathBuf::new(), 0),
        };
        let running_ms =
            u64::try_from(now.saturating_duration_since(job.began).as_millis()).unwrap_or(u64::MAX);
        JobReport { what: what.into(), path, running_ms, late: job.late, waiting }
    }

    /// Triggers with something mounted.
    pub fn mounted_triggers(&self) -> Vec<PathBuf> {
        let held = self.mounts.values().filter(|mount| mount.held > 0);
        let mut paths: Vec<PathBuf> = held
            .flat_map(|mount| {
                let slots = mount.slots.iter().filter(|(_, slot)| !matches!(slot, Slot::Failed { .. }));
                slots.map(|(key, _)| mount.place.target(key))
            })
            .collect();
        paths.sort();
        paths
    }

    /// Is a map being read, or do its triggers follow it?
    pub fn is_reading(&self) -> bool {
        self.reload.is_some()
    }

    /// Is a run over idle mounts under way, or something being unmounted?
    pub fn is_expiring(&self) -> bool {
        let unmounting = self.jobs.values().any(|job| job.unmounts && !job.late);
        unmounting || self.groups.values().any(|group| group.run.is_some())
    }
}
