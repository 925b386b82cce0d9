//! A dump, seen from CRIU's main process: every task of the container is stopped.

use super::inside::{self, Inside};
use super::tree::{Member, Tree};
use crate::attach;
use crate::discover::facts::{AutofsMount, End, Master, PipeEnd, Survey};
use crate::discover::{DiscoverError, Target, survey};
use crate::image::checkpoint::DumpedMount;
use crate::image::{File, criu};
use crate::sys::process::{ProcessId, copy_fd};
use crate::sys::{DevNum, Errno};
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

/// A mount cannot be dumped, and so neither can the container.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DumpError {
    /// The mount tables could not be read.
    #[error(transparent)]
    Discover(#[from] DiscoverError),
    /// What is inside could not be read.
    #[error("{}: {why}", path.display())]
    Inside {
        /// The mount.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// Another call.
    #[error("{}: cannot {what}: {errno}", path.display())]
    Call {
        /// The mount.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        errno: Errno,
    },
    /// The facts have no such mount: CRIU's table and ours differ.
    #[error("no autofs mount {0} in the container's mount tables")]
    Unknown(DevNum),
    /// A request that the master has not read.
    #[error("{}: {bytes} bytes of requests wait in the pipe; try again when they are answered", path.display())]
    Unread {
        /// The mount.
        path: PathBuf,
        /// How many.
        bytes: u64,
    },
    /// The master is outside the container.
    #[error("{}: its master is not in the container: {who}", path.display())]
    Foreign {
        /// The mount.
        path: PathBuf,
        /// What is known of it.
        who: String,
    },
}

/// What is known of the container's autofs mounts.
#[derive(Debug)]
pub struct Dump {
    tree: Tree,
    spaces: Vec<Space>,
}

/// A mount namespace of the container.
#[derive(Debug)]
struct Space {
    survey: Survey,
    /// Of each superblock.
    inside: HashMap<DevNum, Result<Inside, String>>,
}

impl Space {
    fn look(member: &Member) -> Result<Self, DumpError> {
        let survey = survey(&Target::Process(member.pid))?;
        let mut targets: Vec<attach::Target> = Vec::new();
        let mut seen = HashSet::new();
        for mount in survey.mounts.iter().filter(|mount| seen.insert(mount.dev)) {
            targets.push(attach::Target { path: mount.path.clone(), dev: mount.dev });
        }
        if targets.is_empty() {
            return Ok(Self { survey, inside: HashMap::new() });
        }
        let failed =
            |errno| DumpError::Call { path: targets[0].path.clone(), what: "look into mounts", errno };
        let inside = inside::read(member.pid, &targets).map_err(failed)?;
        let inside = targets.iter().map(|target| target.dev).zip(inside).collect();
        Ok(Self { survey, inside })
    }
}

impl Dump {
    /// The facts of the container whose root process is `root`; `None` when it has no autofs mounts.
    pub fn begin(root: i32) -> Result<Option<Self>, DumpError> {
        let tree = Tree::of(root);
        let spaces = tree.mount_namespaces().into_iter().map(Space::look).collect::<Result<Vec<_>, _>>()?;
        let empty = spaces.iter().all(|space| space.survey.mounts.is_empty());
        Ok((!empty).then_some(Self { tree, spaces }))
    }

    /// How many places have an autofs mount.
    pub fn places(&self) -> usize {
        self.spaces.iter().map(|space| space.survey.mounts.len()).sum()
    }

    /// The image of the superblock `dev`.
    pub fn image(&self, dev: DevNum) -> Result<File, DumpError> {
        // A copy of the namespace has copies of its mounts: the first is enough.
        let mut position = 0;
        for space in &self.spaces {
            let places = space.survey.mounts.iter().enumerate().filter(|(_, mount)| mount.dev == dev);
            let dumped = places
                .map(|(index, mount)| Ok((position + index, self.dump(space, mount)?)))
                .collect::<Result<Vec<_>, DumpError>>()?;
            if let Some(file) = criu::encode(dumped.iter().map(|(position, mount)| (*position, mount))) {
                return Ok(file);
            }
            position += space.survey.mounts.len();
        }
        Err(DumpError::Unknown(dev))
    }

    fn dump(&self, space: &Space, mount: &AutofsMount) -> Result<DumpedMount, DumpError> {
        let facts = self.inner(mount);
        if !mount.catatonic {
            self.master_is_inside(mount)?;
            unread(mount)?;
        }
        let inside = match space.inside.get(&mount.dev) {
            Some(Ok(inside)) => inside.clone(),
            Some(Err(why)) => return Err(DumpError::Inside { path: mount.path.clone(), why: why.clone() }),
            None => return Err(DumpError::Unknown(mount.dev)),
        };
        Ok(DumpedMount {
            facts,
            root_mode: inside.mode,
            root_uid: inside.uid,
            root_gid: inside.gid,
            root_requester: None,
            tree: inside.entries,
            in_flight: Vec::new(),
            served_by: None,
            active: Vec::new(),
        })
    }

    /// Somebody in the container reads the pipe.
    fn master_is_inside(&self, mount: &AutofsMount) -> Result<(), DumpError> {
        let inside = |end: &PipeEnd| self.tree.by_pid(end.process.pid).is_some();
        let mut readers = mount.pipe_ends.iter().filter(|end| end.end == End::Read);
        let who = match &mount.master {
            _ if readers.any(inside) => return Ok(()),
            // Nobody will ever read it: the restored mount is catatonic.
            Master::Dead => return Ok(()),
            Master::Automount { process }
            | Master::Systemd { process, .. }
            | Master::AutofsCr { process }
            | Master::Unknown { process, .. } => format!("it is process {}", process.pid),
            Master::NotVisible => "no process is seen to read its pipe".to_owned(),
        };
        Err(DumpError::Foreign { path: mount.path.clone(), who })
    }

    /// The facts with the numbers that the container uses for its processes.
    fn inner(&self, mount: &AutofsMount) -> AutofsMount {
        let translate = |id: ProcessId| Some(ProcessId { pid: self.tree.by_pid(id.pid)?.inner, ..id });
        let ends = mount.pipe_ends.iter();
        let ends = ends.filter_map(|end| Some(PipeEnd { process: translate(end.process)?, ..end.clone() }));
        let mut facts = mount.clone();
        facts.pipe_ends = ends.collect();
        facts.options.pgrp = self.inner_group(mount.options.pgrp);
        facts.waiters.clear();
        facts.master = match &mount.master {
            Master::Automount { process } => translate(*process).map(|process| Master::Automount { process }),
            Master::AutofsCr { process } => translate(*process).map(|process| Master::AutofsCr { process }),
            Master::Systemd { process, unit } => {
                translate(*process).map(|process| Master::Systemd { process, unit: unit.clone() })
            }
            Master::Unknown { process, comm } => {
                translate(*process).map(|process| Master::Unknown { process, comm: comm.clone() })
            }
            Master::Dead | Master::NotVisible => None,
        }
        .unwrap_or(Master::Dead);
        facts
    }

    /// The owner group's number in the container; 0 when nobody of it lives there.
    fn inner_group(&self, group: i32) -> i32 {
        let in_group = |member: &&Member| {
            ProcessId::of(member.pid).and_then(ProcessId::group).is_ok_and(|its| its == group)
        };
        match self.tree.by_pid(group) {
            Some(leader) if leader.inner_group == leader.inner => leader.inner,
            _ => self.tree.members.iter().find(in_group).map_or(0, |member| member.inner_group),
        }
    }
}

/// A request in the pipe would be lost.
fn unread(mount: &AutofsMount) -> Result<(), DumpError> {
    let mut seen = HashSet::new();
    let readers = mount.pipe_ends.iter().filter(|end| end.end == End::Read);
    for end in readers.filter(|end| seen.insert(end.process)) {
        let failed = |errno| DumpError::Call { path: mount.path.clone(), what: "look into its pipe", errno };
        let pipe = copy_fd(end.process.pid, end.fd).map_err(failed)?;
        let bytes = rustix::io::ioctl_fionread(&pipe).map_err(failed)?;
        if bytes > 0 {
            return Err(DumpError::Unread { path: mount.path.clone(), bytes });
        }
    }
    Ok(())
}
