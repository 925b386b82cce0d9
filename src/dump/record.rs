//! Everything that is known about the mounts, put together as the image wants it.

use super::owner::{self, OwnerError};
use super::plan::DumpPlan;
use super::tree::{self, Avoid, Tree, TreeError};
use super::{maps, requests};
use crate::attach::{Target, space_of};
use crate::discover::facts::{AutofsMount, MountType};
use crate::discover::{self, escaped::escape};
use crate::image::checkpoint::{DumpedMount, InFlight, Service};
use crate::quiesce::Waiting;
use crate::sys::control::{Control, ControlError, Requester};
use crate::sys::packet::Packet;
use crate::sys::{DevNum, Errno};
use maps::MapState;
use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A mount could not be recorded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The mount namespace.
    #[error("the mount namespace cannot be entered: {0}")]
    Namespace(Errno),
    /// What is inside.
    #[error("{}: {source}", escape(path.as_os_str().as_bytes()))]
    Tree {
        /// The mount.
        path: PathBuf,
        /// Why.
        source: TreeError,
    },
}

/// What the image will hold.
#[derive(Clone, Debug, Default)]
pub struct Recorded {
    /// The mounts.
    pub mounts: Vec<DumpedMount>,
    /// What serves them.
    pub services: Vec<Service>,
    /// What could not be found out.
    pub warnings: Vec<String>,
    /// Superblocks of which a part was a guess, because looking would have been waiting.
    guessed: HashSet<DevNum>,
}

/// Reads. Nothing is changed; masters that are asked stop for some milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Recorder<'a> {
    /// The control device.
    pub control: &'a Arc<Control>,
    /// Who sees the mounts.
    pub target: &'a discover::Target,
    /// Which mounts.
    pub plan: &'a DumpPlan,
}

impl Recorder<'_> {
    /// Record all.
    pub fn record(&self) -> Result<Recorded, RecordError> {
        let mut recorded = Recorded::default();
        let packets = self.packets(&mut recorded.warnings);
        let targets: Vec<_> = self.plan.superblocks().map(target_of).collect();
        let trees = self.trees(&targets, &packets, &mut recorded)?;
        let requesters = self.requesters(&mut recorded.warnings)?;
        let present = |mount: &&AutofsMount| trees.contains_key(&mount.dev) || mount.root != Path::new("/");
        let mounts: Vec<_> = self.plan.mounts.iter().filter(present).cloned().collect();
        let MapState { services, served_by, warnings } = maps::find(&mounts, self.target);
        recorded.warnings.extend(warnings);
        let places: HashMap<u64, PathBuf> =
            mounts.iter().map(|mount| (mount.mount_id, mount.path.clone())).collect();
        let parts = Parts { packets: &packets, trees: &trees, requesters: &requesters, places: &places };
        recorded.mounts = mounts
            .into_iter()
            .zip(served_by)
            .map(|(mount, service)| parts.assemble(mount, service, &services))
            .collect();
        recorded.services = services;
        Ok(recorded)
    }

    /// Requests that the masters have not read.
    fn packets(&self, warnings: &mut Vec<String>) -> Vec<Packet> {
        let mut packets = Vec::new();
        for end in self.plan.pipes.values() {
            match requests::unread(end.process.pid, end.fd) {
                Ok(unread) => packets.extend(unread),
                // it has ended meanwhile
                Err(Errno::SRCH | Errno::BADF) => {}
                Err(errno) => {
                    let pid = end.process.pid;
                    warnings.push(format!("requests in the pipe of process {pid} cannot be seen: {errno}"));
                }
            }
        }
        packets
    }

    /// What is inside each superblock. Mounts that are gone meanwhile have none, and are left out.
    fn trees(
        &self,
        targets: &[Target],
        packets: &[Packet],
        recorded: &mut Recorded,
    ) -> Result<HashMap<DevNum, Tree>, RecordError> {
        let results = tree::read_all(self.control, self.target, targets, self.avoid(packets));
        let mut trees = HashMap::with_capacity(targets.len());
        for (target, result) in targets.iter().zip(results) {
            let shown = escape(target.path.as_os_str().as_bytes());
            match result {
                Ok(tree) => {
                    if !tree.guessed.is_empty() {
                        recorded.guessed.insert(target.dev);
                    }
                    trees.insert(target.dev, tree);
                }
                Err(TreeError::Open(ControlError::NoSuchMount { .. })) => {
                    recorded.warnings.push(format!("{shown} was unmounted meanwhile"));
                }
                Err(error @ TreeError::Unreachable(_)) => {
                    recorded.warnings.push(format!("{shown}: {error}; what is inside is not recorded"));
                    trees.insert(target.dev, Tree { mode: 0o755, ..Tree::default() });
                }
                Err(source) => return Err(RecordError::Tree { path: target.path.clone(), source }),
            }
        }
        Ok(trees)
    }

    /// What is known to wait.
    fn avoid(&self, packets: &[Packet]) -> Avoid {
        let mut avoid = Avoid::default();
        for mount in self.plan.superblocks() {
            let asked = packets.iter().filter(|packet| packet.dev == mount.dev);
            match mount.options.mount_type {
                MountType::Indirect => {
                    asked.for_each(|packet| avoid.key(mount.dev, OsStr::from_bytes(&packet.name).into()));
                }
                MountType::Direct | MountType::Offset => {
                    if asked.count() > 0 || !mount.waiters.is_empty() {
                        avoid.root(mount.dev);
                    }
                }
            }
        }
        avoid
    }

    fn requesters(&self, warnings: &mut Vec<String>) -> Result<HashMap<DevNum, Requester>, RecordError> {
        let ours = &self.plan.ask_ourselves;
        let mut answers = match ours.is_empty() {
            true => Vec::new(),
            false => self.inside(|| owner::ask(&**self.control, ours))?,
        };
        for inquiry in &self.plan.inquiries {
            match owner::ask_master(self.control, inquiry) {
                Ok(some) => answers.extend(some),
                Err(error) => {
                    warnings.push(unknown_requesters(inquiry.master.pid, inquiry.mounts.len(), &error))
                }
            }
        }
        Ok(answers.into_iter().collect())
    }

    fn inside<T: Send>(&self, act: impl FnOnce() -> T + Send) -> Result<T, RecordError> {
        space_of(self.target).and_then(|space| space.run(act)).map_err(RecordError::Namespace)
    }

    /// After the mounts were taken away nobody waits any more: look at what was a guess, and note who is stopped.
    pub fn complete(&self, recorded: &mut Recorded, stopped: &[Waiting]) {
        let again: Vec<_> = self
            .plan
            .superblocks()
            .filter(|mount| recorded.guessed.contains(&mount.dev))
            .map(target_of)
            .collect();
        let results = match again.is_empty() {
            true => Vec::new(),
            // what fails now stays a guess
            false => tree::read_all(self.control, self.target, &again, Avoid::default()),
        };
        for (target, tree) in again.iter().zip(results) {
            let Ok(tree) = tree else { continue };
            let first = recorded.mounts.iter_mut().find(|mount| mount.facts.dev == target.dev);
            if let Some(mount) = first {
                mount.tree = tree.entries;
            }
        }
        note_stopped(&mut recorded.mounts, stopped);
    }
}

