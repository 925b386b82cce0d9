//! The masters that mounts are taken from.

use super::remote::Remote;
use super::{AttachError, Opened};
use crate::discover::facts::{AutofsMount, AutofsOptions, End, PipeEnd, Survey};
use crate::discover::{self, mountinfo, proc::TaskDir};
use crate::sys::packet;
use crate::sys::process::{self, ProcessId};
use crate::sys::tracee::RemoteFd;
use crate::sys::{DevNum, Errno};
use rustix::fs::{Mode, OFlags};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// Who must be given its mounts back if something fails, and how.
#[derive(Debug)]
pub(super) struct OldMasters(Vec<OldMaster>);

/// A process and one of its pipes.
#[derive(Debug)]
struct OldMaster {
    process: ProcessId,
    /// Does it read its pipe? (A holder does not.)
    reads: bool,
    write_end: OwnedFd,
    has_write_end: bool,
    /// The write end that it got from us.
    kept: Option<RemoteFd>,
    /// Indexes into the mounts that change hands.
    mounts: Vec<usize>,
}

impl OldMasters {
    /// Of those mounts that have one. Nothing is changed.
    pub(super) fn find(survey: &Survey, mounts: &[Opened<'_>]) -> Result<Self, AttachError> {
        let mut found: BTreeMap<(i32, i32), OldMaster> = BTreeMap::new();
        for (index, (target, _)) in mounts.iter().enumerate() {
            let Some(mount) = survey.mounts.iter().find(|mount| mount.dev == target.dev) else { continue };
            let Some((end, reads)) = reader(mount) else { continue };
            let (pid, fd) = (end.process.pid, end.fd);
            let old = match found.entry((pid, fd)) {
                std::collections::btree_map::Entry::Occupied(known) => known.into_mut(),
                std::collections::btree_map::Entry::Vacant(new) => {
                    let write_end = match process::reopen_write_end(pid, fd) {
                        Ok(write_end) => write_end,
                        // It has ended meanwhile.
                        Err(Errno::SRCH | Errno::BADF | Errno::NOENT) => continue,
                        Err(errno) => return Err(AttachError::Pipe { pid, fd, errno }),
                    };
                    let own = |other: &PipeEnd| other.process == end.process && other.end == End::Write;
                    new.insert(OldMaster {
                        process: end.process,
                        reads,
                        write_end,
                        has_write_end: mount.pipe_ends.iter().any(own),
                        kept: None,
                        mounts: Vec::new(),
                    })
                }
            };
            old.mounts.push(index);
        }
        Ok(Self(found.into_values().collect()))
    }

    /// Their processes.
    pub(super) fn pids(&self) -> Vec<i32> {
        self.0.iter().map(|old| old.process.pid).collect()
    }

    /// Let each that reads keep a write end of its own pipe, but for those that go on as masters.
    pub(super) fn keep_write_ends(
        &mut self,
        but: &[i32],
        space: &discover::Target,
    ) -> Result<(), AttachError> {
        for index in 0..self.0.len() {
            let old = &mut self.0[index];
            if !old.reads || old.has_write_end || but.contains(&old.process.pid) {
                continue;
            }
            let sent =
                Remote::hold(old.process.pid, space).and_then(|mut its| its.send(old.write_end.as_fd()));
            match sent {
                Ok(fd) => old.kept = Some(fd),
                Err(_) if !old.process.is_alive() => {}
                Err(error) => {
                    self.take_back_write_ends(space);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// The opposite. What fails here only leaves a descriptor too many.
    pub(super) fn take_back_write_ends(&mut self, space: &discover::Target) {
        for old in &mut self.0 {
            let Some(fd) = old.kept.take() else { continue };
            if let Err(error) = Remote::hold(old.process.pid, space).and_then(|mut its| its.close(fd)) {
                tracing::warn!("process {} keeps a descriptor of its pipe: {error}", old.process.pid);
            }
        }
    }

    /// Take unread requests out of the pipes: their waiters ask the new master, and an old one that read
    /// them would mount as well.
    pub(super) fn forget_requests(&self) {
        for old in self.0.iter().filter(|old| old.reads) {
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let path = format!("/proc/self/fd/{}", old.write_end.as_raw_fd());
            let Ok(read) = rustix::fs::open(path, flags, Mode::empty()) else { continue };
            while let Ok(Some(_)) = packet::read_packet(read.as_fd()) {}
        }
    }

    /// Each that lives gets its mounts, which are catatonic, with its own pipe.
    pub(super) fn give_back(
        &mut self,
        mounts: &[Opened<'_>],
        space: &discover::Target,
    ) -> Result<(), AttachError> {
        let mut result = Ok(());
        for old in self.0.iter_mut().filter(|old| old.process.is_alive()) {
            let its: Vec<_> = old.mounts.iter().map(|&index| mounts[index]).collect();
            let given = Remote::hold(old.process.pid, space).and_then(|mut remote| {
                remote.set_pipes(&its, old.write_end.as_fd())?;
                old.kept.take().map_or(Ok(()), |fd| remote.close(fd))
            });
            result = result.and(given);
        }
        result
    }
}

/// The read end of a mount's master; without one that of a holder, who keeps requests for a master to come.
fn reader(mount: &AutofsMount) -> Option<(&PipeEnd, bool)> {
    let mut ends = mount.pipe_ends.iter().filter(|end| end.end == End::Read);
    match mount.master.process() {
        Some(process) => ends.find(|end| end.process == process).map(|end| (end, true)),
        None => ends.next().map(|end| (end, false)),
    }
}

/// The pid namespace of a process, if it can be seen.
pub(super) fn pid_namespace(pid: i32) -> Option<u64> {
    TaskDir::process(pid).ok()?.namespace("pid")
}

/// The pid namespace of a mount's owner group, if its leader lives and can be seen.
pub(super) fn owner_namespace(space: &discover::Target, dev: DevNum) -> Option<u64> {
    let (_, file) = discover::survey::read(space).ok()?;
    let entries = mountinfo::parse(&file).ok()?;
    let entry = entries.iter().find(|entry| entry.dev == dev)?;
    pid_namespace(AutofsOptions::parse(entry.super_options).pgrp)
}