/// Every stopped waiter is in flight: with its request where that is known, else with the first mount that had a pipe.
fn note_stopped(mounts: &mut [DumpedMount], stopped: &[Waiting]) {
    for mount in mounts.iter_mut() {
        // the others are through, and need nothing
        mount.in_flight.retain(|request| match &request.waiter {
            Some(waiter) => stopped.iter().any(|one| one.waiter.tid == waiter.tid),
            None => true,
        });
    }
    for one in stopped {
        let mut requests = mounts.iter_mut().flat_map(|mount| &mut mount.in_flight);
        let its = requests
            .find(|request| request.waiter.as_ref().is_some_and(|waiter| waiter.tid == one.waiter.tid));
        if let Some(request) = its {
            request.was_stopped = one.was_stopped;
        } else if let Some(mount) = mounts.iter_mut().find(|mount| !mount.facts.catatonic) {
            let waiter = Some(one.waiter.clone());
            mount.in_flight.push(InFlight { packet: None, waiter, was_stopped: one.was_stopped });
        }
    }
}

fn target_of(mount: &AutofsMount) -> Target {
    Target { path: mount.path.clone(), dev: mount.dev }
}

fn unknown_requesters(pid: i32, mounts: usize, error: &OwnerError) -> String {
    format!("who triggered {mounts} mounts is not known, because process {pid} cannot be asked: {error}")
}

/// What was read, by superblock.
struct Parts<'a> {
    packets: &'a [Packet],
    trees: &'a HashMap<DevNum, Tree>,
    requesters: &'a HashMap<DevNum, Requester>,
    /// Where each autofs mount is, by mount id.
    places: &'a HashMap<u64, PathBuf>,
}

impl Parts<'_> {
    fn assemble(&self, facts: AutofsMount, served_by: Option<usize>, services: &[Service]) -> DumpedMount {
        let whole = facts.root == Path::new("/");
        let tree = self.trees.get(&facts.dev).filter(|_| whole).cloned().unwrap_or_default();
        let packets: Vec<_> = self.packets.iter().filter(|packet| packet.dev == facts.dev).cloned().collect();
        let covering = facts.covering.iter().map(|mount| mount.path.as_path());
        let children =
            facts.autofs_children.iter().filter_map(|id| self.places.get(id)).map(PathBuf::as_path);
        let mounted: Vec<_> = covering.chain(children).collect();
        let links = tree.entries.iter().filter(|entry| entry.symlink.is_some());
        let links: Vec<_> = match facts.options.mount_type {
            MountType::Indirect => links.map(|entry| entry.path.as_path()).collect(),
            MountType::Direct | MountType::Offset => Vec::new(),
        };
        let service = served_by.and_then(|index| services.get(index));
        DumpedMount {
            root_mode: tree.mode,
            root_uid: tree.uid,
            root_gid: tree.gid,
            root_requester: self.requesters.get(&facts.dev).copied(),
            in_flight: requests::in_flight(&packets, &facts.waiters),
            served_by,
            active: maps::active(&facts, &mounted, &links, service),
            tree: tree.entries,
            facts,
        }
    }
}
